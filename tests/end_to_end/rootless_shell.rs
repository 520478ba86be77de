//! The example `rootless-shell` as its users see it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{
    Carriage, GATEWAY, SERVER, Traces, World, accept, dns_sockets, example, in_both_carriages, once, output,
    server, within,
};

in_both_carriages! {
    page_from_outside_is_fetched_inside,
    exit_status_is_the_commands,
    death_by_a_signal_is_128_and_its_number,
    signals_are_passed_on,
    input_reaches_the_command,
    resolv_conf_names_the_dns_address,
    resolver_on_the_hosts_loopback_is_used,
    host_loopback_is_closed_unless_asked_for,
    mtu_is_as_asked_for,
    ipv4_only_has_no_ipv6,
    command_sees_its_own_processes_only,
    what_was_sent_before_the_end_arrives,
    nothing_is_left_behind,
    nothing_is_left_behind_by_a_kill,
}

once! {
    help_says_what_there_is,
    unknown_option_is_refused,
    an_error_is_printed_with_its_cause_and_once,
    command_not_found_is_127,
    command_not_executable_is_126,
}

fn page_from_outside_is_fetched_inside(world: &World) {
    for address in SERVER {
        let server = server::http(world.listen(address), "a page\n");
        assert_eq!(
            output(shell(world).args(["curl", "-sS", "-m", "10"]).arg(format!("http://{server}/"))),
            "a page\n"
        );
    }
}

/// More than fits the buffers on the way to a server that takes its time, and little that is over at once.
fn what_was_sent_before_the_end_arrives(world: &World) {
    for (length, pause) in [(1_500_000, Duration::from_secs(1)), (6, Duration::ZERO), (6, Duration::ZERO)] {
        let listener = world.listen(SERVER[0]);
        let address = listener.local_addr().unwrap();
        let script = format!("head -c {length} /dev/zero >/dev/tcp/{}/{}", address.ip(), address.port());
        let server = thread::spawn(move || {
            let mut stream = accept(&listener);
            thread::sleep(pause);
            let mut received = Vec::new();
            stream.read_to_end(&mut received).map(|_| received.len())
        });
        let status = shell(world).args(["bash", "-c", &script]).status().unwrap();
        assert_eq!(status.code(), Some(0));
        assert_eq!(server.join().unwrap().unwrap(), length);
    }
}

fn exit_status_is_the_commands(world: &World) {
    for code in [0, 7, 255] {
        let status = shell(world).args(["sh", "-c", &format!("exit {code}")]).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

fn death_by_a_signal_is_128_and_its_number(world: &World) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let script = format!("kill -{} $$", signal as i32);
        let status = shell(world).args(["sh", "-c", &script]).status().unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32));
    }
}

fn signals_are_passed_on(world: &World) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let script = format!("trap 'exit 42' {}; echo ready; while :; do sleep 0.1; done", signal as i32);
        let mut child = spawn_ready(shell(world).args(["sh", "-c", &script]));
        kill(pid(&child), signal).unwrap();
        assert_eq!(within(Duration::from_secs(5), || child.wait()).unwrap().code(), Some(42));
    }
}

fn input_reaches_the_command(world: &World) {
    let mut child = shell(world).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello");
    assert!(child.wait().unwrap().success());
}

fn resolv_conf_names_the_dns_address(world: &World) {
    let before = fs::read_to_string("/etc/resolv.conf").unwrap();
    let inside = output(shell(world).args(["cat", "/etc/resolv.conf"]));
    let servers: Vec<_> = inside.lines().filter(|line| line.starts_with("nameserver")).collect();
    assert!(servers.contains(&"nameserver 10.0.2.3"), "{inside}");
    assert!(
        servers.iter().all(|line| ["nameserver 10.0.2.3", "nameserver fd00::3"].contains(line)),
        "{inside}"
    );
    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), before, "the host's own has changed");
}

fn resolver_on_the_hosts_loopback_is_used(world: &World) {
    let answer = Ipv4Addr::new(203, 0, 113, 7);
    server::dns(dns_sockets([127, 0, 0, 53].into()), answer);
    let resolv_conf = world.scratch().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.53\noptions edns0 trust-ad\n").unwrap();
    mount::<_, _, str, str>(Some(&resolv_conf), "/etc/resolv.conf", None, MsFlags::MS_BIND, None).unwrap();
    assert_eq!(output(shell(world).args(["dig", "+short", "name.test"])).trim(), answer.to_string());
    assert_eq!(output(shell(world).args(["dig", "+tcp", "+short", "name.test"])).trim(), answer.to_string());
}

