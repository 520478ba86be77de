//! Configures the interface as the host wants it, through rtnetlink: MTU, device up, addresses, default routes. It also
//! takes care of the loopback interface. Nothing else in the namespace changes, and no sysctl.
//!
//! IPv6 addresses skip duplicate address detection (`IFA_F_NODAD`). Nobody else is on this link, and the address could
//! not be used until detection ends, a second later. Even so the kernel is not done when it acknowledges the address,
//! see [`local_route`].

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nsnet_proto::{InterfaceAddress, Setup};

use crate::interface::Interface;
use crate::netlink::Netlink;
use crate::{Error, Loopback, TunDevice, local_route};

impl TunDevice {
    /// Brings the device up, with MTU, addresses and default routes as the host wants them, and the loopback interface
    /// as [`Loopback`] says.
    ///
    /// Call it in the network namespace the device was opened in. It works before and after pivot_root(2). When it
    /// returns, packets to the addresses are accepted and every route is in use.
    ///
    /// # Errors
    /// If the kernel refuses a step, or does not begin to accept packets within ten seconds. The host gets the error as
    /// well.
    pub fn configure(&mut self) -> Result<(), Error> {
        self.reporting(apply(&self.setup, self.loopback))
    }
}

fn apply(setup: &Setup, loopback: Loopback) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let device = Interface::find(&setup.device)?;
    let step = format!("set the MTU of {} to {}", setup.device, setup.mtu);
    netlink.carry_out(step, dimensions(device.index, setup.mtu), 0)?;
    keep_quiet(&mut netlink, device.index, &setup.device)?;
    // Before its addresses, so that the on-link routes appear with them at once. The default routes need these.
    device.bring_up(&mut netlink)?;
    for of in &setup.addresses {
        let step = format!("add the address {}/{} to {}", of.address, of.prefix_len, setup.device);
        netlink.carry_out(step, address(device.index, of), NLM_F_CREATE | NLM_F_REPLACE)?;
        let step = format!("add the default route via {}", of.gateway);
        netlink.carry_out(step, default_route(device.index, of), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    for of in &setup.addresses {
        if let IpAddr::V6(address) = of.address {
            local_route::wait(&mut netlink, address)?;
        }
    }
    // Last, because another process may be about to bring it up.
    loopback.apply(&mut netlink)
}

/// Keeps the kernel from giving the device an IPv6 address of its own.
fn keep_quiet(netlink: &mut Netlink, index: u32, device: &str) -> Result<(), Error> {
    match netlink.request(no_generated_address(index), 0) {
        // Without IPv6 in the kernel or the namespace, the kernel generates no address.
        Err(refusal) if refusal.error.raw_os_error() != Some(libc::EAFNOSUPPORT) => {
            Err(refusal.into_error(format!("keep {device} from IPv6 addresses of its own")))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn dimensions(index: u32, mtu: u16) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu.into()), LinkAttribute::TxQueueLen(QUEUE)];
    RouteNetlinkMessage::SetLink(message)
}

/// The most packets that wait for the engine. The kernel's default of 500 loses segments when several connections
/// without segmentation offload fill their windows, and cuts their throughput to a fifth. Windows still bound the
/// queue.
pub(crate) const QUEUE: u32 = 4096;

/// Switches the link-local address off. There are no routers on this link. With the address, the kernel would ask for
/// routers again and again, and an idle network would not stay idle.
fn no_generated_address(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])];
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn address(index: u32, of: &InterfaceAddress) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(of.address);
    message.header.prefix_len = of.prefix_len;
    message.header.index = index;
    if of.address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    // The same address twice: without point-to-point, the peer (IFA_ADDRESS) is the address itself.
    message.attributes = vec![AddressAttribute::Local(of.address), AddressAttribute::Address(of.address)];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(index: u32, of: &InterfaceAddress) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of.address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::from(of.gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nsnet_proto::{Offload, Report};

    use super::*;
    use crate::Namespaces;
    use crate::testing::{configured, ends, inside, ip, setup};

    const NAMESPACES: Namespaces = Namespaces::new().user().network();

    #[test]
    fn interface_looks_as_the_host_wants_it() {
        if !inside(NAMESPACES, module_path!(), "interface_looks_as_the_host_wants_it") {
            return;
        }
        let (_host, _device) = configured(Offload::NONE);
        let link = ip("-o link show tun0").1;
        assert!(link.contains("mtu 1500") && link.contains(",UP") && link.contains("qlen 4096"), "{link}");
        assert!(ip("-o link show lo").1.contains(",UP"));
        let addresses = ip("-o address show tun0").1;
        assert!(addresses.contains("inet 10.99.2.100/24"), "{addresses}");
        assert!(
            addresses.contains("inet6 fd00::100/64") && !addresses.contains("tentative fd00"),
            "{addresses}"
        );
        assert!(!addresses.contains("fe80:"), "{addresses}");
        assert!(ip("-4 route show default").1.contains("via 10.99.2.2 dev tun0"));
        assert!(ip("-6 route show default").1.contains("via fd00::2 dev tun0"));
        // Usable at once: no duplicate address detection.
        std::net::UdpSocket::bind("[fd00::100]:0").unwrap();
    }

    #[test]
    fn loopback_that_is_up_is_no_obstacle() {
        if inside(NAMESPACES, module_path!(), "loopback_that_is_up_is_no_obstacle") {
            assert!(ip("link set lo up").0.success());
            configured(Offload::NONE);
        }
    }

    #[test]
    fn disabled_ipv6_is_told_with_what_to_do() {
        if !inside(NAMESPACES, module_path!(), "disabled_ipv6_is_told_with_what_to_do") {
            return;
        }
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (host, fd) = ends(&setup(Offload::NONE));
        let mut device = TunDevice::from_fd(fd).unwrap();
        let error = device.configure().unwrap_err();
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("ipv4_only()")), "{error}");
        let (report, _) = host.receive::<Report>().unwrap();
        assert!(matches!(report, Report::Failed(failure) if failure.step.contains("fd00::100/64")));
    }

    #[test]
    fn second_default_route_is_refused() {
        if !inside(NAMESPACES, module_path!(), "second_default_route_is_refused") {
            return;
        }
        let (_host, _device) = configured(Offload::NONE);
        let mut second = setup(Offload::NONE);
        second.device = "tun1".to_owned();
        let (_other_host, fd) = ends(&second);
        let error = TunDevice::from_fd(fd).unwrap().configure().unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("its own namespace")), "{error}");
    }
}
