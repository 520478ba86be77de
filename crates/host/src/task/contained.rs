//! Confines a panic in an embedder's code to the call.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;

/// A future has panicked. The panic hook has reported it.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Runs a future. A panic ends the future but not its task.
pub(crate) async fn contained<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(|context| {
        // The future is not polled again after a panic.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Err(Panicked).into(),
        }
    })
    .await
}
