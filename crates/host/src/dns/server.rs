//! The server at the network's DNS address. Queries over UDP and TCP take the same path.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use simple_dns::RCODE;
use tokio::io::DuplexStream;
use tokio::time;

use super::forward::Forwarder;
use super::local::LocalNames;
use super::places::{Place, Places};
use super::request::Request;
use super::resolver::{DnsQuery, Resolver, is_sound};
use super::{DnsTransport, EXCHANGE_DEADLINE, stream};
use crate::task::{Panicked, contained};

/// Answers the queries of one container, or one queue of it.
pub(crate) struct NameServer {
    names: LocalNames,
    resolver: Option<Arc<dyn Resolver>>,
    forwarder: Forwarder,
    places: Places,
    /// Whether an unusable answer of the embedder's has been logged.
    has_warned: AtomicBool,
}

impl NameServer {
    pub(crate) fn new(
        names: LocalNames,
        resolver: Option<Arc<dyn Resolver>>,
        forwarder: Forwarder,
        places: Places,
    ) -> Self {
        Self { names, resolver, forwarder, places, has_warned: AtomicBool::new(false) }
    }

    /// The reply to a message of the container at `source`. `None` if it is not a DNS query and gets no reply.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the query.
    pub(crate) async fn answer(
        &self,
        message: &Bytes,
        source: SocketAddr,
        transport: DnsTransport,
    ) -> Option<Reply> {
        let request = Request::parse(message, transport)?;
        let query = &request.query;
        if query.hides_its_question() {
            // Servers could read it in several ways, one of which would bypass the names and the resolver here.
            return Some(Reply::new(&request, query.decline(RCODE::FormatError).into(), None));
        }
        if let Some(answer) = self.names.answer(query) {
            return Some(Reply::new(&request, answer.into(), self.places.take(0)));
        }
        let Some(place) = self.places.take(message.len()) else {
            tracing::debug!(
                "too many DNS queries at a time, one was answered SERVFAIL; max_dns_queries is the limit"
            );
            return Some(Reply::new(&request, query.failure().into(), None));
        };
        let answer = match self.ask_embedder(&request, source).await {
            Some(answer) => answer,
            None => self.forwarder.exchange(&request).await,
        };
        Some(Reply::new(&request, answer, Some(place)))
    }

    /// A stream that speaks DNS with the container at `source`, and the future that serves it. `None` if the container
    /// has too many.
    pub(crate) fn stream(
        self: &Rc<Self>,
        source: SocketAddr,
    ) -> Option<(DuplexStream, impl Future<Output = ()> + use<>)> {
        let connection = self.places.connect()?;
        let (theirs, ours) = tokio::io::duplex(STREAM_BUFFER);
        let serving = stream::serve(Rc::clone(self), ours, source);
        let work = async move {
            serving.await;
            drop(connection);
        };
        Some((theirs, work))
    }

    /// The embedder's answer. `None` if it has none.
    async fn ask_embedder(&self, request: &Request<'_>, source: SocketAddr) -> Option<Bytes> {
        let resolver = self.resolver.as_ref()?;
        let query = &request.query;
        let asked = DnsQuery::of(*request, source, &self.forwarder);
        let answer =
            time::timeout(EXCHANGE_DEADLINE, contained(async { resolver.resolve(&asked).await })).await;
        match answer {
            Ok(Ok(None)) => None,
            Ok(Ok(Some(answer))) if is_sound(query, &answer) => Some(answer),
            Ok(Ok(Some(_))) => {
                // Only once, because the container decides how often this happens.
                if !self.has_warned.swap(true, Relaxed) {
                    tracing::warn!(
                        "what the resolver answers is no response to its query, which gets SERVFAIL"
                    );
                }
                Some(query.failure().into())
            }
            Ok(Err(Panicked)) => {
                tracing::debug!("the resolver failed on a query, which was answered SERVFAIL");
                Some(query.failure().into())
            }
            Err(_) => {
                tracing::debug!("the resolver has taken too long for a query, which was answered SERVFAIL");
                Some(query.failure().into())
            }
        }
    }
}

/// A message for the container.
#[derive(Debug)]
pub(crate) struct Reply {
    message: Bytes,
    /// Kept until the message is delivered, so that waiting messages are bounded too.
    place: Option<Place>,
}

