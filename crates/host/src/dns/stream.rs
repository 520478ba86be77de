//! DNS over TCP (RFC 7766), spoken with the container.
//!
//! ```text
//!   length, query ──► read ──► a task for each ──► write ──► length, answer
//!        ▲               at most MAX_PIPELINED             │ in the order in which
//!        └──────────── no more is read until there is room ┘ they are found (section 6.2.1.1)
//! ```
//!
//! | the container | then |
//! |---|---|
//! | ends its direction | queries under way are answered, then the connection ends |
//! | sends nothing for [`IDLE`] while nothing is under way, or reads nothing for as long | the connection ends (section 6.2.3) |
//! | sends a message that is not a query | the connection ends, because its message boundaries can no longer be trusted |

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::task::JoinSet;
use tokio::time::{self, Duration};

use super::server::{NameServer, Reply};
use super::{DnsTransport, upstream::MAX_MESSAGE};

/// Serves one connection of the container at `source` until either side ends it.
///
/// # Cancel safety
/// Dropping the future ends the connection and cancels the queries under way.
pub(super) async fn serve(
    server: Rc<NameServer>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    source: SocketAddr,
) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut input = Input { reader, message: Vec::new(), is_open: true };
    let mut under_way = JoinSet::new();
    let ended = loop {
        let (is_idle, has_room) = (under_way.is_empty(), under_way.len() < MAX_PIPELINED);
        if is_idle && !input.is_open {
            break Ok(());
        }
        tokio::select! {
            message = input.next(), if input.is_open && has_room => match message {
                Ok(Some(message)) => {
                    let server = Rc::clone(&server);
                    under_way.spawn_local(async move {
                        server.answer(&message, source, DnsTransport::Stream).await
                    });
                }
                Ok(None) => input.is_open = false,
                Err(error) => break Err(error),
            },
            Some(answered) = under_way.join_next() => match answered {
                Ok(Some(reply)) => {
                    if let Err(error) = write(&mut writer, &reply).await {
                        break Err(error);
                    }
                }
                Ok(None) => break Err(io::Error::new(io::ErrorKind::InvalidData, "not a DNS query")),
                Err(error) => break Err(error.into()),
            },
            () = time::sleep(IDLE), if is_idle => break Err(io::ErrorKind::TimedOut.into()),
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%source, %error, "a DNS connection of the container ends");
    }
    let _ = writer.shutdown().await;
}

/// The messages of a stream.
struct Input<S> {
    reader: ReadHalf<S>,
    /// The part of the next message that has arrived, its length included.
    message: Vec<u8>,
    is_open: bool,
}

