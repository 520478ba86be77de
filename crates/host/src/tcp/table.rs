//! All TCP connections of one container: finds the flow of a segment, dials for a SYN, cleans up after a flow.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;
use tokio::task::AbortHandle;

use super::bare;
use super::flow::Flow;
use super::relay::relay;
use super::resting::Resting;
use super::rings::{Budget, Rings};
use super::sockets::RingSocket;
use super::stack::TcpStack;
use super::warm::Warm;
use crate::addressing::Destination;
use crate::dialer::{self, DialError, Protocol, Service, Stream};
use crate::gateway::Gateway;
use crate::packet::{Control, FlowKey, Segment};

/// How long the end of a network waits for a container that does not read its resets.
const RESET_PATIENCE: Duration = Duration::from_millis(500);

/// Longest packet with a SYN that is dialled for, in bytes: every option there is, twice over.
const MAX_SYN: usize = 256;

pub(crate) struct Table {
    pub(super) entries: RefCell<HashMap<FlowKey, Entry>>,
    pub(super) resting: RefCell<Resting>,
    /// Flows that deliver their last bytes while another uses their tuple.
    replaced: RefCell<HashSet<u64>>,
    pub(super) budget: Rc<Budget>,
    /// Connections whose rings may hold memory.
    warm: Warm,
    /// Keyed anew for every table, so that what it hashes to cannot be guessed: seeds for sequence numbers.
    pub(super) seeds: RandomState,
    opened: Cell<u64>,
    /// Connections from outside that are on their way to being opened.
    pub(super) reserved: Cell<usize>,
}

/// A tuple in use.
pub(super) struct Entry {
    /// Tells this use of the tuple from an earlier one whose task has yet to end.
    pub(super) id: u64,
    pub(super) task: Option<AbortHandle>,
    pub(super) state: State,
}

pub(super) enum State {
    /// The Dialer is at work; the SYN is held.
    Dialing {
        syn: Segment,
        packet: Box<[u8]>,
    },
    Open(Rc<Flow>),
}

impl Entry {
    /// Whether the stream may yet be owed something that the container has sent, or is going to send.
    fn is_owed(&self) -> bool {
        match &self.state {
            State::Open(flow) => !flow.is_delivered(),
            State::Dialing { .. } => false,
        }
    }
}

/// The open connection of a tuple.
pub(super) fn find_open<S: BuildHasher>(
    entries: &HashMap<FlowKey, Entry, S>,
    key: &FlowKey,
) -> Option<Rc<Flow>> {
    match entries.get(key).map(|entry| &entry.state) {
        Some(State::Open(flow)) => Some(Rc::clone(flow)),
        Some(State::Dialing { .. }) | None => None,
    }
}

impl Table {
    /// For a container, or one of its queues, whose rings may use `ring_memory` bytes together.
    pub(crate) fn new(ring_memory: usize) -> Self {
        Self {
            entries: RefCell::default(),
            resting: RefCell::default(),
            replaced: RefCell::default(),
            budget: Rc::new(Budget::new(ring_memory)),
            warm: Warm::default(),
            seeds: RandomState::new(),
            opened: Cell::new(0),
            reserved: Cell::new(0),
        }
    }

    /// Takes in a segment from the container.
    pub(crate) fn handle(&self, gateway: &Rc<Gateway>, key: FlowKey, segment: &Segment, packet: &[u8]) {
        let open = find_open(&self.entries.borrow(), &key);
        match open {
            // The container is done with this connection, while its stream is still owed bytes, and opens another.
            Some(flow) if segment.control == Control::Open && flow.is_over() => {
                if let Some(entry) = self.entries.borrow_mut().remove(&key) {
                    self.replaced.borrow_mut().insert(entry.id);
                }
                self.handle_syn(gateway, key, segment, packet);
            }
            Some(flow) => self.feed(gateway, key, &flow, segment, packet),
            None if segment.control == Control::Open => self.handle_syn(gateway, key, segment, packet),
            None => self.handle_stray(gateway, key, segment, packet),
        }
    }

    /// Whether a segment of this tuple has to do with something here.
    pub(crate) fn knows(&self, key: &FlowKey) -> bool {
        self.entries.borrow().contains_key(key) || self.resting.borrow().contains(key)
    }