fn host_loopback_is_closed_unless_asked_for(world: &World) {
    let server = server::http(TcpListener::bind("127.0.0.1:0").unwrap(), "private\n");
    let url = format!("http://{}:{}/", GATEWAY[0], server.port());
    let fetch = ["curl", "-sS", "-m", "10", &url];
    let status = shell(world).args(fetch).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(7), "CURLE_COULDNT_CONNECT");
    assert_eq!(output(options(world, &["--host-loopback"]).args(fetch)), "private\n");
}

fn mtu_is_as_asked_for(world: &World) {
    let link = output(options(world, &["--mtu", "1400"]).args(["ip", "-o", "link", "show", "tun0"]));
    assert!(link.contains("mtu 1400"), "{link}");
}

fn ipv4_only_has_no_ipv6(world: &World) {
    let show = ["ip", "-o", "-6", "addr", "show", "dev", "tun0", "scope", "global"];
    assert!(output(shell(world).args(show)).contains("fd00::100"));
    assert_eq!(output(options(world, &["--ipv4-only"]).args(show)), "");
    let resolv_conf = output(options(world, &["--ipv4-only"]).args(["cat", "/etc/resolv.conf"]));
    assert!(!resolv_conf.contains("fd00"), "{resolv_conf}");
}

fn command_sees_its_own_processes_only(world: &World) {
    let seen = output(shell(world).args(["sh", "-c", "echo /proc/[0-9]*"]));
    let count = seen.split_whitespace().count();
    assert!((1..=3).contains(&count), "{seen}");
}

fn nothing_is_left_behind(world: &World) {
    let before = Traces::now();
    assert!(shell(world).args(["sh", "-c", "sleep 60 & true"]).status().unwrap().success());
    before.assert_same();
}

fn nothing_is_left_behind_by_a_kill(world: &World) {
    let before = Traces::now();
    let mut child = spawn_ready(shell(world).args(["sh", "-c", "sleep 60 & echo ready; sleep 60"]));
    child.kill().unwrap();
    child.wait().unwrap();
    before.assert_same();
}

fn help_says_what_there_is(world: &World) {
    let help = output(&mut options(world, &["--help"]));
    for option in ["--mtu", "--shuttle", "--no-offload", "--host-loopback", "--ipv4-only", "--log", "COMMAND"]
    {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }
}

fn unknown_option_is_refused(_: &World) {
    let output = Command::new(example("rootless-shell")).arg("--frobnicate").output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--frobnicate"), "{said}");
}

fn an_error_is_printed_with_its_cause_and_once(world: &World) {
    for (arguments, expected) in [
        (
            ["--open-host", "224.0.0.1", "true"],
            "rootless-shell: open 224.0.0.1 of the host: 224.0.0.1 cannot be opened: use 127.0.0.1, ::1, or a unicast address \
             of one of the host's interfaces\n",
        ),
        (
            ["--publish", "/nowhere/api.sock:80", "true"],
            "rootless-shell: listen on /nowhere/api.sock (the directory must exist and be writable, the path have at \
             most 107 bytes): No such file or directory (os error 2)\n",
        ),
    ] {
        let output = options(world, &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    }
}

fn command_not_found_is_127(world: &World) {
    let output = shell(world).arg("no-such-command").output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no-such-command"), "{said}");
}

fn command_not_executable_is_126(world: &World) {
    assert_eq!(shell(world).arg("/etc/passwd").stderr(Stdio::null()).status().unwrap().code(), Some(126));
}

/// `rootless-shell … --`, in the carriage under test.
fn shell(world: &World) -> Command {
    let mut command = options(world, &[]);
    command.arg("--");
    command
}

/// `rootless-shell` with options, in the carriage under test.
fn options(world: &World, options: &[&str]) -> Command {
    let mut command = Command::new(example("rootless-shell"));
    if world.carriage() == Carriage::Shuttled {
        command.arg("--shuttle");
    }
    command.args(options).stdin(Stdio::null());
    command
}

/// Starts a command and waits until it has said so.
#[track_caller]
fn spawn_ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}
