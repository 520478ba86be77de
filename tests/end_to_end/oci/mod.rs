//! Containers of OCI runtimes, runc(8) and crun(1), rootless: the network put in by the hook `oci-hook` of the bundle, or
//! beforehand into namespaces that the bundle names by path. They see the machine's own programs, read-only.

mod runtime;

use std::fs;
use std::io::Read;
use std::thread;

use serde_json::{Value, json};

use self::runtime::Oci;
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
        let mut request = [0; 6];
        // The connection is open on this side before it is inside.
        connection.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"GET / ");
        oci.delete(&bundle);
        connection.read_to_end(&mut Vec::new()).unwrap();
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
