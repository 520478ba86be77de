//! A published UDP socket. It reports the host's address that each datagram was sent to, and answers must leave from
//! that address (`IP_PKTINFO`, ip(7)). One socket may listen at all addresses of the host.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::port::Answers;
use crate::dialer::error_queue::{self, is_full, next_of, retried};
use crate::dialer::receive::{Arrived, PacketInfo, receive};
use crate::dialer::{Datagrams, Received};

pub(crate) struct Socket {
    io: UdpSocket,
    port: u16,
}

/// Result of a receive call.
pub(crate) enum Arrival {
    /// Datagrams of one client, now in the buffer.
    Datagrams { length: usize, size: usize, client: SocketAddr, local: Local },
    /// The other cases of [`Received`].
    Other(Received),
}

/// The host's address that a client has written to, from which its answers must leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local(PacketInfo);

impl Local {
    pub(crate) fn address(&self) -> IpAddr {
        match self.0 {
            PacketInfo::V4(info) => Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(),
            PacketInfo::V6(info) => Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
        }
    }

    /// The address for answers to `client`. They leave by any interface that leads there, unless one of the addresses
    /// belongs to a link.
    pub(super) fn of_received(info: PacketInfo, client: SocketAddr) -> Self {
        Self(match info {
            PacketInfo::V4(info) => PacketInfo::V4(libc::in_pktinfo { ipi_ifindex: 0, ..info }),
            PacketInfo::V6(info) => {
                let own = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let is_on_link = own.is_unicast_link_local() || is_link_local(client.ip());
                let ipi6_ifindex = if is_on_link { info.ipi6_ifindex } else { 0 };
                // A multicast group such as ff02::1 cannot be a source, so the kernel chooses.
                let own = if own.is_multicast() { Ipv6Addr::UNSPECIFIED } else { own };
                let ipi6_addr = libc::in6_addr { s6_addr: own.octets() };
                PacketInfo::V6(libc::in6_pktinfo { ipi6_addr, ipi6_ifindex })
            }
        })
    }

    fn control(&self) -> ControlMessage<'_> {
        match &self.0 {
            PacketInfo::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            PacketInfo::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}

impl Socket {
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        // Linux before 5.0 does not know the option. Datagrams then arrive one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self { io: UdpSocket::from_std(socket)?, port: address.port() })
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.ready(Interest::READABLE | Interest::ERROR).await.map(drop)
    }

    /// Takes the next datagrams or error without waiting.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let receive = |buffer: &mut [u8]| self.io.try_io(Interest::READABLE, || self.receive(buffer));
        next_of(buffer, receive, |buffer| self.next_error(buffer))
    }

    fn send_with(
        &self,
        payload: &[u8],
        control: &[ControlMessage<'_>],
        client: &SockaddrStorage,
    ) -> io::Result<()> {
        let (fd, iov) = (self.io.as_raw_fd(), [IoSlice::new(payload)]);
        socket::sendmsg(fd, &iov, control, MsgFlags::MSG_DONTWAIT, Some(client))?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let Arrived { length, size, source, local, .. } = receive(&self.io, &mut [IoSliceMut::new(buffer)])?;
        let local = local.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Arrival::Datagrams { length, size, client: source, local: Local::of_received(local, source) })
    }

    fn next_error(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        loop {
            let mut iov = [IoSliceMut::new(buffer)];
            let read = || error_queue::read(self.io.as_raw_fd(), &mut iov);
            if let Some(entry) = self.io.try_io(Interest::ERROR, read)? {
                return Ok(Arrival::Other(entry.into_received()));
            }
        }
    }
}

impl Answers for Socket {
    fn port(&self) -> u16 {
        self.port
    }

    /// Sends them one by one if the kernel refuses the burst.
    fn send(&self, datagrams: Datagrams<'_>, client: SocketAddr, local: &Local) -> io::Result<()> {
        let client = SockaddrStorage::from(client);
        if let Some(size) = u16::try_from(datagrams.size()).ok().filter(|_| datagrams.count() > 1) {
            let control = [local.control(), ControlMessage::UdpGsoSegments(&size)];
            match self.send_with(datagrams.bytes(), &control, &client) {
                Err(error) if !is_full(&error) => {}
                result => return result,
            }
        }
        datagrams
            .iter()
            .try_for_each(|datagram| retried(|| self.send_with(datagram, &[local.control()], &client)))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interface and address by which answers leave, after a datagram from `client` to `own` on interface 7.
    fn answers(own: &str, client: &str) -> (u32, IpAddr) {
        let ipi6_addr = libc::in6_addr { s6_addr: own.parse::<Ipv6Addr>().unwrap().octets() };
        let info = PacketInfo::V6(libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 7 });
        let local = Local::of_received(info, SocketAddr::new(client.parse().unwrap(), 5000));
        let Local(PacketInfo::V6(info)) = local else { panic!("it is IPv6") };
        (info.ipi6_ifindex, local.address())
    }

    #[test]
    fn answers_on_a_link_stay_on_it() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(answers("fd99::1", "fd98::2"), (0, address("fd99::1")));
        assert_eq!(answers("fe80::1", "fe80::2"), (7, address("fe80::1")));
        assert_eq!(answers("fd99::1", "fe80::2"), (7, address("fd99::1")));
    }

    #[test]
    fn no_answer_comes_from_a_group() {
        assert_eq!(answers("ff02::1", "fe80::2"), (7, Ipv6Addr::UNSPECIFIED.into()));
    }
}