impl Reply {
    /// An answer in the form in which it can travel.
    fn new(request: &Request<'_>, answer: Bytes, mut place: Option<Place>) -> Self {
        let query = &request.query;
        let fits = match request.transport {
            DnsTransport::Datagram => answer.len() <= query.longest_datagram(),
            DnsTransport::Stream => true,
        };
        let message = if fits { answer } else { query.truncated().into() };
        if place.as_mut().is_some_and(|place| !place.hold(message.len())) {
            return Self { message: query.failure().into(), place };
        }
        Self { message, place }
    }

    pub(crate) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Whether it may wait for a full link. The number of such messages is bounded.
    pub(crate) fn may_wait(&self) -> bool {
        self.place.is_some()
    }
}

/// Bytes in the buffer of a stream, in each direction.
const STREAM_BUFFER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use simple_dns::{PacketFlag, TYPE, header_buffer};
    use tokio::net::UdpSocket;
    use tokio::time::Duration;

    use super::super::local::Hosts;
    use super::super::servers::Servers;
    use super::*;
    use crate::descriptors::testing::plenty;
    use crate::task::clock::now;
    use nsnet_stack::dns::HostName;
    use nsnet_stack::dns::testing::{query_for, response, with_opt};

    const QUERIES: usize = 4096;

    const SOURCE: &str = "10.0.2.100:4000";

    fn server(resolver: Option<Arc<dyn Resolver>>, servers: Vec<SocketAddr>) -> NameServer {
        let mut hosts = Hosts::default();
        hosts.add(&HostName::parse("db.test").unwrap(), ["10.1.0.1".parse().unwrap()]);
        let many = (0..60).map(|host| SocketAddr::from(([10, 2, 0, host], 0)).ip());
        hosts.add(&HostName::parse("many.test").unwrap(), many);
        let names = LocalNames::new(Arc::new(hosts), None);
        let forwarder = Forwarder::new(Servers::fixed(servers), plenty());
        NameServer::new(names, resolver, forwarder, Places::new(QUERIES, 256))
    }

    async fn answered(server: &NameServer, message: &[u8], transport: DnsTransport) -> Bytes {
        let message = Bytes::copy_from_slice(message);
        server.answer(&message, SOURCE.parse().unwrap(), transport).await.unwrap().message
    }

    async fn rcode(server: &NameServer, name: &str) -> RCODE {
        let answer = answered(server, &query_for(name, TYPE::A), DnsTransport::Datagram).await;
        header_buffer::rcode(&answer).unwrap()
    }

    /// A server whose answers are `length` bytes longer than the queries.
    async fn upstream(length: usize) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((received, from)) = socket.recv_from(&mut buffer).await {
                let answer = response(&buffer[..received], RCODE::NoError, &vec![0; length]);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_no_longer_than_the_client_takes() {
        let server = server(None, vec![upstream(2000).await]);
        let plain = query_for("long.test", TYPE::TXT);
        for (message, transport, is_whole) in [
            (plain.clone(), DnsTransport::Datagram, false),
            (with_opt(&plain, 1232), DnsTransport::Datagram, false),
            (with_opt(&plain, 4096), DnsTransport::Datagram, true),
            (plain.clone(), DnsTransport::Stream, true),
        ] {
            let answer = answered(&server, &message, transport).await;
            assert_eq!(answer.len() > 2000, is_whole);
            assert_eq!(header_buffer::has_flags_unchecked(&answer, PacketFlag::TRUNCATION), !is_whole);
        }
        let hosts = query_for("many.test", TYPE::A);
        assert!(answered(&server, &hosts, DnsTransport::Datagram).await.len() < 512);
        assert!(answered(&server, &hosts, DnsTransport::Stream).await.len() > 60 * 16);
    }

    #[tokio::test]
    async fn what_goes_beyond_the_limit_fails_at_once_and_places_come_back() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(server(None, vec![silent.local_addr().unwrap()]));
        let taken: Vec<_> = (0..QUERIES).map(|_| server.places.take(0).unwrap()).collect();
        assert_eq!(rcode(&server, "www.test").await, RCODE::ServerFailure);
        assert_eq!(rcode(&server, "db.test").await, RCODE::NoError, "needs no place");
        drop(taken);
        let asked = Bytes::from(query_for("www.test", TYPE::A));
        let given_up = server.answer(&asked, SOURCE.parse().unwrap(), DnsTransport::Datagram);
        assert!(time::timeout(Duration::from_millis(20), given_up).await.is_err());
        let places: Vec<_> = (0..QUERIES).map_while(|_| server.places.take(0)).collect();
        assert_eq!(places.len(), QUERIES);
    }

    #[tokio::test]
    async fn long_messages_under_way_are_fewer() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(server(None, vec![silent.local_addr().unwrap()]));
        let mut long = query_for("www.test", TYPE::A);
        long.resize(60_000, 0);
        let asked: Vec<_> = (0..QUERIES / 50)
            .map(|_| {
                let (server, long) = (Arc::clone(&server), long.clone());
                tokio::spawn(async move { answered(&server, &long, DnsTransport::Stream).await })
            })
            .collect();
        let mut failed = 0;
        for asked in asked {
            failed += usize::from(time::timeout(Duration::from_millis(5), asked).await.is_ok());
        }
        // 69 queries fit, each of which takes 59 places.
        assert!(failed >= QUERIES / 50 - QUERIES / 59, "{failed}");
    }

    #[tokio::test]
    async fn a_question_that_is_hidden_is_not_passed_on() {
        let server = server(Some(Arc::new(Fickle)), vec![upstream(0).await]);
        let message = query_for("refused.test", TYPE::A);
        let mut two = message.clone();
        two[5] = 2;
        // The name stands behind the question, which points to it.
        let mut pointer = message[..12].to_vec();
        pointer.extend_from_slice(&[0xc0, 18, 0, 1, 0, 1]);
        pointer.extend_from_slice(&message[12..message.len() - 4]);
        for hidden in [two, pointer, message[..20].to_vec()] {
            for transport in [DnsTransport::Datagram, DnsTransport::Stream] {
                let answer = answered(&server, &hidden, transport).await;
                assert_eq!(header_buffer::rcode(&answer), Ok(RCODE::FormatError));
                assert_eq!(header_buffer::id(&answer), header_buffer::id(&hidden));
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_query_gets_silence() {
        let server = server(None, vec![]);
        let message = query_for("db.test", TYPE::A);
        for silent in [&b""[..], &message[..11], &response(&message, RCODE::NoError, b"")] {
            let silent = Bytes::copy_from_slice(silent);
            assert!(server.answer(&silent, SOURCE.parse().unwrap(), DnsTransport::Datagram).await.is_none());
        }
    }

    /// Behaves as each name says.
    struct Fickle;

    #[async_trait]
    impl Resolver for Fickle {
        async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
            assert_eq!(query.source(), SOURCE.parse().unwrap());
            match query.name()?.as_str() {
                "panic.test" => panic!("asked to"),
                "nonsense.test" => Some(Bytes::from_static(b"nonsense")),
                "slow.test" => std::future::pending().await,
                "refused.test" => Some(query.refuse()),
                "wrapped.test" => Some(query.forward(query.message()).await),
                "db.test" => Some(query.fail()),
                _ => None,
            }
        }
    }

    #[tokio::test]
    async fn embedder_answers_refuses_wraps_or_leaves_it() {
        let server = server(Some(Arc::new(Fickle)), vec![upstream(0).await]);
        for (name, expected) in [
            ("refused.test", RCODE::Refused),
            ("wrapped.test", RCODE::NoError),
            ("other.test", RCODE::NoError),
            ("db.test", RCODE::NoError),
            ("nonsense.test", RCODE::ServerFailure),
            ("panic.test", RCODE::ServerFailure),
            ("other.test", RCODE::NoError),
        ] {
            assert_eq!(rcode(&server, name).await, expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn embedder_that_takes_too_long_is_given_up() {
        let server = server(Some(Arc::new(Fickle)), vec![]);
        let start = now();
        assert_eq!(rcode(&server, "slow.test").await, RCODE::ServerFailure);
        assert_eq!((now() - start).as_secs(), EXCHANGE_DEADLINE.as_secs());
    }
}
