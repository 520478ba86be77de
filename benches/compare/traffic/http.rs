//! Small requests and responses, of about the size that HTTP gives them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::timeout;

use super::{Traffic, percentiles};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};
use crate::world::SERVER;

pub(super) const REQUEST: usize = 100;
pub(super) const RESPONSE: usize = 250;

/// Until the connections of a measurement must be open, and what has begun must have ended.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the server does after a response.
#[derive(Debug, Clone, Copy)]
enum Afterwards {
    Close,
    KeepAlive,
}

/// Runs a future on a runtime of one thread.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}

pub(super) fn serve(traffic: Traffic) -> Result<()> {
    let afterwards = if matches!(traffic, Traffic::Connections { .. }) {
        Afterwards::Close
    } else {
        Afterwards::KeepAlive
    };
    block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((SERVER, 0).into())?;
        // Above what a burst of clients leaves to be accepted; the kernel cuts it down to somaxconn.
        let listener: TcpListener = socket.listen(4096)?;
        say(&Say::Ready(listener.local_addr()?.port()))?;
        loop {
            let (stream, _) = listener.accept().await?;
            spawn_local(respond(stream, afterwards));
        }
    })
}

/// A client that goes away ends it.
async fn respond(mut stream: TcpStream, afterwards: Afterwards) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; REQUEST];
    while stream.read_exact(&mut request).await.is_ok() {
        if stream.write_all(&[b'x'; RESPONSE]).await.is_err() {
            break;
        }
        match afterwards {
            Afterwards::Close => break,
            Afterwards::KeepAlive => {}
        }
    }
}

pub(super) async fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream =
        timeout(PATIENCE, TcpStream::connect(server)).await.context("connect")?.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) async fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[b'x'; REQUEST]).await.context("send a request")?;
    stream.read_exact(&mut [0; RESPONSE]).await.context("receive a response")?;
    Ok(())
}

/// One request at a time on each of so many connections that stay open.
pub(super) fn requests(server: SocketAddr, connections: usize, seconds: f64) -> Result<()> {
    block_on(async {
        let mut streams = Vec::new();
        for _ in 0..connections {
            let mut stream = connect(server).await?;
            timeout(PATIENCE, exchange(&mut stream)).await.context("the first request")??;
            streams.push(stream);
        }
        let times = Rc::new(RefCell::new(Vec::new()));
        let start = clock::now();
        let end = Duration::from_secs_f64(seconds);
        let mut tasks = JoinSet::new();
        for mut stream in streams {
            let times = Rc::clone(&times);
            tasks.spawn_local(async move {
                let mut before = clock::now();
                while before.duration_since(start) < end {
                    exchange(&mut stream).await?;
                    let now = clock::now();
                    times.borrow_mut().push(now.duration_since(before));
                    before = now;
                }
                Ok(())
            });
        }
        all(tasks, end).await?;
        let seconds = clock::now().duration_since(start).as_secs_f64();
        let times = times.take();
        let amount = times.len() as u64;
        let (p50, p99) = percentiles(times);
        say(&Say::Report(Report { amount, seconds, p50, p99, ..Report::default() }))
    })
}

/// New connections, one request each. The server closes first, so that it is on its side that TIME-WAIT is spent
/// and the client does not run out of ports.
pub(super) fn connections(server: SocketAddr, concurrent: usize, seconds: f64) -> Result<()> {
    block_on(async {
        let count = Rc::new(Cell::new(0_u64));
        let start = clock::now();
        let end = Duration::from_secs_f64(seconds);
        let mut tasks = JoinSet::new();
        for _ in 0..concurrent {
            let count = Rc::clone(&count);
            tasks.spawn_local(async move {
                while clock::now().duration_since(start) < end {
                    let mut stream = connect(server).await?;
                    exchange(&mut stream).await?;
                    if stream.read(&mut [0]).await.context("wait for the server to close")? != 0 {
                        return Err("more than the response came".into());
                    }
                    count.set(count.get() + 1);
                }
                Ok(())
            });
        }
        all(tasks, end).await.map_err(|error| format!("after {} connections: {error}", count.get()))?;
        let seconds = clock::now().duration_since(start).as_secs_f64();
        say(&Say::Report(Report { amount: count.get(), seconds, ..Report::default() }))
    })
}

/// Waits for all tasks, which mean to end after `end`.
async fn all(mut tasks: JoinSet<Result<()>>, end: Duration) -> Result<()> {
    let wait = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of the client")??;
        }
        Ok(())
    };
    timeout(end + PATIENCE, wait).await.context("requests without a response")?
}
