//! What is left of a container that has ended: nothing.

use nsnet_stack::flow::Endpoints;
use smoltcp::wire::{IPV4_HEADER_LEN, TcpControl, TcpPacket};

use super::packets::{Segment, segment};
use super::several::react;
use super::*;
use crate::threads::commons::PIECE;

/// The SYN of a connection from this port of the container.
fn opening(port: u16) -> Vec<u8> {
    let ends = Endpoints { source: ([10, 0, 2, 100], port).into(), destination: PEER.parse().unwrap() };
    segment(ends, Segment { control: TcpControl::Syn, sequence: 1, acknowledgment: None, payload: &[] })
}

/// Connections that are open and that are being dialled, datagrams that are allowed and that wait, and the start of a
/// packet in fragments.
async fn busy(world: &World) {
    let sent = [
        opening(4000),
        datagram(CONTAINER, PEER, b"allowed"),
        opening(4001),
        datagram("10.0.2.100:4001", PEER, b"waits"),
    ];
    for (number, packet) in sent.iter().enumerate() {
        if number < 2 {
            world.bench.dialer.answer(Answer::Allow);
        }
        world.send(packet);
        settle().await;
    }
    assert_eq!(react(std::slice::from_ref(world)), 1, "a connection is open");
    let mut fragment = datagram(CONTAINER, PEER, &[7; 64]);
    let mut header = Ipv4Packet::new_unchecked(&mut fragment[..]);
    header.clear_flags();
    header.set_more_frags(true);
    header.fill_checksum();
    world.send(&fragment);
    settle().await;
    let statistics = world.bench.context.counters.read();
    assert_eq!((statistics.tcp.active, statistics.udp.active), (2, 2));
    assert!(world.gateway.fragments.borrow().deadline().is_some(), "a packet is incomplete");
    assert_eq!(statistics.discarded, Default::default());
}

#[test]
fn nothing_of_a_container_is_left_once_it_has_ended() {
    let world = World::new();
    let context = Rc::downgrade(&world.bench.context);
    let gateway = Rc::downgrade(&world.gateway);
    LocalSet::new().block_on(&runtime(), async {
        world.serve(busy(&world)).await;
        settle().await;
        let statistics = world.bench.context.counters.read();
        assert_eq!((statistics.tcp.active, statistics.udp.active), (0, 0));
        drop(world);
        assert_eq!((context.strong_count(), gateway.strong_count()), (0, 0));
    });
}

/// More than fit into a few pieces.
const MANY: u16 = 500;

/// Opens connections and UDP flows, as many as [`MANY`] says of each. Some are still being decided on.
async fn open_many(world: &World) {
    for port in 1..=MANY {
        if port % 10 != 0 {
            world.bench.dialer.answer(Answer::Allow);
            world.bench.dialer.answer(Answer::Allow);
        }
        world.send(&opening(port));
        world.send(&datagram(&format!("10.0.2.100:{port}"), PEER, b"datagram"));
        settle().await;
    }
    let statistics = world.bench.context.counters.read();
    assert_eq!((statistics.tcp.active, statistics.udp.active), (MANY.into(), MANY.into()));
}

/// How many RST the container has received since the last look.
fn resets(world: &World) -> usize {
    let packets = world.bench.received();
    packets.iter().filter(|packet| TcpPacket::new_unchecked(&packet[IPV4_HEADER_LEN..]).rst()).count()
}

/// Serves a gateway until `test` and its end are over. Returns the most flows that have ended between two turns of
/// another task.
async fn most_ended_in_one_turn(world: &World, test: impl Future<Output = ()>) -> u64 {
    let counters = &world.bench.context.counters;
    let active = || counters.read().tcp.active + counters.read().udp.active;
    let most = Cell::new(0);
    let other = async {
        let mut before = active();
        loop {
            tokio::task::yield_now().await;
            most.set(most.get().max(before.saturating_sub(active())));
            before = active();
        }
    };
    tokio::select! {
        () = world.serve(test) => {}
        () = other => {}
    }
    assert_eq!(active(), 0);
    most.get()
}

#[test]
fn others_have_their_turns_while_many_flows_end() {
    let world = World::new();
    LocalSet::new().block_on(&runtime(), async {
        let opened = async {
            open_many(&world).await;
            world.bench.received();
        };
        let most = most_ended_in_one_turn(&world, opened).await;
        assert!((1..=2 * PIECE as u64).contains(&most), "{most} flows ended in one turn");
        // Those that were open.
        assert_eq!(resets(&world), usize::from(MANY - MANY / 10));
    });
}

#[test]
fn a_container_whose_link_is_gone_is_sent_no_resets() {
    let world = World::new();
    LocalSet::new().block_on(&runtime(), async {
        let gone = async {
            open_many(&world).await;
            world.bench.received();
            world.bench.far.close();
            let counters = &world.bench.context.counters;
            while counters.read().tcp.active > 0 {
                tokio::task::yield_now().await;
            }
        };
        let most = most_ended_in_one_turn(&world, gone).await;
        assert!((1..=2 * PIECE as u64).contains(&most), "{most} flows ended in one turn");
        assert_eq!(resets(&world), 0);
    });
}

#[test]
fn resets_wait_a_little_for_a_link_that_is_full() {
    for reads_again in [true, false] {
        let world = World::new();
        LocalSet::new().block_on(&runtime(), async {
            let full = async {
                open_many(&world).await;
                world.bench.received();
                world.bench.far.set_full(true);
            };
            let reads = async {
                tokio::time::sleep(std::time::Duration::from_secs(1) / 10).await;
                world.bench.far.set_full(!reads_again);
                future::pending().await
            };
            tokio::select! {
                () = world.serve(full) => {}
                () = reads => {}
            }
            let expected = if reads_again { usize::from(MANY - MANY / 10) } else { 0 };
            assert_eq!(resets(&world), expected);
            assert_eq!(world.bench.context.counters.read().tcp.active, 0);
        });
    }
}
