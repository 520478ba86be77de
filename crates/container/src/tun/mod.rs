//! ① The TUN device: finds the channel to the host, opens `/dev/net/tun`, asks for offloads.
//!
//! A TUN fd belongs to the network namespace that is current when `/dev/net/tun` is *opened*. The namespace of the
//! caller of TUNSETIFF does not matter. So everything here happens in the thread that has entered the namespace, and
//! fails in the host's own.
//!
//! [`device`] describes the kinds of device.

mod device;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nsnet_proto::{Channel, ChannelError, FD_VARIABLE, MAX_QUEUES, NamespaceId, Offload, Report, Setup};

pub(crate) use self::device::{Device, Framing};
use crate::interface::Interface;
use crate::netlink::Netlink;
use crate::{Error, Loopback, setup, sys};

/// A TUN device that this process has created, and the channel to the host that asked for it.
///
/// The device vanishes with the last copy of its fd. Dropped before [`hand_over`](Self::hand_over) or
/// [`shuttle`](Self::shuttle), it leaves nothing behind.
#[derive(Debug)]
pub struct TunDevice {
    pub(crate) channel: Channel,
    /// The channels of the queues behind the first, if frames are shuttled. There is one for each queue that the host
    /// has asked for.
    pub(crate) further: Vec<Channel>,
    pub(crate) setup: Setup,
    pub(crate) device: Device,
    pub(crate) loopback: Loopback,
}

impl TunDevice {
    /// Whether this process was started with a channel that is still unused.
    #[must_use]
    pub fn is_attached() -> bool {
        std::env::var_os(FD_VARIABLE).is_some()
    }

    /// Takes the channel named by `NSNET_FD`, removes the variable, and creates the device that the host wants in the
    /// calling thread's network namespace.
    ///
    /// Call it before pivot_root(2) and before starting threads.
    ///
    /// # Errors
    /// - Those of [`from_fd`](Self::from_fd).
    /// - If the variable is missing, or does not name such a socket.
    /// - If the process has several threads, or if `/proc`, which shows their number, is not there.
    ///
    /// An error ends this attachment. The host gets it as well, if there is a channel to report it.
    pub fn open() -> Result<Self, Error> {
        let number = inherited_number()?;
        remove_variable().inspect_err(report_failure)?;
        Self::from_fd(sys::own_inherited(number).ok_or_else(|| not_a_socket(number))?)
    }

    /// Like [`open`](Self::open), for callers who pass the channel's fd themselves. It works in any thread and uses
    /// that thread's namespaces.
    ///
    /// # Errors
    /// - If the fd is not the channel of an nsnet host of this version.
    /// - If the host's setup is impossible.
    /// - If the thread is in the host's network namespace.
    /// - If the kernel refuses the device. If the channel works, the host gets the error too.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| Error::new("make the channel close-on-exec", errno))?;
        let channel = Channel::from_fd(fd).map_err(|error| {
            Error::channel(ADOPT, error).with_remedy("pass on the fd that Network::attach has prepared")
        })?;
        let opened = read_setup(&channel).and_then(|(setup, further)| {
            setup::check(&setup)?;
            refuse_host_namespace(setup.host_namespace)?;
            let device = Device::create(&setup)?;
            Ok((setup, further, device))
        });
        match opened {
            Ok((setup, further, device)) => {
                Ok(Self { channel, further, setup, device, loopback: Loopback::default_here() })
            }
            Err(error) => {
                send_failure(&channel, &error);
                Err(error)
            }
        }
    }

    /// The setup of the interface that the host wants.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The offloads that the kernel has granted.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.device.offload
    }

    /// The number of queues of the device, each an fd of its own. It is the number that the host has asked for, or one
    /// if the kernel supports no more.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.device.queues()
    }

    /// Chooses how a later [`configure`](Self::configure) treats the loopback interface. See [`Loopback`] for the
    /// default.
    pub fn loopback(&mut self, loopback: Loopback) -> &mut Self {
        self.loopback = loopback;
        self
    }

    /// Tells the host that one of the embedder's own steps has failed, so that `wait_ready` returns the error.
    ///
    /// Best effort: nothing happens if the host is gone.
    pub fn report(&self, error: &Error) {
        send_failure(&self.channel, error);
    }

    /// Refuses a device that is down, because no packet could pass. `step` is the step that needs it.
    ///
    /// Another program may have brought it up or renamed it.
    pub(crate) fn require_up(&self, step: &'static str) -> Result<(), Error> {
        let name = sys::device_name(self.device.first())
            .map_err(|errno| Error::new("ask for the name of the TUN device", errno))?;
        if Interface::find(&name)?.is_up(&mut Netlink::open()?)? {
            return Ok(());
        }
        Err(Error::refused(step, format!("the interface {name} is down"))
            .with_remedy("call TunDevice::configure before, or bring the interface up in a way of your own"))
    }

    /// Passes a result on, and reports an error to the host.
    pub(crate) fn reporting<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| self.report(error))
    }
}

