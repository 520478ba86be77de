//! Why a network could not be built, or a command not attached to it.

use std::io;
use std::net::IpAddr;

use nsnet_proto::{ChannelError, DEVICE_NAME_MAX};

use crate::addressing::Subnet;
use crate::host_ports::{HostPorts, HostPortsError};
use crate::publish::PublishError;

/// Why a command could not be attached, or a device not adopted.
///
/// Its `Display` is one line that holds the cause, so `source()` is empty.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The command is attached to a network already, or its environment sets `NSNET_FD` for another reason.
    #[error(
        "the command is attached to a network already (it sets NSNET_FD): make a new Command for every container"
    )]
    AlreadyAttached,
    /// The kernel has no socketpair for us.
    #[error("create the socketpair to the container: {0}; if file descriptors ran out, raise RLIMIT_NOFILE")]
    SocketPair(io::Error),
    /// The setup message could not be queued.
    #[error("queue the setup message for the container: {0}")]
    Setup(ChannelError),
    /// What is to be adopted is no TUN device that carries bare IP packets.
    #[error("the file descriptor to be adopted is no TUN device for us: {0}")]
    NotTun(io::Error),
    /// The MTU of the device to be adopted is too small.
    #[error("an MTU of {mtu} bytes is too small: at least {least} are needed with these address families")]
    Mtu {
        /// What the device is said to have.
        mtu: u16,
        /// What would do.
        least: u16,
    },
    /// The address asked for is another container's, or none of the network's.
    #[error("the address {0} is taken or not one for a container of this network")]
    Address(IpAddr),
    /// The name is none that DNS could carry.
    #[error("the container's name {name:?} {problem}")]
    Name {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The name is another container's.
    #[error("the name {0} is taken; close the attachment of the container that has it")]
    NameTaken(String),
    /// All addresses are taken.
    #[error(
        "all addresses of the network are taken; close the attachments of containers that have ended, or build \
         the network with a shorter prefix"
    )]
    NoAddress,
    /// The engine's thread has ended.
    #[error("the network has been shut down")]
    ShutDown,
}

/// Why a network could not be built.
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
    /// No queue at all was asked for.
    #[error("a network needs a queue: ask for 1 or more")]
    NoQueue,
    /// The interface name is empty or too long.
    #[error("the interface name {0:?} must have 1 to {DEVICE_NAME_MAX} bytes")]
    DeviceName(String),
    /// The addresses of one family do not make a network.
    #[error(
        "the {family} addresses must be of that family, differ, and lie in one prefix of sane length: {subnet:?}"
    )]
    Subnet {
        /// The family.
        family: &'static str,
        /// The addresses.
        subnet: Subnet,
    },
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
    /// What is to be opened of the host is nothing that containers could reach.
    #[error("open {ports} of the host: {problem}")]
    HostPorts {
        /// What was to be opened.
        ports: HostPorts,
        /// Why it cannot be.
        #[source]
        problem: HostPortsError,
    },
    /// The network namespace of the calling thread has no identity to be found.
    #[error("find out the own network namespace: {0}; is /proc mounted?")]
    Namespace(#[source] io::Error),
    /// Something could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The engine's thread or its runtime could not be made.
    #[error("start the network's thread: {0}")]
    Thread(#[source] io::Error),
}
