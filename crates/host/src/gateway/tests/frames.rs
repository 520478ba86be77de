//! What a container may send: close to what a kernel sends, and changed before the checksums are computed.

use std::fmt;
use std::net::SocketAddr;

use nsnet_proto::vnet::{Checksum, Header, SegmentKind, Segmentation};
use nsnet_stack::flow::Endpoints;
use nsnet_stack::fragments::Fragments;
use nsnet_stack::icmp::echo::{self, Headers, Message as Echo};
use nsnet_stack::icmp::{self, HOP_LIMIT, IcmpError, Unreachable};
use nsnet_stack::udp::packet::{self, ChecksumMode};
use nsnet_stack::wire::{DNS_PORT, protocol};
use proptest::prelude::*;
use proptest::sample::Index;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpControl};

use super::packets::{Segment, extended, mend, segment, transport};

/// Who sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    /// Its addresses, one of each family.
    pub(super) addresses: [&'static str; 2],
    /// Those of another container, or of nobody.
    pub(super) neighbour: [&'static str; 2],
    /// The first of its ports.
    pub(super) port: u16,
}

/// Destinations, the one of the world first, by family: gateway, DNS, nobody, everybody.
const PEERS: [[&str; 6]; 2] = [
    ["10.99.0.2", "10.0.2.2", "10.0.2.3", "10.0.2.55", "10.0.2.255", "224.0.0.1"],
    ["fd99::2", "fd00::2", "fd00::3", "fd00::55", "fd00::", "ff02::1"],
];

/// Sources that are not the container's.
const FOREIGN: [&str; 2] = ["10.0.2.77", "fd00::77"];

/// The destination port of what is sent in fragments.
pub(super) const CUT_PORT: u16 = 7000;

/// The destination port of what has extension headers.
pub(super) const EXTENDED_PORT: u16 = 7001;

/// A frame, which is shown in hexadecimal.
#[derive(Clone)]
pub(super) struct Frame(pub(super) Vec<u8>);

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The frames of one packet, or of its fragments.
pub(super) fn frames(sender: Sender) -> impl Strategy<Value = Vec<Frame>> {
    let built = (content(sender), shape(), flips(), prop::bool::weighted(0.03)).prop_map(
        |(mut packet, shape, flips, is_last_hop)| {
            shape.mark(&mut packet);
            flip(&mut packet, &flips);
            if is_last_hop {
                let at = if is_v4(&packet) { 8 } else { 7 };
                packet[at] = 1;
            }
            mend(&mut packet);
            shape.apply(packet)
        },
    );
    let noise = prop::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| vec![bytes]);
    let packets = prop_oneof![20 => built, 1 => noise];
    let spoiled = prop_oneof![9 => Just(Vec::new()), 1 => prop::collection::vec(any::<(Index, u8)>(), 1..4)];
    (packets, header(), spoiled).prop_map(|(packets, header, spoiled)| {
        let frame = |packet: Vec<u8>| {
            let mut frame = [header.of(&packet), packet].concat();
            flip(&mut frame, &spoiled);
            Frame(frame)
        };
        packets.into_iter().map(frame).collect()
    })
}

