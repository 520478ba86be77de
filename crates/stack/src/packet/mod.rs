//! A checked view of an IP packet from the container: bytes first, then meaning.
//!
//! Everything the engine learns about a packet it learns here. A packet that gets through is unicast, whole,
//! has consistent lengths and (unless the kernel vouches for it) right checksums; what does not get through is
//! named by a [`Discard`]. Fragments say so and are put together elsewhere ([`crate::fragments`]); what has IPv6
//! extension headers says so too and is read again without them ([`extensions`]).

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
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// The whole packet, cut to the length its header gives.
    pub bytes: &'a [u8],
    /// Where it comes from and where it goes.
    pub ends: Endpoints,
    /// Length of what stands before the transport header.
    pub ip_header_len: usize,
    /// Routers it may still pass, this one included (TTL, RFC 791; hop limit, RFC 8200).
    pub hop_limit: u8,
    /// Whether nobody on the way may cut it; in IPv6 nobody may.
    pub dont_fragment: bool,
    pub transport: Transport<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum Transport<'a> {
    Tcp(Segment),
    Udp(Datagrams<'a>),
    /// An echo request, what follows its identifier. The identifier stands in the place of the source's port.
    Echo(Datagrams<'a>),
    /// An ICMP error about a packet that had come for the container: the message, which [`Embedded`] can be read from.
    /// Not that itself, because every packet would have to be as large.
    Error(&'a [u8]),
    /// A protocol that is not carried. The flow's ports are 0.
    Unknown,
}

impl<'a> Packet<'a> {
    pub fn parse(header: &vnet::Header, bytes: &'a [u8]) -> Result<Self, Discard> {
        let ip = Ip::parse(bytes)?;
        if !is_unicast(ip.source) || !is_unicast(ip.destination) {
            return Err(Discard::NotUnicast);
        }
        // A partial checksum is the kernel's promise to compute it later, a verified one its word that it did.
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

    /// The flow it belongs to, if the container has sent it.
    #[must_use]
    pub fn flow(&self) -> FlowKey {
        self.ends.from_container()
    }

    /// Where the packet goes from here, as the container knows it, with one hop fewer to go: at least one, for what goes
    /// no further than to this router may have had no more.
    pub fn envelope(&self) -> Envelope {
        let Self { ends: Endpoints { destination, .. }, hop_limit, dont_fragment, .. } = *self;
        Envelope { destination, hop_limit: hop_limit.saturating_sub(1).max(1), dont_fragment }
    }
}

/// In place of the ports of what has none.
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

/// What there is little of. It takes a copy, so that no other packet's header has to be in memory for it.
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

/// The kernel makes no burst of more datagrams (`UDP_MAX_SEGMENTS`, include/linux/udp.h).
const MAX_SEGMENTS: usize = 128;

/// Source and destination port, neither of which may be 0 on the wire.
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
