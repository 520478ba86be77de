//! Limits that the embedder lowers. Those of published ports are in `publish_limits`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{Member, Network};

use crate::world::{
    Container, DNS, SERVER, World, accept, assert_errno, eventually, in_both_carriages, receive,
    resident_memory, server,
};

in_both_carriages! {
    datagrams_to_one_destination_too_many_are_dropped,
    a_dns_connection_too_many_is_refused,
    a_connection_between_containers_too_many_is_not_answered,
    stalled_connections_stay_within_the_memory_and_then_complete [120],
}

fn datagrams_to_one_destination_too_many_are_dropped(world: &World) {
    let container = world.container_of(Network::builder().max_udp_peers(2));
    let [first, second, third] = [(); 3].map(|()| server::udp_echo(world.udp(SERVER[0])));
    let socket = container.udp_unconnected(SERVER[0]);
    for allowed in [first, second] {
        socket.send_to(b"hello", allowed).unwrap();
        assert_eq!(receive(&socket).unwrap(), b"hello");
    }
    socket.send_to(b"too many", third).unwrap();
    eventually("it is dropped", || container.statistics().udp.overflowed == 1);
    socket.send_to(b"again", first).unwrap();
    assert_eq!(receive(&socket).unwrap(), b"again");
}

fn a_dns_connection_too_many_is_refused(world: &World) {
    let container = world.container_of(Network::builder().max_dns_connections(1));
    let resolver = SocketAddr::new(DNS[0], 53);
    let first = container.connect(resolver).unwrap();
    assert_errno(container.connect(resolver), Errno::ECONNREFUSED);
    drop(first);
    eventually("the first one's place is free", || container.connect(resolver).is_ok());
}

fn a_connection_between_containers_too_many_is_not_answered(world: &World) {
    let builder = Network::builder().containers_reach_each_other().max_flows_between_containers(1);
    let network = Arc::new(builder.build().unwrap());
    let [client, server] = [(); 2].map(|()| Container::member(&network, world.carriage(), Member::new()));
    let listener = server.inside(|| TcpListener::bind("10.0.2.101:0")).unwrap();
    let server = server::tcp_echo(listener);
    let echo = |mut stream: &TcpStream| {
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    };
    let first = client.connect(server).unwrap();
    echo(&first);
    let second = client.connect_within(server, Duration::from_millis(500));
    assert_eq!(second.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(client.statistics().between_containers.overflowed >= 1);
    echo(&first);
}

/// Each connection carries a megabyte both ways, and at first nobody reads.
fn stalled_connections_stay_within_the_memory_and_then_complete(world: &World) {
    const CONNECTIONS: usize = 60;
    const MEMORY: usize = 4 << 20;
    /// For what is not a ring, such as the stacks of the test's threads.
    const BESIDES: u64 = 12 << 20;
    let container = world.container_of(Network::builder().max_tcp_flows(64).ring_memory(MEMORY));
    let listener = world.listen(SERVER[0]);
    let server = listener.local_addr().unwrap();
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|byte| byte.to_le_bytes()[1]).collect();
    let read = |mut stream: &TcpStream| {
        let mut received = vec![0; 64 << 10];
        for expected in bytes.chunks(received.len()) {
            stream.read_exact(&mut received).unwrap();
            assert!(received == expected);
        }
    };
    let before = resident_memory();
    let connections: Vec<_> =
        (0..CONNECTIONS).map(|_| (container.connect(server).unwrap(), accept(&listener))).collect();
    let ends: Vec<&TcpStream> = connections.iter().flat_map(|(client, served)| [client, served]).collect();
    thread::scope(|scope| {
        for end in &ends {
            scope.spawn(|| (&**end).write_all(&bytes).unwrap());
        }
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(50));
            let more = resident_memory().saturating_sub(before);
            assert!(more <= u64::try_from(MEMORY).unwrap() + BESIDES, "{more} bytes");
        }
        for end in &ends {
            scope.spawn(|| read(end));
        }
    });
}
