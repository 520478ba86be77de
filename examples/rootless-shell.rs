//! Runs a command in a network of its own, without root.
//!
//! ```sh
//! cargo run --example rootless-shell -- curl https://example.com
//! ```
//!
//! One program, three processes, because namespaces are entered by starting something in them:
//!
//! 1. [`host`]: stays outside, owns the [`Network`], starts the next with the network attached.
//! 2. [`entrance`]: enters new user, network, mount and pid namespaces. A process cannot move into a new pid
//!    namespace itself, so it starts the next.
//! 3. [`inside`]: process 1 of the pid namespace. Sets the network up and runs the command.
//!
//! Each waits for the next, passes signals on to it, and ends with its exit status. If one is killed, those
//! after it die too.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use lexopt::prelude::*;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nsnet::container::supervise::{die_with_parent, exit_code};
use nsnet::container::{Namespaces, Offload, Shuttle, Supervisor, TunDevice};
use nsnet::container::{namespace, report_failure, resolv_conf};
use nsnet::host::{HostPorts, Member, Network, NetworkBuilder, Publish};
use tracing_subscriber::filter::LevelFilter;

const HELP: &str = "\
Runs a command in a network namespace of its own that reaches the world through this process. Needs no root.

Usage: rootless-shell [OPTIONS] [--] [COMMAND [ARG...]]

Without COMMAND, $SHELL is run.

Options:
      --mtu N          MTU of the network inside, in bytes
      --shuttle        Keep the TUN device inside and copy frames to the host, instead of handing it over
      --no-offload     Leave neither checksums nor segmentation to the other end
      --queues N       Serve the network on up to N threads (default 1)
      --host-loopback  Let the gateway's address lead to the host's loopback (127.0.0.1 and ::1)
      --open-host [ADDR[:]][PORT[-PORT]][/tcp|/udp]
                       Let the network inside reach ports of the host, on its loopback or at its own address ADDR,
                       which without ports is opened as a whole. May be repeated
      --ipv4-only      No IPv6 inside
      --publish [ADDR:]HOST[-HOST]:PORT[/tcp|/udp]
                       Lead port HOST of this machine, at ADDR or all addresses, to PORT inside; a range leads to
                       consecutive ports. /PATH:PORT is a UNIX socket. May be repeated
      --log LEVEL      Log to stderr: off, error, warn (default), info, debug or trace
  -h, --help           Print this help

Exit status: that of COMMAND, or 128 + N if signal N ended it; 127 if it was not found, 126 if it could not be
started, 125 if something failed before.
";

/// The exit status for our own failures, as of env(1) and chroot(1).
const FAILED: u8 = 125;
const CANNOT_START: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Until the network inside must be up. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long bytes that the command has sent before it ended may take to be delivered.
const LINGER: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("rootless-shell: {}", chain(&*error));
            ExitCode::from(FAILED)
        }
    }
}

/// An error and its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let errors = std::iter::successors(Some(error), |&error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn run() -> Result<u8, Box<dyn Error>> {
    let Some(options) = Options::parse()? else {
        io::stdout().write_all(HELP.as_bytes())?;
        return Ok(0);
    };
    tracing_subscriber::fmt().with_max_level(options.log).with_writer(io::stderr).init();
    // Before there are threads, so that signals wait until they can be passed on.
    let supervisor = Supervisor::new()?;
    match (TunDevice::is_attached(), std::process::id()) {
        (false, _) => host(&options, &supervisor),
        (true, 1) => inside(&options, &supervisor),
        (true, _) => entrance(&supervisor),
    }
}

/// ① Provides the network.
fn host(options: &Options, supervisor: &Supervisor) -> Result<u8, Box<dyn Error>> {
    let network = options.network()?;
    let mut command = this_program_again();
    let mut attachment = network.attach(&mut command, Member::new())?;
    let mut child = command.spawn()?;
    // Each flow takes a file descriptor here. The child is left with the limit that the user has set.
    raise_fd_limit();
    if let Err(error) = attachment.wait_ready(PATIENCE) {
        child.kill()?;
        child.wait()?;
        return Err(error.into());
    }
    let status = supervisor.wait(child)?;
    network.finish(LINGER);
    Ok(status_byte(exit_code(status)))
}

/// ② Enters the namespaces.
fn entrance(supervisor: &Supervisor) -> Result<u8, Box<dyn Error>> {
    if let Err(error) = Namespaces::all().enter() {
        report_failure(&error);
        return Ok(FAILED);
    }
    let child = this_program_again().spawn()?;
    Ok(status_byte(exit_code(supervisor.wait(child)?)))
}

