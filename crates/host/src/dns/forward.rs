//! One query to the upstream servers, one answer back.

use std::cell::RefCell;
use std::io::{self, Read};
use std::net::SocketAddr;

use simple_dns::{PacketFlag, RCODE, header_buffer};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{self, Duration};

use super::servers::{Plan, Servers};

/// Asks the servers on behalf of one network. Used from one thread.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: RefCell<Servers>,
    permits: Semaphore,
}

impl Forwarder {
    pub(crate) fn new(servers: Servers) -> Self {
        Self { servers: RefCell::new(servers), permits: Semaphore::new(MAX_EXCHANGES) }
    }

    /// The answer to send back for `query`, or `None` if it is no DNS query and deserves silence.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket and gives the place up.
    pub(crate) async fn exchange(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Query::new(query)?;
        let Ok(_permit) = self.permits.try_acquire() else {
            tracing::debug!(
                limit = MAX_EXCHANGES,
                "too many DNS queries at a time, one was answered SERVFAIL"
            );
            return Some(query.failure());
        };
        let mut declined = None;
        let answer = time::timeout(EXCHANGE_DEADLINE, self.ask_in_turn(&query, &mut declined)).await;
        Some(answer.ok().flatten().or(declined).unwrap_or_else(|| query.failure()))
    }

    /// Like [`exchange`](Self::exchange), for a client that can take no more than `longest` bytes in a datagram.
    ///
    /// # Cancel safety
    /// See [`exchange`](Self::exchange).
    pub(crate) async fn exchange_within(&self, query: &[u8], longest: usize) -> Option<Vec<u8>> {
        let answer = self.exchange(query).await?;
        if answer.len() <= longest { Some(answer) } else { Some(Query::new(query)?.truncated()) }
    }

