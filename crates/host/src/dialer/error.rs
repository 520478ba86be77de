//! Why a flow was not connected, and what the container sees as a result.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use nix::libc;
use nsnet_stack::icmp::Unreachable;

/// Why a flow was refused or could not be connected. The variant decides what the container sees.
///
/// | variant | TCP | UDP and echo |
/// |---|---|---|
/// | `Refused` | RST: `ECONNREFUSED` | ICMP port unreachable: `ECONNREFUSED` |
/// | `HostUnreachable`, `Other` | ICMP host unreachable: `EHOSTUNREACH` | the same |
/// | `NetworkUnreachable` | ICMP network unreachable: `ENETUNREACH` | the same |
/// | `Prohibited` | ICMP administratively prohibited: `EHOSTUNREACH`, with IPv6 `EACCES` | the same |
/// | `TimedOut` | nothing: `ETIMEDOUT` once the container's kernel gives up | nothing |
///
/// # From `io::Error`
/// In a method of a [`Dialer`](crate::Dialer), `?` turns the error of a socket into the matching variant:
///
/// | [`ErrorKind`] | variant |
/// |---|---|
/// | `ConnectionRefused`, `ConnectionReset` | `Refused` |
/// | `HostUnreachable`, or the error number `EHOSTDOWN` | `HostUnreachable` |
/// | `NetworkUnreachable`, `NetworkDown` | `NetworkUnreachable` |
/// | `PermissionDenied` | `Prohibited` |
/// | `TimedOut` | `TimedOut` |
/// | any other | `Other` |
///
/// # Examples
/// ```
/// use std::io;
/// use nsnet_host::DialError;
///
/// fn give_up() -> Result<(), DialError> {
///     Err(io::Error::from(io::ErrorKind::NetworkUnreachable))?
/// }
/// assert!(matches!(give_up(), Err(DialError::NetworkUnreachable)));
///
/// let error = DialError::other("the proxy's certificate has expired");
/// assert_eq!(error.to_string(), "the proxy's certificate has expired");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The network is reachable, the host is not.
    #[error("host unreachable")]
    HostUnreachable,
    /// There is no route.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// Policy forbids it.
    #[error("administratively prohibited")]
    Prohibited,
    /// No answer. A firewall that drops packets instead of rejecting them returns this as well.
    #[error("timed out")]
    TimedOut,
    /// Another error on the host, for example no file descriptors left. It is logged, at most once a second.
    ///
    /// `Display` and [`source`](Error::source) are those of the error inside.
    #[error(transparent)]
    Other(Arc<io::Error>),
}

impl DialError {
    /// Makes an [`Other`](Self::Other) with a cause of any kind: an error, or a text for the log.
    #[must_use]
    pub fn other(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = cause.into().downcast::<io::Error>().map_or_else(io::Error::other, |error| *error);
        Self::Other(Arc::new(error))
    }

    /// The ICMP error that the container gets. `None` for silence.
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

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset, _) => Self::Refused,
            (ErrorKind::HostUnreachable, _) | (_, Some(libc::EHOSTDOWN)) => Self::HostUnreachable,
            (ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown, _) => Self::NetworkUnreachable,
            (ErrorKind::PermissionDenied, _) => Self::Prohibited,
            (ErrorKind::TimedOut, _) => Self::TimedOut,
            _ => Self::Other(Arc::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_sockets_become_the_variant_that_they_mean() {
        let cases = [
            (libc::ECONNREFUSED, "connection refused"),
            (libc::ECONNRESET, "connection refused"),
            (libc::EHOSTUNREACH, "host unreachable"),
            (libc::EHOSTDOWN, "host unreachable"),
            (libc::ENETUNREACH, "network unreachable"),
            (libc::ENETDOWN, "network unreachable"),
            (libc::EACCES, "administratively prohibited"),
            (libc::EPERM, "administratively prohibited"),
            (libc::ETIMEDOUT, "timed out"),
            (libc::EMFILE, "Too many open files (os error 24)"),
        ];
        for (errno, expected) in cases {
            assert_eq!(DialError::from(io::Error::from_raw_os_error(errno)).to_string(), expected);
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let error = DialError::other(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(error.to_string(), "Too many open files (os error 24)");
        assert!(error.source().is_none());
        assert_eq!(DialError::other("no proxy").to_string(), "no proxy");
    }

    #[test]
    fn an_error_of_the_system_keeps_its_number() {
        let error = DialError::other(io::Error::from_raw_os_error(libc::EMFILE));
        let DialError::Other(inside) = error.clone() else { panic!("{error:?}") };
        assert_eq!(inside.raw_os_error(), Some(libc::EMFILE));
    }
}
