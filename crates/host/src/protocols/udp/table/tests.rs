use std::sync::Arc;

use nsnet_stack::udp::packet::{self, ChecksumMode};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Ipv4Packet};

use super::*;
use crate::context::Limits;
use crate::context::testing::{Answer, Bench, CONTAINER, PEER, Socket, locally, parsed, settle};
use crate::dialer::DialError;

struct World {
    bench: Bench,
    table: Rc<Table>,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::of(Bench::with(limits))
    }

    fn of(bench: Bench) -> Self {
        let table = Table::new(Kind::Udp, Rc::clone(&bench.context), Rc::new(bench.name_server()));
        Self { bench, table }
    }

    /// Sends a datagram as the container.
    fn send(&self, source: &str, destination: &str, payload: &[u8]) {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let mut bytes = vec![0; packet::length(source, payload.len())];
        packet::write(&mut bytes, source, destination, payload, ChecksumMode::Full);
        self.table.handle(&parsed(&bytes), Datagrams::one(payload));
        self.table.flush();
    }

    /// The payloads that the container has received, with their senders.
    fn received(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let read = |bytes: &Vec<u8>| {
            let packet = parsed(bytes);
            let nsnet_stack::packet::Transport::Udp(datagrams) = packet.transport else { panic!("not UDP") };
            (packet.ends.source, datagrams.bytes().to_vec())
        };
        self.bench.received().iter().map(read).collect()
    }

    /// Lets the container write to its peer, and returns the upstream socket.
    async fn mapped(&self) -> Arc<Socket> {
        self.bench.dialer.answer(Answer::Allow);
        self.send(CONTAINER, PEER, b"x");
        settle().await;
        self.bench.dialer.socket()
    }

    fn mappings(&self) -> usize {
        self.table.mappings.borrow().len()
    }
}

