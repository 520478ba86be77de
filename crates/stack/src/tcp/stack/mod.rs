//! The smoltcp adapter: one `Interface` and one socket for one connection. Pure: no clock, no file descriptor;
//! time comes in as a parameter, packets go out through a [`Transmit`].
//!
//! smoltcp looks a socket up linearly for every packet, so a flow that owns its interface costs the same
//! among ten thousand as alone, and shares nothing that another flow's fault could damage.
//!
//! A connection is accepted from the container ([`TcpStack::listen`]) or opened towards it ([`TcpStack::connect`], for
//! published ports); after the handshake there is no difference.
//!
//! What smoltcp does not do and this stack's users must: hold the SYN (it is fed in once the dial succeeded),
//! end half-closed and silent connections (no FIN-WAIT-2 timer), keep the last ACK through TIME-WAIT.

use std::net::IpAddr;
use std::num::NonZeroUsize;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use super::rings::Occupancy;
use crate::flow::FlowKey;

/// Where a stack's packets go.
pub trait Transmit {
    /// Whether [`transmit`](Self::transmit) may be called now.
    fn is_ready(&self) -> bool;

    /// Sends a packet of `length` bytes that `fill` writes. Called only when ready.
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// What the link can carry, as far as TCP is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Largest packet in bytes; with segmentation offload not the MTU but what an IP header can express.
    pub max_packet: usize,
    /// Whether the kernel cuts what is larger than the container's MSS. smoltcp 0.14 hands the segment size
    /// down for IPv4 only, so the link takes it from the SYN (see `Outlet`).
    pub segmentation: bool,
    /// Whether this end computes the TCP checksum.
    pub checksum: bool,
}

/// How the container's end of the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Handshake, transfer or closing under way.
    Alive,
    /// Both directions are closed and acknowledged; the tuple must rest (RFC 9293, 3.6.1).
    TimeWait,
    /// Nothing is left: closed in order, or our RST has been sent.
    Closed,
    /// The container sent RST.
    Reset,
}

/// A connection with the container.
pub struct TcpStack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: Capabilities,
    reset_by_container: bool,
    /// Bytes that were read, modulo 2³².
    read: u32,
}

/// Shortest interval at which an arrived segment is acknowledged when nothing else is sent. Longer than a
/// scheduling hiccup, far below the 40 ms of Linux, so that a sender's window never waits for it.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// Packets sent in one go: a container that insists on tiny segments must not keep others waiting.
const BURST: usize = 64;

impl TcpStack {
    /// A stack that listens for exactly this flow. `seed` decides the initial sequence number and must be
    /// unpredictable (RFC 6528).
    pub fn listen(
        key: FlowKey,
        mut socket: tcp::Socket<'static>,
        capabilities: Capabilities,
        seed: u64,
        now: Instant,
    ) -> Self {
        let interface = interface(key.peer.ip(), capabilities, seed, now);
        let endpoint = IpListenEndpoint { addr: Some(key.peer.ip().into()), port: key.peer.port() };
        // Ports are checked to be non-zero where packets are parsed, and the socket comes closed.
        let listening = socket.listen(endpoint);
        debug_assert!(listening.is_ok(), "{listening:?}");
        Self::new(interface, socket, capabilities)
    }

    /// A stack that is about to send its SYN to the container. For `seed` see [`listen`](Self::listen).
    pub fn connect(
        key: FlowKey,
        socket: tcp::Socket<'static>,
        capabilities: Capabilities,
        seed: u64,
        now: Instant,
    ) -> Self {
        let interface = interface(key.peer.ip(), capabilities, seed, now);
        let mut stack = Self::new(interface, socket, capabilities);
        stack.connect_anew(key);
        stack
    }

