//! Names: what the container asks the network's DNS address is asked of the host's servers.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{DenyDialer, Network};

use crate::world::{
    Container, DNS, OTHER_SERVER, SERVER, SILENT, World, assert_errno, dns_sockets, eventually,
    in_both_carriages, server, timed,
};

in_both_carriages! {
    queries_are_answered_over_udp_and_tcp,
    next_server_is_asked_when_the_first_refuses,
    next_server_is_asked_when_the_first_is_silent,
    without_a_server_the_query_fails_and_does_not_hang,
    resolv_conf_is_read_again_when_it_has_changed,
    server_on_the_hosts_loopback_is_asked,
    deny_dialer_answers_no_query,
    many_queries_at_once_are_answered,
    connections_are_bounded_and_places_come_back,
    what_hides_its_question_is_not_passed_on,
}

fn connections_are_bounded_and_places_come_back(world: &World) {
    let server = server::dns(world.dns(SERVER[0]), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    let to = SocketAddr::new(DNS[0], 53);
    let open: Vec<_> = (0..20).map(|_| container.connect(to).unwrap()).collect();
    assert_errno(container.connect(to), Errno::ECONNREFUSED);
    drop(open);
    eventually("there is room again", || container.connect(to).is_ok());
    assert_eq!(query_tcp(&container, DNS[0]), Reply::Address(ANSWER));
}

fn what_hides_its_question_is_not_passed_on(world: &World) {
    const FORMAT_ERROR: u8 = 1;
    let server = server::dns(world.dns(SERVER[0]), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    let header = |questions| [0xbe, 0xef, 1, 0, 0, questions, 0, 0, 0, 0, 0, 0];
    let question = *b"\x04test\0\0\x01\0\x01";
    let plain = [&header(1)[..], &question].concat();
    let twice = [&header(2)[..], &question, &question].concat();
    // A pointer to the name that stands behind.
    let compressed = [&header(1)[..], &[0xc0, 18, 0, 1, 0, 1], &question].concat();
    for (query, code) in [(plain, 0), (twice, FORMAT_ERROR), (compressed, FORMAT_ERROR)] {
        let socket = container.udp(SocketAddr::new(DNS[0], 53));
        socket.send(&query).unwrap();
        let mut reply = [0; 512];
        assert!(socket.recv(&mut reply).unwrap() >= 12);
        assert_eq!((&reply[..2], reply[3] & 15), (&[0xbe, 0xef][..], code));
    }
}

const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

fn queries_are_answered_over_udp_and_tcp(world: &World) {
    let server = server::dns(world.dns(SERVER[0]), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    for address in DNS {
        assert_eq!(query_udp(&container, address), Reply::Address(ANSWER));
        assert_eq!(query_tcp(&container, address), Reply::Address(ANSWER));
    }
}

fn next_server_is_asked_when_the_first_refuses(world: &World) {
    let servers = vec![world.closed(OTHER_SERVER), server::dns(world.dns(SERVER[0]), ANSWER)];
    let container = world.container_of(Network::builder().dns_servers(servers));
    let (took, reply) = timed(|| query_udp(&container, DNS[0]));
    assert_eq!(reply, Reply::Address(ANSWER));
    assert!(took < Duration::from_secs(1), "took {took:?}, although the first server refuses at once");
    assert_eq!(query_tcp(&container, DNS[0]), Reply::Address(ANSWER));
}

fn next_server_is_asked_when_the_first_is_silent(world: &World) {
    let servers = vec![SocketAddr::new(SILENT, 53), server::dns(world.dns(SERVER[0]), ANSWER)];
    let container = world.container_of(Network::builder().dns_servers(servers));
    assert_eq!(query_udp(&container, DNS[0]), Reply::Address(ANSWER));
    assert_eq!(query_tcp(&container, DNS[0]), Reply::Address(ANSWER));
}

fn without_a_server_the_query_fails_and_does_not_hang(world: &World) {
    let servers = vec![world.closed(SERVER[0]), world.closed(OTHER_SERVER)];
    let container = world.container_of(Network::builder().dns_servers(servers));
    assert_eq!(query_udp(&container, DNS[0]), Reply::Failure(SERVFAIL));
}

fn resolv_conf_is_read_again_when_it_has_changed(world: &World) {
    let path = world.scratch().join("resolv.conf");
    let other = Ipv4Addr::new(203, 0, 113, 8);
    for (address, answer) in [(SERVER[0], ANSWER), (OTHER_SERVER, other)] {
        server::dns(world.dns(address), answer);
    }
    fs::write(&path, format!("nameserver {}\n", SERVER[0])).unwrap();
    let container = world.container_of(Network::builder().resolv_conf(&path));
    assert_eq!(query_udp(&container, DNS[0]), Reply::Address(ANSWER));
    fs::write(&path, format!("# moved\nnameserver {OTHER_SERVER}\n")).unwrap();
    // The file is not looked at for every query.
    eventually("the other server is asked", || query_udp(&container, DNS[0]) == Reply::Address(other));
}

/// As systemd-resolved is. The container may ask it although the rest of the loopback is closed to it.
fn server_on_the_hosts_loopback_is_asked(world: &World) {
    let server = server::dns(dns_sockets([127, 0, 0, 53].into()), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    assert_eq!(query_udp(&container, DNS[0]), Reply::Address(ANSWER));
    assert_eq!(query_tcp(&container, DNS[0]), Reply::Address(ANSWER));
}

fn deny_dialer_answers_no_query(world: &World) {
    let server = server::dns(world.dns(SERVER[0]), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]).dialer(DenyDialer));
    let socket = container.udp((DNS[0], 53).into());
    socket.send(&server::dns_query(1, "name.test")).unwrap();
    socket.recv(&mut [0; 512]).expect_err("it is denied");
    container.connect((DNS[0], 53).into()).expect_err("it is denied");
}

fn many_queries_at_once_are_answered(world: &World) {
    let server = server::dns(world.dns(SERVER[0]), ANSWER);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    let sockets: Vec<_> = (0..50).map(|_| container.udp((DNS[0], 53).into())).collect();
    for (id, socket) in (0..).zip(&sockets) {
        socket.send(&server::dns_query(id, "name.test")).unwrap();
    }
    for (id, socket) in (0..).zip(&sockets) {
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).unwrap();
        assert_eq!(Reply::read(&reply[..length], id), Reply::Address(ANSWER));
    }
}

/// `SERVFAIL`, RFC 1035 section 4.1.1.
const SERVFAIL: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Address(Ipv4Addr),
    Failure(u8),
}

impl Reply {
    /// Of the replies that [`server::dns`] makes the address is the end.
    #[track_caller]
    fn read(reply: &[u8], id: u16) -> Self {
        assert_eq!(reply[..2], id.to_be_bytes(), "the reply to another query");
        assert!(reply[2] & 0x80 != 0, "not a reply: {reply:?}");
        match reply[3] & 0x0f {
            0 => Self::Address(Ipv4Addr::from(*reply.last_chunk().unwrap())),
            code => Self::Failure(code),
        }
    }
}

#[track_caller]
fn query_udp(container: &Container, at: IpAddr) -> Reply {
    let socket = container.udp((at, 53).into());
    socket.send(&server::dns_query(4711, "name.test")).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).unwrap();
    Reply::read(&reply[..length], 4711)
}

#[track_caller]
fn query_tcp(container: &Container, at: IpAddr) -> Reply {
    let mut stream = container.connect((at, 53).into()).unwrap();
    let query = server::dns_query(815, "name.test");
    stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).unwrap();
    Reply::read(&reply, 815)
}
