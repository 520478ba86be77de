//! One mapping: an upstream socket and the peers that may answer through it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, OnceCell};

use super::inbox::{Origin, Undelivered};
use super::kind::Kind;
use crate::dialer::{DatagramSocket, Datagrams, DialError, Envelope, Source};
use crate::gateway::Gateway;
use crate::link::{HeldFrame, Sent};
use crate::packet::FlowKey;
use crate::udp::MAX_DATAGRAMS;

/// Datagrams held for a peer that is being decided on: a whole burst.
const HELD: usize = MAX_DATAGRAMS;

/// Bytes held for all such peers of a container, and for a link that is full.
const HELD_BYTES: usize = 1 << 20;

/// How often an idle mapping looks whether the Dialer has decided.
const ASKING: Duration = Duration::from_secs(1);

pub(crate) struct Mapping {
    kind: Kind,
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
    letters: Vec<Letter>,
    total: Rc<Cell<usize>>,
}

/// A datagram, and how it is to travel.
pub(crate) struct Letter {
    /// As the container knows it.
    pub(crate) envelope: Envelope,
    pub(crate) payload: Bytes,
}

impl Held {
    pub(crate) fn new(total: &Rc<Cell<usize>>) -> Self {
        Self { letters: Vec::new(), total: Rc::clone(total) }
    }

    /// Keeps a datagram if there is room for it.
    pub(crate) fn push(&mut self, envelope: &Envelope, payload: &[u8]) {
        let total = self.total.get() + payload.len() + size_of::<Letter>();
        if self.letters.len() < HELD && total <= HELD_BYTES {
            self.total.set(total);
            self.letters.push(Letter { envelope: *envelope, payload: Bytes::copy_from_slice(payload) });
        }
    }