/// ③ Sets the network up and runs the command.
fn inside(options: &Options, supervisor: &Supervisor) -> Result<u8, Box<dyn Error>> {
    // Frames are copied, if they are, until this process ends. An error has been reported to the host.
    let Ok(shuttle) = set_up_network(options.shuttle) else { return Ok(FAILED) };
    let (program, arguments) = options.command();
    match supervisor.spawn(Command::new(&program).args(arguments)) {
        Ok(child) => {
            let status = supervisor.wait(child)?;
            if let Some(Err(error)) = shuttle.map(|shuttle| shuttle.finish(LINGER)) {
                eprintln!("rootless-shell: {error}");
            }
            Ok(status_byte(exit_code(status)))
        }
        Err(error) => {
            eprintln!("rootless-shell: cannot run {}: {error}", program.display());
            Ok(if error.kind() == ErrorKind::NotFound || !is_found(&program) {
                NOT_FOUND
            } else {
                CANNOT_START
            })
        }
    }
}

fn set_up_network(shuttle: bool) -> Result<Option<Shuttle>, nsnet::container::Error> {
    namespace::mount_proc().inspect_err(report_failure)?;
    let mut device = TunDevice::open()?;
    // A program that makes a root file system of its own would do so here, and write a resolv.conf into it.
    resolv_conf::bind(device.setup()).inspect_err(|error| device.report(error))?;
    device.configure()?;
    if shuttle {
        return Ok(Some(device.shuttle()?));
    }
    device.hand_over()?;
    Ok(None)
}

/// The next stage: the same program with the same arguments, which recognises where it is.
fn this_program_again() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1));
    die_with_parent(&mut command);
    command
}

fn raise_fd_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Without it there is room for fewer flows at a time, no more.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whether `program` is anywhere to be found. A directory of $PATH that is closed to the user makes the kernel
/// say EACCES for what is not there either.
fn is_found(program: &OsStr) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_path = program.as_encoded_bytes().contains(&b'/');
    is_path || std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn status_byte(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(FAILED)
}

struct Options {
    mtu: Option<u16>,
    shuttle: bool,
    no_offload: bool,
    queues: Option<u16>,
    host_loopback: bool,
    open_host: Vec<HostPorts>,
    ipv4_only: bool,
    publish: Vec<Publish>,
    log: LevelFilter,
    command: Vec<OsString>,
}

impl Options {
    /// `None` if it is help that is wanted.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        let mut options = Self {
            mtu: None,
            shuttle: false,
            no_offload: false,
            queues: None,
            host_loopback: false,
            open_host: Vec::new(),
            ipv4_only: false,
            publish: Vec::new(),
            log: LevelFilter::WARN,
            command: Vec::new(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("mtu") => options.mtu = Some(parser.value()?.parse()?),
                Long("shuttle") => options.shuttle = true,
                Long("no-offload") => options.no_offload = true,
                Long("queues") => options.queues = Some(parser.value()?.parse()?),
                Long("host-loopback") => options.host_loopback = true,
                Long("open-host") => options.open_host.push(parser.value()?.parse()?),
                Long("ipv4-only") => options.ipv4_only = true,
                Long("publish") => options.publish.push(parser.value()?.parse()?),
                Long("log") => options.log = parser.value()?.parse()?,
                Short('h') | Long("help") => return Ok(None),
                Value(program) => {
                    options.command.push(program);
                    options.command.extend(parser.raw_args()?);
                }
                Short(_) | Long(_) => return Err(argument.unexpected()),
            }
        }
        Ok(Some(options))
    }

    fn network(&self) -> Result<Network, nsnet::host::BuildError> {
        let mut builder = Network::builder();
        if let Some(mtu) = self.mtu {
            builder = builder.mtu(mtu);
        }
        if self.no_offload {
            builder = builder.offload(Offload::NONE);
        }
        if let Some(queues) = self.queues {
            builder = builder.queues(queues);
        }
        if self.host_loopback {
            builder = builder.host_loopback();
        }
        for ports in &self.open_host {
            builder = builder.open_host(ports.clone());
        }
        if self.ipv4_only {
            builder = builder.ipv4_only();
        }
        self.publish.iter().cloned().fold(builder, NetworkBuilder::publish).build()
    }

    fn command(&self) -> (OsString, &[OsString]) {
        match self.command.split_first() {
            Some((program, arguments)) => (program.clone(), arguments),
            None => (std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()), &[]),
        }
    }
}
