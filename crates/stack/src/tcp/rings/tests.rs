use std::cell::Cell;

use proptest::prelude::*;

use super::budget::SHARE;
use super::*;

/// A budget of which so much is shared.
fn shared(bytes: usize) -> Rc<Budget> {
    Rc::new(Budget::new(bytes, 0))
}

const PLENTY: usize = 64 << 20;
const FIRST: TcpSeqNumber = TcpSeqNumber(i32::MAX - 10);

/// Memory that nobody looks at.
#[derive(Default)]
struct Unused {
    discarded: Rc<Cell<usize>>,
}

impl Memory for Unused {
    fn discard(&self, part: Range<usize>) {
        assert!(part == (0..RECEIVE_RING) || part == (RECEIVE_RING..BOTH_RINGS), "{part:?}");
        self.discarded.set(self.discarded.get() + 1);
    }
}

fn rings(budget: &Rc<Budget>) -> Rings<Unused> {
    Rings::new(Unused::default(), FIRST, Rc::clone(budget))
}

/// After this many bytes, all of which have been read.
fn drained(received: usize) -> Occupancy {
    Occupancy { received: u32::try_from(received).unwrap(), ..Occupancy::default() }
}

/// After this many bytes, of which so many wait to be read.
fn unread(received: usize, receive_queue: usize) -> Occupancy {
    Occupancy { receive_queue, ..drained(received) }
}

fn queued(send_queue: usize) -> Occupancy {
    Occupancy { send_queue, ..Occupancy::default() }
}

/// The pages of `length` bytes beyond the share.
fn beyond(length: usize) -> usize {
    length.next_multiple_of(PAGE).saturating_sub(SHARE)
}

#[test]
fn a_stream_is_counted_up_to_the_ring_and_given_back_when_silent() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    let mut received = 0;
    while received < 5 * RECEIVE_RING {
        assert!(rings.admit(drained(received), FIRST + received, 1000));
        received += 1000;
        assert_eq!(budget.used(), beyond(received.min(RECEIVE_RING)));
    }
    assert!(rings.reclaim(drained(received)));
    assert_eq!(budget.used(), 0);
    assert!(rings.admit(drained(received), FIRST + received, 8000));
    assert!(budget.used() > 0);
    drop(rings);
    assert_eq!(budget.used(), 0);
}

#[test]
fn what_is_out_of_order_or_unread_is_not_given_back() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(0), FIRST, 9000));
    assert!(!rings.reclaim(drained(1000)));
    assert!(!rings.reclaim(unread(9000, 1)));
    assert_eq!(budget.used(), beyond(9000));
    assert!(rings.reclaim(drained(9000)));
    assert_eq!(budget.used(), 0);
}

#[test]
fn an_old_segment_costs_nothing() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(15_000), FIRST + 5000, 10_000));
    assert_eq!(budget.used(), 0);
}

#[test]
fn what_lies_beyond_the_window_is_not_counted() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    assert!(rings.admit(drained(0), FIRST + (1 << 30), 10_000));
    assert_eq!(budget.used(), 0);
    assert!(rings.reclaim(drained(0)));
}

#[test]
fn a_page_that_is_begun_counts_whole() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    let received = 3 * PAGE - 1;
    assert!(rings.reclaim(drained(received)));
    // One byte in one page, one in the next.
    assert!(rings.admit(drained(received), FIRST + received, 2));
    assert_eq!(budget.used(), beyond(2 * PAGE));
}

#[test]
fn a_send_ring_that_is_never_empty_goes_round() {
    let budget = shared(PLENTY);
    let mut rings = rings(&budget);
    for _ in 0..5 {
        assert!(rings.send_space(queued(SEND_RING / 2)) >= SEND_RING / 2);
        rings.queued(SEND_RING / 2);
    }
    assert_eq!(budget.used(), beyond(SEND_RING));
}