impl<S: AsyncRead> Input<S> {
    /// The next message. `None` at the end of the stream.
    ///
    /// # Cancel safety
    /// The part of a message that has arrived is kept.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let wanted = match self.message.first_chunk() {
                Some(length) => LENGTH + usize::from(u16::from_be_bytes(*length)),
                None => LENGTH,
            };
            if self.message.len() == wanted && wanted > LENGTH {
                return Ok(Some(Bytes::from(mem::take(&mut self.message)).slice(LENGTH..)));
            }
            if self.message.len() >= wanted {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty DNS message"));
            }
            let missing = wanted - self.message.len();
            // Exactly this much, because the message keeps the buffer and only its length counts against the
            // container's limit.
            self.message.reserve_exact(missing);
            let missing = u64::try_from(missing).unwrap_or(u64::MAX);
            if (&mut self.reader).take(missing).read_buf(&mut self.message).await? == 0 {
                let is_whole = self.message.is_empty();
                return if is_whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let message = reply.message();
    // Never longer, see MAX_MESSAGE.
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let length = length.to_be_bytes();
    time::timeout(IDLE, writer.write_all_buf(&mut Buf::chain(&length[..], message)))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Queries of one connection under way at a time.
const MAX_PIPELINED: usize = 64;

/// RFC 7766, section 6.2.3 asks for seconds, and for longer than a client takes between two queries.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes of the length in front of a message, which is a 16-bit number (RFC 1035, section 4.2.2).
const LENGTH: usize = size_of::<u16>();
const _: () = assert!(MAX_MESSAGE <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use simple_dns::{RCODE, TYPE, header_buffer};
    use tokio::io::DuplexStream;
    use tokio::net::UdpSocket;
    use tokio::task::LocalSet;

    use super::super::forward::Forwarder;
    use super::super::local::{Hosts, LocalNames};
    use super::super::places::Places;
    use super::super::servers::Servers;
    use super::*;
    use crate::descriptors::testing::plenty;
    use crate::task::clock::now;
    use nsnet_stack::dns::HostName;
    use nsnet_stack::dns::testing::{query_for, response};

    /// Runs `test` with a client's end of a connection. Queries for names other than `db.test` go to `upstream`.
    async fn with_client<F: Future<Output = ()>>(upstream: SocketAddr, test: impl FnOnce(DuplexStream) -> F) {
        let mut hosts = Hosts::default();
        hosts.add(&HostName::parse("db.test").unwrap(), ["10.1.0.1".parse().unwrap()]);
        let forwarder = Forwarder::new(Servers::fixed(vec![upstream]), plenty());
        let server = Rc::new(NameServer::new(
            LocalNames::new(Arc::new(hosts), None),
            None,
            forwarder,
            Places::new(4096, 256),
        ));
        let local = LocalSet::new();
        let (stream, work) = server.stream("10.0.2.100:4000".parse().unwrap()).unwrap();
        local.spawn_local(work);
        local.run_until(test(stream)).await;
    }

    fn framed(id: u16, name: &str) -> Vec<u8> {
        let mut message = query_for(name, TYPE::A);
        message[..2].copy_from_slice(&id.to_be_bytes());
        [&u16::try_from(message.len()).unwrap().to_be_bytes(), &message[..]].concat()
    }

    /// ID and code of the next answer.
    async fn answer(client: &mut DuplexStream) -> (u16, RCODE) {
        let mut message = vec![0; client.read_u16().await.unwrap().into()];
        client.read_exact(&mut message).await.unwrap();
        (header_buffer::id(&message).unwrap(), header_buffer::rcode(&message).unwrap())
    }

    async fn assert_end(client: &mut DuplexStream) {
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    }

    const NOWHERE: &str = "127.0.0.4:1";

    #[tokio::test]
    async fn queries_in_pieces_and_in_a_row_are_answered() {
        with_client(NOWHERE.parse().unwrap(), async |mut client| {
            let queries = [framed(1, "db.test"), framed(2, "DB.test"), framed(3, "other.test")].concat();
            for piece in queries.chunks(7) {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut seen = Vec::new();
            for _ in 0..3 {
                seen.push(answer(&mut client).await);
            }
            seen.sort_by_key(|(id, _)| *id);
            assert_eq!(seen, [(1, RCODE::NoError), (2, RCODE::NoError), (3, RCODE::ServerFailure)]);
        })
        .await;
    }

    #[tokio::test]
    async fn later_query_is_answered_first_and_half_close_loses_no_answer() {
        let slow = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        with_client(slow.local_addr().unwrap(), async |mut client| {
            client.write_all(&[framed(1, "slow.test"), framed(2, "db.test")].concat()).await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(answer(&mut client).await, (2, RCODE::NoError));
            let mut buffer = [0; 512];
            let (length, from) = slow.recv_from(&mut buffer).await.unwrap();
            slow.send_to(&response(&buffer[..length], RCODE::NameError, b""), from).await.unwrap();
            assert_eq!(answer(&mut client).await, (1, RCODE::NameError));
            assert_end(&mut client).await;
        })
        .await;
    }

    #[tokio::test]
    async fn no_more_is_read_than_may_be_under_way() {
        let slow = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        with_client(slow.local_addr().unwrap(), async |mut client| {
            for id in 0..200 {
                client.write_all(&framed(id, "slow.test")).await.unwrap();
            }
            let mut buffer = [0; 512];
            for _ in 1..MAX_PIPELINED {
                slow.recv_from(&mut buffer).await.unwrap();
            }
            let (length, from) = slow.recv_from(&mut buffer).await.unwrap();
            let asked = buffer[..length].to_vec();
            let more = slow.recv_from(&mut buffer);
            assert!(time::timeout(Duration::from_millis(50), more).await.is_err());
            // An answer makes room for one more.
            slow.send_to(&response(&asked, RCODE::NoError, b""), from).await.unwrap();
            slow.recv_from(&mut buffer).await.unwrap();
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_an_idle_connection() {
        with_client(NOWHERE.parse().unwrap(), async |mut client| {
            let start = now();
            client.write_all(&framed(1, "db.test")).await.unwrap();
            answer(&mut client).await;
            // The rest of the message never comes.
            client.write_all(&framed(2, "db.test")[..5]).await.unwrap();
            assert_end(&mut client).await;
            assert_eq!((now() - start).as_secs(), IDLE.as_secs());
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_no_query_ends_the_connection() {
        for nonsense in [&[0, 0][..], &[0, 3, 1, 2, 3], &[0, 12, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            with_client(NOWHERE.parse().unwrap(), async |mut client| {
                client.write_all(nonsense).await.unwrap();
                assert_end(&mut client).await;
            })
            .await;
        }
    }
}
