//! Why a network could not be built, or a command not attached to it.
//!
//! A message says which step failed and what to try. What the kernel or another crate has to say is the
//! [`source`](std::error::Error::source), which is not repeated in the message.

use std::io;

use nsnet_proto::{ChannelError, DEVICE_NAME_MAX};

use crate::addressing::host_ports::{HostPorts, HostPortsError};
use crate::addressing::leases::MemberError;
use crate::addressing::subnet::SubnetError;
use crate::publish::PublishError;

/// Why a command could not be attached, or a device not adopted.
///
/// The message does not include the cause, which is the [`source`](std::error::Error::source): print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The command is attached to a network already, or its environment sets `NSNET_FD` for another reason.
    #[error(
        "the command is attached to a network already (it sets NSNET_FD): make a new Command for every container"
    )]
    AlreadyAttached,
    /// The kernel refused a socketpair.
    #[error("create the socketpair to the container (if file descriptors ran out, raise RLIMIT_NOFILE)")]
    SocketPair(#[source] io::Error),
    /// The setup message could not be queued.
    #[error("queue the setup message for the container")]
    Setup(#[source] ChannelError),
    /// The file descriptor to be adopted is not a TUN device that carries bare IP packets.
    #[error("adopt the file descriptor: it is not a TUN device that can be served")]
    NotTun(#[source] io::Error),
    /// The MTU of the device to be adopted is too small.
    #[error("an MTU of {mtu} bytes is too small: at least {least} are needed with these address families")]
    Mtu {
        /// What the device is said to have.
        mtu: u16,
        /// What would do.
        least: u16,
    },
    /// The name or an address is not to be had.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The engine's thread has ended.
    #[error("the network has been shut down")]
    ShutDown,
}

/// Why a network could not be built.
///
/// The message does not include the cause, which is the [`source`](std::error::Error::source). Reporters such as `anyhow`
/// print the chain of both; without one:
///
/// ```
/// use std::error::Error;
/// use nsnet_host::{HostPorts, Network};
///
/// /// An error and its causes, as in "open a file: permission denied".
/// fn chain(error: &(dyn Error + 'static)) -> String {
///     let errors = std::iter::successors(Some(error), |&error| error.source());
///     errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
/// }
///
/// let error = Network::builder().open_host(HostPorts::at([224, 0, 0, 1])).build().unwrap_err();
/// assert!(chain(&error).starts_with("open 224.0.0.1 of the host: 224.0.0.1 cannot be opened"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The MTU is too small.
    #[error("an MTU of {mtu} bytes is too small: at least {least} are needed with these address families")]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// What would do.
        least: u16,
    },
    /// A limit leaves no room for anything.
    #[error("{0} must be more than 0 (to refuse such flows altogether, use a Dialer)")]
    ZeroLimit(
        /// The builder's method.
        &'static str,
    ),
    /// No queue at all was asked for.
    #[error("a network needs a queue: ask for 1 or more")]
    NoQueue,
    /// The interface name is empty or too long.
    #[error("the interface name {0:?} must have 1 to {DEVICE_NAME_MAX} bytes")]
    DeviceName(String),
    /// The addresses of one family do not make a network.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// A host or a search domain has a name that no host can have.
    #[error("the name {name:?} {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A host has a name and no address.
    #[error("the host {0:?} needs an address; to deny a name, use a Resolver")]
    NoAddress(String),
    /// An option of resolv.conf(5) is not a single word.
    #[error("the resolver option {0:?} must be a single word, as in \"ndots:2\"")]
    DnsOption(String),
    /// Containers could not reach what is to be opened of the host.
    #[error("open {ports} of the host")]
    HostPorts {
        /// What was to be opened.
        ports: HostPorts,
        /// Why it cannot be.
        #[source]
        problem: HostPortsError,
    },
    /// The identity of the calling thread's network namespace could not be read.
    #[error("read the identity of this network namespace (is /proc mounted?)")]
    Namespace(#[source] io::Error),
    /// Something could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The engine's thread or its runtime could not be made.
    #[error(
        "start the network's thread (if threads or file descriptors ran out, raise RLIMIT_NPROC or RLIMIT_NOFILE)"
    )]
    Thread(#[source] io::Error),
}
