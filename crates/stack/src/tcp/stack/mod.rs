//! The smoltcp adapter: one `Interface` and one socket for each connection.
//!
//! smoltcp searches its sockets linearly for every packet. With an interface of its own, a connection costs the same
//! among ten thousand as alone, and shares nothing that a fault of another could damage.
//!
//! A connection is accepted from the container ([`TcpStack::listen`]) or opened towards it ([`TcpStack::connect`], for
//! published ports). After the handshake there is no difference.
//!
//! smoltcp acknowledges after 10 ms at the latest, and does without Nagle's algorithm. It leaves three things to the
//! owner of a stack:
//!
//! - to hold the SYN, which is fed in once the dial has succeeded;
//! - to end half-closed and silent connections, because there is no FIN-WAIT-2 timer;
//! - to repeat the last ACK during TIME-WAIT ([`Resting`](super::Resting)).

#[cfg(any(test, feature = "_testing"))]
pub(super) mod client;
mod device;

use std::fmt;
use std::net::IpAddr;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use device::{CallDevice, Nowhere};
pub use device::{Capabilities, Transmit};

use super::rings::Occupancy;
use crate::flow::FlowKey;

/// The state of a connection, as far as its owner must act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Handshake, transfer or closing under way.
    Alive,
    /// Both directions are closed and acknowledged. The tuple must rest (RFC 9293, 3.6.1).
    TimeWait,
    /// Both directions are closed, and nothing is left to do; or this end has sent RST.
    Closed,
    /// The container sent RST.
    Reset,
}

/// One TCP connection with the container.
///
/// Packets come in through [`handle_packet`](Self::handle_packet), and out through
/// [`poll_transmit`](Self::poll_transmit), which is due after every other call and at [`poll_at`](Self::poll_at).
pub struct TcpStack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: Capabilities,
    reset_by_container: bool,
    /// Bytes that have been read, modulo 2³².
    read: u32,
}

impl fmt::Debug for TcpStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStack").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Longest delay of an acknowledgment when nothing else is sent. It is longer than a scheduling hiccup, and far below
/// the 40 ms of Linux, so that no sender's window waits for it.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// Most packets sent in one call: a container that insists on tiny segments must not keep others waiting.
const BURST: usize = 64;

impl TcpStack {
    /// A stack that waits for the SYN of exactly this flow. `socket` must be closed. `seed` decides the initial
    /// sequence number and must be unpredictable (RFC 6528).
    #[must_use]
    pub fn listen(
        key: FlowKey,
        mut socket: tcp::Socket<'static>,
        capabilities: Capabilities,
        seed: u64,
        now: Instant,
    ) -> Self {
        let interface = interface(key.peer.ip(), capabilities, seed, now);
        let endpoint = IpListenEndpoint { addr: Some(key.peer.ip().into()), port: key.peer.port() };
        // The packet parser admits no port 0, and the socket is closed.
        let listening = socket.listen(endpoint);
        debug_assert!(listening.is_ok(), "{listening:?}");
        Self::new(interface, socket, capabilities)
    }

    /// A stack that is about to send its SYN to the container. For `socket` and `seed` see [`listen`](Self::listen).
    #[must_use]
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

    /// Abandons the handshake and begins another, with a new initial sequence number.
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

    /// Takes in one IP packet of this flow. Answers that cannot wait (RST, challenge ACK) go out at once.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8], out: &mut impl Transmit) {
        let before = self.state();
        let mut device =
            CallDevice { capabilities: self.capabilities, received: Some(packet), out: Some(out) };
        let PollIngressSingleResult::SocketStateChanged =
            self.interface.poll_ingress_single(now, &mut device, &mut self.sockets)
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

    /// Sends the packets that are due, as far as `out` is ready, and at most 64. Returns whether it sent any.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut impl Transmit) -> bool {
        let mut sent = false;
        for _ in 0..BURST {
            if !out.is_ready() {
                break;
            }
            let mut device =
                CallDevice { capabilities: self.capabilities, received: None, out: Some(&mut *out) };
            match self.interface.poll_egress(now, &mut device, &mut self.sockets) {
                PollResult::None => break,
                PollResult::SocketStateChanged => sent = true,
            }
        }
        sent
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to do next. A time in the past means now; `None` means
    /// not before the next packet or call.
    #[inline]
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Whether bytes from the container wait to be read.
    #[must_use]
    #[inline]
    pub fn can_receive(&self) -> bool {
        self.socket().can_recv()
    }

