//! The container's end of a connection: an ordinary smoltcp client in memory, for tests and micro-benchmarks.

use super::*;

/// A smoltcp client.
pub struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capabilities: Capabilities,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that is about to send its SYN to the peer of `key`.
    ///
    /// # Panics
    /// If `socket` is not closed or a port is 0.
    #[must_use]
    pub fn connect(
        key: FlowKey,
        socket: tcp::Socket<'static>,
        capabilities: Capabilities,
        seed: u64,
        now: Instant,
    ) -> Self {
        let interface = interface(key.container.ip(), capabilities, seed, now);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let mut client = Self { interface, sockets, handle, capabilities };
        let remote: (IpAddress, u16) = (key.peer.ip().into(), key.peer.port());
        let socket = client.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(client.interface.context(), remote, key.container.port())
            .expect("the socket is closed and the ports are not 0");
        client
    }

    /// Takes in one packet.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8], out: &mut impl Transmit) {
        let mut device =
            CallDevice { capabilities: self.capabilities, received: Some(packet), out: Some(out) };
        self.interface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }

    /// Sends one packet if one is due. Returns whether one was.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut impl Transmit) -> bool {
        let mut device = CallDevice { capabilities: self.capabilities, received: None, out: Some(out) };
        self.interface.poll_egress(now, &mut device, &mut self.sockets) == PollResult::SocketStateChanged
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something to do next.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// The socket of the connection.
    pub fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}
