//! Gateways that have to do with each other: those of one container's queues, and of two containers.

use std::net::{IpAddr, SocketAddr};
use std::rc::Weak;

use nsnet_stack::flow::Endpoints;
use nsnet_stack::icmp;
use nsnet_stack::packet::{Packet, Transport};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket};
use tokio::sync::watch;

use super::frames::Sender;
use super::packets::{Segment, segment};
use super::*;
use crate::addressing::leases::Member;
use crate::context::Limits;
use crate::gateway::members::{Members, Presence};
use crate::gateway::neighbours::Stay;

/// The addresses of the first container and of the second.
const FIRST: [&str; 2] = ["10.0.2.100", "fd00::100"];
const SECOND: [&str; 2] = ["10.0.2.101", "fd00::101"];

/// What a container sends over a connection that has been opened: on the queue of the connection, and on the other one.
pub(super) const ON_QUEUE: &[u8] = b"on its queue";
pub(super) const MOVED: &[u8] = b"on the other";

/// Few enough that a test reaches them.
pub(super) fn limits() -> Limits {
    Limits {
        tcp_flows: 2,
        udp_mappings: 2,
        echo_mappings: 1,
        udp_peers: 4,
        flows_between_containers: 1,
        ..Limits::default()
    }
}

/// Gateways on one thread. The first container's are the first.
pub(super) struct Several {
    pub(super) worlds: Vec<World>,
    admitted: Vec<(Presence, Stay)>,
}

impl Several {
    /// One container with one queue.
    pub(super) fn one() -> Self {
        let world = World::of(Bench::with(limits()), Isolation::Isolated, None);
        Self { worlds: vec![world], admitted: Vec::new() }
    }

    /// A container with two queues, and another one within reach.
    pub(super) fn open() -> Self {
        let first = Bench::with(limits());
        let benches = [first.further_queue(), first.neighbour(SECOND)];
        let [further, second] = benches;
        let mut siblings = Siblings::new(2).into_iter();
        let world = |bench, siblings| World::of(bench, Isolation::Open, siblings);
        let worlds =
            vec![world(first, siblings.next()), world(further, siblings.next()), world(second, None)];
        let members = Rc::<Members>::default();
        let neighbours = Neighbours::new(Rc::clone(&members), &limits());
        let admit = |world: &World| {
            let presence = members.enter(Member::new(), &world.gateway.protocols);
            world.gateway.meet(Rc::clone(&neighbours));
            (presence, neighbours.admit(&world.gateway.protocols))
        };
        let admitted = vec![admit(&worlds[0]), admit(&worlds[2])];
        Self { worlds, admitted }
    }

    /// Who sends to each gateway.
    pub(super) fn senders(isolation: Isolation) -> Vec<Sender> {
        let sender = |addresses, neighbour, port| Sender { addresses, neighbour, port };
        match isolation {
            Isolation::Isolated => vec![sender(FIRST, SECOND, 4000)],
            Isolation::Open => {
                vec![sender(FIRST, SECOND, 4000), sender(FIRST, SECOND, 5000), sender(SECOND, FIRST, 4000)]
            }
        }
    }

    /// Serves until `test` has ended, and lets the tasks that were ended go.
    pub(super) async fn serve(&mut self, test: impl AsyncFnOnce(&[World])) {
        let (end, ending) = watch::channel(());
        let [first, others @ ..] = &self.worlds[..] else { panic!("there is a gateway") };
        let serve = |world: &World| {
            let (gateway, mut ending) = (Rc::clone(&world.gateway), ending.clone());
            async move {
                let end = async { drop(ending.changed().await) };
                gateway.run(std::pin::pin!(end), future::pending(), drop).await;
            }
        };
        let others: Vec<_> = others.iter().map(|world| tokio::task::spawn_local(serve(world))).collect();
        let test = async {
            test(&self.worlds).await;
            drop(end);
        };
        first.serve(test).await;
        for other in others {
            other.await.unwrap();
        }
        self.admitted.clear();
        settle().await;
    }

