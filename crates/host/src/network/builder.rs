//! Everything about a network that can be chosen, with its defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nsnet_proto::{DEVICE_NAME_MAX, MAX_QUEUES, Offload, Setup};

use super::names::Names;
use super::{BuildError, Network};
use crate::addressing::{Addressing, Subnet};
use crate::attach::Offer;
use crate::dialer::{Dialer, DirectDialer};
use crate::dns::{self, Resolver, Upstreams};
use crate::engine::{Config, Engine};
use crate::gateway::Limits;
use crate::host_ports::HostPorts;
use crate::leases::Pool;
use crate::neighbours::Isolation;
use crate::publish::Publish;
use crate::statistics::Counters;
use crate::threads::{Seats, own_namespace};

/// Builds a [`Network`]. Everything has a default.
pub struct NetworkBuilder {
    dialer: Arc<dyn Dialer>,
    device: String,
    mtu: Option<u16>,
    ipv4: Option<Subnet>,
    ipv6: Option<Subnet>,
    host: Vec<HostPorts>,
    isolation: Isolation,
    offload: Offload,
    queues: u16,
    upstreams: Upstreams,
    names: Names,
    resolver: Option<Arc<dyn Resolver>>,
    limits: Limits,
    publish: Vec<Publish>,
}

impl Default for NetworkBuilder {
    fn default() -> Self {
        Self {
            dialer: Arc::new(DirectDialer::new()),
            device: "tun0".into(),
            mtu: None,
            ipv4: Some(Subnet::IPV4),
            ipv6: Some(Subnet::IPV6),
            host: Vec::new(),
            isolation: Isolation::Isolated,
            offload: Offload::ALL,
            queues: 1,
            upstreams: Upstreams::System,
            names: Names::default(),
            resolver: None,
            limits: Limits {
                tcp_flows: 16_384,
                ring_memory: 256 << 20,
                udp_mappings: 4_096,
                echo_mappings: 512,
                udp_peers: 16_384,
                udp_idle_timeout: Duration::from_secs(180),
                dial_timeout: Duration::from_secs(60),
            },
            publish: Vec::new(),
        }
    }
}

/// MTU of a network with segmentation offload: what every path on the way expects.
const MTU_OFFLOAD: u16 = 1500;

/// MTU of a network without: the fewer packets, the faster. A multiple of eight below the limit of an IP
/// packet, so that fragments fill it.
const MTU_PLAIN: u16 = 65520;

/// The longest timeout: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The smallest MTU that IPv6 allows (RFC 8200, 5).
const MTU_MIN_V6: u16 = 1280;

/// The smallest datagram every IPv4 host must accept (RFC 791, 3.1).
const MTU_MIN_V4: u16 = 576;

/// The smallest MTU of a network with or without IPv6.
pub(super) fn least_mtu(has_ipv6: bool) -> u16 {
    if has_ipv6 { MTU_MIN_V6 } else { MTU_MIN_V4 }
}

impl NetworkBuilder {
    /// Who decides on flows and connects them. Default: [`DirectDialer`].
    #[must_use]
    pub fn dialer(mut self, dialer: impl Dialer + 'static) -> Self {
        self.dialer = Arc::new(dialer);
        self
    }

    /// Name of the interface in the container, 1 to 15 bytes. Default: `tun0`.
    #[must_use]
    pub fn device_name(mut self, name: impl Into<String>) -> Self {
        self.device = name.into();
        self
    }

    /// MTU of the interface in bytes: at least 576, with IPv6 at least 1280. Default: 1500 with segmentation
    /// offload, 65520 without.
    ///
    /// With more than the host's own links have, the container learns their MTU as behind any router: the first datagram to
    /// a destination that is too long for them is lost, unless its sender allows it to be fragmented. TCP is not concerned.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The container's IPv4 addresses. Default: [`Subnet::IPV4`].
    #[must_use]
    pub fn ipv4(mut self, subnet: Subnet) -> Self {
        self.ipv4 = Some(subnet);
        self
    }

    /// The container's IPv6 addresses. Default: [`Subnet::IPV6`].
    #[must_use]
    pub fn ipv6(mut self, subnet: Subnet) -> Self {
        self.ipv6 = Some(subnet);
        self
    }

