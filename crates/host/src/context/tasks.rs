//! The tasks of one container: flows, decisions, look-ups.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::task;

use tokio::task::{AbortHandle, JoinSet};

/// Tasks that end with the container, or earlier.
#[derive(Default)]
pub(crate) struct Tasks(RefCell<JoinSet<()>>);

impl Tasks {
    /// Runs a task on this thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let mut tasks = self.0.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task)
    }

    /// Ends all tasks, each when it gets its turn.
    pub(crate) fn abort_all(&self) {
        self.0.borrow_mut().abort_all();
    }

    /// Ends all tasks, and waits until nothing is left of them.
    pub(crate) async fn end(&self) {
        let next = |context: &mut task::Context<'_>| {
            let mut tasks = self.0.borrow_mut();
            // A task may have started another at its own end.
            tasks.abort_all();
            tasks.poll_join_next(context)
        };
        while poll_fn(next).await.is_some() {}
    }
}
