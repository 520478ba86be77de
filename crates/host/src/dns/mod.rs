//! The network's DNS address: names of its own, the embedder's answers, and the host's resolvers for the rest.
//!
//! ```text
//! container ── UDP message ─┐
//!           ── TCP stream ──┴► NameServer ─┬─ LocalNames: hosts and containers of the network
//!              (stream.rs)                 ├─ Resolver: the embedder's, if there is one
//!                                          └─ Forwarder ── UDP, TCP if truncated ──► server, next server, …
//! ```
//!
//! **Purpose.** A proxy as RFC 5625 wants it. Of a forwarded message it reads three parts: the 12 bytes of the header
//! (RFC 1035, section 4.1.1), the question, and size and DO bit of an OPT record (RFC 6891). Every record type, class,
//! opcode and EDNS option passes untouched, and so does the case of every letter.
//!
//! **Servers.** [`Servers`] reads resolv.conf(5) again whenever the file has changed, or holds the embedder's list. The
//! forwarder asks servers in that order (`rotate`: each query starts one further), each for `timeout`, the list
//! `attempts` times. It learns no order of preference, so a container sees the delays that the host sees.
//!
//! **One exchange.** It has a random port and a random ID of its own ([`upstream`]). ICMP errors arrive as
//! `ECONNREFUSED` at once, and the kernel drops datagrams from other addresses. A message is the answer if it is a
//! response with that ID and the question (RFC 5452, section 9.1). The exchange skips anything else and goes on
//! waiting. The container's resolver gets the whole message and decides whether its records answer the question.
//!
//! | a server | then |
//! |---|---|
//! | answers | its message is the answer |
//! | says SERVFAIL, REFUSED or NOTIMP | the message is kept, the next server is asked; with such a message in hand there is no second round |
//! | is silent, unreachable, refuses | the next server is asked |
//!
//! If no server has answered, the last kept message is the answer. Without one, the answer is a SERVFAIL made here, so
//! that the container fails at once instead of waiting for its own timeout.
//!
//! **Truncation.** A datagram is no longer than the query's OPT record says, or 512 bytes. A longer answer is replaced
//! by the question, OPT and the TC bit. The container then comes back over TCP, which RFC 7766 requires of every
//! resolver. A server's truncated answer passes unchanged to a query over UDP. For a query over TCP the same server is
//! asked over TCP. The MTU is no limit. RFC 9715 warns of fragments that are lost or forged on a path, but this is one
//! link.
//!
//! **Limits.** Queries are hostile. A container may have [`max_dns_queries`](crate::NetworkBuilder::max_dns_queries)
//! under way at a time, on all its queues together, and fewer if messages are longer than 1 KiB ([`places`]). Each has
//! `EXCHANGE_DEADLINE`, even if resolv.conf(5) allows more. Queries beyond the limit get SERVFAIL at once: after
//! silence, resolvers would repeat them and add to the load. Each queue of a container has at most 64 UDP sockets for
//! each server and 64 TCP connections. The container may have
//! [`max_dns_connections`](crate::NetworkBuilder::max_dns_connections) TCP connections of its own. The next is refused.
//!
//! **Plain questions only.** A query for records with several questions, or one whose name is compressed, gets FORMERR
//! (RFC 9619). Servers read such messages differently. A server must read the same name that the network's own names
//! and the embedder's resolver were asked for.
//!
//! **Not done.** No cache, no `use-vc`, no DNS over TLS. Zone transfers over TCP get NOTIMP, since their answers are
//! many messages. Search domains are left to the container's resolver. mDNS is multicast, which is not carried. The
//! caller applies the policy: the sockets of the forwarder do not pass through the Dialer.

mod forward;
mod local;
mod places;
mod request;
mod resolver;
mod server;
mod servers;
mod stream;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::addressing::leases::Directory;
use crate::descriptors::ContainerShare;
use forward::Forwarder;
use local::LocalNames;
use servers::Servers;

pub(crate) use local::Hosts;
pub(crate) use nsnet_stack::dns::HostName;
pub(crate) use places::Places;
pub use resolver::{DnsQuery, Resolver};
pub(crate) use server::NameServer;

/// How a query has arrived, and its answer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DnsTransport {
    /// UDP, for which an answer may be too long.
    Datagram,
    /// TCP.
    Stream,
}

/// How a network answers DNS.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) upstreams: Upstreams,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    /// The containers, if they reach each other.
    pub(crate) containers: Option<Directory>,
}

impl Terms {
    /// The name server of a container, or of one queue of it. `places` and `descriptors` are those of the container.
    pub(crate) fn server(&self, places: Places, descriptors: Arc<ContainerShare>) -> NameServer {
        let forwarder = Forwarder::new(self.upstreams.clone().servers(), descriptors);
        let names = LocalNames::new(Arc::clone(&self.hosts), self.containers.clone());
        NameServer::new(names, self.resolver.clone(), forwarder, places)
    }
}

/// The servers to which queries are forwarded.
#[derive(Debug, Clone)]
pub(crate) enum Upstreams {
    System,
    File(PathBuf),
    Fixed(Vec<SocketAddr>),
}

impl Upstreams {
    fn servers(self) -> Servers {
        match self {
            Self::System => Servers::system(),
            Self::File(path) => Servers::from_file(&path),
            Self::Fixed(servers) => Servers::fixed(servers),
        }
    }
}

/// The longest time for one query. It is what the defaults of resolv.conf(5) allow: 3 servers × 2 attempts × 5 s. The
/// embedder's resolver has as long before that.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(30);