    /// No IPv6 in the container, for hosts whose kernel or network has none.
    #[must_use]
    pub fn ipv4_only(mut self) -> Self {
        self.ipv6 = None;
        self
    }

    /// Lets the gateway's address lead to this host's loopback: 10.0.2.2 to 127.0.0.1, fd00::2 to ::1. The
    /// Dialer still decides on every flow. Default: the gateway refuses connections.
    ///
    /// The same as [`open_host`](Self::open_host) with [`HostPorts::loopback`].
    #[must_use]
    pub fn host_loopback(self) -> Self {
        self.open_host(HostPorts::loopback())
    }

    /// Lets containers reach some ports of this host, on its loopback or an address of its own; see [`HostPorts`].
    /// May be called again for more. The Dialer still decides on every flow. Default: all of the host is out of
    /// reach.
    #[must_use]
    pub fn open_host(mut self, ports: impl Into<HostPorts>) -> Self {
        self.host.push(ports.into());
        self
    }

    /// The name by which containers find this host. While [`open_host`](Self::open_host) or
    /// [`host_loopback`](Self::host_loopback) opens the gateway's address, in whole or in part, the name has that
    /// address, and otherwise it does not exist; no server is ever asked for it. Default: `host.nsnet.internal`.
    #[must_use]
    pub fn host_name(mut self, name: impl Into<String>) -> Self {
        self.names.gateway = name.into();
        self
    }

