//! Many of everything: networks in one process, connections through one of them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nsnet::host::{Attachment, Ipv4Subnet, Member, Network, Threads};
use nsnet_proto::{Carriage, Channel, Offload, Ready, Report, Setup};

use crate::world::{
    PATIENCE, SERVER, World, accept, eventually, in_both_carriages, once, packets, resident_memory,
};

in_both_carriages! {
    silent_connections_give_their_memory_back [120],
    bytes_after_a_silence_are_the_right_ones [120],
    an_idle_network_keeps_nothing_of_its_connections [120],
}

once! {
    a_thousand_containers_share_a_network [120],
    networks_share_threads_and_sleep,
    networks_with_threads_of_their_own_sleep,
}

/// Each has carried a quarter of a megabyte both ways.
fn silent_connections_give_their_memory_back(world: &World) {
    const CONNECTIONS: usize = 300;
    const LENGTH: usize = 256 << 10;
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let server = listener.local_addr().unwrap();
    let both_ways = |connections: &[(TcpStream, TcpStream)]| {
        let bytes = vec![7; LENGTH];
        for (client, served) in connections {
            carry(client, served, &bytes);
            carry(served, client, &bytes);
        }
    };
    let open = || (container.connect(server).unwrap(), accept(&listener));
    // What is made once, made before it is measured.
    let warm = [open()];
    both_ways(&warm);
    let before = resident_memory();
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
    both_ways(&connections);
    eventually("the rings are given back", || {
        let each = resident_memory().saturating_sub(before) / u64::try_from(CONNECTIONS).unwrap();
        each <= 8 << 10
    });
    both_ways(&connections);
}

/// The memory of the rings is gone meanwhile.
fn bytes_after_a_silence_are_the_right_ones(world: &World) {
    /// More than a ring holds: all of its memory is used.
    const LENGTH: u32 = 2 << 20;
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let client = container.connect(listener.local_addr().unwrap()).unwrap();
    let served = accept(&listener);
    let both_ways = |round: u8| {
        let sent: Vec<u8> = (0..LENGTH).map(|byte| byte.to_le_bytes()[0] ^ round).collect();
        carry(&client, &served, &sent);
        carry(&served, &client, &sent);
    };
    both_ways(0);
    let used = resident_memory();
    eventually("the rings are given back", || resident_memory() + (512 << 10) <= used);
    both_ways(1);
}

/// Each has carried as much as a ring may keep.
fn an_idle_network_keeps_nothing_of_its_connections(world: &World) {
    /// As many as wait for reuse.
    const CONNECTIONS: usize = 64;
    const LENGTH: usize = 60 << 10;
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let server = listener.local_addr().unwrap();
    let bytes = vec![7; LENGTH];
    let serve = |count| {
        let connections: Vec<_> =
            (0..count).map(|_| (container.connect(server).unwrap(), accept(&listener))).collect();
        for (client, served) in &connections {
            carry(client, served, &bytes);
            carry(served, client, &bytes);
        }
    };
    // What is made once, made before it is measured.
    serve(1);
    let before = resident_memory();
    serve(CONNECTIONS);
    eventually("the connections end", || container.statistics().tcp.active == 0);
    eventually("the memory of the rings is given back", || {
        let each = resident_memory().saturating_sub(before) / u64::try_from(CONNECTIONS).unwrap();
        each <= 16 << 10
    });
}

fn networks_share_threads_and_sleep(_: &World) {
    let cores = thread::available_parallelism().unwrap().get();
    let threads = idle_networks(Threads::Shared, 1000);
    assert!((1..=cores).contains(&threads), "{threads} threads");
}

fn networks_with_threads_of_their_own_sleep(_: &World) {
    const NETWORKS: usize = 200;
    assert_eq!(idle_networks(Threads::Own, NETWORKS), NETWORKS + 1);
}

