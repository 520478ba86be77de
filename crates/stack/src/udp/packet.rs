//! Builds the UDP packets that go into the container: IP header, UDP header, payload.

use std::net::SocketAddr;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{IpProtocol, IpRepr, UDP_HEADER_LEN, UdpPacket};

use crate::wire;

/// Who computes the UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumMode {
    /// This process, over the whole datagram.
    Full,
    /// The receiving kernel. This process leaves the sum over the pseudo-header in the checksum field.
    PseudoHeader,
}

/// Length in bytes of the packet that carries `payload` bytes from `source`.
#[must_use]
pub fn length(source: SocketAddr, payload: usize) -> usize {
    wire::ip_header_len(source.ip()) + UDP_HEADER_LEN + payload
}

/// Whether an IP packet can carry a datagram of `payload` bytes: the length fields have 16 bits.
#[must_use]
pub(crate) fn is_possible(source: SocketAddr, payload: usize) -> bool {
    let counted = match source {
        SocketAddr::V4(_) => length(source, payload),
        SocketAddr::V6(_) => UDP_HEADER_LEN + payload,
    };
    u16::try_from(counted).is_ok()
}

/// Writes the packet, with a hop limit of 64, into `buffer`, which must be [`length`] bytes long.
///
/// # Panics
/// If `buffer` is shorter, or if one address is IPv4 and the other IPv6.
///
/// # Examples
/// ```
/// use nsnet_proto::vnet;
/// use nsnet_stack::packet::{Packet, Transport};
/// use nsnet_stack::udp::packet::{self, ChecksumMode};
///
/// let (source, destination) = ("10.99.0.2:53".parse().unwrap(), "10.0.2.100:4000".parse().unwrap());
/// let mut bytes = vec![0; packet::length(source, 5)];
/// packet::write(&mut bytes, source, destination, b"hello", ChecksumMode::Full);
///
/// let packet = Packet::parse(&vnet::Header::default(), &bytes).unwrap();
/// assert_eq!(packet.ends.source, source);
/// assert!(matches!(packet.transport, Transport::Udp(datagrams) if datagrams.bytes() == b"hello"));
/// ```
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

#[cfg(test)]
mod tests {
    use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

    use super::*;

    const ENDS: [[&str; 2]; 2] = [["10.99.0.2:53", "10.0.2.100:4000"], ["[fd99::2]:53", "[fd00::100]:4000"]];

    fn written([source, destination]: [&str; 2], payload: &[u8], mode: ChecksumMode) -> Vec<u8> {
        let source = source.parse().unwrap();
        let mut packet = vec![0xff; length(source, payload.len())];
        write(&mut packet, source, destination.parse().unwrap(), payload, mode);
        packet
    }

    #[test]
    fn the_headers_say_what_was_asked_for() {
        let v4 = written(ENDS[0], b"abc", ChecksumMode::Full);
        let ip = Ipv4Packet::new_checked(&v4[..]).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(
            (ip.hop_limit(), ip.next_header(), usize::from(ip.total_len())),
            (64, IpProtocol::Udp, 31)
        );
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!((udp.src_port(), udp.dst_port(), udp.payload()), (53, 4000, &b"abc"[..]));

        let v6 = written(ENDS[1], b"abc", ChecksumMode::Full);
        let ip = Ipv6Packet::new_checked(&v6[..]).unwrap();
        assert_eq!((ip.hop_limit(), ip.next_header(), ip.payload_len()), (64, IpProtocol::Udp, 11));
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!((udp.src_port(), udp.dst_port(), udp.payload()), (53, 4000, &b"abc"[..]));
    }

    #[test]
    fn a_sum_over_the_pseudo_header_is_completed_by_one_over_the_rest() {
        for ends in ENDS {
            let [full, mut partial] =
                [ChecksumMode::Full, ChecksumMode::PseudoHeader].map(|mode| written(ends, b"abcd", mode));
            let start = partial.len() - 4 - UDP_HEADER_LEN;
            let sum = !smoltcp::wire::checksum::data(&partial[start..]);
            partial[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(partial, full);
        }
    }

    #[test]
    fn the_longest_datagrams_are_those_of_the_length_fields() {
        for (ends, longest) in ENDS.into_iter().zip([65_507, 65_527]) {
            let source = ends[0].parse().unwrap();
            assert!(is_possible(source, longest) && !is_possible(source, longest + 1));
        }
    }
}
