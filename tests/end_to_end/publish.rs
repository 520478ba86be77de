//! Published TCP ports: who comes in, as whom, and how it ends.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{Member, Network, NetworkBuilder, Offload, Publish, Published};
use socket2::{Domain, SockRef, Socket, Type};

use crate::world::{
    AT_ONCE, Container, GATEWAY, HOST, Namespace, PATIENCE, SERVER, World, accept, assert_errno, errno,
    eventually, exchange, in_both_carriages, output, server, within,
};

in_both_carriages! {
    client_is_seen_with_its_own_address,
    client_on_the_host_is_seen_as_the_gateway,
    refused_inside_is_reset_outside,
    reset_follows_silence_inside,
    client_that_resets_while_nobody_answers_is_forgotten,
    refused_by_a_firewall_inside_is_reset_outside,
    either_family_reaches_a_server_of_the_other,
    transfers_end_half_by_half [120],
    transfers_pass_on_two_queues [120],
    resets_pass_in_both_directions,
    early_data_waits_for_the_server,
    port_used_again_at_once_is_no_hindrance,
    each_port_of_a_range_leads_to_its_own,
    chosen_address_is_the_only_one,
    client_of_a_unix_socket_is_the_gateway,
    withdrawn_port_is_free_and_its_connections_go_on,
    port_outlives_the_containers_it_leads_to,
    named_container_is_the_one,
    closed_container_resets_clients,
    ended_network_resets_clients_and_frees_ports,
}

/// Any port of all addresses leads to this one.
#[track_caller]
fn publish(container: &Container, port: u16) -> Published {
    container.network().publish(Publish::tcp(0, port)).unwrap()
}

fn port(published: &Published) -> u16 {
    published.addresses()[0].port()
}

/// What a client has to connect to, by either address of the host.
fn outside(published: &Published) -> [SocketAddr; 2] {
    HOST.map(|host| (host, port(published)).into())
}

fn client_is_seen_with_its_own_address(world: &World) {
    let container = world.container();
    for (family, host) in HOST.into_iter().enumerate() {
        let listener = container.listen(host);
        let published = publish(&container, listener.local_addr().unwrap().port());
        let mut stream = world.connect(outside(&published)[family]);
        let mut inside = accept(&listener);
        assert_eq!(inside.peer_addr().unwrap(), stream.local_addr().unwrap());
        stream.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        inside.read_exact(&mut said).unwrap();
        inside.write_all(&said).unwrap();
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
    }
}

/// With ports of their own, even if they come from the same port of different addresses.
fn client_on_the_host_is_seen_as_the_gateway(world: &World) {
    let container = world.container();
    let local = [[Ipv4Addr::LOCALHOST.into(), HOST[0]], [Ipv6Addr::LOCALHOST.into(), HOST[1]]];
    for (family, addresses) in local.into_iter().enumerate() {
        let listener = container.listen(HOST[family]);
        let published = publish(&container, listener.local_addr().unwrap().port());
        let mut clients: Vec<TcpStream> = Vec::new();
        let mut seen = HashSet::new();
        for address in addresses {
            let from = clients.first().map_or(0, |client| client.local_addr().unwrap().port());
            clients.push(connect_from((address, from).into(), (address, port(&published)).into()).unwrap());
            let peer = accept(&listener).peer_addr().unwrap();
            assert_eq!(peer.ip(), GATEWAY[family]);
            assert!(seen.insert(peer.port()), "{seen:?}");
        }
        assert!(seen.contains(&clients[0].local_addr().unwrap().port()));
    }
}

fn refused_inside_is_reset_outside(world: &World) {
    let container = world.container();
    let closed = container.listen(HOST[0]).local_addr().unwrap().port();
    let published = publish(&container, closed);
    for address in outside(&published) {
        within(AT_ONCE, || assert_refused(world, address));
    }
    eventually("no connection is left", || container.network().statistics().published.active == 0);
    assert_eq!(container.network().statistics().published.refused, 2);
}

