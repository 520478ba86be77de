//! New namespaces for an unprivileged caller, with which every rootless container starts.
//!
//! The caller becomes root inside a new user namespace. This namespace owns the other new ones, so the caller needs no
//! privilege on the host. Only the caller's own user and group are mapped. Files of others appear as owned by `nobody`.
//! setgroups(2) is denied, because the kernel would otherwise refuse the group map.

use std::ffi::CString;
use std::io;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::unistd::{getegid, geteuid};

use crate::Error;
use crate::sys::{self, EntryPlan, EntryStep};

/// The namespaces to make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Namespaces {
    user: bool,
    network: bool,
    mount: bool,
    pid: bool,
}

impl Namespaces {
    /// No namespaces yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { user: false, network: false, mount: false, pid: false }
    }

    /// User, network, mount and pid namespaces: the usual set of a rootless container.
    #[must_use]
    pub const fn all() -> Self {
        Self::new().user().network().mount().pid()
    }

    /// Adds a user namespace, in which the caller is root. With it, the others need no privileges.
    #[must_use]
    pub const fn user(mut self) -> Self {
        self.user = true;
        self
    }

    /// Adds a network namespace, with nothing but a loopback interface that is down.
    #[must_use]
    pub const fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// Adds a mount namespace. Mounts made in it stay in it. Mounts made on the host still arrive.
    #[must_use]
    pub const fn mount(mut self) -> Self {
        self.mount = true;
        self
    }

    /// Adds a pid namespace. The caller stays outside. Its next child is process 1 in it, and everything in it ends
    /// with that process.
    #[must_use]
    pub const fn pid(mut self) -> Self {
        self.pid = true;
        self
    }

    /// Moves the calling process into the new namespaces.
    ///
    /// # Errors
    /// If the process has several threads, or the kernel refuses. After a failure the process may be in some of the
    /// namespaces: let it end.
    pub fn enter(self) -> Result<(), Error> {
        refuse_threads(
            EntryStep::Unshare.name(),
            "enter before starting threads, or use Namespaces::enter_on_exec",
        )?;
        sys::enter(&self.plan())
            .map_err(|(step, errno)| Error::new(step.name(), errno).with_remedy(remedy(errno, read_sysctl)))
    }

    /// Makes `command` start in the new namespaces. Works from a process with threads.
    ///
    /// With a pid namespace, the command itself stays outside and its first child is process 1. `spawn` returns errors
    /// as an error number only. [`explain`](Self::explain) says more.
    pub fn enter_on_exec(self, command: &mut Command) {
        sys::enter_on_exec(command, self.plan());
    }

    /// Adds a remedy to an error of `spawn` after [`enter_on_exec`](Self::enter_on_exec).
    #[must_use]
    pub fn explain(self, error: io::Error) -> Error {
        let remedy = error.raw_os_error().map(|errno| remedy(Errno::from_raw(errno), read_sysctl));
        Error::new("start a command in new namespaces", error).with_remedy(remedy.unwrap_or_default())
    }

    fn plan(self) -> EntryPlan {
        let wanted = [
            (self.user, CloneFlags::CLONE_NEWUSER),
            (self.network, CloneFlags::CLONE_NEWNET),
            (self.mount, CloneFlags::CLONE_NEWNS),
            (self.pid, CloneFlags::CLONE_NEWPID),
        ];
        let namespaces = wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect();
        EntryPlan { namespaces, writes: if self.user { id_maps() } else { Vec::new() } }
    }
}

/// Mounts `/proc` for the pid namespace that the calling process is in. The first process of a pid namespace has to do
/// this.
///
/// # Errors
/// If the kernel refuses.
pub fn mount_proc() -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|errno| {
        let remedy = match errno as i32 {
            libc::EPERM => {
                "be process 1 of a pid namespace made together with the mount namespace; inside a container \
                 whose /proc is masked: run that one with --security-opt systempaths=unconfined"
            }
            libc::ENOENT => "create the directory /proc",
            _ => "",
        };
        Error::new("mount /proc", errno).with_remedy(remedy)
    })
}

/// Only a process with one thread can change its user namespace.
pub(crate) fn refuse_threads(step: &'static str, remedy: &'static str) -> Result<(), Error> {
    let alone = sys::single_threaded().map_err(|error| {
        Error::new("count the threads in /proc/self/task", error).with_remedy("mount /proc first")
    })?;
    if alone {
        Ok(())
    } else {
        Err(Error::refused(step, "the process has several threads").with_remedy(remedy))
    }
}

/// The files to write, with their content, to make the caller root in a new user namespace. user_namespaces(7) requires
/// this order.
fn id_maps() -> Vec<(CString, Vec<u8>)> {
    // The ids are read here, because inside the namespace both are unmapped until the maps are written.
    let (user, group) = (format!("0 {} 1\n", geteuid()), format!("0 {} 1\n", getegid()));
    vec![
        (c"/proc/self/setgroups".to_owned(), b"deny".to_vec()),
        (c"/proc/self/uid_map".to_owned(), user.into_bytes()),
        (c"/proc/self/gid_map".to_owned(), group.into_bytes()),
    ]
}

