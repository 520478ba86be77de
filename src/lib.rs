//! A network for a process in its own network namespace, without root and without extra software.
//!
//! Two sides, two crates: [`host`] runs in the process that starts the sandbox, [`container`] inside it. They
//! meet over one inherited socketpair.
//!
//! On the host, a [`Network`](host::Network) is attached to a command before it is spawned:
//!
//! ```no_run
//! use std::process::Command;
//! use std::time::Duration;
//! use nsnet::host::{Member, Network};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = Network::builder().build()?;
//! let mut command = Command::new("./sandbox-init");
//! let mut attachment = network.attach(&mut command, Member::new())?;
//! let mut child = command.spawn()?;
//! attachment.wait_ready(Duration::from_secs(10))?;
//! child.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! In the sandbox, a [`TunDevice`](container::TunDevice) is opened while `/dev/net/tun` is still there, and
//! configured in the new network namespace:
//!
//! ```no_run
//! use nsnet::container::{Namespaces, TunDevice};
//!
//! # fn main() -> Result<(), nsnet::container::Error> {
//! Namespaces::new().user().network().mount().enter()?;
//! let mut device = TunDevice::open()?;
//! // pivot_root and whatever else the sandbox does
//! device.configure()?;
//! device.hand_over()?; // nothing has to keep running in here
//! # Ok(())
//! # }
//! ```
//!
//! Where to go on:
//!
//! - Every flow out of the sandbox is decided and connected by a [`Dialer`](host::Dialer); with
//!   [`FilterDialer`](host::FilterDialer), a closure is a firewall.
//! - [`Network::publish`](host::Network::publish) leads ports of the host into the sandbox.
//! - [`NetworkBuilder`](host::NetworkBuilder) has the rest: addresses, names, what is open of the host, whether several
//!   containers reach each other, limits.
//! - [`container::join()`] is for a namespace that is there already.

#![forbid(unsafe_code)]

pub use nsnet_container as container;
pub use nsnet_host as host;

/// The examples of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
