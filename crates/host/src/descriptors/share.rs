//! Counts file descriptors: what is in use, what is promised, and who may take one more.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Census, RESERVE};
use crate::task::clock::now;

/// How many times what is free in the process a network's share may be. A network alone gets 8/9 of the budget.
const NETWORK_ALPHA: usize = 8;

/// How many times what its network may still take a container's share may be. It is below that of networks, because
/// containers of one network come and go more often.
const CONTAINER_ALPHA: usize = 4;

/// Descriptors that each container may have, whatever the others have.
pub(super) const GUARANTEED: usize = 8;

/// The shortest time between two log lines about a network that has run out of them.
const COMPLAINT: Duration = Duration::from_secs(10);

/// The descriptors that all networks of a process may use together.
///
/// The numbers are read and changed one by one, so that two threads can take the last descriptor at the same time. The
/// reserve has room for that.
#[derive(Debug)]
pub(super) struct Budget {
    /// Asks the kernel for the soft limit.
    ask_limit: fn() -> nix::Result<usize>,
    limit: AtomicUsize,
    /// Those that are open for other purposes.
    foreign: AtomicUsize,
    /// Those that the embedder may still open.
    reserve: AtomicUsize,
    /// Those of permits and charges.
    used: AtomicUsize,
    /// Those guaranteed to containers that do not use them.
    spare: AtomicUsize,
}

impl Budget {
    pub(super) const fn new(ask_limit: fn() -> nix::Result<usize>) -> Self {
        let [limit, foreign, reserve, used, spare] = [const { AtomicUsize::new(0) }; 5];
        Self { ask_limit, limit, foreign, reserve, used, spare }
    }

    /// Takes over what was counted. Returns whether anything is left.
    pub(super) fn set(&self, census: Census, reserve: Option<usize>) -> bool {
        let used = self.used.load(Relaxed);
        let counted = census.open.saturating_sub(used);
        // Flows of a Dialer that needs no descriptors make the difference too small. They cannot make it too large.
        let foreign = if used == 0 { counted } else { counted.max(self.foreign.load(Relaxed)) };
        let left = census.limit.saturating_sub(foreign);
        let reserve = reserve.unwrap_or(RESERVE.min(left / 8));
        if left <= reserve {
            return false;
        }
        self.limit.store(census.limit, Relaxed);
        self.foreign.store(foreign, Relaxed);
        self.reserve.store(reserve, Relaxed);
        true
    }

    /// Returns whether the embedder has raised the limit since it was last looked at.
    fn has_grown(&self) -> bool {
        let limit = (self.ask_limit)();
        limit.is_ok_and(|limit| self.limit.swap(limit, Relaxed) < limit)
    }

    pub(super) fn capacity(&self) -> usize {
        let others = self.foreign.load(Relaxed) + self.reserve.load(Relaxed);
        self.limit.load(Relaxed).saturating_sub(others)
    }

    pub(super) fn free(&self) -> usize {
        let taken = self.used.load(Relaxed) + self.spare.load(Relaxed);
        self.capacity().saturating_sub(taken)
    }
}

/// What one network has of the budget.
#[derive(Debug)]
pub(crate) struct NetworkShare {
    budget: &'static Budget,
    /// Permits of its containers beyond those guaranteed.
    shared: AtomicUsize,
    complained: Mutex<Option<Instant>>,
}

impl NetworkShare {
    pub(super) fn new(budget: &'static Budget) -> Arc<Self> {
        Arc::new(Self { budget, shared: AtomicUsize::new(0), complained: Mutex::default() })
    }

    /// The share of one more container, whose link has this many descriptors.
    pub(crate) fn container(self: &Arc<Self>, link: usize) -> Arc<ContainerShare> {
        let (budget, link) = (self.budget, self.charge(link));
        // Idle containers keep at most half of the budget from those that have something to do.
        let promisable = (budget.capacity() / 2).saturating_sub(budget.spare.load(Relaxed));
        let guaranteed = GUARANTEED.min(promisable).min(budget.free());
        budget.spare.fetch_add(guaranteed, Relaxed);
        Arc::new(ContainerShare {
            network: Arc::clone(self),
            spare: AtomicUsize::new(guaranteed),
            shared: AtomicUsize::new(0),
            _link: link,
        })
    }

