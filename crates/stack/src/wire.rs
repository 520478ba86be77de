//! Lengths, checksums and protocol numbers of the IP wire format.

use std::net::IpAddr;

use smoltcp::wire::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol};

/// Length in bytes of an IP header of the family of `address`, without IPv4 options or IPv6 extension headers: the
/// headers that this stack emits.
#[must_use]
pub fn ip_header_len(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => IPV4_HEADER_LEN,
        IpAddr::V6(_) => IPV6_HEADER_LEN,
    }
}

/// The sum over the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1), folded but not inverted.
///
/// A device that completes checksums expects this sum in the checksum field. `length` is that of the transport header
/// and its payload, in bytes.
pub(crate) fn pseudo_header_sum(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    length: usize,
) -> u16 {
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

/// Numbers of the Internet protocols (<https://www.iana.org/assignments/protocol-numbers>), as they stand in the
/// protocol field of IPv4 and the next-header field of IPv6.
pub mod protocol {
    /// ICMP for IPv4, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// The IPv6 fragment header, RFC 8200, 4.5.
    pub const IPV6_FRAGMENT: u8 = 44;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// Nothing follows, RFC 8200, 4.7.
    pub const IPV6_NO_NEXT_HEADER: u8 = 59;
}

/// The port of DNS servers (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::checksum;

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_pseudo_header(
            v4 in any::<([u8; 4], [u8; 4])>(), v6 in any::<([u8; 16], [u8; 16])>(), length in any::<u16>(),
        ) {
            let sum = |source, destination| {
                pseudo_header_sum(source, destination, IpProtocol::Udp, length.into())
            };
            let (one, other) = (v4.0.into(), v4.1.into());
            let expected = checksum::pseudo_header_v4(&one, &other, IpProtocol::Udp, length.into());
            prop_assert_eq!(sum(one.into(), other.into()), expected);
            let (one, other) = (v6.0.into(), v6.1.into());
            let expected = checksum::pseudo_header_v6(&one, &other, IpProtocol::Udp, length.into());
            prop_assert_eq!(sum(one.into(), other.into()), expected);
        }
    }
}
