//! All TCP connections of one container. The table finds the flow of a segment, and cleans up after a flow.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use nsnet_stack::flow::FlowKey;
use nsnet_stack::tcp::{self, Budget, Control, Resting, Segment};
use smoltcp::wire::TcpSeqNumber;
use tokio::task::AbortHandle;

use super::flow::TcpFlow;
use super::warm::Warm;
use crate::context::Context;
use crate::dns::NameServer;

/// The connections of one container, or of one queue of it.
pub(crate) struct Table {
    pub(super) context: Rc<Context>,
    pub(super) name_server: Rc<NameServer>,
    pub(super) tuples: RefCell<HashMap<FlowKey, TupleUse>>,
    pub(super) resting: RefCell<Resting>,
    /// Flows that deliver their last bytes while a newer connection uses their tuple.
    replaced: RefCell<HashSet<u64>>,
    pub(super) budget: Rc<Budget>,
    /// Connections whose rings may hold memory.
    warm: Warm,
    /// Random key for each table, so that sequence numbers seeded from it cannot be guessed.
    pub(super) seeds: RandomState,
    opened: Cell<u64>,
    /// Connections from outside that are being opened.
    pub(super) reserved: Cell<usize>,
}

/// A tuple in use.
pub(crate) struct TupleUse {
    /// Distinguishes this use from an earlier one whose task has not ended yet.
    pub(crate) id: u64,
    pub(crate) task: Option<AbortHandle>,
    pub(crate) state: State,
}

pub(crate) enum State {
    /// The Dialer is at work; the SYN is held.
    Dialing {
        syn: Segment,
        packet: Box<[u8]>,
    },
    Open(Rc<TcpFlow>),
}

impl TupleUse {
    /// Whether the stream may still lack bytes that the container has sent or will send.
    fn is_owed(&self) -> bool {
        match &self.state {
            State::Open(flow) => !flow.is_delivered(),
            State::Dialing { .. } => false,
        }
    }
}

/// The open connection of a tuple.
pub(crate) fn find_open<S: BuildHasher>(
    tuples: &HashMap<FlowKey, TupleUse, S>,
    key: &FlowKey,
) -> Option<Rc<TcpFlow>> {
    match tuples.get(key).map(|tuple| &tuple.state) {
        Some(State::Open(flow)) => Some(Rc::clone(flow)),
        Some(State::Dialing { .. }) | None => None,
    }
}

impl Table {
    pub(crate) fn new(context: Rc<Context>, name_server: Rc<NameServer>) -> Rc<Self> {
        Rc::new(Self {
            budget: Rc::new(Budget::new(context.limits.ring_memory, context.limits.tcp_flows)),
            context,
            name_server,
            tuples: RefCell::default(),
            resting: RefCell::default(),
            replaced: RefCell::default(),
            warm: Warm::default(),
            seeds: RandomState::new(),
            opened: Cell::new(0),
            reserved: Cell::new(0),
        })
    }

    /// Handles a segment from the container. Returns whether it belongs to anything here. If not, it is for
    /// [`answer_stray`](Self::answer_stray).
    #[must_use]
    pub(crate) fn handle(self: &Rc<Self>, key: FlowKey, segment: &Segment, packet: &[u8]) -> bool {
        let open = find_open(&self.tuples.borrow(), &key);
        match open {
            // The container is done with this connection and opens another, while the stream still lacks bytes.
            Some(flow) if segment.control == Control::Open && flow.is_over() => {
                if let Some(tuple) = self.tuples.borrow_mut().remove(&key) {
                    self.replaced.borrow_mut().insert(tuple.id);
                }
                self.handle_syn(key, segment, packet);
            }
            Some(flow) => self.feed(key, &flow, segment, packet),
            None if segment.control == Control::Open => self.handle_syn(key, segment, packet),
            None => return self.handle_unopened(key, segment),
        }
        true
    }

    /// Whether a segment of this tuple belongs to anything here.
    pub(crate) fn knows(&self, key: &FlowKey) -> bool {
        self.tuples.borrow().contains_key(key) || self.resting.borrow().contains(key)
    }

    /// Answers a segment that belongs to no connection of the container.
    pub(crate) fn answer_stray(&self, key: FlowKey, segment: &Segment) {
        if segment.control == Control::Reset {
            self.resting.borrow_mut().remove(&key);
            return;
        }
        let answer = match self.resting.borrow_mut().get(self.context.clock.now(), &key) {
            Some(ack) => tcp::acknowledgment(key, ack.sequence, ack.expected, 0),
            None => tcp::reset_for(key, segment),
        };
        self.context.send(&answer);
    }

    /// Whether every stream has all that the container has sent it.
    pub(crate) fn is_delivered(&self) -> bool {
        self.replaced.borrow().is_empty() && !self.tuples.borrow().values().any(TupleUse::is_owed)
    }

