//! The only error type of this crate: which step failed, why, and what to try.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nsnet_proto::{ChannelError, Failure};

/// A step of the container's setup that failed.
///
/// Its `Display` is one complete line, for example `open /dev/net/tun: Permission denied (os error 13); make the device
/// accessible: chmod 0666 /dev/net/tun`. Its [`source`](std::error::Error::source) is the source of the cause named
/// there, if it has one. So a report of the whole chain repeats nothing.
#[derive(Debug)]
pub struct Error {
    step: Cow<'static, str>,
    cause: Cause,
    remedy: Cow<'static, str>,
}

#[derive(Debug)]
enum Cause {
    Kernel(io::Error),
    Channel(ChannelError),
    Refused(Cow<'static, str>),
}

impl Error {
    /// An error for a step that the kernel refused. Embedders use it to report their own steps, see
    /// [`TunDevice::report`](crate::TunDevice::report).
    pub fn new(step: impl Into<Cow<'static, str>>, cause: impl Into<io::Error>) -> Self {
        Self { step: step.into(), cause: Cause::Kernel(cause.into()), remedy: Cow::Borrowed("") }
    }

    pub(crate) fn channel(step: &'static str, cause: ChannelError) -> Self {
        Self { step: step.into(), cause: Cause::Channel(cause), remedy: Cow::Borrowed("") }
    }

    pub(crate) fn refused(step: &'static str, cause: impl Into<Cow<'static, str>>) -> Self {
        Self { step: step.into(), cause: Cause::Refused(cause.into()), remedy: Cow::Borrowed("") }
    }

    /// Adds a remedy. An empty one means that no remedy is known.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The step that failed.
    #[must_use]
    pub fn step(&self) -> &str {
        &self.step
    }

    /// What to try, if a remedy is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        Some(&*self.remedy).filter(|remedy| !remedy.is_empty())
    }

    /// The kernel's error number (errno(3)), if the kernel refused the step.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Kernel(error) | Cause::Channel(ChannelError::Io(error)) => error.raw_os_error(),
            Cause::Channel(_) | Cause::Refused(_) => None,
        }
    }

    /// The error in the form for the host.
    pub(crate) fn to_failure(&self) -> Failure {
        let mut failure = Failure::new(clip(&self.step), clip(&self.cause.to_string()));
        failure.errno = self.errno();
        failure.remedy = clip(&self.remedy);
        failure
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause)?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(error) => error.fmt(f),
            Self::Channel(error) => error.fmt(f),
            Self::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Kernel(error) => error.source(),
            Cause::Channel(error) => error.source(),
            Cause::Refused(_) => None,
        }
    }
}

/// Longest text of a [`Failure`] in bytes. All three texts fit into one message, even with long paths.
const TEXT_MAX: usize = nsnet_proto::MAX_MESSAGE / 4;

fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use nix::errno::Errno;
    use nsnet_proto::{Channel, Report};

    use super::*;

    #[test]
    fn error_names_step_cause_and_remedy() {
        let error = Error::new("open /dev/net/tun", Errno::EACCES).with_remedy("chmod 0666 /dev/net/tun");
        assert_eq!(
            error.to_string(),
            "open /dev/net/tun: Permission denied (os error 13); chmod 0666 /dev/net/tun"
        );
        assert_eq!(error.errno(), Some(libc::EACCES));
    }

    #[test]
    fn error_without_remedy_ends_with_the_cause() {
        let error = Error::refused("check the setup", "no address");
        assert_eq!(error.to_string(), "check the setup: no address");
        assert_eq!((error.remedy(), error.errno()), (None, None));
    }

    #[test]
    fn chain_of_sources_repeats_nothing() {
        #[derive(Debug, thiserror::Error)]
        #[error("no route")]
        struct Inner;
        #[derive(Debug, thiserror::Error)]
        #[error("the proxy is away")]
        struct Outer(#[source] Inner);

        let error = Error::new("ask the proxy", io::Error::other(Outer(Inner)));
        let sources: Vec<_> = std::iter::successors(error.source(), |error| (*error).source()).collect();
        assert_eq!(error.to_string(), "ask the proxy: the proxy is away");
        assert_eq!(sources.iter().map(ToString::to_string).collect::<Vec<_>>(), ["no route"]);

        let channel = ChannelError::Io(Errno::EMFILE.into());
        for error in [Error::new("open", Errno::EACCES), Error::channel("send", channel)] {
            assert!(error.source().is_none(), "{error}");
        }
    }

    #[test]
    fn longest_failure_fits_one_message() {
        let error =
            Error::new("ü".repeat(5000), io::Error::other("ü".repeat(5000))).with_remedy("x".repeat(5000));
        let (one, _other) = Channel::pair().unwrap();
        one.send(&Report::Failed(error.to_failure()), &[]).unwrap();
    }
}
