//! A checked view of one fragment from the container.

use std::net::IpAddr;

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::{BLOCK, FRAGMENT_HEADER_LEN};
use crate::discard::Discard;

/// Longest IPv4 packet, and longest payload of an IPv6 packet, in bytes: the length fields have 16 bits.
const MAX_LENGTH: usize = u16::MAX as usize;

/// A fragment whose offset and length are possible.
#[derive(Debug, Clone, Copy)]
pub struct Fragment<'a> {
    pub(super) key: Key,
    /// The IP header, without the fragment header.
    pub(super) header: &'a [u8],
    /// The protocol of the whole packet's payload. In IPv6 only the first fragment's counts.
    pub(super) protocol: u8,
    /// Offset of this payload in that of the whole packet, in bytes.
    pub(super) offset: usize,
    /// Whether other fragments follow.
    pub(super) more: bool,
    /// Empty only if this is all of its packet.
    pub(super) payload: &'a [u8],
}

/// The fields in which the fragments of one packet agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    destination: IpAddr,
    /// `None` for IPv6, where only the first fragment knows it.
    protocol: Option<u8>,
    identification: u32,
}

impl<'a> Fragment<'a> {
    /// Reads an IP packet that is a fragment. An IPv6 packet must have the fragment header next to the IPv6 header.
    ///
    /// # Errors
    /// [`Discard::Protocol`] if an IPv6 packet has no fragment header there, otherwise [`Discard::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Discard> {
        let fragment = match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes)?,
            Some(6) => Self::parse_v6(bytes)?,
            _ => return Err(Discard::Malformed),
        };
        let header = if fragment.source().is_ipv4() { fragment.header.len() } else { 0 };
        let is_empty = fragment.payload.is_empty() && !fragment.is_whole();
        let is_uneven = fragment.more && !fragment.payload.len().is_multiple_of(BLOCK);
        if is_empty || is_uneven || header + fragment.end() > MAX_LENGTH {
            return Err(Discard::Malformed);
        }
        Ok(fragment)
    }

    /// The address of the sender.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.key.source
    }

    /// Whether this fragment is all of its packet.
    pub(super) fn is_whole(&self) -> bool {
        self.offset == 0 && !self.more
    }

    /// Where this payload ends in that of the whole packet, in bytes.
    pub(super) fn end(&self) -> usize {
        self.offset + self.payload.len()
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        if !packet.verify_checksum() {
            return Err(Discard::Malformed);
        }
        let (header, length) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        let protocol = packet.next_header().into();
        let key = Key {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: Some(protocol),
            identification: packet.ident().into(),
        };
        Ok(Self {
            key,
            header: bytes.get(..header).ok_or(Discard::Malformed)?,
            protocol,
            offset: packet.frag_offset().into(),
            more: packet.more_frags(),
            payload: bytes.get(header..length).ok_or(Discard::Malformed)?,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        if packet.next_header() != IpProtocol::Ipv6Frag {
            return Err(Discard::Protocol);
        }
        let rest = bytes.get(IPV6_HEADER_LEN..packet.total_len()).ok_or(Discard::Malformed)?;
        let (fragment, payload) =
            rest.split_first_chunk::<FRAGMENT_HEADER_LEN>().ok_or(Discard::Malformed)?;
        let [protocol, _, place @ .., a, b, c, d] = *fragment;
        let place = u16::from_be_bytes(place);
        let key = Key {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: None,
            identification: u32::from_be_bytes([a, b, c, d]),
        };
        Ok(Self {
            key,
            header: bytes.get(..IPV6_HEADER_LEN).ok_or(Discard::Malformed)?,
            protocol,
            // The upper 13 bits count blocks of 8 bytes. With the others masked, the field counts bytes.
            offset: usize::from(place & !7),
            more: place & 1 != 0,
            payload,
        })
    }
}
