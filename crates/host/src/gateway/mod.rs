//! The router that the container believes in. It reads frames, finds the flow of each packet, and answers.
//!
//! One gateway serves one container, or one queue of its device ([`queues`]). All of it runs on one engine thread.
//! Flows share only the gateway, by `Rc`. The reader takes at most [`BATCH`] frames before the flows get their turn.

mod dispatch;
mod echo;
mod fragments;
pub(crate) mod members;
pub(crate) mod neighbours;
pub(crate) mod queues;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{self, Future};
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use nsnet_stack::fragments::Reassembler;

use crate::attach::Finished;
use crate::context::Context;
use crate::gateway::members::Isolation;
use crate::gateway::neighbours::Neighbours;
use crate::gateway::queues::Siblings;
use crate::protocols::Protocols;

/// Frames read before their flows run. The number is large enough to share the cost of a wake-up. It is small enough
/// that an answer does not wait for a millisecond's worth of input.
const BATCH: usize = 32;

/// Bytes read before the flows run. Data in the rings is then still in the second-level cache when it is written to the
/// streams. Four of the largest frames fit. With sixty-four, a single stream had little more than half the speed.
const BATCH_BYTES: usize = 256 << 10;

/// More batches than a TUN device can queue.
const MAX_BATCHES_QUEUED: usize = 4096;

/// The router of one container, or of one queue of its device.
pub(crate) struct Gateway {
    pub(crate) protocols: Rc<Protocols>,
    isolation: Isolation,
    /// The other containers. Unset if this one is isolated, or if this gateway serves another queue than the first.
    neighbours: OnceCell<Rc<Neighbours>>,
    /// The gateways of the container's other queues, if there are any.
    siblings: Option<Siblings>,
    fragments: RefCell<Reassembler>,
    /// Whether a task waits for the next deadline of the fragments.
    expires_fragments: Cell<bool>,
}

impl Gateway {
    pub(crate) fn new(
        protocols: Rc<Protocols>,
        isolation: Isolation,
        siblings: Option<Siblings>,
    ) -> Rc<Self> {
        Rc::new(Self {
            protocols,
            isolation,
            neighbours: OnceCell::new(),
            siblings,
            fragments: RefCell::default(),
            expires_fragments: Cell::new(false),
        })
    }

    /// Serves the container, and then resets connections. Serving ends in one of three cases:
    ///
    /// - `end` resolves.
    /// - `finish` has resolved, and everything is delivered.
    /// - The container's end of the link is gone, and its data is delivered.
    ///
    /// With several queues, everything must be delivered on every queue, and only the gateway of the first returns
    /// before `end`. `lost` is called when the link is gone, with an error if it failed.
    pub(crate) async fn run(
        self: &Rc<Self>,
        end: Pin<&mut impl Future<Output = ()>>,
        finish: impl Future<Output = ()>,
        lost: impl FnOnce(io::Result<()>),
    ) -> Finished {
        // A drop guard, so that a fault in here closes the network instead of leaving it dead.
        let closing = Closing(self);
        let finished = tokio::select! {
            biased;
            finished = self.serve(end, finish, lost) => finished,
            () = self.listen() => self.cut(),
        };
        self.protocols.end().await;
        drop(closing);
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
                let delivered = async {
                    self.protocols.orphan().await;
                    self.delivered().await;
                };
                tokio::select! {
                    () = end => self.cut(),
                    () = delivered => Finished::Delivered,
                }
            }
        }
    }

    /// The outcome for the existing connections when the end is ordered. A queue behind the first is told to end even
    /// if everything is delivered.
    fn cut(self: &Rc<Self>) -> Finished {
        if self.siblings.as_ref().is_some_and(Siblings::has_reported) {
            return Finished::Delivered;
        }
        // What lies in the link counts.
        let is_read = !matches!(self.read_batch(|| false), Ok(Batch::Full));
        if is_read && self.protocols.are_delivered() {
            return Finished::Delivered;
        }
        Finished::Incomplete { connections: self.protocols.tcp.undelivered() }
    }

    /// Waits until the upstream sockets have everything that the container has sent so far.
    async fn delivered(self: &Rc<Self>) {
        loop {
            // Frames in the link count. It does not matter here whether the link is closed.
            for _ in 0..MAX_BATCHES_QUEUED {
                let Ok(Batch::Full) = self.read_batch(|| false) else { break };
                tokio::task::yield_now().await;
            }
            let others = self.siblings.as_ref().is_none_or(Siblings::are_delivered);
            if self.protocols.are_delivered() && others {
                break;
            }
            self.context().progress.notified().await;
        }
        if let Some(siblings) = &self.siblings {
            siblings.report_delivered().await;
        }
    }

    /// Handles packets and messages of the gateways of other queues. Never ends.
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
            self.protocols.flush();
        }
    }

    /// From now on, passes packets for other containers of its network on.
    pub(crate) fn meet(&self, neighbours: Rc<Neighbours>) {
        // Set only once, because a container is admitted once.
        let _ = self.neighbours.set(neighbours);
    }

    /// Reads until the link is gone, or until that of another queue has been gone for a while.
    async fn read_while_linked(self: &Rc<Self>) -> io::Result<()> {
        let Some(siblings) = &self.siblings else { return self.read().await };
        tokio::select! {
            result = self.read() => result,
            () = siblings.link_is_gone() => Ok(()),
        }
    }

    async fn read(self: &Rc<Self>) -> io::Result<()> {
        let place = self.context().lane.reader();
        loop {
            self.context().link.readable().await?;
            let batch = {
                let turn = place.turn().await;
                self.read_batch(|| turn.is_over(self.context().clock.now()))?
            };
            match batch {
                Batch::Drained => {}
                Batch::Full => tokio::task::yield_now().await,
                Batch::Ended => return Ok(()),
            }
        }
    }

    /// Handles one batch of frames from the link. `is_over` says whether it has taken too long.
    fn read_batch(self: &Rc<Self>, is_over: impl Fn() -> bool) -> io::Result<Batch> {
        let context = self.context();
        let mut buffer = context.commons.received();
        let mut outcome = Ok(Batch::Full);
        let (mut frames, mut bytes) = (0..BATCH, 0);
        while bytes < BATCH_BYTES && frames.next().is_some() {
            match context.link.try_receive(&mut buffer) {
                Ok(Some(frame)) => {
                    bytes += frame.len();
                    self.handle_frame(frame);
                    if is_over() {
                        break;
                    }
                    continue;
                }
                Ok(None) => outcome = Ok(Batch::Ended),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => outcome = Ok(Batch::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => outcome = Err(error),
            }
            break;
        }
        self.protocols.flush();
        outcome
    }

    fn context(&self) -> &Context {
        &self.protocols.context
    }
}

/// The end of a batch of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    /// The link is empty now.
    Drained,
    /// The link may hold more.
    Full,
    /// The container's end of the link is gone.
    Ended,
}

/// Closes a gateway when it is dropped: connections are reset on both sides.
struct Closing<'a>(&'a Gateway);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.protocols.close();
    }
}

#[cfg(test)]
mod tests;
