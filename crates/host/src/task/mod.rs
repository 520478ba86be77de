//! Time, waiting, faults and ends: what tasks and threads of the engine have in common.

mod block_on;
pub(crate) mod clock;
mod contained;
pub(crate) mod lifetime;

pub(crate) use block_on::block_on;
pub(crate) use contained::{Panicked, contained};
