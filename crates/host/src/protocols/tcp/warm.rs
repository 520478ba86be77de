//! The connections whose rings may hold memory, and the task that frees it once the container is silent on them. The
//! task runs only while a connection is warm, so an idle network has no timer.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::flow::TcpFlow;
use super::table::Table;

/// How long a connection is silent before the memory of its rings is freed.
const SILENCE: Duration = Duration::from_secs(2);

/// The most connections looked at before other tasks get their turn.
const AT_ONCE: usize = 64;

#[derive(Default)]
pub(super) struct Warm {
    flows: RefCell<Vec<Weak<TcpFlow>>>,
    /// Whether the task runs.
    is_watched: Cell<bool>,
}

impl Warm {
    /// Makes sure that the memory of the flow's rings is freed some time. `table` is the one that owns this.
    pub(super) fn insert(&self, table: &Rc<Table>, flow: &Rc<TcpFlow>) {
        self.flows.borrow_mut().push(Rc::downgrade(flow));
        if !self.is_watched.replace(true) {
            table.context.tasks.spawn(watch(Rc::clone(table)));
        }
    }

    fn len(&self) -> usize {
        self.flows.borrow().len()
    }

    /// Frees the memory of silent connections in this range. Returns how many are still warm.
    fn reclaim(&self, limit: Instant, range: Range<usize>) -> usize {
        let mut flows = self.flows.borrow_mut();
        let end = range.end.min(flows.len());
        let still: Vec<Weak<TcpFlow>> = flows
            .drain(range.start..end)
            .filter(|flow| flow.upgrade().is_some_and(|flow| !flow.reclaim(limit)))
            .collect();
        let count = still.len();
        flows.splice(range.start..range.start, still);
        count
    }
}

/// Frees the memory of silent connections until none is warm.
async fn watch(table: Rc<Table>) {
    let warm = table.warm();
    while warm.len() > 0 {
        tokio::time::sleep(SILENCE).await;
        let limit = table.context.clock.now() - SILENCE;
        let mut looked_at = 0;
        while looked_at < warm.len() {
            looked_at += warm.reclaim(limit, looked_at..looked_at + AT_ONCE);
            tokio::task::yield_now().await;
        }
    }
    warm.is_watched.set(false);
}
