//! UDP sockets towards the servers, and the exchanges that share them.
//!
//! An exchange has a socket of its own, and so a source port (RFC 5452, section 9.2), while there are fewer than
//! [`MAX_SOCKETS`] towards its server. After that it joins the socket with the fewest exchanges. Sockets cost file
//! descriptors, and a container can have thousands of queries under way by asking servers that do not answer. A
//! container that has its share of the process's descriptors joins earlier.
//!
//! Sharing makes ports less random, but that does not help a forger. An answer must have the ID drawn for its exchange
//! *and* repeat the question, so other exchanges on the same port are no further targets. Only an error such as FORMERR
//! may come without its question. By forging that, a forger makes one exchange fail.
//!
//! Sockets are connected. The kernel drops datagrams from other addresses, and an ICMP error ends the exchanges at
//! once. A socket closes with its last exchange.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use socket2::{Domain, SockRef, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::descriptors::{ContainerShare, Permit};
use nsnet_stack::dns::Query;

/// The sockets of one network.
#[derive(Debug)]
pub(super) struct Sockets {
    servers: Mutex<HashMap<SocketAddr, Vec<Weak<SharedSocket>>>>,
    ids: Ids,
    descriptors: Arc<ContainerShare>,
}

/// The container may not open a socket now.
pub(super) fn no_descriptor() -> io::Error {
    io::Error::other("the container has its share of the file descriptors")
}

impl Sockets {
    pub(super) fn new(descriptors: Arc<ContainerShare>) -> Self {
        Self { servers: Mutex::default(), ids: Ids::default(), descriptors }
    }

    /// Sends a query and waits for its answer, without a time limit.
    ///
    /// # Errors
    /// The error of the socket, such as `ECONNREFUSED` if no server is there.
    ///
    /// # Cancel safety
    /// Dropping the future gives the ID up, and closes the socket if no other exchange uses it.
    pub(super) async fn exchange(&self, server: SocketAddr, query: &Bytes) -> io::Result<Bytes> {
        let socket = self.socket(server)?;
        let (ask, answer) = oneshot::channel();
        let place = socket.shared.enter(&self.ids, query, ask)?;
        if let Err(error) = socket.shared.send(query, place.id).await {
            if error.kind() == io::ErrorKind::ConnectionRefused {
                // This call has taken the error that was meant for all exchanges.
                socket.shared.fail(&error);
            }
            return Err(error);
        }
        answer.await.map_err(|_| io::ErrorKind::ConnectionAborted)?
    }

    /// An ID that nobody can guess.
    pub(super) fn random_id(&self) -> u16 {
        self.ids.draw()
    }

    fn socket(&self, server: SocketAddr) -> io::Result<Arc<SharedSocket>> {
        let mut servers = lock(&self.servers);
        servers.retain(|_, sockets| {
            sockets.retain(|socket| socket.strong_count() > 0);
            !sockets.is_empty()
        });
        let sockets = servers.entry(server).or_default();
        let permit = if sockets.len() < MAX_SOCKETS { self.descriptors.take() } else { None };
        let Some(permit) = permit else {
            let in_use = sockets.iter().filter_map(Weak::upgrade);
            let least = in_use.min_by_key(|socket| lock(&socket.shared.waiting).len());
            return least.ok_or_else(no_descriptor);
        };
        let socket = Arc::new(SharedSocket::open(server, permit)?);
        sockets.push(Arc::downgrade(&socket));
        Ok(socket)
    }
}

/// The most sockets towards one server. With 4 096 exchanges under way, each has 64 of them, and its buffer has room
/// for the answers.
const MAX_SOCKETS: usize = 64;

