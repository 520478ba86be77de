//! One open connection as the link reader sees it: takes segments in and sends the stack's segments.

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
use nsnet_stack::tcp::{Standing, TcpStack, Transmit, Window};
use smoltcp::wire::TcpSeqNumber;

/// MSS of a container that names none (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;

/// smoltcp's own lower bound. Its segments and the kernel's must agree on at least this.
const MIN_MSS: u16 = 48;

/// How long after its last segment a connection in TIME-WAIT is answered. Shorter than smoltcp's `CLOSE_DELAY` of 10 s.
const TIME_WAIT_ANSWERS: Duration = Duration::from_secs(5);

/// An open connection.
pub(crate) struct TcpFlow {
    key: FlowKey,
    /// Bytes of payload in a segment, from the container's SYN.
    segment_size: Cell<u16>,
    pub(super) stack: RefCell<TcpStack>,
    /// The memory of the stack's rings.
    pub(super) rings: RefCell<Rings<Pages>>,
    window: Cell<Window>,
    /// The one frame that the link did not take.
    held: RefCell<Option<HeldFrame>>,
    /// Wakes the relay.
    waker: RefCell<Option<Waker>>,
    /// When the last segment of the container came.
    pub(super) heard: Cell<Instant>,
    last_ack: Cell<Option<LastAck>>,
    is_delivered: Cell<bool>,
    is_orphaned: Cell<bool>,
    is_warm: Cell<bool>,
    opening: Cell<Opening>,
    commons: Rc<Commons>,
}

