//! A checked view of an IP packet from the container: bytes first, then meaning.
//!
//! Everything the engine learns about a packet it learns here. A packet that gets through is unicast, whole,
//! has consistent lengths and (unless the kernel vouches for it) right checksums; what does not get through is
//! named by a [`Discard`]. Fragments say so and are put together elsewhere ([`crate::fragments`]); what has IPv6
//! extension headers says so too and is read again without them ([`extensions`]).

pub(crate) mod extensions;

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nsnet_proto::vnet;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket, TcpSeqNumber, UdpPacket};

use crate::dialer::{Datagrams, Envelope};
use crate::icmp::{Embedded, echo};

/// What identifies a flow: the container's address and port, and the ones it talks to. Of echo requests the identifier
/// is the source's port, and the destination's is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// In few large pieces: a keyed hash costs by the piece. What the derived one adds, the family and the scope of an
/// address, is the same for all packets of a container, or follows from the rest.
impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                state.write_u64(u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits()));
            }
            (source, destination) => {
                for address in [source, destination] {
                    state.write_u128(to_ipv6(address).to_bits());
                }
            }
        }
        state.write_u32(u32::from(self.source.port()) << 16 | u32::from(self.destination.port()));
    }
}

fn to_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Why a packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discard {
    /// Inconsistent lengths, a wrong checksum, an impossible header.
    Malformed,
    /// A fragment, which is for [`crate::fragments`].
    Fragment,
    /// Behind extension headers, which [`extensions::strip`] takes out.
    Extended,
    /// Multicast, broadcast, loopback or unspecified addresses.
    NotUnicast,
    /// A source address that is not the container's.
    ForeignSource,
    /// A transport or extension header that is not carried.
    Protocol,
    /// An ICMP error, which nobody here waits for.
    IcmpError,
    /// It has come as far as its hop limit allows.
    HopLimit,
    /// Too many packets were on the way from one queue of the device to another.
    Overrun,
    /// An answer from another container to nothing that was sent.
    Unsolicited,
    /// The link to another container is full.
    Congested,
}

/// An IP packet with its transport header checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// The whole packet, cut to the length its header gives.
    pub(crate) bytes: &'a [u8],
    pub(crate) key: FlowKey,
    /// Length of what stands before the transport header.
    pub(crate) ip_header_len: usize,
    /// Routers it may still pass, this one included (TTL, RFC 791; hop limit, RFC 8200).
    pub(crate) hop_limit: u8,
    /// Whether nobody on the way may cut it; in IPv6 nobody may.
    pub(crate) dont_fragment: bool,
    pub(crate) transport: Transport<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport<'a> {
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

/// The parts of a TCP header that decide where a segment goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) control: Control,
    pub(crate) sequence: TcpSeqNumber,
    /// The acknowledgment number if the ACK flag is set.
    pub(crate) acknowledgment: Option<TcpSeqNumber>,
    /// Sequence numbers the segment occupies, SYN and FIN included.
    pub(crate) length: usize,
    /// Bytes of payload.
    pub(crate) payload: usize,
    /// The MSS option of a SYN.
    pub(crate) max_segment_size: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// SYN without ACK and RST: somebody wants a connection.
    Open,
    Reset,
    Other,
}

impl<'a> Packet<'a> {
    pub(crate) fn parse(header: &vnet::Header, bytes: &'a [u8]) -> Result<Self, Discard> {
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
        let key = FlowKey {
            source: SocketAddr::new(ip.source, ports.0),
            destination: SocketAddr::new(ip.destination, ports.1),
        };
        let Ip { bytes, hop_limit, dont_fragment, .. } = ip;
        let ip_header_len = bytes.len() - ip.payload.len();
        Ok(Self { bytes, key, ip_header_len, hop_limit, dont_fragment, transport })
    }

    /// Where the packet goes from here, as the container knows it, with one hop fewer to go: at least one, for what goes
    /// no further than to this router may have had no more.
    pub(crate) fn envelope(&self) -> Envelope {
        let Self { key: FlowKey { destination, .. }, hop_limit, dont_fragment, .. } = *self;
        Envelope { destination, hop_limit: hop_limit.saturating_sub(1).max(1), dont_fragment }
    }
}