    /// Gives up the handshake under way and begins another, with a new initial sequence number.
    pub fn connect_anew(&mut self, key: FlowKey) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.abort();
        let remote: (IpAddress, u16) = (key.container.ip().into(), key.container.port());
        let local: (IpAddress, u16) = (key.peer.ip().into(), key.peer.port());
        let connecting = socket.connect(self.interface.context(), remote, local);
        debug_assert!(connecting.is_ok(), "{connecting:?}");
    }

    fn new(interface: Interface, mut socket: tcp::Socket<'static>, capabilities: Capabilities) -> Self {
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, capabilities, reset_by_container: false, read: 0 }
    }

    /// Takes in one packet of this flow.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8], out: &mut impl Transmit) {
        let before = self.state();
        let mut port = Port { capabilities: self.capabilities, received: Some(packet), out: Some(out) };
        let PollIngressSingleResult::SocketStateChanged =
            self.interface.poll_ingress_single(now, &mut port, &mut self.sockets)
        else {
            return;
        };
        let vanished = matches!(self.state(), tcp::State::Closed | tcp::State::Listen);
        let was_open = !matches!(
            before,
            tcp::State::Closed | tcp::State::Listen | tcp::State::LastAck | tcp::State::TimeWait
        );
        self.reset_by_container |= vanished && was_open;
    }

    /// Sends what is due, as far as `out` takes it and at most a burst. Returns whether anything was sent.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut impl Transmit) -> bool {
        let mut sent = false;
        for _ in 0..BURST {
            if !out.is_ready() {
                break;
            }
            let mut port = Port { capabilities: self.capabilities, received: None, out: Some(&mut *out) };
            match self.interface.poll_egress(now, &mut port, &mut self.sockets) {
                PollResult::None => break,
                PollResult::SocketStateChanged => sent = true,
            }
        }
        sent
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to do next; a time in the past means now.
    #[inline]
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Whether data from the container waits to be read.
    #[inline]
    pub fn can_receive(&self) -> bool {
        self.socket().can_recv()
    }

    /// Offers the received bytes that lie in one piece; `read` returns how many it took.
    pub fn receive<R: Default>(&mut self, read: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut length = 0;
        let result = self.socket_mut().recv(|bytes| {
            let (taken, result) = read(bytes);
            length = taken;
            (taken, result)
        });
        // A ring is shorter than that.
        self.read = self.read.wrapping_add(u32::try_from(length).unwrap_or(0));
        result.unwrap_or_default()
    }

    /// What the socket's rings hold.
    #[inline]
    pub fn occupancy(&self) -> Occupancy {
        let receive_queue = self.socket().recv_queue();
        Occupancy {
            received: self.read.wrapping_add(u32::try_from(receive_queue).unwrap_or(0)),
            receive_queue,
            send_queue: self.send_queue(),
        }
    }

    /// Bytes that wait for the container's acknowledgment.
    #[inline]
    pub fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    /// Whether everything the container sends has been received: its FIN arrived and no data waits.
    #[inline]
    pub fn is_receive_finished(&self) -> bool {
        !self.socket().may_recv() && !matches!(self.state(), tcp::State::Listen | tcp::State::SynReceived)
    }

    /// Whether the container's FIN has come, be there data to read or not.
    pub fn has_received_end(&self) -> bool {
        match self.state() {
            tcp::State::CloseWait | tcp::State::Closing | tcp::State::LastAck | tcp::State::TimeWait => true,
            tcp::State::Closed => !self.reset_by_container,
            tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2 => false,
        }
    }

    /// Whether bytes for the container can be queued.
    #[inline]
    pub fn can_send(&self) -> bool {
        self.socket().can_send()
    }

    /// Offers free space that lies in one piece; `write` returns how many bytes it filled.
    pub fn send<R: Default>(&mut self, write: impl FnOnce(&mut [u8]) -> (usize, R)) -> R {
        self.socket_mut().send(write).unwrap_or_default()
    }

    /// Sends FIN behind what is queued.
    pub fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Drops what is queued and sends RST.
    pub fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Whether the next word is the container's: an ACK of what was sent to it, or the FIN that answers ours.
    pub fn awaits_container(&self) -> bool {
        match self.state() {
            tcp::State::Listen
            | tcp::State::SynReceived
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck => true,
            tcp::State::Established | tcp::State::CloseWait => self.socket().send_queue() > 0,
            tcp::State::Closed | tcp::State::SynSent | tcp::State::TimeWait => false,
        }
    }

    #[inline]
    pub fn standing(&self) -> Standing {
        match self.state() {
            _ if self.reset_by_container => Standing::Reset,
            tcp::State::TimeWait => Standing::TimeWait,
            tcp::State::Closed if self.socket().remote_endpoint().is_none() => Standing::Closed,
            tcp::State::Closed
            | tcp::State::Listen
            | tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::CloseWait
            | tcp::State::Closing
            | tcp::State::LastAck => Standing::Alive,
        }
    }

    /// Whether no SYN has been taken in yet.
    #[inline]
    pub fn is_listening(&self) -> bool {
        self.state() == tcp::State::Listen
    }

    /// Whether the container has not answered our SYN yet.
    #[inline]
    pub fn is_connecting(&self) -> bool {
        self.state() == tcp::State::SynSent
    }

    /// Whether the handshake is over, and the connection was or is open.
    pub fn is_synchronized(&self) -> bool {
        !matches!(self.state(), tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived)
    }

    /// Takes the socket out, so that its buffers serve another flow. The stack is of no use afterwards.
    pub fn take_socket(&mut self) -> tcp::Socket<'static> {
        let smoltcp::socket::Socket::Tcp(mut socket) = self.sockets.remove(self.handle);
        socket.abort();
        socket
    }

    #[inline]
    fn state(&self) -> tcp::State {
        self.socket().state()
    }

    #[inline]
    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    #[inline]
    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// An interface with one address, and no routes.
