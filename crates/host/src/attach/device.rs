//! TUN devices that come from elsewhere. They are checked before anything is read from them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nsnet_proto::{Carriage, Offload, Ready, vnet};
use nsnet_stack::frame;

use super::SetupError;
use crate::addressing::leases::Member;
use crate::link::{Framing, LinkEnd, LinkProperties};
use crate::sys;
use crate::threads::closing;

/// A TUN device that another program has made; see [`Network::adopt`](crate::Network::adopt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedDevice {
    pub(crate) member: Member,
    pub(crate) mtu: u16,
}

impl AdoptedDevice {
    /// A device with this MTU in bytes, and with the next free addresses of the network.
    #[must_use]
    pub fn new(mtu: u16) -> Self {
        Self { member: Member::new(), mtu }
    }

    /// The name and addresses of the container behind it. Default: [`Member::new`].
    #[must_use]
    pub fn member(mut self, member: Member) -> Self {
        self.member = member;
        self
    }
}

/// A device that can be served.
pub(crate) struct Adopted {
    /// Name of the interface, as far as it is UTF-8.
    pub(crate) name: String,
    pub(crate) port: LinkEnd,
    pub(crate) ready: Ready,
}

/// Takes over a device that another program has made, with as many of the wanted offloads as the kernel grants.
pub(crate) fn adopt(fd: OwnedFd, mtu: u16, wanted: Offload) -> io::Result<Adopted> {
    let (framing, name) = inspect(&fd)?;
    let offload = match framing {
        Framing::Header => grant(&fd, wanted),
        Framing::Plain => Offload::NONE,
    };
    let nowait = sys::knows_nowait(&fd);
    let properties = LinkProperties {
        carriage: Carriage::HandedOver,
        device: frame::Device { mtu, offload },
        framing,
        nowait,
    };
    let ready = Ready::new(Carriage::HandedOver, offload, 1);
    Ok(Adopted { name, port: LinkEnd { fd: closing::device(fd), properties }, ready })
}

/// Asks for fewer and fewer offloads until the kernel agrees. If it agrees to nothing, it is taken to have granted
/// none.
fn grant(device: &OwnedFd, wanted: Offload) -> Offload {
    let wanted = if wanted.checksum { wanted } else { Offload::NONE };
    let granted = wanted.fallbacks().into_iter().find(|offload| sys::set_offload(device, *offload).is_ok());
    granted.unwrap_or(Offload::NONE)
}

/// Checks that every fd from the container is a device that can be served, see [`inspect`]. Returns the framing that
/// all have in common.
///
/// Nothing checks that they are queues of one device: the container decides anyway what each carries.
pub(super) fn inspect_all(devices: &[OwnedFd]) -> Result<Framing, SetupError> {
    let inspected = devices.iter().map(|device| inspect(device).map(|(framing, _)| framing));
    let framings: Vec<Framing> = inspected.collect::<io::Result<_>>().map_err(SetupError::NotTun)?;
    match framings[..] {
        [first, ref others @ ..] if others.iter().all(|other| *other == first) => Ok(first),
        _ => Err(SetupError::QueuesDiffer),
    }
}

/// Checks that an fd is a device that can be served. Returns its framing and its name.
///
/// A device without header must have its offloads off. The kernel accepts offloads there, and would then deliver
/// super-packets that nothing marks as such.
fn inspect(device: &OwnedFd) -> io::Result<(Framing, String)> {
    // An ioctl on a file of a file system that the container serves (FUSE) could wait for the container. Reading fdinfo
    // cannot. For an attached TUN device the kernel prints a line with the interface's name.
    let description = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
    if !description.lines().any(|line| line.starts_with("iff:")) {
        return Err(unsuitable("it is no TUN device, or one without an interface (TUNSETIFF)"));
    }
    let interface = sys::tun_interface(device)?;
    if !interface.is_tun {
        return Err(unsuitable("it is a TAP device and carries Ethernet frames: make it with IFF_TUN"));
    }
    sys::set_nonblocking(device)?;
    let framing = if interface.has_header {
        sys::set_vnet_header_size(device)?;
        Framing::Header
    } else {
        sys::set_offload(device, Offload::NONE)?;
        Framing::Plain
    };
    if has_protocol_information(device, framing)? {
        return Err(unsuitable("it puts protocol information in front of packets: make it with IFF_NO_PI"));
    }
    Ok((framing, interface.name))
}

/// Length of `struct tun_pi` (linux/if_tun.h).
const PROTOCOL_INFORMATION: usize = 4;

/// Whether protocol information precedes each packet (no `IFF_NO_PI`).
///
/// `TUNGETIFF` cannot tell, because it sets the same bit for `IFF_NOFILTER`. So this function writes four zero bytes.
/// Without protocol information they are a packet of no IP version, which the kernel refuses. With it, they are a
/// packet of no protocol, which the kernel takes and drops.
fn has_protocol_information(device: &OwnedFd, framing: Framing) -> io::Result<bool> {
    let zeroes = [0; PROTOCOL_INFORMATION + vnet::HEADER_LEN + 1];
    let probe = match framing {
        Framing::Header => &zeroes[..],
        Framing::Plain => &zeroes[vnet::HEADER_LEN..],
    };
    // Older kernels do not know `RWF_NOWAIT`; there `O_NONBLOCK` is all there is.
    let written = match sys::write_nowait(device, probe) {
        Err(Errno::EOPNOTSUPP) => nix::unistd::write(device, probe),
        written => written,
    };
    match written {
        Err(Errno::EINVAL) => Ok(false),
        // `EIO` if the interface is down.
        Ok(_) | Err(Errno::EIO) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn unsuitable(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_no_device_is_told_so() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let error = inspect(&null()).unwrap_err();
        assert!(error.to_string().starts_with("it is no TUN device"), "{error}");
        assert!(matches!(inspect_all(&[null()]), Err(SetupError::NotTun(_))));
        assert!(matches!(inspect_all(&[]), Err(SetupError::QueuesDiffer)));
    }
}
