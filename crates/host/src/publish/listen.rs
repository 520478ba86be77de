//! Opens the listening sockets, all or none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, Type};

use super::socket_file::SocketFile;
use super::{Front, PublishError};
use crate::dialer::{DATAGRAM_BUFFER, Protocol};

/// Connections that wait to be accepted. The kernel limits it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How many ports of the kernel's choice are tried, in case one is in use in the other address family.
const ATTEMPTS: usize = 16;

/// Where the host listens: ports at one address, or at all addresses.
///
/// The text form is `[ADDR:]HOST[-HOST]`, as in [`Publish`](crate::Publish). [`Display`](std::fmt::Display) and
/// [`FromStr`](std::str::FromStr) are inverses.
///
/// # Examples
/// ```
/// use std::net::{Ipv4Addr, SocketAddr};
/// use nsnet_host::Listen;
///
/// let all = Listen::from(8080);
/// let range = Listen::from(8000..=8009);
/// let one = Listen::from((Ipv4Addr::new(192, 0, 2, 7), 8080));
/// assert_eq!(Listen::loopback(8080), (Ipv4Addr::LOCALHOST, 8080).into());
/// assert_eq!(one.to_string(), "192.0.2.7:8080");
/// assert_eq!(range, "8000-8009".parse()?);
/// # Ok::<(), nsnet_host::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// `None` stands for all addresses of the host. The port and the flow label in it are 0.
    pub(super) address: Option<SocketAddr>,
    pub(super) ports: RangeInclusive<u16>,
}

impl Listen {
    /// A port at 127.0.0.1, for clients on the host itself.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    pub(super) fn at(mut address: SocketAddr, ports: RangeInclusive<u16>) -> Self {
        address.set_port(0);
        // The flow label means nothing to bind(2).
        if let SocketAddr::V6(address) = &mut address {
            address.set_flowinfo(0);
        }
        Self { address: Some(address), ports }
    }
}

/// A port at all addresses of the host, IPv4 and IPv6. 0 stands for any free port.
impl From<u16> for Listen {
    fn from(port: u16) -> Self {
        Self { address: None, ports: port..=port }
    }
}

/// Ports at all addresses of the host, IPv4 and IPv6.
impl From<RangeInclusive<u16>> for Listen {
    fn from(ports: RangeInclusive<u16>) -> Self {
        Self { address: None, ports }
    }
}

/// A port at one address. The unspecified address stands for all of its family.
impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::at(address, address.port()..=address.port())
    }
}

/// A port at one address. The unspecified address stands for all of its family.
impl<A: Into<IpAddr>> From<(A, u16)> for Listen {
    fn from((address, port): (A, u16)) -> Self {
        SocketAddr::new(address.into(), port).into()
    }
}

/// Ports at one address. The unspecified address stands for all of its family.
impl<A: Into<IpAddr>> From<(A, RangeInclusive<u16>)> for Listen {
    fn from((address, ports): (A, RangeInclusive<u16>)) -> Self {
        Self::at(SocketAddr::new(address.into(), 0), ports)
    }
}

/// A listening socket.
pub(super) struct Opened {
    pub(super) socket: BoundSocket,
    /// The address it listens at. `None` for a UNIX socket.
    pub(super) address: Option<SocketAddr>,
    /// The port in the container.
    pub(super) port: u16,
}

/// The ports to publish.
#[derive(Debug, Clone, Copy)]
enum ListenTransport {
    Tcp,
    Udp,
}

impl From<ListenTransport> for Protocol {
    fn from(transport: ListenTransport) -> Self {
        match transport {
            ListenTransport::Tcp => Self::Tcp,
            ListenTransport::Udp => Self::Udp,
        }
    }
}

pub(super) enum BoundSocket {
    /// The file is that of a UNIX socket, and dropped first. While the socket exists, no other can have its inode number.
    Stream {
        file: Option<SocketFile>,
        listener: socket2::Socket,
    },
    Udp(UdpSocket),
}