#[tokio::test(start_paused = true)]
async fn datagrams_wait_for_the_decision_and_leave_in_order() {
    locally(async || {
        let world = World::new();
        for payload in [b"one", b"two"] {
            world.send(CONTAINER, PEER, payload);
        }
        settle().await;
        assert_eq!(world.bench.dialer.questions(), ["udp 10.0.2.100:4000 -> 10.99.0.2:80"]);
        assert!(!world.table.is_settled());
        world.bench.dialer.answer(Answer::Allow);
        settle().await;
        world.send(CONTAINER, PEER, b"three");
        let sent = world.bench.dialer.socket().sent();
        let payloads: Vec<_> = sent.iter().map(|(_, payload)| &payload[..]).collect();
        assert_eq!(payloads, [&b"one"[..], b"two", b"three"]);
        assert!(world.table.is_settled());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_destination_is_decided_on_and_one_socket_serves_all() {
    locally(async || {
        let world = World::new();
        for peer in [PEER, "10.99.0.3:80", PEER] {
            world.bench.dialer.answer(Answer::Allow);
            world.send(CONTAINER, peer, b"x");
            settle().await;
        }
        assert_eq!(world.bench.dialer.questions().len(), 2);
        assert_eq!(world.bench.dialer.socket().sent().len(), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn only_peers_that_were_written_to_may_answer() {
    locally(async || {
        let world = World::new();
        let socket = world.mapped().await;
        socket.send("10.99.0.3:80", b"unasked");
        socket.send(PEER, b"answer");
        settle().await;
        assert_eq!(world.received(), [(PEER.parse().unwrap(), b"answer".to_vec())]);
        assert_eq!(world.bench.context.counters.read().discarded.unsolicited, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_once_and_forgotten() {
    locally(async || {
        let world = World::new();
        world.send(CONTAINER, PEER, b"one");
        world.send(CONTAINER, PEER, b"two");
        world.bench.dialer.answer(Answer::Refuse(DialError::Prohibited));
        settle().await;
        let [ref packet] = world.bench.received()[..] else { panic!("one error") };
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert_eq!((message.msg_type(), message.msg_code()), (Icmpv4Message::DstUnreachable, 13));
        world.send(CONTAINER, PEER, b"three");
        settle().await;
        assert_eq!(world.bench.dialer.questions().len(), 2, "it is asked anew");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_panics_has_answered() {
    locally(async || {
        let world = World::new();
        world.bench.dialer.answer(Answer::Panic);
        world.send(CONTAINER, PEER, b"x");
        settle().await;
        assert_eq!(world.bench.received().len(), 1, "an ICMP error");
        assert!(world.table.is_settled());
        assert_eq!(world.bench.context.counters.read().udp.active, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_panics_ends_its_mapping_and_no_other() {
    locally(async || {
        let world = World::new();
        world.mapped().await.break_down();
        world.bench.dialer.answer(Answer::Allow);
        world.send("10.0.2.100:4001", PEER, b"beside it");
        settle().await;
        assert_eq!(world.mappings(), 2);
        world.send(CONTAINER, PEER, b"x");
        settle().await;
        assert_eq!(world.mappings(), 1);
        world.send("10.0.2.100:4001", PEER, b"still here");
        assert_eq!(world.bench.context.counters.read().udp.active, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_mapping_ends_when_the_container_is_silent_whatever_comes_in() {
    locally(async || {
        let world = World::new();
        let socket = world.mapped().await;
        for _ in 0..17 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            socket.send(PEER, b"still here");
        }
        assert_eq!(world.mappings(), 1);
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(world.mappings(), 0);
        assert_eq!(world.bench.context.counters.read().udp.active, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_mapping_beyond_the_limit_is_not_made() {
    locally(async || {
        let world = World::with(Limits { udp_mappings: 1, ..Limits::default() });
        world.send("10.0.2.100:4000", PEER, b"x");
        world.send("10.0.2.100:4001", PEER, b"x");
        settle().await;
        assert_eq!(world.bench.dialer.questions().len(), 1);
        assert_eq!(world.bench.context.counters.read().udp.overflowed, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_link_delays_datagrams_and_keeps_their_order() {
    locally(async || {
        let world = World::new();
        let socket = world.mapped().await;
        world.bench.far.set_full(true);
        for answer in [b"1", b"2", b"3"] {
            socket.send(PEER, answer);
        }
        settle().await;
        assert!(world.received().is_empty());
        world.bench.far.set_full(false);
        settle().await;
        let payloads: Vec<_> = world.received().into_iter().map(|(_, payload)| payload).collect();
        assert_eq!(payloads, [b"1", b"2", b"3"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_lies_about_being_readable_costs_little() {
    locally(async || {
        let world = World::new();
        let socket = world.mapped().await;
        socket.lie();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let attempts = socket.attempts();
        assert!((100..300).contains(&attempts), "{attempts} in ten seconds");
        socket.send(PEER, b"after all");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(world.received().len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_needs_a_descriptor_until_its_mapping_ends() {
    locally(async || {
        let world = World::of(Bench::with_descriptors(1));
        let overflowed = || world.bench.context.counters.read().udp.overflowed;
        world.mapped().await;
        world.send("10.0.2.100:4001", PEER, b"too many");
        assert_eq!(overflowed(), 1);
        // Another peer of the same socket, and the resolver, which needs none.
        world.send(CONTAINER, "10.99.0.3:80", b"x");
        world.send("10.0.2.100:4001", "10.0.2.3:53", b"x");
        assert_eq!(overflowed(), 1);
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert_eq!(world.mappings(), 0);
        world.send("10.0.2.100:4001", PEER, b"x");
        assert_eq!(overflowed(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_flow_keeps_no_descriptor() {
    locally(async || {
        let world = World::of(Bench::with_descriptors(1));
        for port in 4000..4010 {
            world.send(&format!("10.0.2.100:{port}"), PEER, b"x");
            world.bench.dialer.answer(Answer::Refuse(DialError::Prohibited));
            settle().await;
        }
        assert_eq!(world.bench.context.counters.read().udp.overflowed, 0);
        assert_eq!(world.bench.dialer.questions().len(), 10);
    })
    .await;
}
