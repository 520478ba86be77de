//! What the network itself knows by name, and who else answers before a query is forwarded.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use nsnet::host::{Bytes, DnsQuery, HostPorts, Network, NetworkBuilder, Offload, Resolver, async_trait};

use crate::world::{
    Container, DNS, GATEWAY, OTHER_SERVER, PATIENCE, SERVER, World, eventually, in_both_carriages, output,
    server,
};

in_both_carriages! {
    hosts_are_known_by_name_and_address,
    host_is_known_by_name_while_it_is_open,
    search_domains_reach_the_resolver_library,
    embedder_answers_refuses_and_forwards,
    servers_are_those_of_the_network,
    long_answers_come_in_long_datagrams_or_over_tcp,
    queries_over_tcp_may_follow_each_other_and_end_early,
    four_thousand_queries_are_under_way_and_the_others_fail [120],
}

const ANSWER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A network whose only server is asked for everything, and says [`ANSWER`].
fn network(world: &World) -> NetworkBuilder {
    Network::builder().dns_servers(vec![server::dns(world.dns(SERVER[0]), ANSWER)])
}

/// What dig(1) says, line by line and sorted.
#[track_caller]
fn dig(container: &Container, arguments: &[&str]) -> Vec<String> {
    let at = format!("@{}", DNS[0]);
    let said = output(container.command("dig").args([&at, "+tries=1", "+timeout=10"]).args(arguments));
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The status of the answer, as dig(1) names it.
#[track_caller]
fn status(container: &Container, name: &str) -> String {
    let said = dig(container, &[name, "A"]).join("\n");
    let (_, rest) = said.split_once("status: ").unwrap_or_else(|| panic!("{said}"));
    rest.split(',').next().unwrap().to_owned()
}

fn hosts_are_known_by_name_and_address(world: &World) {
    let builder = network(world)
        .static_host("db.test", [[10, 1, 0, 1], [10, 1, 0, 2]])
        .static_host("DB.test.", ["fd01::1".parse::<IpAddr>().unwrap()]);
    let container = world.container_of(builder);
    for transport in ["+notcp", "+tcp"] {
        let short = |arguments: &[&str]| dig(&container, &[&[transport, "+short"], arguments].concat());
        assert_eq!(short(&["Db.Test", "A"]), ["10.1.0.1", "10.1.0.2"]);
        assert_eq!(short(&["db.test", "AAAA"]), ["fd01::1"]);
        assert!(short(&["db.test", "MX"]).is_empty());
        assert_eq!(short(&["-x", "10.1.0.2"]), ["db.test."]);
        assert_eq!(short(&["-x", "fd01::1"]), ["db.test."]);
        assert_eq!(short(&["other.test", "A"]), [ANSWER.to_string()]);
    }
    assert_eq!(status(&container, "db.test"), "NOERROR");
    let newer = dig(&container, &["+edns=1", "+noednsnegotiation", "db.test"]).join("\n");
    assert!(newer.contains("status: BADVERS"), "{newer}");
}

fn host_is_known_by_name_while_it_is_open(world: &World) {
    let closed = world.container_of(network(world));
    // The server would have an address for it.
    assert_eq!(status(&closed, "host.nsnet.internal"), "NXDOMAIN");
    assert_eq!(status(&closed, "below.HOST.nsnet.internal"), "NXDOMAIN");

    let upstream = vec![SocketAddr::new(SERVER[0], 53)];
    let of = || Network::builder().dns_servers(upstream.clone());
    let open = world.container_of(of().open_host(HostPorts::loopback().port(8080)));
    assert_eq!(dig(&open, &["+short", "host.nsnet.internal", "A"]), [GATEWAY[0].to_string()]);
    assert_eq!(dig(&open, &["+short", "host.nsnet.internal", "AAAA"]), [GATEWAY[1].to_string()]);
    assert_eq!(dig(&open, &["+short", "-x", "10.0.2.2"]), ["host.nsnet.internal."]);

    let renamed = world.container_of(of().host_loopback().host_name("mother"));
    assert_eq!(dig(&renamed, &["+short", "mother", "A"]), [GATEWAY[0].to_string()]);
    assert_eq!(dig(&renamed, &["+short", "host.nsnet.internal", "A"]), [ANSWER.to_string()]);
}

/// As getent(1) finds names, through the C library and the file that nsnet puts over resolv.conf(5).
fn search_domains_reach_the_resolver_library(world: &World) {
    let directory = world.scratch();
    let builder = network(world)
        .static_host("db.corp.test", [[10, 1, 0, 1]])
        .search_domains(["lab.test", "corp.test"])
        .dns_options(["ndots:1", "timeout:9"]);
    let denies = builder.resolver(Denies(".lab.test"));
    let script = format!(
        "cat /etc/resolv.conf >{0}/conf; getent ahostsv4 db >{0}/hosts; getent hosts 10.1.0.1 >{0}/reverse; touch {0}/done",
        directory.display()
    );
    let _process = world.container_process(denies.build().unwrap(), &script);
    eventually("the script is done", || directory.join("done").exists());
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let conf = read("conf");
    assert!(conf.contains("\nsearch lab.test corp.test\noptions ndots:1 timeout:9\n"), "{conf}");
    assert!(read("hosts").starts_with("10.1.0.1 "), "{}", read("hosts"));
    let words: Vec<_> = read("reverse").split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["10.1.0.1", "db.corp.test"]);
}

