//! The default Dialer, which uses the host's own sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, UdpSocket};

use super::echo_socket::{self, EchoDatagrams};
use super::{DatagramSocket, DenyDialer, DialError, Dialer, Flow, Inbound, Source, Stream, UdpDatagrams};

/// Allows every flow, and connects from the host like any program there.
///
/// Echo requests (ping) leave through ping sockets, icmp(7). The host must allow them with `net.ipv4.ping_group_range`.
/// If it does not, ping reports "prohibited", and the log says once which setting to change.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use nsnet_host::DirectDialer;
///
/// let dialer = DirectDialer::new().bind_interface("wg0").connect_timeout(Duration::from_secs(10));
/// ```
#[derive(Debug, Clone, Default)]
pub struct DirectDialer {
    bind_v4: Option<Ipv4Addr>,
    bind_v6: Option<Ipv6Addr>,
    interface: Option<String>,
    connect_timeout: Option<Duration>,
    keepalive: Option<Duration>,
}

impl DirectDialer {
    /// Leaves the address, the interface and the connect timeout to the kernel. The kernel gives up after about 127 s
    /// (`tcp_syn_retries`, tcp(7)). The network's own [`dial_timeout`](crate::NetworkBuilder::dial_timeout) ends before
    /// that.
    #[must_use]
    pub const fn new() -> Self {
        Self { bind_v4: None, bind_v6: None, interface: None, connect_timeout: None, keepalive: None }
    }

    /// Sends from this address of the host. It applies to the family of the address only, so call it once for each
    /// family.
    #[must_use]
    pub fn bind_address(mut self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.bind_v4 = Some(address),
            IpAddr::V6(address) => self.bind_v6 = Some(address),
        }
        self
    }

    /// Sends through this interface only (`SO_BINDTODEVICE`, socket(7)). UDP then does not reach the host's loopback,
    /// because one socket serves all destinations of a container port.
    #[must_use]
    pub fn bind_interface(mut self, interface: impl Into<String>) -> Self {
        self.interface = Some(interface.into());
        self
    }

    /// Gives up a TCP connection attempt after this long. Default: the kernel's time, see [`new`](Self::new).
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Probes TCP connections that have been silent for this long (`SO_KEEPALIVE`, tcp(7)). Default: no probes, as for
    /// any socket. The kernel counts in seconds, from 1 to 32 767.
    ///
    /// Further probes follow at the same interval, or every 75 s if that is shorter. After
    /// `net.ipv4.tcp_keepalive_probes` probes without an answer (9 by default), the connection is reset, and so is the
    /// container's.
    ///
    /// The gateway answers the container's own keepalive probes, so they say nothing about the far end. Use this option
    /// for programs that rely on them, or if a firewall on the path forgets silent connections.
    #[must_use]
    pub fn keepalive(mut self, silence: Duration) -> Self {
        self.keepalive = Some(silence);
        self
    }

    /// Sets the options that only TCP sockets have.
    fn prepare_tcp(&self, socket: &Socket) -> std::io::Result<()> {
        // A byte that the far end marks as urgent is part of the stream (RFC 6093, section 5), as it is inside.
        socket.set_out_of_band_inline(true)?;
        let Some(silence) = self.keepalive else { return Ok(()) };
        let silence = silence.clamp(Duration::from_secs(1), LONGEST_KEEPALIVE);
        let interval = silence.min(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(silence).with_interval(interval))
    }

    /// A non-blocking socket, bound as configured.
    fn socket(&self, peer: SocketAddr, kind: Type, protocol: Option<Protocol>) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(peer), kind.nonblocking().cloexec(), protocol)?;
        // The host's loopback cannot be reached through any other interface.
        if let Some(interface) = self.interface.as_deref().filter(|_| !peer.ip().is_loopback()) {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        let address: Option<IpAddr> = match peer {
            SocketAddr::V4(_) => self.bind_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.bind_v6.map(IpAddr::V6),
        };
        let bind_to = match address.filter(|_| !peer.ip().is_loopback()) {
            Some(address) => Some(SocketAddr::new(address, 0)),
            // connect(2) chooses address and port for TCP. The other sockets receive before they send.
            None if kind == Type::STREAM => None,
            None if peer.is_ipv4() => Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
            None => Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0)),
        };
        if peer.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(address) = bind_to {
            socket.bind(&address.into())?;
        }
        Ok(socket)
    }
}

/// Bytes of datagrams that wait for the engine, as the kernel counts them. There is room for a few hundred datagrams of
/// 1500 bytes, or a dozen of the largest. The kernel's default holds three of the largest.
pub(crate) const DATAGRAM_BUFFER: usize = 1 << 20;

/// `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL`, include/net/tcp.h.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// The kernel's own interval between probes (`TCP_KEEPALIVE_INTVL`, include/net/tcp.h).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);

#[async_trait]
impl Dialer for DirectDialer {
    /// A [`DenyDialer`]. It is never asked, because every method is overridden.
    fn inner(&self) -> &dyn Dialer {
        &DenyDialer
    }

    async fn authorize(&self, _flow: &Flow) -> Result<(), DialError> {
        Ok(())
    }

    async fn accept(&self, _inbound: &Inbound) -> Result<(), DialError> {
        Ok(())
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        let socket = self.socket(flow.target, Type::STREAM, None)?;
        self.prepare_tcp(&socket)?;
        let socket = TcpSocket::from_std_stream(socket.into());
        let connecting = socket.connect(flow.target);
        let stream = match self.connect_timeout {
            Some(timeout) => {
                tokio::time::timeout(timeout, connecting).await.map_err(|_| DialError::TimedOut)??
            }
            None => connecting.await?,
        };
        // The container's own stack has decided how to cut its stream into segments.
        stream.set_nodelay(true)?;
        Ok(stream.into())
    }

    async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        let socket = self.socket(source.address, Type::DGRAM, None)?;
        // The kernel limits the size to `net.core.rmem_max` (socket(7)). A smaller buffer is slower but works.
        let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
        Ok(Box::new(UdpDatagrams::new(UdpSocket::from_std(socket.into())?)?))
    }

    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        let protocol = echo_socket::protocol(source.address);
        let socket =
            self.socket(source.address, Type::DGRAM, Some(protocol)).inspect_err(echo_socket::explain)?;
        let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
        Ok(Box::new(EchoDatagrams::new(socket)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(dialer: &DirectDialer, peer: &str) -> Socket {
        let socket = dialer.socket(peer.parse().unwrap(), Type::STREAM, None).unwrap();
        dialer.prepare_tcp(&socket).unwrap();
        socket
    }

    #[test]
    fn keepalive_is_off_unless_asked_for() {
        let socket = prepared(&DirectDialer::new(), "127.0.0.1:9");
        assert!(!socket.keepalive().unwrap());
        assert!(socket.out_of_band_inline().unwrap());
    }

    #[test]
    fn keepalive_is_set_within_what_the_kernel_takes() {
        let cases = [(40, 40, 40), (600, 600, 75), (0, 1, 1), (100_000, 32_767, 75)];
        for (peer, (asked, time, interval)) in
            ["127.0.0.1:9", "[::1]:9"].iter().flat_map(|peer| cases.map(|case| (peer, case)))
        {
            let socket = prepared(&DirectDialer::new().keepalive(Duration::from_secs(asked)), peer);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(time));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(interval));
        }
    }
}
