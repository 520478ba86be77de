//! ICMP errors of the container, and the packets that they are about.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet};

use super::{HEADER, meaning_v4, meaning_v6};
use crate::discard::Discard;
use crate::flow::Endpoints;
use crate::icmp::IcmpError;
use crate::ip::extensions;
use crate::wire::protocol;

/// An ICMP error that the container sent about a packet that had come for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedded {
    /// The error.
    pub error: IcmpError,
    /// The protocol of the packet: [`protocol::TCP`] or [`protocol::UDP`].
    pub protocol: u8,
    /// The sender of the packet.
    pub peer: SocketAddr,
    /// The destination of the packet, in the container.
    pub container: SocketAddr,
}

impl Embedded {
    /// Reads an ICMP message that the container sent from `source` to `destination`. The checksum is checked only if
    /// `verify` is set.
    ///
    /// # Errors
    /// [`Discard::Protocol`] if the message is not an error, [`Discard::IcmpError`] if it is one that concerns no TCP
    /// or UDP flow, [`Discard::Malformed`] if it is unsound or quotes a packet that was not for the container.
    pub fn parse(source: IpAddr, destination: IpAddr, message: &[u8], verify: bool) -> Result<Self, Discard> {
        let (header, quoted) = message.split_first_chunk::<HEADER>().ok_or(Discard::Malformed)?;
        let [kind, code, _, _, parameter @ ..] = *header;
        let parameter = u32::from_be_bytes(parameter);
        let (is_error, is_intact, meaning) = match (source, destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let message = Icmpv6Packet::new_unchecked(message);
                let is_intact = !verify || message.verify_checksum(&source, &destination);
                (kind < 128, is_intact, meaning_v6(kind, code, parameter))
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => {
                let is_intact = !verify || Icmpv4Packet::new_unchecked(message).verify_checksum();
                (matches!(kind, 3 | 4 | 5 | 11 | 12), is_intact, meaning_v4(kind, code, parameter))
            }
        };
        if !is_error {
            return Err(Discard::Protocol);
        }
        let quoted = Quoted::parse(quoted).filter(|_| is_intact).ok_or(Discard::Malformed)?;
        // A host reports only on packets that came for itself.
        if quoted.destination != source {
            return Err(Discard::Malformed);
        }
        let error = meaning.filter(|_| matches!(quoted.protocol, protocol::TCP | protocol::UDP));
        let Endpoints { source: peer, destination: container } = quoted.ends();
        Ok(Self { error: error.ok_or(Discard::IcmpError)?, protocol: quoted.protocol, peer, container })
    }
}

/// The part of a packet that an error about it quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quoted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The transport protocol.
    pub(crate) protocol: u8,
    /// The first bytes behind the IP header: as many as every error quotes (RFC 792).
    start: [u8; 8],
}

impl Quoted {
    /// Reads the start of a packet. `None` for any fragment but the first, because only the first has a transport
    /// header.
    pub(crate) fn parse(quoted: &[u8]) -> Option<Self> {
        let (source, destination, protocol, transport) = match quoted.first()? >> 4 {
            4 => parse_v4(quoted)?,
            6 => parse_v6(quoted)?,
            _ => return None,
        };
        Some(Self { source, destination, protocol, start: *transport.first_chunk()? })
    }

    /// Both ends of a TCP segment or UDP datagram.
    pub(crate) fn ends(&self) -> Endpoints {
        Endpoints {
            source: SocketAddr::new(self.source, self.word(0)),
            destination: SocketAddr::new(self.destination, self.word(2)),
        }
    }

    /// Type and identifier of an echo message.
    pub(crate) fn echo(&self) -> (u8, u16) {
        (self.start[0], self.word(4))
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.start[at], self.start[at + 1]])
    }
}

/// Source, destination, protocol, and the bytes behind the header.
type Parts<'a> = (IpAddr, IpAddr, u8, &'a [u8]);

fn parse_v4(quoted: &[u8]) -> Option<Parts<'_>> {
    let [first, .., p0, p1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *quoted.first_chunk::<20>()?;
    let is_first = u16::from_be_bytes([p0, p1]) & 0x1fff == 0;
    let transport = quoted.get(usize::from(first & 0xf) * 4..).filter(|_| first & 0xf >= 5 && is_first)?;
    Some(([s0, s1, s2, s3].into(), [d0, d1, d2, d3].into(), protocol, transport))
}

fn parse_v6(quoted: &[u8]) -> Option<Parts<'_>> {
    let address = |at: usize| quoted.get(at..)?.first_chunk::<16>().copied();
    let chain = extensions::read(quoted).ok()?;
    Some((address(8)?.into(), address(24)?.into(), chain.protocol, quoted.get(chain.end..)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::icmp::Unreachable;
    use crate::icmp::{error, quote_datagram};

    const FLOWS: [[&str; 2]; 2] = [["10.99.0.2:53", "10.0.2.100:4000"], ["[fd99::2]:53", "[fd00::100]:4000"]];

    /// The message of an error from the container about a datagram of `peer`, and how it is read.
    fn read_back(said: IcmpError, [peer, container]: [&str; 2]) -> (Result<Embedded, Discard>, Embedded) {
        let (peer, container): (SocketAddr, SocketAddr) = (peer.parse().unwrap(), container.parse().unwrap());
        let quoted = quote_datagram(peer, container, b"late");
        let packet = error(container.ip(), peer.ip(), 64, said, &quoted);
        let message = &packet[crate::wire::ip_header_len(peer.ip())..];
        let read = Embedded::parse(container.ip(), peer.ip(), message, true);
        (read, Embedded { error: said, protocol: protocol::UDP, peer, container })
    }

    #[test]
    fn a_closed_port_of_the_container_is_told_with_its_flow() {
        for flow in FLOWS {
            for said in [Unreachable::Port.into(), IcmpError::PacketTooBig { mtu: 1300 }] {
                let (read, expected) = read_back(said, flow);
                assert_eq!(read, Ok(expected));
            }
        }
    }

    #[test]
    fn what_is_no_error_is_told_from_one() {
        let address = "10.0.2.100".parse().unwrap();
        let request = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        assert_eq!(Embedded::parse(address, address, &request, true), Err(Discard::Protocol));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..15u8) {
            let mut bytes = bytes;
            if bytes.len() > 8 {
                (bytes[0], bytes[8]) = (kind, if kind % 2 == 0 { 0x45 } else { 0x60 });
            }
            for address in ["10.0.2.100", "fd00::100"] {
                let address = address.parse().unwrap();
                let _ = Embedded::parse(address, address, &bytes, false);
            }
        }

        #[test]
        fn any_quote_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), first in 0x40..0x70u8) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if bytes.len() > 6 {
                // A first fragment in IPv4, an extension header now and then in IPv6.
                bytes[6] = if first >> 4 == 4 { 0x20 } else { bytes[6] % 64 };
            }
            if let Some(quoted) = Quoted::parse(&bytes) {
                prop_assert_eq!(quoted.ends().source.ip(), quoted.source);
                prop_assert_eq!(quoted.ends().destination.ip(), quoted.destination);
                prop_assert_eq!(quoted.echo().0.to_be_bytes()[0], quoted.ends().source.port().to_be_bytes()[0]);
            }
        }
    }
}
