//! The traffic: one server and one client process for each measurement.

mod bulk;
mod datagrams;
mod http;
mod idle;
mod load;
mod paced;
mod paced_requests;
mod ping;
mod smoke;

use std::fs::File;
use std::io::{self, BufRead};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::actor::{Say, say};
use crate::error::{Context, Result};
use crate::world::{PROBE_PORT, SERVER};

/// What is sent. Times are in seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Traffic {
    /// The server accepts and hangs up.
    Probe,
    /// 1 MiB up, one byte down.
    Smoke,
    Bulk {
        direction: Direction,
        streams: usize,
        seconds: f64,
    },
    /// Streams that last until the orchestrator has had enough.
    Load(Load),
    /// One outstanding on each connection.
    Requests {
        connections: usize,
        seconds: f64,
    },
    /// One every millisecond on each connection.
    PacedRequests {
        connections: usize,
        seconds: f64,
    },
    /// Connect, one request and response, the server closes.
    Connections {
        concurrent: usize,
        seconds: f64,
    },
    /// One byte there and back, one at a time.
    PingTcp {
        seconds: f64,
    },
    PingUdp {
        seconds: f64,
    },
    /// One byte there and back every millisecond.
    Paced {
        seconds: f64,
    },
    Datagrams {
        direction: Direction,
        size: Size,
        seconds: f64,
    },
    /// Each exchanges a few bytes and then waits.
    Idle {
        connections: usize,
    },
}

/// As the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// Streams beside which something is measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) direction: Direction,
    pub(crate) streams: usize,
    pub(crate) rate: Rate,
}

/// How fast a stream is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rate {
    Unlimited,
    /// 100 Mbit/s, in a burst every 10 ms.
    Limited,
}

/// Bytes of a datagram, and what one system call sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Size {
    Single(usize),
    /// With `UDP_SEGMENT` and `UDP_GRO`.
    Segments(usize),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Server {
    /// A process in its network namespace.
    pub(crate) namespace: u32,
    pub(crate) traffic: Traffic,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Client {
    /// A process in its user and network namespace.
    pub(crate) namespace: u32,
    pub(crate) port: u16,
    pub(crate) traffic: Traffic,
}

impl Server {
    /// Says at which port it listens, and then what it has seen, if it is on this side that one sees it.
    pub(crate) fn run(self) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.namespace);
        setns(File::open(&path).context(&path)?, CloneFlags::CLONE_NEWNET).context(&path)?;
        match self.traffic {
            Traffic::Probe => smoke::hang_up(&listen(PROBE_PORT)?),
            Traffic::Smoke => smoke::serve(&listen(0)?),
            Traffic::Bulk { direction, streams, seconds } => {
                let listener = listen(0)?;
                let streams = (0..streams).map(|_| Ok(listener.accept()?.0)).collect::<Result<Vec<_>>>()?;
                match direction {
                    Direction::Up => bulk::receive(streams, seconds),
                    Direction::Down => bulk::send(streams),
                }
            }
            Traffic::Load(load) => load.serve(),
            Traffic::Requests { .. }
            | Traffic::PacedRequests { .. }
            | Traffic::Connections { .. }
            | Traffic::Idle { .. } => http::serve(self.traffic),
            Traffic::PingTcp { .. } | Traffic::Paced { .. } => ping::serve_tcp(&listen(0)?),
            Traffic::PingUdp { .. } => ping::serve_udp(),
            Traffic::Datagrams { direction, size, seconds } => datagrams::serve(direction, size, seconds),
        }
    }
}

impl Client {
    pub(crate) fn run(self) -> Result<()> {
        enter(self.namespace)?;
        let server = SocketAddr::new(SERVER, self.port);
        match self.traffic {
            Traffic::Probe => Err("the container probes".into()),
            Traffic::Smoke => smoke::test(server),
            Traffic::Bulk { direction, streams, seconds } => {
                let streams = (0..streams)
                    .map(|_| TcpStream::connect(server).context("connect"))
                    .collect::<Result<Vec<_>>>()?;
                match direction {
                    Direction::Up => bulk::send(streams),
                    Direction::Down => bulk::receive(streams, seconds),
                }
            }
            Traffic::Load(load) => load.run(server),
            Traffic::Requests { connections, seconds } => http::requests(server, connections, seconds),
            Traffic::PacedRequests { connections, seconds } => {
                paced_requests::client(server, connections, seconds)
            }
            Traffic::Connections { concurrent, seconds } => http::connections(server, concurrent, seconds),
            Traffic::PingTcp { seconds } => ping::tcp(server, seconds),
            Traffic::PingUdp { seconds } => ping::udp(server, seconds),
            Traffic::Paced { seconds } => paced::client(server, seconds),
            Traffic::Datagrams { direction, size, seconds } => {
                datagrams::client(server, direction, size, seconds)
            }
            Traffic::Idle { connections } => idle::hold(server, connections),
        }
    }
}

/// Enters the namespaces of the process: a user namespace first, if it is another one, for the right to the network.
fn enter(pid: u32) -> Result<()> {
    let (ours, theirs) = ("/proc/self/ns/user".to_owned(), format!("/proc/{pid}/ns/user"));
    let network = File::open(format!("/proc/{pid}/ns/net")).context("open the client's namespace")?;
    if std::fs::read_link(&ours)? != std::fs::read_link(&theirs).context(&theirs)? {
        let user = File::open(&theirs).context(&theirs)?;
        setns(user, CloneFlags::CLONE_NEWUSER).context("enter the client's user namespace")?;
    }
    setns(network, CloneFlags::CLONE_NEWNET).context("enter the client's network namespace")
}

/// Listens, and says so.
fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((SERVER, port)).context("listen")?;
    say(&Say::Ready(listener.local_addr()?.port()))?;
    Ok(listener)
}

/// For a client that is connected before the traffic begins beside which it measures.
fn tell_and_wait_for_cue() -> Result<()> {
    say(&Say::Ready(0))?;
    match io::stdin().lock().read_line(&mut String::new()).context("wait for the cue")? {
        0 => Err("no cue came".into()),
        _ => Ok(()),
    }
}

/// Until the orchestrator has had enough.
fn wait_for_end_of_input() {
    // What comes is of no interest, nor is why it ends.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
}

/// Becomes true at the end of input.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&ended);
    thread::spawn(move || {
        wait_for_end_of_input();
        tell.store(true, Ordering::Relaxed);
    });
    ended
}

/// Median and 99th percentile of round trips, in microseconds.
fn percentiles(mut round_trips: Vec<Duration>) -> (f64, f64) {
    round_trips.sort_unstable();
    let at = |per_cent: usize| {
        let index = round_trips.len() * per_cent / 100;
        round_trips.get(index).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e6)
    };
    (at(50), at(99))
}
