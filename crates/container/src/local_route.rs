//! Waits until the kernel accepts packets to an IPv6 address.
//!
//! The kernel acknowledges an IPv6 address before it accepts packets to it. Without a local route they are dropped
//! (`Ip6InAddrErrors`), and a work queue adds that route (`addrconf_dad_work`, `net/ipv6/addrconf.c`). It does so even
//! with `IFA_F_NODAD`, which leaves the work nothing to detect. The routes of IPv4 exist when acknowledged, and so do
//! the on-link and default routes of IPv6.
//!
//! The kernel announces the route too early to wait for the announcement. `fib6_add_rt2node` (`net/ipv6/ip6_fib.c`)
//! sends RTM_NEWROUTE first and marks the new node `RTN_RTINFO` afterwards. Look-ups pass over a node without the mark.
//! So a question right after the announcement can get the old answer, and no further announcement comes. For this
//! reason the route is looked up again and again.

use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Error;
use crate::clock::is_true_within;
use crate::netlink::Netlink;

/// The longest wait. In 1600 new namespaces on two cores the wait took 0.06 ms in the median, 3.3 ms at most. The
/// machine has one such work queue, which needs the lock that is held while namespaces are taken down. Under load it
/// took 0.15 s in the median and 2.9 s at most. The load was 24 starts at once, and 12 loops that make and take down
/// namespaces of 15 veth pairs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns once the kernel accepts packets to `address`, which has been added.
pub(crate) fn wait(netlink: &mut Netlink, address: Ipv6Addr) -> Result<(), Error> {
    wait_for(PATIENCE, netlink, address)
}

fn wait_for(patience: Duration, netlink: &mut Netlink, address: Ipv6Addr) -> Result<(), Error> {
    if is_true_within(patience, || is_local(netlink, address))? {
        Ok(())
    } else {
        Err(overdue(address, patience))
    }
}

fn is_local(netlink: &mut Netlink, address: Ipv6Addr) -> Result<bool, Error> {
    Ok(route_to(netlink, address)?.is_some_and(|route| route.header.kind == RouteType::Local))
}

/// The route of a packet to `address`, like `ip route get`.
fn route_to(netlink: &mut Netlink, address: Ipv6Addr) -> Result<Option<RouteMessage>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = 128;
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet6(address))];
    match netlink.request(RouteNetlinkMessage::GetRoute(message), 0) {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(Some(route)),
        Ok(_) => Ok(None),
        Err(refusal) if refusal.error.raw_os_error() == Some(libc::ENETUNREACH) => Ok(None),
        Err(refusal) => Err(Error::new(format!("look up the route to {address}"), refusal.error)),
    }
}

fn overdue(address: Ipv6Addr, patience: Duration) -> Error {
    let step = format!("wait until packets to {address} are accepted");
    let cause = format!("the kernel has added no local route within {patience:?}");
    Error::new(step, io::Error::new(io::ErrorKind::TimedOut, cause)).with_remedy(
        "see whether something else in the namespace takes the device down or removes the address; if the \
         machine is overloaded, try again",
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::thread;

    use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
    use nix::sched::{CloneFlags, unshare};
    use nsnet_proto::{InterfaceAddress, Offload};

    use super::*;
    use crate::configure::address;
    use crate::interface::Interface;
    use crate::testing::{configured, inside};
    use crate::{Namespaces, sys};

    const NAMESPACES: Namespaces = Namespaces::new().user().network();
    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
    const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    /// A UDP datagram from the gateway to port 7 of the container.
    fn first_packet() -> Vec<u8> {
        let payload = *b"first";
        let len = u8::try_from(8 + payload.len()).unwrap();
        let mut udp = vec![0, 9, 0, 7, 0, len, 0, 0];
        udp.extend_from_slice(&payload);
        let pseudo = [&GATEWAY.octets()[..], &ADDRESS.octets(), &[0, len, 0, 17], &udp].concat();
        let sum: u32 = pseudo
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
            .sum();
        let checksum = u16::try_from(0xffff - sum % 0xffff).unwrap();
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        [&[0x60, 0, 0, 0, 0, len, 17, 64][..], &GATEWAY.octets(), &ADDRESS.octets(), &udp].concat()
    }

    fn gateway_towards(netlink: &mut Netlink, address: Ipv6Addr) -> Option<RouteAddress> {
        let route = route_to(netlink, address).unwrap().unwrap();
        route.attributes.into_iter().find_map(|attribute| {
            if let RouteAttribute::Gateway(gateway) = attribute { Some(gateway) } else { None }
        })
    }

    #[test]
    fn first_ipv6_packet_into_the_container_arrives() {
        if !inside(NAMESPACES, module_path!(), "first_ipv6_packet_into_the_container_arrives") {
            return;
        }
        // The gap shows in about every fourth namespace.
        for round in 0..20 {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind("[::]:7").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let (_host, device) = configured(Offload::NONE);
            nix::unistd::write(&device, &first_packet()).unwrap();
            let mut buffer = [0; 16];
            let received = socket.recv(&mut buffer).map(|len| &buffer[..len]);
            assert!(matches!(received, Ok(b"first")), "round {round}: {received:?}");

            let netlink = &mut Netlink::open().unwrap();
            assert!(is_local(netlink, ADDRESS).unwrap(), "round {round}");
            assert_eq!(gateway_towards(netlink, GATEWAY), None);
            assert_eq!(gateway_towards(netlink, ELSEWHERE), Some(RouteAddress::Inet6(GATEWAY)));
        }
    }

    /// A device that is up and has no address.
    fn device_up(netlink: &mut Netlink) -> File {
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let flags = sys::DeviceFlags { vnet_header: true, multi_queue: false, exclusive: true };
        sys::create_device(tun.as_fd(), "tun0", flags).unwrap();
        Interface::find("tun0").unwrap().bring_up(netlink).unwrap();
        tun
    }

    fn add(netlink: &mut Netlink) {
        let of = InterfaceAddress::new(ADDRESS.into(), 64, GATEWAY.into());
        let message = address(sys::interface_index("tun0").unwrap(), &of);
        netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE).unwrap();
    }

    #[test]
    fn address_that_comes_later_is_waited_for() {
        if !inside(NAMESPACES, module_path!(), "address_that_comes_later_is_waited_for") {
            return;
        }
        let netlink = &mut Netlink::open().unwrap();
        let _tun = device_up(netlink);
        let adding = thread::spawn(|| {
            thread::sleep(Duration::from_millis(20));
            add(&mut Netlink::open().unwrap());
        });
        wait(netlink, ADDRESS).unwrap();
        adding.join().unwrap();
    }

    #[test]
    fn address_that_was_there_before_is_accepted_at_once() {
        if inside(NAMESPACES, module_path!(), "address_that_was_there_before_is_accepted_at_once") {
            let netlink = &mut Netlink::open().unwrap();
            let _tun = device_up(netlink);
            for _ in 0..2 {
                add(netlink);
                wait(netlink, ADDRESS).unwrap();
            }
        }
    }

    #[test]
    fn route_that_does_not_come_is_told_with_what_to_do() {
        if !inside(NAMESPACES, module_path!(), "route_that_does_not_come_is_told_with_what_to_do") {
            return;
        }
        let netlink = &mut Netlink::open().unwrap();
        let _tun = device_up(netlink);
        let error = wait_for(Duration::from_millis(50), netlink, ADDRESS).unwrap_err();
        assert_eq!(
            error.to_string().split(';').next(),
            Some(
                "wait until packets to fd00::100 are accepted: the kernel has added no local route within 50ms"
            )
        );
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("takes the device down")), "{error}");
    }
}
