//! Answers of the embedder's own to DNS queries.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use simple_dns::RCODE;

use super::forward::Forwarder;
use super::local::with_records;
use super::request::Request;
use super::{DnsTransport, local};
use nsnet_stack::dns::HostName;
use nsnet_stack::dns::Query;

/// Answers the DNS queries of containers, in whole or in part. One Resolver serves all containers of a network.
///
/// The network asks it about every query that it does not answer itself, over UDP and TCP alike, once the
/// [`Dialer`](crate::Dialer) has authorized the flow. The network itself answers queries for its
/// [hosts](crate::NetworkBuilder::static_host). It answers FORMERR to a query with several questions or a compressed
/// one. If the Resolver returns `None`, the network forwards the query to its servers.
///
/// # The runtime
/// `resolve` runs on an engine thread of the network, within its tokio 1 runtime, as the methods of a
/// [`Dialer`](crate::Dialer#the-runtime) do. A Resolver that blocks stalls the containers of the network, and the other
/// networks that share the thread. One that waits (`.await`) holds up its own query and no other.
///
/// # Back-pressure
/// At most [`max_dns_queries`](crate::NetworkBuilder::max_dns_queries) of a container are under way at once, fewer if
/// they are longer than 1 KiB. Further queries get SERVFAIL,
/// without asking the Resolver.
///
/// # Answers
/// An answer is a whole message (RFC 1035, section 4). [`DnsQuery`] makes the simple ones; any DNS library can make
/// others. Messages are [`Bytes`], which can be kept or passed on without a copy.
///
/// The network checks that the answer is a response, with the ID and the question of the query. Anything else becomes
/// SERVFAIL. An answer too long for a datagram is replaced by a truncated one (TC), and the container asks again over
/// TCP.
///
/// # Cancel safety
/// The future is dropped when the query has taken 30 seconds, and when the container ends.
///
/// # Panics
/// After a panic, the container gets SERVFAIL.
///
/// # Examples
/// A Resolver that answers one name, refuses the names of a domain, and forwards the others:
///
/// ```
/// use std::net::Ipv4Addr;
/// use nsnet_host::{Bytes, DnsQuery, Network, Resolver, async_trait};
///
/// struct Split;
///
/// #[async_trait]
/// impl Resolver for Split {
///     async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
///         let name = query.name()?;
///         if name == "build.corp.test" {
///             Some(query.answer(60, &[Ipv4Addr::new(203, 0, 113, 9).into()]))
///         } else if name.ends_with(".corp.test") {
///             Some(query.refuse())
///         } else {
///             None
///         }
///     }
/// }
///
/// let network = Network::builder().resolver(Split);
/// ```
///
/// A wrapper for any Resolver. It logs every answer, whether from that Resolver or from the network's servers:
///
/// ```
/// use nsnet_host::{Bytes, DnsQuery, Resolver, async_trait};
///
/// struct Audit<R>(R);
///
/// #[async_trait]
/// impl<R: Resolver> Resolver for Audit<R> {
///     async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
///         let answer = match self.0.resolve(query).await {
///             Some(answer) => answer,
///             None => query.forward(query.message()).await,
///         };
///         eprintln!("{} asked for {:?}: {} bytes", query.source(), query.name(), answer.len());
///         Some(answer)
///     }
/// }
/// ```
///
/// References, [`Box`]es and [`Arc`]s of Resolvers are Resolvers too.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The message that answers `query`, or `None` to have it forwarded.
    async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes>;
}

/// Makes references and smart pointers of a Resolver Resolvers too.
macro_rules! resolver_behind {
    ($($pointer:ty),+) => {$(
        #[async_trait]
        impl<R: Resolver + ?Sized> Resolver for $pointer {
            async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
                (**self).resolve(query).await
            }
        }
    )+};
}

resolver_behind!(&R, Box<R>, Arc<R>);

/// A query of a container.
#[derive(Clone, Copy)]
pub struct DnsQuery<'a> {
    request: Request<'a>,
    source: SocketAddr,
    forwarder: Option<&'a Forwarder>,
}

impl<'a> DnsQuery<'a> {
    /// A query as the network presents it, for tests of resolvers. There are no servers behind it:
    /// [`forward`](Self::forward) fails. Returns `None` if the message is not a query.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::{Bytes, DnsQuery};
    ///
    /// // ID 7, recursion desired, one question: the IPv4 address of "db.test".
    /// let message = Bytes::from_static(b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x02db\x04test\0\0\x01\0\x01");
    /// let query = DnsQuery::new(&message, "10.0.2.100:4000".parse().unwrap()).unwrap();
    /// assert_eq!((query.name().as_deref(), query.record_type()), (Some("db.test"), Some(1)));
    /// ```
    #[must_use]
    pub fn new(message: &'a Bytes, source: SocketAddr) -> Option<Self> {
        let request = Request::parse(message, DnsTransport::Datagram)?;
        Some(Self { request, source, forwarder: None })
    }

    pub(super) fn of(request: Request<'a>, source: SocketAddr, forwarder: &'a Forwarder) -> Self {
        Self { request, source, forwarder: Some(forwarder) }
    }

