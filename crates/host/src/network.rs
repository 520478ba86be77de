//! What an embedder touches: [`Network`] and its builder.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nsnet_proto::{
    Channel, ChannelError, DEVICE_NAME_MAX, FD_VARIABLE, InterfaceAddress, MAX_QUEUES, Offload, Setup,
};
use tokio::sync::oneshot;

use crate::addressing::{Addressing, Subnet};
use crate::attach::{self, Attachment, Inherited};
use crate::dialer::{Dialer, DirectDialer};
use crate::engine::{Config, DnsSource, Engine, Request};
use crate::gateway::Limits;
use crate::statistics::{Counters, Statistics};
use crate::sys;
use crate::threads::{Seats, own_namespace};

/// A network for containers: terminates their TCP and UDP and dials again from this process.
///
/// Runs from [`build`](NetworkBuilder::build) until it is dropped or [finished](Self::finish), on a thread that the
/// library starts and that other networks may share: a process has no more of these than cores, however many
/// networks. Only networks built in the same network, mount and user namespaces share one, for it is there that sockets are
/// opened. Dropping resets all connections, in both directions where bytes are still owed, and
/// takes the containers' interface away.
///
/// A network serves one container after another, or several at a time. One whose TUN device was handed over
/// keeps its namespace alive until [`Attachment::close`] or the end of the network: the kernel does not tell
/// when the last process in it has ended, the embedder's `wait` for its child does.
///
/// # Examples
/// ```no_run
/// use std::process::Command;
/// use std::time::Duration;
/// use nsnet_host::Network;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let mut command = Command::new("./sandbox-init"); // calls nsnet_container::TunDevice::open()
/// let mut attachment = network.attach(&mut command)?;
/// let mut child = command.spawn()?;
/// attachment.wait_ready(Duration::from_secs(10))?;
/// child.wait()?;
/// network.finish(Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
pub struct Network {
    engine: Engine,
    setup: Setup,
    counters: Arc<Counters>,
}

impl Network {
    /// A network with the defaults: direct connections, IPv4 and IPv6, the host's resolvers.
    #[must_use]
    pub fn builder() -> NetworkBuilder {
        NetworkBuilder::default()
    }

    /// Lets `command` inherit its end of the link, under the number in the environment variable `NSNET_FD`.
    ///
    /// The command is spawned by the caller, once, without clearing its environment, and must call `nsnet_container::TunDevice::open()` in its
    /// network namespace. For a `tokio::process::Command` pass `command.as_std_mut()`.
    ///
    /// Every attachment is a link of its own: containers of one network do not reach each other.
    ///
    /// # Errors
    /// [`AttachError`], in practice for lack of file descriptors.
    pub fn attach(&self, command: &mut Command) -> Result<Attachment, AttachError> {
        let (request, container, attachment) = self.prepare()?;
        let inherited = Inherited::new(container);
        let number = inherited.number();
        command.env(FD_VARIABLE, number.load(std::sync::atomic::Ordering::Relaxed).to_string());
        sys::inherit(command, number);
        self.engine.attach(request).map_err(|_| AttachError::ShutDown)?;
        Ok(attachment.keep(inherited))
    }

    /// Like [`attach`](Self::attach), for callers who bring the fd to the container side by other means
    /// (`nsnet_container::TunDevice::from_fd`).
    ///
    /// # Errors
    /// See [`attach`](Self::attach).
    pub fn attach_fd(&self) -> Result<(Attachment, OwnedFd), AttachError> {
        let (request, container, attachment) = self.prepare()?;
        self.engine.attach(request).map_err(|_| AttachError::ShutDown)?;
        Ok((attachment, container))
    }

    /// Ends the network in good order: serves until the upstream sockets have everything that the containers have
    /// sent and finished with FIN, for `grace` at the most, and then drops. Blocks the calling thread for that long.
    ///
    /// Called after the payload has ended, it loses nothing of what the payload had written before: its
    /// connections live on in the container's kernel for a while. A connection that some process still
    /// holds open takes all of `grace`.
    pub fn finish(self, grace: Duration) {
        self.engine.finish(grace);
    }

