//! The few fields of an IP header that a router reads and writes without checking the rest of the packet.
//!
//! Functions that return an `Option` accept any bytes. The others take a packet whose header is known to be whole: they
//! index into it.

use std::net::IpAddr;

use crate::wire::protocol;

/// The destination address, or `None` if the bytes end before it or are not IP.
///
/// # Examples
/// ```
/// use nsnet_stack::ip::header;
///
/// let mut packet = [0; 20];
/// packet[0] = 0x45; // IPv4, a header of five words
/// packet[16..].copy_from_slice(&[10, 0, 2, 101]);
/// assert_eq!(header::destination(&packet), Some([10, 0, 2, 101].into()));
/// assert_eq!(header::destination(&packet[..19]), None);
/// ```
#[must_use]
pub fn destination(bytes: &[u8]) -> Option<IpAddr> {
    let octets = |at: usize| bytes.get(at..);
    match bytes.first()? >> 4 {
        4 => octets(16)?.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        6 => octets(24)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

/// The number in the protocol field (IPv4) or next-header field (IPv6), or `None` if the bytes end before it or are not
/// IP. IPv6 extension headers are not skipped.
#[must_use]
pub(crate) fn protocol(packet: &[u8]) -> Option<u8> {
    let at = match packet.first()? >> 4 {
        4 => PROTOCOL,
        6 => NEXT_HEADER,
        _ => return None,
    };
    packet.get(at).copied()
}

/// Whether a packet is TCP and not a fragment. Bytes that are not IP are not TCP.
#[must_use]
pub fn is_whole_segment(packet: &[u8]) -> bool {
    /// "More fragments" and the offset.
    const FRAGMENT: u16 = 0x3fff;
    let is_whole = packet.first().is_none_or(|first| first >> 4 != 4)
        || packet
            .get(FLAGS..)
            .and_then(|flags| flags.first_chunk())
            .is_some_and(|flags| u16::from_be_bytes(*flags) & FRAGMENT == 0);
    is_whole && protocol(packet) == Some(protocol::TCP)
}

/// The TTL (RFC 791, 3.1) or hop limit (RFC 8200, 3): how many hops the packet may still take, this one included.
///
/// # Panics
/// If the packet is shorter than an IP header.
#[must_use]
pub fn hop_limit(packet: &[u8]) -> u8 {
    packet[if is_v4(packet) { TTL } else { HOP_LIMIT }]
}

/// Subtracts one from the hop limit, and updates the checksum of an IPv4 header (RFC 1624, equation 3).
///
/// # Panics
/// If the packet is shorter than an IP header. The hop limit must not be 0.
pub fn count_hop(packet: &mut [u8]) {
    if !is_v4(packet) {
        packet[HOP_LIMIT] -= 1;
        return;
    }
    let word = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let before = word(packet, TTL);
    packet[TTL] -= 1;
    let after = word(packet, TTL);
    let sum = u32::from(!word(packet, CHECKSUM)) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&[high, low]);
}

/// Whether an IPv4 packet has a loose or strict source route (RFC 791, 3.1). Options that cannot be read count as one.
///
/// # Panics
/// If the packet is empty.
#[must_use]
pub fn is_source_routed(packet: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    if !is_v4(packet) {
        return false;
    }
    let mut options = packet.get(OPTIONS..usize::from(packet[0] & 15) * 4).unwrap_or_default();
    loop {
        options = match *options {
            [] | [END, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => rest,
            [LOOSE | STRICT, ..] => return true,
            [_, length, ..] if length >= 2 => match options.get(length.into()..) {
                Some(rest) => rest,
                None => return true,
            },
            [..] => return true,
        };
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Offsets in an IPv4 header (RFC 791, 3.1).
const FLAGS: usize = 6;
const TTL: usize = 8;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const OPTIONS: usize = 20;

/// Offsets in an IPv6 header (RFC 8200, 3).
const NEXT_HEADER: usize = 6;
const HOP_LIMIT: usize = 7;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use smoltcp::wire::{IPV4_HEADER_LEN, Ipv4Packet};

    use super::*;
    use crate::udp::packet::{self as udp, ChecksumMode};

    /// A datagram from 10.0.2.100 or fd00::100.
    fn datagram(destination: &str) -> Vec<u8> {
        let destination: SocketAddr = destination.parse().unwrap();
        let source = if destination.is_ipv4() { "10.0.2.100:4000" } else { "[fd00::100]:4000" };
        let source = source.parse().unwrap();
        let mut packet = vec![0; udp::length(source, 3)];
        udp::write(&mut packet, source, destination, b"abc", ChecksumMode::Full);
        packet
    }

    proptest! {
        #[test]
        fn any_bytes_are_peeked_at_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), version in 3..8u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | 5;
            }
            let is_ip = |header: [usize; 2]| {
                version == 4 && bytes.len() >= header[0] || version == 6 && bytes.len() >= header[1]
            };
            prop_assert_eq!(destination(&bytes).is_some(), is_ip([20, 40]));
            prop_assert_eq!(protocol(&bytes).is_some(), is_ip([10, 7]));
            prop_assert!(!is_whole_segment(&bytes) || protocol(&bytes) == Some(protocol::TCP));
        }

        #[test]
        fn any_options_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 20..80)) {
            let _ = is_source_routed(&bytes);
        }

        #[test]
        fn the_checksum_stays_right(bytes in any::<[u8; IPV4_HEADER_LEN]>(), ttl in 1..=u8::MAX) {
            let mut header = bytes;
            let mut packet = Ipv4Packet::new_unchecked(&mut header[..]);
            packet.set_version(4);
            packet.set_header_len(20);
            packet.set_hop_limit(ttl);
            packet.fill_checksum();
            count_hop(&mut header);
            prop_assert_eq!(hop_limit(&header), ttl - 1);
            prop_assert!(Ipv4Packet::new_unchecked(&header[..]).verify_checksum());
        }
    }

    #[test]
    fn a_whole_header_says_where_its_packet_goes_and_what_it_holds() {
        for address in ["10.99.0.2:53", "[fd99::2]:53"] {
            let packet = datagram(address);
            assert_eq!(destination(&packet), Some(address.parse::<SocketAddr>().unwrap().ip()));
            assert_eq!((protocol(&packet), hop_limit(&packet)), (Some(protocol::UDP), 64));
        }
    }

    #[test]
    fn a_fragment_is_no_whole_segment() {
        let [mut v4, mut v6] = ["10.99.0.2:53", "[fd99::2]:53"].map(datagram);
        assert!(!is_whole_segment(&v4) && !is_whole_segment(&v6), "UDP");
        (v4[PROTOCOL], v6[NEXT_HEADER]) = (protocol::TCP, protocol::TCP);
        assert!(is_whole_segment(&v4) && is_whole_segment(&v6));
        v6[NEXT_HEADER] = protocol::IPV6_FRAGMENT;
        assert!(!is_whole_segment(&v6));
        // Don't fragment; more fragments; an offset.
        for (flags, is_whole) in [([0x40, 0], true), ([0x20, 0], false), ([0, 1], false)] {
            v4[FLAGS..FLAGS + 2].copy_from_slice(&flags);
            assert_eq!(is_whole_segment(&v4), is_whole, "{flags:?}");
        }
    }

    #[test]
    fn source_routes_are_found_behind_other_options() {
        let routed = |options: &[u8]| {
            let mut packet = vec![0x45 + u8::try_from(options.len() / 4).unwrap()];
            packet.resize(20, 0);
            packet.extend_from_slice(options);
            // The payload, which is not looked at.
            packet.extend_from_slice(&[131, 7, 4, 10]);
            is_source_routed(&packet)
        };
        // None, padding, a timestamp.
        assert!(!routed(&[]) && !routed(&[1, 1, 1, 0]) && !routed(&[68, 8, 5, 0, 0, 0, 0, 0]));
        assert!(!routed(&[0, 131, 3, 4]), "behind the end");
        assert!(routed(&[131, 7, 4, 10, 0, 2, 101, 0]) && routed(&[1, 137, 3, 4]));
        assert!(routed(&[68, 4, 5, 0, 131, 3, 4, 0]));
        // Too short, too long, without a length.
        assert!(routed(&[7, 0, 0, 0]) && routed(&[7, 9, 0, 0]) && routed(&[1, 1, 1, 7]));
    }

    #[test]
    fn ipv6_has_no_checksum_to_keep() {
        let mut header = [0x60; 40];
        count_hop(&mut header);
        assert_eq!(hop_limit(&header), 0x5f);
        assert_eq!(header.iter().filter(|byte| **byte != 0x60).count(), 1);
    }
}
