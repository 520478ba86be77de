//! Attaching a container side: the fd it inherits, the handshake, and the error it reports.

use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use nsnet_proto::{Carriage, Channel, ChannelError, Failure, Offload, Report};
use nsnet_stack::frame::Device;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::link::{Framing, LinkProperties, Port};
use crate::statistics::{Counters, Statistics};
use crate::sys;

/// A container side that has been, or is about to be, started.
///
/// Dropping it changes nothing for a container that is up: its network lives until the [`Network`] is dropped
/// or [`close`](Self::close) is called. A command that has not been spawned by then cannot be.
///
/// [`Network`]: crate::Network
#[derive(Debug)]
pub struct Attachment {
    outcome: oneshot::Receiver<Result<Ready, SetupError>>,
    close: oneshot::Sender<()>,
    counters: Arc<Counters>,
    standing: Standing,
    /// This process's copy of the end the command inherits.
    inherited: Option<Inherited>,
}

/// What the caller has been told.
#[derive(Debug, Clone, Copy)]
enum Standing {
    Waiting,
    Ready(Ready),
    Failed,
}

/// What the container side was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// How frames travel between the TUN device and this process.
    pub carriage: Carriage,
    /// The offloads in effect.
    pub offload: Offload,
    /// How many queues the device has, and thus how many threads serve its TCP connections; see
    /// [`queues`](crate::NetworkBuilder::queues). Fewer than asked for if the container's kernel or its limit of open
    /// files gave no more; the container side's log says which.
    pub queues: usize,
}

impl Attachment {
    pub(crate) fn new(
        outcome: oneshot::Receiver<Result<Ready, SetupError>>,
        close: oneshot::Sender<()>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { outcome, close, counters, standing: Standing::Waiting, inherited: None }
    }

    /// Keeps open what the command inherits until it has it.
    pub(crate) fn keep(mut self, inherited: Inherited) -> Self {
        self.inherited = Some(inherited);
        self
    }

    /// Waits until the container's interface is up. Called after the command was spawned; from then on the
    /// command cannot be spawned again.
    ///
    /// Blocks the calling thread; async embedders use [`ready`](Self::ready).
    ///
    /// # Errors
    /// The container side's own error, a [`SetupError`] that says what it did instead of getting ready (it
    /// exited, it closed its fd), or [`SetupError::TimedOut`].
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<Ready, SetupError> {
        self.inherited = None;
        match self.standing {
            Standing::Waiting => {}
            Standing::Ready(ready) => return Ok(ready),
            Standing::Failed => return Err(SetupError::AlreadyFailed),
        }
        match wait(&mut self.outcome, timeout) {
            Some(result) => self.settle(result),
            None => Err(SetupError::TimedOut(timeout)),
        }
    }

    /// Like [`wait_ready`](Self::wait_ready), without blocking and without a timeout of its own.
    ///
    /// # Errors
    /// See [`wait_ready`](Self::wait_ready).
    ///
    /// # Cancel safety
    /// Cancel-safe; it works on any runtime.
    pub async fn ready(&mut self) -> Result<Ready, SetupError> {
        self.inherited = None;
        match self.standing {
            Standing::Waiting => {
                let result = outcome(&mut self.outcome).await;
                self.settle(result)
            }
            Standing::Ready(ready) => Ok(ready),
            Standing::Failed => Err(SetupError::AlreadyFailed),
        }
    }

    /// What has been carried and refused for this container so far, also after it has ended.
    /// [`Network::statistics`](crate::Network::statistics) has the sum over all containers.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::Network;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().build()?;
    /// let (attachment, _container_side) = network.attach_fd()?;
    /// let statistics = attachment.statistics();
    /// println!("{} bytes to the container", statistics.bytes_to_container);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.read()
    }

    /// Takes the network away from this container; its connections are reset. What the container had finished
    /// sending and the upstream sockets have taken is delivered.
    ///
    /// To be called when the container has ended, if the network lives on.
    pub fn close(self) {
        // The engine is gone if it does not listen, and the container's network with it.
        let _ = self.close.send(());
    }

    fn settle(&mut self, result: Result<Ready, SetupError>) -> Result<Ready, SetupError> {
        self.standing = result.as_ref().map_or(Standing::Failed, |ready| Standing::Ready(*ready));
        result
    }
}

