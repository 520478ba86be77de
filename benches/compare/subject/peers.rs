//! What nsnet is compared with.

use std::fs::File;
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nsnet::container::supervise::die_with_parent;

use super::container::Container;
use super::{Instance, Program, entered};
use crate::actor::Actor;
use crate::clock;
use crate::error::{Context, Result};
use crate::role::Role;
use crate::world::{Place, World};

/// A veth pair to the router of the world, which does NAT.
pub(super) fn veth(world: &World, mtu: u16) -> Result<Instance> {
    let router = world.router()?;
    let start = clock::now();
    let actor = Rc::new(Actor::start(&Role::Container(Container::Guest))?);
    let client = Place::of(entered(&actor)?);
    let network = world.next_number()?;
    let number = network.value;
    router.ip(&format!(
        "link add v{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}
        addr add 10.99.{number}.1/24 dev v{number}
        link set v{number} up",
        client.pid
    ))?;
    client.ip(&format!(
        "link set lo up
        addr add 10.99.{number}.2/24 dev eth0
        link set eth0 up
        route add default via 10.99.{number}.1"
    ))?;
    let mut instance = Instance::connected(actor, None, client.pid, Vec::new(), start)?;
    instance.number = Some(network);
    Ok(instance)
}

pub(super) fn slirp4netns(mtu: u16) -> Result<Instance> {
    let start = clock::now();
    let actor = Rc::new(Actor::start(&Role::Container(Container::Guest))?);
    let pid = entered(&actor)?;
    let mut command = Command::new("slirp4netns");
    command.args(["--configure", &format!("--mtu={mtu}"), &pid.to_string(), "tap0"]);
    let program = launch("slirp4netns", command, pid)?;
    let workers = vec![program.child.id()];
    Instance::connected(actor, Some(program), pid, workers, start)
}

pub(super) fn pasta(mtu: u16) -> Result<Instance> {
    let start = clock::now();
    let actor = Rc::new(Actor::start(&Role::Container(Container::Guest))?);
    let pid = entered(&actor)?;
    // It drops the privilege to look at other processes before it opens the namespace: it needs a file.
    let namespace = format!("/run/netns-{pid}");
    File::create(&namespace).context(&namespace)?;
    let link = format!("/proc/{pid}/ns/net");
    mount(Some(link.as_str()), namespace.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("bind the namespace to a file")?;
    let mut command = Command::new("pasta");
    // In the foreground; as the one user that is mapped here; IPv4 as the others; no forwarding of ports. The
    // gateway is the server: without --no-map-gw its address would lead to the host's loopback.
    command.args(["-f", "--runas", "0", "--config-net", "-4", "--no-map-gw"]);
    command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
    command.args(["-m", &mtu.to_string(), "--netns", &namespace]);
    let instance = launch("pasta", command, pid).and_then(|program| {
        let workers = vec![program.child.id()];
        Instance::connected(actor, Some(program), pid, workers, start)
    });
    // The mount would keep the namespace from ending.
    umount2(namespace.as_str(), MntFlags::MNT_DETACH).context("unmount the namespace's file")?;
    instance
}

fn launch(name: &str, mut command: Command, pid: u32) -> Result<Program> {
    let log = format!("/run/{name}-{pid}.log");
    let output = File::create(&log).context(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    die_with_parent(&mut command);
    let child =
        command.spawn().map_err(|error| format!("{name} cannot be started, is it installed? {error}"))?;
    Ok(Program { child, log })
}

/// The first line that `--version` prints.
pub(super) fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
