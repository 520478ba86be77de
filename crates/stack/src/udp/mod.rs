//! UDP datagrams: those that travel together, and the packets that carry them into the container.
//!
//! A program may send many datagrams in one call (`UDP_SEGMENT`, udp(7)), and the kernel passes them on as one frame.
//! [`Datagrams`] is such a burst; [`Run`] decides which further datagrams may join it. Echo messages travel as
//! datagrams too ([`crate::icmp::echo`]).

mod datagrams;
pub mod packet;
mod run;

pub use datagrams::{Datagrams, Envelope};
pub use run::{MAX_DATAGRAMS, Run};
