//! DNS messages as far as whoever answers or forwards them must understand them.

mod name;
mod query;
#[cfg(any(test, feature = "_testing"))]
#[doc(hidden)]
pub mod testing;

pub use name::{HostName, NameProblem};
pub use query::{HEADER_LEN, Query, Question};
