//! Attaching a container: the embedder's handle, the handshake with the container side, devices from elsewhere.
//!
//! [`Attachment`] is the embedder's side, [`Attached`] the engine's. Orders go one way. Three answers come back: the
//! container is ready, it has no network any more, and everything of it is over.

mod attached;
mod device;
mod end;
mod ending;
mod error;
mod handshake;
mod inherited;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nsnet_proto::{Channel, Ready, Setup};
use tokio::sync::{oneshot, watch};

pub(crate) use attached::{Attached, Order};
pub use device::AdoptedDevice;
pub(crate) use device::adopt;
pub use end::{End, Finished};
pub(crate) use ending::Ending;
pub use error::SetupError;
pub(crate) use handshake::{Offer, handshake};
pub(crate) use inherited::Inherited;

use crate::addressing::leases::{Lease, Member};
use crate::link::LinkEnd;
use crate::statistics::{Counters, Statistics};
use crate::task::block_on;
use crate::threads;

/// How long a blocking call waits beyond the grace. The end takes milliseconds unless a Dialer blocks the thread, or
/// thousands of connections end.
pub(crate) const JOIN: Duration = Duration::from_secs(5);

/// A container of a [`Network`]: running, about to be started, or [adopted](crate::Network::adopt).
///
/// Dropping it changes nothing for a container that is up. Its network lives until the [`Network`] is dropped or
/// [`close`](Self::close) is called. [`close_on_drop`](Self::close_on_drop) changes that. A command that has not been
/// spawned when its attachment is dropped cannot be spawned afterwards.
///
/// No method needs an async runtime. The `async` ones work on any.
///
/// # Examples
/// ```no_run
/// use std::process::Command;
/// use std::time::Duration;
/// use nsnet_host::{End, Member, Network};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let mut command = Command::new("./sandbox-init");
/// let mut attachment = network.attach(&mut command, Member::named("db"))?.close_on_drop();
/// // The sandbox does not exist yet; what belongs into its file system can be made already.
/// std::fs::write("rootfs/etc/resolv.conf", attachment.resolv_conf())?;
/// command.spawn()?;
/// attachment.wait_ready(Duration::from_secs(10))?;
/// println!("the database is at {:?}", attachment.ipv4());
/// match attachment.wait_ended(Duration::from_secs(3600)) {
///     Some(End::LinkGone) => println!("somebody deleted the device"),
///     Some(end) => println!("{end}"),
///     None => println!("it still runs"),
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`Network`]: crate::Network
#[derive(Debug)]
pub struct Attachment {
    setup: Setup,
    counters: Arc<Counters>,
    outcome: oneshot::Receiver<Result<Ready, SetupError>>,
    told: Told,
    orders: watch::Sender<Order>,
    end: watch::Receiver<Option<End>>,
    finished: Option<oneshot::Receiver<Finished>>,
    /// This process's copy of the channel end that the command inherits.
    inherited: Mutex<Option<Inherited>>,
    on_drop: OnDrop,
}

/// A container on its way to the engine.
pub(crate) struct NewContainer {
    pub(crate) origin: LinkOrigin,
    pub(crate) member: Member,
    pub(crate) lease: Lease,
    /// The counters of this container.
    pub(crate) counters: Arc<Counters>,
    pub(crate) attached: Attached,
}

/// Where the link of a container comes from.
pub(crate) enum LinkOrigin {
    /// A container side that has the other end of a channel. `further` carry the queues behind the first if frames are
    /// shuttled.
    ContainerSide { channel: Channel, further: Vec<Channel> },
    /// A device that is ready to be served.
    Device { port: LinkEnd, ready: Ready },
}

impl LinkOrigin {
    /// How many file descriptors of this process the link needs.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            // The channel, and the device or channel of each queue.
            Self::ContainerSide { further, .. } => 2 + further.len(),
            Self::Device { .. } => 1,
        }
    }
}