fn reset_follows_silence_inside(world: &World) {
    let network = Network::builder().dial_timeout(Duration::from_millis(500));
    let (container, published) = silent_container(world, network);
    within(PATIENCE, || assert_refused(world, outside(&published)[0]));
    eventually("no connection is left", || container.network().statistics().published.active == 0);
}

fn client_that_resets_while_nobody_answers_is_forgotten(world: &World) {
    let (container, published) = silent_container(world, Network::builder());
    let active = || container.network().statistics().published.active;
    let client = world.in_server(|| TcpStream::connect(outside(&published)[0])).unwrap();
    eventually("the connection is being opened inside", || active() == 1);
    reset(client);
    eventually("no connection is left", || active() == 0);
}

/// A container that has no route for its answers to the server, and a port that leads there.
fn silent_container(world: &World, builder: NetworkBuilder) -> (Container, Published) {
    let network = Arc::new(builder.build().unwrap());
    let container = Container::of_namespace(network, world.carriage(), Namespace::new());
    let listener = container.listen(HOST[0]);
    let ip = container.command("ip").args(["route", "add", "blackhole", &SERVER[0].to_string()]).status();
    assert!(ip.unwrap().success());
    let published = publish(&container, listener.local_addr().unwrap().port());
    (container, published)
}

/// With an ICMP error instead of RST; in the other family nobody listens.
fn refused_by_a_firewall_inside_is_reset_outside(world: &World) {
    let container = Container::of_namespace(
        Arc::new(Network::builder().build().unwrap()),
        world.carriage(),
        Namespace::new(),
    );
    let listener = container.listen(HOST[0]);
    let rules =
        "table inet filter { chain input { type filter hook input priority 0; tcp flags syn reject; }; }";
    output(container.command("nft").arg(rules));
    let published = publish(&container, listener.local_addr().unwrap().port());
    for address in outside(&published) {
        within(AT_ONCE, || assert_refused(world, address));
    }
}

