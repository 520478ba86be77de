//! Forwards one query to the upstream servers and returns one answer.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use simple_dns::{PacketFlag, RCODE, header_buffer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{self, Duration};

use super::request::Request;
use super::servers::{Plan, Servers};
use super::upstream::{Sockets, no_descriptor, set_id};
use super::{DnsTransport, EXCHANGE_DEADLINE};
use crate::descriptors::ContainerShare;
use crate::task::clock::now;

/// Asks the servers on behalf of one container, or one queue of it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: Mutex<Servers>,
    sockets: Sockets,
    streams: Semaphore,
    descriptors: Arc<ContainerShare>,
}

impl Forwarder {
    pub(crate) fn new(servers: Servers, descriptors: Arc<ContainerShare>) -> Self {
        Self {
            servers: Mutex::new(servers),
            sockets: Sockets::new(Arc::clone(&descriptors)),
            streams: Semaphore::new(MAX_STREAMS),
            descriptors,
        }
    }

    /// The answer to send back. It may have any length, and it is complete if the request came by a stream.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the exchange.
    pub(super) async fn exchange(&self, request: &Request<'_>) -> Bytes {
        let query = &request.query;
        if request.transport == DnsTransport::Stream && query.is_transfer() {
            return query.decline(RCODE::NotImplemented).into();
        }
        let mut declined = None;
        let asking = self.ask_in_turn(request, &mut declined);
        let answer = time::timeout(EXCHANGE_DEADLINE, asking).await;
        answer.ok().flatten().or(declined).unwrap_or_else(|| query.failure().into())
    }

    async fn ask_in_turn(&self, request: &Request<'_>, declined: &mut Option<Bytes>) -> Option<Bytes> {
        let plan = self.plan();
        for _ in 0..plan.attempts() {
            for server in plan.servers() {
                match self.ask(server, request, plan.timeout()).await {
                    Ok(answer) if declines(&answer) => *declined = Some(answer),
                    Ok(answer) => return Some(answer),
                    Err(error) => tracing::debug!(%server, %error, "DNS server does not answer"),
                }
            }
            if declined.is_some() {
                return None;
            }
        }
        None
    }

    async fn ask(&self, server: SocketAddr, request: &Request<'_>, patience: Duration) -> io::Result<Bytes> {
        let answer = within(patience, self.sockets.exchange(server, request.message)).await?;
        if request.transport == DnsTransport::Datagram || !is_truncated(&answer) {
            return Ok(answer);
        }
        within(patience, self.ask_over_tcp(server, request)).await
    }

    /// Opens a connection for one query. RFC 7766, section 6.2.1 would keep it, but truncated answers are few.
    async fn ask_over_tcp(&self, server: SocketAddr, request: &Request<'_>) -> io::Result<Bytes> {
        // The semaphore is never closed.
        let _place = self.streams.acquire().await;
        let _permit = self.descriptors.take().ok_or_else(no_descriptor)?;
        let mut stream = TcpStream::connect(server).await?;
        let id = self.sockets.random_id();
        let length = u16::try_from(request.message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut framed = [&length.to_be_bytes(), &request.message[..]].concat();
        set_id(&mut framed[size_of_val(&length)..], id);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        if !request.query.is_answered_by(&answer, id) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answers another query"));
        }
        set_id(&mut answer, request.query.id());
        Ok(answer.into())
    }

    fn plan(&self) -> Plan {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.plan(now())
    }
}

/// Whether another server might do better.
fn declines(answer: &[u8]) -> bool {
    matches!(header_buffer::rcode(answer), Ok(RCODE::ServerFailure | RCODE::Refused | RCODE::NotImplemented))
}

