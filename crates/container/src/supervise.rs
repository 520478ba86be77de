//! Waits for a child, for a process that stands between others. It forwards signals to the child, reaps orphans and
//! returns the exit status.
//!
//! A chain of such processes runs from the process that the user started to the payload. A signal that a process has
//! sent (kill(1), a service manager) reaches one of the chain and is forwarded along it. A signal of the terminal, as
//! for Ctrl-C, reaches the whole foreground process group, payload included. It is not forwarded, or the payload would
//! get it once from each process.
//!
//! The signals are blocked from [`Supervisor::new`] on and read from a signalfd(2), so even an early one is not lost.
//! Process 1 of a pid namespace in particular would lose it, because the kernel discards a signal that process 1
//! neither handles nor blocks.

use std::io;
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::{Error, sys};

/// The signals that are forwarded.
const FORWARDED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Waits for a child, forwards signals to it, and reaps orphans meanwhile.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalFd,
}

impl Supervisor {
    /// Blocks SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGCHLD in the calling thread. They stay blocked.
    ///
    /// Call it first of all. Threads that start later inherit the block. A signal would still interrupt an earlier
    /// thread.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn new() -> Result<Self, Error> {
        sys::default_sigchld().map_err(|errno| Error::new("reset the action of SIGCHLD", errno))?;
        let set = supervised();
        set.thread_block().map_err(|errno| Error::new("block signals", errno))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)
            .map_err(|errno| Error::new("open a signalfd", errno))?;
        Ok(Self { signals })
    }

    /// Starts the payload: a command for which these signals are unblocked, as for other programs.
    ///
    /// Start a next stage that makes a `Supervisor` of its own with [`Command::spawn`] instead. It inherits the block
    /// and loses no signal before it is ready.
    ///
    /// # Errors
    /// See [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        sys::unblock_on_exec(command, supervised());
        command.spawn()
    }

    /// Waits until `child` ends.
    ///
    /// In process 1 of a pid namespace, it reaps every other child meanwhile, because process 1 inherits all orphans.
    ///
    /// # Errors
    /// If another call has waited for the child already.
    pub fn wait(&self, mut child: Child) -> io::Result<ExitStatus> {
        // A child that reads to the end of our pipe would otherwise never end, see `Child::wait`.
        drop(child.stdin.take());
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let reaping = if std::process::id() == 1 { Reaping::Everything } else { Reaping::Child };
        loop {
            // First, because the child may have ended before its SIGCHLD could be read.
            if let Some(status) = reap(pid, reaping)? {
                return Ok(status);
            }
            let signal = match self.signals.read_signal() {
                Ok(signal) => signal,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let Some(info) = signal.filter(|info| is_for_child(info.ssi_code)) else { continue };
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| FORWARDED.contains(signal)) {
                // The child exists, at least as a zombie, because nobody else reaps it.
                kill(pid, signal)?;
            }
        }
    }
}

/// The exit status as a shell's number: the command's own, or 128 + the signal that ended it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(i32::from(u8::MAX))
}

/// Makes the kernel kill `command` when the thread that spawns it ends (`PR_SET_PDEATHSIG`, prctl(2)). This holds even
/// if the thread ends before the command has started.
///
/// Call it after [`Namespaces::enter_on_exec`](crate::Namespaces::enter_on_exec) if both are used, because changing
/// credentials may undo it.
pub fn die_with_parent(command: &mut Command) {
    sys::die_with_parent_on_exec(command);
}

#[derive(Debug, Clone, Copy)]
enum Reaping {
    Child,
    Everything,
}

/// Reaps children that have ended. Returns the status of `child` if it is among them.
fn reap(child: Pid, reaping: Reaping) -> io::Result<Option<ExitStatus>> {
    let which = match reaping {
        Reaping::Child => child.as_raw(),
        Reaping::Everything => -1,
    };
    loop {
        match sys::try_wait(which) {
            Ok(Some((pid, status))) if pid == child.as_raw() => return Ok(Some(status)),
            Ok(Some(_orphan)) => {}
            Ok(None) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn supervised() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Whether a process has sent the signal to this one, rather than the terminal to its foreground group.
fn is_for_child(code: i32) -> bool {
    code != libc::SI_KERNEL
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;
    use crate::Namespaces;
    use crate::testing::{alone, inside};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn supervised_exit_code(script: &str) -> i32 {
        let supervisor = Supervisor::new().unwrap();
        let child = supervisor.spawn(&mut shell(script)).unwrap();
        exit_code(supervisor.wait(child).unwrap())
    }

    #[test]
    fn exit_code_is_the_status_or_128_and_the_signal() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGTERM)), 143);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGRTMIN())), 128 + libc::SIGRTMIN());
    }

    #[test]
    fn terminals_signals_are_not_passed_on() {
        assert!(!is_for_child(libc::SI_KERNEL));
        assert!(is_for_child(libc::SI_USER));
        assert!(is_for_child(libc::SI_TKILL));
    }

    #[test]
    fn signal_is_passed_on_and_the_childs_answer_comes_back() {
        let test = "signal_is_passed_on_and_the_childs_answer_comes_back";
        if inside(Namespaces::new(), module_path!(), test) {
            alone(|| {
                let script = "trap 'exit 7' TERM; kill -TERM $PPID; while :; do sleep 0.05; done";
                assert_eq!(supervised_exit_code(script), 7);
            });
        }
    }

    #[test]
    fn signal_before_the_wait_is_not_lost() {
        if inside(Namespaces::new(), module_path!(), "signal_before_the_wait_is_not_lost") {
            alone(|| {
                let supervisor = Supervisor::new().unwrap();
                kill(Pid::this(), Signal::SIGTERM).unwrap();
                let child = supervisor.spawn(&mut shell("exec sleep 60")).unwrap();
                assert_eq!(exit_code(supervisor.wait(child).unwrap()), 128 + libc::SIGTERM);
            });
        }
    }

    #[test]
    fn payload_starts_with_signals_unblocked() {
        if inside(Namespaces::new(), module_path!(), "payload_starts_with_signals_unblocked") {
            alone(|| {
                assert_eq!(supervised_exit_code("kill -INT $$; exit 3"), 128 + libc::SIGINT);
                assert_eq!(supervised_exit_code("grep -q '^SigBlk:.0*$' /proc/self/status"), 0);
            });
        }
    }

    #[test]
    fn death_by_a_real_time_signal_is_understood() {
        if inside(Namespaces::new(), module_path!(), "death_by_a_real_time_signal_is_understood") {
            alone(|| assert_eq!(supervised_exit_code("kill -40 $$"), 128 + 40));
        }
    }

    #[test]
    fn process_1_reaps_orphans() {
        if !inside(Namespaces::new(), module_path!(), "process_1_reaps_orphans") {
            return;
        }
        alone(|| {
            Namespaces::all().enter().unwrap();
            alone(|| {
                assert_eq!(std::process::id(), 1);
                crate::namespace::mount_proc().unwrap();
                // Process 1 has reaped the orphan once its /proc entry is gone.
                let script = "orphan=$(sh -c 'true & echo $!'); while [ -e /proc/$orphan ]; do sleep 0.02; done; exit 9";
                assert_eq!(supervised_exit_code(script), 9);
            });
        });
    }

    #[test]
    fn child_dies_with_its_parent() {
        // The parent thread ends, and so does the child: pdeathsig is about the thread.
        let child = std::thread::spawn(|| {
            let mut command = shell("exec sleep 60");
            die_with_parent(&mut command);
            command.spawn().unwrap()
        });
        let status = child.join().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
}
