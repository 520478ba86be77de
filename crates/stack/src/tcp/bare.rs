//! Segments without data that this end sends for connections it has no stack for.

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::Segment;
use crate::flow::FlowKey;

/// The answer to a segment for which there is no connection (RFC 9293, 3.10.7.1): RST, as a whole packet.
pub fn reset_for(key: FlowKey, segment: &Segment) -> Vec<u8> {
    match segment.acknowledgment {
        Some(acknowledgment) => packet(key, TcpControl::Rst, acknowledgment, None),
        None => packet(key, TcpControl::Rst, TcpSeqNumber(0), Some(segment.sequence + segment.length)),
    }
}

/// An acknowledgment, as a whole packet.
pub fn acknowledgment(key: FlowKey, sequence: TcpSeqNumber, expected: TcpSeqNumber) -> Vec<u8> {
    packet(key, TcpControl::None, sequence, Some(expected))
}

/// A packet towards the container, from the flow's destination to its source.
fn packet(
    key: FlowKey,
    control: TcpControl,
    sequence: TcpSeqNumber,
    acknowledgment: Option<TcpSeqNumber>,
) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: key.peer.port(),
        dst_port: key.container.port(),
        control,
        seq_number: sequence,
        ack_number: acknowledgment,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, destination) = (key.peer.ip().into(), key.container.ip().into());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet[..], &checksums);
    let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
    tcp.emit(&mut segment, &source, &destination, &checksums);
    packet
}
