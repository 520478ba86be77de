//! Datagrams: who gets which, and for how long.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nsnet::host::{DenyDialer, Network, Offload};

use crate::world::{
    AT_ONCE, GATEWAY, HOST, Noise, OTHER_SERVER, SERVER, World, assert_errno, eventually, in_both_carriages,
    output, receive, server, within,
};

in_both_carriages! {
    datagrams_are_echoed_over_ipv4_and_ipv6,
    empty_datagrams_pass_both_ways,
    large_datagrams_pass_whole,
    bursts_stay_bursts_where_the_link_can_carry_them,
    datagrams_in_a_row_keep_their_order_and_sizes,
    closed_port_is_refused_at_once,
    one_socket_has_one_upstream_port_for_all_peers,
    two_sockets_have_two_upstream_ports,
    strangers_are_not_heard,
    idle_mapping_ends_and_a_used_one_stays,
    first_datagrams_of_a_burst_are_not_lost,
    deny_dialer_lets_no_datagram_out,
    addresses_of_the_host_get_nothing,
    host_loopback_is_reached_when_asked_for,
}

fn datagrams_are_echoed_over_ipv4_and_ipv6(world: &World) {
    let container = world.container();
    for address in SERVER {
        let socket = container.udp(server::udp_echo(world.udp(address)));
        for length in [1, 100, 1400] {
            let sent = Noise::new(length).bytes(usize::try_from(length).unwrap());
            socket.send(&sent).unwrap();
            assert_eq!(receive(&socket).unwrap(), sent);
        }
    }
}

fn empty_datagrams_pass_both_ways(world: &World) {
    let container = world.container();
    for address in SERVER {
        let socket = container.udp(server::udp_echo(world.udp(address)));
        socket.send(&[]).unwrap();
        assert_eq!(receive(&socket).unwrap(), b"");
    }
}

fn large_datagrams_pass_whole(world: &World) {
    for mut ip in [Command::new("ip"), world.server_command("ip")] {
        output(ip.args(["link", "set", "veth0", "mtu", "9216"]));
    }
    let container = world.container_of(Network::builder().mtu(9216));
    for address in SERVER {
        let socket = container.udp(server::udp_echo(world.udp(address)));
        let sent = Noise::new(1).bytes(9000);
        socket.send(&sent).unwrap();
        assert!(receive(&socket).unwrap() == sent);
    }
}

/// With `UDP_SEGMENT` at the sender, in both directions.
fn bursts_stay_bursts_where_the_link_can_carry_them(world: &World) {
    const SIZE: usize = 1200;
    for offload in [Offload::ALL, Offload::NONE] {
        let container = world.container_of(Network::builder().mtu(1500).offload(offload));
        let granted = container.ready().offload;
        // Of all, a kernel may know a part only: USO came with Linux 6.2.
        assert!(offload == Offload::ALL || granted == Offload::NONE, "{granted:?}");
        for address in SERVER {
            let burst = Noise::new(1).bytes(40 * SIZE + 7);
            let server = world.udp(address);
            let socket = container.udp(server.local_addr().unwrap());
            let mut buffer = [0; 2 * SIZE];
            let mut upstream = None;
            setsockopt(&socket, sockopt::UdpGsoSegment, &1200).unwrap();
            socket.send(&burst).unwrap();
            for datagram in burst.chunks(SIZE) {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                assert!(buffer[..length] == *datagram);
                upstream = Some(from);
            }
            setsockopt(&server, sockopt::UdpGsoSegment, &1200).unwrap();
            server.send_to(&burst, upstream.unwrap()).unwrap();
            for datagram in burst.chunks(SIZE) {
                assert!(receive(&socket).unwrap() == *datagram);
            }
        }
        let statistics = container.network().statistics();
        assert_eq!(statistics.packets_from_container < 40, granted.uso, "{statistics:?}");
        assert_eq!(statistics.packets_to_container < 40, granted.uso, "{statistics:?}");
    }
}

fn datagrams_in_a_row_keep_their_order_and_sizes(world: &World) {
    let container = world.container();
    let sizes = [100, 100, 60, 100, 0, 0, 300, 300, 1, 1, 1, 1400, 1400, 5];
    for address in SERVER {
        let socket = container.udp(server::udp_echo(world.udp(address)));
        for (seed, size) in (0..).zip(sizes) {
            socket.send(&Noise::new(seed).bytes(size)).unwrap();
        }
        for (seed, size) in (0..).zip(sizes) {
            assert!(receive(&socket).unwrap() == Noise::new(seed).bytes(size), "{seed}");
        }
    }
}

fn closed_port_is_refused_at_once(world: &World) {
    let container = world.container();
    for address in SERVER {
        let closed = world.udp(address).local_addr().unwrap();
        let socket = container.udp(closed);
        socket.send(b"anybody there?").unwrap();
        within(AT_ONCE, || assert_errno(receive(&socket), Errno::ECONNREFUSED));
    }
}