    /// What the network has carried and refused so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.read()
    }

    /// An attachment and what the engine and the container side get of it.
    fn prepare(&self) -> Result<(Request, OwnedFd, Attachment), AttachError> {
        let (host, container) = pair()?;
        // What carries the queues behind the first, should they be shuttled. Made here rather than by the container
        // side: with a socket of its choice, this process would write to whoever is behind that.
        let further = (1..self.setup.queues).map(|_| pair()).collect::<Result<Vec<_>, _>>()?;
        let (further, theirs): (Vec<_>, Vec<_>) = further.into_iter().unzip();
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        host.send(&self.setup, &fds).map_err(AttachError::Setup)?;
        let (outcome_in, outcome) = oneshot::channel();
        let (close, close_out) = oneshot::channel();
        let request = Request { channel: host, further, outcome: outcome_in, close: close_out };
        Ok((request, container.into_fd(), Attachment::new(outcome, close)))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("setup", &self.setup).finish_non_exhaustive()
    }
}

/// Bytes that may wait in the socketpair in each direction: some dozens of the largest frames.
const SOCKET_BUFFER: usize = 4 << 20;

/// Both ends of a link, with room for frames to queue. The kernel cuts what is asked for down to `net.core.wmem_max`
/// (socket(7)), of which the default holds three of the largest frames: slower, and still right.
fn pair() -> Result<(Channel, Channel), AttachError> {
    let (host, container) = Channel::pair().map_err(AttachError::SocketPair)?;
    for end in [&host, &container] {
        let _ = socket2::SockRef::from(end).set_send_buffer_size(SOCKET_BUFFER);
    }
    Ok((host, container))
}

