//! As many bytes as go through. The receiver decides how long.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::Result;

/// What one write(2) is given.
const SENT_AT_ONCE: usize = 256 << 10;

/// Room for one read(2).
const READ_AT_ONCE: usize = 512 << 10;

/// Until each stream has carried its first byte.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends on all streams until the receiver closes them.
pub(super) fn send(streams: Vec<TcpStream>) -> Result<()> {
    let senders: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || {
                let data = vec![0x5a; SENT_AT_ONCE];
                while stream.write_all(&data).is_ok() {}
            })
        })
        .collect();
    for sender in senders {
        // It cannot panic, and if it did, the receiver would miss the bytes.
        let _ = sender.join();
    }
    Ok(())
}

/// Counts what arrives for so long, from when every stream has begun.
pub(super) fn receive(streams: Vec<TcpStream>, seconds: f64) -> Result<()> {
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
    let (start, before) = (clock::now(), received.load(Ordering::Relaxed));
    thread::sleep(Duration::from_secs_f64(seconds));
    let total = received.load(Ordering::Relaxed);
    let amount = total - before;
    let seconds = clock::now().duration_since(start).as_secs_f64();
    if amount == 0 {
        return Err(format!("nothing arrived in {seconds:.1} s after the first bytes").into());
    }
    say(&Say::Report(Report { amount, seconds, total, ..Report::default() }))
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
