//! One mapping: an upstream socket and the peers that may answer through it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OnceCell};

use crate::dialer::{DatagramSocket, DialError, Received, Source, Unreachable};
use crate::gateway::Gateway;
use crate::icmp;
use crate::link::Sent;

/// Datagrams held for a peer that is being decided on.
const HELD: usize = 16;

/// Bytes held for all such peers of a container.
const HELD_BYTES: usize = 1 << 20;

/// Datagrams taken from a socket before other tasks get their turn.
const BATCH: usize = 32;

/// How often an idle mapping looks whether the Dialer has decided.
const ASKING: Duration = Duration::from_secs(1);

pub(crate) struct Mapping {
    source: SocketAddr,
    socket: OnceCell<Box<dyn DatagramSocket>>,
    opened: Notify,
    peers: RefCell<HashMap<SocketAddr, Peer>>,
    deadline: Cell<Instant>,
    /// Bytes held by all mappings of the container.
    held: Rc<Cell<usize>>,
}

/// Datagrams that wait for a decision; counted against the budget while they exist.
pub(crate) struct Held {
    datagrams: Vec<Box<[u8]>>,
    total: Rc<Cell<usize>>,
}

impl Held {
    fn new(total: &Rc<Cell<usize>>) -> Self {
        Self { datagrams: Vec::new(), total: Rc::clone(total) }
    }

    /// Keeps a datagram if there is room for it.
    fn push(&mut self, payload: &[u8]) {
        let total = self.total.get() + payload.len();
        if self.datagrams.len() < HELD && total <= HELD_BYTES {
            self.total.set(total);
            self.datagrams.push(payload.into());
        }
    }

    pub(crate) fn datagrams(&self) -> &[Box<[u8]>] {
        &self.datagrams
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes: usize = self.datagrams.iter().map(|datagram| datagram.len()).sum();
        self.total.set(self.total.get() - bytes);
    }
}

/// A destination the source has written to, keyed by its address as the container sees it.
pub(crate) enum Peer {
    /// The Dialer is deciding.
    Asking(Held),
    /// Allowed; datagrams go to `target`.
    Allowed { target: SocketAddr, used: Instant },
    /// Allowed, and it is the network's own resolver.
    Resolver,
}

/// What to do with a datagram for a known peer.
pub(crate) enum Verdict {
    Unknown,
    /// Held or lost.
    Wait,
    Send(SocketAddr),
    Resolve,
}

impl Mapping {
    pub(crate) fn new(source: SocketAddr, deadline: Instant, held: Rc<Cell<usize>>) -> Self {
        Self {
            source,
            socket: OnceCell::new(),
            opened: Notify::new(),
            peers: RefCell::default(),
            deadline: Cell::new(deadline),
            held,
        }
    }

    pub(crate) fn source(&self) -> SocketAddr {
        self.source
    }

    pub(crate) fn peer_count(&self) -> usize {
        self.peers.borrow().len()
    }

    /// Keeps the mapping alive for another `idle`.
    pub(crate) fn refresh(&self, now: Instant, idle: Duration) {
        self.deadline.set(self.deadline.get().max(now + idle));
    }

    /// Decides on a datagram; one for a peer that is being asked about is held here.
    pub(crate) fn judge(&self, now: Instant, peer: SocketAddr, payload: &[u8]) -> Verdict {
        match self.peers.borrow_mut().get_mut(&peer) {
            None => Verdict::Unknown,
            Some(Peer::Asking(held)) => {
                held.push(payload);
                Verdict::Wait
            }
            Some(Peer::Allowed { target, used }) => {
                *used = now;
                Verdict::Send(*target)
            }
            Some(Peer::Resolver) => Verdict::Resolve,
        }
    }

    /// Notes that the Dialer is being asked about a peer.
    pub(crate) fn ask(&self, peer: SocketAddr, payload: &[u8]) {
        let mut held = Held::new(&self.held);
        held.push(payload);
        self.peers.borrow_mut().insert(peer, Peer::Asking(held));
    }

    /// Notes the Dialer's answer and returns the datagrams that waited for it.
    pub(crate) fn answer(&self, peer: SocketAddr, answer: Option<Peer>) -> Held {
        let mut peers = self.peers.borrow_mut();
        let before = match answer {
            Some(answer) => peers.insert(peer, answer),
            None => peers.remove(&peer),
        };
        match before {
            Some(Peer::Asking(held)) => held,
            Some(Peer::Allowed { .. } | Peer::Resolver) | None => Held::new(&self.held),
        }
    }

