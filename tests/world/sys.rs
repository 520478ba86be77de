//! All `unsafe` of the tests: what a child does between fork and exec.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};

/// Makes `command` run as the first process of new user, network, mount and pid namespaces, mapped to root in
/// there. The process spawned is a stand-in outside, which ends as the command ends and takes everything with
/// it when it is killed.
pub(crate) fn in_new_namespaces(command: &mut Command) {
    let uid_map = format!("0 {} 1", Uid::effective());
    let gid_map = format!("0 {} 1", Gid::effective());
    let enter = move || {
        unshare(
            CloneFlags::CLONE_NEWUSER
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID,
        )?;
        write("/proc/self/setgroups", "deny")?;
        write("/proc/self/uid_map", &uid_map)?;
        write("/proc/self/gid_map", &gid_map)?;
        set_pdeathsig(Signal::SIGKILL)?;
        // SAFETY: `fork` wants the child to stay with async-signal-safe calls if the parent has threads. The
        // parent is itself a child between fork and exec and has one thread; the child goes on to exec.
        match unsafe { fork() }? {
            ForkResult::Child => Ok(set_pdeathsig(Signal::SIGKILL)?),
            ForkResult::Parent { child } => stand_in_for(child),
        }
    };
    // SAFETY: `pre_exec` wants a closure that is async-signal-safe. It makes system calls only: both maps were
    // formatted before, `write` below does not allocate for such short paths, errors are bare numbers.
    unsafe { command.pre_exec(enter) };
}

/// Makes `command` run in the network namespace that `namespace` is a handle of.
pub(crate) fn in_network_namespace(command: &mut Command, namespace: OwnedFd) {
    let enter = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
    // SAFETY: `pre_exec` wants a closure that is async-signal-safe. It makes one system call; the error is a
    // bare number.
    unsafe { command.pre_exec(enter) };
}

/// Sets an option of a socket that is an int.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> nix::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `setsockopt` reads `length` bytes behind the pointer, which are those of `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(result).map(drop)
}

/// Reads an option of a socket that is an int.
pub(crate) fn option(socket: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<i32> {
    let mut value = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    let (at, room) = ((&raw mut value).cast(), &raw mut length);
    // SAFETY: `getsockopt` writes at most `length` bytes behind the first pointer, as many as `value` has, and how many
    // they were behind the second.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, at, room) };
    Errno::result(result).map(|_| value)
}

/// A queue of the TUN or TAP device of this name, which is made if there is none, in the network namespace of the caller
/// (`TUNSETIFF`).
pub(crate) fn tun(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (at, byte) in ifr_name.iter_mut().zip(name.bytes()) {
        *at = libc::c_char::try_from(byte).map_err(io::Error::other)?;
    }
    let ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let mut request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: `TUNSETIFF` reads a `struct ifreq` behind the pointer and writes one back; `request` is one.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result)?;
    Ok(file.into())
}

/// Waits for the real process and ends as it ended.
fn stand_in_for(child: Pid) -> ! {
    // Without this, `Command::spawn` would wait for the end of this process: it reads from a pipe until all
    // copies of the write end are closed by exec.
    // SAFETY: `close_range` wants nobody to use the fds it closes. This process uses none from here on.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let mut status = 0;
    loop {
        // SAFETY: `waitpid` wants a valid place to write the status to, which `status` is.
        let waited = unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
        if waited >= 0 || Errno::last() != Errno::EINTR {
            break;
        }
    }
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    // SAFETY: `_exit` wants nothing. It runs no destructor of what was copied from the parent, as it must not.
    unsafe { libc::_exit(code) }
}

fn write(path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
