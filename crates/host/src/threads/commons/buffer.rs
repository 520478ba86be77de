//! A buffer whose memory goes back to the kernel while the thread is idle.

use std::ops::{Deref, DerefMut};

use nsnet_stack::tcp::Memory;

use crate::sys::Pages;

/// Bytes in pages of their own. The fields are dropped in this order, so the memory outlives the slice.
pub(crate) struct Buffer {
    bytes: &'static mut [u8],
    pages: Pages,
}

impl Buffer {
    /// Zeroes, which take up no memory.
    ///
    /// # Errors
    /// `ENOMEM` if the process has no more address space or mappings (`vm.max_map_count`).
    pub(crate) fn new(length: usize) -> nix::Result<Self> {
        let mut pages = Pages::map(length)?;
        Ok(Self { bytes: pages.lend(), pages })
    }

    /// Replaces all bytes by zeroes, which take up no memory.
    pub(crate) fn discard(&mut self) {
        self.pages.discard(0..self.bytes.len());
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}