    /// A host that containers know by name, as in hosts(5): the network answers queries for its addresses, and for the
    /// names of its addresses, and asks no server. Called again with the same name, it adds addresses.
    ///
    /// The name is one of letters, digits, `-` and `_`, in labels of at most 63; case does not matter.
    ///
    /// # Examples
    /// ```
    /// use std::net::Ipv4Addr;
    /// use nsnet_host::Network;
    ///
    /// let network = Network::builder()
    ///     .static_host("db.test", [Ipv4Addr::new(203, 0, 113, 5), Ipv4Addr::new(203, 0, 113, 6)])
    ///     .static_host("mirror", ["2001:db8::7".parse::<std::net::IpAddr>()?])
    ///     .search_domains(["test"]);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn static_host(
        mut self,
        name: impl Into<String>,
        addresses: impl IntoIterator<Item = impl Into<IpAddr>>,
    ) -> Self {
        let addresses = addresses.into_iter().map(|address| address.into().to_canonical());
        self.names.hosts.push((name.into(), addresses.collect()));
        self
    }

    /// The domains in which containers look for names that are not complete: the line `search` of their resolv.conf(5),
    /// as far as the container side writes it. Default: none. Names in these domains are asked of the servers like any
    /// others, and resolvers look there first for a name without a dot, that of a
    /// [`static_host`](Self::static_host) or a container included.
    #[must_use]
    pub fn search_domains(mut self, domains: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.names.search = domains.into_iter().map(Into::into).collect();
        self
    }

    /// The line `options` of the containers' resolv.conf(5), such as `ndots:2`. Default: none.
    #[must_use]
    pub fn dns_options(mut self, options: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.names.options = options.into_iter().map(Into::into).collect();
        self
    }

    /// Who answers DNS queries before they are forwarded. Default: nobody.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Lets the containers of the network reach each other, by address and by the names of their
    /// [`Member`](crate::Member)s. The Dialer decides on every flow, which says
    /// [`Service::Container`](crate::Service::Container); packets are then passed from one container to the other as they
    /// are, so that both see each other's addresses. A flow that is allowed stays so for as long as it lasts, whatever the
    /// Dialer would say by then; closing an [`Attachment`](crate::Attachment) ends those of its container. Default: each is alone; the addresses of the others are unreachable.
    ///
    /// # Examples
    /// A network on which only the database may be reached from other containers:
    ///
    /// ```
    /// use nsnet_host::{DialError, DirectDialer, FilterDialer, Flow, Network, Service};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let dialer = FilterDialer::new(DirectDialer::new(), |flow: &Flow| match flow.service {
    ///     Service::Container if flow.destination.port() != 5432 => Err(DialError::Prohibited),
    ///     _ => Ok(()),
    /// });
    /// let network = Network::builder().containers_reach_each_other().dialer(dialer).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn containers_reach_each_other(mut self) -> Self {
        self.isolation = Isolation::Open;
        self
    }

    /// The offloads to ask the kernel for; what it grants is in [`Ready::offload`](crate::Ready::offload).
    /// Default: all of them.
    #[must_use]
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// How many queues the interface of a container has (`IFF_MULTI_QUEUE`), each served by an engine thread of its
    /// own, so that one container can use more than one core. For machines with cores to spare and containers with
    /// many busy TCP connections: one connection stays on one queue, and so do all datagrams. The Dialer is asked on
    /// all of these threads at the same time.
    ///
    /// The container's limits are divided between the queues; packets that are passed from one to another take up to
    /// 16 MiB for each.
    ///
    /// There are never more than cores, nor than 16, and one where the kernel knows no more; how many a container
    /// got is in [`Ready::queues`](crate::Ready::queues). Default: 1.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Forwards DNS queries to these servers, in this order. Default: those of `/etc/resolv.conf`, read again
    /// when it changes.
    #[must_use]
    pub fn dns_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.upstreams = Upstreams::Fixed(servers);
        self
    }

    /// Forwards DNS queries to the servers of this file instead of `/etc/resolv.conf`, resolv.conf(5).
    #[must_use]
    pub fn resolv_conf(mut self, path: impl Into<PathBuf>) -> Self {
        self.upstreams = Upstreams::File(path.into());
        self
    }

    /// How long a UDP mapping lives after the container's last datagram. Default: 180 s (RFC 4787, 4.3 asks
    /// for at least 120 s).
    #[must_use]
    pub fn udp_idle_timeout(mut self, timeout: Duration) -> Self {
        self.limits.udp_idle_timeout = timeout;
        self
    }

    /// How long the Dialer may take for one flow, deciding and connecting together; then it is dropped, and
    /// the container sees silence. As long may it take to open a connection of a published port inside, and then the
    /// client is reset. Default: 60 s, below the 127 s after which Linux gives a connection up.
    #[must_use]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.limits.dial_timeout = timeout;
        self
    }

    /// Most TCP connections of one container at a time, those being dialled and those of published ports included; a SYN
    /// beyond is lost, a client of a published port reset. Each needs a file descriptor of this process, and 2 MiB of
    /// its address space (not of memory): lower this, or raise `RLIMIT_NOFILE`, so that a container cannot use up what
    /// the embedder needs for itself. With several [`queues`](Self::queues) each has its even share, rounded up, and a
    /// connection beyond that of its queue is lost; those of published ports are all on the first. Default: 16 384.
    #[must_use]
    pub fn max_tcp_flows(mut self, flows: usize) -> Self {
        self.limits.tcp_flows = flows;
        self
    }

    /// Most UDP mappings of one container at a time: source addresses and ports that have an upstream socket, each
    /// a file descriptor of this process. Default: 4 096.
    #[must_use]
    pub fn max_udp_mappings(mut self, mappings: usize) -> Self {
        self.limits.udp_mappings = mappings;
        self
    }

    /// Most echo mappings of one container at a time: addresses and identifiers that have an upstream ping socket, each
    /// a file descriptor of this process. A running ping has one, however many hosts it is for. Default: 512.
    #[must_use]
    pub fn max_echo_mappings(mut self, mappings: usize) -> Self {
        self.limits.echo_mappings = mappings;
        self
    }

    /// Lets a port of the host lead into a container, for as long as the network lives; once for each. See
    /// [`Network::publish`]. Default: none.
    #[must_use]
    pub fn publish(mut self, publish: Publish) -> Self {
        self.publish.push(publish);
        self
    }

    /// Starts the network.
    ///
    /// # Errors
    /// [`BuildError`] for values that cannot work, if no thread can be started, or something cannot be published.
    pub fn build(self) -> Result<Network, BuildError> {
        if let Some((ports, problem)) = self.host.iter().find_map(|ports| Some((ports, ports.check().err()?)))
        {
            return Err(BuildError::HostPorts { ports: ports.clone(), problem });
        }
        let addressing = Addressing { v4: self.ipv4, v6: self.ipv6, host: self.host.into() };
        let hosts = Arc::new(self.names.hosts(&addressing)?);
        let mtu = self.mtu.unwrap_or(if self.offload.tso4 { MTU_OFFLOAD } else { MTU_PLAIN });
        let least = least_mtu(self.ipv6.is_some());
        if mtu < least {
            return Err(BuildError::Mtu { mtu, least });
        }
        if self.device.is_empty() || self.device.len() > DEVICE_NAME_MAX {
            return Err(BuildError::DeviceName(self.device));
        }
        if self.queues == 0 {
            return Err(BuildError::NoQueue);
        }
        check(self.ipv4, "IPv4", |subnet| {
            [subnet.container, subnet.gateway, subnet.dns].iter().all(|address| address.is_ipv4())
                && (1..=30).contains(&subnet.prefix_len)
        })?;
        check(self.ipv6, "IPv6", |subnet| {
            [subnet.container, subnet.gateway, subnet.dns].iter().all(|address| address.is_ipv6())
                && (1..=126).contains(&subnet.prefix_len)
        })?;
        // Times that are meant as "never" must not overflow the clock.
        let limits = Limits {
            udp_idle_timeout: self.limits.udp_idle_timeout.min(LONGEST),
            dial_timeout: self.limits.dial_timeout.min(LONGEST),
            ..self.limits
        };
        let seats = Seats::take(self.queues.min(MAX_QUEUES).into()).map_err(BuildError::Thread)?;
        let queues = u16::try_from(1 + seats.further.len()).unwrap_or(MAX_QUEUES);
        let setup = Setup {
            device: self.device,
            mtu,
            addresses: Vec::new(),
            dns: addressing.subnets().map(|subnet| subnet.dns).collect(),
            search: self.names.search()?,
            dns_options: self.names.options()?,
            offload: self.offload,
            queues,
            host_namespace: own_namespace("net").map_err(BuildError::Namespace)?,
        };
        let link = Offer { mtu, offload: self.offload, queues };
        let addresses = Pool::new(addressing);
        let containers = (self.isolation == Isolation::Open).then(|| addresses.directory().clone());
        let dns = dns::Terms { upstreams: self.upstreams, hosts, resolver: self.resolver, containers };
        let config = Config { dialer: self.dialer, limits, dns, link, isolation: self.isolation };
        let counters = Arc::new(Counters::default());
        let engine = Engine::start(config, Arc::clone(&counters), seats);
        let network = Network { engine, setup, addresses, counters };
        for publish in self.publish {
            network.publish(publish)?;
        }
        Ok(network)
    }
}

