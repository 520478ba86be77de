//! Published ports under load and at their limits, and what the Dialer has to say.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsnet::host::{
    DialError, Dialer, DirectDialer, Flow, Inbound, Network, Protocol, Publish, Published, Stream,
};

use crate::world::{
    CONTAINER, Container, HOST, Namespace, PATIENCE, SERVER, World, assert_errno, errno, eventually, example,
    in_both_carriages, once, option, output, server,
};

in_both_carriages! {
    hundred_ports_come_and_go_under_load [120],
    connections_beyond_the_limit_are_reset,
    clients_wait_while_descriptors_are_short,
    dialer_decides_on_clients,
    container_that_is_gone_is_passed_over,
}

once! {
    address_in_use_is_said,
    low_port_is_said_to_be_for_the_privileged,
    file_in_the_way_is_left_alone,
}

/// Load on one port, with new connections and with one that stays open, while a hundred others come and go.
fn hundred_ports_come_and_go_under_load(world: &World) {
    const ROUNDS: usize = 5;
    let container = world.container();
    let page = server::http(container.listen(HOST[0]), "a page\n");
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let [loaded, kept] = [page, echo]
        .map(|inside| container.network().publish(Publish::tcp((HOST[0], 0), inside.port())).unwrap());
    let mut open = world.connect(kept.addresses()[0]);
    assert_echoes(&mut open);
    let descriptors = descriptors();
    let (stop, fetched) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(fetch(world.connect(loaded.addresses()[0])).ends_with("\r\n\r\na page\n"));
                    fetched.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..ROUNDS {
            let published: Vec<_> = (0..100)
                .map(|_| container.network().publish(Publish::tcp((HOST[0], 0), echo.port())).unwrap())
                .collect();
            for published in published.iter().step_by(10) {
                assert_echoes(&mut world.connect(published.addresses()[0]));
            }
            published.into_iter().for_each(Published::close);
            assert_echoes(&mut open);
            let fetches = fetched.load(Ordering::Relaxed);
            eventually("pages are fetched", || fetched.load(Ordering::Relaxed) > fetches + 10);
            println!("round {round}: {} pages", fetched.load(Ordering::Relaxed));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_echoes(&mut open);
    eventually("no other connection is left", || container.network().statistics().published.active == 1);
    eventually("no descriptor is left", || self::descriptors() <= descriptors);
    assert_eq!(container.network().statistics().published.refused, 0);
}

fn connections_beyond_the_limit_are_reset(world: &World) {
    let container = world.container_of(Network::builder().max_tcp_flows(3));
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = container.network().publish(Publish::tcp((HOST[0], 0), echo.port())).unwrap();
    let address = published.addresses()[0];
    let mut open: Vec<_> = (0..3).map(|_| world.connect(address)).collect();
    open.iter_mut().for_each(assert_echoes);
    assert!(is_reset(world, address));
    assert_eq!(container.network().statistics().published.overflowed, 1);
    open.iter_mut().for_each(assert_echoes);
    open.pop();
    eventually("there is room again", || container.network().statistics().published.active == 2);
    assert_echoes(&mut world.connect(address));
}

/// The process of the test has one limit for all its parts.
fn clients_wait_while_descriptors_are_short(world: &World) {
    let container = world.container();
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = container.network().publish(Publish::tcp((HOST[0], 0), echo.port())).unwrap();
    let address = published.addresses()[0];
    // Open until the end, so that no descriptor of it becomes free meanwhile.
    let mut first = world.connect(address);
    assert_echoes(&mut first);
    let mut sockets: Vec<_> = (0..3)
        .map(|_| {
            world
                .in_server(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None))
                .unwrap()
        })
        .collect();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let used = highest_descriptor() + 1;
    setrlimit(Resource::RLIMIT_NOFILE, used, hard).unwrap();
    let fill: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    for socket in &sockets {
        socket.connect(&address.into()).unwrap();
    }
    let before = cpu_time();
    thread::sleep(Duration::from_millis(500));
    let spent = cpu_time() - before;
    assert!(spent < Duration::from_millis(250), "{spent:?} of waiting");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    drop(fill);
    for socket in sockets.drain(..) {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_echoes(&mut socket.into());
    }
    assert_echoes(&mut first);
}

