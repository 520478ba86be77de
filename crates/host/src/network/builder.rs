//! The options of a network, with their defaults.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use nsnet_proto::{DEVICE_NAME_MAX, MAX_QUEUES, Offload, Setup};

use super::names::Names;
use super::{BuildError, Network, limits};
use crate::addressing::Addressing;
use crate::addressing::host_ports::HostPorts;
use crate::addressing::leases::Pool;
use crate::addressing::subnet::{Ipv4Subnet, Ipv6Subnet};
use crate::attach::Offer;
use crate::context::Limits;
use crate::descriptors::Census;
use crate::dialer::{Dialer, DirectDialer};
use crate::dns::{self, Resolver, Upstreams};
use crate::engine::{Config, Engine};
use crate::gateway::members::Isolation;
use crate::publish::Publish;
use crate::statistics::Ledger;
use crate::threads::{Seats, Threads, own_namespace};

/// Builds a [`Network`]. Everything has a default.
pub struct NetworkBuilder {
    dialer: Arc<dyn Dialer>,
    device: String,
    mtu: Option<u16>,
    ipv4: Option<Ipv4Subnet>,
    ipv6: Option<Ipv6Subnet>,
    host: Vec<HostPorts>,
    isolation: Isolation,
    offload: Offload,
    queues: u16,
    threads: Threads,
    upstreams: Upstreams,
    names: Names,
    resolver: Option<Arc<dyn Resolver>>,
    pub(super) limits: Limits,
    /// For the embedder.
    pub(super) reserve: Option<usize>,
    publish: Vec<Publish>,
}

impl fmt::Debug for NetworkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkBuilder")
            .field("device", &self.device)
            .field("mtu", &self.mtu)
            .field("ipv4", &self.ipv4)
            .field("ipv6", &self.ipv6)
            .field("host", &self.host)
            .field("isolation", &self.isolation)
            .field("offload", &self.offload)
            .field("queues", &self.queues)
            .field("threads", &self.threads)
            .field("upstreams", &self.upstreams)
            .field("names", &self.names)
            .field("has_resolver", &self.resolver.is_some())
            .field("limits", &self.limits)
            .field("reserve", &self.reserve)
            .field("publish", &self.publish)
            .finish_non_exhaustive()
    }
}

impl Default for NetworkBuilder {
    fn default() -> Self {
        Self {
            dialer: Arc::new(DirectDialer::new()),
            device: "tun0".into(),
            mtu: None,
            ipv4: Some(Ipv4Subnet::default()),
            ipv6: Some(Ipv6Subnet::default()),
            host: Vec::new(),
            isolation: Isolation::Isolated,
            offload: Offload::ALL,
            queues: 1,
            threads: Threads::default(),
            upstreams: Upstreams::System,
            names: Names::default(),
            resolver: None,
            limits: Limits::default(),
            reserve: None,
            publish: Vec::new(),
        }
    }
}

/// MTU of a network with segmentation offload: the MTU that networks on the way expect.
const MTU_OFFLOAD: u16 = 1500;

/// MTU of a network without segmentation offload, where fewer packets are faster. It is a multiple of eight below the
/// limit of an IP packet, so that fragments fill it.
const MTU_PLAIN: u16 = 65520;

/// The smallest MTU that IPv6 allows (RFC 8200, 5).
const MTU_MIN_V6: u16 = 1280;

/// The smallest datagram every IPv4 host must accept (RFC 791, 3.1).
const MTU_MIN_V4: u16 = 576;

/// The smallest MTU that the address families of a network allow.
pub(super) fn least_mtu(has_ipv6: bool) -> u16 {
    if has_ipv6 { MTU_MIN_V6 } else { MTU_MIN_V4 }
}

impl NetworkBuilder {
    /// Sets the [`Dialer`], which decides on every flow and connects it. Default: [`DirectDialer`].
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

    /// MTU of the interface in bytes: at least 576, with IPv6 at least 1280. Default: 1500 with segmentation offload,
    /// 65520 without.
    ///
    /// If the host's own links have a smaller MTU, the container learns it as it would behind any router. The first
    /// datagram that is too long for them is lost, unless its sender allows fragments. TCP is not affected.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The IPv4 addresses of the network. Default: 10.0.2.0/24, see [`Ipv4Subnet`].
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::Network;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().ipv4("192.168.77.0/24".parse()?).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn ipv4(mut self, subnet: Ipv4Subnet) -> Self {
        self.ipv4 = Some(subnet);
        self
    }

