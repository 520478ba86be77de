//! Echo messages (ping): requests of the container read, replies to them written.
//!
//! ```text
//! type  code  checksum  identifier │ sequence number  data          RFC 792; RFC 4443, 4.1 and 4.2
//!  1     1       2          2      │       2           …
//! ```
//! Everything behind the identifier is called the datagram here, because it travels like one: the identifier is to an
//! echo message what the port is to a UDP datagram.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, IpRepr};

use crate::discard::Discard;
use crate::wire;

/// Length in bytes of the ICMP header up to the identifier; the datagram follows.
pub const HEADER: usize = 6;

/// Length in bytes of the sequence number, which every datagram begins with.
const SEQUENCE: usize = 2;

/// Whether a message is a request or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// "Echo" (RFC 792), "echo request" (RFC 4443).
    Request,
    /// "Echo reply".
    Reply,
}

impl Message {
    /// The type field of the ICMP header, for the family of `address`.
    #[must_use]
    pub fn number(self, address: IpAddr) -> u8 {
        match (self, address) {
            (Self::Request, IpAddr::V4(_)) => 8,
            (Self::Reply, IpAddr::V4(_)) => 0,
            (Self::Request, IpAddr::V6(_)) => 128,
            (Self::Reply, IpAddr::V6(_)) => 129,
        }
    }
}

/// Whether an ICMP message from `source` has type and code of an echo request. The rest of it may be malformed.
pub(crate) fn is_request(source: IpAddr, message: &[u8]) -> bool {
    message.starts_with(&[Message::Request.number(source), 0])
}

/// Reads an echo request from `source` to `destination`: its identifier and its datagram. The checksum is checked only
/// if `verify` is set.
pub(crate) fn parse_request(
    source: IpAddr,
    destination: IpAddr,
    message: &[u8],
    verify: bool,
) -> Result<(u16, &[u8]), Discard> {
    let [_, _, _, _, high, low, ref datagram @ ..] = *message else { return Err(Discard::Malformed) };
    let is_intact = !verify
        || match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Icmpv6Packet::new_unchecked(message).verify_checksum(&source, &destination)
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Icmpv4Packet::new_unchecked(message).verify_checksum(),
        };
    if datagram.len() < SEQUENCE || !is_intact {
        return Err(Discard::Malformed);
    }
    Ok((u16::from_be_bytes([high, low]), datagram))
}

/// Length in bytes of the packet that carries a datagram of `datagram` bytes, for the family of `address`.
#[must_use]
pub fn length(address: IpAddr, datagram: usize) -> usize {
    wire::ip_header_len(address) + HEADER + datagram
}

/// Whether a packet can carry a datagram of `datagram` bytes: it must hold a sequence number, and the length fields of
/// IP have 16 bits.
#[must_use]
pub fn is_possible(address: IpAddr, datagram: usize) -> bool {
    let counted = match address {
        IpAddr::V4(_) => length(address, datagram),
        IpAddr::V6(_) => HEADER + datagram,
    };
    datagram >= SEQUENCE && u16::try_from(counted).is_ok()
}

/// The fields of the IP and ICMP headers of an echo message.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    /// Whether this is a request or a reply.
    pub message: Message,
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// TTL (RFC 791) or hop limit (RFC 8200).
    pub hop_limit: u8,
    /// Tells the messages of one sender from those of another on the same host.
    pub identifier: u16,
}

/// Writes the packet into `buffer`.
///
/// # Panics
/// If `buffer` is not exactly [`length`] bytes long, or if one address is IPv4 and the other IPv6.
pub fn write(buffer: &mut [u8], headers: Headers, datagram: &[u8]) {
    let Headers { message, source, destination, hop_limit, identifier } = headers;
    let protocol = match source {
        IpAddr::V4(_) => IpProtocol::Icmp,
        IpAddr::V6(_) => IpProtocol::Icmpv6,
    };
    let ip = IpRepr::new(source.into(), destination.into(), protocol, HEADER + datagram.len(), hop_limit);
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    ip.emit(&mut *buffer, &checksums);

    let packet = &mut buffer[ip.header_len()..];
    let [high, low] = identifier.to_be_bytes();
    packet[..HEADER].copy_from_slice(&[message.number(source), 0, 0, 0, high, low]);
    packet[HEADER..].copy_from_slice(datagram);
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Icmpv6Packet::new_unchecked(packet).fill_checksum(&source, &destination);
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => Icmpv4Packet::new_unchecked(packet).fill_checksum(),
    }
}

