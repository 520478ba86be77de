//! The Dialer: where every flow out of the container is decided and connected.
//!
//! The engine asks two questions in turn. [`Dialer::authorize`]: may this flow be? [`Dialer::dial_tcp`],
//! [`Dialer::bind_udp`] or [`Dialer::bind_echo`]: connect it. So a firewall need not know how to dial
//! ([`FilterDialer`] wraps any Dialer), and a proxy need not know policy. Established traffic asks nothing.
//!
//! The other way round, [`Dialer::accept`] is asked about clients of published ports.
//!
//! What the Dialer cannot allow is decided before it is asked: the host's loopback, the host's own addresses,
//! and the gateway's ports, unless the embedder opened them
//! ([`open_host`](crate::NetworkBuilder::open_host)). Nor is it asked about pings of the gateway and of the DNS
//! address, which are in the engine: it answers, and nothing leaves.

mod datagrams;
mod direct;
mod echo_socket;
mod error;
pub(crate) mod error_queue;
mod filter;
mod inbound;
mod ip_options;
mod stream;
mod udp_socket;

use std::fmt;
use std::net::SocketAddr;

use async_trait::async_trait;
pub use nsnet_stack::flow::Protocol;
pub use nsnet_stack::icmp::{IcmpError, Unreachable};
pub use nsnet_stack::udp::{Datagrams, Envelope};

pub use datagrams::{DatagramSocket, Received};
pub(crate) use direct::DATAGRAM_BUFFER;
pub use direct::DirectDialer;
pub use error::DialError;
pub use filter::{DenyDialer, FilterDialer};
pub use inbound::Inbound;
pub use stream::{ByteStream, Stream};
pub use udp_socket::UdpDatagrams;

/// Decides on flows and connects them. Object-safe; shared by all flows of a network.
///
/// All methods run on an engine thread: a method that blocks it stalls the network and the others that share the
/// thread, one that waits (`.await`) holds up only its own flow. Any number may be under way at once.
///
/// # Cancel safety
/// A future is dropped when the container gives up (RST) or the dial timeout of the network
/// ([`dial_timeout`](crate::NetworkBuilder::dial_timeout)) passes. What it had opened must close on drop.
///
/// # Errors
/// A [`DialError`]; its variant decides what the container sees.
///
/// # Examples
/// A firewall in front of direct connections:
///
/// ```
/// use nsnet_host::{DatagramSocket, DialError, Dialer, DirectDialer, Flow, Source, Stream, async_trait};
///
/// struct OnlyHttps(DirectDialer);
///
/// #[async_trait]
/// impl Dialer for OnlyHttps {
///     async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
///         if flow.is_dns() || flow.destination.port() == 443 { Ok(()) } else { Err(DialError::Prohibited) }
///     }
///
///     async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
///         self.0.dial_tcp(flow).await
///     }
///
///     async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
///         self.0.bind_udp(source).await
///     }
/// }
/// ```
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Asked once for every new flow: a TCP connection, a UDP destination of a container port, an echo
    /// destination of an identifier. The default allows.
    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        let _ = flow;
        Ok(())
    }

    /// Asked once for every connection and every UDP client that comes in through a published port
    /// ([`Publish`](crate::Publish)). The default allows. Whatever the error, a connection that is not accepted is reset,
    /// and a datagram lost.
    async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
        let _ = inbound;
        Ok(())
    }

    /// Opens the stream for an authorized TCP flow, towards [`Flow::target`]. The container's connection is
    /// accepted once this returns.
    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError>;

    /// Opens the socket that carries all datagrams of one container address and port, whatever their
    /// destinations (endpoint-independent mapping, RFC 4787, 4.1). Asked once its first flow is authorized.
    async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError>;

    /// Opens the socket that carries all echo requests (ping) of one container address and identifier, whatever their
    /// destinations. Asked once its first flow is authorized. The default refuses.
    ///
    /// A datagram of this socket is what follows the identifier in the message: the sequence number, two bytes, and the
    /// data; the port of a peer is 0. What it receives goes into the container as replies, if it comes from a peer that
    /// was sent a request.
    ///
    /// # Examples
    /// Pings as the host would, behind a Dialer of one's own:
    ///
    /// ```
    /// # use nsnet_host::{DatagramSocket, DialError, Dialer, DirectDialer, Flow, Source, Stream, async_trait};
    /// # struct Firewall(DirectDialer);
    /// # #[async_trait]
    /// # impl Dialer for Firewall {
    /// #     async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
    /// #         self.0.dial_tcp(flow).await
    /// #     }
    /// #     async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
    /// #         self.0.bind_udp(source).await
    /// #     }
    /// async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
    ///     self.0.bind_echo(source).await
    /// }
    /// # }
    /// ```
    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        let _ = source;
        Err(DialError::Prohibited)
    }
}

/// A flow that wants to leave the container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The container's address and port.
    pub source: SocketAddr,
    /// Where the container wants to go.
    pub destination: SocketAddr,
    /// Where to dial: the destination, unless the network maps it elsewhere (the gateway's address to the
    /// host's loopback).
    pub target: SocketAddr,
    /// What stands behind the destination.
    pub service: Service,
}

impl Flow {
    /// A flow into the world, as the engine presents it; for tests of Dialers.
    #[must_use]
    pub fn new(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { protocol, source, destination, target: destination, service: Service::World }
    }

    /// Whether the flow goes to the network's own resolver, which forwards to the host's.
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

/// What stands behind a flow's destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Service {
    /// A host of the outside world.
    World,
    /// The network's DNS address. The engine answers by itself once the flow is authorized.
    Resolver,
    /// The host's loopback, opened with [`open_host`](crate::NetworkBuilder::open_host) or
    /// [`host_loopback`](crate::NetworkBuilder::host_loopback).
    HostLoopback,
    /// One of the host's own addresses, opened with [`open_host`](crate::NetworkBuilder::open_host).
    HostAddress,
    /// Another container of the network, within reach with
    /// [`containers_reach_each_other`](crate::NetworkBuilder::containers_reach_each_other). The packets of the flow, of
    /// both directions, are passed on once it is authorized; nothing is dialled.
    Container,
}

/// A container address and port, or identifier, that sends datagrams or echo requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Source {
    /// The container's address, and its port or the identifier of its echo requests.
    pub address: SocketAddr,
}

impl Source {
    /// A source as the engine presents it; for tests of Dialers.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }
}
