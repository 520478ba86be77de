use super::*;

const BUDGET: usize = 256 << 20;
const FIRST: TcpSeqNumber = TcpSeqNumber(i32::MAX - 10);

/// Memory that nobody looks at.
struct Unused;

impl Memory for Unused {
    fn discard(&self, part: Range<usize>) {
        assert!(part == (0..RING) || part == (RING..2 * RING), "{part:?}");
    }
}

fn rings(budget: &Rc<Budget>) -> Rings<Unused> {
    Rings::new(Unused, FIRST, Rc::clone(budget))
}

/// A budget of which only so much is left.
fn left(bytes: usize) -> Rc<Budget> {
    Rc::new(Budget { total: BUDGET, used: Cell::new(BUDGET - bytes) })
}

fn used(budget: &Budget) -> usize {
    budget.used.get()
}

/// After this many bytes, all of which have been read.
fn drained(received: usize) -> Occupancy {
    Occupancy { received: u32::try_from(received).unwrap(), ..Occupancy::default() }
}

#[test]
fn a_stream_is_counted_up_to_the_ring_and_given_back_when_silent() {
    let budget = left(BUDGET);
    let mut rings = rings(&budget);
    let mut received = 0;
    while received < 5 * RING {
        assert!(rings.admit(drained(received), FIRST + received, 1000));
        received += 1000;
        assert_eq!(used(&budget), received.min(RING));
    }
    assert!(rings.reclaim(drained(received)));
    assert_eq!(used(&budget), 0);
    assert!(rings.admit(drained(received), FIRST + received, 1000));
    assert_eq!(used(&budget), 1000);
    drop(rings);
    assert_eq!(used(&budget), 0);
}

#[test]
fn what_is_out_of_order_or_unread_is_not_given_back() {
    let budget = left(BUDGET);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(0), FIRST, 3000));
    assert!(!rings.reclaim(drained(1000)));
    let unread = Occupancy { receive_queue: 1, ..drained(3000) };
    assert!(!rings.reclaim(unread));
    assert_eq!(used(&budget), 3000);
    assert!(rings.reclaim(drained(3000)));
}

#[test]
fn an_old_segment_costs_nothing() {
    let budget = left(BUDGET);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(5000), FIRST + 4000, 1000));
    assert_eq!(used(&budget), 0);
}

#[test]
fn what_lies_beyond_the_window_is_not_counted() {
    let budget = left(BUDGET);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(0), FIRST + (1 << 30), 1000));
    assert_eq!(used(&budget), 0);
    assert!(rings.reclaim(drained(0)));
}

#[test]
fn a_send_ring_that_is_never_empty_goes_round() {
    let budget = left(BUDGET);
    let mut rings = rings(&budget);
    let half = Occupancy { send_queue: RING / 2, ..Occupancy::default() };
    for _ in 0..5 {
        assert!(rings.send_space(half) >= RING / 2);
        rings.queued(RING / 2);
    }
    assert_eq!(used(&budget), RING);
}

#[test]
fn beyond_the_share_memory_is_for_whoever_comes_first() {
    let budget = left(0);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(0), FIRST, SHARE));
    let full = Occupancy { receive_queue: SHARE, ..drained(SHARE) };
    assert!(!rings.admit(full, FIRST + SHARE, 1));
    // Empty again, its memory is given back and used anew.
    assert!(rings.admit(drained(SHARE), FIRST + SHARE, 1));
    assert_eq!(used(&budget), BUDGET + 1);
}

#[test]
fn the_send_ring_is_filled_as_far_as_there_is_memory() {
    let budget = left(1000);
    let mut rings = rings(&budget);
    assert_eq!(rings.send_space(Occupancy::default()), SHARE);
    rings.queued(SHARE);
    let queued = |send_queue| Occupancy { send_queue, ..Occupancy::default() };
    assert_eq!(rings.send_space(queued(SHARE)), 0);
    // Acknowledged in part: the ring goes on behind, and there is no memory.
    assert_eq!(rings.send_space(queued(1)), 0);
    assert_eq!(rings.send_space(queued(0)), SHARE);
    // Another connection has ended.
    budget.used.set(used(&budget) - RING);
    assert_eq!(rings.send_space(queued(0)), RING);
    rings.queued(RING);
    assert!(rings.reclaim(queued(0)));
    assert_eq!(used(&budget), BUDGET - 1000 - RING);
}
