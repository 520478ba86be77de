//! The memory of a connection's rings: how much of it is in use, how much may be.
//!
//! A ring is a megabyte of address space. A page of it becomes memory when a byte is written to it and stays memory when
//! the byte is gone; and the receive ring goes round and round, also when it is empty: a connection that has carried a
//! megabyte would hold one for good. So the extent that was written to is kept account of, all connections of a
//! container share a [`Budget`], and the memory of empty rings goes back to the kernel when a connection falls silent.
//!
//! Each ring always has a [`SHARE`]. Beyond it and with the budget spent, the send ring is filled no further, which
//! stops the reading from the stream; a segment of the container that would go further is lost, as in a kernel short of
//! memory (`tcp_mem`, tcp(7)), unless the ring is empty and its memory can be given back first.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use smoltcp::wire::TcpSeqNumber;

/// Ring per direction, in bytes. A single stream reaches its full speed with it. It is address space: memory is used
/// where bytes have been, and [`Rings`] decides where that may be.
pub const RING: usize = 1 << 20;

/// What a ring may use whatever the others do, in bytes: a stream of a slow path needs no more, and a fast one has half
/// its speed with it.
const SHARE: usize = 64 << 10;

/// What the rings of one container, or of one of its queues, use.
#[derive(Debug)]
pub struct Budget {
    /// What they may use together, in bytes, and their shares on top.
    total: usize,
    used: Cell<usize>,
}

impl Budget {
    pub fn new(total: usize) -> Self {
        Self { total, used: Cell::new(0) }
    }

    fn left(&self) -> usize {
        self.total.saturating_sub(self.used.get())
    }
}

/// What the rings of a connection hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Occupancy {
    /// Bytes of the container's stream that have arrived in order, modulo 2³².
    pub received: u32,
    /// Those of them that wait to be read.
    pub receive_queue: usize,
    /// Bytes that wait for the container's acknowledgment.
    pub send_queue: usize,
}

/// The memory that both rings of a connection lie in: 2 × [`RING`] bytes, the receive ring first.
pub trait Memory {
    /// Makes a part zeroes again, which take no room. The part begins and ends at the border of a page.
    fn discard(&self, part: Range<usize>);
}

/// The account of both rings of a connection.
#[derive(Debug)]
pub struct Rings<M: Memory> {
    memory: Option<M>,
    budget: Rc<Budget>,
    receive: Received,
    send: Queued,
}

/// The extent of the receive ring, in sequence numbers.
#[derive(Debug)]
struct Received {
    /// What the first byte of the stream had.
    first: TcpSeqNumber,
    /// What stood at the beginning of the extent.
    start: TcpSeqNumber,
    /// The end of the farthest segment.
    end: TcpSeqNumber,
    extent: usize,
}

impl Received {
    /// What comes next in order.
    fn expected(&self, state: Occupancy) -> TcpSeqNumber {
        TcpSeqNumber(self.first.0.wrapping_add(state.received.cast_signed()))
    }
}

/// The extent of the send ring.
#[derive(Debug, Default)]
struct Queued {
    /// Where the next byte goes, at most the length of the ring: bytes queued since the ring was last empty, and so began
    /// at its beginning.
    run: usize,
    extent: usize,
}

impl<M: Memory> Rings<M> {
    /// `first` is the sequence number of the container's first byte.
    pub fn new(memory: M, first: TcpSeqNumber, budget: Rc<Budget>) -> Self {
        let receive = Received { first, start: first, end: first, extent: 0 };
        Self { memory: Some(memory), budget, receive, send: Queued::default() }
    }

    /// Sets the sequence number of the container's first byte, before which nothing has been taken in.
    pub fn begin(&mut self, first: TcpSeqNumber) {
        debug_assert_eq!(self.receive.extent, 0);
        self.receive = Received { first, start: first, end: first, extent: 0 };
    }

