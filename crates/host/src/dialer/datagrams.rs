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
/// [`readable`](Self::readable). The methods run where those of a [`Dialer`](crate::Dialer#the-runtime) do.
///
/// Datagrams are borrowed in both directions. They pass through a buffer that all flows of the thread share, so carrying
/// one allocates nothing. A socket that keeps datagrams copies them out, with [`Datagrams::to_bytes`].
///
/// # Back-pressure
/// There is none: a datagram that cannot be sent at once is lost, as on any network.
///
/// # Examples
/// A socket in memory whose peers send everything back, a hundred datagrams at most:
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
    /// Waits until [`try_receive`](Self::try_receive) has something, and resolves at once while it has.
    ///
    /// # Cancel safety
    /// Must be cancel-safe: the engine drops the future and calls again at any time.
    ///
    /// # Errors
    /// An error ends the mapping; the container's next datagram opens a new one.
    async fn readable(&self) -> io::Result<()>;

    /// Takes the next datagrams, or news of one that did not arrive, without waiting. `buffer` has 64 KiB, and so room for
    /// the largest datagram.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing. Any other error ends the mapping.
    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Sends datagrams to one peer without waiting: at most 128, and 64 KiB.
    ///
    /// # Errors
    /// An error loses the datagrams. The container is told of an unreachable peer (`ENETUNREACH` and the like). It is also
    /// told that a datagram is too long for the way out (`EMSGSIZE`), but by what [`try_receive`](Self::try_receive)
    /// returns next: [`Received::Undelivered`] with the MTU.
    ///
    /// # Panics
    /// A panic in any method of the socket ends its mapping, and nothing else.
    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()>;
}

/// What a [`DatagramSocket`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// Datagrams of one peer, now in the buffer, as [`Datagrams`] describes them. Usually there is one.
    #[non_exhaustive]
    Datagrams {
        /// Number of bytes of all; 0 is one empty datagram.
        length: usize,
        /// Bytes of every datagram but the last; the length, if there is one only.
        size: usize,
        /// Who sent them.
        source: SocketAddr,
        /// What was left of their hop limit when they came (TTL, RFC 791), if known. The container sees that of echo
        /// replies, less one; that of UDP datagrams is not used.
        hop_limit: Option<u8>,
    },
    /// An earlier datagram to `destination` did not arrive.
    #[non_exhaustive]
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

impl Received {
    /// One datagram of `source`, whose `length` bytes are now in the buffer.
    #[must_use]
    pub fn datagram(length: usize, source: SocketAddr) -> Self {
        Self::datagrams(length, length, source)
    }

    /// Datagrams of `size` bytes each, and perhaps a shorter one behind them: `length` bytes in all, now in the buffer.
    #[must_use]
    pub fn datagrams(length: usize, size: usize, source: SocketAddr) -> Self {
        Self::Datagrams { length, size, source, hop_limit: None }
    }

    /// An earlier datagram to `destination` did not arrive, as `sender` says. The first `length` bytes of it are now in the
    /// buffer.
    #[must_use]
    pub fn undelivered(
        destination: SocketAddr,
        sender: Option<IpAddr>,
        error: IcmpError,
        length: usize,
    ) -> Self {
        Self::Undelivered { destination, sender, hop_limit: None, error, length }
    }

    /// With what was left of the hop limit when it came.
    #[must_use]
    pub fn with_hop_limit(mut self, left: u8) -> Self {
        let (Self::Datagrams { hop_limit, .. } | Self::Undelivered { hop_limit, .. }) = &mut self;
        *hop_limit = Some(left);
        self
    }
}
