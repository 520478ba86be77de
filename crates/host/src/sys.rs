//! All `unsafe` of this crate.

use std::borrow::Borrow;
use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nsnet_proto::{Offload, vnet};
use nsnet_stack::tcp::Memory;
use tokio::io::unix::AsyncFd;

/// Lets a command inherit the fd of this number under the same number. Spawning fails with `EBADF` once the
/// number is −1.
pub(crate) fn inherit(command: &mut Command, number: Arc<AtomicI32>) {
    let keep = move || {
        let number = number.load(Ordering::Acquire);
        if number < 0 {
            return Err(Errno::EBADF.into());
        }
        // SAFETY: `borrow_raw` wants an fd that stays open while borrowed. This runs in the forked child,
        // whose copy of the fd nobody closes before exec.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: `pre_exec` wants a closure that is sound in a forked child of a process with threads: this one
    // does an atomic load and fcntl(2), both async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(keep) };
}

/// Anonymous memory, all zeroes. Only bytes that have been written take up room.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<c_void>,
    length: NonZeroUsize,
}

impl Pages {
    /// Maps `length` bytes, at least one.
    pub(crate) fn map(length: usize) -> nix::Result<Self> {
        let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: mmap without MAP_FIXED touches no mapping that exists.
        let start =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        // A huge page would be two megabytes of memory for the first byte. A kernel without them refuses.
        // SAFETY: MADV_NOHUGEPAGE changes no byte, and the range is the mapping just made.
        let _ = unsafe { madvise(start, length.get(), MmapAdvise::MADV_NOHUGEPAGE) };
        Ok(Self { start, length })
    }

    /// The memory, for one borrower that the caller keeps beside the pages and drops before them.
    pub(crate) fn lend(&mut self) -> &'static mut [u8] {
        // SAFETY: the mapping is readable, writable, `length` bytes long and all initialised (zeroes). It stays for as
        // long as the slice is used and nobody else refers to it, by the contract above: the callers are
        // `RingSocket` and `Buffer`, which drop their borrower first and lend once.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length.get()) }
    }
}

