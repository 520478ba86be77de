//! One open connection as the link reader sees it: takes segments in, sends what the stack has to say.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use nsnet_proto::vnet;
use nsnet_stack::frame;

use crate::link::{HeldFrame, Link, Sent};
use crate::sys::Pages;
use crate::task::clock::Clock;
use crate::threads::commons::{Commons, RingSocket};
use nsnet_stack::flow::FlowKey;
use nsnet_stack::tcp::LastAck;
use nsnet_stack::tcp::Rings;
use nsnet_stack::tcp::{Control, Segment};
use nsnet_stack::tcp::{Standing, TcpStack, Transmit};

/// MSS of a container that names none (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// smoltcp's own lower bound, and so the least that its segments and the kernel's must agree on.
const MIN_MSS: u16 = 48;

/// How long after a segment it is answered in TIME-WAIT; shorter than smoltcp's `CLOSE_DELAY` of 10 s.
const TIME_WAIT_ANSWERS: Duration = Duration::from_secs(5);

/// An open connection.
pub(crate) struct TcpFlow {
    key: FlowKey,
    /// Bytes of payload in a segment, as the container's SYN has it.
    segment_size: Cell<u16>,
    pub(super) stack: RefCell<TcpStack>,
    /// The memory that the stack's socket works in.
    pub(super) rings: RefCell<Rings<Pages>>,
    /// The one frame that the link did not take.
    held: RefCell<Option<HeldFrame>>,
    /// Wakes the relay.
    waker: RefCell<Option<Waker>>,
    /// When the container last said something.
    pub(super) heard: Cell<Instant>,
    last_ack: Cell<Option<LastAck>>,
    is_delivered: Cell<bool>,
    is_orphaned: Cell<bool>,
    is_warm: Cell<bool>,
    opening: Cell<Opening>,
    commons: Rc<Commons>,
}

/// How an active open stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// The container's SYN has been taken in.
    Over,
    /// It is waited for.
    UnderWay,
    /// The container has answered our SYN as a segment of an older connection.
    Challenged,
    /// The container has answered our SYN with an ICMP error.
    Unreachable,
}

impl TcpFlow {
    /// A flow whose SYN the container has sent.
    pub(crate) fn new(
        key: FlowKey,
        syn: &Segment,
        stack: TcpStack,
        rings: Rings<Pages>,
        commons: Rc<Commons>,
        now: Instant,
    ) -> Self {
        Self::with(key, segment_size(syn), Opening::Over, stack, rings, commons, now)
    }

    /// A flow whose SYN is sent to the container.
    pub(super) fn opening(
        key: FlowKey,
        stack: TcpStack,
        rings: Rings<Pages>,
        commons: Rc<Commons>,
        now: Instant,
    ) -> Self {
        Self::with(key, DEFAULT_MSS, Opening::UnderWay, stack, rings, commons, now)
    }

