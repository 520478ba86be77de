//! A program of modest needs: one small request every millisecond on each of a few connections.
//!
//! It waits for each response, and a late one delays the requests after it: the rate shows how long it was held up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::prctl::set_timerslack;

use super::http::{REQUEST, RESPONSE};
use super::paced::{FINE_SLACK, INTERVAL};
use super::percentiles;
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};

/// For one response.
const PATIENCE: Duration = Duration::from_secs(5);

/// The server is that of the requests.
pub(super) fn client(server: SocketAddr, connections: usize, seconds: f64) -> Result<()> {
    let streams = (0..connections).map(|_| connect(server)).collect::<Result<Vec<_>>>()?;
    let start = clock::now();
    let threads: Vec<_> =
        streams.into_iter().map(|stream| thread::spawn(move || requests(stream, seconds))).collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| "a thread of the client panicked")??);
    }
    let seconds = clock::now().duration_since(start).as_secs_f64();
    let amount = times.len() as u64;
    let (p50, p99) = percentiles(times);
    say(&Say::Report(Report { amount, seconds, p50, p99, ..Report::default() }))
}

fn connect(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The time that each took.
fn requests(mut stream: TcpStream, seconds: f64) -> Result<Vec<Duration>> {
    set_timerslack(FINE_SLACK).context("set the timer slack")?;
    let end = clock::now() + Duration::from_secs_f64(seconds);
    let mut times = Vec::new();
    loop {
        let sent = clock::now();
        if sent >= end {
            return Ok(times);
        }
        stream.write_all(&[b'x'; REQUEST]).context("send a request")?;
        stream.read_exact(&mut [0; RESPONSE]).context("receive a response")?;
        let took = clock::now().duration_since(sent);
        times.push(took);
        thread::sleep(INTERVAL.saturating_sub(took));
    }
}
