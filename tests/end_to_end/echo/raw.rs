//! ICMP messages written by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{Container, PATIENCE};

/// A raw socket for ICMP, for messages that are written by hand.
pub(super) struct Echo(pub(super) UdpSocket);

impl Echo {
    /// In a container, for hosts of this family.
    #[track_caller]
    pub(super) fn new(container: &Container, towards: IpAddr) -> Self {
        let any: IpAddr = match towards {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        container.inside(|| Self::at(any))
    }

    #[track_caller]
    pub(super) fn at(address: IpAddr) -> Self {
        let (domain, protocol) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // For its calls, which know addresses; the ports are 0.
        Self(socket.into())
    }

    #[track_caller]
    pub(super) fn request(&self, to: IpAddr, identifier: u16, sequence: u16, payload: &[u8]) {
        self.send(to, if to.is_ipv4() { 8 } else { 128 }, identifier, sequence, payload);
    }

    #[track_caller]
    pub(super) fn send(&self, to: IpAddr, kind: u8, identifier: u16, sequence: u16, payload: &[u8]) {
        let [identifier, sequence] = [identifier, sequence].map(u16::to_be_bytes);
        let mut message = [&[kind, 0, 0, 0], &identifier[..], &sequence, payload].concat();
        // The kernel sums up for IPv6 only.
        if to.is_ipv4() {
            let checksum = checksum(&message);
            message[2..4].copy_from_slice(&checksum);
        }
        self.0.send_to(&message, (to, 0)).unwrap();
    }

    /// The next reply: sender, identifier, sequence number and payload.
    #[track_caller]
    pub(super) fn reply(&self) -> (IpAddr, u16, u16, Vec<u8>) {
        let is_v4 = self.0.local_addr().unwrap().is_ipv4();
        self.message(if is_v4 { 0 } else { 129 })
    }

    /// The next message of a type.
    #[track_caller]
    pub(super) fn message(&self, kind: u8) -> (IpAddr, u16, u16, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, from) = self.0.recv_from(&mut buffer).unwrap();
            // Of IPv4 the header comes with it, raw(7).
            let header = if from.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
            let message = &buffer[header..length];
            if message[0] == kind {
                let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
                return (from.ip(), word(4), word(6), message[8..].to_vec());
            }
        }
    }
}

/// RFC 1071.
fn checksum(message: &[u8]) -> [u8; 2] {
    let words = message
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte)));
    let sum: u32 = words.sum();
    let folded = (0..2).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}
