//! A link without a file descriptor, for tests: frames in two queues.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use tokio::sync::Notify;

/// The container's end of a link in memory. Copies refer to the same end.
#[derive(Clone, Default)]
pub(crate) struct FarEnd(Rc<Queues>);

#[derive(Default)]
struct Queues {
    to_container: RefCell<VecDeque<Vec<u8>>>,
    from_container: RefCell<VecDeque<Vec<u8>>>,
    /// Whether new frames find no room.
    is_full: Cell<bool>,
    is_gone: Cell<bool>,
    changed: Notify,
}

impl FarEnd {
    /// Sends a frame as the container.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.0.from_container.borrow_mut().push_back(frame.into());
        self.0.changed.notify_waiters();
    }

    /// Takes the next frame that was sent to the container.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        self.0.to_container.borrow_mut().pop_front()
    }

    /// Stops taking frames, or takes them again.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.0.is_full.set(is_full);
        self.0.changed.notify_waiters();
    }

    /// Closes, as the device does with its namespace.
    pub(crate) fn close(&self) {
        self.0.is_gone.set(true);
        self.0.changed.notify_waiters();
    }

    pub(super) async fn readable(&self) {
        self.until(|queues| queues.is_gone.get() || !queues.from_container.borrow().is_empty()).await;
    }

    pub(super) async fn writable(&self) {
        self.until(|queues| queues.is_gone.get() || !queues.is_full.get()).await;
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.from_container.borrow_mut().pop_front() {
            Some(frame) => {
                // Like a device, it truncates a frame that is too long.
                let length = frame.len().min(buffer.len());
                buffer[..length].copy_from_slice(&frame[..length]);
                Ok(Some(length))
            }
            None if self.0.is_gone.get() => Ok(None),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(super) fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if self.0.is_full.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let frame = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.0.to_container.borrow_mut().push_back(frame);
        Ok(())
    }

    async fn until(&self, is_so: impl Fn(&Queues) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if is_so(&self.0) {
                return;
            }
            changed.await;
        }
    }
}