/// Opens all sockets of `front`. They lead to the container's ports from `port` on.
pub(super) fn open(front: &Front, port: u16) -> Result<Vec<Opened>, PublishError> {
    if port == 0 {
        return Err(PublishError::NoContainerPort);
    }
    match front {
        Front::Tcp(listen) => open_ports(ListenTransport::Tcp, listen, port),
        Front::Udp(listen) => open_ports(ListenTransport::Udp, listen, port),
        Front::Unix(path) => {
            let (listener, file) = open_file(path)?;
            Ok(vec![Opened {
                socket: BoundSocket::Stream { file: Some(file), listener: listener.into() },
                address: None,
                port,
            }])
        }
    }
}

fn open_ports(transport: ListenTransport, listen: &Listen, port: u16) -> Result<Vec<Opened>, PublishError> {
    let (first, last) = (*listen.ports.start(), *listen.ports.end());
    if first > last || (first == 0 && last > 0) {
        return Err(PublishError::NoRange { first, last });
    }
    if port.checked_add(last - first).is_none() {
        return Err(PublishError::BeyondPorts { port, count: listen.ports.clone().count() });
    }
    let mut sockets = Vec::new();
    for (host_port, port) in listen.ports.clone().zip(port..=u16::MAX) {
        let bound = match listen.address {
            Some(mut address) => {
                address.set_port(host_port);
                vec![bind(transport, address)?]
            }
            None => bind_everywhere(transport, host_port)?,
        };
        sockets.extend(bound.into_iter().map(|(socket, address)| Opened {
            socket,
            address: Some(address),
            port,
        }));
    }
    Ok(sockets)
}

/// Opens one socket of each family, with the same port. The second is missing on a host without IPv6.
fn bind_everywhere(
    transport: ListenTransport,
    port: u16,
) -> Result<Vec<(BoundSocket, SocketAddr)>, PublishError> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        let v4 = bind(transport, (Ipv4Addr::UNSPECIFIED, port).into())?;
        let address = (Ipv6Addr::UNSPECIFIED, v4.1.port()).into();
        let error = match try_bind(transport, address) {
            Ok(v6) => return Ok(vec![v4, v6]),
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => return Ok(vec![v4]),
            Some(Errno::EADDRINUSE) if port == 0 && attempts > 0 => {}
            _ => return Err(PublishError::of_socket(address, transport.into(), error)),
        }
    }
}

fn bind(transport: ListenTransport, address: SocketAddr) -> Result<(BoundSocket, SocketAddr), PublishError> {
    try_bind(transport, address).map_err(|error| PublishError::of_socket(address, transport.into(), error))
}

fn try_bind(transport: ListenTransport, address: SocketAddr) -> io::Result<(BoundSocket, SocketAddr)> {
    let kind = match transport {
        ListenTransport::Tcp => Type::STREAM,
        ListenTransport::Udp => Type::DGRAM,
    };
    let socket = socket2::Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match transport {
        ListenTransport::Tcp => {
            // Connections in TIME-WAIT then do not keep a server from coming back. Another listener still does.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            let address = listener.local_addr()?;
            Ok((BoundSocket::Stream { file: None, listener: listener.into() }, address))
        }
        ListenTransport::Udp => {
            // The kernel limits the size to `net.core.rmem_max` (socket(7)). A smaller buffer is slower but works.
            let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
            socket.bind(&address.into())?;
            let socket = UdpSocket::from(socket);
            let address = socket.local_addr()?;
            Ok((BoundSocket::Udp(socket), address))
        }
    }
}

fn open_file(path: &Path) -> Result<(UnixListener, SocketFile), PublishError> {
    let failed = |source| PublishError::File { path: path.into(), source };
    let listener = UnixListener::bind(path).map_err(|error| {
        if error.kind() != io::ErrorKind::AddrInUse {
            failed(error)
        } else if is_listened_on(path) {
            PublishError::FileInUse(path.into())
        } else {
            PublishError::FileExists(path.into())
        }
    })?;
    let file = SocketFile::new(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, file))
}