    pub(crate) fn letters(&self) -> &[Letter] {
        &self.letters
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes: usize = self.letters.iter().map(|letter| letter.payload.len() + size_of::<Letter>()).sum();
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

/// How a batch of datagrams ended.
#[derive(Debug)]
enum Batch {
    /// The socket holds no more.
    Drained,
    /// The socket may hold more.
    Full,
    /// The socket is of no use any more.
    Failed(io::Error),
}

/// What the link did not take of a batch.
struct Backlog {
    frame: HeldFrame,
    /// What follows: sender, size and bytes of the datagrams of each frame.
    rest: Vec<(Origin, usize, Box<[u8]>)>,
    _charge: Charge,
}

/// Bytes of datagrams, counted against the budget of the container while it exists.
struct Charge {
    bytes: usize,
    total: Rc<Cell<usize>>,
}

impl Charge {
    /// Counts more bytes, if there is room for them.
    fn add(&mut self, bytes: usize) -> bool {
        let total = self.total.get() + bytes;
        let fits = total <= HELD_BYTES;
        if fits {
            self.bytes += bytes;
            self.total.set(total);
        }
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

impl Mapping {
    pub(super) fn new(kind: Kind, source: SocketAddr, deadline: Instant, held: Rc<Cell<usize>>) -> Self {
        Self {
            kind,
            source,
            socket: OnceCell::new(),
            opened: Notify::new(),
            peers: RefCell::default(),
            deadline: Cell::new(deadline),
            held,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
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

    /// Decides on datagrams; those for a peer that is being asked about are held here.
    pub(crate) fn judge(&self, now: Instant, envelope: &Envelope, datagrams: Datagrams<'_>) -> Verdict {
        match self.peers.borrow_mut().get_mut(&envelope.destination) {
            None => Verdict::Unknown,
            Some(Peer::Asking(held)) => {
                datagrams.iter().for_each(|datagram| held.push(envelope, datagram));
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
    pub(crate) fn ask(&self, envelope: &Envelope, datagrams: Datagrams<'_>) {
        let mut held = Held::new(&self.held);
        datagrams.iter().for_each(|datagram| held.push(envelope, datagram));
        self.peers.borrow_mut().insert(envelope.destination, Peer::Asking(held));
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
        let socket = self.socket.get_or_try_init(|| self.kind.open(gateway, &source)).await?;
        self.opened.notify_one();
        Ok(&**socket)
    }

    /// Sends datagrams of the container to `target` in the world; the rest of the envelope is what it has written.
    pub(crate) fn send(
        &self,
        gateway: &Gateway,
        target: SocketAddr,
        envelope: &Envelope,
        datagrams: Datagrams<'_>,
    ) {
        let Some(socket) = self.socket.get() else { return };
        match socket.try_send(datagrams, &Envelope { destination: target, ..*envelope }) {
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
                        let key = FlowKey { source: self.source, destination: envelope.destination };
                        let quoted = self.kind.quote(key.source, key.destination, datagrams.bytes());
                        gateway.report(key, reason.into(), &quoted);
                    }
                }
            },
        }
    }

    /// Delivers what comes from the world until the mapping has been idle for too long or its socket fails.
    pub(crate) async fn run(&self, gateway: &Gateway) {
        tokio::select! {
            Err(error) = self.receive(gateway) => {
                tracing::debug!(protocol = %self.kind.protocol(), source = %self.source, %error, "a mapping ends");
            }
            () = self.expired(gateway) => {}
        }
    }

    async fn receive(&self, gateway: &Gateway) -> io::Result<Infallible> {
        loop {
            self.readable().await?;
            match self.deliver(gateway).await? {
                Batch::Drained => {}
                Batch::Full => tokio::task::yield_now().await,
                Batch::Failed(error) => return Err(error),
            }
        }
    }

    /// Resolves once the container has been silent for too long. Its timer is set anew only when it fires: a busy
    /// mapping costs none.
    async fn expired(&self, gateway: &Gateway) {
        loop {
            tokio::time::sleep_until(self.deadline.get().into()).await;
            let now = gateway.clock.now();
            if self.deadline.get() > now {
                continue;
            }
            if !self.is_asking() {
                return;
            }
            // The decision has a deadline of its own; what waits for it is not thrown away before.
            self.refresh(now, ASKING);
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
    async fn deliver(&self, gateway: &Gateway) -> io::Result<Batch> {
        let (batch, backlog) = self.deliver_now(gateway);
        let Some(backlog) = backlog else { return Ok(batch) };
        let mut sent = Sent::Held(backlog.frame);
        let mut rest = backlog.rest.iter();
        loop {
            while let Sent::Held(frame) = sent {
                gateway.link.writable().await?;
                sent = gateway.link.resend(frame);
            }
            let Some((origin, size, bytes)) = rest.next() else { return Ok(batch) };
            sent = self.kind.send_inside(gateway, *origin, self.source, Datagrams::of_size(*size, bytes));
        }
    }

    /// Delivers what the link takes at the moment of a batch.
    fn deliver_now(&self, gateway: &Gateway) -> (Batch, Option<Backlog>) {
        let Some(socket) = self.socket.get() else { return (Batch::Drained, None) };
        let mut inbox = gateway.commons.inbox();
        inbox.clear();
        let batch = loop {
            if inbox.is_full() {
                break Batch::Full;
            }
            match inbox.receive(&**socket) {
                Ok(None) => {}
                Ok(Some(undelivered)) => self.report(gateway, &undelivered),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Batch::Drained,
                // What came before it is delivered still.
                Err(error) => break Batch::Failed(error),
            }
        };
        let mut frames = inbox
            .runs()
            .map(|(origin, datagrams)| (origin.seen_inside(&gateway.addressing), datagrams))
            .filter(|(origin, datagrams)| self.is_wanted(gateway, origin.source, *datagrams))
            .flat_map(|(origin, datagrams)| {
                self.kind.frames(gateway, origin.source, datagrams).map(move |frame| (origin, frame))
            });
        while let Some((origin, datagrams)) = frames.next() {
            if let Sent::Held(frame) = self.kind.send_inside(gateway, origin, self.source, datagrams) {
                // What there is no room for is lost, as in any full queue.
                let mut charge = Charge { bytes: 0, total: Rc::clone(&self.held) };
                let rest = frames
                    .filter(|(_, datagrams)| charge.add(datagrams.bytes().len()))
                    .map(|(origin, datagrams)| (origin, datagrams.size(), datagrams.bytes().into()))
                    .collect();
                return (batch, Some(Backlog { frame, rest, _charge: charge }));
            }
        }
        (batch, None)
    }

    /// Whether the container has written to this peer.
    fn is_wanted(&self, gateway: &Gateway, peer: SocketAddr, datagrams: Datagrams<'_>) -> bool {
        let wanted = matches!(self.peers.borrow().get(&peer), Some(Peer::Allowed { .. }));
        if !wanted {
            let count = u64::try_from(datagrams.count()).unwrap_or(u64::MAX);
            gateway.counters.unsolicited.fetch_add(count, Relaxed);
        }
        wanted
    }

    /// Tells the container that a datagram did not arrive, if it has written to that peer.
    fn report(&self, gateway: &Gateway, undelivered: &Undelivered<'_>) {
        let peer = gateway.addressing.as_seen_inside(undelivered.destination);
        if self.peers.borrow().contains_key(&peer) {
            let Undelivered { sender, hop_limit, error, datagram, .. } = *undelivered;
            let quoted = self.kind.quote(self.source, peer, datagram);
            let key = FlowKey { source: self.source, destination: peer };
            gateway.relay(key, sender, hop_limit, error, &quoted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_held_up_to_a_limit_however_short_they_are() {
        let total = Rc::default();
        let envelope = Envelope::new("10.99.0.2:53".parse().unwrap());
        for payload in [&[][..], &[7; 1000]] {
            let mut all = Vec::new();
            for _ in 0..2000 {
                let mut held = Held::new(&total);
                (0..2 * HELD).for_each(|_| held.push(&envelope, payload));
                assert!(held.letters().len() <= HELD);
                all.push(held);
            }
            let letters: usize = all.iter().map(|held| held.letters().len()).sum();
            let bytes = letters * (payload.len() + size_of::<Letter>());
            assert!((HELD_BYTES - 1200..=HELD_BYTES).contains(&bytes), "{bytes}");
            drop(all);
            assert_eq!(total.get(), 0);
        }
    }
}
