//! A process of this program, as the one that has started it sees it.
//!
//! It says what there is to say in lines of JSON on stdout ([`Say`]), takes its cue from stdin, and ends when that
//! ends or when it is killed.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nsnet::container::supervise::die_with_parent;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::role::Role;

/// What processes say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Say {
    /// A server listens at this port, or a client has done what it was started for and goes on.
    Ready(u16),
    /// A container is in its namespaces; its pid.
    Entered(u32),
    /// A first connection came about.
    Connected,
    Report(Report),
    Failed(String),
}

/// What a client or a server has seen.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Bytes, requests, connections or datagrams.
    pub(crate) amount: u64,
    pub(crate) seconds: f64,
    /// Like `amount`, but since the beginning, before the seconds were counted.
    pub(crate) total: u64,
    /// Of a round trip, in microseconds, where there are round trips.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) longest: f64,
}

impl Report {
    pub(crate) fn per_second(&self) -> f64 {
        self.amount as f64 / self.seconds
    }
}

/// Says something to the process that has started this one.
pub(crate) fn say(what: &Say) -> Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    // One write: lines of a host and of its container share a pipe.
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    Ok(())
}

/// A process of this program in some part, which ends with this handle.
#[derive(Debug)]
pub(crate) struct Actor {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Say>,
}

impl Actor {
    pub(crate) fn start(role: &Role) -> Result<Self> {
        let mut command = role.command()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command);
        let mut child = command.spawn().context("start a process of the benchmark")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no pipe from the process")?;
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
                let said = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Say::Failed(format!("{line:?} is no message: {error}")));
                if tell.send(said).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing it says.
    pub(crate) fn hear(&self, within: Duration) -> Result<Say> {
        match self.lines.recv_timeout(within) {
            Ok(Say::Failed(reason)) => Err(reason.into()),
            Ok(said) => Ok(said),
            Err(RecvTimeoutError::Timeout) => Err(format!("nothing within {within:.1?}").into()),
            Err(RecvTimeoutError::Disconnected) => Err("the process has ended without a word".into()),
        }
    }

    pub(crate) fn ready(&self, within: Duration) -> Result<u16> {
        self.expect(within, |said| if let Say::Ready(port) = said { Some(*port) } else { None })
    }

    pub(crate) fn entered(&self, within: Duration) -> Result<u32> {
        self.expect(within, |said| if let Say::Entered(pid) = said { Some(*pid) } else { None })
    }

    pub(crate) fn connected(&self, within: Duration) -> Result<()> {
        self.expect(within, |said| if let Say::Connected = said { Some(()) } else { None })
    }

    pub(crate) fn report(&self, within: Duration) -> Result<Report> {
        self.expect(within, |said| if let Say::Report(report) = said { Some(*report) } else { None })
    }

    fn expect<T>(&self, within: Duration, pick: impl Fn(&Say) -> Option<T>) -> Result<T> {
        let said = self.hear(within)?;
        pick(&said).ok_or_else(|| format!("unexpected {said:?}").into())
    }

    /// Gives the process its cue.
    pub(crate) fn cue(&self) -> Result<()> {
        self.tell("")
    }

    /// Gives the process a cue that says what to do.
    pub(crate) fn tell(&self, cue: &str) -> Result<()> {
        let mut stdin = self.stdin.as_ref().ok_or("the process was told to finish")?;
        stdin.write_all(format!("{cue}\n").as_bytes()).context("give a process its cue")
    }

    /// Tells it to finish; it may have a last word.
    pub(crate) fn finish(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
