//! Ping: who is reached, who answers, and what it says.
//!
//! What ping(8) prints inside is held against what it prints on the host.

mod raw;

use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{DenyDialer, DialError, DirectDialer, FilterDialer, Flow, Network, Offload};
use socket2::{Domain, Protocol, Socket, Type};

use self::raw::Echo;
use crate::world::hops::{DEAD, END, ROUTERS, UNREACHABLE};
use crate::world::{
    ABSENT, Carriage, Container, DNS, GATEWAY, HOST, NOWHERE, Noise, OTHER_SERVER, SERVER, SILENT, World,
    assert_errno, eventually, example, in_both_carriages, output, server,
};

in_both_carriages! {
    ping_prints_what_it_prints_on_the_host_and_one_hop_less,
    large_requests_and_replies_pass_whole,
    unreachable_hosts_are_reported_as_on_the_host,
    a_silent_address_is_a_loss,
    traceroute_finds_the_hops_that_it_finds_on_the_host,
    the_mtu_of_the_way_is_told_to_whom_it_concerns,
    the_mtu_of_the_hosts_own_link_is_told_by_the_gateway,
    gateway_and_resolver_answer_for_themselves,
    nobody_else_on_the_subnet_answers,
    addresses_of_the_host_do_not_answer,
    identifier_sequence_and_payload_are_preserved,
    strangers_are_not_heard,
    nobody_upstream_speaks_for_the_containers_own_network,
    the_dialer_decides_on_every_destination,
    refusals_of_a_dialer_are_answers_to_every_request,
    where_ping_sockets_are_forbidden_the_log_says_what_to_do,
    a_flood_is_answered_without_loss [120],
    pings_side_by_side_do_not_meet,
    identifiers_without_end_meet_a_limit_and_keep_no_datagram_out,
}

fn ping_prints_what_it_prints_on_the_host_and_one_hop_less(world: &World) {
    allow_ping_sockets();
    let _hops = world.hops();
    let container = world.container();
    let raw = container.inside(ping_socket_error);
    assert_eq!(raw, Some(Errno::EACCES), "ping uses raw sockets first");
    for _ in 0..2 {
        for address in END {
            let on_host = replies(&ping(Command::new("ping"), address, &["-c", "2"]));
            let inside = replies(&ping(container.command("ping"), address, &["-c", "2"]));
            let expected =
                [("64", 1, 61), ("64", 2, 61)].map(|(bytes, number, ttl)| reply(bytes, address, number, ttl));
            assert_eq!(on_host, expected);
            assert_eq!(inside, expected.map(|reply| reply.replace("ttl=61", "ttl=60")));
        }
        // Then ping sockets, whose identifier is the container kernel's choice.
        container.inside(allow_ping_sockets);
        assert_eq!(container.inside(ping_socket_error), None);
    }
    assert_eq!(container.network().statistics().echo.refused, 0);
}

fn large_requests_and_replies_pass_whole(world: &World) {
    allow_ping_sockets();
    for offload in [Offload::ALL, Offload::NONE] {
        let container = world.container_of(Network::builder().mtu(1500).offload(offload));
        for address in SERVER {
            for size in ["1472", "1473", "8000", "65507"] {
                let said = ping(container.command("ping"), address, &["-c", "2", "-s", size]);
                let bytes = (size.parse::<usize>().unwrap() + 8).to_string();
                let expected = [1, 2].map(|number| reply(&bytes, address, number, 63));
                assert_eq!(replies(&said), expected, "{offload:?}");
            }
        }
        let discarded = container.network().statistics().discarded;
        assert_eq!((discarded.fragments, discarded.malformed, discarded.unsolicited), (0, 0, 0));
    }
}

