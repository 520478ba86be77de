//! Orders from outside to end one container's network.

use std::cell::Cell;

use tokio::sync::watch;

use super::{Attached, End, SetupError};

/// The orders that can end a container's network: its embedder's, or the end of the whole network. Each is in good
/// order, which [`watch`](Self::watch) reports, or immediate.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Holds true for an end of the whole network in good order. Closed for an immediate one.
    network: watch::Receiver<bool>,
    is_finishing: watch::Sender<bool>,
    asked_by: Cell<Option<Asker>>,
}

#[derive(Debug, Clone, Copy)]
enum Asker {
    Attachment,
    Network,
}

impl Ending {
    pub(crate) fn new(network: watch::Receiver<bool>) -> Self {
        let (is_finishing, _) = watch::channel(false);
        Self { network, is_finishing, asked_by: Cell::new(None) }
    }

    /// Becomes true when the container is to end in good order.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.is_finishing.subscribe()
    }

    /// Resolves when the container is to end at once. Must be polled for an end in good order to begin.
    pub(crate) async fn at_once(&self, attached: &Attached) {
        tokio::select! {
            () = self.network_gone() => {}
            () = self.ordered(attached) => {}
        }
    }

    async fn network_gone(&self) {
        let mut network = self.network.clone();
        if network.wait_for(|is_finishing| *is_finishing).await.is_ok() {
            self.begin(Asker::Network);
            // Never true: this waits for the sender to be dropped.
            let _ = network.wait_for(|_| false).await;
        }
        self.begin(Asker::Network);
    }

    async fn ordered(&self, attached: &Attached) {
        let grace = attached.told_to_end().await;
        self.begin(Asker::Attachment);
        if !grace.is_zero() {
            let _ = tokio::time::timeout(grace, attached.told_to_close()).await;
        }
    }

    /// Resolves when the end has begun, in good order or not. Returns the error for a container that is not ready.
    pub(crate) async fn begun(&self) -> SetupError {
        // The sender cannot be gone: `self` owns it.
        let _ = self.watch().wait_for(|is_finishing| *is_finishing).await;
        self.refusal()
    }

    /// Why a container will not become ready.
    pub(crate) fn refusal(&self) -> SetupError {
        match self.asked_by.get() {
            Some(Asker::Attachment) => SetupError::Closed,
            Some(Asker::Network) | None => SetupError::ShutDown,
        }
    }

    /// The end that was ordered, if any.
    pub(crate) fn asked(&self) -> Option<End> {
        self.asked_by.get().map(|asker| match asker {
            Asker::Attachment => End::Closed,
            Asker::Network => End::NetworkEnded,
        })
    }

    /// Records the first asker as the reason.
    fn begin(&self, asker: Asker) {
        if self.asked_by.get().is_none() {
            self.asked_by.set(Some(asker));
        }
        self.is_finishing.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Attachment;
    use super::super::testing::both;
    use super::*;
    use crate::task::clock::now;

    const GRACE: Duration = Duration::from_secs(7);

    struct Scene {
        attachment: Attachment,
        attached: Attached,
        network: watch::Sender<bool>,
        ending: Ending,
    }

    fn scene() -> Scene {
        let (attachment, attached) = both();
        let (network, watched) = watch::channel(false);
        Scene { attachment, attached, network, ending: Ending::new(watched) }
    }

    impl Scene {
        /// After how long the end comes, if it does within an hour of virtual time.
        async fn end_after(&self) -> Option<Duration> {
            let start = now();
            let end = self.ending.at_once(&self.attached);
            let came = tokio::time::timeout(Duration::from_secs(3600), end).await.is_ok();
            came.then(|| now() - start)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_ends_by_itself() {
        let scene = scene();
        assert_eq!(scene.end_after().await, None);
        assert!(!*scene.ending.watch().borrow() && scene.ending.asked().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_comes_at_once() {
        let scene = scene();
        scene.attachment.close();
        assert_eq!(scene.end_after().await, Some(Duration::ZERO));
        assert!(matches!(scene.ending.asked(), Some(End::Closed)));
        assert!(matches!(scene.ending.begun().await, SetupError::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn finishing_takes_its_grace_and_is_known_before() {
        let Scene { attachment, attached, network: _network, ending } = scene();
        drop(attachment.finish_async(GRACE));
        let (ended, began) =
            tokio::join!(tokio::time::timeout(GRACE * 2, ending.at_once(&attached)), async {
                let error = tokio::time::timeout(GRACE / 2, ending.begun()).await;
                matches!(error, Ok(SetupError::Closed))
            });
        assert!(ended.is_ok() && began);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_finishes_ends_when_it_is_dropped() {
        let scene = scene();
        scene.network.send_replace(true);
        assert_eq!(scene.end_after().await, None);
        assert!(*scene.ending.watch().borrow());
        // The network's end came first.
        scene.attachment.close();
        assert_eq!(scene.end_after().await, Some(Duration::ZERO));
        assert!(matches!(scene.ending.asked(), Some(End::NetworkEnded)));
        let Scene { attached, network, ending, .. } = scene;
        drop(network);
        ending.network_gone().await;
        drop(attached);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_is_dropped_ends_at_once() {
        let Scene { attachment: _attachment, attached, network, ending } = scene();
        drop(network);
        ending.at_once(&attached).await;
        assert!(matches!(ending.asked(), Some(End::NetworkEnded)));
        assert!(matches!(ending.begun().await, SetupError::ShutDown));
    }
}
