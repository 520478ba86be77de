//! What an embedder touches: [`Network`] and its builder.

mod attaching;
mod builder;
mod error;
mod limits;
mod names;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use nsnet_proto::Setup;

pub use builder::NetworkBuilder;
pub use error::{AttachError, BuildError};

use crate::addressing::leases::Pool;
use crate::attach::Finished;
use crate::engine::Engine;
use crate::publish::{Publish, PublishError, Published};
use crate::statistics::{Ledger, Statistics};

/// A network for containers: terminates their TCP, UDP and ping, and sends again from this process.
///
/// Runs from [`build`](NetworkBuilder::build) until it is dropped or [finished](Self::finish), on a thread that the
/// library starts and that other networks may share: a process has no more of these than cores, however many
/// networks. Only networks built in the same network, mount and user namespaces share one, for it is there that sockets
/// are opened.
///
/// A network serves one container after another, or several at a time, which do not reach each other unless
/// [the builder says so](NetworkBuilder::containers_reach_each_other). One whose TUN device was handed over
/// keeps its namespace alive until [`Attachment::close`] or the end of the network: the kernel does not tell
/// when the last process in it has ended, the embedder's `wait` for its child does.
///
/// # Dropping
/// Dropping a network resets all connections, in both directions where bytes are still owed, and takes the containers'
/// interface away. **It blocks the calling thread** until that is done: usually for less than a millisecond, half a second
/// for a container that does not read, and 5 s at the most if a Dialer blocks the engine's thread, which is then left
/// behind. Where that must not happen, in an async task say, end the network with [`finish_async`](Self::finish_async)
/// instead. A Dialer may drop its own network: on an engine thread nothing blocks.
///
/// # Examples
/// ```no_run
/// use std::process::Command;
/// use std::time::Duration;
/// use nsnet_host::{Finished, Member, Network};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let mut command = Command::new("./sandbox-init"); // calls nsnet_container::TunDevice::open()
/// let mut attachment = network.attach(&mut command, Member::new())?;
/// let mut child = command.spawn()?;
/// attachment.wait_ready(Duration::from_secs(10))?;
/// child.wait()?;
/// if let Finished::Incomplete { connections } = network.finish(Duration::from_secs(5)) {
///     eprintln!("{connections} connections were cut off");
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`Attachment::close`]: crate::Attachment::close
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

    /// Lets a port of the host lead into a container, from now on until [`Published::close`] or the end of the
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
    /// debugger.close();
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish(&self, publish: Publish) -> Result<Published, PublishError> {
        let (listening, published) = publish.open()?;
        self.engine.publish(listening).map_err(|_| PublishError::ShutDown)?;
        Ok(published)
    }

    /// Ends the network in good order: serves until the upstream sockets have everything that the containers have
    /// sent and finished with FIN, for `grace` at the most, and then ends as if dropped.
    ///
    /// Called after the payload has ended, it loses nothing of what the payload had written before: its
    /// connections live on in the container's kernel for a while. A connection that some process still
    /// holds open takes all of `grace`. A container that is not ready yet is not waited for.
    ///
    /// Blocks the calling thread for `grace`, and 5 s more only if a Dialer blocks the engine's thread. Called by a Dialer,
    /// on an engine thread, it returns [`Finished::Abandoned`] at once and the network ends in the background. Async
    /// embedders use [`finish_async`](Self::finish_async).
    pub fn finish(self, grace: Duration) -> Finished {
        self.engine.finish(grace)
    }

    /// Like [`finish`](Self::finish), without blocking. The end begins with the call, not with the first poll.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the network to end in the background, after `grace` at the latest. It works on any
    /// runtime.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use nsnet_host::{BuildError, Finished, Network};
    ///
    /// # async fn example() -> Result<(), BuildError> {
    /// let network = Network::builder().build()?;
    /// // … containers come and go …
    /// assert_eq!(network.finish_async(Duration::from_secs(5)).await, Finished::Delivered);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish_async(self, grace: Duration) -> impl Future<Output = Finished> + Send + use<> {
        let over = self.engine.begin_to_finish(grace);
        async move {
            match over {
                Some(over) => over.await.unwrap_or(Finished::Abandoned),
                None => Finished::Abandoned,
            }
        }
    }

    /// What the network has carried and refused so far, for all of its containers together.
    /// [`Attachment::statistics`](crate::Attachment::statistics) has those of one.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.ledger.read()
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("setup", &self.setup).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attachment, Member, SetupError};

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
        let (attachment, _fd) = network.attach_fd(Member::new()).unwrap();
        drop(network);
        drop(attachment);
    }

    #[test]
    fn an_end_that_closes_early_is_reported() {
        let network = Network::builder().build().unwrap();
        let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let early = attachment.wait_ready(Duration::from_millis(1)).unwrap_err();
        assert!(matches!(early, SetupError::TimedOut(_)), "{early}");
        drop(fd);
        let closed = attachment.wait_ready(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(closed, SetupError::ClosedEarly), "{closed}");
    }

    #[test]
    fn a_network_that_shuts_down_says_so() {
        let network = Network::builder().build().unwrap();
        let (mut attachment, _fd) = network.attach_fd(Member::new()).unwrap();
        drop(network);
        let error = attachment.wait_ready(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, SetupError::ShutDown), "{error}");
    }
}
