//! The order in which the tasks of one engine thread work.
//!
//! A task of a container has a [`Place`], and its work is a [`Turn`]. A task that would be next anyway works at once. The
//! others wait in line, and one task at a time is given a turn of bounded length.
//!
//! The line is fair ([`fair_queue`]) on two levels: first between containers, by the time that their turns take, then
//! between the tasks of a container, by the bytes that they move. A task that moves little, such as a ping beside
//! downloads, is therefore next within its container, but for others that move little.
//!
//! A container's reader is no task among others: all that the tasks move up passes through it first. It has every
//! second turn of its container, if it wants it.
//!
//! Between two turns, tasks that are ready run, and the runtime looks for new events. So a task that became ready during
//! a turn stands in line before the next one is given. Only one task that moves much works without waiting before the
//! runtime has looked.

mod fair_queue;
mod lane;
mod place;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use fair_queue::FairQueue;
pub(crate) use lane::Lane;
pub(crate) use place::{Place, Turn};

/// Bytes of payload in the largest segment for a TUN device, rounded down. A turn is a multiple of it: a rest would
/// travel in a segment of its own.
const SEGMENT: usize = 62 << 10;

/// Bytes that a turn moves while tasks that move little are about. It takes about 0.1 ms.
const SHORT: usize = 2 * SEGMENT;

/// Bytes that a turn moves otherwise. With ten streams, short turns have four fifths of the throughput of these: each
/// read of a socket has the far end woken, and each write the near end.
const LONG: usize = 12 * SEGMENT;

/// How long turns stay short after a task that moves little has worked.
const ATTENTION: Duration = Duration::from_millis(5);

/// The line of one engine thread.
pub(crate) struct Turns {
    /// Containers of which a task waits.
    line: RefCell<FairQueue<Rc<Lane>>>,
    /// Whether a turn was given and is not over.
    is_given: Cell<bool>,
    /// Whether a task that moves much has worked without waiting since the runtime last looked for events.
    is_round_used: Cell<bool>,
    /// Whether the task that gives turns runs.
    is_served: Cell<bool>,
    /// When a task that moves little has worked last.
    sparse_worked: Cell<Option<Instant>>,
    /// Notified when a task comes to wait, and when a turn that was given is over.
    change: Notify,
}

impl Turns {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            line: RefCell::new(FairQueue::new()),
            is_given: Cell::new(false),
            is_round_used: Cell::new(false),
            is_served: Cell::new(false),
            sparse_worked: Cell::new(None),
            change: Notify::new(),
        })
    }

    /// Bytes that a turn may move that begins now.
    fn length(&self, now: Instant) -> usize {
        let is_attentive = self.sparse_worked.get().is_some_and(|worked| now < worked + ATTENTION);
        if is_attentive { SHORT } else { LONG }
    }

    /// Forgets all that wait, because the thread ends. Those that wait refer to this.
    pub(super) fn clear(&self) {
        self.line.borrow_mut().clear();
    }

    /// Sees to it that turns are given.
    fn announce(self: &Rc<Self>) {
        if self.is_served.replace(true) {
            self.change.notify_one();
        } else {
            tokio::task::spawn_local(Rc::clone(self).give_turns());
        }
    }

    /// Gives one turn after the other, as long as the thread runs.
    async fn give_turns(self: Rc<Self>) {
        loop {
            if self.is_given.get() || !self.give() {
                self.change.notified().await;
                // The runtime comes back after everything that was ready, and after it has looked for new events.
                tokio::task::yield_now().await;
                self.is_round_used.set(false);
            }
        }
    }

    /// Gives the next turn. Returns whether anybody waits.
    fn give(&self) -> bool {
        loop {
            let next = self.line.borrow_mut().pop();
            let Some((lane, start)) = next else { return false };
            if lane.give(start) {
                self.is_given.set(true);
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
