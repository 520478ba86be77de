//! Notices that the thread has become idle.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;

/// How long nothing happens before the thread counts as idle.
pub(super) const QUIET: Duration = Duration::from_secs(3);

/// What has happened lately. An idle thread has no timer.
pub(super) struct Activity {
    state: Cell<State>,
    begins: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has happened for long, and nobody waits for an end.
    Idle,
    /// Something has happened since the timer was started.
    Busy,
    /// Nothing has happened since the timer was started.
    Quiet,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { state: Cell::new(State::Idle), begins: Notify::new() }
    }

    /// Notes that something happens. Called for every packet.
    pub(super) fn note(&self) {
        if self.state.replace(State::Busy) == State::Idle {
            self.begins.notify_one();
        }
    }

    /// Returns once something has happened, and then nothing for [`QUIET`] to twice as long.
    pub(super) async fn ended(&self) {
        self.begins.notified().await;
        while self.state.replace(State::Quiet) == State::Busy {
            tokio::time::sleep(QUIET).await;
        }
        self.state.set(State::Idle);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{LocalSet, yield_now};
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::task::clock;

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_nothing_has_happened_for_a_while() {
        let activity = Rc::new(Activity::new());
        let noted = Rc::clone(&activity);
        LocalSet::new()
            .run_until(async move {
                let ended = tokio::task::spawn_local(async move {
                    activity.ended().await;
                    clock::now()
                });
                for _ in 0..100 {
                    noted.note();
                    yield_now().await;
                    advance(QUIET / 2).await;
                }
                let last = clock::now() - QUIET / 2;
                let silence = ended.await.unwrap() - last;
                assert!((QUIET..=2 * QUIET).contains(&silence), "{silence:?}");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_comes_once() {
        let activity = Activity::new();
        for _ in 0..3 {
            let hour = Duration::from_secs(3600);
            assert!(timeout(hour, activity.ended()).await.is_err(), "nothing has happened");
            activity.note();
            activity.note();
            assert!(timeout(hour, activity.ended()).await.is_ok());
        }
    }
}
