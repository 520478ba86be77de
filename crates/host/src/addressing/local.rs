//! Does the host's kernel route an address to itself?
//!
//! The engine asks before every new flow. A container must not reach the host by one of the host's own addresses. These
//! are the addresses of its interfaces, 127.0.0.0/8, `::1`, subnet-router anycast addresses, and whole prefixes with a
//! route of type `local` (AnyIP). A list of interface addresses would miss the last two and would have to be kept up to
//! date. The kernel's routing decision misses nothing and is always current. It is the decision for a socket of this
//! user in this network namespace. Like the sockets of the direct dialer, it has no mark and no source address.
//!
//! The question is one `RTM_GETROUTE` (rtnetlink(7)) on a socket that stays open. The kernel answers within the send.
//!
//! **Not covered**: NAT rules of the host that redirect a foreign address to the host, and an address that the host
//! takes between the question and the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{Emitable, ErrorBuffer, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteType};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

/// The kind of destination that an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Another machine.
    Remote,
    /// The host itself.
    HostOwn,
    /// Every host on a link.
    Broadcast,
    /// A multicast group.
    Multicast,
    /// None: no route, or one that rejects packets.
    Unreachable,
}

/// The kernel's routing decision, on a netlink socket of the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct LocalRoutes {
    source: RouteSource,
    sequence: u32,
}

/// The source of the answers.
#[derive(Debug)]
enum RouteSource {
    Kernel(Socket),
    /// Takes every unicast address for another machine's.
    #[cfg(test)]
    NoHost,
}

impl LocalRoutes {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The error of socket(2), bind(2), connect(2) or setsockopt(2), usually `EMFILE`.
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Connected to the kernel, whose port is 0, the socket receives from nobody else.
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &RECEIVE_TIMEOUT)?;
        Ok(Self { source: RouteSource::Kernel(socket), sequence: 0 })
    }

    /// A host without addresses of its own.
    #[cfg(test)]
    pub(crate) fn of_no_host() -> Self {
        Self { source: RouteSource::NoHost, sequence: 0 }
    }

    /// Asks where packets for `address` go. An IPv4-mapped IPv6 address counts as the IPv4 address that a socket would
    /// connect to.
    ///
    /// # Errors
    /// If the kernel cannot be asked, or its answer cannot be read. The flow must then be refused. "No route" is an
    /// answer.
    pub(crate) fn lookup(&mut self, address: IpAddr) -> io::Result<Reach> {
        let address = address.to_canonical();
        // connect(2) takes the unspecified address for loopback before it looks at routes.
        if address.is_unspecified() {
            return Ok(Reach::HostOwn);
        }
        // These are the same on any host, even on one without a route for them.
        if address.is_multicast() {
            return Ok(Reach::Multicast);
        }
        if address == Ipv4Addr::BROADCAST {
            return Ok(Reach::Broadcast);
        }
        self.sequence = self.sequence.wrapping_add(1);
        match &self.source {
            RouteSource::Kernel(socket) => ask(socket, address, self.sequence),
            #[cfg(test)]
            RouteSource::NoHost => Ok(Reach::Remote),
        }
    }
}

