//! The task of an open connection. It moves bytes between smoltcp's rings and the upstream stream, without a buffer of
//! its own.
//!
//! # Closing
//! Each direction ends by itself. The container's FIN becomes a shutdown of the stream once every byte before it is
//! written. The stream's end becomes FIN behind every byte read. A stream that breaks off is read empty, and RST
//! follows its last bytes, as on the wire. An RST of the container aborts the stream. So does the end of a relay that
//! still owed the stream bytes. Data that the container had finished sending is still delivered.
//!
//! # Waking
//! The task runs for segments of the container, for the stream, and for the link when a frame of this flow is held. It
//! has one timer: the stack's next deadline, or the end of patience with a container that owes an answer. An idle
//! connection has no timer.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::flow::TcpFlow;
use crate::context::Context;
use crate::dialer::Stream;
use crate::link::Link;
use crate::task::clock::Clock;
use crate::threads::turns::{Place, Turn};
use nsnet_stack::tcp::{Standing, TcpStack};

/// How long a connection waits without a segment of the container for an acknowledgment or a FIN. It is above the 4
/// minutes that RFC 5382, 5 asks of a NAT in transitory states.
const SILENCE: Duration = Duration::from_secs(300);

/// The resolution of the runtime's timers.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// How long a stream that accepts nothing more is read for bytes that arrived before it broke.
const LAST_WORDS: Duration = Duration::from_millis(5);

/// Relays between an open connection and its stream until neither side has bytes left to get.
pub(crate) async fn relay(flow: Rc<TcpFlow>, context: &Context, place: &Place, stream: Stream) {
    let Context { clock, link, progress, .. } = context;
    let mut relay = Relay {
        flow: &flow,
        place,
        clock,
        link,
        progress,
        stream: Some(stream),
        to_stream: ToStream::Relaying,
        is_flushed: true,
        last_words: None,
        to_container: ToContainer::Relaying,
        timer: Timer::new(),
    };
    loop {
        let blocked = flow.is_blocked();
        tokio::select! {
            biased;
            progress = poll_fn(|cx| relay.poll(cx, blocked)) => match progress {
                Step::Blocked => {}
                Step::Finished => return,
            },
            writable = link.writable(), if blocked => match writable {
                Ok(()) => flow.retry(link),
                Err(_) => return,
            },
        }
    }
}

enum Step {
    /// The link is full, see [`TcpFlow::is_blocked`].
    Blocked,
    Finished,
}

/// The direction container → stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToStream {
    Relaying,
    /// The container's FIN has come, and every byte before it is written.
    ShuttingDown,
    Done,
    /// The stream accepts nothing more.
    Broken,
}

/// The direction stream → container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ToContainer {
    Relaying,
    /// The stream ended, and FIN is queued.
    Done,
    /// The stream broke off. RST follows once the container has the bytes that were read before.
    BreakingOff,
    /// RST is queued.
    Reset,
}

struct Relay<'a> {
    flow: &'a TcpFlow,
    place: &'a Place,
    clock: &'a Clock,
    link: &'a Link,
    progress: &'a Notify,
    /// Taken out only when the relay is dropped.
    stream: Option<Stream>,
    to_stream: ToStream,
    is_flushed: bool,
    /// The time until which a broken stream may still hold bytes for the container.
    last_words: Option<Instant>,
    to_container: ToContainer,
    timer: Timer,
}

