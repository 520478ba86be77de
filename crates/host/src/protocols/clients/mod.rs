//! The clients of published UDP ports, as one container's gateway knows them.
//!
//! A client is an address that has written to a port. Incoming datagrams find it by that address, and outgoing ones by
//! the tuple it has inside. Datagrams of the container from the same port to other addresses take their ordinary path
//! ([`crate::protocols::udp`]).
//!
//! An address costs nothing to forge, and a client of a name server asks one question. When a port has [as many clients
//! as it may have](crate::NetworkBuilder::max_published_udp_clients), the oldest that has not written again after an
//! answer makes room for the next.

mod appearance;
mod client;
mod decide;
mod port;
mod socket;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nsnet_stack::flow::FlowKey;
use nsnet_stack::udp::{Datagrams, Envelope, Run};

pub(crate) use appearance::{Caller, Way, ways};
pub(crate) use client::Client;
pub(crate) use port::{Answers, PublishedPort};
pub(crate) use socket::{Arrival, Local, Socket};

use client::Permission;
use decide::Undecided;

use crate::addressing::local::Reach;
use crate::context::Context;
use crate::dialer::{Inbound, Protocol};
use crate::protocols::udp::{ByteBudget, HeldDatagrams};
use crate::statistics::Counted;

/// The most clients still being decided on that are passed over when one has to make room.
const PASSED_OVER: usize = 8;

/// The shortest time between two looks at all clients.
const PERIOD: Duration = Duration::from_millis(100);

/// The most clients forgotten before other tasks get their turn.
const AT_ONCE: usize = 256;

/// The first of the ports for clients that have none.
const FIRST_PORT: u16 = 32_768;

/// The clients of published UDP ports that one container has.
pub(crate) struct Clients {
    pub(crate) context: Rc<Context>,
    /// By the published port and the client's address. The port's pointer stays unique while a client refers to it.
    by_client: RefCell<HashMap<(*const PublishedPort, SocketAddr), Rc<Client>>>,
    by_key: RefCell<HashMap<FlowKey, Rc<Client>>>,
    /// Whether a task waits to forget the next client.
    is_watched: Cell<bool>,
    /// For datagrams that wait for the Dialer.
    held: ByteBudget,
    /// For datagrams that wait for a full link: those of allowed clients, so that others cannot take their room.
    backlog: ByteBudget,
    /// For datagrams that may have to be sent again.
    kept: ByteBudget,
    handed_out: Cell<u16>,
    /// Datagrams that leave at the end of the batch they were read in.
    waiting: RefCell<Option<Waiting>>,
}

/// Answers to one client, back to back.
struct Waiting {
    client: Rc<Client>,
    run: Run,
    bytes: Vec<u8>,
}

impl Waiting {
    fn send(&self) {
        let Some(port) = self.client.port.upgrade() else { return };
        let datagrams = self.run.datagrams(&self.bytes);
        if let Err(error) = port.answers.send(datagrams, self.client.address, &self.client.local.get()) {
            // The answers are lost, as on any network.
            tracing::trace!(client = %self.client.address, %error, "answers of a published port are lost");
        }
    }
}

