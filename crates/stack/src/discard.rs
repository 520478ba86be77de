//! Why a packet goes no further.

/// Why a packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Inconsistent lengths, a wrong checksum, an impossible header.
    Malformed,
    /// A fragment, which is for [`crate::fragments`].
    Fragment,
    /// Behind extension headers, which [`extensions::strip`](crate::ip::extensions::strip) takes out.
    Extended,
    /// Multicast, broadcast, loopback or unspecified addresses.
    NotUnicast,
    /// A source address that is not the container's.
    ForeignSource,
    /// A transport or extension header that is not carried.
    Protocol,
    /// An ICMP error, which nobody here waits for.
    IcmpError,
    /// It has come as far as its hop limit allows.
    HopLimit,
    /// Too many packets were on the way from one queue of the device to another.
    Overrun,
    /// An answer from another container to nothing that was sent.
    Unsolicited,
    /// The link to another container is full.
    Congested,
}
