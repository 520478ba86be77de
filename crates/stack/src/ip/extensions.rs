//! IPv6 extension headers (RFC 8200, 4): read, checked and removed.
//!
//! Neither smoltcp nor the socket of an unprivileged process can carry extension headers, so a packet goes on without
//! them. This module reads hop-by-hop options, destination options and routing headers. The fragment header belongs to
//! [`crate::fragments`]; any other number names the transport protocol.
//!
//! - Options that may be skipped (RFC 8200, 4.2) are skipped. Any other option but padding discards the packet.
//! - A routing header without segments left is skipped. One with segments left discards the packet, whatever its type:
//!   type 0 must not be obeyed (RFC 5095), and the others name an address that no socket can visit.
//! - Hop-by-hop options come first or not at all (RFC 8200, 4.1).
//! - A packet has at most 8 extension headers (RFC 8504, 5.3).
//!
//! A packet that is discarded here is counted. Its sender gets no ICMP error.

use smoltcp::wire::IPV6_HEADER_LEN;

use crate::discard::Discard;

/// Most extension headers in one packet. RFC 8200, 4.1 recommends each kind once, but destination options twice.
/// For the three kinds read here that makes four; twice as many are allowed.
const MAX_HEADERS: usize = 8;

/// Offset of the next-header field in the IPv6 header.
const NEXT_HEADER: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// What follows the extension headers of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Offset of the byte that names `protocol`.
    pub(crate) named_at: usize,
    /// The first next header that is not read here.
    pub(crate) protocol: u8,
    /// Offset of the first byte behind the extension headers.
    pub(crate) end: usize,
}

/// Whether this module reads the extension header with this number.
pub(crate) fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS)
}

/// Reads the extension headers of a packet, whose end may be missing.
pub(crate) fn read(packet: &[u8]) -> Result<Chain, Discard> {
    let (mut named_at, mut at) = (NEXT_HEADER, IPV6_HEADER_LEN);
    for _ in 0..=MAX_HEADERS {
        let protocol = *packet.get(named_at).ok_or(Discard::Malformed)?;
        if !is_extension(protocol) {
            return Ok(Chain { named_at, protocol, end: at });
        }
        if protocol == HOP_BY_HOP && at != IPV6_HEADER_LEN {
            return Err(Discard::Malformed);
        }
        let rest = &packet.get(at..).ok_or(Discard::Malformed)?;
        let units = *rest.get(1).ok_or(Discard::Malformed)?;
        let header = rest.get(..(usize::from(units) + 1) * 8).ok_or(Discard::Malformed)?;
        if protocol == ROUTING {
            check_routing(header)?;
        } else {
            check_options(&header[2..])?;
        }
        named_at = at;
        at += header.len();
    }
    Err(Discard::Protocol)
}

/// Offset at which a packet names its transport protocol: the pointer of the ICMP error that says that this protocol is
/// unknown (RFC 4443, 3.4).
pub(crate) fn named_at(packet: &[u8]) -> u32 {
    let at = read(packet).map_or(NEXT_HEADER, |chain| chain.named_at);
    u32::try_from(at).unwrap_or(0)
}

/// Removes the extension headers of an IPv6 packet. The result is the packet that would have come without them.
///
/// # Errors
/// [`Discard::Malformed`] if headers or packet are cut short or out of order. [`Discard::Protocol`] if a header demands
/// what this module does not do, or if there are too many.
pub fn strip(packet: &[u8]) -> Result<Vec<u8>, Discard> {
    let (header, _) = packet.split_first_chunk::<IPV6_HEADER_LEN>().ok_or(Discard::Malformed)?;
    let length = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let packet = packet.get(..length).ok_or(Discard::Malformed)?;
    let chain = read(packet)?;
    let payload = packet.get(chain.end..).ok_or(Discard::Malformed)?;
    let mut stripped = [header, payload].concat();
    let length = u16::try_from(payload.len()).map_err(|_| Discard::Malformed)?;
    stripped[4..6].copy_from_slice(&length.to_be_bytes());
    stripped[NEXT_HEADER] = chain.protocol;
    Ok(stripped)
}

