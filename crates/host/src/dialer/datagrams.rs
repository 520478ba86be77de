//! The upstream end of a mapping of UDP or echo.

use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use nsnet_stack::icmp::IcmpError;
use nsnet_stack::udp::{Datagrams, Envelope};

/// Carries the datagrams of one container address and port, or its echo requests of one identifier, to and from any
/// number of peers.
///
/// The engine calls [`try_send`](Self::try_send) as datagrams arrive from the container. It calls
/// [`try_receive`](Self::try_receive) until that would block, or until others must have their turn, and then waits for
/// [`readable`](Self::readable). The methods run where those of a [`Dialer`](crate::Dialer#the-runtime) run.
///
/// Datagrams are borrowed in both directions. They pass through a buffer that all flows of the thread share, so
/// carrying one allocates nothing. A socket that keeps datagrams copies them out, with [`Datagrams::to_bytes`].
///
/// # Back-pressure
/// There is none. A datagram that cannot be sent at once is lost, as on any network.
///
/// # Examples
/// A socket in memory whose peers send everything back. It keeps a hundred datagrams at most:
///
/// ```
/// use std::collections::VecDeque;
/// use std::io;
/// use std::net::SocketAddr;
/// use std::sync::Mutex;
///
/// use nsnet_host::{Bytes, DatagramSocket, Datagrams, Envelope, Received, async_trait};
/// use tokio::sync::Notify;
///
/// #[derive(Default)]
/// struct Echo {
///     kept: Mutex<VecDeque<(Bytes, SocketAddr)>>,
///     is_readable: Notify,
/// }
///
/// #[async_trait]
/// impl DatagramSocket for Echo {
///     async fn readable(&self) -> io::Result<()> {
///         while self.kept.lock().unwrap().is_empty() {
///             self.is_readable.notified().await;
///         }
///         Ok(())
///     }
///
///     fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
///         let next = self.kept.lock().unwrap().pop_front();
///         let (datagram, peer) = next.ok_or(io::ErrorKind::WouldBlock)?;
///         buffer[..datagram.len()].copy_from_slice(&datagram);
///         Ok(Received::datagram(datagram.len(), peer))
///     }
///
///     fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()> {
///         let mut kept = self.kept.lock().unwrap();
///         let copy = datagrams.to_bytes();
///         let each = Datagrams::of_size(datagrams.size(), &copy).iter();
///         let room = 100 - kept.len();
///         kept.extend(each.take(room).map(|datagram| (copy.slice_ref(datagram), envelope.destination)));
///         self.is_readable.notify_one();
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (socket, peer) = (Echo::default(), "203.0.113.7:7".parse()?);
/// socket.try_send(Datagrams::of_size(5, b"helloyou"), &Envelope::new(peer))?;
/// let mut buffer = [0; 1500];
/// assert_eq!(socket.try_receive(&mut buffer)?, Received::datagram(5, peer));
/// assert_eq!(socket.try_receive(&mut buffer)?, Received::datagram(3, peer));
/// assert_eq!(&buffer[..3], b"you");
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait DatagramSocket: Send + Sync {
    /// Waits until [`try_receive`](Self::try_receive) would return something. Resolves at once if it would now.
    ///
    /// # Cancel safety
    /// Must be cancel-safe: the engine drops the future and calls again at any time.
    ///
    /// # Errors
    /// An error ends the mapping; the container's next datagram opens a new one.
    async fn readable(&self) -> io::Result<()>;

    /// Takes the next datagrams, or a report that one did not arrive, without waiting. `buffer` has 64 KiB, which is
    /// room for the largest datagram.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing. Any other error ends the mapping.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Sends datagrams to one peer without waiting. There are at most 128, with 64 KiB in all.
    ///
    /// # Errors
    /// An error loses the datagrams. For an unreachable peer (`ENETUNREACH` and the like), the container gets an ICMP
    /// error. For a datagram too long for the path (`EMSGSIZE`), the container learns the MTU from the next
    /// [`try_receive`](Self::try_receive), which returns [`Received::Undelivered`].
    ///
    /// # Panics
    /// A panic in any method of the socket ends its mapping, and nothing else.
    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()>;
}

/// Result of [`DatagramSocket::try_receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// Datagrams of one peer, now in the buffer, in the form that [`Datagrams`] describes. Usually there is one.
    #[non_exhaustive]
    Datagrams {
        /// Number of bytes of all datagrams together. 0 is one empty datagram.
        length: usize,
        /// Bytes of every datagram but the last. Equals the length if there is only one.
        size: usize,
        /// The sender's address.
        source: SocketAddr,
        /// The hop limit they arrived with (TTL, RFC 791), if known. For echo replies, the container sees this value
        /// less one. For UDP datagrams it is not used.
        hop_limit: Option<u8>,
    },
    /// An earlier datagram to `destination` did not arrive.
    #[non_exhaustive]
    Undelivered {
        /// The address the datagram was sent to.
        destination: SocketAddr,
        /// The destination or router that reports the loss. `None` if that is not known.
        sender: Option<IpAddr>,
        /// The hop limit that the report arrived with, if known.
        hop_limit: Option<u8>,
        /// Why it did not arrive.
        error: IcmpError,
        /// Number of bytes, from the start of the datagram, that the report quotes and that are now in the buffer.
        length: usize,
    },
}

impl Received {
    /// One datagram of `source`. Its `length` bytes are now in the buffer.
    #[must_use]
    pub fn datagram(length: usize, source: SocketAddr) -> Self {
        Self::datagrams(length, length, source)
    }

    /// Datagrams of `size` bytes each, perhaps with a shorter one at the end. Their `length` bytes are now in the
    /// buffer.
    #[must_use]
    pub fn datagrams(length: usize, size: usize, source: SocketAddr) -> Self {
        Self::Datagrams { length, size, source, hop_limit: None }
    }

    /// An earlier datagram to `destination` did not arrive, as `sender` reports. Its first `length` bytes are now in
    /// the buffer.
    #[must_use]
    pub fn undelivered(
        destination: SocketAddr,
        sender: Option<IpAddr>,
        error: IcmpError,
        length: usize,
    ) -> Self {
        Self::Undelivered { destination, sender, hop_limit: None, error, length }
    }

    /// Adds the hop limit it arrived with.
    #[must_use]
    pub fn with_hop_limit(mut self, left: u8) -> Self {
        let (Self::Datagrams { hop_limit, .. } | Self::Undelivered { hop_limit, .. }) = &mut self;
        *hop_limit = Some(left);
        self
    }
}
