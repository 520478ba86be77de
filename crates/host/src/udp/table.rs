//! All mappings of one container and kind: finds the mapping of a datagram, asks the Dialer about new destinations.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::AbortHandle;

use super::kind::Kind;
use super::mapping::{Held, Letter, Mapping, Peer, Verdict};
use super::run::Run;
use crate::addressing::Destination;
use crate::dialer::{Datagrams, DialError, Envelope, Flow, Service};
use crate::dns::Transport;
use crate::gateway::Gateway;
use crate::packet::{FlowKey, Packet};

/// How often idle peers are looked for when there is no room.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);

type Entry = (Rc<Mapping>, Option<AbortHandle>);

pub(crate) struct Table {
    kind: Kind,
    mappings: RefCell<HashMap<SocketAddr, Entry>>,
    /// Peers of all mappings.
    peers: Cell<usize>,
    purged: Cell<Option<Instant>>,
    /// Flows that the Dialer is being asked about.
    deciding: Cell<usize>,
    /// Bytes of datagrams that wait for the Dialer's decision.
    held: Rc<Cell<usize>>,
    waiting: RefCell<Option<Waiting>>,
}

/// Datagrams that leave at the end of the batch they were read in; their bytes are in the thread's burst buffer.
struct Waiting {
    mapping: Rc<Mapping>,
    /// What the container has written on all of them.
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
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            mappings: RefCell::default(),
            peers: Cell::new(0),
            purged: Cell::new(None),
            deciding: Cell::new(0),
            held: Rc::default(),
            waiting: RefCell::default(),
        }
    }

    /// Takes in datagrams from the container; `packet` is what they came in. What it sends of them may wait for
    /// [`flush`](Self::flush).
    pub(crate) fn handle(&self, gateway: &Rc<Gateway>, packet: &Packet<'_>, datagrams: Datagrams<'_>) {
        let (key, envelope) = (packet.key, packet.envelope());
        if let Some(waiting) = self.waiting.borrow_mut().as_mut()
            && waiting.is_of(key.source, &envelope)
            && waiting.run.extend(datagrams)
        {
            return gateway.commons.burst().extend_from_slice(datagrams.bytes());
        }
        self.flush(gateway);
        let known = self.mappings.borrow().get(&key.source).map(|(mapping, _)| Rc::clone(mapping));
        let Some(mapping) = known else {
            return self.admit(gateway, None, packet, datagrams);
        };
        let now = gateway.clock.now();
        let verdict = mapping.judge(now, &envelope, datagrams);
        if !matches!(verdict, Verdict::Unknown) {
            mapping.refresh(now, self.kind.idle_timeout(&gateway.limits, key.destination));
        }
        match verdict {
            Verdict::Unknown => self.admit(gateway, Some(mapping), packet, datagrams),
            Verdict::Wait => {}
            // Of echo requests only each alone has a sequence number in its place.
            Verdict::Send(target) if datagrams.count() > 1 || self.kind == Kind::Echo => {
                mapping.send(gateway, target, &envelope, datagrams);
            }
            Verdict::Send(target) => {
                let mut burst = gateway.commons.burst();
                burst.clear();
                burst.extend_from_slice(datagrams.bytes());
                let waiting = Waiting { mapping, envelope, target, run: Run::new(datagrams) };
                self.waiting.borrow_mut().replace(waiting);
            }
            Verdict::Resolve => {
                datagrams.iter().for_each(|query| resolve(gateway, key, Bytes::copy_from_slice(query)));
            }
        }
    }

    /// Sends what waits for the end of the batch.
    pub(crate) fn flush(&self, gateway: &Gateway) {
        let Some(Waiting { mapping, envelope, target, run }) = self.waiting.borrow_mut().take() else {
            return;
        };
        mapping.send(gateway, target, &envelope, run.datagrams(&gateway.commons.burst()));
    }

    /// Whether no datagram waits for a decision.
    pub(crate) fn is_settled(&self) -> bool {
        self.deciding.get() == 0
    }

    /// Forgets everything.
    pub(crate) fn close(&self, gateway: &Gateway) {
        let mappings = std::mem::take(&mut *self.mappings.borrow_mut());
        for (mapping, task) in mappings.into_values() {
            self.peers_gone(gateway, mapping.peer_count());
            if let Some(task) = task {
                task.abort();
            }
        }
    }

    /// Puts a new destination to the Dialer, within the limits.
    fn admit(
        &self,
        gateway: &Rc<Gateway>,
        mapping: Option<Rc<Mapping>>,
        packet: &Packet<'_>,
        datagrams: Datagrams<'_>,
    ) {
        let key = packet.key;
        let (target, service) = match gateway.destination(self.kind.protocol(), key.destination) {
            Destination::Forward { target, service } => (target, service),
            Destination::Refuse(error) => {
                self.kind.flows(gateway).refused();
                return gateway.send_unreachable(key, &error, packet.bytes);
            }
            Destination::Ignore => return gateway.counters.discarded(crate::packet::Discard::NotUnicast),
        };
        let Some(mapping) = mapping.or_else(|| self.create(gateway, key.source)) else {
            return self.kind.flows(gateway).overflowed();
        };
        if !self.has_room(gateway) {
            return self.kind.flows(gateway).overflowed();
        }
        mapping.refresh(gateway.clock.now(), self.kind.idle_timeout(&gateway.limits, key.destination));
        mapping.ask(&packet.envelope(), datagrams);
        self.peers.set(self.peers.get() + 1);
        self.kind.flows(gateway).opened();
        let flow = Flow {
            protocol: self.kind.protocol(),
            source: key.source,
            destination: key.destination,
            target,
            service,
        };
        let gateway = Rc::clone(gateway);
        let deciding = Deciding::new(self.kind, &gateway);
        gateway.spawn(async move { decide(&deciding.gateway, &mapping, key, &flow).await });
    }

    fn create(&self, gateway: &Rc<Gateway>, source: SocketAddr) -> Option<Rc<Mapping>> {
        if self.mappings.borrow().len() >= self.kind.mappings(&gateway.limits) {
            return None;
        }
        let mapping = Rc::new(Mapping::new(self.kind, source, gateway.clock.now(), Rc::clone(&self.held)));
        self.mappings.borrow_mut().insert(source, (Rc::clone(&mapping), None));
        let lease = Lease { gateway: Rc::clone(gateway), mapping: Rc::clone(&mapping) };
        let task = gateway.spawn(async move { lease.mapping.run(&lease.gateway).await });
        if let Some((_, handle)) = self.mappings.borrow_mut().get_mut(&source) {
            *handle = Some(task);
        }
        Some(mapping)
    }

    /// Whether one more peer fits; forgets idle ones if that makes room.
    fn has_room(&self, gateway: &Gateway) -> bool {
        if self.peers.get() < gateway.limits.udp_peers {
            return true;
        }
        let now = gateway.clock.now();
        if self.purged.get().is_none_or(|last| now.duration_since(last) >= PURGE_INTERVAL) {
            self.purged.set(Some(now));
            self.purge(gateway, now);
        }
        self.peers.get() < gateway.limits.udp_peers
    }

    /// Forgets the peers of all mappings that have not been written to for the idle timeout.
    fn purge(&self, gateway: &Gateway, now: Instant) {
        let Some(limit) = now.checked_sub(self.kind.idle_peers(&gateway.limits)) else { return };
        let forgotten = self.mappings.borrow().values().map(|(mapping, _)| mapping.forget_peers(limit)).sum();
        self.peers_gone(gateway, forgotten);
    }

    fn peers_gone(&self, gateway: &Gateway, count: usize) {
        self.peers.set(self.peers.get() - count);
        for _ in 0..count {
            self.kind.flows(gateway).closed();
        }
    }

    /// Called when a mapping's task has ended in whatever way.
    fn release(&self, gateway: &Gateway, mapping: &Rc<Mapping>) {
        let mut mappings = self.mappings.borrow_mut();
        if mappings.get(&mapping.source()).is_some_and(|(current, _)| Rc::ptr_eq(current, mapping)) {
            mappings.remove(&mapping.source());
            self.peers_gone(gateway, mapping.peer_count());
        }
    }

    fn is_current(&self, mapping: &Rc<Mapping>) -> bool {
        let mappings = self.mappings.borrow();
        mappings.get(&mapping.source()).is_some_and(|(current, _)| Rc::ptr_eq(current, mapping))
    }
}