    /// Ends all flows; their streams are aborted unless they have everything.
    pub(crate) fn close(&self, gateway: &Gateway) {
        let entries = std::mem::take(&mut *self.entries.borrow_mut());
        for entry in entries.into_values() {
            if let State::Open(flow) = entry.state {
                flow.reset(&gateway.clock, &gateway.link);
            }
            if let Some(task) = entry.task {
                task.abort();
            }
        }
    }

    /// Leaves to themselves the flows that the container has ended, breaks the others off: its end of the link is
    /// gone.
    pub(crate) fn orphan(&self) {
        let broken: Vec<FlowKey> = {
            let entries = self.entries.borrow();
            let is_broken = |entry: &Entry| match &entry.state {
                State::Open(flow) => !flow.orphan(),
                State::Dialing { .. } => true,
            };
            entries.iter().filter(|(_, entry)| is_broken(entry)).map(|(key, _)| *key).collect()
        };
        for key in broken {
            self.cancel(&key);
        }
    }

    /// Whether every stream has what the container sent it.
    pub(crate) fn is_delivered(&self) -> bool {
        self.replaced.borrow().is_empty() && !self.entries.borrow().values().any(Entry::is_owed)
    }

    /// How many streams may yet be owed something.
    pub(crate) fn undelivered(&self) -> usize {
        let owed = self.entries.borrow().values().filter(|entry| entry.is_owed()).count();
        self.replaced.borrow().len() + owed
    }

    /// Resets every open connection towards the container, and waits a little for a link that is full.
    pub(crate) async fn reset(&self, gateway: &Gateway) {
        let open = |entry: &Entry| match &entry.state {
            State::Open(flow) => Some(Rc::clone(flow)),
            State::Dialing { .. } => None,
        };
        let flows: Vec<Rc<Flow>> = self.entries.borrow().values().filter_map(open).collect();
        for flow in &flows {
            flow.reset(&gateway.clock, &gateway.link);
        }
        let retries = async {
            for flow in &flows {
                while flow.is_blocked() && gateway.link.writable().await.is_ok() {
                    flow.retry(&gateway.link);
                }
            }
        };
        if tokio::time::timeout(RESET_PATIENCE, retries).await.is_err() {
            tracing::debug!("the container does not read: some of its connections were not reset");
        }
    }

    pub(super) fn warm(&self) -> &Warm {
        &self.warm
    }

    pub(super) fn len(&self) -> usize {
        self.entries.borrow().len() + self.replaced.borrow().len() + self.reserved.get()
    }

    /// Tells this use of a tuple from all others.
    pub(super) fn next_id(&self) -> u64 {
        let id = self.opened.get();
        self.opened.set(id + 1);
        id
    }

    fn feed(&self, gateway: &Rc<Gateway>, key: FlowKey, flow: &Rc<Flow>, segment: &Segment, packet: &[u8]) {
        if flow.warm() {
            self.warm.insert(gateway, flow);
        }
        let fed = catch_unwind(AssertUnwindSafe(|| {
            flow.handle_packet(&gateway.clock, &gateway.link, segment, packet);
        }));
        if fed.is_err() {
            // The panic has been reported by the panic hook. It ends this flow and no other.
            tracing::error!(%key.source, %key.destination, "a TCP flow failed on a segment and was dropped");
            flow.reset(&gateway.clock, &gateway.link);
            self.cancel(&key);
        }
    }

    fn handle_syn(&self, gateway: &Rc<Gateway>, key: FlowKey, syn: &Segment, packet: &[u8]) {
        let held = match self.entries.borrow().get(&key).map(|entry| &entry.state) {
            Some(State::Dialing { syn, .. }) => Some(syn.sequence),
            Some(State::Open(_)) | None => None,
        };
        match held {
            Some(sequence) if sequence == syn.sequence => {}
            Some(_) => {
                self.cancel(&key);
                self.start(gateway, key, syn, packet);
            }
            None => {
                self.resting.borrow_mut().remove(&key);
                self.start(gateway, key, syn, packet);
            }
        }
    }

