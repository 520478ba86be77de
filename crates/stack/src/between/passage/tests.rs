//! What is read of packets between containers, and what is not believed.

use proptest::prelude::*;

use super::*;
use crate::between::software;
use crate::icmp;
use crate::icmp::{IcmpError, Unreachable};
use crate::udp::packet as datagram;

const ENDS: [(&str, &str); 2] =
    [("10.0.2.100:4000", "10.0.2.101:53"), ("[fd00::100]:4000", "[fd00::101]:53")];

fn ends() -> impl Iterator<Item = Endpoints> {
    ENDS.into_iter().map(|(source, destination)| Endpoints {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    })
}

fn built(ends: Endpoints, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; datagram::length(ends.source, payload.len())];
    datagram::write(&mut bytes, ends.source, ends.destination, payload, datagram::ChecksumMode::Full);
    bytes
}

/// An ICMP message of the family of `ends`, between its addresses.
fn message(ends: Endpoints, message: &[u8]) -> Vec<u8> {
    // Like a datagram of as many bytes, with another protocol.
    let mut bytes = built(ends, &vec![0; message.len() - UDP_HEADER_LEN]);
    let start = bytes.len() - message.len();
    bytes[start..].copy_from_slice(message);
    if ends.source.is_ipv4() {
        bytes[9] = protocol::ICMP;
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut bytes[..]).fill_checksum();
    } else {
        bytes[6] = protocol::ICMPV6;
    }
    bytes
}

fn parse<'a>(header: &vnet::Header, bytes: &'a [u8]) -> Result<Passage<'a>, Discard> {
    Passage::parse(header, bytes, Form::Whole)
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(
        start in 0..4usize, rest in prop::collection::vec(any::<u8>(), 0..200),
        checksum in prop::option::of(any::<(u16, u16)>()), size in prop::option::of(1..=u16::MAX),
    ) {
        let ends = ends().nth(start % 2).unwrap();
        let mut bytes = if start < 2 { built(ends, &rest) } else { message(ends, &[&[3, 0, 0, 0, 0, 0, 0, 0], &rest[..]].concat()) };
        let header = vnet::Header {
            checksum: checksum.map_or(Checksum::Complete, |(start, offset)| Checksum::Partial { start, offset }),
            segmentation: size.map(|size| Segmentation { kind: SegmentKind::Udp, size, header_len: 0 }),
        };
        let _ = parse(&header, &bytes);
        bytes.truncate(rest.len());
        let _ = parse(&header, &bytes);
        let _ = parse(&header, &rest);
    }

    /// A device without offloads leaves a frame to this process: whatever passes can be completed and cut.
    #[test]
    fn whatever_passes_is_cut_without_panic(
        family in 0..2usize, payload in prop::collection::vec(any::<u8>(), 0..300),
        is_tcp in any::<bool>(), size in prop::option::of(1..=400u16), header_len in any::<u16>(),
    ) {
        let ends = ends().nth(family).unwrap();
        let mut bytes = built(ends, &payload);
        let start = bytes.len() - payload.len() - UDP_HEADER_LEN;
        let (kind, offset) = match (is_tcp, ends.source.is_ipv4()) {
            (false, _) => (SegmentKind::Udp, UDP_CHECKSUM),
            (true, true) => (SegmentKind::TcpV4, TCP_CHECKSUM),
            (true, false) => (SegmentKind::TcpV6, TCP_CHECKSUM),
        };
        if is_tcp && ends.source.is_ipv4() {
            bytes[9] = protocol::TCP;
            smoltcp::wire::Ipv4Packet::new_unchecked(&mut bytes[..]).fill_checksum();
        } else if is_tcp {
            bytes[6] = protocol::TCP;
        }
        if let Some(data_offset) = bytes.get_mut(start + 12).filter(|_| is_tcp) {
            *data_offset = (5 << 4) | (*data_offset % 48);
        }
        let header = vnet::Header {
            checksum: Checksum::Partial { start: u16::try_from(start).unwrap(), offset },
            segmentation: size.map(|size| Segmentation { kind, size, header_len }),
        };
        for form in [Form::Whole, Form::Reassembled] {
            let Ok(passage) = Passage::parse(&header, &bytes, form) else { continue };
            let (tuple, end, _) = passage.flow();
            prop_assert_eq!(Tuple::of_ports(if is_tcp { Protocol::Tcp } else { Protocol::Udp }, ends), (tuple, end));
            let Some(segmentation) = passage.packet.header.segmentation else {
                software::complete(&mut bytes.clone(), passage.packet.header.checksum);
                continue;
            };
            let mut joined = Vec::new();
            for range in software::cut(&passage.packet, segmentation).unwrap() {
                let headers = usize::from(segmentation.header_len);
                let mut buffer = vec![0; headers + range.len()];
                software::write_segment(&passage.packet, segmentation, range, &mut buffer);
                prop_assert!(Packet::parse(&vnet::Header::default(), &buffer).is_ok());
                joined.extend_from_slice(&buffer[headers..]);
            }
            prop_assert_eq!(&joined[..], &bytes[segmentation.header_len.into()..]);
        }
    }
}

