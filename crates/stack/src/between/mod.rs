//! Packets on their way from one container to another: the checked view, the flows that are allowed, and what a device
//! without offloads leaves to this end.

mod flows;
mod passage;
mod software;

pub use flows::{End, Flows, Held, Signal, Tuple, Verdict};
pub use passage::{Content, Form, Passage, Routed};
pub use software::{complete, cut, write_segment};
