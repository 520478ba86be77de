//! The runtimes as users run them, and the smallest bundles that both take.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::world::{Traces, World};

/// A runtime, and a directory for its containers.
pub(super) struct Oci {
    pub(super) runtime: &'static str,
    pub(super) directory: PathBuf,
}

impl Oci {
    pub(super) fn new(world: &World, runtime: &'static str) -> Self {
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
    pub(super) fn bundle(&self, name: &str, namespaces: Value, hooks: Value, script: &str) -> PathBuf {
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
    pub(super) fn run(&self, bundle: &Path) -> Output {
        self.command(&["run"], bundle).output().unwrap()
    }

    /// Runs a command that leaves a container behind.
    #[track_caller]
    pub(super) fn detached(&self, words: &[&str], bundle: &Path) -> bool {
        self.command(words, bundle).stdout(Stdio::null()).status().unwrap().success()
    }

    #[track_caller]
    pub(super) fn delete(&self, bundle: &Path) {
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
    pub(super) fn traces(&self) -> (Traces, Vec<PathBuf>) {
        fs::create_dir_all(self.directory.join("state")).unwrap();
        (Traces::now(), files(&self.directory))
    }

    #[track_caller]
    pub(super) fn assert_same(&self, before: &(Traces, Vec<PathBuf>)) {
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
