//! What the Dialer is asked about the traffic between containers, and what it need not be asked.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nsnet::host::{
    DenyDialer, DialError, Dialer, DirectDialer, FilterDialer, Flow, Member, Protocol, Service,
};

use super::{ADDRESSES, listen, open, pair, statistics, udp, v6};
use crate::world::{
    AT_ONCE, Container, PATIENCE, World, assert_errno, in_both_carriages, output, server, within,
};

in_both_carriages! {
    the_dialer_is_asked_once_for_each_flow,
    the_dialer_may_allow_one_direction_only,
    packets_wait_for_a_dialer_that_takes_its_time,
    a_sender_has_no_address_but_its_own,
    a_sender_does_not_choose_the_way,
}

fn the_dialer_is_asked_once_for_each_flow(world: &World) {
    let (told, flows) = mpsc::channel();
    let dialer = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        told.send(flow.clone()).unwrap();
        Ok(())
    });
    let [client, server] = pair(world, open().dialer(dialer));
    for address in ADDRESSES[1] {
        let tcp = server::tcp_echo(listen(&server, address));
        let mut stream = client.connect(tcp).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let udp = server::udp_echo(udp(&server, address));
        let socket = client.udp(udp);
        for _ in 0..3 {
            socket.send(b"hello").unwrap();
            socket.recv(&mut [0; 8]).unwrap();
        }
        output(client.command("ping").args(["-n", "-c", "2", "-i", "0.2", &address.to_string()]));
        for (protocol, source, destination) in [
            (Protocol::Tcp, stream.local_addr().unwrap(), tcp),
            (Protocol::Udp, socket.local_addr().unwrap(), udp),
            (Protocol::Icmp, (ADDRESSES[0][usize::from(address.is_ipv6())], 0).into(), (address, 0).into()),
        ] {
            let flow = flows.recv_timeout(PATIENCE).unwrap();
            assert_eq!((flow.protocol, flow.service), (protocol, Service::Container));
            assert_eq!((flow.destination, flow.target), (destination, destination));
            assert_eq!(flow.source.ip(), source.ip());
            if protocol != Protocol::Icmp {
                assert_eq!(flow.source, source);
            }
        }
    }
    assert_eq!(flows.try_recv(), Err(mpsc::TryRecvError::Empty), "nothing else was asked");
}

fn the_dialer_may_allow_one_direction_only(world: &World) {
    let [first, second] = ADDRESSES;
    let dialer = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        match (flow.destination.port(), first.contains(&flow.source.ip())) {
            (7, _) => Err(DialError::Refused),
            (_, true) => Ok(()),
            (_, false) => Err(DialError::Prohibited),
        }
    });
    let [one, other] = pair(world, open().dialer(dialer));
    for (first, second) in first.into_iter().zip(second) {
        one.connect(server::tcp_echo(listen(&other, second))).unwrap();
        let denied = other.connect(server::tcp_echo(listen(&one, first)));
        let expected = if first.is_ipv4() { Errno::EHOSTUNREACH } else { Errno::EACCES };
        assert_errno(denied, expected);
        assert_errno(one.connect((second, 7).into()), Errno::ECONNREFUSED);

        // What is allowed one way is answered; what the other side begins by itself is not.
        let (asker, answerer) = (udp(&one, first), udp(&other, second));
        asker.send_to(b"question", answerer.local_addr().unwrap()).unwrap();
        let (_, from) = answerer.recv_from(&mut [0; 16]).unwrap();
        answerer.send_to(b"answer", from).unwrap();
        asker.recv(&mut [0; 16]).unwrap();
        let stranger = udp(&other, second);
        stranger.send_to(b"unasked", from).unwrap();
        output(one.command("ping").args(["-n", "-c", "1", &second.to_string()]));
        let ping =
            other.command("ping").args(["-n", "-c", "1", "-W", "1", &first.to_string()]).output().unwrap();
        assert!(!ping.status.success(), "{ping:?}");
        asker.set_nonblocking(true).unwrap();
        assert_errno(asker.recv(&mut [0; 16]), Errno::EWOULDBLOCK);
    }
    let between = statistics(&one).between_containers;
    assert_eq!((between.opened, between.refused), (14, 8));
}

fn packets_wait_for_a_dialer_that_takes_its_time(world: &World) {
    let [client, server] = pair(world, open().dialer(Slow));
    for address in ADDRESSES[1] {
        let listener = listen(&server, address);
        within(AT_ONCE, || client.connect(listener.local_addr().unwrap())).unwrap();
        let receiver = udp(&server, address);
        let socket = client.udp(receiver.local_addr().unwrap());
        for number in 0..20u8 {
            socket.send(&[number]).unwrap();
        }
        for number in 0..20u8 {
            let mut buffer = [0xff];
            receiver.recv(&mut buffer).unwrap();
            assert_eq!(buffer, [number]);
        }
    }
}

fn a_sender_has_no_address_but_its_own(world: &World) {
    let network = Arc::new(open().build().unwrap());
    let [liar, victim, witness] =
        [(); 3].map(|()| Container::member(&network, world.carriage(), Member::new()));
    let listening = [udp(&victim, ADDRESSES[1][0]), udp(&victim, ADDRESSES[1][1])];
    let own = ADDRESSES[0];
    for (socket, source) in listening.iter().zip([Ipv4Addr::new(10, 0, 2, 102).into(), v6(0x102)]) {
        let to = socket.local_addr().unwrap();
        // The kernel sends from an address that the interface has, and nsnet did not give.
        let interface = if source.is_ipv4() { "10.0.2.102/32" } else { "fd00::102/128" };
        let mut ip = liar.command("ip");
        output(ip.args(["addr", "add", interface, "dev", "tun0"]).args(source.is_ipv6().then_some("nodad")));
        let lying = udp(&liar, source);
        lying.send_to(b"lie", to).unwrap();
        let honest = udp(&liar, own[usize::from(source.is_ipv6())]);
        honest.send_to(b"truth", to).unwrap();
        let mut buffer = [0; 8];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"truth"[..], honest.local_addr().unwrap()));
    }
    let statistics = network.statistics();
    assert_eq!((statistics.discarded.foreign_source, statistics.between_containers.opened), (2, 2));
    drop(witness);
}

fn a_sender_does_not_choose_the_way(world: &World) {
    let [client, _server] = pair(world, open());
    let [_, via] = ADDRESSES.map(|[v4, _]| v4.to_string());
    let mut traceroute = client.command("traceroute");
    traceroute.args(["-n", "-4", "-g", &via, "-q", "1", "-w", "0.5", "-f", "9", "-m", "9", "203.0.113.1"]);
    let traced = traceroute.output().unwrap();
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
    let statistics = statistics(&client);
    assert_eq!((statistics.discarded.protocol, statistics.between_containers.opened), (1, 0));
}

/// Allows everything after a while.
struct Slow;

#[async_trait]
impl Dialer for Slow {
    fn inner(&self) -> &dyn Dialer {
        &DenyDialer
    }

    async fn authorize(&self, _flow: &Flow) -> Result<(), DialError> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }
}