    /// A connection to the first server that accepts one. Each is tried once; the caller relays bytes and
    /// bounds how many connections there are.
    ///
    /// # Errors
    /// The kind of error the last server gave, if none accepts.
    ///
    /// # Cancel safety
    /// Dropping the future gives the attempt up.
    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let plan = self.plan();
        let mut failure = io::Error::new(io::ErrorKind::NotConnected, "the list of DNS servers is empty");
        for server in plan.servers() {
            match within(plan.timeout(), TcpStream::connect(server)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    tracing::debug!(%server, %error, "DNS server does not accept a TCP connection");
                    let text = format!("no DNS server accepts a TCP connection, {server}: {error}");
                    failure = io::Error::new(error.kind(), text);
                }
            }
        }
        Err(failure)
    }

    async fn ask_in_turn(&self, query: &Query<'_>, declined: &mut Option<Vec<u8>>) -> Option<Vec<u8>> {
        let plan = self.plan();
        for _ in 0..plan.attempts() {
            for server in plan.servers() {
                match within(plan.timeout(), self.ask(server, query)).await {
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

    async fn ask(&self, server: SocketAddr, query: &Query<'_>) -> io::Result<Vec<u8>> {
        let socket = connected(server)?;
        socket.send(query.message).await?;
        loop {
            let message = socket.async_io(MESSAGE_OR_ERROR, || receive(&socket, query)).await?;
            match message {
                Some(answer) => return Ok(answer),
                None => tracing::debug!(%server, "a datagram that does not answer the DNS query was skipped"),
            }
        }
    }

    fn plan(&self) -> Plan {
        self.servers.borrow_mut().plan(time::Instant::now().into_std())
    }
}

/// The next datagram, if it is the answer.
fn receive(socket: &UdpSocket, query: &Query<'_>) -> io::Result<Option<Vec<u8>>> {
    // Not kept while an exchange waits: there may be many.
    let mut message = vec![0; MAX_MESSAGE];
    let length = (&*SockRef::from(socket)).read(&mut message)?;
    message.truncate(length);
    message.shrink_to_fit();
    Ok(query.is_answered_by(&message).then_some(message))
}

/// A message that is a query: a whole header without the bit that makes it a response.
struct Query<'a> {
    message: &'a [u8],
    header: &'a [u8; HEADER_LEN],
}

impl<'a> Query<'a> {
    fn new(message: &'a [u8]) -> Option<Self> {
        let header = message.first_chunk()?;
        if header_buffer::has_flags_unchecked(header, PacketFlag::RESPONSE) {
            return None;
        }
        Some(Self { message, header })
    }

    fn is_answered_by(&self, message: &[u8]) -> bool {
        message.first_chunk::<HEADER_LEN>().is_some_and(|header| {
            header[..2] == self.header[..2]
                && header_buffer::has_flags_unchecked(header, PacketFlag::RESPONSE)
        })
    }

    /// The reply that says that nobody answered.
    fn failure(&self) -> Vec<u8> {
        self.reply(RCODE::ServerFailure as u16)
    }

    /// The reply that says that the answer is too long for a datagram: the client asks again over TCP (RFC 7766,
    /// section 5).
    fn truncated(&self) -> Vec<u8> {
        self.reply(PacketFlag::TRUNCATION.bits())
    }

    /// A reply without records (RFC 1035, section 4.1.1): ID, opcode, RD and CD (RFC 4035, section 3.2.2) copied,
    /// question echoed byte for byte. Not built with `simple_dns::Packet`, which cannot express the record
    /// types, classes and opcodes that it does not know.
    fn reply(&self, news: u16) -> Vec<u8> {
        let question = self.question().unwrap_or_default();
        let copied = OPCODE | (PacketFlag::RECURSION_DESIRED | PacketFlag::CHECKING_DISABLED).bits();
        let asked = u16::from_be_bytes([self.header[2], self.header[3]]);
        let ours = (PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE).bits();
        let flags = asked & copied | ours | news;
        let mut reply = Vec::with_capacity(HEADER_LEN + question.len());
        reply.extend_from_slice(&self.header[..2]);
        reply.extend_from_slice(&flags.to_be_bytes());
        reply.extend_from_slice(&u16::from(!question.is_empty()).to_be_bytes());
        reply.resize(HEADER_LEN, 0);
        reply.extend_from_slice(question);
        reply
    }

    /// The bytes of the question; `None` unless there is exactly one (RFC 9619) and it is whole.
    fn question(&self) -> Option<&'a [u8]> {
        if header_buffer::questions_unchecked(self.header) != 1 {
            return None;
        }
        let body = &self.message[HEADER_LEN..];
        let mut end = 0;
        loop {
            match usize::from(*body.get(end)?) {
                0 => return body.get(..end + 1 + TYPE_AND_CLASS),
                // Larger values are compression pointers, and nothing stands before the first name.
                label @ ..=MAX_LABEL if end + label < MAX_NAME => end += 1 + label,
                _ => return None,
            }
        }
    }
}

/// Whether another server might do better.
fn declines(answer: &[u8]) -> bool {
    matches!(header_buffer::rcode(answer), Ok(RCODE::ServerFailure | RCODE::Refused | RCODE::NotImplemented))
}

/// A new socket on a random port that hears `server` only.
fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Exchanges under way at a time. Half of the 1024 fds a process usually may have.
const MAX_EXCHANGES: usize = 512;

/// The longest a query is worked on: what the defaults of resolv.conf(5) allow, 3 servers × 2 attempts × 5 s.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(30);

/// An ICMP error makes a socket report `EPOLLERR` without `EPOLLIN`, which tokio's `recv` and `readable` sleep
/// through.
const MESSAGE_OR_ERROR: Interest = Interest::READABLE.add(Interest::ERROR);

/// Length of the header, RFC 1035, section 4.1.1.
const HEADER_LEN: usize = 12;
/// The opcode's bits in the flags, RFC 1035, section 4.1.1.
const OPCODE: u16 = 0x7800;
/// What follows the name in a question, RFC 1035, section 4.1.2.
const TYPE_AND_CLASS: usize = 4;
/// Limits of names, RFC 1035, section 2.3.4.
const MAX_LABEL: usize = 63;
const MAX_NAME: usize = 255;
/// No UDP datagram is longer.
const MAX_MESSAGE: usize = 65535;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE};
    use tokio::net::TcpListener;

    use super::super::servers::tests::TempFile;
    use super::*;

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
            Forwarder::new(Servers::from_file_with_port(self.file.path(), self.port))
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

    fn query() -> Vec<u8> {
        let mut packet = Packet::new_query(0xbeef);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new("wWw.eXaMpLe.com").unwrap();
        packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::HTTPS), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    /// `query` as a response with `rcode`, and `tail` behind it to tell it from others.
    fn response(query: &[u8], rcode: RCODE, tail: &[u8]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2] |= 0x80;
        message[3] = 0x80 | u8::try_from(rcode as u16).unwrap();
        message.extend_from_slice(tail);
        message
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
            move |received| if received == sent { vec![expected.clone()] } else { vec![] }
        });
        assert_eq!(forwarder.exchange(&sent).await, Some(expected));
    }

    #[tokio::test]
    async fn answer_that_does_not_fit_is_told_as_truncated() {
        let lab = Lab::new([FIRST, SECOND]).await;
        let (sent, forwarder) = (query(), lab.forwarder());
        serve(lab.first, |query| vec![response(query, RCODE::NoError, &[0; 600])]);
        let reply = forwarder.exchange_within(&sent, 512).await.unwrap();
        assert_eq!(reply.len(), sent.len());
        assert!(header_buffer::has_flags_unchecked(&reply, PacketFlag::TRUNCATION));
        assert_eq!(header_buffer::rcode(&reply), Ok(RCODE::NoError));
    }

    #[tokio::test]
    async fn silent_server_is_followed_by_the_next() {
        let lab = Lab::new([FIRST, SECOND]).await;
        let forwarder = lab.forwarder();
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        let start = time::Instant::now();
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"second"));
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn closed_port_is_followed_by_the_next_at_once() {
        let lab = Lab::new([NOBODY, SECOND]).await;
        let forwarder = lab.forwarder();
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        let start = time::Instant::now();
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"second"));
        assert!(start.elapsed() < Duration::from_millis(900));
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
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"right"));
    }

    #[tokio::test]
    async fn server_that_declines_is_followed_by_the_next() {
        for rcode in [RCODE::ServerFailure, RCODE::Refused, RCODE::NotImplemented] {
            let lab = Lab::new([FIRST, SECOND]).await;
            let forwarder = lab.forwarder();
            serve(lab.first, move |query| vec![response(query, rcode, b"first")]);
            serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
            assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"second"), "{rcode:?}");
        }
    }

    #[tokio::test]
    async fn answer_that_declines_is_better_than_none() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| vec![response(query, RCODE::Refused, b"first")]);
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"first"));
    }

    #[tokio::test]
    async fn dead_servers_are_told_as_servfail() {
        let lab = Lab::new([NOBODY, NOBODY]).await;
        assert_our_servfail(&lab.forwarder().exchange(&query()).await.unwrap());
        assert_our_servfail(&Forwarder::new(Servers::fixed(vec![])).exchange(&query()).await.unwrap());
    }

    #[tokio::test]
    async fn servers_of_a_replaced_file_are_asked() {
        let lab = Lab::new([FIRST, NOBODY]).await;
        let forwarder = lab.forwarder();
        serve(lab.first, |query| vec![response(query, RCODE::NoError, b"first")]);
        serve(lab.second, |query| vec![response(query, RCODE::NoError, b"second")]);
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"first"));
        lab.file.replace(&format!("nameserver {SECOND}\n"));
        time::sleep(Duration::from_millis(1100)).await;
        assert!(forwarder.exchange(&query()).await.unwrap().ends_with(b"second"));
    }

    #[tokio::test]
    async fn too_many_queries_are_told_as_servfail() {
        let forwarder = Forwarder::new(Servers::fixed(vec![]));
        let _all = forwarder.permits.try_acquire_many(u32::try_from(MAX_EXCHANGES).unwrap()).unwrap();
        assert_our_servfail(&forwarder.exchange(&query()).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_holds_whatever_the_file_says() {
        let lab = Lab::new([FIRST, SECOND]).await;
        lab.file.replace(&format!("nameserver {FIRST}\noptions timeout:20 attempts:5\n"));
        let start = time::Instant::now();
        assert_our_servfail(&lab.forwarder().exchange(&query()).await.unwrap());
        assert_eq!(start.elapsed().as_secs(), EXCHANGE_DEADLINE.as_secs());
    }

    #[tokio::test]
    async fn what_is_no_query_gets_silence() {
        let forwarder = Forwarder::new(Servers::fixed(vec![]));
        assert_eq!(forwarder.exchange(b"").await, None);
        assert_eq!(forwarder.exchange(&query()[..HEADER_LEN - 1]).await, None);
        assert_eq!(forwarder.exchange(&response(&query(), RCODE::NoError, b"")).await, None);
    }

    #[tokio::test]
    async fn tcp_goes_to_the_first_server_that_accepts() {
        let listener = TcpListener::bind((SECOND, 0)).await.unwrap();
        let accepting = listener.local_addr().unwrap();
        let closed = SocketAddr::from((NOBODY, accepting.port()));
        let stream = Forwarder::new(Servers::fixed(vec![closed, accepting])).connect().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), accepting);
        let error = Forwarder::new(Servers::fixed(vec![closed])).connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&closed.to_string()), "{error}");
        assert!(Forwarder::new(Servers::fixed(vec![])).connect().await.is_err());
    }

    #[test]
    fn unknown_types_and_opcodes_are_echoed() {
        let mut message = query();
        message[2] = 0x79; // opcode 15, RD
        message.truncate(message.len() - 4);
        message.extend_from_slice(&[0xfe, 0xdc, 0xba, 0x98]);
        let reply = Query::new(&message).unwrap().failure();
        assert_eq!(reply[2..6], [0xf9, 0x82, 0, 1]);
        assert_eq!(reply[HEADER_LEN..], message[HEADER_LEN..]);
    }

    #[test]
    fn broken_question_is_not_echoed() {
        let whole = query();
        let mut pointer = whole.clone();
        pointer[HEADER_LEN] = 0xc0;
        let endless = [&whole[..HEADER_LEN], &[1, b'a'].repeat(200), &[0, 0, 1, 0, 1]].concat();
        for broken in [&whole[..whole.len() - 1], &pointer, &endless, &whole[..HEADER_LEN]] {
            let reply = Query::new(broken).unwrap().failure();
            assert_eq!(reply.len(), HEADER_LEN);
            assert!(Packet::parse(&reply).is_ok_and(|packet| packet.questions.is_empty()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled_without_panic(
            message in prop::collection::vec(any::<u8>(), 0..400),
            other in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let is_query = message.len() >= HEADER_LEN && message[2] & 0x80 == 0;
            let query = Query::new(&message);
            prop_assert_eq!(query.is_some(), is_query);
            if let Some(query) = query {
                let reply = query.failure();
                prop_assert!(query.is_answered_by(&reply) && declines(&reply));
                prop_assert!(reply.len() <= message.len());
                let _ = query.is_answered_by(&other);
            }
            let _ = declines(&other);
        }
    }
}
