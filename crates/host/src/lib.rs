//! The host side of nsnet. It terminates the TCP, UDP and ping of a container's network namespace, and sends them again
//! from this process. A [`Dialer`] sees every flow and can refuse it.
//!
//! An embedder starts with [`Network`]. It runs on an engine thread of the library, so the embedder needs no async
//! runtime, and may have one. It works without privileges. The container side (`nsnet_container`) needs only
//! `/dev/net/tun` in a namespace it owns.
//!
//! A module uses only modules above it in this list:
//!
//! | module | what it owns |
//! |---|---|
//! | `sys` | all `unsafe` code |
//! | `task` | the clock, and what keeps a task and its faults within bounds |
//! | `statistics` | counters per container and per network |
//! | `descriptors` | the file descriptors of the process, and the share of each container |
//! | `notation` | reading text forms, and their errors |
//! | `dialer` | the [`Dialer`] trait, direct connections, the kernel's sockets |
//! | `addressing` | subnets, leases, open ports of the host, local addresses |
//! | `threads` | engine threads, the buffers that the networks of one thread share, slow closes |
//! | `link` | frames in and out of a TUN device or a socketpair |
//! | `attach` | the handshake with a container side, [`Attachment`] |
//! | `dns` | the path of a query: names of the network, [`Resolver`], servers |
//! | `context` | what a protocol gets: clock, link, limits, counters, the Dialer |
//! | `protocols` | TCP, UDP and echo; clients of published ports |
//! | `gateway` | from a frame to its protocol, to another container, or to an ICMP error |
//! | `publish` | listening sockets that lead into a container |
//! | `engine` | the containers of a network, each from its handshake to its end |
//! | `network` | the builder and the public API |
//!
//! The crate `nsnet-stack` holds everything that needs no socket and no clock: packets, fragments, ICMP and the TCP
//! adapter.
//!
//! # Features
//! `serde` (off by default) adds `Serialize` and `Deserialize` to types that configure a network: [`Publish`],
//! [`Listen`], [`HostPorts`], [`Ipv4Subnet`] and [`Ipv6Subnet`] in their text forms, [`Member`], [`Offload`]. It adds
//! them to [`Statistics`] as well.

#![deny(unsafe_code)]

// Each module imports only from those above it. Tests may import anything.
#[allow(unsafe_code)]
mod sys;
mod task;
mod statistics;
mod descriptors;
mod notation;
mod dialer;
mod addressing;
mod threads;
mod link;
mod attach;
mod dns;
mod context;
mod protocols;
mod gateway;
mod publish;
mod engine;
mod network;
#[cfg(feature = "serde")]
mod serialize;
#[cfg(feature = "_micro")]
#[doc(hidden)]
pub mod micro;

pub use addressing::host_ports::{HostPorts, HostPortsError};
pub use addressing::leases::{Member, MemberError};
pub use addressing::subnet::{Ipv4Subnet, Ipv6Subnet, SubnetError};
pub use async_trait::async_trait;
pub use attach::{AdoptedDevice, Attachment, End, Finished, SetupError};
pub use bytes::Bytes;
pub use dialer::{
    ByteStream, DatagramSocket, Datagrams, DenyDialer, DialError, Dialer, DirectDialer, Envelope,
    FilterDialer, Flow, IcmpError, Inbound, Protocol, Received, Service, Source, Stream, UdpDatagrams,
    Unreachable,
};
pub use dns::{DnsQuery, Resolver};
pub use ipnet::{Ipv4Net, Ipv6Net};
pub use network::{AttachError, BuildError, Network, NetworkBuilder};
pub use notation::ParseError;
pub use nsnet_proto::{
    Carriage, ChannelError, Failure, InterfaceAddress, NamespaceId, Offload, Ready, Setup,
};
pub use publish::{Listen, Publish, PublishError, Published};
pub use statistics::{DiscardStatistics, FlowStatistics, IcmpStatistics, Statistics};
pub use threads::Threads;

/// The example of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