    /// Counts descriptors that are not refused.
    pub(crate) fn charge(&self, count: usize) -> Charge {
        self.budget.used.fetch_add(count, Relaxed);
        Charge { budget: self.budget, count }
    }

    /// How many permits it may still take.
    fn room(&self) -> usize {
        self.budget.free().saturating_mul(NETWORK_ALPHA).saturating_sub(self.shared.load(Relaxed))
    }

    /// Logs that a permit was refused, at a limited rate, because the container decides how often that happens.
    fn complain(&self) {
        let now = now();
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|last| now.duration_since(last) >= COMPLAINT) {
            *complained = Some(now);
            let (used, capacity) = (self.budget.used.load(Relaxed), self.budget.capacity());
            tracing::warn!(
                used,
                capacity,
                "a container has its share of the file descriptors, and further flows are dropped; raise RLIMIT_NOFILE"
            );
        }
    }
}

/// Descriptors that are counted as used until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: &'static Budget,
    count: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.count, Relaxed);
    }
}

/// What one container has of its network's share.
#[derive(Debug)]
pub(crate) struct ContainerShare {
    network: Arc<NetworkShare>,
    /// Guaranteed permits that are not in use.
    spare: AtomicUsize,
    /// Permits beyond those.
    shared: AtomicUsize,
    _link: Charge,
}

impl ContainerShare {
    /// A permit for one more descriptor. `None`, and a line in the log, if the container has its share.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Permit> {
        let kind = if self.take_spare() {
            Kind::Guaranteed
        } else if self.may_grow() || self.network.budget.has_grown() && self.may_grow() {
            self.shared.fetch_add(1, Relaxed);
            self.network.shared.fetch_add(1, Relaxed);
            Kind::Shared
        } else {
            self.network.complain();
            return None;
        };
        self.network.budget.used.fetch_add(1, Relaxed);
        Some(Permit { share: Arc::clone(self), kind })
    }

    /// Whether its share is below the threshold.
    fn may_grow(&self) -> bool {
        self.shared.load(Relaxed) < self.network.room().saturating_mul(CONTAINER_ALPHA)
    }

    fn take_spare(&self) -> bool {
        let taken = self.spare.fetch_update(Relaxed, Relaxed, |spare| spare.checked_sub(1)).is_ok();
        if taken {
            self.network.budget.spare.fetch_sub(1, Relaxed);
        }
        taken
    }
}

impl Drop for ContainerShare {
    fn drop(&mut self) {
        // Every permit refers to this, so none is left.
        self.network.budget.spare.fetch_sub(*self.spare.get_mut(), Relaxed);
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Guaranteed,
    Shared,
}

/// Stands for one descriptor until it is dropped. Take it before the descriptor is opened, and drop it after the
/// descriptor is closed.
#[derive(Debug)]
pub(crate) struct Permit {
    share: Arc<ContainerShare>,
    kind: Kind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let ContainerShare { network, spare, shared, .. } = &*self.share;
        network.budget.used.fetch_sub(1, Relaxed);
        match self.kind {
            Kind::Guaranteed => {
                network.budget.spare.fetch_add(1, Relaxed);
                spare.fetch_add(1, Relaxed);
            }
            Kind::Shared => {
                network.shared.fetch_sub(1, Relaxed);
                shared.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
impl Budget {
    /// A budget of its own, for the life of the process.
    pub(super) fn of(capacity: usize) -> &'static Self {
        Self::with(capacity, || Err(nix::errno::Errno::ENOSYS))
    }

    /// The same, of a process whose limit may be raised.
    pub(super) fn with(capacity: usize, ask_limit: fn() -> nix::Result<usize>) -> &'static Self {
        let budget = Self::new(ask_limit);
        budget.limit.store(capacity, Relaxed);
        Box::leak(Box::new(budget))
    }

    /// What is in use, and what is promised.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.used.load(Relaxed), self.spare.load(Relaxed))
    }
}
