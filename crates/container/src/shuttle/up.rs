//! TUN → socketpair.
//!
//! The thread *copies* until it is told to stop. Then it *drains* the device's queue: its packets have yet to reach the
//! host, and their senders believe them sent. Draining is bounded in frames, because a payload may go on sending. It is
//! bounded in time, because the host may have stopped reading. Once the host is gone, nothing is drained.
//!
//! The thread never blocks in send(2), where only a closed end would wake it. It waits only in poll(2), where the stop
//! signal wakes it as well.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::read;

use super::{Ends, FRAME_MAX, Trouble, device_error, socket_trouble};
use crate::Error;
use crate::clock::Deadline;
use crate::configure;

/// How long the host may take to receive the drained frames.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Tells the threads of all queues to stop.
#[derive(Debug)]
pub(super) struct StopSignal {
    requested: AtomicBool,
    /// Shut down to wake the threads from poll(2), which see the other end hang up.
    waker: UnixStream,
    /// The end that the threads poll.
    woken: UnixStream,
}

impl StopSignal {
    pub(super) fn new() -> Result<Self, Error> {
        let (waker, woken) = UnixStream::pair()
            .map_err(|error| Error::new("make a socketpair to stop the shuttle by", error))?;
        Ok(Self { requested: AtomicBool::new(false), waker, woken })
    }

