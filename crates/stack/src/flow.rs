//! The two ends of a packet, and the key of a flow.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Transport protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// ICMP echo, RFC 792 and RFC 4443. The identifier takes the place of the source's port; the destination's port is
    /// 0.
    Icmp,
}

impl Protocol {
    /// Whether flows of this protocol have a port at the destination.
    #[must_use]
    pub fn has_ports(self) -> bool {
        match self {
            Self::Tcp | Self::Udp => true,
            Self::Icmp => false,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Both ends of one packet.
///
/// For an echo request, the source's port is the identifier and the destination's port is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// The end that sent it.
    pub source: SocketAddr,
    /// The end it goes to.
    pub destination: SocketAddr,
}

impl Endpoints {
    /// The flow of a packet that the container sent.
    #[must_use]
    #[inline]
    pub fn from_container(self) -> FlowKey {
        FlowKey { container: self.source, peer: self.destination }
    }
}

impl Hash for Endpoints {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_pair(self.source, self.destination, state);
    }
}

/// Identifies a flow of one container, among those of one [`Protocol`].
///
/// For an echo flow, the container's port is the identifier and the peer's port is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    /// The container's end.
    pub container: SocketAddr,
    /// The other end, under the address by which the container knows it.
    pub peer: SocketAddr,
}

impl Hash for FlowKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_pair(self.container, self.peer, state);
    }
}

/// Hashes two ends in a few large pieces, because a keyed hash costs by the piece.
///
/// The derived hash would add each address's family and scope. They are the same for all packets of a container, or
/// follow from the rest.
#[inline]
fn hash_pair<H: Hasher>(one: SocketAddr, other: SocketAddr, state: &mut H) {
    match (one.ip(), other.ip()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            state.write_u64(u64::from(one.to_bits()) << 32 | u64::from(other.to_bits()));
        }
        (one, other) => {
            for address in [one, other] {
                state.write_u128(to_ipv6(address).to_bits());
            }
        }
    }
    state.write_u32(u32::from(one.port()) << 16 | u32::from(other.port()));
}

#[inline]
fn to_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use proptest::prelude::*;

    use super::*;

    fn hash(value: impl Hash) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
    }

    /// Few addresses and ports, so that equal ones meet.
    fn address() -> impl Strategy<Value = SocketAddr> {
        let ips = ["10.0.2.100", "10.0.2.101", "::ffff:10.0.2.100", "fd00::100"]
            .map(|ip| ip.parse::<IpAddr>().unwrap());
        (prop::sample::select(ips.to_vec()), 0..3u16).prop_map(SocketAddr::from)
    }

    proptest! {
        #[test]
        fn equal_keys_have_equal_hashes(ends in prop::array::uniform4(address())) {
            let [container, peer, other_container, other_peer] = ends;
            let one = FlowKey { container, peer };
            let other = FlowKey { container: other_container, peer: other_peer };
            prop_assert!(one != other || hash(one) == hash(other));
            let packet = Endpoints { source: container, destination: peer };
            prop_assert_eq!(packet.from_container(), one);
            prop_assert_eq!(hash(packet), hash(one));
        }
    }

    #[test]
    fn each_part_of_a_key_changes_its_hash() {
        for [container, peer, other] in [
            ["10.0.2.100:4000", "10.99.0.2:80", "10.99.0.3:81"],
            ["[fd00::100]:4000", "[fd99::2]:80", "[fd99::3]:81"],
        ] {
            let [container, peer, other]: [SocketAddr; 3] =
                [container, peer, other].map(|end| end.parse().unwrap());
            let keys = [
                FlowKey { container, peer },
                FlowKey { container: peer, peer: container },
                FlowKey { container: SocketAddr::new(other.ip(), container.port()), peer },
                FlowKey { container: SocketAddr::new(container.ip(), other.port()), peer },
                FlowKey { container, peer: SocketAddr::new(other.ip(), peer.port()) },
                FlowKey { container, peer: SocketAddr::new(peer.ip(), other.port()) },
            ];
            let hashes: std::collections::BTreeSet<u64> = keys.into_iter().map(hash).collect();
            assert_eq!(hashes.len(), keys.len());
        }
    }

    #[test]
    fn only_echo_has_no_port_at_the_destination() {
        assert!(Protocol::Tcp.has_ports() && Protocol::Udp.has_ports() && !Protocol::Icmp.has_ports());
        assert_eq!(
            [Protocol::Tcp, Protocol::Udp, Protocol::Icmp].map(|it| it.to_string()),
            ["tcp", "udp", "icmp"]
        );
    }
}
