//! A Dialer as a firewall: only the listed pairs of address and port can be reached. Port 0 is ping. Each decision is
//! printed.
//!
//! ```sh
//! cargo build --examples
//! cargo run --example custom-dialer -- 203.0.113.7:443 -- target/debug/examples/rootless-shell curl https://203.0.113.7/
//! ```
//!
//! The command is the container side: a program that calls `nsnet::container::TunDevice::open()` in its network
//! namespace. The example `rootless-shell` is one. It notices that it was started with a network attached.

use std::collections::HashSet;
use std::error::Error;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nsnet::host::{DialError, Dialer, DirectDialer, Flow, Member, Network, async_trait};

struct Allowlist {
    allowed: HashSet<SocketAddr>,
    direct: DirectDialer,
}

#[async_trait]
impl Dialer for Allowlist {
    // What is not overridden below is left to it: it connects what is allowed.
    fn inner(&self) -> &dyn Dialer {
        &self.direct
    }

    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        if flow.is_dns() || self.allowed.contains(&flow.destination) {
            eprintln!("allow {flow}");
            Ok(())
        } else {
            eprintln!("deny  {flow}");
            Err(DialError::Prohibited)
        }
    }
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("custom-dialer: {}", chain(&*error));
        ExitCode::FAILURE
    })
}

/// An error and its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let errors = std::iter::successors(Some(error), |&error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut allowed = HashSet::new();
    for argument in arguments.by_ref().take_while(|argument| argument != "--") {
        let address = argument.to_string_lossy();
        allowed.insert(address.parse().map_err(|error| format!("{address:?}: {error}"))?);
    }
    let program = arguments.next().ok_or("usage: custom-dialer [ADDRESS:PORT…] -- COMMAND [ARG…]")?;

    let network = Network::builder().dialer(Allowlist { allowed, direct: DirectDialer::new() }).build()?;
    let mut command = Command::new(program);
    command.args(arguments);
    let mut attachment = network.attach(&mut command, Member::new())?;
    let mut child = command.spawn()?;
    if let Err(error) = attachment.wait_ready(Duration::from_secs(10)) {
        child.kill()?;
        child.wait()?;
        return Err(error.into());
    }
    let status = child.wait()?;
    network.finish(Duration::from_secs(5));
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
