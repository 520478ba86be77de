//! One open connection: the stack that faces the container and the task that relays to the upstream stream.
//!
//! The link reader calls [`Flow::handle_packet`]; the task, woken by it, by the upstream and by a timer, moves
//! bytes between smoltcp's rings and the stream without a buffer of its own, and sends what is due.
//!
//! # Closing
//! Each direction ends by itself: the container's FIN becomes a shutdown of the stream once every byte before
//! it is written, the stream's end becomes FIN behind every byte read. An error of the stream becomes RST, an
//! RST becomes an abort of the stream. The task ends when nothing is owed to either side any more.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use nsnet_proto::vnet;
use smoltcp::wire::IpProtocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::resting::LastAck;
use super::stack::{Standing, TcpStack, Transmit, header_length};
use crate::clock::Clock;
use crate::dialer::Stream;
use crate::link::{HeldFrame, Link, Sent};
use crate::packet::{FlowKey, Segment};
use crate::wire;

/// MSS of a container that names none (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// How long a connection that owes this end an acknowledgment or a FIN may go without a word from the
/// container. Above the 4 minutes that RFC 5382, 5 asks of a NAT in transitory states.
const SILENCE: Duration = Duration::from_secs(300);

/// How long after a segment it is answered in TIME-WAIT; shorter than smoltcp's `CLOSE_DELAY` of 10 s.
const TIME_WAIT_ANSWERS: Duration = Duration::from_secs(5);

/// The resolution of the runtime's timers.
const TICK: Duration = Duration::from_millis(1);

/// An open connection.
pub(crate) struct Flow {
    key: FlowKey,
    segment_size: u16,
    stack: RefCell<TcpStack>,
    held: RefCell<Option<HeldFrame>>,
    waker: RefCell<Option<Waker>>,
    heard: Cell<Instant>,
    last_ack: Cell<Option<LastAck>>,
}

impl Flow {
    pub(crate) fn new(key: FlowKey, syn: &Segment, stack: TcpStack, now: Instant) -> Self {
        Self {
            key,
            segment_size: syn.max_segment_size.unwrap_or(DEFAULT_MSS).max(1),
            stack: RefCell::new(stack),
            held: RefCell::new(None),
            waker: RefCell::new(None),
            heard: Cell::new(now),
            last_ack: Cell::new(None),
        }
    }

    /// Takes in one packet of this flow.
    pub(crate) fn handle_packet(&self, clock: &Clock, link: &Link, segment: &Segment, packet: &[u8]) {
        let now = clock.now();
        let mut stack = self.stack.borrow_mut();
        self.heard.set(now);
        stack.handle_packet(clock.smoltcp(now), packet, &mut self.outlet(link));
        if stack.standing() == Standing::TimeWait && self.last_ack.get().is_none() {
            self.last_ack.set(LastAck::answering(segment));
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Resets the connection towards the container, now.
    pub(crate) fn reset(&self, clock: &Clock, link: &Link) {
        let mut stack = self.stack.borrow_mut();
        stack.abort();
        stack.poll_transmit(clock.smoltcp(clock.now()), &mut self.outlet(link));
    }

    /// What is needed to let the tuple rest, if it has to.
    pub(crate) fn last_ack(&self) -> Option<LastAck> {
        self.last_ack.get()
    }

    /// Gives up the stack once the flow is over.
    pub(crate) fn into_stack(self) -> TcpStack {
        self.stack.into_inner()
    }

    /// Whether a frame waits for the link; until it is gone nothing is sent.
    fn is_blocked(&self) -> bool {
        self.held.borrow().is_some()
    }

    /// Tries the frame again that the link did not take.
    fn retry(&self, link: &Link) {
        let Some(frame) = self.held.take() else { return };
        if let Sent::Held(frame) = link.resend(frame) {
            self.held.replace(Some(frame));
        }
    }

    fn register(&self, waker: &Waker) {
        let mut registered = self.waker.borrow_mut();
        match registered.as_mut() {
            Some(registered) => registered.clone_from(waker),
            None => *registered = Some(waker.clone()),
        }
    }

    fn transmit(&self, clock: &Clock, link: &Link, now: Instant) -> bool {
        let mut stack = self.stack.borrow_mut();
        match stack.standing() {
            // What was owed has been sent: see `Relay::deadline`.
            Standing::Closed | Standing::Reset => false,
            // Past its own TIME-WAIT smoltcp would throw away what the stream has not taken yet.
            Standing::TimeWait if now >= self.heard.get() + TIME_WAIT_ANSWERS => false,
            Standing::Alive | Standing::TimeWait => {
                stack.poll_transmit(clock.smoltcp(now), &mut self.outlet(link))
            }
        }
    }

    fn outlet<'a>(&'a self, link: &'a Link) -> Outlet<'a> {
        Outlet { link, held: &self.held, key: self.key, segment_size: self.segment_size }
    }
}

/// Relays between an open connection and its stream until neither side is owed anything.
pub(crate) async fn relay(flow: Rc<Flow>, clock: &Clock, link: &Link, stream: Stream) {
    let mut relay = Relay {
        flow: &flow,
        clock,
        link,
        stream,
        to_stream: ToStream::Relaying,
        to_container: ToContainer::Relaying,
        timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    let ending = loop {
        let blocked = flow.is_blocked();
        tokio::select! {
            biased;
            progress = poll_fn(|cx| relay.poll(cx, blocked)) => match progress {
                Progress::Blocked => {}
                Progress::Finished(ending) => break ending,
            },
            writable = link.writable(), if blocked => match writable {
                Ok(()) => flow.retry(link),
                Err(_) => break Ending::Aborted,
            },
        }
    };
    if ending == Ending::Aborted {
        relay.stream.abort();
    }
}

/// How a relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Both directions were closed.
    Orderly,
    /// One side broke off; the stream must look broken off too.
    Aborted,
}

enum Progress {
    /// The link took no more; see [`Flow::is_blocked`].
    Blocked,
    Finished(Ending),
}

/// The direction container → stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToStream {
    Relaying,
    /// The container's FIN has come and every byte before it is written.
    ShuttingDown,
    Done,
}

/// The direction stream → container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToContainer {
    Relaying,
    /// The stream ended; FIN is queued.
    Done,
}

