//! Why a network could not be built, or a command not attached to it.
//!
//! A message says which step failed and what to try. The cause, an error of the kernel or of another crate, is the
//! [`source`](std::error::Error::source). The message does not repeat it.

use std::io;

use nsnet_proto::{ChannelError, DEVICE_NAME_MAX};

use crate::addressing::host_ports::{HostPorts, HostPortsError};
use crate::addressing::leases::MemberError;
use crate::addressing::subnet::SubnetError;
use crate::publish::PublishError;

/// Why a command could not be attached, or a device not adopted.
///
/// The message does not include the cause, which is its [`source`](std::error::Error::source). Print the chain.
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
    /// The adopted file descriptor is not a TUN device that carries bare IP packets.
    #[error("adopt the file descriptor: it is not a TUN device that can be served")]
    NotTun(#[source] io::Error),
    /// The MTU of the adopted device is too small.
    #[error("an MTU of {mtu} bytes is too small: at least {least} are needed with these address families")]
    Mtu {
        /// The MTU given for the device, in bytes.
        mtu: u16,
        /// The smallest MTU that is enough, in bytes.
        least: u16,
    },
    /// The name or an address is taken, or not possible in this network.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The engine's thread has ended.
    #[error("the network has been shut down")]
    ShutDown,
}

/// Why a network could not be built.
///
/// The message does not include the cause, which is the [`source`](std::error::Error::source). Reporters such as
/// `anyhow` print the chain. Without one, print it like this:
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
        /// The MTU asked for, in bytes.
        mtu: u16,
        /// The smallest MTU that is enough, in bytes.
        least: u16,
    },
    /// A limit is 0.
    #[error("{0} must be more than 0 (to refuse such flows altogether, use a Dialer)")]
    ZeroLimit(
        /// The builder's method that sets the limit.
        &'static str,
    ),
    /// Zero queues were asked for.
    #[error("a network needs a queue: ask for 1 or more")]
    NoQueue,
    /// The interface name is empty or too long.
    #[error("the interface name {0:?} must have 1 to {DEVICE_NAME_MAX} bytes")]
    DeviceName(String),
    /// The subnet of one address family cannot serve as a network.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// The name of a host or a search domain is not a valid host name.
    #[error("the name {name:?} {problem}")]
    Name {
        /// The name.
        name: String,
        /// The rule that it breaks.
        problem: String,
    },
    /// A host has a name but no address.
    #[error("the host {0:?} needs an address; to deny a name, use a Resolver")]
    NoAddress(String),
    /// An option of resolv.conf(5) is not a single word.
    #[error("the resolver option {0:?} must be a single word, as in \"ndots:2\"")]
    DnsOption(String),
    /// Containers could not reach the ports of the host that are to be opened.
    #[error("open {ports} of the host")]
    HostPorts {
        /// The ports to be opened.
        ports: HostPorts,
        /// Why they cannot be opened.
        #[source]
        problem: HostPortsError,
    },
    /// The identity of the calling thread's network namespace could not be read.
    #[error("read the identity of this network namespace (is /proc mounted?)")]
    Namespace(#[source] io::Error),
    /// The file descriptors of this process could not be counted.
    #[error("count the file descriptors of this process (is /proc mounted?)")]
    Census(#[source] io::Error),
    /// No file descriptor is left for connections.
    #[error(
        "no file descriptor is left for connections: {open} of {limit} are open, and {reserve} are reserved; raise \
        RLIMIT_NOFILE or reserve fewer"
    )]
    NoDescriptors {
        /// The most that this process may have: the soft limit.
        limit: usize,
        /// Those that are open.
        open: usize,
        /// Those that [the builder reserves](crate::NetworkBuilder::reserve_descriptors).
        reserve: usize,
    },
    /// A port could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The engine's thread or its runtime could not be started.
    #[error(
        "start the network's thread (if threads or file descriptors ran out, raise RLIMIT_NPROC or RLIMIT_NOFILE, \
         or let networks share threads)"
    )]
    Thread(#[source] io::Error),
}
