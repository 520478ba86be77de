//! Puts a network into a container that an OCI runtime (runc, crun) creates, without root.
//!
//! As a hook of the bundle, in its `config.json`; the container's network namespace is its own:
//!
//! ```json
//! "linux": { "namespaces": [ { "type": "user" }, { "type": "network" }, … ], … },
//! "hooks": { "createRuntime": [ { "path": "/usr/local/bin/oci-hook", "timeout": 15 } ] }
//! ```
//!
//! The runtime starts the hook when the container's namespaces are there and its program is not running yet. When
//! the hook returns the network is up; if it fails, so does the creation of the container, with the hook's words.
//!
//! By path: all that is read of the container's state is `pid`, so that any process can be given a network. A
//! bundle then names the namespaces of that process, and several containers in turn or at a time can use them:
//!
//! ```sh
//! exec 3< <(unshare --user --map-root-user --net sh -c 'echo $$; exec sleep infinity')
//! read -r pid <&3
//! echo "{\"pid\": $pid}" | oci-hook
//! ```
//! ```json
//! "namespaces": [ { "type": "user", "path": "/proc/PID/ns/user" }, { "type": "network", "path": "/proc/PID/ns/net" }, … ]
//! ```
//!
//! runc wants `uidMappings` and `gidMappings` nonetheless: those of that user namespace.
//!
//! The container's resolver has to ask the network's DNS address: let the bundle bind a file that says
//! `nameserver 10.0.2.3` over `/etc/resolv.conf`.
//!
//! One program, three processes:
//!
//! 1. [`hook`]: what the runtime waits for. Starts the next, and ends when that is ready.
//! 2. [`serve`]: in the background, owns the [`Network`]. Ends with the container's first process, and until the
//!    network is up with the hook.
//! 3. [`inside`]: joins the container's network namespace, makes the device there, hands it over, and ends.
//!
//! Nothing of it is a file, so nothing is left when the container ends, or when one of them is killed.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::*;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{close, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use nsnet::container::join::Target;
use nsnet::container::supervise::die_with_parent;
use nsnet::container::{TunDevice, join, report_failure};
use nsnet::host::{Attachment, Member, Network};
use serde::Deserialize;
use tracing_subscriber::filter::LevelFilter;

const HELP: &str = "\
Puts a network into a container that an OCI runtime creates: a createRuntime hook. Needs no root.

Usage: oci-hook [OPTIONS] < STATE

STATE is the container's state as the runtime writes it, of which \"pid\" is read: {\"pid\": 4711}

Options:
      --host-loopback  Let the gateway's address lead to the host's loopback (127.0.0.1 and ::1)
      --log FILE       Append what happens to FILE, an absolute path
  -h, --help           Print this help

Returns when the network is up. It is served in the background until the process ends.
";

/// Until the network inside must be up. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long bytes that the container has sent before it ended may take to be delivered.
const LINGER: Duration = Duration::from_secs(5);

/// What [`serve`] tells [`hook`].
const READY: &str = "ready\n";

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("oci-hook: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let errors = std::iter::successors(Some(error), |&error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let Some(options) = Options::parse()? else {
        io::stdout().write_all(HELP.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    };
    match (TunDevice::is_attached(), options.serve) {
        (true, _) => Ok(inside()),
        (false, true) => serve(&options),
        (false, false) => hook(),
    }
}

/// ① Waits until the network is up.
fn hook() -> Result<ExitCode, Box<dyn Error>> {
    let mut command = this_program_again();
    // It reads the state itself, so that the number in it is turned into a process but once.
    let mut server = command.arg("--serve").stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    server.stdout.take().ok_or("no pipe")?.read_to_string(&mut said)?;
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    // What was wrong it has said on stderr, unless it was killed.
    let status = server.wait()?;
    if status.code().is_none() {
        eprintln!("oci-hook: the background process ended: {status}");
    }
    Ok(ExitCode::FAILURE)
}