    /// The IPv6 addresses of the network. Default: fd00::/64, see [`Ipv6Subnet`].
    #[must_use]
    pub fn ipv6(mut self, subnet: Ipv6Subnet) -> Self {
        self.ipv6 = Some(subnet);
        self
    }

    /// Leaves IPv6 out, for hosts whose kernel or network lacks it.
    #[must_use]
    pub fn ipv4_only(mut self) -> Self {
        self.ipv6 = None;
        self
    }

    /// Maps the gateway's address to this host's loopback: 10.0.2.2 to 127.0.0.1, fd00::2 to ::1. The Dialer still
    /// decides on every flow. Default: the gateway refuses connections.
    ///
    /// This is the same as [`open_host`](Self::open_host) with [`HostPorts::loopback`].
    #[must_use]
    pub fn host_loopback(self) -> Self {
        self.open_host(HostPorts::loopback())
    }

    /// Lets containers reach some ports of this host, on its loopback or on an address of its own. See [`HostPorts`].
    /// Each call adds ports. The Dialer still decides on every flow. Default: containers cannot reach the host.
    #[must_use]
    pub fn open_host(mut self, ports: impl Into<HostPorts>) -> Self {
        self.host.push(ports.into());
        self
    }

    /// The name by which containers find this host. Default: `host.nsnet.internal`.
    ///
    /// It has the gateway's address if [`open_host`](Self::open_host) or [`host_loopback`](Self::host_loopback) opens
    /// any port there. Otherwise it does not exist. It is never forwarded to a DNS server.
    #[must_use]
    pub fn host_name(mut self, name: impl Into<String>) -> Self {
        self.names.gateway = name.into();
        self
    }

    /// Adds a host that containers know by name, as in hosts(5). The network itself answers queries for its addresses
    /// and reverse queries for its name. Call it again with the same name to add addresses.
    ///
    /// A name consists of letters, digits, `-` and `_`, in labels of at most 63. Case does not matter.
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

    /// The domains in which containers look up incomplete names: the line `search` of their resolv.conf(5), if the
    /// container side writes that file. Default: none.
    ///
    /// Resolvers look in these domains first for a name without a dot, even the name of a
    /// [`static_host`](Self::static_host) or of a container. Queries for names in these domains are forwarded like any
    /// others.
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

    /// Sets a [`Resolver`] that may answer DNS queries before they are forwarded. Default: none.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Lets the containers of the network reach each other, by address and by the names of their
    /// [`Member`](crate::Member)s. Default: the addresses of other containers are unreachable.
    ///
    /// The Dialer decides on every flow, whose service is [`Service::Container`](crate::Service::Container). Packets
    /// are then passed on unchanged, so both containers see each other's addresses. An allowed flow stays allowed until
    /// it ends. Closing an [`Attachment`](crate::Attachment) ends the flows of its container.
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

    /// The offloads to ask the kernel for. [`Ready::offload`](crate::Ready::offload) says which of them it granted.
    /// Default: all of them.
    #[must_use]
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// How many queues the interface of a container has (`IFF_MULTI_QUEUE`). Default: 1.
    ///
    /// An engine thread of its own serves each queue, so that one container can use more than one core. This helps on
    /// machines with cores to spare, for containers with many busy TCP connections. A connection stays on one queue,
    /// and all datagrams share one. The Dialer is called on all of these threads at the same time.
    ///
    /// The limits of the container are divided among its queues. Packets that pass from one queue to another take up to
    /// 16 MiB of memory per queue.
    ///
    /// A container gets at most 16 queues, at most one per core, and a single one if the kernel does not support more.
    /// [`Ready::queues`](crate::Ready::queues) says how many it got.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Whether the network has engine threads of its own. Default: [`Threads::Own`], one thread for each
    /// [queue](Self::queues).
    ///
    /// | | [`Threads::Own`] | [`Threads::Shared`] |
    /// |---|---|---|
    /// | the cores | the kernel shares them fairly between networks | networks of one thread take turns |
    /// | a Dialer that blocks its thread | stalls its own network | stalls others too |
    /// | threads | one per queue, asleep while it is idle | at most one per core |
    /// | file descriptors of an idle network | 4 per thread | none |
    /// | memory of an idle network | about 80 KiB, and the kernel's own for a thread | about 10 KiB |
    ///
    /// Share threads between thousands of networks that trust each other.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::{BuildError, Network, Threads};
    ///
    /// /// A network for each of very many tests.
    /// fn small() -> Result<Network, BuildError> {
    ///     Network::builder().threads(Threads::Shared).build()
    /// }
    /// ```
    #[must_use]
    pub fn threads(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// Forwards DNS queries to these servers, in this order. Default: the servers in `/etc/resolv.conf`, which is read
    /// again when it changes.
    #[must_use]
    pub fn dns_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.upstreams = Upstreams::Fixed(servers);
        self
    }

