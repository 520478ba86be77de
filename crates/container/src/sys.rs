//! All `unsafe` of this crate: system calls that neither `std` nor `nix` wrap safely.

use std::ffi::{CStr, CString, c_int, c_long, c_uint, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::socket::{UnixAddr, getsockname};
use nix::sys::stat::Mode;

/// Takes ownership of an inherited socket. `None` if the number is not an open `AF_UNIX` socket, which is then left
/// alone.
pub(crate) fn own_inherited(fd: RawFd) -> Option<OwnedFd> {
    if !is_unix_socket(fd) {
        return None;
    }
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns. It is open, as getsockname has just shown. The
    // parent process gave it to the holder of NSNET_FD. The caller removes that variable before it calls, so there is
    // one holder.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A close-on-exec copy of an inherited socket. The original stays as it is.
pub(crate) fn copy_inherited(fd: RawFd) -> Option<OwnedFd> {
    if !is_unix_socket(fd) {
        return None;
    }
    // SAFETY: `borrow_raw` wants an fd that is open and stays so while borrowed. getsockname has just shown
    // that it is open, and only `own_inherited` takes it, which no thread does during this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().ok()
}

/// The number must be above those of stdin, stdout and stderr, which `std` owns.
fn is_unix_socket(fd: RawFd) -> bool {
    fd > libc::STDERR_FILENO && getsockname::<UnixAddr>(fd).is_ok()
}

/// Removes a variable from the environment.
///
/// # Errors
/// `EBUSY` if this process has several threads.
pub(crate) fn remove_variable(name: &str) -> io::Result<()> {
    if !single_threaded()? {
        return Err(Errno::EBUSY.into());
    }
    // SAFETY: `remove_var` wants that no other thread reads or writes the environment meanwhile. This is the
    // only thread, and it starts none here.
    unsafe { std::env::remove_var(name) };
    Ok(())
}

/// Whether this process has no other thread.
pub(crate) fn single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.take(2).count() == 1)
}

/// Index of an interface in the calling thread's network namespace, if_nametoindex(3).
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: if_nametoindex wants a NUL-terminated string, which a CString is.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// Options of a TUN device without packet information.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceFlags {
    /// `IFF_VNET_HDR`: frames start with a virtio-net header.
    pub(crate) vnet_header: bool,
    /// `IFF_MULTI_QUEUE`: each fd that asks for the name is a queue of the device.
    pub(crate) multi_queue: bool,
    /// `IFF_TUN_EXCL`: no device of the name may exist yet.
    pub(crate) exclusive: bool,
}

/// TUNSETIFF: makes `tun` a device of this name, or one more queue of it.
///
/// # Errors
/// `EINVAL` if the kernel does not know a flag, `EBUSY` if the name is taken.
pub(crate) fn create_device(tun: BorrowedFd<'_>, name: &str, flags: DeviceFlags) -> Result<(), Errno> {
    // SAFETY: `zeroed` wants a type for which zeroes are a value; ifreq holds integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than the array has, so that the name stays terminated.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = device_flags(flags);
    // SAFETY: TUNSETIFF reads and writes one ifreq, which the pointer leads to; the fd is open.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}

/// TUNGETIFF: the name of the device, which may have been changed since it was created.
pub(crate) fn device_name(tun: BorrowedFd<'_>) -> Result<String, Errno> {
    // SAFETY: `zeroed` wants a type for which zeroes are a value; ifreq holds integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, which the pointer leads to; the fd is open.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0).flat_map(|byte| byte.to_ne_bytes());
    String::from_utf8(name.collect()).map_err(|_| Errno::EILSEQ)
}

/// `IFF_TUN | IFF_NO_PI` and the flags asked for, of `linux/if_tun.h`, in the type of `ifr_flags`.
fn device_flags(flags: DeviceFlags) -> libc::c_short {
    let bit = |wanted: bool, bit: u16| if wanted { bit } else { 0 };
    let flags =
        bit(flags.vnet_header, 0x4000) | bit(flags.multi_queue, 0x0100) | bit(flags.exclusive, 0x8000);
    libc::c_short::from_ne_bytes((0x0001 | 0x1000 | flags).to_ne_bytes())
}

/// The fd of a device that `tun-tap` has opened (close-on-exec, as `std` opens files).
pub(crate) fn own_device(device: tun_tap::Iface) -> OwnedFd {
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns: `into_raw_fd` gives up the only owner.
    unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) }
}

/// TUNSETVNETHDRSZ: the length of the virtio-net header.
pub(crate) fn set_vnet_header_len(tun: BorrowedFd<'_>, len: c_int) -> Result<(), Errno> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which the pointer leads to; the fd is open.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })?;
    Ok(())
}

/// TUNSETOFFLOAD: the offloads as `TUN_F_*` bits.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, bits: c_uint) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours; the fd is open.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(bits)) })?;
    Ok(())
}

/// waitpid(2) without `nix`'s `WaitStatus`, which knows no real-time signals. `None` while the children in question
/// still run.
pub(crate) fn try_wait(pid: libc::pid_t) -> Result<Option<(libc::pid_t, ExitStatus)>, Errno> {
    let mut status = 0;
    // SAFETY: waitpid writes one int, which the pointer leads to.
    let reaped = Errno::result(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) })?;
    Ok((reaped != 0).then(|| (reaped, ExitStatus::from_raw(status))))
}

/// Resets SIGCHLD, so that ended children can be waited for even if our parent ignored the signal.
pub(crate) fn default_sigchld() -> Result<(), Errno> {
    // SAFETY: `signal` wants a handler that is safe in a signal context; the default action is none of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) }.map(drop)
}

