//! How a container's network ends.

use std::fmt;
use std::io;
use std::sync::Arc;

/// Why a container has no network any more.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum End {
    /// The embedder closed or finished the [`Attachment`](crate::Attachment).
    Closed,
    /// The container's end of the link is gone: its device was deleted, or the process that shuttled its frames ended.
    LinkGone,
    /// The [`Network`](crate::Network) was finished or dropped.
    NetworkEnded,
    /// The container side never became ready. [`wait_ready`](crate::Attachment::wait_ready) returns the reason.
    SetupFailed,
    /// The link could not be read, or this library has a fault. The log has the details.
    Failed(Arc<io::Error>),
}

impl End {
    pub(crate) fn failed(error: io::Error) -> Self {
        Self::Failed(Arc::new(error))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the attachment was closed"),
            Self::LinkGone => f.write_str("the container's device or its shuttle is gone"),
            Self::NetworkEnded => f.write_str("the network has ended"),
            Self::SetupFailed => f.write_str("the container side did not get ready"),
            Self::Failed(error) => write!(f, "serving the container failed: {error}"),
        }
    }
}

/// Result of an end in good order, of a whole [`Network`](crate::Network) or of one container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finished {
    /// Everything that containers had sent and finished has reached the upstream sockets.
    Delivered,
    /// The grace was over first, or this library has a fault. Bytes not delivered by then are lost.
    Incomplete {
        /// How many TCP connections were reset before the container had ended them and all their bytes were delivered.
        connections: usize,
    },
    /// Nobody waited for the outcome. A Dialer blocks the engine's thread or made this call on it, or this library has
    /// a fault. The network goes on ending in the background where it can.
    Abandoned,
}

impl Finished {
    /// The outcome of two ends together.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Delivered, outcome) | (outcome, Self::Delivered) => outcome,
            (Self::Incomplete { connections: one }, Self::Incomplete { connections: other }) => {
                Self::Incomplete { connections: one.saturating_add(other) }
            }
            (Self::Abandoned, _) | (_, Self::Abandoned) => Self::Abandoned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_all_containers_add_up() {
        let cut = |connections| Finished::Incomplete { connections };
        assert_eq!(Finished::Delivered.and(Finished::Delivered), Finished::Delivered);
        assert_eq!(Finished::Delivered.and(cut(2)).and(cut(3)), cut(5));
        assert_eq!(cut(1).and(Finished::Abandoned), Finished::Abandoned);
    }
}