/// Removes a mapping when the task that serves it ends, a panic included.
struct Lease {
    gateway: Rc<Gateway>,
    mapping: Rc<Mapping>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.mapping.kind().table(&self.gateway).release(&self.gateway, &self.mapping);
    }
}

/// Asks the Dialer about a flow and acts on its answer.
async fn decide(gateway: &Rc<Gateway>, mapping: &Rc<Mapping>, key: FlowKey, flow: &Flow) {
    let mut undecided = Undecided { gateway, mapping, peer: key.destination, decided: false };
    let asking = async {
        gateway.dialer.authorize(flow).await?;
        if flow.service != Service::Resolver {
            mapping.open(gateway).await?;
        }
        Ok(())
    };
    let answer =
        tokio::time::timeout(gateway.limits.dial_timeout, asking).await.unwrap_or(Err(DialError::TimedOut));
    let kind = mapping.kind();
    if !kind.table(gateway).is_current(mapping) {
        undecided.decided = true;
        return;
    }
    match answer {
        Err(error) => {
            tracing::debug!(%flow, %error, "refused");
            kind.flows(gateway).refused();
            gateway.warn_of(&error, key.destination);
            let held = undecided.forget();
            if let Some(reason) = error.unreachable() {
                for Letter { payload, .. } in held.letters().iter().take(kind.errors_at_once()) {
                    let quoted = kind.quote(key.source, key.destination, payload);
                    gateway.report(key, reason.into(), &quoted);
                }
            }
        }
        Ok(()) => {
            undecided.decided = true;
            let peer = match flow.service {
                Service::Resolver => Peer::Resolver,
                Service::World | Service::HostLoopback | Service::HostAddress | Service::Container => {
                    Peer::Allowed { target: flow.target, used: gateway.clock.now() }
                }
            };
            for Letter { envelope, payload } in mapping.answer(key.destination, Some(peer)).letters() {
                match flow.service {
                    Service::Resolver => resolve(gateway, key, payload.clone()),
                    Service::World | Service::HostLoopback | Service::HostAddress | Service::Container => {
                        mapping.send(gateway, flow.target, envelope, Datagrams::one(payload));
                    }
                }
            }
        }
    }
}

