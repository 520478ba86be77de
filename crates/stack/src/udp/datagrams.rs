//! Datagrams that travel together, and the fields of their IP headers.

use std::net::SocketAddr;

use bytes::Bytes;

/// Datagrams of one size, back to back in one buffer; the last may be shorter. Usually there is only one.
///
/// The container sent them in one call, with `UDP_SEGMENT` (udp(7)), or in close succession. They can leave in one
/// call.
///
/// The bytes are borrowed: the engine's thread reuses the buffer as soon as the call returns. Use
/// [`to_bytes`](Self::to_bytes) to keep them.
///
/// # Examples
/// ```
/// use nsnet_stack::udp::Datagrams;
///
/// let datagrams = Datagrams::of_size(4, b"all four and");
/// assert_eq!(datagrams.iter().collect::<Vec<_>>(), [b"all ", b"four", b" and"]);
/// assert_eq!(Datagrams::one(b"").iter().collect::<Vec<_>>(), [b""]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl<'a> Datagrams<'a> {
    /// A single datagram, which may be empty.
    #[must_use]
    #[inline]
    pub fn one(datagram: &'a [u8]) -> Self {
        Self { bytes: datagram, size: datagram.len() }
    }

    /// Datagrams of `size` bytes each; the last is shorter if the length of `bytes` is not a multiple of `size`. A size
    /// of 0 means a single datagram.
    #[must_use]
    #[inline]
    pub fn of_size(size: usize, bytes: &'a [u8]) -> Self {
        let size = if size == 0 { bytes.len() } else { size.min(bytes.len()) };
        Self { bytes, size }
    }

    /// Each datagram in turn.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        (0..self.count()).map(move |index| {
            let start = index * self.size;
            &self.bytes[start..self.bytes.len().min(start + self.size)]
        })
    }

    /// How many datagrams there are: at least one.
    #[must_use]
    #[inline]
    pub fn count(self) -> usize {
        if self.size == 0 { 1 } else { self.bytes.len().div_ceil(self.size) }
    }

    /// Length in bytes of every datagram but the last.
    #[must_use]
    #[inline]
    pub fn size(self) -> usize {
        self.size
    }

    /// The bytes of all datagrams.
    #[must_use]
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// A copy of the bytes of all datagrams, to keep.
    ///
    /// # Examples
    /// ```
    /// use nsnet_stack::udp::Datagrams;
    ///
    /// let kept = Datagrams::of_size(4, b"all four").to_bytes();
    /// assert_eq!(Datagrams::of_size(4, &kept).iter().collect::<Vec<_>>(), [b"all ", b"four"]);
    /// ```
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.bytes)
    }
}

/// Where datagrams go, and the fields of their IP headers that the sender chose.
///
/// # Examples
/// ```
/// use nsnet_stack::udp::Envelope;
///
/// let mut envelope = Envelope::new("203.0.113.7:33434".parse().unwrap());
/// assert_eq!((envelope.hop_limit, envelope.dont_fragment), (64, false));
/// envelope.hop_limit = 1; // the first router answers with an ICMP error
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Envelope {
    /// The address and port of the peer.
    pub destination: SocketAddr,
    /// TTL (RFC 791) or hop limit (RFC 8200): how many hops the datagrams may take, at least 1.
    pub hop_limit: u8,
    /// Whether routers must not fragment them (DF, RFC 791). IPv4 only: routers never fragment IPv6 packets.
    pub dont_fragment: bool,
}

impl Envelope {
    /// What most programs send: a hop limit of 64, and fragmentation allowed.
    #[must_use]
    pub fn new(destination: SocketAddr) -> Self {
        Self { destination, hop_limit: 64, dont_fragment: false }
    }

    /// The same fields for another destination.
    #[must_use]
    pub fn to(self, destination: SocketAddr) -> Self {
        Self { destination, ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_parts_are_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 0..400usize) {
            let datagrams = Datagrams::of_size(size, &bytes);
            let parts: Vec<&[u8]> = datagrams.iter().collect();
            prop_assert_eq!(parts.concat(), &bytes[..]);
            prop_assert_eq!(parts.len(), datagrams.count());
            let (last, others) = parts.split_last().unwrap();
            prop_assert!(others.iter().all(|part| part.len() == datagrams.size()));
            prop_assert!(last.len() <= datagrams.size());
        }
    }
}
