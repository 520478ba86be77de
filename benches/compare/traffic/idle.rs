//! Connections that stay open and do nothing.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http::{PATIENCE, block_on, connect, exchange};
use super::wait_for_end_of_input;
use crate::actor::{Say, say};
use crate::error::{Context, Result};

/// Being opened at a time.
const CONCURRENT: usize = 32;

/// Opens them, says when all are, and keeps them.
pub(super) fn hold(server: SocketAddr, connections: usize) -> Result<()> {
    block_on(async {
        let mut open = Vec::with_capacity(connections);
        let mut opening = JoinSet::new();
        for _ in 0..CONCURRENT.min(connections) {
            opening.spawn_local(begin(server));
        }
        while let Some(opened) = opening.join_next().await {
            let opened = opened.context("a task of the client")?;
            open.push(opened.map_err(|error| format!("with {} connections open: {error}", open.len()))?);
            if open.len() + opening.len() < connections {
                opening.spawn_local(begin(server));
            }
        }
        say(&Say::Ready(0))?;
        wait_for_end_of_input();
        Ok(())
    })
}

async fn begin(server: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(server).await?;
    timeout(PATIENCE, exchange(&mut stream)).await.context("the first request")??;
    Ok(stream)
}
