//! Datagrams above the MTU: cut and put together by the kernels at both ends, and by nsnet between them.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nsnet::host::{Network, NetworkBuilder, Offload};
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{
    Container, Noise, SERVER, World, assert_errno, eventually, in_both_carriages, once, receive, server,
};

in_both_carriages! {
    datagrams_above_the_mtu_are_echoed_with_offload,
    datagrams_above_the_mtu_are_echoed_without_offload,
    the_longest_datagrams_are_echoed_at_the_default_mtu,
    a_hundred_answers_arrive_whole,
    a_datagram_that_lacks_a_fragment_is_not_delivered_and_the_next_is,
    fragments_in_reverse_and_twice_are_put_together,
    fragments_that_overlap_are_dropped,
}

once! {
    what_lacks_pieces_is_given_up [90],
}

fn datagrams_above_the_mtu_are_echoed_with_offload(world: &World) {
    let container = world.container_of(at_mtu_1500().offload(Offload::ALL));
    echo(world, &container, &[1473, 8000, 60_000]);
}

fn datagrams_above_the_mtu_are_echoed_without_offload(world: &World) {
    let container = world.container_of(at_mtu_1500());
    echo(world, &container, &[1473, 8000, 60_000]);
}

fn the_longest_datagrams_are_echoed_at_the_default_mtu(world: &World) {
    echo(world, &world.container(), &[65_492, 65_493, 65_507]);
}

/// One after another, for the sockets on the way hold no more than two or three.
fn a_hundred_answers_arrive_whole(world: &World) {
    let container = world.container_of(at_mtu_1500());
    for address in SERVER {
        let server = world.udp(address);
        let socket = container.udp(server.local_addr().unwrap());
        socket.send(b"a hundred, please").unwrap();
        let (_, upstream) = server.recv_from(&mut [0; 32]).unwrap();
        for number in 0..100 {
            let answer = Noise::new(number).bytes(60_000);
            server.send_to(&answer, upstream).unwrap();
            assert!(receive(&socket).unwrap() == answer, "answer {number}");
        }
    }
}

fn a_datagram_that_lacks_a_fragment_is_not_delivered_and_the_next_is(world: &World) {
    let container = world.container_of(at_mtu_1500());
    for address in SERVER {
        let server = world.udp(address);
        let raw = Raw::new(&container, server.local_addr().unwrap());
        for missing in 0..3 {
            let mut fragments = raw.fragments(missing, &[1; 3000]);
            fragments.remove(usize::try_from(missing).unwrap());
            raw.send(&fragments);
        }
        raw.send(&raw.fragments(9, &[2; 3000]));
        assert_eq!(receive(&server).unwrap(), [2; 3000]);
        server.set_nonblocking(true).unwrap();
        assert_errno(server.recv(&mut [0; 8]), Errno::EWOULDBLOCK);
    }
}

fn fragments_in_reverse_and_twice_are_put_together(world: &World) {
    let container = world.container_of(at_mtu_1500());
    for address in SERVER {
        let server = world.udp(address);
        let raw = Raw::new(&container, server.local_addr().unwrap());
        let sent = Noise::new(1).bytes(3000);
        let mut fragments = raw.fragments(1, &sent);
        fragments.reverse();
        fragments.insert(1, fragments[0].clone());
        raw.send(&fragments);
        assert!(receive(&server).unwrap() == sent);
    }
    assert_eq!(container.network().statistics().discarded.fragments, 0);
}

fn fragments_that_overlap_are_dropped(world: &World) {
    let container = world.container_of(at_mtu_1500());
    for (number, address) in (1..).zip(SERVER) {
        let server = world.udp(address);
        let raw = Raw::new(&container, server.local_addr().unwrap());
        let mut fragments = raw.fragments(1, &[1; 3000]);
        // In the place of the second, but of another datagram.
        fragments.insert(2, raw.fragments(1, &[2; 3000]).swap_remove(1));
        raw.send(&fragments);
        raw.send(&raw.fragments(2, &[3; 3000]));
        assert_eq!(receive(&server).unwrap(), [3; 3000]);
        assert_eq!(container.network().statistics().discarded.fragments, 4 * number);
    }
}

