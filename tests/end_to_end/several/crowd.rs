//! Containers that come and go, that are many, and that differ.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, mpsc};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nsnet::host::{DirectDialer, FilterDialer, Flow, Member, Network, Offload};

use super::{ADDRESSES, iperf3, listen, open, pair, statistics, udp, v6};
use crate::world::{
    Container, Noise, PATIENCE, SERVER, World, accept, assert_errno, eventually, in_both_carriages, once,
    output, server,
};

in_both_carriages! {
    containers_find_each_other_by_name,
    a_segment_of_no_connection_is_answered_with_rst,
    a_container_that_goes_leaves_nothing_to_who_has_its_address_next,
    a_container_killed_under_load_takes_no_other_along [120],
    fifty_containers_reach_each_other [120],
    containers_with_several_queues_reach_each_other,
}

once! {
    a_container_without_offload_meets_one_with,
    names_and_addresses_belong_to_one_container_at_a_time,
}

fn containers_find_each_other_by_name(world: &World) {
    for (builder, is_open) in [(open(), true), (Network::builder(), false)] {
        // What the network does not know, the world knows.
        let elsewhere = Ipv4Addr::new(203, 0, 113, 7);
        let names = server::dns(world.dns(SERVER[usize::from(is_open)]), elsewhere);
        let network = Arc::new(builder.dns_servers(vec![names]).build().unwrap());
        let web = Container::member(&network, world.carriage(), Member::named("Web"));
        let client = Container::member(&network, world.carriage(), Member::new());
        let dig = |arguments: &[&str]| {
            let mut dig = client.command("dig");
            output(dig.args(["@10.0.2.3", "+short", "+tries=1"]).args(arguments)).trim().to_owned()
        };
        for transport in ["+notcp", "+tcp"] {
            if is_open {
                assert_eq!(dig(&[transport, "web", "A"]), "10.0.2.100");
                assert_eq!(dig(&[transport, "WEB", "AAAA"]), "fd00::100");
                assert_eq!(dig(&[transport, "-x", "10.0.2.100"]), "web.");
            } else {
                assert_eq!(dig(&[transport, "web", "A"]), elsewhere.to_string());
            }
        }
        web.close();
        eventually("the name is free", || dig(&["web", "A"]) == elsewhere.to_string());
    }
}

fn a_segment_of_no_connection_is_answered_with_rst(world: &World) {
    let network = Arc::new(open().build().unwrap());
    let client = Container::member(&network, world.carriage(), Member::new());
    let server = Container::member(&network, world.carriage(), Member::new());
    let listener = listen(&server, ADDRESSES[1][0]);
    let mut stream = client.connect(listener.local_addr().unwrap()).unwrap();
    let _served = accept(&listener);
    server.close();
    eventually("the flow is forgotten", || network.statistics().between_containers.active == 0);
    stream.write_all(b"anybody?").unwrap();
    assert_errno(stream.read(&mut [0; 8]), Errno::ECONNRESET);
    assert_errno(client.connect(listener.local_addr().unwrap()), Errno::EHOSTUNREACH);
}

