//! Time, waiting, faults and ends, for all tasks and threads of the engine.

mod block_on;
pub(crate) mod clock;
mod contained;
pub(crate) mod lifetime;

pub(crate) use block_on::block_on;
pub(crate) use contained::{Panicked, contained};
