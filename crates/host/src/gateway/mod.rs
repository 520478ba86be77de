//! What the container believes to be its router: reads frames, finds the flow of each packet, answers.
//!
//! One gateway serves one container, or one queue of its device ([`queues`](crate::queues)). Everything of it runs on
//! one engine thread; flows share the gateway by `Rc` and nothing else. The reader takes at most [`BATCH`] frames before
//! the flows get their turn.

mod answers;
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

use nsnet_proto::vnet;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use crate::addressing::{Addressing, Destination};
use crate::clock::Clock;
use crate::commons::Commons;
use crate::dialer::{DialError, Dialer, IcmpError, Protocol, Service, Unreachable};
use crate::dns::NameServer;
use crate::fragments::Reassembler;
use crate::icmp::{Embedded, Limit};
use crate::link::Link;
use crate::local::Reach;
use crate::neighbours::{Form, Isolation, Neighbours};
use crate::packet::{
    Control, Discard, FlowKey, Packet, Segment, Transport, destination_of, extensions, protocol,
};
use crate::publish::Clients;
use crate::queues::{Message, Passed, Siblings};
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
    /// delivered means on every queue, and only the gateway of the first returns before `end`.
    pub(crate) async fn run(
        self: &Rc<Self>,
        end: Pin<&mut impl Future<Output = ()>>,
        finish: impl Future<Output = ()>,
    ) {
        // A drop guard, so that a fault in here takes the network away rather than leaving it dead.
        let _closing = Closing(self);
        tokio::select! {
            biased;
            () = self.serve(end, finish) => {}
            () = self.listen() => {}
        }
        self.tcp.reset(self).await;
    }

    async fn serve(
        self: &Rc<Self>,
        mut end: Pin<&mut impl Future<Output = ()>>,
        finish: impl Future<Output = ()>,
    ) {
        let finished = async {
            finish.await;
            self.delivered().await;
        };
        tokio::select! {
            biased;
            () = &mut end => {}
            () = finished => {}
            result = self.read_while_linked() => {
                match result {
                    Ok(()) => tracing::debug!("the container's end of the link is gone"),
                    Err(error) => tracing::error!(%error, "the link to the container failed"),
                }
                if let Some(siblings) = &self.siblings {
                    siblings.announce_gone();
                }
                self.is_orphaned.set(true);
                self.tcp.orphan();
                tokio::select! {
                    () = end => {}
                    () = self.delivered() => {}
                }
            }
        }
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

    fn handle_frame(self: &Rc<Self>, frame: &[u8]) {
        if let Err(discard) = self.dispatch(frame) {
            self.counters.discarded(discard);
        }
    }

    fn dispatch(self: &Rc<Self>, frame: &[u8]) -> Result<(), Discard> {
        let (header, bytes) = self.link.split(frame).map_err(|_| Discard::Malformed)?;
        if let Some(siblings) = &self.siblings
            && (siblings.is_misplaced(bytes) || (!siblings.is_first() && self.is_for_neighbour(bytes)))
        {
            return siblings.pass_to_first(header, bytes).map_err(|_| Discard::Overrun);
        }
        if let Some(result) = self.forward(&header, bytes, Form::AsCame) {
            return result;
        }
        self.handle_parsed(Packet::parse(&header, bytes), &header, bytes)
    }

    fn handle_parsed(
        self: &Rc<Self>,
        packet: Result<Packet<'_>, Discard>,
        header: &vnet::Header,
        bytes: &[u8],
    ) -> Result<(), Discard> {
        match packet {
            Err(Discard::Fragment) => self.reassemble(bytes),
            Err(Discard::Extended) => self.handle_extended(header, bytes),
            packet => self.handle_packet(&packet?),
        }
    }

    /// Takes in a packet with extension headers as if it had none, but for what is quoted of it.
    fn handle_extended(self: &Rc<Self>, header: &vnet::Header, bytes: &[u8]) -> Result<(), Discard> {
        let stripped = extensions::strip(bytes)?;
        match Packet::parse(header, &stripped) {
            Err(Discard::Fragment) => self.reassemble(&stripped),
            Ok(packet @ Packet { transport: Transport::Unknown, .. }) => {
                self.handle_packet(&Packet { bytes, ..packet })
            }
            packet => self.handle_packet(&packet?),
        }
    }

    /// Takes in a packet if it is for another container within reach.
    fn forward(
        self: &Rc<Self>,
        header: &vnet::Header,
        bytes: &[u8],
        form: Form,
    ) -> Option<Result<(), Discard>> {
        self.neighbours.get()?.forward(self, header, bytes, form)
    }

    /// Whether a packet is for an address at which another container may be within reach.
    fn is_for_neighbour(&self, bytes: &[u8]) -> bool {
        self.isolation == Isolation::Open
            && destination_of(bytes).is_some_and(|address| self.addressing.is_neighbour(address))
    }

    fn handle_packet(self: &Rc<Self>, packet: &Packet<'_>) -> Result<(), Discard> {
        if self.addressing.subnet_of_container(packet.key.source.ip()).is_none() {
            return Err(Discard::ForeignSource);
        }
        if packet.hop_limit <= 1 && !self.addressing.is_on_link(packet.key.destination.ip()) {
            return self.refuse(packet, IcmpError::TimeExceeded, Discard::HopLimit);
        }
        match packet.transport {
            Transport::Tcp(segment) => self.tcp.handle(self, packet.key, &segment, packet.bytes),
            Transport::Udp(datagrams) => {
                if !self.clients.answer(self, packet.key, datagrams) {
                    self.udp.handle(self, packet, datagrams);
                }
            }
            Transport::Echo(datagram) => self.handle_echo(packet, datagram),
            Transport::Error(message) => return Err(self.handle_error(packet, message)),
            Transport::Unknown => {
                return self.refuse(packet, Unreachable::Protocol.into(), Discard::Protocol);
            }
        }
        Ok(())
    }

    /// Reads an error of the container. Upstream sockets are the host's, whose kernel speaks for itself; but a client of
    /// a published port that is refused may be welcome in the other address family.
    fn handle_error(self: &Rc<Self>, packet: &Packet<'_>, message: &[u8]) -> Discard {
        let FlowKey { source, destination } = packet.key;
        match Embedded::parse(source.ip(), destination.ip(), message, false) {
            Ok(Embedded { error, protocol, peer, container }) => {
                tracing::trace!(?error, protocol, %peer, %container, "an ICMP error of the container");
                let key = FlowKey { source: container, destination: peer };
                match (error, protocol) {
                    (IcmpError::Unreachable(_), protocol::TCP) => self.tcp.refuse_opening(&key),
                    (IcmpError::Unreachable(_), _) => self.clients.refuse(self, key),
                    (IcmpError::TimeExceeded | IcmpError::PacketTooBig { .. }, _) => {}
                }
                Discard::IcmpError
            }
            Err(discard) => discard,
        }
    }

    fn handle_message(self: &Rc<Self>, message: Message) {
        match (message, &self.siblings) {
            (Message::Packet(passed), Some(siblings)) => {
                if let Err(discard) = self.handle_passed(siblings, passed) {
                    self.counters.discarded(discard);
                }
            }
            (Message::Delivered, Some(siblings)) => {
                siblings.note_delivered();
                self.progress.notify_one();
            }
            (Message::Packet(_) | Message::Delivered, None) => {}
        }
    }

    /// Takes in a packet that has come in on another queue.
    fn handle_passed(self: &Rc<Self>, siblings: &Siblings, passed: Passed) -> Result<(), Discard> {
        if let Some(result) = self.forward(&passed.header, &passed.packet, Form::AsCame) {
            return result;
        }
        let is_here = |key, segment: &Segment| {
            // One for a container that is not there does not go round to be answered with RST.
            self.tcp.knows(key) || (segment.control == Control::Open && self.is_for_neighbour(&passed.packet))
        };
        match Packet::parse(&passed.header, &passed.packet) {
            Ok(Packet { key, transport: Transport::Tcp(segment), .. }) if !is_here(&key, &segment) => {
                if !siblings.is_back(&passed) {
                    return siblings.pass_on(passed).map_err(|_| Discard::Overrun);
                }
                self.tcp.answer_stray(self, key, &segment);
                Ok(())
            }
            packet => self.handle_parsed(packet, &passed.header, &passed.packet),
        }
    }

    /// Sends a segment whose flow is not here to the other queues, if there are any. Returns whether it has.
    pub(crate) fn send_round(&self, packet: &[u8]) -> bool {
        let Some(siblings) = &self.siblings else { return false };
        if siblings.send_round(packet).is_err() {
            self.counters.discarded(Discard::Overrun);
        }
        true
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