impl Memory for Pages {
    fn discard(&self, part: Range<usize>) {
        let Some(length) = part.end.min(self.length.get()).checked_sub(part.start) else { return };
        // SAFETY: the start lies within the mapping, so that the sum is an address.
        let start = unsafe { self.start.byte_add(part.start) };
        // SAFETY: MADV_DONTNEED on a private anonymous mapping of our own, all of whose bytes stay readable and
        // writable. Bytes do change under the borrower, as the caller wants: it holds none there that it will read
        // again. It fails for memory that the embedder has locked, mlockall(2), which then stays.
        let _ = unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody refers to it any more, see `lend`.
        let unmapped = unsafe { munmap(self.start, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Registers an fd with the runtime the caller runs in.
pub(crate) fn watch<F: Borrow<OwnedFd> + AsRawFd>(fd: F) -> io::Result<AsyncFd<F>> {
    // SAFETY: `register` wants an open fd that stays the same for the life of the `AsyncFd`. An `OwnedFd` is
    // open until dropped, and so is an `Entrusted`, the only other owner of one here. Nothing in this crate takes a
    // mutable reference through `get_mut` to swap it.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// A file descriptor that is handed on when this is dropped, to be closed elsewhere.
#[derive(Debug)]
pub(crate) struct Entrusted {
    fd: ManuallyDrop<OwnedFd>,
    close: fn(OwnedFd),
}

impl Entrusted {
    pub(crate) fn new(fd: OwnedFd, close: fn(OwnedFd)) -> Self {
        Self { fd: ManuallyDrop::new(fd), close }
    }
}

impl Borrow<OwnedFd> for Entrusted {
    fn borrow(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsRawFd for Entrusted {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Entrusted {
    fn drop(&mut self) {
        // SAFETY: the value must not be used again. This is the drop, which runs once and is the last use.
        let fd = unsafe { ManuallyDrop::take(&mut self.fd) };
        (self.close)(fd);
    }
}

/// Whether a socket's packets may be fragmented, as a kernel option (`IP_MTU_DISCOVER`, ip(7); `IPV6_MTU_DISCOVER`,
/// ipv6(7)).
#[derive(Debug, Clone, Copy)]
pub(crate) enum MtuDiscovery {
    V4(libc::c_int),
    V6(libc::c_int),
}

pub(crate) fn set_mtu_discovery(socket: BorrowedFd<'_>, discovery: MtuDiscovery) -> nix::Result<()> {
    let (level, name, value) = match discovery {
        MtuDiscovery::V4(value) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value),
        MtuDiscovery::V6(value) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value),
    };
    set_option(socket, level, name, value)
}

/// Makes the kernel refuse messages to this socket of a socketpair that carry descriptors: their sender gets `EPERM`
/// (`SO_PASSRIGHTS`). Has no effect before Linux 6.16, and none on messages that were sent before.
pub(crate) fn refuse_descriptors(socket: BorrowedFd<'_>) {
    /// As in asm-generic/socket.h; libc does not have it.
    const SO_PASSRIGHTS: libc::c_int = 83;
    // An older kernel does not know the option.
    let _ = set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, 0);
}

/// Sets an option that is an int, and that nix does not know.
fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: setsockopt reads `length` bytes behind the pointer. These are the bytes of `value`, which lives until the
    // call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(result).map(drop)
}

/// The interface that an fd is a queue of.
#[derive(Debug, Clone)]
pub(crate) struct TunInterface {
    /// The name, as far as it is UTF-8.
    pub(crate) name: String,
    /// It carries IP, and not Ethernet.
    pub(crate) is_tun: bool,
    /// Frames start with a virtio-net header.
    pub(crate) has_header: bool,
}

/// Asks the kernel what the fd is (`TUNGETIFF`). Fails for anything that is not an attached TUN device.
pub(crate) fn tun_interface(device: &OwnedFd) -> io::Result<TunInterface> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: TUNGETIFF writes a `struct ifreq` behind the pointer; `InterfaceRequest` has its size and is
    // borrowed mutably for the call. Other kinds of fd refuse the request number.
    unsafe { ioctl::tungetiff(device.as_raw_fd(), &raw mut request) }?;
    let flags = i32::from(request.flags);
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(TunInterface {
        name: String::from_utf8_lossy(name).into_owned(),
        is_tun: flags & (libc::IFF_TUN | libc::IFF_TAP) == libc::IFF_TUN,
        has_header: flags & libc::IFF_VNET_HDR != 0,
    })
}

/// Reads without waiting, in any mode of the fd. Its `O_NONBLOCK` is shared with everyone who has a copy of the open
/// file, the container included.
pub(crate) fn read_nowait(fd: &OwnedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: preadv2 wants one valid iovec that points to writable memory: `iov` covers `buffer`, which is
    // borrowed mutably for the call. Offset -1 means the current position.
    let result = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    transferred(result)
}

/// Writes without waiting, in any mode of the fd, see [`read_nowait`].
pub(crate) fn write_nowait(fd: &OwnedFd, frame: &[u8]) -> nix::Result<usize> {
    write_parts_nowait(fd, &[IoSlice::new(frame)])
}

/// Writes one frame that consists of parts, see [`write_nowait`].
pub(crate) fn write_parts_nowait(fd: &OwnedFd, parts: &[IoSlice<'_>]) -> nix::Result<usize> {
    let count = libc::c_int::try_from(parts.len()).map_err(|_| Errno::EINVAL)?;
    let parts: *const libc::iovec = parts.as_ptr().cast();
    // SAFETY: pwritev2 wants `count` valid iovecs that point to readable memory: `IoSlice` has the layout of an iovec,
    // and the slices are borrowed for the call and only read. Offset -1 means the current position.
    let result = unsafe { libc::pwritev2(fd.as_raw_fd(), parts, count, -1, libc::RWF_NOWAIT) };
    transferred(result)
}

/// Whether the fd supports `RWF_NOWAIT`. TUN devices do since Linux 6.4.
pub(crate) fn knows_nowait(fd: &OwnedFd) -> bool {
    // One zero byte is no packet of any IP version, so the kernel refuses it with one error or the other.
    write_nowait(fd, &[0]) != Err(Errno::EOPNOTSUPP)
}

fn transferred(result: libc::ssize_t) -> nix::Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

/// Frames have headers of [`vnet::HEADER_LEN`] bytes (`TUNSETVNETHDRSZ`).
pub(crate) fn set_vnet_header_size(device: &OwnedFd) -> io::Result<()> {
    let size = libc::c_int::try_from(vnet::HEADER_LEN).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads an int behind the pointer, which is borrowed for the call.
    unsafe { ioctl::tunsetvnethdrsz(device.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// The work that the kernel may leave to the reader of the device (`TUNSETOFFLOAD`).
pub(crate) fn set_offload(device: &OwnedFd, offload: Offload) -> io::Result<()> {
    let flags = libc::c_int::try_from(offload.tun_flags()).map_err(io::Error::other)?;
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    unsafe { ioctl::tunsetoffload(device.as_raw_fd(), flags) }?;
    Ok(())
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(device: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL)?);
    fcntl(device, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// `struct ifreq` as `TUNGETIFF` fills it (netdevice(7)).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

mod ioctl {
    nix::ioctl_read_bad!(tungetiff, libc::TUNGETIFF, super::InterfaceRequest);
    nix::ioctl_write_ptr_bad!(tunsetvnethdrsz, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_request_has_the_kernels_layout() {
        assert_eq!(size_of::<InterfaceRequest>(), size_of::<libc::ifreq>());
        assert_eq!(
            std::mem::offset_of!(InterfaceRequest, flags),
            std::mem::offset_of!(libc::ifreq, ifr_ifru)
        );
    }

    #[test]
    fn discarded_pages_are_zeroes_again() {
        const HALF: usize = 1 << 16;
        let mut pages = Pages::map(2 * HALF).unwrap();
        let bytes = pages.lend();
        assert_eq!(bytes.len(), 2 * HALF);
        bytes.fill(7);
        pages.discard(HALF..2 * HALF);
        assert!(bytes[..HALF].iter().all(|byte| *byte == 7));
        assert!(bytes[HALF..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_ordinary_file_is_no_tun_device() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(tun_interface(&null.into()).is_err());
    }
}
