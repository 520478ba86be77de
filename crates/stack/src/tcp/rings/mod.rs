//! The memory of a connection's rings: how much is in use, and how much may be.
//!
//! A ring is address space at first. A page of it takes memory once a byte is written to it, and keeps it when the byte
//! is gone. The receive ring wraps around even if it is always nearly empty, so a connection would hold a whole ring for
//! good. Therefore:
//!
//! - Each ring accounts for its extent: the pages that have been written to.
//! - All connections of a container, or of one of its queues, share a [`Budget`]. It says how far a ring may grow.
//! - The container is told so: the window ends at [`Rings::receive_limit`], see [`Window`](super::Window).
//! - A ring that is larger than its part gives its memory back when it is empty.
//! - When a connection falls silent, [`Rings::reclaim`] returns the memory of its empty rings to the kernel.
//!
//! A window that has been promised is not taken back, so the promises to many connections may exceed what is left. A
//! segment for which there is no memory is dropped, as a kernel short of memory drops it (`tcp_mem`, tcp(7)).

mod budget;

use std::ops::Range;
use std::rc::Rc;

use smoltcp::wire::TcpSeqNumber;

pub use budget::Budget;

use super::segment::distance;

/// Length in bytes of the receive ring, and so the largest window of a container. A single stream reaches its full speed
/// with it.
pub const RECEIVE_RING: usize = 256 << 10;

/// Length in bytes of the send ring. A single stream needs that much for its full speed.
const SEND_RING: usize = 1 << 20;

/// Length of both rings of a connection.
pub const BOTH_RINGS: usize = RECEIVE_RING + SEND_RING;

/// The unit in which memory is used, in bytes.
const PAGE: usize = 4 << 10;

/// How much memory a ring keeps from one connection to the next, in bytes. To take it back would cost a system call for
/// each connection.
const KEPT: usize = 64 << 10;

// Positions in a ring follow from sequence numbers, which wrap around at 2³².
const _: () = assert!(RECEIVE_RING.is_power_of_two() && RECEIVE_RING.is_multiple_of(PAGE));
const _: () = assert!(SEND_RING.is_multiple_of(PAGE));

/// The contents of the rings of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Occupancy {
    /// Bytes of the container's stream that have arrived in order, modulo 2³².
    pub received: u32,
    /// How many of them wait to be read.
    pub receive_queue: usize,
    /// Bytes that wait for the container's acknowledgment.
    pub send_queue: usize,
}

/// The memory of both rings of a connection: [`BOTH_RINGS`] bytes, the receive ring first.
pub trait Memory {
    /// Replaces a part by zeroes that take no memory. The part begins and ends at the border of a page.
    fn discard(&self, part: Range<usize>);
}

/// Accounts for the memory of both rings of a connection.
#[derive(Debug)]
pub struct Rings<M: Memory> {
    memory: Option<M>,
    budget: Rc<Budget>,
    receive: ReceiveExtent,
    send: SendExtent,
}

/// The part of the receive ring that has been written to, in sequence numbers.
#[derive(Debug)]
struct ReceiveExtent {
    /// That of the stream's first byte, which is at the beginning of the ring.
    first: TcpSeqNumber,
    /// That of the byte at the beginning of the extent, which is the beginning of a page.
    start: TcpSeqNumber,
    /// The end of the farthest segment.
    end: TcpSeqNumber,
    /// A multiple of the page.
    length: usize,
}

impl ReceiveExtent {
    fn new(first: TcpSeqNumber) -> Self {
        Self { first, start: first, end: first, length: 0 }
    }

    /// The next sequence number in order.
    fn expected(&self, state: Occupancy) -> TcpSeqNumber {
        TcpSeqNumber(self.first.0.wrapping_add(state.received.cast_signed()))
    }

    /// Whether the ring holds nothing, neither in order nor ahead of it.
    fn is_empty(&self, state: Occupancy) -> bool {
        state.receive_queue == 0 && distance(self.expected(state), self.end) <= 0
    }
}

/// The part of the send ring that has been written to.
#[derive(Debug, Default)]
struct SendExtent {
    /// Where the next byte goes: how many were queued since the ring was last empty and so began at its beginning. At
    /// most the length of the ring.
    run: usize,
    /// A multiple of the page.
    length: usize,
}

impl<M: Memory> Rings<M> {
    /// Nothing is in use yet. `first` is the sequence number of the container's first byte.
    #[must_use]
    pub fn new(memory: M, first: TcpSeqNumber, budget: Rc<Budget>) -> Self {
        Self { memory: Some(memory), budget, receive: ReceiveExtent::new(first), send: SendExtent::default() }
    }

    /// Sets the sequence number of the container's first byte. Nothing may have been taken in before.
    pub fn begin(&mut self, first: TcpSeqNumber) {
        debug_assert_eq!(self.receive.length, 0);
        self.receive = ReceiveExtent::new(first);
    }

    /// The sequence number of the container's next byte in order.
    #[must_use]
    pub fn expected(&self, state: Occupancy) -> TcpSeqNumber {
        self.receive.expected(state)
    }

