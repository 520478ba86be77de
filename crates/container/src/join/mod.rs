//! Joins namespaces that another program has made, so that a running container gets a network.
//!
//! Only two namespaces matter: the network namespace, and the user namespace that *owns* it. Making a device needs the
//! capability in that user namespace. The kernel tells which one it is (`NS_GET_USERNS` of ioctl_ns(2), Linux 4.9), so
//! nobody has to name it. It need not be the user namespace of the container's processes.
//!
//! A helper process of the embedder joins. It has a single thread and ends once the device has been handed over. In
//! every other respect it stays outside: in the host's pid and mount namespaces, where `/dev/net/tun` and `/proc` are.
//! So write the container's `resolv.conf` where its root file system is on the host, or to a file that is mounted into
//! it. See [`resolv_conf::write`](crate::resolv_conf::write()).
//!
//! ```no_run
//! # fn main() -> Result<(), nsnet_container::Error> {
//! use nsnet_container::join::Target;
//! use nsnet_container::{TunDevice, join};
//!
//! // Started as a command that was given to `Network::attach` on the host side.
//! join(&Target::process(4711)?)?;
//! let mut device = TunDevice::open()?;
//! device.configure()?;
//! device.hand_over()?;
//! # Ok(())
//! # }
//! ```
//!
//! No variant starts a command in there, as [`Namespaces::enter_on_exec`](crate::Namespaces::enter_on_exec) does. For a
//! user who is not root in the user namespace, execve(2) drops all capabilities. It also exposes the process to those
//! who are root there (see [`join()`]).

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use crate::namespace::refuse_threads;
use crate::{Error, loopback, sys};

/// A network namespace to join. It stays alive as long as this does.
#[derive(Debug)]
pub struct Target {
    network: File,
    process: Option<OwnedFd>,
}

impl Target {
    /// The network namespace of a process, given by its number in the caller's pid namespace.
    ///
    /// The number must still mean that process when this is called. From then on it cannot be mistaken for another.
    /// Needs Linux 5.3.
    ///
    /// # Errors
    /// If there is no such process, or if it belongs to another user.
    pub fn process(pid: u32) -> Result<Self, Error> {
        let name = format!("process {pid}");
        let process = sys::pidfd_open(pid)
            .map_err(|errno| Error::new(format!("find {name}"), errno).with_remedy(no_process(errno)))?;
        Self::of_process(process, &name)
    }

    /// The network namespace of the process behind a pidfd (pidfd_open(2)), such as one that the caller was started
    /// with. See [`pidfd`](Self::pidfd).
    ///
    /// # Errors
    /// If the file descriptor is not a pidfd, the process has ended, or it belongs to another user.
    pub fn from_pidfd(pidfd: impl Into<OwnedFd>) -> Result<Self, Error> {
        let process = pidfd.into();
        let name = format!("the process of file descriptor {}", process.as_raw_fd());
        Self::of_process(process, &name)
    }

    fn of_process(process: OwnedFd, name: &str) -> Result<Self, Error> {
        let number = number_in_proc(&process, name)?;
        let step = || format!("open the network namespace of {name}");
        let network = open(Path::new(&format!("/proc/{number}/ns/net")))
            .map_err(|error| Error::new(step(), error))
            .and_then(|file| check(file, &step()));
        // While the process exists, no other has its number, so the opened file belongs to it.
        if has_ended(&process) {
            return Err(Error::new(step(), Errno::ESRCH).with_remedy("the process has ended"));
        }
        let network = network.map_err(|error| {
            let denied = matches!(error.errno(), Some(libc::EACCES | libc::EPERM));
            if denied { error.with_remedy(OTHER_USER) } else { error }
        })?;
        Ok(Self { network, process: Some(process) })
    }

