//! Asks the Dialer.
//!
//! Every question has a deadline. A Dialer that panics has answered with an error. The container sees that its flow
//! failed, and does not cause a new question with every packet.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::dialer::{DialError, Dialer};
use crate::task::{Panicked, contained};

/// The Dialer and its time limit.
#[derive(Clone)]
pub(crate) struct Questions {
    dialer: Arc<dyn Dialer>,
    timeout: Duration,
}

impl Questions {
    pub(crate) fn new(dialer: Arc<dyn Dialer>, timeout: Duration) -> Self {
        Self { dialer, timeout }
    }

    /// The answer to a question, or to several in a row. After the deadline it is [`DialError::TimedOut`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the question.
    pub(crate) async fn ask<'d, T, A>(
        &'d self,
        question: impl FnOnce(&'d dyn Dialer) -> A,
    ) -> Result<T, DialError>
    where
        A: Future<Output = Result<T, DialError>>,
    {
        let answer = contained(async { question(&*self.dialer).await });
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Panicked)) => Err(io::Error::other("the Dialer panicked").into()),
            Err(_) => Err(DialError::TimedOut),
        }
    }
}
