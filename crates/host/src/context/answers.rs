//! Packets that the gateway itself sends to the container.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Context;
use crate::dialer::{Datagrams, DialError, IcmpError};
use crate::link::Sent;
use nsnet_stack::flow::FlowKey;
use nsnet_stack::icmp;
use nsnet_stack::icmp::echo::{self, Headers, Message};

impl Context {
    /// Sends a packet of the gateway's own. It is lost if the link is full, as from any busy router.
    pub(crate) fn send(&self, packet: &[u8]) {
        let (Sent::Done | Sent::Held(_)) = self.link.send(packet);
    }

    /// Sends a datagram of the gateway's own. If the link is full, waits for room or gives up.
    pub(crate) async fn send_datagram(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
        may_wait: bool,
    ) {
        let mut sent = self.link.send_datagrams(source, destination, Datagrams::one(payload));
        while let Sent::Held(frame) = sent
            && may_wait
        {
            if self.link.writable().await.is_err() {
                return;
            }
            sent = self.link.resend(frame);
        }
    }

    /// Sends the container an echo reply, in fragments if it exceeds the MTU. The destination's port holds the
    /// identifier. A reply that no IP packet can carry is lost.
    pub(crate) fn send_echo_reply(
        &self,
        source: IpAddr,
        destination: SocketAddr,
        hop_limit: u8,
        datagram: &[u8],
    ) -> Sent {
        if !echo::is_possible(source, datagram.len()) {
            return Sent::Done;
        }
        let headers = Headers {
            message: Message::Reply,
            source,
            destination: destination.ip(),
            hop_limit,
            identifier: destination.port(),
        };
        let length = echo::length(source, datagram.len());
        self.link.send_cut(source, length, |buffer| echo::write(buffer, headers, datagram))
    }

    /// Logs what keeps the host from connecting, at most once a second, because the container decides how often that
    /// happens.
    pub(crate) fn warn_of(&self, error: &DialError, destination: SocketAddr) {
        let DialError::Other(error) = error else { return };
        let now = self.clock.now();
        if self.warned.get().is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.warned.set(Some(now));
            tracing::warn!(%destination, %error, "could not connect");
        }
    }

    /// Answers a packet of the container with the ICMP error for `error`, or with silence.
    pub(crate) fn send_unreachable(&self, key: FlowKey, error: &DialError, packet: &[u8]) {
        self.warn_of(error, key.peer);
        if let Some(reason) = error.unreachable() {
            self.report(key, reason.into(), packet);
        }
    }

    /// Tells the container that a packet it sent does not arrive. `quoted` is the packet or its start.
    pub(crate) fn report(&self, key: FlowKey, error: IcmpError, quoted: &[u8]) {
        if self.errors.borrow_mut().admit(self.clock.now()) {
            self.send_error(key, None, icmp::HOP_LIMIT, error, quoted);
        } else {
            self.counters.icmp.suppressed();
        }
    }

    /// Passes an upstream ICMP error about a packet of the container on. `sender` is the host that reports it, if
    /// known, and `hop_limit` is that of the message. An error of the host's kernel comes from the gateway.
    pub(crate) fn relay(
        &self,
        key: FlowKey,
        sender: Option<IpAddr>,
        hop_limit: Option<u8>,
        error: IcmpError,
        quoted: &[u8],
    ) {
        let sender = sender.filter(|sender| self.is_remote(*sender));
        if sender.is_none() {
            return self.report(key, error, quoted);
        }
        let hop_limit = hop_limit.map_or(icmp::HOP_LIMIT, |hops| hops.saturating_sub(1).max(1));
        self.send_error(key, sender, hop_limit, error, quoted);
    }

    /// Sends an ICMP error. `sender` is its source, if that is neither the destination nor a router as near as this
    /// one.
    fn send_error(
        &self,
        key: FlowKey,
        sender: Option<IpAddr>,
        hop_limit: u8,
        error: IcmpError,
        quoted: &[u8],
    ) {
        let sender = match sender {
            Some(other) if other.is_ipv4() == key.container.is_ipv4() => sender,
            _ if error.is_of_destination() => Some(key.peer.ip()),
            _ => self.gateway_address(key.container.ip()),
        };
        if let Some(sender) = sender {
            self.counters.icmp.sent();
            self.send(&icmp::error(sender, key.container.ip(), hop_limit, error, quoted));
        }
    }

    fn gateway_address(&self, container: IpAddr) -> Option<IpAddr> {
        self.addressing.subnet_of_container(container).map(|subnet| subnet.gateway)
    }
}
