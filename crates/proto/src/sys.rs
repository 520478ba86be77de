//! All `unsafe` of this crate.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of an fd that recvmsg(2) has just installed for us.
pub(crate) fn own_received(fd: RawFd) -> OwnedFd {
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns. The kernel installed this one during
    // recvmsg with SCM_RIGHTS, and the caller hands on each number of a control message exactly once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
