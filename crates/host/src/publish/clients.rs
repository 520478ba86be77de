//! The clients of published UDP ports, as one container's gateway knows them.
//!
//! A client is an address that has written to a port. It is found by that for what comes in, and by the tuple it has
//! inside for what goes out. What the container sends to somebody else from the same port goes its ordinary way
//! ([`crate::udp`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::appearance::ways;
use super::datagrams::Local;
use super::tcp::caller;
use super::udp::Port;
use crate::dialer::{Datagrams, DialError, Envelope, Inbound, Protocol};
use crate::gateway::Gateway;
use crate::link::Sent;
use crate::packet::FlowKey;
use crate::statistics::Counted;
use crate::udp::{Held, Letter, Run};

/// Most clients of one port.
pub(super) const MAX_CLIENTS: usize = 4096;

/// How long a client is remembered to which the container has never answered, as by a stateful firewall
/// (`nf_conntrack_udp_timeout`): they cost nothing to forge.
const UNANSWERED: Duration = Duration::from_secs(30);

/// The least time between two looks at all clients.
const PERIOD: Duration = Duration::from_millis(100);

/// Ports from which those who have none are given one.
const FIRST_PORT: u16 = 32_768;

#[derive(Default)]
pub(crate) struct Clients {
    /// By the port that they have written to. Its address is nobody else's as long as a client refers to it.
    by_client: RefCell<HashMap<(*const Port, SocketAddr), Rc<Client>>>,
    by_key: RefCell<HashMap<FlowKey, Rc<Client>>>,
    /// Whether an errand waits for the next to be forgotten.
    is_watched: Cell<bool>,
    /// Bytes of datagrams that wait for the Dialer.
    held: Rc<Cell<usize>>,
    handed_out: Cell<u16>,
    /// What leaves at the end of the batch that it was read in.
    waiting: RefCell<Option<Waiting>>,
}

/// Answers to one client, back to back.
struct Waiting {
    client: Rc<Client>,
    run: Run,
    bytes: Vec<u8>,
}

pub(super) struct Client {
    key: FlowKey,
    address: SocketAddr,
    local: Cell<Local>,
    port: Weak<Port>,
    standing: RefCell<Standing>,
    used: Cell<Instant>,
    is_answered: Cell<bool>,
    _counted: Counted,
}

enum Standing {
    /// The Dialer is deciding.
    Asking(Held),
    Allowed,
}

impl Client {
    pub(super) fn key(&self) -> FlowKey {
        self.key
    }

    /// Whether its port is still published.
    fn has_port(&self) -> bool {
        self.port.strong_count() > 0
    }

    fn is_asked_about(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Asking(_))
    }

    fn deadline(&self, idle: Duration) -> Instant {
        let patience = if self.is_answered.get() { idle } else { idle.min(UNANSWERED) };
        self.used.get() + patience
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(port) = self.port.upgrade() {
            port.clients.set(port.clients.get() - 1);
        }
    }
}

impl Waiting {
    fn send(&self) {
        let Some(port) = self.client.port.upgrade() else { return };
        let datagrams = self.run.datagrams(&self.bytes);
        if let Err(error) = port.socket.send(datagrams, self.client.address, &self.client.local.get()) {
            // Lost, as on any network.
            tracing::trace!(client = %self.client.address, %error, "answers of a published port are lost");
        }
    }
}

impl Clients {
    /// A port for a client that has none, another one each time.
    pub(super) fn next_port(&self) -> u16 {
        let offset = self.handed_out.get();
        self.handed_out.set((offset + 1) % FIRST_PORT);
        FIRST_PORT + offset
    }

    /// Notes datagrams of a client. Returns it if they may go into the container now.
    pub(super) fn hear(
        &self,
        gateway: &Rc<Gateway>,
        port: &Rc<Port>,
        address: SocketAddr,
        local: Local,
        datagrams: Datagrams<'_>,
    ) -> Option<Rc<Client>> {
        let client = match self.get(port, address) {
            Some(client) => client,
            None => self.admit(gateway, port, address, local)?,
        };
        client.used.set(gateway.clock.now());
        client.local.set(local);
        match &mut *client.standing.borrow_mut() {
            Standing::Allowed => {}
            Standing::Asking(held) => {
                let envelope = Envelope::new(client.key.source);
                datagrams.iter().for_each(|datagram| held.push(&envelope, datagram));
                return None;
            }
        }
        Some(client)
    }

    pub(super) fn get(&self, port: &Rc<Port>, address: SocketAddr) -> Option<Rc<Client>> {
        self.by_client.borrow().get(&(Rc::as_ptr(port), address)).cloned()
    }

