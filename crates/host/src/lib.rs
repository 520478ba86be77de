//! The host side of nsnet: terminates the TCP, UDP and ping of a container's network namespace and sends again from
//! this process, through a [`Dialer`] that sees every flow and can refuse it.
//!
//! [`Network`] is all an embedder must touch. It runs an engine thread of its own, so it needs no async runtime
//! and does not mind one; it works without privileges, the container side (`nsnet_container`) needs only
//! `/dev/net/tun` in a namespace it owns.
//!
//! In the order in which a packet passes them on its way out, the modules are: `link` (frames), `gateway`
//! (demultiplexing), `packet` (checked views), `fragments`; `tcp`, `udp` (which carries echo too), `dns`, and `icmp` for
//! what is said about packets; `dialer`. `neighbours` is for what goes to another container, and `publish` leads the
//! other way. Around them: `network` (the builder), `leases` (addresses and names), `attach` (the handshake), `engine`
//! and `threads`. ARCHITECTURE.md in the repository has all of them.
//!
//! # Features
//! `serde` (off by default) adds `Serialize` and `Deserialize` to what configures a network ([`Publish`], [`Listen`],
//! [`HostPorts`], [`Ipv4Subnet`] and [`Ipv6Subnet`] in their text forms, [`Member`], [`Offload`]) and to [`Statistics`].

#![deny(unsafe_code)]

// Each module imports only from those above it. Tests may import anything.
#[allow(unsafe_code)]
mod sys;
mod task;
mod statistics;
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

/// The example of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