/// Why a container side did not get ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The container side failed and said why.
    #[error("container side: {}", describe(.0))]
    Container(Failure),
    /// The container side exited, or closed its fd (the command closes inherited fds?), before it was ready.
    #[error(
        "the container side closed its end before it was ready: did it exit, or close inherited file \
         descriptors before TunDevice::open()?"
    )]
    ClosedEarly,
    /// The container side sent something else than it should.
    #[error("handshake with the container side: {0}")]
    Handshake(#[source] ChannelError),
    /// The report and the file descriptors with it do not fit together.
    #[error("the container side handed over {0} file descriptors where {1} was expected")]
    FileDescriptors(usize, usize),
    /// The container side speaks of no queues, or of more than it was offered.
    #[error("the container side speaks of {granted} queues where up to {wanted} were expected")]
    Queues {
        /// What it said.
        granted: u16,
        /// What the network has seats for.
        wanted: u16,
    },
    /// What was handed over is no TUN device that carries bare IP packets.
    #[error(
        "the file descriptor the container side handed over is not a TUN device (IFF_TUN, IFF_NO_PI): {0}"
    )]
    NotTun(#[source] io::Error),
    /// The file descriptors that were handed over are no queues of one device.
    #[error(
        "the file descriptors the container side handed over differ in their framing: they are no queues of one device"
    )]
    QueuesDiffer,
    /// The container side has not got ready in time. It may still do.
    #[error("the container side was not ready after {0:?}")]
    TimedOut(Duration),
    /// The network was shut down.
    #[error("the network was shut down before the container side was ready")]
    ShutDown,
    /// The error was returned by an earlier call.
    #[error("the container side has failed before")]
    AlreadyFailed,
    /// This process could not serve the link.
    #[error("serve the link to the container: {0}")]
    Host(#[source] io::Error),
}

fn describe(failure: &Failure) -> String {
    let remedy = if failure.remedy.is_empty() { String::new() } else { format!("; {}", failure.remedy) };
    // The container side's words, and perhaps the container's: nothing in them may steer a terminal.
    format!("{}: {}{remedy}", failure.step, failure.cause).replace(char::is_control, "\u{fffd}")
}

/// The end of the channel that a command inherits, kept open in this process until the command has it.
#[derive(Debug)]
pub(crate) struct Inherited {
    _fd: OwnedFd,
    number: Arc<AtomicI32>,
}

impl Inherited {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let number = Arc::new(AtomicI32::new(fd.as_raw_fd()));
        Self { _fd: fd, number }
    }

    /// The fd's number, or −1 once it is closed in this process.
    pub(crate) fn number(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.number)
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        self.number.store(-1, Ordering::Release);
    }
}

/// What the host offers to the container side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
    pub(crate) queues: u16,
}

