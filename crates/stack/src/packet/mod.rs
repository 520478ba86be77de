//! A checked view of an IP packet from the container.
//!
//! A packet that parses is whole and unicast, has consistent lengths, and has right checksums unless the kernel vouches
//! for them. A packet that does not is named by a [`Discard`]. Two of these are not the end:
//!
//! - [`Discard::Fragment`]: [`crate::fragments`] puts the packet together, and it is parsed again.
//! - [`Discard::Extended`]: [`extensions::strip`] removes its IPv6 extension headers, and it is parsed again.

use std::net::{IpAddr, SocketAddr};

use nsnet_proto::vnet;
use smoltcp::wire::{TcpPacket, UdpPacket};

use crate::discard::Discard;
use crate::flow::{Endpoints, FlowKey};
use crate::icmp::{Embedded, echo};
use crate::ip::{Ip, extensions, is_unicast};
use crate::tcp::Segment;
use crate::udp::{Datagrams, Envelope};
use crate::wire::protocol;

/// An IP packet with its transport header checked.
///
/// # Examples
/// ```
/// use nsnet_proto::vnet;
/// use nsnet_stack::discard::Discard;
/// use nsnet_stack::packet::{Packet, Transport};
///
/// // A datagram from 10.0.2.100:4000 to 10.99.0.2:53, without a UDP checksum.
/// let mut bytes = *b"\x45\0\0\x1f\0\0\0\0\x40\x11\x64\x06\x0a\0\x02\x64\x0a\x63\0\x02\
///     \x0f\xa0\0\x35\0\x0b\0\0abc";
/// let packet = Packet::parse(&vnet::Header::default(), &bytes).unwrap();
/// assert_eq!(packet.flow().peer, "10.99.0.2:53".parse().unwrap());
/// assert!(matches!(packet.transport, Transport::Udp(datagrams) if datagrams.bytes() == b"abc"));
///
/// bytes[19] = 3; // another destination, but the same checksum
/// assert_eq!(Packet::parse(&vnet::Header::default(), &bytes).unwrap_err(), Discard::Malformed);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// The whole packet, cut to the length that its header gives.
    pub bytes: &'a [u8],
    /// Source and destination.
    pub ends: Endpoints,
    /// Length in bytes of what precedes the transport header.
    pub ip_header_len: usize,
    /// TTL (RFC 791) or hop limit (RFC 8200): how many hops the packet may still take, this one included.
    pub hop_limit: u8,
    /// Whether routers must not fragment the packet. Always set for IPv6, which no router fragments.
    pub dont_fragment: bool,
    /// What the packet carries.
    pub transport: Transport<'a>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy)]
