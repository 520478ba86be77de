//! Much data, many connections, and ends that come in the middle of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nsnet::host::{DenyDialer, Network, Offload};

use crate::world::{
    Digest, Noise, PATIENCE, SERVER, World, accept, eventually, exchange, in_both_carriages, resident_memory,
    server, within,
};

in_both_carriages! {
    a_mebibyte_arrives_unharmed_each_way,
    sixty_four_mebibytes_arrive_unharmed_each_way [120],
    both_directions_at_once_arrive_unharmed [120],
    offloaded_segments_and_checksums_arrive_unharmed [120],
    two_hundred_connections_at_once_carry_data,
    slow_reader_costs_no_memory_and_loses_nothing [180],
    networks_in_one_process_do_not_mix,
    container_killed_amid_a_transfer_ends_its_connections,
    host_dropped_amid_a_transfer_resets_connections,
    deleted_device_ends_its_connections,
    dropped_network_is_gone_for_new_connections,
}

fn a_mebibyte_arrives_unharmed_each_way(world: &World) {
    each_way(world, 1 << 20);
}

fn sixty_four_mebibytes_arrive_unharmed_each_way(world: &World) {
    each_way(world, 64 << 20);
}

fn each_way(world: &World, length: u64) {
    let container = world.container();
    for address in SERVER {
        exchange(container.connect(server::exchange(world.listen(address), 0)).unwrap(), length, 0);
        exchange(container.connect(server::exchange(world.listen(address), length)).unwrap(), 0, length);
    }
}

fn both_directions_at_once_arrive_unharmed(world: &World) {
    const LENGTH: u64 = 32 << 20;
    let container = world.container();
    exchange(container.connect(server::exchange(world.listen(SERVER[0]), LENGTH)).unwrap(), LENGTH, LENGTH);
}

/// At an MTU of 1500 bytes: the kernel cuts segments and completes checksums, in both directions.
fn offloaded_segments_and_checksums_arrive_unharmed(world: &World) {
    const LENGTH: u64 = 32 << 20;
    let container = world.container_of(Network::builder().offload(Offload::ALL));
    let granted = container.ready().offload;
    assert!(granted.checksum && granted.tso4 && granted.tso6, "{granted:?}");
    for address in SERVER {
        exchange(container.connect(server::exchange(world.listen(address), LENGTH)).unwrap(), LENGTH, LENGTH);
        let socket = container.udp(server::udp_echo(world.udp(address)));
        let sent = Noise::new(3).bytes(1400);
        socket.send(&sent).unwrap();
        let mut received = [0; 1500];
        let length = socket.recv(&mut received).unwrap();
        assert!(received[..length] == sent[..], "{address}");
    }
    let statistics = container.network().statistics();
    // Several segments to a packet, or nothing was gained.
    assert!(statistics.packets_to_container < 2 * LENGTH / 4000, "{statistics:?}");
    assert_eq!(statistics.discarded.malformed, 0);
}

fn two_hundred_connections_at_once_carry_data(world: &World) {
    const CONNECTIONS: u64 = 200;
    const LENGTH: usize = 100_000;
    let container = world.container();
    let server = server::tcp_echo(world.listen(SERVER[0]));
    let all_open = Barrier::new(usize::try_from(CONNECTIONS).unwrap());
    thread::scope(|scope| {
        for seed in 0..CONNECTIONS {
            let (container, all_open) = (&container, &all_open);
            scope.spawn(move || {
                let mut stream = container.connect(server);
                all_open.wait();
                let stream = stream.as_mut().unwrap();
                let sent = Noise::new(seed).bytes(LENGTH);
                let mut received = vec![0; LENGTH];
                for (sent, received) in sent.chunks(10_000).zip(received.chunks_mut(10_000)) {
                    stream.write_all(sent).unwrap();
                    stream.read_exact(received).unwrap();
                }
                assert!(sent == received, "connection {seed}");
            });
        }
    });
}

fn slow_reader_costs_no_memory_and_loses_nothing(world: &World) {
    const LENGTH: u64 = 512 << 20;
    let container = world.container();
    let (address, sent) = server::source(world.listen(SERVER[0]), LENGTH);
    let before = resident_memory();
    let stream = container.connect(address).unwrap();

    let mut last = 0;
    eventually("the server is held back", || {
        thread::sleep(Duration::from_millis(500));
        let now = sent.load(Ordering::Relaxed);
        std::mem::replace(&mut last, now) == now && now > 0
    });
    assert!(last < LENGTH / 4, "{last} bytes were taken from the server, and nobody has read any");
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more for one connection");

    assert_eq!(count(stream), LENGTH);
}

/// Two networks with the same addresses, one of which lets nothing through.
fn networks_in_one_process_do_not_mix(world: &World) {
    let open = world.container();
    let closed = world.container_of(Network::builder().dialer(DenyDialer));
    let also_open = world.container();
    let server = server::exchange(world.listen(SERVER[0]), 1 << 20);
    thread::scope(|scope| {
        for container in [&open, &also_open] {
            scope.spawn(|| exchange(container.connect(server).unwrap(), 1 << 20, 1 << 20));
        }
        closed.connect(server).expect_err("it is denied");
    });
}

fn container_killed_amid_a_transfer_ends_its_connections(world: &World) {
    let listener = world.listen(SERVER[0]);
    let to = listener.local_addr().unwrap();
    let script = format!("exec cat /dev/zero >/dev/tcp/{}/{}", to.ip(), to.port());
    let mut container = world.container_process(Network::builder().build().unwrap(), &script);
    let mut stream = accept(&listener);
    stream.read_exact(&mut vec![0; 1 << 20]).unwrap();

    container.kill();
    // Whether it ends or is reset depends on what was on its way.
    let _ = Digest::receive(stream);
    eventually("no flow is left", || container.network.statistics().tcp.active == 0);
}

fn host_dropped_amid_a_transfer_resets_connections(world: &World) {
    let mut container = world.container();
    let (address, _) = server::source(world.listen(SERVER[0]), u64::MAX);
    let mut busy = container.connect(address).unwrap();
    busy.read_exact(&mut vec![0; 1 << 20]).unwrap();
    let mut idle = container.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();

    within(Duration::from_secs(2), || {
        container.drop_network();
        Digest::receive(busy).expect_err("a connection cut off is not a clean end");
        idle.read(&mut [0; 1]).expect_err("a connection cut off is not a clean end");
    });
}

fn deleted_device_ends_its_connections(world: &World) {
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let _client = container.connect(listener.local_addr().unwrap()).unwrap();
    let mut served = accept(&listener);
    assert!(container.command("ip").args(["link", "delete", "tun0"]).status().unwrap().success());
    within(Duration::from_secs(5), || served.read(&mut [0; 1])).expect_err("it has not ended, it is cut off");
    eventually("no connection is left", || container.network().statistics().tcp.active == 0);
}

fn dropped_network_is_gone_for_new_connections(world: &World) {
    let mut container = world.container();
    let listener = world.listen(SERVER[0]);
    let address = listener.local_addr().unwrap();
    container.connect(address).unwrap();
    accept(&listener);
    container.drop_network();
    container.connect_within(address, Duration::from_secs(2)).expect_err("nobody carries it");
    listener.set_nonblocking(true).unwrap();
    listener.accept().expect_err("it must not reach the server");
}

/// How many bytes there are to the end.
fn count(mut stream: TcpStream) -> u64 {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total,
            n => total += n as u64,
        }
    }
}