    /// The whole message, with at least a header. A clone of it shares the bytes.
    #[must_use]
    pub fn message(&self) -> &'a Bytes {
        self.request.message
    }

    /// The container's address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// The name in question, in lower case and without a dot at the end. The root is empty. `None` unless there is
    /// exactly one question.
    ///
    /// Bytes that no host name has are escaped (RFC 1035, section 5.1). A dot within a label is one of them.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        Some(HostName::of_question(self.query().question()?.name).to_string())
    }

    /// The type of record in question: 1 for A, 28 for AAAA
    /// (<https://www.iana.org/assignments/dns-parameters>).
    #[must_use]
    pub fn record_type(&self) -> Option<u16> {
        Some(self.query().question()?.record_type)
    }

    /// Asks the network's servers. `message` may be the query's own or another one. If no server answers, or `message`
    /// is not a query, the result is SERVFAIL.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the query.
    pub async fn forward(&self, message: &Bytes) -> Bytes {
        match (self.forwarder, Request::parse(message, self.request.transport)) {
            (Some(forwarder), Some(request)) => forwarder.exchange(&request).await,
            (_, request) => request.unwrap_or(self.request).query.failure().into(),
        }
    }

    /// An answer with those of the addresses that have the type in question. `ttl` is in seconds.
    #[must_use]
    pub fn answer(&self, ttl: u32, addresses: &[IpAddr]) -> Bytes {
        let answer = self.query().question().and_then(|question| {
            let records = local::address_records(question, addresses);
            with_records(self.query(), ttl, records.into_iter())
        });
        answer.map_or_else(|| self.decline(RCODE::NoError), Bytes::from)
    }

    /// An answer that the name does not exist (NXDOMAIN).
    #[must_use]
    pub fn deny(&self) -> Bytes {
        self.decline(RCODE::NameError)
    }

    /// An answer that policy forbids the query (REFUSED).
    #[must_use]
    pub fn refuse(&self) -> Bytes {
        self.decline(RCODE::Refused)
    }

    /// An answer that the name cannot be resolved now (SERVFAIL).
    #[must_use]
    pub fn fail(&self) -> Bytes {
        self.decline(RCODE::ServerFailure)
    }

    fn decline(&self, rcode: RCODE) -> Bytes {
        self.query().decline(rcode).into()
    }

    fn query(&self) -> &Query<'a> {
        &self.request.query
    }
}

impl fmt::Debug for DnsQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsQuery")
            .field("name", &self.name())
            .field("record_type", &self.record_type())
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Whether the embedder's answer belongs to this query.
pub(super) fn is_sound(query: &Query<'_>, answer: &[u8]) -> bool {
    answer.len() <= super::upstream::MAX_MESSAGE && query.is_answered_by(answer, query.id())
}

#[cfg(test)]
mod tests {
    use simple_dns::{Packet, TYPE};

    use super::*;
    use nsnet_stack::dns::testing::query_for;

    const SOURCE: &str = "10.0.2.100:4000";

    #[tokio::test]
    async fn a_query_makes_the_simple_answers() {
        let message = Bytes::from(query_for("Www.Example.test", TYPE::A));
        let query = DnsQuery::new(&message, SOURCE.parse().unwrap()).unwrap();
        assert_eq!((query.name().as_deref(), query.record_type()), (Some("www.example.test"), Some(1)));
        let addresses = ["10.1.0.1".parse().unwrap(), "fd01::1".parse().unwrap()];
        let answers = [
            (query.answer(60, &addresses), RCODE::NoError, 1),
            (query.answer(60, &addresses[1..]), RCODE::NoError, 0),
            (query.deny(), RCODE::NameError, 0),
            (query.refuse(), RCODE::Refused, 0),
            (query.fail(), RCODE::ServerFailure, 0),
            (query.forward(&message).await, RCODE::ServerFailure, 0),
            (query.forward(&Bytes::from_static(b"nonsense")).await, RCODE::ServerFailure, 0),
        ];
        for (answer, rcode, records) in answers {
            assert!(is_sound(query.query(), &answer));
            let packet = Packet::parse(&answer).unwrap();
            assert_eq!((packet.rcode(), packet.answers.len()), (rcode, records));
        }
        assert!(DnsQuery::new(&query.deny(), SOURCE.parse().unwrap()).is_none(), "a response");
    }

    /// Denies everything.
    struct Denies;

    #[async_trait]
    impl Resolver for Denies {
        async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Bytes> {
            Some(query.deny())
        }
    }

    #[tokio::test]
    async fn a_pointer_answers_as_what_it_points_to() {
        async fn assert_denies(resolver: impl Resolver) {
            let message = Bytes::from(query_for("www.test", TYPE::A));
            let query = DnsQuery::new(&message, SOURCE.parse().unwrap()).unwrap();
            assert_eq!(resolver.resolve(&query).await, Some(query.deny()));
        }
        assert_denies(&Denies).await;
        assert_denies(Box::new(Denies)).await;
        assert_denies(Arc::new(Denies)).await;
        assert_denies(&Denies as &dyn Resolver).await;
        assert_denies(Box::new(Denies) as Box<dyn Resolver>).await;
        assert_denies(Arc::new(Denies) as Arc<dyn Resolver>).await;
    }

    #[test]
    fn what_answers_another_query_is_not_sound() {
        let (message, other) = (query_for("a.test", TYPE::A), query_for("b.test", TYPE::A));
        let asked = Query::parse(&message).unwrap();
        let (mut other_id, other) = (asked.decline(RCODE::NoError), Query::parse(&other).unwrap());
        assert!(is_sound(&asked, &other_id));
        other_id[0] ^= 1;
        assert!(!is_sound(&asked, &other_id));
        assert!(!is_sound(&asked, &other.decline(RCODE::NoError)));
        assert!(!is_sound(&asked, &message));
        assert!(!is_sound(&asked, b""));
        let mut long = asked.failure();
        long.resize(65_536, 0);
        assert!(!is_sound(&asked, &long));
    }
}
