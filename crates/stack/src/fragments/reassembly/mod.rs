//! Puts fragments together; see the module above for the rules.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::BLOCK;
use super::blocks::{Blocks, Coverage};
use super::fragment::{Fragment, Key};

/// Datagrams under way. Few enough to look through, and below 4 MiB with a spare buffer.
const MAX_DATAGRAMS: usize = 60;

/// How long a datagram may lack pieces: what Linux takes (`IP_FRAG_TIME`), between the 15 s of RFC 791, 3.2 and the
/// 60 s of RFC 8200, 4.5.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest IP header (RFC 791, 3.1); the payload starts behind that much in a buffer.
const HEADER_ROOM: usize = 60;

/// The longest buffer.
const MAX_BUFFER: usize = HEADER_ROOM + u16::MAX as usize;

/// The fragments of one container.
#[derive(Default)]
pub struct Reassembler {
    /// In the order of their deadlines.
    under_way: VecDeque<Box<Partial>>,
    /// What the next datagram is put together in.
    spare: Vec<u8>,
    dropped: u64,
}

/// A packet put together.
pub struct Whole(Box<Partial>);

impl Whole {
    pub fn packet(&self) -> &[u8] {
        self.0.packet()
    }
}

impl Reassembler {
    /// Takes in a fragment, and returns the packet that it completes.
    pub fn add(&mut self, now: Instant, fragment: &Fragment<'_>) -> Option<Whole> {
        self.expire(now);
        let at = if fragment.is_whole() { None } else { self.position(fragment.key) };
        // One that is whole leaves at once, and needs no room.
        if at.is_none() && !fragment.is_whole() && self.under_way.len() == MAX_DATAGRAMS {
            self.drop_oldest();
        }
        let at = at.unwrap_or_else(|| self.begin(now, fragment.key));
        match self.under_way[at].add(fragment) {
            Outcome::Incomplete { dropped } => {
                self.dropped += dropped;
                None
            }
            Outcome::Complete => self.under_way.remove(at).map(Whole),
        }
    }

    /// Takes back a packet that has been read, so that the next needs no memory of its own.
    pub fn recycle(&mut self, whole: Whole) {
        self.spare = whole.0.buffer;
    }

    /// Drops what lacks pieces for too long.
    pub fn expire(&mut self, now: Instant) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.drop_oldest();
        }
    }

    /// When there will be something to [`expire`](Self::expire), unless it is completed before.
    pub fn deadline(&self) -> Option<Instant> {
        self.under_way.front().map(|partial| partial.deadline)
    }

    /// How many fragments have been dropped since this was last called.
    pub fn take_dropped(&mut self) -> u64 {
        mem::take(&mut self.dropped)
    }

    /// Where the datagram is that a fragment belongs to. Mostly the newest.
    fn position(&self, key: Key) -> Option<usize> {
        self.under_way.iter().rposition(|partial| partial.key == key)
    }

    /// Makes room for a new datagram and says where.
    fn begin(&mut self, now: Instant, key: Key) -> usize {
        let buffer = mem::take(&mut self.spare);
        self.under_way.push_back(Box::new(Partial::new(key, now + TIMEOUT, buffer)));
        self.under_way.len() - 1
    }

    fn drop_oldest(&mut self) {
        if let Some(partial) = self.under_way.pop_front() {
            self.dropped += partial.fragments;
            self.spare = partial.buffer;
        }
    }
}

/// A datagram under way.
struct Partial {
    key: Key,
    deadline: Instant,
    /// A fragment has contradicted another.
    abandoned: bool,
    /// Fragments taken in, duplicates included.
    fragments: u64,
    blocks: Blocks,
    /// Payload bytes that have come.
    arrived: usize,
    /// Where the payload ends of what has come.
    reached: usize,
    /// Length of the whole payload, once the last fragment has come.
    total: Option<usize>,
    /// Length of the first fragment's IP header.
    header_len: usize,
    /// The header, so that it ends at [`HEADER_ROOM`], then the payload as far as it reaches.
    buffer: Vec<u8>,
}

enum Outcome {
    Incomplete { dropped: u64 },
    Complete,
}

