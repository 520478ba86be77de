//! Published TCP ports and UNIX sockets: accepts a client, and opens the same connection inside.

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;

use super::socket_file::SocketFile;
use super::{Scene, Target};
use crate::descriptors::Permit;
use crate::dialer::{DialError, Inbound, Protocol, Stream};
use crate::protocols::Protocols;
use crate::protocols::clients::{Way, ways};
use crate::protocols::tcp::{OpenError, OpenedConnection, Reservation, connect};
use crate::statistics::Counted;
use crate::sys;
use crate::task::clock::Clock;
use nsnet_stack::flow::FlowKey;

/// The most clients accepted before other tasks get their turn.
const BATCH: usize = 32;

/// How long nothing is accepted after the host ran out of file descriptors or memory. Clients wait in the kernel's
/// queue meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// The shortest time between two log lines about that.
const COMPLAINT: Duration = Duration::from_secs(1);

/// The listening socket of the clients.
pub(super) struct Listener {
    /// Dropped first, see [`BoundSocket`](super::listen::BoundSocket).
    _file: Option<SocketFile>,
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    pub(super) fn new(file: Option<SocketFile>, socket: Socket) -> io::Result<Self> {
        Ok(Self { _file: file, socket: sys::watch(socket.into())? })
    }

    /// Waits for a client, without taking it out of the kernel's queue.
    async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Takes the next client out of the queue.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, and those of accept(2).
    fn try_accept(&self) -> io::Result<Accepted> {
        let (socket, peer) =
            self.socket.try_io(Interest::READABLE, |socket| SockRef::from(socket).accept())?;
        socket.set_nonblocking(true)?;
        let Some(peer) = peer.as_socket() else {
            let stream = UnixStream::from_std(socket.into())?;
            return Ok(Accepted { stream: Some(Stream::new(stream)), peer: None, listener: None });
        };
        let stream = TcpStream::from_std(socket.into())?;
        // Fails only for a client that is gone again. The server inside has decided how to cut its stream into segments.
        let _ = stream.set_nodelay(true);
        let listener = stream.local_addr().ok();
        Ok(Accepted { stream: Some(stream.into()), peer: Some(peer), listener })
    }
}

/// Accepts until the network is to end.
pub(super) async fn serve(
    listener: Listener,
    target: Target,
    scene: Scene,
    finishing: impl Future<Output = ()>,
) {
    let accepting = async {
        let complaints = Complaints::default();
        loop {
            for _ in 0..BATCH {
                match accept_next(&listener, &target, &scene).await {
                    Ok(()) => {}
                    Err(error) if is_clients_own(&error) => {}
                    Err(error) => {
                        complaints.utter(scene.clock, target.port, &error);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = accepting => {}
        () = finishing => {}
    }
}

/// Accepts a client on behalf of the container, which must have a file descriptor left for it. Without a container, the
/// client is reset.
async fn accept_next(listener: &Listener, target: &Target, scene: &Scene) -> io::Result<()> {
    listener.readable().await?;
    let Some(protocols) = scene.members.find(target.member.as_deref()) else {
        listener.try_accept()?;
        scene.counters.published.refused();
        return Ok(());
    };
    let permit = protocols.context.descriptors.take();
    let permit =
        permit.ok_or_else(|| io::Error::other("the container has its share of the file descriptors"))?;
    let client = listener.try_accept()?;
    admit(permit, client, protocols, target.port);
    Ok(())
}

/// Whether a client went away before it was accepted, accept(2).
fn is_clients_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Logs why nothing is accepted, at a limited rate.
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

/// An accepted client. Its connection is reset when this is dropped.
struct Accepted {
    stream: Option<Stream>,
    /// `None` for a client of a UNIX socket.
    peer: Option<SocketAddr>,
    listener: Option<SocketAddr>,
}

impl Accepted {
    /// Resolves once the client has reset its connection. The Dialer's answer is then no longer needed.
    async fn is_gone(&self) {
        if let Some(stream) = &self.stream {
            stream.is_reset().await;
        }
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.abort();
        }
    }
}

/// Admits a client, if there is room for it.
fn admit(permit: Permit, client: Accepted, protocols: Rc<Protocols>, port: u16) {
    let counters = &protocols.context.counters;
    let Some(reservation) = Reservation::take(&protocols.tcp) else { return counters.published.overflowed() };
    let task = Rc::new(OnceCell::new());
    let own_task = Rc::clone(&task);
    let counted = Counted::published(counters);
    let host = Rc::clone(&protocols);
    let handle = protocols.context.tasks.spawn(async move {
        let (_counted, _permit) = (counted, permit);
        // The task cannot have run before the handle was set.
        if let Some(task) = own_task.get() {
            run(client, &host, reservation, port, task).await;
        }
    });
    let _ = task.set(handle);
}

/// The task of a connection: asks the Dialer, opens the connection inside, relays.
async fn run(
    mut client: Accepted,
    protocols: &Protocols,
    reservation: Reservation,
    port: u16,
    task: &AbortHandle,
) {
    let context = &protocols.context;
    let opening = context.questions.ask(|dialer| async {
        let caller = protocols.clients.caller(client.peer);
        let ways: Vec<Way> = ways(&context.addressing, caller, port).collect();
        let first = ways.first().ok_or(DialError::NetworkUnreachable)?;
        let inbound = Inbound {
            protocol: Protocol::Tcp,
            client: client.peer,
            listener: client.listener,
            container: first.container(),
        };
        dialer.accept(&inbound).await?;
        open(protocols, reservation, &ways, task).await
    });
    let opened = tokio::select! {
        opened = opening => opened,
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
            context.counters.published.refused();
            if let Some(peer) = client.peer {
                context.warn_of(&error, peer);
            }
        }
    }
}

/// Opens the connection inside by the first address family that is not refused.
async fn open(
    protocols: &Protocols,
    reservation: Reservation,
    ways: &[Way],
    task: &AbortHandle,
) -> Result<OpenedConnection, DialError> {
    let tcp = &protocols.tcp;
    let mut reservation = Some(reservation);
    for way in ways {
        // The previous attempt has given its reservation up.
        let Some(reservation) = reservation.take().or_else(|| Reservation::take(tcp)) else {
            protocols.context.counters.published.overflowed();
            break;
        };
        let Some(key) = way.key(|key: &FlowKey| tcp.is_free(key)) else { continue };
        match connect(reservation, key, task.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(OpenError::Refused) => {}
            Err(OpenError::Host(error)) => return Err(DialError::other(error)),
        }
    }
    Err(DialError::Refused)
}
