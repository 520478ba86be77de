//! Echo requests. Those to the gateway's own addresses are answered here, and the Dialer decides on the others.

use super::Gateway;
use crate::dialer::Datagrams;
use crate::link::Sent;
use nsnet_stack::icmp;
use nsnet_stack::packet::Packet;

impl Gateway {
    /// Handles an echo request. The gateway and the resolver answer by themselves: no packet leaves, and nobody is
    /// asked. The gateway does so even where its address leads to the host's loopback.
    pub(super) fn handle_echo(&self, packet: &Packet<'_>, datagram: Datagrams<'_>) {
        let destination = packet.ends.destination.ip();
        if self
            .context()
            .addressing
            .subnets()
            .any(|subnet| [subnet.gateway, subnet.dns].contains(&destination))
        {
            // Lost if the link is full, as from any busy host.
            let (Sent::Done | Sent::Held(_)) = self.context().send_echo_reply(
                destination,
                packet.ends.source,
                icmp::HOP_LIMIT,
                datagram.bytes(),
            );
        } else {
            self.protocols.echo.handle(packet, datagram);
        }
    }
}