/// But for the host's own word, which is the gateway's inside.
fn unreachable_hosts_are_reported_as_on_the_host(world: &World) {
    allow_ping_sockets();
    let _hops = world.hops();
    let container = world.container();
    for family in 0..2 {
        for address in [UNREACHABLE[family], ABSENT[family], DEAD[family]] {
            let on_host = ping(Command::new("ping"), address, &["-c", "1"]);
            let inside = ping(container.command("ping"), address, &["-c", "1"]);
            let gateway = GATEWAY[family].to_string();
            let expected: Vec<_> = reports(&on_host)
                .iter()
                .map(|line| {
                    HOST.iter().fold(line.clone(), |line, host| line.replace(&host.to_string(), &gateway))
                })
                .collect();
            assert!(!expected.is_empty(), "{on_host}");
            assert_eq!(reports(&inside), expected, "{address}");
            assert_eq!(replies(&inside), [""; 0]);
        }
        let inside = ping(container.command("ping"), NOWHERE[family], &["-c", "1"]);
        let expected =
            ["icmp_seq=1 Destination Net Unreachable", "icmp_seq=1 Destination unreachable: No route"];
        assert_eq!(reports(&inside), [format!("From {} {}", GATEWAY[family], expected[family])]);
    }
}

fn a_silent_address_is_a_loss(world: &World) {
    allow_ping_sockets();
    let container = world.container();
    let said = ping(container.command("ping"), SILENT, &["-c", "2", "-W", "1"]);
    assert!(said.contains("2 packets transmitted, 0 received, 100% packet loss"), "{said}");
    assert_eq!((replies(&said), reports(&said)), (Vec::new(), Vec::new()));
}

/// With echo requests, many of them on the way at a time.
fn traceroute_finds_the_hops_that_it_finds_on_the_host(world: &World) {
    allow_ping_sockets();
    let _hops = world.hops();
    let container = world.container();
    for (family, address) in END.into_iter().enumerate() {
        let on_host = traceroute(Command::new("traceroute"), address);
        let inside = traceroute(container.command("traceroute"), address);
        let way = [ROUTERS[0][family], ROUTERS[1][family], ROUTERS[2][family], address];
        assert_eq!(on_host, way.map(|hop| hop.to_string()));
        assert_eq!(inside[0], GATEWAY[family].to_string());
        assert_eq!(inside[1..], on_host);
    }
}

fn the_mtu_of_the_way_is_told_to_whom_it_concerns(world: &World) {
    allow_ping_sockets();
    let hops = world.hops();
    hops.narrow(1400);
    let container = world.container_of(Network::builder().mtu(1500));
    for (family, address) in END.into_iter().enumerate() {
        // The host's kernel remembers it and sends no more; the container has heard nothing yet.
        for command in [Command::new("ping"), container.command("ping")] {
            let said = ping(command, address, &["-c", "1", "-M", "do", "-s", "1400"]);
            assert_eq!(reports(&said), [too_big(ROUTERS[1][family], 1400)]);
        }
        // The first reply may be lost: who sends it has to learn of the MTU too.
        let said = ping(container.command("ping"), address, &["-c", "2", "-M", "dont", "-s", "1400"]);
        assert_eq!(replies(&said).last(), Some(&reply("1408", address, 2, 60)));
    }
}

fn the_mtu_of_the_hosts_own_link_is_told_by_the_gateway(world: &World) {
    allow_ping_sockets();
    let container = world.container_of(Network::builder().mtu(9000));
    for (gateway, address) in GATEWAY.into_iter().zip(SERVER) {
        let said = ping(container.command("ping"), address, &["-c", "1", "-M", "do", "-s", "6000"]);
        assert_eq!(reports(&said), [too_big(gateway, 1500)]);
    }
}

/// Nothing of it needs a ping socket, and the Dialer has no say.
fn gateway_and_resolver_answer_for_themselves(world: &World) {
    assert_eq!(ping_socket_error(), Some(Errno::EACCES));
    let plain = || Network::builder().mtu(1500).offload(Offload::NONE);
    let networks = [Network::builder(), plain(), plain().dialer(DenyDialer), plain().host_loopback()];
    for network in networks {
        let container = world.container_of(network);
        for address in GATEWAY.into_iter().chain(DNS) {
            for (size, bytes) in [("0", "8"), ("56", "64"), ("8000", "8008"), ("65507", "65515")] {
                let said = ping(container.command("ping"), address, &["-c", "1", "-s", size]);
                assert_eq!(replies(&said), [reply(bytes, address, 1, 64)], "{said}");
            }
        }
        assert_eq!(container.network().statistics().echo.opened, 0);
    }
}