    /// Whether there is memory for the `payload` bytes of a segment that begins at `sequence`. If so, they are counted.
    pub fn admit(&mut self, state: Occupancy, sequence: TcpSeqNumber, payload: usize) -> bool {
        let expected = self.receive.expected(state);
        let window = RECEIVE_RING - state.receive_queue;
        let offset = distance(expected, sequence);
        let Ok(ahead) = usize::try_from(distance(expected, sequence + payload)) else { return true };
        // The socket does not take in old bytes, nor those beyond the window.
        if ahead == 0 || usize::try_from(offset).is_ok_and(|offset| offset >= window) {
            return true;
        }
        let end = expected + ahead.min(window);
        self.extend_receive(end) || self.discard_receive(state) && self.extend_receive(end)
    }

    /// The sequence number behind the last byte that the container may send: its window ends there. It may be behind an
    /// earlier limit.
    pub fn receive_limit(&mut self, state: Occupancy) -> TcpSeqNumber {
        let expected = self.receive.expected(state);
        let ring_end = expected + (RECEIVE_RING - state.receive_queue);
        let threshold = self.budget.threshold(self.receive.length);
        if threshold >= RECEIVE_RING {
            return ring_end;
        }
        // The memory is given back for a new extent, but not for every segment.
        if distance(expected, self.receive.start + threshold / 2) < 0 {
            self.discard_receive(state);
        }
        let extent = self.receive.length.max(self.budget.threshold(self.receive.length));
        if extent >= RECEIVE_RING { ring_end } else { self.receive.start + extent }
    }

    /// How many bytes may be queued for the container, those that wait already not counted.
    pub fn send_space(&mut self, state: Occupancy) -> usize {
        let mut threshold = self.budget.threshold(self.send.length);
        if state.send_queue == 0 {
            self.send.run = 0;
            if self.send.length > threshold {
                self.discard_send();
                threshold = self.budget.threshold(0);
            }
        }
        // The whole ring is counted, wherever the next byte goes.
        if self.send.length == SEND_RING {
            return SEND_RING;
        }
        self.send.length.max(threshold).min(SEND_RING).saturating_sub(self.send.run)
    }

    /// Counts `length` bytes that have been queued. They may not be more than there was [space](Self::send_space) for.
    pub fn queued(&mut self, length: usize) {
        self.send.run = SEND_RING.min(self.send.run + length);
        let extent = self.send.length.max(self.send.run.next_multiple_of(PAGE));
        let is_counted = self.budget.resize(self.send.length, extent);
        debug_assert!(is_counted);
        self.send.length = extent;
    }

    /// Returns the memory of empty rings to the kernel. Returns whether both were empty.
    pub fn reclaim(&mut self, state: Occupancy) -> bool {
        let received = self.discard_receive(state);
        let sent = state.send_queue == 0;
        if sent && self.send.length > 0 {
            self.discard_send();
        }
        received && sent
    }

    /// Takes the memory out, for another connection. `None` if it has been taken already.
    pub fn take_memory(&mut self) -> Option<M> {
        let memory = self.memory.take()?;
        // After a reclaim the extent may be anywhere in the ring, but that of the next connection is at the beginning.
        let is_elsewhere = self.receive.start != self.receive.first;
        if self.receive.length > KEPT || self.receive.length > 0 && is_elsewhere {
            memory.discard(0..RECEIVE_RING);
        }
        if self.send.length > KEPT {
            memory.discard(RECEIVE_RING..BOTH_RINGS);
        }
        self.budget.resize(self.receive.length, 0);
        self.budget.resize(self.send.length, 0);
        (self.receive.length, self.send) = (0, SendExtent::default());
        Some(memory)
    }

    /// Moves the end of the receive ring's extent to `end` if it is behind.
    fn extend_receive(&mut self, end: TcpSeqNumber) -> bool {
        let length = usize::try_from(distance(self.receive.start, end)).unwrap_or(0).next_multiple_of(PAGE);
        let extent = self.receive.length.max(length.min(RECEIVE_RING));
        if !self.budget.resize(self.receive.length, extent) {
            return false;
        }
        self.receive.length = extent;
        if distance(self.receive.end, end) > 0 {
            self.receive.end = end;
        }
        // However long the stream, the distances stay small.
        self.receive.start += length.saturating_sub(RECEIVE_RING);
        true
    }

    /// Returns the memory of the receive ring if it holds nothing. Returns whether it does.
    fn discard_receive(&mut self, state: Occupancy) -> bool {
        if !self.receive.is_empty(state) {
            return false;
        }
        if self.receive.length > 0 {
            self.discard(0..RECEIVE_RING);
            self.budget.resize(self.receive.length, 0);
            self.receive.length = 0;
        }
        let expected = self.receive.expected(state);
        let in_page = usize::try_from(state.received).unwrap_or(0) % PAGE;
        (self.receive.start, self.receive.end) = (expected - in_page, expected);
        true
    }

    /// Returns the memory of the send ring, which is empty.
    fn discard_send(&mut self) {
        self.discard(RECEIVE_RING..BOTH_RINGS);
        self.budget.resize(self.send.length, 0);
        self.send = SendExtent::default();
    }

    fn discard(&self, ring: Range<usize>) {
        if let Some(memory) = &self.memory {
            memory.discard(ring);
        }
    }
}

impl<M: Memory> Drop for Rings<M> {
    fn drop(&mut self) {
        self.take_memory();
    }
}

#[cfg(test)]
mod tests;
