//! UDP datagrams: what travels together, and the packets that carry it into the container.

mod datagrams;
pub mod packet;
mod run;

pub use datagrams::{Datagrams, Envelope};
pub use run::{MAX_DATAGRAMS, Run};