    /// How many streams may still lack bytes.
    pub(crate) fn undelivered(&self) -> usize {
        let owed = self.tuples.borrow().values().filter(|tuple| tuple.is_owed()).count();
        self.replaced.borrow().len() + owed
    }

    pub(super) fn warm(&self) -> &Warm {
        &self.warm
    }

    /// Whether one more connection is within the limit.
    pub(super) fn has_room(&self) -> bool {
        let used = self.tuples.borrow().len() + self.replaced.borrow().len() + self.reserved.get();
        used < self.context.limits.tcp_flows
    }

    /// A number that distinguishes this use of a tuple from all others.
    pub(super) fn next_id(&self) -> u64 {
        let id = self.opened.get();
        self.opened.set(id + 1);
        id
    }

    /// Drops a flow without telling the container.
    pub(super) fn cancel(&self, key: &FlowKey) {
        let Some(tuple) = self.tuples.borrow_mut().remove(key) else { return };
        if let Some(task) = tuple.task {
            task.abort();
        }
    }

    fn feed(self: &Rc<Self>, key: FlowKey, flow: &Rc<TcpFlow>, segment: &Segment, packet: &[u8]) {
        if flow.warm() {
            self.warm.insert(self, flow);
        }
        let fed = catch_unwind(AssertUnwindSafe(|| {
            flow.handle_packet(&self.context.clock, &self.context.link, segment, packet);
        }));
        if fed.is_err() {
            // The panic hook has reported the panic. It ends this flow and no other.
            tracing::error!(%key.container, %key.peer, "a TCP flow failed on a segment and was dropped");
            self.reset_flow(flow);
            self.cancel(&key);
        }
    }

    fn handle_syn(self: &Rc<Self>, key: FlowKey, syn: &Segment, packet: &[u8]) {
        match self.held_syn(&key) {
            Some(sequence) if sequence == syn.sequence => {}
            Some(_) => {
                self.cancel(&key);
                self.dial(key, syn, packet);
            }
            None => {
                self.resting.borrow_mut().remove(&key);
                self.dial(key, syn, packet);
            }
        }
    }

    /// Handles a segment that opens nothing and belongs to no open connection. Returns whether it belongs to one that
    /// is being dialled, or that rests.
    fn handle_unopened(&self, key: FlowKey, segment: &Segment) -> bool {
        let Some(sequence) = self.held_syn(&key) else {
            let rests = self.resting.borrow().contains(&key);
            if rests {
                self.answer_stray(key, segment);
            }
            return rests;
        };
        // From SYN-SENT the container can only take its SYN back.
        if segment.control == Control::Reset && is_reset_of(sequence, segment) {
            self.cancel(&key);
        }
        true
    }

    /// The sequence number of the SYN that is held for a tuple.
    fn held_syn(&self, key: &FlowKey) -> Option<TcpSeqNumber> {
        match self.tuples.borrow().get(key).map(|tuple| &tuple.state) {
            Some(State::Dialing { syn, .. }) => Some(syn.sequence),
            Some(State::Open(_)) | None => None,
        }
    }

    pub(super) fn reset_flow(&self, flow: &TcpFlow) {
        flow.reset(&self.context.clock, &self.context.link);
    }

    /// Called when a flow's task has ended, normally or not.
    fn release(&self, key: FlowKey, id: u64) {
        self.context.progress.notify_one();
        if self.replaced.borrow_mut().remove(&id) {
            return;
        }
        let tuple = {
            let mut tuples = self.tuples.borrow_mut();
            if tuples.get(&key).is_none_or(|tuple| tuple.id != id) {
                return;
            }
            tuples.remove(&key)
        };
        let Some(TupleUse { state: State::Open(flow), .. }) = tuple else { return };
        if !flow.is_over() {
            // Its task has failed, and the container must not wait for it.
            self.reset_flow(&flow);
        }
        if let Some(ack) = flow.last_ack() {
            self.resting.borrow_mut().insert(self.context.clock.now(), key, ack);
        }
    }
}

/// Releases a tuple when the task that serves it ends, even by a panic.
pub(super) struct Release {
    pub(super) table: Rc<Table>,
    pub(super) key: FlowKey,
    pub(super) id: u64,
    pub(super) origin: OpenedBy,
}

/// The side that has opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenedBy {
    Container,
    /// A client of a published port. The statistics count it there.
    World,
}

impl Drop for Release {
    fn drop(&mut self) {
        match self.origin {
            OpenedBy::Container => self.table.context.counters.tcp.closed(),
            OpenedBy::World => {}
        }
        self.table.release(self.key, self.id);
    }
}

/// Whether an RST takes back a SYN: its sequence number is that of the SYN, or the next (RFC 9293, 3.5.3).
fn is_reset_of(syn: TcpSeqNumber, reset: &Segment) -> bool {
    reset.sequence == syn || reset.sequence == syn + 1
}

#[cfg(test)]
mod tests;
