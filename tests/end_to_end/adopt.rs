//! Devices that somebody else has made and configured.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR};
use nsnet::host::{
    AdoptedDevice, AttachError, End, Finished, Member, MemberError, Network, NetworkBuilder, Offload, Publish,
};
use nsnet_proto::{Carriage, Channel, Ready, Report};

use crate::world::{
    Container, DNS, GATEWAY, HOST, Namespace, PATIENCE, SERVER, World, accept, eventually, exchange, once,
    output, receive, server, tun,
};

once! {
    device_with_a_header_carries_everything,
    device_without_a_header_carries_everything,
    device_is_given_no_offload_that_is_not_wanted,
    deleted_device_is_told,
    closed_attachment_gives_the_device_back,
    finished_attachment_has_delivered,
    what_is_no_bare_tun_device_is_refused,
    mtu_and_addresses_are_checked,
}

/// Not those that the network would give by itself.
const OWN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 2, 7)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7))];

const MTU: u16 = 1400;

const PLAIN: i32 = IFF_TUN | IFF_NO_PI;
const HEADER: i32 = PLAIN | IFF_VNET_HDR;

/// More than fits any buffer on the way.
const LENGTH: u64 = 8 << 20;

fn device_with_a_header_carries_everything(world: &World) {
    let container = adopted(Network::builder(), HEADER);
    let ready = container.ready();
    assert_eq!((ready.carriage, ready.queues), (Carriage::HandedOver, 1));
    // USO is newer than some kernels.
    assert_eq!(ready.offload.with_uso(true), Offload::ALL);
    assert_carries_everything(world, &container);
}

fn device_without_a_header_carries_everything(world: &World) {
    let container = adopted(Network::builder(), PLAIN);
    assert_eq!(container.ready().offload, Offload::NONE);
    assert_carries_everything(world, &container);
}

/// Whatever it was given before.
fn device_is_given_no_offload_that_is_not_wanted(world: &World) {
    let network = Arc::new(Network::builder().build().unwrap());
    let namespace = Namespace::new();
    let fd = made_in(&namespace, HEADER);
    let first = network.adopt(fd.try_clone().unwrap(), device()).unwrap();
    assert_eq!(first.finish(PATIENCE), Finished::Delivered);
    let network = Arc::new(Network::builder().offload(Offload::NONE).build().unwrap());
    let attachment = network.adopt(fd, device()).unwrap();
    let container = Container::of_device(network, namespace, attachment);
    assert_eq!(container.ready().offload, Offload::NONE);
    assert_carries_everything(world, &container);
}

fn deleted_device_is_told(_: &World) {
    let container = adopted(Network::builder(), HEADER);
    output(container.command("ip").args(["link", "delete", "tun7"]));
    assert!(matches!(container.attachment().wait_ended(PATIENCE), Some(End::LinkGone)));
}

fn closed_attachment_gives_the_device_back(_: &World) {
    let network = Network::builder().build().unwrap();
    let namespace = Namespace::new();
    let attachment = network.adopt(made_in(&namespace, PLAIN), device()).unwrap();
    attachment.close();
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::Closed)));
    // It was not made to last, and nobody has it now.
    let is_there =
        || namespace.command("ip").args(["link", "show", "tun7"]).output().unwrap().status.success();
    eventually("the device is gone", || !is_there());
    network.adopt(made_in(&namespace, PLAIN), device()).unwrap();
}

