//! Why a flow did not come to be, and so what the container sees.

use std::io;

use nix::errno::Errno;

/// Why a flow was refused or could not be connected. The variant decides what the container sees.
///
/// | variant | TCP | UDP and echo |
/// |---|---|---|
/// | `Refused` | RST: ECONNREFUSED | ICMP port unreachable: ECONNREFUSED |
/// | `HostUnreachable`, `Other` | ICMP host unreachable: EHOSTUNREACH | the same |
/// | `NetworkUnreachable` | ICMP network unreachable: ENETUNREACH | the same |
/// | `Prohibited` | ICMP administratively prohibited: EHOSTUNREACH, IPv6 EACCES | the same |
/// | `TimedOut` | nothing: ETIMEDOUT after the container's own time | nothing |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// The network is there, the host is not.
    #[error("host unreachable")]
    HostUnreachable,
    /// There is no route.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// Policy forbids it.
    #[error("administratively prohibited")]
    Prohibited,
    /// No answer. Also what a firewall returns that drops rather than refuses.
    #[error("timed out")]
    TimedOut,
    /// Something else went wrong on the host, for example no file descriptors were left. Logged.
    #[error("{0}")]
    Other(#[source] io::Error),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Self::Refused,
            Some(Errno::EHOSTUNREACH | Errno::EHOSTDOWN) => Self::HostUnreachable,
            Some(Errno::ENETUNREACH | Errno::ENETDOWN) => Self::NetworkUnreachable,
            Some(Errno::EACCES | Errno::EPERM) => Self::Prohibited,
            Some(Errno::ETIMEDOUT) => Self::TimedOut,
            _ if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            _ if error.kind() == io::ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Other(error),
        }
    }
}

/// What an ICMP destination-unreachable message says (RFC 792; RFC 4443, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens on the port.
    Port,
    /// The host does not speak the transport protocol.
    Protocol,
    /// Forbidden by administration.
    Prohibited,
}

/// What a router or the destination says of a packet that did not arrive (RFC 792; RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IcmpError {
    /// Destination unreachable.
    Unreachable(Unreachable),
    /// The hop limit was used up on the way.
    TimeExceeded,
    /// Larger than the next link takes, and not to be fragmented.
    PacketTooBig {
        /// MTU of that link in bytes.
        mtu: u32,
    },
}

impl From<Unreachable> for IcmpError {
    fn from(reason: Unreachable) -> Self {
        Self::Unreachable(reason)
    }
}

impl DialError {
    /// The ICMP error that tells the container, `None` for silence.
    pub(crate) fn unreachable(&self) -> Option<Unreachable> {
        match self {
            Self::Refused => Some(Unreachable::Port),
            Self::HostUnreachable | Self::Other(_) => Some(Unreachable::Host),
            Self::NetworkUnreachable => Some(Unreachable::Network),
            Self::Prohibited => Some(Unreachable::Prohibited),
            Self::TimedOut => None,
        }
    }
}
