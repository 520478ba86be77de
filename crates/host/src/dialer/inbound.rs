//! Clients of published ports, as a Dialer sees them.

use std::fmt;
use std::net::SocketAddr;

use super::Protocol;

/// A client of a published port that wants to reach the container.
///
/// # Examples
/// A Dialer that accepts only clients of one network, and asks the inner Dialer about them as well:
///
/// ```
/// use std::net::IpAddr;
/// use nsnet_host::{DialError, Dialer, Inbound, async_trait};
///
/// struct Neighbours<D>(D);
///
/// #[async_trait]
/// impl<D: Dialer> Dialer for Neighbours<D> {
///     fn inner(&self) -> &dyn Dialer {
///         &self.0
///     }
///
///     async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
///         match inbound.client.map(|client| client.ip()) {
///             Some(IpAddr::V4(client)) if client.octets().starts_with(&[10, 0, 1]) => self.0.accept(inbound).await,
///             _ => Err(DialError::Refused),
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Inbound {
    /// Transport protocol. It is TCP for a UNIX socket, since the container sees TCP.
    pub protocol: Protocol,
    /// The client's address. `None` for a UNIX socket.
    pub client: Option<SocketAddr>,
    /// The host's address that the client has connected to. `None` for a UNIX socket.
    pub listener: Option<SocketAddr>,
    /// The container's address and port that the published port leads to.
    pub container: SocketAddr,
}

impl Inbound {
    /// A client as the engine presents it. For tests of Dialers.
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