/// The state of an active open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// The container's SYN has been taken in.
    Over,
    /// The container's SYN is still missing.
    UnderWay,
    /// The container has taken our SYN for a segment of an older connection.
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
        let flow = Self::with(key, Opening::Over, stack, rings, commons, now);
        flow.agree(syn);
        flow
    }

    /// A flow whose SYN is sent to the container.
    pub(super) fn opening(
        key: FlowKey,
        stack: TcpStack,
        rings: Rings<Pages>,
        commons: Rc<Commons>,
        now: Instant,
    ) -> Self {
        Self::with(key, Opening::UnderWay, stack, rings, commons, now)
    }

    fn with(
        key: FlowKey,
        opening: Opening,
        stack: TcpStack,
        rings: Rings<Pages>,
        commons: Rc<Commons>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            segment_size: Cell::new(DEFAULT_MSS),
            stack: RefCell::new(stack),
            rings: RefCell::new(rings),
            window: Cell::default(),
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

    /// Takes what the container's SYN offers.
    fn agree(&self, syn: &Segment) {
        self.segment_size.set(segment_size(syn));
        self.window.set(Window::new(syn));
    }

    /// Handles one packet of this flow.
    pub(crate) fn handle_packet(&self, clock: &Clock, link: &Link, segment: &Segment, packet: &[u8]) {
        let now = clock.now();
        let mut stack = self.stack.borrow_mut();
        self.heard.set(now);
        if stack.is_connecting() {
            self.handle_answer(&mut stack, clock.smoltcp(now), link, segment, packet);
            return self.wake();
        }
        // An acknowledgment or a reset needs no ring memory.
        let needs_memory = segment.payload > 0 && segment.control == Control::Other;
        if needs_memory
            && !self.rings.borrow_mut().admit(stack.occupancy(), segment.sequence, segment.payload)
        {
            // The segment is lost, and the container sends it again.
            return;
        }
        let mut outlet = self.outlet(link, self.receive_limit(&stack));
        stack.handle_packet(clock.smoltcp(now), packet, &mut outlet);
        if stack.standing() == Standing::TimeWait && self.last_ack.get().is_none() {
            self.last_ack.set(LastAck::answering(segment));
        }
        self.wake();
    }

    /// Handles a possible answer to our SYN.
    fn handle_answer(
        &self,
        stack: &mut TcpStack,
        now: smoltcp::time::Instant,
        link: &Link,
        segment: &Segment,
        packet: &[u8],
    ) {
        let mut outlet = self.outlet(link, self.receive_limit(stack));
        stack.handle_packet(now, packet, &mut outlet);
        if stack.is_connecting() {
            let is_foreign = segment.control == Control::Other && segment.acknowledgment.is_some();
            if is_foreign {
                self.opening.set(Opening::Challenged);
            }
        } else if stack.standing() == Standing::Alive {
            // The stack takes no payload of this segment, so the container sends it again.
            self.rings.borrow_mut().begin(segment.sequence + 1);
            self.agree(segment);
            self.opening.set(Opening::Over);
        }
    }

    /// Resets the connection towards the container at once, unless the container is gone. With a full link the RST is
    /// held like any frame.
    pub(crate) fn reset(&self, clock: &Clock, link: &Link) {
        if self.is_orphaned.get() {
            return;
        }
        // A panic while a segment was taken in leaves the stack unborrowed. But this runs in clean-up, so it takes no
        // risk.
        let Ok(mut stack) = self.stack.try_borrow_mut() else { return };
        self.held.replace(None);
        stack.abort();
        let mut outlet = self.outlet(link, self.receive_limit(&stack));
        stack.poll_transmit(clock.smoltcp(clock.now()), &mut outlet);
    }

    /// Leaves the flow alone to deliver the container's data after the container's end of the link is gone. Only a flow
    /// whose FIN has come is complete. Returns whether this is one.
    pub(crate) fn orphan(&self) -> bool {
        let complete = self.stack.borrow().has_received_end();
        self.is_orphaned.set(complete);
        if complete {
            self.wake();
        }
        complete
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.is_orphaned.get()
    }

    /// Whether the stream has everything that the container will ever send, or accepts nothing more. The container has
    /// sent nothing on a connection that is not open yet.
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

    /// Gives an active open up if the container has not answered it yet.
    pub(super) fn refuse_opening(&self) {
        if self.opening.get() != Opening::Over {
            self.opening.set(Opening::Unreachable);
            self.wake();
        }
    }

    pub(super) fn set_delivered(&self) {
        self.is_delivered.set(true);
    }

    /// Marks the rings as holding memory. Returns whether they were not marked before.
    pub(super) fn warm(&self) -> bool {
        !self.is_warm.replace(true)
    }

    /// Frees the memory of the rings if the container has been silent since `limit`. Returns whether none is left.
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

    /// Whether the container is done with the connection, and so may use the tuple for another.
    pub(crate) fn is_over(&self) -> bool {
        match self.stack.borrow().standing() {
            Standing::TimeWait | Standing::Closed | Standing::Reset => true,
            Standing::Alive => false,
        }
    }

    /// Whether the stack is in LISTEN, waiting for the SYN.
    pub(crate) fn is_listening(&self) -> bool {
        self.stack.borrow().is_listening()
    }

    /// The state that TIME-WAIT needs, if the tuple has to rest.
    pub(crate) fn last_ack(&self) -> Option<LastAck> {
        self.last_ack.get()
    }

    /// Whether a frame waits for the link. Until it is gone nothing is sent.
    pub(crate) fn is_blocked(&self) -> bool {
        self.held.borrow().is_some()
    }

    /// Sends the frame again that the link did not take.
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

    /// Sends what is due, until the time `end`. Returns whether anything was sent.
    pub(super) fn transmit(&self, clock: &Clock, link: &Link, now: Instant, end: Instant) -> bool {
        let mut stack = self.stack.borrow_mut();
        match stack.standing() {
            // Nothing is left to send.
            Standing::Closed | Standing::Reset => false,
            // After its own TIME-WAIT, smoltcp would discard bytes that the stream has not taken yet.
            Standing::TimeWait if now >= self.heard.get() + TIME_WAIT_ANSWERS => false,
            Standing::Alive | Standing::TimeWait => {
                let limit = self.receive_limit(&stack);
                let mut outlet = Outlet { end: Some((clock, end)), ..self.outlet(link, limit) };
                stack.poll_transmit(clock.smoltcp(now), &mut outlet)
                    || stack.awaits_bytes() && self.update_window(&stack, &mut outlet)
            }
        }
    }

    /// Tells the container if its window has grown without smoltcp knowing. Returns whether it did.
    fn update_window(&self, stack: &TcpStack, outlet: &mut Outlet<'_>) -> bool {
        let expected = self.rings.borrow().expected(stack.occupancy());
        let update = self.window.get().update(self.key, expected, outlet.receive_limit);
        let Some(update) = update.filter(|_| outlet.is_ready()) else { return false };
        outlet.transmit(update.len(), |packet| packet.copy_from_slice(&update));
        true
    }

    /// Where the container's window may end.
    fn receive_limit(&self, stack: &TcpStack) -> TcpSeqNumber {
        self.rings.borrow_mut().receive_limit(stack.occupancy())
    }

    fn outlet<'a>(&'a self, link: &'a Link, receive_limit: TcpSeqNumber) -> Outlet<'a> {
        Outlet { link, flow: self, receive_limit, end: None, has_sent: false }
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

/// Sends a stack's packets over the link, and holds one back when the link is full.
struct Outlet<'a> {
    link: &'a Link,
    flow: &'a TcpFlow,
    receive_limit: TcpSeqNumber,
    /// The time after which at most one packet is sent. Writing to a device may be slow: it runs the container's packet
    /// filter.
    end: Option<(&'a Clock, Instant)>,
    has_sent: bool,
}

impl Transmit for Outlet<'_> {
    fn is_ready(&self) -> bool {
        !self.flow.is_blocked() && self.end.is_none_or(|(clock, end)| !self.has_sent || clock.now() < end)
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.has_sent = true;
        let flow = self.flow;
        let header = self.link.device().segment_header(flow.key, length, flow.segment_size.get());
        let (sent, result) = self.link.send_with(header, length, |packet| {
            let result = fill(packet);
            let mut window = flow.window.get();
            window.clamp(packet, flow.key, self.receive_limit);
            flow.window.set(window);
            if header.checksum != vnet::Checksum::Complete {
                frame::write_tcp_sum(packet, flow.key);
            }
            result
        });
        if let Sent::Held(frame) = sent {
            flow.held.replace(Some(frame));
        }
        result
    }
}
