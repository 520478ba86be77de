//! Streams beside which something else is measured.
//!
//! All of one side share one thread. With a thread for each, everything else would wait for the scheduler's run queue,
//! and its latency would say little about the network.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, spawn_blocking, spawn_local, yield_now};
use tokio::time::{Instant, interval_at, timeout};

use super::http::{block_on, connect};
use super::{Direction, Load, Rate, listen, wait_for_end_of_input};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};

/// Bytes of one write(2) or read(2).
const AT_ONCE: usize = 128 << 10;

/// Of a limited rate: 100 Mbit/s. All streams send their bursts at once, which is the worst that they can do.
const BURST: usize = 125_000;
const BURST_INTERVAL: Duration = Duration::from_millis(10);

/// Until each stream has carried its first byte.
const PATIENCE: Duration = Duration::from_secs(5);

impl Load {
    pub(super) fn serve(self) -> Result<()> {
        let listener = listen(0)?;
        block_on(async {
            let mut streams = Vec::new();
            for _ in 0..self.streams {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                streams.push(TcpStream::from_std(stream)?);
            }
            match self.direction {
                Direction::Up => receive(streams).await,
                Direction::Down => send(streams, self.rate).await,
            }
        })
    }

    pub(super) fn run(self, server: SocketAddr) -> Result<()> {
        block_on(async {
            let mut streams = Vec::new();
            for _ in 0..self.streams {
                streams.push(connect(server).await?);
            }
            match self.direction {
                Direction::Up => send(streams, self.rate).await,
                Direction::Down => receive(streams).await,
            }
        })
    }
}

/// Sends on all streams until the receiver closes them.
async fn send(streams: Vec<TcpStream>, rate: Rate) -> Result<()> {
    let start = Instant::from_std(clock::now());
    let mut senders = JoinSet::new();
    for stream in streams {
        match rate {
            Rate::Unlimited => senders.spawn_local(send_unlimited(stream)),
            Rate::Limited => senders.spawn_local(send_bursts(stream, start)),
        };
    }
    senders.join_all().await;
    Ok(())
}

async fn send_unlimited(mut stream: TcpStream) {
    let data = vec![0x5a; AT_ONCE];
    while stream.write_all(&data).await.is_ok() {
        // It is the others' turn, even if there is room for more.
        yield_now().await;
    }
}

async fn send_bursts(mut stream: TcpStream, start: Instant) {
    let burst = vec![0x5a; BURST];
    // A late burst does not delay those after it.
    let mut due = interval_at(start, BURST_INTERVAL);
    while stream.write_all(&burst).await.is_ok() {
        due.tick().await;
    }
}

/// Says when every stream has begun, and counts from then on to the end of input.
async fn receive(streams: Vec<TcpStream>) -> Result<()> {
    for stream in &streams {
        timeout(PATIENCE, stream.readable()).await.context("nothing came on a stream")??;
    }
    let received = Rc::new(Cell::new(0));
    for stream in streams {
        spawn_local(count(stream, Rc::clone(&received)));
    }
    let start = clock::now();
    say(&Say::Ready(0))?;
    spawn_blocking(wait_for_end_of_input).await?;
    let (amount, seconds) = (received.get(), clock::now().duration_since(start).as_secs_f64());
    say(&Say::Report(Report { amount, seconds, total: amount, ..Report::default() }))
}

async fn count(mut stream: TcpStream, received: Rc<Cell<u64>>) {
    let mut buffer = vec![0; AT_ONCE];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        received.set(received.get() + length as u64);
        yield_now().await;
    }
}