    /// A segment that opens nothing and belongs to no open connection.
    fn handle_stray(&self, gateway: &Gateway, key: FlowKey, segment: &Segment, packet: &[u8]) {
        let dialing = match self.entries.borrow().get(&key).map(|entry| &entry.state) {
            Some(State::Dialing { syn, .. }) => Some(syn.sequence),
            Some(State::Open(_)) | None => None,
        };
        if let Some(sequence) = dialing {
            // From SYN-SENT the container can take only its SYN back.
            if segment.control == Control::Reset && is_reset_of(sequence, segment) {
                self.cancel(&key);
            }
            return;
        }
        if self.resting.borrow().contains(&key) || !gateway.send_round(packet) {
            self.answer_stray(gateway, key, segment);
        }
    }

    /// Answers a segment that belongs to no connection of the container.
    pub(crate) fn answer_stray(&self, gateway: &Gateway, key: FlowKey, segment: &Segment) {
        if segment.control == Control::Reset {
            self.resting.borrow_mut().remove(&key);
            return;
        }
        let answer = match self.resting.borrow_mut().get(gateway.clock.now(), &key) {
            Some(ack) => bare::acknowledgment(key, ack.sequence, ack.expected),
            None => bare::reset_for(key, segment),
        };
        gateway.send(&answer);
    }

    fn start(&self, gateway: &Rc<Gateway>, key: FlowKey, syn: &Segment, packet: &[u8]) {
        let (target, service) = match gateway.destination(Protocol::Tcp, key.destination) {
            Destination::Forward { target, service } => (target, service),
            Destination::Refuse(error) => return refuse(gateway, key, syn, packet, &error),
            Destination::Ignore => return gateway.counters.discarded(crate::packet::Discard::NotUnicast),
        };
        // A SYN that brings data along would be held with it; without an answer it comes again without (RFC 7413, 4.1.3).
        if packet.len() > MAX_SYN || self.len() >= gateway.limits.tcp_flows {
            return gateway.counters.tcp.overflowed();
        }
        let flow = dialer::Flow {
            protocol: Protocol::Tcp,
            source: key.source,
            destination: key.destination,
            target,
            service,
        };
        let id = self.next_id();
        let state = State::Dialing { syn: *syn, packet: packet.into() };
        self.entries.borrow_mut().insert(key, Entry { id, task: None, state });
        gateway.counters.tcp.opened();
        let lease = Lease { gateway: Rc::clone(gateway), key, id, origin: Origin::Container };
        let task = gateway.spawn(run(lease, flow));
        if let Some(entry) = self.entries.borrow_mut().get_mut(&key).filter(|entry| entry.id == id) {
            entry.task = Some(task);
        }
    }

