//! The tasks of one container: flows, decisions, look-ups.

use std::cell::RefCell;
use std::future::Future;

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

    /// Ends all tasks.
    pub(crate) fn abort_all(&self) {
        self.0.borrow_mut().abort_all();
    }
}
