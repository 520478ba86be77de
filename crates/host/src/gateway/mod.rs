//! What the container believes to be its router: reads frames, finds the flow of each packet, answers.
//!
//! One gateway serves one container, or one queue of its device ([`queues`](crate::queues)). Everything of it runs on
//! one engine thread; flows share the gateway by `Rc` and nothing else. The reader takes at most [`BATCH`] frames before
//! the flows get their turn.

mod answers;
mod dispatch;
mod echo;
mod fragments;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{self, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::addressing::{Addressing, Destination};
use crate::attach::Finished;
use crate::clock::Clock;
use crate::commons::Commons;
use crate::dialer::{DialError, Dialer, Protocol, Service};
use crate::dns::NameServer;
use crate::fragments::Reassembler;
use crate::icmp::Limit;
use crate::link::Link;
use crate::local::Reach;
use crate::neighbours::{Isolation, Neighbours};
use crate::publish::Clients;
use crate::queues::Siblings;
use crate::statistics::Counters;
use crate::{tcp, udp};

/// Frames read before the flows they belong to run: enough to share the cost of a wake-up, few enough that an
/// answer does not wait for a millisecond's worth of input.
const BATCH: usize = 32;

/// Bytes read before the flows run: what lies in the rings is then still in the second-level cache when it is written
/// to the streams. Four of the largest frames; with sixty-four, a single stream had little more than half the speed.
const BATCH_BYTES: usize = 256 << 10;

/// More batches than a TUN device queues, whatever its packets.
const MAX_BATCHES_QUEUED: usize = 4096;

/// What bounds a container's use of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) tcp_flows: usize,
    /// Bytes of memory in the rings of TCP connections, beyond what each may always use.
    pub(crate) ring_memory: usize,
    pub(crate) udp_mappings: usize,
    pub(crate) echo_mappings: usize,
    pub(crate) udp_peers: usize,
    pub(crate) udp_idle_timeout: Duration,
    pub(crate) dial_timeout: Duration,
}

pub(crate) struct Gateway {
    pub(crate) link: Link,
    pub(crate) addressing: Addressing,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) resolver: Rc<NameServer>,
    pub(crate) tcp: tcp::Table,
    pub(crate) udp: udp::Table,
    pub(crate) echo: udp::Table,
    /// Those of published UDP ports.
    pub(crate) clients: Clients,
    pub(crate) commons: Rc<Commons>,
    isolation: Isolation,
    /// The other containers, unless this one is isolated from them or serves another queue than the first.
    neighbours: OnceCell<Rc<Neighbours>>,
    /// The gateways of the container's other queues, if there are any.
    siblings: Option<Siblings>,
    fragments: RefCell<Reassembler>,
    /// Whether an errand waits for the next deadline of the fragments.
    expires_fragments: Cell<bool>,
    /// The tasks of flows, decisions and look-ups.
    errands: RefCell<JoinSet<()>>,
    warned: Cell<Option<Instant>>,
    /// Whether the container's end of the link is gone.
    is_orphaned: Cell<bool>,
    /// Of the errors that the gateway originates.
    errors: RefCell<Limit>,
    /// Notified when a flow has delivered its last bytes or has ended.
    pub(crate) progress: Notify,
}

/// What a gateway is made of besides the link.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) isolation: Isolation,
}

impl Gateway {
    pub(crate) fn new(
        link: Link,
        addressing: Addressing,
        resolver: NameServer,
        parts: Parts,
        commons: Rc<Commons>,
        siblings: Option<Siblings>,
    ) -> Rc<Self> {
        let Parts { dialer, limits, clock, counters, isolation } = parts;
        Rc::new(Self {
            link,
            addressing,
            dialer,
            limits,
            clock,
            counters,
            resolver: Rc::new(resolver),
            tcp: tcp::Table::new(limits.ring_memory),
            udp: udp::Table::new(udp::Kind::Udp),
            echo: udp::Table::new(udp::Kind::Echo),
            clients: Clients::default(),
            commons,
            isolation,
            neighbours: OnceCell::new(),
            siblings,
            fragments: RefCell::default(),
            expires_fragments: Cell::new(false),
            errands: RefCell::default(),
            warned: Cell::new(None),
            is_orphaned: Cell::new(false),
            errors: RefCell::default(),
            progress: Notify::new(),
        })
    }

    /// Serves the container until `end` resolves, or `finish` has and everything is delivered, or the container's
    /// end of the link is gone and what it had sent is delivered. Then connections are reset. With several queues
    /// delivered means on every queue, and only the gateway of the first returns before `end`. `lost` is called when the
    /// link is gone, with an error if it failed.
    pub(crate) async fn run(
        self: &Rc<Self>,
        end: Pin<&mut impl Future<Output = ()>>,
        finish: impl Future<Output = ()>,
        lost: impl FnOnce(io::Result<()>),
    ) -> Finished {
        // A drop guard, so that a fault in here takes the network away rather than leaving it dead.
        let _closing = Closing(self);
        let finished = tokio::select! {
            biased;
            finished = self.serve(end, finish, lost) => finished,
            () = self.listen() => self.cut(),
        };
        self.tcp.reset(self).await;
        finished
    }

    async fn serve(
        self: &Rc<Self>,
        mut end: Pin<&mut impl Future<Output = ()>>,
        finish: impl Future<Output = ()>,
        lost: impl FnOnce(io::Result<()>),
    ) -> Finished {
        let finished = async {
            finish.await;
            self.delivered().await;
        };
        tokio::select! {
            biased;
            () = &mut end => self.cut(),
            () = finished => Finished::Delivered,
            result = self.read_while_linked() => {
                match &result {
                    Ok(()) => tracing::debug!("the container's end of the link is gone"),
                    Err(error) => tracing::error!(%error, "the link to the container failed"),
                }
                lost(result);
                if let Some(siblings) = &self.siblings {
                    siblings.announce_gone();
                }
                self.is_orphaned.set(true);
                self.tcp.orphan();
                tokio::select! {
                    () = end => self.cut(),
                    () = self.delivered() => Finished::Delivered,
                }
            }
        }
    }

