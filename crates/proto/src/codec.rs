//! Encodes the messages of the handshake: postcard behind a fixed preamble of magic and version. The preamble tells a
//! peer of another version before anything of its message is interpreted.

use serde::{Deserialize, Serialize};

use crate::{Report, Setup, VERSION};

/// What may travel on a [`Channel`](crate::Channel). Sealed: the conversation is closed.
pub trait Message: Serialize + for<'a> Deserialize<'a> + sealed::Sealed {}

impl Message for Setup {}
impl Message for Report {}

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
    impl Sealed for crate::Setup {}
    impl Sealed for crate::Report {}
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::{Carriage, Failure, InterfaceAddress, NamespaceId, Offload, Ready};

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
