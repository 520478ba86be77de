//! More than one queue, each on an engine thread of its own: the same network, spread over them.
//!
//! On a machine of one core, one queue is all that is granted, and everything here holds for that.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{
    Dialer, DirectDialer, FilterDialer, Finished, Flow, Network, NetworkBuilder, Offload, Protocol,
};

use crate::world::{
    Carriage, Container, ContainerProcess, Digest, Namespace, Noise, PATIENCE, SERVER, World, accept,
    assert_errno, eventually, exchange, in_both_carriages, server, within,
};

in_both_carriages! {
    queues_are_granted_as_far_as_there_are_cores,
    connections_are_spread_over_threads [120],
    connections_survive_silence,
    datagrams_have_one_upstream_port_whatever_their_queue,
    datagrams_without_an_answer_all_arrive,
    fragments_of_a_datagram_meet,
    large_transfers_pass_with_offload,
    limit_of_connections_is_shared_out,
    closed_attachment_resets_all_connections,
    dropped_network_resets_all_connections,
    killed_container_ends_all_connections,
    deleted_device_ends_all_connections,
    finished_network_has_delivered_what_every_queue_took,
    dialer_may_drop_its_own_network_on_any_thread,
    device_of_one_queue_will_do,
}

/// So many that it is out of the question that all are on one queue.
const MANY: usize = 100;

/// What a container gets that asks for so many.
fn granted(queues: u16) -> usize {
    usize::from(queues).min(thread::available_parallelism().unwrap().get())
}

fn of(queues: u16) -> NetworkBuilder {
    Network::builder().queues(queues)
}

fn queues_are_granted_as_far_as_there_are_cores(world: &World) {
    for offload in [Offload::NONE, Offload::ALL] {
        for queues in [1, 2, 4, u16::MAX] {
            let container = world.container_of(of(queues).offload(offload));
            assert_eq!(usize::from(container.ready().queues), granted(queues.min(16)));
            assert_echoes(world, &container);
        }
    }
}

/// Data both ways, and each half closed by itself.
fn connections_are_spread_over_threads(world: &World) {
    const LENGTH: u64 = 200_000;
    for queues in [2, 4] {
        let threads = Arc::<Mutex<HashSet<ThreadId>>>::default();
        let container = world.container_of(of(queues).dialer(recording(&threads)));
        for address in SERVER {
            let server = server::exchange(world.listen(address), LENGTH);
            let streams: Vec<_> = (0..MANY).map(|_| container.connect(server).unwrap()).collect();
            let exchanges: Vec<_> = streams
                .into_iter()
                .map(|stream| thread::spawn(|| exchange(stream, LENGTH, LENGTH)))
                .collect();
            for exchange in exchanges {
                exchange.join().unwrap();
            }
        }
        assert_eq!(threads.lock().unwrap().len(), granted(queues));
        eventually("no connection is left", || container.network().statistics().tcp.active == 0);
        assert_eq!(container.network().statistics().discarded.overrun, 0);
    }
}

/// Longer than the kernel remembers which queue a flow was answered on (`TUN_FLOW_EXPIRE`, three seconds).
fn connections_survive_silence(world: &World) {
    let container = world.container_of(of(2));
    let mut streams = SERVER
        .map(|address| echoing(world, &container, address, MANY / 2))
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(5));
        streams.iter_mut().for_each(assert_alive);
    }
}

