//! The clock of the benchmark.

use std::time::Instant;

/// Now.
#[expect(clippy::disallowed_methods, reason = "to measure time is what a benchmark is for")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
