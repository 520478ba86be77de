//! The kernel's UDP sockets as [`DatagramSocket`]s.
//!
//! Datagrams of one size to one peer leave in one system call (`UDP_SEGMENT`, udp(7)) and pass the host's stack as
//! one packet; where the kernel or the path refuses that, they leave one by one. Datagrams that the kernel has
//! gathered (`UDP_GRO`) arrive in one call. Unreachable peers are learned of through `IP_RECVERR`, ip(7).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use nix::libc;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, setsockopt, sockopt,
};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{DatagramSocket, Datagrams, Envelope, IcmpError, Received, Unreachable};

/// A [`DatagramSocket`] made of a kernel socket.
#[derive(Debug)]
pub struct UdpDatagrams {
    socket: UdpSocket,
    /// The kernel has no `UDP_SEGMENT` for this socket or its way out.
    refuses_bursts: AtomicBool,
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
        // Linux before 5.0 does not know it: datagrams then come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self { socket, refuses_bursts: AtomicBool::new(false) })
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut iov = [IoSliceMut::new(buffer)];
        let mut control = Control([0; 64]);
        let fd = self.socket.as_raw_fd();
        let message =
            socket::recvmsg::<SockaddrStorage>(fd, &mut iov, Some(&mut control.0), MsgFlags::MSG_DONTWAIT)?;
        let source = message.address.as_ref().and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
        let size = message.cmsgs()?.find_map(|entry| {
            let ControlMessageOwned::UdpGroSegments(size) = entry else { return None };
            usize::try_from(size).ok()
        });
        let length = message.bytes;
        Ok(Received::Datagrams { length, size: size.map_or(length, |size| size.min(length)), source })
    }

    /// The next entry of the error queue that speaks of a destination.
    fn next_error(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let read = || read_error(self.socket.as_raw_fd(), buffer);
            let entry = self.socket.try_io(Interest::ERROR, read)?;
            if let Some(received) = entry {
                return Ok(received);
            }
        }
    }

    fn send_one(&self, datagram: &[u8], destination: SocketAddr) -> io::Result<()> {
        // Past tokio's readiness, which for a fresh socket knows nothing yet and would lose the first datagram.
        let socket = SockRef::from(&self.socket);
        let destination = destination.into();
        retried(|| socket.send_to(datagram, &destination).map(drop))
    }

    fn send_segments(&self, datagrams: Datagrams<'_>, size: u16, destination: SocketAddr) -> io::Result<()> {
        let destination = SockaddrStorage::from(destination);
        let (iov, control) = ([IoSlice::new(datagrams.bytes())], [ControlMessage::UdpGsoSegments(&size)]);
        let fd = self.socket.as_raw_fd();
        socket::sendmsg(fd, &iov, &control, MsgFlags::MSG_DONTWAIT, Some(&destination))?;
        Ok(())
    }
}

#[async_trait]
impl DatagramSocket for UdpDatagrams {
    async fn readable(&self) -> io::Result<()> {
        self.socket.ready(Interest::READABLE | Interest::ERROR).await.map(drop)
    }

    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let receive = |buffer: &mut [u8]| self.socket.try_io(Interest::READABLE, || self.receive(buffer));
        match receive(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.next_error(buffer),
            // The pending error of an ICMP message; its entry in the error queue says whom it concerns.
            Err(pending) => match self.next_error(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => receive(buffer)
                    .map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { error } else { pending }),
                result => result,
            },
            received => received,
        }
    }

    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()> {
        let destination = envelope.destination;
        let is_burst = datagrams.count() > 1 && !self.refuses_bursts.load(Relaxed);
        if let Some(size) = u16::try_from(datagrams.size()).ok().filter(|_| is_burst) {
            match self.send_segments(datagrams, size, destination) {
                Ok(()) => return Ok(()),
                Err(error) if is_full(&error) => return Err(error),
                // Too many, too large for the path, or the pending error of an earlier datagram: each alone will tell.
                Err(error) => {
                    let is_incapable = matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP));
                    self.refuses_bursts.fetch_or(is_incapable, Relaxed);
                }
            }
        }
        let mut outcome = Ok(());
        for datagram in datagrams.iter() {
            match self.send_one(datagram, destination) {
                Err(error) if is_full(&error) => return outcome.and(Err(error)),
                sent => outcome = outcome.and(sent),
            }
        }
        outcome
    }
}

/// Whether the socket's buffer, or the interface's queue (`ENOBUFS`, send(2)), takes no more at the moment.
pub(crate) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Room for a `UDP_GRO` control message, and more, placed as a `struct cmsghdr` must be.
#[repr(align(8))]
struct Control([u8; 64]);

