//! The reasons for which a packet goes no further.

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Inconsistent lengths, a wrong checksum, an impossible header.
    Malformed,
    /// A fragment, which [`crate::fragments`] handles.
    Fragment,
    /// The packet has IPv6 extension headers, which [`extensions::strip`](crate::ip::extensions::strip) removes.
    Extended,
    /// A multicast, broadcast, loopback or unspecified address.
    NotUnicast,
    /// A source address that is not the container's.
    ForeignSource,
    /// A transport or extension header that is not carried.
    Protocol,
    /// An ICMP error of the container. It may have been acted upon, but it goes no further.
    IcmpError,
    /// The hop limit is used up.
    HopLimit,
    /// Too many packets were on their way from one queue of the device to another.
    Overrun,
    /// An answer from another container to something that was never sent.
    Unsolicited,
    /// The link to another container is full.
    Congested,
}