fn finished_attachment_has_delivered(world: &World) {
    let mut container = adopted(Network::builder(), HEADER);
    let listener = world.listen(SERVER[0]);
    let stream = container.connect(listener.local_addr().unwrap()).unwrap();
    let mut theirs = accept(&listener);
    drop(stream);
    assert_eq!(container.take_attachment().finish(PATIENCE), Finished::Delivered);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

fn what_is_no_bare_tun_device_is_refused(_: &World) {
    let network = Network::builder().build().unwrap();
    let namespace = Namespace::new();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let unattached = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let others: [OwnedFd; 8] = [
        File::open("/dev/null").unwrap().into(),
        pipe.into(),
        Channel::pair().unwrap().0.into_fd(),
        unattached.into(),
        namespace.run(|| tun("tap7", IFF_TAP | IFF_NO_PI)),
        namespace.run(|| tun("tap8", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)),
        // With protocol information in front of packets.
        namespace.run(|| tun("tun8", IFF_TUN)),
        made_in(&namespace, IFF_TUN | IFF_VNET_HDR),
    ];
    for other in others {
        let error = network.adopt(other, device()).unwrap_err();
        assert!(matches!(error, AttachError::NotTun(_)), "{error}");
    }
    // None of them has kept the addresses.
    network.adopt(made_in(&namespace, HEADER), device()).unwrap();
}

fn mtu_and_addresses_are_checked(_: &World) {
    let network = Network::builder().build().unwrap();
    let namespace = Namespace::new();
    let refused = |device| network.adopt(made_in(&namespace, PLAIN), device).unwrap_err();
    assert!(matches!(refused(AdoptedDevice::new(1279)), AttachError::Mtu { mtu: 1279, least: 1280 }));
    let elsewhere = Member::new().ipv4([10, 0, 3, 1].into());
    assert!(matches!(
        refused(AdoptedDevice::new(MTU).member(elsewhere)),
        AttachError::Member(MemberError::Address(_))
    ));
    let attachment = network.adopt(made_in(&namespace, PLAIN), AdoptedDevice::new(MTU)).unwrap();
    assert_eq!((&*attachment.setup().device, attachment.setup().mtu), ("tun7", MTU));
    assert_eq!(attachment.ipv4(), Some([10, 0, 2, 100].into()));
}

/// A device made and configured without nsnet, in a namespace of its own, and a network that serves it.
#[track_caller]
fn adopted(builder: NetworkBuilder, flags: i32) -> Container {
    let network = Arc::new(builder.build().unwrap());
    let namespace = Namespace::new();
    let attachment = network.adopt(made_in(&namespace, flags), device()).unwrap();
    Container::of_device(network, namespace, attachment)
}

fn device() -> AdoptedDevice {
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = OWN else { panic!("{OWN:?}") };
    AdoptedDevice::new(MTU).member(Member::named("adopted").ipv4(v4).ipv6(v6))
}

/// Makes a device inside and brings its fd out by `SCM_RIGHTS`.
#[track_caller]
fn made_in(namespace: &Namespace, flags: i32) -> OwnedFd {
    let (inside, outside) = Channel::pair().unwrap();
    namespace.run(|| {
        let device = tun("tun7", flags);
        namespace.ip(&format!(
            "link set lo up
            addr add {}/24 dev tun7
            addr add {}/64 dev tun7 nodad
            link set tun7 mtu {MTU} up
            route add default via {} dev tun7
            route add default via {} dev tun7
            ",
            OWN[0], OWN[1], GATEWAY[0], GATEWAY[1]
        ));
        // The message is of no interest, what comes with it is.
        let ready = Ready::new(Carriage::HandedOver, Offload::NONE, 1);
        inside.send(&Report::Ready(ready), &[device.as_fd()]).unwrap();
    });
    outside.receive::<Report>().unwrap().1.pop().unwrap()
}

/// Both ways, bulk and single packets, from inside and from outside.
#[track_caller]
fn assert_carries_everything(world: &World, container: &Container) {
    for address in SERVER {
        let to = server::exchange(world.listen(address), LENGTH);
        exchange(container.connect(to).unwrap(), LENGTH, LENGTH);
        let socket = container.udp(server::udp_echo(world.udp(address)));
        for length in [0, 1, 1300, 9000] {
            let datagram = vec![7; length];
            socket.send(&datagram).unwrap();
            assert_eq!(receive(&socket).unwrap(), datagram);
        }
    }
    for address in [GATEWAY, DNS].concat() {
        output(container.command("ping").args(["-n", "-c", "1", "-W", "5", &address.to_string()]));
    }
    let listener = container.inside(|| TcpListener::bind((OWN[0], 0))).unwrap();
    let port = server::exchange(listener, LENGTH).port();
    let published = container.network().publish(Publish::tcp((HOST[0], 0), port)).unwrap();
    exchange(world.connect(published.addresses()[0]), LENGTH, LENGTH);
    published.close();
    assert_eq!(container.network().statistics().discarded.malformed, 0);
}
