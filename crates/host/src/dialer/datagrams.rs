//! The upstream end of a UDP mapping.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use async_trait::async_trait;
use nix::libc;
use nix::sys::socket::{
    self, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, setsockopt, sockopt,
};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Unreachable;

/// Carries the datagrams of one container address and port, to and from any number of peers.
///
/// The engine calls [`try_send`](Self::try_send) as datagrams arrive from the container, and
/// [`try_receive`](Self::try_receive) until it would block, then waits for [`readable`](Self::readable).
#[async_trait]
pub trait DatagramSocket: Send + Sync {
    /// Waits until [`try_receive`](Self::try_receive) has something.
    ///
    /// # Cancel safety
    /// Must be cancel-safe: it is dropped and called again at any time.
    ///
    /// # Errors
    /// An error ends the mapping; the container's next datagram opens a new one.
    async fn readable(&self) -> io::Result<()>;

    /// Takes the next datagram or error without waiting. `buffer` holds the largest datagram.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing; any other error ends the mapping.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Sends one datagram without waiting; an empty one is valid.
    ///
    /// # Errors
    /// An error loses the datagram, as any network may. An unreachable peer (`ENETUNREACH` and the like) is
    /// reported to the container.
    fn try_send(&self, datagram: &[u8], destination: SocketAddr) -> io::Result<()>;
}

/// What a [`DatagramSocket`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// A datagram of `length` bytes, now in the buffer.
    Datagram {
        /// Number of bytes; 0 is a valid datagram.
        length: usize,
        /// Who sent it.
        source: SocketAddr,
    },
    /// An earlier datagram to `destination` did not arrive.
    Unreachable {
        /// Where it had been sent to.
        destination: SocketAddr,
        /// Why it did not arrive.
        reason: Unreachable,
    },
}

/// A [`DatagramSocket`] made of a kernel socket. Learns of unreachable peers through `IP_RECVERR`, ip(7).
#[derive(Debug)]
pub struct UdpDatagrams {
    socket: UdpSocket,
}

impl UdpDatagrams {
    /// Takes a bound, unconnected socket.
    ///
    /// # Errors
    /// The error of setsockopt(2), if the kernel cannot report ICMP errors.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        if socket.local_addr()?.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        Ok(Self { socket })
    }

    /// The next entry of the error queue that speaks of a destination.
    fn next_error(&self) -> io::Result<Received> {
        loop {
            let entry = self.socket.try_io(Interest::ERROR, || match self.socket.local_addr()? {
                SocketAddr::V4(_) => read_error::<SockaddrIn>(self.socket.as_raw_fd()),
                SocketAddr::V6(_) => read_error::<SockaddrIn6>(self.socket.as_raw_fd()),
            })?;
            if let Some(received) = entry {
                return Ok(received);
            }
        }
    }
}

#[async_trait]
impl DatagramSocket for UdpDatagrams {
    async fn readable(&self) -> io::Result<()> {
        self.socket.ready(Interest::READABLE | Interest::ERROR).await.map(drop)
    }

    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match self.socket.try_recv_from(buffer) {
            Ok((length, source)) => Ok(Received::Datagram { length, source }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.next_error(),
            // The pending error of an ICMP message; its entry in the error queue says whom it concerns.
            Err(pending) => match self.next_error() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let (length, source) = self.socket.try_recv_from(buffer).map_err(|error| {
                        if error.kind() == io::ErrorKind::WouldBlock { error } else { pending }
                    })?;
                    Ok(Received::Datagram { length, source })
                }
                result => result,
            },
        }
    }

    fn try_send(&self, datagram: &[u8], destination: SocketAddr) -> io::Result<()> {
        // Past tokio's readiness, which for a fresh socket knows nothing yet and would lose the first datagram.
        let socket = SockRef::from(&self.socket);
        let destination = destination.into();
        match socket.send_to(datagram, &destination) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // The first attempt may only fetch the pending error of an earlier datagram to another peer, udp(7).
            Err(_) => socket.send_to(datagram, &destination).map(drop),
        }
    }
}

/// Reads one entry of the error queue; `None` for one that says nothing about a destination.
fn read_error<A: SockaddrLike + ToSocketAddr>(fd: i32) -> io::Result<Option<Received>> {
    let mut payload = [0; 0];
    let mut iov = [IoSliceMut::new(&mut payload)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = socket::recvmsg::<A>(fd, &mut iov, Some(&mut control), flags)?;
    let destination = message.address.as_ref().and_then(ToSocketAddr::to_socket_address);
    let reason = message.cmsgs()?.find_map(|entry| {
        let (ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)) = entry
        else {
            return None;
        };
        match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP => icmp_v4_reason(error.ee_type, error.ee_code),
            libc::SO_EE_ORIGIN_ICMP6 => icmp_v6_reason(error.ee_type, error.ee_code),
            _ => None,
        }
    });
    Ok(destination.zip(reason).map(|(destination, reason)| Received::Unreachable { destination, reason }))
}

/// RFC 792 and RFC 1812, 5.2.7.1.
fn icmp_v4_reason(kind: u8, code: u8) -> Option<Unreachable> {
    match (kind, code) {
        (3, 3) => Some(Unreachable::Port),
        (3, 0 | 6 | 11) => Some(Unreachable::Network),
        (3, 9 | 10 | 13) => Some(Unreachable::Prohibited),
        (3, 1 | 2 | 5 | 7 | 8 | 12) => Some(Unreachable::Host),
        _ => None,
    }
}

/// RFC 4443, 3.1.
fn icmp_v6_reason(kind: u8, code: u8) -> Option<Unreachable> {
    match (kind, code) {
        (1, 4) => Some(Unreachable::Port),
        (1, 0) => Some(Unreachable::Network),
        (1, 1 | 5 | 6) => Some(Unreachable::Prohibited),
        (1, 2 | 3) => Some(Unreachable::Host),
        _ => None,
    }
}

trait ToSocketAddr {
    fn to_socket_address(&self) -> Option<SocketAddr>;
}

impl ToSocketAddr for SockaddrIn {
    fn to_socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddrV4::new(self.ip(), self.port()).into())
    }
}

impl ToSocketAddr for SockaddrIn6 {
    fn to_socket_address(&self) -> Option<SocketAddr> {
        Some(SocketAddrV6::new(self.ip(), self.port(), 0, 0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(socket: &UdpDatagrams, buffer: &mut [u8]) -> Received {
        loop {
            socket.readable().await.unwrap();
            match socket.try_receive(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.unwrap(),
            }
        }
    }

    async fn bound(address: &str) -> UdpDatagrams {
        UdpDatagrams::new(UdpSocket::bind(address).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_empty_datagram_arrives() {
        let (one, other) = (bound("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let source = other.local_addr().unwrap();
        other.send_to(b"", one.socket.local_addr().unwrap()).await.unwrap();
        assert_eq!(received(&one, &mut [0; 9]).await, Received::Datagram { length: 0, source });
    }

    #[tokio::test]
    async fn a_closed_port_is_named_and_the_next_datagram_still_leaves() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (closed, open) = (UdpSocket::bind(host).await.unwrap(), UdpSocket::bind(host).await.unwrap());
            let destination = closed.local_addr().unwrap();
            drop(closed);
            let socket = bound(host).await;
            socket.try_send(b"x", destination).unwrap();
            let reason = Unreachable::Port;
            assert_eq!(received(&socket, &mut [0; 9]).await, Received::Unreachable { destination, reason });

            socket.try_send(b"x", destination).unwrap();
            socket.try_send(b"after the error", open.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 32];
            let length = open.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"after the error");
        }
    }
}
