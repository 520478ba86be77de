use std::net::SocketAddr;

use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

use super::*;
use crate::tcp::Control;

const FIRST: TcpSeqNumber = TcpSeqNumber(i32::MAX - 100_000);

fn key() -> FlowKey {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    FlowKey { container: address("10.0.2.100:4000"), peer: address("198.51.100.7:443") }
}

fn window(scales_windows: bool) -> Window {
    Window::new(&Segment { scales_windows, ..SYN })
}

const SYN: Segment = Segment {
    control: Control::Open,
    sequence: FIRST,
    acknowledgment: None,
    length: 1,
    payload: 0,
    max_segment_size: None,
    scales_windows: false,
};

/// The window field of an acknowledgment after it has passed, whose checksum must be right.
#[track_caller]
fn passed(window: &mut Window, expected: TcpSeqNumber, limit: TcpSeqNumber, field: u16) -> u16 {
    let mut packet = bare::acknowledgment(key(), TcpSeqNumber(7), expected, field);
    window.clamp(&mut packet, key(), limit);
    let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    tcp.window_len()
}

#[test]
fn a_window_ends_at_the_limit_and_stays() {
    let mut window = window(true);
    assert_eq!(passed(&mut window, FIRST, FIRST + 8000, u16::MAX), 1000);
    // The limit has moved back.
    assert_eq!(passed(&mut window, FIRST, FIRST + 800, u16::MAX), 1000);
    assert_eq!(passed(&mut window, FIRST + 4000, FIRST + 800, u16::MAX), 500);
    assert_eq!(passed(&mut window, FIRST + 8000, FIRST + 800, u16::MAX), 0);
}

#[test]
fn a_smaller_window_of_the_stack_is_left_alone() {
    let mut window = window(true);
    assert_eq!(passed(&mut window, FIRST, FIRST + 8000, 20), 20);
}

#[test]
fn without_scaling_the_field_counts_bytes() {
    let mut window = window(false);
    assert_eq!(passed(&mut window, FIRST, FIRST + 8000, u16::MAX), 8000);
    assert!(window.update(key(), FIRST + 8000, FIRST + 300_000).is_some());
    assert_eq!(passed(&mut window, FIRST, FIRST + 300_000, u16::MAX), u16::MAX);
    // The limit is far away, but this is all that can be said.
    assert!(window.update(key(), FIRST, FIRST + 300_000).is_none());
}

#[test]
fn the_window_of_a_syn_is_not_scaled() {
    let mut window = window(true);
    let mut packet = bare::acknowledgment(key(), TcpSeqNumber(7), FIRST, u16::MAX);
    let mut tcp = TcpPacket::new_unchecked(&mut packet[20..]);
    tcp.set_syn(true);
    window.clamp(&mut packet, key(), FIRST + 8000);
    assert_eq!(TcpPacket::new_unchecked(&packet[20..]).window_len(), 8000);
    // The SYN has a sequence number.
    let update = window.update(key(), FIRST + 8000, FIRST + 16_000).unwrap();
    let tcp = TcpPacket::new_unchecked(&update[20..]);
    assert_eq!((tcp.seq_number(), tcp.ack_number()), (TcpSeqNumber(8), FIRST + 8000));
}

#[test]
fn a_reset_says_nothing() {
    let mut window = window(true);
    let reset = Segment { acknowledgment: Some(TcpSeqNumber(9)), ..SYN };
    let mut packet = bare::reset_for(key(), &reset);
    let before = packet.clone();
    window.clamp(&mut packet, key(), FIRST);
    assert_eq!(packet, before);
    assert!(window.update(key(), FIRST, FIRST + 8000).is_none());
}

#[test]
fn an_update_is_due_when_the_window_has_doubled() {
    let mut window = window(true);
    passed(&mut window, FIRST, FIRST + 8000, u16::MAX);
    assert!(window.update(key(), FIRST, FIRST + 15_000).is_none());
    assert!(window.update(key(), FIRST, FIRST + 16_000).is_some());
    assert!(window.update(key(), FIRST + 8000, FIRST + 8000).is_none());
    assert!(window.update(key(), FIRST + 8000, FIRST + 8100).is_some());
    // Nobody is told of a window that the field cannot express.
    assert!(window.update(key(), FIRST + 8000, FIRST + 8007).is_none());
}

proptest! {
    #[test]
    fn the_edge_never_moves_back_and_an_update_is_not_repeated(
        scales in any::<bool>(),
        steps in prop::collection::vec((0..3000_usize, 0..RECEIVE_RING), 1..200),
    ) {
        let mut window = window(scales);
        let shift = if scales { SHIFT } else { 0 };
        let (mut expected, mut edge) = (FIRST, FIRST);
        for (received, room) in steps {
            // The container sends no more than it may.
            expected += received.min(ahead(expected, edge));
            let limit = expected + room;
            let field = passed(&mut window, expected, limit, u16::MAX);
            let told = expected + (usize::from(field) << shift);
            prop_assert!(distance(edge, told) >= 0);
            prop_assert!(distance(later(edge, limit), told) < 1 << shift);
            edge = told;
            prop_assert!(window.update(key(), expected, limit).is_none());
        }
    }
}
