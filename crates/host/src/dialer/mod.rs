//! The Dialer decides on every flow out of the container and connects it.
//!
//! The engine asks two questions in turn. [`Dialer::authorize`]: is this flow allowed? [`Dialer::dial_tcp`],
//! [`Dialer::bind_udp`] or [`Dialer::bind_echo`]: connect it. So a firewall need not know how to dial, and a proxy need
//! not know the policy. [`Dialer::accept`] decides on clients of published ports. For established traffic the engine
//! asks nothing.
//!
//! Dialers are built in layers. Each one has an [inner](Dialer::inner) Dialer, which answers the methods it does not
//! override.
//!
//! Some destinations no Dialer can allow. The engine refuses them without asking: the host's loopback and own
//! addresses, and the gateway's ports, unless the embedder has opened them
//! ([`open_host`](crate::NetworkBuilder::open_host)). The engine itself answers pings of the gateway and of the DNS
//! address, so they need no decision.

mod datagrams;
mod direct;
mod echo_socket;
mod error;
pub(crate) mod error_queue;
mod filter;
mod flow;
mod inbound;
mod ip_options;
mod pointers;
pub(crate) mod receive;
mod stream;
mod udp_socket;

use async_trait::async_trait;
pub use nsnet_stack::flow::Protocol;
pub use nsnet_stack::icmp::{IcmpError, Unreachable};
pub use nsnet_stack::udp::{Datagrams, Envelope};

pub use datagrams::{DatagramSocket, Received};
pub(crate) use direct::DATAGRAM_BUFFER;
pub use direct::DirectDialer;
pub use error::DialError;
pub use filter::{DenyDialer, FilterDialer};
pub use flow::{Flow, Service, Source};
pub use inbound::Inbound;
pub use stream::{ByteStream, Stream};
pub use udp_socket::UdpDatagrams;

/// Decides on flows and connects them. One Dialer serves all containers of a network.
///
/// Only [`inner`](Self::inner) is required. Every other method asks the inner Dialer by default. A wrapper overrides
/// the methods it changes and keeps the rest, the inner policy included:
///
/// | you write | override | inner |
/// |---|---|---|
/// | a firewall | `authorize`, perhaps `accept` | [`DirectDialer`] |
/// | a proxy, a logger, a limiter | `dial_tcp`, perhaps `bind_udp` | the Dialer that it wraps |
/// | a network of your own | `authorize`, and the methods it offers | [`DenyDialer`]: the rest is denied |
///
/// # When each method is called
/// | method | called |
/// |---|---|
/// | [`authorize`](Self::authorize) | once for every new flow out of the container, before anything else |
/// | [`dial_tcp`](Self::dial_tcp) | once for every TCP connection that is authorized |
/// | [`bind_udp`](Self::bind_udp) | for the first authorized flow of a container port, and again once the port was idle |
/// | [`bind_echo`](Self::bind_echo) | the same for the identifiers of pings |
/// | [`accept`](Self::accept) | once for every client of a published port |
///
/// The engine carries two kinds of flow itself: those to its resolver ([`Service::Resolver`]) and those to other
/// containers ([`Service::Container`]). They are authorized like any other, but [`dial_tcp`](Self::dial_tcp) and the
/// others are not called for them.
///
/// # The runtime
/// The methods run on an engine thread of the network, within its tokio 1 runtime. [`tokio::spawn`], tokio's timers and
/// tokio's sockets work there, whether or not the embedder uses a runtime. The sockets that the engine takes, in
/// [`Stream`] and [`UdpDatagrams`], are tokio's. A socket of the standard library must be set non-blocking before it is
/// converted, or it blocks the engine:
///
/// ```
/// # async fn convert() -> std::io::Result<nsnet_host::Stream> {
/// # let socket = std::net::TcpStream::connect("127.0.0.1:9")?;
/// socket.set_nonblocking(true)?;
/// let stream = tokio::net::TcpStream::from_std(socket)?;
/// # Ok(stream.into())
/// # }
/// ```
///
/// A task that a method spawns does not end with its flow. It ends with the engine thread at the latest, which several
/// networks may share.
///
/// # Back-pressure
/// A method that waits (`.await`) holds up its own flow and no other. Many calls may be under way at once. The limits
/// on connections and mappings bound their number. A method that blocks the thread stalls every container of the
/// network, and the other networks that share the thread.
///
/// Meanwhile the engine holds the container's SYN. It also holds datagrams, up to 64 for a destination and 1 MiB for a
/// container. Once the flow is connected, it answers the SYN and sends the datagrams.
///
/// # Cancel safety
/// The engine drops a future when the container gives up (RST), when the container or the network ends, or after the
/// [`dial_timeout`](crate::NetworkBuilder::dial_timeout). The timeout covers `authorize` and the method that follows it
/// together. Everything that the future has opened must close on drop.
///
/// # Errors
/// The variant of the [`DialError`] decides what the container sees. `?` on an [`io::Error`](std::io::Error) chooses
/// the variant by the [table](DialError#from-ioerror) there.
///
/// # Panics
/// A panic ends the flow that the method was asked about, and no other.
///
/// # Examples
/// A firewall overrides `authorize`. The [`DirectDialer`] does the rest, ping included:
///
/// ```
/// use nsnet_host::{DialError, Dialer, DirectDialer, Flow, Network, async_trait};
///
/// struct OnlyHttps(DirectDialer);
///
/// #[async_trait]
/// impl Dialer for OnlyHttps {
///     fn inner(&self) -> &dyn Dialer {
///         &self.0
///     }
///
///     async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
///         if flow.is_dns() || flow.destination.port() == 443 {
///             self.0.authorize(flow).await
///         } else {
///             Err(DialError::Prohibited)
///         }
///     }
/// }
///
/// let network = Network::builder().dialer(OnlyHttps(DirectDialer::new()));
/// ```
///
/// A wrapper for any Dialer overrides `dial_tcp` to tell the server the container's address first, by the PROXY
/// protocol. The inner policy and ping stay as they were:
///
/// ```
/// use nsnet_host::{DenyDialer, DialError, Dialer, Flow, Stream, async_trait};
/// use tokio::io::AsyncWriteExt;
///
/// struct TellSource<D>(D);
///
/// #[async_trait]
/// impl<D: Dialer> Dialer for TellSource<D> {
///     fn inner(&self) -> &dyn Dialer {
///         &self.0
///     }
///
///     async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
///         let mut stream = self.0.dial_tcp(flow).await?;
///         let family = if flow.source.is_ipv4() { "TCP4" } else { "TCP6" };
///         let (from, to) = (flow.source, flow.destination);
///         let line = format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
///         stream.write_all(line.as_bytes()).await?;
///         Ok(stream)
///     }
/// }
/// # let flow = Flow::new(nsnet_host::Protocol::Tcp, "10.0.2.100:1".parse().unwrap(), "10.0.0.1:1".parse().unwrap());
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # assert!(runtime.block_on(TellSource(DenyDialer).authorize(&flow)).is_err());
/// ```
///
/// A Dialer from scratch, in front of [`DenyDialer`]. It answers port 7 itself, in memory. UDP, ping and clients of
/// published ports are denied:
///
/// ```
/// use nsnet_host::{DenyDialer, DialError, Dialer, Flow, Protocol, Stream, async_trait};
///
/// struct Echo;
///
/// #[async_trait]
/// impl Dialer for Echo {
///     fn inner(&self) -> &dyn Dialer {
///         &DenyDialer
///     }
///
///     async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
///         let is_echo = flow.protocol == Protocol::Tcp && flow.destination.port() == 7;
///         if is_echo { Ok(()) } else { Err(DialError::Refused) }
///     }
///
///     async fn dial_tcp(&self, _flow: &Flow) -> Result<Stream, DialError> {
///         let (near, far) = tokio::io::duplex(64 * 1024);
///         tokio::spawn(async move {
///             let (mut reader, mut writer) = tokio::io::split(far);
///             tokio::io::copy(&mut reader, &mut writer).await
///         });
///         Ok(near.into())
///     }
/// }
/// ```
///
/// References, [`Box`]es and [`Arc`](std::sync::Arc)s of Dialers are Dialers too. So the embedder can share one, or
/// choose one at run time:
///
/// ```
/// use std::sync::Arc;
/// use nsnet_host::{DenyDialer, Dialer, DirectDialer, Network};
///
/// let is_offline = true;
/// let dialer: Arc<dyn Dialer> = if is_offline { Arc::new(DenyDialer) } else { Arc::new(DirectDialer::new()) };
/// let network = Network::builder().dialer(Arc::clone(&dialer));
/// ```
#[async_trait]
pub trait Dialer: Send + Sync {
    /// The Dialer that answers every method you do not override. It is called for each of them, so return a field or a
    /// constant.
    ///
    /// Use `&DenyDialer` for a Dialer that wraps none. Do not return `self`: a method would then call itself without
    /// end.
    fn inner(&self) -> &dyn Dialer;

