//! One container's part of the line.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::Turns;
use super::fair_queue::{Account, FairQueue, Tag};
use super::place::{Kind, Origin, Place, SPARSE, Slot};

pub(crate) struct Lane {
    pub(super) turns: Rc<Turns>,
    state: RefCell<State>,
}

struct State {
    /// Tasks that wait, without the reader.
    tasks: FairQueue<Rc<Slot>>,
    /// The reader, if it waits.
    reader: Option<Rc<Slot>>,
    /// Whether the last turn was the reader's.
    reader_was_last: bool,
    /// Whether this lane waits in the thread's line.
    is_waiting: bool,
    /// Whether one of its tasks was given a turn that is not over.
    is_given: bool,
    /// When the turn that is given started, in virtual time.
    start: Tag,
    /// The time of all turns of this container, in nanoseconds.
    account: Account,
}

impl Turns {
    /// The part of one more container.
    pub(crate) fn lane(self: &Rc<Self>) -> Rc<Lane> {
        let state = State {
            tasks: FairQueue::new(),
            reader: None,
            reader_was_last: false,
            is_waiting: false,
            is_given: false,
            start: 0,
            account: Account::default(),
        };
        Rc::new(Lane { turns: Rc::clone(self), state: RefCell::new(state) })
    }
}

impl Lane {
    /// The place of the task that reads the container's frames. There is one.
    pub(crate) fn reader(self: &Rc<Self>) -> Place {
        Place::new(Rc::clone(self), Kind::Reader)
    }

    /// The place of one more task.
    pub(crate) fn place(self: &Rc<Self>) -> Place {
        Place::new(Rc::clone(self), Kind::Task)
    }

    /// Whether a task may work at once, because it would be next anyway.
    pub(super) fn admits(&self, slot: &Slot, kind: Kind) -> bool {
        let state = self.state.borrow();
        let others = self.turns.line.borrow().len() > usize::from(state.is_waiting)
            || self.turns.is_given.get() && !state.is_given;
        let account = slot.account.get();
        !others
            && match kind {
                Kind::Reader => true,
                Kind::Task if account.usual() > SPARSE && self.turns.is_round_used.get() => false,
                Kind::Task => state.tasks.is_first(account),
            }
    }

    pub(super) fn push(self: &Rc<Self>, slot: &Rc<Slot>, kind: Kind) {
        let mut state = self.state.borrow_mut();
        match kind {
            Kind::Reader => state.reader = Some(Rc::clone(slot)),
            Kind::Task => state.tasks.push(Rc::clone(slot), slot.account.get()),
        }
        self.line_up(&mut state);
    }

    /// Gives a turn that starts at `start` to the next task. Returns whether one waits.
    pub(super) fn give(&self, start: Tag) -> bool {
        let mut state = self.state.borrow_mut();
        state.is_waiting = false;
        state.is_given = true;
        state.start = start;
        while let Some((slot, is_readers)) = state.next() {
            if slot.give() {
                state.reader_was_last = is_readers;
                return true;
            }
        }
        state.is_given = false;
        false
    }

    /// Counts a turn that moved `bytes` and took this long. If it was given, the next may be.
    pub(super) fn turn_is_over(self: &Rc<Self>, slot: &Slot, origin: Origin, bytes: Tag, took: Duration) {
        let mut state = self.state.borrow_mut();
        let mut account = slot.account.get();
        let start = match origin {
            Origin::Given => slot.start.get(),
            Origin::Free => state.tasks.serve(account),
        };
        account.add(start, bytes);
        slot.account.set(account);
        let took = Tag::try_from(took.as_nanos()).unwrap_or(0);
        let start = match origin {
            Origin::Given => state.start,
            Origin::Free => self.turns.line.borrow_mut().serve(state.account),
        };
        state.account.add(start, took);
        if origin == Origin::Free && bytes > SPARSE {
            self.turns.is_round_used.set(true);
            self.turns.announce();
        }
        if origin == Origin::Given {
            state.is_given = false;
            self.turns.is_given.set(false);
            self.turns.change.notify_one();
            if state.reader.is_some() || !state.tasks.is_empty() {
                self.line_up(&mut state);
            }
        }
    }

    fn line_up(self: &Rc<Self>, state: &mut State) {
        if !state.is_waiting && !state.is_given {
            state.is_waiting = true;
            self.turns.line.borrow_mut().push(Rc::clone(self), state.account);
        }
    }
}

impl State {
    /// Takes out the next that waits, and whether it is the reader.
    fn next(&mut self) -> Option<(Rc<Slot>, bool)> {
        let is_readers = !self.reader_was_last || self.tasks.is_empty();
        if let Some(reader) = self.reader.take_if(|_| is_readers) {
            return Some((reader, true));
        }
        let (slot, start) = self.tasks.pop()?;
        slot.start.set(start);
        Some((slot, false))
    }
}
