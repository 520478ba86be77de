//! TCP towards the container.
//!
//! | item | what it does |
//! |---|---|
//! | [`Segment`] | reads the header fields that decide where a segment goes |
//! | [`TcpStack`] | runs one connection, over smoltcp |
//! | [`Rings`], [`Budget`] | account for the memory of a connection's rings |
//! | [`Window`] | tells the container how much there is room for |
//! | [`Resting`] | remembers connections in TIME-WAIT |
//! | [`reset_for`], [`acknowledgment`] | answer segments of connections that have no stack |

mod bare;
mod resting;
mod rings;
mod segment;
mod stack;
mod window;

pub use bare::{acknowledgment, reset_for};
pub use resting::{LastAck, Resting};
pub use rings::{BOTH_RINGS, Budget, Memory, Occupancy, RECEIVE_RING, Rings};
pub use segment::{Control, Segment};
#[cfg(any(test, feature = "_testing"))]
#[doc(hidden)]
pub use stack::client::Client;
pub(crate) use stack::header_length;
pub use stack::{Capabilities, Standing, TcpStack, Transmit};
pub use window::Window;
