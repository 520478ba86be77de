//! Connections that stay open and do nothing.

use std::net::SocketAddr;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::{block_on, connect, exchange};
use super::wait_for_end_of_input;
use crate::error::{Context, Result};
use crate::role::{Say, say};

/// Being opened at a time.
const CONCURRENT: usize = 32;

/// Opens them, says when all are, and keeps them.
pub(super) fn hold(server: SocketAddr, connections: usize) -> Result<()> {
    block_on(async {
        let mut opening = JoinSet::new();
        let mut open = Vec::with_capacity(connections);
        let mut begun = 0;
        while open.len() < connections {
            while begun < connections && opening.len() < CONCURRENT {
                begun += 1;
                opening.spawn_local(async move {
                    let mut stream = connect(server).await?;
                    let patience = std::time::Duration::from_secs(10);
                    timeout(patience, exchange(&mut stream)).await.context("the first request")??;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(stream)
                });
            }
            let Some(opened) = opening.join_next().await else { break };
            let opened = opened.context("a task of the client")?;
            open.push(opened.map_err(|error| format!("with {} connections open: {error}", open.len()))?);
        }
        say(&Say::Ready(0))?;
        wait_for_end_of_input();
        Ok(())
    })
}
