//! The virtio-net header in front of every frame (`struct virtio_net_hdr`, `linux/virtio_net.h`, 10 bytes,
//! native byte order as TUN devices use it by default). The only place that knows its layout.
//!
//! The header says what the sender left undone: a checksum to fill in ([`Checksum::Partial`]) and a payload
//! to cut into segments ([`Segmentation`]). A zeroed header says that the packet is complete.

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 10;

/// A decoded header. The default describes a complete packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// How the packet must be cut, if it must.
    pub segmentation: Option<Segmentation>,
}

/// State of the transport checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The packet carries its checksum.
    #[default]
    Complete,
    /// The checksum field holds the sum over the pseudo-header only (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial {
        /// Offset in the packet where summing starts: the transport header.
        start: u16,
        /// Offset of the checksum field from `start`.
        offset: u16,
    },
    /// The kernel has verified it already (`VIRTIO_NET_HDR_F_DATA_VALID`); only ever received.
    Verified,
}

/// A packet that stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// What is cut.
    pub kind: SegmentKind,
    /// Payload bytes of each segment but the last; never 0.
    pub size: u16,
    /// Length of the headers that every segment repeats, in bytes; a hint.
    pub header_len: u16,
}

/// What is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    TcpV4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    TcpV6,
    /// UDP datagrams (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
    /// One UDP datagram, into IP fragments (`VIRTIO_NET_HDR_GSO_UDP`). Linux takes it and sends none.
    Fragments,
}

/// A header that says something impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer than [`HEADER_LEN`] bytes.
    #[error("the frame is shorter than its header")]
    Short,
    /// A segmentation kind this version does not know.
    #[error("unknown segmentation kind {0}")]
    Kind(u8),
    /// Segmentation into segments of no bytes.
    #[error("segments of zero bytes")]
    EmptySegments,
}

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The segments carry ECN echo bits; the kernel sets it beside the kind and needs nothing for it.
const GSO_ECN: u8 = 0x80;

impl Header {
    /// Splits a frame into its header and the packet behind it. The offsets a header holds are not checked
    /// against the packet: whoever uses them does that.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn split(frame: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        let Some((header, packet)) = frame.split_first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short);
        };
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let checksum = if header[0] & NEEDS_CSUM != 0 {
            Checksum::Partial { start: word(6), offset: word(8) }
        } else if header[0] & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentKind::TcpV4),
            GSO_TCPV6 => Some(SegmentKind::TcpV6),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            GSO_UDP => Some(SegmentKind::Fragments),
            other => return Err(HeaderError::Kind(other)),
        };
        let segmentation = kind.map(|kind| Segmentation { kind, size: word(4), header_len: word(2) });
        if segmentation.is_some_and(|segmentation| segmentation.size == 0) {
            return Err(HeaderError::EmptySegments);
        }
        Ok((Self { checksum, segmentation }, packet))
    }

    /// The header as the kernel reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        match self.checksum {
            Checksum::Complete => {}
            Checksum::Verified => bytes[0] = DATA_VALID,
            Checksum::Partial { start, offset } => {
                bytes[0] = NEEDS_CSUM;
                bytes[6..8].copy_from_slice(&start.to_ne_bytes());
                bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
            }
        }
        if let Some(Segmentation { kind, size, header_len }) = self.segmentation {
            bytes[1] = match kind {
                SegmentKind::TcpV4 => GSO_TCPV4,
                SegmentKind::TcpV6 => GSO_TCPV6,
                SegmentKind::Udp => GSO_UDP_L4,
                SegmentKind::Fragments => GSO_UDP,
            };
            bytes[2..4].copy_from_slice(&header_len.to_ne_bytes());
            bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = Header> {
        let checksum = prop_oneof![
            Just(Checksum::Complete),
            Just(Checksum::Verified),
            any::<(u16, u16)>().prop_map(|(start, offset)| Checksum::Partial { start, offset }),
        ];
        let kind = prop_oneof![
            Just(SegmentKind::TcpV4),
            Just(SegmentKind::TcpV6),
            Just(SegmentKind::Udp),
            Just(SegmentKind::Fragments),
        ];
        let segmentation = (kind, 1..=u16::MAX, any::<u16>())
            .prop_map(|(kind, size, header_len)| Segmentation { kind, size, header_len });
        (checksum, prop::option::of(segmentation))
            .prop_map(|(checksum, segmentation)| Header { checksum, segmentation })
    }

    proptest! {
        #[test]
        fn header_survives_the_wire(header in header(), packet in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut frame = header.to_bytes().to_vec();
            frame.extend_from_slice(&packet);
            prop_assert_eq!(Header::split(&frame), Ok((header, &packet[..])));
        }

        #[test]
        fn any_bytes_are_read_without_panic(frame in prop::collection::vec(any::<u8>(), 0..32)) {
            let read = Header::split(&frame);
            prop_assert_eq!(frame.len() < HEADER_LEN, read == Err(HeaderError::Short));
        }
    }

    #[test]
    fn zeroes_describe_a_complete_packet() {
        assert_eq!(Header::split(&[0; HEADER_LEN]), Ok((Header::default(), &[][..])));
        assert_eq!(Header::default().to_bytes(), [0; HEADER_LEN]);
    }

    #[test]
    fn tcp_segmentation_has_the_kernels_layout() {
        let header = Header {
            checksum: Checksum::Partial { start: 20, offset: 16 },
            segmentation: Some(Segmentation { kind: SegmentKind::TcpV4, size: 1460, header_len: 40 }),
        };
        let [a, b] = 40u16.to_ne_bytes();
        let [c, d] = 1460u16.to_ne_bytes();
        let [e, f] = 20u16.to_ne_bytes();
        let [g, h] = 16u16.to_ne_bytes();
        assert_eq!(header.to_bytes(), [1, 1, a, b, c, d, e, f, g, h]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let mut frame = [0; HEADER_LEN];
        frame[1] = 2;
        assert_eq!(Header::split(&frame), Err(HeaderError::Kind(2)));
        frame[1] = GSO_TCPV4;
        assert_eq!(Header::split(&frame), Err(HeaderError::EmptySegments));
    }
}
