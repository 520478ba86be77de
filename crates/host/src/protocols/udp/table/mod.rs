//! All mappings of one container and kind. The table finds the mapping of a datagram, and makes new ones within the
//! limits.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nsnet_stack::discard::Discard;
use nsnet_stack::flow::FlowKey;
use nsnet_stack::packet::Packet;
use nsnet_stack::udp::{Datagrams, Envelope, Run};
use tokio::task::AbortHandle;

use super::decide::Undecided;
use super::held::ByteBudget;
use super::kind::Kind;
use super::mapping::{Mapping, Verdict};
use crate::addressing::Destination;
use crate::context::Context;
use crate::dialer::{Flow, Service};
use crate::dns::{DnsTransport, NameServer};
use crate::statistics::FlowCounters;

/// The shortest time between two searches for idle peers when there is no room.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

/// The mappings of one kind that one container has.
pub(crate) struct Table {
    kind: Kind,
    pub(super) context: Rc<Context>,
    name_server: Rc<NameServer>,
    mappings: RefCell<HashMap<SocketAddr, Served>>,
    /// The number of peers of all mappings.
    peers: Cell<usize>,
    purged: Cell<Option<Instant>>,
    /// Flows that the Dialer is being asked about.
    pub(super) deciding: Cell<usize>,
    /// For datagrams that wait in all mappings.
    budget: ByteBudget,
    waiting: RefCell<Option<Waiting>>,
}

/// A mapping, and the task that serves it.
struct Served {
    mapping: Rc<Mapping>,
    task: Option<AbortHandle>,
}

/// Datagrams that leave at the end of the batch they were read in. Their bytes are in the thread's burst buffer.
struct Waiting {
    mapping: Rc<Mapping>,
    /// The header fields that the container has set on all of them.
    envelope: Envelope,
    target: SocketAddr,
    run: Run,
}

impl Waiting {
    /// Whether datagrams of this source and envelope may join.
    fn is_of(&self, source: SocketAddr, envelope: &Envelope) -> bool {
        self.mapping.source() == source && self.envelope == *envelope
    }
}

impl Table {
    pub(crate) fn new(kind: Kind, context: Rc<Context>, name_server: Rc<NameServer>) -> Rc<Self> {
        Rc::new(Self {
            kind,
            context,
            name_server,
            mappings: RefCell::default(),
            peers: Cell::new(0),
            purged: Cell::new(None),
            deciding: Cell::new(0),
            budget: ByteBudget::default(),
            waiting: RefCell::default(),
        })
    }

    /// Handles datagrams from the container. `packet` is the packet they came in. The datagrams may wait for
    /// [`flush`](Self::flush).
    pub(crate) fn handle(self: &Rc<Self>, packet: &Packet<'_>, datagrams: Datagrams<'_>) {
        let context = &self.context;
        let (key, envelope) = (packet.flow(), packet.envelope());
        if let Some(waiting) = self.waiting.borrow_mut().as_mut()
            && waiting.is_of(key.container, &envelope)
        {
            let start = waiting.run.length();
            if waiting.run.extend(datagrams) {
                let rest = &mut context.commons.burst()[start..];
                return rest[..datagrams.bytes().len()].copy_from_slice(datagrams.bytes());
            }
        }
        self.flush();
        let known = self.mappings.borrow().get(&key.container).map(|served| Rc::clone(&served.mapping));
        let Some(mapping) = known else {
            return self.admit(None, packet, datagrams);
        };
        let now = context.clock.now();
        let verdict = mapping.judge(now, &envelope, datagrams);
        if !matches!(verdict, Verdict::Unknown) {
            mapping.refresh(now, self.kind.idle_timeout(&context.limits, key.peer));
        }
        match verdict {
            Verdict::Unknown => self.admit(Some(mapping), packet, datagrams),
            Verdict::Wait => {}
            // A group of echo requests is split, because each has its own sequence number.
            Verdict::Send(target) if datagrams.count() > 1 || self.kind == Kind::Echo => {
                mapping.send(context, target, &envelope, datagrams);
            }
            Verdict::Send(target) => {
                let run = Run::new(datagrams);
                context.commons.burst()[..run.length()].copy_from_slice(datagrams.bytes());
                let waiting = Waiting { mapping, envelope, target, run };
                self.waiting.borrow_mut().replace(waiting);
            }
            Verdict::Resolve => {
                datagrams.iter().for_each(|query| self.resolve(key, Bytes::copy_from_slice(query)));
            }
        }
    }

    /// Sends the datagrams that wait for the end of the batch.
    pub(crate) fn flush(&self) {
        let Some(Waiting { mapping, envelope, target, run }) = self.waiting.borrow_mut().take() else {
            return;
        };
        let context = &self.context;
        mapping.send(context, target, &envelope, run.datagrams(&context.commons.burst()[..run.length()]));
    }

    /// Whether no datagram waits for a decision.
    pub(crate) fn is_settled(&self) -> bool {
        self.deciding.get() == 0
    }

