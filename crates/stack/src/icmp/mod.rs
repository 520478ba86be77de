//! ICMP: errors for the container, errors of the container, and echo messages.
//!
//! An error quotes the start of the offending packet, so that the container's kernel finds the socket that it concerns
//! (RFC 792; RFC 1812, 4.3.2.3; RFC 4443, 3.1). Each packet causes at most one error, whose length is bounded (576
//! bytes for IPv4, 1280 for IPv6), so errors amplify nothing.
//!
//! - Errors towards the container are built by [`error`]. Those that the gateway sends of its own accord pass a
//!   [`Limit`]; those that other hosts sent about the container's packets are passed on without one.
//! - Errors of the container are read by [`Embedded`], for the flows that they concern, and go no further.
//! - Echo messages are in [`echo`]. They travel like datagrams ([`crate::udp`]).
//!
//! Other ICMP messages of the container are counted and dropped.

mod codes;
pub mod echo;
mod embedded;
mod limit;
mod meaning;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, UDP_HEADER_LEN};

pub use codes::{meaning_v4, meaning_v6};
pub use embedded::Embedded;
pub(crate) use embedded::Quoted;
pub use limit::Limit;
pub use meaning::{IcmpError, Unreachable};

use crate::udp::packet::{self as datagram, ChecksumMode};
use crate::wire;

/// Length of the ICMP header before the quoted packet.
const HEADER: usize = 8;

/// Longest ICMPv4 error, IP header included (RFC 1812, 4.3.2.3).
const MAX_V4: usize = 576;

/// Longest ICMPv6 error, IP header included: the minimum MTU (RFC 4443, 2.4 c).
const MAX_V6: usize = 1280;

/// The hop limit of packets that originate here (<https://www.iana.org/assignments/ip-parameters>).
pub const HOP_LIMIT: u8 = 64;

/// Builds the packet of an ICMP error from `sender` to `receiver` about `quoted`, an IP packet of the container.
///
/// The quote is shortened to the longest that RFC 1812 and RFC 4443 allow.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
///
/// # Examples
/// ```
/// use std::net::SocketAddr;
///
/// use nsnet_stack::icmp::{self, Unreachable};
///
/// let [peer, container]: [SocketAddr; 2] = ["10.99.0.2:9", "10.0.2.100:4000"].map(|end| end.parse().unwrap());
/// let quoted = icmp::quote_datagram(container, peer, b"anybody?");
/// let packet = icmp::error(peer.ip(), container.ip(), 64, Unreachable::Port.into(), &quoted);
/// assert_eq!(packet[20..22], [3, 3]); // destination unreachable, port unreachable
/// assert_eq!(packet[28..], quoted);
/// ```
#[must_use]
pub fn error(sender: IpAddr, receiver: IpAddr, hop_limit: u8, error: IcmpError, quoted: &[u8]) -> Vec<u8> {
    let (protocol, limit) = match sender {
        IpAddr::V4(_) => (IpProtocol::Icmp, MAX_V4),
        IpAddr::V6(_) => (IpProtocol::Icmpv6, MAX_V6),
    };
    let quoted = &quoted[..quoted.len().min(limit - wire::ip_header_len(sender) - HEADER)];
    let ip = IpRepr::new(sender.into(), receiver.into(), protocol, HEADER + quoted.len(), hop_limit);
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet[..], &checksums);
    let message = &mut packet[ip.header_len()..];
    message[HEADER..].copy_from_slice(quoted);
    match (sender, receiver) {
        (IpAddr::V6(sender), IpAddr::V6(receiver)) => {
            let (kind, code, parameter) = codes::header_v6(error, quoted);
            message[PARAMETER].copy_from_slice(&parameter.to_be_bytes());
            let mut message = Icmpv6Packet::new_unchecked(message);
            message.set_msg_type(kind);
            message.set_msg_code(code);
            message.fill_checksum(&sender, &receiver);
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => {
            let (kind, code, parameter) = codes::header_v4(error);
            message[PARAMETER].copy_from_slice(&parameter.to_be_bytes());
            let mut message = Icmpv4Packet::new_unchecked(message);
            message.set_msg_type(kind);
            message.set_msg_code(code);
            message.fill_checksum();
        }
    }
    packet
}

/// Rebuilds the start of a UDP datagram that the container sent earlier, for an error to quote. The container's kernel
/// looks at the headers only.
///
/// The hop limit is 1: the original is not known, and a router that reports "time exceeded" finds 1.
///
/// # Panics
/// If one address is IPv4 and the other IPv6.
#[must_use]
pub fn quote_datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_V6)];
    let mut quoted = vec![0; wire::ip_header_len(source.ip()) + UDP_HEADER_LEN + payload.len()];
    datagram::write(&mut quoted, source, destination, payload, ChecksumMode::Full);
    if source.is_ipv4() {
        let mut header = Ipv4Packet::new_unchecked(&mut quoted[..]);
        header.set_hop_limit(1);
        header.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(&mut quoted[..]).set_hop_limit(1);
    }
    quoted
}

/// The second word of the ICMP header, whose meaning depends on the type.
const PARAMETER: Range<usize> = 4..HEADER;

#[cfg(test)]
mod tests {
    use smoltcp::wire::{Icmpv4Message, Icmpv6Message};

    use super::*;
    use crate::icmp::Unreachable;

    #[test]
    fn a_long_packet_is_quoted_up_to_the_limit() {
        let packet = error(
            "10.0.2.2".parse().unwrap(),
            "10.0.2.100".parse().unwrap(),
            HOP_LIMIT,
            Unreachable::Prohibited.into(),
            &[0x45; 9000],
        );
        assert_eq!(packet.len(), MAX_V4);
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(ip.verify_checksum());
        let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(message.verify_checksum());
        assert_eq!((message.msg_type(), message.msg_code()), (Icmpv4Message::DstUnreachable, 13));
    }

    #[test]
    fn a_closed_port_is_reported_in_ipv6() {
        let (source, destination) = ("[fd00::100]:4000", "[fd99::2]:9");
        let quoted = quote_datagram(source.parse().unwrap(), destination.parse().unwrap(), &[]);
        let packet = error(
            "fd99::2".parse().unwrap(),
            "fd00::100".parse().unwrap(),
            61,
            Unreachable::Port.into(),
            &quoted,
        );
        let ip = Ipv6Packet::new_checked(&packet[..]).unwrap();
        assert_eq!(ip.hop_limit(), 61);
        let message = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(message.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!((message.msg_type(), message.msg_code()), (Icmpv6Message::DstUnreachable, 4));
        assert_eq!(message.payload(), &quoted[..]);
    }

    #[test]
    fn the_mtu_of_a_link_is_told() {
        let big = IcmpError::PacketTooBig { mtu: 1280 };
        let packet = error("10.0.2.2".parse().unwrap(), "10.0.2.100".parse().unwrap(), 9, big, &[0x45; 28]);
        assert_eq!(packet[20..22], [3, 4]);
        assert_eq!(packet[24..28], [0, 0, 5, 0]);
        let packet = error("fd00::2".parse().unwrap(), "fd00::100".parse().unwrap(), 9, big, &[0x60; 48]);
        assert_eq!(packet[40..42], [2, 0]);
        assert_eq!(packet[44..48], [0, 0, 5, 0]);
    }
}
