//! The work that a device without offloads leaves to this process: completing checksums and cutting super-frames.

use std::net::IpAddr;
use std::ops::Range;

use nsnet_proto::vnet::{Checksum, SegmentKind, Segmentation};
use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, checksum};

use super::passage::{Routed, UDP_CHECKSUM};
use crate::wire;

/// Most packets that one frame may stand for. That allows segments of 64 bytes, and keeps one read from causing
/// thousands of writes.
const MAX_SEGMENTS: usize = 1024;

/// Where the payload of each segment of a super-frame lies in it. `None` if there are more than 1024.
///
/// # Panics
/// If the size of the segments is 0.
#[must_use]
pub fn cut(routed: &Routed<'_>, segmentation: Segmentation) -> Option<impl Iterator<Item = Range<usize>>> {
    let (start, end, size) =
        (usize::from(segmentation.header_len), routed.bytes.len(), usize::from(segmentation.size));
    let pieces = (start..end).step_by(size).map(move |at| at..end.min(at + size));
    (pieces.len() <= MAX_SEGMENTS).then_some(pieces)
}

/// Writes one segment of a super-frame into `buffer`, complete with checksums. `segmentation` is that of the frame, and
/// `payload` one of the ranges that [`cut`] returned for it.
///
/// # Panics
/// If `buffer` is not as long as the headers and the payload together.
pub fn write_segment(
    routed: &Routed<'_>,
    segmentation: Segmentation,
    payload: Range<usize>,
    buffer: &mut [u8],
) {
    let header_len = usize::from(segmentation.header_len);
    let (offset, is_last) = (payload.start - header_len, payload.end == routed.bytes.len());
    let (headers, data) = buffer.split_at_mut(header_len);
    headers.copy_from_slice(&routed.bytes[..header_len]);
    data.copy_from_slice(&routed.bytes[payload]);
    let (source, destination) = write_ip_length(buffer, offset / usize::from(segmentation.size));
    let transport = &mut buffer[routed.ip_header_len..];
    let length = transport.len();
    let sum = |protocol| wire::pseudo_header_sum(source, destination, protocol, length);
    match segmentation.kind {
        SegmentKind::TcpV4 | SegmentKind::TcpV6 => {
            let mut segment = TcpPacket::new_unchecked(transport);
            segment.set_seq_number(segment.seq_number() + offset);
            segment.set_fin(segment.fin() && is_last);
            segment.set_psh(segment.psh() && is_last);
            segment.set_cwr(segment.cwr() && offset == 0);
            segment.set_checksum(sum(IpProtocol::Tcp));
        }
        SegmentKind::Udp | SegmentKind::Fragments => {
            let mut datagram = UdpPacket::new_unchecked(transport);
            datagram.set_len(u16::try_from(length).unwrap_or(0));
            datagram.set_checksum(sum(IpProtocol::Udp));
        }
    }
    complete(buffer, routed.header.checksum);
}

/// Completes a [partial](Checksum::Partial) checksum: replaces the sum over the pseudo-header.
///
/// # Panics
/// If the checksum field lies beyond the packet. That of a [`Passage`](super::Passage) does not.
pub fn complete(packet: &mut [u8], state: Checksum) {
    let Checksum::Partial { start, offset } = state else { return };
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    let sum = !checksum::data(&packet[start..]);
    // In UDP, 0 means that there is no checksum (RFC 768).
    let sum = if sum == 0 && offset == UDP_CHECKSUM { u16::MAX } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Adapts the IP header to the length of `packet`, the `number`th of a super-frame. Returns source and destination.
fn write_ip_length(packet: &mut [u8], number: usize) -> (IpAddr, IpAddr) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        let mut header = Ipv4Packet::new_unchecked(packet);
        header.set_total_len(u16::try_from(length).unwrap_or(0));
        // The field wraps around.
        header.set_ident(header.ident().wrapping_add(u16::try_from(number).unwrap_or(0)));
        header.fill_checksum();
        (header.src_addr().into(), header.dst_addr().into())
    } else {
        let mut header = Ipv6Packet::new_unchecked(packet);
        header.set_payload_len(u16::try_from(length - IPV6_HEADER_LEN).unwrap_or(0));
        (header.src_addr().into(), header.dst_addr().into())
    }
}

#[cfg(test)]
mod tests {
    use nsnet_proto::vnet;
    use smoltcp::wire::TcpSeqNumber;

    use super::super::passage::{Form, Passage};
    use super::*;
    use crate::flow::{Endpoints, FlowKey};
    use crate::packet::{Packet, Transport};
    use crate::tcp;
    use crate::udp::Datagrams;
    use crate::udp::packet::{self as datagram, ChecksumMode};