/// Though bytes of it are still on their way to a stream that takes none.
fn container_that_is_gone_is_passed_over(world: &World) {
    let builder = Network::builder().dialer(Stuck::default()).dial_timeout(Duration::from_secs(1));
    let network = Arc::new(builder.publish(Publish::tcp((HOST[0], 9000), 7000)).build().unwrap());
    let address = (HOST[0], 9000).into();
    let gone = Container::of_namespace(Arc::clone(&network), world.carriage(), Namespace::new());
    let _listener = gone.inside(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap();
    let mut stream = gone.connect((SERVER[0], 80).into()).unwrap();
    stream.write_all(&[7; 10_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    eventually("everything has been taken in", || tcp_state(&stream) == TCP_FIN_WAIT2);
    output(gone.command("ip").args(["link", "delete", "tun0"]));
    eventually("it is gone", || is_reset(world, address));
    let next = Container::new(network, world.carriage());
    server::tcp_echo(next.inside(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap());
    assert!(!is_reset_after_hello(world, address));
}

const TCP_FIN_WAIT2: i32 = 5;

/// The first byte of `struct tcp_info`.
fn tcp_state(stream: &TcpStream) -> i32 {
    option(stream, libc::IPPROTO_TCP, libc::TCP_INFO) & 0xff
}

/// Opens streams that nobody reads.
#[derive(Default)]
struct Stuck(Mutex<Vec<tokio::io::DuplexStream>>);

#[async_trait]
impl Dialer for Stuck {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn dial_tcp(&self, _: &Flow) -> Result<Stream, DialError> {
        let (near, far) = tokio::io::duplex(64);
        self.0.lock().unwrap().push(far);
        Ok(near.into())
    }
}

static DIRECT: DirectDialer = DirectDialer::new();

fn dialer_decides_on_clients(world: &World) {
    let asked = Arc::<Mutex<Vec<Inbound>>>::default();
    let dialer = OnlyOdd { asked: Arc::clone(&asked) };
    let container = world.container_of(Network::builder().dialer(dialer));
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = container.network().publish(Publish::tcp((HOST[0], 0), echo.port())).unwrap();
    let address = published.addresses()[0];
    let mut served = 0;
    for _ in 0..2 {
        served += u64::from(!is_reset_after_hello(world, address));
    }
    assert_eq!(served, 1);
    let statistics = container.network().statistics().published;
    assert_eq!((statistics.opened, statistics.refused), (2, 1));
    for inbound in asked.lock().unwrap().iter() {
        assert_eq!(inbound.protocol, Protocol::Tcp);
        assert_eq!(inbound.client.unwrap().ip(), SERVER[0]);
        assert_eq!(inbound.listener, Some(address));
        assert_eq!(inbound.container, (CONTAINER[0], echo.port()).into());
    }
}

fn address_in_use_is_said(world: &World) {
    let taken = TcpListener::bind((HOST[0], 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let error = world.container().network().publish(Publish::tcp(address, 80)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "listen on {address} (tcp): the address is in use; choose another port, or 0 for any that is free"
        )
    );
}

fn low_port_is_said_to_be_for_the_privileged(_: &World) {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(example("rootless-shell"));
    let output = command.args(["--publish", "127.0.0.1:80:80", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in ["127.0.0.1:80 (tcp)", "below 1024", "net.ipv4.ip_unprivileged_port_start=80"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

fn file_in_the_way_is_left_alone(world: &World) {
    let path = world.scratch().join("file");
    fs::write(&path, "something").unwrap();
    let container = world.container();
    let error = container.network().publish(Publish::unix(&path, 80)).unwrap_err().to_string();
    assert!(error.contains("nobody listens on it"), "{error}");
    assert_eq!(output(Command::new("cat").arg(&path)), "something");
}

/// Lets the first client in, and every other one after it.
struct OnlyOdd {
    asked: Arc<Mutex<Vec<Inbound>>>,
}

#[async_trait]
impl Dialer for OnlyOdd {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
        // Long enough for what the client says to be there before the answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut asked = self.asked.lock().unwrap();
        asked.push(inbound.clone());
        if asked.len() % 2 == 1 { Ok(()) } else { Err(DialError::Prohibited) }
    }
}

fn fetch(mut stream: TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

#[track_caller]
fn assert_echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

fn is_reset(world: &World, address: SocketAddr) -> bool {
    let stream = world.in_server(|| TcpStream::connect_timeout(&address, PATIENCE));
    let read = stream.and_then(|mut stream| stream.read(&mut [0]));
    read.is_err_and(|error| errno(&error) == Errno::ECONNRESET)
}

/// Whether a client that speaks first is reset; else it has been answered.
fn is_reset_after_hello(world: &World, address: SocketAddr) -> bool {
    let mut stream = world.connect(address);
    stream.write_all(b"hello").unwrap();
    match stream.read_exact(&mut [0; 5]) {
        Ok(()) => false,
        error => {
            assert_errno(error, Errno::ECONNRESET);
            true
        }
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn highest_descriptor() -> u64 {
    let numbers = fs::read_dir("/proc/self/fd").unwrap();
    numbers.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).max().unwrap()
}

/// Of this process, in user and kernel mode.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
    };
    of(usage.user_time()) + of(usage.system_time())
}
