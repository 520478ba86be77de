//! What ICMP errors say.

/// What an ICMP destination-unreachable message says (RFC 792; RFC 4443, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens on the port.
    Port,
    /// The host does not speak the transport protocol.
    Protocol,
    /// Forbidden by administration.
    Prohibited,
}

/// What a router or the destination says of a packet that did not arrive (RFC 792; RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IcmpError {
    /// Destination unreachable.
    Unreachable(Unreachable),
    /// The hop limit was used up on the way.
    TimeExceeded,
    /// Larger than the next link takes, and not to be fragmented.
    PacketTooBig {
        /// MTU of that link in bytes.
        mtu: u32,
    },
}

impl From<Unreachable> for IcmpError {
    fn from(reason: Unreachable) -> Self {
        Self::Unreachable(reason)
    }
}

impl IcmpError {
    /// Whether the destination itself says so, rather than a router on the way.
    #[must_use]
    pub fn is_of_destination(self) -> bool {
        self == Self::Unreachable(Unreachable::Port)
    }
}
