//! Published ports: sockets of the host that lead into a container.
//!
//! # Opening
//! [`Publish`] describes the ports. The call opens the sockets on the caller's thread, so an address in use is an error
//! of `publish`, not a line in a log. The engine takes the sockets over. It looks up the container anew for every
//! connection and every client ([`Members`]), so a port outlives the containers it leads to. Without a container, TCP
//! is reset and datagrams are lost.
//!
//! # TCP
//! The engine accepts a client and asks the Dialer. Then it opens the connection inside
//! ([`tcp::connect`](crate::protocols::tcp)). Bytes of the client stay in its socket meanwhile. If the container
//! refuses, the engine tries once more by the other address family, for a server that listens on one only. If that
//! fails too, it resets the client. An open connection is like any other and no longer depends on the port.
//!
//! # UDP
//! The container's gateway remembers every client of a port ([`clients`]). Datagrams from the container's port to the
//! client leave through the published socket, from the very address that the client has written to. The gateway forgets
//! a client after the idle timeout of mappings, or after 30 s if the container has never answered. If the container
//! reports that nothing listens (ICMP), the gateway sends the client's first datagrams again by the other address
//! family.
//!
//! # The source address inside
//! The container sees the client's own address and port ([`ways`](clients::ways)). Some clients appear as the gateway
//! instead:
//!
//! - clients at the host's own addresses, which are hidden from the container (it would take loopback for its own);
//! - clients whose address the container's network uses, or whose address family it lacks.
//!
//! # Limits
//! Connections count against [`max_tcp_flows`](crate::NetworkBuilder::max_tcp_flows), and one beyond the limit is
//! reset. A port has at most [`max_published_udp_clients`](crate::NetworkBuilder::max_published_udp_clients) UDP
//! clients. A new client replaces the oldest that has not come back after an answer. Without file descriptors nothing
//! is accepted for a while, and clients wait in the kernel's queue.
//!
//! An ICMP error of the container, such as "port unreachable", does not reach a UDP client: an unprivileged process
//! cannot send one. With several queues, published ports use the first. The kernel learns from our SYN which queue the
//! container's answers belong to.

mod error;
mod listen;
mod parse;
mod socket_file;
mod tcp;
mod udp;

use std::fmt;
use std::future::{self, Future};
use std::net::SocketAddr;
#[cfg(feature = "serde")]
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub use error::PublishError;
pub use listen::Listen;

use crate::attach::JOIN;
use crate::descriptors::NetworkShare;
use crate::dns::HostName;
use crate::gateway::members::Members;
use crate::protocols::clients;
use crate::statistics::Counters;
use crate::task::block_on;
use crate::task::clock::Clock;
use crate::task::lifetime;
use crate::threads;
use crate::threads::commons::Commons;
use listen::{BoundSocket, Opened};

/// Ports of the host to publish, and the container's ports they lead to.
///
/// Without an address, the host listens at **all its addresses**, as with Docker, Podman and slirp4netns: to publish is
/// to open to others. Use [`Listen::loopback`] for ports that only the host itself may reach.
/// [`Dialer::accept`](crate::Dialer::accept) decides on each client.
///
/// # Text form
/// [`Display`](fmt::Display) and [`FromStr`](std::str::FromStr) are inverses for everything that can be published. Only
/// a path that is not UTF-8 has no text form.
///
/// | text | what is published | to the container's |
/// |---|---|---|
/// | `8080:80`, `8080:80/tcp` | TCP port 8080 of all addresses | port 80 |
/// | `53:5353/udp` | UDP port 53 of all addresses | port 5353 |
/// | `0:80` | any TCP port that is free | port 80 |
/// | `8000-8009:80` | ten TCP ports | ports 80 to 89 |
/// | `127.0.0.1:8080:80` | TCP port 8080 of one IPv4 address | port 80 |
/// | `[::1]:8080:80`, `[fe80::1%2]:8080:80` | TCP port 8080 of one IPv6 address, the second on interface number 2 | port 80 |
/// | `/run/api.sock:80` | a UNIX socket | TCP port 80 |
/// | `unix:api.sock:80` | a UNIX socket of the working directory | TCP port 80 |
/// | `web=8080:80` | any of the above | ports, in the container named `web` |
///
/// The part behind the name is that of `docker run --publish` and Podman, except that a range is written once. They
/// publish for one container at a time and need no name. Here the name comes first, as in `kubectl port-forward POD
/// PORTS`. The `=` marks it as a name, since a name of digits and dots would look like an address.
///
/// # Examples
/// ```
/// use nsnet_host::{Listen, Publish};
///
/// let web = Publish::tcp(8080, 80);
/// assert_eq!(web, "8080:80".parse()?);
/// let dns = Publish::udp(Listen::loopback(5353), 53).container("resolver");
/// assert_eq!(dns.to_string(), "resolver=127.0.0.1:5353:53/udp");
/// let games = Publish::udp(27000..=27009, 27000);
/// assert_eq!(games, "27000-27009:27000/udp".parse()?);
/// let api = Publish::unix("/run/user/1000/api.sock", 80);
/// # Ok::<(), nsnet_host::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publish {
    front: Front,
    member: Option<String>,
    port: u16,
}

/// The listening end on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Front {
    Tcp(Listen),
    Udp(Listen),
    Unix(PathBuf),
}

impl Publish {
    /// Publishes `listen` for TCP connections, which lead to this port of the container. Each further port of a range
    /// leads to the next port.
    #[must_use]
    pub fn tcp(listen: impl Into<Listen>, container_port: u16) -> Self {
        Self::new(Front::Tcp(listen.into()), container_port)
    }

    /// Publishes `listen` for datagrams, which lead to this port of the container. Each further port of a range leads
    /// to the next port.
    #[must_use]
    pub fn udp(listen: impl Into<Listen>, container_port: u16) -> Self {
        Self::new(Front::Udp(listen.into()), container_port)
    }

