//! The types and codes of ICMP errors, written and read.

use smoltcp::wire::{Icmpv4Message, Icmpv6Message};

use super::{IcmpError, Unreachable};
use crate::ip::extensions;

/// Type, code and parameter of an ICMPv4 error (RFC 792; RFC 1812, 5.2.7.1; RFC 1191, 4).
pub(super) fn header_v4(error: IcmpError) -> (Icmpv4Message, u8, u32) {
    let code = match error {
        IcmpError::TimeExceeded => return (Icmpv4Message::TimeExceeded, 0, 0),
        // The field has 16 bits, and no IPv4 packet is longer.
        IcmpError::PacketTooBig { mtu } => {
            return (Icmpv4Message::DstUnreachable, 4, mtu.min(u16::MAX.into()));
        }
        IcmpError::Unreachable(Unreachable::Network) => 0,
        IcmpError::Unreachable(Unreachable::Host) => 1,
        IcmpError::Unreachable(Unreachable::Protocol) => 2,
        IcmpError::Unreachable(Unreachable::Port) => 3,
        IcmpError::Unreachable(Unreachable::Prohibited) => 13,
    };
    (Icmpv4Message::DstUnreachable, code, 0)
}

/// Type, code and parameter of an ICMPv6 error about `quoted` (RFC 4443, 3.1 to 3.4).
pub(super) fn header_v6(error: IcmpError, quoted: &[u8]) -> (Icmpv6Message, u8, u32) {
    let code = match error {
        IcmpError::TimeExceeded => return (Icmpv6Message::TimeExceeded, 0, 0),
        IcmpError::PacketTooBig { mtu } => return (Icmpv6Message::PktTooBig, 0, mtu),
        // "Unrecognized next header", and the offset of the field that names it.
        IcmpError::Unreachable(Unreachable::Protocol) => {
            return (Icmpv6Message::ParamProblem, 1, extensions::named_at(quoted));
        }
        IcmpError::Unreachable(Unreachable::Network) => 0,
        IcmpError::Unreachable(Unreachable::Prohibited) => 1,
        IcmpError::Unreachable(Unreachable::Host) => 3,
        IcmpError::Unreachable(Unreachable::Port) => 4,
    };
    (Icmpv6Message::DstUnreachable, code, 0)
}

/// The meaning of an ICMPv4 error (RFC 792; RFC 1812, 5.2.7.1), or `None` if it has none for a flow.
///
/// `parameter` is the second word of the ICMP header: for code 4 of type 3, the MTU in its lower half (RFC 1191, 4).
#[must_use]
pub fn meaning_v4(kind: u8, code: u8, parameter: u32) -> Option<IcmpError> {
    let reason = match (kind, code) {
        (11, 0) => return Some(IcmpError::TimeExceeded),
        (3, 4) => return Some(IcmpError::PacketTooBig { mtu: parameter }),
        (3, 2) => Unreachable::Protocol,
        (3, 3) => Unreachable::Port,
        (3, 0 | 6 | 11) => Unreachable::Network,
        (3, 9 | 10 | 13) => Unreachable::Prohibited,
        (3, 1 | 5 | 7 | 8 | 12) => Unreachable::Host,
        _ => return None,
    };
    Some(reason.into())
}

/// The meaning of an ICMPv6 error (RFC 4443, 3), or `None` if it has none for a flow.
///
/// `parameter` is the second word of the ICMP header: for type 2, the MTU.
#[must_use]
pub fn meaning_v6(kind: u8, code: u8, parameter: u32) -> Option<IcmpError> {
    let reason = match (kind, code) {
        (3, 0) => return Some(IcmpError::TimeExceeded),
        (2, _) => return Some(IcmpError::PacketTooBig { mtu: parameter }),
        (4, 1) => Unreachable::Protocol,
        (1, 4) => Unreachable::Port,
        (1, 0) => Unreachable::Network,
        (1, 1 | 5 | 6) => Unreachable::Prohibited,
        (1, 2 | 3) => Unreachable::Host,
        _ => return None,
    };
    Some(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let reasons = [Unreachable::Network, Unreachable::Host, Unreachable::Protocol]
            .into_iter()
            .chain([Unreachable::Port, Unreachable::Prohibited])
            .map(IcmpError::Unreachable);
        for error in reasons.chain([IcmpError::TimeExceeded, IcmpError::PacketTooBig { mtu: 1280 }]) {
            let (kind, code, parameter) = header_v4(error);
            assert_eq!(meaning_v4(kind.into(), code, parameter), Some(error));
            let (kind, code, parameter) = header_v6(error, &[]);
            assert_eq!(meaning_v6(kind.into(), code, parameter), Some(error));
        }
    }

    #[test]
    fn every_error_of_a_router_has_a_meaning() {
        let unreachable = |reason| Some(IcmpError::Unreachable(reason));
        for (v4, v6, expected) in [
            ((11, 0), (3, 0), Some(IcmpError::TimeExceeded)),
            ((3, 4), (2, 0), Some(IcmpError::PacketTooBig { mtu: 1400 })),
            ((3, 0), (1, 0), unreachable(Unreachable::Network)),
            ((3, 1), (1, 3), unreachable(Unreachable::Host)),
            ((3, 2), (4, 1), unreachable(Unreachable::Protocol)),
            ((3, 3), (1, 4), unreachable(Unreachable::Port)),
            ((3, 13), (1, 1), unreachable(Unreachable::Prohibited)),
            // Pieces were missing; a bad header.
            ((11, 1), (3, 1), None),
            ((12, 0), (4, 0), None),
        ] {
            assert_eq!(meaning_v4(v4.0, v4.1, 1400), expected, "{v4:?}");
            assert_eq!(meaning_v6(v6.0, v6.1, 1400), expected, "{v6:?}");
        }
    }
}