    /// What being told to end means for the connections that there are. A queue behind the first is told even if all is
    /// delivered.
    fn cut(&self) -> Finished {
        if self.siblings.as_ref().is_some_and(Siblings::has_reported) {
            return Finished::Delivered;
        }
        Finished::Incomplete { connections: self.tcp.undelivered() }
    }

    /// Whether the container's end of the link is gone, and only what it had sent is still being delivered.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.is_orphaned.get()
    }

    /// Waits until everything that the container has sent so far is with the upstream sockets.
    async fn delivered(self: &Rc<Self>) {
        loop {
            // What lies in the link counts; its being closed does not matter here.
            for _ in 0..MAX_BATCHES_QUEUED {
                let Ok(Batch::Full) = self.read_batch() else { break };
                tokio::task::yield_now().await;
            }
            let others = self.siblings.as_ref().is_none_or(Siblings::are_delivered);
            if self.tcp.is_delivered() && self.udp.is_settled() && self.echo.is_settled() && others {
                break;
            }
            self.progress.notified().await;
        }
        if let Some(siblings) = &self.siblings {
            siblings.report_delivered().await;
        }
    }

    /// Takes in what the gateways of other queues have for this one. Never ends.
    async fn listen(self: &Rc<Self>) {
        let Some(mut inbox) = self.siblings.as_ref().and_then(Siblings::take_inbox) else {
            return future::pending().await;
        };
        while let Some(message) = inbox.recv().await {
            self.handle_message(message);
            for _ in 1..BATCH {
                let Ok(message) = inbox.try_recv() else { break };
                self.handle_message(message);
            }
            self.flush();
        }
    }

    /// Runs something that ends with the gateway at the latest.
    pub(crate) fn spawn(&self, errand: impl Future<Output = ()> + 'static) -> AbortHandle {
        let mut errands = self.errands.borrow_mut();
        while errands.try_join_next().is_some() {}
        errands.spawn_local(errand)
    }

    /// From now on passes on what the container sends to others of its network.
    pub(crate) fn meet(&self, neighbours: Rc<Neighbours>) {
        // Set once only: a container is admitted once.
        let _ = self.neighbours.set(neighbours);
    }

    /// What stands behind a destination once the host's own addresses are taken out.
    pub(crate) fn destination(&self, protocol: Protocol, destination: SocketAddr) -> Destination {
        let resolved = self.addressing.resolve(protocol, destination);
        let Destination::Forward { target, service: Service::World } = resolved else { return resolved };
        match self.commons.routes().lookup(target.ip()) {
            Ok(Reach::Remote) => resolved,
            Ok(Reach::Unreachable) => Destination::Refuse(DialError::NetworkUnreachable),
            Ok(Reach::HostOwn) if self.addressing.host.opens_own(protocol, destination) => {
                Destination::Forward { target, service: Service::HostAddress }
            }
            Ok(Reach::HostOwn) => Destination::Refuse(DialError::Prohibited),
            Ok(Reach::Broadcast | Reach::Multicast) => Destination::Ignore,
            Err(error) => {
                self.warn_of(&DialError::Other(error), destination);
                Destination::Refuse(DialError::Prohibited)
            }
        }
    }

    /// Reads until the link is gone, or that of another queue has been gone for a while.
    async fn read_while_linked(self: &Rc<Self>) -> io::Result<()> {
        let Some(siblings) = &self.siblings else { return self.read().await };
        tokio::select! {
            result = self.read() => result,
            () = siblings.link_is_gone() => Ok(()),
        }
    }

    async fn read(self: &Rc<Self>) -> io::Result<()> {
        loop {
            self.link.readable().await?;
            match self.read_batch()? {
                Batch::Drained => {}
                Batch::Full => tokio::task::yield_now().await,
                Batch::Ended => return Ok(()),
            }
        }
    }

    /// Takes in a batch of what the link holds.
    fn read_batch(self: &Rc<Self>) -> io::Result<Batch> {
        let mut buffer = self.commons.received();
        let mut outcome = Ok(Batch::Full);
        let (mut frames, mut bytes) = (0..BATCH, 0);
        while bytes < BATCH_BYTES && frames.next().is_some() {
            match self.link.try_receive(&mut buffer) {
                Ok(Some(frame)) => {
                    bytes += frame.len();
                    self.handle_frame(frame);
                    continue;
                }
                Ok(None) => outcome = Ok(Batch::Ended),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => outcome = Ok(Batch::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => outcome = Err(error),
            }
            break;
        }
        self.flush();
        outcome
    }

    /// Sends the datagrams that wait for the end of a batch.
    fn flush(&self) {
        self.udp.flush(self);
        self.clients.flush();
    }
}

/// How a batch of frames ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    /// The link holds no more.
    Drained,
    /// The link may hold more.
    Full,
    /// The container's end of the link is gone.
    Ended,
}

/// Closes a gateway when it is dropped: connections are reset on both sides.
struct Closing<'a>(&'a Rc<Gateway>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let gateway = self.0;
        gateway.tcp.close(gateway);
        gateway.udp.close(gateway);
        gateway.echo.close(gateway);
        gateway.clients.close();
        gateway.errands.borrow_mut().abort_all();
        gateway.link.finish();
    }
}
