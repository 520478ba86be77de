//! The channel end that a command inherits.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The channel end that a command inherits. It stays open in this process until the command has it.
#[derive(Debug)]
pub(crate) struct Inherited {
    _fd: OwnedFd,
    number: Arc<AtomicI32>,
}

impl Inherited {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let number = Arc::new(AtomicI32::new(fd.as_raw_fd()));
        Self { _fd: fd, number }
    }

    /// The fd's number, or −1 once it is closed in this process.
    pub(crate) fn number(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.number)
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        self.number.store(-1, Ordering::Release);
    }
}
