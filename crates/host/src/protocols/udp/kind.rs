//! The differences between UDP datagrams and echo requests.

use std::net::SocketAddr;
use std::time::Duration;

use crate::context::{Context, Limits};
use crate::dialer::{DatagramSocket, Datagrams, DialError, Dialer, Protocol, Source};
use crate::link::{Link, Sent};
use crate::statistics::{Counters, FlowCounters};
use crate::threads::commons::Origin;
use nsnet_stack::icmp;
use nsnet_stack::wire::DNS_PORT;

/// The kind of datagrams that a table keeps mappings for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Udp,
    /// Echo requests. The source's port is the identifier, and the destination's port is 0.
    Echo,
}

/// Idle timeout of a mapping that sends only DNS, because a query is answered soon or never.
const DNS_IDLE: Duration = Duration::from_secs(10);

/// The least that RFC 5508, 3.2 (REQ-3) allows, because a request is answered soon or never.
const ECHO_IDLE: Duration = Duration::from_secs(60);

impl Kind {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Udp => Protocol::Udp,
            Self::Echo => Protocol::Icmp,
        }
    }

    pub(super) fn flows(self, counters: &Counters) -> &FlowCounters {
        match self {
            Self::Udp => &counters.udp,
            Self::Echo => &counters.echo,
        }
    }

    /// The most mappings at a time.
    pub(super) fn mappings(self, limits: &Limits) -> usize {
        match self {
            Self::Udp => limits.udp_mappings,
            Self::Echo => limits.echo_mappings,
        }
    }

    /// How long a mapping lives after a datagram to this destination.
    pub(super) fn idle_timeout(self, limits: &Limits, destination: SocketAddr) -> Duration {
        match self {
            Self::Udp if destination.port() == DNS_PORT => DNS_IDLE,
            Self::Udp => limits.udp_idle_timeout,
            Self::Echo => ECHO_IDLE,
        }
    }

    /// How long a peer must be idle before it may make room for another.
    pub(super) fn idle_peers(self, limits: &Limits) -> Duration {
        match self {
            Self::Udp => limits.udp_idle_timeout,
            Self::Echo => ECHO_IDLE,
        }
    }

    /// The container gets about this many errors for datagrams that are refused together. A UDP socket has one error at
    /// a time, but ping and traceroute look for an answer to each of their requests.
    pub(super) fn errors_at_once(self) -> usize {
        match self {
            Self::Udp => 1,
            Self::Echo => usize::MAX,
        }
    }

    pub(super) async fn open(
        self,
        dialer: &dyn Dialer,
        source: &Source,
    ) -> Result<Box<dyn DatagramSocket>, DialError> {
        match self {
            Self::Udp => dialer.bind_udp(source).await,
            Self::Echo => dialer.bind_echo(source).await,
        }
    }

    /// Splits datagrams into groups that can go into the container in one frame each.
    pub(super) fn frames<'d>(
        self,
        link: &Link,
        source: SocketAddr,
        datagrams: Datagrams<'d>,
    ) -> impl Iterator<Item = Datagrams<'d>> {
        let bursts = (self == Self::Udp).then(|| link.frames(source, datagrams));
        let replies = (self == Self::Echo).then(|| datagrams.iter().map(Datagrams::one));
        bursts.into_iter().flatten().chain(replies.into_iter().flatten())
    }

    /// Sends the container at `destination` one of the [`frames`](Self::frames).
    pub(super) fn send_inside(
        self,
        context: &Context,
        origin: Origin,
        destination: SocketAddr,
        datagrams: Datagrams<'_>,
    ) -> Sent {
        match self {
            Self::Udp => context.link.send_datagrams(origin.source, destination, datagrams),
            Self::Echo => {
                // One less, as behind any router, but never zero, because the reply has arrived.
                let hop_limit =
                    origin.hop_limit.map_or(icmp::HOP_LIMIT, |left| left.saturating_sub(1).max(1));
                context.send_echo_reply(origin.source.ip(), destination, hop_limit, datagrams.bytes())
            }
        }
    }

    /// The packet of an earlier datagram of the container, for an error about it.
    pub(super) fn quote(self, source: SocketAddr, destination: SocketAddr, datagram: &[u8]) -> Vec<u8> {
        match self {
            Self::Udp => icmp::quote_datagram(source, destination, datagram),
            Self::Echo => icmp::echo::quote(source, destination.ip(), datagram),
        }
    }
}
