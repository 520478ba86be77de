use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, setsockopt, socketpair, sockopt};

use nsnet_proto::Offload;
use nsnet_proto::vnet::SegmentKind;

use super::*;
use crate::addressing::local::LocalRoutes;
use crate::threads::commons::MAX_FRAME;
use nsnet_stack::fragments::{Fragment, Reassembler};
use nsnet_stack::packet::{Packet, Transport};

/// A buffer with room for a dozen frames of 1500 bytes. The kernel counts its overhead per frame, and doubles the size
/// that it is given.
const SMALL: usize = 16_384;

/// A link that shuttles, with a buffer of this many bytes, and its far end.
fn link(offload: Offload, buffer: usize) -> (Link, OwnedFd) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    setsockopt(&near, sockopt::SndBuf, &buffer).unwrap();
    let properties = LinkProperties {
        carriage: Carriage::Shuttled,
        device: Device { mtu: 1500, offload },
        framing: Framing::Header,
        nowait: false,
    };
    let commons = Rc::new(Commons::new(LocalRoutes::new().unwrap()).unwrap());
    (Link::new(LinkEnd { fd: Entrusted::new(near, drop), properties }, Arc::default(), commons).unwrap(), far)
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
async fn a_datagram_in_fragments_outlasts_a_full_link() {
    for (source, destination) in [("10.99.0.2:53", "10.0.2.100:4000"), ("[fd99::2]:53", "[fd00::100]:4000")] {
        let (link, far) = link(Offload::NONE, SMALL);
        link.writable().await.unwrap();
        let payload: Vec<_> = (0..60_000u32).flat_map(|number| number.to_le_bytes()).take(60_000).collect();
        let mut sent = link.send_datagrams(
            source.parse().unwrap(),
            destination.parse().unwrap(),
            Datagrams::one(&payload),
        );
        assert!(matches!(sent, Sent::Held(_)), "it fits the link");
        let mut reassembler = Reassembler::default();
        let mut buffer = [0; 2048];
        let whole = loop {
            let Ok(length) = socket::recv(far.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
                let Sent::Held(frame) = sent else { panic!("all is sent, and a piece is missing") };
                link.writable().await.unwrap();
                sent = link.resend(frame);
                continue;
            };
            assert!(length <= vnet::HEADER_LEN + 1500);
            let (header, fragment) = vnet::Header::split(&buffer[..length]).unwrap();
            assert_eq!(header, vnet::Header::default());
            let fragment = Fragment::parse(fragment).unwrap();
            if let Some(whole) = reassembler.add(std::time::Instant::now(), &fragment) {
                break whole;
            }
        };
        assert!(matches!(sent, Sent::Done));
        let packet = Packet::parse(&vnet::Header::default(), whole.packet()).unwrap();
        let Transport::Udp(received) = packet.transport else { panic!("not UDP") };
        assert!(received == Datagrams::one(&payload));
    }
}

#[tokio::test]
async fn a_payload_that_no_packet_carries_is_lost() {
    let (link, far) = link(Offload::NONE, SMALL);
    link.writable().await.unwrap();
    for (source, destination, longest) in
        [("10.99.0.2:53", "10.0.2.100:1", 65_507), ("[fd99::2]:53", "[fd00::100]:1", 65_527)]
    {
        let payload = vec![0; longest + 1];
        let sent = link.send_datagrams(
            source.parse().unwrap(),
            destination.parse().unwrap(),
            Datagrams::one(&payload),
        );
        assert!(matches!(sent, Sent::Done));
        assert_eq!(
            socket::recv(far.as_raw_fd(), &mut [0; 1], MsgFlags::empty()),
            Err(nix::errno::Errno::EAGAIN)
        );
    }
}

#[tokio::test]
async fn with_offload_a_datagram_goes_whole_if_a_frame_holds_it() {
    for (source, destination, length, size) in [
        ("10.99.0.2:53", "10.0.2.100:1", 65_507, Some(1480)),
        ("[fd99::2]:53", "[fd00::100]:1", 65_487, Some(1448)),
        ("[fd99::2]:53", "[fd00::100]:1", 65_488, None),
    ] {
        let (link, far) = link(Offload::ALL, 212_992);
        link.writable().await.unwrap();
        let payload = vec![7; length];
        let sent = link.send_datagrams(
            source.parse().unwrap(),
            destination.parse().unwrap(),
            Datagrams::one(&payload),
        );
        assert!(matches!(sent, Sent::Done));
        let mut buffer = vec![0; MAX_FRAME];
        let received = socket::recv(far.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        let (header, packet) = vnet::Header::split(&buffer[..received]).unwrap();
        let Some(size) = size else {
            assert_eq!((header, packet.len()), (vnet::Header::default(), 1496));
            continue;
        };
        let segmentation = header.segmentation.unwrap();
        assert_eq!((segmentation.kind, segmentation.size), (SegmentKind::Fragments, size));
        let uncut = vnet::Header { segmentation: None, ..header };
        let packet = Packet::parse(&uncut, packet).unwrap();
        let Transport::Udp(received) = packet.transport else { panic!("not UDP") };
        assert!(received == Datagrams::one(&payload));
        assert!(packet.ends.source.is_ipv6() || packet.bytes[6] & 0x40 == 0, "DF is set");
    }
}

#[tokio::test]
async fn a_burst_is_cut_into_frames_that_can_carry_it() {
    let (link, far) = link(Offload::ALL, 4 << 20);
    link.writable().await.unwrap();
    let bytes = vec![7; 65_507];
    for (source, destination, whole, single) in
        [("10.99.0.2:53", "10.0.2.100:4000", 1472, 1473), ("[fd99::2]:53", "[fd00::100]:4000", 1452, 1453)]
    {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let frames = |size, length| {
            link.frames(source, Datagrams::of_size(size, &bytes[..length])).map(Datagrams::count).collect()
        };
        let together: Vec<usize> = frames(whole, 10 * whole);
        assert_eq!(together, [10]);
        let apart: Vec<usize> = frames(single, 10 * single);
        assert_eq!(apart, [1; 10]);
        // More bytes than an IPv6 packet holds, which is the most there can be.
        for datagrams in link.frames(source, Datagrams::of_size(1450, &bytes)) {
            assert!(matches!(link.send_datagrams(source, destination, datagrams), Sent::Done));
            let received = socket::recv(far.as_raw_fd(), &mut [0; MAX_FRAME], MsgFlags::empty()).unwrap();
            assert!(received > datagrams.bytes().len());
        }
    }
}
