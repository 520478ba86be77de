//! The memory of a connection's rings: how much is in use, and how much may be.
//!
//! A ring is a megabyte of address space. A page of it takes memory once a byte is written to it, and keeps it when the
//! byte is gone. The receive ring wraps around even if it is always nearly empty, so a connection that has carried a
//! megabyte would hold a megabyte for good. Therefore:
//!
//! - Each ring accounts for its extent: the part that has been written to.
//! - All connections of a container, or of one of its queues, share a [`Budget`].
//! - When a connection falls silent, [`Rings::reclaim`] returns the memory of its empty rings to the kernel.
//!
//! A ring may always use 64 KiB. Beyond that it needs budget. Without budget the send ring is filled no further, which
//! stops reading from the stream. A segment of the container that needs more is dropped, as a kernel short of memory
//! drops it (`tcp_mem`, tcp(7)), unless the ring is empty and can give its memory back first.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use smoltcp::wire::TcpSeqNumber;

/// Length in bytes of a ring; a connection has one for each direction. A single stream reaches its full speed with it.
/// It is address space: memory is used only where bytes have been, and [`Rings`] decides where that may be.
pub const RING: usize = 1 << 20;

/// What a ring may use whatever the others do, in bytes. A stream over a slow path needs no more, and a fast one
/// reaches half its speed with it.
const SHARE: usize = 64 << 10;

/// The memory that the rings of one container, or of one of its queues, may use together.
#[derive(Debug)]
pub struct Budget {
    /// In bytes, not counting the shares of the rings.
    total: usize,
    used: Cell<usize>,
}

impl Budget {
    /// A budget of `total` bytes, in addition to the 64 KiB that each ring may always use.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { total, used: Cell::new(0) }
    }

    fn left(&self) -> usize {
        self.total.saturating_sub(self.used.get())
    }
}

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

/// The memory of both rings of a connection: 2 × [`RING`] bytes, the receive ring first.
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
    /// That of the stream's first byte.
    first: TcpSeqNumber,
    /// That of the byte at the beginning of the extent.
    start: TcpSeqNumber,
    /// The end of the farthest segment.
    end: TcpSeqNumber,
    length: usize,
}

impl ReceiveExtent {
    /// The next sequence number in order.
    fn expected(&self, state: Occupancy) -> TcpSeqNumber {
        TcpSeqNumber(self.first.0.wrapping_add(state.received.cast_signed()))
    }
}

/// The part of the send ring that has been written to.
#[derive(Debug, Default)]
struct SendExtent {
    /// Where the next byte goes: how many were queued since the ring was last empty and so began at its beginning. At
    /// most the length of the ring.
    run: usize,
    length: usize,
}

impl<M: Memory> Rings<M> {
    /// Nothing is in use yet. `first` is the sequence number of the container's first byte.
    #[must_use]
    pub fn new(memory: M, first: TcpSeqNumber, budget: Rc<Budget>) -> Self {
        let receive = ReceiveExtent { first, start: first, end: first, length: 0 };
        Self { memory: Some(memory), budget, receive, send: SendExtent::default() }
    }

    /// Sets the sequence number of the container's first byte. Nothing may have been taken in before.
    pub fn begin(&mut self, first: TcpSeqNumber) {
        debug_assert_eq!(self.receive.length, 0);
        self.receive = ReceiveExtent { first, start: first, end: first, length: 0 };
    }

    /// Whether there is memory for the `payload` bytes of a segment that begins at `sequence`. If so, they are counted.
    pub fn admit(&mut self, state: Occupancy, sequence: TcpSeqNumber, payload: usize) -> bool {
        let expected = self.receive.expected(state);
        let window = RING - state.receive_queue;
        let offset = distance(expected, sequence);
        let Ok(ahead) = usize::try_from(distance(expected, sequence + payload)) else { return true };
        // The socket does not take in old bytes, nor those beyond the window.
        if ahead == 0 || usize::try_from(offset).is_ok_and(|offset| offset >= window) {
            return true;
        }
        let ahead = ahead.min(window);
        if self.extend_receive(expected + ahead) {
            return true;
        }
        self.discard_receive(state) && self.extend_receive(expected + ahead)
    }

    /// How many bytes may be queued for the container, those that wait already not counted.
    pub fn send_space(&mut self, state: Occupancy) -> usize {
        if state.send_queue == 0 {
            self.send.run = 0;
        }
        // The whole ring is counted, wherever the next byte goes.
        if self.send.length == RING {
            return RING;
        }
        let extent = SHARE.max(self.send.length + self.budget.left()).min(RING);
        extent.saturating_sub(self.send.run)
    }

    /// Counts `length` bytes that have been queued.
    pub fn queued(&mut self, length: usize) {
        self.send.run = RING.min(self.send.run + length);
        let growth = self.send.run.saturating_sub(self.send.length);
        self.send.length += growth;
        self.budget.used.set(self.budget.used.get() + growth);
    }

    /// Returns the memory of empty rings to the kernel. Returns whether both were empty.
    pub fn reclaim(&mut self, state: Occupancy) -> bool {
        let received = self.discard_receive(state);
        let sent = state.send_queue == 0;
        if sent && self.send.length > 0 {
            self.release(self.send.length, RING);
            self.send = SendExtent::default();
        }
        received && sent
    }

    /// Takes the memory out, for another connection. `None` if it has been taken already.
    pub fn take_memory(&mut self) -> Option<M> {
        let memory = self.memory.take()?;
        self.budget.used.set(self.budget.used.get() - self.receive.length - self.send.length);
        // After a reclaim the extent may be anywhere in the ring, but that of the next connection is at the beginning.
        let is_elsewhere = self.receive.start != self.receive.first;
        if self.receive.length > SHARE || self.receive.length > 0 && is_elsewhere {
            memory.discard(0..RING);
        }
        if self.send.length > SHARE {
            memory.discard(RING..2 * RING);
        }
        (self.receive.length, self.send) = (0, SendExtent::default());
        Some(memory)
    }

    /// Moves the end of the receive ring's extent to `end` if it is behind.
    fn extend_receive(&mut self, end: TcpSeqNumber) -> bool {
        let length = distance(self.receive.start, end);
        let extent = usize::try_from(length).unwrap_or(0).min(RING);
        let growth = extent.saturating_sub(self.receive.length);
        if extent > SHARE && growth > self.budget.left() {
            return false;
        }
        self.receive.length += growth;
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

    /// Returns the memory of the receive ring if it holds nothing, neither in order nor ahead of it. Returns whether it
    /// does.
    fn discard_receive(&mut self, state: Occupancy) -> bool {
        let expected = self.receive.expected(state);
        if state.receive_queue > 0 || distance(expected, self.receive.end) > 0 {
            return false;
        }
        if self.receive.length > 0 {
            self.release(self.receive.length, 0);
            self.receive.length = 0;
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

/// The distance from one sequence number to another, negative if that is behind (RFC 9293, 3.4).
fn distance(from: TcpSeqNumber, to: TcpSeqNumber) -> i32 {
    to.0.wrapping_sub(from.0)
}

#[cfg(test)]
mod tests;
