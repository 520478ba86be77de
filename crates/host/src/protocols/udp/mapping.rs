//! One mapping: an upstream socket and the peers that may answer through it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OnceCell};

use super::held::{Backlog, ByteBudget, HeldDatagrams, send_all};
use super::kind::Kind;
use crate::context::Context;
use crate::descriptors::Permit;
use crate::dialer::{DatagramSocket, Datagrams, DialError, Dialer, Envelope, Source};
use crate::link::Sent;
use crate::threads::commons::{Inbox, Origin, Undelivered};
use crate::threads::turns::{Place, Turn};
use nsnet_stack::flow::FlowKey;

/// How often an idle mapping checks whether the Dialer has decided.
const ASKING: Duration = Duration::from_secs(1);

pub(crate) struct Mapping {
    kind: Kind,
    source: SocketAddr,
    upstream: OnceCell<Upstream>,
    opened: Notify,
    /// The socket has panicked, and the mapping is to end.
    failed: Notify,
    peers: RefCell<HashMap<SocketAddr, Peer>>,
    deadline: Cell<Instant>,
    /// For datagrams that wait in all mappings of the container.
    budget: ByteBudget,
}

/// The socket of a mapping. The fields are dropped in this order.
struct Upstream {
    socket: Box<dyn DatagramSocket>,
    _permit: Option<Permit>,
}

/// A destination the source has written to, keyed by its address as the container sees it.
pub(crate) enum Peer {
    /// The Dialer is deciding.
    Asking(HeldDatagrams),
    /// Allowed. Datagrams go to `target`.
    Allowed { target: SocketAddr, used: Instant },
    /// Allowed, and the destination is the network's own resolver.
    Resolver,
}

/// The handling of a datagram for a known peer.
pub(crate) enum Verdict {
    Unknown,
    /// Datagrams are held or lost.
    Wait,
    Send(SocketAddr),
    Resolve,
}

/// The end of a batch of datagrams.
#[derive(Debug)]
enum Fill {
    /// The socket was empty.
    Empty,
    /// The socket is empty now.
    Drained,
    /// The socket may hold more.
    Full,
    /// The socket has failed for good.
    Failed(io::Error),
}

