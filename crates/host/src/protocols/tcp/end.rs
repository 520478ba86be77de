//! The end of all connections of one container, in pieces ([`Clearing`]).
//!
//! | the container | its open connections | the streams |
//! |---|---|---|
//! | has its link still, and its network ends | are reset | are reset if they lack bytes |
//! | has lost its link | are gone with it | those that it had finished get their bytes, the others are reset |
//!
//! A stream ends with the task of its connection, which this module aborts.

use std::rc::Rc;
use std::time::Duration;

use super::flow::TcpFlow;
use super::table::{State, Table, TupleUse};
#[cfg(doc)]
use crate::threads::commons::Clearing;
use crate::threads::commons::PIECE;

/// How long the end of a network waits for a container that does not read its resets.
const RESET_PATIENCE: Duration = Duration::from_millis(500);

impl Table {
    /// Ends all connections and resets them towards the container. Waits a little for a link that is full.
    pub(crate) async fn end(&self) {
        let clearing = self.context.commons.clearing();
        let mut blocked = Vec::new();
        while clearing.piece(|| self.end_some(&mut blocked)).await {}
        let deadline = self.context.clock.now() + RESET_PATIENCE;
        let all = blocked.len();
        let mut reset = 0;
        while !blocked.is_empty() {
            let some = blocked.split_off(blocked.len().saturating_sub(PIECE));
            for flow in &some {
                let retried = tokio::time::timeout_at(deadline.into(), self.retry(flow)).await;
                reset += usize::from(retried.is_ok());
            }
            clearing.piece(|| drop(some)).await;
        }
        if reset < all {
            tracing::debug!(all, reset, "the container does not read: not all of its connections were reset");
        }
    }

    /// Ends all connections at once.
    pub(crate) fn close(&self) {
        for tuple in std::mem::take(&mut *self.tuples.borrow_mut()).into_values() {
            self.break_off(tuple);
        }
    }

    /// Leaves the connections alone that the container has ended, and breaks the others off, because its end of the
    /// link is gone.
    pub(crate) async fn orphan(&self) {
        let is_broken = |tuple: &TupleUse| match &tuple.state {
            State::Open(flow) => !flow.orphan(),
            State::Dialing { .. } => true,
        };
        let mut broken: Vec<_> = self
            .tuples
            .borrow_mut()
            .extract_if(|_, tuple| is_broken(tuple))
            .filter_map(|(_, tuple)| tuple.task)
            .collect();
        let clearing = self.context.commons.clearing();
        while !broken.is_empty() {
            let rest = broken.len().saturating_sub(PIECE);
            clearing.piece(|| broken.drain(rest..).for_each(|task| task.abort())).await;
        }
    }

    /// Ends a few connections. Adds those to `blocked` whose RST the link does not take. Returns whether there were any.
    fn end_some(&self, blocked: &mut Vec<Rc<TcpFlow>>) -> bool {
        let some: Vec<_> = self.tuples.borrow_mut().extract_if(|_, _| true).take(PIECE).collect();
        let is_some = !some.is_empty();
        blocked.extend(some.into_iter().filter_map(|(_, tuple)| self.break_off(tuple)));
        is_some
    }

    /// Ends one connection. Returns it if the link does not take its RST.
    fn break_off(&self, tuple: TupleUse) -> Option<Rc<TcpFlow>> {
        let TupleUse { task, state, .. } = tuple;
        if let Some(task) = task {
            task.abort();
        }
        match state {
            State::Open(flow) => {
                self.reset_flow(&flow);
                flow.is_blocked().then_some(flow)
            }
            State::Dialing { .. } => None,
        }
    }

    async fn retry(&self, flow: &TcpFlow) {
        let link = &self.context.link;
        while flow.is_blocked() && link.writable().await.is_ok() {
            flow.retry(link);
        }
    }
}