#[test]
fn without_a_budget_a_ring_has_its_share_again_and_again() {
    let budget = shared(0);
    let mut rings = rings(&budget);
    for page in 0..3 {
        let begin = page * PAGE;
        assert_eq!(rings.receive_limit(drained(begin)), FIRST + begin + PAGE);
        assert!(rings.admit(drained(begin), FIRST + begin, PAGE));
        let full = unread(begin + PAGE, PAGE);
        assert_eq!(rings.receive_limit(full), FIRST + begin + PAGE);
        assert!(!rings.admit(full, FIRST + begin + PAGE, 1));

        assert_eq!(rings.send_space(queued(0)), PAGE);
        rings.queued(PAGE);
        assert_eq!(rings.send_space(queued(1)), 0);
    }
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_ring_beside_many_is_smaller_than_one_alone() {
    let budget = shared(1 << 20);
    let mut alone = rings(&budget);
    assert_eq!(alone.send_space(queued(0)), SHARE + (512 << 10));
    assert_eq!(alone.receive_limit(drained(0)), FIRST + RECEIVE_RING);
    let mut others: Vec<_> = (0..20).map(|_| rings(&budget)).collect();
    for other in &mut others {
        let space = other.send_space(queued(0));
        other.queued(space);
    }
    assert_eq!(alone.send_space(queued(0)), SHARE);
    // As they become empty, each in turn, all get about the same.
    for _ in 0..20 {
        for other in &mut others {
            let space = other.send_space(queued(0));
            other.queued(space);
        }
    }
    let fair = (1 << 20) / 21;
    for other in &mut others {
        assert!((fair / 2..=2 * fair).contains(&other.send.length), "{}", other.send.length);
    }
    assert!(budget.threshold(0) >= fair / 2);
}

#[test]
fn a_large_ring_gives_back_what_others_need_once_it_is_empty() {
    let budget = shared(1 << 20);
    let mut large = rings(&budget);
    assert!(large.admit(drained(0), FIRST, RECEIVE_RING));
    let mut others: Vec<_> = (0..20).map(|_| rings(&budget)).collect();
    for other in &mut others {
        let space = other.send_space(queued(0));
        other.queued(space);
    }
    let used = budget.used();
    let full = unread(RECEIVE_RING, RECEIVE_RING);
    assert_eq!(large.receive_limit(full), FIRST + RECEIVE_RING);
    assert_eq!(budget.used(), used);
    let window = distance(FIRST + RECEIVE_RING, large.receive_limit(drained(RECEIVE_RING)));
    assert!((1..i32::try_from(RECEIVE_RING).unwrap()).contains(&window), "{window}");
    assert_eq!(budget.used(), used - beyond(RECEIVE_RING));
}

#[test]
fn the_next_connection_finds_no_memory_elsewhere() {
    let budget = shared(PLENTY);
    let discarded = Rc::new(Cell::new(0));
    let of = || Rings::new(Unused { discarded: Rc::clone(&discarded) }, FIRST, Rc::clone(&budget));
    let mut short = of();
    assert!(short.admit(drained(0), FIRST, KEPT));
    drop(short);
    assert_eq!(discarded.get(), 0);
    let mut long = of();
    assert!(long.admit(drained(0), FIRST, KEPT + 1));
    drop(long);
    assert_eq!(discarded.get(), 1);
    let mut moved = of();
    assert!(moved.reclaim(drained(5 * PAGE)));
    assert!(moved.admit(drained(5 * PAGE), FIRST + 5 * PAGE, 1));
    drop(moved);
    assert_eq!(discarded.get(), 2);
}

/// What happens to one connection of several.
#[derive(Debug, Clone)]
enum Event {
    /// The container sends so many bytes, whether it may or not.
    Sends(usize),
    /// It sends the whole window that it was last offered.
    SendsWindow,
    /// The stream takes so many bytes.
    Drains(usize),
    /// The stream gives so many bytes.
    Gives(usize),
    /// The container acknowledges so many bytes.
    Acknowledges(usize),
    /// The container has been silent.
    Reclaim,
}

fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
    let event = prop_oneof![
        (1..70_000_usize).prop_map(Event::Sends),
        Just(Event::SendsWindow),
        (1..300_000_usize).prop_map(Event::Drains),
        (1..1_100_000_usize).prop_map(Event::Gives),
        (1..1_100_000_usize).prop_map(Event::Acknowledges),
        Just(Event::Reclaim),
    ];
    prop::collection::vec((0..CONNECTIONS, event), 1..300)
}

const CONNECTIONS: usize = 4;

/// The container sends so many bytes in order, as far as the ring has room.
fn send(rings: &mut Rings<Unused>, state: &mut Occupancy, length: usize) {
    let length = length.min(RECEIVE_RING - state.receive_queue);
    if length > 0 && rings.admit(*state, rings.expected(*state), length) {
        state.received += u32::try_from(length).unwrap();
        state.receive_queue += length;
    }
}

proptest! {
    #[test]
    fn the_budget_holds_and_whoever_drains_may_send_again(
        pages in 0..300_usize,
        events in events(),
    ) {
        let total = pages * PAGE;
        let budget = shared(total);
        let mut connections: Vec<_> =
            (0..CONNECTIONS).map(|_| (rings(&budget), Occupancy::default())).collect();
        for (connection, event) in events {
            let (rings, state) = &mut connections[connection];
            let expected = rings.expected(*state);
            match event {
                Event::Sends(length) => send(rings, state, length),
                Event::SendsWindow => {
                    let window = distance(expected, rings.receive_limit(*state));
                    send(rings, state, usize::try_from(window).unwrap_or(0));
                }
                Event::Drains(length) => state.receive_queue -= length.min(state.receive_queue),
                Event::Gives(length) => {
                    let length = length.min(rings.send_space(*state)).min(SEND_RING - state.send_queue);
                    rings.queued(length);
                    state.send_queue += length;
                }
                Event::Acknowledges(length) => state.send_queue -= length.min(state.send_queue),
                Event::Reclaim => {
                    rings.reclaim(*state);
                }
            }
            let of_all = |extent: fn(&Rings<Unused>) -> usize| {
                connections.iter().map(|(rings, _)| beyond(extent(rings))).sum::<usize>()
            };
            let used = of_all(|rings| rings.receive.length) + of_all(|rings| rings.send.length);
            prop_assert_eq!(budget.used(), used);
            prop_assert!(used <= total);

            let (rings, state) = &mut connections[connection];
            prop_assert!(rings.receive.length >= state.receive_queue);
            prop_assert!(rings.send.length >= state.send_queue);
            if state.receive_queue == 0 {
                let limit = rings.receive_limit(*state);
                prop_assert!(distance(rings.expected(*state), limit) > 0);
                prop_assert!(distance(rings.expected(*state), limit) <= i32::try_from(RECEIVE_RING).unwrap());
                prop_assert!(rings.admit(*state, rings.expected(*state), 1));
                // That byte was never sent.
                rings.receive.end = rings.expected(*state);
            }
            if state.send_queue == 0 {
                prop_assert!(rings.send_space(*state) >= SHARE);
            }
        }
    }
}
