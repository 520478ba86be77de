//! The messages of the handshake. Encoded with postcard behind a fixed preamble of magic and version, so that
//! a peer of another version is recognised before anything of its message is interpreted.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Offload;

/// Version of the conversation. Both ends must speak the same one: they are built from the same release.
pub const VERSION: u16 = 3;

/// Longest name of a network interface, in bytes (`IFNAMSIZ` − 1, `linux/if.h`).
pub const DEVICE_NAME_MAX: usize = 15;

/// Most queues of one TUN device. Each is a thread of the host's, and the host has no more of these than cores.
pub const MAX_QUEUES: u16 = 16;

/// What may travel on a [`Channel`](crate::Channel). Sealed: the conversation is closed.
pub trait Message: Serialize + for<'a> Deserialize<'a> + sealed::Sealed {}

impl Message for Setup {}
impl Message for Report {}

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

/// What decoding can find wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecodeError {
    NotOurs,
    Version(u16),
    Malformed,
}

const MAGIC: [u8; 4] = *b"nsnt";
const PREAMBLE: usize = MAGIC.len() + size_of::<u16>();

pub(crate) fn encode<M: Message>(message: &M) -> Result<Vec<u8>, postcard::Error> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    postcard::to_extend(message, bytes)
}

pub(crate) fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    let Some((preamble, body)) = bytes.split_at_checked(PREAMBLE) else { return Err(DecodeError::NotOurs) };
    let (magic, version) = preamble.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(DecodeError::NotOurs);
    }
    let version = u16::from_le_bytes([version[0], version[1]]);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(DecodeError::Malformed),
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Setup {}
    impl Sealed for super::Report {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READY: Report =
        Report::Ready(Ready { carriage: Carriage::Shuttled, offload: Offload::ALL, queues: 1 });

    fn address() -> impl Strategy<Value = InterfaceAddress> {
        (any::<IpAddr>(), any::<u8>(), any::<IpAddr>())
            .prop_map(|(address, prefix_len, gateway)| InterfaceAddress { address, prefix_len, gateway })
    }

    fn offload() -> impl Strategy<Value = Offload> {
        any::<[bool; 4]>().prop_map(|[checksum, tso4, tso6, uso]| Offload { checksum, tso4, tso6, uso })
    }

    proptest! {
        #[test]
        fn setup_survives_the_wire(
            device in "[a-z0-9]{1,15}",
            mtu in any::<u16>(),
            addresses in prop::collection::vec(address(), 0..4),
            dns in prop::collection::vec(any::<IpAddr>(), 0..4),
            search in prop::collection::vec("[a-z.]{1,20}", 0..4),
            dns_options in prop::collection::vec("[a-z:0-9]{1,10}", 0..4),
            offload in offload(),
            queues in any::<u16>(),
            ids in any::<(u64, u64)>(),
        ) {
            let host_namespace = NamespaceId { device: ids.0, inode: ids.1 };
            let setup =
                Setup { device, mtu, addresses, dns, search, dns_options, offload, queues, host_namespace };
            prop_assert_eq!(decode::<Setup>(&encode(&setup).unwrap()), Ok(setup));
        }

        #[test]
        fn report_survives_the_wire(
            offload in offload(), shuttled in any::<bool>(), queues in any::<u16>(),
            step in ".{0,40}", errno in any::<Option<i32>>(), cause in ".{0,40}", remedy in ".{0,40}",
        ) {
            let carriage = if shuttled { Carriage::Shuttled } else { Carriage::HandedOver };
            for report in [Report::Ready(Ready { carriage, offload, queues }), Report::Failed(Failure { step, errno, cause, remedy })] {
                prop_assert_eq!(decode::<Report>(&encode(&report).unwrap()), Ok(report));
            }
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut ours = encode(&Report::Failed(Failure {
                step: String::new(), errno: None, cause: String::new(), remedy: String::new(),
            })).unwrap();
            ours.truncate(PREAMBLE);
            ours.extend_from_slice(&bytes);
            let _ = decode::<Setup>(&ours);
            let _ = decode::<Report>(&ours);
            if !bytes.starts_with(&MAGIC) {
                prop_assert_eq!(decode::<Setup>(&bytes), Err(DecodeError::NotOurs));
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&READY).unwrap();
        bytes[4] = 9;
        assert_eq!(decode::<Report>(&bytes), Err(DecodeError::Version(9)));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&READY).unwrap();
        bytes.push(0);
        assert_eq!(decode::<Report>(&bytes), Err(DecodeError::Malformed));
    }
}