impl Mapping {
    pub(super) fn new(kind: Kind, source: SocketAddr, deadline: Instant, budget: ByteBudget) -> Self {
        Self {
            kind,
            source,
            upstream: OnceCell::new(),
            opened: Notify::new(),
            failed: Notify::new(),
            peers: RefCell::default(),
            deadline: Cell::new(deadline),
            budget,
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

    /// Decides on datagrams. Datagrams for a peer that the Dialer is being asked about are held here.
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

    /// Records that the Dialer is being asked about a peer.
    pub(crate) fn ask(&self, envelope: &Envelope, datagrams: Datagrams<'_>) {
        let mut held = HeldDatagrams::new(&self.budget);
        datagrams.iter().for_each(|datagram| held.push(envelope, datagram));
        self.peers.borrow_mut().insert(envelope.destination, Peer::Asking(held));
    }

    /// Records the Dialer's answer and returns the datagrams that waited for it.
    pub(crate) fn answer(&self, peer: SocketAddr, answer: Option<Peer>) -> HeldDatagrams {
        let mut peers = self.peers.borrow_mut();
        let before = match answer {
            Some(answer) => peers.insert(peer, answer),
            None => peers.remove(&peer),
        };
        match before {
            Some(Peer::Asking(held)) => held,
            Some(Peer::Allowed { .. } | Peer::Resolver) | None => HeldDatagrams::new(&self.budget),
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

    /// Whether it has its upstream socket.
    pub(super) fn is_open(&self) -> bool {
        self.upstream.initialized()
    }

    /// Opens the upstream socket if this is the first flow that needs it. The socket keeps the permit.
    pub(crate) async fn open(&self, dialer: &dyn Dialer, permit: Option<Permit>) -> Result<(), DialError> {
        let open = async || {
            let socket = self.kind.open(dialer, &Source::new(self.source)).await?;
            Ok::<_, DialError>(Upstream { socket, _permit: permit })
        };
        self.upstream.get_or_try_init(open).await?;
        self.opened.notify_one();
        Ok(())
    }

    /// Sends datagrams of the container to `target` in the world. The rest of the envelope is the container's.
    pub(crate) fn send(
        &self,
        context: &Context,
        target: SocketAddr,
        envelope: &Envelope,
        datagrams: Datagrams<'_>,
    ) {
        let Some(Upstream { socket, .. }) = self.upstream.get() else { return };
        let envelope_outside = envelope.to(target);
        // This runs in the reader of the link, where a panic would end the container's whole network.
        let sent = catch_unwind(AssertUnwindSafe(|| socket.try_send(datagrams, &envelope_outside)));
        let Ok(sent) = sent else {
            tracing::error!(protocol = %self.kind.protocol(), source = %self.source, "a socket of the Dialer panicked");
            return self.failed.notify_one();
        };
        match sent {
            Ok(()) => {}
            // A full socket buffer loses a datagram silently, like any full queue on the path.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => match DialError::from(error) {
                // Lost as well, because it is too long or memory is short. That is not the peer's doing.
                DialError::Other(_) | DialError::TimedOut | DialError::Refused => {}
                error @ (DialError::HostUnreachable
                | DialError::NetworkUnreachable
                | DialError::Prohibited) => {
                    if let Some(reason) = error.unreachable() {
                        let key = FlowKey { container: self.source, peer: envelope.destination };
                        let quoted = self.kind.quote(key.container, key.peer, datagrams.bytes());
                        context.report(key, reason.into(), &quoted);
                    }
                }
            },
        }
    }

    /// Delivers datagrams from the world until the mapping has been idle for too long or its socket fails.
    pub(crate) async fn run(&self, context: &Context) {
        tokio::select! {
            Err(error) = self.receive(context) => {
                tracing::debug!(protocol = %self.kind.protocol(), source = %self.source, %error, "a mapping ends");
            }
            () = self.failed.notified() => {}
            () = self.expired(context) => {}
        }
    }

    async fn receive(&self, context: &Context) -> io::Result<Infallible> {
        let place = context.lane.place();
        let mut pause = Pause::default();
        loop {
            self.readable().await?;
            match self.deliver(context, &place).await? {
                Fill::Empty => pause.take().await,
                Fill::Drained => pause = Pause::default(),
                Fill::Full => {
                    pause = Pause::default();
                    tokio::task::yield_now().await;
                }
                Fill::Failed(error) => return Err(error),
            }
        }
    }

    /// Resolves once the container has been silent for too long. Its timer is set anew only when it fires, so a busy
    /// mapping costs nothing.
    async fn expired(&self, context: &Context) {
        loop {
            tokio::time::sleep_until(self.deadline.get().into()).await;
            let now = context.clock.now();
            if self.deadline.get() > now {
                continue;
            }
            if !self.is_asking() {
                return;
            }
            // The decision has a deadline of its own. Until then the datagrams that wait for it are kept.
            self.refresh(now, ASKING);
        }
    }

    fn is_asking(&self) -> bool {
        self.peers.borrow().values().any(|peer| matches!(peer, Peer::Asking(_)))
    }

    async fn readable(&self) -> io::Result<()> {
        loop {
            match self.upstream.get() {
                Some(Upstream { socket, .. }) => return socket.readable().await,
                None => self.opened.notified().await,
            }
        }
    }

    /// Delivers at most one batch of datagrams from the socket.
    async fn deliver(&self, context: &Context, place: &Place) -> io::Result<Fill> {
        let (batch, backlog) = {
            let mut turn = place.turn().await;
            self.deliver_now(context, &mut turn)
        };
        if let Some(backlog) = backlog {
            backlog.clear(&context.link, |origin, frame| self.send_inside(context, *origin, frame)).await?;
        }
        Ok(batch)
    }

    /// Delivers as much of a batch as the link takes at the moment.
    fn deliver_now(&self, context: &Context, turn: &mut Turn<'_>) -> (Fill, Option<Backlog<Origin>>) {
        let Some(Upstream { socket, .. }) = self.upstream.get() else { return (Fill::Drained, None) };
        let mut inbox = context.commons.inbox();
        let batch = self.fill(context, &mut inbox, &**socket);
        turn.moved(inbox.bytes());
        let frames = inbox
            .runs()
            .map(|(origin, datagrams)| (origin.seen_inside(&context.addressing), datagrams))
            .filter(|(origin, datagrams)| self.is_wanted(context, origin.source, *datagrams))
            .flat_map(|(origin, datagrams)| {
                let frames = self.kind.frames(&context.link, origin.source, datagrams);
                frames.map(move |frame| (origin, frame))
            });
        let send = |origin: &Origin, frame: Datagrams<'_>| self.send_inside(context, *origin, frame);
        (batch, send_all(frames, &self.budget, send))
    }

    /// Takes at most one batch out of the socket.
    fn fill(&self, context: &Context, inbox: &mut Inbox, socket: &dyn DatagramSocket) -> Fill {
        inbox.clear();
        while !inbox.is_full() {
            match inbox.receive(socket) {
                Ok(None) => {}
                Ok(Some(undelivered)) => self.report(context, &undelivered),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if inbox.is_untouched() { Fill::Empty } else { Fill::Drained };
                }
                // Datagrams that came before the error are still delivered.
                Err(error) => return Fill::Failed(error),
            }
        }
        Fill::Full
    }

    fn send_inside(&self, context: &Context, origin: Origin, frame: Datagrams<'_>) -> Sent {
        self.kind.send_inside(context, origin, self.source, frame)
    }

    /// Whether the container has written to this peer.
    fn is_wanted(&self, context: &Context, peer: SocketAddr, datagrams: Datagrams<'_>) -> bool {
        let wanted = matches!(self.peers.borrow().get(&peer), Some(Peer::Allowed { .. }));
        if !wanted {
            let count = u64::try_from(datagrams.count()).unwrap_or(u64::MAX);
            context.counters.unsolicited.fetch_add(count, Relaxed);
        }
        wanted
    }

    /// Tells the container that a datagram did not arrive, if it has written to that peer.
    fn report(&self, context: &Context, undelivered: &Undelivered<'_>) {
        let peer = context.addressing.as_seen_inside(undelivered.destination);
        if self.peers.borrow().contains_key(&peer) {
            let Undelivered { sender, hop_limit, error, datagram, .. } = *undelivered;
            let quoted = self.kind.quote(self.source, peer, datagram);
            let key = FlowKey { container: self.source, peer };
            context.relay(key, sender, hop_limit, error, &quoted);
        }
    }
}

/// A growing pause, for a socket that reports it is readable and is then empty. An embedder's socket may do so for
/// ever.
#[derive(Default)]
struct Pause {
    /// The number of empty attempts in a row.
    rounds: u32,
}

impl Pause {
    /// The longest pause: 64 ms.
    const MAX_ROUNDS: u32 = 7;

    async fn take(&mut self) {
        match self.rounds {
            // One empty attempt is no fault: another reader may have taken the datagrams.
            0 => tokio::task::yield_now().await,
            rounds => tokio::time::sleep(Duration::from_millis(1 << (rounds - 1))).await,
        }
        self.rounds = (self.rounds + 1).min(Self::MAX_ROUNDS);
    }
}