    /// Takes the held SYN of a dial that has ended.
    fn take_syn(&self, key: &FlowKey, id: u64) -> Option<(Segment, Box<[u8]>)> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key).filter(|entry| entry.id == id)?;
        match &mut entry.state {
            State::Dialing { syn, packet } => Some((*syn, std::mem::take(packet))),
            State::Open(_) => None,
        }
    }

    /// Opens the connection of a dial that succeeded: only now does the container get its SYN-ACK.
    fn open(&self, gateway: &Gateway, key: FlowKey, id: u64) -> Option<Rc<Flow>> {
        let (syn, packet) = self.take_syn(&key, id)?;
        let RingSocket { socket, pages } = match gateway.commons.sockets().take() {
            Ok(socket) => socket,
            Err(errno) => {
                refuse(gateway, key, &syn, &packet, &DialError::Other(errno.into()));
                return None;
            }
        };
        let now = gateway.clock.now();
        let stack = TcpStack::listen(
            key,
            socket,
            gateway.link.tcp_capabilities(key.destination.ip()),
            self.seeds.hash_one((key, id)),
            gateway.clock.smoltcp(now),
        );
        let rings = Rings::new(pages, syn.sequence + 1, Rc::clone(&self.budget));
        let flow = Rc::new(Flow::new(key, &syn, stack, rings, Rc::clone(&gateway.commons), now));
        flow.handle_packet(&gateway.clock, &gateway.link, &syn, &packet);
        if flow.is_listening() {
            // Packets are checked before, so this is a disagreement with smoltcp over what a SYN is.
            tracing::warn!(%key.source, %key.destination, "a SYN was refused by the TCP stack");
            gateway.send(&bare::reset_for(key, &syn));
            return None;
        }
        if let Some(entry) = self.entries.borrow_mut().get_mut(&key) {
            entry.state = State::Open(Rc::clone(&flow));
        }
        Some(flow)
    }

    /// Drops a flow without a word to the container.
    fn cancel(&self, key: &FlowKey) {
        let Some(entry) = self.entries.borrow_mut().remove(key) else { return };
        if let Some(task) = entry.task {
            task.abort();
        }
    }

    /// Called when a flow's task has ended in whatever way.
    fn release(&self, gateway: &Gateway, key: FlowKey, id: u64) {
        gateway.progress.notify_one();
        if self.replaced.borrow_mut().remove(&id) {
            return;
        }
        let entry = {
            let mut entries = self.entries.borrow_mut();
            if entries.get(&key).is_none_or(|entry| entry.id != id) {
                return;
            }
            entries.remove(&key)
        };
        let Some(Entry { state: State::Open(flow), .. }) = entry else { return };
        if !flow.is_over() {
            // Its task has failed: the container must not wait for it.
            flow.reset(&gateway.clock, &gateway.link);
        }
        if let Some(ack) = flow.last_ack() {
            self.resting.borrow_mut().insert(gateway.clock.now(), key, ack);
        }
    }
}

/// Releases a tuple when the task that serves it ends, a panic included.
pub(super) struct Lease {
    pub(super) gateway: Rc<Gateway>,
    pub(super) key: FlowKey,
    pub(super) id: u64,
    pub(super) origin: Origin,
}

/// Who has opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Container,
    /// A client of a published port, where such connections are counted.
    World,
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.origin {
            Origin::Container => self.gateway.counters.tcp.closed(),
            Origin::World => {}
        }
        self.gateway.tcp.release(&self.gateway, self.key, self.id);
    }
}

/// The task of a flow: dial, open, relay.
async fn run(lease: Lease, flow: dialer::Flow) {
    let gateway = &*lease.gateway;
    match dial(gateway, &flow).await {
        Ok(stream) => {
            let Some(open) = gateway.tcp.open(gateway, lease.key, lease.id) else { return };
            relay(open, gateway, stream).await;
        }
        Err(error) => {
            tracing::debug!(%flow, %error, "refused");
            if let Some((syn, packet)) = gateway.tcp.take_syn(&lease.key, lease.id) {
                refuse(gateway, lease.key, &syn, &packet, &error);
            }
        }
    }
}

async fn dial(gateway: &Gateway, flow: &dialer::Flow) -> Result<Stream, DialError> {
    let dialing = async {
        gateway.dialer.authorize(flow).await?;
        match flow.service {
            Service::Resolver => {
                let (stream, work) = gateway.resolver.stream(flow.source).ok_or(DialError::Refused)?;
                gateway.spawn(work);
                Ok(Stream::new(stream))
            }
            Service::World | Service::HostLoopback | Service::HostAddress | Service::Container => {
                gateway.dialer.dial_tcp(flow).await
            }
        }
    };
    tokio::time::timeout(gateway.limits.dial_timeout, dialing).await.unwrap_or(Err(DialError::TimedOut))
}

fn refuse(gateway: &Gateway, key: FlowKey, syn: &Segment, packet: &[u8], error: &DialError) {
    gateway.counters.tcp.refused();
    match error {
        DialError::Refused => gateway.send(&bare::reset_for(key, syn)),
        DialError::HostUnreachable
        | DialError::NetworkUnreachable
        | DialError::Prohibited
        | DialError::TimedOut
        | DialError::Other(_) => gateway.send_unreachable(key, error, packet),
    }
}

/// Whether an RST takes back a SYN: it sits at the SYN or right behind it (RFC 9293, 3.5.3).
fn is_reset_of(syn: TcpSeqNumber, reset: &Segment) -> bool {
    reset.sequence == syn || reset.sequence == syn + 1
}
