//! Several containers on one network: alone by default, within reach of each other if the builder says so.

mod crowd;
mod policy;
mod statistics;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nsnet::host::{Member, Network, NetworkBuilder, Offload, Statistics};

use crate::world::{
    Container, GATEWAY, Noise, PATIENCE, World, accept, assert_errno, eventually, in_both_carriages, iperf3,
    output, server,
};

in_both_carriages! {
    containers_are_isolated_by_default,
    containers_reach_each_other_over_tcp,
    curl_fetches_a_page_from_another_container,
    datagrams_travel_between_containers_with_offload,
    datagrams_travel_between_containers_without_offload,
    a_closed_port_of_another_container_refuses,
    ping_reaches_another_container,
    the_gateway_is_one_hop,
    nobody_lives_at_a_free_address,
    iperf3_runs_between_containers [120],
}

fn containers_are_isolated_by_default(world: &World) {
    let [client, server] = pair(world, Network::builder());
    for address in ADDRESSES[1] {
        let listener = listen(&server, address);
        let to = listener.local_addr().unwrap();
        assert_errno(client.connect(to), Errno::EHOSTUNREACH);
        client.udp(to).send(b"anybody?").unwrap();
    }
    eventually("the datagrams are refused", || statistics(&client).udp.refused == 2);
    assert_eq!(statistics(&client).between_containers.opened, 0);
}

fn containers_reach_each_other_over_tcp(world: &World) {
    const LENGTH: usize = 8 << 20;
    let [client, server] = pair(world, open());
    for (address, own) in ADDRESSES[1].into_iter().zip(ADDRESSES[0]) {
        let listener = listen(&server, address);
        let mut stream = client.connect(listener.local_addr().unwrap()).unwrap();
        let mut served = accept(&listener);
        assert_eq!(served.peer_addr().unwrap(), SocketAddr::new(own, stream.local_addr().unwrap().port()));
        let sent = Noise::new(1).bytes(LENGTH);
        let received = thread::scope(|scope| {
            let echoing = scope.spawn(move || {
                let mut received = Vec::new();
                served.read_to_end(&mut received).unwrap();
                served.write_all(&received).unwrap();
            });
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            echoing.join().unwrap();
            received
        });
        assert!(received == sent);
    }
    let statistics = statistics(&client);
    assert_eq!((statistics.between_containers.opened, statistics.between_containers.active), (2, 0));
    assert_eq!(statistics.tcp.opened, 0, "nothing is terminated");
    assert_eq!(statistics.discarded.malformed, 0);
}

fn curl_fetches_a_page_from_another_container(world: &World) {
    let [client, server] = pair(world, open());
    for address in ADDRESSES[1] {
        let page = server::http(listen(&server, address), "a page\n");
        let said = output(client.command("curl").args(["-sS", "-m", "10"]).arg(format!("http://{page}/")));
        assert_eq!(said, "a page\n");
    }
}

fn datagrams_travel_between_containers_with_offload(world: &World) {
    datagrams_travel(world, open().offload(Offload::ALL));
}

fn datagrams_travel_between_containers_without_offload(world: &World) {
    datagrams_travel(world, open().mtu(1500).offload(Offload::NONE));
}

#[track_caller]
fn datagrams_travel(world: &World, builder: NetworkBuilder) {
    let [client, server] = pair(world, builder);
    for address in ADDRESSES[1] {
        let echo = server::udp_echo(udp(&server, address));
        let socket = client.udp(echo);
        for length in [0, 1, 1473, 8000, 60_000] {
            let sent = Noise::new(1).bytes(length);
            socket.send(&sent).unwrap();
            let mut buffer = vec![0; 65_536];
            let received = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..received] == sent, "{length} bytes to {address}");
        }
    }
    let statistics = statistics(&client);
    assert_eq!((statistics.between_containers.opened, statistics.udp.opened), (2, 0));
    assert_eq!(statistics.discarded.malformed, 0);
}

fn a_closed_port_of_another_container_refuses(world: &World) {
    let [client, _server] = pair(world, open());
    for address in ADDRESSES[1] {
        assert_errno(client.connect((address, 9).into()), Errno::ECONNREFUSED);
        // The kernel's own word, which quotes an allowed flow.
        let socket = client.udp((address, 9).into());
        socket.send(b"anybody?").unwrap();
        assert_errno(socket.recv(&mut [0; 8]), Errno::ECONNREFUSED);
    }
}

fn ping_reaches_another_container(world: &World) {
    for builder in [open(), open().mtu(1500).offload(Offload::NONE)] {
        let [client, _server] = pair(world, builder);
        for address in ADDRESSES[1] {
            for size in ["56", "8000"] {
                let address = address.to_string();
                let said = output(
                    client
                        .command("ping")
                        .args(["-n", "-c", "3", "-i", "0.2", "-s", size, "-W", "5", &address]),
                );
                assert!(said.contains("3 received"), "{said}");
                // One router: the gateway.
                assert!(said.contains("ttl=63"), "{said}");
            }
        }
    }
}

fn the_gateway_is_one_hop(world: &World) {
    let [client, _server] = pair(world, open());
    for (address, gateway) in ADDRESSES[1].into_iter().zip(GATEWAY) {
        let mut ping = client.command("ping");
        ping.args(["-n", "-c", "1", "-t", "1", "-W", "5", &address.to_string()]);
        let said = String::from_utf8(ping.output().unwrap().stdout).unwrap();
        assert!(said.contains(&format!("From {gateway}")), "{said}");
    }
    // The error leaves first.
    eventually("both are counted", || statistics(&client).discarded.hop_limit == 2);
}

fn nobody_lives_at_a_free_address(world: &World) {
    let [client, _server] = pair(world, open());
    for free in [Ipv4Addr::new(10, 0, 2, 77).into(), v6(0x77)] {
        assert_errno(client.connect(SocketAddr::new(free, 9)), Errno::EHOSTUNREACH);
    }
}

fn iperf3_runs_between_containers(world: &World) {
    let [client, server] = pair(world, open());
    for address in ADDRESSES[1] {
        for options in [&["-P", "1"][..], &["-P", "8"], &["-R"], &["-u", "-b", "200M"]] {
            let said = iperf3(server.command("iperf3"), client.command("iperf3"), address, options);
            println!("{options:?}: {said}");
        }
    }
    let statistics = statistics(&client);
    assert_eq!(statistics.tcp.opened, 0);
    assert_eq!((statistics.discarded.malformed, statistics.discarded.unsolicited), (0, 0));
}

/// Addresses of the first containers of a network, and the second.
const ADDRESSES: [[IpAddr; 2]; 2] = [
    [IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100)), v6(0x100)],
    [IpAddr::V4(Ipv4Addr::new(10, 0, 2, 101)), v6(0x101)],
];

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

fn open() -> NetworkBuilder {
    Network::builder().containers_reach_each_other()
}

#[track_caller]
fn pair(world: &World, builder: NetworkBuilder) -> [Container; 2] {
    let network = Arc::new(builder.build().unwrap());
    [(); 2].map(|()| Container::member(&network, world.carriage(), Member::new()))
}

fn statistics(container: &Container) -> Statistics {
    container.network().statistics()
}

#[track_caller]
fn listen(container: &Container, at: IpAddr) -> TcpListener {
    container.inside(|| TcpListener::bind((at, 0))).unwrap()
}

#[track_caller]
fn udp(container: &Container, at: IpAddr) -> UdpSocket {
    let socket = container.inside(|| UdpSocket::bind((at, 0))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}