/// Asks the kernel and reads its answer.
fn ask(socket: &Socket, address: IpAddr, sequence: u32) -> io::Result<Reach> {
    let (request, length) = request(address, sequence);
    socket.send(&request[..length], 0)?;
    let mut buffer = [0; BUFFER_LEN];
    for _ in 0..MAX_STALE {
        let length = match socket.recv(&mut &mut buffer[..], 0) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let message = NetlinkBuffer::new_checked(&buffer[..length.min(BUFFER_LEN)]).map_err(unreadable)?;
        // An answer to an earlier question, whose wait was interrupted or timed out.
        if message.sequence_number() != sequence {
            continue;
        }
        return match message.message_type() {
            libc::RTM_NEWROUTE => Ok(reach(RouteHeader::parse(message.payload()).map_err(unreadable)?.kind)),
            NLMSG_ERROR => refusal(&message),
            other => Err(unreadable(format!("message type {other}"))),
        };
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn request(address: IpAddr, sequence: u32) -> ([u8; MAX_REQUEST], usize) {
    let (address_family, destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let route = RouteHeader { address_family, destination_prefix_length, ..RouteHeader::default() };
    let destination = RouteAttribute::Destination(address.into());
    let mut header = NetlinkHeader::default();
    let (route_at, destination_at) = (header.buffer_len(), header.buffer_len() + route.buffer_len());
    let length = destination_at + destination.buffer_len();
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = libc::RTM_GETROUTE;
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut bytes = [0; MAX_REQUEST];
    header.emit(&mut bytes[..route_at]);
    route.emit(&mut bytes[route_at..destination_at]);
    destination.emit(&mut bytes[destination_at..length]);
    (bytes, length)
}

fn reach(kind: RouteType) -> Reach {
    match kind {
        RouteType::Unicast => Reach::Remote,
        // The host answers for an anycast address of its own.
        RouteType::Local | RouteType::Anycast => Reach::HostOwn,
        RouteType::Broadcast => Reach::Broadcast,
        RouteType::Multicast => Reach::Multicast,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            Reach::Unreachable
        }
        // These route types are not known to lead away from the host.
        RouteType::Unspec | RouteType::Nat | RouteType::ExternalResolve | RouteType::Other(_) | _ => {
            Reach::Unreachable
        }
    }
}

/// The answer behind an error message of the kernel: no route, or a failure.
fn refusal(message: &NetlinkBuffer<&[u8]>) -> io::Result<Reach> {
    let payload = message.payload();
    let code = ErrorBuffer::new_checked(payload).map_err(unreadable)?.code();
    let Some(errno) = code.map(|code| code.get().saturating_neg()) else {
        return Err(unreadable("an acknowledgement without a route"));
    };
    match errno {
        // No route, a route of type unreachable, prohibit or blackhole (`fib_props`, net/ipv4/fib_semantics.c), or a
        // host without that address family.
        libc::ENETUNREACH
        | libc::EHOSTUNREACH
        | libc::EACCES
        | libc::EINVAL
        | libc::EAFNOSUPPORT
        | libc::EOPNOTSUPP => Ok(Reach::Unreachable),
        _ => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn unreadable(cause: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer to RTM_GETROUTE: {cause}"))
}

/// Headers (16 and 12 bytes) and one attribute (4 bytes and an IPv6 address).
const MAX_REQUEST: usize = 48;
/// A route with its metrics takes a few hundred bytes. A longer answer would be cut, and is then refused.
const BUFFER_LEN: usize = 4096;
/// The most stale answers to skip. With more, the kernel is taken to be out of step.
const MAX_STALE: usize = 16;
/// Linux answers before sendmsg(2) returns, so nothing waits this long there. The timeout bounds the stall in a sandbox
/// that emulates netlink differently.
const RECEIVE_TIMEOUT: TimeVal = TimeVal::new(0, 100_000);

#[cfg(test)]
mod tests {
    use nix::ifaddrs::getifaddrs;

    use super::*;

    #[track_caller]
    fn lookup(address: &str) -> Reach {
        LocalRoutes::new().unwrap().lookup(address.parse().unwrap()).unwrap()
    }

    #[test]
    fn loopback_is_the_hosts_own() {
        for address in ["127.0.0.1", "127.8.9.1", "127.255.255.254", "::1", "0.0.0.0", "::"] {
            assert_eq!(lookup(address), Reach::HostOwn, "{address}");
        }
    }

    #[test]
    fn mapped_address_is_judged_as_ipv4() {
        assert_eq!(lookup("::ffff:127.0.0.1"), Reach::HostOwn);
        assert_eq!(lookup("::ffff:0.0.0.0"), Reach::HostOwn);
        assert_eq!(lookup("::ffff:203.0.113.7"), lookup("203.0.113.7"));
    }

    #[test]
    fn every_address_of_an_interface_is_the_hosts_own() {
        let mut routes = LocalRoutes::new().unwrap();
        let mut count = 0;
        for interface in getifaddrs().unwrap() {
            let Some(address) = interface.address else { continue };
            let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (None, Some(v6)) => IpAddr::V6(v6.ip()),
                (None, None) => continue,
            };
            assert_eq!(routes.lookup(address).unwrap(), Reach::HostOwn, "{address}");
            count += 1;
        }
        assert!(count >= 1, "at least loopback has an address");
    }

    #[test]
    fn foreign_address_is_not_the_hosts_own() {
        for address in ["203.0.113.7", "2001:db8::7"] {
            assert!(matches!(lookup(address), Reach::Remote | Reach::Unreachable), "{address}");
        }
    }

    #[test]
    fn groups_and_broadcast_have_their_own_class() {
        assert_eq!(lookup("224.0.0.251"), Reach::Multicast);
        assert_eq!(lookup("ff02::fb"), Reach::Multicast);
        assert_eq!(lookup("255.255.255.255"), Reach::Broadcast);
        assert_eq!(lookup("127.255.255.255"), Reach::Broadcast);
    }

    #[test]
    fn stale_answer_is_skipped() {
        let mut routes = LocalRoutes::new().unwrap();
        let (stale, length) = request("203.0.113.7".parse().unwrap(), 77);
        let RouteSource::Kernel(socket) = &routes.source else { panic!("the kernel's") };
        socket.send(&stale[..length], 0).unwrap();
        assert_eq!(routes.lookup("127.0.0.1".parse().unwrap()).unwrap(), Reach::HostOwn);
    }

    #[test]
    fn request_has_the_kernels_layout() {
        let (bytes, length) = request("203.0.113.7".parse().unwrap(), 0);
        assert_eq!(length, 36);
        assert_eq!(bytes[28..36], [&8u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[203, 0, 113, 7]].concat());
        assert_eq!(request("::1".parse().unwrap(), 0).1, MAX_REQUEST);
    }
}
