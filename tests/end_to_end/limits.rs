//! Limits that the embedder lowers. Those of published ports are in `publish_limits`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{Member, Network};

use crate::world::{
    Container, DNS, SERVER, World, assert_errno, eventually, in_both_carriages, receive, server,
};

in_both_carriages! {
    datagrams_to_one_destination_too_many_are_dropped,
    a_dns_connection_too_many_is_refused,
    a_connection_between_containers_too_many_is_not_answered,
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