/// Asks only for the sake of the error, without waiting. A full queue belongs to a listener as well.
fn is_listened_on(path: &Path) -> bool {
    let connect = || {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
    is_socket && !connect().is_err_and(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(front: Front, port: u16) -> PublishError {
        match open(&front, port) {
            Ok(_) => panic!("it is opened"),
            Err(error) => error,
        }
    }

    #[test]
    fn an_address_in_use_is_named_and_nothing_of_a_range_stays() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let said = error(Front::Tcp(address.into()), 80).to_string();
        assert!(said.contains(&address.to_string()) && said.contains("in use"), "{said}");

        let first = address.port().checked_sub(1).unwrap();
        let range = Listen::from((Ipv4Addr::LOCALHOST, first..=address.port()));
        assert!(matches!(error(Front::Tcp(range), 80), PublishError::InUse { .. }));
        TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
    }

    #[test]
    fn port_0_is_the_same_free_one_in_both_families() {
        for front in [Front::Tcp(0.into()), Front::Udp(0.into())] {
            let opened = open(&front, 80).unwrap();
            let addresses: Vec<SocketAddr> = opened.iter().filter_map(|opened| opened.address).collect();
            assert!(
                addresses.iter().all(|address| address.port() == addresses[0].port() && address.port() > 0)
            );
            assert!(addresses[0].is_ipv4() && addresses.iter().skip(1).all(SocketAddr::is_ipv6));
        }
    }

    #[test]
    fn mappings_that_cannot_be_are_refused() {
        let at = |ports| Front::Tcp(Listen::from((Ipv4Addr::LOCALHOST, ports)));
        assert!(matches!(error(at(1..=1), 0), PublishError::NoContainerPort));
        assert!(matches!(error(at(0..=3), 80), PublishError::NoRange { .. }));
        #[expect(clippy::reversed_empty_ranges, reason = "it is what must be refused")]
        let reversed = 9..=8;
        assert!(matches!(error(at(reversed), 80), PublishError::NoRange { .. }));
        let beyond = error(at(2000..=2009), 65_530);
        assert!(matches!(beyond, PublishError::BeyondPorts { count: 10, .. }), "{beyond}");
    }

    #[test]
    fn the_last_port_of_a_container_is_one() {
        let front = Front::Tcp(Listen::loopback(0));
        let ports: Vec<u16> = open(&front, u16::MAX).unwrap().iter().map(|opened| opened.port).collect();
        assert_eq!(ports, [u16::MAX]);
    }

    #[test]
    fn a_listener_that_is_busy_is_not_waited_for() {
        let directory = std::env::temp_dir().join(format!("nsnet-publish-busy-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("socket");
        let (address, connect) = (SockAddr::unix(&path).unwrap(), || {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            socket.connect(&SockAddr::unix(&path).unwrap()).map(|()| socket)
        });
        let busy = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&address).unwrap();
        busy.listen(1).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
        assert!(!waiting.is_empty());
        assert!(matches!(error(Front::Unix(path), 80), PublishError::FileInUse(_)));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn an_address_of_somebody_else_is_told_apart() {
        let elsewhere = Front::Udp((Ipv4Addr::new(203, 0, 113, 1), 0).into());
        assert!(matches!(error(elsewhere, 80), PublishError::NotLocal { .. }));
    }

    #[test]
    fn the_file_of_a_socket_goes_with_it_and_somebody_elses_stays() {
        let directory = std::env::temp_dir().join(format!("nsnet-publish-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("socket");
        let front = Front::Unix(path.clone());
        let opened = open(&front, 80).unwrap();
        assert!(matches!(error(front.clone(), 80), PublishError::FileInUse(_)));
        drop(opened);
        assert!(!path.exists());

        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(error(front.clone(), 80), PublishError::FileExists(_)));
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        let opened = open(&front, 80).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(opened);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
        assert!(matches!(error(front, 80), PublishError::FileExists(_)));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
