//! Segments without payload, for connections that have no stack.

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::Segment;
use crate::flow::FlowKey;

/// The packet of the RST that answers a segment without a connection (RFC 9293, 3.10.7.1). `segment` came from the
/// container of `key`; the answer goes to it.
///
/// # Panics
/// If one end of `key` is IPv4 and the other IPv6.
#[must_use]
pub fn reset_for(key: FlowKey, segment: &Segment) -> Vec<u8> {
    match segment.acknowledgment {
        Some(acknowledgment) => packet(key, TcpControl::Rst, acknowledgment, None, 0),
        None => packet(key, TcpControl::Rst, TcpSeqNumber(0), Some(segment.sequence + segment.length), 0),
    }
}

/// The packet of an acknowledgment from the peer of `key` to its container. `expected` is the sequence number that it
/// acknowledges, and `window` the window field, not scaled.
///
/// # Panics
/// If one end of `key` is IPv4 and the other IPv6.
#[must_use]
pub fn acknowledgment(key: FlowKey, sequence: TcpSeqNumber, expected: TcpSeqNumber, window: u16) -> Vec<u8> {
    packet(key, TcpControl::None, sequence, Some(expected), window)
}

/// A packet from the flow's peer to its container.
fn packet(
    key: FlowKey,
    control: TcpControl,
    sequence: TcpSeqNumber,
    acknowledgment: Option<TcpSeqNumber>,
    window: u16,
) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: key.peer.port(),
        dst_port: key.container.port(),
        control,
        seq_number: sequence,
        ack_number: acknowledgment,
        window_len: window,
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
