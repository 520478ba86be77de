//! The parts this program plays, and how the processes talk.
//!
//! A process learns its part from one hidden argument, JSON after `@`. It says what there is to say in lines of
//! JSON on stdout ([`Say`]) and ends when its stdin does, or when it is killed.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsnet::container::Namespaces;
use nsnet::container::supervise::die_with_parent;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};
use crate::options::Plan;
use crate::results::Results;
use crate::subject::container::Container;
use crate::subject::nsnet::Host;
use crate::traffic::{Client, Server};
use crate::{measure, world};

/// A part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// In the new namespaces, except that only its child is in the pid namespace.
    Entrance(Plan),
    /// Process 1 of the pid namespace.
    Orchestrator(Plan),
    /// The host side of nsnet.
    Host(Host),
    /// The first process of a client namespace.
    Container(Container),
    Server(Server),
    Client(Client),
}

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
    /// Of a round trip, in microseconds, where there are round trips.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Report {
    pub(crate) fn per_second(&self) -> f64 {
        self.amount as f64 / self.seconds
    }
}

/// The part that this process was started for, if it is not the user's.
pub(crate) fn assigned() -> Option<Result<Role>> {
    let argument = std::env::args().nth(1)?;
    let json = argument.strip_prefix('@')?;
    Some(serde_json::from_str(json).context("read the role"))
}

impl Role {
    pub(crate) fn play(self) -> Result<()> {
        raise_fd_limit();
        let outcome = match self {
            Self::Entrance(plan) => return entrance(plan),
            Self::Orchestrator(plan) => return orchestrator(&plan),
            Self::Host(host) => host.run(),
            Self::Container(container) => container.run(),
            Self::Server(server) => server.run(),
            Self::Client(client) => client.run(),
        };
        outcome.or_else(|error| say(&Say::Failed(error.to_string())))
    }

    /// This program again, in this part.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(format!("@{}", serde_json::to_string(self)?));
        Ok(command)
    }
}

/// Measures in new namespaces.
pub(crate) fn measure(plan: &Plan) -> Result<Results> {
    let mut command = Role::Entrance(plan.clone()).command()?;
    // The programs that build the world are not in every user's $PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let namespaces = Namespaces::all();
    namespaces.enter_on_exec(&mut command);
    die_with_parent(&mut command);
    let child = command.spawn().map_err(|error| namespaces.explain(error))?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the part that measures has ended early: {}", output.status).into());
    }
    serde_json::from_slice(&output.stdout).context("read the results")
}

fn entrance(plan: Plan) -> Result<()> {
    let mut command = Role::Orchestrator(plan).command()?;
    die_with_parent(&mut command);
    let status = command.spawn()?.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the orchestrator: {status}").into()) }
}

fn orchestrator(plan: &Plan) -> Result<()> {
    let results = measure::run(plan, &world::World::new()?)?;
    serde_json::to_writer(io::stdout().lock(), &results)?;
    Ok(())
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

/// 10 000 connections take 10 000 file descriptors.
fn raise_fd_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it those measurements fail and say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
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
    pub(crate) fn cue(&mut self) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or("the process was told to finish")?;
        stdin.write_all(b"\n").context("give a process its cue")
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
