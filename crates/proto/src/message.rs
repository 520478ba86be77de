//! The messages of the handshake.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::offload::Offload;

/// Version of the conversation. Both ends must speak the same one: they are built from the same release.
pub const VERSION: u16 = 3;

/// Longest name of a network interface, in bytes (`IFNAMSIZ` − 1, `linux/if.h`).
pub const DEVICE_NAME_MAX: usize = 15;

/// Most queues of one TUN device. Each is a thread of the host's, and the host has no more of these than cores.
pub const MAX_QUEUES: u16 = 16;

/// Most file descriptors that may come with one message: one for each queue of a TUN device.
pub const MAX_FDS: usize = MAX_QUEUES as usize;

/// Host → container: how the container's interface must look.
///
/// # Example
///
/// ```
/// use nsnet_proto::{InterfaceAddress, NamespaceId, Setup};
///
/// let mut setup = Setup::new("tun0", 1500, NamespaceId { device: 4, inode: 4026531840 });
/// setup.addresses = vec![InterfaceAddress::new([10, 0, 2, 100].into(), 24, [10, 0, 2, 2].into())];
/// setup.dns = vec![[10, 0, 2, 3].into()];
/// assert_eq!(setup.resolv_conf(), "# made by nsnet\nnameserver 10.0.2.3\n");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

impl Setup {
    /// A setup with one queue, and without addresses, DNS and offloads: assign to the fields what is to be different.
    #[must_use]
    pub fn new(device: impl Into<String>, mtu: u16, host_namespace: NamespaceId) -> Self {
        Self {
            device: device.into(),
            mtu,
            addresses: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            dns_options: Vec::new(),
            offload: Offload::NONE,
            queues: 1,
            host_namespace,
        }
    }

    /// The content of a resolv.conf(5) that makes the container ask [`dns`](Self::dns).
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let mut text = String::from("# made by nsnet\n");
        for address in &self.dns {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {address}");
        }
        for (keyword, words) in [("search", &self.search), ("options", &self.dns_options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        }
        text
    }
}

/// One address of the container's interface, with the gateway of its default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InterfaceAddress {
    /// The container's address.
    pub address: IpAddr,
    /// Length of the on-link prefix in bits.
    pub prefix_len: u8,
    /// Where the default route points.
    pub gateway: IpAddr,
}

impl InterfaceAddress {
    /// An address whose on-link prefix has `prefix_len` bits, and the gateway of its default route.
    #[must_use]
    pub const fn new(address: IpAddr, prefix_len: u8, gateway: IpAddr) -> Self {
        Self { address, prefix_len, gateway }
    }
}

/// Identity of a namespace: device and inode number of its `/proc/PID/ns/…` file, namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
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
#[non_exhaustive]
pub struct Ready {
    /// How frames travel from here on.
    pub carriage: Carriage,
    /// The offloads the kernel granted, a subset of [`Setup::offload`].
    pub offload: Offload,
    /// The queues the device has, 1 to [`Setup::queues`].
    pub queues: u16,
}

impl Ready {
    /// An interface whose frames travel in this way, with the offloads and the queues that the kernel has granted.
    #[must_use]
    pub const fn new(carriage: Carriage, offload: Offload, queues: u16) -> Self {
        Self { carriage, offload, queues }
    }
}

/// The container side's error, in words the embedder can show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

impl Failure {
    /// A step that failed, and why. Without an error number and a remedy: assign these to the fields.
    #[must_use]
    pub fn new(step: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { step: step.into(), errno: None, cause: cause.into(), remedy: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_for_each_server_and_one_for_domains_and_options() {
        let mut setup = Setup::new("tun0", 1500, NamespaceId { device: 0, inode: 0 });
        setup.dns = vec!["10.99.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let servers = "# made by nsnet\nnameserver 10.99.2.3\nnameserver fd00::3\n";
        assert_eq!(setup.resolv_conf(), servers);
        setup.search = vec!["corp.test".into(), "test".into()];
        setup.dns_options = vec!["ndots:2".into()];
        assert_eq!(setup.resolv_conf(), format!("{servers}search corp.test test\noptions ndots:2\n"));
    }
}