/// Protocol numbers (<https://www.iana.org/assignments/protocol-numbers>).
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6_FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const IPV6_NO_NEXT_HEADER: u8 = 59;
}

/// In place of the ports of what has none.
const NO_PORTS: (u16, u16) = (0, 0);

/// Where a packet is going, if it is long enough to say so. Nothing else is looked at.
pub(crate) fn destination_of(bytes: &[u8]) -> Option<IpAddr> {
    let octets = |at: usize| bytes.get(at..);
    match bytes.first()? >> 4 {
        4 => octets(16)?.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        6 => octets(24)?.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

/// An IP packet that is whole; of its payload nothing is known.
#[derive(Clone, Copy)]
pub(crate) struct Ip<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    hop_limit: u8,
    dont_fragment: bool,
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    // Into `Packet::parse`, which every packet passes. The compiler would not, for packets between containers need it too,
    // and a quarter more instructions for every packet is what that costs.
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Discard> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(Discard::Malformed),
        }
    }

    #[inline(always)]
    fn parse_v4(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        if !packet.verify_checksum() {
            return Err(Discard::Malformed);
        }
        if packet.more_frags() || packet.frag_offset() != 0 {
            return Err(Discard::Fragment);
        }
        let (header, length) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        let payload = bytes.get(header..length).ok_or(Discard::Malformed)?;
        Ok(Self {
            bytes: &bytes[..length],
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: packet.dont_frag(),
            protocol: packet.next_header().into(),
            payload,
        })
    }

    #[inline(always)]
    fn parse_v6(bytes: &'a [u8]) -> Result<Self, Discard> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Discard::Malformed)?;
        let (header, length) = (packet.header_len(), packet.total_len());
        let payload = bytes.get(header..length).ok_or(Discard::Malformed)?;
        Ok(Self {
            bytes: &bytes[..length],
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: true,
            protocol: packet.next_header().into(),
            payload,
        })
    }
}

fn tcp<'a>(ip: &Ip<'a>, verify: bool) -> Result<((u16, u16), Transport<'a>), Discard> {
    let packet = TcpPacket::new_checked(ip.payload).map_err(|_| Discard::Malformed)?;
    if verify && !packet.verify_checksum(&ip.source.into(), &ip.destination.into()) {
        return Err(Discard::Malformed);
    }
    let ports = checked_ports(packet.src_port(), packet.dst_port())?;
    if packet.syn() && !are_options_sound(packet.options()) {
        return Err(Discard::Malformed);
    }
    let control = match (packet.rst(), packet.syn(), packet.ack()) {
        (true, _, _) => Control::Reset,
        (false, true, false) if !packet.fin() => Control::Open,
        _ => Control::Other,
    };
    let segment = Segment {
        control,
        sequence: packet.seq_number(),
        acknowledgment: packet.ack().then(|| packet.ack_number()),
        length: packet.segment_len(),
        payload: packet.payload().len(),
        max_segment_size: max_segment_size(&packet),
    };
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

/// Whether the options can be read to their end. A SYN whose options smoltcp refuses must not be dialled for.
fn are_options_sound(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        match TcpOption::parse(options) {
            Ok((_, TcpOption::EndOfList)) => return true,
            Ok((rest, _)) => options = rest,
            Err(_) => return false,
        }
    }
    true
}

fn max_segment_size(packet: &TcpPacket<&[u8]>) -> Option<u16> {
    if !packet.syn() {
        return None;
    }
    let mut options = packet.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        if let TcpOption::MaxSegmentSize(size) = option {
            return Some(size);
        }
        if option == TcpOption::EndOfList || rest.is_empty() {
            return None;
        }
        options = rest;
    }
    None
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

/// Whether an address may stand in a packet on the wire between two hosts. IPv4-mapped addresses may not
/// (RFC 4291, 2.5.5.2): to a socket they would mean the IPv4 address, past every rule for it.
#[inline]
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_multicast()
                && !address.is_loopback()
                && address.to_ipv4_mapped().is_none()
        }
    }
}

#[cfg(test)]
mod tests;
