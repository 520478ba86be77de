use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

use super::*;
use crate::udp::packet as datagram;

fn container() -> SocketAddr {
    "10.0.2.100:4000".parse().unwrap()
}

fn built(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; datagram::length(source, payload.len())];
    datagram::write(&mut bytes, source, destination, payload, datagram::ChecksumMode::Full);
    bytes
}

/// A packet from the container with any payload, which may begin as an ICMP message of a `kind`.
fn carrying(is_v4: bool, protocol: u8, hop_limit: u8, kind: Option<u8>, mut payload: Vec<u8>) -> Vec<u8> {
    if let (Some(kind), [first, code, ..]) = (kind, &mut payload[..]) {
        (*first, *code) = (kind, 0);
    }
    let (source, destination) = if is_v4 {
        (container(), "10.99.0.2:53".parse().unwrap())
    } else {
        ("[fd00::100]:1".parse().unwrap(), "[fd99::2]:53".parse().unwrap())
    };
    let mut bytes = built(source, destination, &payload);
    // Without the UDP header that stands between.
    let header = bytes.len() - payload.len() - 8;
    bytes.drain(header..header + 8);
    let length = u16::try_from(bytes.len()).unwrap();
    if is_v4 {
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_len(length);
        packet.set_hop_limit(hop_limit);
        packet.set_next_header(protocol.into());
        packet.fill_checksum();
    } else {
        bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
        (bytes[6], bytes[7]) = (protocol, hop_limit);
    }
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), first in any::<u8>()) {
        let mut bytes = bytes;
        let _ = Packet::parse(&vnet::Header::default(), &bytes);
        if let Some(byte) = bytes.first_mut() {
            *byte = if first % 2 == 0 { 0x45 } else { 0x60 };
        }
        let unverified = vnet::Header { checksum: vnet::Checksum::Verified, segmentation: None };
        let _ = Packet::parse(&unverified, &bytes);
    }

    /// With sound IP headers, so that transport headers are reached.
    #[test]
    fn any_payload_is_read_without_panic(
        payload in prop::collection::vec(any::<u8>(), 0..120),
        protocol in prop::sample::select(vec![0, 1, 6, 17, 43, 44, 58, 59, 60, 132]),
        kind in prop::option::of(prop::sample::select(vec![0u8, 1, 3, 8, 11, 128])),
        hop_limit in any::<u8>(), is_v4 in any::<bool>(), size in prop::option::of(1..=u16::MAX),
    ) {
        let bytes = carrying(is_v4, protocol, hop_limit, kind, payload);
        let segmentation =
            size.map(|size| vnet::Segmentation { kind: vnet::SegmentKind::Udp, size, header_len: 0 });
        let header = vnet::Header { checksum: vnet::Checksum::Verified, segmentation };
        if let Ok(packet) = Packet::parse(&header, &bytes) {
            prop_assert_eq!(packet.bytes, &bytes[..]);
            prop_assert_eq!(packet.ip_header_len, if is_v4 { 20 } else { 40 });
            prop_assert_eq!(packet.hop_limit, hop_limit);
            prop_assert!(packet.envelope().hop_limit >= 1);
            match packet.transport {
                Transport::Tcp(segment) => prop_assert!(segment.payload <= bytes.len()),
                Transport::Udp(datagrams) => prop_assert!((1..=MAX_SEGMENTS).contains(&datagrams.count())),
                Transport::Echo(datagram) => prop_assert!(datagram.bytes().len() >= 2),
                Transport::Error(message) => {
                    let Endpoints { source, destination } = packet.ends;
                    prop_assert!(Embedded::parse(source.ip(), destination.ip(), message, false).is_ok());
                }
                Transport::Unknown => prop_assert_eq!(packet.ends.source.port(), 0),
            }
        }
    }

    #[test]
    fn a_datagram_reads_as_it_was_built(payload in prop::collection::vec(any::<u8>(), 0..100), v6 in any::<bool>()) {
        let (source, destination): (SocketAddr, SocketAddr) = if v6 {
            ("[fd00::100]:1".parse().unwrap(), "[fd99::2]:53".parse().unwrap())
        } else {
            (container(), "10.99.0.2:53".parse().unwrap())
        };
        let bytes = built(source, destination, &payload);
        let packet = Packet::parse(&vnet::Header::default(), &bytes).unwrap();
        prop_assert_eq!(packet.ends, Endpoints { source, destination });
        prop_assert_eq!(packet.hop_limit, 64);
        prop_assert_eq!(packet.envelope().hop_limit, 63);
        let Transport::Udp(read) = packet.transport else { panic!("not UDP") };
        prop_assert_eq!(read, Datagrams::one(&payload));
    }

    #[test]
    fn a_flipped_bit_is_noticed(bit in 0usize..(28 + 16) * 8) {
        let mut bytes = built(container(), "10.99.0.2:53".parse().unwrap(), &[7; 16]);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let packet = Packet::parse(&vnet::Header::default(), &bytes);
        // One bit makes it IPv6, whose header has no checksum, and of a protocol that nobody checks.
        let is_noticed = packet.is_err() || matches!(packet, Ok(Packet { transport: Transport::Unknown, .. }));
        prop_assert!(is_noticed);
    }
}