/// Denies what ends so.
struct Denies(&'static str);

#[async_trait]
impl Resolver for Denies {
    async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
        query.name()?.ends_with(self.0).then(|| query.deny())
    }
}

struct Split;

#[async_trait]
impl Resolver for Split {
    async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
        match query.name()?.as_str() {
            "own.test" => Some(query.answer(60, &[IpAddr::from([10, 1, 0, 9])])),
            "wrapped.test" => Some(query.forward(query.message()).await),
            "me.test" => Some(query.answer(0, &[query.source().ip()])),
            "broken.test" => panic!("as the test wants it"),
            name if name.ends_with(".bad.test") => Some(query.refuse()),
            _ => None,
        }
    }
}

fn embedder_answers_refuses_and_forwards(world: &World) {
    let container = world.container_of(network(world).resolver(Split));
    for transport in ["+notcp", "+tcp"] {
        let short = |name: &str| dig(&container, &[transport, "+short", name, "A"]);
        assert_eq!(short("own.test"), ["10.1.0.9"]);
        assert_eq!(short("wrapped.test"), [ANSWER.to_string()]);
        assert_eq!(short("other.test"), [ANSWER.to_string()]);
        assert_eq!(short("me.test"), ["10.0.2.100"]);
    }
    assert_eq!(status(&container, "www.bad.test"), "REFUSED");
    assert_eq!(status(&container, "broken.test"), "SERVFAIL");
    assert_eq!(status(&container, "own.test"), "NOERROR", "after the panic");
}

fn servers_are_those_of_the_network(world: &World) {
    let other = Ipv4Addr::new(203, 0, 113, 8);
    let one = world.container_of(network(world));
    let server = server::dns(world.dns(OTHER_SERVER), other);
    let two = world.container_of(Network::builder().dns_servers(vec![server]));
    for _ in 0..3 {
        assert_eq!(dig(&one, &["+short", "name.test"]), [ANSWER.to_string()]);
        assert_eq!(dig(&two, &["+short", "name.test"]), [other.to_string()]);
    }
}

/// Ends with this handle.
struct Dnsmasq(Child);