fn nobody_else_on_the_subnet_answers(world: &World) {
    allow_ping_sockets();
    let container = world.container();
    let nobody = ["10.0.2.77", "fd00::77"].map(|address| address.parse().unwrap());
    let expected = ["Destination Host Unreachable", "Destination unreachable: Address unreachable"];
    for ((address, gateway), expected) in nobody.into_iter().zip(GATEWAY).zip(expected) {
        let said = ping(container.command("ping"), address, &["-c", "1"]);
        assert_eq!(reports(&said), [format!("From {gateway} icmp_seq=1 {expected}")]);
    }
    let broadcast = ["10.0.2.255", "255.255.255.255", "224.0.0.1", "ff02::2%tun0"];
    for (number, address) in (1..).zip(broadcast) {
        let command = container.command("ping");
        let said = run(command, &["-n", "-b", "-c", "1", "-W", "1", address]);
        assert_eq!((replies(&said), reports(&said)), (Vec::new(), Vec::new()), "{said}");
        // The kernel inside has more to say to all than this, router solicitations for one.
        eventually("it is counted", || container.network().statistics().discarded.not_unicast >= number);
    }
}

fn addresses_of_the_host_do_not_answer(world: &World) {
    allow_ping_sockets();
    for network in [Network::builder(), Network::builder().host_loopback()] {
        let container = world.container_of(network);
        for (address, expected) in HOST.into_iter().zip(PROHIBITED) {
            let said = ping(container.command("ping"), address, &["-c", "1"]);
            assert_eq!((replies(&said).len(), reports(&said).len()), (0, 1), "{said}");
            assert!(said.contains(expected), "{said}");
        }
    }
}

fn identifier_sequence_and_payload_are_preserved(world: &World) {
    allow_ping_sockets();
    let container = world.container();
    for address in SERVER.into_iter().chain(GATEWAY) {
        let echo = Echo::new(&container, address);
        for (identifier, sequence, length) in [(0x1234, 7, 0), (0, 0, 1), (0xffff, 0xffff, 1000)] {
            let payload = Noise::new(1).bytes(length);
            echo.request(address, identifier, sequence, &payload);
            assert_eq!(echo.reply(), (address, identifier, sequence, payload));
        }
    }
}

fn strangers_are_not_heard(world: &World) {
    allow_ping_sockets();
    let container = world.container();
    let echo = Echo::new(&container, SERVER[0]);
    let [at_server, stranger] = [SERVER[0], OTHER_SERVER].map(|at| world.in_server(|| Echo::at(at)));
    echo.request(SERVER[0], 0x1234, 1, b"who is there?");
    let (_, upstream, _, _) = at_server.message(8);
    assert_eq!(echo.reply(), (SERVER[0], 0x1234, 1, b"who is there?".to_vec()));
    stranger.send(HOST[0], 0, upstream, 1, b"me!");
    let unsolicited = || container.network().statistics().discarded.unsolicited;
    eventually("the stranger's reply is dropped", || unsolicited() == 1);
    echo.request(SERVER[0], 0x1234, 2, b"");
    assert_eq!(echo.reply(), (SERVER[0], 0x1234, 2, Vec::new()));
}

/// A router that has, or takes, an address of the container's subnet.
fn nobody_upstream_speaks_for_the_containers_own_network(world: &World) {
    const TIME_EXCEEDED: u8 = 11;
    allow_ping_sockets();
    output(world.server_command("ip").args(["address", "add", "10.0.2.77/32", "dev", "lo"]));
    let container = world.container();
    let echo = Echo::new(&container, SERVER[0]);
    let router = world.in_server(|| Echo::at("10.0.2.77".parse().unwrap()));
    let at_server = world.in_server(|| Echo::at(SERVER[0]));
    echo.request(SERVER[0], 0x1234, 1, b"");
    let (_, upstream, _, _) = at_server.message(8);
    let words = [0x4500, 28, 0, 0, 1 << 8 | 1, 0].map(u16::to_be_bytes).concat();
    let addresses = [HOST[0], SERVER[0]].map(|address| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("the first is IPv4"),
    });
    let request = [0x0800, 0, upstream, 1].map(u16::to_be_bytes).concat();
    router.send(HOST[0], TIME_EXCEEDED, 0, 0, &[words, addresses.concat(), request].concat());
    assert_eq!(echo.message(TIME_EXCEEDED).0, GATEWAY[0]);
}

