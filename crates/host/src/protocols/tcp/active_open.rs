//! The active open (RFC 9293, 3.10.1): a connection from outside, opened towards the container under its client's
//! address. It shares table, stack and relay with connections that the container opens.
//!
//! ```text
//!                  SYN to the container          SYN-ACK: ACK, relay
//! (nothing) ─────────────────────────► Opening ──────────────────────► as the container's own
//!                                       │  ▲ │ RST, ICMP unreachable: refused
//!                                       └──┘ └────► (nothing)
//!                               ACK of an older connection:
//!                               RST, and a SYN that begins anew
//! ```
//!
//! A client may use its port again while the container's end of the previous connection rests in TIME-WAIT. The
//! container then answers a SYN below the old sequence numbers with an acknowledgment. Our RST ends TIME-WAIT, and the
//! next SYN, sent at once, is accepted. smoltcp alone would repeat the SYN a second later.
//!
//! The caller sets the time limit, and drops the future to give up. The container then gets an RST.

use std::future::poll_fn;
use std::hash::BuildHasher;
use std::io;
use std::rc::Rc;
use std::task::{self, Poll, ready};

use smoltcp::wire::TcpSeqNumber;
use tokio::task::AbortHandle;

use super::flow::{Opening, TcpFlow};
use super::relay::{TICK, Timer, relay};
use super::table::{OpenedBy, Release, State, Table, TupleUse, find_open};
use crate::context::Context;
use crate::dialer::Stream;
use crate::threads::commons::RingSocket;
use nsnet_stack::flow::FlowKey;
use nsnet_stack::tcp::Rings;
use nsnet_stack::tcp::{Standing, TcpStack};

/// How often a container may take our SYN for a segment of an older connection. In practice it happens once.
const CHALLENGES: usize = 3;

/// Room in the table for one connection until it is open.
pub(crate) struct Reservation(Rc<Table>);

impl Reservation {
    /// `None` if the table has no room.
    pub(crate) fn take(table: &Rc<Table>) -> Option<Self> {
        table.has_room().then(|| {
            table.reserved.set(table.reserved.get() + 1);
            Self(Rc::clone(table))
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let reserved = &self.0.reserved;
        reserved.set(reserved.get() - 1);
    }
}

/// A connection that the container has accepted.
pub(crate) struct OpenedConnection {
    flow: Rc<TcpFlow>,
    release: Release,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Nothing listens, or the container reports so.
    #[error("connection refused inside")]
    Refused,
    #[error("{0}")]
    Host(#[source] io::Error),
}

/// Opens a connection to `key.container`, which is the container, in the name of `key.peer`. The tuple must be
/// [free](Table::is_free). `task` belongs to the caller, and is aborted when the connection is to end at once.
pub(crate) async fn connect(
    reservation: Reservation,
    key: FlowKey,
    task: AbortHandle,
) -> Result<OpenedConnection, OpenError> {
    let table = Rc::clone(&reservation.0);
    // From here on the connection itself counts.
    drop(reservation);
    let connection = table.begin(key, task)?;
    let context = &*table.context;
    Handshake { flow: &connection.flow, context, timer: Timer::new(), challenges: 0 }.run().await?;
    Ok(connection)
}

impl OpenedConnection {
    /// Relays between the container and `stream` until neither has bytes left to get.
    pub(crate) async fn relay(self, stream: Stream) {
        let context = &*self.release.table.context;
        relay(self.flow, context, &context.lane.place(), stream).await;
    }
}

impl Table {
    /// Whether no connection of this gateway uses the tuple.
    pub(crate) fn is_free(&self, key: &FlowKey) -> bool {
        !self.tuples.borrow().contains_key(key)
    }

    /// Gives up an active open after the container has reported that it leads nowhere (RFC 9293, 3.9.2.2).
    pub(crate) fn refuse_opening(&self, key: &FlowKey) {
        let open = find_open(&self.tuples.borrow(), key);
        if let Some(flow) = open {
            flow.refuse_opening();
        }
    }

    fn begin(self: &Rc<Self>, key: FlowKey, task: AbortHandle) -> Result<OpenedConnection, OpenError> {
        let context = &self.context;
        let RingSocket { socket, pages } =
            context.commons.sockets().take().map_err(|errno| OpenError::Host(errno.into()))?;
        let now = context.clock.now();
        let id = self.next_id();
        let stack = TcpStack::connect(
            key,
            socket,
            context.link.device().tcp_capabilities(key.peer.ip()),
            self.seeds.hash_one((key, id)),
            context.clock.smoltcp(now),
        );
        // The container's SYN will set the start of its stream.
        let rings = Rings::new(pages, TcpSeqNumber(0), Rc::clone(&self.budget));
        let flow = Rc::new(TcpFlow::opening(key, stack, rings, Rc::clone(&context.commons), now));
        self.resting.borrow_mut().remove(&key);
        let tuple = TupleUse { id, task: Some(task), state: State::Open(Rc::clone(&flow)) };
        self.tuples.borrow_mut().insert(key, tuple);
        let release = Release { table: Rc::clone(self), key, id, origin: OpenedBy::World };
        Ok(OpenedConnection { flow, release })
    }
}

struct Handshake<'a> {
    flow: &'a TcpFlow,
    context: &'a Context,
    timer: Timer,
    challenges: usize,
}

enum Step {
    /// The link is full.
    Blocked,
    Done(Result<(), OpenError>),
}

impl Handshake<'_> {
    async fn run(&mut self) -> Result<(), OpenError> {
        let (flow, link) = (self.flow, &self.context.link);
        loop {
            let blocked = flow.is_blocked();
            tokio::select! {
                biased;
                progress = poll_fn(|cx| self.poll(cx, blocked)) => match progress {
                    Step::Blocked => {}
                    Step::Done(result) => return result,
                },
                writable = link.writable(), if blocked => match writable {
                    Ok(()) => flow.retry(link),
                    Err(error) => return Err(OpenError::Host(error)),
                },
            }
        }
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, blocked: bool) -> Poll<Step> {
        self.flow.register(cx.waker());
        loop {
            if self.flow.stack.borrow().standing() != Standing::Alive {
                return Poll::Ready(Step::Done(Err(OpenError::Refused)));
            }
            match self.flow.how_it_opens() {
                Opening::Unreachable => return Poll::Ready(Step::Done(Err(OpenError::Refused))),
                Opening::Challenged if self.challenges < CHALLENGES => {
                    self.challenges += 1;
                    self.flow.open_anew();
                }
                Opening::Over if self.flow.stack.borrow().is_synchronized() => {
                    return Poll::Ready(Step::Done(Ok(())));
                }
                // After a SYN of the container's own, its acknowledgment of ours is still missing.
                Opening::Over | Opening::UnderWay | Opening::Challenged => {}
            }
            let (clock, link) = (&self.context.clock, &self.context.link);
            let now = clock.now();
            let sent = self.flow.transmit(clock, link, now, now + TICK);
            if self.flow.is_blocked() {
                return if blocked { Poll::Pending } else { Poll::Ready(Step::Blocked) };
            }
            if sent {
                continue;
            }
            let due = self.flow.stack.borrow_mut().poll_at(clock.smoltcp(now));
            let Some(due) = due else { return Poll::Pending };
            ready!(self.timer.poll(cx, clock.instant(due).max(now + TICK)));
        }
    }
}
