//! The IP header options of a socket's packets: hop limit and fragmentation.
//!
//! They are options of the socket, and changing one costs a system call. As a control message they would cost every
//! datagram one more allocation and look-up. One source keeps to one hop limit, and mostly to one choice about
//! fragments. So the options are set only when they change.

use std::os::fd::AsFd;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::Envelope;
use crate::sys::{self, MtuDiscovery};

/// The options that a socket has now.
#[derive(Debug, Default)]
pub(super) struct IpOptions {
    /// 0 stands for the kernel's choice. No envelope has it.
    hop_limit: AtomicU8,
    /// 0 stands for the kernel's default.
    fragmenting: AtomicU8,
}

const ALLOWED: u8 = 1;
const FORBIDDEN: u8 = 2;

impl IpOptions {
    /// Makes the socket send as the envelope says. If the kernel does not know an option, it keeps its own choice and
    /// is not asked again.
    pub(super) fn apply(&self, socket: &impl AsFd, envelope: &Envelope) {
        let is_v4 = envelope.destination.is_ipv4();
        if self.hop_limit.swap(envelope.hop_limit, Relaxed) != envelope.hop_limit {
            let hop_limit = envelope.hop_limit.into();
            let _ = if is_v4 {
                setsockopt(socket, sockopt::Ipv4Ttl, &hop_limit)
            } else {
                setsockopt(socket, sockopt::Ipv6Ttl, &hop_limit)
            };
        }
        let fragmenting = if envelope.dont_fragment { FORBIDDEN } else { ALLOWED };
        if self.fragmenting.swap(fragmenting, Relaxed) != fragmenting {
            let _ = sys::set_mtu_discovery(socket.as_fd(), discovery(is_v4, envelope.dont_fragment));
        }
    }
}

/// The value of `IP_MTU_DISCOVER` (ip(7)) that acts like a router. A router fragments a datagram that may be
/// fragmented. For others it uses the MTU of its next link only, and forgets what it has heard about links beyond. The
/// sender may want to hear that again.
fn discovery(is_v4: bool, dont_fragment: bool) -> MtuDiscovery {
    match (is_v4, dont_fragment) {
        (true, true) => MtuDiscovery::V4(libc::IP_PMTUDISC_PROBE),
        (true, false) => MtuDiscovery::V4(libc::IP_PMTUDISC_DONT),
        (false, true) => MtuDiscovery::V6(libc::IPV6_PMTUDISC_PROBE),
        (false, false) => MtuDiscovery::V6(libc::IPV6_PMTUDISC_DONT),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use socket2::SockRef;

    use super::*;

    #[test]
    fn the_socket_sends_as_the_last_envelope_says() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(host).unwrap();
            let options = IpOptions::default();
            let mut envelope = Envelope::new(socket.local_addr().unwrap());
            for hop_limit in [64, 9, 9, 255] {
                envelope.hop_limit = hop_limit;
                options.apply(&socket, &envelope);
                let socket = SockRef::from(&socket);
                let set =
                    if envelope.destination.is_ipv4() { socket.ttl_v4() } else { socket.unicast_hops_v6() };
                assert_eq!(set.unwrap(), u32::from(hop_limit));
            }
        }
    }
}
