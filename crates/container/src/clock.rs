//! The clock, for waits that are bounded in time.

use std::thread;
use std::time::{Duration, Instant};

/// A point in the future. One too far away to be expressed never comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) fn after(delay: Duration) -> Self {
        Self(now().checked_add(delay))
    }

    /// The time left. Zero once the deadline has passed.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()))
    }
}

/// The pause after the first question. A longer wait is noticed late by no more than the time it has taken.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks until the answer is yes, after pauses that double, and a last time when `limit` is over. Use it for conditions
/// that nobody announces reliably.
///
/// # Errors
/// The first error of the question.
pub(crate) fn is_true_within<E>(
    limit: Duration,
    mut question: impl FnMut() -> Result<bool, E>,
) -> Result<bool, E> {
    let deadline = Deadline::after(limit);
    let mut pause = FIRST_PAUSE;
    loop {
        // Read before the question, so that the last question comes after the end.
        let left = deadline.left();
        if question()? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Answers no `times` times, and then yes. Counts the questions.
    fn ask(limit: Duration, times: u32) -> (bool, u32) {
        let mut asked = 0;
        let question = || {
            asked += 1;
            Ok::<_, Infallible>(asked > times)
        };
        let Ok(answer) = is_true_within(limit, question);
        (answer, asked)
    }

    #[test]
    fn question_is_asked_again_though_nobody_announces_a_change() {
        assert_eq!(ask(Duration::from_secs(60), 0), (true, 1));
        assert_eq!(ask(Duration::from_secs(60), 12), (true, 13));
    }

    #[test]
    fn question_is_asked_once_if_there_is_no_time() {
        assert_eq!(ask(Duration::ZERO, 1), (false, 1));
    }

    #[test]
    fn question_is_asked_a_last_time_when_the_time_is_over() {
        let limit = Duration::from_millis(20);
        let start = Deadline::after(limit);
        let mut answered_after_the_end = false;
        let never = || {
            answered_after_the_end = start.left().is_zero();
            Ok::<_, Infallible>(false)
        };
        assert_eq!(is_true_within(limit, never), Ok(false));
        assert!(answered_after_the_end);
    }

    #[test]
    fn errors_end_the_questions() {
        assert_eq!(is_true_within(Duration::from_secs(60), || Err("refused")), Err("refused"));
    }
}
