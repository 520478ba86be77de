use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nsnet_proto::Offload;

use super::*;
use crate::testing::{alone, ends, inside, ip, setup};
use crate::{Loopback, Namespaces, TunDevice};

const OWN: Namespaces = Namespaces::new().user().network();

/// A process in namespaces of its own.
struct Other(Child);

impl Other {
    #[track_caller]
    fn start(namespaces: Namespaces) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; exec sleep 60"]).stdout(Stdio::piped());
        namespaces.enter_on_exec(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

#[track_caller]
fn assert_joined(user: &Path, network: &Path) {
    let link = |path: &Path| path.to_string_lossy().into_owned();
    assert_eq!((own("user"), own("net")), (link(user), link(network)));
}

/// Checks that a device appears where the process is.
#[track_caller]
fn device_can_be_made() {
    let (_host, fd) = ends(&setup(Offload::ALL));
    let mut device = TunDevice::from_fd(fd).unwrap();
    device.configure().unwrap();
    let (status, addresses) = ip("-o addr show");
    assert!(status.success() && addresses.contains("tun0") && addresses.contains("127.0.0.1"), "{addresses}");
    device.hand_over().unwrap();
}

#[test]
fn process_with_a_user_namespace_of_its_own_is_joined_in_both() {
    if !inside(
        Namespaces::new(),
        module_path!(),
        "process_with_a_user_namespace_of_its_own_is_joined_in_both",
    ) {
        return;
    }
    let other = Other::start(OWN);
    let [user, network] = ["user", "net"].map(|kind| fs::read_link(other.namespace(kind)).unwrap());
    alone(|| {
        let target = Target::process(other.pid()).unwrap();
        join(&target).unwrap();
        assert_joined(&user, &network);
        assert!(!nix::sys::prctl::get_dumpable().unwrap(), "root of that namespace could trace this process");
        device_can_be_made();
    });
}

#[test]
fn network_namespace_of_the_callers_own_user_namespace_is_joined() {
    let test = "network_namespace_of_the_callers_own_user_namespace_is_joined";
    if !inside(Namespaces::new().user(), module_path!(), test) {
        return;
    }
    let other = Other::start(Namespaces::new().network());
    let network = fs::read_link(other.namespace("net")).unwrap();
    alone(|| {
        let user = own("user");
        join(&Target::path(other.namespace("net")).unwrap()).unwrap();
        assert_joined(Path::new(&user), &network);
        device_can_be_made();
    });
}

/// As in a container whose user namespace is below the one that owns its network.
#[test]
fn owner_of_the_network_counts_and_not_the_processs_user_namespace() {
    let test = "owner_of_the_network_counts_and_not_the_processs_user_namespace";
    if !inside(OWN, module_path!(), test) {
        return;
    }
    let other = Other::start(Namespaces::new().user());
    alone(|| {
        let (user, network) = (own("user"), own("net"));
        assert_ne!(fs::read_link(other.namespace("user")).unwrap(), Path::new(&user));
        join(&Target::process(other.pid()).unwrap()).unwrap();
        assert_joined(Path::new(&user), Path::new(&network));
        device_can_be_made();
    });
}

#[test]
fn namespace_that_only_a_mount_keeps_is_joined_by_its_path() {
    let test = "namespace_that_only_a_mount_keeps_is_joined_by_its_path";
    if !inside(Namespaces::new().user().mount(), module_path!(), test) {
        return;
    }
    mount(Some("test"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    File::create("/mnt/net").unwrap();
    let mut other = Other::start(OWN);
    let [user, network] = ["user", "net"].map(|kind| fs::read_link(other.namespace(kind)).unwrap());
    let bind = Some(other.namespace("net"));
    mount(bind.as_deref(), "/mnt/net", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    other.end();
    alone(|| {
        join(&Target::path("/mnt/net").unwrap()).unwrap();
        assert_joined(&user, &network);
        device_can_be_made();
    });
}

#[test]
fn namespace_is_passed_on_as_a_file_descriptor() {
    if !inside(Namespaces::new(), module_path!(), "namespace_is_passed_on_as_a_file_descriptor") {
        return;
    }
    let mut other = Other::start(OWN);
    let network = fs::read_link(other.namespace("net")).unwrap();
    let found = Target::process(other.pid()).unwrap();
    other.end();
    alone(|| {
        let passed = Target::from_fd(found.as_fd().try_clone_to_owned().unwrap()).unwrap();
        join(&passed).unwrap();
        assert_eq!(own("net"), network.to_string_lossy());
        device_can_be_made();
    });
}

#[test]
fn process_is_passed_on_as_a_pidfd() {
    if !inside(Namespaces::new(), module_path!(), "process_is_passed_on_as_a_pidfd") {
        return;
    }
    let other = Other::start(OWN);
    let network = fs::read_link(other.namespace("net")).unwrap();
    let found = Target::process(other.pid()).unwrap();
    alone(|| {
        let passed = Target::from_pidfd(found.pidfd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        join(&passed).unwrap();
        assert_eq!(own("net"), network.to_string_lossy());
        device_can_be_made();
    });
}

/// A shell in new namespaces, and the number of its subshell, which never calls execve(2).
#[track_caller]
fn shell_with_subshell(namespaces: Namespaces) -> (Other, u32) {
    let mut command = Command::new("bash");
    command.args(["-c", "(echo $BASHPID; read -r); exit"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    namespaces.enter_on_exec(&mut command);
    let mut shell = Other(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(shell.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let subshell = line.trim().parse().unwrap();
    (shell, subshell)
}

#[test]
fn process_that_was_only_forked_is_still_building_its_sandbox() {
    let (mut shell, subshell) = shell_with_subshell(Namespaces::new());
    let is_building = |pid| is_building_its_sandbox(&sys::pidfd_open(pid).unwrap());
    assert!(is_building(subshell));
    assert!(!is_building(shell.pid()));
    let ended = sys::pidfd_open(shell.pid()).unwrap();
    shell.end();
    assert!(!is_building_its_sandbox(&ended));
}

#[test]
fn loopback_of_a_process_that_builds_its_sandbox_is_waited_for() {
    let test = "loopback_of_a_process_that_builds_its_sandbox_is_waited_for";
    if inside(Namespaces::new(), module_path!(), test) {
        let (_shell, subshell) = shell_with_subshell(OWN);
        alone(|| {
            join(&Target::process(subshell).unwrap()).unwrap();
            assert!(matches!(Loopback::default_here(), Loopback::Wait(_)));
        });
    }
}

#[test]
fn loopback_of_a_running_program_is_not_waited_for() {
    if !inside(Namespaces::new(), module_path!(), "loopback_of_a_running_program_is_not_waited_for") {
        return;
    }
    let other = Other::start(OWN);
    alone(|| {
        join(&Target::process(other.pid()).unwrap()).unwrap();
        assert_eq!(Loopback::default_here(), Loopback::BringUp);
    });
}

#[test]
fn pidfd_tells_the_end_of_the_process() {
    let mut other = Other::start(Namespaces::new());
    let target = Target::process(other.pid()).unwrap();
    let is_readable = || {
        let mut fds = [PollFd::new(target.pidfd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!is_readable());
    other.end();
    assert!(is_readable());
    assert!(Target::path("/proc/thread-self/ns/net").unwrap().pidfd().is_none());
}

#[track_caller]
fn assert_says(result: Result<impl std::fmt::Debug, Error>, texts: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(texts.iter().all(|text| error.contains(text)), "{error}");
}

#[test]
fn process_that_has_ended_is_named() {
    let mut other = Other::start(Namespaces::new());
    let pid = other.pid();
    other.0.kill().unwrap();
    // Not reaped yet: it still has a number, but no namespaces.
    while !has_ended(&sys::pidfd_open(pid).unwrap()) {
        std::thread::yield_now();
    }
    assert_says(Target::process(pid), &[&format!("process {pid}"), "has ended"]);
    other.0.wait().unwrap();
    assert_says(Target::process(pid), &[&format!("find process {pid}"), "may have ended"]);
}

#[test]
fn process_of_another_user_is_told_from_one_that_is_missing() {
    let test = "process_of_another_user_is_told_from_one_that_is_missing";
    if inside(Namespaces::new().user(), module_path!(), test) {
        let outside = std::os::unix::process::parent_id();
        assert_says(Target::process(outside), &["Permission denied", "belongs to another user"]);
        assert_says(Target::path(format!("/proc/{outside}/ns/net")), &["belongs to another user"]);
    }
}

#[test]
fn number_that_is_no_process_is_named() {
    assert_says(Target::process(0), &["find process 0", "no number of a process"]);
}

#[test]
fn what_is_no_network_namespace_is_named() {
    assert_says(Target::path("/etc/passwd"), &["/etc/passwd", "no namespace"]);
    assert_says(Target::path("/proc/self/ns/mnt"), &["/proc/self/ns/mnt", "another kind", "CLONE_NEWNS"]);
    assert_says(Target::path("/no/such/file"), &["open the network namespace /no/such/file: No such file"]);
    assert_says(Target::from_fd(File::open("/dev/null").unwrap()), &["file descriptor", "no namespace"]);
    assert_says(Target::from_pidfd(File::open("/dev/null").unwrap()), &["file descriptor", "pass a pidfd"]);
}

#[test]
fn fifo_in_the_place_of_a_namespace_does_not_block() {
    let path = std::env::temp_dir().join(format!("nsnet-join-fifo-{}", std::process::id()));
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let result = Target::path(&path);
    fs::remove_file(&path).unwrap();
    assert_says(result, &["no namespace"]);
}

#[test]
fn process_with_threads_is_refused() {
    let (_hold, release) = std::sync::mpsc::channel::<()>();
    let _thread = std::thread::spawn(move || release.recv());
    assert_says(join(&Target::path("/proc/thread-self/ns/net").unwrap()), &["several threads"]);
}

/// With or without privileges. If the namespace is the host's own, the device's error says so.
#[test]
fn callers_own_namespace_is_joined_already() {
    if inside(Namespaces::new(), module_path!(), "callers_own_namespace_is_joined_already") {
        alone(|| {
            let before = [own("user"), own("net")];
            join(&Target::path("/proc/thread-self/ns/net").unwrap()).unwrap();
            assert_eq!([own("user"), own("net")], before);
        });
    }
}

/// The network namespace outside belongs to the user namespace outside.
#[test]
fn namespace_of_the_world_outside_cannot_be_joined() {
    let test = "namespace_of_the_world_outside_cannot_be_joined";
    if !inside(Namespaces::new().user(), module_path!(), test) {
        return;
    }
    alone(|| {
        let outside = Target::path("/proc/thread-self/ns/net").unwrap();
        assert_says(
            join(&outside),
            &["find the user namespace that owns", "outside of this process's user namespace"],
        );
    });
}
