//! The meaning of ICMP errors, independent of the IP version.

/// The reason that a destination-unreachable message gives (RFC 792; RFC 4443, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// No socket has the port.
    Port,
    /// The host does not speak the transport protocol.
    Protocol,
    /// Communication is administratively prohibited.
    Prohibited,
}

/// An error that a router or the destination reports about a packet (RFC 792; RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IcmpError {
    /// Destination unreachable.
    Unreachable(Unreachable),
    /// The hop limit was used up before the packet arrived.
    TimeExceeded,
    /// The packet is larger than the next link takes, and must not be fragmented.
    PacketTooBig {
        /// MTU of that link in bytes; 0 if the router did not say (RFC 1191, 5).
        mtu: u32,
    },
}

impl From<Unreachable> for IcmpError {
    fn from(reason: Unreachable) -> Self {
        Self::Unreachable(reason)
    }
}

impl IcmpError {
    /// Whether the destination itself reports this, rather than a router on the way.
    #[must_use]
    pub fn is_of_destination(self) -> bool {
        self == Self::Unreachable(Unreachable::Port)
    }
}
