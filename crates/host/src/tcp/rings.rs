//! The memory of a connection's rings: how much of it is in use, how much may be.
//!
//! A ring is a megabyte of address space. A page of it becomes memory when a byte is written to it and stays memory when
//! the byte is gone, and the receive ring starts anew at its beginning never: a connection that has carried a megabyte
//! would hold one for good. So the extent that was written to is kept account of, all connections of a container share a
//! [`Budget`], and the memory of empty rings goes back to the kernel when a connection falls silent.
//!
//! Each ring always has a [`SHARE`]. Beyond it and with the budget spent, the send ring is filled no further, which
//! stops the reading from the stream; a segment of the container that would go further is lost, as in a kernel short of
//! memory (`tcp_mem`, tcp(7)), unless the ring is empty and its memory can be given back first.

use std::cell::Cell;
use std::rc::Rc;

use smoltcp::wire::TcpSeqNumber;

use super::sockets::RING;
use super::stack::TcpStack;
use crate::packet::Segment;
use crate::sys::Pages;

/// What a ring may use whatever the others do, in bytes: a stream of a slow path needs no more, and a fast one has half
/// its speed with it.
const SHARE: usize = 64 << 10;

/// What all rings of a container may use, in bytes, and their shares on top.
const BUDGET: usize = 256 << 20;

/// What the rings of one container use.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: Cell<usize>,
}

impl Budget {
    fn left(&self) -> usize {
        BUDGET.saturating_sub(self.used.get())
    }
}

/// The memory of the two rings of a connection.
pub(super) struct Rings {
    pages: Option<Pages>,
    budget: Rc<Budget>,
    receive: Received,
    send: Queued,
}

/// The extent of the receive ring, in sequence numbers.
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
    fn expected(&self, stack: &TcpStack) -> TcpSeqNumber {
        TcpSeqNumber(self.first.0.wrapping_add(stack.received().cast_signed()))
    }
}

/// The extent of the send ring.
#[derive(Default)]
struct Queued {
    /// Bytes queued since the ring was last empty, and so began at its beginning.
    run: usize,
    extent: usize,
}

impl Rings {
    /// `first` is the sequence number of the container's first byte.
    pub(super) fn new(pages: Pages, first: TcpSeqNumber, budget: Rc<Budget>) -> Self {
        let receive = Received { first, start: first, end: first, extent: 0 };
        Self { pages: Some(pages), budget, receive, send: Queued::default() }
    }

    /// Whether there is memory for what a segment carries; counts it if so.
    pub(super) fn admit(&mut self, stack: &TcpStack, segment: &Segment) -> bool {
        let expected = self.receive.expected(stack);
        let ahead = distance(expected, segment.sequence + segment.length);
        if ahead <= 0 {
            return true;
        }
        // What exceeds the window is not taken in.
        let ahead = usize::try_from(ahead).unwrap_or(0).min(RING - stack.receive_queue());
        if self.extend_receive(expected + ahead) {
            return true;
        }
        self.discard_receive(stack) && self.extend_receive(expected + ahead)
    }

    /// How many bytes may be queued for the container.
    pub(super) fn send_space(&mut self, stack: &TcpStack) -> usize {
        if stack.send_queue() == 0 {
            self.send.run = 0;
        }
        let extent = SHARE.max(self.send.extent + self.budget.left()).min(RING);
        extent.saturating_sub(self.send.run)
    }

    /// Counts bytes that have been queued.
    pub(super) fn queued(&mut self, length: usize) {
        self.send.run = RING.min(self.send.run + length);
        let growth = self.send.run.saturating_sub(self.send.extent);
        self.send.extent += growth;
        self.budget.used.set(self.budget.used.get() + growth);
    }

    /// Gives the memory of empty rings back. Returns whether that is all of it.
    pub(super) fn reclaim(&mut self, stack: &TcpStack) -> bool {
        let received = self.discard_receive(stack);
        let sent = stack.send_queue() == 0;
        if sent && self.send.extent > 0 {
            self.release(self.send.extent, RING);
            self.send = Queued::default();
        }
        received && sent
    }

    /// Takes the pages out, for another connection.
    pub(super) fn take_pages(&mut self) -> Option<Pages> {
        let pages = self.pages.take()?;
        self.budget.used.set(self.budget.used.get() - self.receive.extent - self.send.extent);
        if self.receive.extent > SHARE {
            pages.discard(0..RING);
        }
        if self.send.extent > SHARE {
            pages.discard(RING..2 * RING);
        }
        (self.receive.extent, self.send) = (0, Queued::default());
        Some(pages)
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
    fn discard_receive(&mut self, stack: &TcpStack) -> bool {
        let expected = self.receive.expected(stack);
        if stack.receive_queue() > 0 || distance(expected, self.receive.end) > 0 {
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
        if let Some(pages) = &self.pages {
            pages.discard(ring..ring + RING);
        }
        self.budget.used.set(self.budget.used.get() - extent);
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.take_pages();
    }
}

/// From one sequence number to another, negative if it is behind (RFC 9293, 3.4).
fn distance(from: TcpSeqNumber, to: TcpSeqNumber) -> i32 {
    to.0.wrapping_sub(from.0)
}