impl EntryStep {
    fn name(self) -> &'static str {
        match self {
            Self::Unshare => "enter new namespaces",
            Self::Map => "map the caller to root in the new user namespace",
            Self::Propagation => "keep mounts inside the new mount namespace",
        }
    }
}

fn read_sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{name}")).ok()
}

/// The remedy when the kernel refuses namespaces. `sysctl` reads a file below `/proc/sys`.
fn remedy(errno: Errno, sysctl: impl Fn(&str) -> Option<String>) -> &'static str {
    let is = |name, value| sysctl(name).is_some_and(|read| read.trim() == value);
    match errno as i32 {
        libc::EPERM | libc::EACCES if is("kernel/unprivileged_userns_clone", "0") => {
            "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
        }
        libc::EPERM | libc::EACCES if is("kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "AppArmor limits user namespaces: give this program a profile with \"userns,\", or \
             sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        }
        libc::EPERM | libc::ENOSPC if is("user/max_user_namespaces", "0") => {
            "allow user namespaces: sysctl -w user.max_user_namespaces=15000"
        }
        libc::EPERM | libc::EACCES => {
            "without a user namespace this needs root; with one, a security policy is in the way: a seccomp \
             profile (inside a container), SELinux, or a chroot"
        }
        libc::ENOSPC => {
            "too many namespaces, or nested too deeply: end some, or raise user.max_user_namespaces, \
             user.max_net_namespaces, user.max_mnt_namespaces and user.max_pid_namespaces"
        }
        libc::EUSERS => "user namespaces are nested too deeply",
        libc::EINVAL => "the kernel was built without one of these namespaces, or the process has threads",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Stdio;

    use super::*;
    use crate::testing::{alone, inside};

    #[track_caller]
    fn assert_remedy(errno: Errno, sysctls: &[(&str, &str)], names: &str) {
        let read = |name: &str| {
            sysctls.iter().find(|(known, _)| *known == name).map(|(_, value)| format!("{value}\n"))
        };
        let remedy = remedy(errno, read);
        assert!(remedy.contains(names), "{remedy}");
    }

    #[test]
    fn obstacle_is_told_by_its_sysctl() {
        let apparmor = "kernel/apparmor_restrict_unprivileged_userns";
        assert_remedy(
            Errno::EPERM,
            &[("kernel/unprivileged_userns_clone", "0")],
            "unprivileged_userns_clone=1",
        );
        assert_remedy(Errno::EPERM, &[(apparmor, "1")], "apparmor_restrict_unprivileged_userns=0");
        assert_remedy(Errno::EACCES, &[(apparmor, "1")], "apparmor_restrict_unprivileged_userns=0");
        assert_remedy(Errno::EPERM, &[(apparmor, "0")], "seccomp");
        assert_remedy(Errno::ENOSPC, &[("user/max_user_namespaces", "0")], "user.max_user_namespaces=");
        assert_remedy(Errno::ENOSPC, &[("user/max_user_namespaces", "9")], "raise user.max_user_namespaces");
    }

    #[test]
    fn process_with_threads_is_told_what_else_to_use() {
        let (_hold, release) = std::sync::mpsc::channel::<()>();
        let _thread = std::thread::spawn(move || release.recv());
        let error = Namespaces::all().enter().unwrap_err().to_string();
        assert!(error.contains("several threads") && error.contains("enter_on_exec"), "{error}");
    }

    #[test]
    fn caller_is_root_inside() {
        let mut id = Command::new("id");
        Namespaces::new().user().enter_on_exec(id.arg("-u"));
        let output = id.output().map_err(|error| Namespaces::new().user().explain(error)).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    }

    #[test]
    fn limit_of_namespaces_is_named() {
        if !inside(Namespaces::new().user(), module_path!(), "limit_of_namespaces_is_named") {
            return;
        }
        // The limit counts per user namespace, and this one is ours to lower.
        fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
        let mut command = Command::new("true");
        Namespaces::new().user().enter_on_exec(&mut command);
        let error = Namespaces::new().user().explain(command.spawn().unwrap_err());
        assert_eq!(error.errno(), Some(libc::ENOSPC));
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("max_user_namespaces")), "{error}");
    }

    #[test]
    fn single_threaded_process_enters_all_and_its_child_is_process_1() {
        let test = "single_threaded_process_enters_all_and_its_child_is_process_1";
        if !inside(Namespaces::new(), module_path!(), test) {
            return;
        }
        alone(|| {
            let namespaces =
                || ["user", "net", "mnt"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")));
            let before = namespaces().map(Result::unwrap);
            Namespaces::all().enter().unwrap();
            let after = namespaces().map(Result::unwrap);
            assert!(before.iter().zip(&after).all(|(before, after)| before != after));
            let child = Command::new("sh").args(["-c", "echo $$"]).stdout(Stdio::piped()).spawn().unwrap();
            assert_eq!(String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout), "1\n");
        });
    }

    #[test]
    fn mounts_do_not_leave_the_namespace() {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut command = Command::new("mount");
        Namespaces::new().user().mount().enter_on_exec(command.args(["-t", "tmpfs", "inner", "/tmp"]));
        assert!(command.status().unwrap().success());
        assert!(!before.contains("inner"));
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" inner "));
    }
}
