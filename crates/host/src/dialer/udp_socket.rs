//! The kernel's UDP sockets as [`DatagramSocket`]s.
//!
//! Datagrams of one size to one peer leave in one system call (`UDP_SEGMENT`, udp(7)) and pass the host's stack as one
//! packet. If the kernel or the path refuses that, they leave one by one. Datagrams that the kernel has gathered
//! (`UDP_GRO`) arrive in one call. ICMP errors of routers and peers arrive through `IP_RECVERR`, ip(7).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use nix::libc;
use nix::sys::socket::{self, ControlMessage, MsgFlags, SockaddrStorage, setsockopt, sockopt};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::error_queue::{self, is_full, is_too_long, next_of, retried};
use super::ip_options::IpOptions;
use super::receive::{Arrived, receive};
use super::{DatagramSocket, Datagrams, Envelope, Received};

/// A [`DatagramSocket`] made of a kernel socket.
///
/// # Examples
/// A Dialer that sends from the container's own port number if that is free on the host (RFC 4787, section 4.2.1):
///
/// ```
/// use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
///
/// use nsnet_host::{DatagramSocket, DialError, Dialer, Source, UdpDatagrams, async_trait};
/// use tokio::net::UdpSocket;
///
/// struct KeepPorts<D>(D);
///
/// #[async_trait]
/// impl<D: Dialer> Dialer for KeepPorts<D> {
///     fn inner(&self) -> &dyn Dialer {
///         &self.0
///     }
///
///     async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
///         let any: IpAddr = match source.address.ip() {
///             IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
///             IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
///         };
///         let socket = match UdpSocket::bind((any, source.address.port())).await {
///             Ok(socket) => socket,
///             Err(_) => UdpSocket::bind((any, 0)).await?,
///         };
///         Ok(Box::new(UdpDatagrams::new(socket)?))
///     }
/// }
/// ```
#[derive(Debug)]
pub struct UdpDatagrams {
    socket: UdpSocket,
    /// The kernel does not support `UDP_SEGMENT` for this socket or its outgoing link.
    refuses_bursts: AtomicBool,
    options: IpOptions,
    /// Received messages come with their hop limit.
    tells_hop_limits: AtomicBool,
    /// The destination of the last datagram that exceeded the MTU of the host's own link.
    too_long_for: Mutex<Option<SocketAddr>>,
}

impl UdpDatagrams {
    /// Takes a socket that is bound and not connected. Its address family must be that of the container's
    /// [`Source`](crate::Source).
    ///
    /// # Errors
    /// The error of setsockopt(2), if the kernel cannot report ICMP errors.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        if socket.local_addr()?.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        }
        // Linux before 5.0 does not know the option. Datagrams then arrive one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        Ok(Self {
            socket,
            refuses_bursts: AtomicBool::default(),
            options: IpOptions::default(),
            tells_hop_limits: AtomicBool::default(),
            too_long_for: Mutex::default(),
        })
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let Arrived { length, size, source, .. } = receive(&self.socket, &mut [IoSliceMut::new(buffer)])?;
        Ok(Received::Datagrams { length, size, source, hop_limit: None })
    }

    /// The next entry of the error queue with a destination.
    fn next_error(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let read = |buffer: &mut [u8]| {
            self.tell_hop_limits();
            error_queue::read(self.socket.as_raw_fd(), &mut [IoSliceMut::new(buffer)])
        };
        loop {
            let Some(mut entry) = self.socket.try_io(Interest::ERROR, || read(buffer))? else { continue };
            if entry.is_local {
                let Some(destination) = self.last_too_long(&entry.destination) else { continue };
                entry.destination = destination;
            }
            return Ok(entry.into_received());
        }
    }

    /// Asks the kernel to report hop limits. This waits for the first error, because only errors need them and
    /// receiving becomes slightly more expensive.
    fn tell_hop_limits(&self) {
        if !self.tells_hop_limits.swap(true, Relaxed) {
            // The kernel accepts the option of the socket's own family and refuses the other.
            let _ = setsockopt(&self.socket, sockopt::Ipv4RecvTtl, &true);
            let _ = setsockopt(&self.socket, sockopt::Ipv6RecvHopLimit, &true);
        }
    }

    /// The destination with its port, if the kernel names one without it.
    fn last_too_long(&self, named: &SocketAddr) -> Option<SocketAddr> {
        let last = self.too_long_for.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|last| last.ip() == named.ip())
    }

    fn note_too_long(&self, destination: SocketAddr) {
        *self.too_long_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(destination);
    }

    fn send_one(&self, datagram: &[u8], destination: SocketAddr) -> io::Result<()> {
        // This bypasses tokio's readiness, which is unknown for a fresh socket and would lose the first datagram.
        let socket = SockRef::from(&self.socket);
        let address = destination.into();
        let sent = retried(|| socket.send_to(datagram, &address).map(drop));
        if sent.as_ref().is_err_and(is_too_long) {
            self.note_too_long(destination);
        }
        sent
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
        next_of(buffer, receive, |buffer| self.next_error(buffer))
    }

    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()> {
        let destination = envelope.destination;
        self.options.apply(&self.socket, envelope);
        let is_burst = datagrams.count() > 1 && !self.refuses_bursts.load(Relaxed);
        if let Some(size) = u16::try_from(datagrams.size()).ok().filter(|_| is_burst) {
            match self.send_segments(datagrams, size, destination) {
                Ok(()) => return Ok(()),
                Err(error) if is_full(&error) => return Err(error),
                // Too many datagrams, one too large for the path, or the pending error of an earlier one. Sending each
                // alone will tell.
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
        assert_eq!(
            received(&one, &mut [0; 9]).await,
            Received::Datagrams { length: 0, size: 0, source, hop_limit: None }
        );
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
            let error = crate::Unreachable::Port.into();
            let sender = Some(destination.ip());
            let hop_limit = Some(64);
            let undelivered = Received::Undelivered { destination, sender, hop_limit, error, length: 1 };
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
        // More datagrams than the kernel takes in one call.
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
            Received::Datagrams { length: 250, size: 100, source, hop_limit: None }
        );
    }
}
