//! Waits for a future on the calling thread.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Polls a future on the calling thread. `None` after the timeout. It needs no runtime and disturbs none.
pub(crate) fn block_on<F: Future>(future: F, timeout: Duration) -> Option<F::Output> {
    let now = real_now();
    // A timeout beyond the end of the clock is no timeout.
    let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    // The caller may be a tokio task that has used up its budget. Nothing would then become ready in this loop.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = deadline.saturating_duration_since(real_now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

/// The time of the caller's thread, which sleeps for real also where a test has paused that of its runtime.
#[expect(clippy::disallowed_methods, reason = "nothing of the engine depends on it")]
fn real_now() -> Instant {
    Instant::now()
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready_needs_no_time() {
        assert_eq!(block_on(async { 7 }, Duration::ZERO), Some(7));
    }

    #[test]
    fn what_another_thread_sends_is_heard() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver, Duration::MAX), Some(Ok(7)));
    }

    #[test]
    fn patience_ends() {
        assert_eq!(block_on(std::future::pending::<()>(), Duration::from_millis(1)), None);
    }
}
