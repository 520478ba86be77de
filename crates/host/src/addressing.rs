//! Who has which address on the container's network, and what stands behind a destination. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nsnet_stack::wire::DNS_PORT;

use crate::host_ports::OpenHost;
use crate::{DialError, Protocol, Service};

/// The addresses of one family on the container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The container's address.
    pub container: IpAddr,
    /// Length of the on-link prefix in bits.
    pub prefix_len: u8,
    /// The router's address: where the container's default route points.
    pub gateway: IpAddr,
    /// The address that answers DNS.
    pub dns: IpAddr,
}

impl Subnet {
    /// 10.0.2.100/24, gateway 10.0.2.2, DNS 10.0.2.3: the numbers that users of slirp know.
    pub const IPV4: Self = Self {
        container: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100)),
        prefix_len: 24,
        gateway: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
        dns: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3)),
    };

    /// fd00::100/64, gateway fd00::2, DNS fd00::3.
    pub const IPV6: Self = Self {
        container: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100)),
        prefix_len: 64,
        gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
        dns: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
    };

    /// Whether container, gateway and resolver are three hosts of one prefix.
    pub(crate) fn is_consistent(&self) -> bool {
        let hosts = [self.container, self.gateway, self.dns];
        let differ = self.container != self.gateway && self.container != self.dns && self.gateway != self.dns;
        differ && hosts.iter().all(|host| self.contains(*host) && !self.is_end(*host))
    }

    /// The same network for another container.
    pub(crate) fn with_container(self, container: IpAddr) -> Self {
        Self { container, ..self }
    }

    /// Every address of the prefix, the container's first.
    pub(crate) fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let (first, hosts) = (to_bits(self.container), self.host_mask());
        (0..=hosts)
            .map(move |offset| from_bits(first & !hosts | first.wrapping_add(offset) & hosts, self.container))
    }

    /// Whether an address is of the prefix.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let prefix = |address| to_bits(address) & !self.host_mask();
        address.is_ipv4() == self.container.is_ipv4() && prefix(address) == prefix(self.container)
    }

    /// Whether an address stands for more than one host: the first of a prefix for the network (RFC 1122, 3.2.1.3) or
    /// any of its routers (RFC 4291, 2.6.1), the last of an IPv4 one for all.
    fn is_end(&self, address: IpAddr) -> bool {
        self.is_broadcast(address) || (self.contains(address) && to_bits(address) & self.host_mask() == 0)
    }

    /// The last IPv4 address of the prefix reaches every host in it (RFC 919); there is only one.
    fn is_broadcast(&self, address: IpAddr) -> bool {
        let hosts = self.host_mask();
        address.is_ipv4()
            && self.prefix_len < 31
            && self.contains(address)
            && to_bits(address) & hosts == hosts
    }

    /// The bits that tell the hosts of the prefix apart.
    fn host_mask(&self) -> u128 {
        let width: u8 = if self.container.is_ipv4() { 32 } else { 128 };
        let prefix_len = self.prefix_len.min(width);
        u128::MAX.checked_shr((128 - width + prefix_len).into()).unwrap_or(0)
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the family of `like`.
fn from_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        // The upper bits are those of an address, none.
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

/// The addresses of a container's network; at least one family.
#[derive(Debug, Clone)]
pub(crate) struct Addressing {
    pub(crate) v4: Option<Subnet>,
    pub(crate) v6: Option<Subnet>,
    /// What of the host may be reached.
    pub(crate) host: OpenHost,
}

/// Where a new flow leads.
#[derive(Debug)]
pub(crate) enum Destination {
    /// To `target`, if the Dialer agrees.
    Forward { target: SocketAddr, service: Service },
    /// Nowhere.
    Refuse(DialError),
    /// Not a destination of flows at all.
    Ignore,
}

impl Addressing {
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        [self.v4, self.v6].into_iter().flatten()
    }

    /// The subnet whose container address this is.
    pub(crate) fn subnet_of_container(&self, address: IpAddr) -> Option<Subnet> {
        self.subnets().find(|subnet| subnet.container == address)
    }

    /// Whether an address is for another container: on the same subnet, and neither this container's nor the network's
    /// own.
    pub(crate) fn is_neighbour(&self, address: IpAddr) -> bool {
        let is_other = |subnet: Subnet| ![subnet.container, subnet.gateway, subnet.dns].contains(&address);
        self.subnets().any(|subnet| subnet.contains(address) && is_other(subnet))
    }

    /// Whether an address is of the container's own network, where packets pass no router.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| subnet.contains(address))
    }

    /// Whether an address is that of every host of the container's own network.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| subnet.is_broadcast(address))
    }

    /// What stands behind `destination`, as far as the container's own network decides it.
    pub(crate) fn resolve(&self, protocol: Protocol, destination: SocketAddr) -> Destination {
        let address = destination.ip();
        let Some(subnet) = self.subnets().find(|subnet| subnet.contains(address)) else {
            return Destination::Forward { target: destination, service: Service::World };
        };
        if address == subnet.dns && destination.port() == DNS_PORT {
            Destination::Forward { target: destination, service: Service::Resolver }
        } else if address == subnet.gateway
            && let Some(target) = self.host.behind_gateway(protocol, destination)
        {
            Destination::Forward { target, service: Service::HostLoopback }
        } else if address == subnet.gateway || address == subnet.dns {
            Destination::Refuse(DialError::Refused)
        } else if subnet.is_broadcast(address) {
            Destination::Ignore
        } else {
            Destination::Refuse(DialError::HostUnreachable)
        }
    }

    /// The address under which the container knows an upstream peer: undoes [`resolve`](Self::resolve).
    pub(crate) fn as_seen_inside(&self, peer: SocketAddr) -> SocketAddr {
        let gateway = match peer.ip() {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        };
        match gateway {
            Some(subnet) if self.host.opens_loopback(peer.ip()) => {
                SocketAddr::new(subnet.gateway, peer.port())
            }
            // A scope or flow label of the host's socket means nothing inside.
            Some(_) | None => SocketAddr::new(peer.ip(), peer.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostPorts;

    fn addressing(host_loopback: bool) -> Addressing {
        let host = if host_loopback { [HostPorts::loopback()].into() } else { OpenHost::default() };
        Addressing { v4: Some(Subnet::IPV4), v6: Some(Subnet::IPV6), host }
    }

    fn resolved(host_loopback: bool, destination: &str) -> String {
        format!("{:?}", addressing(host_loopback).resolve(Protocol::Tcp, destination.parse().unwrap()))
    }

    #[test]
    fn the_gateway_has_nothing_to_offer_unless_it_leads_to_the_loopback() {
        assert_eq!(resolved(false, "10.0.2.2:80"), "Refuse(Refused)");
        assert_eq!(resolved(true, "10.0.2.2:80"), "Forward { target: 127.0.0.1:80, service: HostLoopback }");
        assert_eq!(resolved(true, "[fd00::2]:80"), "Forward { target: [::1]:80, service: HostLoopback }");
    }

    #[test]
    fn the_resolver_has_one_port() {
        assert_eq!(resolved(true, "10.0.2.3:53"), "Forward { target: 10.0.2.3:53, service: Resolver }");
        assert_eq!(resolved(true, "[fd00::3]:53"), "Forward { target: [fd00::3]:53, service: Resolver }");
        assert_eq!(resolved(true, "10.0.2.3:54"), "Refuse(Refused)");
    }

    #[test]
    fn nobody_else_lives_on_the_subnet() {
        let is_on_link = |address: &str| addressing(true).is_on_link(address.parse().unwrap());
        assert!(is_on_link("10.0.2.77") && is_on_link("fd00::77"));
        assert!(!is_on_link("10.0.3.1") && !is_on_link("fd00:0:0:1::1"));
        assert_eq!(resolved(true, "10.0.2.77:1"), "Refuse(HostUnreachable)");
        assert_eq!(resolved(true, "[fd00::77]:1"), "Refuse(HostUnreachable)");
        assert_eq!(resolved(true, "10.0.2.255:1"), "Ignore");
        assert_eq!(resolved(true, "10.0.3.1:1"), "Forward { target: 10.0.3.1:1, service: World }");
        assert_eq!(
            resolved(true, "[fd00:0:0:1::1]:1"),
            "Forward { target: [fd00:0:0:1::1]:1, service: World }"
        );
    }

    #[test]
    fn loopback_peers_appear_as_the_gateway() {
        let seen =
            |loopback, peer: &str| addressing(loopback).as_seen_inside(peer.parse().unwrap()).to_string();
        assert_eq!(seen(true, "127.0.0.1:7"), "10.0.2.2:7");
        assert_eq!(seen(true, "[::1]:7"), "[fd00::2]:7");
        assert_eq!(seen(false, "127.0.0.1:7"), "127.0.0.1:7");
        assert_eq!(seen(true, "203.0.113.9:7"), "203.0.113.9:7");
    }

    #[test]
    fn extreme_prefixes_do_not_overflow() {
        for prefix_len in [0, 1, 31, 32, 64, 127, 128, 255] {
            for mut subnet in [Subnet::IPV4, Subnet::IPV6] {
                subnet.prefix_len = prefix_len;
                assert!(subnet.contains(subnet.container));
                let _ = subnet.is_broadcast("255.255.255.255".parse().unwrap());
            }
        }
    }
}