    fn keys() -> [Endpoints; 2] {
        [("10.0.2.101:80", "10.0.2.100:4000"), ("[fd00::101]:80", "[fd00::100]:4000")].map(
            |(source, destination)| Endpoints {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
            },
        )
    }

    fn partial(start: usize, offset: u16) -> Checksum {
        Checksum::Partial { start: u16::try_from(start).unwrap(), offset }
    }

    /// A TCP super-frame with FIN, PSH and CWR.
    fn super_segment(ends: Endpoints, payload: &[u8], size: u16) -> (vnet::Header, Vec<u8>) {
        let reversed = FlowKey { container: ends.destination, peer: ends.source };
        let mut packet = tcp::acknowledgment(reversed, TcpSeqNumber(1000), TcpSeqNumber(77), 0);
        let (start, header_len) = (packet.len() - 20, packet.len());
        packet.extend(payload);
        write_ip_length(&mut packet, 0);
        let mut segment = TcpPacket::new_unchecked(&mut packet[start..]);
        segment.set_fin(true);
        segment.set_psh(true);
        segment.set_cwr(true);
        let kind = if ends.source.is_ipv4() { SegmentKind::TcpV4 } else { SegmentKind::TcpV6 };
        let header_len = u16::try_from(header_len).unwrap();
        let segmentation = Some(Segmentation { kind, size, header_len });
        (vnet::Header { checksum: partial(start, 16), segmentation }, packet)
    }

    fn pieces(header: &vnet::Header, packet: &[u8]) -> Vec<Vec<u8>> {
        let passage = Passage::parse(header, packet, Form::Whole).unwrap();
        let segmentation = passage.packet.header.segmentation.unwrap();
        let write = |payload: Range<usize>| {
            let mut buffer = vec![0xff; usize::from(segmentation.header_len) + payload.len()];
            write_segment(&passage.packet, segmentation, payload, &mut buffer);
            buffer
        };
        cut(&passage.packet, segmentation).unwrap().map(write).collect()
    }

    #[test]
    fn a_super_segment_is_cut_into_segments() {
        let payload: Vec<u8> = (0..=255).cycle().take(3500).collect();
        for ends in keys() {
            let (header, packet) = super_segment(ends, &payload, 1000);
            let mut joined = Vec::new();
            for (number, piece) in pieces(&header, &packet).iter().enumerate() {
                // Verifies lengths and checksums.
                let read = Packet::parse(&vnet::Header::default(), piece).unwrap();
                assert_eq!((read.ends, read.bytes.len()), (ends, piece.len()));
                let Transport::Tcp(segment) = read.transport else { panic!("not TCP") };
                assert_eq!(segment.sequence, TcpSeqNumber(1000) + 1000 * number);
                assert_eq!(segment.acknowledgment, Some(TcpSeqNumber(77)));
                let flags = TcpPacket::new_unchecked(&piece[read.ip_header_len..]);
                assert_eq!((flags.fin(), flags.psh(), flags.cwr()), (number == 3, number == 3, number == 0));
                joined.extend_from_slice(flags.payload());
            }
            assert!(joined == payload);
        }
    }

    #[test]
    fn a_burst_is_cut_into_datagrams() {
        let payload: Vec<u8> = (0..=255).cycle().take(3500).collect();
        for ends in keys() {
            let mut packet = vec![0; datagram::length(ends.source, payload.len())];
            datagram::write(&mut packet, ends.source, ends.destination, &payload, ChecksumMode::PseudoHeader);
            let start = packet.len() - payload.len() - 8;
            let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size: 1000, header_len: 0 });
            let header = vnet::Header { checksum: partial(start, 6), segmentation };
            let pieces = pieces(&header, &packet);
            assert_eq!(pieces.len(), 4);
            for (piece, expected) in pieces.iter().zip(payload.chunks(1000)) {
                let read = Packet::parse(&vnet::Header::default(), piece).unwrap();
                let Transport::Udp(datagrams) = read.transport else { panic!("not UDP") };
                assert_eq!(datagrams, Datagrams::one(expected));
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        for ends in keys() {
            let mut packet = vec![0; datagram::length(ends.source, 33)];
            datagram::write(&mut packet, ends.source, ends.destination, &[7; 33], ChecksumMode::PseudoHeader);
            let start = packet.len() - 33 - 8;
            Packet::parse(&vnet::Header::default(), &packet).unwrap_err();
            complete(&mut packet, partial(start, 6));
            Packet::parse(&vnet::Header::default(), &packet).unwrap();
        }
    }

    #[test]
    fn a_frame_does_not_stand_for_thousands_of_packets() {
        for ends in keys() {
            let (header, packet) = super_segment(ends, &[0; 60_000], 8);
            let passage = Passage::parse(&header, &packet, Form::Whole).unwrap();
            assert!(cut(&passage.packet, passage.packet.header.segmentation.unwrap()).is_none());
        }
    }
}
