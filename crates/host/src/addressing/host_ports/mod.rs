//! Which ports of this host containers may reach. Pure.

mod text;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::Protocol;

/// Ports of this host that containers may reach. They are on the host's loopback, which containers reach at the
/// gateway's address, or on one of the host's own addresses, which containers reach directly. The
/// [`Dialer`](crate::Dialer) still decides on every flow.
///
/// | opened | the container connects to | the host is dialled at |
/// |---|---|---|
/// | [`loopback()`](Self::loopback) | 10.0.2.2:P, \[fd00::2\]:P | 127.0.0.1:P, \[::1\]:P |
/// | [`at`](Self::at) 127.0.0.1 or ::1 | the gateway's address of that family | the same |
/// | [`at`](Self::at) 192.168.1.5 | 192.168.1.5:P | 192.168.1.5:P |
///
/// All TCP and UDP ports are open unless you choose some. One of the host's own addresses also answers ping if all its
/// ports are open. A connection to one of the host's own addresses comes from that same address, like a connection of
/// any program on the host. So services that trust the host also trust the container.
///
/// # Text form
/// [`Display`](std::fmt::Display) and [`FromStr`](std::str::FromStr) are inverses.
///
/// | text | opens |
/// |---|---|
/// | `loopback` | all ports of the loopback, both families |
/// | `loopback:8080`, `8080` | port 8080 of the loopback, TCP and UDP |
/// | `loopback:8080/tcp` | the same of TCP only |
/// | `192.168.1.5` | all of one IPv4 address, ping included |
/// | `192.168.1.5:5000-5010/udp` | eleven UDP ports of it |
/// | `[::1]:53` | port 53 of one IPv6 address; without ports the brackets may be left out |
///
/// # Examples
/// ```
/// use std::net::SocketAddr;
/// use nsnet_host::{HostPorts, Network};
///
/// let network = Network::builder()
///     .open_host(HostPorts::loopback().port(8080))
///     .open_host(HostPorts::at([192, 168, 1, 5]).ports(5000..=5010).tcp())
///     .open_host(SocketAddr::from(([127, 0, 0, 1], 5432)))
///     .open_host("192.168.1.5:53/udp".parse::<HostPorts>()?);
/// # Ok::<(), nsnet_host::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPorts {
    place: HostAddress,
    ports: RangeInclusive<u16>,
    /// `None` stands for both.
    protocol: Option<Protocol>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum HostAddress {
    Loopback,
    Address(IpAddr),
}

const ALL_PORTS: RangeInclusive<u16> = 0..=u16::MAX;

/// Why ports cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostPortsError {
    /// The address is not that of a single host, or containers cannot send to it.
    #[error("{0} cannot be opened: use 127.0.0.1, ::1, or a unicast address of one of the host's interfaces")]
    Address(IpAddr),
    /// The range contains no port.
    #[error("the range of ports is empty: begin it with the smaller one")]
    NoPort,
}

impl HostPorts {
    /// All ports of the host's loopback, both families.
    #[must_use]
    pub fn loopback() -> Self {
        Self { place: HostAddress::Loopback, ports: ALL_PORTS, protocol: None }
    }

    /// All ports of one address of the host.
    #[must_use]
    pub fn at(address: impl Into<IpAddr>) -> Self {
        Self { place: HostAddress::Address(address.into().to_canonical()), ..Self::loopback() }
    }

    /// Opens this port only.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.ports(port..=port)
    }

    /// Opens these ports only.
    #[must_use]
    pub fn ports(self, ports: RangeInclusive<u16>) -> Self {
        Self { ports, ..self }
    }

    /// Opens TCP only.
    #[must_use]
    pub fn tcp(self) -> Self {
        Self { protocol: Some(Protocol::Tcp), ..self }
    }

    /// Opens UDP only.
    #[must_use]
    pub fn udp(self) -> Self {
        Self { protocol: Some(Protocol::Udp), ..self }
    }

    /// # Errors
    /// If these ports cannot be opened.
    pub(crate) fn check(&self) -> Result<(), HostPortsError> {
        let is_possible = |address: IpAddr| match address {
            address if address.is_loopback() => is_the_loopback(address),
            IpAddr::V4(address) => {
                !address.is_broadcast() && !address.is_multicast() && !address.is_unspecified()
            }
            IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified(),
        };
        match self.place {
            _ if self.ports.is_empty() => Err(HostPortsError::NoPort),
            HostAddress::Address(address) if !is_possible(address) => Err(HostPortsError::Address(address)),
            HostAddress::Address(_) | HostAddress::Loopback => Ok(()),
        }
    }

    fn has(&self, protocol: Protocol, port: u16) -> bool {
        if protocol.has_ports() {
            self.ports.contains(&port) && self.protocol.is_none_or(|own| own == protocol)
        } else {
            // Echo is open only if all ports are.
            self.protocol.is_none() && self.ports == ALL_PORTS
        }
    }

    /// Whether these are ports of this loopback address.
    fn is_of_loopback(&self, loopback: IpAddr) -> bool {
        match self.place {
            HostAddress::Loopback => true,
            HostAddress::Address(address) => address == loopback,
        }
    }
}

/// One port, TCP and UDP.
impl From<SocketAddr> for HostPorts {
    fn from(address: SocketAddr) -> Self {
        Self::at(address.ip()).port(address.port())
    }
}

/// Everything of the host that containers may reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenHost(Arc<[HostPorts]>);

impl<T: Into<Arc<[HostPorts]>>> From<T> for OpenHost {
    fn from(open: T) -> Self {
        Self(open.into())
    }
}

