//! The ends of a connection: FIN, RST, and the socket afterwards.

use super::*;

#[test]
fn the_clients_fin_leaves_the_other_direction_open() {
    let mut world = World::connected();
    world.client().close();
    world.settle();
    assert!(world.stack().is_receive_finished());
    assert!(world.stack().can_send());
    world.stack().send(|space| {
        space[..4].copy_from_slice(b"late");
        (4, ())
    });
    world.settle();
    assert_eq!(world.client().recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap(), b"late");
}

#[test]
fn our_fin_leaves_the_other_direction_open() {
    let mut world = World::connected();
    world.stack().close();
    world.settle();
    assert!(!world.client().may_recv());
    assert!(world.stack().awaits_container());
    world.client().send_slice(b"late").unwrap();
    world.settle();
    assert_eq!(world.stack().receive(|bytes| (bytes.len(), bytes.to_vec())), b"late");
}

#[test]
fn who_closes_first_rests() {
    let mut world = World::connected();
    world.stack().close();
    world.settle();
    world.client().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::TimeWait);

    let mut world = World::connected();
    world.client().close();
    world.settle();
    world.stack().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
}

#[test]
fn what_was_received_outlives_the_connection() {
    let mut world = World::connected();
    world.client().send_slice(b"still there").unwrap();
    world.client().close();
    world.settle();
    world.stack().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
    assert!(!world.stack().is_receive_finished());
    assert_eq!(world.stack().receive(|bytes| (bytes.len(), bytes.to_vec())), b"still there");
    assert!(world.stack().is_receive_finished());
}

#[test]
fn the_clients_reset_is_not_an_end() {
    let mut world = World::connected();
    world.client().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Reset);
}

#[test]
fn our_reset_reaches_the_client() {
    let mut world = World::connected();
    world.stack().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
    assert_eq!(world.client().state(), tcp::State::Closed);
}

#[test]
fn a_socket_serves_again() {
    let mut world = World::connected();
    world.client().send_slice(b"old").unwrap();
    world.settle();
    let used = world.stack.take().unwrap().take_socket();
    let fresh = World::new();
    let mut stack = TcpStack::listen(fresh.key, used, PLAIN, 11, Instant::ZERO);
    assert!(!stack.can_receive());
    assert!(!stack.poll_transmit(Instant::ZERO, &mut Wire::default()));
}
