//! Limits on the resources of this process that one container may use.

use std::time::Duration;

use super::{BuildError, NetworkBuilder};
use crate::context::Limits;

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 16_384,
            ring_memory: 160 << 20,
            udp_mappings: 4_096,
            echo_mappings: 512,
            udp_peers: 16_384,
            udp_idle_timeout: Duration::from_secs(180),
            dial_timeout: Duration::from_secs(60),
            dns_queries: 4_096,
            dns_connections: 20,
            published_udp_clients: 4_096,
            flows_between_containers: 16_384,
        }
    }
}

/// The longest timeout: ten years. A value meant as "never" must not overflow the clock.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// # Limits
/// Each limit is for one container, unless it says otherwise. Only [`ring_memory`](Self::ring_memory) and
/// [`reserve_descriptors`](Self::reserve_descriptors) may be 0.
/// [`build`](Self::build) refuses 0 for the others. To refuse flows altogether, use a [`Dialer`](crate::Dialer).
///
/// ```
/// use nsnet_host::Network;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let small = Network::builder()
///     .max_tcp_flows(256)
///     .ring_memory(8 << 20)
///     .max_udp_mappings(64)
///     .max_udp_peers(256)
///     .max_dns_queries(128)
///     .build()?;
/// # Ok(())
/// # }
/// ```
impl NetworkBuilder {
    /// The most TCP connections of one container at a time. Those being dialled and those of published ports count.
    /// Default: 16 384.
    ///
    /// At the limit, a SYN of the container is dropped, and a client of a published port is reset. With several
    /// [`queues`](Self::queues), each has an even share, rounded up. Connections of published ports are all on the
    /// first queue.
    ///
    /// Each connection needs a file descriptor of this process and 1.25 MiB of its address space (not of memory). There
    /// may be too few descriptors for this limit, see [`reserve_descriptors`](Self::reserve_descriptors).
    ///
    /// An idle connection takes about 3.5 KiB of memory, which is 56 MiB for 16 384. For each connection of the limit, 8
    /// KiB of [`ring_memory`](Self::ring_memory) are set aside: with fewer connections, those that there are may be
    /// faster.
    #[must_use]
    pub fn max_tcp_flows(mut self, flows: usize) -> Self {
        self.limits.tcp_flows = flows;
        self
    }

    /// How many file descriptors of this process connections leave to the embedder. Default: an eighth of those that
    /// are neither open for other purposes nor used by connections of other networks, but at most 1024.
    ///
    /// All networks of the process share what is left below `RLIMIT_NOFILE`, the soft limit. [`build`](Self::build)
    /// counts. The latest network's count and reserve are in force for all of them, so give every network the same
    /// reserve. The limit may be raised at any time.
    ///
    /// Each connection, each UDP or echo mapping and each socket towards a DNS server counts as one, even if the Dialer
    /// opens none for it. One container may use six sevenths of what is left if no other wants any. At its share,
    /// its new flows are dropped, and clients of its published ports wait. Others still find room, and every container has a
    /// few of its own. Attaching a container is never refused for this reason.
    ///
    /// # Errors
    /// `build` returns [`BuildError::NoDescriptors`] if nothing would be left for connections.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::Network;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().reserve_descriptors(200).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn reserve_descriptors(mut self, descriptors: usize) -> Self {
        self.reserve = Some(descriptors);
        self
    }

    /// The most memory, in bytes, for data that waits in the TCP connections of one container. Default: 160 MiB.
    ///
    /// This is all of it. Of each direction of each connection, up to [`max_tcp_flows`](Self::max_tcp_flows), 4 KiB are
    /// set aside, which is 128 MiB by default. Connections share the rest: one may use up to 256 KiB for what the
    /// container sends and 1 MiB for what it receives, and the more are busy, the less each of them. If the limit is
    /// below what is to be set aside, that is the limit. So with 0, each connection has 4 KiB in each direction.
    ///
    /// Near the limit, connections slow down: less is read from upstream, and the container is told to send less.
    /// Segments that it sends nevertheless may be lost, and are sent again. With several [`queues`](Self::queues), each
    /// has an even share.
    ///
    /// With the default limits, all that one container may make the engine hold is 256 MiB: this, the idle connections,
    /// and everything that the other limits count. The kernel's socket buffers and what a Dialer holds come on top.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::Network;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // 8 MiB are set aside for 1024 connections, and 8 MiB are shared.
    /// let network = Network::builder().max_tcp_flows(1024).ring_memory(16 << 20).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn ring_memory(mut self, bytes: usize) -> Self {
        self.limits.ring_memory = bytes;
        self
    }

    /// The most UDP mappings of one container at a time. A mapping is a source address and port with an upstream
    /// socket, which is a file descriptor of this process. Default: 4 096.
    ///
    /// At the limit, datagrams from further ports are dropped until a mapping has been idle for the
    /// [timeout](Self::udp_idle_timeout).
    #[must_use]
    pub fn max_udp_mappings(mut self, mappings: usize) -> Self {
        self.limits.udp_mappings = mappings;
        self
    }

    /// The most destinations of all UDP mappings of one container together. Its echo mappings may have as many again.
    /// Default: 16 384.
    ///
    /// At the limit, idle destinations make room. If none is idle, datagrams to new destinations are dropped.
    #[must_use]
    pub fn max_udp_peers(mut self, peers: usize) -> Self {
        self.limits.udp_peers = peers;
        self
    }

    /// How long a UDP mapping lives after the container's last datagram. Default: 180 s (RFC 4787, 4.3 asks for at
    /// least 120 s). More than ten years count as ten years.
    #[must_use]
    pub fn udp_idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.udp_idle_timeout = timeout;
        self
    }

    /// The most echo mappings of one container at a time. A mapping is an address and identifier with an upstream ping
    /// socket, which is a file descriptor of this process. A running ping has one mapping, even if it pings many hosts.
    /// Default: 512.
    ///
    /// At the limit, requests of new pings are dropped.
    #[must_use]
    pub fn max_echo_mappings(mut self, mappings: usize) -> Self {
        self.limits.echo_mappings = mappings;
        self
    }

    /// The most DNS queries of one container under way at a time, in units of up to 1 KiB of query or answer. Default:
    /// 4 096.
    ///
    /// At the limit, further queries get SERVFAIL at once. A limit below 64 refuses the longest messages (64 KiB).
    #[must_use]
    pub fn max_dns_queries(mut self, queries: usize) -> Self {
        self.limits.dns_queries = queries;
        self
    }

    /// The most TCP connections of one container to the DNS address at a time. Each may hold a message of 64 KiB in
    /// each direction. Default: 20, as for dnsmasq.
    ///
    /// At the limit, further connections are refused. They count against [`max_tcp_flows`](Self::max_tcp_flows) as
    /// well.
    #[must_use]
    pub fn max_dns_connections(mut self, connections: usize) -> Self {
        self.limits.dns_connections = connections;
        self
    }

    /// The most clients of one published UDP port at a time. Default: 4 096.
    ///
    /// At the limit, the oldest client that has not come back after an answer makes room. If there is none, datagrams
    /// of new clients are dropped.
    #[must_use]
    pub fn max_published_udp_clients(mut self, clients: usize) -> Self {
        self.limits.published_udp_clients = clients;
        self
    }

    /// The most flows that one container address may have open towards [other
    /// containers](Self::containers_reach_each_other). All protocols count together. Default: 16 384.
    ///
    /// At the limit, the flows that have been silent for longest make room, except established TCP connections. If
    /// there are none, packets that would open new flows are dropped.
    #[must_use]
    pub fn max_flows_between_containers(mut self, flows: usize) -> Self {
        self.limits.flows_between_containers = flows;
        self
    }

    /// How long the Dialer may take for one flow, to decide and to connect together. Default: 60 s, which is below the
    /// 127 s after which Linux gives up a connection attempt. More than ten years count as ten years.
    ///
    /// After that time the future is dropped, and the container sees silence. A connection of a published port must be
    /// open inside the container within the same time, or the client is reset.
    #[must_use]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.limits.dial_timeout = timeout;
        self
    }
}

