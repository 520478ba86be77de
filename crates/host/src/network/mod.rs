//! The public API: [`Network`] and its builder.

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

/// A network for containers. It terminates their TCP, UDP and ping, and sends them again from this process.
///
/// It runs from [`build`](NetworkBuilder::build) until it is dropped or [finished](Self::finish), on an engine thread
/// that the library starts. Networks can [share engine threads](NetworkBuilder::threads). The thread opens the
/// network's sockets, in the network, mount and user namespaces of the thread that called `build`.
///
/// A network serves containers one after another or several at a time. They do not reach each other unless [the builder
/// says so](NetworkBuilder::containers_reach_each_other). A container whose TUN device was handed over keeps its
/// namespace alive until [`Attachment::close`] or the end of the network. The kernel does not report when the last
/// process in the namespace has ended. The embedder's `wait` for its child does.
///
/// # Dropping
/// Dropping a network resets all connections, in both directions where bytes are still owed, and removes the
/// containers' interface.
///
/// **It blocks the calling thread** until that is done:
///
/// | what ends | usual time |
/// |---|---|
/// | a few connections | a millisecond |
/// | a TUN device that was handed over | 50 ms, which the kernel takes to delete it |
/// | ten thousand connections | a second, in pieces between the work of other networks |
/// | a container that does not read | half a second |
///
/// If a Dialer blocks the engine's thread, the drop waits 5 s and leaves the thread behind. As long as the thread is at
/// work, the drop waits up to a minute. The network then goes on ending in the background. Where blocking is wrong, as
/// in an async task, end the network with [`finish_async`](Self::finish_async) instead. A Dialer may drop its own
/// network: on an engine thread nothing blocks.
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
    /// Without addresses: each container has its own.
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

    /// Publishes a port of the host into a container, until [`Published::close`] or the end of the network. Containers
    /// may come and go: each new connection looks the container up. The calling thread opens the sockets, in its own
    /// namespaces. They listen when this returns.
    ///
    /// A server inside sees the client's own address and port. Clients on the host itself and clients of a UNIX socket
    /// appear as the gateway. If nothing listens inside, in either address family, the client sees a reset.
    ///
    /// # Errors
    /// [`PublishError`] says which address or port is in use or cannot be had. Of a range, all ports are published or
    /// none.
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

    /// Ends the network in good order. It serves until the upstream sockets have everything that the containers have
    /// sent and finished with FIN, or until `grace` is over. Then it ends as if dropped.
    ///
    /// Called after the payload has ended, it loses nothing that the payload has written. The payload's connections
    /// live on in the container's kernel for a while. A connection that some process still holds open takes all of
    /// `grace`. The call does not wait for a container that is not ready yet.
    ///
    /// It blocks the calling thread for `grace` at the most, and then for as long as a [drop](Self#dropping). Called by a Dialer on an engine thread, it returns [`Finished::Abandoned`] at once, and the network ends
    /// in the background. In async code, use [`finish_async`](Self::finish_async).
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

    /// Counts of everything the network has carried and refused so far, for all its containers together.
    /// [`Attachment::statistics`](crate::Attachment::statistics) has the counts of one container.
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
