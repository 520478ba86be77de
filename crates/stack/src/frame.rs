//! The virtio-net header of frames for the container.
//!
//! With it, a frame leaves two things to the container's kernel (virtio 1.2, 5.1.6):
//!
//! - The checksum. The field then holds the sum over the pseudo-header only.
//! - Segmentation. One frame then stands for many TCP segments, UDP datagrams or IP fragments.
//!
//! [`Device`] knows which of them the container's device accepts, and decides how each packet goes.

use std::net::{IpAddr, SocketAddr};

use nsnet_proto::Offload;
use nsnet_proto::vnet::{Checksum, Header, SegmentKind, Segmentation};
use smoltcp::wire::{IpProtocol, UDP_HEADER_LEN, UdpPacket};

use crate::flow::FlowKey;
use crate::fragments;
use crate::tcp::{Capabilities, header_length};
use crate::udp::packet::{self, ChecksumMode};
use crate::udp::{Datagrams, MAX_DATAGRAMS};
use crate::wire::{ip_header_len, pseudo_header_sum};

/// Largest IP packet of a frame in bytes: the length field of IPv4 has 16 bits.
pub const MAX_PACKET: usize = u16::MAX as usize;

/// The packets that the container's device takes.
///
/// # Examples
/// ```
/// use nsnet_proto::Offload;
/// use nsnet_stack::frame::{Device, Plan};
/// use nsnet_stack::udp::Datagrams;
///
/// let (source, datagram) = ("10.99.0.2:53".parse().unwrap(), [7; 2000]);
/// let offloading = Device { mtu: 1500, offload: Offload::ALL };
/// let Plan::Frame { header, .. } = offloading.plan(source, Datagrams::one(&datagram)) else { panic!() };
/// assert_eq!(header.segmentation.unwrap().size, 1480); // the payload of each fragment
///
/// let plain = Device { mtu: 1500, offload: Offload::NONE };
/// assert_eq!(plain.plan(source, Datagrams::one(&datagram)), Plan::Fragments);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// MTU in bytes. The device takes a larger packet only if it cuts it.
    pub mtu: u16,
    /// What the device does on behalf of this process.
    pub offload: Offload,
}

/// How datagrams go to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// In one frame with this header.
    Frame {
        /// The header of the frame.
        header: Header,
        /// Who computes the UDP checksum.
        checksum: ChecksumMode,
    },
    /// In fragments, each of them a frame.
    Fragments,
    /// Not at all: no IP packet can carry as much.
    Nothing,
}

impl Plan {
    /// Whether the device may fragment the packet. If so, its IPv4 header must permit that ([`fragments::permit`]).
    #[must_use]
    pub fn may_be_cut(&self) -> bool {
        let Self::Frame { header, .. } = self else { return false };
        header.segmentation.is_some_and(|segmentation| segmentation.kind == SegmentKind::Fragments)
    }
}

impl Device {
    /// What TCP may assume about packets of the family of `address`.
    #[must_use]
    pub fn tcp_capabilities(&self, address: IpAddr) -> Capabilities {
        let segmentation = match address {
            IpAddr::V4(_) => self.offload.tso4,
            IpAddr::V6(_) => self.offload.tso6,
        };
        Capabilities {
            max_packet: if segmentation { MAX_PACKET } else { self.mtu.into() },
            segmentation,
            checksum: !self.offload.checksum,
        }
    }

    /// The header of a TCP packet of `length` bytes, which the device cuts into segments with `segment_size` bytes of
    /// payload each. If its checksum is partial, [`write_tcp_sum`] must write the sum.
    #[must_use]
    pub fn segment_header(&self, key: FlowKey, length: usize, segment_size: u16) -> Header {
        let peer = key.peer.ip();
        let capabilities = self.tcp_capabilities(peer);
        if capabilities.checksum {
            return Header::default();
        }
        let headers = header_length(peer);
        let segmentation = (capabilities.segmentation && length > headers + usize::from(segment_size))
            .then_some(Segmentation {
                kind: match peer {
                    IpAddr::V4(_) => SegmentKind::TcpV4,
                    IpAddr::V6(_) => SegmentKind::TcpV6,
                },
                size: segment_size,
                header_len: u16::try_from(headers).unwrap_or(0),
            });
        let start = u16::try_from(ip_header_len(peer)).unwrap_or(0);
        Header { checksum: Checksum::Partial { start, offset: TCP_CHECKSUM }, segmentation }
    }

    /// Whether datagrams from `source` can go in one frame, which the device cuts.
    #[must_use]
    pub fn takes_at_once(&self, source: SocketAddr, datagrams: Datagrams<'_>) -> bool {
        self.offload.uso
            && datagrams.count() <= MAX_DATAGRAMS
            && packet::length(source, datagrams.bytes().len()) <= MAX_PACKET
            && packet::length(source, datagrams.size()) <= self.mtu.into()
    }

    /// Decides how datagrams from `source` go: a single one, or those that the device [takes at
    /// once](Self::takes_at_once). A single one above the MTU goes in one frame if the device can fragment it.
    #[must_use]
    pub fn plan(&self, source: SocketAddr, datagrams: Datagrams<'_>) -> Plan {
        let payload = datagrams.bytes().len();
        let length = packet::length(source, payload);
        let header_len = u16::try_from(length - payload).unwrap_or(0);
        let segmentation = if datagrams.count() > 1 {
            let size = u16::try_from(datagrams.size()).unwrap_or(u16::MAX);
            Some(Segmentation { kind: SegmentKind::Udp, size, header_len })
        } else if length <= self.mtu.into() {
            None
        } else if self.offload.checksum && length <= MAX_PACKET {
            Some(self.fragmentation(source.ip(), header_len))
        } else if packet::is_possible(source, payload) {
            return Plan::Fragments;
        } else {
            return Plan::Nothing;
        };
        if !self.offload.checksum {
            return Plan::Frame {
                header: Header { checksum: Checksum::Complete, segmentation },
                checksum: ChecksumMode::Full,
            };
        }
        let start = header_len - UDP_HEADER;
        let checksum = Checksum::Partial { start, offset: UDP_CHECKSUM };
        Plan::Frame { header: Header { checksum, segmentation }, checksum: ChecksumMode::PseudoHeader }
    }

