use std::net::{IpAddr, SocketAddr};

use nsnet_proto::vnet;
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::Ipv4Repr;

use super::*;
use crate::discard::Discard;
use crate::fragments::Fragments;
use crate::packet::{Packet, Transport};
use crate::udp::Datagrams;
use crate::udp::packet::{self as datagram, ChecksumMode};

#[expect(clippy::disallowed_methods, reason = "any instant will do to start from")]
fn start() -> Instant {
    Instant::now()
}

/// A datagram of the container that carries `payload`, whole.
fn packet(is_v4: bool, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) = if is_v4 {
        ("10.0.2.100:4000".parse().unwrap(), "10.99.0.2:53".parse().unwrap())
    } else {
        ("[fd00::100]:4000".parse().unwrap(), "[fd99::2]:53".parse().unwrap())
    };
    let mut packet = vec![0; datagram::length(source, payload.len())];
    datagram::write(&mut packet, source, destination, payload, ChecksumMode::Full);
    packet
}

fn cut(packet: &[u8], mtu: u16, identification: u32) -> Vec<Vec<u8>> {
    let any = if packet[0] >> 4 == 4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let size = crate::fragments::size(any, mtu);
    let mut fragments = Fragments::new(packet.to_vec(), size, identification);
    let mut cut = Vec::new();
    while let Some(length) = fragments.next_len() {
        let mut fragment = vec![0; length];
        fragments.write_next(&mut fragment);
        fragments.advance();
        cut.push(fragment);
    }
    cut
}

/// An IPv4 fragment, put together by hand.
fn v4(identification: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: "10.0.2.100".parse().unwrap(),
        dst_addr: "10.99.0.2".parse().unwrap(),
        next_header: smoltcp::wire::IpProtocol::Udp,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + payload.len()];
    bytes[ip.buffer_len()..].copy_from_slice(payload);
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &ChecksumCapabilities::ignored());
    packet.set_ident(identification);
    packet.clear_flags();
    packet.set_more_frags(more);
    packet.set_frag_offset(offset);
    packet.fill_checksum();
    bytes
}