/// A socket and the task that reads from it.
#[derive(Debug)]
struct SharedSocket {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

impl SharedSocket {
    /// A new socket on a random port that receives from `server` only.
    fn open(server: SocketAddr, permit: Permit) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(server), Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&server.into())?;
        let udp = UdpSocket::from_std(socket.into())?;
        let shared = Arc::new(Shared { udp, waiting: Mutex::default(), _permit: permit });
        let reader = tokio::spawn(Arc::clone(&shared).read()).abort_handle();
        Ok(Self { shared, reader })
    }
}

impl Drop for SharedSocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
struct Shared {
    udp: UdpSocket,
    waiting: Mutex<HashMap<u16, Exchange>>,
    _permit: Permit,
}

/// An exchange that waits for its answer.
#[derive(Debug)]
struct Exchange {
    query: Bytes,
    answer: oneshot::Sender<io::Result<Bytes>>,
}

impl Shared {
    /// Waits for an answer under an ID that no other exchange of this socket has.
    fn enter(
        self: &Arc<Self>,
        ids: &Ids,
        query: &Bytes,
        answer: oneshot::Sender<io::Result<Bytes>>,
    ) -> io::Result<Slot> {
        let mut waiting = lock(&self.waiting);
        let mut drawn = (0..MAX_DRAWS).map(|_| ids.draw());
        let id = drawn.find(|id| !waiting.contains_key(id)).ok_or(io::ErrorKind::AddrInUse)?;
        waiting.insert(id, Exchange { query: query.clone(), answer });
        Ok(Slot { shared: Arc::clone(self), id })
    }

    /// Sends a query under a different ID.
    async fn send(&self, query: &[u8], id: u16) -> io::Result<()> {
        let mut message = query.to_vec();
        set_id(&mut message, id);
        self.udp.send(&message).await.map(drop)
    }

    async fn read(self: Arc<Self>) {
        loop {
            match self.udp.async_io(MESSAGE_OR_ERROR, || receive(&self.udp)).await {
                Ok(message) => self.deliver(message),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Gives a message to its exchange, under the ID of the query.
    fn deliver(&self, mut message: Vec<u8>) {
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else { return };
        let mut waiting = lock(&self.waiting);
        let asked = waiting.get(&id).and_then(|exchange| Query::parse(&exchange.query));
        let Some(query) = asked.filter(|query| query.is_answered_by(&message, id)) else {
            tracing::debug!("a datagram that answers no DNS query was skipped");
            return;
        };
        set_id(&mut message, query.id());
        if let Some(exchange) = waiting.remove(&id) {
            // The exchange may have been cancelled.
            let _ = exchange.answer.send(Ok(message.into()));
        }
    }

    /// Ends all exchanges, because they share the server and the path to it.
    fn fail(&self, error: &io::Error) {
        for (_, exchange) in lock(&self.waiting).drain() {
            let error =
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            let _ = exchange.answer.send(Err(error));
        }
    }
}

/// An ID in use until this is dropped.
struct Slot {
    shared: Arc<Shared>,
    id: u16,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.shared.waiting).remove(&self.id);
    }
}

/// The next datagram.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    // Not kept while an exchange waits, because there may be many exchanges.
    let mut message = vec![0; MAX_MESSAGE];
    let length = (&*SockRef::from(socket)).read(&mut message)?;
    message.truncate(length);
    message.shrink_to_fit();
    Ok(message)
}

/// Replaces a message's ID.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.first_chunk_mut() {
        *bytes = id.to_be_bytes();
    }
}

/// Draws unpredictable numbers: a keyed hash of a counter.
#[derive(Debug, Default)]
struct Ids {
    key: RandomState,
    drawn: AtomicU64,
}

