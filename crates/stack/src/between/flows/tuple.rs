//! The identity of a flow between containers.

use std::net::{IpAddr, SocketAddr};

use crate::flow::{Endpoints, Protocol};

/// A flow between two containers, the same for packets in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub(super) protocol: Protocol,
    pub(super) ends: Endpoints,
}

/// One of the two ends of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source of the tuple: for TCP and UDP the lower address and port, for echo the requester.
    First,
    /// The other end.
    Second,
}

impl Tuple {
    /// The flow of a TCP segment or UDP datagram, and the end that sent it.
    #[must_use]
    pub fn of_ports(protocol: Protocol, packet: Endpoints) -> (Self, End) {
        if packet.source <= packet.destination {
            (Self { protocol, ends: packet }, End::First)
        } else {
            let ends = Endpoints { source: packet.destination, destination: packet.source };
            (Self { protocol, ends }, End::Second)
        }
    }

    /// The flow of echo requests and their replies. Requests in the other direction are another flow.
    #[must_use]
    pub fn of_echo(requester: IpAddr, responder: IpAddr, identifier: u16) -> Self {
        let source = SocketAddr::new(requester, identifier);
        Self {
            protocol: Protocol::Icmp,
            ends: Endpoints { source, destination: SocketAddr::new(responder, 0) },
        }
    }

    /// The addresses of its ends.
    pub(super) fn addresses(&self) -> [IpAddr; 2] {
        [self.ends.source.ip(), self.ends.destination.ip()]
    }
}
