//! A checked view of one fragment from the container.

use std::net::IpAddr;

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::{BLOCK, FRAGMENT_HEADER_LEN};
use crate::discard::Discard;

/// Longest IPv4 packet, and longest payload of an IPv6 packet: what their length fields hold.
const MAX_LENGTH: usize = u16::MAX as usize;

/// A fragment whose place and length are possible.
#[derive(Debug, Clone, Copy)]
pub struct Fragment<'a> {
    pub key: Key,
    /// The IP header, without the fragment header.
    pub header: &'a [u8],
    /// What follows the header in the whole packet.
    pub protocol: u8,
    /// Place of the payload behind the header of the whole packet, in bytes.
    pub offset: usize,
    /// Whether others follow.
    pub more: bool,
    /// Empty only if this is all of its packet.
    pub payload: &'a [u8],
}

/// What the fragments of one packet have in common, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// In IPv6 only the first fragment says what the packet holds, so there it is no part of the key.
    pub protocol: Option<u8>,
    pub identification: u32,
}

impl<'a> Fragment<'a> {
    /// Reads an IP packet that is a fragment.
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

    /// The sender.
    pub fn source(&self) -> IpAddr {
        self.key.source
    }

    /// Whether it is all of its packet.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && !self.more
    }

    /// Where its payload ends.
    pub fn end(&self) -> usize {
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
            // The offset counts blocks of 8 in the upper 13 bits: masked it is one of bytes.
            offset: usize::from(place & !7),
            more: place & 1 != 0,
            payload,
        })
    }
}
