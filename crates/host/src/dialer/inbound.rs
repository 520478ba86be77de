//! Who comes in through a published port.

use std::fmt;
use std::net::SocketAddr;

use super::Protocol;

/// A client of a published port, which wants to reach the container.
///
/// # Examples
/// Neighbours only:
///
/// ```
/// use nsnet_host::{
///     DatagramSocket, DialError, Dialer, DirectDialer, Flow, Inbound, Source, Stream, async_trait,
/// };
///
/// struct Neighbours(DirectDialer);
///
/// #[async_trait]
/// impl Dialer for Neighbours {
///     async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
///         match inbound.client {
///             Some(client) if client.ip().to_string().starts_with("10.0.1.") => Ok(()),
///             _ => Err(DialError::Refused),
///         }
///     }
/// #   async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
/// #       self.0.dial_tcp(flow).await
/// #   }
/// #   async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
/// #       self.0.bind_udp(source).await
/// #   }
///     // dial_tcp and bind_udp as ever
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Inbound {
    /// Transport protocol; TCP for a UNIX socket, since that is what the container sees.
    pub protocol: Protocol,
    /// The client; none for a UNIX socket.
    pub client: Option<SocketAddr>,
    /// The address of the host that it has come to; none for a UNIX socket.
    pub listener: Option<SocketAddr>,
    /// Where it leads.
    pub container: SocketAddr,
}

impl Inbound {
    /// A client as the engine presents it; for tests of Dialers.
    #[must_use]
    pub fn new(protocol: Protocol, client: SocketAddr, listener: SocketAddr, container: SocketAddr) -> Self {
        Self { protocol, client: Some(client), listener: Some(listener), container }
    }
}

impl fmt::Display for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            Some(client) => write!(f, "{} {client} -> {}", self.protocol, self.container),
            None => write!(f, "{} (UNIX socket) -> {}", self.protocol, self.container),
        }
    }
}