fn one_socket_has_one_upstream_port_for_all_peers(world: &World) {
    let container = world.container();
    let socket = container.udp_unconnected(SERVER[0]);
    let seen = [SERVER[0], OTHER_SERVER, SERVER[0]]
        .map(|address| ask(&socket, server::udp_mirror(world.udp(address))));
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], seen[2]);
}

fn two_sockets_have_two_upstream_ports(world: &World) {
    let container = world.container();
    let mirror = server::udp_mirror(world.udp(SERVER[0]));
    let sockets = [container.udp_unconnected(SERVER[0]), container.udp_unconnected(SERVER[0])];
    let seen = sockets.each_ref().map(|socket| ask(socket, mirror));
    assert_ne!(seen[0], seen[1]);
}

fn strangers_are_not_heard(world: &World) {
    let container = world.container();
    let socket = container.udp_unconnected(SERVER[0]);
    let peer = world.udp(SERVER[0]);
    let strangers = [world.udp(SERVER[0]), world.udp(OTHER_SERVER)];
    socket.send_to(b"hello", peer.local_addr().unwrap()).unwrap();
    let (_, upstream) = peer.recv_from(&mut [0; 16]).unwrap();
    for stranger in &strangers {
        stranger.send_to(b"spam", upstream).unwrap();
    }
    // What overtakes nothing on its way comes last, so by now the others have come or will not.
    peer.send_to(b"answer", upstream).unwrap();
    assert_eq!(receive(&socket).unwrap(), b"answer");
    socket.set_nonblocking(true).unwrap();
    assert_errno(receive(&socket), Errno::EWOULDBLOCK);
}

fn idle_mapping_ends_and_a_used_one_stays(world: &World) {
    let timeout = Duration::from_millis(800);
    let container = world.container_of(Network::builder().udp_idle_timeout(timeout));
    let mirror = server::udp_mirror(world.udp(SERVER[0]));
    let socket = container.udp_unconnected(SERVER[0]);
    let seen = ask(&socket, mirror);
    for _ in 0..8 {
        thread::sleep(timeout / 4);
        assert_eq!(ask(&socket, mirror), seen);
    }
    within(4 * timeout, || {
        eventually("the mapping ends", || container.network().statistics().udp.active == 0)
    });
    assert_ne!(ask(&socket, mirror), seen);
}

/// They come while the Dialer is still being asked.
fn first_datagrams_of_a_burst_are_not_lost(world: &World) {
    let container = world.container();
    let socket = container.udp(server::udp_echo(world.udp(SERVER[0])));
    for number in 0..4 {
        socket.send(&[number]).unwrap();
    }
    let mut received: Vec<_> = (0..4).map(|_| receive(&socket).unwrap()).collect();
    received.sort();
    assert_eq!(received, [[0], [1], [2], [3]]);
}

fn deny_dialer_lets_no_datagram_out(world: &World) {
    let container = world.container_of(Network::builder().dialer(DenyDialer));
    for (address, expected) in SERVER.into_iter().zip([Errno::EHOSTUNREACH, Errno::EACCES]) {
        let server = world.udp(address);
        let socket = container.udp(server.local_addr().unwrap());
        socket.send(b"hello").unwrap();
        within(AT_ONCE, || assert_errno(receive(&socket), expected));
        assert_silent(&server);
    }
}

fn addresses_of_the_host_get_nothing(world: &World) {
    let container = world.container();
    let at_loopback = [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()];
    for (listens, addressed) in HOST.into_iter().zip(HOST).chain(at_loopback.into_iter().zip(GATEWAY)) {
        let listener = UdpSocket::bind((listens, 0)).unwrap();
        let socket = container.udp((addressed, listener.local_addr().unwrap().port()).into());
        socket.send(b"hello").unwrap();
        within(AT_ONCE, || receive(&socket)).expect_err("it is the host's");
        assert_silent(&listener);
    }
}

fn host_loopback_is_reached_when_asked_for(world: &World) {
    let container = world.container_of(Network::builder().host_loopback());
    for (listens, addressed) in [("127.0.0.1", GATEWAY[0]), ("::1", GATEWAY[1])] {
        let port = server::udp_echo(UdpSocket::bind((listens, 0)).unwrap()).port();
        // Connected, so that an answer that does not come from the gateway is not taken.
        let socket = container.udp((addressed, port).into());
        socket.send(b"hello").unwrap();
        assert_eq!(receive(&socket).unwrap(), b"hello");
    }
}

/// The address that a [`server::udp_mirror`] sees this socket at.
#[track_caller]
fn ask(socket: &UdpSocket, mirror: SocketAddr) -> SocketAddr {
    socket.send_to(b"who am I?", mirror).unwrap();
    String::from_utf8(receive(socket).unwrap()).unwrap().parse().unwrap()
}

#[track_caller]
fn assert_silent(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    assert_errno(receive(socket), Errno::EWOULDBLOCK);
}