    /// Forgets everything.
    pub(crate) fn close(&self) {
        let mappings = std::mem::take(&mut *self.mappings.borrow_mut());
        for served in mappings.into_values() {
            self.peers_gone(served.mapping.peer_count());
            if let Some(task) = served.task {
                task.abort();
            }
        }
    }

    /// Asks the Dialer about a new destination, within the limits.
    fn admit(self: &Rc<Self>, mapping: Option<Rc<Mapping>>, packet: &Packet<'_>, datagrams: Datagrams<'_>) {
        let (key, context) = (packet.flow(), &self.context);
        let (target, service) = match context.destination(self.kind.protocol(), key.peer) {
            Destination::Forward { target, service } => (target, service),
            Destination::Refuse(error) => {
                self.flows().refused();
                return context.send_unreachable(key, &error, packet.bytes);
            }
            Destination::Ignore => return context.counters.discarded(Discard::NotUnicast),
        };
        let is_open = mapping.as_ref().is_some_and(|mapping| mapping.is_open());
        let needs_socket = service != Service::Resolver && !is_open;
        let permit = match needs_socket.then(|| context.descriptors.take()) {
            Some(None) => return self.flows().overflowed(),
            permit => permit.flatten(),
        };
        let Some(mapping) = mapping.or_else(|| self.create(key.container)) else {
            return self.flows().overflowed();
        };
        if !self.has_room() {
            return self.flows().overflowed();
        }
        mapping.refresh(context.clock.now(), self.kind.idle_timeout(&context.limits, key.peer));
        mapping.ask(&packet.envelope(), datagrams);
        self.peers.set(self.peers.get() + 1);
        self.flows().opened();
        let flow = Flow {
            protocol: self.kind.protocol(),
            source: key.container,
            destination: key.peer,
            target,
            service,
        };
        let undecided = Undecided::new(Rc::clone(self), mapping, key);
        let place = context.lane.place();
        context.tasks.spawn(async move { place.begin(undecided.decide(flow, permit)).await });
    }

    fn create(self: &Rc<Self>, source: SocketAddr) -> Option<Rc<Mapping>> {
        let context = &self.context;
        if self.mappings.borrow().len() >= self.kind.mappings(&context.limits) {
            return None;
        }
        let mapping = Rc::new(Mapping::new(self.kind, source, context.clock.now(), self.budget.clone()));
        self.mappings.borrow_mut().insert(source, Served { mapping: Rc::clone(&mapping), task: None });
        let release = Release { table: Rc::clone(self), mapping: Rc::clone(&mapping) };
        let task = context.tasks.spawn(async move { release.mapping.run(&release.table.context).await });
        if let Some(served) = self.mappings.borrow_mut().get_mut(&source) {
            served.task = Some(task);
        }
        Some(mapping)
    }

    /// Whether one more peer fits. Forgets idle ones if that makes room.
    fn has_room(&self) -> bool {
        let limit = self.context.limits.udp_peers;
        if self.peers.get() < limit {
            return true;
        }
        let now = self.context.clock.now();
        if self.purged.get().is_none_or(|last| now.duration_since(last) >= PURGE_INTERVAL) {
            self.purged.set(Some(now));
            self.purge(now);
        }
        self.peers.get() < limit
    }

    /// Forgets the peers of all mappings that have not been written to for the idle timeout.
    fn purge(&self, now: Instant) {
        let Some(limit) = now.checked_sub(self.kind.idle_peers(&self.context.limits)) else { return };
        let forgotten =
            self.mappings.borrow().values().map(|served| served.mapping.forget_peers(limit)).sum();
        self.peers_gone(forgotten);
    }

    pub(super) fn peers_gone(&self, count: usize) {
        self.peers.set(self.peers.get() - count);
        for _ in 0..count {
            self.flows().closed();
        }
    }

    /// Called when a mapping's task has ended, normally or not.
    fn release(&self, mapping: &Rc<Mapping>) {
        if self.is_current(mapping) {
            self.mappings.borrow_mut().remove(&mapping.source());
            self.peers_gone(mapping.peer_count());
        }
    }

    pub(super) fn is_current(&self, mapping: &Rc<Mapping>) -> bool {
        let mappings = self.mappings.borrow();
        mappings.get(&mapping.source()).is_some_and(|served| Rc::ptr_eq(&served.mapping, mapping))
    }

    /// Returns the answer to a DNS query to the container.
    pub(super) fn resolve(&self, key: FlowKey, query: Bytes) {
        let (context, name_server) = (Rc::clone(&self.context), Rc::clone(&self.name_server));
        self.context.tasks.spawn(async move {
            if let Some(reply) = name_server.answer(&query, key.container, DnsTransport::Datagram).await {
                context.send_datagram(key.peer, key.container, reply.message(), reply.may_wait()).await;
            }
        });
    }

    pub(super) fn flows(&self) -> &FlowCounters {
        self.kind.flows(&self.context.counters)
    }
}

/// Removes a mapping when the task that serves it ends, even by a panic.
struct Release {
    table: Rc<Table>,
    mapping: Rc<Mapping>,
}

impl Drop for Release {
    fn drop(&mut self) {
        self.table.release(&self.mapping);
    }
}

#[cfg(test)]
mod tests;
