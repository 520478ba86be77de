//! What the gateway itself has to say to the container.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Gateway;
use crate::dialer::{Datagrams, DialError, IcmpError, Unreachable};
use crate::icmp;
use crate::link::Sent;
use crate::packet::FlowKey;

impl Gateway {
    /// Sends a packet of the gateway's own; lost if the link is full, as from any busy router.
    pub(crate) fn send(&self, packet: &[u8]) {
        let (Sent::Done | Sent::Held(_)) = self.link.send(packet);
    }

    /// Sends a datagram of the gateway's own. If the link is full, waits for it or gives up.
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

    /// Says in the log what keeps the host from connecting; not more often than once a second, for it is the
    /// container that decides how often.
    pub(crate) fn warn_of(&self, error: &DialError, destination: SocketAddr) {
        let DialError::Other(error) = error else { return };
        let now = self.clock.now();
        if self.warned.get().is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.warned.set(Some(now));
            tracing::warn!(%destination, %error, "could not connect");
        }
    }

    /// Answers a packet of the container with the ICMP error that fits `error`, or with silence.
    pub(crate) fn send_unreachable(&self, key: FlowKey, error: &DialError, packet: &[u8]) {
        self.warn_of(error, key.destination);
        if let Some(reason) = error.unreachable() {
            self.report(key.source, key.destination, None, reason.into(), packet);
        }
    }

    /// Tells the container's socket at `source` that what it sent to `destination` did not arrive. `sender` is who says so,
    /// as far as it is known; `quoted` is the packet, or its start.
    pub(crate) fn report(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        sender: Option<IpAddr>,
        error: IcmpError,
        quoted: &[u8],
    ) {
        let sender = sender.map(|sender| self.addressing.as_seen_inside((sender, 0).into()).ip());
        let sender = match error {
            _ if sender.is_some_and(|sender| sender.is_ipv4() == source.is_ipv4()) => sender,
            // The destination's own word.
            IcmpError::Unreachable(Unreachable::Port | Unreachable::Protocol) => Some(destination.ip()),
            // A router's.
            IcmpError::Unreachable(Unreachable::Network | Unreachable::Host | Unreachable::Prohibited)
            | IcmpError::TimeExceeded
            | IcmpError::PacketTooBig { .. } => self.gateway_address(source.ip()),
        };
        if let Some(sender) = sender {
            self.send(&icmp::error(sender, source.ip(), error, quoted));
        }
    }

    fn gateway_address(&self, container: IpAddr) -> Option<IpAddr> {
        self.addressing.subnet_of_container(container).map(|subnet| subnet.gateway)
    }
}
