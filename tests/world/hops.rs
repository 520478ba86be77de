//! A way with routers on it, for tests of what routers say.
//!
//! ```text
//!   host            ROUTERS[0]       ROUTERS[1]       ROUTERS[2]        END
//!  ┌───────┐       ┌───────┐        ┌───────┐        ┌───────┐        ┌───────┐
//!  │  10.99.1.1 .2 │       │ 10.99.2.1  .2  │ 10.99.3.1  .2  │ 10.99.4.1  .2  │
//!  │ near0 │◄─────►│   far0│◄──────►│   far0│◄──────►│   far0│◄──────►│       │
//!  └───────┘       └───────┘        └───────┘        └───────┘        └───────┘
//! ```
//!
//! In IPv6 the links are fd99:1::/64 to fd99:4::/64. Every interface that faces the host is called near0, as far as it is
//! not the host's own, and every router's other one far0. Nobody limits the rate of what it has to say.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;

use super::{Namespace, PATIENCE, World, errno, eventually, v4};

/// The routers, by the address that faces the host.
pub(crate) const ROUTERS: [[IpAddr; 2]; 3] = [on_link(1, 2), on_link(2, 2), on_link(3, 2)];
/// The host at the end.
pub(crate) const END: [IpAddr; 2] = on_link(4, 2);
/// On the last link, but nobody's.
pub(crate) const DEAD: [IpAddr; 2] = on_link(4, 0x77);
/// The last router has no way there, and says so.
pub(crate) const UNREACHABLE: [IpAddr; 2] = on_link(5, 1);

const fn on_link(link: u8, host: u16) -> [IpAddr; 2] {
    let low = Ipv6Addr::new(0xfd99, link as u16, 0, 0, 0, 0, 0, host);
    [v4(10, 99, link, host.to_be_bytes()[1]), IpAddr::V6(low)]
}

/// Three routers in a row, and a host behind them.
pub(crate) struct Hops {
    routers: [Namespace; 3],
    end: Namespace,
}

impl World {
    /// Adds the routers and the host behind them to the world.
    #[track_caller]
    pub(crate) fn hops(&self) -> Hops {
        let hops = Hops { routers: std::array::from_fn(|_| Namespace::new()), end: Namespace::new() };
        let host = Namespace::current();
        speak_freely();
        hops.routers.iter().chain([&hops.end]).for_each(|namespace| namespace.run(speak_freely));
        hops.routers.iter().for_each(|router| router.run(forward));
        let ends = [&host].into_iter().chain(&hops.routers).chain([&hops.end]);
        for (link, (from, to)) in (1..).zip(ends.clone().zip(ends.skip(1))) {
            connect(link, from, to);
        }
        host.ip("route add 10.99.0.0/16 via 10.99.1.2
            route add fd99::/16 via fd99:1::2
            ");
        for (link, router) in (1..).zip(&hops.routers) {
            let next = link + 1;
            router.ip(&format!(
                "route add 10.99.1.0/24 via 10.99.{link}.1 metric 9
                route add fd99:1::/64 via fd99:{link}::1 metric 9999
                route add 10.99.0.0/16 via 10.99.{next}.2
                route add fd99::/16 via fd99:{next}::2
                "
            ));
        }
        // Whoever does not answer on the last link is given up after three tenths of a second.
        hops.routers[2].ip("route add unreachable 10.99.5.0/24
            route add unreachable fd99:5::/64
            ntable change name arp_cache dev far0 retrans 100
            ntable change name ndisc_cache dev far0 retrans 100
            ");
        hops.end.ip("route add default via 10.99.4.1
            route add default via fd99:4::1
            ");
        hops.wait_for_way();
        hops
    }
}

impl Hops {
    /// Gives the link between the second and the third router another MTU.
    pub(crate) fn narrow(&self, mtu: u16) {
        self.routers[1].ip(&format!("link set far0 mtu {mtu}\n"));
        self.routers[2].ip(&format!("link set near0 mtu {mtu}\n"));
    }

    /// A UDP socket of the host at the end.
    #[track_caller]
    pub(crate) fn udp(&self, at: IpAddr) -> UdpSocket {
        let socket = self.in_end(|| UdpSocket::bind((at, 0))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Runs `body` on a thread in the namespace of the host at the end.
    #[track_caller]
    pub(crate) fn in_end<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.end.run(body)
    }

    /// Waits until the host at the end answers.
    fn wait_for_way(&self) {
        for address in END {
            eventually("the routers carry packets", || {
                let closed = TcpStream::connect_timeout(&(address, 1).into(), Duration::from_secs(1));
                closed.is_err_and(|error| errno(&error) == Errno::ECONNREFUSED)
            });
        }
    }
}

/// Lays a link; both namespaces have their end of it up and addressed.
fn connect(link: u8, from: &Namespace, to: &Namespace) {
    let far = if link == 1 { "hops0" } else { "far0" };
    from.ip(&format!(
        "link set lo up
        link add {far} type veth peer name near0 netns {}
        addr add 10.99.{link}.1/24 dev {far}
        addr add fd99:{link}::1/64 dev {far} nodad
        link set {far} up
        ",
        to.path()
    ));
    to.ip(&format!(
        "link set lo up
        addr add 10.99.{link}.2/24 dev near0
        addr add fd99:{link}::2/64 dev near0 nodad
        link set near0 up
        "
    ));
}

/// No rate limit is applied to any message.
///
/// A limit of zero would not do. It takes away the peer's tokens (`inet_peer_xrlim_allow`), and by the same tokens the
/// kernel decides whether an unreachable route is worth an error (`ip_error`): a second one within a second would
/// depend on whether both were counted in the same tick as the first.
fn speak_freely() {
    sysctl("ipv4/icmp_ratemask", "0");
    // An empty list of types.
    sysctl("ipv6/icmp/ratemask", "\n");
}

fn forward() {
    sysctl("ipv4/ip_forward", "1");
    sysctl("ipv6/conf/all/forwarding", "1");
}

#[track_caller]
fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
