//! A network for the sandboxes of bubblewrap, bwrap(1), put in by the example `oci-hook`.
//!
//! bwrap says on `--info-fd` which process the sandbox's first is, and has the sandbox wait at `--block-fd` until the
//! network is there. Meanwhile it sets up the loopback interface, and ends if somebody else has done so before.

use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::join::{assert_success, hook};
use crate::world::{SERVER, World, once, server};

once! {
    sandbox_gets_a_network [120],
    sandbox_with_a_user_namespace_in_another_gets_a_network [120],
    sandbox_that_is_slow_to_set_up_its_loopback_gets_a_network [120],
}

/// Whether it is us or bwrap that is first is a matter of milliseconds.
const RUNS: usize = 25;

fn sandbox_gets_a_network(world: &World) {
    let script = fetching(world);
    for _ in 0..RUNS {
        let sandbox = Sandbox::start(&[], &script);
        assert_success(&hook(sandbox.pid, &[]));
        assert_eq!(sandbox.finish(), "a page\na page\n");
    }
}

/// With `--dev` bwrap makes two: the network belongs to the outer one, the process is in the inner one.
fn sandbox_with_a_user_namespace_in_another_gets_a_network(world: &World) {
    let script = fetching(world);
    for _ in 0..RUNS {
        let sandbox = Sandbox::start(&["--unshare-user", "--dev", "/dev"], &script);
        assert_success(&hook(sandbox.pid, &[]));
        assert_eq!(sandbox.finish(), "a page\na page\n");
    }
}

fn sandbox_that_is_slow_to_set_up_its_loopback_gets_a_network(world: &World) {
    let script = fetching(world);
    for _ in 0..RUNS {
        let sandbox = Sandbox::start(&[], &script);
        sandbox.signal(Signal::SIGSTOP);
        thread::scope(|scope| {
            let hook = scope.spawn(|| hook(sandbox.pid, &[]));
            thread::sleep(Duration::from_millis(200));
            sandbox.signal(Signal::SIGCONT);
            assert_success(&hook.join().unwrap());
        });
        assert_eq!(sandbox.finish(), "a page\na page\n");
    }
}

/// A script that fetches a page from outside, and looks whether the loopback interface has its address.
fn fetching(world: &World) -> String {
    let urls = SERVER.map(|address| format!("http://{}/", server::http(world.listen(address), "a page\n")));
    format!("ip -oneline address show dev lo | grep -q 127.0.0.1/8 && curl -sS -m 10 {}", urls.join(" "))
}

/// A sandbox that waits for its network.
struct Sandbox {
    bwrap: Child,
    /// Its first process.
    pid: u32,
    block: PipeWriter,
}

impl Sandbox {
    #[track_caller]
    fn start(options: &[&str], script: &str) -> Self {
        let (mut info, theirs) = io::pipe().unwrap();
        let (blocked, block) = io::pipe().unwrap();
        let mut command = Command::new("bwrap");
        command.args(["--ro-bind", "/", "/", "--unshare-net", "--die-with-parent"]).args(options);
        command.args(["--info-fd", &inherited(&theirs), "--block-fd", &inherited(&blocked)]);
        command.args(["sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let bwrap = command.spawn().unwrap_or_else(|error| {
            panic!("bwrap: {error}; it comes with the Debian package bubblewrap");
        });
        drop((theirs, blocked));
        let mut said = String::new();
        info.read_to_string(&mut said).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let pid = said["child-pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Self { bwrap, pid: pid.unwrap_or_else(|| panic!("{said}")), block }
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid).unwrap()), signal).unwrap();
    }

    /// Lets it run, and returns what it has said.
    #[track_caller]
    fn finish(mut self) -> String {
        self.block.write_all(b"go").unwrap();
        let output = self.bwrap.wait_with_output().unwrap();
        assert!(output.status.success(), "bwrap: {}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The number of a file descriptor that programs started from here on inherit.
fn inherited(fd: &(impl AsFd + AsRawFd)) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_raw_fd().to_string()
}
