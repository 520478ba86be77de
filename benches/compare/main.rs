//! nsnet beside its peers: `cargo bench --bench compare`.
//!
//! Measures what a program inside a namespace gets out of its network. The subjects are nsnet in each of its modes, the
//! veth pair with NAT that root would set up, and slirp4netns and pasta where they are installed.
//! Needs no root, no download and no network: the world and the traffic are its own.
//!
//! ```text
//!   a network namespace        the benchmark's own                    a network namespace
//!  ┌ client ────────────┐     ┌ host ───────────────────┐           ┌ server ───────────────┐
//!  │ clients, one       │     │ the subject's process   │   veth,   │ servers, one          │
//!  │ process for each   │◄───►│ 10.99.0.1               │◄─────────►│ process for each      │
//!  │ measurement        │  ▲  │ the orchestrator        │ MTU 1500  │ measurement 10.99.0.2 │
//!  └────────────────────┘  │  └─────────────────────────┘           └───────────────────────┘
//!                       subject
//! ```
//!
//! One program plays all parts ([`role`]): the process that the user has started shows the results
//! ([`present`]) and writes no file but those it is told to; below it, in namespaces of their own, one builds the
//! world ([`world`]), starts the [`subject`]s and measures ([`measure`]); hosts, containers, clients and servers
//! ([`traffic`]) are further processes. Each is killed with its parent, and the pid namespace ends with its
//! first process, so that nothing is left behind however the benchmark ends.
//!
//! What is measured takes turns: each round measures every subject once, so that whatever else the machine does
//! meanwhile hits all of them. Nothing is asserted about the figures; the exit status tells only whether
//! nsnet was measured in full.

mod actor;
mod catalogue;
mod clock;
mod error;
mod measure;
mod options;
mod present;
mod proc;
mod results;
mod role;
mod subject;
mod traffic;
mod world;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use error::{Context, Result};
use options::{Request, Source};
use results::Results;

fn main() -> ExitCode {
    let outcome = match role::assigned() {
        Some(role) => role.and_then(|role| role.play()).map(|()| ExitCode::SUCCESS),
        None => run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("compare: {error}");
        ExitCode::FAILURE
    })
}

/// The part that the user has started.
fn run() -> Result<ExitCode> {
    // cargo test --benches starts it as well, which is no time for forty minutes of measuring.
    if !options::is_bench() {
        io::stdout().write_all(b"compare: nothing measured; cargo bench --bench compare does that\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(request) = options::parse()? else {
        io::stdout().write_all(options::HELP.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    };
    let results: Results = match &request.source {
        Source::Measurement(plan) => role::measure(plan)?,
        Source::File(path) => {
            let json = fs::read(path).context(path.display())?;
            serde_json::from_slice(&json).context(path.display())?
        }
    };
    show(&request, &results)?;
    Ok(if results.nsnet_is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(request: &Request, results: &Results) -> Result<()> {
    if let Some(path) = &request.json {
        fs::write(path, serde_json::to_string_pretty(results)?).context(path.display())?;
    }
    if let Some(path) = &request.svg {
        fs::write(path, present::chart(results)?).context(path.display())?;
    }
    io::stdout().write_all(present::tables(results).as_bytes())?;
    Ok(())
}
