//! Handshakes that the container begins.

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::*;

#[test]
fn nothing_is_said_before_the_syn_is_fed() {
    let mut world = World::new();
    let mut stack = TcpStack::listen(world.key, socket(4096), PLAIN, 7, Instant::ZERO);
    assert!(!stack.poll_transmit(Instant::ZERO, &mut world.to_client));
    assert_eq!(stack.standing(), Standing::Alive);
}

#[test]
fn another_seed_gives_another_sequence_number() {
    let sequence = |seed| {
        let mut world = World::with("10.0.2.100:4000", "10.99.0.2:80", PLAIN, Faults::default(), 1);
        world.seed = seed;
        while world.to_client.packets.is_empty() {
            assert!(world.step_without_delivery());
        }
        let packet = world.to_client.packets.pop_front().unwrap();
        TcpPacket::new_checked(&packet[20..]).unwrap().seq_number()
    };
    let numbers: Vec<TcpSeqNumber> = (1..20).map(sequence).collect();
    for (at, number) in numbers.iter().enumerate() {
        assert!(!numbers[..at].contains(number));
    }
}

#[test]
fn a_client_that_resets_its_handshake_is_noticed() {
    let mut world = World::new();
    while world.stack.is_none() {
        world.step_without_delivery();
    }
    world.client().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Reset);
}

#[test]
fn a_syn_that_is_not_taken_in_leaves_it_listening() {
    let mut world = World::new();
    let mut stack = TcpStack::listen(world.key, socket(4096), PLAIN, 7, Instant::ZERO);
    stack.handle_packet(Instant::ZERO, &[0x45; 40], &mut world.to_client);
    assert!(stack.is_listening());
    assert!(stack.awaits_container());
    assert!(!stack.is_receive_finished());
}

#[test]
fn a_client_that_never_acknowledges_is_waited_for() {
    let mut world = World::new();
    while world.to_client.packets.is_empty() {
        world.step_without_delivery();
    }
    assert!(world.stack().awaits_container());
}