    fn with(
        key: FlowKey,
        segment_size: u16,
        opening: Opening,
        stack: TcpStack,
        rings: Rings<Pages>,
        commons: Rc<Commons>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            segment_size: Cell::new(segment_size),
            stack: RefCell::new(stack),
            rings: RefCell::new(rings),
            held: RefCell::new(None),
            waker: RefCell::new(None),
            heard: Cell::new(now),
            last_ack: Cell::new(None),
            is_delivered: Cell::new(false),
            is_orphaned: Cell::new(false),
            is_warm: Cell::new(false),
            opening: Cell::new(opening),
            commons,
        }
    }

    /// Takes in one packet of this flow.
    pub(crate) fn handle_packet(&self, clock: &Clock, link: &Link, segment: &Segment, packet: &[u8]) {
        let now = clock.now();
        let mut stack = self.stack.borrow_mut();
        self.heard.set(now);
        if stack.is_connecting() {
            self.handle_answer(&mut stack, clock.smoltcp(now), link, segment, packet);
            return self.wake();
        }
        // An acknowledgment or a reset needs no memory.
        let needs_memory = segment.payload > 0 && segment.control == Control::Other;
        if needs_memory
            && !self.rings.borrow_mut().admit(stack.occupancy(), segment.sequence, segment.payload)
        {
            // Lost, and sent again.
            return;
        }
        stack.handle_packet(clock.smoltcp(now), packet, &mut self.outlet(link));
        if stack.standing() == Standing::TimeWait && self.last_ack.get().is_none() {
            self.last_ack.set(LastAck::answering(segment));
        }
        self.wake();
    }

    /// Takes in what may be the answer to our SYN.
    fn handle_answer(
        &self,
        stack: &mut TcpStack,
        now: smoltcp::time::Instant,
        link: &Link,
        segment: &Segment,
        packet: &[u8],
    ) {
        stack.handle_packet(now, packet, &mut self.outlet(link));
        if stack.is_connecting() {
            let is_foreign = segment.control == Control::Other && segment.acknowledgment.is_some();
            if is_foreign {
                self.opening.set(Opening::Challenged);
            }
        } else if stack.standing() == Standing::Alive {
            // The stack takes in no payload of this segment: it comes again.
            self.rings.borrow_mut().begin(segment.sequence + 1);
            self.segment_size.set(segment_size(segment));
            self.opening.set(Opening::Over);
        }
    }

    /// Resets the connection towards the container at once. With a full link RST is held like any frame.
    pub(crate) fn reset(&self, clock: &Clock, link: &Link) {
        // A panic while a segment was taken in leaves the stack unborrowed; still, this runs in clean-up.
        let Ok(mut stack) = self.stack.try_borrow_mut() else { return };
        self.held.replace(None);
        stack.abort();
        stack.poll_transmit(clock.smoltcp(clock.now()), &mut self.outlet(link));
    }

    /// Leaves the flow to deliver what the container had sent: its end of the link is gone. Only for a flow whose
    /// end the container has sent, nothing else is complete; returns whether it is one.
    pub(crate) fn orphan(&self) -> bool {
        let complete = self.stack.borrow().has_received_end();
        self.is_orphaned.set(complete);
        self.wake();
        complete
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.is_orphaned.get()
    }

    /// Whether the stream has everything that the container will ever send, or takes nothing any more. The container
    /// has sent nothing on a connection that is not open yet.
    pub(crate) fn is_delivered(&self) -> bool {
        self.is_delivered.get() || self.opening.get() != Opening::Over
    }

    pub(super) fn how_it_opens(&self) -> Opening {
        self.opening.get()
    }

    /// Sends another SYN, after the container has taken the last one for a segment of an older connection.
    pub(super) fn open_anew(&self) {
        self.opening.set(Opening::UnderWay);
        self.stack.borrow_mut().connect_anew(self.key);
    }

    /// Gives an active open up, if the container has not answered it yet.
    pub(super) fn refuse_opening(&self) {
        if self.opening.get() != Opening::Over {
            self.opening.set(Opening::Unreachable);
            self.wake();
        }
    }

    pub(super) fn set_delivered(&self) {
        self.is_delivered.set(true);
    }

    /// Notes that the rings may hold memory. Returns whether that is news.
    pub(super) fn warm(&self) -> bool {
        !self.is_warm.replace(true)
    }

    /// Gives the memory of the rings back if the container has been silent since `limit`. Returns whether there is none
    /// left.
    pub(super) fn reclaim(&self, limit: Instant) -> bool {
        let is_cold =
            self.heard.get() <= limit && self.rings.borrow_mut().reclaim(self.stack.borrow().occupancy());
        self.is_warm.set(!is_cold);
        is_cold
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Whether the container is done with the connection, so that it may use the tuple for another.
    pub(crate) fn is_over(&self) -> bool {
        match self.stack.borrow().standing() {
            Standing::TimeWait | Standing::Closed | Standing::Reset => true,
            Standing::Alive => false,
        }
    }

    /// Whether the SYN was taken in.
    pub(crate) fn is_listening(&self) -> bool {
        self.stack.borrow().is_listening()
    }

    /// What is needed to let the tuple rest, if it has to.
    pub(crate) fn last_ack(&self) -> Option<LastAck> {
        self.last_ack.get()
    }

    /// Whether a frame waits for the link; until it is gone nothing is sent.
    pub(crate) fn is_blocked(&self) -> bool {
        self.held.borrow().is_some()
    }

    /// Tries the frame again that the link did not take.
    pub(crate) fn retry(&self, link: &Link) {
        let Some(frame) = self.held.take() else { return };
        if let Sent::Held(frame) = link.resend(frame) {
            self.held.replace(Some(frame));
        }
    }

    /// Wakes `waker` when a segment has been taken in.
    pub(super) fn register(&self, waker: &Waker) {
        let mut registered = self.waker.borrow_mut();
        match registered.as_mut() {
            Some(registered) => registered.clone_from(waker),
            None => *registered = Some(waker.clone()),
        }
    }

    /// Sends what is due. Returns whether anything was sent.
    pub(super) fn transmit(&self, clock: &Clock, link: &Link, now: Instant) -> bool {
        let mut stack = self.stack.borrow_mut();
        match stack.standing() {
            // Nothing is owed.
            Standing::Closed | Standing::Reset => false,
            // Past its own TIME-WAIT smoltcp would throw away what the stream has not taken yet.
            Standing::TimeWait if now >= self.heard.get() + TIME_WAIT_ANSWERS => false,
            Standing::Alive | Standing::TimeWait => {
                stack.poll_transmit(clock.smoltcp(now), &mut self.outlet(link))
            }
        }
    }

    fn outlet<'a>(&'a self, link: &'a Link) -> Outlet<'a> {
        Outlet { link, held: &self.held, key: self.key, segment_size: self.segment_size.get() }
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        let socket = self.stack.get_mut().take_socket();
        if let Some(pages) = self.rings.get_mut().take_memory() {
            self.commons.sockets().give_back(RingSocket { socket, pages });
        }
    }
}

fn segment_size(syn: &Segment) -> u16 {
    syn.max_segment_size.filter(|size| *size != 0).unwrap_or(DEFAULT_MSS).max(MIN_MSS)
}

/// Sends a stack's packets over the link, holding one back when it is full.
struct Outlet<'a> {
    link: &'a Link,
    held: &'a RefCell<Option<HeldFrame>>,
    key: FlowKey,
    segment_size: u16,
}

impl Transmit for Outlet<'_> {
    fn is_ready(&self) -> bool {
        self.held.borrow().is_none()
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let header = self.link.device().segment_header(self.key, length, self.segment_size);
        let (sent, result) = self.link.send_with(header, length, |packet| {
            let result = fill(packet);
            if header.checksum != vnet::Checksum::Complete {
                frame::write_tcp_sum(packet, self.key);
            }
            result
        });
        if let Sent::Held(frame) = sent {
            self.held.replace(Some(frame));
        }
        result
    }
}