fn datagrams_have_one_upstream_port_whatever_their_queue(world: &World) {
    let container = world.container_of(of(2));
    for address in SERVER {
        let mirrors: Vec<_> = (0..MANY).map(|_| server::udp_mirror(world.udp(address))).collect();
        let socket = container.udp_unconnected(address);
        let mut seen = HashSet::new();
        for _ in 0..2 {
            for mirror in &mirrors {
                socket.send_to(b"who am I?", mirror).unwrap();
                let (answer, from) = receive(&socket);
                assert_eq!(from, *mirror);
                seen.insert(answer);
            }
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
    }
    assert_eq!(container.network().statistics().udp.active, 2 * MANY as u64);
}

/// They go on coming in on the queue of their hash, for no answer tells the kernel of another.
fn datagrams_without_an_answer_all_arrive(world: &World) {
    let container = world.container_of(of(2));
    let socket = container.udp_unconnected(SERVER[0]);
    let sinks: Vec<_> = (0..20).map(|_| world.udp(SERVER[0])).collect();
    let mut seen = HashSet::new();
    for round in 0..50u8 {
        for sink in &sinks {
            socket.send_to(&[round], sink.local_addr().unwrap()).unwrap();
        }
        for sink in &sinks {
            let mut byte = [0];
            let (_, from) = sink.recv_from(&mut byte).unwrap();
            assert_eq!(byte, [round]);
            seen.insert(from);
        }
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

/// The kernel's hash of a fragment knows no ports: it may send one to another queue than the answer comes from.
fn fragments_of_a_datagram_meet(world: &World) {
    let container = world.container_of(of(2).mtu(1500));
    for address in SERVER {
        for _ in 0..8 {
            let socket = container.udp(server::udp_echo(world.udp(address)));
            let sent = Noise::new(1).bytes(9000);
            socket.send(&sent).unwrap();
            let mut received = vec![0; 65_536];
            let length = socket.recv(&mut received).unwrap();
            assert!(received[..length] == sent);
        }
    }
}

fn large_transfers_pass_with_offload(world: &World) {
    const LENGTH: u64 = 20 << 20;
    let container = world.container_of(of(2).offload(Offload::ALL));
    let server = server::exchange(world.listen(SERVER[0]), LENGTH);
    let exchanges: Vec<_> = (0..4)
        .map(|_| container.connect(server).unwrap())
        .map(|stream| thread::spawn(|| exchange(stream, LENGTH, LENGTH)))
        .collect();
    for exchange in exchanges {
        exchange.join().unwrap();
    }
}

fn limit_of_connections_is_shared_out(world: &World) {
    let container = world.container_of(of(2).max_tcp_flows(20));
    let listener = world.listen(SERVER[0]);
    let address = listener.local_addr().unwrap();
    let connect = || container.connect_within(address, Duration::from_secs(2));
    let open: Vec<_> = thread::scope(|scope| {
        let connecting: Vec<_> = (0..60).map(|_| scope.spawn(connect)).collect();
        connecting.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
    });
    assert_eq!(open.len(), 20);
    assert!(container.network().statistics().tcp.overflowed >= 40);
}

fn closed_attachment_resets_all_connections(world: &World) {
    let container = world.container_of(of(2));
    let streams = echoing(world, &container, SERVER[0], MANY / 2);
    container.close();
    assert_all_reset(streams);
    eventually("no connection is left", || container.network().statistics().tcp.active == 0);
}

fn dropped_network_resets_all_connections(world: &World) {
    let mut container = world.container_of(of(2));
    let streams = echoing(world, &container, SERVER[0], MANY / 2);
    within(Duration::from_secs(3), || container.drop_network());
    assert_all_reset(streams);
}

fn killed_container_ends_all_connections(world: &World) {
    let listener = world.listen(SERVER[0]);
    let (host, port) = (SERVER[0], listener.local_addr().unwrap().port());
    let script =
        format!("for i in {{1..30}}; do eval \"exec $((i + 10))<>/dev/tcp/{host}/{port}\"; done; sleep 60");
    let mut container = ContainerProcess::spawn(of(2).build().unwrap(), world.carriage(), &script);
    let served: Vec<_> = (0..30).map(|_| accept(&listener)).collect();
    container.kill();
    if world.carriage() == Carriage::HandedOver {
        // Nobody tells, but whoever waits for the child.
        container.close();
    }
    for mut stream in served {
        // An end or a reset, as the kernel in there still came to send FIN or not.
        let ended = within(Duration::from_secs(5), || stream.read(&mut [0; 1]));
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    eventually("no connection is left", || container.network.statistics().tcp.active == 0);
}

fn deleted_device_ends_all_connections(world: &World) {
    let container = world.container_of(of(2));
    let listener = world.listen(SERVER[0]);
    let pairs: Vec<_> = (0..30)
        .map(|_| (container.connect(listener.local_addr().unwrap()).unwrap(), accept(&listener)))
        .collect();
    assert!(container.command("ip").args(["link", "delete", "tun0"]).status().unwrap().success());
    for (_, mut served) in pairs {
        within(PATIENCE, || served.read(&mut [0; 1])).expect_err("it has not ended, it is cut off");
    }
    eventually("no connection is left", || container.network().statistics().tcp.active == 0);
}

/// To a server that reads only after a while, when most is written and little delivered.
fn finished_network_has_delivered_what_every_queue_took(world: &World) {
    const LENGTH: u64 = 1 << 20;
    let mut container = world.container_of(of(2));
    let listener = world.listen(SERVER[0]);
    let sink = world.udp(SERVER[0]);
    let (sending, served): (Vec<_>, Vec<_>) = (0..30)
        .map(|_| {
            let ours = container.connect(listener.local_addr().unwrap()).unwrap();
            let theirs = accept(&listener);
            (thread::spawn(|| Noise::new(1).send(ours, LENGTH).unwrap()), theirs)
        })
        .unzip();
    let reading: Vec<_> = served
        .into_iter()
        .map(|stream| {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(300));
                Digest::receive(stream).unwrap()
            })
        })
        .collect();
    // Written, which is not yet delivered, by a payload that has ended.
    let sent: Vec<_> = sending.into_iter().map(|sender| sender.join().unwrap()).collect();
    for number in 0..10u8 {
        let socket = container.udp(sink.local_addr().unwrap());
        socket.send(&[number]).unwrap();
    }
    // As soon as everything is delivered, not when the grace is over.
    let finished = within(PATIENCE / 3, || container.finish(PATIENCE));
    assert_eq!(finished, Finished::Delivered);
    for (sent, reader) in sent.into_iter().zip(reading) {
        assert_eq!(reader.join().unwrap(), sent);
    }
    let numbers: HashSet<_> = (0..10).map(|_| receive_byte(&sink)).collect();
    assert_eq!(numbers, (0..10).collect());
}

/// The last handle to a network may be dropped by its own Dialer, on whatever thread that is asked: that of the
/// first queue, where datagrams are asked about, or another.
fn dialer_may_drop_its_own_network_on_any_thread(world: &World) {
    let listener = world.listen(SERVER[0]);
    let peer = world.udp(SERVER[0]);
    for on_the_first in [true, false].into_iter().take(granted(2)) {
        let handle = Arc::<Mutex<Option<Arc<Network>>>>::default();
        let theirs = Arc::clone(&handle);
        let first = OnceLock::new();
        let dialer = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
            let here = thread::current().id();
            if flow.protocol == Protocol::Udp {
                first.set(here).expect("one datagram is sent");
            } else if (first.get() == Some(&here)) == on_the_first {
                drop(theirs.lock().unwrap().take());
            }
            Ok(())
        });
        let network = Arc::new(of(2).dialer(dialer).build().unwrap());
        *handle.lock().unwrap() = Some(Arc::clone(&network));
        let mut container = Container::new(network, world.carriage());
        container.drop_network();
        container.udp(peer.local_addr().unwrap()).send(b"which thread?").unwrap();
        peer.recv(&mut [0; 16]).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || container.connect_within(address, Duration::from_secs(3));
        // Until one comes in on the thread that is meant.
        let fails = (0..MANY).any(|_| within(Duration::from_secs(4), connect).is_err());
        assert!(fails, "the network serves on");
        assert!(handle.lock().unwrap().is_none(), "the network was not dropped");
    }
}

