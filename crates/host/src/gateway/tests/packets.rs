//! Packets of a container, built and changed by hand.

use std::net::IpAddr;

use nsnet_stack::flow::Endpoints;
use nsnet_stack::wire::protocol;
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    IPV6_HEADER_LEN, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};

/// What a segment is made of, beside its ends.
pub(super) struct Segment<'a> {
    pub(super) control: TcpControl,
    pub(super) sequence: u32,
    pub(super) acknowledgment: Option<u32>,
    pub(super) payload: &'a [u8],
}

/// The packet of a segment.
pub(super) fn segment(ends: Endpoints, segment: Segment<'_>) -> Vec<u8> {
    let number = |number: u32| TcpSeqNumber(number.cast_signed());
    let tcp = TcpRepr {
        src_port: ends.source.port(),
        dst_port: ends.destination.port(),
        control: segment.control,
        seq_number: number(segment.sequence),
        ack_number: segment.acknowledgment.map(number),
        window_len: 60_000,
        window_scale: None,
        max_seg_size: (segment.control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: segment.payload,
    };
    let (source, destination) = (ends.source.ip().into(), ends.destination.ip().into());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet[..], &checksums);
    let mut bytes = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
    tcp.emit(&mut bytes, &source, &destination, &checksums);
    packet
}

/// Where the transport header of a packet without extension headers begins, and its protocol. `(0, 0)` is none.
pub(super) fn transport(packet: &[u8]) -> (usize, u8) {
    match packet.first().map(|first| first >> 4) {
        Some(4) => Ipv4Packet::new_checked(packet)
            .map_or((0, 0), |ip| (ip.header_len().into(), ip.next_header().into())),
        Some(6) => {
            Ipv6Packet::new_checked(packet).map_or((0, 0), |ip| (IPV6_HEADER_LEN, ip.next_header().into()))
        }
        _ => (0, 0),
    }
}

/// Computes all checksums of a packet without extension headers, as far as it can be read.
pub(super) fn mend(packet: &mut [u8]) {
    let (start, protocol) = transport(packet);
    let ends: Option<(IpAddr, IpAddr)> = match packet.first().map(|first| first >> 4) {
        Some(4) => Ipv4Packet::new_checked(&mut *packet).ok().map(|mut ip| {
            ip.fill_checksum();
            (ip.src_addr().into(), ip.dst_addr().into())
        }),
        Some(6) => {
            Ipv6Packet::new_checked(&*packet).ok().map(|ip| (ip.src_addr().into(), ip.dst_addr().into()))
        }
        _ => None,
    };
    let Some((source, destination)) = ends else { return };
    let (from, to): (IpAddress, IpAddress) = (source.into(), destination.into());
    let bytes = &mut packet[start..];
    match (protocol, source, destination) {
        (protocol::TCP, ..) => {
            let _ = TcpPacket::new_checked(bytes).map(|mut tcp| tcp.fill_checksum(&from, &to));
        }
        (protocol::UDP, ..) => {
            let _ = UdpPacket::new_checked(bytes).map(|mut udp| udp.fill_checksum(&from, &to));
        }
        (protocol::ICMP, IpAddr::V4(_), _) => {
            let _ = Icmpv4Packet::new_checked(bytes).map(|mut icmp| icmp.fill_checksum());
        }
        (protocol::ICMPV6, IpAddr::V6(source), IpAddr::V6(destination)) => {
            let _ =
                Icmpv6Packet::new_checked(bytes).map(|mut icmp| icmp.fill_checksum(&source, &destination));
        }
        _ => {}
    }
}

/// Puts destination options in front of what an IPv6 packet carries; leaves any other packet as it is.
pub(super) fn extended(mut packet: Vec<u8>) -> Vec<u8> {
    const DESTINATION_OPTIONS: u8 = 60;
    let Ok(mut ip) = Ipv6Packet::new_checked(&mut packet[..]) else { return packet };
    if ip.version() != 6 {
        return packet;
    }
    let Some(length) = ip.payload_len().checked_add(8) else { return packet };
    let next: u8 = ip.next_header().into();
    ip.set_payload_len(length);
    ip.set_next_header(DESTINATION_OPTIONS.into());
    // One option: padding of six bytes.
    packet.splice(IPV6_HEADER_LEN..IPV6_HEADER_LEN, [next, 0, 1, 4, 0, 0, 0, 0]);
    packet
}
