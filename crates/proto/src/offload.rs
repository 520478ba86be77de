//! What of a packet's processing may be left to the other end of a TUN device.

use serde::{Deserialize, Serialize};

/// Offloads of a TUN device (`TUN_F_*` of `linux/if_tun.h`). The default is none.
///
/// # Example
///
/// ```
/// use nsnet_proto::Offload;
///
/// let without_bursts = Offload::ALL.with_uso(false);
/// assert!(without_bursts.tso4 && !without_bursts.uso);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

    /// The same but for [`checksum`](Self::checksum).
    #[must_use]
    pub const fn with_checksum(self, checksum: bool) -> Self {
        Self { checksum, ..self }
    }

    /// The same but for [`tso4`](Self::tso4).
    #[must_use]
    pub const fn with_tso4(self, tso4: bool) -> Self {
        Self { tso4, ..self }
    }

    /// The same but for [`tso6`](Self::tso6).
    #[must_use]
    pub const fn with_tso6(self, tso6: bool) -> Self {
        Self { tso6, ..self }
    }

    /// The same but for [`uso`](Self::uso).
    #[must_use]
    pub const fn with_uso(self, uso: bool) -> Self {
        Self { uso, ..self }
    }

    /// What both have: nothing if one lacks [`checksum`](Self::checksum).
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        let checksum = self.checksum && other.checksum;
        Self {
            checksum,
            tso4: checksum && self.tso4 && other.tso4,
            tso6: checksum && self.tso6 && other.tso6,
            uso: checksum && self.uso && other.uso,
        }
    }

    /// What to ask the kernel for, best first: it refuses a set as a whole if it does not know one of them.
    #[must_use]
    pub const fn fallbacks(self) -> [Self; 5] {
        let checksum = Self::NONE.with_checksum(self.checksum);
        [self, self.with_uso(false), self.with_tso4(false).with_tso6(false), checksum, Self::NONE]
    }

    /// The same as the argument of the request `TUNSETOFFLOAD`.
    #[cfg(feature = "channel")]
    #[must_use]
    pub fn tun_flags(self) -> std::ffi::c_uint {
        let flag = |wanted: bool, flags: std::ffi::c_uint| if wanted { flags } else { 0 };
        flag(self.checksum, libc::TUN_F_CSUM)
            | flag(self.tso4, libc::TUN_F_TSO4)
            | flag(self.tso6, libc::TUN_F_TSO6)
            | flag(self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersection_has_nothing_without_checksums() {
        let all = Offload::ALL;
        assert_eq!(all.intersection(all), all);
        assert_eq!(all.intersection(all.with_uso(false)), all.with_uso(false));
        assert_eq!(
            all.with_tso4(false).intersection(all.with_tso6(false)).with_uso(false),
            Offload::NONE.with_checksum(true)
        );
        assert_eq!(all.intersection(all.with_checksum(false)), Offload::NONE);
    }

    #[test]
    #[cfg(feature = "channel")]
    fn fallbacks_are_subsets_and_end_with_none() {
        let fallbacks = Offload::ALL.fallbacks();
        assert_eq!((fallbacks[0], fallbacks[4]), (Offload::ALL, Offload::NONE));
        assert_eq!(fallbacks.map(Offload::tun_flags), [0x67, 0x07, 0x61, 0x01, 0]);
    }
}
