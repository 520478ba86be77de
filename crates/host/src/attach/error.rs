//! Why a container side did not become ready.

use std::io;
use std::time::Duration;

use nsnet_proto::{ChannelError, Failure};

/// Why a container side did not become ready.
///
/// Its `Display` is one line that includes the cause, so `source()` is empty.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The container side failed and said why.
    #[error("container side: {}", describe(.0))]
    Container(Failure),
    /// The container side exited, or closed its fd, before it was ready.
    #[error(
        "the container side closed its end before it was ready: did it exit, or close inherited file \
         descriptors before TunDevice::open()?"
    )]
    ClosedEarly,
    /// The container side sent an unexpected message.
    #[error("handshake with the container side: {0}")]
    Handshake(ChannelError),
    /// The number of file descriptors does not match the report that came with them.
    #[error("the container side handed over {0} file descriptors where {1} was expected")]
    FileDescriptors(usize, usize),
    /// The container side reports no queues, or more than it was offered.
    #[error("the container side speaks of {granted} queues where up to {wanted} were expected")]
    Queues {
        /// The number it reports.
        granted: u16,
        /// The number it was offered.
        wanted: u16,
    },
    /// A file descriptor that was handed over is not a TUN device that carries bare IP packets.
    #[error("the file descriptor that the container side handed over is no TUN device for us: {0}")]
    NotTun(io::Error),
    /// The file descriptors that were handed over are not queues of one device.
    #[error(
        "the file descriptors the container side handed over differ in their framing: they are no queues of one device"
    )]
    QueuesDiffer,
    /// The container side was not ready in time. It may still become ready.
    #[error("the container side was not ready after {0:?}")]
    TimedOut(Duration),
    /// [`Attachment::close`](crate::Attachment::close) was called first.
    #[error("the attachment was closed before the container side was ready")]
    Closed,
    /// The network was finished or dropped first.
    #[error("the network was shut down before the container side was ready")]
    ShutDown,
    /// An earlier call has returned the error already.
    #[error("the container side has failed before")]
    AlreadyFailed,
    /// This process could not serve the link.
    #[error("serve the link to the container: {0}; if file descriptors ran out, raise RLIMIT_NOFILE")]
    Host(io::Error),
}

fn describe(failure: &Failure) -> String {
    let remedy = if failure.remedy.is_empty() { String::new() } else { format!("; {}", failure.remedy) };
    // These are the container side's words, perhaps the container's own. Nothing in them may steer a terminal.
    format!("{}: {}{remedy}", failure.step, failure.cause).replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_cause_is_in_the_line_and_nowhere_else() {
        let cause = || io::Error::other("the cause");
        let errors = [
            SetupError::NotTun(cause()),
            SetupError::Host(cause()),
            SetupError::Handshake(ChannelError::Io(cause())),
        ];
        for error in errors {
            assert_eq!(error.to_string().matches("the cause").count(), 1, "{error}");
            assert!(error.source().is_none(), "{error:?}");
        }
    }

    #[test]
    fn the_containers_words_steer_no_terminal() {
        let mut failure = Failure::new("\u{1b}[2J", "a\nb");
        failure.remedy = "c\u{7}".into();
        let said = SetupError::Container(failure).to_string();
        assert!(!said.contains(char::is_control), "{said:?}");
    }
}