/// Each has its own addresses, is served and ends. The network then takes as many again.
fn a_thousand_containers_share_a_network(world: &World) {
    const CONTAINERS: usize = 1000;
    let subnet = Ipv4Subnet::new("10.0.4.0/22".parse().unwrap()).unwrap();
    let network = Network::builder().ipv4(subnet).ipv4_only().build().unwrap();
    let server = world.udp(SERVER[0]);
    for _ in 0..2 {
        let mut containers: Vec<_> = (0..CONTAINERS).map(|_| FrameContainer::attach(&network)).collect();
        let addresses: HashSet<_> = containers.iter().map(|container| container.address).collect();
        assert_eq!(addresses.len(), CONTAINERS);
        for container in &mut containers {
            container.ask(&server);
        }
        for container in &containers {
            container.attachment.close();
        }
        for container in &containers {
            container.attachment.wait_ended(PATIENCE).unwrap();
        }
        eventually("no mapping is left", || network.statistics().udp.active == 0);
    }
}

/// A container side whose device is the test.
struct FrameContainer {
    address: Ipv4Addr,
    frames: File,
    attachment: Attachment,
}

impl FrameContainer {
    #[track_caller]
    fn attach(network: &Network) -> Self {
        let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let channel = Channel::from_fd(fd).unwrap();
        let (setup, _) = channel.receive::<Setup>().unwrap();
        let ready = Ready::new(Carriage::Shuttled, Offload::NONE, 1);
        channel.send(&Report::Ready(ready), &[]).unwrap();
        attachment.wait_ready(PATIENCE).unwrap();
        let address = setup.addresses.iter().find_map(|one| match one.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        Self { address: address.unwrap(), frames: File::from(channel.into_fd()), attachment }
    }

    /// Sends one datagram to the server and reads the answer.
    #[track_caller]
    fn ask(&mut self, server: &UdpSocket) {
        let datagram = packets::datagram(4000, server.local_addr().unwrap(), b"question");
        let frame = packets::frame(packets::UDP, self.address, server.local_addr().unwrap(), &datagram);
        self.frames.write_all(&frame).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).unwrap();
        let answer = self.address.to_string();
        server.send_to(answer.as_bytes(), from).unwrap();
        let mut frame = [0; 2048];
        let length = self.frames.read(&mut frame).unwrap();
        assert!(frame[..length].ends_with(answer.as_bytes()));
    }
}

/// Makes this many networks and one before, each with a container, and fails unless they are small and sleep. Returns
/// the number of their threads.
#[track_caller]
fn idle_networks(threads: Threads, count: usize) -> usize {
    let attached = || {
        let network = Network::builder().threads(threads).build().unwrap();
        let container = FrameContainer::attach(&network);
        (network, container)
    };
    let first = attached();
    let before = resident_memory();
    let networks: Vec<_> = (0..count).map(|_| attached()).collect();
    let each = resident_memory().saturating_sub(before) / u64::try_from(count).unwrap();
    assert!(each <= 200 << 10, "{each} bytes");

    let threads = engine_threads();
    let switches = || threads.iter().map(|thread| context_switches(thread)).sum::<u64>();
    // What was under way may end.
    thread::sleep(Duration::from_millis(500));
    let slept = switches();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(), slept, "idle networks were woken");

    drop((first, networks));
    eventually("the threads end with the last network", || engine_threads().is_empty());
    threads.len()
}

/// Fails unless what is written at one end is read at the other.
#[track_caller]
fn carry(mut from: &TcpStream, mut to: &TcpStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(bytes).unwrap());
        to.read_exact(&mut received).unwrap();
    });
    assert!(received == bytes);
}

/// The engine's threads, as paths below /proc.
fn engine_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let path = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().path().to_str().unwrap().to_owned();
    let is_engine =
        |path: &String| fs::read_to_string(format!("{path}/comm")).is_ok_and(|name| name.trim() == "nsnet");
    tasks.map(path).filter(is_engine).collect()
}

/// How often a thread was put on a processor (proc_pid_status(5)).
fn context_switches(thread: &str) -> u64 {
    let status = fs::read_to_string(format!("{thread}/status")).unwrap();
    let of = |line: &str| line.rsplit('\t').next().unwrap().trim().parse::<u64>().unwrap();
    status.lines().filter(|line| line.contains("ctxt_switches")).map(of).sum()
}
