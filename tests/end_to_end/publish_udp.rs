//! Published UDP ports.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nsnet::host::{DenyDialer, Network, NetworkBuilder, Publish, Published};

use crate::world::{
    AT_ONCE, CONTAINER, Container, GATEWAY, HOST, Noise, OTHER_SERVER, SERVER, World, assert_errno,
    eventually, in_both_carriages, receive, server, within,
};

in_both_carriages! {
    clients_are_seen_with_their_own_addresses,
    clients_on_the_host_are_told_apart,
    answers_come_from_the_address_that_was_written_to,
    large_datagrams_and_bursts_pass_both_ways,
    first_datagrams_of_a_burst_are_not_lost,
    others_are_written_to_from_an_ordinary_port,
    closed_client_is_reported_inside,
    silent_clients_are_forgotten,
    withdrawn_port_is_closed,
    client_of_a_withdrawn_port_is_itself_at_the_next,
    refused_clients_are_not_heard,
    either_family_reaches_a_server_of_the_other,
    new_clients_take_the_place_of_those_with_one_answer [120],
    datagrams_pass_on_two_queues,
}

/// A container, and a socket in it that any port of all the host's addresses leads to.
fn published(world: &World, builder: NetworkBuilder, family: usize) -> (Container, UdpSocket, Published) {
    let container = world.container_of(builder);
    let socket = container.inside(|| UdpSocket::bind((CONTAINER[family], 0))).unwrap();
    socket.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
    let publish = Publish::udp(0, socket.local_addr().unwrap().port());
    let published = container.network().publish(publish).unwrap();
    (container, socket, published)
}

fn port(published: &Published) -> u16 {
    published.addresses()[0].port()
}

fn clients_are_seen_with_their_own_addresses(world: &World) {
    for family in 0..2 {
        let (container, socket, published) = published(world, Network::builder(), family);
        server::udp_mirror(socket);
        let mut clients: Vec<UdpSocket> = (0..20).map(|_| world.udp(SERVER[family])).collect();
        if family == 0 {
            clients.push(world.udp(OTHER_SERVER));
        }
        for _ in 0..2 {
            for client in &clients {
                client.send_to(b"who am I?", (HOST[family], port(&published))).unwrap();
            }
            for client in &clients {
                assert_eq!(seen(client), client.local_addr().unwrap());
            }
        }
        assert_eq!(container.network().statistics().published.active, clients.len() as u64);
    }
}

/// The same port of two addresses of the host.
fn clients_on_the_host_are_told_apart(world: &World) {
    for (family, loopback) in
        [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].into_iter().enumerate()
    {
        let (_container, socket, published) = published(world, Network::builder(), family);
        server::udp_mirror(socket);
        let first = client(loopback, 0);
        let second = client(HOST[family], first.local_addr().unwrap().port());
        let mut all = HashSet::new();
        for client in [&first, &second] {
            client.connect((client.local_addr().unwrap().ip(), port(&published))).unwrap();
            client.send(b"who am I?").unwrap();
            let seen = seen(client);
            assert_eq!(seen.ip(), GATEWAY[family]);
            assert!(all.insert(seen.port()));
        }
        assert!(all.contains(&first.local_addr().unwrap().port()));
    }
}

/// The socket stands for all addresses of the host; a connected client hears one only.
fn answers_come_from_the_address_that_was_written_to(world: &World) {
    let (_container, socket, published) = published(world, Network::builder(), 0);
    server::udp_echo(socket);
    let other = IpAddr::from([10, 99, 0, 9]);
    crate::world::Namespace::current().ip("addr add 10.99.0.9/24 dev veth0");
    for address in [HOST[0], other, HOST[0]] {
        let client = world.udp(SERVER[0]);
        client.connect((address, port(&published))).unwrap();
        client.send(b"hello").unwrap();
        assert_eq!(receive(&client).unwrap(), b"hello");
    }
}

fn large_datagrams_and_bursts_pass_both_ways(world: &World) {
    const SIZE: usize = 1200;
    for family in 0..2 {
        let (_container, socket, published) = published(world, Network::builder().mtu(1500), family);
        let client = world.udp(SERVER[family]);
        client.connect((HOST[family], port(&published))).unwrap();
        let large = Noise::new(1).bytes(60_000);
        client.send(&large).unwrap();
        let (received, from) = receive_from(&socket);
        assert!(received == large);
        socket.send_to(&large, from).unwrap();
        assert!(receive(&client).unwrap() == large);

        let burst = Noise::new(2).bytes(40 * SIZE + 7);
        setsockopt(&client, sockopt::UdpGsoSegment, &1200).unwrap();
        client.send(&burst).unwrap();
        for datagram in burst.chunks(SIZE) {
            assert!(receive(&socket).unwrap() == *datagram);
        }
        setsockopt(&socket, sockopt::UdpGsoSegment, &1200).unwrap();
        socket.send_to(&burst, from).unwrap();
        for datagram in burst.chunks(SIZE) {
            assert!(receive(&client).unwrap() == *datagram);
        }
    }
}