struct Relay<'a> {
    flow: &'a Flow,
    clock: &'a Clock,
    link: &'a Link,
    stream: Stream,
    to_stream: ToStream,
    to_container: ToContainer,
    timer: Pin<Box<Sleep>>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, blocked: bool) -> Poll<Progress> {
        self.flow.register(cx.waker());
        loop {
            let moved = match self.exchange(cx) {
                Ok(moved) => moved,
                Err(_) => {
                    self.flow.reset(self.clock, self.link);
                    return Poll::Ready(Progress::Finished(Ending::Aborted));
                }
            };
            let now = self.clock.now();
            let sent = self.flow.transmit(self.clock, self.link, now);
            if let Some(ending) = self.ending() {
                return Poll::Ready(Progress::Finished(ending));
            }
            if self.flow.is_blocked() && !blocked {
                return Poll::Ready(Progress::Blocked);
            }
            if moved || sent {
                continue;
            }
            let Some(deadline) = self.deadline(now) else { return Poll::Pending };
            if self.timer.deadline().into_std() != deadline {
                self.timer.as_mut().reset(deadline.into());
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.is_silent(self.clock.now()) {
                self.flow.reset(self.clock, self.link);
                return Poll::Ready(Progress::Finished(Ending::Aborted));
            }
        }
    }

    /// Moves bytes in both directions, once each. Returns whether any moved.
    fn exchange(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut stack = self.flow.stack.borrow_mut();
        if stack.standing() == Standing::Reset {
            return Ok(false);
        }
        let up = self.relay_to_stream(&mut stack, cx)?;
        let down = self.relay_to_container(&mut stack, cx)?;
        Ok(up || down)
    }

    fn relay_to_stream(&mut self, stack: &mut TcpStack, cx: &mut Context<'_>) -> io::Result<bool> {
        let stream = &mut self.stream;
        match self.to_stream {
            ToStream::Relaying if stack.can_receive() => {
                let written = stack.receive(|bytes| match Pin::new(stream).poll_write(cx, bytes) {
                    Poll::Ready(Ok(written)) => (written, Some(Ok(written))),
                    Poll::Ready(Err(error)) => (0, Some(Err(error))),
                    Poll::Pending => (0, None),
                });
                match written {
                    None => Ok(false),
                    Some(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
                    Some(Ok(_)) => Ok(true),
                    Some(Err(error)) => Err(error),
                }
            }
            ToStream::Relaying if stack.is_receive_finished() => {
                self.to_stream = ToStream::ShuttingDown;
                Ok(true)
            }
            ToStream::ShuttingDown => match Pin::new(stream).poll_shutdown(cx) {
                Poll::Pending => Ok(false),
                // A stream that has ended already cannot be shut down; that is no fault.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                    self.to_stream = ToStream::Done;
                    Ok(true)
                }
                Poll::Ready(result) => {
                    self.to_stream = ToStream::Done;
                    result.map(|()| true)
                }
            },
            ToStream::Relaying | ToStream::Done => Ok(false),
        }
    }

    fn relay_to_container(&mut self, stack: &mut TcpStack, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.to_container == ToContainer::Done || !stack.can_send() {
            return Ok(false);
        }
        let stream = &mut self.stream;
        let read = stack.send(|space| {
            let mut space = ReadBuf::new(space);
            match Pin::new(stream).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) => (space.filled().len(), Some(Ok(space.filled().len()))),
                Poll::Ready(Err(error)) => (0, Some(Err(error))),
                Poll::Pending => (0, None),
            }
        });
        match read {
            None => Ok(false),
            Some(Ok(0)) => {
                self.to_container = ToContainer::Done;
                stack.close();
                Ok(true)
            }
            Some(Ok(_)) => Ok(true),
            Some(Err(error)) => Err(error),
        }
    }

    fn ending(&self) -> Option<Ending> {
        let delivered = self.to_stream == ToStream::Done;
        match self.flow.stack.borrow().standing() {
            Standing::Reset => Some(Ending::Aborted),
            // The container is done with us, but the stream may still be owed its last bytes.
            Standing::TimeWait | Standing::Closed if delivered && !self.flow.is_blocked() => {
                Some(Ending::Orderly)
            }
            Standing::Alive | Standing::TimeWait | Standing::Closed => None,
        }
    }

    /// When to look again although nothing happened.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let mut stack = self.flow.stack.borrow_mut();
        if matches!(stack.standing(), Standing::TimeWait | Standing::Closed) {
            // Only the stream is waited for. In TIME-WAIT the stack's timer would throw away what it still holds.
            return None;
        }
        let due = match stack.poll_at(self.clock.smoltcp(now)) {
            // Due at once but not sent: the link is full, and its becoming writable is what is waited for.
            Some(_) if self.flow.is_blocked() => None,
            Some(due) => Some(self.clock.instant(due)),
            None => None,
        };
        let silence = stack.awaits_container().then(|| self.flow.heard.get() + SILENCE);
        // What was due before now has just been tried: a deadline in the past would spin.
        [due, silence].into_iter().flatten().min().map(|deadline| deadline.max(now + TICK))
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.flow.stack.borrow().awaits_container() && now >= self.flow.heard.get() + SILENCE
    }
}