impl Partial {
    fn new(key: Key, deadline: Instant, mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self {
            key,
            deadline,
            abandoned: false,
            fragments: 0,
            blocks: Blocks::NONE,
            arrived: 0,
            reached: 0,
            total: None,
            header_len: 0,
            buffer,
        }
    }

    fn add(&mut self, fragment: &Fragment<'_>) -> Outcome {
        if self.abandoned {
            return Outcome::Incomplete { dropped: 1 };
        }
        self.fragments += 1;
        if self.contradicts(fragment) {
            return self.abandon();
        }
        let blocks = fragment.offset / BLOCK..fragment.end().div_ceil(BLOCK);
        match self.blocks.coverage(blocks.clone()) {
            Coverage::All if self.repeats(fragment) => return Outcome::Incomplete { dropped: 0 },
            Coverage::All | Coverage::Part => return self.abandon(),
            Coverage::Nothing => {}
        }
        self.blocks.insert(blocks);
        self.store(fragment);
        if self.total != Some(self.arrived) {
            return Outcome::Incomplete { dropped: 0 };
        }
        if self.write_header() { Outcome::Complete } else { self.abandon() }
    }

    /// Whether the fragment cannot be of the same datagram as those before it: it lies beyond the end, or says that
    /// the end is elsewhere.
    fn contradicts(&self, fragment: &Fragment<'_>) -> bool {
        let end = fragment.end();
        match (self.total, fragment.more) {
            (Some(total), true) => end >= total,
            (Some(total), false) => end != total,
            (None, true) => false,
            (None, false) => self.reached > 0 && end <= self.reached,
        }
    }

    /// Whether the fragment holds what has come already.
    fn repeats(&self, fragment: &Fragment<'_>) -> bool {
        let at = HEADER_ROOM + fragment.offset;
        self.buffer.get(at..at + fragment.payload.len()).is_some_and(|bytes| bytes == fragment.payload)
    }

    fn store(&mut self, fragment: &Fragment<'_>) {
        let end = fragment.end();
        self.arrived += fragment.payload.len();
        self.reached = self.reached.max(end);
        if !fragment.more {
            self.total = Some(end);
        }
        self.grow(HEADER_ROOM + end);
        let at = HEADER_ROOM + fragment.offset;
        self.buffer[at..HEADER_ROOM + end].copy_from_slice(fragment.payload);
        if fragment.offset == 0 {
            self.header_len = fragment.header.len();
            let header = &mut self.buffer[HEADER_ROOM - self.header_len..HEADER_ROOM];
            header.copy_from_slice(fragment.header);
            if fragment.source().is_ipv6() {
                Ipv6Packet::new_unchecked(header).set_next_header(fragment.protocol.into());
            }
        }
    }

    /// Makes the buffer at least `length` bytes long.
    fn grow(&mut self, length: usize) {
        if self.buffer.len() >= length {
            return;
        }
        if self.buffer.capacity() < length {
            let wanted = length.next_power_of_two().min(MAX_BUFFER);
            self.buffer.reserve_exact(wanted - self.buffer.len());
        }
        self.buffer.resize(length, 0);
    }

    /// Makes the first fragment's header that of the whole packet. Fails if that is longer than a packet can be,
    /// for the first header may be longer than the others.
    fn write_header(&mut self) -> bool {
        let is_v4 = self.key.source.is_ipv4();
        let length = if is_v4 { self.header_len + self.arrived } else { self.arrived };
        let Ok(length) = u16::try_from(length) else { return false };
        let packet = &mut self.buffer[HEADER_ROOM - self.header_len..];
        if is_v4 {
            let mut packet = Ipv4Packet::new_unchecked(packet);
            packet.set_total_len(length);
            packet.clear_flags();
            packet.set_frag_offset(0);
            packet.fill_checksum();
        } else {
            Ipv6Packet::new_unchecked(packet).set_payload_len(length);
        }
        true
    }

    /// The packet, once it is complete.
    fn packet(&self) -> &[u8] {
        &self.buffer[HEADER_ROOM - self.header_len..]
    }

    /// Drops all there is and all that comes until the deadline.
    fn abandon(&mut self) -> Outcome {
        self.abandoned = true;
        self.buffer = Vec::new();
        Outcome::Incomplete { dropped: mem::take(&mut self.fragments) }
    }
}

#[cfg(test)]
mod tests;
