//! TCP towards the container: segments, the smoltcp adapter, the memory of its rings, TIME-WAIT.

mod bare;
mod resting;
mod rings;
mod segment;
mod stack;

pub use bare::{acknowledgment, reset_for};
pub use resting::{LastAck, Resting};
pub use rings::{Budget, Memory, Occupancy, RING, Rings};
pub use segment::{Control, Segment};
#[cfg(any(test, feature = "_testing"))]
#[doc(hidden)]
pub use stack::client::Client;
pub use stack::{Capabilities, Standing, TcpStack, Transmit, header_length};
