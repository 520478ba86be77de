//! The receive window as the container sees it.
//!
//! smoltcp advertises its whole ring. [`Window`] lowers the window in the header to what there is memory for, so that
//! the container waits instead of losing segments. The right edge of a window never moves back (RFC 9293, 3.8.6): what
//! was promised stays promised.
//!
//! smoltcp does not know that less was promised, so it does not announce that a small window has grown. [`Window`] does.

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::bare;
use super::rings::RECEIVE_RING;
use super::segment::{Segment, distance};
use crate::flow::FlowKey;
use crate::wire::ip_header_len;

/// The window scale of smoltcp for the receive ring (RFC 7323, 2.2).
const SHIFT: u8 = 3;
const _: () = assert!(RECEIVE_RING.ilog2() + 1 == 16 + SHIFT as u32);

/// The receive window of a connection, as far as the container has been told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// The window scale after the handshake.
    shift: u8,
    told: Option<Told>,
}

/// What the segments so far have said.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// The sequence number behind the window.
    edge: TcpSeqNumber,
    /// The sequence number behind the last byte for the container.
    next: TcpSeqNumber,
}

impl Window {
    /// The window towards a container that has sent this SYN, with or without ACK. It has been told nothing yet.
    #[must_use]
    pub fn new(syn: &Segment) -> Self {
        Self { shift: if syn.scales_windows { SHIFT } else { 0 }, told: None }
    }

    /// Lowers the window in a packet to the container, so that it ends at `limit`, or where it has ended before.
    ///
    /// # Panics
    /// If the packet is shorter than an IP header without options and a TCP header.
    #[inline]
    pub fn clamp(&mut self, packet: &mut [u8], key: FlowKey, limit: TcpSeqNumber) {
        let mut segment = TcpPacket::new_unchecked(&mut packet[ip_header_len(key.peer.ip())..]);
        if !segment.ack() || segment.rst() {
            return;
        }
        // The window of a SYN is not scaled.
        let shift = if segment.syn() { 0 } else { self.shift };
        let expected = segment.ack_number();
        let end = segment.seq_number() + segment.segment_len();
        let told = self.told.unwrap_or(Told { edge: expected, next: end });
        let promised = ahead(expected, told.edge).div_ceil(1 << shift);
        let window = promised.max(ahead(expected, limit) >> shift);
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        if window < segment.window_len() {
            set_window(&mut segment, window);
        }
        let edge = expected + (usize::from(segment.window_len()) << shift);
        self.told = Some(Told { edge: later(told.edge, edge), next: later(told.next, end) });
    }

    /// The packet that tells the container of a larger window, if the window until `limit` is at least twice what is
    /// left of it. [`clamp`](Self::clamp) is still to set its window. `expected` is the container's next sequence
    /// number.
    #[must_use]
    pub fn update(&self, key: FlowKey, expected: TcpSeqNumber, limit: TcpSeqNumber) -> Option<Vec<u8>> {
        let told = self.told?;
        let largest = usize::from(u16::MAX) << self.shift;
        let window = ahead(expected, limit).min(largest) >> self.shift;
        let left = ahead(expected, told.edge) >> self.shift;
        // The rule of smoltcp, which has announced already what it knows to be larger.
        let is_due = window > 0 && window / 2 >= left;
        is_due.then(|| bare::acknowledgment(key, told.next, expected, u16::MAX))
    }
}

/// Sets the window, and adjusts the checksum (RFC 1624, 3).
fn set_window(segment: &mut TcpPacket<&mut [u8]>, window: u16) {
    let sum = u32::from(!segment.checksum()) + u32::from(!segment.window_len()) + u32::from(window);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    segment.set_window_len(window);
    segment.set_checksum(!u16::try_from(sum).unwrap_or(u16::MAX));
}

fn later(one: TcpSeqNumber, other: TcpSeqNumber) -> TcpSeqNumber {
    if distance(one, other) > 0 { other } else { one }
}

/// How far `to` is ahead of `from`, in bytes; 0 if it is behind.
fn ahead(from: TcpSeqNumber, to: TcpSeqNumber) -> usize {
    usize::try_from(distance(from, to)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
