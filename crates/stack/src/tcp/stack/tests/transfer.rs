//! Bytes in both directions, over a good wire and a bad one.

use proptest::prelude::*;

use super::*;

#[test]
fn bytes_arrive_in_both_directions() {
    for (source, destination) in [("10.0.2.100:4000", "10.99.0.2:80"), ("[fd00::100]:4000", "[fd99::2]:80")] {
        let mut world = World::with(source, destination, PLAIN, Faults::default(), 3);
        let (up, down) = (pattern(300_000, 1), pattern(200_000, 2));
        assert_eq!(world.exchange(&up, &down), (up, down));
    }
}

#[test]
fn an_idle_connection_has_no_timer() {
    let mut world = World::connected();
    assert_eq!(world.stack().poll_at(Instant::ZERO), None);
    assert!(!world.stack().awaits_container());
}

#[test]
fn with_segmentation_a_packet_is_larger_than_the_mss() {
    for (source, destination) in [("10.0.2.100:4000", "10.99.0.2:80"), ("[fd00::100]:4000", "[fd99::2]:80")] {
        let capabilities = Capabilities { max_packet: 65535, segmentation: true, checksum: false };
        let mut world = World::with(source, destination, capabilities, Faults::default(), 3);
        world.settle();
        let data = pattern(32 << 10, 5);
        world.stack().send(|space| {
            space[..data.len()].copy_from_slice(&data);
            (data.len(), ())
        });
        let (stack, now) = (world.stack.as_mut().unwrap(), world.now);
        stack.poll_transmit(now, &mut world.to_client);
        assert!(world.to_client.longest > 16 << 10, "{}", world.to_client.longest);
    }
}

#[test]
fn the_receive_window_bounds_what_is_taken_in() {
    let mut world = World::connected();
    for _ in 0..200 {
        let data = pattern(8192, 9);
        if world.client().can_send() {
            world.client().send_slice(&data).unwrap();
        }
        world.settle();
        if !world.advance() {
            break;
        }
    }
    assert!(world.stack().socket().recv_queue() <= 64 << 10);
    assert!(world.client().send_queue() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_in_order_over_a_bad_wire(
        seed in 1u64..,
        loss in 0u64..15, duplication in 0u64..20, reordering in 0u64..30,
        up in 0usize..60_000, down in 0usize..60_000,
    ) {
        let faults = Faults { loss, duplication, reordering };
        let mut world = World::with("10.0.2.100:4000", "10.99.0.2:80", PLAIN, faults, seed);
        let (up, down) = (pattern(up, 1), pattern(down, 2));
        let (got_up, got_down) = world.exchange(&up, &down);
        prop_assert_eq!(got_up.len(), up.len());
        prop_assert_eq!(got_down.len(), down.len());
        prop_assert!(got_up == up && got_down == down);
    }

    #[test]
    fn any_packet_is_survived(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20),
        flags in any::<u8>(), offset in 5u8..8,
    ) {
        let mut world = World::connected();
        for mut bytes in packets {
            // Steer some of the noise past the outer checks.
            if bytes.len() >= 40 {
                bytes[0] = 0x45;
                let length = u16::try_from(bytes.len()).unwrap();
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[6..8].fill(0);
                bytes[9] = 6;
                bytes[12..16].copy_from_slice(&[10, 0, 2, 100]);
                bytes[16..20].copy_from_slice(&[10, 99, 0, 2]);
                bytes[20..24].copy_from_slice(&[0x0f, 0xa0, 0, 80]);
                bytes[32] = offset << 4;
                bytes[33] = flags;
            }
            let now = world.now;
            let stack = world.stack.as_mut().unwrap();
            stack.handle_packet(now, &bytes, &mut world.to_client);
            stack.poll_transmit(now, &mut world.to_client);
        }
    }
}
