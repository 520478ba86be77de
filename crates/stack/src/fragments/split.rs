//! Fragments packets for the container.

use std::net::IpAddr;

use smoltcp::wire::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::FRAGMENT_HEADER_LEN;

/// Payload bytes of each fragment but the last, for the family of `address`. The MTU must be at least 68 bytes, as RFC
/// 791, 3.2 demands of every link.
#[must_use]
pub fn size(address: IpAddr, mtu: u16) -> u16 {
    let headers = match address {
        IpAddr::V4(_) => V4_HEADER,
        IpAddr::V6(_) => V6_HEADERS,
    };
    (mtu - headers) / 8 * 8
}

/// Permits the receiver to fragment an IPv4 packet: clears DF and sets the identification, of which IPv4 takes the
/// lower 16 bits. An IPv6 packet needs no permission.
///
/// # Panics
/// If the packet is shorter than an IP header.
pub fn permit(packet: &mut [u8], identification: u32) {
    if packet[0] >> 4 == 4 {
        let mut header = Ipv4Packet::new_unchecked(packet);
        header.set_ident(low_half(identification));
        header.set_dont_frag(false);
        header.fill_checksum();
    }
}

/// The fragments of a packet that are left to send.
///
/// For each of them, call [`next_len`](Self::next_len), [`write_next`](Self::write_next) and
/// [`advance`](Self::advance).
#[derive(Debug)]
pub struct Fragments {
    /// The whole packet, without IP options or extension headers, with complete checksums.
    packet: Vec<u8>,
    version: Version,
    identification: u32,
    /// Payload bytes of each fragment but the last.
    size: usize,
    /// Payload bytes that have been sent.
    offset: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Version {
    fn header_len(self) -> usize {
        match self {
            Self::V4 => IPV4_HEADER_LEN,
            Self::V6 => IPV6_HEADER_LEN,
        }
    }

    /// Length in bytes of the headers of a fragment.
    fn headers_len(self) -> usize {
        match self {
            Self::V4 => IPV4_HEADER_LEN,
            Self::V6 => IPV6_HEADER_LEN + FRAGMENT_HEADER_LEN,
        }
    }
}

impl Fragments {
    /// Fragments a packet that this stack has built, without IP options or extension headers. [`size`] computes `size`.
    /// IPv4 takes the lower 16 bits of the identification.
    ///
    /// # Panics
    /// If the packet is empty.
    #[must_use]
    pub fn new(packet: Vec<u8>, size: u16, identification: u32) -> Self {
        let version = if packet[0] >> 4 == 4 { Version::V4 } else { Version::V6 };
        Self { packet, version, identification, size: size.into(), offset: 0 }
    }

    /// Length in bytes of the next fragment, or `None` if none is left.
    #[must_use]
    pub fn next_len(&self) -> Option<usize> {
        let payload = self.payload().len().min(self.size);
        (payload > 0).then(|| self.version.headers_len() + payload)
    }