/// A timer that is set anew only to fire earlier. One that fires too early is set again. So any number of deadlines
/// that move later cost one wake-up. Each setting would cost a system call.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    is_set: bool,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), is_set: false }
    }

    /// Ready at `deadline` at the latest.
    pub(super) fn poll(&mut self, cx: &mut task::Context<'_>, deadline: Instant) -> Poll<()> {
        if !self.is_set || deadline < self.sleep.deadline().into_std() {
            self.sleep.as_mut().reset(deadline.into());
            self.is_set = true;
        }
        ready!(self.sleep.as_mut().poll(cx));
        self.is_set = false;
        Poll::Ready(())
    }
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut task::Context<'_>, blocked: bool) -> Poll<Step> {
        self.flow.register(cx.waker());
        let mut turn = ready!(self.place.poll_turn(cx));
        loop {
            let moved = self.exchange(cx, &mut turn);
            let now = self.clock.now();
            let sent = self.flow.transmit(self.clock, self.link, now, turn.end());
            if self.is_over() {
                return Poll::Ready(Step::Finished);
            }
            if self.flow.is_blocked() && !blocked {
                return Poll::Ready(Step::Blocked);
            }
            if moved || sent {
                if turn.is_over(self.clock.now()) {
                    break;
                }
                continue;
            }
            let Some(deadline) = self.deadline(now) else { return Poll::Pending };
            ready!(self.timer.poll(cx, deadline));
            if self.is_silent(self.clock.now()) {
                self.reset();
            }
        }
        drop(turn);
        self.place.line_up(cx);
        Poll::Pending
    }

    /// Moves bytes in both directions, once each. Returns whether anything changed.
    fn exchange(&mut self, cx: &mut task::Context<'_>, turn: &mut Turn<'_>) -> bool {
        let mut stack = self.flow.stack.borrow_mut();
        if stack.standing() == Standing::Reset {
            return false;
        }
        // Each direction may move what is left, so that neither starves the other.
        let (mut up_left, mut down_left) = (turn.left(), turn.left());
        let up = self.relay_to_stream(&mut stack, cx, &mut up_left).unwrap_or_else(|_| {
            self.to_stream = ToStream::Broken;
            self.last_words = Some(self.clock.now() + LAST_WORDS);
            true
        });
        if matches!(self.to_stream, ToStream::Done | ToStream::Broken) && !self.flow.is_delivered() {
            self.flow.set_delivered();
            self.progress.notify_one();
        }
        // Called twice, so that the stream's end leaves together with its last bytes.
        let down = self.relay_to_container(&mut stack, cx, &mut down_left);
        if down {
            self.relay_to_container(&mut stack, cx, &mut down_left);
        }
        turn.moved(2 * turn.left() - up_left - down_left);
        let off = self.to_container == ToContainer::BreakingOff && stack.send_queue() == 0;
        drop(stack);
        if off {
            self.reset();
        }
        up || down || off
    }

    fn relay_to_stream(
        &mut self,
        stack: &mut TcpStack,
        cx: &mut task::Context<'_>,
        left: &mut usize,
    ) -> io::Result<bool> {
        match self.to_stream {
            ToStream::Relaying if stack.can_receive() => self.write(stack, cx, left),
            ToStream::Relaying if !self.is_flushed => self.flush(cx),
            ToStream::Relaying if stack.is_receive_finished() => {
                self.to_stream = ToStream::ShuttingDown;
                Ok(true)
            }
            ToStream::ShuttingDown => self.shut_down(cx),
            ToStream::Relaying | ToStream::Done | ToStream::Broken => Ok(false),
        }
    }

    fn write(
        &mut self,
        stack: &mut TcpStack,
        cx: &mut task::Context<'_>,
        left: &mut usize,
    ) -> io::Result<bool> {
        if *left == 0 {
            return Ok(false);
        }
        let stream = self.stream()?;
        let written = stack.receive(|bytes| match stream.poll_write(cx, &bytes[..bytes.len().min(*left)]) {
            Poll::Ready(Ok(written)) => (written, Some(Ok(written))),
            Poll::Ready(Err(error)) => (0, Some(Err(error))),
            Poll::Pending => (0, None),
        });
        match written {
            // Bytes in a buffering stream must leave even if it accepts no more.
            None if !self.is_flushed => self.flush(cx),
            None => Ok(false),
            Some(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            Some(Ok(written)) => {
                *left = left.saturating_sub(written);
                self.is_flushed = false;
                Ok(true)
            }
            Some(Err(error)) => Err(error),
        }
    }

    fn flush(&mut self, cx: &mut task::Context<'_>) -> io::Result<bool> {
        match self.stream()?.poll_flush(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(result) => {
                self.is_flushed = true;
                result.map(|()| true)
            }
        }
    }

    fn shut_down(&mut self, cx: &mut task::Context<'_>) -> io::Result<bool> {
        match self.stream()?.poll_shutdown(cx) {
            Poll::Pending => Ok(false),
            // A stream that has ended already cannot be shut down. That is no fault.
            Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            Poll::Ready(_) => {
                self.to_stream = ToStream::Done;
                Ok(true)
            }
        }
    }

    fn relay_to_container(
        &mut self,
        stack: &mut TcpStack,
        cx: &mut task::Context<'_>,
        left: &mut usize,
    ) -> bool {
        match self.to_container {
            ToContainer::Relaying if stack.can_send() => {}
            // The stream had ended before it broke.
            ToContainer::Done if self.to_stream == ToStream::Broken => {
                self.to_container = ToContainer::BreakingOff;
                return true;
            }
            ToContainer::Relaying | ToContainer::Done | ToContainer::BreakingOff | ToContainer::Reset => {
                return false;
            }
        }
        let space = self.flow.rings.borrow_mut().send_space(stack.occupancy());
        let limit = space.min(*left);
        if limit == 0 {
            // The container's acknowledgment, or the next turn, has to come first.
            return false;
        }
        let Ok(stream) = self.stream() else { return false };
        let read = stack.send(|space| {
            let length = space.len().min(limit);
            let mut space = ReadBuf::new(&mut space[..length]);
            match stream.poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) => (space.filled().len(), Some(Ok(space.filled().len()))),
                Poll::Ready(Err(error)) => (0, Some(Err(error))),
                Poll::Pending => (0, None),
            }
        });
        if let Some(Ok(read)) = read {
            *left = left.saturating_sub(read);
            self.flow.rings.borrow_mut().queued(read);
        }
        self.to_container = match read {
            Some(Ok(read)) if read > 0 => ToContainer::Relaying,
            // Bytes may have arrived that the runtime has not noticed yet.
            None if self.last_words.is_none_or(|until| self.clock.now() < until) => return false,
            // Any other error of a broken stream is not an orderly end either.
            _ if self.to_stream == ToStream::Broken => ToContainer::BreakingOff,
            None => return false,
            Some(Err(_)) => ToContainer::BreakingOff,
            Some(Ok(_)) => {
                stack.close();
                ToContainer::Done
            }
        };
        true
    }

    /// Breaks the connection off towards the container. The relay ends once RST is sent.
    fn reset(&mut self) {
        self.to_container = ToContainer::Reset;
        self.flow.stack.borrow_mut().abort();
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn is_over(&self) -> bool {
        let settled = matches!(self.to_stream, ToStream::Done | ToStream::Broken);
        match self.flow.stack.borrow().standing() {
            Standing::Reset => true,
            // The container's end of the link is gone, so only the stream has bytes left to get.
            _ if self.flow.is_orphaned() => settled,
            Standing::Closed | Standing::TimeWait if self.flow.is_blocked() => false,
            // RST is sent.
            Standing::Closed if self.to_container == ToContainer::Reset => true,
            // The container is done, but the stream may still lack its last bytes.
            Standing::TimeWait | Standing::Closed => settled,
            Standing::Alive => false,
        }
    }

    /// When to look again if nothing happens before.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let mut stack = self.flow.stack.borrow_mut();
        if matches!(stack.standing(), Standing::TimeWait | Standing::Closed) {
            // The relay waits only for the stream. In TIME-WAIT the stack's timer would discard the bytes that it still
            // holds.
            return None;
        }
        let due = match stack.poll_at(self.clock.smoltcp(now)) {
            // Due at once but not sent: the link is full, and the relay waits for it to become writable.
            Some(_) if self.flow.is_blocked() => None,
            Some(due) => Some(self.clock.instant(due)),
            None => None,
        };
        let last_words =
            self.last_words.filter(|_| self.to_container == ToContainer::Relaying && stack.can_send());
        let silence = stack.awaits_container().then(|| self.flow.heard.get() + SILENCE);
        // Everything due before now has just been tried. A deadline in the past would spin.
        [due, last_words, silence].into_iter().flatten().min().map(|deadline| deadline.max(now + TICK))
    }

    fn is_silent(&self, now: Instant) -> bool {
        self.flow.stack.borrow().awaits_container() && now >= self.flow.heard.get() + SILENCE
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        match self.to_stream {
            // The stream has everything, its end included. The kernel delivers bytes that it has taken.
            ToStream::ShuttingDown | ToStream::Done if self.to_container != ToContainer::Reset => {
                drop(stream)
            }
            ToStream::Relaying | ToStream::ShuttingDown | ToStream::Done | ToStream::Broken => stream.abort(),
        }
    }
}
