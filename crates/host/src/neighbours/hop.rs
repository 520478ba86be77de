//! One hop less to go.

/// How many hops a packet may still take (RFC 791, 3.1; RFC 8200, 3), this one included.
pub(super) fn limit(packet: &[u8]) -> u8 {
    packet[if is_v4(packet) { TTL } else { HOP_LIMIT }]
}

/// Takes one from a limit that is not 0 yet, and keeps the checksum of an IPv4 header right (RFC 1624, equation 3).
pub(super) fn count(packet: &mut [u8]) {
    if !is_v4(packet) {
        packet[HOP_LIMIT] -= 1;
        return;
    }
    let word = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let before = word(packet, TTL);
    packet[TTL] -= 1;
    let after = word(packet, TTL);
    let sum = u32::from(!word(packet, CHECKSUM)) + u32::from(!before) + u32::from(after);
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&[high, low]);
}

fn is_v4(packet: &[u8]) -> bool {
    packet[0] >> 4 == 4
}

/// Places in an IPv4 header (RFC 791, 3.1).
const TTL: usize = 8;
const CHECKSUM: usize = 10;

/// Place in an IPv6 header (RFC 8200, 3).
const HOP_LIMIT: usize = 7;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::{IPV4_HEADER_LEN, Ipv4Packet};

    use super::*;

    proptest! {
        #[test]
        fn the_checksum_stays_right(bytes in any::<[u8; IPV4_HEADER_LEN]>(), ttl in 1..=u8::MAX) {
            let mut header = bytes;
            let mut packet = Ipv4Packet::new_unchecked(&mut header[..]);
            packet.set_version(4);
            packet.set_header_len(20);
            packet.set_hop_limit(ttl);
            packet.fill_checksum();
            count(&mut header);
            prop_assert_eq!(limit(&header), ttl - 1);
            prop_assert!(Ipv4Packet::new_unchecked(&header[..]).verify_checksum());
        }
    }

    #[test]
    fn ipv6_has_no_checksum_to_keep() {
        let mut header = [0x60; 40];
        count(&mut header);
        assert_eq!(limit(&header), 0x5f);
        assert_eq!(header.iter().filter(|byte| **byte != 0x60).count(), 1);
    }
}
