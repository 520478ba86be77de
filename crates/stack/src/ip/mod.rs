//! A checked view of an IP header. Of the payload nothing is known yet.

pub mod extensions;
pub mod header;

use std::net::IpAddr;

use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use crate::discard::Discard;

/// An IP packet that is whole; of its payload nothing is known.
#[derive(Debug, Clone, Copy)]
pub struct Ip<'a> {
    pub bytes: &'a [u8],
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub dont_fragment: bool,
    pub protocol: u8,
    pub payload: &'a [u8],
}

impl<'a> Ip<'a> {
    // Into `Packet::parse`, which every packet passes. The compiler would not, for packets between containers need it too,
    // and a quarter more instructions for every packet is what that costs.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Discard> {
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

/// Whether an address may stand in a packet on the wire between two hosts. IPv4-mapped addresses may not
/// (RFC 4291, 2.5.5.2): to a socket they would mean the IPv4 address, past every rule for it.
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