    /// Forwards DNS queries to the servers of this file instead of `/etc/resolv.conf`. Its format is that of
    /// resolv.conf(5).
    #[must_use]
    pub fn resolv_conf(mut self, path: impl Into<PathBuf>) -> Self {
        self.upstreams = Upstreams::File(path.into());
        self
    }

    /// Publishes a port of the host into a container for as long as the network lives, see [`Network::publish`]. Call
    /// it once for each. Default: none.
    #[must_use]
    pub fn publish(mut self, publish: Publish) -> Self {
        self.publish.push(publish);
        self
    }

    /// Starts the network.
    ///
    /// # Errors
    /// [`BuildError`] if a value cannot work, if no thread can be started, or if a port cannot be published.
    pub fn build(self) -> Result<Network, BuildError> {
        if let Some((ports, problem)) = self.host.iter().find_map(|ports| Some((ports, ports.check().err()?)))
        {
            return Err(BuildError::HostPorts { ports: ports.clone(), problem });
        }
        self.ipv4.map_or(Ok(()), |subnet| subnet.check())?;
        self.ipv6.map_or(Ok(()), |subnet| subnet.check())?;
        let addressing = Addressing::new(self.ipv4, self.ipv6, self.host.into());
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
        let limits = limits::checked(self.limits)?;
        let seats =
            Seats::take(self.threads, self.queues.min(MAX_QUEUES).into()).map_err(BuildError::Thread)?;
        let queues = u16::try_from(1 + seats.further.len()).unwrap_or(MAX_QUEUES);
        let mut setup = Setup::new(self.device, mtu, own_namespace("net").map_err(BuildError::Namespace)?);
        setup.dns = addressing.subnets().map(|subnet| subnet.dns).collect();
        setup.search = self.names.search()?;
        setup.dns_options = self.names.options()?;
        setup.offload = self.offload;
        setup.queues = queues;
        let link = Offer { mtu, offload: self.offload, queues };
        let addresses = Pool::new(addressing);
        let containers = (self.isolation == Isolation::Open).then(|| addresses.directory().clone());
        let dns = dns::Terms { upstreams: self.upstreams, hosts, resolver: self.resolver, containers };
        let census = Census::take().map_err(BuildError::Census)?;
        let descriptors = census.share(self.reserve).ok_or(BuildError::NoDescriptors {
            limit: census.limit,
            open: census.open,
            reserve: self.reserve.unwrap_or(0),
        })?;
        let config =
            Config { dialer: self.dialer, limits, dns, link, isolation: self.isolation, descriptors };
        let ledger = Ledger::default();
        let engine = Engine::start(config, Arc::clone(ledger.own()), seats);
        let network = Network { engine, setup, addresses, ledger };
        for publish in self.publish {
            network.publish(publish)?;
        }
        Ok(network)
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
        assert!(stub.contains("127.0.0.53:53 of the host"), "{stub}");
        let shared = Ipv4Subnet::default().gateway([10, 0, 2, 100].into());
        assert!(error(Network::builder().ipv4(shared)).contains("gateway address are both 10.0.2.100"));
        let outside = Ipv6Subnet::default().dns("fd01::3".parse().unwrap());
        assert!(error(Network::builder().ipv6(outside)).contains("fd01::3 is not of a host in fd00::/64"));
    }
}