#[test]
fn only_unicast_passes() {
    for address in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1", "0.1.2.3"] {
        let bytes = built(container(), SocketAddr::new(address.parse().unwrap(), 9), b"x");
        let result = Packet::parse(&vnet::Header::default(), &bytes);
        assert_eq!(result.unwrap_err(), Discard::NotUnicast, "{address}");
    }
    for address in ["::", "::1", "ff02::1", "::ffff:127.0.0.1"] {
        let source = "[fd00::100]:7".parse().unwrap();
        let bytes = built(source, SocketAddr::new(address.parse().unwrap(), 9), b"x");
        let result = Packet::parse(&vnet::Header::default(), &bytes);
        assert_eq!(result.unwrap_err(), Discard::NotUnicast, "{address}");
    }
}

#[test]
fn a_burst_is_told_from_a_datagram_and_bounded() {
    let bytes = built(container(), "10.99.0.2:53".parse().unwrap(), &[7; 1000]);
    let header = |kind, size| vnet::Header {
        checksum: vnet::Checksum::Complete,
        segmentation: Some(vnet::Segmentation { kind, size, header_len: 28 }),
    };
    let packet = Packet::parse(&header(vnet::SegmentKind::Udp, 300), &bytes).unwrap();
    let Transport::Udp(datagrams) = packet.transport else { panic!("not UDP") };
    assert_eq!(datagrams, Datagrams::of_size(300, &[7; 1000]));
    let refused = |kind, size| Packet::parse(&header(kind, size), &bytes).unwrap_err();
    assert_eq!(refused(vnet::SegmentKind::Udp, 7), Discard::Malformed);
    assert_eq!(refused(vnet::SegmentKind::TcpV4, 300), Discard::Malformed);
}

#[test]
fn what_is_not_carried_is_told_from_what_is_read_elsewhere() {
    let v6 = built("[fd00::100]:1".parse().unwrap(), "[fd99::2]:53".parse().unwrap(), b"abc");
    let of_protocol = |protocol| {
        let mut bytes = v6.clone();
        bytes[6] = protocol;
        let packet = Packet::parse(&vnet::Header::default(), &bytes);
        packet.map(|packet| matches!(packet.transport, Transport::Unknown))
    };
    // SCTP, and ICMP of the other family.
    assert_eq!((of_protocol(132), of_protocol(protocol::ICMP)), (Ok(true), Ok(true)));
    assert_eq!(of_protocol(protocol::IPV6_FRAGMENT), Err(Discard::Fragment));
    assert_eq!(of_protocol(protocol::IPV6_NO_NEXT_HEADER), Err(Discard::Protocol));
    // Hop-by-hop options, routing, destination options.
    for extension in [0, 43, 60] {
        assert_eq!(of_protocol(extension), Err(Discard::Extended));
    }
}

#[test]
fn only_ipv4_says_whether_it_may_be_cut() {
    let mut bytes = built(container(), "10.99.0.2:53".parse().unwrap(), b"abc");
    for dont_fragment in [false, true] {
        let mut header = Ipv4Packet::new_unchecked(&mut bytes[..]);
        header.set_dont_frag(dont_fragment);
        header.fill_checksum();
        let packet = Packet::parse(&vnet::Header::default(), &bytes).unwrap();
        assert_eq!(packet.dont_fragment, dont_fragment);
    }
    let bytes = built("[fd00::100]:1".parse().unwrap(), "[fd99::2]:53".parse().unwrap(), b"abc");
    assert!(Packet::parse(&vnet::Header::default(), &bytes).unwrap().dont_fragment);
}

#[test]
fn padding_behind_the_packet_is_cut() {
    let mut bytes = built(container(), "10.99.0.2:53".parse().unwrap(), b"abc");
    let length = bytes.len();
    bytes.extend_from_slice(&[0xff; 9]);
    assert_eq!(Packet::parse(&vnet::Header::default(), &bytes).unwrap().bytes.len(), length);
}
