//! A checked view of a packet on its way from one container to another.
//!
//! The view checks what a router looks at, and what the receiving kernel does not check by itself: that the header of
//! the frame promises nothing that the packet cannot keep. The receiving kernel verifies transport checksums.

use std::net::{IpAddr, SocketAddr};

use nsnet_proto::vnet::{self, Checksum, SegmentKind, Segmentation};
use smoltcp::wire::UDP_HEADER_LEN;

use super::flows::{End, Signal, Tuple};
use crate::discard::Discard;
use crate::flow::{Endpoints, Protocol};
use crate::icmp::Quoted;
use crate::ip::{Ip, header};
use crate::packet::{Packet, Transport};
use crate::tcp::{Control, Segment};
use crate::wire::protocol;

/// How a packet arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In one piece.
    Whole,
    /// In fragments, which were reassembled. If it is too long for the next link, it is fragmented again.
    Reassembled,
}

/// A packet that may be passed on if its flow is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// The packet, and how to pass it on.
    pub packet: Routed<'a>,
    /// Both ends. For an echo message, the requester's port is the identifier and the other port is 0.
    pub ends: Endpoints,
    /// What the packet carries.
    pub content: Content,
}

/// A packet, and how to pass it on.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    /// The IP packet, cut to the length that its header gives.
    pub bytes: &'a [u8],
    /// The virtio-net header of its frame, checked against the packet.
    pub header: vnet::Header,
    /// Length in bytes of what precedes the transport header.
    pub ip_header_len: usize,
}

/// What a packet carries, as far as it matters for its flow.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// A TCP segment, or several in one frame.
    Tcp(Segment),
    /// A UDP datagram, or several in one frame.
    Udp,
    /// An echo request.
    EchoRequest,
    /// An echo reply.
    EchoReply,
    /// An ICMP error about a packet of this flow.
    Error(Tuple),
}

impl<'a> Passage<'a> {
    /// Reads the packet of a frame, whose virtio-net header is `header`.
    ///
    /// # Errors
    /// Why the packet goes no further. [`Discard::Extended`] and [`Discard::Fragment`] are handled as for
    /// [`Packet::parse`]; [`Discard::Unsolicited`] is an ICMP error that quotes none of the receiver's packets.
    pub fn parse(header: &vnet::Header, bytes: &'a [u8], form: Form) -> Result<Self, Discard> {
        match header::protocol(bytes) {
            Some(protocol::TCP | protocol::UDP) => Self::parse_ports(header, bytes, form),
            Some(_) => Self::parse_icmp(header, bytes),
            None => Err(Discard::Malformed),
        }
    }

    fn parse_ports(header: &vnet::Header, bytes: &'a [u8], form: Form) -> Result<Self, Discard> {
        let looked_at = match form {
            // The receiver verifies the checksum, if there is one.
            Form::Whole => vnet::Header { checksum: Checksum::Verified, ..*header },
            // It may be computed anew when the packet is fragmented again, so it must be right.
            Form::Reassembled => *header,
        };
        let packet = Packet::parse(&looked_at, bytes)?;
        let (content, checksum_at, kind) = if let Transport::Tcp(segment) = packet.transport {
            let is_v4 = packet.ends.source.is_ipv4();
            let kind = if is_v4 { SegmentKind::TcpV4 } else { SegmentKind::TcpV6 };
            (Content::Tcp(segment), TCP_CHECKSUM, kind)
        } else {
            (Content::Udp, UDP_CHECKSUM, SegmentKind::Udp)
        };
        let segmentation = match header.segmentation {
            Some(wanted) if wanted.kind == kind && is_partial(header) => {
                Some(sound_segmentation(wanted, &packet)?)
            }
            Some(_) => return Err(Discard::Malformed),
            None => None,
        };
        let checksum = sound_checksum(header, packet.ip_header_len, checksum_at)?;
        let header = vnet::Header { checksum, segmentation };
        let routed = Routed { bytes: packet.bytes, header, ip_header_len: packet.ip_header_len };
        Ok(Self { packet: routed, ends: packet.ends, content })
    }

    fn parse_icmp(header: &vnet::Header, bytes: &'a [u8]) -> Result<Self, Discard> {
        let ip = Ip::parse(bytes)?;
        let kinds = match (ip.source, ip.protocol) {
            (IpAddr::V4(_), protocol::ICMP) => &V4,
            (IpAddr::V6(_), protocol::ICMPV6) => &V6,
            _ => return Err(Discard::Protocol),
        };
        let (&[kind, _, _, _, high, low, _, _], quoted) =
            ip.payload.split_first_chunk::<8>().ok_or(Discard::Malformed)?;
        let identifier = u16::from_be_bytes([high, low]);
        let (asks, answers) = if kind == kinds.echo_request { (identifier, 0) } else { (0, identifier) };
        let content = if kind == kinds.echo_request {
            Content::EchoRequest
        } else if kind == kinds.echo_reply {
            Content::EchoReply
        } else if kinds.errors.contains(&kind) {
            Content::Error(quoted_flow(quoted, ip.destination, ip.source).ok_or(Discard::Unsolicited)?)
        } else {
            return Err(Discard::Protocol);
        };
        if header.segmentation.is_some() {
            return Err(Discard::Malformed);
        }
        let ip_header_len = ip.bytes.len() - ip.payload.len();
        let checksum = sound_checksum(header, ip_header_len, ICMP_CHECKSUM)?;
        let header = vnet::Header { checksum, segmentation: None };
        let ends = Endpoints {
            source: SocketAddr::new(ip.source, asks),
            destination: SocketAddr::new(ip.destination, answers),
        };
        Ok(Self { packet: Routed { bytes: ip.bytes, header, ip_header_len }, ends, content })
    }