/// Counts a decision while it is under way.
struct Deciding {
    kind: Kind,
    gateway: Rc<Gateway>,
}

impl Deciding {
    fn new(kind: Kind, gateway: &Rc<Gateway>) -> Self {
        let deciding = &kind.table(gateway).deciding;
        deciding.set(deciding.get() + 1);
        Self { kind, gateway: Rc::clone(gateway) }
    }
}

impl Drop for Deciding {
    fn drop(&mut self) {
        let deciding = &self.kind.table(&self.gateway).deciding;
        deciding.set(deciding.get() - 1);
        self.gateway.progress.notify_one();
    }
}

/// Forgets a peer that was not allowed, also when the Dialer panics.
struct Undecided<'a> {
    gateway: &'a Gateway,
    mapping: &'a Rc<Mapping>,
    peer: SocketAddr,
    decided: bool,
}

impl Undecided<'_> {
    /// Forgets the peer and returns the datagrams that waited for the decision.
    fn forget(&mut self) -> Held {
        self.decided = true;
        self.mapping.kind().table(self.gateway).peers_gone(self.gateway, 1);
        self.mapping.answer(self.peer, None)
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if !self.decided && self.mapping.kind().table(self.gateway).is_current(self.mapping) {
            self.forget();
        }
    }
}

/// Returns the answer to a DNS query to the container.
fn resolve(gateway: &Rc<Gateway>, key: FlowKey, query: Bytes) {
    let asked = Rc::clone(gateway);
    gateway.spawn(async move {
        if let Some(reply) = asked.resolver.answer(&query, key.source, Transport::Datagram).await {
            asked.send_datagram(key.destination, key.source, reply.message(), reply.may_wait()).await;
        }
    });
}
