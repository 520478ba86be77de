//! A Dialer as a firewall: only the listed pairs of address and port can be reached, each decision is printed. Port 0
//! is ping.
//!
//! ```sh
//! cargo build --examples
//! cargo run --example custom-dialer -- 203.0.113.7:443 -- target/debug/examples/rootless-shell curl https://203.0.113.7/
//! ```
//!
//! The command is the container side, a program that calls `nsnet::container::TunDevice::open()` in its network
//! namespace. The example `rootless-shell` is one: it recognises by itself that it was started with a network
//! attached.

use std::collections::HashSet;
use std::error::Error;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nsnet::host::{
    DatagramSocket, DialError, Dialer, DirectDialer, Flow, Member, Network, Source, Stream, async_trait,
};

struct Allowlist {
    allowed: HashSet<SocketAddr>,
    direct: DirectDialer,
}

#[async_trait]
impl Dialer for Allowlist {
    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        if flow.is_dns() || self.allowed.contains(&flow.destination) {
            eprintln!("allow {flow}");
            Ok(())
        } else {
            eprintln!("deny  {flow}");
            Err(DialError::Prohibited)
        }
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        self.direct.dial_tcp(flow).await
    }

    async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.direct.bind_udp(source).await
    }

    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.direct.bind_echo(source).await
    }
}

fn main() -> Result<(), Box<dyn Error>> {
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
    std::process::exit(status.code().unwrap_or(1));
}
