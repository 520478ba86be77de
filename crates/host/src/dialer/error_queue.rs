//! The error queue of a socket: ICMP errors about packets it has sent (`IP_RECVERR`, ip(7)).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags, SockaddrStorage};

use super::{IcmpError, Received};
use nsnet_stack::icmp;

/// An entry: why a packet did not arrive.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Without a port if [`is_local`](Self::is_local).
    pub(super) destination: SocketAddr,
    /// The kernel itself has refused the packet.
    pub(super) is_local: bool,
    sender: Option<IpAddr>,
    hop_limit: Option<u8>,
    error: IcmpError,
    /// Bytes of the packet that the error quotes.
    pub(super) length: usize,
}

impl Entry {
    /// The report for the engine.
    pub(crate) fn into_received(self) -> Received {
        let Self { destination, sender, hop_limit, error, length, .. } = self;
        Received::Undelivered { destination, sender, hop_limit, error, length }
    }
}

/// The socket's next item: from `receive`, or else from its error queue by `next_error`.
pub(crate) fn next_of<T>(
    buffer: &mut [u8],
    receive: impl Fn(&mut [u8]) -> io::Result<T>,
    next_error: impl Fn(&mut [u8]) -> io::Result<T>,
) -> io::Result<T> {
    let mut failure = None;
    for _ in 0..MAX_PENDING {
        match receive(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return next_error(buffer),
            // This is the pending error of an ICMP message, and reading it clears it. The entry in the error queue
            // names the destination. The runtime may not have noticed the entry yet. It is read once it has.
            Err(pending) => match next_error(buffer) {
                Err(none) if none.kind() == io::ErrorKind::WouldBlock => failure = Some(pending),
                result => return result,
            },
            received => return received,
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()))
}

/// The most errors in a row that are taken for ICMP messages. With more, the socket itself has failed. Anybody may send
/// such messages, so none of them may end a mapping.
const MAX_PENDING: usize = 16;

/// Sends again if the first attempt only fetched the pending error of an earlier datagram to another peer, udp(7).
pub(crate) fn retried(mut send: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    match send() {
        Err(error) if !is_full(&error) && !is_too_long(&error) => send(),
        result => result,
    }
}

/// Whether the socket's buffer or the interface's queue (`ENOBUFS`, send(2)) is full at the moment.
pub(crate) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Whether a datagram is too long: for its outgoing link if it must not be fragmented, or for IP as such.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Reads one entry, and into `iov` the start of the packet it is about. `None` for an entry without a destination.
pub(crate) fn read(fd: RawFd, iov: &mut [IoSliceMut<'_>]) -> io::Result<Option<Entry>> {
    // A socket that asks for the hop limit or for its own address gets these here as well.
    let mut control =
        nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::c_int, libc::in6_pktinfo);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = socket::recvmsg::<SockaddrStorage>(fd, iov, Some(&mut control), flags)?;
    let length = message.bytes;
    let destination = message.address.as_ref().and_then(socket_address);
    let (mut report, mut hop_limit) = (None, None);
    for entry in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4RecvErr(error, sender) = entry {
            let sender =
                sender.map(|sender| IpAddr::from(u32::from_be(sender.sin_addr.s_addr).to_be_bytes()));
            report = Some((error, sender));
        } else if let ControlMessageOwned::Ipv6RecvErr(error, sender) = entry {
            report = Some((error, sender.map(|sender| IpAddr::from(sender.sin6_addr.s6_addr))));
        } else if let ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) = entry {
            hop_limit = u8::try_from(hops).ok();
        }
    }
    Ok(destination.zip(report).and_then(|(destination, (report, sender))| {
        let is_local = report.ee_origin == libc::SO_EE_ORIGIN_LOCAL;
        let (sender, hop_limit) = if is_local { (None, None) } else { (sender, hop_limit) };
        let error = meaning(&report)?;
        Some(Entry { destination, is_local, sender, hop_limit, error, length })
    }))
}

fn meaning(report: &libc::sock_extended_err) -> Option<IcmpError> {
    let (kind, code, parameter) = (report.ee_type, report.ee_code, report.ee_info);
    match report.ee_origin {
        libc::SO_EE_ORIGIN_ICMP => icmp::meaning_v4(kind, code, parameter),
        libc::SO_EE_ORIGIN_ICMP6 => icmp::meaning_v6(kind, code, parameter),
        // The packet is larger than the MTU of its outgoing link.
        libc::SO_EE_ORIGIN_LOCAL => {
            let is_too_big = i32::try_from(report.ee_errno) == Ok(Errno::EMSGSIZE as i32);
            is_too_big.then_some(IcmpError::PacketTooBig { mtu: parameter })
        }
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
    use std::cell::Cell;

    use super::*;

    fn would_block() -> io::Result<Received> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Simulates a socket that receives this many ICMP messages while it is read, none of them noticed by the runtime
    /// yet.
    fn read_with(pending: usize, then: fn() -> io::Result<Received>) -> io::Result<Received> {
        let left = Cell::new(pending);
        let receive = |_: &mut [u8]| match left.get() {
            0 => then(),
            more => {
                left.set(more - 1);
                Err(Errno::ECONNREFUSED.into())
            }
        };
        next_of(&mut [], receive, |_| would_block())
    }

    #[test]
    fn errors_that_come_while_it_is_read_do_not_end_a_socket() {
        let source = "10.99.0.2:53".parse().unwrap();
        for pending in [0, 1, 2, 9] {
            let nothing = read_with(pending, would_block).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "{pending}");
            let datagram = || {
                Ok(Received::Datagrams {
                    length: 0,
                    size: 0,
                    source: "10.99.0.2:53".parse().unwrap(),
                    hop_limit: None,
                })
            };
            assert!(
                matches!(read_with(pending, datagram), Ok(Received::Datagrams { source: read, .. }) if read == source)
            );
        }
    }

    #[test]
    fn a_socket_that_only_fails_has_failed() {
        let failed = read_with(usize::MAX, would_block).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::ECONNREFUSED));
    }
}