    /// Publishes a UNIX socket (`SOCK_STREAM`), whose connections lead to this TCP port of the container. There they
    /// come from the gateway. The socket's file is created with the permissions that the umask leaves, and removed at
    /// the end. A UNIX socket knows no reset, so a client that is refused sees the end of the stream.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>, container_port: u16) -> Self {
        Self::new(Front::Unix(path.into()), container_port)
    }

    /// Sets the name of the container ([`Member::named`](crate::Member::named)). Default: the container that has been
    /// up for longest.
    #[must_use]
    pub fn container(mut self, name: impl Into<String>) -> Self {
        self.member = Some(name.into());
        self
    }

    /// The file of a UNIX socket.
    #[cfg(feature = "serde")]
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.front {
            Front::Unix(path) => Some(path),
            Front::Tcp(_) | Front::Udp(_) => None,
        }
    }

    fn new(front: Front, port: u16) -> Self {
        Self { front, member: None, port }
    }

    /// Opens all sockets, or none.
    pub(crate) fn open(self) -> Result<(Listening, Published), PublishError> {
        if let Some(name) = &self.member
            && let Err(problem) = HostName::parse(name)
        {
            return Err(PublishError::Container { name: name.clone(), problem: problem.to_string() });
        }
        let sockets = listen::open(&self.front, self.port)?;
        let addresses = sockets.iter().filter_map(|opened| opened.address).collect();
        let (close, closing) = oneshot::channel();
        let (alive, closed) = oneshot::channel();
        let listening = Listening { sockets, member: self.member, close: closing, _alive: alive };
        Ok((listening, Published { addresses, close, closed }))
    }
}

/// A published port, range or UNIX socket. Dropping it changes nothing: it stays published until [`close`](Self::close)
/// or the end of the network.
///
/// # Examples
/// ```no_run
/// use nsnet_host::{Listen, Network, Publish};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let debugger = network.publish(Publish::tcp(Listen::loopback(0), 5005))?;
/// println!("attach the debugger to {:?}", debugger.addresses());
/// debugger.close();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Published {
    addresses: Vec<SocketAddr>,
    close: oneshot::Sender<()>,
    /// Resolves when the sockets are closed. Nothing is ever sent.
    closed: oneshot::Receiver<()>,
}

impl Published {
    /// The listening addresses, with the ports that were chosen for 0. A port at all addresses of the host has one
    /// entry for each family. Empty for a UNIX socket.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops listening. When this returns, the addresses are free. Open TCP connections go on. Datagrams of UDP clients
    /// are no longer received.
    ///
    /// It blocks the calling thread until the engine has closed the sockets. It waits 5 s at the most, and that long
    /// only if a Dialer blocks the engine's thread. The sockets are then closed later. A Dialer may call this: on an
    /// engine thread it does not block, and the addresses become free soon after. In async code, use
    /// [`close_async`](Self::close_async).
    pub fn close(self) {
        let closed = self.close_async();
        if !threads::is_engine_thread() {
            block_on(closed, JOIN);
        }
    }

    /// Like [`close`](Self::close), without blocking. The sockets begin to close with the call, not with the first
    /// poll.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the sockets to be closed in the background. It works on any runtime.
    pub fn close_async(self) -> impl Future<Output = ()> + Send + use<> {
        // Fails only if the network has ended. The sockets are closed then.
        let _ = self.close.send(());
        let closed = self.closed;
        async move {
            let _ = closed.await;
        }
    }
}

/// Sockets on their way to the engine.
pub(crate) struct Listening {
    sockets: Vec<Opened>,
    member: Option<String>,
    close: oneshot::Receiver<()>,
    /// Dropped once the sockets are closed.
    _alive: oneshot::Sender<()>,
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("member", &self.member).finish_non_exhaustive()
    }
}

/// The container and port that a socket leads to.
#[derive(Debug, Clone)]
struct Target {
    /// Without a name, the container that has been up for longest.
    member: Option<Rc<str>>,
    port: u16,
}

/// The surroundings of a published socket: the containers, the clock, the counters of the network.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) members: Rc<Members>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) commons: Rc<Commons>,
    pub(crate) descriptors: Arc<NetworkShare>,
}

/// Serves published sockets until they are withdrawn. Connections are accepted until `shutdown` is set. Datagrams pass
/// as long as there are containers.
pub(crate) async fn serve(listening: Listening, scene: Scene, shutdown: watch::Receiver<bool>) {
    let Listening { sockets, member, close, _alive } = listening;
    let member: Option<Rc<str>> = member.map(Into::into);
    let _open = scene.descriptors.charge(sockets.len());
    let mut ports = JoinSet::new();
    for Opened { socket, address, port } in sockets {
        let target = Target { member: member.clone(), port };
        let started = match socket {
            BoundSocket::Stream { file, listener } => tcp::Listener::new(file, listener).map(|listener| {
                ports.spawn_local(tcp::serve(
                    listener,
                    target,
                    scene.clone(),
                    lifetime::finishing(shutdown.clone()),
                ))
            }),
            BoundSocket::Udp(socket) => clients::Socket::new(socket)
                .map(|socket| ports.spawn_local(udp::serve(socket, target, scene.clone()))),
        };
        if let Err(error) = started {
            tracing::error!(?address, %error, "a published port cannot be served");
        }
    }
    let faults = async {
        while let Some(ended) = ports.join_next().await {
            lifetime::report_panic(ended);
        }
        // Sockets that have ended with the network wait for its end.
        future::pending().await
    };
    tokio::select! {
        () = lifetime::requested(close) => {}
        () = faults => {}
    }
    ports.shutdown().await;
}