pub enum Transport<'a> {
    /// A TCP segment.
    Tcp(Segment),
    /// UDP datagrams: one, or a burst (`UDP_SEGMENT`, udp(7)).
    Udp(Datagrams<'a>),
    /// An echo request: the bytes behind its identifier. The identifier takes the place of the source's port.
    Echo(Datagrams<'a>),
    /// The message of an ICMP error about a packet that had come for the container. [`Embedded::parse`] reads it again;
    /// to hold its result here would make every `Transport` as large.
    Error(&'a [u8]),
    /// A protocol that is not carried. Both ports are 0.
    Unknown,
}

impl<'a> Packet<'a> {
    /// Reads the packet of a frame. `header` is the frame's virtio-net header.
    ///
    /// # Errors
    /// Why the packet goes no further, or not yet: see the module.
    pub fn parse(header: &vnet::Header, bytes: &'a [u8]) -> Result<Self, Discard> {
        let ip = Ip::parse(bytes)?;
        if !is_unicast(ip.source) || !is_unicast(ip.destination) {
            return Err(Discard::NotUnicast);
        }
        // The kernel will compute a partial checksum later, and has checked a verified one already.
        let verify = header.checksum == vnet::Checksum::Complete;
        let (ports, transport) = match ip.protocol {
            protocol::TCP => tcp(&ip, verify)?,
            protocol::UDP => udp(&ip, verify, header.segmentation)?,
            _ => other(ip, verify)?,
        };
        let ends = Endpoints {
            source: SocketAddr::new(ip.source, ports.0),
            destination: SocketAddr::new(ip.destination, ports.1),
        };
        let Ip { bytes, hop_limit, dont_fragment, .. } = ip;
        let ip_header_len = bytes.len() - ip.payload.len();
        Ok(Self { bytes, ends, ip_header_len, hop_limit, dont_fragment, transport })
    }

    /// The flow that the packet belongs to. The packet must be the container's own.
    #[must_use]
    pub fn flow(&self) -> FlowKey {
        self.ends.from_container()
    }

    /// The packet's destination, as the container knows it, and its header fields with one hop less.
    ///
    /// The hop limit stays at least 1, because a packet for this router itself may arrive with 1.
    #[must_use]
    pub fn envelope(&self) -> Envelope {
        let Self { ends: Endpoints { destination, .. }, hop_limit, dont_fragment, .. } = *self;
        Envelope { destination, hop_limit: hop_limit.saturating_sub(1).max(1), dont_fragment }
    }
}

/// The ports of a protocol that has none.
const NO_PORTS: (u16, u16) = (0, 0);

fn tcp<'a>(ip: &Ip<'a>, verify: bool) -> Result<((u16, u16), Transport<'a>), Discard> {
    let packet = TcpPacket::new_checked(ip.payload).map_err(|_| Discard::Malformed)?;
    if verify && !packet.verify_checksum(&ip.source.into(), &ip.destination.into()) {
        return Err(Discard::Malformed);
    }
    let ports = checked_ports(packet.src_port(), packet.dst_port())?;
    let segment = Segment::of(&packet).ok_or(Discard::Malformed)?;
    Ok((ports, Transport::Tcp(segment)))
}

/// The rarer protocols. `ip` is passed by value: a reference would force the header of every packet into memory.
#[cold]
fn other(ip: Ip<'_>, verify: bool) -> Result<((u16, u16), Transport<'_>), Discard> {
    let transport = match (ip.source, ip.protocol) {
        (IpAddr::V4(_), protocol::ICMP) | (IpAddr::V6(_), protocol::ICMPV6)
            if echo::is_request(ip.source, ip.payload) =>
        {
            let (identifier, datagram) = echo::parse_request(ip.source, ip.destination, ip.payload, verify)?;
            return Ok(((identifier, 0), Transport::Echo(Datagrams::one(datagram))));
        }
        (IpAddr::V4(_), protocol::ICMP) | (IpAddr::V6(_), protocol::ICMPV6) => {
            Embedded::parse(ip.source, ip.destination, ip.payload, verify)?;
            Transport::Error(ip.payload)
        }
        (IpAddr::V6(_), protocol::IPV6_FRAGMENT) => return Err(Discard::Fragment),
        (IpAddr::V6(_), protocol::IPV6_NO_NEXT_HEADER) => return Err(Discard::Protocol),
        (IpAddr::V6(_), extension) if extensions::is_extension(extension) => return Err(Discard::Extended),
        _ => Transport::Unknown,
    };
    Ok((NO_PORTS, transport))
}

/// Most datagrams in a burst of the kernel (`UDP_MAX_SEGMENTS`, include/linux/udp.h).
const MAX_SEGMENTS: usize = 128;

/// Source and destination port, neither of which may be 0.
fn checked_ports(source: u16, destination: u16) -> Result<(u16, u16), Discard> {
    if source == 0 || destination == 0 { Err(Discard::Malformed) } else { Ok((source, destination)) }
}

fn udp<'a>(
    ip: &Ip<'a>,
    verify: bool,
    segmentation: Option<vnet::Segmentation>,
) -> Result<((u16, u16), Transport<'a>), Discard> {
    let packet = UdpPacket::new_checked(ip.payload).map_err(|_| Discard::Malformed)?;
    if verify && !packet.verify_checksum(&ip.source.into(), &ip.destination.into()) {
        return Err(Discard::Malformed);
    }
    let ports = checked_ports(packet.src_port(), packet.dst_port())?;
    let datagrams = match segmentation {
        None => Datagrams::one(packet.payload()),
        Some(burst) if burst.kind == vnet::SegmentKind::Udp => {
            Datagrams::of_size(burst.size.into(), packet.payload())
        }
        Some(_) => return Err(Discard::Malformed),
    };
    if datagrams.count() > MAX_SEGMENTS {
        return Err(Discard::Malformed);
    }
    Ok((ports, Transport::Udp(datagrams)))
}

#[cfg(test)]
mod tests;