/// Sends again what the first attempt has not sent, because it only fetched the pending error of an earlier datagram to
/// another peer, udp(7).
pub(crate) fn retried(mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    match send() {
        Err(error) if !is_full(&error) => send(),
        result => result,
    }
}

/// Reads one entry of the error queue, and into `buffer` the start of the datagram; `None` for one that says nothing
/// about a destination.
pub(crate) fn read_error(fd: i32, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut iov = [IoSliceMut::new(buffer)];
    // A socket that wants to know its own address is told it here as well.
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::in6_pktinfo);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = socket::recvmsg::<SockaddrStorage>(fd, &mut iov, Some(&mut control), flags)?;
    let length = message.bytes;
    let destination = message.address.as_ref().and_then(socket_address);
    let report = message.cmsgs()?.find_map(|entry| {
        if let ControlMessageOwned::Ipv4RecvErr(error, sender) = entry {
            let sender =
                sender.map(|sender| IpAddr::from(u32::from_be(sender.sin_addr.s_addr).to_be_bytes()));
            let is_icmp = error.ee_origin == libc::SO_EE_ORIGIN_ICMP;
            icmp_v4_reason(error.ee_type, error.ee_code).filter(|_| is_icmp).map(|reason| (reason, sender))
        } else if let ControlMessageOwned::Ipv6RecvErr(error, sender) = entry {
            let sender = sender.map(|sender| IpAddr::from(sender.sin6_addr.s6_addr));
            let is_icmp = error.ee_origin == libc::SO_EE_ORIGIN_ICMP6;
            icmp_v6_reason(error.ee_type, error.ee_code).filter(|_| is_icmp).map(|reason| (reason, sender))
        } else {
            None
        }
    });
    Ok(destination.zip(report).map(|(destination, (reason, sender))| Received::Undelivered {
        destination,
        sender,
        error: IcmpError::Unreachable(reason),
        length,
    }))
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

pub(crate) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::new(address.ip().into(), address.port()));
    v4.or_else(|| {
        address.as_sockaddr_in6().map(|address| SocketAddr::new(address.ip().into(), address.port()))
    })
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
        assert_eq!(received(&one, &mut [0; 9]).await, Received::Datagrams { length: 0, size: 0, source });
    }

    #[tokio::test]
    async fn a_closed_port_is_named_and_the_next_datagram_still_leaves() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (closed, open) = (UdpSocket::bind(host).await.unwrap(), UdpSocket::bind(host).await.unwrap());
            let destination = closed.local_addr().unwrap();
            drop(closed);
            let socket = bound(host).await;
            socket.try_send(Datagrams::one(b"x"), &Envelope::new(destination)).unwrap();
            let mut quoted = [0; 9];
            let error = Unreachable::Port.into();
            let sender = Some(destination.ip());
            let undelivered = Received::Undelivered { destination, sender, error, length: 1 };
            assert_eq!(received(&socket, &mut quoted).await, undelivered);
            assert_eq!(quoted[0], b'x');

            socket.try_send(Datagrams::one(b"x"), &Envelope::new(destination)).unwrap();
            socket
                .try_send(Datagrams::one(b"after the error"), &Envelope::new(open.local_addr().unwrap()))
                .unwrap();
            let mut buffer = [0; 32];
            let length = open.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"after the error");
        }
    }

    #[tokio::test]
    async fn a_burst_arrives_as_the_datagrams_it_is_made_of() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (socket, other) = (bound(host).await, UdpSocket::bind(host).await.unwrap());
            let burst = Datagrams::of_size(1000, &[7; 3500]);
            socket.try_send(burst, &Envelope::new(other.local_addr().unwrap())).unwrap();
            let mut buffer = [0; 9000];
            for expected in [1000, 1000, 1000, 500] {
                assert_eq!(other.recv(&mut buffer).await.unwrap(), expected);
            }
        }
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_send_in_one_go_is_sent_one_by_one() {
        let (socket, other) = (bound("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let destination = other.local_addr().unwrap();
        // More than the kernel takes in one call.
        let burst = Datagrams::of_size(1, &[7; 200]);
        assert!(socket.send_segments(burst, 1, destination).is_err());
        socket.try_send(burst, &Envelope::new(destination)).unwrap();
        for _ in 0..200 {
            assert_eq!(other.recv(&mut [0; 9]).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn datagrams_that_the_kernel_gathered_are_told_apart() {
        let (socket, other) = (bound("127.0.0.1:0").await, bound("127.0.0.1:0").await);
        let source = other.socket.local_addr().unwrap();
        other
            .try_send(Datagrams::of_size(100, &[1; 250]), &Envelope::new(socket.socket.local_addr().unwrap()))
            .unwrap();
        let mut buffer = [0; 65_535];
        assert_eq!(
            received(&socket, &mut buffer).await,
            Received::Datagrams { length: 250, size: 100, source }
        );
    }
}