/// Rebuilds the start of an echo request that the container sent earlier, for an error to quote. The port of `source`
/// is the identifier.
///
/// The hop limit is 1: the original is not known, and a router that reports "time exceeded" finds 1.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn quote(source: SocketAddr, destination: IpAddr, datagram: &[u8]) -> Vec<u8> {
    let datagram = &datagram[..datagram.len().min(super::MAX_V6)];
    let mut quoted = vec![0; length(source.ip(), datagram.len())];
    let headers = Headers {
        message: Message::Request,
        source: source.ip(),
        destination,
        hop_limit: 1,
        identifier: source.port(),
    };
    write(&mut quoted, headers, datagram);
    quoted
}

#[cfg(test)]
mod tests {
    use nsnet_proto::vnet;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Packet, Transport};
    use crate::udp::Datagrams;

    const ENDS: [[&str; 2]; 2] = [["10.0.2.100", "10.99.0.2"], ["fd00::100", "fd99::2"]];

    fn written(ends: [&str; 2], message: Message, datagram: &[u8]) -> Vec<u8> {
        let [source, destination] = ends.map(|address| address.parse().unwrap());
        let mut packet = vec![0; length(source, datagram.len())];
        let headers = Headers { message, source, destination, hop_limit: 7, identifier: 0x1234 };
        write(&mut packet, headers, datagram);
        packet
    }

    fn parsed(packet: &[u8]) -> Result<Packet<'_>, Discard> {
        Packet::parse(&vnet::Header::default(), packet)
    }

    proptest! {
        #[test]
        fn a_request_reads_as_it_was_written(data in prop::collection::vec(any::<u8>(), 0..100), family in 0..2usize) {
            let datagram = [&[0, 9], &data[..]].concat();
            let packet = written(ENDS[family], Message::Request, &datagram);
            let packet = parsed(&packet).unwrap();
            prop_assert_eq!((packet.ends.source.port(), packet.ends.destination.port()), (0x1234, 0));
            prop_assert_eq!(packet.ends.source.ip().to_string(), ENDS[family][0]);
            let Transport::Echo(read) = packet.transport else { panic!("not an echo request") };
            prop_assert_eq!(read, Datagrams::one(&datagram));
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0..(6 + 16) * 8usize, family in 0..2usize) {
            let mut packet = written(ENDS[family], Message::Request, &[7; 16]);
            let message = packet.len() - 22;
            packet[message + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parsed(&packet).is_err());
        }
    }

    #[test]
    fn a_request_without_a_sequence_number_is_malformed() {
        for ends in ENDS {
            for missing in 1..=7 {
                let mut packet = written(ends, Message::Request, &[7; 2]);
                packet.truncate(packet.len() - missing);
                // The length in the IP header, so that it is the message that is too short.
                let length = u16::try_from(packet.len()).unwrap();
                if packet[0] >> 4 == 4 {
                    packet[2..4].copy_from_slice(&length.to_be_bytes());
                    smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet).fill_checksum();
                } else {
                    packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                }
                assert_eq!(parsed(&packet).unwrap_err(), Discard::Malformed, "{missing}");
            }
        }
    }

    #[test]
    fn a_reply_is_no_request() {
        for ends in ENDS {
            let packet = written(ends, Message::Reply, &[7; 2]);
            assert_eq!(parsed(&packet).unwrap_err(), Discard::Protocol);
        }
    }

    #[test]
    fn a_message_of_the_other_ip_version_is_not_read() {
        for (ends, number, other) in [(ENDS[0], 9, 58), (ENDS[1], 6, 1)] {
            let mut packet = written(ends, Message::Request, &[7; 2]);
            packet[number] = other;
            if packet[0] >> 4 == 4 {
                smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet).fill_checksum();
            }
            assert!(matches!(parsed(&packet).unwrap().transport, Transport::Unknown));
        }
    }

    #[test]
    fn the_longest_datagrams_are_those_of_ping() {
        for (ends, longest) in ENDS.into_iter().zip([65_507, 65_527]) {
            let address = ends[0].parse().unwrap();
            assert!(is_possible(address, SEQUENCE + longest));
            assert!(!is_possible(address, SEQUENCE + longest + 1));
            assert!(!is_possible(address, 1));
        }
    }

    #[test]
    fn a_quote_has_what_tells_whose_request_it_was() {
        for ends in ENDS {
            let [source, destination] = ends.map(|address| address.parse().unwrap());
            let quoted = quote(SocketAddr::new(source, 0x1234), destination, &[0, 9, 1, 2]);
            let packet = parsed(&quoted).unwrap();
            assert_eq!(packet.ends.source, SocketAddr::new(source, 0x1234));
            assert_eq!(packet.ends.destination, SocketAddr::new(destination, 0));
            assert_eq!(packet.hop_limit, 1);
            let Transport::Echo(datagram) = packet.transport else { panic!("not an echo request") };
            assert_eq!(datagram, Datagrams::one(&[0, 9, 1, 2]));
        }
    }
}
