//! Numbers, lengths and sums of the IP wire format.

use std::net::IpAddr;

use smoltcp::wire::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol};

/// Length of an IP header without options or extension headers, as this stack emits it.
pub fn ip_header_len(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => IPV4_HEADER_LEN,
        IpAddr::V6(_) => IPV6_HEADER_LEN,
    }
}

/// The folded, not inverted sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1): what a device that
/// fills in the checksum expects to find in the checksum field.
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: IpProtocol, length: usize) -> u16 {
    let mut sum = u32::from(u8::from(protocol));
    sum += u32::try_from(length & 0xffff).unwrap_or(0) + u32::try_from(length >> 16).unwrap_or(0);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => sum += words(&address.octets()),
            IpAddr::V6(address) => sum += words(&address.octets()),
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

fn words(octets: &[u8]) -> u32 {
    octets.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

/// Protocol numbers (<https://www.iana.org/assignments/protocol-numbers>).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6_FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const IPV6_NO_NEXT_HEADER: u8 = 59;
}

/// The port of DNS servers (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;