    /// Passes `read` the received bytes up to the end of the ring. `read` returns how many it took, and a result.
    ///
    /// The result is the default if nothing can be read any more.
    pub fn receive<R: Default>(&mut self, read: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut length = 0;
        let result = self.socket_mut().recv(|bytes| {
            let (taken, result) = read(bytes);
            length = taken;
            (taken, result)
        });
        // A ring is shorter than 4 GiB.
        self.read = self.read.wrapping_add(u32::try_from(length).unwrap_or(0));
        result.unwrap_or_default()
    }

    /// The contents of the socket's rings.
    #[must_use]
    #[inline]
    pub fn occupancy(&self) -> Occupancy {
        let receive_queue = self.socket().recv_queue();
        Occupancy {
            received: self.read.wrapping_add(u32::try_from(receive_queue).unwrap_or(0)),
            receive_queue,
            send_queue: self.send_queue(),
        }
    }

    /// Bytes that wait for the container's acknowledgment, sent or not.
    #[must_use]
    #[inline]
    pub fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    /// Whether the container's stream has ended: its FIN has arrived, and no bytes wait to be read.
    #[must_use]
    #[inline]
    pub fn is_receive_finished(&self) -> bool {
        !self.socket().may_recv() && !matches!(self.state(), tcp::State::Listen | tcp::State::SynReceived)
    }

    /// Whether the container's FIN has arrived. Bytes may still wait to be read.
    #[must_use]
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

    /// Whether the send ring has room for bytes.
    #[must_use]
    #[inline]
    pub fn can_send(&self) -> bool {
        self.socket().can_send()
    }

    /// Passes `write` the free space up to the end of the ring. `write` returns how many bytes it filled, and a result.
    ///
    /// The result is the default if nothing can be sent any more.
    pub fn send<R: Default>(&mut self, write: impl FnOnce(&mut [u8]) -> (usize, R)) -> R {
        self.socket_mut().send(write).unwrap_or_default()
    }

    /// Closes this direction: FIN follows the queued bytes.
    pub fn close(&mut self) {
        self.socket_mut().close();
    }

    /// Drops the queued bytes and sends RST.
    pub fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Whether the container must speak next: it owes an ACK, or the FIN that answers this end's.
    #[must_use]
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

    /// Whether the container may send bytes: the connection is open, and its FIN has not arrived.
    #[must_use]
    #[inline]
    pub fn awaits_bytes(&self) -> bool {
        matches!(self.state(), tcp::State::Established | tcp::State::FinWait1 | tcp::State::FinWait2)
    }

    /// The state of the connection.
    #[must_use]
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

    /// Whether this stack still waits for the SYN.
    #[must_use]
    #[inline]
    pub fn is_listening(&self) -> bool {
        self.state() == tcp::State::Listen
    }

    /// Whether the container has not answered the SYN of this stack yet.
    #[must_use]
    #[inline]
    pub fn is_connecting(&self) -> bool {
        self.state() == tcp::State::SynSent
    }

    /// Whether the handshake is over: the connection is open, or was.
    #[must_use]
    pub fn is_synchronized(&self) -> bool {
        !matches!(self.state(), tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived)
    }

    /// Takes the socket out, so that its rings serve another flow. The stack is of no use afterwards.
    ///
    /// # Panics
    /// If the socket has been taken out already. Every other method panics then, too.
    #[must_use]
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

/// An interface with one address and no routes.
fn interface(address: IpAddr, capabilities: Capabilities, seed: u64, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut device = CallDevice::<Nowhere> { capabilities, received: None, out: None };
    let mut interface = Interface::new(config, &mut device, now);
    interface.update_ip_addrs(|addresses| {
        // With a prefix of length 0 every peer is a neighbour, so no routes are needed. One address always fits.
        let _ = addresses.push(IpCidr::new(address.into(), 0));
    });
    interface
}

/// Length in bytes of the IP and TCP headers without options, for the family of `address`.
pub(crate) fn header_length(address: IpAddr) -> usize {
    crate::wire::ip_header_len(address) + smoltcp::wire::TCP_HEADER_LEN
}

#[cfg(test)]
mod tests;
