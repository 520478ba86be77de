//! The engine's clock. Tables and flows read the time here, so a test that pauses the runtime's clock pauses theirs
//! too.

use std::time::Instant;

/// Translates between the clock of the engine and that of smoltcp, which counts from the engine's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: now() }
    }

    pub(crate) fn now(&self) -> Instant {
        now()
    }

    pub(crate) fn smoltcp(&self, instant: Instant) -> smoltcp::time::Instant {
        let micros = instant.saturating_duration_since(self.origin).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// A time in the past stays in the past.
    pub(crate) fn instant(&self, instant: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(instant.total_micros()).unwrap_or(0);
        self.origin + std::time::Duration::from_micros(micros)
    }
}

/// The runtime's time: that of the system, unless a test has paused it.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