fn is_truncated(answer: &[u8]) -> bool {
    header_buffer::has_flags(answer, PacketFlag::TRUNCATION) == Ok(true)
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The most connections to servers at a time, each a file descriptor. Others wait within their server's time.
const MAX_STREAMS: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use simple_dns::Packet;
    use tokio::net::{TcpListener, UdpSocket};

    use super::super::servers::tests::TempFile;
    use super::super::upstream::MAX_MESSAGE;
    use super::*;
    use crate::descriptors::testing::plenty;
    use nsnet_stack::dns::HEADER_LEN;
    use nsnet_stack::dns::testing::{query, response};

    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
    const NOBODY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

    /// A resolv.conf that names `FIRST` and `SECOND`, and sockets for both on one port.
    struct Lab {
        file: TempFile,
        port: u16,
        first: UdpSocket,
        second: UdpSocket,
    }

    impl Lab {
        async fn new(servers: [Ipv4Addr; 2]) -> Self {
            let [one, two] = servers;
            let file =
                TempFile::new(&format!("nameserver {one}\nnameserver {two}\noptions timeout:1 attempts:1\n"));
            loop {
                let first = UdpSocket::bind((FIRST, 0)).await.unwrap();
                let port = first.local_addr().unwrap().port();
                // Another test may hold the number at the other address.
                if let Ok(second) = UdpSocket::bind((SECOND, port)).await {
                    return Self { file, port, first, second };
                }
            }
        }

        fn forwarder(&self) -> Forwarder {
            Forwarder::new(Servers::from_file_with_port(self.file.path(), self.port), plenty())
        }
    }

    /// Answers every query on `socket` with the messages `reply` makes of it.
    fn serve(socket: UdpSocket, reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
        tokio::spawn(async move {
            let mut buffer = vec![0; MAX_MESSAGE];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                for message in reply(&buffer[..length]) {
                    socket.send_to(&message, peer).await.unwrap();
                }
            }
        });
    }

    /// The same over TCP, one query for each connection.
    fn serve_tcp(listener: TcpListener, reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut query = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut query).await.unwrap();
                let answer = reply(&query);
                stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
    }

    async fn ask(forwarder: &Forwarder, message: &[u8]) -> Bytes {
        ask_by(forwarder, message, DnsTransport::Datagram).await
    }

    async fn ask_by(forwarder: &Forwarder, message: &[u8], transport: DnsTransport) -> Bytes {
        let message = Bytes::copy_from_slice(message);
        forwarder.exchange(&Request::parse(&message, transport).unwrap()).await
    }

    #[track_caller]
    fn assert_our_servfail(reply: &[u8]) {
        let packet = Packet::parse(reply).unwrap();
        assert_eq!((packet.id(), packet.rcode()), (0xbeef, RCODE::ServerFailure));
        let flags = PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE;
        assert!(packet.has_flags(flags));
        assert_eq!(packet.questions.len(), 1);
        assert_eq!(reply[HEADER_LEN..], query()[HEADER_LEN..], "question byte for byte");
    }

    #[tokio::test]
    async fn query_and_answer_pass_untouched() {
        let lab = Lab::new([FIRST, SECOND]).await;
        let forwarder = lab.forwarder();
        let sent = [&query()[..], &[0xff; 40]].concat();
        let expected = response(&sent, RCODE::NameError, &[0xee; 60_000]);
        serve(lab.first, {
            let (sent, expected) = (sent.clone(), expected.clone());
            move |received| {
                let mut answer = expected.clone();
                set_id(&mut answer, header_buffer::id_unchecked(received));
                if received[2..] == sent[2..] { vec![answer] } else { vec![] }
            }
        });
        assert_eq!(ask(&forwarder, &sent).await, expected);
    }

    #[tokio::test]
    async fn silent_server_is_followed_by_the_next() {
        let lab = Lab::new([FIRST, SECOND]).await;
        let forwarder = lab.forwarder();
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        let start = now();
        assert!(ask(&forwarder, &query()).await.ends_with(b"second"));
        assert!((now() - start) >= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn closed_port_is_followed_by_the_next_at_once() {
        let lab = Lab::new([NOBODY, SECOND]).await;
        let forwarder = lab.forwarder();
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        let start = now();
        assert!(ask(&forwarder, &query()).await.ends_with(b"second"));
        assert!((now() - start) < Duration::from_millis(900));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_skipped() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| {
            let mut other_id = response(query, RCODE::NoError, b"other id");
            other_id[0] ^= 1;
            let short = response(query, RCODE::NoError, b"")[..HEADER_LEN - 1].to_vec();
            vec![other_id, query.to_vec(), short, vec![], response(query, RCODE::NoError, b"right")]
        });
        assert!(ask(&forwarder, &query()).await.ends_with(b"right"));
    }

    #[tokio::test]
    async fn server_that_declines_is_followed_by_the_next() {
        for rcode in [RCODE::ServerFailure, RCODE::Refused, RCODE::NotImplemented] {
            let lab = Lab::new([FIRST, SECOND]).await;
            let forwarder = lab.forwarder();
            serve(lab.first, move |query| vec![response(query, rcode, b"first")]);
            serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
            assert!(ask(&forwarder, &query()).await.ends_with(b"second"), "{rcode:?}");
        }
    }

    #[tokio::test]
    async fn answer_that_declines_is_better_than_none() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| vec![response(query, RCODE::Refused, b"first")]);
        assert!(ask(&forwarder, &query()).await.ends_with(b"first"));
    }

    #[tokio::test]
    async fn dead_servers_are_told_as_servfail() {
        let lab = Lab::new([NOBODY, NOBODY]).await;
        assert_our_servfail(&ask(&lab.forwarder(), &query()).await);
        assert_our_servfail(&ask(&Forwarder::new(Servers::fixed(vec![]), plenty()), &query()).await);
    }

    #[tokio::test]
    async fn servers_of_a_replaced_file_are_asked() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| vec![response(query, RCODE::NoError, b"first")]);
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        assert!(ask(&forwarder, &query()).await.ends_with(b"first"));
        lab.file.replace(&format!("nameserver {SECOND}\n"));
        time::sleep(Duration::from_millis(1100)).await;
        assert!(ask(&forwarder, &query()).await.ends_with(b"second"));
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_holds_whatever_the_file_says() {
        let lab = Lab::new([FIRST, SECOND]).await;
        lab.file.replace(&format!("nameserver {FIRST}\noptions timeout:20 attempts:5\n"));
        let start = now();
        assert_our_servfail(&ask(&lab.forwarder(), &query()).await);
        assert_eq!((now() - start).as_secs(), EXCHANGE_DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn truncated_answer_is_fetched_over_tcp_for_a_stream_only() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| {
            let mut reply = response(query, RCODE::NoError, b"short");
            reply[2] |= 2;
            vec![reply]
        });
        serve_tcp(TcpListener::bind((FIRST, lab.port)).await.unwrap(), |query| {
            response(query, RCODE::NoError, &[0xee; 60_000])
        });
        let long = ask_by(&forwarder, &query(), DnsTransport::Stream).await;
        assert_eq!(long, response(&query(), RCODE::NoError, &[0xee; 60_000]));
        let short = ask_by(&forwarder, &query(), DnsTransport::Datagram).await;
        assert!(is_truncated(&short) && short.ends_with(b"short"));
    }

    #[tokio::test]
    async fn server_without_tcp_is_followed_by_the_next() {
        let lab = Lab::new([FIRST, SECOND]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| {
            let mut reply = response(query, RCODE::NoError, b"first");
            reply[2] |= 2;
            vec![reply]
        });
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        let answer = ask_by(&forwarder, &query(), DnsTransport::Stream).await;
        assert!(answer.ends_with(b"second"));
    }

    #[tokio::test]
    async fn zone_transfers_over_tcp_are_not_implemented() {
        let forwarder = Forwarder::new(Servers::fixed(vec![]), plenty());
        let mut message = query();
        let kind = message.len() - 4;
        message[kind..kind + 2].copy_from_slice(&[0, 252]);
        let rcode = async |transport| header_buffer::rcode(&ask_by(&forwarder, &message, transport).await);
        assert_eq!(rcode(DnsTransport::Stream).await, Ok(RCODE::NotImplemented));
        assert_eq!(rcode(DnsTransport::Datagram).await, Ok(RCODE::ServerFailure), "forwarded");
    }
}
