//! Cases of single packets.

use std::hint::black_box;
use std::net::SocketAddr;

use nsnet_proto::vnet::{Checksum, Header, SegmentKind, Segmentation};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::{Round, measured};
use crate::task::clock::Clock;
use nsnet_stack::fragments::{self, Fragment, Fragments, Reassembler};
use nsnet_stack::packet::{Packet, Transport};
use nsnet_stack::udp::packet::{self as datagram, ChecksumMode};

/// Payload of a TCP segment that the kernel has not segmented.
const SEGMENT: usize = 32 << 10;

/// Payload of a datagram, as QUIC sends it.
pub(super) const DATAGRAM: usize = 1200;

/// Payload of a burst of datagrams.
const BURST: usize = 40 * DATAGRAM;

/// Payload of a datagram that came in fragments.
pub(super) const FRAGMENTED: usize = 60_000;

const MTU: u16 = 1500;

/// A header of every kind.
fn headers() -> [Header; 6] {
    let (tcp, udp) =
        (Checksum::Partial { start: 20, offset: 16 }, Checksum::Partial { start: 20, offset: 6 });
    let cut = |kind, size, header_len| Some(Segmentation { kind, size, header_len });
    [
        Header::default(),
        Header { checksum: Checksum::Verified, segmentation: None },
        Header { checksum: tcp, segmentation: None },
        Header { checksum: tcp, segmentation: cut(SegmentKind::TcpV4, 1460, 40) },
        Header { checksum: tcp, segmentation: cut(SegmentKind::TcpV6, 1440, 60) },
        Header { checksum: udp, segmentation: cut(SegmentKind::Udp, 1200, 28) },
    ]
}

pub(super) fn split_headers() -> Round {
    let frames = headers().map(|header| [&header.to_bytes()[..], &[7; 40]].concat());
    Box::new(move || {
        measured(|| {
            for frame in &frames {
                black_box(Header::split(black_box(frame)).expect("it was built"));
            }
        });
    })
}

pub(super) fn write_headers() -> Round {
    let headers = headers();
    Box::new(move || {
        measured(|| {
            for header in &headers {
                black_box(black_box(header).to_bytes());
            }
        });
    })
}

pub(super) fn parse_segment() -> Round {
    let header = Header {
        checksum: Checksum::Partial { start: 20, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::TcpV4, size: 1460, header_len: 52 }),
    };
    parse(header, segment(&[7; SEGMENT]))
}

pub(super) fn parse_datagram() -> Round {
    parse(Header::default(), datagram(&[7; DATAGRAM], ChecksumMode::Full))
}

pub(super) fn parse_burst() -> Round {
    let size = u16::try_from(DATAGRAM).unwrap_or(0);
    let header = Header {
        checksum: Checksum::Partial { start: 20, offset: 6 },
        segmentation: Some(Segmentation { kind: SegmentKind::Udp, size, header_len: 28 }),
    };
    parse(header, datagram(&[7; BURST], ChecksumMode::PseudoHeader))
}

/// Parses one packet, and goes through its datagrams if there are any.
fn parse(header: Header, bytes: Vec<u8>) -> Round {
    Box::new(move || {
        measured(|| {
            let packet = Packet::parse(black_box(&header), black_box(&bytes)).expect("it was built");
            match black_box(packet).transport {
                Transport::Tcp(_) | Transport::Error(_) | Transport::Unknown => {}
                Transport::Udp(datagrams) | Transport::Echo(datagrams) => {
                    datagrams.iter().for_each(|datagram| {
                        black_box(datagram);
                    });
                }
            }
        });
    })
}

pub(super) fn reassemble() -> Round {
    let packet = datagram(&[7; FRAGMENTED], ChecksumMode::Full);
    let (source, _) = addresses();
    let mut cut = Fragments::new(packet, fragments::size(source.ip(), MTU), 1);
    let mut pieces = Vec::new();
    while let Some(length) = cut.next_len() {
        let mut piece = vec![0; length];
        cut.write_next(&mut piece);
        cut.advance();
        pieces.push(piece);
    }
    let (mut reassembler, now) = (Reassembler::default(), Clock::start().now());
    Box::new(move || {
        measured(|| {
            let mut whole = None;
            for piece in &pieces {
                let fragment = Fragment::parse(black_box(piece)).expect("it was built");
                whole = reassembler.add(now, &fragment);
            }
            reassembler.recycle(black_box(whole).expect("no piece is missing"));
        });
    })
}

pub(super) fn write_datagram_full() -> Round {
    write_datagram(ChecksumMode::Full)
}

pub(super) fn write_datagram_partial() -> Round {
    write_datagram(ChecksumMode::PseudoHeader)
}

fn write_datagram(mode: ChecksumMode) -> Round {
    let (destination, source) = addresses();
    let payload = [7; DATAGRAM];
    let mut buffer = vec![0; datagram::length(source, payload.len())];
    Box::new(move || {
        measured(|| datagram::write(black_box(&mut buffer), source, destination, black_box(&payload), mode));
    })
}

/// The container's, then the world's.
fn addresses() -> (SocketAddr, SocketAddr) {
    (([10, 0, 2, 100], 4000).into(), ([10, 99, 0, 2], 443).into())
}

/// A datagram of the container, as a whole packet.
fn datagram(payload: &[u8], mode: ChecksumMode) -> Vec<u8> {
    let (source, destination) = addresses();
    let mut packet = vec![0; datagram::length(source, payload.len())];
    datagram::write(&mut packet, source, destination, payload, mode);
    packet
}

/// A segment of the container, as a whole packet.
fn segment(payload: &[u8]) -> Vec<u8> {
    let (source, destination) = addresses();
    let tcp = TcpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
        control: TcpControl::Psh,
        seq_number: TcpSeqNumber(1),
        ack_number: Some(TcpSeqNumber(1)),
        window_len: 512,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let (source, destination) = (source.ip().into(), destination.ip().into());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let checksums = ChecksumCapabilities::default();
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet[..], &checksums);
    let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
    tcp.emit(&mut segment, &source, &destination, &checksums);
    packet
}