fn either_family_reaches_a_server_of_the_other(world: &World) {
    let container = world.container();
    for (of_server, of_client) in [(0, 1), (1, 0)] {
        let listener = container.listen(HOST[of_server]);
        let published = publish(&container, listener.local_addr().unwrap().port());
        let mut client = within(AT_ONCE, || world.connect(outside(&published)[of_client]));
        let mut inside = accept(&listener);
        assert_eq!(inside.peer_addr().unwrap().ip(), GATEWAY[of_server]);
        inside.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
}

fn transfers_end_half_by_half(world: &World) {
    for offload in [Offload::ALL, Offload::NONE] {
        let container = world.container_of(Network::builder().offload(offload));
        for (family, host) in HOST.into_iter().enumerate() {
            let inside = server::exchange(container.listen(host), 20_000_000);
            let published = publish(&container, inside.port());
            exchange(world.connect(outside(&published)[family]), 20_000_000, 20_000_000);
        }
    }
}

fn transfers_pass_on_two_queues(world: &World) {
    const LENGTH: u64 = 200_000;
    let container = world.container_of(Network::builder().queues(2));
    for (family, host) in HOST.into_iter().enumerate() {
        let inside = server::exchange(container.listen(host), LENGTH);
        let published = publish(&container, inside.port());
        let streams: Vec<_> = (0..100).map(|_| world.connect(outside(&published)[family])).collect();
        let exchanges: Vec<_> =
            streams.into_iter().map(|stream| thread::spawn(|| exchange(stream, LENGTH, LENGTH))).collect();
        for exchange in exchanges {
            exchange.join().unwrap();
        }
    }
    eventually("no connection is left", || container.network().statistics().published.active == 0);
    assert_eq!(container.network().statistics().published.opened, 200);
    // Longer than the kernel remembers which queue a flow was answered on (`TUN_FLOW_EXPIRE`, three seconds).
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = publish(&container, echo.port());
    let mut streams: Vec<_> = (0..50).map(|_| world.connect(outside(&published)[0])).collect();
    thread::sleep(Duration::from_secs(5));
    streams.iter_mut().for_each(assert_echoes);
}

fn resets_pass_in_both_directions(world: &World) {
    let container = world.container();
    let listener = container.listen(HOST[0]);
    let published = publish(&container, listener.local_addr().unwrap().port());
    let client = world.connect(outside(&published)[0]);
    reset(accept(&listener));
    assert_reset(client);
    let client = world.connect(outside(&published)[0]);
    let inside = accept(&listener);
    reset(client);
    assert_reset(inside);
}

fn early_data_waits_for_the_server(world: &World) {
    let container = world.container();
    let listener = container.listen(HOST[0]);
    let published = publish(&container, listener.local_addr().unwrap().port());
    let mut client = world.connect(outside(&published)[0]);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    accept(&listener).read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
}

/// The server inside closes first, so that TIME-WAIT is on the container's side.
fn port_used_again_at_once_is_no_hindrance(world: &World) {
    let container = world.container();
    let listener = container.listen(HOST[0]);
    let published = publish(&container, listener.local_addr().unwrap().port());
    thread::spawn(move || {
        loop {
            accept(&listener).write_all(b"bye").unwrap();
        }
    });
    let mut from = SocketAddr::new(SERVER[0], 0);
    for _ in 0..10 {
        let to = outside(&published)[0];
        let mut stream = world.in_server(|| within(AT_ONCE, || connect_from(from, to))).unwrap();
        from = stream.local_addr().unwrap();
        let mut said = String::new();
        within(AT_ONCE, || stream.read_to_string(&mut said)).unwrap();
        assert_eq!(said, "bye");
    }
}

fn each_port_of_a_range_leads_to_its_own(world: &World) {
    let container = world.container();
    let inside =
        [7001, 7002, 7003].map(|port| container.inside(|| TcpListener::bind(("0.0.0.0", port))).unwrap());
    let publish: Publish = "9001-9003:7001".parse().unwrap();
    let published = container.network().publish(publish).unwrap();
    assert_eq!(published.addresses().len(), 6);
    for (port, listener) in (9001..).zip(&inside) {
        let client = world.connect((HOST[0], port).into());
        assert_eq!(accept(listener).peer_addr().unwrap(), client.local_addr().unwrap());
    }
}

fn chosen_address_is_the_only_one(world: &World) {
    let container = world.container();
    let echo = server::tcp_echo(container.listen(HOST[0]));
    for address in HOST {
        let published = container.network().publish(Publish::tcp((address, 0), echo.port())).unwrap();
        let [at] = published.addresses() else { panic!("{published:?}") };
        assert_eq!(at.ip(), address);
        assert_echoes(&mut world.connect(*at));
        for elsewhere in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            assert_errno(TcpStream::connect((elsewhere, at.port())), Errno::ECONNREFUSED);
        }
    }
}

fn client_of_a_unix_socket_is_the_gateway(world: &World) {
    let path = world.scratch().join("published");
    let container = world.container();
    let listener = container.listen(HOST[0]);
    let inside = listener.local_addr().unwrap().port();
    let published = container.network().publish(Publish::unix(&path, inside)).unwrap();
    assert_eq!(published.addresses(), []);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = accept(&listener);
    assert_eq!(server.peer_addr().unwrap().ip(), GATEWAY[0]);
    let mut said = String::new();
    server.read_to_string(&mut said).unwrap();
    server.write_all(said.as_bytes()).unwrap();
    drop(server);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    published.close();
    assert!(!path.exists());
}