fn the_dialer_decides_on_every_destination(world: &World) {
    allow_ping_sockets();
    let dialer = FilterDialer::new(DirectDialer::new(), |flow: &Flow| {
        assert_eq!((flow.protocol, flow.source.port()), (nsnet::host::Protocol::Icmp, 0x1234));
        assert_eq!((flow.destination.port(), flow.target), (0, flow.destination));
        if SERVER.contains(&flow.destination.ip()) { Ok(()) } else { Err(DialError::Prohibited) }
    });
    let container = world.container_of(Network::builder().dialer(dialer));
    for address in SERVER {
        let echo = Echo::new(&container, address);
        echo.request(address, 0x1234, 1, b"x");
        assert_eq!(echo.reply(), (address, 0x1234, 1, b"x".to_vec()));
    }
    let at_server = world.in_server(|| Echo::at(OTHER_SERVER));
    let echo = Echo::new(&container, OTHER_SERVER);
    echo.request(OTHER_SERVER, 0x1234, 1, b"x");
    let statistics = || container.network().statistics().echo;
    eventually("one is refused", || statistics().refused == 1);
    assert_eq!((statistics().opened, statistics().active), (3, 2));
    at_server.0.set_nonblocking(true).unwrap();
    assert_errno(at_server.0.recv(&mut [0; 64]), Errno::EWOULDBLOCK);
}

/// Also to those that come while the Dialer decides.
fn refusals_of_a_dialer_are_answers_to_every_request(world: &World) {
    let container = world.container_of(Network::builder().dialer(DenyDialer));
    for (address, expected) in SERVER.into_iter().zip(PROHIBITED) {
        let said = ping(container.command("ping"), address, &["-c", "3", "-l", "3"]);
        assert_eq!(reports(&said).len(), 3, "{said}");
        for (number, report) in (1..).zip(reports(&said)) {
            assert!(report.ends_with(&format!("icmp_seq={number} {expected}")), "{said}");
        }
    }
}