impl Clients {
    pub(crate) fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new(Self {
            context,
            by_client: RefCell::default(),
            by_key: RefCell::default(),
            is_watched: Cell::new(false),
            held: ByteBudget::default(),
            backlog: ByteBudget::default(),
            kept: ByteBudget::default(),
            handed_out: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    /// The origin of a client, as far as the container may know. If the kernel cannot be asked about the address, it
    /// counts as the host's. So does a forged address that reaches more than one machine.
    pub(crate) fn caller(&self, peer: Option<SocketAddr>) -> Caller {
        let Some(peer) = peer else { return Caller::Local(self.next_port()) };
        match self.context.reach(peer.ip()) {
            Ok(Reach::HostOwn | Reach::Broadcast | Reach::Multicast) | Err(_) => Caller::Host(peer),
            Ok(Reach::Remote | Reach::Unreachable) => Caller::Remote(peer),
        }
    }

    /// The budget for datagrams of clients that wait for a full link.
    pub(crate) fn budget(&self) -> &ByteBudget {
        &self.backlog
    }

    /// A port for a client that has none. Each call returns another one.
    fn next_port(&self) -> u16 {
        let offset = self.handed_out.get();
        self.handed_out.set((offset + 1) % FIRST_PORT);
        FIRST_PORT + offset
    }

    /// Records datagrams of a client. Returns it if they may go into the container now.
    pub(crate) fn hear(
        self: &Rc<Self>,
        port: &Rc<PublishedPort>,
        address: SocketAddr,
        local: Local,
        datagrams: Datagrams<'_>,
    ) -> Option<Rc<Client>> {
        let client = match self.get(port, address) {
            Some(client) => client,
            None => self.admit(port, address, local)?,
        };
        client.used.set(self.context.clock.now());
        client.local.set(local);
        if client.is_answered.get() {
            client.is_confirmed.set(true);
        }
        match &mut *client.permission.borrow_mut() {
            Permission::Allowed(_) => {}
            Permission::Asking(held) => {
                let envelope = Envelope::new(client.key().container);
                datagrams.iter().for_each(|datagram| held.push(&envelope, datagram));
                return None;
            }
        }
        Some(client)
    }

    pub(crate) fn get(&self, port: &Rc<PublishedPort>, address: SocketAddr) -> Option<Rc<Client>> {
        self.by_client.borrow().get(&(Rc::as_ptr(port), address)).cloned()
    }

    /// Sends datagrams of the container to their client. Returns whether there is one. The datagrams may wait for
    /// [`flush`](Self::flush).
    pub(crate) fn answer(&self, key: FlowKey, datagrams: Datagrams<'_>) -> bool {
        if let Some(waiting) =
            self.waiting.borrow_mut().as_mut().filter(|waiting| waiting.client.key() == key)
            && waiting.run.extend(datagrams)
        {
            waiting.bytes.extend_from_slice(datagrams.bytes());
            return true;
        }
        self.flush();
        let client = self.by_key.borrow().get(&key).cloned();
        let is_served = |client: &Rc<Client>| client.has_port() && !client.is_asked_about();
        let Some(client) = client.filter(is_served) else { return false };
        client.used.set(self.context.clock.now());
        if !client.is_answered.replace(true) {
            client.permission.replace(Permission::Allowed(None));
        }
        let waiting = Waiting { client, run: Run::new(datagrams), bytes: datagrams.bytes().into() };
        if datagrams.count() > 1 {
            waiting.send();
        } else {
            self.waiting.replace(Some(waiting));
        }
        true
    }

    /// Sends the datagrams that wait for the end of the batch.
    pub(crate) fn flush(&self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.send();
        }
    }

    /// Handles a refusal by the container for this tuple. A client that was never answered is tried by the other
    /// address family, with its first datagrams. Any other is forgotten, so that it begins anew.
    pub(crate) fn refuse(&self, key: FlowKey) {
        let client = self.by_key.borrow().get(&key).cloned();
        let is_refused = |client: &Rc<Client>| !client.is_asked_about() && !client.is_answered.get();
        let Some(client) = client.filter(is_refused) else { return };
        self.forget(&client);
        let Some(port) = client.port.upgrade() else { return };
        port.refused(key.container.ip(), self.context.clock.now());
        let next = client.way.get() + 1;
        let way = ways(&self.context.addressing, self.caller(Some(client.address)), port.target).nth(next);
        let Some(key) = way.and_then(|way| self.free_key(&way)) else {
            tracing::debug!(client = %client.address, "a client of a published port is refused inside");
            return self.context.counters.published.refused();
        };
        client.key.set(key);
        client.way.set(next);
        self.insert(&port, &client);
        if let Permission::Allowed(Some(kept)) = client.permission.replace(Permission::Allowed(None)) {
            client.send(&self.context.link, &kept);
        }
    }

    /// Forgets a few clients, because the container ends. Returns whether there were any.
    pub(crate) fn forget_some(&self) -> bool {
        let forgotten: Vec<_> = self.by_key.borrow_mut().extract_if(|_, _| true).take(AT_ONCE).collect();
        for (_, client) in &forgotten {
            remove(&mut self.by_client.borrow_mut(), &(client.port.as_ptr(), client.address), client);
        }
        !forgotten.is_empty()
    }

    /// Forgets all clients.
    pub(crate) fn close(&self) {
        self.waiting.take();
        self.by_client.borrow_mut().clear();
        self.by_key.borrow_mut().clear();
    }

    /// Adds a client and asks the Dialer about it.
    fn admit(
        self: &Rc<Self>,
        port: &Rc<PublishedPort>,
        address: SocketAddr,
        local: Local,
    ) -> Option<Rc<Client>> {
        let context = &self.context;
        let most = context.limits.published_udp_clients;
        if port.clients.get() >= most && !self.make_room(port) {
            context.counters.published.overflowed();
            return None;
        }
        let now = context.clock.now();
        let caller = self.caller(Some(address));
        let ways = || ways(&context.addressing, caller, port.target).enumerate();
        let is_promising = |(_, way): &(usize, Way)| !port.has_refused(way.container().ip(), now);
        let (number, way) = ways().find(is_promising).or_else(|| ways().next())?;
        let key = self.free_key(&way)?;
        port.clients.set(port.clients.get() + 1);
        let client = Rc::new(Client {
            key: Cell::new(key),
            way: Cell::new(number),
            address,
            local: Cell::new(local),
            port: Rc::downgrade(port),
            permission: RefCell::new(Permission::Asking(HeldDatagrams::new(&self.held))),
            used: Cell::new(now),
            is_answered: Cell::new(false),
            is_confirmed: Cell::new(false),
            _counted: Counted::published(&context.counters),
        });
        self.insert(port, &client);
        let mut passing = port.passing.borrow_mut();
        if passing.len() >= most.saturating_mul(2) {
            passing.retain(|client| client.upgrade().is_some_and(|client| !client.is_confirmed.get()));
        }
        passing.push_back(Rc::downgrade(&client));
        if !self.is_watched.replace(true) {
            context.tasks.spawn(watch(Rc::clone(self)));
        }
        let inbound = Inbound {
            protocol: Protocol::Udp,
            client: Some(address),
            listener: Some(SocketAddr::new(local.address(), port.answers.port())),
            container: key.container,
        };
        let undecided = Undecided { clients: Rc::clone(self), client: Rc::clone(&client) };
        context.tasks.spawn(undecided.decide(inbound));
        Some(client)
    }

    fn insert(&self, port: &Rc<PublishedPort>, client: &Rc<Client>) {
        self.by_client.borrow_mut().insert((Rc::as_ptr(port), client.address), Rc::clone(client));
        self.by_key.borrow_mut().insert(client.key(), Rc::clone(client));
    }

    /// A tuple that no client of a still published port has.
    fn free_key(&self, way: &Way) -> Option<FlowKey> {
        way.key(|key| self.by_key.borrow().get(key).is_none_or(|client| !client.has_port()))
    }

    /// Forgets the oldest client of a port that has not written again after an answer. It has had its one answer, like
    /// a DNS client, or its address is forged. Returns whether there was one.
    fn make_room(&self, port: &PublishedPort) -> bool {
        let mut passed_over = 0;
        while passed_over < PASSED_OVER {
            let Some(oldest) = port.passing.borrow_mut().pop_front() else { return false };
            match oldest.upgrade() {
                // Its task would go on.
                Some(client) if client.is_asked_about() => {
                    port.passing.borrow_mut().push_back(oldest);
                    passed_over += 1;
                }
                Some(client) if !client.is_confirmed.get() && self.is_known(&client) => {
                    self.forget(&client);
                    return true;
                }
                Some(_) | None => {}
            }
        }
        false
    }

    /// Whether a client belongs to this container and has not been forgotten.
    fn is_known(&self, client: &Rc<Client>) -> bool {
        self.by_key.borrow().get(&client.key()).is_some_and(|other| Rc::ptr_eq(other, client))
    }

    /// A copy of the client's first datagrams, if there is room for it.
    fn keep(&self, held: &HeldDatagrams) -> Option<HeldDatagrams> {
        let kept = held.copy(&self.kept);
        (!kept.letters().is_empty()).then_some(kept)
    }

    fn forget(&self, client: &Rc<Client>) {
        // If its port was closed, another client may have its tuple by now.
        remove(&mut self.by_client.borrow_mut(), &(client.port.as_ptr(), client.address), client);
        remove(&mut self.by_key.borrow_mut(), &client.key(), client);
    }

    /// Forgets clients that have been silent for too long, and those of closed ports. Returns when to look again.
    fn expire(&self, now: Instant, idle: Duration) -> Option<Instant> {
        let lives = |client: &Rc<Client>| {
            // A decision has a deadline of its own.
            client.has_port() && (client.is_asked_about() || client.deadline(idle) > now)
        };
        self.by_client.borrow_mut().retain(|_, client| lives(client));
        self.by_key.borrow_mut().retain(|_, client| lives(client));
        self.by_key.borrow().values().map(|client| client.deadline(idle)).min()
    }
}

/// Removes an entry if it refers to this client.
fn remove<K: Eq + Hash>(clients: &mut HashMap<K, Rc<Client>>, key: &K, client: &Rc<Client>) {
    if clients.get(key).is_some_and(|other| Rc::ptr_eq(other, client)) {
        clients.remove(key);
    }
}

/// Forgets silent clients until none is left.
async fn watch(clients: Rc<Clients>) {
    let Context { clock, limits, .. } = &*clients.context;
    while let Some(deadline) = clients.expire(clock.now(), limits.udp_idle_timeout) {
        let deadline = deadline.max(clock.now() + PERIOD);
        tokio::time::sleep_until(deadline.into()).await;
    }
    clients.is_watched.set(false);
}

#[cfg(test)]
mod tests;
