//! The memory that the rings of one container share.

use std::cell::Cell;

use super::PAGE;

/// What a ring may use whatever the others do, in bytes: a page, so that every connection makes progress.
pub(super) const SHARE: usize = PAGE;

/// The memory that the rings of one container, or of one of its queues, may use together.
///
/// Each ring may grow until it has as much beyond its own share as is left for all others. This is a *dynamic
/// threshold* (Choudhury and Hahne, 1998): nobody has to know how many rings there are. The more there are, the less is
/// left, and the smaller is each.
#[derive(Debug)]
pub struct Budget {
    /// In bytes, not counting the shares of the rings.
    shared: usize,
    used: Cell<usize>,
}

impl Budget {
    /// A budget of `total` bytes for this many connections. Each of their rings may always use 4 KiB of it. If `total`
    /// is less than all of these shares, they are all that there is.
    #[must_use]
    pub fn new(total: usize, connections: usize) -> Self {
        let shares = connections.saturating_mul(2 * SHARE);
        Self { shared: total.saturating_sub(shares), used: Cell::new(0) }
    }

    /// How far a ring that has `length` bytes should grow, or shrink. A multiple of the page.
    pub(super) fn threshold(&self, length: usize) -> usize {
        // After it has grown so far, as much is left.
        let threshold = SHARE + (self.left() + beyond(length)) / 2;
        threshold - threshold % PAGE
    }

    /// Counts the change of a ring's length. Returns whether there is memory for it; if not, nothing changes.
    pub(super) fn resize(&self, from: usize, to: usize) -> bool {
        let others = self.used.get() - beyond(from);
        let fits = to <= from || beyond(to) <= self.shared - others;
        if fits {
            self.used.set(others + beyond(to));
        }
        fits
    }

    fn left(&self) -> usize {
        self.shared - self.used.get()
    }

    /// Bytes in use beyond the shares.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.get()
    }
}

/// The part of a ring that is not its own share.
fn beyond(length: usize) -> usize {
    length.saturating_sub(SHARE)
}