/// The limits, checked.
///
/// # Errors
/// [`BuildError::ZeroLimit`].
pub(super) fn checked(limits: Limits) -> Result<Limits, BuildError> {
    let Limits { udp_idle_timeout, dial_timeout, .. } = limits;
    let zero = [
        ("max_tcp_flows", limits.tcp_flows == 0),
        ("max_udp_mappings", limits.udp_mappings == 0),
        ("max_udp_peers", limits.udp_peers == 0),
        ("udp_idle_timeout", udp_idle_timeout.is_zero()),
        ("max_echo_mappings", limits.echo_mappings == 0),
        ("max_dns_queries", limits.dns_queries == 0),
        ("max_dns_connections", limits.dns_connections == 0),
        ("max_published_udp_clients", limits.published_udp_clients == 0),
        ("max_flows_between_containers", limits.flows_between_containers == 0),
        ("dial_timeout", dial_timeout.is_zero()),
    ];
    match zero.into_iter().find(|(_, is_zero)| *is_zero) {
        Some((name, _)) => Err(BuildError::ZeroLimit(name)),
        None => Ok(Limits {
            udp_idle_timeout: udp_idle_timeout.min(LONGEST),
            dial_timeout: dial_timeout.min(LONGEST),
            ..limits
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;

    #[test]
    fn no_limit_is_zero_except_that_of_memory() {
        let zero: [(&str, NetworkBuilder); 10] = [
            ("max_tcp_flows", Network::builder().max_tcp_flows(0)),
            ("max_udp_mappings", Network::builder().max_udp_mappings(0)),
            ("max_udp_peers", Network::builder().max_udp_peers(0)),
            ("udp_idle_timeout", Network::builder().udp_idle_timeout(Duration::ZERO)),
            ("max_echo_mappings", Network::builder().max_echo_mappings(0)),
            ("max_dns_queries", Network::builder().max_dns_queries(0)),
            ("max_dns_connections", Network::builder().max_dns_connections(0)),
            ("max_published_udp_clients", Network::builder().max_published_udp_clients(0)),
            ("max_flows_between_containers", Network::builder().max_flows_between_containers(0)),
            ("dial_timeout", Network::builder().dial_timeout(Duration::ZERO)),
        ];
        for (name, builder) in zero {
            let error = builder.build().unwrap_err();
            assert!(matches!(error, BuildError::ZeroLimit(named) if named == name), "{error}");
        }
        Network::builder().ring_memory(0).build().unwrap();
    }

    #[test]
    fn the_greatest_limits_mean_none() {
        let limits = checked(Limits {
            tcp_flows: usize::MAX,
            ring_memory: usize::MAX,
            udp_mappings: usize::MAX,
            echo_mappings: usize::MAX,
            udp_peers: usize::MAX,
            udp_idle_timeout: Duration::MAX,
            dial_timeout: Duration::MAX,
            dns_queries: usize::MAX,
            dns_connections: usize::MAX,
            published_udp_clients: usize::MAX,
            flows_between_containers: usize::MAX,
        })
        .unwrap();
        assert_eq!((limits.udp_idle_timeout, limits.dial_timeout), (LONGEST, LONGEST));
        let _places = crate::dns::Places::new(limits.dns_queries, limits.dns_connections);
    }
}
