//! Frames made by hand, for container sides without a kernel's network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nsnet_proto::vnet::{Checksum, Header};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A frame with an IPv4 packet. The checksum of its transport need not be right.
pub(crate) fn frame(protocol: u8, from: Ipv4Addr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let header = Header { checksum: Checksum::Verified, segmentation: None };
    let IpAddr::V4(to) = to.ip() else { panic!("{to} is not IPv4") };
    [&header.to_bytes()[..], &ip_header(protocol, from, to, payload.len()), payload].concat()
}

/// A UDP datagram (RFC 768).
pub(crate) fn datagram(from: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [from, to.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    datagram
}

/// RFC 791, 3.1.
fn ip_header(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: usize) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&u16::try_from(20 + payload).unwrap().to_be_bytes());
    (header[8], header[9]) = (64, protocol);
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    header
}
