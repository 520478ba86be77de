//! The messages of the handshake.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of the conversation. Both ends must speak the same one: they are built from the same release.
pub const VERSION: u16 = 3;

/// Longest name of a network interface, in bytes (`IFNAMSIZ` − 1, `linux/if.h`).
pub const DEVICE_NAME_MAX: usize = 15;

/// Most queues of one TUN device. Each is a thread of the host's, and the host has no more of these than cores.
pub const MAX_QUEUES: u16 = 16;

/// Host → container: how the container's interface must look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the TUN device, 1 to [`DEVICE_NAME_MAX`] bytes.
    pub device: String,
    /// MTU of the device in bytes: the largest IP packet, without any frame header.
    pub mtu: u16,
    /// Addresses of the device, at most one per address family.
    pub addresses: Vec<InterfaceAddress>,
    /// Addresses that answer DNS, for `resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Domains in which names are searched, for `resolv.conf`: host names without a dot at the end.
    pub search: Vec<String>,
    /// Options of the resolver library, for `resolv.conf`: single words.
    pub dns_options: Vec<String>,
    /// Offloads the host can handle; the container side grants the subset that the kernel offers.
    pub offload: Offload,
    /// Queues the TUN device shall have, 1 to [`MAX_QUEUES`]; the container side may grant fewer. With the message
    /// come the container's ends of as many socketpairs less one: the channel itself carries the first queue.
    pub queues: u16,
    /// The host's own network namespace, which the container side must not find itself in.
    pub host_namespace: NamespaceId,
}

/// One address of the container's interface, with the gateway of its default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The container's address.
    pub address: IpAddr,
    /// Length of the on-link prefix in bits.
    pub prefix_len: u8,
    /// Where the default route points.
    pub gateway: IpAddr,
}

/// Identity of a namespace: device and inode number of its `/proc/PID/ns/…` file, namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Offloads of a TUN device (`TUN_F_*` of `linux/if_tun.h`). The default is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// Checksums may be left to the other end (`TUN_F_CSUM`); what every other offload rests on.
    pub checksum: bool,
    /// TCP segments over IPv4 larger than the MTU (`TUN_F_TSO4`).
    pub tso4: bool,
    /// TCP segments over IPv6 larger than the MTU (`TUN_F_TSO6`).
    pub tso6: bool,
    /// Bursts of UDP datagrams in one frame (`TUN_F_USO4` and `TUN_F_USO6`, Linux 6.2).
    pub uso: bool,
}

impl Offload {
    /// No offload: every packet fits the MTU and carries its checksums.
    pub const NONE: Self = Self { checksum: false, tso4: false, tso6: false, uso: false };

    /// Every offload this version knows.
    pub const ALL: Self = Self { checksum: true, tso4: true, tso6: true, uso: true };
}

/// How frames travel between the TUN device and the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carriage {
    /// The host reads and writes the TUN device itself; its fd came with the message.
    HandedOver,
    /// The container side copies frames between the TUN device and the socketpair.
    Shuttled,
}

/// Container → host: how the setup went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The interface is up.
    Ready(Ready),
    /// The setup ended with an error.
    Failed(Failure),
}

/// The interface is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How frames travel from here on.
    pub carriage: Carriage,
    /// The offloads the kernel granted, a subset of [`Setup::offload`].
    pub offload: Offload,
    /// The queues the device has, 1 to [`Setup::queues`].
    pub queues: u16,
}

/// The container side's error, in words the embedder can show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done, for example "open /dev/net/tun".
    pub step: String,
    /// The kernel's error number, if the kernel refused, errno(3).
    pub errno: Option<i32>,
    /// What went wrong.
    pub cause: String,
    /// What to try; empty if nothing is known to help.
    pub remedy: String,
}
