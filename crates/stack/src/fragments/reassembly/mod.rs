//! Reassembles packets; see the parent module for the rules.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::time::{Duration, Instant};

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::BLOCK;
use super::blocks::{Blocks, Coverage};
use super::fragment::{Fragment, Key};

/// Most packets that are incomplete at a time. They are few enough to search, and take less than 4 MiB with a spare
/// buffer.
const MAX_DATAGRAMS: usize = 60;

/// How long a packet may be incomplete: as in Linux (`IP_FRAG_TIME`), between the 15 s of RFC 791, 3.2 and the 60 s of
/// RFC 8200, 4.5.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Length of the longest IP header (RFC 791, 3.1). In a buffer the payload begins behind as much room.
const HEADER_ROOM: usize = 60;

/// Length of the longest buffer.
const MAX_BUFFER: usize = HEADER_ROOM + u16::MAX as usize;

/// Reassembles the packets of one container from their fragments.
///
/// Its memory and the time that a fragment takes are bounded, whatever fragments come: see [the module](super).
///
/// # Examples
/// ```
/// use std::time::Instant;
///
/// use nsnet_stack::fragments::{self, Fragment, Fragments, Reassembler};
/// use nsnet_stack::udp::packet::{self, ChecksumMode};
///
/// let (source, destination) = ("10.0.2.100:4000".parse().unwrap(), "10.99.0.2:53".parse().unwrap());
/// let mut sent = vec![0; packet::length(source, 2000)];
/// packet::write(&mut sent, source, destination, &[7; 2000], ChecksumMode::Full);
///
/// let (mut reassembler, now) = (Reassembler::default(), Instant::now());
/// let mut cut = Fragments::new(sent.clone(), fragments::size(source.ip(), 1500), 1);
/// let mut whole = None;
/// while let Some(length) = cut.next_len() {
///     let mut bytes = vec![0; length];
///     cut.write_next(&mut bytes);
///     cut.advance();
///     whole = reassembler.add(now, &Fragment::parse(&bytes).unwrap());
/// }
/// let whole = whole.expect("the last fragment completes the packet");
/// assert_eq!(whole.packet()[20..], sent[20..]);
/// reassembler.recycle(whole);
/// ```
#[derive(Default)]
pub struct Reassembler {
    /// In the order of their deadlines.
    under_way: VecDeque<Box<Partial>>,
    /// The buffer of the next packet.
    spare: Vec<u8>,
    dropped: u64,
}

/// A reassembled packet. [`Reassembler::recycle`] takes it back.
pub struct Whole(Box<Partial>);

impl fmt::Debug for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Whole").field("length", &self.packet().len()).finish()
    }
}

impl Whole {
    /// The packet: the header of its first fragment, then the whole payload.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.0.packet()
    }
}

impl fmt::Debug for Reassembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reassembler").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}

impl Reassembler {
    /// Takes in a fragment. Returns the packet that it completes, if it completes one.
    pub fn add(&mut self, now: Instant, fragment: &Fragment<'_>) -> Option<Whole> {
        self.expire(now);
        let at = if fragment.is_whole() { None } else { self.position(fragment.key) };
        // A fragment that is all of its packet leaves at once, and needs no room.
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

    /// Takes back a packet that has been read, so that the next one uses its memory.
    pub fn recycle(&mut self, whole: Whole) {
        self.spare = whole.0.buffer;
    }

    /// Drops the packets that have been incomplete for too long.
    pub fn expire(&mut self, now: Instant) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.drop_oldest();
        }
    }

    /// When the next packet [expires](Self::expire), unless it is complete by then. `None` if none is incomplete.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.under_way.front().map(|partial| partial.deadline)
    }

    /// How many fragments have been dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        mem::take(&mut self.dropped)
    }

    /// The index of the packet that has this key. It is mostly the newest.
    fn position(&self, key: Key) -> Option<usize> {
        self.under_way.iter().rposition(|partial| partial.key == key)
    }

    /// Begins a new packet and returns its index.
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

/// A packet that is incomplete.
struct Partial {
    key: Key,
    deadline: Instant,
    /// Whether a fragment has contradicted another.
    abandoned: bool,
    /// Fragments taken in, duplicates included.
    fragments: u64,
    blocks: Blocks,
    /// Payload bytes that have arrived.
    arrived: usize,
    /// The farthest end of a fragment.
    reached: usize,
    /// Length of the whole payload, once the last fragment has arrived.
    total: Option<usize>,
    /// Length of the first fragment's IP header.
    header_len: usize,
    /// The header, which ends at [`HEADER_ROOM`], then the payload as far as it reaches.
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

    /// Whether the fragment cannot belong to the same packet as those before it: it lies beyond the end, or moves the
    /// end.
    fn contradicts(&self, fragment: &Fragment<'_>) -> bool {
        let end = fragment.end();
        match (self.total, fragment.more) {
            (Some(total), true) => end >= total,
            (Some(total), false) => end != total,
            (None, true) => false,
            (None, false) => self.reached > 0 && end <= self.reached,
        }
    }

    /// Whether the fragment holds the same bytes as those that have arrived.
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

    /// Turns the first fragment's header into that of the whole packet. Returns whether the packet is short enough to
    /// have one: the first header may be longer than those of the other fragments.
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

    /// Drops all fragments of the packet, and those that come until its deadline.
    fn abandon(&mut self) -> Outcome {
        self.abandoned = true;
        self.buffer = Vec::new();
        Outcome::Incomplete { dropped: mem::take(&mut self.fragments) }
    }
}

#[cfg(test)]
mod tests;