    pub(super) fn request(&self) {
        // Set before the wake-up, so that a woken thread sees it.
        self.requested.store(true, Ordering::Release);
        // Fails only if it is shut down already.
        let _ = self.waker.shutdown(Shutdown::Both);
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

/// Copies until stopped, then drains; or until the host is gone.
pub(super) fn copy_up(ends: &Ends) -> Result<(), Error> {
    // Stays zero up to `packet_offset`, as the header of a complete packet.
    let mut frame = vec![0; FRAME_MAX].into_boxed_slice();
    match copy_until_stopped(ends, &mut frame)? {
        End::HostGone => Ok(()),
        End::Stopped { unsent } => drain(ends, &mut frame, unsent),
    }
}

enum End {
    HostGone,
    Stopped {
        /// The length of the frame in the buffer, if one was read and could not be sent.
        unsent: Option<usize>,
    },
}

fn copy_until_stopped(ends: &Ends, frame: &mut [u8]) -> Result<End, Error> {
    while !ends.stop.is_requested() {
        let Some(len) = read_frame(ends, frame)? else {
            match wait_for(ends.tun().as_fd(), PollFlags::POLLIN, ends, Patience::UntilStopped)? {
                Wake::HostGone => return Ok(End::HostGone),
                Wake::Ready | Wake::Stopped | Wake::Overdue => continue,
            }
        };
        match send_waiting(ends, &frame[..len], Patience::UntilStopped)? {
            Wake::Ready => {}
            Wake::HostGone => return Ok(End::HostGone),
            Wake::Stopped | Wake::Overdue => return Ok(End::Stopped { unsent: Some(len) }),
        }
    }
    Ok(End::Stopped { unsent: None })
}

fn drain(ends: &Ends, frame: &mut [u8], mut unsent: Option<usize>) -> Result<(), Error> {
    let patience = Patience::Until(Deadline::after(DRAIN_TIME));
    // The device's queue holds no more, unless somebody has raised its length.
    for _ in 0..configure::QUEUE {
        let len = match unsent.take() {
            Some(len) => len,
            None => match read_frame(ends, frame)? {
                Some(len) => len,
                None => return Ok(()),
            },
        };
        match send_waiting(ends, &frame[..len], patience)? {
            Wake::Ready => {}
            Wake::HostGone => return Ok(()),
            Wake::Stopped | Wake::Overdue => break,
        }
    }
    tracing::debug!("stopped with packets left in the device's queue");
    Ok(())
}

/// The length of the frame that was read. `None` if there is none at the moment.
fn read_frame(ends: &Ends, frame: &mut [u8]) -> Result<Option<usize>, Error> {
    loop {
        match read(ends.tun(), &mut frame[ends.packet_offset..]) {
            Ok(len) => return Ok(Some(ends.packet_offset + len)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(device_error("read from the TUN device", errno)),
        }
    }
}

/// Sends a frame, and waits while the host does not keep up. `Ready` once the frame is sent.
fn send_waiting(ends: &Ends, frame: &[u8], patience: Patience) -> Result<Wake, Error> {
    loop {
        match send_now(ends.socket(), frame)? {
            Sent::Done => return Ok(Wake::Ready),
            Sent::HostGone => return Ok(Wake::HostGone),
            Sent::Full => match wait_for(ends.socket().as_fd(), PollFlags::POLLOUT, ends, patience)? {
                Wake::Ready => {}
                wake @ (Wake::Stopped | Wake::Overdue | Wake::HostGone) => return Ok(wake),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// Sent, or dropped for lack of memory.
    Done,
    Full,
    HostGone,
}

fn send_now(socket: &OwnedFd, frame: &[u8]) -> Result<Sent, Error> {
    loop {
        let Err(errno) = send(socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
        else {
            return Ok(Sent::Done);
        };
        match (errno, socket_trouble(errno)) {
            (Errno::EAGAIN, _) => return Ok(Sent::Full),
            (_, Trouble::Interrupted) => {}
            (_, Trouble::FrameLost) => {
                tracing::trace!(%errno, "the socket dropped a frame");
                return Ok(Sent::Done);
            }
            (_, Trouble::HostGone) => return Ok(Sent::HostGone),
            (_, Trouble::Fatal) => return Err(Error::new("send a frame to the host", errno)),
        }
    }
}

#[derive(Clone, Copy)]
enum Patience {
    UntilStopped,
    Until(Deadline),
}

#[derive(Debug, PartialEq, Eq)]
enum Wake {
    /// The awaited event came, or an error that the next attempt will find.
    Ready,
    Stopped,
    Overdue,
    HostGone,
}

fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, ends: &Ends, patience: Patience) -> Result<Wake, Error> {
    // No event is requested for the others, because poll(2) always reports a hang-up (POLLHUP).
    let mut fds = [
        PollFd::new(fd, events),
        PollFd::new(ends.socket().as_fd(), PollFlags::empty()),
        PollFd::new(ends.stop.woken.as_fd(), PollFlags::empty()),
    ];
    let (watched, timeout) = match patience {
        Patience::UntilStopped => (3, PollTimeout::NONE),
        // A thread that drains has been stopped already.
        Patience::Until(deadline) => (2, PollTimeout::try_from(deadline.left()).unwrap_or(PollTimeout::MAX)),
    };
    match poll(&mut fds[..watched], timeout) {
        Ok(0) => Ok(Wake::Overdue),
        Ok(_) if fds[1].any() == Some(true) => Ok(Wake::HostGone),
        Ok(_) if fds[2].any() == Some(true) => Ok(Wake::Stopped),
        Ok(_) | Err(Errno::EINTR) => Ok(Wake::Ready),
        Err(errno) => Err(Error::new("wait for packets", errno)),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn full_socket_is_told_from_one_whose_host_is_gone() {
        let (container, host) = pair();
        while send_now(&container, &[0; 4096]).unwrap() == Sent::Done {}
        assert_eq!(send_now(&container, &[0; 4096]).unwrap(), Sent::Full);
        drop(host);
        // ECONNRESET first, because frames were unread, and EPIPE from then on.
        assert_eq!(send_now(&container, &[0]).unwrap(), Sent::HostGone);
        assert_eq!(send_now(&container, &[0]).unwrap(), Sent::HostGone);
    }

    #[test]
    fn any_other_refusal_to_send_is_an_error() {
        let unconnected =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let error = send_now(&unconnected, &[0]).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTCONN), "{error}");
        assert_eq!(error.step(), "send a frame to the host");
    }
}
