//! The addresses of a container's network, and the meaning of a destination address. Pure.

pub(crate) mod host_ports;
pub(crate) mod leases;
pub(crate) mod local;
pub(crate) mod subnet;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use nsnet_stack::wire::DNS_PORT;

use crate::addressing::host_ports::OpenHost;
use crate::addressing::subnet::{Ipv4Subnet, Ipv6Subnet, is_broadcast, is_shared};
use crate::dialer::{DialError, Protocol, Service};

/// The addresses of one family, for code that treats an [`Ipv4Subnet`] and an [`Ipv6Subnet`] alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) prefix: IpNet,
    pub(crate) container: IpAddr,
    pub(crate) gateway: IpAddr,
    pub(crate) dns: IpAddr,
}

impl From<Ipv4Subnet> for Subnet {
    fn from(subnet: Ipv4Subnet) -> Self {
        Self {
            prefix: subnet.prefix().into(),
            container: subnet.container_address().into(),
            gateway: subnet.gateway_address().into(),
            dns: subnet.dns_address().into(),
        }
    }
}

impl From<Ipv6Subnet> for Subnet {
    fn from(subnet: Ipv6Subnet) -> Self {
        Self {
            prefix: subnet.prefix().into(),
            container: subnet.container_address().into(),
            gateway: subnet.gateway_address().into(),
            dns: subnet.dns_address().into(),
        }
    }
}

impl Subnet {
    /// The same network for another container.
    pub(crate) fn with_container(self, container: IpAddr) -> Self {
        Self { container, ..self }
    }

    /// Every address that a container may have, the present container's first.
    pub(crate) fn container_addresses(self) -> impl Iterator<Item = IpAddr> {
        let (first, hosts) = (to_bits(self.container), to_bits(self.prefix.hostmask()));
        (0..=hosts)
            .map(move |offset| from_bits(first & !hosts | first.wrapping_add(offset) & hosts, self.container))
            .filter(move |address| self.is_for_container(*address))
    }

    /// Whether a container may have this address.
    pub(crate) fn is_for_container(&self, address: IpAddr) -> bool {
        self.contains(address)
            && !is_shared(self.prefix, address)
            && address != self.gateway
            && address != self.dns
    }

    /// Whether an address is in the prefix.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.prefix.contains(&address)
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
        // The upper bits of an IPv4 address are zero.
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

/// The addresses of a container's network, of one family or both.
#[derive(Debug, Clone)]
pub(crate) struct Addressing {
    pub(crate) v4: Option<Subnet>,
    pub(crate) v6: Option<Subnet>,
    /// The ports of the host that containers may reach.
    pub(crate) host: OpenHost,
}

/// The destination of a new flow.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Dial `target`, if the Dialer agrees.
    Forward { target: SocketAddr, service: Service },
    /// Refuse the flow.
    Refuse(DialError),
    /// The address cannot be a destination of flows.
    Ignore,
}

impl Addressing {
    pub(crate) fn new(v4: Option<Ipv4Subnet>, v6: Option<Ipv6Subnet>, host: OpenHost) -> Self {
        Self { v4: v4.map(Subnet::from), v6: v6.map(Subnet::from), host }
    }

    pub(crate) fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        [self.v4, self.v6].into_iter().flatten()
    }

    /// The subnet whose container address this is.
    pub(crate) fn subnet_of_container(&self, address: IpAddr) -> Option<Subnet> {
        self.subnets().find(|subnet| subnet.container == address)
    }

    /// Whether an address is for another container: on the same subnet, but neither this container's nor the network's
    /// own.
    pub(crate) fn is_neighbour(&self, address: IpAddr) -> bool {
        let is_other = |subnet: Subnet| ![subnet.container, subnet.gateway, subnet.dns].contains(&address);
        self.subnets().any(|subnet| subnet.contains(address) && is_other(subnet))
    }

    /// Whether an address is on the container's own link, where packets pass no router.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| subnet.contains(address))
    }

    /// Whether an address is the broadcast address of the container's own network.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| is_broadcast(subnet.prefix, address))
    }

    /// Decides on `destination` as far as the container's own network does.
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
        } else if is_broadcast(subnet.prefix, address) {
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
            // A scope or flow label of the host's socket has no meaning inside.
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
        Addressing::new(Some(Ipv4Subnet::default()), Some(Ipv6Subnet::default()), host)
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
    fn containers_have_all_addresses_that_nobody_else_has() {
        let subnet = |text: &str| Subnet::from(text.parse::<Ipv4Subnet>().unwrap());
        let addresses: Vec<String> =
            subnet("10.0.2.0/29").container_addresses().map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["10.0.2.4", "10.0.2.5", "10.0.2.6", "10.0.2.1"]);
        // The first addresses are available at once, wherever the container's address is in the prefix.
        let last = "fd00::ffff:ffff:ffff:ffff".parse().unwrap();
        let mut addresses = Subnet::from(Ipv6Subnet::default().container(last)).container_addresses();
        assert_eq!(addresses.next(), Some(last.into()));
        assert_eq!(addresses.next(), Some("fd00::1".parse().unwrap()));
        for shared in ["10.0.2.0", "10.0.2.7", "10.0.2.2", "10.0.2.3", "10.0.2.8", "::1"] {
            assert!(!subnet("10.0.2.0/29").is_for_container(shared.parse().unwrap()), "{shared}");
        }
    }
}
