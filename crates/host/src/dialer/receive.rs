//! Receives messages of UDP and ping sockets: one recvmsg(2) with its control messages.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, SockaddrStorage};

use super::error_queue::socket_address;

/// A received message, apart from its bytes.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Number of bytes of all datagrams that the kernel has gathered.
    pub(crate) length: usize,
    /// Number of bytes of every datagram but the last (`UDP_GRO`, udp(7)).
    pub(crate) size: usize,
    pub(crate) source: SocketAddr,
    /// The hop limit it arrived with, if the socket asks for it.
    pub(crate) hop_limit: Option<u8>,
    /// The host's address it was sent to, if the socket asks for it.
    pub(crate) local: Option<PacketInfo>,
}

/// The host's address and interface at which a message has arrived (`IP_PKTINFO`, ip(7); `IPV6_PKTINFO`, ipv6(7)).
#[derive(Debug, Clone, Copy)]
pub(crate) enum PacketInfo {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

/// Receives one message into `parts` without waiting.
///
/// # Errors
/// The error of recvmsg(2). It is `WouldBlock` if there is no message.
pub(crate) fn receive(socket: &impl AsRawFd, parts: &mut [IoSliceMut<'_>]) -> io::Result<Arrived> {
    let mut control = ControlBuffer([0; 128]);
    let fd = socket.as_raw_fd();
    let message =
        socket::recvmsg::<SockaddrStorage>(fd, parts, Some(&mut control.0), MsgFlags::MSG_DONTWAIT)?;
    let source = message.address.as_ref().and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
    let length = message.bytes;
    let mut arrived = Arrived { length, size: length, source, hop_limit: None, local: None };
    for entry in message.cmsgs()? {
        arrived.note(&entry);
    }
    Ok(arrived)
}

impl Arrived {
    fn note(&mut self, entry: &ControlMessageOwned) {
        if let ControlMessageOwned::UdpGroSegments(size) = entry {
            self.size = usize::try_from(*size).map_or(self.size, |size| size.min(self.length));
        } else if let ControlMessageOwned::Ipv4Ttl(left) | ControlMessageOwned::Ipv6HopLimit(left) = entry {
            self.hop_limit = u8::try_from(*left).ok();
        } else if let ControlMessageOwned::Ipv4PacketInfo(info) = entry {
            self.local = Some(PacketInfo::V4(*info));
        } else if let ControlMessageOwned::Ipv6PacketInfo(info) = entry {
            self.local = Some(PacketInfo::V6(*info));
        }
    }
}

/// Room for all control messages that these sockets ask for, aligned like a `struct cmsghdr`.
#[repr(align(8))]
struct ControlBuffer([u8; 128]);