/// An IPv6 fragment, put together by hand.
fn v6(identification: u32, offset: u16, more: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = packet(false, &[])[..40].to_vec();
    bytes[4..6].copy_from_slice(&u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    bytes[6] = 44;
    bytes.extend([protocol, 0]);
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend(identification.to_be_bytes());
    bytes.extend(payload);
    bytes
}

impl Reassembler {
    #[track_caller]
    fn take(&mut self, now: Instant, bytes: &[u8]) -> Option<Vec<u8>> {
        let whole = self.add(now, &Fragment::parse(bytes).unwrap())?;
        let packet = whole.packet().to_vec();
        self.recycle(whole);
        Some(packet)
    }

    /// The payload of the packet that the fragments make, without its header.
    #[track_caller]
    fn payload_of(&mut self, fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
        let now = start();
        let mut wholes = fragments.iter().filter_map(|fragment| self.take(now, fragment));
        let whole = wholes.next()?;
        assert_eq!(wholes.next(), None);
        Some(whole[if whole[0] >> 4 == 4 { 20 } else { 40 }..].to_vec())
    }

    fn memory(&self) -> usize {
        let partial = |partial: &Partial| partial.buffer.capacity() + size_of::<Partial>();
        self.spare.capacity() + self.under_way.iter().map(|boxed| partial(boxed)).sum::<usize>()
    }
}

mod whole {
    use super::*;

    fn assert_is(whole: &[u8], is_v4: bool, payload: &[u8]) {
        let packet = Packet::parse(&vnet::Header::default(), whole).unwrap();
        let Transport::Udp(read) = packet.transport else { panic!("not UDP") };
        assert!(read == Datagrams::one(payload));
        // DF and the identification are the only difference.
        let sent = super::packet(is_v4, payload);
        assert_eq!(packet.bytes.len(), sent.len());
        assert!(is_v4 || packet.bytes == sent);
    }

    proptest! {
        #[test]
        fn fragments_in_any_order_and_duplicated_give_the_datagram_back(
            payload in prop::collection::vec(any::<u8>(), 1600..20_000),
            mtu in 576..1500u16,
            is_v4 in any::<bool>(),
            order in prop::collection::vec(any::<u64>(), 64),
            repeated in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let fragments = cut(&packet(is_v4, &payload), mtu, 7);
            let mut order: Vec<_> = (0..fragments.len())
                .chain(repeated.iter().map(|index| index.index(fragments.len())))
                .zip(order)
                .collect();
            order.sort_by_key(|(_, random)| *random);
            let mut reassembler = Reassembler::default();
            let now = start();
            let mut wholes = 0;
            for (index, _) in &order {
                if let Some(whole) = reassembler.take(now, &fragments[*index]) {
                    assert_is(&whole, is_v4, &payload);
                    wholes += 1;
                }
            }
            prop_assert!(wholes >= 1);
            // What comes again when the datagram is complete waits as if it were the start of another.
            let waiting: u64 = reassembler.under_way.iter().map(|partial| partial.fragments).sum();
            prop_assert!(waiting <= repeated.len() as u64);
            prop_assert_eq!(reassembler.take_dropped(), 0);
        }

        #[test]
        fn one_fragment_less_is_no_datagram(
            payload in prop::collection::vec(any::<u8>(), 1600..10_000),
            is_v4 in any::<bool>(),
            missing in any::<prop::sample::Index>(),
        ) {
            let mut fragments = cut(&packet(is_v4, &payload), 1280, 7);
            fragments.remove(missing.index(fragments.len()));
            prop_assert_eq!(Reassembler::default().payload_of(&fragments), None);
        }
    }

    #[test]
    fn datagrams_that_mix_are_told_apart() {
        let mut reassembler = Reassembler::default();
        let now = start();
        let [one, other] = [[1; 3000], [2; 3000]];
        let [first, second] = [cut(&packet(true, &one), 1500, 1), cut(&packet(true, &other), 1500, 2)];
        for (one, other) in first.iter().zip(&second).take(2) {
            assert_eq!(reassembler.take(now, one), None);
            assert_eq!(reassembler.take(now, other), None);
        }
        assert_is(&reassembler.take(now, &second[2]).unwrap(), true, &other);
        assert_is(&reassembler.take(now, &first[2]).unwrap(), true, &one);
        assert_eq!(reassembler.take_dropped(), 0);
    }

    #[test]
    fn an_ipv6_fragment_that_is_all_of_its_packet_meets_no_other() {
        let sent = packet(false, b"atomic");
        let mut reassembler = Reassembler::default();
        let now = start();
        assert_eq!(reassembler.take(now, &v6(7, 0, true, 17, &[0; 8])), None);
        assert_eq!(reassembler.take(now, &v6(7, 0, false, 17, &sent[40..])).unwrap(), sent);
        assert_eq!(reassembler.take(now, &v6(7, 0, false, 59, &[])).unwrap().len(), 40);
        assert_eq!(reassembler.under_way.len(), 1);
    }

    #[test]
    fn the_first_fragment_says_what_an_ipv6_packet_holds() {
        let sent = packet(false, &[9; 24]);
        let mut reassembler = Reassembler::default();
        let now = start();
        assert_eq!(reassembler.take(now, &v6(7, 16, false, 6, &sent[56..])), None);
        assert_eq!(reassembler.take(now, &v6(7, 0, true, 17, &sent[40..56])).unwrap(), sent);
    }

    #[test]
    fn the_longest_datagrams_fit() {
        for (is_v4, length) in [(true, 65_507), (false, 65_527)] {
            let payload = vec![3; length];
            let fragments = cut(&packet(is_v4, &payload), 1500, 1);
            let read = Reassembler::default().payload_of(&fragments).unwrap();
            assert_eq!(read[8..], payload);
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut fragments = cut(&packet(true, &[7; 3000]), 1500, 1);
        fragments[1][100] ^= 4;
        let mut reassembler = Reassembler::default();
        let now = start();
        let whole = fragments.iter().find_map(|fragment| reassembler.take(now, fragment)).unwrap();
        let parsed = Packet::parse(&vnet::Header::default(), &whole);
        assert_eq!(parsed.unwrap_err(), Discard::Malformed);
    }
}

mod hostile {
    use super::*;

    proptest! {
        #[test]
        fn whatever_comes_memory_is_bounded_and_every_fragment_accounted_for(
            fragments in prop::collection::vec(
                (0..200u16, 0..8192u16, any::<bool>(), 0..2000usize, any::<bool>(), 0..500u64),
                0..400,
            ),
        ) {
            let mut reassembler = Reassembler::default();
            let mut now = start();
            let (mut taken, mut used) = (0, 0);
            for (identification, block, more, length, is_v4, pause) in fragments {
                now += Duration::from_millis(pause);
                let payload = vec![0; length];
                let bytes = if is_v4 {
                    v4(identification, block * 8, more, &payload)
                } else {
                    v6(identification.into(), block * 8, more, 17, &payload)
                };
                let Ok(fragment) = Fragment::parse(&bytes) else { continue };
                taken += 1;
                if let Some(whole) = reassembler.add(now, &fragment) {
                    used += whole.0.fragments;
                    reassembler.recycle(whole);
                }
                prop_assert!(reassembler.memory() <= 4 << 20);
                prop_assert!(reassembler.under_way.len() <= MAX_DATAGRAMS);
                let deadlines = reassembler.under_way.iter().map(|partial| partial.deadline);
                prop_assert!(deadlines.clone().is_sorted());
                prop_assert!(deadlines.clone().all(|deadline| now < deadline && deadline <= now + TIMEOUT));
                prop_assert_eq!(reassembler.deadline(), deadlines.min());
            }
            let waiting: u64 = reassembler.under_way.iter().map(|partial| partial.fragments).sum();
            prop_assert_eq!(used + waiting + reassembler.take_dropped(), taken);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), is_v4 in any::<bool>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if is_v4 { 0x45 } else { 0x60 };
            }
            if is_v4 && bytes.len() >= 20 {
                let length = u16::try_from(bytes.len()).unwrap();
                let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
                packet.set_total_len(length);
                packet.fill_checksum();
            } else if bytes.len() >= 40 {
                let length = u16::try_from(bytes.len() - 40).unwrap();
                bytes[4..6].copy_from_slice(&length.to_be_bytes());
                bytes[6] = 44;
            }
            if let Ok(fragment) = Fragment::parse(&bytes) {
                let mut reassembler = Reassembler::default();
                let _ = reassembler.add(start(), &fragment);
            }
        }

        /// Overlapping in place, not in content: each fragment has bytes of its own.
        #[test]
        fn an_overlap_anywhere_drops_the_datagram(
            at in 1..400u16, length in 1..40usize, before in 0..4usize, is_v4 in any::<bool>(),
        ) {
            let mut fragments = cut(&packet(is_v4, &[1; 4000]), 1280, 7);
            let (offset, payload) = (at * 8, vec![2; length * 8]);
            let overlap =
                if is_v4 { v4(7, offset, true, &payload) } else { v6(7, offset, true, 17, &payload) };
            fragments.insert(before, overlap);
            let number = fragments.len() as u64;
            let mut reassembler = Reassembler::default();
            prop_assert_eq!(reassembler.payload_of(&fragments), None);
            prop_assert_eq!(reassembler.take_dropped(), number);
        }
    }

    #[test]
    fn what_comes_of_an_abandoned_datagram_is_dropped_until_its_time_is_up() {
        let mut reassembler = Reassembler::default();
        let now = start();
        assert_eq!(reassembler.take(now, &v4(1, 0, true, &[1; 16])), None);
        assert_eq!(reassembler.take(now, &v4(1, 8, true, &[2; 16])), None);
        assert_eq!(reassembler.memory(), size_of::<Partial>());
        let whole = [v4(1, 0, true, &[1; 16]), v4(1, 16, false, &[1; 3])];
        for fragment in &whole {
            assert_eq!(reassembler.take(now, fragment), None);
        }
        assert_eq!(reassembler.take_dropped(), 4);
        assert_eq!(reassembler.take(now + TIMEOUT, &whole[0]), None);
        assert_eq!(reassembler.take(now + TIMEOUT, &whole[1]).unwrap().len(), 20 + 19);
    }

    #[test]
    fn a_fragment_beyond_the_end_drops_the_datagram() {
        let last = v4(1, 16, false, &[1; 8]);
        for contradiction in [
            v4(1, 24, true, &[1; 8]),
            v4(1, 24, false, &[1; 8]),
            v4(1, 8, false, &[1; 8]),
            // The same bytes, but said not to be the last.
            v4(1, 16, true, &[1; 8]),
        ] {
            for fragments in [[&last, &contradiction], [&contradiction, &last]] {
                let mut reassembler = Reassembler::default();
                for fragment in fragments {
                    assert_eq!(reassembler.take(start(), fragment), None);
                }
                assert_eq!(reassembler.take_dropped(), 2);
            }
        }
    }

    #[test]
    fn impossible_fragments_are_malformed() {
        for bytes in [
            v4(1, 8, true, &[]),
            v4(1, 8, false, &[]),
            v4(1, 8, true, &[0; 9]),
            v4(1, 65_528, false, &[0; 8]),
            v6(1, 0, true, 17, &[]),
            v6(1, 8, false, 17, &[]),
            v6(1, 0, true, 17, &[0; 7]),
            v6(1, 65_528, false, 17, &[0; 8]),
        ] {
            assert_eq!(Fragment::parse(&bytes).unwrap_err(), Discard::Malformed);
        }
        let mut short = v6(1, 0, true, 17, &[]);
        short.truncate(47);
        short[5] = 7;
        assert_eq!(Fragment::parse(&short).unwrap_err(), Discard::Malformed);
    }

    #[test]
    fn a_packet_beyond_65535_bytes_with_its_header_is_dropped() {
        // The first fragment has the longest header, which the length of the last did not count with.
        let mut first = vec![0x4f, 0, 0, 68, 0, 1, 0x20, 0, 64, 17, 0, 0, 10, 0, 2, 100, 10, 99, 0, 2];
        first.resize(60, 1);
        first.extend([0; 8]);
        Ipv4Packet::new_unchecked(&mut first[..]).fill_checksum();
        let mut reassembler = Reassembler::default();
        let now = start();
        assert_eq!(reassembler.take(now, &first), None);
        assert_eq!(reassembler.take(now, &v4(1, 8, true, &[0; 65_496])), None);
        assert_eq!(reassembler.take(now, &v4(1, 65_504, false, &[0; 11])), None);
        assert_eq!(reassembler.take_dropped(), 3);
    }

    #[test]
    fn eight_bytes_at_a_time_are_taken() {
        let sent = packet(true, &[5; 60_000]);
        let pieces = sent[20..].chunks(8).enumerate();
        let fragments: Vec<_> =
            pieces.map(|(at, bytes)| v4(1, u16::try_from(at * 8).unwrap(), at < 7500, bytes)).rev().collect();
        assert_eq!(Reassembler::default().payload_of(&fragments).unwrap(), sent[20..]);
    }
}

