//! One byte there and back, one at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::{percentiles, tell_and_wait_for_cue};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};
use crate::world::SERVER;

/// Round trips before those that count.
const WARM_UP: usize = 20;

/// For an answer over TCP.
const PATIENCE: Duration = Duration::from_secs(5);

/// After which a datagram is taken for lost.
const LOST: Duration = Duration::from_millis(500);

pub(super) fn serve_tcp(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        stream.write_all(&byte)?;
    }
    Ok(())
}

pub(super) fn serve_udp() -> Result<()> {
    let socket = UdpSocket::bind((SERVER, 0))?;
    say(&Say::Ready(socket.local_addr()?.port()))?;
    let mut byte = [0];
    loop {
        let (length, client) = socket.recv_from(&mut byte)?;
        socket.send_to(byte.get(..length).unwrap_or_default(), client)?;
    }
}

pub(super) fn tcp(server: SocketAddr, seconds: f64) -> Result<()> {
    let mut stream = TcpStream::connect(server).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    measure(seconds, || {
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0]).context(format!("no answer within {PATIENCE:?}"))?;
        Ok(true)
    })
}

pub(super) fn udp(server: SocketAddr, seconds: f64) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOST))?;
    measure(seconds, || {
        socket.send(&[1])?;
        match socket.recv(&mut [0]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
}

/// Repeats a round trip, which says whether the answer came.
fn measure(seconds: f64, mut round_trip: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..WARM_UP {
        round_trip()?;
    }
    tell_and_wait_for_cue()?;
    let start = clock::now();
    let (mut times, mut lost) = (Vec::new(), 0);
    let mut before = start;
    let elapsed = loop {
        let answered = round_trip()?;
        let now = clock::now();
        // A lost one counts for as long as it was waited for: left out, it would make the figures better.
        times.push(now.duration_since(before));
        lost += usize::from(!answered);
        before = now;
        let elapsed = now.duration_since(start).as_secs_f64();
        if elapsed >= seconds {
            break elapsed;
        }
    };
    if lost == times.len() {
        return Err(format!("none of {lost} pings was answered").into());
    }
    let amount = times.len() as u64;
    let (p50, p99) = percentiles(times);
    say(&Say::Report(Report { amount, seconds: elapsed, p50, p99, ..Report::default() }))
}