#[test]
fn a_header_that_promises_too_much_is_refused() {
    for ends in ends() {
        let bytes = built(ends, &[7; 100]);
        let start = u16::try_from(bytes.len() - 108).unwrap();
        let partial = Checksum::Partial { start, offset: 6 };
        let segmentation = |kind, size| Some(Segmentation { kind, size, header_len: 9 });
        let burst = vnet::Header { checksum: partial, segmentation: segmentation(SegmentKind::Udp, 10) };
        let passage = parse(&burst, &bytes).unwrap();
        // The length of the headers is not taken on trust.
        assert_eq!(passage.packet.header.segmentation.unwrap().header_len, start + 8);
        for header in [
            vnet::Header { checksum: Checksum::Partial { start, offset: 16 }, segmentation: None },
            vnet::Header { checksum: Checksum::Partial { start: start + 2, offset: 6 }, segmentation: None },
            vnet::Header { checksum: Checksum::Complete, ..burst },
            vnet::Header { segmentation: segmentation(SegmentKind::TcpV4, 10), ..burst },
            vnet::Header { segmentation: segmentation(SegmentKind::Fragments, 10), ..burst },
        ] {
            assert_eq!(parse(&header, &bytes).unwrap_err(), Discard::Malformed, "{header:?}");
        }
        let empty = built(ends, b"");
        assert_eq!(parse(&burst, &empty).unwrap_err(), Discard::Malformed);
    }
}

#[test]
fn a_verified_checksum_is_left_for_the_receiver_to_verify() {
    for ends in ends() {
        let verified = vnet::Header { checksum: Checksum::Verified, segmentation: None };
        let bytes = built(ends, b"x");
        assert_eq!(parse(&verified, &bytes).unwrap().packet.header, vnet::Header::default());
    }
}

#[test]
fn what_was_put_together_is_verified_here() {
    for ends in ends() {
        let mut bytes = built(ends, b"abc");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert!(parse(&vnet::Header::default(), &bytes).is_ok());
        let whole = Passage::parse(&vnet::Header::default(), &bytes, Form::Reassembled);
        assert_eq!(whole.unwrap_err(), Discard::Malformed);
    }
}

#[test]
fn echo_belongs_to_who_asks() {
    for (ends, [request, reply]) in ends().zip([[8, 0], [128, 129]]) {
        let header = vnet::Header::default();
        let asked = message(ends, &[request, 0, 0, 0, 0x12, 0x34, 0, 1]);
        let asked = parse(&header, &asked).unwrap();
        assert!(matches!(asked.content, Content::EchoRequest));
        assert_eq!((asked.ends.source.port(), asked.ends.destination.port()), (0x1234, 0));
        let back = Endpoints { source: ends.destination, destination: ends.source };
        let answered = message(back, &[reply, 0, 0, 0, 0x12, 0x34, 0, 1]);
        let answered = parse(&header, &answered).unwrap();
        assert!(matches!(answered.content, Content::EchoReply));
        assert_eq!(answered.flow().0, asked.flow().0);
        assert_ne!(answered.flow().1, asked.flow().1);
    }
}

#[test]
fn an_error_is_about_the_flow_it_quotes() {
    for ends in ends() {
        let header = vnet::Header::default();
        let quoted = built(ends, b"anybody?");
        let about = parse(&header, &quoted).unwrap().flow().0;
        for unreachable in [Unreachable::Port, Unreachable::Host] {
            let error = IcmpError::Unreachable(unreachable);
            let bytes = icmp::error(ends.destination.ip(), ends.source.ip(), icmp::HOP_LIMIT, error, &quoted);
            let Content::Error(flow) = parse(&header, &bytes).unwrap().content else { panic!("no error") };
            assert_eq!(flow, about);
        }
        // Of what a third party has sent, or of nothing.
        let other = if ends.source.is_ipv4() { "10.0.2.102" } else { "fd00::102" }.parse().unwrap();
        let error = IcmpError::TimeExceeded;
        for bytes in [
            icmp::error(other, ends.source.ip(), icmp::HOP_LIMIT, error, &quoted),
            icmp::error(ends.destination.ip(), other, icmp::HOP_LIMIT, error, &quoted),
            icmp::error(
                ends.destination.ip(),
                ends.source.ip(),
                icmp::HOP_LIMIT,
                error,
                &quoted[..quoted.len() - 16],
            ),
            icmp::error(ends.destination.ip(), ends.source.ip(), icmp::HOP_LIMIT, error, b""),
        ] {
            assert_eq!(parse(&header, &bytes).unwrap_err(), Discard::Unsolicited);
        }
    }
}

#[test]
fn what_only_a_router_may_say_is_not_passed_on() {
    for (ends, kinds) in ends().zip([&[4u8, 5, 9, 13, 17][..], &[130, 133, 134, 135, 136, 137]]) {
        for kind in kinds {
            let bytes = message(ends, &[*kind, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(parse(&vnet::Header::default(), &bytes).unwrap_err(), Discard::Protocol, "{kind}");
        }
    }
}
