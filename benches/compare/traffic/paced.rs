//! One byte there and back every millisecond, whether the answers keep up or not.
//!
//! A client that waited for each answer would send nothing during a stall and count it once. This one sends on, and
//! counts each round trip from when its byte was due: a stall of 20 ms makes twenty bytes late.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;

use super::{percentiles, tell_and_wait_for_cue};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};

pub(super) const INTERVAL: Duration = Duration::from_millis(1);

/// How late a timer may be, in ns. The default of 50 µs would be a good part of a round trip.
pub(super) const FINE_SLACK: u64 = 1;

/// For answers that are still missing when all is sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of one read(2); more come with the next.
const READ_AT_ONCE: usize = 64;

/// The server is that of the ping.
pub(super) fn client(server: SocketAddr, seconds: f64) -> Result<()> {
    let mut stream = TcpStream::connect(server).context("connect")?;
    stream.set_nodelay(true)?;
    set_timerslack(FINE_SLACK).context("set the timer slack")?;
    tell_and_wait_for_cue()?;
    let start = clock::now();
    let end = start + Duration::from_secs_f64(seconds);
    let (mut due, mut answer_of) = (start, start);
    let mut times = Vec::new();
    while answer_of < end {
        let now = clock::now();
        if due < end && due <= now {
            stream.write_all(&[1])?;
            due += INTERVAL;
            continue;
        }
        let wait = if due < end { due - now } else { PATIENCE };
        let answers = if readable_within(&stream, wait)? { read(&mut stream)? } else { 0 };
        if answers == 0 && due >= end {
            return Err(format!("no answer within {PATIENCE:?}, after {} answers", times.len()).into());
        }
        let arrived = clock::now();
        for _ in 0..answers {
            times.push(arrived.duration_since(answer_of));
            answer_of += INTERVAL;
        }
    }
    report(times, start)
}

fn readable_within(stream: &TcpStream, wait: Duration) -> Result<bool> {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(ppoll(&mut polled, Some(TimeSpec::from_duration(wait)), None).context("wait for an answer")? > 0)
}

/// How many bytes have come.
fn read(stream: &mut TcpStream) -> Result<usize> {
    match stream.read(&mut [0; READ_AT_ONCE]).context("read an answer")? {
        0 => Err("the server has closed".into()),
        length => Ok(length),
    }
}

fn report(times: Vec<Duration>, start: Instant) -> Result<()> {
    let amount = times.len() as u64;
    let longest = times.iter().max().map_or(0.0, |longest| longest.as_secs_f64() * 1e6);
    let (p50, p99) = percentiles(times);
    let seconds = clock::now().duration_since(start).as_secs_f64();
    say(&Say::Report(Report { amount, seconds, p50, p99, longest, ..Report::default() }))
}
