//! The clock, for what waits a bounded time.

use std::time::{Duration, Instant};

/// A time to come. One too far away to be expressed never comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(delay: Duration) -> Self {
        Self(now().checked_add(delay))
    }

    /// Zero once it has come.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn now() -> Instant {
    Instant::now()
}