fn withdrawn_port_is_free_and_its_connections_go_on(world: &World) {
    let container = world.container();
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = publish(&container, echo.port());
    let address = outside(&published)[0];
    let mut stream = world.connect(address);
    assert_echoes(&mut stream);
    published.close();
    let refused = world.in_server(|| TcpStream::connect(address));
    assert_errno(refused, Errno::ECONNREFUSED);
    assert_echoes(&mut stream);
    TcpListener::bind(("0.0.0.0", address.port())).unwrap();
}

fn port_outlives_the_containers_it_leads_to(world: &World) {
    let network = Arc::new(Network::builder().publish(Publish::tcp((HOST[0], 9000), 7000)).build().unwrap());
    let address = (HOST[0], 9000).into();
    for _ in 0..2 {
        assert_refused(world, address);
        let container = Container::new(Arc::clone(&network), world.carriage());
        server::tcp_echo(container.inside(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap());
        let mut stream = world.connect(address);
        assert_echoes(&mut stream);
        container.close();
        assert_reset(stream);
        eventually("the container is gone", || is_refused(world, address));
    }
}

fn named_container_is_the_one(world: &World) {
    let network = Arc::new(Network::builder().build().unwrap());
    let first = Container::new(Arc::clone(&network), world.carriage());
    let published = network.publish(Publish::tcp((HOST[0], 0), 7000).container("second")).unwrap();
    server::tcp_echo(first.inside(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap());
    assert_refused(world, published.addresses()[0]);
    let second = Container::member(&network, world.carriage(), Member::named("second"));
    let listener = second.inside(|| TcpListener::bind(("0.0.0.0", 7000))).unwrap();
    let client = world.connect(published.addresses()[0]);
    assert_eq!(accept(&listener).peer_addr().unwrap(), client.local_addr().unwrap());
    // Without a name it is the one that was there first.
    let nameless = network.publish(Publish::tcp((HOST[0], 0), 7000)).unwrap();
    assert_echoes(&mut world.connect(nameless.addresses()[0]));
}

fn closed_container_resets_clients(world: &World) {
    let container = world.container();
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = publish(&container, echo.port());
    let mut streams: Vec<_> = (0..10).map(|_| world.connect(outside(&published)[0])).collect();
    streams.iter_mut().for_each(assert_echoes);
    container.close();
    streams.into_iter().for_each(assert_reset);
}

fn ended_network_resets_clients_and_frees_ports(world: &World) {
    let mut container = world.container();
    let echo = server::tcp_echo(container.listen(HOST[0]));
    let published = publish(&container, echo.port());
    let address = outside(&published)[0];
    let mut stream = world.connect(address);
    assert_echoes(&mut stream);
    container.drop_network();
    assert_reset(stream);
    TcpListener::bind(("0.0.0.0", address.port())).unwrap();
    TcpListener::bind(("::", address.port())).unwrap();
}

/// A connection from an address in the namespace of the caller, which may have been used just before; port 0 is any.
/// As long as the kernel has not taken the old connection's end in, it says `EADDRNOTAVAIL`.
fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    loop {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        match socket.connect_timeout(&to.into(), PATIENCE) {
            Err(error) if errno(&error) == Errno::EADDRNOTAVAIL => thread::yield_now(),
            result => {
                socket.set_read_timeout(Some(PATIENCE))?;
                return result.map(|()| socket.into());
            }
        }
    }
}

#[track_caller]
fn assert_echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

#[track_caller]
fn assert_reset(mut stream: TcpStream) {
    assert_errno(stream.read(&mut [0]), Errno::ECONNRESET);
}

/// Sees a reset, at the latest when it reads.
#[track_caller]
fn assert_refused(world: &World, address: SocketAddr) {
    assert!(is_refused(world, address), "{address} is open");
}

fn is_refused(world: &World, address: SocketAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&address, PATIENCE);
    let read = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0])
    };
    world.in_server(connect).and_then(read).is_err_and(|error| errno(&error) == Errno::ECONNRESET)
}

/// Ends the connection with a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}