/// Sends a stack's packets over the link, holding one back when it is full.
struct Outlet<'a> {
    link: &'a Link,
    held: &'a RefCell<Option<HeldFrame>>,
    key: FlowKey,
    segment_size: u16,
}

impl Outlet<'_> {
    fn header(&self, length: usize) -> vnet::Header {
        let destination = self.key.destination.ip();
        let capabilities = self.link.tcp_capabilities(destination);
        if capabilities.checksum {
            return vnet::Header::default();
        }
        let (start, headers) = (wire::ip_header_len(destination), header_length(destination));
        let segmentation = (capabilities.segmentation && length > headers + usize::from(self.segment_size))
            .then_some(vnet::Segmentation {
                kind: match destination {
                    IpAddr::V4(_) => vnet::SegmentKind::TcpV4,
                    IpAddr::V6(_) => vnet::SegmentKind::TcpV6,
                },
                size: self.segment_size,
                header_len: u16::try_from(headers).unwrap_or(0),
            });
        let start = u16::try_from(start).unwrap_or(0);
        vnet::Header { checksum: vnet::Checksum::Partial { start, offset: CHECKSUM_OFFSET }, segmentation }
    }

    /// Leaves in the checksum field what the kernel expects to complete.
    fn prepare_checksum(&self, packet: &mut [u8]) {
        let (source, destination) = (self.key.destination.ip(), self.key.source.ip());
        let start = wire::ip_header_len(source);
        let sum = wire::pseudo_header_sum(source, destination, IpProtocol::Tcp, packet.len() - start);
        let field = start + usize::from(CHECKSUM_OFFSET);
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Transmit for Outlet<'_> {
    fn is_ready(&self) -> bool {
        self.held.borrow().is_none()
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let header = self.header(length);
        let (sent, result) = self.link.send_with(header, length, |packet| {
            let result = fill(packet);
            if header.checksum != vnet::Checksum::Complete {
                self.prepare_checksum(packet);
            }
            result
        });
        if let Sent::Held(frame) = sent {
            self.held.replace(Some(frame));
        }
        result
    }
}

/// Offset of the checksum field in a TCP header (RFC 9293, 3.1).
const CHECKSUM_OFFSET: u16 = 16;
