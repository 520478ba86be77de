//! What routers have to say: hops, errors, and the MTU of the way.

use std::io::{IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use nsnet::host::{Network, Offload};
use socket2::{Domain, Protocol, Socket, Type};

use crate::fragments::Raw;
use crate::world::hops::{DEAD, END, ROUTERS, UNREACHABLE};
use crate::world::{
    ABSENT, GATEWAY, Noise, PATIENCE, SERVER, World, assert_errno, eventually, in_both_carriages, once,
    option, output, receive, server, set_option,
};

in_both_carriages! {
    traceroute_shows_the_gateway_and_then_what_the_host_sees,
    tracepath_shows_the_gateway_and_then_what_the_host_sees,
    tracepath_finds_the_narrow_link_where_the_host_finds_it,
    routers_say_what_they_say_to_the_host,
    the_mtu_of_the_way_is_learned,
    the_mtu_of_the_hosts_own_link_is_learned,
    what_may_be_cut_arrives_beyond_a_narrow_link,
    streams_pass_a_narrow_link,
    unknown_protocols_are_answered_by_the_gateway,
    extension_headers_are_no_obstacle,
}

once! {
    hop_limits_arrive_one_lower,
    neighbours_of_the_host_that_do_not_answer_are_reported_by_the_gateway,
    errors_of_the_container_are_counted,
    errors_of_the_gateway_are_limited,
    errors_of_the_hosts_kernel_are_limited_as_the_gateways,
}

fn traceroute_shows_the_gateway_and_then_what_the_host_sees(world: &World) {
    let _hops = world.hops();
    let container = world.container();
    for (family, end) in END.into_iter().enumerate() {
        let outside = traceroute(&mut Command::new("traceroute"), end);
        let routers = ROUTERS.map(|router| router[family].to_string());
        assert_eq!(outside, [&routers[..], &[end.to_string()]].concat());
        let inside = traceroute(&mut container.command("traceroute"), end);
        assert_eq!(inside, [vec![GATEWAY[family].to_string()], outside].concat());
    }
}

fn tracepath_shows_the_gateway_and_then_what_the_host_sees(world: &World) {
    let _hops = world.hops();
    let container = world.container_of(Network::builder().mtu(1500));
    for (family, end) in END.into_iter().enumerate() {
        let outside = tracepath(&mut Command::new("tracepath"), end);
        let inside = tracepath(&mut container.command("tracepath"), end);
        assert_eq!(inside.hops[0].1, GATEWAY[family].to_string());
        assert_eq!(inside.without_first(), outside.hops);
        assert_eq!(outside.sum, "pmtu 1500 hops 4 back 4");
        assert_eq!(inside.sum, "pmtu 1500 hops 5 back 5");
    }
}

fn tracepath_finds_the_narrow_link_where_the_host_finds_it(world: &World) {
    let hops = world.hops();
    hops.narrow(1400);
    let container = world.container_of(Network::builder().mtu(1500));
    for end in END {
        // The second time, both kernels know it from the start.
        for is_known in [false, true] {
            let outside = tracepath(&mut Command::new("tracepath"), end);
            let inside = tracepath(&mut container.command("tracepath"), end);
            assert_eq!(inside.without_first(), outside.hops);
            assert_eq!(!is_known, outside.hops.iter().any(|(_, rest)| rest.contains("pmtu 1400")));
            assert_eq!(outside.sum, "pmtu 1400 hops 4 back 4");
            assert_eq!(inside.sum, "pmtu 1400 hops 5 back 5");
        }
    }
}

fn routers_say_what_they_say_to_the_host(world: &World) {
    let _hops = world.hops();
    let container = world.container();
    for family in 0..2 {
        for address in [UNREACHABLE[family], DEAD[family]] {
            let outside = traceroute(&mut Command::new("traceroute"), address);
            let inside = traceroute(&mut container.command("traceroute"), address);
            assert!(outside.last().unwrap().contains('!'), "{outside:?}");
            assert_eq!(inside[1..], outside);
        }
    }
}

fn the_mtu_of_the_way_is_learned(world: &World) {
    let hops = world.hops();
    hops.narrow(1400);
    let container = world.container_of(Network::builder().mtu(1500));
    for (family, end) in END.into_iter().enumerate() {
        let peer = hops.udp(end);
        let socket = container.udp(peer.local_addr().unwrap());
        hear_errors(&socket);
        let headers = if end.is_ipv4() { 28 } else { 48 };
        socket.send(&[1; 1440]).unwrap();
        let told = next_error(&socket);
        assert_eq!((told.number, told.sender), (Errno::EMSGSIZE, Some(ROUTERS[1][family])));
        assert_eq!((told.parameter, path_mtu(&socket)), (1400, 1400));
        // By default the kernel cuts what it knows to be too long.
        socket.send(&[2; 1440]).unwrap();
        assert_eq!(receive(&peer).unwrap(), [2; 1440]);
        socket.send(&vec![3; 1400 - headers]).unwrap();
        assert_eq!(receive(&peer).unwrap(), vec![3; 1400 - headers]);
    }
}

/// Without a router to say so: the host's kernel refuses to send, a burst as well.
fn the_mtu_of_the_hosts_own_link_is_learned(world: &World) {
    for offload in [Offload::ALL, Offload::NONE] {
        for size in [6000, 2000] {
            let container = world.container_of(Network::builder().mtu(9000).offload(offload));
            for (family, address) in SERVER.into_iter().enumerate() {
                let socket = container.udp(server::udp_echo(world.udp(address)));
                hear_errors(&socket);
                setsockopt(&socket, sockopt::UdpGsoSegment, &size).unwrap();
                socket.send(&[1; 6000]).unwrap();
                let told = next_error(&socket);
                assert_eq!((told.number, told.sender), (Errno::EMSGSIZE, Some(GATEWAY[family])));
                assert_eq!((told.parameter, path_mtu(&socket)), (1500, 1500));
                let other = container.udp(socket.peer_addr().unwrap());
                other.send(&[2; 6000]).unwrap();
                assert_eq!(receive(&other).unwrap(), [2; 6000]);
            }
        }
    }
}

fn what_may_be_cut_arrives_beyond_a_narrow_link(world: &World) {
    let hops = world.hops();
    hops.narrow(1400);
    let container = world.container_of(Network::builder().mtu(1500));
    let peer = hops.udp(END[0]);
    let socket = container.udp(peer.local_addr().unwrap());
    set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    for _ in 0..2 {
        socket.send(&[1; 1450]).unwrap();
        assert_eq!(receive(&peer).unwrap(), [1; 1450]);
    }
}

fn streams_pass_a_narrow_link(world: &World) {
    const LENGTH: usize = 1 << 20;
    let hops = world.hops();
    hops.narrow(1400);
    let container = world.container();
    for end in END {
        let listener = hops.in_end(|| std::net::TcpListener::bind((end, 0))).unwrap();
        let mut stream = container.connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let sent = Noise::new(1).bytes(LENGTH);
        thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&sent).unwrap());
            let mut received = vec![0; LENGTH];
            peer.read_exact(&mut received).unwrap();
            assert!(received == sent);
        });
    }
}

