//! The parts this program plays. A process learns its part from one hidden argument, JSON after `@`.

use std::io;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsnet::container::Namespaces;
use nsnet::container::supervise::die_with_parent;
use serde::{Deserialize, Serialize};

use crate::actor::{Say, say};
use crate::error::{Context, Result, chain};
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
        outcome.or_else(|error| say(&Say::Failed(chain(&*error))))
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

/// 10 000 connections take 10 000 file descriptors.
fn raise_fd_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it those measurements fail and say so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
