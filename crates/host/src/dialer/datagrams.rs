//! The upstream end of a mapping of UDP or echo.

use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;

use nsnet_stack::icmp::IcmpError;
use nsnet_stack::udp::{Datagrams, Envelope};

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