fn unknown_protocols_are_answered_by_the_gateway(world: &World) {
    /// SCTP, which many have heard of.
    const SCTP: i32 = 132;
    let container = world.container();
    for (address, expected) in SERVER.into_iter().zip([Errno::ENOPROTOOPT, Errno::EPROTO]) {
        let domain = Domain::for_address((address, 0).into());
        let socket = container.inside(|| Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(&SocketAddr::new(address, 0).into()).unwrap();
        socket.send(&[0; 64]).unwrap();
        assert_errno((&socket).read(&mut [0; 64]), expected);
    }
    let statistics = || container.network().statistics();
    eventually("both are counted", || statistics().discarded.protocol == 2);
    assert_eq!(statistics().icmp.errors, 2);
}

/// Before a datagram, before its fragments, and in them.
fn extension_headers_are_no_obstacle(world: &World) {
    let container = world.container();
    let server = world.udp(SERVER[1]);
    let raw = Raw::new(&container, server.local_addr().unwrap());
    let [whole] = &raw.fragments(1, &[1; 100])[..] else { panic!("one") };
    // Without the fragment header.
    let mut plain = [&whole[..40], &whole[48..]].concat();
    (plain[5], plain[6]) = (plain[5] - 8, 17);
    raw.send(&[with_options(&with_options(&plain, DESTINATION_OPTIONS), HOP_BY_HOP)]);
    assert_eq!(receive(&server).unwrap(), [1; 100]);
    let fragments = raw.fragments(2, &[2; 3000]);
    raw.send(&fragments.iter().map(|fragment| with_options(fragment, HOP_BY_HOP)).collect::<Vec<_>>());
    assert_eq!(receive(&server).unwrap(), [2; 3000]);
    let discarded = container.network().statistics().discarded;
    assert_eq!((discarded.fragments, discarded.malformed, discarded.protocol), (0, 0, 0));
}

fn hop_limits_arrive_one_lower(world: &World) {
    let hops = world.hops();
    let container = world.container();
    for end in END {
        let peer = hops.udp(end);
        setsockopt(&peer, sockopt::Ipv4RecvTtl, &true).unwrap();
        if end.is_ipv6() {
            setsockopt(&peer, sockopt::Ipv6RecvHopLimit, &true).unwrap();
        }
        let socket = container.udp(peer.local_addr().unwrap());
        // In a row, of one size, so that those with one limit may travel together.
        for hop_limit in [64, 64, 9, 10, 10, 64, 255] {
            set_hop_limit(&socket, hop_limit);
            socket.send(b"hello").unwrap();
        }
        for hop_limit in [64, 64, 9, 10, 10, 64, 255] {
            // The gateway, and three routers.
            assert_eq!(received_hop_limit(&peer), hop_limit - 4);
        }
    }
}

fn neighbours_of_the_host_that_do_not_answer_are_reported_by_the_gateway(world: &World) {
    let container = world.container();
    for (family, absent) in ABSENT.into_iter().enumerate() {
        let socket = container.udp((absent, 9).into());
        hear_errors(&socket);
        socket.send(b"anybody there?").unwrap();
        let told = next_error(&socket);
        assert_eq!((told.number, told.sender), (Errno::EHOSTUNREACH, Some(GATEWAY[family])));
    }
}

/// Its kernel says that the port is closed by now.
fn errors_of_the_container_are_counted(world: &World) {
    let container = world.container();
    for (count, address) in (1..).zip(SERVER) {
        let server = world.udp(address);
        let socket = container.udp(server.local_addr().unwrap());
        socket.send(b"hello").unwrap();
        let (_, upstream) = server.recv_from(&mut [0; 8]).unwrap();
        drop(socket);
        server.send_to(b"too late", upstream).unwrap();
        let counted = || container.network().statistics().discarded.icmp_errors;
        eventually("the error is counted", || counted() == count);
    }
    assert_eq!(container.network().statistics().discarded.malformed, 0);
}

fn errors_of_the_gateway_are_limited(world: &World) {
    let container = world.container();
    let socket = container.udp((END[0], 9).into());
    set_hop_limit(&socket, 1);
    let statistics = || container.network().statistics();
    eventually("the gateway is tired of it", || {
        (0..100).for_each(|_| assert_eq!(socket.send(b"hello").unwrap(), 5));
        statistics().icmp.suppressed > 0
    });
    assert!(statistics().icmp.errors >= 1000);
    eventually("every error is accounted for", || {
        let statistics = statistics();
        statistics.icmp.errors + statistics.icmp.suppressed == statistics.discarded.hop_limit
    });
}

/// Datagrams of a program that will not hear of the MTU.
fn errors_of_the_hosts_kernel_are_limited_as_the_gateways(world: &World) {
    let container = world.container_of(Network::builder().mtu(9000));
    let socket = container.udp((SERVER[0], 9).into());
    set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    let statistics = || container.network().statistics();
    eventually("the gateway is tired of it", || {
        // Every other call may only fetch the error that there is already.
        (0..100).for_each(|_| drop(socket.send(&[1; 6000])));
        statistics().icmp.suppressed > 0
    });
    assert!(statistics().icmp.errors >= 1000);
}

const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet with one more header, of nothing but padding, behind the first.
fn with_options(packet: &[u8], kind: u8) -> Vec<u8> {
    let mut longer = [&packet[..40], &[packet[6], 0, 1, 4, 0, 0, 0, 0], &packet[40..]].concat();
    let length = u16::from_be_bytes([packet[4], packet[5]]) + 8;
    longer[4..6].copy_from_slice(&length.to_be_bytes());
    longer[6] = kind;
    longer
}

/// What traceroute(8) prints hop by hop, but for the times. One probe at a time: a router says "unreachable" five times
/// in a row and then once a second (`ip_error`, net/ipv4/route.c).
#[track_caller]
fn traceroute(command: &mut Command, to: IpAddr) -> Vec<String> {
    let said = output(command.args(["-n", "-q", "1", "-N", "1", "-m", "8", &to.to_string()]));
    let hops = said.lines().skip(1).map(|line| words(line.split_whitespace().skip(1)));
    hops.collect()
}

/// What tracepath(8) prints.
struct Tracepath {
    /// The number of each hop, and the rest of its line but for the time.
    hops: Vec<(u32, String)>,
    sum: String,
}

impl Tracepath {
    /// As it would look from the first hop.
    fn without_first(&self) -> Vec<(u32, String)> {
        let behind = self.hops.iter().filter(|(number, _)| *number > 1);
        behind.map(|(number, rest)| (number - 1, rest.clone())).collect()
    }
}

#[track_caller]
fn tracepath(command: &mut Command, to: IpAddr) -> Tracepath {
    let said = output(command.args(["-n", "-m", "8", &to.to_string()]));
    let hop = |line: &str| {
        // A number with a question mark is the program's own host.
        let (number, rest) = line.split_once(':')?;
        Some((number.trim().parse().ok()?, words(rest.split_whitespace())))
    };
    let mut hops: Vec<_> = said.lines().filter_map(hop).collect();
    // It asks the first hop twice.
    hops.dedup();
    let sum = said.lines().find_map(|line| line.trim().strip_prefix("Resume: ")).unwrap().trim().to_owned();
    Tracepath { hops, sum }
}

/// Without those that say how long something took.
fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let is_time = |word: &str| {
        let number = word.strip_suffix("ms").unwrap_or(word);
        number.is_empty() || word.contains('.') && number.parse::<f64>().is_ok()
    };
    words.filter(|word| !is_time(word)).collect::<Vec<_>>().join(" ")
}

