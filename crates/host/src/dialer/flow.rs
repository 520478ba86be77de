//! The subjects of a Dialer's decisions: flows out of the container, and sources of datagrams.

use std::fmt;
use std::net::SocketAddr;

use nsnet_stack::flow::Protocol;

/// A flow from the container to a destination outside it.
///
/// # Examples
/// ```
/// use nsnet_host::{Flow, Protocol};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let flow = Flow::new(Protocol::Tcp, "10.0.2.100:40000".parse()?, "203.0.113.7:443".parse()?);
/// assert_eq!(flow.to_string(), "tcp 10.0.2.100:40000 -> 203.0.113.7:443");
/// assert!(!flow.is_dns());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The container's address and port. For ICMP the port is the identifier.
    pub source: SocketAddr,
    /// The destination that the container has chosen. For ICMP the port is 0.
    pub destination: SocketAddr,
    /// The address to dial. It is the destination unless the network maps that elsewhere, as it maps the gateway's
    /// address to the host's loopback.
    pub target: SocketAddr,
    /// The kind of destination.
    pub service: Service,
}

impl Flow {
    /// A flow to the outside world, as the engine presents it. For tests of Dialers.
    #[must_use]
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { protocol, source, destination, target: destination, service: Service::World }
    }

    /// Whether the flow goes to the network's own resolver, which forwards to the host's servers.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        self.service == Service::Resolver
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.source, self.destination)
    }
}

/// The kind of a flow's destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Service {
    /// A host of the outside world.
    World,
    /// The network's DNS address. Once the flow is authorized, the engine answers itself and dials nothing.
    Resolver,
    /// The host's loopback, opened with [`open_host`](crate::NetworkBuilder::open_host) or
    /// [`host_loopback`](crate::NetworkBuilder::host_loopback).
    HostLoopback,
    /// One of the host's own addresses, opened with [`open_host`](crate::NetworkBuilder::open_host).
    HostAddress,
    /// Another container of the network, reachable with
    /// [`containers_reach_each_other`](crate::NetworkBuilder::containers_reach_each_other). Once the flow is
    /// authorized, its packets pass in both directions, and nothing is dialled.
    Container,
}

/// A source of datagrams or echo requests: an address of the container, with a port or an identifier.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Source {
    /// The container's address, and its port or the identifier of its echo requests.
    pub address: SocketAddr,
}

impl Source {
    /// A source as the engine presents it. For tests of Dialers.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }
}
