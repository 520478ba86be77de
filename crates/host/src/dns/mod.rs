//! The gateway's DNS address: messages for port 53 go to the host's resolvers as they are.
//!
//! ```text
//! container ── UDP message ──► Forwarder::exchange ── a fresh UDP socket per try ──► server, next server, …
//!           ── TCP stream ───► Forwarder::connect  ── a TCP connection ────────────► first server that accepts
//! ```
//!
//! **What it is.** A proxy as RFC 5625 wants it: it understands the 12 bytes of the header (RFC 1035, section
//! 4.1.1) and nothing behind them, so every record type, class, opcode, EDNS option and the case of every
//! letter passes untouched. A truncated answer passes as such and the container comes back over TCP, which
//! RFC 7766 makes every resolver able to; there the caller relays bytes and no message is looked at.
//!
//! **Which servers.** [`Servers`] reads resolv.conf(5) again whenever the file has changed, or holds the
//! embedder's list. Servers are asked in that order (`rotate`: each query starts one further), each for
//! `timeout`, the list `attempts` times. No order of preference is learnt: a container sees the delays the
//! host sees.
//!
//! **One exchange.** Each try has its own connected socket: a random source port, ICMP errors that arrive as
//! `ECONNREFUSED` at once, and a kernel that drops what comes from elsewhere. A message is the answer if it is
//! a response with the query's ID; anything else is skipped and the wait goes on. RFC 5452's other checks are
//! the container's resolver's, which gets the whole message.
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
//! **Limits**, because the queries are hostile: `MAX_EXCHANGES` at a time (each holds one fd) and
//! `EXCHANGE_DEADLINE` for each, however long resolv.conf(5) would have it wait. What goes beyond is answered
//! SERVFAIL at once. Silence would be cheaper by one datagram, but resolvers repeat what is not answered,
//! which adds to the load just when there is too much, and an honest application would wait for seconds.
//!
//! **What it does not do.** No cache, no search domains, no `use-vc`, no DNS over TLS. Policy is the caller's:
//! these sockets do not pass through the Dialer.

mod forward;
mod servers;

pub(crate) use forward::Forwarder;
pub(crate) use servers::Servers;
