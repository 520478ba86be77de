//! Waits for the orders that end networks and containers.

use std::future;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;

/// Waits for a request to close. A handle that is merely dropped makes none.
pub(crate) async fn requested(close: oneshot::Receiver<()>) {
    if close.await.is_err() {
        future::pending().await
    }
}

/// Waits until the network is to end in good order.
pub(crate) async fn finishing(mut shutdown: watch::Receiver<bool>) {
    // Fails when the sender is dropped, which is an end as well.
    let _ = shutdown.wait_for(|is_finishing| *is_finishing).await;
}

/// Logs that a task has failed.
pub(crate) fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a container's gateway or a published port failed");
    }
}
