//! What of a packet's processing may be left to the other end of a TUN device.

use std::ffi::c_uint;

use serde::{Deserialize, Serialize};

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

    /// What to ask the kernel for, best first: it refuses a set as a whole if it does not know one of them.
    #[must_use]
    pub fn fallbacks(self) -> [Self; 5] {
        let checksum = Self { checksum: self.checksum, ..Self::NONE };
        [self, Self { uso: false, ..self }, Self { tso4: false, tso6: false, ..self }, checksum, Self::NONE]
    }

    /// The same as the argument of the request `TUNSETOFFLOAD`.
    #[must_use]
    pub fn tun_flags(self) -> c_uint {
        let flag = |wanted: bool, flags: c_uint| if wanted { flags } else { 0 };
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
    fn fallbacks_are_subsets_and_end_with_none() {
        let fallbacks = Offload::ALL.fallbacks();
        assert_eq!((fallbacks[0], fallbacks[4]), (Offload::ALL, Offload::NONE));
        assert_eq!(fallbacks.map(Offload::tun_flags), [0x67, 0x07, 0x61, 0x01, 0]);
    }
}
