//! The network's DNS address: names of its own, the embedder's answers, and the host's resolvers for the rest.
//!
//! ```text
//! container ── UDP message ─┐
//!           ── TCP stream ──┴► NameServer ─┬─ LocalNames: hosts and containers of the network
//!              (stream.rs)                 ├─ Resolver: the embedder's, if there is one
//!                                          └─ Forwarder ── UDP, TCP if truncated ──► server, next server, …
//! ```
//!
//! **What it is.** A proxy as RFC 5625 wants it. Of what it forwards it understands the 12 bytes of the header (RFC 1035,
//! section 4.1.1), the question, and the size and the DO bit of an OPT record (RFC 6891), so every record type, class,
//! opcode, EDNS option and the case of every letter passes untouched.
//!
//! **Which servers.** [`Servers`] reads resolv.conf(5) again whenever the file has changed, or holds the
//! embedder's list. Servers are asked in that order (`rotate`: each query starts one further), each for
//! `timeout`, the list `attempts` times. No order of preference is learnt: a container sees the delays the
//! host sees.
//!
//! **One exchange.** A random port and a random ID of its own ([`upstream`]), ICMP errors that arrive as
//! `ECONNREFUSED` at once, and a kernel that drops what comes from elsewhere. A message is the answer if it is
//! a response with that ID and the question (RFC 5452, section 9.1); anything else is skipped and the wait goes on.
//! Whether the records in it answer the question is for the container's resolver, which gets the whole message.
//!
//! | a server | then |
//! |---|---|
//! | answers | its message is the answer |
//! | says SERVFAIL, REFUSED or NOTIMP | the message is kept, the next server is asked; with such a message in hand there is no second round |
//! | is silent, unreachable, refuses | the next server is asked |
//!
//! When nobody has answered, the last kept message is the answer; without one, a SERVFAIL made here, so that
//! the container fails at once instead of waiting for its own timeout.
//!
//! **Truncation.** A datagram is no longer than the query's OPT record says, or 512 bytes; what is longer is replaced by
//! question, OPT and the TC bit, and the container comes back over TCP, which RFC 7766 makes every resolver able
//! to. A truncated answer of a server passes as such; for a query that has come over TCP the same server is asked
//! over TCP. The MTU is no limit: what RFC 9715 fears of fragments, that they are lost on the way or forged, needs a
//! path, and this is one link, where a datagram is put into the container's kernel whole or in pieces.
//!
//! **Limits**, because the queries are hostile. A container may have
//! [`max_dns_queries`](crate::NetworkBuilder::max_dns_queries) under way at a time, whatever its queues, and fewer if
//! messages are longer than 1 KiB ([`places`]). Each has `EXCHANGE_DEADLINE`, however long resolv.conf(5) would have it
//! wait. What goes beyond is answered SERVFAIL at once. Silence would be cheaper by one datagram, but resolvers repeat what is not answered,
//! which adds to the load just when there is too much, and an honest application would wait for seconds. In file
//! descriptors: 64 UDP sockets for each server and 64 TCP connections, for each queue of a container. Of the container's
//! own TCP connections [`max_dns_connections`](crate::NetworkBuilder::max_dns_connections) are served, the next is refused.
//!
//! **What is asked** must be plain: a query for records with several questions, or one whose name is compressed, is answered
//! FORMERR (RFC 9619). Servers read such messages differently, and what a server reads must be what the network's own
//! names and the embedder's resolver were looked up for.
//!
//! **What it does not do.** No cache, no `use-vc`, no DNS over TLS. No zone transfers over TCP: they are answered
//! NOTIMP, since their answers are many messages. Search domains are the container's resolver's. mDNS is
//! multicast, which is not carried. Policy is the caller's: the sockets of the forwarder do not pass through the Dialer.

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
use forward::Forwarder;
use local::LocalNames;
use servers::Servers;

pub(crate) use local::Hosts;
pub(crate) use nsnet_stack::dns::HostName;
pub(crate) use places::Places;
pub use resolver::{DnsQuery, Resolver};
pub(crate) use server::NameServer;

/// What a query has come by, and its answer goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DnsTransport {
    /// UDP: an answer may be too long.
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
    /// What answers a container, or one queue of it; `places` are those of the container.
    pub(crate) fn server(&self, places: Places) -> NameServer {
        let forwarder = Forwarder::new(self.upstreams.clone().servers());
        let names = LocalNames::new(Arc::clone(&self.hosts), self.containers.clone());
        NameServer::new(names, self.resolver.clone(), forwarder, places)
    }
}

/// Where queries are forwarded to.
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

/// The longest a query is worked on: what the defaults of resolv.conf(5) allow, 3 servers × 2 attempts × 5 s. The
/// embedder's resolver has as long before.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(30);