    /// Decides on a flow before it is connected.
    ///
    /// Called once for every TCP connection, for every destination that a UDP port of the container writes to, and for
    /// every destination that it pings. The network's own resolver and other containers count as destinations.
    /// [`Flow::service`] tells them apart.
    ///
    /// An override that allows a flow should ask the inner Dialer as well, unless it is meant to replace the inner
    /// policy.
    ///
    /// # Errors
    /// See [`DialError`] for what the container sees.
    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        self.inner().authorize(flow).await
    }

    /// Decides on a client of a published port ([`Publish`](crate::Publish)): a TCP connection, a connection to a
    /// published UNIX socket, or a UDP client.
    ///
    /// # Errors
    /// Any error resets the client's connection, or loses its datagrams.
    async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
        self.inner().accept(inbound).await
    }

    /// Opens the stream of an authorized TCP flow, towards [`Flow::target`].
    ///
    /// The container's connection is established only when this returns, so the container sees whether the dial
    /// succeeded.
    ///
    /// # Errors
    /// See [`DialError`] for what the container sees. [`Refused`](DialError::Refused) looks like a closed port.
    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        self.inner().dial_tcp(flow).await
    }

    /// Opens the socket for all datagrams of one container address and port, to any destination (endpoint-independent
    /// mapping, RFC 4787, section 4.1).
    ///
    /// # Errors
    /// The container gets the error for the datagrams that wait. The next datagram of that port leads to a new call.
    async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.inner().bind_udp(source).await
    }

    /// Opens the socket for all echo requests (ping) of one container address and identifier, to any destination.
    ///
    /// A datagram of this socket is the part of the ICMP message behind the identifier. It consists of the sequence
    /// number, two bytes in network order, and the data. The port of a peer is 0. Received datagrams go into the
    /// container as replies, if they come from a peer that was sent a request.
    ///
    /// # Errors
    /// As for [`bind_udp`](Self::bind_udp).
    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.inner().bind_echo(source).await
    }
}