    /// Prepares a UDP packet above the MTU, which has come from another container, for a device that completes
    /// checksums and fragments. Returns the header of its frame. `ip_header_len` is the length in bytes of what
    /// precedes the UDP header.
    ///
    /// # Panics
    /// If the packet is shorter than an IP header, or than `ip_header_len` and a UDP header.
    pub fn prepare_uncut(
        &self,
        packet: &mut [u8],
        (source, destination): (IpAddr, IpAddr),
        ip_header_len: usize,
        identification: u32,
    ) -> Header {
        let start = u16::try_from(ip_header_len).unwrap_or(0);
        let segmentation = Some(self.fragmentation(source, start + UDP_HEADER));
        fragments::permit(packet, identification);
        let datagram = &mut packet[ip_header_len..];
        let sum = pseudo_header_sum(source, destination, IpProtocol::Udp, datagram.len());
        UdpPacket::new_unchecked(datagram).set_checksum(sum);
        Header { checksum: Checksum::Partial { start, offset: UDP_CHECKSUM }, segmentation }
    }

    fn fragmentation(&self, source: IpAddr, header_len: u16) -> Segmentation {
        let size = fragments::size(source, self.mtu);
        Segmentation { kind: SegmentKind::Fragments, size, header_len }
    }
}

/// Writes the sum over the pseudo-header into the checksum field of a TCP packet from the flow's peer to its container.
/// The device completes it.
///
/// # Panics
/// If the packet is shorter than an IP header without options and a TCP header.
pub fn write_tcp_sum(packet: &mut [u8], key: FlowKey) {
    let (source, destination) = (key.peer.ip(), key.container.ip());
    let start = ip_header_len(source);
    let sum = pseudo_header_sum(source, destination, IpProtocol::Tcp, packet.len() - start);
    let field = start + usize::from(TCP_CHECKSUM);
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Length of a UDP header (RFC 768).
const UDP_HEADER: u16 = 8;
const _: () = assert!(UDP_HEADER as usize == UDP_HEADER_LEN);

/// Offset of the checksum field in a UDP header (RFC 768).
const UDP_CHECKSUM: u16 = 6;

/// Offset of the checksum field in a TCP header (RFC 9293, 3.1).
const TCP_CHECKSUM: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Device = Device { mtu: 1500, offload: Offload::NONE };
    const OFFLOAD: Device = Device { mtu: 1500, offload: Offload::ALL };

    fn plan(device: Device, source: &str, payload: usize) -> Plan {
        device.plan(source.parse().unwrap(), Datagrams::one(&vec![7; payload]))
    }

    #[test]
    fn a_datagram_that_fits_goes_in_one_frame() {
        for source in ["10.99.0.2:53", "[fd99::2]:53"] {
            let plain = plan(PLAIN, source, 1000);
            assert_eq!(plain, Plan::Frame { header: Header::default(), checksum: ChecksumMode::Full });
            let Plan::Frame { header, checksum } = plan(OFFLOAD, source, 1000) else { panic!("one frame") };
            assert_eq!((header.segmentation, checksum), (None, ChecksumMode::PseudoHeader));
        }
    }

    #[test]
    fn a_datagram_above_the_mtu_is_cut_by_whoever_can() {
        assert_eq!(plan(PLAIN, "10.99.0.2:53", 1473), Plan::Fragments);
        assert!(plan(OFFLOAD, "10.99.0.2:53", 1473).may_be_cut());
        assert!(!plan(OFFLOAD, "10.99.0.2:53", 1472).may_be_cut());
        // IPv6 has room for what one frame has not.
        assert_eq!(plan(OFFLOAD, "[fd99::2]:53", 65_507), Plan::Fragments);
        assert_eq!(plan(OFFLOAD, "[fd99::2]:53", 65_528), Plan::Nothing);
        assert_eq!(plan(PLAIN, "10.99.0.2:53", 65_508), Plan::Nothing);
    }

    #[test]
    fn datagrams_go_at_once_where_the_device_cuts_them() {
        let (source, bytes) = ("10.99.0.2:53".parse().unwrap(), [7; 2000]);
        let datagrams = Datagrams::of_size(1000, &bytes);
        assert!(!PLAIN.takes_at_once(source, datagrams));
        assert!(OFFLOAD.takes_at_once(source, datagrams));
        let Plan::Frame { header, .. } = OFFLOAD.plan(source, datagrams) else { panic!("one frame") };
        let segmentation = Segmentation { kind: SegmentKind::Udp, size: 1000, header_len: 28 };
        assert_eq!(header.segmentation, Some(segmentation));
    }

    #[test]
    fn a_segment_is_cut_at_the_size_of_the_containers() {
        let key = FlowKey { container: ([10, 0, 2, 100], 4000).into(), peer: ([10, 99, 0, 2], 80).into() };
        assert_eq!(PLAIN.segment_header(key, 1500, 1460), Header::default());
        assert_eq!(OFFLOAD.segment_header(key, 1500, 1460).segmentation, None);
        let cut = OFFLOAD.segment_header(key, 1501, 1460).segmentation;
        assert_eq!(cut, Some(Segmentation { kind: SegmentKind::TcpV4, size: 1460, header_len: 40 }));
    }
}
