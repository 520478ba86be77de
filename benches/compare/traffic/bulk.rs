//! As many bytes as go through, or at a limited rate. The receiver decides how long.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Rate, wait_for_end_of_input};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::Result;

/// What one write(2) is given.
const SENT_AT_ONCE: usize = 256 << 10;

/// Room for one read(2).
const READ_AT_ONCE: usize = 512 << 10;

/// Until each stream has carried its first byte.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of a limited rate: 100 Mbit/s. All streams send their bursts at once, which is the worst that they can do.
const BURST: usize = 125_000;
const BURST_INTERVAL: Duration = Duration::from_millis(10);

/// Sends on all streams until the receiver closes them.
pub(super) fn send(streams: Vec<TcpStream>, rate: Rate) -> Result<()> {
    let start = clock::now();
    let senders: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            thread::spawn(move || match rate {
                Rate::Unlimited => send_unlimited(stream),
                Rate::Limited => send_bursts(stream, start),
            })
        })
        .collect();
    for sender in senders {
        // It cannot panic, and if it did, the receiver would miss the bytes.
        let _ = sender.join();
    }
    Ok(())
}

fn send_unlimited(mut stream: TcpStream) {
    let data = vec![0x5a; SENT_AT_ONCE];
    while stream.write_all(&data).is_ok() {}
}

fn send_bursts(mut stream: TcpStream, start: Instant) {
    let burst = vec![0x5a; BURST];
    let mut due = start;
    while stream.write_all(&burst).is_ok() {
        due += BURST_INTERVAL;
        thread::sleep(due.saturating_duration_since(clock::now()));
    }
}

/// Counts what arrives for so long, from when every stream has begun.
pub(super) fn receive(streams: Vec<TcpStream>, seconds: f64) -> Result<()> {
    Meter::start(streams)?.report_after(|| thread::sleep(Duration::from_secs_f64(seconds)))
}

/// Says when every stream has begun, and counts from then on to the end of input.
pub(super) fn receive_until_told(streams: Vec<TcpStream>) -> Result<()> {
    let meter = Meter::start(streams)?;
    say(&Say::Ready(0))?;
    meter.report_after(wait_for_end_of_input)
}

/// Counts what arrives.
struct Meter {
    received: Arc<AtomicU64>,
}

impl Meter {
    /// Returns once every stream has begun.
    fn start(streams: Vec<TcpStream>) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let (begun, beginnings) = mpsc::channel();
        let expected = streams.len();
        for stream in streams {
            let (received, begun) = (Arc::clone(&received), begun.clone());
            thread::spawn(move || count(stream, &received, &begun));
        }
        for arrived in 0..expected {
            if beginnings.recv_timeout(PATIENCE).is_err() {
                return Err(format!(
                    "{} of {expected} streams carried nothing in {PATIENCE:?}",
                    expected - arrived
                )
                .into());
            }
        }
        Ok(Self { received })
    }

    /// Says how much has arrived while this returned.
    fn report_after(&self, measurement: impl FnOnce()) -> Result<()> {
        let (start, before) = (clock::now(), self.received.load(Ordering::Relaxed));
        measurement();
        let total = self.received.load(Ordering::Relaxed);
        let amount = total - before;
        let seconds = clock::now().duration_since(start).as_secs_f64();
        if amount == 0 {
            return Err(format!("nothing arrived in {seconds:.1} s after the first bytes").into());
        }
        say(&Say::Report(Report { amount, seconds, total, ..Report::default() }))
    }
}

fn count(mut stream: TcpStream, received: &AtomicU64, begun: &mpsc::Sender<()>) {
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut is_first = true;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        if std::mem::take(&mut is_first) {
            let _ = begun.send(());
        }
    }
}