    /// Forgets allowed peers that were last written to before `limit`. Returns how many.
    pub(crate) fn forget_peers(&self, limit: Instant) -> usize {
        let mut peers = self.peers.borrow_mut();
        let before = peers.len();
        peers.retain(|_, peer| match peer {
            Peer::Allowed { used, .. } => *used >= limit,
            Peer::Asking(_) | Peer::Resolver => true,
        });
        before - peers.len()
    }

    /// The upstream socket; opens it if this is the first flow to need it.
    pub(crate) async fn open(&self, gateway: &Gateway) -> Result<&dyn DatagramSocket, DialError> {
        let source = Source { address: self.source };
        let socket = self.socket.get_or_try_init(|| gateway.dialer.bind_udp(&source)).await?;
        self.opened.notify_one();
        Ok(&**socket)
    }

    /// Sends a datagram of the container to the world.
    pub(crate) fn send(&self, gateway: &Gateway, peer: SocketAddr, target: SocketAddr, payload: &[u8]) {
        let Some(socket) = self.socket.get() else { return };
        match socket.try_send(payload, target) {
            Ok(()) => {}
            // A full socket buffer loses a datagram silently, like any full queue on the way.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match DialError::from(error) {
                // Lost as well: too long, no memory. The peer has nothing to do with it.
                DialError::Other(_) | DialError::TimedOut | DialError::Refused => {}
                error @ (DialError::HostUnreachable
                | DialError::NetworkUnreachable
                | DialError::Prohibited) => {
                    if let Some(reason) = error.unreachable() {
                        self.report(gateway, peer, reason);
                    }
                }
            },
        }
    }

    /// Delivers what comes from the world until the mapping has been idle for too long or its socket fails.
    pub(crate) async fn run(&self, gateway: &Gateway) {
        loop {
            let deadline = self.deadline.get();
            let now = gateway.clock.now();
            if deadline <= now {
                if !self.is_asking() {
                    return;
                }
                // The decision has a deadline of its own; what waits for it is not thrown away before.
                self.refresh(now, ASKING);
                continue;
            }
            tokio::select! {
                readable = self.readable() => {
                    if readable.is_err() || self.deliver(gateway).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
    }

    fn is_asking(&self) -> bool {
        self.peers.borrow().values().any(|peer| matches!(peer, Peer::Asking(_)))
    }

    async fn readable(&self) -> io::Result<()> {
        loop {
            match self.socket.get() {
                Some(socket) => return socket.readable().await,
                None => self.opened.notified().await,
            }
        }
    }

    /// Delivers at most a batch of what the socket holds.
    async fn deliver(&self, gateway: &Gateway) -> io::Result<()> {
        let Some(socket) = self.socket.get() else { return Ok(()) };
        for _ in 0..BATCH {
            let received = {
                let mut buffer = gateway.commons.message();
                match socket.try_receive(&mut buffer[..]) {
                    Ok(Received::Datagram { length, source }) => {
                        let peer = gateway.addressing.as_seen_inside(source);
                        self.deliver_datagram(gateway, peer, &buffer[..length])
                    }
                    Ok(Received::Unreachable { destination, reason }) => {
                        self.report(gateway, gateway.addressing.as_seen_inside(destination), reason);
                        Sent::Done
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            };
            let mut sent = received;
            while let Sent::Held(frame) = sent {
                gateway.link.writable().await?;
                sent = gateway.link.resend(frame);
            }
        }
        Ok(())
    }

    fn deliver_datagram(&self, gateway: &Gateway, peer: SocketAddr, payload: &[u8]) -> Sent {
        let known = matches!(self.peers.borrow().get(&peer), Some(Peer::Allowed { .. }));
        let length = super::datagram::length(peer, payload.len());
        if !known || length > gateway.link.mtu().into() {
            gateway.counters.unsolicited.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Sent::Done;
        }
        gateway.link.send_datagram(peer, self.source, payload)
    }

    /// Tells the container that `peer` cannot be reached, if it has written to it.
    fn report(&self, gateway: &Gateway, peer: SocketAddr, reason: Unreachable) {
        if self.peers.borrow().contains_key(&peer) {
            gateway.report_unreachable(self.source, peer, reason, &icmp::quote_datagram(self.source, peer));
        }
    }
}
