//! What an embedder touches: [`Network`] and its builder.

mod builder;
mod error;
mod limits;
mod names;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nsnet_proto::{Channel, FD_VARIABLE, InterfaceAddress, Setup};
use tokio::sync::oneshot;

pub use builder::NetworkBuilder;
pub use error::{AttachError, BuildError};

use crate::attach::{Attachment, Inherited};
use crate::engine::{Engine, Request};
use crate::leases::{Member, Pool};
use crate::publish::{Publish, PublishError, Published};
use crate::statistics::{Ledger, Statistics};
use crate::sys;

/// A network for containers: terminates their TCP, UDP and ping, and sends again from this process.
///
/// Runs from [`build`](NetworkBuilder::build) until it is dropped or [finished](Self::finish), on a thread that the
/// library starts and that other networks may share: a process has no more of these than cores, however many
/// networks. Only networks built in the same network, mount and user namespaces share one, for it is there that sockets
/// are opened. Dropping resets all connections, in both directions where bytes are still owed, and takes the
/// containers' interface away.
///
/// A network serves one container after another, or several at a time, which do not reach each other unless
/// [the builder says so](NetworkBuilder::containers_reach_each_other). One whose TUN device was handed over
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
    /// Without the addresses, which each container has of its own.
    setup: Setup,
    addresses: Pool,
    ledger: Ledger,
}

impl Network {
    /// A network with the defaults: direct connections, IPv4 and IPv6, the host's resolvers.
    #[must_use]
    pub fn builder() -> NetworkBuilder {
        NetworkBuilder::default()
    }

    /// Lets `command` inherit its end of the link, under the number in the environment variable `NSNET_FD`.
    ///
    /// The command is spawned by the caller, once, without clearing its environment, and must call
    /// `nsnet_container::TunDevice::open()` in its network namespace. For a `tokio::process::Command` pass
    /// `command.as_std_mut()`.
    ///
    /// A network has room for many containers: each has a link and addresses of its own.
    ///
    /// # Errors
    /// [`AttachError`], in practice for lack of file descriptors.
    pub fn attach(&self, command: &mut Command) -> Result<Attachment, AttachError> {
        self.attach_member(command, Member::new())
    }

    /// Like [`attach`](Self::attach), for a container with a name or addresses that are chosen.
    ///
    /// # Errors
    /// See [`attach`](Self::attach); also if the name or an address is not to be had.
    pub fn attach_member(&self, command: &mut Command, member: Member) -> Result<Attachment, AttachError> {
        let (request, container, attachment) = self.prepare(member)?;
        let inherited = Inherited::new(container);
        let number = inherited.number();
        command.env(FD_VARIABLE, number.load(Relaxed).to_string());
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
        self.attach_member_fd(Member::new())
    }

    /// Like [`attach_fd`](Self::attach_fd), for a container with a name or addresses that are chosen.
    ///
    /// # Errors
    /// See [`attach_member`](Self::attach_member).
    pub fn attach_member_fd(&self, member: Member) -> Result<(Attachment, OwnedFd), AttachError> {
        let (request, container, attachment) = self.prepare(member)?;
        self.engine.attach(request).map_err(|_| AttachError::ShutDown)?;
        Ok((attachment, container))
    }

    /// Lets a port of the host lead into a container, from now on until [`unpublish`](Self::unpublish) or the end of the
    /// network, whichever containers come and go: each new connection finds the one that is meant. The sockets are opened
    /// by the calling thread, in its namespaces. They listen when this returns.
    ///
    /// A server inside sees the client's own address and port; clients on the host itself, and those who come by a UNIX
    /// socket, appear as the gateway. Where nobody listens inside, in either address family, the client sees a reset.
    ///
    /// # Errors
    /// [`PublishError`]: says what is in use, or out of reach. Of a range, all ports are published or none.
    ///
    /// # Examples
    /// ```no_run
    /// use nsnet_host::{Network, Publish};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().publish(Publish::tcp(8080, 80)).build()?;
    /// let debugger = network.publish(Publish::tcp(0, 5005).container("app"))?;
    /// println!("debug at {:?}", debugger.addresses());
    /// network.unpublish(debugger);
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish(&self, publish: Publish) -> Result<Published, PublishError> {
        let (listening, published) = publish.open()?;
        self.engine.publish(listening).map_err(|_| PublishError::ShutDown)?;
        Ok(published)
    }

    /// Closes what [`publish`](Self::publish) has opened; when this returns, the addresses are free. TCP connections that
    /// are open go on; UDP clients are not heard any more.
    pub fn unpublish(&self, published: Published) {
        self.engine.unpublish(published);
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

    /// What the network has carried and refused so far, for all of its containers together.
    /// [`Attachment::statistics`] has those of one.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.ledger.read()
    }

    /// An attachment and what the engine and the container side get of it.
    fn prepare(&self, member: Member) -> Result<(Request, OwnedFd, Attachment), AttachError> {
        let lease = self.addresses.lease(&member)?;
        let (host, container) = pair()?;
        // What carries the queues behind the first, should they be shuttled. Made here rather than by the container
        // side: with a socket of its choice, this process would write to whoever is behind that.
        let further = (1..self.setup.queues).map(|_| pair()).collect::<Result<Vec<_>, _>>()?;
        let (further, theirs): (Vec<_>, Vec<_>) = further.into_iter().unzip();
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let mut setup = self.setup.clone();
        let subnets = lease.addressing().subnets();
        setup.addresses = subnets
            .map(|subnet| InterfaceAddress::new(subnet.container, subnet.prefix.prefix_len(), subnet.gateway))
            .collect();
        host.send(&setup, &fds).map_err(AttachError::Setup)?;
        let (outcome_in, outcome) = oneshot::channel();
        let (close, close_out) = oneshot::channel();
        let counters = self.ledger.open();
        let attachment = Attachment::new(outcome, close, Arc::clone(&counters));
        let request = Request {
            channel: host,
            further,
            member,
            lease,
            counters,
            outcome: outcome_in,
            close: close_out,
        };
        Ok((request, container.into_fd(), attachment))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Network>();
        shared::<Attachment>();
        shared::<Published>();
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
