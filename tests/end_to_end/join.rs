//! A network for namespaces that somebody else has made, here unshare(1), by the example `oci-hook`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::world::{GATEWAY, SERVER, Traces, World, example, once, output, server};

once! {
    page_is_fetched_and_the_interface_is_as_always,
    network_ends_with_the_process_and_leaves_nothing,
    hook_lets_go_of_the_files_it_was_started_with,
    second_network_in_one_namespace_is_refused,
    obstacles_are_named_and_leave_nothing,
    kill_at_any_time_leaves_nothing [120],
    help_says_what_there_is,
}

/// Also where nobody is root inside, and in a namespace of the user namespace outside.
fn page_is_fetched_and_the_interface_is_as_always(world: &World) {
    for options in [&["-Urn"][..], &["-Un"], &["-n"]] {
        let other = Other::start(options);
        assert_success(&hook(other.pid(), &[]));
        for address in SERVER {
            let server = server::http(world.listen(address), "a page\n");
            let url = format!("http://{server}/");
            assert_eq!(output(other.command("curl").args(["-sS", "-m", "10", &url])), "a page\n");
        }
        let shown = output(other.command("ip").args(["-br", "address"]));
        for expected in ["10.0.2.100/24", "fd00::100/64", "127.0.0.1/8"] {
            assert!(shown.contains(expected), "{options:?}: {expected} is not in\n{shown}");
        }
        let routes = output(other.command("ip").args(["route"]));
        assert!(routes.contains(&format!("default via {}", GATEWAY[0])), "{routes}");
    }
}

fn network_ends_with_the_process_and_leaves_nothing(_: &World) {
    let before = Traces::now();
    let other = Other::start(&["-Urn"]);
    assert_success(&hook(other.pid(), &["--host-loopback"]));
    assert_ne!(Traces::now(), before, "nobody serves the network");
    drop(other);
    before.assert_same();
}

/// A runtime waits for the end of the pipes that it gives to a hook, and for those that it lets it inherit by mistake.
fn hook_lets_go_of_the_files_it_was_started_with(_: &World) {
    let other = Other::start(&["-Urn"]);
    let script = format!("exec '{}' 7>&1", example("oci-hook").display());
    let output = feed(Command::new("sh").args(["-c", &script]), &state(other.pid()));
    // So they are all closed, and the network is there still.
    assert_success(&output);
    assert!(
        other.command("ip").args(["link", "show", "tun0"]).stdout(Stdio::null()).status().unwrap().success()
    );
}

fn second_network_in_one_namespace_is_refused(world: &World) {
    let other = Other::start(&["-Urn"]);
    assert_success(&hook(other.pid(), &[]));
    assert_failure(&hook(other.pid(), &[]), &["create the TUN device", "may be taken"]);
    let server = server::http(world.listen(SERVER[0]), "a page\n");
    let url = format!("http://{server}/");
    assert_eq!(output(other.command("curl").args(["-sS", "-m", "10", &url])), "a page\n");
}

fn obstacles_are_named_and_leave_nothing(_: &World) {
    let before = Traces::now();
    let mut ended = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    ended.wait().unwrap();
    assert_failure(&hook(ended.id(), &[]), &["find process", "No such process"]);
    assert_failure(&hook(std::process::id(), &[]), &["this is the host's own"]);
    assert_failure(&hook(0, &[]), &["find process 0"]);
    assert_failure(&feed(&mut Command::new(example("oci-hook")), "{}"), &["read the state", "`pid`"]);
    let log = ["--log", "/no/such/directory/log"];
    assert_failure(&hook(std::process::id(), &log), &["/no/such/directory/log", "No such file"]);
    before.assert_same();
}

/// The hook, or the process it works for.
fn kill_at_any_time_leaves_nothing(_: &World) {
    let before = Traces::now();
    for delay in (0..16).map(Duration::from_millis) {
        for kills_hook in [true, false] {
            let mut other = Other::start(&["-Urn"]);
            let mut hook = Command::new(example("oci-hook"))
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            hook.stdin.take().unwrap().write_all(state(other.pid()).as_bytes()).unwrap();
            thread::sleep(delay);
            let victim = if kills_hook { &mut hook } else { &mut other.child };
            victim.kill().unwrap();
            hook.wait().unwrap();
            // A runtime ends a container whose hook has failed.
            drop(other);
        }
    }
    before.assert_same();

    // Before it has read the state: the process it works for is then unknown, and lives on.
    let _other = Other::start(&["-Urn"]);
    let before = Traces::now();
    let mut hook = Command::new(example("oci-hook")).stdin(Stdio::piped()).spawn().unwrap();
    let _stdin = hook.stdin.take();
    thread::sleep(Duration::from_millis(20));
    hook.kill().unwrap();
    hook.wait().unwrap();
    before.assert_same();
}

fn help_says_what_there_is(_: &World) {
    let help = output(Command::new(example("oci-hook")).arg("--help"));
    for expected in ["createRuntime", "STATE", "--host-loopback", "--log"] {
        assert!(help.contains(expected), "{expected} is not in\n{help}");
    }
}

/// A process in namespaces that unshare(1) has made for it.
pub(crate) struct Other {
    child: Child,
    options: Vec<String>,
}

impl Other {
    #[track_caller]
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(options).args(["sh", "-c", "echo ready; exec sleep 600"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, options: options.iter().map(ToString::to_string).collect() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command that will run in the namespaces.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "--preserve-credentials", "-n"]);
        if self.options.iter().any(|option| option.contains('U')) {
            command.arg("-U");
        }
        command.args(["--", program]);
        command
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the runtime writes, as far as it is read.
fn state(pid: u32) -> String {
    format!("{{\"ociVersion\": \"1.0.2\", \"id\": \"test\", \"status\": \"creating\", \"pid\": {pid}}}")
}

/// Runs the hook as a runtime would.
#[track_caller]
pub(crate) fn hook(pid: u32, options: &[&str]) -> Output {
    feed(Command::new(example("oci-hook")).args(options), &state(pid))
}

/// Runs a command to the end of its output.
#[track_caller]
fn feed(command: &mut Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // What the command does not want to read is none of its mistakes.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
pub(crate) fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
pub(crate) fn assert_failure(output: &Output, texts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(texts.iter().all(|text| said.contains(text)), "{texts:?} is not in\n{said}");
}
