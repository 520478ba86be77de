//! Frames through a file descriptor: a TUN device, or one end of a socketpair.

use std::borrow::Borrow;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, Shutdown};
use nix::sys::uio;
use nsnet_proto::Carriage;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::sys::{self, Entrusted};

/// A file descriptor that the runtime watches.
pub(super) struct Descriptor {
    fd: AsyncFd<Entrusted>,
    access: Access,
    /// Notified when a write has found the device gone.
    gone: Notify,
}

/// The system calls by which frames travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// read(2) and write(2).
    Device,
    /// The same with `RWF_NOWAIT`, which works in any mode of the open file.
    DeviceNowait,
    /// send(2) and recv(2).
    Socket,
}

impl Descriptor {
    /// Takes over a non-blocking file descriptor. `nowait` says whether the device supports `RWF_NOWAIT`.
    pub(super) fn new(fd: Entrusted, carriage: Carriage, nowait: bool) -> io::Result<Self> {
        let access = match carriage {
            Carriage::HandedOver if nowait => Access::DeviceNowait,
            Carriage::HandedOver => Access::Device,
            Carriage::Shuttled => Access::Socket,
        };
        Ok(Self { fd: sys::watch(fd)?, access, gone: Notify::new() })
    }

    /// Waits until there is a frame to read or the far end is gone. A deleted device reports an error and nothing else.
    pub(super) async fn readable(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.fd.ready(Interest::READABLE | Interest::ERROR) => ready.map(drop),
            () = self.gone.notified() => Ok(()),
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.fd.writable().await.map(drop)
    }

    /// Reads one frame. `Ok(None)` means that the far end is gone.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut read = |fd: &Entrusted| {
            let fd: &OwnedFd = fd.borrow();
            let received = match self.access {
                Access::DeviceNowait => sys::read_nowait(fd, buffer),
                Access::Device => nix::unistd::read(fd, buffer),
                Access::Socket => socket::recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT),
            };
            Ok(received?)
        };
        // Only one interest at a time, because `try_io` knows no combinations.
        let result = match self.fd.try_io(Interest::READABLE, &mut read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.fd.try_io(Interest::ERROR, &mut read)
            }
            result => result,
        };
        match result {
            Ok(0) => Ok(None),
            Ok(length) => Ok(Some(length)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // The device was deleted, or the shuttle ended with frames unread.
                Some(Errno::EBADFD | Errno::EFAULT | Errno::ECONNRESET) => Ok(None),
                _ => Err(error),
            },
        }
    }

    pub(super) fn try_write(&self, frame: &[u8]) -> io::Result<()> {
        let written = self.fd.try_io(Interest::WRITABLE, |fd| {
            let fd: &OwnedFd = fd.borrow();
            match self.access {
                Access::DeviceNowait => sys::write_nowait(fd, frame)?,
                Access::Device => nix::unistd::write(fd, frame)?,
                Access::Socket => socket::send(fd.as_raw_fd(), frame, SEND)?,
            };
            Ok(())
        });
        self.note_gone(written)
    }

    /// Writes one frame that consists of several parts.
    pub(super) fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let written = self.fd.try_io(Interest::WRITABLE, |fd| {
            let fd: &OwnedFd = fd.borrow();
            match self.access {
                Access::DeviceNowait => sys::write_parts_nowait(fd, parts)?,
                Access::Device => uio::writev(fd.as_fd(), parts)?,
                Access::Socket => socket::sendmsg::<()>(fd.as_raw_fd(), parts, &[], SEND, None)?,
            };
            Ok(())
        });
        self.note_gone(written)
    }

    /// Ends the link to a shuttle so that the shuttle can still read the frames that were sent. A socketpair end that
    /// closes with unread frames would discard them (unix(7), ECONNRESET at the peer).
    pub(super) fn finish(&self) {
        if self.access == Access::Socket {
            let fd = self.fd.get_ref().as_raw_fd();
            // Fails only if the far end is gone already.
            let _ = socket::shutdown(fd, Shutdown::Both);
            while socket::recv(fd, &mut [0; 1], MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
        }
    }

    /// Notes that the device is gone if a write found it so. The reader may have missed the event.
    fn note_gone(&self, written: io::Result<()>) -> io::Result<()> {
        written.inspect_err(|error| {
            if error.raw_os_error() == Some(libc::EBADFD) {
                self.gone.notify_one();
            }
        })
    }
}

const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
