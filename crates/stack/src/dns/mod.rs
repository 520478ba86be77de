//! DNS messages, as far as a forwarder must understand them.
//!
//! [`Query`] reads a query and writes replies without records. [`HostName`] is a name in the form of a question.
//! Answers are passed on unread, but for the test whether they [answer the query](Query::is_answered_by).

mod name;
mod query;
#[cfg(any(test, feature = "_testing"))]
#[doc(hidden)]
pub mod testing;

pub use name::{HostName, NameProblem};
pub use query::{HEADER_LEN, Query, Question};
