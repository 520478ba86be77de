//! Echo requests: those to the gateway's own addresses are answered here, the others are the Dialer's to decide.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::Gateway;
use crate::dialer::Datagrams;
use crate::link::Sent;
use nsnet_stack::icmp;
use nsnet_stack::icmp::echo::{self, Headers, Message};
use nsnet_stack::packet::Packet;

impl Gateway {
    /// Takes in an echo request. The gateway and the resolver are in here: no packet leaves for their answer, and nobody
    /// is asked. So the gateway answers for itself also where its address leads to the host's loopback.
    pub(super) fn handle_echo(self: &Rc<Self>, packet: &Packet<'_>, datagram: Datagrams<'_>) {
        let destination = packet.ends.destination.ip();
        if self.addressing.subnets().any(|subnet| [subnet.gateway, subnet.dns].contains(&destination)) {
            // Lost if the link is full, as from any busy host.
            let (Sent::Done | Sent::Held(_)) =
                self.send_echo_reply(destination, packet.ends.source, icmp::HOP_LIMIT, datagram.bytes());
        } else {
            self.echo.handle(self, packet, datagram);
        }
    }

    /// Sends the container an echo reply, in fragments if it exceeds the MTU. The identifier stands in the place of the
    /// destination's port; a reply that no IP packet can carry is lost.
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
}
