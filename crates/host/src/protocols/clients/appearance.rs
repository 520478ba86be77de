//! The address under which a client appears in the container, and the container's address that it reaches. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::addressing::{Addressing, Subnet};
use nsnet_stack::flow::FlowKey;

/// The origin of a client, as far as the container may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Another host.
    Remote(SocketAddr),
    /// The host itself, which appears as the gateway.
    Host(SocketAddr),
    /// A UNIX socket, with a port that it may be given.
    Local(u16),
}

/// Ports that a client may be given instead of its own: those that need no privilege.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=65_535;

/// One way to a container's port: by one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    container: SocketAddr,
    /// The client's own address, if it may appear with it.
    own: Option<SocketAddr>,
    gateway: SocketAddr,
}

/// The ways for a client, the best first: by its own address family, then by the other.
pub(crate) fn ways(addressing: &Addressing, caller: Caller, port: u16) -> impl Iterator<Item = Way> + use<> {
    let is_near = |subnet: &Subnet| match caller {
        Caller::Remote(client) | Caller::Host(client) => client.is_ipv4() == subnet.container.is_ipv4(),
        Caller::Local(_) => true,
    };
    let (near, far): (Vec<_>, Vec<_>) = addressing.subnets().partition(is_near);
    near.into_iter().chain(far).map(move |subnet| Way {
        container: SocketAddr::new(subnet.container, port),
        own: match caller {
            Caller::Remote(client) if is_presentable(&subnet, client) => Some(plain(client)),
            Caller::Remote(_) | Caller::Host(_) | Caller::Local(_) => None,
        },
        gateway: SocketAddr::new(subnet.gateway, caller.port()),
    })
}

impl Caller {
    fn port(self) -> u16 {
        match self {
            Self::Remote(client) | Self::Host(client) => client.port(),
            Self::Local(port) => port,
        }
    }
}

impl Way {
    /// The container's end.
    pub(crate) fn container(&self) -> SocketAddr {
        self.container
    }

    /// A free tuple: with the client's own address if possible, otherwise with the gateway's and a port close to the
    /// client's. A datagram may come from port 0, but the tuple never has that port, because nothing can be sent to it.
    pub(crate) fn key(&self, is_free: impl Fn(&FlowKey) -> bool) -> Option<FlowKey> {
        let first = self.gateway.port();
        let others = (first.max(*PORTS.start())..=*PORTS.end()).chain(PORTS);
        let gateways = std::iter::once(first)
            .filter(|port| *port != 0)
            .chain(others)
            .map(|port| SocketAddr::new(self.gateway.ip(), port));
        let key = |peer| FlowKey { container: self.container, peer };
        self.own.into_iter().chain(gateways).map(key).find(is_free)
    }
}

/// Whether the container accepts packets with this source address, and sends its answers here.
fn is_presentable(subnet: &Subnet, client: SocketAddr) -> bool {
    let (address, port) = (client.ip(), client.port());
    // Kernels accept nothing from such sources. A client that forges them must not reach a kernel that does.
    let is_nobodys = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    let is_special = match address {
        // A link-local address needs a scope, which has no meaning inside. A mapped address is of the other family.
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
        IpAddr::V4(address) => address.is_broadcast(),
    };
    let is_of_family = address.is_ipv4() == subnet.container.is_ipv4();
    is_of_family && port != 0 && !is_nobodys && !is_special && !subnet.contains(address)
}

/// Without scope and flow label, as a packet has it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn both() -> Addressing {
        Addressing::new(Some(Default::default()), Some(Default::default()), Default::default())
    }

    /// "container < client" for every way.
    fn seen(addressing: &Addressing, caller: Caller) -> Vec<String> {
        ways(addressing, caller, 80)
            .map(|way| {
                let key = way.key(|_| true).unwrap();
                format!("{} < {}", key.container, key.peer)
            })
            .collect()
    }

    fn remote(client: &str) -> Caller {
        Caller::Remote(client.parse().unwrap())
    }

    #[test]
    fn a_client_appears_as_itself_and_by_the_other_family_as_the_gateway() {
        assert_eq!(
            seen(&both(), remote("203.0.113.9:5000")),
            ["10.0.2.100:80 < 203.0.113.9:5000", "[fd00::100]:80 < [fd00::2]:5000"]
        );
        assert_eq!(
            seen(&both(), remote("[fd99::2]:5000")),
            ["[fd00::100]:80 < [fd99::2]:5000", "10.0.2.100:80 < 10.0.2.2:5000"]
        );
        let only_v4 = Addressing { v6: None, ..both() };
        assert_eq!(seen(&only_v4, remote("[fd99::2]:5000")), ["10.0.2.100:80 < 10.0.2.2:5000"]);
    }

    #[test]
    fn the_host_appears_as_the_gateway() {
        let host = Caller::Host("127.0.0.1:5000".parse().unwrap());
        assert_eq!(seen(&both(), host)[0], "10.0.2.100:80 < 10.0.2.2:5000");
        let host = Caller::Host("[::1]:5000".parse().unwrap());
        assert_eq!(seen(&both(), host)[0], "[fd00::100]:80 < [fd00::2]:5000");
        assert_eq!(seen(&both(), Caller::Local(40_000))[0], "10.0.2.100:80 < 10.0.2.2:40000");
    }

    #[test]
    fn addresses_that_mean_another_inside_do_not_appear() {
        for client in ["10.0.2.100:5000", "10.0.2.77:5000"] {
            assert_eq!(seen(&both(), remote(client))[0], "10.0.2.100:80 < 10.0.2.2:5000");
        }
        assert_eq!(seen(&both(), remote("[fe80::1%3]:5000"))[0], "[fd00::100]:80 < [fd00::2]:5000");
    }

    #[test]
    fn addresses_that_are_nobodys_do_not_appear() {
        for client in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.1:1", "255.255.255.255:1", "203.0.113.9:0"] {
            assert!(seen(&both(), remote(client))[0].starts_with("10.0.2.100:80 < 10.0.2.2:"), "{client}");
        }
        for client in ["[::]:1", "[::1]:1", "[ff02::1]:1", "[::ffff:203.0.113.9]:1", "[fd99::2]:0"] {
            assert!(seen(&both(), remote(client))[0].starts_with("[fd00::100]:80 < [fd00::2]:"), "{client}");
        }
    }

    #[test]
    fn nobody_appears_with_port_0() {
        for caller in [remote("203.0.113.9:0"), remote("[fd99::2]:0"), Caller::Local(0)] {
            for way in ways(&both(), caller, 80) {
                assert_eq!(way.key(|_| true).unwrap().peer.port(), *PORTS.start());
            }
        }
    }

    #[test]
    fn two_clients_never_share_a_tuple() {
        let mut taken = HashSet::new();
        for client in
            ["203.0.113.9:65535", "203.0.113.9:65535", "127.0.0.1:65535", "127.0.0.1:22", "127.0.0.1:22"]
        {
            let client = client.parse::<SocketAddr>().unwrap();
            let caller =
                if client.ip().is_loopback() { Caller::Host(client) } else { Caller::Remote(client) };
            let way = ways(&both(), caller, 80).next().unwrap();
            assert!(taken.insert(way.key(|key| !taken.contains(key)).unwrap()));
        }
        assert!(ways(&both(), Caller::Local(7), 80).next().unwrap().key(|_| false).is_none());
    }
}
