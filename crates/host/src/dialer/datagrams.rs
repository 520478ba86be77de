//! The upstream end of a mapping of UDP or echo.

use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use super::IcmpError;

/// Carries the datagrams of one container address and port, or its echo requests of one identifier, to and from any
/// number of peers.
///
/// The engine calls [`try_send`](Self::try_send) as datagrams arrive from the container, and
/// [`try_receive`](Self::try_receive) until it would block or others must have their turn, and then waits for
/// [`readable`](Self::readable), which resolves at once as long as there is something left.
#[async_trait]
pub trait DatagramSocket: Send + Sync {
    /// Waits until [`try_receive`](Self::try_receive) has something.
    ///
    /// # Cancel safety
    /// Must be cancel-safe: it is dropped and called again at any time.
    ///
    /// # Errors
    /// An error ends the mapping; the container's next datagram opens a new one.
    async fn readable(&self) -> io::Result<()>;

    /// Takes the next datagrams or error without waiting. `buffer` holds the largest datagram, and 64 KiB.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing; any other error ends the mapping.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Sends datagrams to one peer without waiting: at most 128, and 64 KiB.
    ///
    /// # Errors
    /// An error loses the datagrams, as any network may. An unreachable peer (`ENETUNREACH` and the like) is
    /// reported to the container. So is one that the way out does not take at its length (`EMSGSIZE`), by what
    /// [`try_receive`](Self::try_receive) returns next: [`Received::Undelivered`] with the MTU.
    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()>;
}

/// Datagrams of one size, back to back in one buffer; the last may be shorter. Usually there is one.
///
/// What the container sent in one go, with `UDP_SEGMENT` (udp(7)) or just in a row, so that it can leave in one go.
///
/// # Examples
/// ```
/// use nsnet_host::Datagrams;
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
    pub fn one(datagram: &'a [u8]) -> Self {
        Self { bytes: datagram, size: datagram.len() }
    }

    /// Datagrams of `size` bytes each, and perhaps a shorter one behind them. With a size of 0, a single one.
    #[must_use]
    pub fn of_size(size: usize, bytes: &'a [u8]) -> Self {
        let size = if size == 0 { bytes.len() } else { size.min(bytes.len()) };
        Self { bytes, size }
    }

    /// Each datagram in turn.
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        (0..self.count()).map(move |index| {
            let start = index * self.size;
            &self.bytes[start..self.bytes.len().min(start + self.size)]
        })
    }

    /// How many there are, at least one.
    #[must_use]
    pub fn count(self) -> usize {
        if self.size == 0 { 1 } else { self.bytes.len().div_ceil(self.size) }
    }

    /// Bytes of every datagram but the last.
    #[must_use]
    pub fn size(self) -> usize {
        self.size
    }

    /// The bytes of all.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }
}

/// What a [`DatagramSocket`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// Datagrams of one peer, now in the buffer, as [`Datagrams`] describes them. Usually there is one.
    Datagrams {
        /// Number of bytes of all; 0 is one empty datagram.
        length: usize,
        /// Bytes of every datagram but the last; the length, if there is one only.
        size: usize,
        /// Who sent them.
        source: SocketAddr,
        /// What was left of their hop limit when they came (TTL, RFC 791), where it matters: of echo replies the
        /// container gets to see it, less one; of UDP datagrams it does not.
        hop_limit: Option<u8>,
    },
    /// An earlier datagram to `destination` did not arrive.
    Undelivered {
        /// Where it had been sent to.
        destination: SocketAddr,
        /// Who says so: the destination or a router on the way; `None` if that is not known.
        sender: Option<IpAddr>,
        /// Routers that the message about it could still have passed, as far as that is known.
        hop_limit: Option<u8>,
        /// Why it did not arrive.
        error: IcmpError,
        /// Number of bytes of the datagram's start that are now in the buffer, as far as they are known.
        length: usize,
    },
}

/// Where datagrams go, and what their IP headers say on the way.
///
/// # Examples
/// ```
/// use nsnet_host::Envelope;
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
}
