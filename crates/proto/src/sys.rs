//! All `unsafe` of this crate: recvmsg(2), with ownership of every file descriptor it installs.
//!
//! Not the wrapper of `nix`: that one refuses to read control data the kernel had to cut (`MSG_CTRUNC`). The
//! kernel cuts where the buffer ends, but also before a descriptor it cannot install, because the process has
//! too many (`RLIMIT_NOFILE`) or a security module objects. What it installed before the cut is ours to close.

use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{cmsghdr, iovec, msghdr};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use crate::message::MAX_FDS;

/// What recvmsg(2) returned.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes of the message that are in the buffer.
    pub(crate) len: usize,
    /// Every descriptor the kernel has installed (close-on-exec).
    pub(crate) fds: Vec<OwnedFd>,
    /// `MSG_TRUNC`: the message was longer. `MSG_CTRUNC`: it came with more descriptors.
    pub(crate) flags: MsgFlags,
}

/// Receives one message of a Unix socket, with at most one descriptor more than [`MAX_FDS`]. The kernel closes
/// those for which there is no room.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], flags: MsgFlags) -> Result<Received, Errno> {
    let mut buffer = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: `zeroed` wants a type for which zeroes are a value: integers and arrays of them.
    let mut control: ControlBuffer = unsafe { zeroed() };
    // SAFETY: `zeroed` wants a type for which zeroes are a value: integers and pointers that may be null.
    let mut header: msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut buffer;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_LEN as _;
    let flags = (flags | MsgFlags::MSG_CMSG_CLOEXEC).bits();
    // SAFETY: recvmsg writes the msghdr, and as many bytes as it says where it points to. `bytes` and `control`
    // have those lengths, live on, and nobody else refers to them; `control` is aligned for a cmsghdr, and
    // whatever integers it is filled with are a value of it. The fd is open.
    let len = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    Ok(Received {
        len: len.unsigned_abs(),
        fds: control.into_fds(),
        flags: MsgFlags::from_bits_retain(header.msg_flags),
    })
}

/// Room for one control message, cmsg(3), with one descriptor more than may come, to tell when more do.
#[repr(C)]
struct ControlBuffer {
    header: cmsghdr,
    fds: [RawFd; MAX_FDS + 1],
}

/// Up to the last descriptor: the kernel would fill padding behind it with more.
const CONTROL_LEN: usize = offset_of!(ControlBuffer, fds) + size_of::<[RawFd; MAX_FDS + 1]>();

// The descriptors stand where the kernel puts them: CMSG_DATA is the end of the header.
const _: () = assert!(offset_of!(ControlBuffer, fds) == size_of::<cmsghdr>());

impl ControlBuffer {
    /// Takes ownership of what recvmsg has installed. Zeroes, where it has written nothing, are no `SCM_RIGHTS`.
    ///
    /// There is no list of control messages to walk. All descriptors of a message come in one control message. Others
    /// come only to a receiver that has set a socket option (`SO_PASSCRED` and the like, unix(7)). No sender can set it.
    fn into_fds(self) -> Vec<OwnedFd> {
        let Self { header, fds } = self;
        if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            return Vec::new();
        }
        #[allow(clippy::unnecessary_cast, reason = "a socklen_t with musl")]
        let len = header.cmsg_len as usize;
        let installed = len.saturating_sub(size_of::<cmsghdr>()) / size_of::<RawFd>();
        fds.into_iter().take(installed).map(own_installed).collect()
    }
}

fn own_installed(fd: RawFd) -> OwnedFd {
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns. The kernel has just installed this one: it
    // counts in cmsg_len no others. `into_fds` consumes its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
