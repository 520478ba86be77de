//! The engine's side of an attachment.

use std::future;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nsnet_proto::Ready;
use tokio::sync::{oneshot, watch};

use super::{End, Finished, SetupError};

/// The order that the embedder has given for a container's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    /// End in good order, after this time at the latest.
    Finish(Duration),
    Close,
}

/// The engine's side of an [`Attachment`](super::Attachment). Dropping it tells the embedder that the network has
/// ended.
#[derive(Debug)]
pub(crate) struct Attached {
    outcome: Option<oneshot::Sender<Result<Ready, SetupError>>>,
    orders: watch::Receiver<Order>,
    end: watch::Sender<Option<End>>,
    finished: Option<oneshot::Sender<Finished>>,
}

impl Attached {
    pub(super) fn new(
        outcome: oneshot::Sender<Result<Ready, SetupError>>,
        orders: watch::Receiver<Order>,
        end: watch::Sender<Option<End>>,
        finished: oneshot::Sender<Finished>,
    ) -> Self {
        Self { outcome: Some(outcome), orders, end, finished: Some(finished) }
    }

    /// Waits until an end is ordered, and returns its grace. An attachment that is merely dropped orders none.
    pub(crate) async fn told_to_end(&self) -> Duration {
        let mut orders = self.orders.clone();
        let order = orders.wait_for(|order| *order != Order::Serve).await.map(|order| *order);
        match order {
            Ok(Order::Finish(grace)) => grace,
            Ok(Order::Close | Order::Serve) => Duration::ZERO,
            Err(_) => future::pending().await,
        }
    }

    /// Waits until an end without grace is ordered.
    pub(crate) async fn told_to_close(&self) {
        let mut orders = self.orders.clone();
        if orders.wait_for(|order| *order == Order::Close).await.is_err() {
            future::pending().await
        }
    }

    /// Reports how the setup went. Nobody need wait for it.
    pub(crate) fn set_up(&mut self, outcome: Result<Ready, SetupError>) {
        let _ = self.outcome.take().map(|sender| sender.send(outcome));
    }

    /// Reports why the container has no network any more. The first reason counts.
    pub(crate) fn ended(&self, end: End) {
        self.end.send_if_modified(|told| {
            let is_news = told.is_none();
            if is_news {
                *told = Some(end);
            }
            is_news
        });
    }

    /// Reports that everything is over, and why if that has not been reported.
    pub(crate) fn finished(mut self, end: Option<End>, outcome: Finished) {
        if let Some(end) = end {
            self.ended(end);
        }
        let _ = self.finished.take().map(|sender| sender.send(outcome));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.ended(if thread::panicking() {
            End::Failed(Arc::new(io::Error::other("a panic in the engine")))
        } else {
            End::NetworkEnded
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Attachment;
    use super::super::testing::both;
    use super::*;

    /// The end that has been reported by now.
    fn end(attachment: &Attachment) -> Option<End> {
        attachment.wait_ended(Duration::ZERO)
    }

    async fn is_pending(future: impl Future) -> bool {
        tokio::time::timeout(Duration::from_millis(1), future).await.is_err()
    }

    #[test]
    fn the_first_end_is_the_one_told() {
        let (attachment, attached) = both();
        assert!(end(&attachment).is_none());
        attached.ended(End::LinkGone);
        attached.ended(End::Closed);
        drop(attached);
        for _ in 0..2 {
            assert!(matches!(end(&attachment), Some(End::LinkGone)));
        }
    }

    #[test]
    fn an_engine_that_goes_without_a_word_is_the_networks_end() {
        let (attachment, attached) = both();
        drop(attached);
        assert!(matches!(end(&attachment), Some(End::NetworkEnded)));
        assert_eq!(attachment.finish(Duration::ZERO), Finished::Abandoned);
    }

    #[test]
    fn a_panic_of_the_engine_is_a_failure() {
        let (attachment, attached) = both();
        let engine = thread::spawn(move || {
            let _attached = attached;
            panic!("as the test wants it");
        });
        engine.join().unwrap_err();
        assert!(matches!(end(&attachment), Some(End::Failed(_))));
    }

    #[tokio::test]
    async fn a_dropped_attachment_orders_nothing_unless_it_was_told_to() {
        let (attachment, attached) = both();
        drop(attachment);
        assert!(is_pending(attached.told_to_end()).await);
        assert!(is_pending(attached.told_to_close()).await);
        let (attachment, attached) = both();
        drop(attachment.close_on_drop());
        assert_eq!(attached.told_to_end().await, Duration::ZERO);
    }

    #[tokio::test]
    async fn finishing_is_an_order_that_closing_overtakes_and_never_revokes() {
        const GRACE: Duration = Duration::from_secs(7);
        let (attachment, attached) = both();
        let finished = attachment.close_on_drop().finish_async(GRACE);
        assert_eq!(attached.told_to_end().await, GRACE);
        assert!(is_pending(attached.told_to_close()).await, "dropped in finish_async, and not closed");
        attached.finished(None, Finished::Delivered);
        assert_eq!(finished.await, Finished::Delivered);

        let (attachment, attached) = both();
        attachment.close();
        drop(attachment.finish_async(GRACE));
        assert_eq!(attached.told_to_end().await, Duration::ZERO);
    }
}