/// Makes `command` start with `signals` unblocked.
pub(crate) fn unblock_on_exec(command: &mut Command, signals: SigSet) {
    // SAFETY: `pre_exec` wants a closure that is sound between fork and exec of a process with threads: this
    // one makes one async-signal-safe system call and does not allocate.
    unsafe { command.pre_exec(move || Ok(pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&signals), None)?)) };
}

/// Makes the kernel kill `command` when the thread that spawns it ends (`PR_SET_PDEATHSIG`, prctl(2)).
pub(crate) fn die_with_parent_on_exec(command: &mut Command) {
    let parent = std::process::id();
    // Watching the parent also works where getppid(2) cannot tell: in a new pid namespace it returns 0 before and after
    // the parent's death. `None` on kernels without pidfd_open(2), older than 5.3.
    let watch = pidfd_open(parent).ok();
    // SAFETY: `pre_exec` wants a closure that is sound between fork and exec of a process with threads: this
    // one makes async-signal-safe system calls on values it owns and does not allocate.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // A parent that died before the line above no longer sends the signal.
            if parent_is_gone(parent, watch.as_ref()) { Err(Errno::ESRCH.into()) } else { Ok(()) }
        })
    };
}

fn parent_is_gone(parent: u32, watch: Option<&OwnedFd>) -> bool {
    if let Some(watch) = watch {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        return poll(&mut fds, PollTimeout::ZERO) == Ok(1);
    }
    let now = nix::unistd::getppid().as_raw();
    now != 0 && u32::try_from(now) != Ok(parent)
}

/// pidfd_open(2): a handle of a process that never refers to a later process of the same number.
pub(crate) fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(pid), 0 as c_long) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns: the kernel has just made this one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// NS_GET_NSTYPE, ioctl_ns(2): the kind of namespace behind a file.
///
/// # Errors
/// `ENOTTY` for a file that is not a namespace.
pub(crate) fn namespace_kind(file: BorrowedFd<'_>) -> Result<CloneFlags, Errno> {
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; the fd is open.
    let kind = Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) })?;
    Ok(CloneFlags::from_bits_truncate(kind))
}

/// NS_GET_USERNS, ioctl_ns(2): the user namespace that owns a namespace.
///
/// # Errors
/// `EPERM` if the owner is neither the caller's user namespace nor below it.
pub(crate) fn owner_of_namespace(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: NS_GET_USERNS takes no argument and touches no memory of ours; the fd is open.
    let fd = Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_USERNS) })?;
    // SAFETY: `from_raw_fd` wants an open fd that nobody else owns: the kernel has just made this one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `command` start in new namespaces, see [`enter`].
pub(crate) fn enter_on_exec(command: &mut Command, plan: EntryPlan) {
    // SAFETY: `pre_exec` wants a closure that is sound between fork and exec of a process with threads: `enter`
    // makes async-signal-safe system calls on prepared strings and does not allocate.
    unsafe { command.pre_exec(move || enter(&plan).map_err(|(_, errno)| errno.into())) };
}

/// Everything that entering new namespaces needs, allocated beforehand.
#[derive(Debug)]
pub(crate) struct EntryPlan {
    pub(crate) namespaces: CloneFlags,
    /// Files of `/proc/self` with their content, in the order of writing.
    pub(crate) writes: Vec<(CString, Vec<u8>)>,
}

/// The step at which entering failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryStep {
    Unshare,
    Map,
    Propagation,
}

/// Enters new namespaces. Async-signal-safe: no allocation, no lock.
pub(crate) fn enter(plan: &EntryPlan) -> Result<(), (EntryStep, Errno)> {
    unshare(plan.namespaces).map_err(|errno| (EntryStep::Unshare, errno))?;
    for (path, content) in &plan.writes {
        match write_once(path, content) {
            Ok(()) => {}
            // The file is younger than user namespaces (Linux 3.19). Without it there is nothing to deny.
            Err(Errno::ENOENT) if path.as_c_str() == c"/proc/self/setgroups" => {}
            Err(errno) => return Err((EntryStep::Map, errno)),
        }
    }
    if plan.namespaces.contains(CloneFlags::CLONE_NEWNS) {
        use nix::mount::{MsFlags, mount};
        // Mounts made in here stay in here. Mounts made on the host still arrive.
        let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(None::<&CStr>, c"/", None::<&CStr>, flags, None::<&CStr>)
            .map_err(|errno| (EntryStep::Propagation, errno))?;
    }
    Ok(())
}

/// Writes an id map, which the kernel takes in one write or not at all.
fn write_once(path: &CStr, content: &[u8]) -> Result<(), Errno> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match nix::unistd::write(&file, content) {
        Ok(written) if written == content.len() => Ok(()),
        Ok(_) => Err(Errno::EIO),
        Err(errno) => Err(errno),
    }
}

/// Runs `body` in a forked child, the only thread of its process, and returns its exit status.
#[cfg(test)]
pub(crate) fn run_forked(body: impl FnOnce()) -> ExitStatus {
    // SAFETY: `fork` in a process with threads wants a child that calls nothing which may need a lock another thread
    // held. The C library keeps its allocator usable after fork. The test process was started for a single test, and
    // its one other thread waits for the result meanwhile.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err();
            // SAFETY: `_exit` has no requirement; unlike `exit` it runs nothing that belongs to the parent.
            unsafe { libc::_exit(c_int::from(panicked)) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let mut status = 0;
            // SAFETY: waitpid writes one int, which the pointer leads to.
            let waited = unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
            assert_eq!(waited, child.as_raw());
            ExitStatus::from_raw(status)
        }
    }
}