/// One that was made beforehand to last, and so cannot be made another kind of.
fn device_of_one_queue_will_do(world: &World) {
    let namespace = Namespace::new();
    namespace.ip("tuntap add dev tun0 mode tun");
    let network = Arc::new(of(2).build().unwrap());
    let container = Container::of_namespace(network, world.carriage(), namespace);
    assert_eq!(container.ready().queues, 1);
    assert_echoes(world, &container);
}

/// A Dialer that notes on which threads it is asked about connections.
fn recording(threads: &Arc<Mutex<HashSet<ThreadId>>>) -> impl Dialer + use<> {
    let threads = Arc::clone(threads);
    FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        if flow.protocol == Protocol::Tcp {
            threads.lock().unwrap().insert(thread::current().id());
        }
        Ok(())
    })
}

/// Connections that have carried something already.
fn echoing(world: &World, container: &Container, address: std::net::IpAddr, count: usize) -> Vec<TcpStream> {
    let echo = server::tcp_echo(world.listen(address));
    let mut streams: Vec<_> = (0..count).map(|_| container.connect(echo).unwrap()).collect();
    streams.iter_mut().for_each(assert_alive);
    streams
}

#[track_caller]
fn assert_alive(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[track_caller]
fn assert_all_reset(streams: Vec<TcpStream>) {
    for mut stream in streams {
        within(Duration::from_secs(2), || assert_errno(stream.read(&mut [0; 1]), Errno::ECONNRESET));
    }
}

#[track_caller]
fn assert_echoes(world: &World, container: &Container) {
    echoing(world, container, SERVER[0], 1);
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    (buffer, from)
}

#[track_caller]
fn receive_byte(socket: &UdpSocket) -> u8 {
    let mut byte = [0];
    socket.recv(&mut byte).unwrap();
    byte[0]
}