/// ② Provides the network as long as the container's first process lives.
fn serve(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    close_inherited()?;
    setsid()?;
    let log = options.start_log()?;
    if let Err(error) = serve_until_the_end(options, &log) {
        // Not every runtime shows what a hook says on stderr.
        writeln!(&*log, "{}", chain(&*error))?;
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

fn serve_until_the_end(options: &Options, log: &File) -> Result<(), Box<dyn Error>> {
    let state: State =
        serde_json::from_reader(io::stdin()).map_err(|error| format!("read the state on stdin: {error}"))?;
    let target = Target::process(state.pid)?;
    let network = options.network()?;
    raise_fd_limit();
    let _attachment = put_into(&network, &target)?;

    // From here on the container's first process decides, and not the hook.
    set_pdeathsig(None)?;
    detach(log)?;
    let process = target.pidfd().ok_or("no process")?;
    while poll(&mut [PollFd::new(process, PollFlags::POLLIN)], PollTimeout::NONE) == Err(Errno::EINTR) {}
    network.finish(LINGER);
    Ok(())
}

/// Starts ③ and waits for what it has to say.
fn put_into(network: &Network, target: &Target) -> Result<Attachment, Box<dyn Error>> {
    let mut command = this_program_again();
    let process = target.pidfd().ok_or("no process")?;
    command.stdin(process.try_clone_to_owned()?).stdout(Stdio::null());
    let mut attachment = network.attach(&mut command, Member::new())?;
    let mut helper = command.spawn()?;
    let ready = attachment.wait_ready(PATIENCE);
    if ready.is_err() {
        helper.kill()?;
    }
    helper.wait()?;
    ready?;
    Ok(attachment)
}

/// ③ Makes the device. What goes wrong is reported to [`serve`], which has the words for the runtime.
fn inside() -> ExitCode {
    let joined = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| nsnet::container::Error::new("take the process from stdin", error));
    if let Err(error) = joined.and_then(Target::from_pidfd).and_then(|target| join(&target)) {
        report_failure(&error);
        return ExitCode::FAILURE;
    }
    let made = TunDevice::open().and_then(|mut device| {
        device.configure()?;
        device.hand_over()
    });
    if made.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The next stage: the same program with the same arguments. It ends with this process, unless it decides otherwise.
fn this_program_again() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1));
    die_with_parent(&mut command);
    command
}

/// The runtime may wait for the end of a pipe that it has left open by mistake. Nothing but stdin, stdout and stderr
/// is this program's at its start.
fn close_inherited() -> io::Result<()> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // One of them was open to read the directory, and is closed already.
        let _ = close(number);
    }
    Ok(())
}

/// Lets go of what belongs to the runtime, and of the hook, by telling it that the network is up.
fn detach(log: &File) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    dup2_stdin(&null)?;
    dup2_stderr(log)?;
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    Ok(dup2_stdout(&null)?)
}

fn raise_fd_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it there is room for fewer flows at a time, no more.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// What is needed of the container's state.
#[derive(Deserialize)]
struct State {
    /// Its first process, in the pid namespace of the runtime.
    pid: u32,
}

#[derive(Default)]
struct Options {
    serve: bool,
    host_loopback: bool,
    log: Option<PathBuf>,
}

impl Options {
    /// `None` if it is help that is wanted.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        let mut options = Self::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("serve") => options.serve = true,
                Long("host-loopback") => options.host_loopback = true,
                Long("log") => options.log = Some(parser.value()?.into()),
                Short('h') | Long("help") => return Ok(None),
                Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
            }
        }
        Ok(Some(options))
    }

    fn network(&self) -> Result<Network, nsnet::host::BuildError> {
        let builder = Network::builder();
        if self.host_loopback { builder.host_loopback() } else { builder }.build()
    }

    fn start_log(&self) -> Result<Arc<File>, String> {
        let path = self.log.as_deref().unwrap_or("/dev/null".as_ref());
        let file = File::options().append(true).create(true).open(path);
        let file = Arc::new(file.map_err(|error| format!("open {}: {error}", path.display()))?);
        let log = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_ansi(false);
        log.with_writer(Arc::clone(&file)).init();
        Ok(file)
    }
}