/// They come while the Dialer is still being asked.
fn first_datagrams_of_a_burst_are_not_lost(world: &World) {
    let (_container, socket, published) = published(world, Network::builder(), 0);
    let client = world.udp(SERVER[0]);
    for number in 0..4 {
        client.send_to(&[number], (HOST[0], port(&published))).unwrap();
    }
    for number in 0..4 {
        assert_eq!(receive(&socket).unwrap(), [number]);
    }
}

/// From the same socket inside, before and after one of them has written to the published port.
fn others_are_written_to_from_an_ordinary_port(world: &World) {
    let (container, socket, published) = published(world, Network::builder(), 0);
    let at = SocketAddr::new(HOST[0], port(&published));
    let [client, stranger] = [SERVER[0], OTHER_SERVER].map(|address| world.udp(address));
    socket.send_to(b"unasked", client.local_addr().unwrap()).unwrap();
    let (_, upstream) = receive_from(&client);
    assert_ne!(upstream, at);
    client.send_to(b"hello", at).unwrap();
    assert_eq!(receive(&socket).unwrap(), b"hello");
    socket.send_to(b"answer", client.local_addr().unwrap()).unwrap();
    assert_eq!(receive_from(&client), (b"answer".to_vec(), at));
    socket.send_to(b"unasked", stranger.local_addr().unwrap()).unwrap();
    assert_eq!(receive_from(&stranger).1, upstream);
    let statistics = container.network().statistics();
    assert_eq!((statistics.published.active, statistics.udp.active), (1, 2));
}

fn closed_client_is_reported_inside(world: &World) {
    for family in 0..2 {
        let (_container, socket, published) = published(world, Network::builder(), family);
        let client = world.udp(SERVER[family]);
        client.send_to(b"hello", (HOST[family], port(&published))).unwrap();
        let (_, from) = receive_from(&socket);
        drop(client);
        socket.connect(from).unwrap();
        socket.send(b"anybody there?").unwrap();
        within(AT_ONCE, || assert_errno(receive(&socket), Errno::ECONNREFUSED));
    }
}

fn silent_clients_are_forgotten(world: &World) {
    let timeout = Duration::from_millis(800);
    let (container, socket, published) = published(world, Network::builder().udp_idle_timeout(timeout), 0);
    server::udp_echo(socket);
    let client = world.udp(SERVER[0]);
    for _ in 0..8 {
        client.send_to(b"hello", (HOST[0], port(&published))).unwrap();
        assert_eq!(receive(&client).unwrap(), b"hello");
        std::thread::sleep(timeout / 4);
    }
    let active = || container.network().statistics().published.active;
    assert_eq!((active(), container.network().statistics().published.opened), (1, 1));
    within(4 * timeout, || eventually("the client is forgotten", || active() == 0));
    client.send_to(b"hello", (HOST[0], port(&published))).unwrap();
    assert_eq!(receive(&client).unwrap(), b"hello");
}

fn withdrawn_port_is_closed(world: &World) {
    let (_container, socket, published) = published(world, Network::builder(), 0);
    server::udp_echo(socket);
    let at = SocketAddr::new(HOST[0], port(&published));
    let client = world.udp(SERVER[0]);
    client.connect(at).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(receive(&client).unwrap(), b"hello");
    published.close();
    client.send(b"hello").unwrap();
    within(AT_ONCE, || assert_errno(receive(&client), Errno::ECONNREFUSED));
    UdpSocket::bind(("0.0.0.0", at.port())).unwrap();
}

/// While the first is remembered in vain.
fn client_of_a_withdrawn_port_is_itself_at_the_next(world: &World) {
    let (container, socket, published) = published(world, Network::builder(), 0);
    let inside = server::udp_mirror(socket);
    let client = world.udp(SERVER[0]);
    client.send_to(b"who am I?", (HOST[0], port(&published))).unwrap();
    assert_eq!(seen(&client), client.local_addr().unwrap());
    // A second way to the same server: the tuple is taken.
    let second = container.network().publish(Publish::udp(0, inside.port())).unwrap();
    client.send_to(b"who am I?", (HOST[0], port(&second))).unwrap();
    assert_eq!(seen(&client).ip(), GATEWAY[0]);
    published.close();
    second.close();
    let third = container.network().publish(Publish::udp(0, inside.port())).unwrap();
    client.send_to(b"who am I?", (HOST[0], port(&third))).unwrap();
    assert_eq!(seen(&client), client.local_addr().unwrap());
}