/// Why a command could not be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The kernel has no socketpair for us.
    #[error("create the socketpair to the container: {0}; if file descriptors ran out, raise RLIMIT_NOFILE")]
    SocketPair(#[source] io::Error),
    /// The setup message could not be queued.
    #[error("queue the setup message for the container: {0}")]
    Setup(#[source] ChannelError),
    /// The engine's thread has ended.
    #[error("the network has been shut down")]
    ShutDown,
}

/// Builds a [`Network`]. Everything has a default.
pub struct NetworkBuilder {
    dialer: Arc<dyn Dialer>,
    device: String,
    mtu: Option<u16>,
    ipv4: Option<Subnet>,
    ipv6: Option<Subnet>,
    host_loopback: bool,
    offload: Offload,
    queues: usize,
    dns: DnsSource,
    limits: Limits,
}

impl Default for NetworkBuilder {
    fn default() -> Self {
        Self {
            dialer: Arc::new(DirectDialer::new()),
            device: "tun0".into(),
            mtu: None,
            ipv4: Some(Subnet::IPV4),
            ipv6: Some(Subnet::IPV6),
            host_loopback: false,
            offload: Offload::ALL,
            queues: 1,
            dns: DnsSource::System,
            limits: Limits {
                tcp_flows: 16_384,
                ring_memory: 256 << 20,
                udp_mappings: 4_096,
                udp_peers: 16_384,
                udp_idle_timeout: Duration::from_secs(180),
                dial_timeout: Duration::from_secs(60),
            },
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
    #[must_use]
    pub fn host_loopback(mut self) -> Self {
        self.host_loopback = true;
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
    pub fn queues(mut self, queues: usize) -> Self {
        self.queues = queues;
        self
    }

    /// Forwards DNS queries to these servers, in this order. Default: those of `/etc/resolv.conf`, read again
    /// when it changes.
    #[must_use]
    pub fn dns_servers(mut self, servers: Vec<SocketAddr>) -> Self {
        self.dns = DnsSource::Fixed(servers);
        self
    }

    /// Forwards DNS queries to the servers of this file instead of `/etc/resolv.conf`, resolv.conf(5).
    #[must_use]
    pub fn resolv_conf(mut self, path: impl Into<PathBuf>) -> Self {
        self.dns = DnsSource::File(path.into());
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
    /// the container sees silence. Default: 60 s, below the 127 s after which Linux gives a connection up.
    #[must_use]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.limits.dial_timeout = timeout;
        self
    }

    /// Most TCP connections of one container at a time, those being dialled included; a SYN beyond is lost. Each
    /// needs a file descriptor of this process, and 2 MiB of its address space (not of memory): lower this, or raise
    /// `RLIMIT_NOFILE`, so that a container cannot use up what the embedder needs for itself. With several
    /// [`queues`](Self::queues) each has its even share, rounded up, and a connection beyond that of its queue is
    /// lost. Default: 16 384.
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

    /// Starts the network.
    ///
    /// # Errors
    /// [`BuildError`] for values that cannot work, or if no thread can be started.
    pub fn build(self) -> Result<Network, BuildError> {
        let addressing = Addressing { v4: self.ipv4, v6: self.ipv6, host_loopback: self.host_loopback };
        let mtu = self.mtu.unwrap_or(if self.offload.tso4 { MTU_OFFLOAD } else { MTU_PLAIN });
        let least = if self.ipv6.is_some() { MTU_MIN_V6 } else { MTU_MIN_V4 };
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
        let seats = Seats::take(self.queues.min(MAX_QUEUES.into())).map_err(BuildError::Thread)?;
        let queues = u16::try_from(1 + seats.further.len()).unwrap_or(MAX_QUEUES);
        let setup = Setup {
            device: self.device,
            mtu,
            addresses: addressing
                .subnets()
                .map(|subnet| InterfaceAddress {
                    address: subnet.container,
                    prefix_len: subnet.prefix_len,
                    gateway: subnet.gateway,
                })
                .collect(),
            dns: addressing.subnets().map(|subnet| subnet.dns).collect(),
            offload: self.offload,
            queues,
            host_namespace: own_namespace("net").map_err(BuildError::Namespace)?,
        };
        let link = attach::Terms { mtu, offload: self.offload, queues };
        let config = Config { addressing, dialer: self.dialer, limits, dns: self.dns, link };
        let counters = Arc::new(Counters::default());
        let engine = Engine::start(config, Arc::clone(&counters), seats);
        Ok(Network { engine, setup, counters })
    }
}

/// Why a network could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The MTU is too small.
    #[error("an MTU of {mtu} bytes is too small: at least {least} are needed with these address families")]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// What would do.
        least: u16,
    },
    /// No queue at all was asked for.
    #[error("a network needs a queue: ask for 1 or more")]
    NoQueue,
    /// The interface name is empty or too long.
    #[error("the interface name {0:?} must have 1 to {DEVICE_NAME_MAX} bytes")]
    DeviceName(String),
    /// The addresses of one family do not make a network.
    #[error(
        "the {family} addresses must be of that family, differ, and lie in one prefix of sane length: {subnet:?}"
    )]
    Subnet {
        /// The family.
        family: &'static str,
        /// The addresses.
        subnet: Subnet,
    },
    /// The network namespace of the calling thread has no identity to be found.
    #[error("find out the own network namespace: {0}; is /proc mounted?")]
    Namespace(#[source] io::Error),
    /// The engine's thread or its runtime could not be made.
    #[error("start the network's thread: {0}")]
    Thread(#[source] io::Error),
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
    fn a_network_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Network>();
        shared::<Attachment>();
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        let error = |builder: NetworkBuilder| builder.build().unwrap_err().to_string();
        assert!(error(Network::builder().mtu(1000)).contains("at least 1280"));
        assert!(error(Network::builder().ipv4_only().mtu(500)).contains("at least 576"));
        assert!(error(Network::builder().device_name("an-interface-name")).contains("1 to 15 bytes"));
        assert!(error(Network::builder().queues(0)).contains("1 or more"));
        let swapped = Subnet { gateway: Subnet::IPV4.container, ..Subnet::IPV4 };
        assert!(error(Network::builder().ipv4(swapped)).contains("IPv4"));
        assert!(error(Network::builder().ipv6(Subnet::IPV4)).contains("IPv6"));
    }

    #[test]
    fn a_network_without_containers_ends_at_once() {
        let network = Network::builder().build().unwrap();
        let (attachment, _fd) = network.attach_fd().unwrap();
        drop(network);
        drop(attachment);
    }

    #[test]
    fn an_end_that_closes_early_is_reported() {
        let network = Network::builder().build().unwrap();
        let (mut attachment, fd) = network.attach_fd().unwrap();
        let early = attachment.wait_ready(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(early, crate::SetupError::TimedOut(_)), "{early}");
        drop(fd);
        let closed = attachment.wait_ready(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(closed, crate::SetupError::ClosedEarly), "{closed}");
    }

    #[test]
    fn a_network_that_shuts_down_says_so() {
        let network = Network::builder().build().unwrap();
        let (mut attachment, _fd) = network.attach_fd().unwrap();
        drop(network);
        let error = attachment.wait_ready(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, crate::SetupError::ShutDown), "{error}");
    }
}