    /// Writes the next fragment into `buffer`, which must be [`next_len`](Self::next_len) bytes long.
    ///
    /// # Panics
    /// If `buffer` is shorter than the headers of a fragment, or longer than what is left to send.
    pub fn write_next(&self, buffer: &mut [u8]) {
        let length = u16::try_from(buffer.len()).unwrap_or(0);
        let offset = u16::try_from(self.offset).unwrap_or(0);
        let (headers, payload) = buffer.split_at_mut(self.version.headers_len());
        let (header, extension) = headers.split_at_mut(self.version.header_len());
        header.copy_from_slice(&self.packet[..header.len()]);
        payload.copy_from_slice(&self.payload()[..payload.len()]);
        let more = payload.len() < self.payload().len();
        match self.version {
            Version::V4 => {
                let mut header = Ipv4Packet::new_unchecked(header);
                header.set_total_len(length);
                header.set_ident(low_half(self.identification));
                header.clear_flags();
                header.set_more_frags(more);
                header.set_frag_offset(offset);
                header.fill_checksum();
            }
            Version::V6 => {
                let mut header = Ipv6Packet::new_unchecked(header);
                let protocol = header.next_header();
                header.set_payload_len(length - V6_HEADER);
                header.set_next_header(IpProtocol::Ipv6Frag);
                extension[..2].copy_from_slice(&[protocol.into(), 0]);
                extension[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
                extension[4..].copy_from_slice(&self.identification.to_be_bytes());
            }
        }
    }

    /// Moves on to the next fragment.
    pub fn advance(&mut self) {
        self.offset += self.payload().len().min(self.size);
    }

    /// The payload that is left to send.
    fn payload(&self) -> &[u8] {
        &self.packet[self.version.header_len() + self.offset..]
    }
}

/// Length of an IPv4 header without options (RFC 791, 3.1).
const V4_HEADER: u16 = 20;

/// Length of an IPv6 header (RFC 8200, 3). Its payload length does not count it.
const V6_HEADER: u16 = 40;

/// Length of the headers of an IPv6 fragment.
const V6_HEADERS: u16 = V6_HEADER + 8;

/// The bits of an identification that fit into an IPv4 header.
fn low_half(identification: u32) -> u16 {
    let [.., high, low] = identification.to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::udp::packet::{self as datagram, ChecksumMode};

    fn cut(is_v4: bool, payload: usize, mtu: u16) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (source, destination) =
            if is_v4 { ("10.99.0.2:53", "10.0.2.100:4000") } else { ("[fd99::2]:53", "[fd00::100]:4000") };
        let source: std::net::SocketAddr = source.parse().unwrap();
        let mut packet = vec![0; datagram::length(source, payload)];
        let payload = vec![7; payload];
        datagram::write(&mut packet, source, destination.parse().unwrap(), &payload, ChecksumMode::Full);
        let mut fragments = Fragments::new(packet.clone(), size(source.ip(), mtu), 0x1234_5678);
        let mut cut = Vec::new();
        while let Some(length) = fragments.next_len() {
            let mut fragment = vec![0xff; length];
            fragments.write_next(&mut fragment);
            cut.push(fragment);
            fragments.advance();
        }
        (packet, cut)
    }

    proptest! {
        #[test]
        fn ipv4_fragments_are_what_rfc_791_says(payload in 1480..65_507usize, mtu in 576..1500u16) {
            let (packet, fragments) = cut(true, payload, mtu);
            let mut offset = 0;
            for (number, fragment) in fragments.iter().enumerate() {
                prop_assert!(fragment.len() <= mtu.into());
                let ip = Ipv4Packet::new_checked(&fragment[..]).unwrap();
                prop_assert!(ip.verify_checksum());
                prop_assert_eq!(usize::from(ip.total_len()), fragment.len());
                let is_last = number + 1 == fragments.len();
                prop_assert_eq!((ip.more_frags(), ip.dont_frag()), (!is_last, false));
                prop_assert_eq!(usize::from(ip.frag_offset()), offset);
                prop_assert_eq!(ip.ident(), 0x5678);
                prop_assert!(is_last || ip.payload().len().is_multiple_of(8));
                prop_assert_eq!(ip.payload(), &packet[20 + offset..][..ip.payload().len()]);
                offset += ip.payload().len();
            }
            prop_assert_eq!(offset, packet.len() - 20);
        }

        #[test]
        fn ipv6_fragments_are_what_rfc_8200_says(payload in 1480..65_527usize, mtu in 1280..1500u16) {
            let (packet, fragments) = cut(false, payload, mtu);
            let mut offset = 0;
            for (number, fragment) in fragments.iter().enumerate() {
                prop_assert!(fragment.len() <= mtu.into());
                let ip = Ipv6Packet::new_checked(&fragment[..]).unwrap();
                prop_assert_eq!(ip.total_len(), fragment.len());
                prop_assert_eq!(ip.next_header(), IpProtocol::Ipv6Frag);
                let more = u8::from(number + 1 < fragments.len());
                let [high, low] = u16::try_from(offset).unwrap().to_be_bytes();
                let (extension, data) = ip.payload().split_at(8);
                prop_assert_eq!(extension, &[17, 0, high, low | more, 0x12, 0x34, 0x56, 0x78]);
                prop_assert!(more == 0 || data.len().is_multiple_of(8));
                prop_assert_eq!(data, &packet[40 + offset..][..data.len()]);
                offset += data.len();
            }
            prop_assert_eq!(offset, packet.len() - 40);
        }
    }

    #[test]
    fn fragments_fill_the_mtu() {
        for (is_v4, lengths) in [(true, [1500, 1500, 68]), (false, [1496, 1496, 160])] {
            let (_, fragments) = cut(is_v4, 3000, 1500);
            assert_eq!(fragments.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        }
    }
}
