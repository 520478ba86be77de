//! What is left of a container that has ended: nothing.

use nsnet_stack::flow::Endpoints;
use smoltcp::wire::TcpControl;

use super::packets::{Segment, segment};
use super::several::react;
use super::*;

/// Connections that are open and that are being dialled, datagrams that are allowed and that wait, and the start of a
/// packet in fragments.
async fn busy(world: &World) {
    let opening = |port| {
        let ends = Endpoints { source: ([10, 0, 2, 100], port).into(), destination: PEER.parse().unwrap() };
        segment(ends, Segment { control: TcpControl::Syn, sequence: 1, acknowledgment: None, payload: &[] })
    };
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