impl AsFd for TunDevice {
    /// The TUN fd. With several queues, it is that of the first.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.first()
    }
}

/// Tells the host about a failure before [`TunDevice::open`], for example of
/// [`Namespaces::enter`](crate::Namespaces::enter), so that `wait_ready` returns it.
///
/// Leaves `NSNET_FD` as it is. Best effort: nothing happens without a channel.
pub fn report_failure(error: &Error) {
    let fd = inherited_number().ok().and_then(sys::copy_inherited);
    if let Some(channel) = fd.and_then(|fd| Channel::from_fd(fd).ok()) {
        send_failure(&channel, error);
    }
}

const ADOPT: &str = "take the channel named by NSNET_FD";
const REMOVE: &str = "remove NSNET_FD from the environment";
const SETUP: &str = "read the host's setup";
const NAMESPACE: &str = "look at the network namespace";

fn inherited_number() -> Result<RawFd, Error> {
    let Some(value) = std::env::var_os(FD_VARIABLE) else {
        return Err(Error::refused(ADOPT, "the variable is not set")
            .with_remedy("start this process with a Command that was given to Network::attach"));
    };
    value.to_str().and_then(|value| value.parse().ok()).ok_or_else(|| {
        Error::refused(ADOPT, format!("{value:?} is not a number"))
            .with_remedy("leave the variable to Network::attach")
    })
}

fn remove_variable() -> Result<(), Error> {
    sys::remove_variable(FD_VARIABLE).map_err(|error| {
        let remedy = if error.raw_os_error() == Some(libc::EBUSY) {
            "open the device before starting threads, or take the fd yourself and use TunDevice::from_fd"
        } else {
            "mount /proc first"
        };
        Error::new(REMOVE, error).with_remedy(remedy)
    })
}

fn not_a_socket(number: RawFd) -> Error {
    Error::refused(ADOPT, format!("file descriptor {number} is not an open AF_UNIX socket")).with_remedy(
        "keep inherited file descriptors open until TunDevice::open, and open the device only once",
    )
}

/// The setup, and the ends that carry the frames of further queues.
fn read_setup(channel: &Channel) -> Result<(Setup, Vec<Channel>), Error> {
    let (setup, fds) = channel.try_receive::<Setup>().map_err(|error| {
        let remedy = if matches!(error, ChannelError::Closed) {
            "keep the host's Network alive until the container is ready"
        } else if error.would_block() {
            "open the device only once: its setup has been read already"
        } else {
            ""
        };
        Error::channel(SETUP, error).with_remedy(remedy)
    })?;
    if !(1..=MAX_QUEUES).contains(&setup.queues) || fds.len() + 1 != usize::from(setup.queues) {
        let cause = format!("{} file descriptors came with a setup of {} queues", fds.len(), setup.queues);
        return Err(Error::refused(SETUP, cause));
    }
    let further = fds.into_iter().map(Channel::from_fd).collect::<Result<_, _>>();
    Ok((setup, further.map_err(|error| Error::channel(SETUP, error))?))
}

fn refuse_host_namespace(host: NamespaceId) -> Result<(), Error> {
    // The thread's, because its namespaces may differ from those of the process.
    let ours = std::fs::metadata("/proc/thread-self/ns/net").map_err(|error| {
        Error::new("stat /proc/thread-self/ns/net", error)
            .with_remedy("open the device before pivot_root, while /proc is mounted")
    })?;
    if (NamespaceId { device: ours.dev(), inode: ours.ino() }) == host {
        return Err(Error::refused(NAMESPACE, "this is the host's own").with_remedy(
            "enter a network namespace of the container's own first: Namespaces::new().user().network().enter()",
        ));
    }
    Ok(())
}

fn send_failure(channel: &Channel, error: &Error) {
    if let Err(unheard) = channel.send(&Report::Failed(error.to_failure()), &[]) {
        tracing::debug!(%unheard, %error, "the host could not be told");
    }
}

#[cfg(test)]
mod tests;