/// How far the caller knows the outcome of the setup.
#[derive(Debug, Clone, Copy)]
enum Told {
    Nothing,
    Ready(Ready),
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDrop {
    Leave,
    Close,
}

/// Both sides of a container with this setup.
pub(crate) fn pair(setup: Setup, counters: Arc<Counters>) -> (Attachment, Attached) {
    let (outcome_in, outcome) = oneshot::channel();
    let (orders, orders_out) = watch::channel(Order::Serve);
    let (end_in, end) = watch::channel(None);
    let (finished_in, finished) = oneshot::channel();
    let attachment = Attachment {
        setup,
        counters,
        outcome,
        told: Told::Nothing,
        orders,
        end,
        finished: Some(finished),
        inherited: Mutex::new(None),
        on_drop: OnDrop::Leave,
    };
    (attachment, Attached::new(outcome_in, orders_out, end_in, finished_in))
}

impl Attachment {
    /// Keeps the channel end open until the command has inherited it.
    pub(crate) fn keep(mut self, inherited: Inherited) -> Self {
        self.inherited = Mutex::new(Some(inherited));
        self
    }

    /// For a container that was ready from the start.
    pub(crate) fn already(mut self, ready: Ready) -> Self {
        self.told = Told::Ready(ready);
        self
    }

    /// From now on, dropping the attachment closes it, as [`close`](Self::close) does. The drop does not block.
    /// Default: dropping changes nothing.
    #[must_use]
    pub fn close_on_drop(mut self) -> Self {
        self.on_drop = OnDrop::Close;
        self
    }

    /// Setup of the container's interface: name, MTU, addresses with their gateways, DNS. It is known before the
    /// container exists.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The container's IPv4 address. `None` if the network has no IPv4.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.setup.addresses.iter().find_map(|address| match address.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    /// The container's IPv6 address. `None` if the network has no IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.setup.addresses.iter().find_map(|address| match address.address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
    }

