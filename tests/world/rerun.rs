//! Runs a test again as a process in namespaces of its own.
//!
//! ```text
//! test binary (cargo test)         stand-in              test binary again, `--exact NAME`
//!  │ #[test] fn NAME → outer         │                      │
//!  │ ── fork, unshare ─────────────► │ ── fork, exec ─────► │ pid 1, uid 0, own network, mounts, /proc
//!  │                                 │                      │ #[test] fn NAME → inner → the test's body
//!  │ ◄═════════════════════════════════ output, one pipe ══ │
//!  │ ◄── exit status ─────────────── │ ◄── exit status ──── │
//! ```
//!
//! The pipe ends when the last process in there is gone, so that the outer run needs no clock but its
//! timeout. Whoever ends early, the kernel ends the rest: each process is killed with its parent, and the
//! pid namespace with its first process.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Carriage, World, sys};

/// Set in the inner run.
const INNER: &str = "NSNET_TEST_INNER";
/// Set by whoever wants to see, should the test fail, what the library logs.
const LOG: &str = "NSNET_TEST_LOG";

/// What the inner run prints last. The exit status alone would not do: asked for a test that does not exist,
/// the test binary runs nothing and succeeds.
const PASSED: &str = "nsnet-test: the body was run to its end";

/// Entry of every test; the macros below call it.
pub(crate) fn run(path: &'static str, timeout: u64, carriage: Carriage, body: fn(&World)) {
    // `module_path!` starts with the crate, the names of the test harness do not.
    let (_, name) = path.split_once("::").expect("a path inside the crate");
    if env::var_os(INNER).is_some() {
        inner(carriage, body);
    } else {
        outer(name, Duration::from_secs(timeout));
    }
}

/// Makes `mod handed_over` and `mod shuttled`, which hold a test for each function named: the same body, once
/// with the TUN fd handed over and once with the frames shuttled. A number in brackets is the timeout in
/// seconds, for those that need more than a minute.
macro_rules! in_both_carriages {
    ($($name:ident $([$seconds:literal])?),+ $(,)?) => {
        mod handed_over {
            $(#[test] fn $name() { $crate::world::test!(HandedOver, $name $(, $seconds)?) })+
        }
        mod shuttled {
            $(#[test] fn $name() { $crate::world::test!(Shuttled, $name $(, $seconds)?) })+
        }
    };
}

/// Makes `mod once`, for what does not depend on the carriage.
macro_rules! once {
    ($($name:ident $([$seconds:literal])?),+ $(,)?) => {
        mod once {
            $(#[test] fn $name() { $crate::world::test!(HandedOver, $name $(, $seconds)?) })+
        }
    };
}

macro_rules! test {
    ($carriage:ident, $name:ident) => {
        $crate::world::test!($carriage, $name, 60)
    };
    ($carriage:ident, $name:ident, $seconds:literal) => {
        $crate::world::run(
            concat!(module_path!(), "::", stringify!($name)),
            $seconds,
            $crate::world::Carriage::$carriage,
            super::$name,
        )
    };
}

pub(crate) use {in_both_carriages, once, test};

#[track_caller]
fn outer(name: &str, timeout: Duration) {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INNER, "1")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    sys::in_new_namespaces(&mut command);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("making namespaces: {error}\n{REMEDIES}"));
    // It holds the write ends of the pipe.
    drop(command);

    let (ended, end) = mpsc::channel();
    let output = thread::spawn(move || {
        let mut output = Vec::new();
        let read = reader.read_to_end(&mut output);
        drop(ended);
        read.map(|_| indented(&String::from_utf8_lossy(&output)))
    });
    let in_time = end.recv_timeout(timeout) == Err::<(), _>(mpsc::RecvTimeoutError::Disconnected);
    if !in_time {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let output = output.join().unwrap().unwrap();
    assert!(in_time, "{name}: not done after {timeout:?}; it said:\n{output}");
    assert!(status.success(), "{name}: {status}; it said:\n{output}");
    assert!(output.contains(PASSED), "{name}: the inner run did not find the test; it said:\n{output}");
}

/// So that nobody takes the inner run's summary for the outer one's.
fn indented(output: &str) -> String {
    output.lines().map(|line| format!("  | {line}\n")).collect()
}

fn inner(carriage: Carriage, body: fn(&World)) {
    mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
        .unwrap_or_else(|error| panic!("making mounts private: {error}\n{REMEDIES}"));
    mount::<_, _, _, str>(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None)
        .unwrap_or_else(|error| panic!("mounting /proc: {error}\n{REMEDIES}"));
    // Host, container and server share the limit of this one process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).unwrap();
    if env::var_os(LOG).is_some() {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .init();
    }
    body(&World::new(carriage));
    println!("{PASSED}");
}

const REMEDIES: &str = "\
The end-to-end tests build networks of their own in new namespaces and fail where the kernel refuses that.
 - user namespaces may be switched off: sysctl user.max_user_namespaces=65536,
   on older Debian kernels also sysctl kernel.unprivileged_userns_clone=1
 - AppArmor may forbid them to programs without a profile: sysctl kernel.apparmor_restrict_unprivileged_userns=0
 - a container engine may forbid unshare(2) or a new /proc:
   docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined --device /dev/net/tun";