    /// What must be gone when the network is.
    pub(super) fn traces(&self) -> Vec<(Weak<Context>, Weak<Gateway>)> {
        let trace = |world: &World| (Rc::downgrade(&world.bench.context), Rc::downgrade(&world.gateway));
        self.worlds.iter().map(trace).collect()
    }
}

/// The kernels of the containers read what has come for them, and answer some of it. Returns how many frames they sent.
pub(super) fn react(worlds: &[World]) -> usize {
    let mut answers = Vec::new();
    for (number, world) in worlds.iter().enumerate() {
        for packet in world.bench.received() {
            assert_sound(world, &packet);
            let has_queues = number < 2 && worlds.len() > 1;
            let Some((answer, is_moved)) = answer(&packet, has_queues) else { continue };
            let queue = if is_moved { 1 - number } else { number };
            answers.push((queue, answer));
        }
    }
    for (queue, answer) in &answers {
        worlds[*queue].send(answer);
    }
    answers.len()
}

/// A container receives IP packets for its own addresses only.
#[track_caller]
fn assert_sound(world: &World, packet: &[u8]) {
    let destination: IpAddr = if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum(), "{packet:?}");
        ip.dst_addr().into()
    } else {
        Ipv6Packet::new_checked(packet).unwrap().dst_addr().into()
    };
    let addressing = &world.bench.context.addressing;
    assert!(addressing.subnet_of_container(destination).is_some(), "{destination} is another's");
}

/// What a kernel says to a packet, and whether it says so on the other queue. It has a socket on every port but 53.
fn answer(packet: &[u8], has_queues: bool) -> Option<(Vec<u8>, bool)> {
    let verified = vnet::Header { checksum: vnet::Checksum::Verified, segmentation: None };
    let packet = Packet::parse(&verified, packet).ok()?;
    let Endpoints { source, destination } = packet.ends;
    let back = Endpoints { source: destination, destination: source };
    match packet.transport {
        Transport::Tcp(_) => answer_segment(back, &packet.bytes[packet.ip_header_len..], has_queues),
        Transport::Udp(_) if !is_container(source) => None,
        Transport::Udp(_) if destination.port() == 53 => {
            let (from, to) = (destination.ip(), source.ip());
            Some((icmp::error(from, to, HOP_LIMIT, icmp::Unreachable::Port.into(), packet.bytes), false))
        }
        Transport::Udp(_) => {
            Some((datagram(&back.source.to_string(), &back.destination.to_string(), b"!"), false))
        }
        Transport::Echo(datagram) => {
            let mut reply = vec![0; echo::length(source.ip(), datagram.bytes().len())];
            let headers = Headers {
                message: Echo::Reply,
                source: destination.ip(),
                destination: source.ip(),
                hop_limit: HOP_LIMIT,
                identifier: source.port(),
            };
            echo::write(&mut reply, headers, datagram.bytes());
            Some((reply, false))
        }
        Transport::Error(_) | Transport::Unknown => None,
    }
}

/// Opens connections, and sends and ends once they are open.
fn answer_segment(back: Endpoints, received: &[u8], has_queues: bool) -> Option<(Vec<u8>, bool)> {
    let received = TcpPacket::new_checked(received).unwrap();
    let sequence = u32::from_be_bytes(received.ack_number().0.to_be_bytes());
    let acknowledgment = Some(u32::from_be_bytes((received.seq_number() + 1).0.to_be_bytes()));
    let is_moved = has_queues && !received.dst_port().is_multiple_of(2);
    let payload = if is_moved { MOVED } else { ON_QUEUE };
    let (control, sequence, payload) = match (received.syn(), received.ack()) {
        (true, false) => (TcpControl::Syn, 7, &[][..]),
        (true, true) if received.dst_port().is_multiple_of(3) => (TcpControl::Fin, sequence, payload),
        (true, true) => (TcpControl::Psh, sequence, payload),
        (false, _) => return None,
    };
    Some((segment(back, Segment { control, sequence, acknowledgment, payload }), is_moved))
}

fn is_container(address: SocketAddr) -> bool {
    [FIRST, SECOND].as_flattened().contains(&&*address.ip().to_string())
}
