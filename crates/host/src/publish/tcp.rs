//! Published TCP ports and UNIX sockets: accepts, and opens the same connection inside.

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Target;
use super::appearance::{Caller, Way, ways};
use super::socket_file::SocketFile;
use crate::clock::Clock;
use crate::container::{self, Terms};
use crate::dialer::{DialError, Inbound, Protocol, Stream};
use crate::gateway::Gateway;
use crate::local::Reach;
use crate::packet::FlowKey;
use crate::statistics::Counted;
use crate::tcp::{Connection, OpenError, Place, connect};

/// Clients accepted before other tasks get their turn.
const BATCH: usize = 32;

/// How long nothing is accepted when the host has no file descriptor or memory for it. The kernel's queue holds clients
/// meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// How often the log says so at most.
const COMPLAINT: Duration = Duration::from_secs(1);

/// What clients come in by.
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The file goes first, see [`Socket`](super::listen::Socket).
    Unix {
        _file: SocketFile,
        listener: UnixListener,
    },
}

impl Listener {
    pub(super) fn tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    pub(super) fn unix(file: SocketFile, listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        UnixListener::from_std(listener).map(|listener| Self::Unix { _file: file, listener })
    }

    async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Fail only for a client that is gone again. The server inside has decided how to cut its stream.
                let _ = stream.set_nodelay(true);
                let listener = stream.local_addr().ok();
                Ok(Client { stream: Some(stream.into()), peer: Some(peer), listener })
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Client { stream: Some(Stream::new(stream)), peer: None, listener: None })
            }
        }
    }
}

/// Accepts until the network is to end.
pub(super) async fn serve(
    listener: Listener,
    target: Target,
    terms: Rc<Terms>,
    shutdown: watch::Receiver<bool>,
) {
    let accepting = async {
        let complaints = Complaints::default();
        loop {
            for _ in 0..BATCH {
                match listener.accept().await {
                    Ok(client) => admit(client, &target, &terms),
                    Err(error) if is_clients_own(&error) => {}
                    Err(error) => {
                        complaints.utter(terms.parts.clock, target.port, &error);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = container::finishing(shutdown) => {}
    }
}

/// Whether a client went away before it was accepted, accept(2).
fn is_clients_own(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

/// Says in the log why nothing is accepted, not too often.
#[derive(Default)]
struct Complaints {
    last: Cell<Option<Instant>>,
}

impl Complaints {
    fn utter(&self, clock: Clock, port: u16, error: &io::Error) {
        let now = clock.now();
        if self.last.get().is_none_or(|last| now.duration_since(last) >= COMPLAINT) {
            self.last.set(Some(now));
            tracing::warn!(port, %error, "clients of a published port wait; is RLIMIT_NOFILE too low?");
        }
    }
}

/// A client that has been accepted. Reset when dropped.
struct Client {
    stream: Option<Stream>,
    /// None for one that came in by a UNIX socket.
    peer: Option<SocketAddr>,
    listener: Option<SocketAddr>,
}

impl Client {
    /// Resolves once it has reset its connection: nobody need be asked any more.
    async fn is_gone(&self) {
        if let Some(stream) = &self.stream {
            stream.is_reset().await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.abort();
        }
    }
}

/// Takes a client in, if there is a container and room for it.
fn admit(client: Client, target: &Target, terms: &Terms) {
    let Some(gateway) = terms.members.find(target.member.as_deref()) else {
        return terms.parts.counters.published.refused();
    };
    let Some(place) = Place::reserve(&gateway) else { return gateway.counters.published.overflowed() };
    let task = Rc::new(OnceCell::new());
    let own_task = Rc::clone(&task);
    let port = target.port;
    let counted = Counted::published(&gateway.counters);
    let host = Rc::clone(&gateway);
    let handle = gateway.spawn(async move {
        let _counted = counted;
        // It has not run before the handle was there.
        if let Some(task) = own_task.get() {
            run(client, &host, place, port, task).await;
        }
    });
    let _ = task.set(handle);
}

/// The task of a connection: ask, open, relay.
async fn run(mut client: Client, gateway: &Rc<Gateway>, place: Place, port: u16, task: &AbortHandle) {
    let opening = async {
        let ways: Vec<Way> = ways(&gateway.addressing, caller(gateway, client.peer), port).collect();
        let first = ways.first().ok_or(DialError::NetworkUnreachable)?;
        let inbound = Inbound {
            protocol: Protocol::Tcp,
            client: client.peer,
            listener: client.listener,
            container: first.container(),
        };
        gateway.dialer.accept(&inbound).await?;
        open(gateway, place, &ways, task).await
    };
    let opened = tokio::time::timeout(gateway.limits.dial_timeout, opening);
    let opened = tokio::select! {
        opened = opened => opened.unwrap_or(Err(DialError::TimedOut)),
        () = client.is_gone() => return,
    };
    match opened {
        Ok(connection) => {
            if let Some(stream) = client.stream.take() {
                connection.relay(stream).await;
            }
        }
        Err(error) => {
            tracing::debug!(client = ?client.peer, port, %error, "a client of a published port is reset");
            gateway.counters.published.refused();
            if let Some(peer) = client.peer {
                gateway.warn_of(&error, peer);
            }
        }
    }
}

/// Opens the connection inside by the first way that is not refused.
async fn open(
    gateway: &Rc<Gateway>,
    place: Place,
    ways: &[Way],
    task: &AbortHandle,
) -> Result<Connection, DialError> {
    let mut place = Some(place);
    for way in ways {
        // The last attempt has given its place up.
        let Some(place) = place.take().or_else(|| Place::reserve(gateway)) else {
            gateway.counters.published.overflowed();
            break;
        };
        let Some(key) = way.key(|key: &FlowKey| gateway.tcp.is_free(key)) else { continue };
        match connect(place, key, task.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(OpenError::Refused) => {}
            Err(OpenError::Host(error)) => return Err(DialError::other(error)),
        }
    }
    Err(DialError::Refused)
}

/// Where a client comes from. An address about which the kernel cannot be asked is taken for the host's, and so is a forged
/// one that reaches more than one machine.
pub(super) fn caller(gateway: &Gateway, peer: Option<SocketAddr>) -> Caller {
    let Some(peer) = peer else { return Caller::Local(gateway.clients.next_port()) };
    match gateway.commons.routes().lookup(peer.ip()) {
        Ok(Reach::HostOwn | Reach::Broadcast | Reach::Multicast) | Err(_) => Caller::Host(peer),
        Ok(Reach::Remote | Reach::Unreachable) => Caller::Remote(peer),
    }
}
