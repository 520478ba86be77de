//! Containers of OCI runtimes, runc(8) and crun(1), rootless: the network put in by the hook `oci-hook` of the bundle, or
//! beforehand into namespaces that the bundle names by path. They see the machine's own programs, read-only.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::join::{Other, assert_failure, assert_success, hook};
use crate::world::{SERVER, Traces, World, accept, example, once, server};

once! {
    network_by_hook,
    network_by_path,
    two_containers_by_hook_at_the_same_time,
    hook_that_fails_fails_the_creation,
    container_that_never_starts_leaves_nothing,
    killed_container_leaves_nothing,
}

const RUNTIMES: [&str; 2] = ["runc", "crun"];

fn network_by_hook(world: &World) {
    let page = fetching(world);
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let bundle = oci.bundle("by-hook", own_namespaces(), by_hook(&[]), &page);
        let output = oci.run(&bundle);
        assert_success(&output);
        assert_eq!(String::from_utf8_lossy(&output.stdout), PAGES);
        fs::remove_dir_all(bundle).unwrap();
        oci.assert_same(&before);
    }
}

/// One container after the other uses the namespaces of a process that has been given a network.
fn network_by_path(world: &World) {
    let page = fetching(world);
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let other = Other::start(&["-Urn"]);
        assert_success(&hook(other.pid(), &[]));
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", other.pid());
        let namespaces = json!([
            { "type": "user", "path": path("user") }, { "type": "network", "path": path("net") },
        ]);
        for name in ["first", "second"] {
            let bundle = oci.bundle(name, namespaces.clone(), json!({}), &page);
            let output = oci.run(&bundle);
            assert_success(&output);
            assert_eq!(String::from_utf8_lossy(&output.stdout), PAGES);
            fs::remove_dir_all(bundle).unwrap();
        }
        drop(other);
        oci.assert_same(&before);
    }
}

fn two_containers_by_hook_at_the_same_time(world: &World) {
    let page = fetching(world);
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let bundles = ["one", "other"].map(|name| oci.bundle(name, own_namespaces(), by_hook(&[]), &page));
        thread::scope(|scope| {
            let running = bundles.each_ref().map(|bundle| scope.spawn(|| oci.run(bundle)));
            for output in running.map(|container| container.join().unwrap()) {
                assert_success(&output);
                assert_eq!(String::from_utf8_lossy(&output.stdout), PAGES);
            }
        });
        for bundle in bundles {
            fs::remove_dir_all(bundle).unwrap();
        }
        oci.assert_same(&before);
    }
}

/// crun shows no word of what a hook says, so that the log has to.
fn hook_that_fails_fails_the_creation(world: &World) {
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let log = oci.directory.join("log");
        let hooks = by_hook(&["--log", log.to_str().unwrap()]);
        // Without a network namespace of its own.
        let bundle = oci.bundle("failing", json!([]), hooks, "echo started");
        let output = oci.run(&bundle);
        assert_failure(&output, &["hook"]);
        assert!(output.stdout.is_empty(), "the container was started");
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("this is the host's own"), "{said}");
        if oci.runtime == "runc" {
            assert_failure(&output, &["oci-hook: ", "this is the host's own"]);
        }
        fs::remove_file(log).unwrap();
        fs::remove_dir_all(bundle).unwrap();
        oci.assert_same(&before);
    }
}

fn container_that_never_starts_leaves_nothing(world: &World) {
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let bundle = oci.bundle("created", own_namespaces(), by_hook(&[]), "echo started");
        assert!(oci.detached(&["create"], &bundle));
        assert_ne!(Traces::now(), before.0, "there is neither a container nor a network");
        oci.delete(&bundle);
        oci.assert_same(&before);
    }
}

/// With a connection open: its server sees the end.
fn killed_container_leaves_nothing(world: &World) {
    for oci in RUNTIMES.into_iter().map(|runtime| Oci::new(world, runtime)) {
        let before = oci.traces();
        let listener = world.listen(SERVER[0]);
        let script = format!("exec curl -sS http://{}/", listener.local_addr().unwrap());
        let bundle = oci.bundle("killed", own_namespaces(), by_hook(&[]), &script);
        assert!(oci.detached(&["run", "--detach"], &bundle));
        let mut connection = accept(&listener);
        oci.delete(&bundle);
        let mut request = Vec::new();
        assert!(connection.read_to_end(&mut request).is_ok() && request.starts_with(b"GET / "));
        oci.assert_same(&before);
    }
}

/// What a container that runs the script of [`fetching`] prints.
const PAGES: &str = "a page\na page\n0 1 2\n";

/// A script that fetches a page over IPv4 and over IPv6, and lists the file descriptors it was started with.
fn fetching(world: &World) -> String {
    let urls = SERVER.map(|address| {
        let server = server::http(world.listen(address), "a page\n");
        format!("http://{server}/")
    });
    // A shell's own are not below 10, and what it expands does not open one.
    let list = "for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$fd ] || set -- $@ $fd; done; echo $@";
    format!("set -e; curl -sS -m 10 {}; {list}", urls.join(" "))
}

fn own_namespaces() -> Value {
    json!([{ "type": "user" }, { "type": "network" }])
}

fn by_hook(options: &[&str]) -> Value {
    let args: Vec<_> = ["oci-hook"].iter().chain(options).collect();
    json!({ "createRuntime": [{ "path": example("oci-hook"), "args": args, "timeout": 15 }] })
}

