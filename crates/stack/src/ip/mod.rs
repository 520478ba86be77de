//! IP headers: a checked view of a packet, peeks at single fields, and IPv6 extension headers.
//!
//! The view reads the IP header and nothing behind it; [`crate::packet`] reads the rest.

pub mod extensions;
pub mod header;

use std::net::IpAddr;

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::discard::Discard;

/// An IP packet with a sound header, not a fragment. Its payload is unchecked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ip<'a> {
    /// The packet, cut to the length that its header gives.
    pub(crate) bytes: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// How many hops the packet may still take, this one included.
    pub(crate) hop_limit: u8,
    /// Always set for IPv6, which no router fragments.
    pub(crate) dont_fragment: bool,
    /// The protocol (IPv4) or first next header (IPv6).
    pub(crate) protocol: u8,
    /// What follows the IPv4 header with its options, or the fixed IPv6 header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    // Always inlined into `Packet::parse`, which every packet passes. The compiler would not do it by itself because
    // packets between containers call this too; then every packet would cost a quarter more instructions.
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Discard> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(Discard::Malformed),
        }
    }

    #[inline(always)]
    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        if !packet.verify_checksum() {
            return Err(Discard::Malformed);
        }
        if packet.more_frags() || packet.frag_offset() != 0 {
            return Err(Discard::Fragment);
        }
        let (header, length) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        let payload = bytes.get(header..length).ok_or(Discard::Malformed)?;
        Ok(Self {
            bytes: &bytes[..length],
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: packet.dont_frag(),
            protocol: packet.next_header().into(),
            payload,
        })
    }

    #[inline(always)]
    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        let (header, length) = (packet.header_len(), packet.total_len());
        let payload = bytes.get(header..length).ok_or(Discard::Malformed)?;
        Ok(Self {
            bytes: &bytes[..length],
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: true,
            protocol: packet.next_header().into(),
            payload,
        })
    }
}

/// Whether an address may appear in a packet between two hosts.
///
/// IPv4-mapped addresses may not (RFC 4291, 2.5.5.2): a socket takes one for the IPv4 address, which would evade every
/// rule for that address.
#[inline]
pub(crate) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_multicast()
                && !address.is_loopback()
                && address.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), first in any::<u8>()) {
            let mut bytes = bytes;
            let length = u16::try_from(bytes.len()).unwrap();
            if first % 2 == 0 && bytes.len() >= 20 {
                let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
                packet.set_version(4);
                packet.set_header_len(first % 64);
                packet.set_total_len(length);
                packet.clear_flags();
                packet.set_frag_offset(0);
                let header = packet.header_len();
                if header >= 20 && u16::from(header) <= length {
                    packet.fill_checksum();
                }
            } else if bytes.len() >= 40 {
                let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
                packet.set_version(6);
                packet.set_payload_len(u16::from(first % 100));
            }
            if let Ok(ip) = Ip::parse(&bytes) {
                prop_assert!(ip.bytes.len() <= bytes.len());
                prop_assert!(ip.bytes.ends_with(ip.payload));
                prop_assert!(ip.bytes.len() - ip.payload.len() >= 20);
            }
        }
    }
}
