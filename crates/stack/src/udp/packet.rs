//! Builds the UDP datagrams that go into the container.

use std::net::SocketAddr;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpProtocol, IpRepr, UDP_HEADER_LEN, UdpPacket};

use crate::wire;

/// Who computes the UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumMode {
    /// This end, over everything.
    Full,
    /// The kernel; this end leaves the sum over the pseudo-header.
    PseudoHeader,
}

/// Length in bytes of the packet that carries `payload` bytes.
pub fn length(source: SocketAddr, payload: usize) -> usize {
    wire::ip_header_len(source.ip()) + UDP_HEADER_LEN + payload
}

/// Whether an IP packet can carry `payload` bytes: the length fields have 16 bits.
pub fn is_possible(source: SocketAddr, payload: usize) -> bool {
    let counted = match source {
        SocketAddr::V4(_) => length(source, payload),
        SocketAddr::V6(_) => UDP_HEADER_LEN + payload,
    };
    u16::try_from(counted).is_ok()
}

/// Writes the packet into `buffer`, which is exactly [`length`] bytes long.
pub fn write(
    buffer: &mut [u8],
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    mode: ChecksumMode,
) {
    let udp_length = UDP_HEADER_LEN + payload.len();
    let ip = IpRepr::new(source.ip().into(), destination.ip().into(), IpProtocol::Udp, udp_length, 64);
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    ip.emit(&mut *buffer, &checksums);

    let mut packet = UdpPacket::new_unchecked(&mut buffer[ip.header_len()..]);
    packet.set_src_port(source.port());
    packet.set_dst_port(destination.port());
    packet.set_len(u16::try_from(udp_length).unwrap_or(0));
    packet.payload_mut().copy_from_slice(payload);
    match mode {
        ChecksumMode::Full => packet.fill_checksum(&source.ip().into(), &destination.ip().into()),
        ChecksumMode::PseudoHeader => {
            let sum = wire::pseudo_header_sum(source.ip(), destination.ip(), IpProtocol::Udp, udp_length);
            packet.set_checksum(sum);
        }
    }
}