impl Ids {
    fn draw(&self) -> u16 {
        let [high, low, ..] = self.key.hash_one(self.drawn.fetch_add(1, Relaxed)).to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// Every value under a lock here is consistent at all times, so a poisoned lock is harmless.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most draws for a free ID. Even with all exchanges on one socket, fifteen of sixteen IDs are free.
const MAX_DRAWS: usize = 32;

/// An ICMP error makes a socket report `EPOLLERR` without `EPOLLIN`. tokio's `recv` and `readable` do not wake for
/// that.
const MESSAGE_OR_ERROR: Interest = Interest::READABLE.add(Interest::ERROR);

/// The longest UDP datagram.
pub(super) const MAX_MESSAGE: usize = 65535;

#[cfg(test)]
mod tests {
    use simple_dns::RCODE;

    use super::*;
    use crate::descriptors::testing::{plenty, share_of};
    use nsnet_stack::dns::testing::{query, response};

    #[tokio::test]
    async fn sockets_are_shared_beyond_the_limit_and_all_closed_in_the_end() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let sockets = Arc::new(Sockets::new(plenty()));
        let message = Bytes::from(query());
        let exchanges: Vec<_> = (0..MAX_SOCKETS * 3)
            .map(|_| {
                let (sockets, message) = (Arc::clone(&sockets), message.clone());
                tokio::spawn(async move { sockets.exchange(address, &message).await.unwrap() })
            })
            .collect();
        let mut ports = HashMap::<_, usize>::new();
        let mut received = Vec::new();
        let mut buffer = [0; 512];
        for _ in &exchanges {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            *ports.entry(from).or_default() += 1;
            received.push((buffer[..length].to_vec(), from));
        }
        assert_eq!(ports.len(), MAX_SOCKETS);
        assert!(ports.values().all(|exchanges| *exchanges == 3), "{ports:?}");
        for (number, (asked, from)) in received.iter().enumerate() {
            let answer = response(asked, RCODE::NoError, &number.to_be_bytes());
            server.send_to(&answer, from).await.unwrap();
        }
        let mut seen = std::collections::HashSet::new();
        for exchange in exchanges {
            let answer = exchange.await.unwrap();
            assert_eq!(answer[..2], message[..2], "the ID of the query");
            assert!(seen.insert(answer[message.len()..].to_vec()), "each exchange has an answer of its own");
        }
        // A cancelled exchange, as well as an answered one.
        let pending = sockets.exchange(address, &message);
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(20), pending).await;
        assert!(given_up.is_err());
        assert!(lock(&sockets.servers).values().flatten().all(|socket| socket.strong_count() == 0));
    }

    #[tokio::test]
    async fn without_a_descriptor_a_socket_is_shared() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let sockets = Sockets::new(share_of(1));
        let first = sockets.socket(address).unwrap();
        assert!(Arc::ptr_eq(&first, &sockets.socket(address).unwrap()));
        let other = sockets.socket("127.0.0.1:9".parse().unwrap());
        assert!(other.unwrap_err().to_string().contains("its share of the file descriptors"));
        // The task that reads has the socket until it is aborted.
        drop(first);
        tokio::task::yield_now().await;
        assert!(sockets.socket(address).is_ok());
    }

    #[tokio::test]
    async fn an_answer_of_another_port_or_question_is_skipped() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let asked = Bytes::from(query());
        let sockets = Sockets::new(plenty());
        let serve = async {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let sent = &buffer[..length];
            stranger.send_to(&response(sent, RCODE::NoError, b"stranger"), from).await.unwrap();
            let mut other = response(sent, RCODE::NoError, b"other question");
            other[14] ^= 1;
            server.send_to(&other, from).await.unwrap();
            server.send_to(&response(sent, RCODE::NoError, b"right"), from).await.unwrap();
        };
        let (answer, ()) = tokio::join!(sockets.exchange(address, &asked), serve);
        assert!(answer.unwrap().ends_with(b"right"));
    }

    #[test]
    fn ids_are_spread() {
        let ids = Ids::default();
        let drawn: std::collections::HashSet<_> = (0..1000).map(|_| ids.draw()).collect();
        assert!(drawn.len() > 950, "{}", drawn.len());
        let other = Ids::default();
        assert!((0..10).any(|_| ids.draw() != other.draw()), "keyed anew");
    }
}