fn where_ping_sockets_are_forbidden_the_log_says_what_to_do(world: &World) {
    assert_eq!(ping_socket_error(), Some(Errno::EACCES));
    let script = format!("for i in 1 2; do ping -nc1 {}; ping -nc1 {}; done", SERVER[0], SERVER[1]);
    let mut command = Command::new(example("rootless-shell"));
    if world.carriage() == Carriage::Shuttled {
        command.arg("--shuttle");
    }
    let output = command.args(["--", "bash", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    let (said, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(log.matches("sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"").count(), 1, "{log}");
    assert_eq!(log.trim().lines().count(), 1, "{log}");
    for (gateway, expected) in GATEWAY.into_iter().zip(PROHIBITED) {
        assert_eq!(said.matches(&format!("From {gateway} icmp_seq=1 {expected}")).count(), 2, "{said}");
    }
}

fn a_flood_is_answered_without_loss(world: &World) {
    allow_ping_sockets();
    let _hops = world.hops();
    let container = world.container();
    for address in END {
        let said = run(container.command("ping"), &["-n", "-q", "-f", "-c", "10000", &address.to_string()]);
        assert!(said.contains("10000 packets transmitted, 10000 received, 0% packet loss"), "{said}");
    }
    let statistics = container.network().statistics().echo;
    assert_eq!((statistics.opened, statistics.overflowed), (2, 0));
}

/// Nor on the ways between several queues.
fn pings_side_by_side_do_not_meet(world: &World) {
    allow_ping_sockets();
    for queues in [1, 2] {
        ping_side_by_side(&world.container_of(Network::builder().queues(queues)));
    }
}

#[track_caller]
fn ping_side_by_side(container: &Container) {
    let pings: Vec<_> = (0..20)
        .map(|number| {
            let mut command = container.command("ping");
            let (address, size) = (SERVER[number % 2].to_string(), (100 + number).to_string());
            command.args(["-n", "-c", "5", "-i", "0.2", "-s", &size, &address]).stdout(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (number, ping) in pings.into_iter().enumerate() {
        let said = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.contains("5 packets transmitted, 5 received, 0% packet loss"), "{said}");
        let bytes = (108 + number).to_string();
        let expected = [1, 2, 3, 4, 5].map(|sequence| reply(&bytes, SERVER[number % 2], sequence, 63));
        assert_eq!(replies(&said), expected);
    }
    assert_eq!(container.network().statistics().echo.opened, 20);
}

fn identifiers_without_end_meet_a_limit_and_keep_no_datagram_out(world: &World) {
    allow_ping_sockets();
    let container = world.container_of(Network::builder().max_echo_mappings(100));
    for address in SERVER {
        let echo = Echo::new(&container, address);
        for identifier in 0..50_000 {
            echo.request(address, identifier, 1, b"");
        }
    }
    let statistics = || container.network().statistics().echo;
    // Some are lost on the way: nobody waits for the device.
    eventually("the limit is met", || statistics().overflowed > 10_000);
    assert_eq!((statistics().opened, statistics().active), (100, 100));
    let socket = container.udp(server::udp_echo(world.udp(SERVER[0])));
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    eventually("a datagram is answered, once the device is no longer full", || {
        socket.send(b"hello").unwrap();
        socket.recv(&mut [0; 8]).is_ok()
    });
    // Who was there before is served.
    let echo = Echo::new(&container, SERVER[0]);
    echo.request(SERVER[0], 0, 2, b"still there?");
    assert_eq!(echo.reply(), (SERVER[0], 0, 2, b"still there?".to_vec()));
}

/// What ping says of a request that is administratively prohibited.
const PROHIBITED: [&str; 2] = ["Packet filtered", "Destination unreachable: Administratively prohibited"];

/// Lets everybody in the namespace of the caller have ping sockets, icmp(7). No other group is mapped here.
#[track_caller]
pub(crate) fn allow_ping_sockets() {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
}

/// Why the caller cannot have a ping socket.
fn ping_socket_error() -> Option<Errno> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4));
    socket.err().map(|error| crate::world::errno(&error))
}

/// What ping says with these options, whatever it thinks of it.
#[track_caller]
fn ping(command: Command, address: IpAddr, options: &[&str]) -> String {
    let address = address.to_string();
    run(command, &[&["-n", "-i", "0.2", "-W", "10"], options, &[&address]].concat())
}

#[track_caller]
fn run(mut command: Command, arguments: &[&str]) -> String {
    let output =
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap_or_else(
            |error| panic!("{command:?}: {error}; tests/run knows which packages are needed"),
        );
    let said = String::from_utf8(output.stdout).unwrap();
    // 1 is for those that were not answered.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}; it said:\n{said}", output.status);
    said
}

/// The lines about replies, without the time they took.
fn replies(said: &str) -> Vec<String> {
    let lines = said.lines().filter(|line| line.contains(" bytes from "));
    lines.map(|line| line.split(" time=").next().unwrap_or(line).to_owned()).collect()
}

fn reply(bytes: &str, address: IpAddr, number: u16, ttl: u8) -> String {
    format!("{bytes} bytes from {address}: icmp_seq={number} ttl={ttl}")
}

/// What ping says of a request that was too large for a link of this MTU.
fn too_big(router: IpAddr, mtu: u16) -> String {
    match router {
        IpAddr::V4(_) => format!("From {router} icmp_seq=1 Frag needed and DF set (mtu = {mtu})"),
        IpAddr::V6(_) => format!("From {router} icmp_seq=1 Packet too big: mtu={mtu}"),
    }
}

/// The hops to an address.
#[track_caller]
fn traceroute(command: Command, address: IpAddr) -> Vec<String> {
    let said = run(command, &["-n", "-I", "-q", "1", "-w", "5", &address.to_string()]);
    let hops = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    hops.map(str::to_owned).collect()
}

/// The lines about errors.
fn reports(said: &str) -> Vec<String> {
    said.lines().filter(|line| line.starts_with("From ")).map(str::to_owned).collect()
}