/// The field "segments left" stands behind next header, length and type (RFC 8200, 4.4).
fn check_routing(header: &[u8]) -> Result<(), Discard> {
    if header.get(3) == Some(&0) { Ok(()) } else { Err(Discard::Protocol) }
}

/// The upper two bits of an option's type say what to do if the option is unknown (RFC 8200, 4.2).
fn check_options(mut options: &[u8]) -> Result<(), Discard> {
    const PAD1: u8 = 0;
    loop {
        match *options {
            [] => return Ok(()),
            [PAD1, ref rest @ ..] => options = rest,
            [kind, length, ref rest @ ..] => {
                if kind >> 6 != 0 {
                    return Err(Discard::Protocol);
                }
                options = rest.get(usize::from(length)..).ok_or(Discard::Malformed)?;
            }
            [_] => return Err(Discard::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with these headers, each with its number, and a payload of protocol 17.
    fn packet(headers: &[(u8, &[u8])], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER_LEN];
        packet[0] = 0x60;
        let mut named_at = NEXT_HEADER;
        for (number, body) in headers {
            packet[named_at] = *number;
            named_at = packet.len();
            packet.extend_from_slice(&[0, u8::try_from((body.len() + 2) / 8 - 1).unwrap()]);
            packet.extend_from_slice(body);
        }
        packet[named_at] = 17;
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len() - IPV6_HEADER_LEN).unwrap();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet
    }

    const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
    const ROUTED: [u8; 6] = [0; 6];

    #[test]
    fn a_packet_goes_on_without_them() {
        let headers = [(HOP_BY_HOP, &PADDING[..]), (DESTINATION_OPTIONS, &PADDING), (ROUTING, &ROUTED)];
        let stripped = strip(&packet(&headers, b"datagram")).unwrap();
        assert_eq!(stripped, packet(&[], b"datagram"));
        assert_eq!(named_at(&packet(&headers, b"datagram")), 56);
        assert_eq!(named_at(&stripped), 6);
    }

    #[test]
    fn what_asks_for_more_is_discarded() {
        let discarded = |headers: &[(u8, &[u8])]| strip(&packet(headers, b"")).unwrap_err();
        // Segments left; an option that must be known; hop-by-hop options behind others.
        assert_eq!(discarded(&[(ROUTING, &[0, 1, 0, 0, 0, 0])]), Discard::Protocol);
        assert_eq!(discarded(&[(HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0])]), Discard::Protocol);
        assert_eq!(discarded(&[(ROUTING, &ROUTED), (HOP_BY_HOP, &PADDING)]), Discard::Malformed);
        assert_eq!(discarded(&[(DESTINATION_OPTIONS, &[1, 5, 0, 0, 0, 0])]), Discard::Malformed);
        assert_eq!(discarded(&[(DESTINATION_OPTIONS, &PADDING[..]); 9]), Discard::Protocol);
        assert!(strip(&packet(&[(DESTINATION_OPTIONS, &PADDING[..]); 8], b"")).is_ok());
    }

    #[test]
    fn options_that_may_be_skipped_are() {
        // Router alert, and one that nobody knows.
        for options in [[5, 2, 0, 0, 1, 0], [0x3e, 4, 1, 2, 3, 4]] {
            assert!(strip(&packet(&[(HOP_BY_HOP, &options)], b"")).is_ok());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            next in prop::sample::select(vec![HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS]),
        ) {
            let mut bytes = bytes;
            if bytes.len() > 42 {
                (bytes[0], bytes[4], bytes[6], bytes[41]) = (0x60, 0, next, bytes[41] % 8);
            }
            if let Ok(stripped) = strip(&bytes) {
                prop_assert!(stripped.len() <= bytes.len());
                prop_assert!(!is_extension(stripped[NEXT_HEADER]));
            }
            let _ = named_at(&bytes);
        }
    }
}
