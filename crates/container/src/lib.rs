//! The container side of nsnet. It gives the network namespace of the calling process a TUN device that leads to the
//! host side, and configures it.
//!
//! It is synchronous and small, because it runs in a half-built sandbox, possibly right after a fork. It needs no
//! runtime. Each step is a call of its own, so that a container engine can put its own work in between. In order:
//!
//! 1. [`namespace`]: makes new namespaces, unless the embedder makes them itself. Or [`mod@join`]: joins those of a
//!    container that runs already.
//! 2. [`TunDevice::open`]: before pivot_root(2), while `/dev/net/tun` and `/proc` are still there.
//! 3. [`resolv_conf`]: tells the resolver library the DNS address.
//! 4. [`TunDevice::configure`]: sets addresses, MTU and routes, and brings up the [`Loopback`] interface.
//! 5. [`TunDevice::hand_over`]: after it nothing has to keep running in here. Or [`TunDevice::shuttle`], if the
//!    device's fd must not leave.
//!
//! ```no_run
//! # fn main() -> Result<(), nsnet_container::Error> {
//! use nsnet_container::{Namespaces, TunDevice, resolv_conf};
//!
//! // NSNET_FD was set by `Network::attach` on the host side.
//! Namespaces::new().user().network().mount().enter()?;
//! let mut device = TunDevice::open()?;
//! resolv_conf::bind(device.setup())?;
//! device.configure()?;
//! device.hand_over()?;
//! // exec the payload here
//! # Ok(())
//! # }
//! ```
//!
//! Errors from `open` on are also reported to the host, where `wait_ready` returns them.

#![deny(unsafe_code, missing_debug_implementations)]

// Each module imports only from those above it. Tests may import anything.
mod error;
mod clock;
#[allow(unsafe_code)]
mod sys;
pub mod namespace;
mod netlink;
mod interface;
mod loopback;
pub mod join;
mod setup;
mod local_route;
mod tun;
pub mod resolv_conf;
mod configure;
mod handover;
mod unacknowledged;
mod shuttle;
pub mod supervise;
#[cfg(test)]
mod testing;

pub use error::Error;
pub use join::join;
pub use loopback::Loopback;
pub use namespace::Namespaces;
pub use nsnet_proto::{Carriage, InterfaceAddress, Offload, Ready, Setup};
pub use shuttle::Shuttle;
pub use supervise::Supervisor;
pub use tun::{TunDevice, report_failure};

/// The example of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