mod limits {
    use super::*;

    #[test]
    fn a_datagram_that_lacks_pieces_is_dropped_after_thirty_seconds() {
        let mut reassembler = Reassembler::default();
        let now = start();
        let [first, last] = [v4(1, 0, true, &[1; 8]), v4(1, 8, false, &[1; 8])];
        assert_eq!(reassembler.take(now, &first), None);
        // A duplicate does not prolong it.
        assert_eq!(reassembler.take(now + TIMEOUT / 2, &first), None);
        assert_eq!(reassembler.deadline(), Some(now + TIMEOUT));
        reassembler.expire(now + TIMEOUT - Duration::from_millis(1));
        assert_eq!(reassembler.under_way.len(), 1);
        assert_eq!(reassembler.take(now + TIMEOUT, &last), None);
        assert_eq!(reassembler.take_dropped(), 2);
        assert_eq!(reassembler.deadline(), Some(now + TIMEOUT * 2));
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut reassembler = Reassembler::default();
        let now = start();
        let datagrams = u16::try_from(MAX_DATAGRAMS).unwrap();
        for identification in 0..=datagrams {
            assert_eq!(reassembler.take(now, &v4(identification, 0, true, &[1; 8])), None);
        }
        assert_eq!(reassembler.under_way.len(), MAX_DATAGRAMS);
        assert_eq!(reassembler.take_dropped(), 1);
        assert!(reassembler.take(now, &v4(1, 8, false, &[1; 8])).is_some());
        assert_eq!(reassembler.take(now, &v4(0, 8, false, &[1; 8])), None);
    }

    #[test]
    fn the_worst_case_stays_below_four_mebibytes() {
        let mut reassembler = Reassembler::default();
        let now = start();
        for identification in 0..500 {
            assert_eq!(reassembler.take(now, &v6(identification, 65_520, true, 17, &[1; 8])), None);
        }
        assert!(reassembler.memory() <= 4 << 20, "{}", reassembler.memory());
    }

    #[test]
    fn a_datagram_after_another_needs_no_memory_of_its_own() {
        let mut reassembler = Reassembler::default();
        let fragments = cut(&packet(true, &[1; 60_000]), 1500, 1);
        reassembler.payload_of(&fragments).unwrap();
        let spare = reassembler.spare.as_ptr();
        reassembler.payload_of(&fragments).unwrap();
        assert_eq!(reassembler.spare.as_ptr(), spare);
    }
}
