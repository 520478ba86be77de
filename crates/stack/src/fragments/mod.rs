//! IP fragments: packets of the container reassembled, packets for the container fragmented.
//!
//! A container's kernel fragments a datagram that exceeds the MTU, whatever is offloaded, and reassembles the fragments
//! that it receives.
//!
//! # From the container
//! ```text
//! frame → Packet::parse says "fragment" → Fragment::parse → Reassembler::add → Whole → Packet::parse
//! ```
//! Fragments of one packet agree in source, destination and identification, and for IPv4 also in the protocol (RFC 791,
//! 3.2; RFC 8200, 4.5). The reassembled packet has the header of its first fragment. It is then read like any other,
//! transport checksum included, because the sender computed that before it fragmented. An IPv6 fragment that is a whole
//! packet completes at once, apart from all others (RFC 6946). IPv6 extension headers in front of the fragment header
//! are removed before the fragment comes here ([`crate::ip::extensions`]), those behind it once the packet is whole.
//!
//! The sender is hostile. Each packet has a buffer, and a bit for each block of 8 bytes. So a fragment costs its own
//! length, however small it is and in whatever order it comes; at most once per packet, 64 KiB are cleared.
//!
//! - A fragment that repeats bytes which are there already is ignored. One that overlaps in any other way, lies beyond
//!   the end, or moves the end abandons the packet: all of its fragments are dropped, also those still to come (RFC
//!   5722, 4).
//! - A fragment is dropped by itself if it is empty or ends beyond the longest packet. So is one that is not the last
//!   and whose length is not a multiple of 8 bytes.
//! - A packet that is incomplete 30 s after its first fragment is dropped. Duplicates do not prolong that.
//! - At most 60 packets are incomplete at a time, and a new one displaces the oldest. Their buffers take less than 4
//!   MiB.
//!
//! Every fragment becomes part of a whole packet or is counted as dropped. No ICMP error says so (time exceeded, RFC
//! 792): the only sender is the kernel behind a link that loses nothing.
//!
//! # To the container
//! With offload, a datagram above the MTU goes in one frame, whose header says how it may be fragmented. The
//! container's kernel gives it to the socket whole, and fragments it only to route it on. Without offload, or if the
//! datagram is longer than a frame (IPv6 has room for 40 bytes more), [`Fragments`] cuts the packet, with complete
//! checksums. In both cases DF is clear. Identifications count up from a random start: the container is the only
//! destination, so this is the method of RFC 7739, 5.2.

mod blocks;
mod fragment;
mod reassembly;
mod split;

pub use fragment::Fragment;
pub use reassembly::{Reassembler, Whole};
pub use split::{Fragments, permit, size};

/// Length of the IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER_LEN: usize = 8;

/// Length in bytes of a block, the unit of fragment offsets (RFC 791, 3.1).
const BLOCK: usize = 8;