    /// The network namespace behind a file: `/proc/PID/ns/net`, or a bind mount of it, as by `ip netns add`.
    ///
    /// # Errors
    /// If the file cannot be opened or is not a network namespace.
    pub fn path(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let step = format!("open the network namespace {}", path.display());
        let file = open(path).map_err(|error| {
            let remedy = if error.raw_os_error() == Some(libc::EACCES) { OTHER_USER } else { "" };
            Error::new(step.clone(), error).with_remedy(remedy)
        })?;
        Ok(Self { network: check(file, &step)?, process: None })
    }

    /// The network namespace behind an open file, such as one that the caller was started with. See
    /// [`as_fd`](Self::as_fd).
    ///
    /// # Errors
    /// If the file is not a network namespace.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Self, Error> {
        let file = File::from(fd.into());
        let step = format!("take the file descriptor {} for a network namespace", file.as_raw_fd());
        Ok(Self { network: check(file, &step)?, process: None })
    }

    /// The pidfd of the process that was named, pidfd_open(2). poll(2) reports it readable when the process has ended.
    /// Take the network away then.
    ///
    /// A process that finds another by its number passes the pidfd on to the helper that joins, for example as its
    /// standard input. The helper calls [`from_pidfd`](Self::from_pidfd). Both then mean the same process.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(AsFd::as_fd)
    }
}

impl AsFd for Target {
    /// The network namespace. A process that finds it by a path passes this on to the helper that joins, for
    /// [`from_fd`](Self::from_fd). Both then mean the same namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

/// Moves the calling process into a network namespace that another program has made. Before that, it moves it into the
/// user namespace that owns the network namespace, unless the process is in that already.
///
/// A process that changes its user namespace can be traced by those who are root in there, if they see it. It may still
/// have files open in the world outside, or act as a user there. So this call makes the process undumpable first
/// (`PR_SET_DUMPABLE` of prctl(2)), which prevents tracing until the process calls execve(2). Do not call execve(2):
/// make the device, hand it over, and end.
///
/// The owner of the namespace may be about to bring up the loopback interface. See [`Loopback`](crate::Loopback) for
/// what [`TunDevice::configure`](crate::TunDevice::configure) does about it.
///
/// # Errors
/// If the process has several threads, or may not join. The namespace must have been made by the caller's own user, or
/// the caller must be root where it was made. After a failure the process may be in the user namespace: let it end.
pub fn join(target: &Target) -> Result<(), Error> {
    refuse_threads(JOIN, "join in a process that you start for it")?;
    // First, because an undumpable process may be refused its own files in /proc.
    let is_building = target.process.as_ref().is_some_and(is_building_its_sandbox);
    let owner = sys::owner_of_namespace(target.as_fd())
        .map_err(|errno| Error::new(OWNER, errno).with_remedy(unknown_owner(errno)))?;
    if !is_own("user", owner.as_fd())? {
        nix::sys::prctl::set_dumpable(false).map_err(|errno| Error::new(UNDUMPABLE, errno))?;
        setns(&owner, CloneFlags::CLONE_NEWUSER).map_err(|errno| refused(JOIN_USER, errno))?;
    }
    // The kernel would refuse the host's own namespace to a user without privileges. Being in it is no mistake yet.
    // Making a device there is, and that error says so.
    if !is_own("net", target.as_fd())? {
        setns(target, CloneFlags::CLONE_NEWNET).map_err(|errno| refused(JOIN, errno))?;
    }
    if is_building {
        loopback::expect_owner();
    }
    Ok(())
}

const JOIN: &str = "join the network namespace";
const JOIN_USER: &str = "join the user namespace that owns the network namespace";
const OWNER: &str = "find the user namespace that owns the network namespace";
const UNDUMPABLE: &str = "make this process undumpable";

const OTHER_USER: &str = "it belongs to another user: do this as the user who has started that process, outside of \
                          its user namespace, or as root";

fn refused(step: &'static str, errno: Errno) -> Error {
    let remedy = if errno == Errno::EPERM {
        "the namespace belongs to another user: join it as the user who has made it, or as root"
    } else {
        ""
    };
    Error::new(step, errno).with_remedy(remedy)
}

fn no_process(errno: Errno) -> &'static str {
    match errno as i32 {
        libc::ESRCH => "it may have ended, or its number be one of another pid namespace",
        // Kernels differ: both mean a thread that is not its process's first.
        libc::EINVAL | libc::ENOENT => "this is no number of a process",
        libc::ENOSYS | libc::EPERM => {
            "this needs pidfd_open(2), of Linux 5.3, which a seccomp profile may forbid: name the namespace by its \
             path instead, /proc/PID/ns/net"
        }
        _ => "",
    }
}

