//! Namespaces and what lies between them.
//!
//! The host's own namespace, in which the orchestrator and the subjects run, is joined to the server's by a veth pair with
//! MTU 1500 and the kernel's own offloads. The veth subject passes through a router namespace of its own, so that the
//! connection tracking which its NAT needs does not slow the others down.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nsnet::container::namespace::mount_proc;

use crate::actor::Actor;
use crate::error::{Context, Result};
use crate::role::Role;
use crate::subject::container::{Container, adjust_namespace};
use crate::traffic::{Server, Traffic};

/// The server's address, as every subject's client sees it.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));

/// Where the server answers the first connection of each container.
pub(crate) const PROBE_PORT: u16 = 9;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) server: Place,
    router: std::result::Result<Place, String>,
    _probe: Actor,
    /// The first to be tried for the next network.
    number: Cell<u8>,
    in_use: Rc<RefCell<BTreeSet<u8>>>,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        mount_proc()?;
        mount(Some("compare"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .context("mount a tmpfs at /run")?;
        adjust_namespace()?;
        let (host, server) = (Place::of(std::process::id()), Place::new()?);
        host.ip(&format!(
            "link set lo up
            link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}
            addr add 10.99.0.1/24 dev eth0
            link set eth0 up",
            server.pid
        ))?;
        server.ip("link set lo up
            addr add 10.99.0.2/24 dev eth0
            link set eth0 up")?;
        // The peers look for a default route.
        host.ip("route add default via 10.99.0.2")?;
        let probe = Actor::start(&Role::Server(Server { namespace: server.pid, traffic: Traffic::Probe }))?;
        probe.ready(PATIENCE).context("start the probe's server")?;
        let router = router(&server).map_err(|error| error.to_string());
        Ok(Self { server, router, _probe: probe, number: Cell::new(FIRST_NUMBER), in_use: Rc::default() })
    }

    pub(crate) fn router(&self) -> Result<&Place> {
        self.router.as_ref().map_err(|reason| reason.clone().into())
    }

    /// A number for a new network, 10.99.number.0/24.
    pub(crate) fn next_number(&self) -> Result<Number> {
        // In turns, so that the network that had it before has had time to end.
        let in_turn = (FIRST_NUMBER..=u8::MAX).cycle().skip_while(|number| *number != self.number.get());
        let mut in_use = self.in_use.borrow_mut();
        let every_one = usize::from(u8::MAX - FIRST_NUMBER) + 1;
        let free = in_turn.take(every_one).find(|number| in_use.insert(*number));
        let value = free.ok_or("every network number of the benchmark is in use")?;
        self.number.set(value.checked_add(1).unwrap_or(FIRST_NUMBER));
        Ok(Number { value, in_use: Rc::clone(&self.in_use) })
    }
}

/// After those of the world itself.
const FIRST_NUMBER: u8 = 2;

/// The number of a network, which another may have when this handle ends.
#[derive(Debug)]
pub(crate) struct Number {
    pub(crate) value: u8,
    in_use: Rc<RefCell<BTreeSet<u8>>>,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.in_use.borrow_mut().remove(&self.value);
    }
}

fn router(server: &Place) -> Result<Place> {
    let router = Place::new()?;
    router.ip(&format!(
        "link set lo up
        link add eth0 mtu 1500 type veth peer name eth1 mtu 1500 netns {}
        addr add 10.99.1.2/24 dev eth0
        link set eth0 up",
        server.pid
    ))?;
    server.ip("addr add 10.99.1.1/24 dev eth1
        link set eth1 up")?;
    router.ip("route add 10.99.0.2 via 10.99.1.1")?;
    router.feed(
        "nft",
        &["-f", "-"],
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"eth0\" masquerade; }; }",
    )?;
    // Forwarding, and room for the connections of this benchmark: closed ones would fill the table for two minutes.
    let script = "echo 1 >/proc/sys/net/ipv4/ip_forward
        echo 1 >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    router.feed("sh", &["-e"], script)?;
    Ok(router)
}

/// A network namespace, by a process in it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) pid: u32,
    _holder: Option<Actor>,
}

impl Place {
    fn new() -> Result<Self> {
        let holder = Actor::start(&Role::Container(Container::Place))?;
        Ok(Self { pid: holder.entered(PATIENCE)?, _holder: Some(holder) })
    }

    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, _holder: None }
    }

    /// Runs commands of ip(8) inside.
    pub(crate) fn ip(&self, script: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], script)
    }

    /// Runs a program inside, with `input` on its stdin.
    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("nsenter (Debian package util-linux)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} failed in a namespace of the benchmark: {}", said.trim()).into())
    }
}
