//! What the gateway itself has to say to the container.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Gateway;
use crate::dialer::{Datagrams, DialError, IcmpError};
use crate::link::Sent;
use crate::local::Reach;
use nsnet_stack::discard::Discard;
use nsnet_stack::flow::FlowKey;
use nsnet_stack::icmp;
use nsnet_stack::packet::{Packet, Transport};

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
        self.warn_of(error, key.peer);
        if let Some(reason) = error.unreachable() {
            self.report(key, reason.into(), packet);
        }
    }

    /// Turns away a packet that must not or cannot go on, and tells the container why, unless it was to go to everybody.
    pub(super) fn refuse(
        &self,
        packet: &Packet<'_>,
        error: IcmpError,
        discard: Discard,
    ) -> Result<(), Discard> {
        let is_error = matches!(packet.transport, Transport::Error(_));
        let is_broadcast = self.addressing.is_broadcast(packet.ends.destination.ip());
        // RFC 1122, 3.2.2; RFC 4443, 2.4 e.
        if !is_error && !is_broadcast {
            self.report(packet.flow(), error, packet.bytes);
        }
        Err(discard)
    }

    /// Tells the container of its own accord that what it sent does not arrive; `quoted` is the packet, or its start.
    pub(crate) fn report(&self, key: FlowKey, error: IcmpError, quoted: &[u8]) {
        if self.errors.borrow_mut().admit(self.clock.now()) {
            self.send_error(key, None, icmp::HOP_LIMIT, error, quoted);
        } else {
            self.counters.icmp.suppressed();
        }
    }

    /// Tells the container what was said upstream about something it sent. `sender` is who said so, as far as it is
    /// known, and `hop_limit` what the message came with. What the host's kernel says is the gateway's own word.
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

    /// `sender` is who has the word, if it is neither the destination nor a router as near as this one.
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

    /// Whether an address is that of another machine, and means the same in the container: not one of the container's own
    /// network, of which nobody is upstream, nor one of the host's, which are none of the container's business.
    fn is_remote(&self, address: IpAddr) -> bool {
        let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !is_link_local
            && !self.addressing.is_on_link(address)
            && matches!(self.commons.routes().lookup(address), Ok(Reach::Remote | Reach::Unreachable))
    }

    fn gateway_address(&self, container: IpAddr) -> Option<IpAddr> {
        self.addressing.subnet_of_container(container).map(|subnet| subnet.gateway)
    }
}
