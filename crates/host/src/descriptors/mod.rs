//! The file descriptors of this process, shared between networks and between the containers of each.
//!
//! Every flow needs a file descriptor, and the kernel gives a process only so many (`RLIMIT_NOFILE`, getrlimit(2)).
//! Without a budget, one container that opens connections takes them all: other containers cannot connect, other
//! networks cannot, and the embedder cannot open a file.
//!
//! # The budget
//! [`Census`] counts when a network is built: the limit, less those that are open for other purposes, less a reserve for
//! the embedder. Each of these numbers may change during the life of the process, so the latest census counts, for all
//! networks. The limit is looked at again before a permit is refused.
//!
//! # Shares
//! A flow is admitted with a [`Permit`] or not at all, and is never ended in favour of another. So a share must be left
//! over for those who come later. It is found by a dynamic threshold (Choudhury and Hahne, "Dynamic queue length
//! thresholds for shared-memory packet switches", 1998), once for networks and once for the containers of a network:
//!
//! | a share | may grow while it is below |
//! |---|---|
//! | of a network | 8 × what is free in the process |
//! | of a container | 4 × what its network may still grow |
//!
//! One container alone gets 32/37 of the budget that way, which is 86 %. Containers that want more than there is get
//! equal shares once their flows have come and gone, and there is always something left for one that wants little.
//! Besides, eight descriptors are set aside for each container, because of a small budget too little would be left.
//!
//! Links and published sockets are counted but never refused. They belong to the embedder's own calls.

mod share;

use std::fs;
use std::io;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};

use share::Budget;
pub(crate) use share::{ContainerShare, NetworkShare, Permit};

/// The process's own.
static BUDGET: Budget = Budget::new(soft_limit);

/// The largest reserve that is not asked for.
const RESERVE: usize = 1024;

/// The file descriptors of the process at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Census {
    /// The most that it may have: the soft limit.
    pub(crate) limit: usize,
    /// Those that are open.
    pub(crate) open: usize,
}

impl Census {
    /// # Errors
    /// If /proc cannot be read.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self { limit: soft_limit()?, open: count_open()? })
    }

    /// The share of a new network. The budget of the process is set anew: `reserve` descriptors stay with the embedder,
    /// or an eighth of those that are left. `None` if no descriptor would be left for flows.
    pub(crate) fn share(self, reserve: Option<usize>) -> Option<Arc<NetworkShare>> {
        BUDGET.set(self, reserve).then(|| NetworkShare::new(&BUDGET))
    }
}

/// The most file descriptors that the process may have at the moment.
fn soft_limit() -> nix::Result<usize> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}

/// The number of open file descriptors.
fn count_open() -> io::Result<usize> {
    // Since Linux 6.2 the size is the count, proc_pid_fd(5), which needs no file descriptor to find out.
    match fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(fs::read_dir("/proc/self/fd")?.count()),
        open => Ok(usize::try_from(open).unwrap_or(usize::MAX)),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The share of a container that is alone in a process with this many file descriptors.
    pub(crate) fn share_of(capacity: usize) -> Arc<ContainerShare> {
        NetworkShare::new(Budget::of(capacity)).container(0)
    }

    /// A share that no test uses up.
    pub(crate) fn plenty() -> Arc<ContainerShare> {
        share_of(1 << 20)
    }
}

#[cfg(test)]
mod tests;