    /// Whether there is memory for the payload of a segment that begins at `sequence`; counts it if so.
    pub fn admit(&mut self, state: Occupancy, sequence: TcpSeqNumber, payload: usize) -> bool {
        let expected = self.receive.expected(state);
        let window = RING - state.receive_queue;
        let offset = distance(expected, sequence);
        let Ok(ahead) = usize::try_from(distance(expected, sequence + payload)) else { return true };
        // What is old or exceeds the window is not taken in.
        if ahead == 0 || usize::try_from(offset).is_ok_and(|offset| offset >= window) {
            return true;
        }
        let ahead = ahead.min(window);
        if self.extend_receive(expected + ahead) {
            return true;
        }
        self.discard_receive(state) && self.extend_receive(expected + ahead)
    }

    /// How many bytes may be queued for the container.
    pub fn send_space(&mut self, state: Occupancy) -> usize {
        if state.send_queue == 0 {
            self.send.run = 0;
        }
        // All of it is counted, wherever in it the next byte goes.
        if self.send.extent == RING {
            return RING;
        }
        let extent = SHARE.max(self.send.extent + self.budget.left()).min(RING);
        extent.saturating_sub(self.send.run)
    }

    /// Counts bytes that have been queued.
    pub fn queued(&mut self, length: usize) {
        self.send.run = RING.min(self.send.run + length);
        let growth = self.send.run.saturating_sub(self.send.extent);
        self.send.extent += growth;
        self.budget.used.set(self.budget.used.get() + growth);
    }

    /// Gives the memory of empty rings back. Returns whether that is all of it.
    pub fn reclaim(&mut self, state: Occupancy) -> bool {
        let received = self.discard_receive(state);
        let sent = state.send_queue == 0;
        if sent && self.send.extent > 0 {
            self.release(self.send.extent, RING);
            self.send = Queued::default();
        }
        received && sent
    }

    /// Takes the memory out, for another connection.
    pub fn take_memory(&mut self) -> Option<M> {
        let memory = self.memory.take()?;
        self.budget.used.set(self.budget.used.get() - self.receive.extent - self.send.extent);
        // After a reclaim the extent is anywhere in the ring: the next connection would add its own at the beginning.
        let is_elsewhere = self.receive.start != self.receive.first;
        if self.receive.extent > SHARE || self.receive.extent > 0 && is_elsewhere {
            memory.discard(0..RING);
        }
        if self.send.extent > SHARE {
            memory.discard(RING..2 * RING);
        }
        (self.receive.extent, self.send) = (0, Queued::default());
        Some(memory)
    }

    /// Moves the end of the receive ring's extent to `end` if it is behind.
    fn extend_receive(&mut self, end: TcpSeqNumber) -> bool {
        let length = distance(self.receive.start, end);
        let extent = usize::try_from(length).unwrap_or(0).min(RING);
        let growth = extent.saturating_sub(self.receive.extent);
        if extent > SHARE && growth > self.budget.left() {
            return false;
        }
        self.receive.extent += growth;
        self.budget.used.set(self.budget.used.get() + growth);
        if distance(self.receive.end, end) > 0 {
            self.receive.end = end;
        }
        // However long the stream, the distances stay small.
        if usize::try_from(length).is_ok_and(|length| length > RING) {
            self.receive.start = end - RING;
        }
        true
    }

    /// Gives the receive ring's memory back if nothing is in there, neither in order nor ahead of it.
    fn discard_receive(&mut self, state: Occupancy) -> bool {
        let expected = self.receive.expected(state);
        if state.receive_queue > 0 || distance(expected, self.receive.end) > 0 {
            return false;
        }
        if self.receive.extent > 0 {
            self.release(self.receive.extent, 0);
            self.receive.extent = 0;
        }
        (self.receive.start, self.receive.end) = (expected, expected);
        true
    }

    fn release(&self, extent: usize, ring: usize) {
        if let Some(memory) = &self.memory {
            memory.discard(ring..ring + RING);
        }
        self.budget.used.set(self.budget.used.get() - extent);
    }
}

impl<M: Memory> Drop for Rings<M> {
    fn drop(&mut self) {
        self.take_memory();
    }
}

/// From one sequence number to another, negative if it is behind (RFC 9293, 3.4).
fn distance(from: TcpSeqNumber, to: TcpSeqNumber) -> i32 {
    to.0.wrapping_sub(from.0)
}

#[cfg(test)]
mod tests {
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
}