    /// The flow that the packet belongs to or reports on, the end that sent it, and what it means for the flow. An ICMP
    /// error counts as sent by [`End::Second`].
    #[must_use]
    pub fn flow(&self) -> (Tuple, End, Signal) {
        let (source, destination) = (self.ends.source, self.ends.destination);
        match self.content {
            Content::Tcp(segment) => {
                let (tuple, end) = Tuple::of_ports(Protocol::Tcp, self.ends);
                (tuple, end, self.signal(&segment))
            }
            Content::Udp => {
                let (tuple, end) = Tuple::of_ports(Protocol::Udp, self.ends);
                (tuple, end, Signal::Other)
            }
            Content::EchoRequest => {
                (Tuple::of_echo(source.ip(), destination.ip(), source.port()), End::First, Signal::Other)
            }
            Content::EchoReply => (
                Tuple::of_echo(destination.ip(), source.ip(), destination.port()),
                End::Second,
                Signal::Other,
            ),
            Content::Error(tuple) => (tuple, End::Second, Signal::Other),
        }
    }

    fn signal(&self, segment: &Segment) -> Signal {
        const FIN: u8 = 1;
        match segment.control {
            Control::Open => Signal::Open,
            Control::Reset => Signal::Reset,
            Control::Other if self.packet.bytes[self.packet.ip_header_len + 13] & FIN != 0 => Signal::Finish,
            Control::Other => Signal::Other,
        }
    }
}

/// The flow of a quoted packet, if it went from `sender` to `receiver`.
fn quoted_flow(quoted: &[u8], sender: IpAddr, receiver: IpAddr) -> Option<Tuple> {
    let quoted = Quoted::parse(quoted)?;
    let Quoted { source, destination, .. } = quoted;
    if (source, destination) != (sender, receiver) {
        return None;
    }
    let echo = |kinds: &Kinds| match quoted.echo() {
        (kind, identifier) if kind == kinds.echo_request => {
            Some(Tuple::of_echo(source, destination, identifier))
        }
        (kind, identifier) if kind == kinds.echo_reply => {
            Some(Tuple::of_echo(destination, source, identifier))
        }
        _ => None,
    };
    match quoted.protocol {
        protocol::TCP => Some(Tuple::of_ports(Protocol::Tcp, quoted.ends()).0),
        protocol::UDP => Some(Tuple::of_ports(Protocol::Udp, quoted.ends()).0),
        protocol::ICMP => echo(&V4),
        protocol::ICMPV6 => echo(&V6),
        _ => None,
    }
}

/// The state of the checksum that the frame passed on may claim. A verified checksum is present, and the receiver
/// verifies it again.
fn sound_checksum(header: &vnet::Header, start: usize, offset: u16) -> Result<Checksum, Discard> {
    match header.checksum {
        Checksum::Partial { start: claimed, offset: at } if usize::from(claimed) == start && at == offset => {
            Ok(header.checksum)
        }
        Checksum::Partial { .. } => Err(Discard::Malformed),
        Checksum::Complete | Checksum::Verified => Ok(Checksum::Complete),
    }
}

/// How a super-frame must be cut, with the true length of its headers.
fn sound_segmentation(wanted: Segmentation, packet: &Packet<'_>) -> Result<Segmentation, Discard> {
    let transport_len = match wanted.kind {
        SegmentKind::TcpV4 | SegmentKind::TcpV6 => {
            usize::from(packet.bytes[packet.ip_header_len + 12] >> 4) * 4
        }
        SegmentKind::Udp | SegmentKind::Fragments => UDP_HEADER_LEN,
    };
    let header_len = packet.ip_header_len + transport_len;
    if packet.bytes.len() <= header_len {
        return Err(Discard::Malformed);
    }
    let header_len = u16::try_from(header_len).map_err(|_| Discard::Malformed)?;
    Ok(Segmentation { header_len, ..wanted })
}

fn is_partial(header: &vnet::Header) -> bool {
    matches!(header.checksum, Checksum::Partial { .. })
}

/// Offsets of checksums in their headers (RFC 9293, 3.1; RFC 768; RFC 792).
const TCP_CHECKSUM: u16 = 16;
pub(super) const UDP_CHECKSUM: u16 = 6;
const ICMP_CHECKSUM: u16 = 2;

/// The message types that pass (RFC 792; RFC 4443).
struct Kinds {
    echo_request: u8,
    echo_reply: u8,
    errors: &'static [u8],
}

/// Destination unreachable, time exceeded, parameter problem.
const V4: Kinds = Kinds { echo_request: 8, echo_reply: 0, errors: &[3, 11, 12] };

/// The same, and packet too big.
const V6: Kinds = Kinds { echo_request: 128, echo_reply: 129, errors: &[1, 2, 3, 4] };

#[cfg(test)]
mod tests;
