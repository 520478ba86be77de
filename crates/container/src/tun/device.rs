//! Creates the device: its queues, its framing and its offloads.
//!
//! There are two kinds of device. With a virtio-net header (`IFF_VNET_HDR`), each frame can leave its checksum and its
//! segmentation to the other end. The plain device serves if no offload is wanted, or if the kernel does not know that
//! header, as under gVisor.
//!
//! Either can have several queues (`IFF_MULTI_QUEUE`). Each queue is an fd, and the kernel spreads the flows over them.
//! If the kernel refuses some queues, the device has fewer, down to one. For one queue no flag is set, and the device
//! is an ordinary one.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nsnet_proto::{Offload, Setup, vnet};

use crate::Error;
use crate::sys::{self, DeviceFlags};

pub(super) const OPEN: &str = "open /dev/net/tun";
pub(super) const CREATE: &str = "create the TUN device";

/// A TUN device of this process.
#[derive(Debug)]
pub(crate) struct Device {
    first: OwnedFd,
    further: Vec<OwnedFd>,
    pub(crate) framing: Framing,
    pub(crate) offload: Offload,
}

/// What precedes a packet on the TUN fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Nothing.
    Plain,
    /// A virtio-net header of [`vnet::HEADER_LEN`] bytes.
    Vnet,
}

impl Device {
    /// Creates what the host wants in the calling thread's network namespace.
    pub(super) fn create(setup: &Setup) -> Result<Self, Error> {
        let file = open_device()?;
        let wants_header = setup.offload != Offload::NONE;
        if setup.queues > 1 {
            // Exclusive, because the name of another network's device would yield one more queue of that device.
            let flags = DeviceFlags { vnet_header: wants_header, multi_queue: true, exclusive: true };
            match sys::create_device(file.as_fd(), &setup.device, flags) {
                Ok(()) => {
                    let device = Self::of(file.into(), flags.vnet_header, setup.offload)?;
                    return Ok(device.with_queues(setup, DeviceFlags { exclusive: false, ..flags }));
                }
                // If the name is taken, the next attempt reports it, or adopts a persistent device of that name that
                // nobody holds. It cannot adopt one that was made with several queues, because that accepts no other
                // kind.
                Err(errno @ (Errno::EINVAL | Errno::EBUSY)) => {
                    tracing::debug!(%errno, "no device with IFF_MULTI_QUEUE: going on with one queue");
                }
                Err(errno) => return Err(refused_device(errno.into(), &setup.device)),
            }
        }
        if wants_header {
            let flags = DeviceFlags { vnet_header: true, multi_queue: false, exclusive: false };
            match sys::create_device(file.as_fd(), &setup.device, flags) {
                Ok(()) => return Self::of(file.into(), true, setup.offload),
                Err(Errno::EINVAL) => tracing::debug!("no IFF_VNET_HDR here: going on without offload"),
                Err(errno) => return Err(refused_device(errno.into(), &setup.device)),
            }
        }
        let tun = tun_tap::Iface::without_packet_info(&setup.device, tun_tap::Mode::Tun)
            .map_err(|error| refused_device(error, &setup.device))?;
        Self::of(sys::own_device(tun), false, Offload::NONE)
    }

    /// The fd of the first queue.
    pub(crate) fn first(&self) -> BorrowedFd<'_> {
        self.first.as_fd()
    }

    /// The fds of all queues.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.first).chain(&self.further).map(AsFd::as_fd)
    }

    /// The fds of all queues, to keep.
    pub(crate) fn into_fds(self) -> impl Iterator<Item = OwnedFd> {
        std::iter::once(self.first).chain(self.further)
    }

    pub(crate) fn queues(&self) -> u16 {
        // A `u16` asked for them, so there are no more.
        u16::try_from(1 + self.further.len()).unwrap_or(u16::MAX)
    }

    /// Settles the framing and the offloads. They apply to the device, not to a queue.
    fn of(first: OwnedFd, has_header: bool, wanted: Offload) -> Result<Self, Error> {
        let (framing, offload) = if has_header {
            (Framing::Vnet, negotiate(first.as_fd(), wanted)?)
        } else {
            // A device that outlived its former owner may have offloads left. It would deliver super-frames whose
            // header nobody sees. A kernel that does not know the request knows no offloads either.
            let _ = sys::set_offload(first.as_fd(), 0);
            (Framing::Plain, Offload::NONE)
        };
        Ok(Self { first, further: Vec::new(), framing, offload })
    }

    /// Opens further queues, as many as the host has asked for and the kernel grants.
    fn with_queues(mut self, setup: &Setup, flags: DeviceFlags) -> Self {
        while self.queues() < setup.queues {
            match open_queue(&setup.device, flags) {
                Ok(queue) => self.further.push(queue),
                Err(error) => {
                    tracing::warn!(%error, queues = self.queues(), "no further queue of the TUN device");
                    break;
                }
            }
        }
        self
    }
}

fn open_queue(device: &str, flags: DeviceFlags) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    sys::create_device(file.as_fd(), device, flags)?;
    Ok(file.into())
}

/// Opens `/dev/net/tun` before `tun-tap` opens it too. That crate opens and creates in one call, and the remedy depends
/// on which of the two was refused.
fn open_device() -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                "create the device: mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200; inside a \
                 container: run it with --device /dev/net/tun"
            }
            Some(libc::EACCES) => "make the device accessible: chmod 0666 /dev/net/tun",
            Some(libc::EPERM) => {
                "allow the device in the device cgroup; inside a container: run it with --device /dev/net/tun"
            }
            Some(libc::ENODEV | libc::ENXIO) => "load the kernel module: modprobe tun",
            _ => "",
        };
        Error::new(OPEN, error).with_remedy(remedy)
    })
}

/// Sets the length of the header, and asks for offloads until the kernel agrees.
fn negotiate(tun: BorrowedFd<'_>, wanted: Offload) -> Result<Offload, Error> {
    // The default is the same, but a device that outlived its former owner may have another length.
    #[allow(clippy::cast_possible_truncation, reason = "10 fits")]
    sys::set_vnet_header_len(tun, vnet::HEADER_LEN as c_int)
        .map_err(|errno| Error::new("set the length of the virtio-net header", errno))?;
    let granted =
        wanted.fallbacks().into_iter().find(|offload| sys::set_offload(tun, offload.tun_flags()).is_ok());
    Ok(granted.unwrap_or(Offload::NONE))
}

fn refused_device(error: io::Error, name: &str) -> Error {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "CAP_NET_ADMIN over the network namespace is missing: create it inside a user namespace of your own \
             (Namespaces::new().user().network()), in this order, and open the device before dropping capabilities"
                .into()
        }
        Some(libc::EBUSY | libc::EINVAL) => {
            format!("the name {name:?} may be taken: one network per network namespace and device name; \
                     a device that was made beforehand with several queues (multi_queue) must be deleted").into()
        }
        _ => std::borrow::Cow::Borrowed(""),
    };
    Error::new(CREATE, error).with_remedy(remedy)
}