fn ends(sender: Sender) -> impl Strategy<Value = Endpoints> {
    let peer = prop_oneof![3 => Just(Some(0)), 3 => Just(None), 3 => (1..6usize).prop_map(Some)];
    let port = prop_oneof![1 => Just(DNS_PORT), 3 => Just(80), 1 => any::<u16>()];
    (0..2usize, peer, 0..6u16, port, prop::bool::weighted(0.03)).prop_map(
        move |(family, peer, offset, port, is_foreign)| {
            // The resolver has one port.
            let port = if peer == Some(2) { DNS_PORT } else { port };
            let source = if is_foreign { FOREIGN } else { sender.addresses }[family];
            let destination = peer.map_or(sender.neighbour[family], |index: usize| PEERS[family][index]);
            Endpoints {
                source: SocketAddr::new(source.parse().unwrap(), sender.port + offset),
                destination: SocketAddr::new(destination.parse().unwrap(), port),
            }
        },
    )
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (any::<u8>(), 1400..4000usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

/// A packet of any kind that a kernel sends.
fn content(sender: Sender) -> impl Strategy<Value = Vec<u8>> {
    let control =
        prop::sample::select(vec![TcpControl::None, TcpControl::Psh, TcpControl::Fin, TcpControl::Rst]);
    let datagrams = (ends(sender), payload()).prop_map(|(ends, payload)| datagram(ends, &payload));
    let opening = (ends(sender), 0..3u32).prop_map(|(ends, sequence)| syn(ends, sequence));
    let later = (ends(sender), control, any::<u32>(), prop::option::of(any::<u32>()), payload()).prop_map(
        |(ends, control, sequence, acknowledgment, payload)| {
            segment(ends, Segment { control, sequence, acknowledgment, payload: &payload })
        },
    );
    let message = prop_oneof![5 => Just(Echo::Request), 1 => Just(Echo::Reply)];
    let echo = (ends(sender), message, payload())
        .prop_map(|(ends, message, payload)| echoed(ends, message, &payload));
    let other = (ends(sender), payload()).prop_map(|(ends, payload)| {
        let mut packet = datagram(ends, &payload);
        let at = if is_v4(&packet) { 9 } else { 6 };
        packet[at] = IpProtocol::Unknown(132).into();
        packet
    });
    prop_oneof![6 => datagrams, 5 => opening, 2 => later, 4 => echo, 2 => error(sender), 1 => other]
}

/// An error about something that has come for the container.
fn error(sender: Sender) -> impl Strategy<Value = Vec<u8>> {
    let said = prop::sample::select(vec![
        Unreachable::Port.into(),
        Unreachable::Host.into(),
        IcmpError::PacketTooBig { mtu: 1300 },
        IcmpError::TimeExceeded,
    ]);
    (ends(sender), said, 0..3, payload()).prop_map(|(ends, said, quoted, payload)| {
        let about = Endpoints { source: ends.destination, destination: ends.source };
        let quoted = match quoted {
            0 => datagram(about, &payload),
            1 => syn(about, 1),
            _ => echoed(about, Echo::Reply, &payload),
        };
        icmp::error(ends.source.ip(), ends.destination.ip(), HOP_LIMIT, said, &quoted)
    })
}

fn datagram(ends: Endpoints, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; packet::length(ends.source, payload.len())];
    packet::write(&mut bytes, ends.source, ends.destination, payload, ChecksumMode::Full);
    bytes
}

fn syn(ends: Endpoints, sequence: u32) -> Vec<u8> {
    segment(ends, Segment { control: TcpControl::Syn, sequence, acknowledgment: None, payload: &[] })
}

/// An echo message with a sequence number and `payload`. The source's port is its identifier.
fn echoed(ends: Endpoints, message: Echo, payload: &[u8]) -> Vec<u8> {
    let (source, destination, identifier) = (ends.source.ip(), ends.destination.ip(), ends.source.port());
    let payload = [&[0, 1], payload].concat();
    let mut bytes = vec![0; echo::length(source, payload.len())];
    let headers = Headers { message, source, destination, hop_limit: HOP_LIMIT, identifier };
    echo::write(&mut bytes, headers, &payload);
    bytes
}

/// How a packet is sent.
#[derive(Debug, Clone)]
enum Shape {
    Whole,
    /// With IPv6 extension headers.
    Extended,
    Cut(Cut),
}

#[derive(Debug, Clone)]
struct Cut {
    /// Payload of each fragment but the last, in blocks of eight bytes.
    blocks: u16,
    identification: u32,
    /// One that is lost.
    missing: Option<Index>,
    is_reversed: bool,
    /// Whether IPv6 extension headers are cut with the payload, and whether each fragment has its own.
    extensions: (bool, bool),
}

fn shape() -> impl Strategy<Value = Shape> {
    let missing = prop::option::weighted(0.3, any::<Index>());
    let cut = (1..20u16, 0..4u32, missing, any::<bool>(), any::<(bool, bool)>());
    let cut = cut.prop_map(|(blocks, identification, missing, is_reversed, extensions)| {
        Shape::Cut(Cut { blocks, identification, missing, is_reversed, extensions })
    });
    prop_oneof![5 => Just(Shape::Whole), 2 => Just(Shape::Extended), 3 => cut]
}

impl Shape {
    /// Gives datagrams and segments the port by which the Dialer's question tells their shape.
    fn mark(&self, packet: &mut [u8]) {
        let port = match self {
            Self::Whole => return,
            Self::Extended => EXTENDED_PORT,
            Self::Cut(_) => CUT_PORT,
        };
        if let (start, protocol::TCP | protocol::UDP) = transport(packet) {
            packet[start + 2..start + 4].copy_from_slice(&port.to_be_bytes());
        }
    }

    fn apply(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match self {
            Self::Whole => vec![packet],
            Self::Extended => vec![extended(packet)],
            Self::Cut(cut) => cut.apply(packet),
        }
    }
}

impl Cut {
    fn apply(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        // What is no IP packet any more cannot be cut, nor can IP options.
        let has_options = packet[0] >> 4 == 4 && packet[0] != 0x45;
        if transport(&packet) == (0, 0) || has_options {
            return vec![packet];
        }
        let packet = if self.extensions.0 { extended(packet) } else { packet };
        // A long packet comes in few fragments.
        let size = if packet.len() > 400 { 1024 } else { self.blocks * 8 };
        let mut cut = Fragments::new(packet, size, self.identification);
        let mut fragments = Vec::new();
        while let Some(length) = cut.next_len() {
            let mut fragment = vec![0; length];
            cut.write_next(&mut fragment);
            cut.advance();
            fragments.push(if self.extensions.1 { extended(fragment) } else { fragment });
        }
        if let Some(missing) = &self.missing
            && !fragments.is_empty()
        {
            fragments.remove(missing.index(fragments.len()));
        }
        if self.is_reversed {
            fragments.reverse();
        }
        fragments
    }
}

/// What the frame's header says of the packet.
#[derive(Debug, Clone)]
enum FrameHeader {
    Complete,
    Verified,
    /// The checksum is left undone, and the packet is to be cut if there is a size.
    Partial(Option<u16>),
    Any(Vec<u8>),
}

fn header() -> impl Strategy<Value = FrameHeader> {
    prop_oneof![
        5 => Just(FrameHeader::Complete),
        2 => Just(FrameHeader::Verified),
        2 => prop::option::of(1..100u16).prop_map(FrameHeader::Partial),
        1 => prop::collection::vec(any::<u8>(), 10).prop_map(FrameHeader::Any),
    ]
}

impl FrameHeader {
    fn of(&self, packet: &[u8]) -> Vec<u8> {
        let size = match self {
            Self::Any(bytes) => return bytes.clone(),
            Self::Complete => return Header::default().to_bytes().to_vec(),
            Self::Verified => {
                return Header { checksum: Checksum::Verified, segmentation: None }.to_bytes().to_vec();
            }
            Self::Partial(size) => size,
        };
        let (start, protocol) = transport(packet);
        let start = u16::try_from(start).unwrap();
        let (offset, header_len, kind) = match (protocol, is_v4(packet)) {
            (protocol::TCP, true) => (16, start + 20, SegmentKind::TcpV4),
            (protocol::TCP, false) => (16, start + 20, SegmentKind::TcpV6),
            (protocol::UDP, _) => (6, start + 8, SegmentKind::Udp),
            _ => (2, start + 8, SegmentKind::Fragments),
        };
        let segmentation = size.map(|size| Segmentation { kind, size, header_len });
        Header { checksum: Checksum::Partial { start, offset }, segmentation }.to_bytes().to_vec()
    }
}

/// Bytes that are replaced, in one packet of three.
fn flips() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(any::<(Index, u8)>(), 1..4)]
}

fn flip(bytes: &mut [u8], flips: &[(Index, u8)]) {
    if !bytes.is_empty() {
        for (at, value) in flips {
            bytes[at.index(bytes.len())] = *value;
        }
    }
}

fn is_v4(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 4) && Ipv4Packet::new_checked(packet).is_ok()
}