fn check(
    subnet: Option<Subnet>,
    family: &'static str,
    is_sane: impl FnOnce(&Subnet) -> bool,
) -> Result<(), BuildError> {
    match subnet {
        Some(subnet) if !is_sane(&subnet) || !subnet.is_consistent() => {
            Err(BuildError::Subnet { family, subnet })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_work_are_named() {
        let error = |builder: NetworkBuilder| builder.build().unwrap_err().to_string();
        assert!(error(Network::builder().mtu(1000)).contains("at least 1280"));
        assert!(error(Network::builder().ipv4_only().mtu(500)).contains("at least 576"));
        assert!(error(Network::builder().device_name("an-interface-name")).contains("1 to 15 bytes"));
        assert!(error(Network::builder().queues(0)).contains("1 or more"));
        let nowhere: [IpAddr; 0] = [];
        assert!(error(Network::builder().static_host("db", nowhere)).contains("\"db\" needs an address"));
        assert!(
            error(Network::builder().static_host("a b", [[10, 0, 0, 1]])).contains("\"a b\" has a character")
        );
        assert!(error(Network::builder().host_name("")).contains("is empty"));
        assert!(error(Network::builder().search_domains(["a..b"])).contains("\"a..b\""));
        assert!(error(Network::builder().dns_options(["ndots:2\nnameserver"])).contains("single word"));
        let stub = error(Network::builder().open_host(HostPorts::at([127, 0, 0, 53]).port(53)));
        assert!(stub.contains("127.0.0.53, ports 53 to 53 of the host"), "{stub}");
        let swapped = Subnet { gateway: Subnet::IPV4.container, ..Subnet::IPV4 };
        assert!(error(Network::builder().ipv4(swapped)).contains("IPv4"));
        assert!(error(Network::builder().ipv6(Subnet::IPV4)).contains("IPv6"));
    }
}