    /// Sends datagrams of the container to the client they are for. Returns whether there is one. What it sends may
    /// wait for [`flush`](Self::flush).
    pub(crate) fn answer(&self, gateway: &Gateway, key: FlowKey, datagrams: Datagrams<'_>) -> bool {
        if let Some(waiting) = self.waiting.borrow_mut().as_mut().filter(|waiting| waiting.client.key == key)
            && waiting.run.extend(datagrams)
        {
            waiting.bytes.extend_from_slice(datagrams.bytes());
            return true;
        }
        self.flush();
        let client = self.by_key.borrow().get(&key).cloned();
        let is_served = |client: &Rc<Client>| client.has_port() && !client.is_asked_about();
        let Some(client) = client.filter(is_served) else { return false };
        client.used.set(gateway.clock.now());
        client.is_answered.set(true);
        let waiting = Waiting { client, run: Run::new(datagrams), bytes: datagrams.bytes().into() };
        if datagrams.count() > 1 {
            waiting.send();
        } else {
            self.waiting.replace(Some(waiting));
        }
        true
    }

    /// Sends what waits for the end of the batch.
    pub(crate) fn flush(&self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.send();
        }
    }

    /// Forgets everybody.
    pub(crate) fn close(&self) {
        self.waiting.take();
        self.by_client.borrow_mut().clear();
        self.by_key.borrow_mut().clear();
    }

    /// Makes a client known, and puts it to the Dialer.
    fn admit(
        &self,
        gateway: &Rc<Gateway>,
        port: &Rc<Port>,
        address: SocketAddr,
        local: Local,
    ) -> Option<Rc<Client>> {
        if port.clients.get() >= MAX_CLIENTS {
            gateway.counters.published.overflowed();
            return None;
        }
        let way = ways(&gateway.addressing, caller(gateway, Some(address)), port.target).next()?;
        let key = way.key(|key| self.by_key.borrow().get(key).is_none_or(|client| !client.has_port()))?;
        port.clients.set(port.clients.get() + 1);
        let client = Rc::new(Client {
            key,
            address,
            local: Cell::new(local),
            port: Rc::downgrade(port),
            standing: RefCell::new(Standing::Asking(Held::new(&self.held))),
            used: Cell::new(gateway.clock.now()),
            is_answered: Cell::new(false),
            _counted: Counted::published(&gateway.counters),
        });
        self.by_client.borrow_mut().insert((Rc::as_ptr(port), address), Rc::clone(&client));
        self.by_key.borrow_mut().insert(key, Rc::clone(&client));
        if !self.is_watched.replace(true) {
            gateway.spawn(watch(Rc::clone(gateway)));
        }
        let inbound = Inbound {
            protocol: Protocol::Udp,
            client: Some(address),
            listener: Some(SocketAddr::new(local.address(), port.socket.port())),
            container: key.source,
        };
        gateway.spawn(decide(Undecided { gateway: Rc::clone(gateway), client: Rc::clone(&client) }, inbound));
        Some(client)
    }

    fn forget(&self, client: &Rc<Client>) {
        // Another may have its tuple by now, if its port was closed.
        remove(&mut self.by_client.borrow_mut(), &(client.port.as_ptr(), client.address), client);
        remove(&mut self.by_key.borrow_mut(), &client.key, client);
    }

    /// Forgets those who have been silent for too long, and those whose port is closed. Returns when to look again.
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

/// Removes what a key stands for if it is this client.
fn remove<K: Eq + Hash>(clients: &mut HashMap<K, Rc<Client>>, key: &K, client: &Rc<Client>) {
    if clients.get(key).is_some_and(|other| Rc::ptr_eq(other, client)) {
        clients.remove(key);
    }
}

/// Forgets silent clients, until there is none left.
async fn watch(gateway: Rc<Gateway>) {
    let idle = gateway.limits.udp_idle_timeout;
    while let Some(deadline) = gateway.clients.expire(gateway.clock.now(), idle) {
        let deadline = deadline.max(gateway.clock.now() + PERIOD);
        tokio::time::sleep_until(deadline.into()).await;
    }
    gateway.clients.is_watched.set(false);
}

/// A client that is forgotten unless it is allowed, also when the Dialer panics.
struct Undecided {
    gateway: Rc<Gateway>,
    client: Rc<Client>,
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if self.client.is_asked_about() {
            self.gateway.clients.forget(&self.client);
        }
    }
}

/// Asks the Dialer about a client and acts on its answer.
async fn decide(undecided: Undecided, inbound: Inbound) {
    let Undecided { gateway, client } = &undecided;
    let asking = tokio::time::timeout(gateway.limits.dial_timeout, gateway.dialer.accept(&inbound));
    if let Err(error) = asking.await.unwrap_or(Err(DialError::TimedOut)) {
        tracing::debug!(%inbound, %error, "refused");
        return gateway.counters.published.refused();
    }
    let before = std::mem::replace(&mut *client.standing.borrow_mut(), Standing::Allowed);
    let Standing::Asking(held) = before else { return };
    for Letter { payload, .. } in held.letters() {
        let key = client.key;
        // With a full link they are lost.
        let (Sent::Done | Sent::Held(_)) =
            gateway.link.send_datagrams(key.destination, key.source, Datagrams::one(payload));
    }
}
