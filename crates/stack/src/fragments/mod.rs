//! IP fragments: packets of the container put together, datagrams for the container taken apart.
//!
//! A container's kernel cuts a datagram that exceeds the MTU into fragments itself, whatever is offloaded, and puts
//! together what it is sent. Both directions are pure: packets and the time in, packets out.
//!
//! # From the container
//! ```text
//! frame → Packet::parse says "fragment" → Fragment::parse → Reassembler::add → Whole → Packet::parse
//! ```
//! What belongs together is told by source, destination and identification, and in IPv4 the protocol (RFC 791, 3.2;
//! RFC 8200, 4.5). The whole packet has the header of the first fragment; it is read like any other then, its
//! checksum included, for the sender has computed it before cutting. An IPv6 fragment that is all of its packet is
//! complete at once and meets no other (RFC 6946). Extension headers before the fragment header are taken out before
//! it comes here ([`crate::ip::extensions`]), those behind it once the packet is whole.
//!
//! The sender is hostile. A datagram has a buffer and a bit for each block of 8 bytes, so a fragment costs its own
//! length, in whatever order and however small they come, and at most once per datagram the clearing of its 64 KiB:
//!
//! - A fragment that repeats bytes that are there already is ignored; one that overlaps in any other way abandons
//!   the datagram, and what still comes of it is dropped (RFC 5722, 4).
//! - So does one that lies beyond the end or moves it.
//! - A fragment is dropped by itself if it is empty, ends beyond what a packet can hold, or is not the last and no
//!   multiple of 8 bytes long.
//! - A datagram that lacks pieces is dropped 30 s after its first fragment came; duplicates do not prolong it.
//! - At most 60 datagrams are under way, the oldest makes room: with their buffers less than 4 MiB.
//!
//! Every fragment becomes part of a whole packet or is counted as dropped. Nobody is told of that (RFC 792, time
//! exceeded): the only sender is the kernel behind a link that loses nothing on the way.
//!
//! # To the container
//! With offload a datagram goes in one frame whose header says how it may be cut: the container's kernel hands it to
//! the socket as it is, and cuts it only to route it on. Without, or if the datagram is longer than a frame (IPv6
//! has room for 40 bytes more), [`Fragments`] cuts it into pieces of the MTU, all but the last a multiple of 8 bytes
//! long and with complete checksums. Either way DF is cleared, and identifications count up from a random start: the
//! container is the only destination, so this is what RFC 7739, 5.2 describes.

mod blocks;
mod fragment;
mod reassembly;
mod split;

pub use fragment::Fragment;
pub use reassembly::Reassembler;
pub use split::{Fragments, permit, size};

/// Length of the IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER_LEN: usize = 8;

/// Offsets count blocks of this many bytes (RFC 791, 3.1).
const BLOCK: usize = 8;
