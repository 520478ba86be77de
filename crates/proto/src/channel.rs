//! One end of the socketpair: sends and receives whole messages with file descriptors.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, sockopt,
};

use crate::codec::{self, DecodeError, Message};
use crate::message::{MAX_FDS, VERSION};
use crate::sys;

/// Longest message of the handshake in bytes; a longer one is refused as truncated.
pub const MAX_MESSAGE: usize = 4096;

/// One end of the conversation. Closed when dropped.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// A connected pair, both ends close-on-exec.
    ///
    /// # Errors
    /// The error of socketpair(2), usually `EMFILE`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self { fd: one }, Self { fd: other }))
    }

    /// Adopts an fd after checking that it is such an end.
    ///
    /// # Errors
    /// [`ChannelError::NotAChannel`] if the fd is not an `AF_UNIX` `SOCK_SEQPACKET` socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ChannelError> {
        let unix = socket::getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
        let seqpacket = getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket);
        if unix && seqpacket { Ok(Self { fd }) } else { Err(ChannelError::NotAChannel) }
    }

    /// Sends one message with copies of `fds`. Blocks while the peer's queue is full, unless the fd is
    /// non-blocking.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the peer is gone, [`ChannelError::Io`] otherwise.
    pub fn send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = codec::encode(message).map_err(|_| ChannelError::Oversized)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(ChannelError::Oversized);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let iov = [IoSlice::new(&bytes)];
        socket::sendmsg::<()>(self.fd.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(ChannelError::of_errno)
    }

    /// Receives one message and the file descriptors that came with it (close-on-exec).
    ///
    /// Whatever goes wrong, descriptors that had arrived are closed. Blocks until a message is there, unless
    /// the fd is non-blocking.
    ///
    /// # Errors
    /// See [`ChannelError`]; [`ChannelError::would_block`] tells a non-blocking caller to wait.
    pub fn receive<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.receive_with(MsgFlags::empty())
    }

    /// Like [`try_receive`](Self::try_receive), for callers to whom it matters where descriptors are closed. Those that
    /// have arrived are added to `fds`, whatever goes wrong. More than [`MAX_FDS`] are an error, and all but one more
    /// than that are closed by the kernel.
    ///
    /// # Errors
    /// See [`receive`](Self::receive).
    pub fn try_receive_into<M: Message>(&self, fds: &mut Vec<OwnedFd>) -> Result<M, ChannelError> {
        self.receive_into(MsgFlags::MSG_DONTWAIT, fds)
    }

    /// Like [`receive`](Self::receive), but never blocks, whatever the mode of the fd.
    ///
    /// # Errors
    /// See [`receive`](Self::receive).
    pub fn try_receive<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    /// Gives up the handshake end, to carry frames from here on.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn receive_with<M: Message>(&self, flags: MsgFlags) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        let mut fds = Vec::new();
        let message = self.receive_into(flags, &mut fds)?;
        Ok((message, fds))
    }

    fn receive_into<M: Message>(&self, flags: MsgFlags, all: &mut Vec<OwnedFd>) -> Result<M, ChannelError> {
        let mut bytes = [0u8; MAX_MESSAGE];
        let received = match sys::receive(self.fd.as_fd(), &mut bytes, flags) {
            // The peer has ended with something of ours unread (`unix_release_sock` in net/unix/af_unix.c). The kernel
            // says so once, and before it delivers what the peer had sent by then.
            Err(Errno::ECONNRESET) => sys::receive(self.fd.as_fd(), &mut bytes, flags),
            received => received,
        };
        let sys::Received { len, fds, flags } = received.map_err(ChannelError::of_errno)?;
        let count = fds.len();
        all.extend(fds);
        if count > MAX_FDS {
            return Err(ChannelError::TooManyFds);
        }
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(ChannelError::FdsWithheld);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(ChannelError::Truncated);
        }
        if len == 0 {
            return Err(ChannelError::Closed);
        }
        codec::decode(&bytes[..len]).map_err(undecodable)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What can go wrong between the two ends. Its `Display` holds the cause, so `source()` is empty.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The fd is something else.
    #[error("the file descriptor is not an AF_UNIX SOCK_SEQPACKET socket")]
    NotAChannel,
    /// The peer closed its end before it had said what was expected.
    #[error("the other end closed the channel")]
    Closed,
    /// The peer is not an nsnet end.
    #[error("the message is not one of nsnet's")]
    NotOurs,
    /// The peer is built from another release.
    #[error(
        "the other end speaks version {theirs}, this end speaks version {VERSION}: build both from the same release"
    )]
    Version {
        /// The version in the peer's message.
        theirs: u16,
    },
    /// The message has the right preamble and a body that is none.
    #[error("the message is malformed")]
    Malformed,
    /// The message was longer than [`MAX_MESSAGE`].
    #[error("the message is longer than {MAX_MESSAGE} bytes")]
    Truncated,
    /// This end tried to send more than [`MAX_MESSAGE`] bytes.
    #[error("the message to send is longer than {MAX_MESSAGE} bytes")]
    Oversized,
    /// More than [`MAX_FDS`] file descriptors came with the message; all were closed.
    #[error("more than {MAX_FDS} file descriptors came with the message")]
    TooManyFds,
    /// The kernel did not install every file descriptor that came with the message; those it did were closed.
    #[error(
        "the kernel withheld a file descriptor that came with the message: this process has as many open as it \
         may have (raise ulimit -n), or a security module refused"
    )]
    FdsWithheld,
    /// The kernel refused.
    #[error("the channel failed: {0}")]
    Io(io::Error),
}

