//! Datagrams that travel together, and what their IP headers say.

use std::net::SocketAddr;

use bytes::Bytes;

/// Datagrams of one size, back to back in one buffer; the last may be shorter. Usually there is one.
///
/// They are what the container sent in one go, with `UDP_SEGMENT` (udp(7)) or just in a row, and can leave in one go.
///
/// The bytes are borrowed: the buffer belongs to the engine's thread and is used for the next datagrams as soon as the
/// call returns. Use [`to_bytes`](Self::to_bytes) to keep them.
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

    /// Datagrams of `size` bytes each, and perhaps a shorter one behind them. With a size of 0, a single one.
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

    /// How many there are, at least one.
    #[must_use]
    #[inline]
    pub fn count(self) -> usize {
        if self.size == 0 { 1 } else { self.bytes.len().div_ceil(self.size) }
    }

    /// Bytes of every datagram but the last.
    #[must_use]
    #[inline]
    pub fn size(self) -> usize {
        self.size
    }

    /// The bytes of all.
    #[must_use]
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// A copy of the bytes of all, to keep.
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

/// Where datagrams go, and what their IP headers say on the way.
///
/// # Examples
/// ```
/// use nsnet_stack::udp::Envelope;
///
/// let mut envelope = Envelope::new("203.0.113.7:33434".parse().unwrap());
/// assert_eq!((envelope.hop_limit, envelope.dont_fragment), (64, false));
/// envelope.hop_limit = 1; // as far as the first router, which will say so
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Envelope {
    /// The peer.
    pub destination: SocketAddr,
    /// Routers they may pass (TTL, RFC 791; hop limit, RFC 8200), at least 1.
    pub hop_limit: u8,
    /// Whether a router that has no room for them shall say so rather than cut them (IPv4 only: no router cuts an
    /// IPv6 packet).
    pub dont_fragment: bool,
}

impl Envelope {
    /// For datagrams as most programs send them: 64 hops, to be cut where need be.
    #[must_use]
    pub fn new(destination: SocketAddr) -> Self {
        Self { destination, hop_limit: 64, dont_fragment: false }
    }

    /// The same for another destination.
    #[must_use]
    pub fn to(self, destination: SocketAddr) -> Self {
        Self { destination, ..self }
    }
}