/// A runtime, and a directory for its containers.
struct Oci {
    runtime: &'static str,
    directory: PathBuf,
}

impl Oci {
    fn new(world: &World, runtime: &'static str) -> Self {
        let directory = world.scratch();
        if runtime == "crun" {
            // It gives up where both versions of cgroups are mounted, also if told to leave them alone.
            mount::<_, _, _, str>(Some("none"), CGROUPS, Some("tmpfs"), MsFlags::empty(), None).unwrap();
        } else {
            protect_cgroups();
        }
        Self { runtime, directory }
    }

    /// A container's bundle, named as the container will be.
    fn bundle(&self, name: &str, namespaces: Value, hooks: Value, script: &str) -> PathBuf {
        let bundle = self.directory.join(name);
        let root = bundle.join("rootfs");
        for directory in ["dev", "proc"].into_iter().chain(PROGRAMS.into_iter().filter(|name| !is_link(name)))
        {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for link in PROGRAMS.into_iter().filter(|name| is_link(name)) {
            symlink(fs::read_link(Path::new("/").join(link)).unwrap(), root.join(link)).unwrap();
        }
        fs::write(bundle.join("config.json"), config(namespaces, hooks, script).to_string()).unwrap();
        bundle
    }

    /// Runs a container to its end.
    #[track_caller]
    fn run(&self, bundle: &Path) -> Output {
        self.command(&["run"], bundle).output().unwrap()
    }

    /// Runs a command that leaves a container behind.
    #[track_caller]
    fn detached(&self, words: &[&str], bundle: &Path) -> bool {
        self.command(words, bundle).stdout(Stdio::null()).status().unwrap().success()
    }

    #[track_caller]
    fn delete(&self, bundle: &Path) {
        let name = bundle.file_name().unwrap();
        assert!(self.program().args(["delete", "--force"]).arg(name).status().unwrap().success());
        fs::remove_dir_all(bundle).unwrap();
    }

    fn command(&self, words: &[&str], bundle: &Path) -> Command {
        let mut command = self.program();
        command.args(words).arg("--bundle").arg(bundle).arg(bundle.file_name().unwrap());
        command
    }

    fn program(&self) -> Command {
        let mut command = Command::new(self.runtime);
        if self.runtime == "crun" {
            command.arg("--cgroup-manager=disabled");
        }
        let state = self.directory.join("state");
        command.arg("--root").arg(&state).env("XDG_RUNTIME_DIR", state).stdin(Stdio::null());
        command
    }

    /// What there is, the runtime's own files included.
    fn traces(&self) -> (Traces, Vec<PathBuf>) {
        fs::create_dir_all(self.directory.join("state")).unwrap();
        (Traces::now(), files(&self.directory))
    }

    #[track_caller]
    fn assert_same(&self, before: &(Traces, Vec<PathBuf>)) {
        before.0.assert_same();
        assert_eq!(files(&self.directory), before.1);
    }
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// Makes the machine's cgroups read-only in this world. runc goes on without any then, as it does for users who cannot
/// write there; run by root it would make some, which would be left if a test failed.
#[track_caller]
fn protect_cgroups() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for mounted in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
        let (path, options) = (mounted[4], mounted[5]);
        if path.starts_with(CGROUPS) {
            // A user namespace cannot take away the flags of a mount it has inherited.
            let kept = options.split(',').map(|option| match option {
                "nosuid" => MsFlags::MS_NOSUID,
                "nodev" => MsFlags::MS_NODEV,
                "noexec" => MsFlags::MS_NOEXEC,
                "noatime" => MsFlags::MS_NOATIME,
                "relatime" => MsFlags::MS_RELATIME,
                _ => MsFlags::empty(),
            });
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept.collect();
            mount::<str, _, str, str>(None, path, None, flags, None).unwrap();
        }
    }
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut found: Vec<_> = entries
        .flat_map(|entry| {
            let below = if entry.file_type().unwrap().is_dir() { files(&entry.path()) } else { Vec::new() };
            std::iter::once(entry.path()).chain(below)
        })
        .collect();
    found.sort();
    found
}

/// Where programs and their libraries are. All but the last are links into that on most machines.
const PROGRAMS: [&str; 4] = ["bin", "lib", "lib64", "usr"];

fn is_link(name: &str) -> bool {
    Path::new("/").join(name).is_symlink()
}

/// As small as config.json can be for both runtimes, see config.md of the OCI runtime specification.
fn config(namespaces: Value, hooks: Value, script: &str) -> Value {
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let mut all = json!([{ "type": "pid" }, { "type": "mount" }]);
    all.as_array_mut().unwrap().extend(namespaces.as_array().unwrap().iter().cloned());
    let is_user = |namespace: &Value| namespace["type"] == "user";
    let has_user = all.as_array().unwrap().iter().any(is_user);
    let mut linux = json!({ "namespaces": all });
    if has_user {
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
    ];
    mounts.extend(PROGRAMS.iter().filter(|name| !is_link(name)).map(|name| {
        let path = format!("/{name}");
        json!({ "destination": path, "type": "none", "source": path, "options": ["rbind", "ro"] })
    }));
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"],
            "args": ["/bin/sh", "-c", script],
            "noNewPrivileges": true,
        },
        "mounts": mounts,
        "hooks": hooks,
        "linux": linux,
    })
}