impl ChannelError {
    /// Whether the call would have had to wait.
    #[must_use]
    pub fn would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn of_errno(errno: Errno) -> Self {
        if matches!(errno, Errno::EPIPE | Errno::ECONNRESET) { Self::Closed } else { Self::Io(errno.into()) }
    }
}

fn undecodable(error: DecodeError) -> ChannelError {
    match error {
        DecodeError::NotOurs => ChannelError::NotOurs,
        DecodeError::Version(theirs) => ChannelError::Version { theirs },
        DecodeError::Malformed => ChannelError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs::{self, File};
    use std::process::Command;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;
    use crate::message::{Carriage, Ready, Report};
    use crate::offload::Offload;

    const READY: Report = Report::Ready(Ready::new(Carriage::HandedOver, Offload::NONE, 1));

    /// Most file descriptors the kernel lets one message carry (`SCM_MAX_FD`, unix(7)).
    const SCM_MAX_FD: usize = 253;

    /// Set in a process that runs one test only.
    const ALONE: &str = "NSNET_TEST_ALONE";

    #[track_caller]
    fn raw_send(channel: &Channel, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let iov = [IoSlice::new(bytes)];
        socket::sendmsg::<()>(channel.fd.as_raw_fd(), &iov, control, MsgFlags::empty(), None).unwrap();
    }

    fn open_fds_to(path: &str) -> usize {
        let target = fs::canonicalize(path).unwrap();
        fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|link| link == target))
            .count()
    }

    #[test]
    fn message_and_fds_arrive_together() {
        let (host, container) = Channel::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for count in [1, 2, MAX_FDS] {
            container.send(&READY, &vec![null.as_fd(); count]).unwrap();
            let (report, fds) = host.receive::<Report>().unwrap();
            assert_eq!((report, fds.len()), (READY, count));
        }
    }

    #[test]
    fn early_close_is_told_apart_from_waiting() {
        let (host, container) = Channel::pair().unwrap();
        assert!(host.try_receive::<Report>().unwrap_err().would_block());
        drop(container);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::Closed)));
        assert!(matches!(host.send(&READY, &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn last_words_of_a_peer_that_has_not_read_all_are_heard() {
        let (host, container) = Channel::pair().unwrap();
        host.send(&READY, &[]).unwrap();
        container.send(&READY, &[]).unwrap();
        drop(container);
        assert_eq!(host.try_receive::<Report>().unwrap().0, READY);
        assert!(matches!(host.try_receive::<Report>(), Err(ChannelError::Closed)));
    }

    #[test]
    fn garbage_is_not_ours() {
        let (host, container) = Channel::pair().unwrap();
        raw_send(&container, b"GET / HTTP/1.1\r\n\r\n", &[]);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::NotOurs)));
    }

    #[test]
    fn another_version_is_named() {
        let (host, container) = Channel::pair().unwrap();
        raw_send(&container, b"nsnt\x07\x00anything", &[]);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::Version { theirs: 7 })));
    }

    #[test]
    fn too_long_a_message_is_truncated() {
        let (host, container) = Channel::pair().unwrap();
        raw_send(&container, &[0; MAX_MESSAGE + 1], &[]);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::Truncated)));
    }

    #[test]
    fn too_many_fds_are_refused_and_none_leaks() {
        let path = "/proc/self/status";
        let file = File::open(path).unwrap();
        for count in [MAX_FDS + 1, MAX_FDS + 2, 50, SCM_MAX_FD] {
            let (host, container) = Channel::pair().unwrap();
            raw_send(&container, &codec::encode(&READY).unwrap(), &vec![file.as_raw_fd(); count]);
            assert!(matches!(host.receive::<Report>(), Err(ChannelError::TooManyFds)), "{count} fds");
        }
        assert_eq!(open_fds_to(path), 1);
    }

    /// Lets this process install `room` more file descriptors while `body` runs.
    fn with_room_for<T>(room: usize, body: impl FnOnce() -> T) -> T {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let null = File::open("/dev/null").unwrap();
        let mut filling: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
        filling.truncate(filling.len() - room);
        let result = body();
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        result
    }

    fn open_fds() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn fds_beyond_the_limit_of_the_process_do_not_leak() {
        if env::var_os(ALONE).is_none() {
            // The limit is one of the process: other tests must not feel it.
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["channel::tests::fds_beyond_the_limit_of_the_process_do_not_leak", "--exact"]);
            let output = command.arg("--test-threads=1").env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let file = File::open("/dev/null").unwrap();
        let attempts = [
            (1, 0),
            (2, 0),
            (2, 1),
            (MAX_FDS, MAX_FDS - 1),
            (MAX_FDS + 1, 0),
            (MAX_FDS + 1, MAX_FDS),
            (MAX_FDS + 1, MAX_FDS + 1),
            (SCM_MAX_FD, 1),
            (SCM_MAX_FD, MAX_FDS + 2),
        ];
        for (sent, room) in attempts {
            let (host, container) = Channel::pair().unwrap();
            raw_send(&container, &codec::encode(&READY).unwrap(), &vec![file.as_raw_fd(); sent]);
            let before = open_fds();
            let error = with_room_for(room, || host.receive::<Report>()).unwrap_err();
            assert_eq!(open_fds(), before, "{sent} fds, room for {room}");
            let precise = if room > MAX_FDS {
                matches!(error, ChannelError::TooManyFds)
            } else {
                matches!(error, ChannelError::FdsWithheld)
            };
            assert!(precise, "{sent} fds, room for {room}: {error}");
        }
        let (host, container) = Channel::pair().unwrap();
        container.send(&READY, &[file.as_fd()]).unwrap();
        assert_eq!(with_room_for(1, || host.receive::<Report>()).unwrap().1.len(), 1);
    }

    #[test]
    fn fds_with_garbage_do_not_leak() {
        let path = "/proc/self/limits";
        let file = File::open(path).unwrap();
        let (host, container) = Channel::pair().unwrap();
        raw_send(&container, b"garbage", &[file.as_raw_fd()]);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::NotOurs)));
        assert_eq!(open_fds_to(path), 1);
    }

    #[test]
    fn only_a_seqpacket_socket_is_adopted() {
        let file = OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(matches!(Channel::from_fd(file), Err(ChannelError::NotAChannel)));
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(Channel::from_fd(stream.into()), Err(ChannelError::NotAChannel)));
        assert!(Channel::from_fd(Channel::pair().unwrap().0.into_fd()).is_ok());
    }
}