impl OpenHost {
    /// The host's address and port that the gateway's port leads to, if that is open.
    pub(crate) fn behind_gateway(&self, protocol: Protocol, gateway: SocketAddr) -> Option<SocketAddr> {
        let loopback = match gateway {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let leads = |open: &HostPorts| open.is_of_loopback(loopback) && open.has(protocol, gateway.port());
        self.0.iter().any(leads).then(|| SocketAddr::new(loopback, gateway.port()))
    }

    /// Whether one of the host's own addresses is open at this port.
    pub(crate) fn opens_own(&self, protocol: Protocol, destination: SocketAddr) -> bool {
        let address = destination.ip().to_canonical();
        self.0.iter().any(|open| {
            open.place == HostAddress::Address(address)
                && !address.is_loopback()
                && open.has(protocol, destination.port())
        })
    }

    /// Whether this is a loopback address that the gateway's address leads to, at some port.
    pub(crate) fn opens_loopback(&self, address: IpAddr) -> bool {
        is_the_loopback(address) && self.0.iter().any(|open| open.is_of_loopback(address))
    }

    /// Whether the gateway leads to the host at any port in this address family.
    pub(crate) fn is_behind(&self, gateway: IpAddr) -> bool {
        self.opens_loopback(match gateway {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        })
    }
}

fn is_the_loopback(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(ports: impl Into<HostPorts>) -> OpenHost {
        [ports.into()].into()
    }

    fn behind(open: &OpenHost, protocol: Protocol, gateway: &str) -> Option<String> {
        open.behind_gateway(protocol, gateway.parse().unwrap()).map(|target| target.to_string())
    }

    #[test]
    fn nothing_is_open_by_default() {
        let closed = OpenHost::default();
        assert_eq!(behind(&closed, Protocol::Tcp, "10.0.2.2:80"), None);
        assert!(!closed.opens_own(Protocol::Tcp, "192.168.1.5:80".parse().unwrap()));
        assert!(!closed.is_behind("10.0.2.2".parse().unwrap()));
    }

    #[test]
    fn chosen_ports_and_protocols_only() {
        let some = open(HostPorts::loopback().ports(80..=82).tcp());
        assert_eq!(behind(&some, Protocol::Tcp, "10.0.2.2:82").unwrap(), "127.0.0.1:82");
        assert_eq!(behind(&some, Protocol::Tcp, "[fd00::2]:80").unwrap(), "[::1]:80");
        assert_eq!(behind(&some, Protocol::Tcp, "10.0.2.2:83"), None);
        assert_eq!(behind(&some, Protocol::Udp, "10.0.2.2:80"), None);
        let one = open(HostPorts::loopback().port(53).udp());
        assert_eq!(behind(&one, Protocol::Udp, "10.0.2.2:53").unwrap(), "127.0.0.1:53");
        assert_eq!(behind(&one, Protocol::Tcp, "10.0.2.2:53"), None);
    }

    #[test]
    fn one_loopback_address_opens_one_family() {
        let v4 = open("127.0.0.1:80".parse::<SocketAddr>().unwrap());
        assert_eq!(behind(&v4, Protocol::Tcp, "10.0.2.2:80").unwrap(), "127.0.0.1:80");
        assert_eq!(behind(&v4, Protocol::Tcp, "[fd00::2]:80"), None);
        assert!(v4.is_behind("10.0.2.2".parse().unwrap()) && !v4.is_behind("fd00::2".parse().unwrap()));
        assert!(v4.opens_loopback("127.0.0.1".parse().unwrap()));
        assert!(!v4.opens_loopback("127.0.0.2".parse().unwrap()));
    }

    #[test]
    fn own_addresses_stand_for_themselves() {
        let own = open("192.168.1.5:5432".parse::<SocketAddr>().unwrap());
        let opens = |address: &str| own.opens_own(Protocol::Tcp, address.parse().unwrap());
        assert!(opens("192.168.1.5:5432") && opens("[::ffff:192.168.1.5]:5432"));
        assert!(!opens("192.168.1.5:5433") && !opens("192.168.1.6:5432"));
        assert_eq!(behind(&own, Protocol::Tcp, "10.0.2.2:5432"), None);
        assert!(!open(HostPorts::loopback()).opens_own(Protocol::Tcp, "192.168.1.5:1".parse().unwrap()));
        assert!(
            !open(HostPorts::at([127, 0, 0, 1])).opens_own(Protocol::Tcp, "127.0.0.1:1".parse().unwrap())
        );
    }

    #[test]
    fn ping_needs_a_whole_address() {
        let pings = |ports| open(ports).opens_own(Protocol::Icmp, "192.168.1.5:0".parse().unwrap());
        let whole = HostPorts::at([192, 168, 1, 5]);
        assert!(pings(whole.clone()));
        for some in [whole.clone().tcp(), whole.clone().port(80), whole.ports(0..=1023)] {
            assert!(!pings(some.clone()), "{some}");
        }
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        for address in ["127.0.0.53", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            let error = HostPorts::at(address.parse::<IpAddr>().unwrap()).check().unwrap_err();
            assert!(error.to_string().starts_with(address), "{error}");
        }
        let (first, last) = (2, 1);
        assert_eq!(HostPorts::loopback().ports(first..=last).check(), Err(HostPortsError::NoPort));
        assert_eq!(HostPorts::at([192, 168, 1, 5]).check(), Ok(()));
        assert_eq!(HostPorts::at([127, 0, 0, 1]).check(), Ok(()));
    }
}