    /// The content of a resolv.conf(5) for the container. It is the text that `nsnet_container::resolv_conf` writes
    /// from inside, for embedders that prepare the container's file system from outside.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        self.setup.resolv_conf()
    }

    /// Counts of everything carried and refused for this container so far, also after it has ended.
    /// [`Network::statistics`](crate::Network::statistics) has the sum over all containers.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::{Member, Network};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().build()?;
    /// let (attachment, _container_side) = network.attach_fd(Member::new())?;
    /// let statistics = attachment.statistics();
    /// println!("{} bytes to the container", statistics.bytes_to_container);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.read()
    }

    /// Waits until the container's interface is up. Call it after spawning the command, which cannot be spawned again
    /// from then on.
    ///
    /// It blocks the calling thread, unless that is an engine thread, on which Dialers are asked. In async code, use
    /// [`ready`](Self::ready).
    ///
    /// # Errors
    /// - The container side's own error, as [`SetupError`].
    /// - Another [`SetupError`] that says what the container side did instead, such as exiting or closing its fd.
    /// - [`SetupError::TimedOut`] after `timeout`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<Ready, SetupError> {
        block_on(self.ready(), patience(timeout)).unwrap_or(Err(SetupError::TimedOut(timeout)))
    }

    /// Like [`wait_ready`](Self::wait_ready), without blocking and without a timeout of its own.
    ///
    /// # Errors
    /// See [`wait_ready`](Self::wait_ready).
    ///
    /// # Cancel safety
    /// Cancel-safe; it works on any runtime.
    pub async fn ready(&mut self) -> Result<Ready, SetupError> {
        self.release_inherited();
        match self.told {
            Told::Nothing => {}
            Told::Ready(ready) => return Ok(ready),
            Told::Failed => return Err(SetupError::AlreadyFailed),
        }
        let outcome = (&mut self.outcome).await.unwrap_or(Err(SetupError::ShutDown));
        self.told = outcome.as_ref().map_or(Told::Failed, |ready| Told::Ready(*ready));
        outcome
    }

    /// Waits until the container has no network any more, and returns the reason. Returns `None` if it still has one
    /// after `timeout`. Call it after spawning the command, as often as you like: the answer stays the same. A call
    /// before the spawn makes the command impossible to spawn, whatever the timeout.
    ///
    /// It returns [`End::LinkGone`] as soon as the link is gone. Streams that the container had finished by then are
    /// still being delivered, and [`finish`](Self::finish) waits for that. For any other end, the connections are gone
    /// when this returns, and the container's addresses and name are free again.
    ///
    /// The end of the container's processes does not end its network. The kernel keeps a namespace while somebody holds
    /// its device. If the device was handed over, this process does. Wait for the child, then [`close`](Self::close).
    ///
    /// It blocks the calling thread, unless that is an engine thread, on which Dialers are asked. In async code, use
    /// [`ended`](Self::ended).
    #[must_use]
    pub fn wait_ended(&self, timeout: Duration) -> Option<End> {
        block_on(self.ended(), patience(timeout))
    }

    /// Like [`wait_ended`](Self::wait_ended), without blocking and without a timeout.
    ///
    /// # Cancel safety
    /// Cancel-safe; it works on any runtime.
    pub async fn ended(&self) -> End {
        self.release_inherited();
        let mut end = self.end.clone();
        let told = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        told.unwrap_or(End::NetworkEnded)
    }

    /// Takes the network away from this container and resets its connections. Data that the container has finished
    /// sending and that the upstream sockets have taken is delivered.
    ///
    /// Call it when the container has ended, if the network lives on. It returns at once, and
    /// [`wait_ended`](Self::wait_ended) waits until it is done. A second call does nothing.
    pub fn close(&self) {
        self.orders.send_replace(Order::Close);
    }

    /// Ends the network of this container in good order, and of no other. It serves until the upstream sockets have
    /// everything that the container has sent and finished with FIN, or until `grace` is over. Then it closes. With a
    /// grace of zero it is a [`close`](Self::close) that waits.
    ///
    /// It blocks the calling thread for that long. On an engine thread, where Dialers run, it returns
    /// [`Finished::Abandoned`] at once instead. In async code, use [`finish_async`](Self::finish_async).
    pub fn finish(self, grace: Duration) -> Finished {
        let finished = self.finish_async(grace);
        if threads::is_engine_thread() {
            return Finished::Abandoned;
        }
        block_on(finished, grace.saturating_add(JOIN)).unwrap_or(Finished::Abandoned)
    }

    /// Like [`finish`](Self::finish), without blocking. The end begins with the call, not with the first poll.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the container to end in the background, after `grace` at the latest. It works on any
    /// runtime.
    pub fn finish_async(mut self, grace: Duration) -> impl Future<Output = Finished> + Send + use<> {
        self.release_inherited();
        self.on_drop = OnDrop::Leave;
        self.orders.send_if_modified(|order| {
            let is_news = *order == Order::Serve;
            if is_news {
                *order = Order::Finish(grace);
            }
            is_news
        });
        let finished = self.finished.take();
        async move {
            match finished {
                Some(finished) => finished.await.unwrap_or(Finished::Abandoned),
                None => Finished::Abandoned,
            }
        }
    }

    /// Closes this process's copy of the channel end. While it is open, the end of the command goes unnoticed.
    fn release_inherited(&self) {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Attachment {
    /// Does not block.
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Close {
            self.close();
        }
    }
}

/// How long the calling thread may wait: an engine thread not at all.
fn patience(timeout: Duration) -> Duration {
    if threads::is_engine_thread() { Duration::ZERO } else { timeout }
}

#[cfg(test)]
mod testing {
    use std::sync::Arc;

    use nsnet_proto::{NamespaceId, Setup};

    use super::{Attached, Attachment, pair};

    /// Both sides of a container without addresses.
    pub(super) fn both() -> (Attachment, Attached) {
        let setup = Setup::new("tun0", 1500, NamespaceId { device: 0, inode: 0 });
        pair(setup, Arc::default())
    }
}
