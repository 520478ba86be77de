//! The kernel's ping sockets as [`DatagramSocket`]s.
//!
//! A ping socket, icmp(7), sends echo requests and receives the replies to them, without privileges. It has an
//! identifier as a UDP socket has a port. The kernel writes it into every request, with the checksum, and uses it to
//! find the socket of a reply. Any host can send a reply. The engine decides whose replies it accepts.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, Once, PoisonError};

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, SockaddrStorage, setsockopt, sockopt};
use socket2::{Protocol, Socket};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::error_queue::{self, is_too_long, next_of, retried};
use super::ip_options::IpOptions;
use super::receive::{Arrived, receive};
use super::{DatagramSocket, Datagrams, Envelope, Received};
use nsnet_stack::icmp::echo::{HEADER, Message};

/// A [`DatagramSocket`] made of a ping socket.
#[derive(Debug)]
pub(super) struct EchoDatagrams {
    /// Tokio has no other type for a datagram socket. No UDP passes through it.
    socket: UdpSocket,
    request: u8,
    reply: u8,
    options: IpOptions,
    /// The destination and sequence number of the last request that exceeded the MTU of the host's own link.
    too_long: Mutex<Option<(IpAddr, [u8; 2])>>,
}

/// The protocol of ping sockets for this address family.
pub(super) fn protocol(address: SocketAddr) -> Protocol {
    match address {
        SocketAddr::V4(_) => Protocol::ICMPV4,
        SocketAddr::V6(_) => Protocol::ICMPV6,
    }
}

/// Logs once which setting allows ping sockets, if `error` means that this process may not have them.
pub(super) fn explain(error: &io::Error) {
    static SAID: Once = Once::new();
    if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EACCES) {
        SAID.call_once(|| {
            tracing::warn!(
                "this host allows no ping sockets, so ping reaches nobody but the gateway and says \"prohibited\"; \
                 to allow them: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (IPv6 included)"
            );
        });
    }
}

impl EchoDatagrams {
    /// Takes a bound, unconnected ping socket.
    ///
    /// # Errors
    /// The error of setsockopt(2), if the kernel cannot report ICMP errors or hop limits.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        }
        let (request, reply) = (Message::Request.number(address.ip()), Message::Reply.number(address.ip()));
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            request,
            reply,
            options: IpOptions::default(),
            too_long: Mutex::default(),
        })
    }

    /// The next reply. `None` for a message that is not a reply.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut header = [0; HEADER];
        let parts = &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
        let Arrived { length, source, hop_limit, .. } = receive(&self.socket, parts)?;
        let length = length.checked_sub(HEADER);
        let reply = length.filter(|_| header[..2] == [self.reply, 0]);
        Ok(reply.map(|length| Received::Datagrams { length, size: length, source, hop_limit }))
    }

    fn next_reply(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            if let Some(received) = self.socket.try_io(Interest::READABLE, || self.receive(buffer))? {
                return Ok(received);
            }
        }
    }

    /// The next entry of the error queue that concerns a request of this socket.
    fn next_error(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut header = [0; HEADER];
            let read = || {
                let iov = &mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
                error_queue::read(self.socket.as_raw_fd(), iov)
            };
            let Some(mut entry) = self.socket.try_io(Interest::ERROR, read)? else { continue };
            // For IPv6 requests that the kernel itself refuses, it gives the type of the message as the port.
            entry.destination.set_port(0);
            if entry.is_local {
                let Some(sequence) = self.last_too_long(entry.destination.ip()) else { continue };
                buffer[..sequence.len()].copy_from_slice(&sequence);
                entry.length = sequence.len();
            } else {
                entry.length = entry.length.saturating_sub(HEADER);
            }
            return Ok(entry.into_received());
        }
    }

    /// The sequence number of the request that the kernel means when it names a destination only.
    fn last_too_long(&self, destination: IpAddr) -> Option<[u8; 2]> {
        let last = self.too_long.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(address, _)| *address == destination).map(|(_, sequence)| sequence)
    }

    fn send_one(&self, datagram: &[u8], destination: SocketAddr) -> io::Result<()> {
        let header = [self.request, 0, 0, 0, 0, 0];
        let iov = [IoSlice::new(&header), IoSlice::new(datagram)];
        let (fd, address) = (self.socket.as_raw_fd(), SockaddrStorage::from(destination));
        let send = || socket::sendmsg(fd, &iov, &[], MsgFlags::MSG_DONTWAIT, Some(&address));
        let sent = retried(|| Ok(send().map(drop)?));
        if sent.as_ref().is_err_and(is_too_long)
            && let Some(sequence) = datagram.first_chunk()
        {
            *self.too_long.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((destination.ip(), *sequence));
        }
        sent
    }
}

#[async_trait]
impl DatagramSocket for EchoDatagrams {
    async fn readable(&self) -> io::Result<()> {
        self.socket.ready(Interest::READABLE | Interest::ERROR).await.map(drop)
    }

    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        next_of(buffer, |buffer| self.next_reply(buffer), |buffer| self.next_error(buffer))
    }

    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()> {
        self.options.apply(&self.socket, envelope);
        datagrams.iter().try_for_each(|datagram| self.send_one(datagram, envelope.destination))
    }
}
