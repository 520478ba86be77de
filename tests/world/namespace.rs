//! A network namespace to run closures and commands in.
//!
//! A socket belongs to the namespace of the thread that made it and stays there. So a test makes its sockets
//! inside a namespace and uses them wherever it likes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::panic;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::sys;

/// A network namespace, which lives as long as this handle, or anything made in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    handle: File,
}

impl Namespace {
    /// A new one, with nothing in it but a loopback interface that is down.
    pub(crate) fn new() -> Self {
        Self::of_thread(|| unshare(CloneFlags::CLONE_NEWNET).unwrap())
    }

    /// The one that the calling thread is in.
    pub(crate) fn current() -> Self {
        Self { handle: File::open("/proc/thread-self/ns/net").unwrap() }
    }

    /// Runs `body` on a thread inside. A panic passes on to the caller.
    #[track_caller]
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        sys::in_network_namespace(&mut command, self.handle.try_clone().unwrap().into());
        command
    }

    /// A path under which commands of iproute2 find this namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Runs `script`, a list of commands for ip(8), inside.
    #[track_caller]
    pub(crate) fn ip(&self, script: &str) {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("ip: {error}; it comes with the Debian package iproute2"));
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "ip failed in\n{script}");
    }

    fn of_thread(prepare: impl FnOnce() + Send) -> Self {
        let make = || {
            prepare();
            Self::current()
        };
        thread::scope(|scope| scope.spawn(make).join()).unwrap()
    }
}
