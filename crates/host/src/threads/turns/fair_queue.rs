//! Fair queuing by virtual time (Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996).
//!
//! Every user has an [`Account`] of the service that it has had, in units of virtual time. The service of a user that
//! comes to wait starts where its last one ended, or now if that is past. Now is the start of the service given last.
//! So users that always wait get equal shares.
//!
//! The user is served first whose service would end first, if it is as long as usual. So a user of short services goes
//! ahead of users of long ones, until it has had its share.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A point in virtual time, or a length of it.
pub(super) type Tag = u64;

/// The service that one user has had.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    /// When the last service ended.
    end: Tag,
    /// The length of its services: a moving average over about eight.
    usual: Tag,
}

impl Account {
    /// Counts a service.
    pub(super) fn add(&mut self, start: Tag, length: Tag) {
        self.end = self.end.max(start) + length;
        self.usual = self.usual - self.usual / 8 + length / 8;
    }

    pub(super) fn usual(self) -> Tag {
        self.usual
    }
}

/// Users that wait for service.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    waiting: BinaryHeap<Reverse<Entry<T>>>,
    now: Tag,
    /// Users that have come so far. Of two that would end at the same time, the first to come is served first.
    arrivals: u64,
}

#[derive(Debug)]
struct Entry<T> {
    start: Tag,
    end: Tag,
    arrival: u64,
    user: T,
}

impl<T> FairQueue<T> {
    pub(super) fn new() -> Self {
        Self { waiting: BinaryHeap::new(), now: 0, arrivals: 0 }
    }

    /// Lets a user wait.
    pub(super) fn push(&mut self, user: T, account: Account) {
        self.arrivals += 1;
        let start = self.start(account);
        let end = start + account.usual;
        self.waiting.push(Reverse(Entry { start, end, arrival: self.arrivals, user }));
    }

    /// Takes out the user to serve, and the start of its service.
    pub(super) fn pop(&mut self) -> Option<(T, Tag)> {
        let Reverse(Entry { start, user, .. }) = self.waiting.pop()?;
        self.now = self.now.max(start);
        Some((user, start))
    }

    /// Serves a user that does not wait. Returns the start of its service.
    pub(super) fn serve(&mut self, account: Account) -> Tag {
        self.now = self.start(account);
        self.now
    }

    fn start(&self, account: Account) -> Tag {
        account.end.max(self.now)
    }

    /// Whether a user would be served before all that wait.
    pub(super) fn is_first(&self, account: Account) -> bool {
        let end = self.start(account) + account.usual;
        self.waiting.peek().is_none_or(|Reverse(first)| end < first.end)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets all that wait.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

impl<T> Entry<T> {
    fn order(&self) -> (Tag, u64) {
        (self.end, self.arrival)
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_user_of_short_services_goes_first() {
        let (mut queue, mut accounts) = (FairQueue::new(), [Account::default(); 4]);
        (0..3).for_each(|user| queue.push(user, accounts[user]));
        let serve_next = |queue: &mut FairQueue<usize>, accounts: &mut [Account]| {
            let (user, start) = queue.pop().unwrap();
            accounts[user].add(start, if user == 3 { 10 } else { 1000 });
            user
        };
        for round in 0..100 {
            let user = serve_next(&mut queue, &mut accounts);
            queue.push(user, accounts[user]);
            // The last user comes twice while each of the others is served once.
            for _ in 0..2 {
                if round >= 10 {
                    assert!(queue.is_first(accounts[3]), "{queue:?}");
                    queue.push(3, accounts[3]);
                    assert_eq!(serve_next(&mut queue, &mut accounts), 3);
                }
            }
        }
    }

    #[test]
    fn a_user_that_comes_back_at_once_gains_nothing() {
        let (mut queue, mut first) = (FairQueue::new(), Account::default());
        queue.push('a', first);
        let (_, start) = queue.pop().unwrap();
        first.add(start, 1000);
        // Nobody waited meanwhile, so the virtual time stands still until another is served.
        queue.push('b', Account::default());
        assert!(!queue.is_first(first));
        queue.push('a', first);
        assert_eq!(queue.pop(), Some(('b', 0)));
        assert_eq!(queue.pop(), Some(('a', 1000)));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn work_without_waiting_is_no_debt() {
        let (mut queue, mut old) = (FairQueue::new(), Account::default());
        for _ in 0..1000 {
            let start = queue.serve(old);
            old.add(start, 1000);
        }
        let mut new = Account::default();
        queue.push("new", new);
        queue.push("old", old);
        let (user, start) = queue.pop().unwrap();
        assert_eq!(user, "new");
        for _ in 0..3 {
            new.add(start, 1000);
        }
        queue.push(user, new);
        assert_eq!(queue.pop().unwrap().0, "old");
    }

    proptest! {
        #[test]
        fn users_that_always_wait_get_equal_service(
            lengths in proptest::collection::vec(1_u64..1000, 300),
            users in 2_usize..10,
        ) {
            let (mut queue, mut accounts) = (FairQueue::new(), vec![Account::default(); users]);
            let mut served = vec![0; users];
            (0..users).for_each(|user| queue.push(user, Account::default()));
            for length in lengths {
                let (user, start) = queue.pop().unwrap();
                served[user] += length;
                accounts[user].add(start, length);
                queue.push(user, accounts[user]);
            }
            let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            // None is ahead by more than its longest services: the one before, and the one expected.
            prop_assert!(most - least <= 3 * 1000, "{served:?}");
        }
    }
}
