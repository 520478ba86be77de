//! Packets from one container to another.
//!
//! [`Passage`] is the checked view of such a packet. [`Flows`] knows which flows the Dialer has allowed. [`cut`],
//! [`write_segment`] and [`complete`] do the work that a receiving device without offloads leaves to this process.

mod flows;
mod passage;
mod software;

pub use flows::{End, Flows, Held, Signal, Tuple, Verdict};
pub use passage::{Content, Form, Passage, Routed};
pub use software::{complete, cut, write_segment};