fn a_container_that_goes_leaves_nothing_to_who_has_its_address_next(world: &World) {
    let (told, flows) = mpsc::channel();
    let dialer = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        told.send(flow.clone()).unwrap();
        Ok(())
    });
    let network = Arc::new(open().dialer(dialer).build().unwrap());
    let client = Container::member(&network, world.carriage(), Member::new());
    let server = Container::member(&network, world.carriage(), Member::named("db"));
    let to = SocketAddr::new(ADDRESSES[1][0], 4000);
    let socket = client.udp(to);
    let at = |container: &Container| {
        let socket = container.inside(|| UdpSocket::bind(to)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let received = at(&server);
    socket.send(b"to the first").unwrap();
    received.recv(&mut [0; 16]).unwrap();
    server.close();
    let taken = Member::named("DB").ipv4(Ipv4Addr::new(10, 0, 2, 101));
    let mut again = None;
    eventually("address and name are free", || {
        again = network.attach_fd(taken.clone()).ok();
        again.is_some()
    });
    drop(again);
    let mut next = None;
    eventually("they are free again", || {
        next = network.attach_fd(taken.clone()).ok();
        next.is_some()
    });
    let (attachment, fd) = next.unwrap();
    let next = Container::with(Arc::clone(&network), world.carriage(), attachment, fd);
    let received = at(&next);
    socket.send(b"to the next").unwrap();
    received.recv(&mut [0; 16]).unwrap();
    let asked: Vec<_> = flows.try_iter().map(|flow| flow.destination).collect();
    assert_eq!(asked, [to, to], "the permission was the first one's");
}

fn a_container_killed_under_load_takes_no_other_along(world: &World) {
    let network = open().build().unwrap();
    let script = "while :; do exec 3<>/dev/tcp/10.0.2.101/4000 && cat /dev/zero >&3; done";
    let mut killed = world.container_process(network, script);
    let [server, client] =
        [(); 2].map(|()| Container::member(&killed.network, world.carriage(), Member::new()));
    let sink = server.inside(|| TcpListener::bind((ADDRESSES[1][0], 4000))).unwrap();
    let mut flooded = accept(&sink);
    flooded.read_exact(&mut [0; 65_536]).unwrap();
    let echo = server::tcp_echo(listen(&server, ADDRESSES[1][0]));
    let mut stream = client.connect(echo).unwrap();
    killed.kill();
    killed.close();
    eventually("only the other flow is left", || killed.network.statistics().between_containers.active == 1);
    stream.write_all(b"still here").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    client.connect(echo).unwrap();
}

fn fifty_containers_reach_each_other(world: &World) {
    let network = Arc::new(open().build().unwrap());
    let containers: Vec<_> =
        (0..50).map(|_| Container::member(&network, world.carriage(), Member::new())).collect();
    let address = |number: u8| [Ipv4Addr::new(10, 0, 2, 100 + number).into(), v6(0x100 + u16::from(number))];
    for (number, container) in (0..).zip(&containers) {
        let next = (number + 1) % 50;
        for (to, from) in address(next).into_iter().zip(address(number)) {
            let listener = listen(&containers[usize::from(next)], to);
            let mut stream = container.connect(listener.local_addr().unwrap()).unwrap();
            let mut served = accept(&listener);
            assert_eq!(served.peer_addr().unwrap().ip(), from);
            stream.write_all(&[number; 1000]).unwrap();
            let mut buffer = [0xff; 1000];
            served.read_exact(&mut buffer).unwrap();
            assert_eq!(buffer, [number; 1000]);
        }
    }
    assert_eq!(network.statistics().between_containers.opened, 100);
}

fn containers_with_several_queues_reach_each_other(world: &World) {
    let [client, server] = pair(world, open().queues(2));
    for address in ADDRESSES[1] {
        let echo = server::tcp_echo(listen(&server, address));
        // Enough for both queues.
        for number in 0..32u8 {
            let mut stream = client.connect(echo).unwrap();
            stream.write_all(&[number; 5000]).unwrap();
            stream.read_exact(&mut [0; 5000]).unwrap();
        }
        let free =
            SocketAddr::new(if address.is_ipv4() { Ipv4Addr::new(10, 0, 2, 77).into() } else { v6(0x77) }, 9);
        for _ in 0..8 {
            assert_errno(client.connect(free), Errno::EHOSTUNREACH);
        }
    }
    assert_eq!(statistics(&client).between_containers.opened, 64);
    assert_eq!(statistics(&client).tcp.opened, 0);
}

fn a_container_without_offload_meets_one_with(world: &World) {
    let network = Arc::new(open().build().unwrap());
    let able = Container::member(&network, world.carriage(), Member::new());
    let plain = Container::without_offload(&network);
    assert_eq!((able.ready().offload.tso4, plain.ready().offload), (true, Offload::NONE));
    for (one, other, addresses) in [(&able, &plain, ADDRESSES[1]), (&plain, &able, ADDRESSES[0])] {
        for address in addresses {
            println!("{}", iperf3(other.command("iperf3"), one.command("iperf3"), address, &["-P", "2"]));
            let echo = server::udp_echo(udp(other, address));
            let socket = one.udp(echo);
            for length in [1, 1472, 8000, 60_000] {
                let sent = Noise::new(1).bytes(length);
                socket.send(&sent).unwrap();
                let mut buffer = vec![0; 65_536];
                let received = socket.recv(&mut buffer).unwrap();
                assert!(buffer[..received] == sent, "{length} bytes to {address}");
            }
            setsockopt(&socket, sockopt::UdpGsoSegment, &100).unwrap();
            let sent = Noise::new(2).bytes(1050);
            socket.send(&sent).unwrap();
            let mut received = Vec::new();
            while received.len() < sent.len() {
                let mut buffer = [0; 200];
                let length = socket.recv(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..length]);
            }
            assert!(received == sent);
        }
    }
    let discarded = network.statistics().discarded;
    assert_eq!((discarded.malformed, discarded.fragments), (0, 0));
}

fn names_and_addresses_belong_to_one_container_at_a_time(world: &World) {
    let network = Arc::new(open().build().unwrap());
    let _db = Container::member(&network, world.carriage(), Member::named("db"));
    let refused = |member| network.attach_fd(member).unwrap_err().to_string();
    assert!(refused(Member::named("DB")).contains("the name db is taken"));
    assert!(refused(Member::named("d b")).contains("\"d b\""));
    assert!(refused(Member::new().ipv4(Ipv4Addr::new(10, 0, 2, 100))).contains("10.0.2.100 is taken"));
}