fn refused_clients_are_not_heard(world: &World) {
    let (container, socket, published) = published(world, Network::builder().dialer(DenyDialer), 0);
    let client = world.udp(SERVER[0]);
    client.send_to(b"hello", (HOST[0], port(&published))).unwrap();
    let statistics = || container.network().statistics().published;
    eventually("the client is refused", || statistics().refused == 1 && statistics().active == 0);
    socket.set_nonblocking(true).unwrap();
    assert_errno(receive(&socket), Errno::EWOULDBLOCK);
}

/// The container's kernel tells of a closed port no more than a few times a second.
fn either_family_reaches_a_server_of_the_other(world: &World) {
    for (of_server, of_client) in [(0, 1), (1, 0)] {
        let (container, socket, published) = published(world, Network::builder(), of_server);
        let inside = server::udp_mirror(socket);
        for _ in 0..50 {
            let client = world.udp(SERVER[of_client]);
            client.send_to(b"who am I?", (HOST[of_client], port(&published))).unwrap();
            assert_eq!(seen(&client).ip(), GATEWAY[of_server]);
        }
        // Nobody listens: clients are forgotten, and the port is not.
        let closed = container.inside(|| UdpSocket::bind((CONTAINER[of_server], 0))).unwrap();
        let address = closed.local_addr().unwrap();
        let second = container.network().publish(Publish::udp(0, address.port())).unwrap();
        drop(closed);
        let client = world.udp(SERVER[of_client]);
        let before = container.network().statistics().published;
        client.send_to(b"anybody there?", (HOST[of_client], port(&second))).unwrap();
        eventually("the client is refused", || {
            let now = container.network().statistics().published;
            now.refused == before.refused + 1 && now.active == before.active
        });
        assert_ne!(inside, address);
        server::udp_mirror(container.inside(|| UdpSocket::bind(address)).unwrap());
        client.send_to(b"who am I?", (HOST[of_client], port(&second))).unwrap();
        assert_eq!(seen(&client).ip(), GATEWAY[of_server]);
    }
}

/// More than a port remembers, as those of a name server are.
fn new_clients_take_the_place_of_those_with_one_answer(world: &World) {
    const MOST: u16 = 4096;
    const FIRST: u16 = 10_000;
    let (container, socket, published) = published(world, Network::builder(), 0);
    server::udp_mirror(socket);
    let at = (HOST[0], port(&published));
    let faithful = world.udp(SERVER[0]);
    for _ in 0..2 {
        faithful.send_to(b"who am I?", at).unwrap();
        assert_eq!(seen(&faithful), faithful.local_addr().unwrap());
    }
    world.in_server(|| {
        for own_port in FIRST..FIRST + MOST + 100 {
            let client = client(SERVER[0], own_port);
            client.send_to(b"who am I?", at).unwrap();
            assert_eq!(seen(&client), client.local_addr().unwrap());
        }
    });
    let statistics = container.network().statistics().published;
    assert_eq!((statistics.active, statistics.overflowed), (MOST.into(), 0));
    // One that has come back has kept its place.
    let opened = statistics.opened;
    faithful.send_to(b"who am I?", at).unwrap();
    assert_eq!(seen(&faithful), faithful.local_addr().unwrap());
    assert_eq!(container.network().statistics().published.opened, opened);
}

fn datagrams_pass_on_two_queues(world: &World) {
    let (_container, socket, published) = published(world, Network::builder().queues(2), 0);
    server::udp_mirror(socket);
    let clients: Vec<UdpSocket> = (0..50).map(|_| world.udp(SERVER[0])).collect();
    for client in &clients {
        client.send_to(b"who am I?", (HOST[0], port(&published))).unwrap();
        assert_eq!(seen(client), client.local_addr().unwrap());
    }
}

/// A socket on the host.
fn client(at: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((at, port)).unwrap();
    socket.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
    socket
}

/// The address that a [`server::udp_mirror`] has seen.
#[track_caller]
fn seen(client: &UdpSocket) -> SocketAddr {
    String::from_utf8(receive(client).unwrap()).unwrap().parse().unwrap()
}

#[track_caller]
fn receive_from(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}
