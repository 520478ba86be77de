//! Echo requests: those to the gateway's own addresses are answered here, the others are the Dialer's to decide.

use super::Gateway;
use crate::dialer::Datagrams;
use crate::link::Sent;
use nsnet_stack::icmp;
use nsnet_stack::packet::Packet;

impl Gateway {
    /// Takes in an echo request. The gateway and the resolver are in here: no packet leaves for their answer, and nobody
    /// is asked. So the gateway answers for itself also where its address leads to the host's loopback.
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