fn what_lacks_pieces_is_given_up(world: &World) {
    let container = world.container_of(at_mtu_1500());
    let server = world.udp(SERVER[0]);
    let raw = Raw::new(&container, server.local_addr().unwrap());
    let fragments = raw.fragments(1, &[1; 3000]);
    let dropped = || container.network().statistics().discarded.fragments;
    raw.send(&fragments[..2]);
    thread::sleep(Duration::from_secs(25));
    assert_eq!(dropped(), 0);
    eventually("both fragments are dropped", || dropped() == 2);
    raw.send(&fragments[2..]);
    raw.send(&raw.fragments(2, &[2; 3000]));
    assert_eq!(receive(&server).unwrap(), [2; 3000]);
}

fn at_mtu_1500() -> NetworkBuilder {
    Network::builder().mtu(1500)
}

/// Sends datagrams of these lengths to a server that echoes them, over IPv4 and IPv6.
#[track_caller]
fn echo(world: &World, container: &Container, lengths: &[usize]) {
    for address in SERVER {
        let socket = container.udp(server::udp_echo(world.udp(address)));
        for length in lengths {
            let sent = Noise::new(1).bytes(*length);
            socket.send(&sent).unwrap();
            assert!(receive(&socket).unwrap() == sent, "{length} bytes to {address}");
        }
    }
    let discarded = container.network().statistics().discarded;
    assert_eq!((discarded.fragments, discarded.malformed, discarded.unsolicited), (0, 0, 0));
}

/// A raw socket in the container, for fragments that its kernel would not send.
pub(crate) struct Raw {
    socket: Socket,
    source: SocketAddr,
    destination: SocketAddr,
}

/// IPPROTO_RAW, raw(7): the sender writes the IP header.
const RAW: i32 = 255;

impl Raw {
    /// For datagrams out of `container` to `destination`.
    #[track_caller]
    pub(crate) fn new(container: &Container, destination: SocketAddr) -> Self {
        let domain = Domain::for_address(destination);
        let socket = container.inside(|| Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))).unwrap();
        let source = container.udp(destination).local_addr().unwrap();
        Self { socket, source, destination }
    }

    /// The fragments of a datagram with this payload.
    pub(crate) fn fragments(&self, identification: u32, payload: &[u8]) -> Vec<Vec<u8>> {
        let datagram = self.datagram(payload);
        let mut chunks = datagram.chunks(1400).enumerate().peekable();
        let mut fragments = Vec::new();
        while let Some((number, chunk)) = chunks.next() {
            let place = u16::try_from(number * 1400).unwrap();
            let more = chunks.peek().is_some();
            let mut fragment = match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let place = (place / 8) | (u16::from(more) << 13);
                    let length = u16::try_from(20 + chunk.len()).unwrap();
                    // The kernel would choose one in the place of 0.
                    let identification = u16::try_from(identification).unwrap() + 1;
                    let words = [0x4500, length, identification, place, 64 << 8 | 17, 0];
                    let mut header = words.map(u16::to_be_bytes).concat();
                    header.extend([source.octets(), destination.octets()].concat());
                    header
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let length = u16::try_from(8 + chunk.len()).unwrap();
                    let words = [0x6000, 0, length, 44 << 8 | 64];
                    let mut header = words.map(u16::to_be_bytes).concat();
                    header.extend([source.octets(), destination.octets()].concat());
                    header.extend([[17, 0], (place | u16::from(more)).to_be_bytes()].concat());
                    header.extend(identification.to_be_bytes());
                    header
                }
                _ => unreachable!("both are of one family"),
            };
            fragment.extend(chunk);
            fragments.push(fragment);
        }
        fragments
    }

    fn datagram(&self, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).unwrap();
        let mut datagram =
            [self.source.port(), self.destination.port(), length, 0].map(u16::to_be_bytes).concat();
        datagram.extend(payload);
        let mut summed = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => unreachable!("both are of one family"),
        };
        summed.extend([[0, 17], length.to_be_bytes()].concat());
        summed.extend(&datagram);
        let checksum = (!sum(&summed)).to_be_bytes();
        datagram[6..8].copy_from_slice(&checksum);
        datagram
    }

    /// Sends IP packets.
    #[track_caller]
    pub(crate) fn send(&self, packets: &[Vec<u8>]) {
        // The port in the address would be the protocol.
        let address = SocketAddr::new(self.destination.ip(), 0).into();
        for packet in packets {
            self.socket.send_to(packet, &address).unwrap();
        }
    }
}

/// RFC 1071; an odd byte is followed by a zero.
fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u64::from(*byte)));
    let sum: u64 = words.sum();
    u16::try_from((0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16))).unwrap()
}
