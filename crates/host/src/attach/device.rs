//! TUN devices that were handed over: checked before anything is read from them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nsnet_proto::Offload;

use super::SetupError;
use crate::link::Framing;
use crate::sys;

/// Makes sure that every fd from the container is what it should be, see [`inspect`], and how the frames of all look.
///
/// Whether they are queues of one device is not asked: the container decides anyway what comes in on each.
pub(super) fn inspect_all(devices: &[OwnedFd]) -> Result<Framing, SetupError> {
    let framings: Vec<Framing> =
        devices.iter().map(inspect).collect::<io::Result<_>>().map_err(SetupError::NotTun)?;
    match framings[..] {
        [first, ref others @ ..] if others.iter().all(|other| *other == first) => Ok(first),
        _ => Err(SetupError::QueuesDiffer),
    }
}

/// Makes sure that an fd is a device that can be served. Returns how its frames look.
///
/// A device without header must have its offloads off: the kernel accepts them there, and then delivers
/// super-packets that nothing marks as such.
fn inspect(device: &OwnedFd) -> io::Result<Framing> {
    // An ioctl on a file of a file system that the container serves (FUSE) could wait for the container. What
    // the kernel prints of an fd cannot: for an attached TUN device a line with the interface's name.
    let description = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
    if !description.lines().any(|line| line.starts_with("iff:")) {
        return Err(unsuitable("it is no TUN device, or one without an interface (TUNSETIFF)"));
    }
    let interface = sys::tun_interface(device)?;
    if !interface.is_tun {
        return Err(unsuitable("it is a TAP device and carries Ethernet frames: make it with IFF_TUN"));
    }
    sys::set_nonblocking(device)?;
    if interface.has_header {
        sys::set_vnet_header_size(device)?;
        Ok(Framing::Header)
    } else {
        sys::set_offload(device, Offload::NONE)?;
        Ok(Framing::Plain)
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
