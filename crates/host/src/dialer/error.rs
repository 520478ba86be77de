//! Why a flow did not come to be, and so what the container sees.

use std::io;

use nix::errno::Errno;
use nsnet_stack::icmp::Unreachable;

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