fn interface(address: IpAddr, capabilities: Capabilities, seed: u64, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut device = Port::<Nowhere> { capabilities, received: None, out: None };
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|addresses| {
        // A prefix of length zero makes every peer a neighbour: no routes are needed. One address fits.
        let _ = addresses.push(IpCidr::new(address.into(), 0));
    });
    interface
}

/// The device smoltcp sees during one call: at most one packet in, any number out.
struct Port<'a, T> {
    capabilities: Capabilities,
    received: Option<&'a [u8]>,
    out: Option<&'a mut T>,
}

impl<T: Transmit> Device for Port<'_, T> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Outgoing<'_, T>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Outgoing(self.out.as_deref_mut())))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_, T>> {
        let out = self.out.as_deref_mut().filter(|out| out.is_ready())?;
        Some(Outgoing(Some(out)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Received checksums are verified where packets are parsed.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = if self.capabilities.checksum { Checksum::Tx } else { Checksum::None };
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.capabilities.max_packet;
        capabilities.checksum = checksum;
        if self.capabilities.segmentation {
            let largest = NonZeroUsize::new(self.capabilities.max_packet);
            capabilities.segmentation.tcpv4 = largest;
            capabilities.segmentation.tcpv6 = largest;
        }
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a, T>(Option<&'a mut T>);

impl<T: Transmit> TxToken for Outgoing<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        match self.0 {
            Some(out) if out.is_ready() => out.transmit(length, f),
            // An immediate answer (challenge ACK, RST) that finds the link full is lost as on any network.
            Some(_) | None => f(&mut vec![0; length]),
        }
    }
}

/// Never ready: what an interface is created with.
struct Nowhere;

impl Transmit for Nowhere {
    fn is_ready(&self) -> bool {
        false
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; length])
    }
}

/// The address family decides the length of the headers that a segment of the MSS has to leave room for.
pub fn header_length(address: IpAddr) -> usize {
    crate::wire::ip_header_len(address) + smoltcp::wire::TCP_HEADER_LEN
}

#[cfg(any(test, feature = "_testing"))]
pub(super) mod client;

#[cfg(test)]
mod tests;
