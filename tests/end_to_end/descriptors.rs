//! What is left of the process's file descriptors for others when one container opens as many connections as it can.
//! Server, host and the clients of modest containers share the limit of this process; the greedy clients are processes
//! of their own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Child;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsnet::host::{BuildError, Member, Network, Publish};

use crate::world::{Container, HOST, SERVER, World, eventually, in_both_carriages, once, receive, server};

in_both_carriages! {
    a_greedy_container_leaves_descriptors_to_others_of_1024 [120],
    a_greedy_container_leaves_descriptors_to_others_of_256 [120],
    clients_of_the_greedy_wait_and_those_of_others_do_not [120],
}

once! {
    a_reserve_that_leaves_nothing_is_refused,
}

/// How many clients of a container try at the same time.
const CLIENTS: usize = 4;

fn a_greedy_container_leaves_descriptors_to_others_of_1024(world: &World) {
    a_greedy_container_leaves_descriptors_to_others(world, 1024);
}

fn a_greedy_container_leaves_descriptors_to_others_of_256(world: &World) {
    a_greedy_container_leaves_descriptors_to_others(world, 256);
}

fn a_greedy_container_leaves_descriptors_to_others(world: &World, limit: u64) {
    let lab = Lab::new(world, limit);
    let Lab { network, greedy, neighbour, stranger, echo, .. } = &lab;
    let clients = lab.use_up(greedy);
    let most = greedy.statistics().tcp.active;
    assert!(most >= limit / 3, "{most} connections of {limit}");
    let late = Container::member(network, world.carriage(), Member::new());
    for modest in [neighbour, stranger, &late] {
        for _ in 0..50 {
            assert_echoes(modest, *echo);
        }
        let socket = modest.udp(lab.datagrams);
        socket.send(b"hello").unwrap();
        assert_eq!(receive(&socket).unwrap(), b"hello");
        assert_eq!(modest.statistics().tcp.overflowed + modest.statistics().udp.overflowed, 0);
    }
    assert!(greedy.statistics().tcp.overflowed > 0);

    set_limit(2 * limit);
    let more_clients = lab.use_up(greedy);
    let more = greedy.statistics().tcp.active;
    assert!(more >= most + limit / 2, "{more} connections after {most}, with twice the limit");

    greedy.close();
    end(clients);
    end(more_clients);
    eventually("everything is free again", || network.statistics().tcp.active == 0);
    let clients = lab.use_up(stranger);
    let again = stranger.statistics().tcp.active;
    assert!(again * 10 >= more * 9, "{again} connections after {more}");
    end(clients);
}

/// A published port of the greedy container takes no client, and answers again when there is room.
fn clients_of_the_greedy_wait_and_those_of_others_do_not(world: &World) {
    let mut lab = Lab::new(world, 256);
    let publish = |container: &Container, name: &str| {
        let inside = server::tcp_echo(container.inside(|| TcpListener::bind("0.0.0.0:0")).unwrap());
        let publish = Publish::tcp((HOST[0], 0), inside.port()).container(name);
        lab.network.publish(publish).unwrap().addresses()[0]
    };
    let (closed, open) = (publish(&lab.greedy, "greedy"), publish(&lab.neighbour, "neighbour"));
    let clients = lab.use_up(&lab.greedy);
    let mut waiting = world.connect(closed);
    waiting.write_all(b"hello").unwrap();
    let mut served = world.connect(open);
    served.write_all(b"hello").unwrap();
    served.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(lab.greedy.statistics().published.opened, 0);
    end(clients);
    // The kernel resets those that were never accepted.
    drop(lab.silent.take());
    waiting.read_exact(&mut [0; 5]).unwrap();
}

fn a_reserve_that_leaves_nothing_is_refused(_: &World) {
    let error = Network::builder().reserve_descriptors(1 << 30).build().unwrap_err();
    assert!(matches!(error, BuildError::NoDescriptors { open: 1.., .. }), "{error:?}");
    assert!(error.to_string().contains("raise RLIMIT_NOFILE"), "{error}");
    Network::builder().reserve_descriptors(0).build().unwrap();
}

/// Two networks in a process with few descriptors.
struct Lab {
    network: Arc<Network>,
    greedy: Container,
    neighbour: Container,
    /// Of another network.
    stranger: Container,
    /// Keeps its connections in the kernel, so that they need no descriptor here.
    silent: Option<socket2::Socket>,
    echo: SocketAddr,
    datagrams: SocketAddr,
}

impl Lab {
    fn new(world: &World, limit: u64) -> Self {
        set_limit(limit);
        let silent = world.in_server(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(SERVER[0], 0).into()).unwrap();
            socket.listen(4096).unwrap();
            socket
        });
        let network = Arc::new(Network::builder().build().unwrap());
        let [greedy, neighbour] = ["greedy", "neighbour"]
            .map(|name| Container::member(&network, world.carriage(), Member::named(name)));
        Self {
            greedy,
            neighbour,
            stranger: world.container(),
            network,
            silent: Some(silent),
            echo: server::tcp_echo(world.listen(SERVER[0])),
            datagrams: server::udp_echo(world.udp(SERVER[0])),
        }
    }

    /// Lets clients in the container open connections until some are refused. They go on trying.
    fn use_up(&self, container: &Container) -> Vec<Child> {
        let silent = self.silent.as_ref().unwrap().local_addr().unwrap().as_socket().unwrap();
        let (address, port) = (silent.ip(), silent.port());
        let script = format!(
            "ulimit -S -n $(ulimit -H -n); for i in {{1..4000}}; do exec {{fd}}<>/dev/tcp/{address}/{port}; done"
        );
        let overflowed = || container.statistics().tcp.overflowed;
        let before = overflowed();
        let clients = (0..CLIENTS).map(|_| container.command("bash").args(["-c", &script]).spawn().unwrap());
        let clients = clients.collect();
        eventually("some are refused", || overflowed() >= before + u64::try_from(CLIENTS).unwrap());
        clients
    }
}

fn set_limit(limit: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
}

fn end(clients: Vec<Child>) {
    for mut client in clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[track_caller]
fn assert_echoes(container: &Container, echo: SocketAddr) {
    let mut stream = container.connect(echo).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}