impl Dnsmasq {
    /// Answers for `names`, in the server's namespace.
    #[track_caller]
    fn start(world: &World, at: IpAddr, names: &str) -> Self {
        let hosts = world.scratch().join("hosts");
        fs::write(&hosts, names).unwrap();
        let child = world
            .server_command("dnsmasq")
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"])
            .args(["--edns-packet-max=4096", "--pid-file="])
            .arg(format!("--listen-address={at}"))
            .arg(format!("--addn-hosts={}", hosts.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("dnsmasq: {error}; it comes with the Debian package dnsmasq-base")
            });
        eventually("dnsmasq listens", || world.in_server(|| std::net::TcpStream::connect((at, 53))).is_ok());
        Self(child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of 150 addresses: 2 400 bytes and more, beyond the MTU of 1500.
fn long_answers_come_in_long_datagrams_or_over_tcp(world: &World) {
    let addresses: Vec<_> = (0..150).map(|host| Ipv4Addr::new(10, 3, 0, host).to_string()).collect();
    let names: String = addresses.iter().map(|address| format!("{address} many.test\n")).collect();
    let _dnsmasq = Dnsmasq::start(world, SERVER[0], &names);
    let mut sorted = addresses.clone();
    sorted.sort();
    for offload in [Offload::ALL, Offload::NONE] {
        let own: Vec<Ipv4Addr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let builder = Network::builder().mtu(1500).offload(offload).static_host("own.test", own);
        let container = world.container_of(builder.dns_servers(vec![(SERVER[0], 53).into()]));
        let short = |options: &[&str]| dig(&container, &[&["+short", "many.test", "A"], options].concat());
        assert_eq!(short(&["+tcp"]), sorted, "over TCP");
        assert_eq!(short(&["+bufsize=4096", "+ignore"]), sorted, "in one datagram");
        // Truncated, and asked again over TCP.
        assert_eq!(short(&["+bufsize=1232"]), sorted);
        assert_eq!(short(&["+noedns"]), sorted);
        let truncated = dig(&container, &["+bufsize=1232", "+ignore", "own.test"]).join("\n");
        assert!(truncated.contains(" tc ") && truncated.contains("EDNS: version: 0"), "{truncated}");
        assert_eq!(dig(&container, &["+short", "own.test", "A"]), sorted);
    }
}

fn queries_over_tcp_may_follow_each_other_and_end_early(world: &World) {
    let container = world.container_of(network(world).static_host("db.test", [[10, 1, 0, 1]]));
    let mut stream = container.connect((DNS[0], 53).into()).unwrap();
    let names = ["db.test", "other.test"];
    for id in 0..300 {
        let query = server::dns_query(id, names[usize::from(id) % 2]);
        stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&query).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let mut ids = Vec::new();
    let mut rest = &rest[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(u16::from_be_bytes(*length).into());
        let id = u16::from_be_bytes([message[0], message[1]]);
        let expected = if id % 2 == 0 { Ipv4Addr::new(10, 1, 0, 1) } else { ANSWER };
        assert_eq!(*message.last_chunk().unwrap(), expected.octets(), "answer {id}");
        ids.push(id);
        rest = after;
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
}

/// What the limits of the network say. Its own names are answered still.
fn four_thousand_queries_are_under_way_and_the_others_fail(world: &World) {
    const UNDER_WAY: usize = 4096;
    const BATCH: usize = 50;
    let (udp, _tcp) = world.dns(SERVER[0]);
    let conf = world.scratch().join("resolv.conf");
    // So that nothing is asked twice.
    fs::write(&conf, format!("nameserver {}\noptions timeout:30 attempts:1\n", SERVER[0])).unwrap();
    let container =
        world.container_of(Network::builder().resolv_conf(conf).static_host("db.test", [[10, 1, 0, 1]]));
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let sockets: Vec<_> = (0..100).map(|_| container.udp((DNS[0], 53).into())).collect();
    let before = fds();

    let udp = Arc::new(udp);
    let count = Arc::new(AtomicUsize::new(0));
    let (slow, counter) = (Arc::clone(&udp), Arc::clone(&count));
    let received = thread::spawn(move || {
        let mut buffer = [0; 512];
        let mut queries = Vec::new();
        while queries.len() < UNDER_WAY {
            let (length, from) = slow.recv_from(&mut buffer).unwrap();
            queries.push((buffer[..length].to_vec(), from));
            counter.store(queries.len(), Relaxed);
        }
        queries
    });
    let mut codes = [0usize; 16];
    let mut read = |socket: &std::net::UdpSocket| {
        let mut reply = [0; 512];
        socket.recv(&mut reply).unwrap();
        codes[usize::from(reply[3] & 0xf)] += 1;
    };
    // 82 sockets take the places, the others find none.
    for (number, socket) in sockets.iter().enumerate() {
        for id in 0..u16::try_from(BATCH).unwrap() {
            socket.send(&server::dns_query(id, &format!("name-{number}-{id}.test"))).unwrap();
        }
        let sent = (number + 1) * BATCH;
        let failed = sent.saturating_sub(UNDER_WAY).min(BATCH);
        (0..failed).for_each(|_| read(socket));
        // No faster than the server's buffer is emptied.
        eventually("the server has the queries", || count.load(Relaxed) >= sent.min(UNDER_WAY));
    }
    let queries = received.join().unwrap();
    assert!(fds() - before <= 64 + 100, "{} descriptors more", fds() - before);
    assert_eq!(dig(&container, &["+short", "db.test"]), ["10.1.0.1"], "needs no place");

    for (query, from) in &queries {
        let mut reply = query.clone();
        reply[2] |= 0x80;
        udp.send_to(&reply, from).unwrap();
    }
    for (number, socket) in sockets.iter().enumerate() {
        let failed = ((number + 1) * BATCH).saturating_sub(UNDER_WAY).min(BATCH);
        (failed..BATCH).for_each(|_| read(socket));
    }
    assert_eq!((codes[0], codes[2]), (UNDER_WAY, sockets.len() * BATCH - UNDER_WAY));
    eventually("all sockets are closed", || fds() <= before + 4);
    // And the places are free again.
    sockets[0].send(&server::dns_query(1, "again.test")).unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    udp.recv(&mut [0; 512]).unwrap();
}