fn unknown_owner(errno: Errno) -> &'static str {
    match errno as i32 {
        libc::EPERM => {
            "it was made outside of this process's user namespace: join it from there, on the host's side of the \
             container"
        }
        libc::ENOTTY => "this needs NS_GET_USERNS of ioctl_ns(2), of Linux 4.9",
        _ => "",
    }
}

/// Does not block if the path leads to a FIFO without another end.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Checks that a file is a network namespace.
fn check(file: File, step: &str) -> Result<File, Error> {
    match sys::namespace_kind(file.as_fd()) {
        Ok(CloneFlags::CLONE_NEWNET) => Ok(file),
        Ok(other) => {
            let cause = io::Error::other(format!("this is a namespace of another kind, {other:?}"));
            Err(Error::new(step.to_owned(), cause).with_remedy("name the file called net"))
        }
        Err(errno) => Err(Error::new(step.to_owned(), errno).with_remedy(
            "this is no namespace: name /proc/PID/ns/net, or a file over which one is mounted (and still is)",
        )),
    }
}

/// Whether the caller is in a namespace already. setns(2) refuses the caller's own user namespace with an error that
/// has other causes too.
fn is_own(kind: &str, namespace: BorrowedFd<'_>) -> Result<bool, Error> {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let path = format!("/proc/thread-self/ns/{kind}");
    let own = fs::metadata(&path)
        .map_err(|error| Error::new(format!("stat {path}"), error).with_remedy("mount /proc first"))?;
    let theirs = namespace.try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    let theirs = theirs.map_err(|error| Error::new("stat the namespace to join", error))?;
    Ok(identity(own) == identity(theirs))
}

/// Whether a process has not called execve(2) since it was forked. Until it does, it may still be building its sandbox.
///
/// Only the decision to wait depends on it, so an unreadable file counts as no.
fn is_building_its_sandbox(process: &OwnedFd) -> bool {
    let Ok(number) = number_in_proc(process, "the process to join") else { return false };
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    // The second field is the program's name in parentheses, and may contain anything. The ninth field holds the
    // kernel's flags (proc_pid_stat(5)). It is the seventh behind the name.
    let behind_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = behind_name.split_ascii_whitespace().nth(6).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & FORKED_ONLY != 0)
}

/// `PF_FORKNOEXEC` (`linux/sched.h`); ps(1) shows it as the flag 1.
const FORKED_ONLY: u32 = 0x40;

/// The number of a process in the pid namespace of `/proc`, which may differ from the caller's.
fn number_in_proc(process: &OwnedFd, name: &str) -> Result<u32, Error> {
    let step = || format!("find {name} in /proc");
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let description = fs::read_to_string(path)
        .map_err(|error| Error::new(step(), error).with_remedy("mount the /proc of this pid namespace"))?;
    let number = description.lines().find_map(|line| line.strip_prefix("Pid:"));
    match number.map(|number| number.trim().parse::<u32>()) {
        Some(Ok(0)) => Err(Error::new(step(), Errno::ESRCH)
            .with_remedy("/proc is that of another pid namespace: mount the one of this")),
        Some(Ok(number)) => Ok(number),
        // −1
        Some(Err(_)) => Err(Error::new(step(), Errno::ESRCH).with_remedy("the process has ended")),
        None => Err(Error::new(step(), Errno::EINVAL).with_remedy("pass a pidfd, of pidfd_open(2)")),
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

#[cfg(test)]
mod tests;