/// An entry of a socket's error queue.
#[derive(Debug)]
struct Told {
    number: Errno,
    sender: Option<IpAddr>,
    parameter: u32,
}

#[track_caller]
fn hear_errors(socket: &UdpSocket) {
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap(),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true).unwrap(),
    }
}

#[track_caller]
fn next_error(socket: &UdpSocket) -> Told {
    let mut told = None;
    eventually("an error comes", || {
        told = read_error(socket);
        told.is_some()
    });
    told.unwrap()
}

fn read_error(socket: &UdpSocket) -> Option<Told> {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut [], Some(&mut control), flags).ok()?;
    message.cmsgs().unwrap().find_map(|entry| {
        let (error, sender) = if let ControlMessageOwned::Ipv4RecvErr(error, sender) = entry {
            (error, sender.map(|sender| IpAddr::from(u32::from_be(sender.sin_addr.s_addr).to_be_bytes())))
        } else if let ControlMessageOwned::Ipv6RecvErr(error, sender) = entry {
            (error, sender.map(|sender| IpAddr::from(sender.sin6_addr.s6_addr)))
        } else {
            return None;
        };
        let number = Errno::from_raw(i32::try_from(error.ee_errno).unwrap());
        Some(Told { number, sender, parameter: error.ee_info })
    })
}

#[track_caller]
fn path_mtu(socket: &UdpSocket) -> i32 {
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => option(socket, libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    }
}

#[track_caller]
fn set_hop_limit(socket: &UdpSocket, hop_limit: i32) {
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Ttl, &hop_limit).unwrap(),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6Ttl, &hop_limit).unwrap(),
    }
}

/// The hop limit of the next datagram.
#[track_caller]
fn received_hop_limit(socket: &UdpSocket) -> i32 {
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut buffer = [0; 8];
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::empty());
    let found = message.unwrap().cmsgs().unwrap().find_map(|entry| {
        let (ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops)) = entry else {
            return None;
        };
        Some(hops)
    });
    found.unwrap()
}
