//! The tasks of one container: flows, decisions, look-ups.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;

use tokio::task::{AbortHandle, Id, JoinSet};

use crate::threads::commons::{Clearing, PIECE};

/// The most ended tasks whose memory is freed at once.
const FORGOTTEN_AT_ONCE: usize = 4 * PIECE;

/// Tasks that end with the container, or earlier.
#[derive(Default)]
pub(crate) struct Tasks(RefCell<Running>);

#[derive(Default)]
struct Running {
    tasks: JoinSet<()>,
    /// To abort some of them. A [`JoinSet`] aborts only all.
    handles: HashMap<Id, AbortHandle>,
}

impl Tasks {
    /// Runs a task on this thread.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let mut running = self.0.borrow_mut();
        running.forget_ended();
        let handle = running.tasks.spawn_local(task);
        running.handles.insert(handle.id(), handle.clone());
        handle
    }

    /// Ends all tasks, each when it gets its turn.
    pub(crate) fn abort_all(&self) {
        self.0.borrow_mut().tasks.abort_all();
    }

    /// Ends all tasks in pieces. Returns when nothing is left of them.
    pub(crate) async fn end(&self, clearing: &Clearing) {
        // A task may have started another at its own end.
        while clearing.piece(|| self.0.borrow_mut().abort_some()).await {}
    }
}

impl Running {
    fn forget_ended(&mut self) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(ended) = self.tasks.try_join_next_with_id() else { break };
            let id = match ended {
                Ok((id, ())) => id,
                // The panic hook has reported a panic.
                Err(error) => error.id(),
            };
            self.handles.remove(&id);
        }
    }

    /// Aborts a few tasks. Returns whether there were any.
    fn abort_some(&mut self) -> bool {
        self.forget_ended();
        self.handles.values().take(PIECE).for_each(AbortHandle::abort);
        !self.handles.is_empty()
    }
}
