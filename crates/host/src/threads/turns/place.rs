//! One task's place in the line, and its turn.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::SHORT;
use super::fair_queue::{Account, Tag};
use super::lane::Lane;
use crate::task::clock;

/// How long a turn may take, for work that is slow for its bytes.
const LONGEST: Duration = Duration::from_micros(500);

/// Bytes that a turn counts as at least. Giving it and handling acknowledgments have their cost too.
const CHEAPEST: Tag = 1 << 10;

/// Bytes that a task moves in a turn, at most, to count as one that moves little.
pub(super) const SPARSE: Tag = 4 << 10;

/// A place in the line. It is given up when it is dropped.
pub(crate) struct Place {
    lane: Rc<Lane>,
    slot: Rc<Slot>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The task that reads the container's frames.
    Reader,
    Task,
}

/// A place, as the line sees it.
#[derive(Debug)]
pub(super) struct Slot {
    state: Cell<State>,
    waker: RefCell<Option<Waker>>,
    /// When the turn that is given started, in virtual time.
    pub(super) start: Cell<Tag>,
    /// The bytes that the task has moved.
    pub(super) account: Cell<Account>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The task has nothing to do, or works without having waited.
    Out,
    Waiting,
    /// The task may work, or works.
    Given,
}

/// How a task has come to its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It has waited in line.
    Given,
    /// It would have been next anyway.
    Free,
}

/// The right to work now. The turn is over when this is dropped.
pub(crate) struct Turn<'p> {
    place: &'p Place,
    origin: Origin,
    began: Instant,
    length: usize,
    moved: usize,
}

impl Slot {
    /// Lets the task work. Returns whether it still waits for that.
    pub(super) fn give(&self) -> bool {
        if self.state.get() != State::Waiting {
            return false;
        }
        self.state.set(State::Given);
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl Place {
    pub(super) fn new(lane: Rc<Lane>, kind: Kind) -> Self {
        let slot = Slot {
            state: Cell::new(State::Out),
            waker: RefCell::new(None),
            start: Cell::new(0),
            account: Cell::default(),
        };
        Self { lane, slot: Rc::new(slot), kind }
    }

    /// Ready when the task may work.
    pub(crate) fn poll_turn(&self, cx: &Context<'_>) -> Poll<Turn<'_>> {
        match self.slot.state.get() {
            State::Given => return Poll::Ready(self.take_turn(Origin::Given)),
            State::Waiting => self.register(cx),
            State::Out if self.lane.admits(&self.slot, self.kind) => {
                return Poll::Ready(self.take_turn(Origin::Free));
            }
            State::Out => self.line_up(cx),
        }
        Poll::Pending
    }

    /// Waits until the task may work.
    ///
    /// # Cancel safety
    /// A task that stops waiting keeps its place. It must ask again soon, or drop the place: nobody else gets a turn
    /// while this one is given.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    /// Begins work as soon as it is this task's turn. Work that has to wait goes on whenever it can.
    ///
    /// # Cancel safety
    /// As [`turn`](Self::turn).
    pub(crate) async fn begin<W: Future>(&self, work: W) -> W::Output {
        let mut work = pin!(work);
        let turn = self.turn().await;
        let begun = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        drop(turn);
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => work.await,
        }
    }

    /// Lets the task wait for its next turn, even if nobody else waits. It is woken then.
    pub(crate) fn line_up(&self, cx: &Context<'_>) {
        self.register(cx);
        self.slot.state.set(State::Waiting);
        self.lane.push(&self.slot, self.kind);
        self.lane.turns.announce();
    }

    fn take_turn(&self, origin: Origin) -> Turn<'_> {
        let began = clock::now();
        // Any number of tasks may work at once that are not known to move much.
        let is_known = self.slot.account.get().usual() > SPARSE;
        let length = if is_known { self.lane.turns.length(began) } else { SHORT };
        Turn { place: self, origin, began, length, moved: 0 }
    }

    fn register(&self, cx: &Context<'_>) {
        let mut registered = self.slot.waker.borrow_mut();
        match registered.as_mut() {
            Some(registered) => registered.clone_from(cx.waker()),
            None => *registered = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slot.waker.take();
        if self.slot.state.replace(State::Out) == State::Given {
            self.lane.turn_is_over(&self.slot, Origin::Given, 0, Duration::ZERO);
        }
    }
}

impl Turn<'_> {
    /// Bytes that may still be moved.
    pub(crate) fn left(&self) -> usize {
        self.length.saturating_sub(self.moved)
    }

    /// Counts bytes that were moved.
    pub(crate) fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
    }

    /// The time at which the turn is over, whatever was moved.
    pub(crate) fn end(&self) -> Instant {
        self.began + LONGEST
    }

    /// Whether others are to have their turn now.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.left() == 0 || now >= self.end()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Place { lane, slot, kind } = self.place;
        let now = clock::now();
        slot.state.set(State::Out);
        let moved = Tag::try_from(self.moved).unwrap_or(Tag::MAX >> 1).max(CHEAPEST);
        lane.turn_is_over(slot, self.origin, moved, now.duration_since(self.began));
        if *kind == Kind::Task && self.moved > 0 && slot.account.get().usual() <= SPARSE {
            lane.turns.sparse_worked.set(Some(now));
        }
    }
}