/// Reads the container side's report and takes over what it speaks of: a port for each queue. `further` are the ends
/// that carry the queues behind the first if they are shuttled.
pub(crate) async fn handshake(
    channel: Channel,
    further: Vec<Channel>,
    terms: &Terms,
) -> Result<(Vec<Port>, Ready), SetupError> {
    // The channel stays whole for the link; a second fd for it is what the runtime watches.
    let watched = channel.as_fd().try_clone_to_owned().and_then(sys::watch).map_err(SetupError::Host)?;
    let (report, fds) = loop {
        let mut guard = watched.readable().await.map_err(SetupError::Host)?;
        match channel.try_receive::<Report>() {
            Ok(received) => break received,
            Err(error) if error.would_block() => guard.clear_ready(),
            Err(ChannelError::Closed) => return Err(SetupError::ClosedEarly),
            Err(error) => return Err(SetupError::Handshake(error)),
        }
    };
    let granted = match report {
        Report::Failed(failure) => return Err(SetupError::Container(failure)),
        Report::Ready(granted) => granted,
    };
    if !(1..=terms.queues).contains(&granted.queues) {
        return Err(SetupError::Queues { granted: granted.queues, wanted: terms.queues });
    }
    let queues = usize::from(granted.queues);
    let expected = match granted.carriage {
        Carriage::HandedOver => queues,
        Carriage::Shuttled => 0,
    };
    if fds.len() != expected {
        return Err(SetupError::FileDescriptors(fds.len(), expected));
    }
    let (fds, framing) = match granted.carriage {
        Carriage::HandedOver => {
            let framing = adopt_all(&fds)?;
            (fds, framing)
        }
        Carriage::Shuttled => {
            let ends = std::iter::once(channel).chain(further).take(queues);
            (ends.map(Channel::into_fd).collect(), Framing::Header)
        }
    };
    drop(watched);
    let offload = match framing {
        Framing::Header => terms.offload.intersection(granted.offload),
        Framing::Plain => Offload::NONE,
    };
    let carriage = granted.carriage;
    let port = |fd: OwnedFd| {
        let nowait = carriage == Carriage::HandedOver && sys::knows_nowait(&fd);
        let properties =
            LinkProperties { carriage, device: Device { mtu: terms.mtu, offload }, framing, nowait };
        Port { fd, properties }
    };
    Ok((fds.into_iter().map(port).collect(), Ready { carriage, offload, queues }))
}

/// Makes sure that every fd from the container is what it should be, see [`adopt`], and how the frames of all look.
///
/// Whether they are queues of one device is not asked: the container decides anyway what comes in on each.
fn adopt_all(devices: &[OwnedFd]) -> Result<Framing, SetupError> {
    let framings: Vec<Framing> =
        devices.iter().map(adopt).collect::<io::Result<_>>().map_err(SetupError::NotTun)?;
    match framings[..] {
        [first, ref others @ ..] if others.iter().all(|other| *other == first) => Ok(first),
        _ => Err(SetupError::QueuesDiffer),
    }
}

/// Makes sure that an fd from the container is what it should be, and how its frames look.
///
/// A device without header must have its offloads off: the kernel accepts them there, and then delivers
/// super-packets that nothing marks as such.
fn adopt(device: &OwnedFd) -> io::Result<Framing> {
    // An ioctl on a file of a file system that the container serves (FUSE) could wait for the container. What
    // the kernel prints of an fd cannot: for an attached TUN device a line with the interface's name.
    let description = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
    if !description.lines().any(|line| line.starts_with("iff:")) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let kind = sys::tun_kind(device)?;
    if !kind.is_bare_tun {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sys::set_nonblocking(device)?;
    if kind.has_header {
        sys::set_vnet_header_size(device)?;
        Ok(Framing::Header)
    } else {
        sys::disable_offload(device)?;
        Ok(Framing::Plain)
    }
}

async fn outcome(outcome: &mut oneshot::Receiver<Result<Ready, SetupError>>) -> Result<Ready, SetupError> {
    outcome.await.unwrap_or(Err(SetupError::ShutDown))
}

/// Polls a future on the calling thread; `None` after the timeout. Needs no runtime and disturbs none.
fn wait(
    receiver: &mut oneshot::Receiver<Result<Ready, SetupError>>,
    timeout: Duration,
) -> Option<Result<Ready, SetupError>> {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let clock = Clock::start();
    let now = clock.now();
    // A timeout beyond the end of the clock is none.
    let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(outcome(receiver));
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(result);
        }
        let left = deadline.saturating_duration_since(clock.now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}
