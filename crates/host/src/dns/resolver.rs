//! Answers of the embedder's own.

use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use simple_dns::RCODE;

use super::forward::Forwarder;
use super::local::with_records;
use super::{Transport, local};
use nsnet_stack::dns::HostName;
use nsnet_stack::dns::Query;

/// Answers the DNS queries of containers, in whole or in part. Object-safe; shared by all queries of a network.
///
/// Asked about every query that the network does not answer by itself (its
/// [hosts](crate::NetworkBuilder::static_host); FORMERR to what has several questions or a compressed one), over UDP and
/// TCP alike, once the [`Dialer`](crate::Dialer) has authorized the flow. What it leaves to the network, by `None`, goes
/// to the servers.
///
/// Runs on an engine thread: what blocks it stalls the network and the others that share the thread, what waits
/// (`.await`) holds up only its own query. At most 4 096 queries of a container are under way at once, fewer if they are
/// longer than 1 KiB; what goes beyond is answered SERVFAIL and not asked here.
///
/// # Answers
/// A whole message (RFC 1035, section 4), of which the network checks that it is a response with the ID and the
/// question of the query; anything else, a panic included, becomes SERVFAIL. A message that is too long for a datagram is
/// replaced by one that says so, and the container asks again over TCP. Messages can be put together with any
/// DNS library; [`DnsQuery`] makes the simple ones.
///
/// # Cancel safety
/// The future is dropped when the query has taken 30 seconds, and with the container.
///
/// # Examples
/// One name is answered, those of a domain are refused, the others are forwarded:
///
/// ```
/// use std::net::Ipv4Addr;
/// use nsnet_host::{DnsQuery, Network, Resolver, async_trait};
///
/// struct Split;
///
/// #[async_trait]
/// impl Resolver for Split {
///     async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Vec<u8>> {
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
/// Around the network's own forwarder, to see what it answers:
///
/// ```
/// use nsnet_host::{DnsQuery, Resolver, async_trait};
///
/// struct Audit;
///
/// #[async_trait]
/// impl Resolver for Audit {
///     async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Vec<u8>> {
///         let answer = query.forward(query.message()).await;
///         eprintln!("{} asked for {:?}: {} bytes", query.source(), query.name(), answer.len());
///         Some(answer)
///     }
/// }
/// ```
#[async_trait]
pub trait Resolver: Send + Sync {
    /// The message that answers `query`, or `None` to have it forwarded.
    async fn resolve(&self, query: &DnsQuery<'_>) -> Option<Vec<u8>>;
}

/// A query of a container.
#[derive(Debug, Clone, Copy)]
pub struct DnsQuery<'a> {
    query: Query<'a>,
    source: SocketAddr,
    transport: Transport,
    forwarder: Option<&'a Forwarder>,
}

impl<'a> DnsQuery<'a> {
    /// A query as the network presents it, for tests of resolvers; there are no servers behind it. `None` if the
    /// message is no query.
    #[must_use]
    pub fn new(message: &'a [u8], source: SocketAddr) -> Option<Self> {
        let query = Query::parse(message)?;
        Some(Self { query, source, transport: Transport::Datagram, forwarder: None })
    }

    pub(super) fn of(
        query: Query<'a>,
        source: SocketAddr,
        transport: Transport,
        forwarder: &'a Forwarder,
    ) -> Self {
        Self { query, source, transport, forwarder: Some(forwarder) }
    }

    /// The whole message, with a header at least.
    #[must_use]
    pub fn message(&self) -> &'a [u8] {
        self.query.message()
    }

    /// The container's address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// The name that is asked for, in lower case and without a dot at the end; the root is empty. `None` unless there is
    /// exactly one question. Bytes that no host name has are escaped (RFC 1035, section 5.1), a dot within a label
    /// among them.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        Some(HostName::of_question(self.query.question()?.name).to_string())
    }

    /// The type of record that is asked for: 1 for A, 28 for AAAA
    /// (<https://www.iana.org/assignments/dns-parameters>).
    #[must_use]
    pub fn record_type(&self) -> Option<u16> {
        Some(self.query.question()?.record_type)
    }

    /// Asks the network's servers. `message` is the query's own or another one; if nobody answers, or it is no query,
    /// what is returned says SERVFAIL.
    ///
    /// # Cancel safety
    /// Dropping the future gives the query up.
    pub async fn forward(&self, message: &[u8]) -> Vec<u8> {
        match (self.forwarder, Query::parse(message)) {
            (Some(forwarder), Some(query)) => forwarder.exchange(&query, self.transport).await,
            (_, query) => query.unwrap_or(self.query).failure(),
        }
    }

    /// The answer that the name has these addresses, as far as they are of the type that is asked for; `ttl` is in
    /// seconds.
    #[must_use]
    pub fn answer(&self, ttl: u32, addresses: &[IpAddr]) -> Vec<u8> {
        let answer = self.query.question().and_then(|question| {
            let records = local::address_records(question, addresses);
            with_records(&self.query, ttl, records.into_iter())
        });
        answer.unwrap_or_else(|| self.query.decline(RCODE::NoError))
    }

    /// The answer that there is no such name (NXDOMAIN).
    #[must_use]
    pub fn deny(&self) -> Vec<u8> {
        self.query.decline(RCODE::NameError)
    }

    /// The answer that policy forbids one (REFUSED).
    #[must_use]
    pub fn refuse(&self) -> Vec<u8> {
        self.query.decline(RCODE::Refused)
    }

    /// The answer that none can be found (SERVFAIL).
    #[must_use]
    pub fn fail(&self) -> Vec<u8> {
        self.query.failure()
    }
}

/// Whether the embedder's answer is one to this query.
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
        let message = query_for("Www.Example.test", TYPE::A);
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
            (query.forward(b"nonsense").await, RCODE::ServerFailure, 0),
        ];
        for (answer, rcode, records) in answers {
            assert!(is_sound(&query.query, &answer));
            let packet = Packet::parse(&answer).unwrap();
            assert_eq!((packet.rcode(), packet.answers.len()), (rcode, records));
        }
        assert!(DnsQuery::new(&query.deny(), SOURCE.parse().unwrap()).is_none(), "a response");
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
