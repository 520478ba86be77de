//! What is compared: ways to give a namespace a network.

pub(crate) mod container;
pub(crate) mod nsnet;
mod peers;

use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::catalogue::MTU;
use crate::clock;
use crate::error::{Context, Result};
use crate::proc;
use crate::world::{Number, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// What root would do: the measure of the others.
    Veth,
    /// The fd handed over, every offload.
    Nsnet,
    NsnetPlain,
    NsnetShuttled,
    NsnetShuttledPlain,
    Slirp4netns,
    Pasta,
}

impl Subject {
    pub(crate) const ALL: [Self; 7] = [
        Self::Veth,
        Self::Nsnet,
        Self::NsnetPlain,
        Self::NsnetShuttled,
        Self::NsnetShuttledPlain,
        Self::Slirp4netns,
        Self::Pasta,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Nsnet => "nsnet",
            Self::NsnetPlain => "nsnet-plain",
            Self::NsnetShuttled => "nsnet-shuttled",
            Self::NsnetShuttledPlain => "nsnet-shuttled-plain",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }

    pub(crate) fn is_nsnet(self) -> bool {
        match self {
            Self::Nsnet | Self::NsnetPlain | Self::NsnetShuttled | Self::NsnetShuttledPlain => true,
            Self::Veth | Self::Slirp4netns | Self::Pasta => false,
        }
    }

    /// What it says about its version.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::Slirp4netns => peers::version("slirp4netns"),
            Self::Pasta => peers::version("pasta"),
            Self::Nsnet | Self::NsnetPlain | Self::NsnetShuttled | Self::NsnetShuttledPlain => {
                Some(env!("CARGO_PKG_VERSION").into())
            }
            Self::Veth => None,
        }
    }

    /// Makes a client namespace with this network.
    pub(crate) fn start(self, world: &World, mtu: u16) -> Result<Instance> {
        match self {
            Self::Veth => peers::veth(world, mtu),
            Self::Nsnet | Self::NsnetPlain | Self::NsnetShuttled | Self::NsnetShuttledPlain => {
                nsnet::start(self.mode(mtu))
            }
            Self::Slirp4netns => peers::slirp4netns(mtu),
            Self::Pasta => peers::pasta(mtu),
        }
    }

    /// Makes another client namespace beside that of `first`. `None` where the subject has nothing that is so near.
    pub(crate) fn join(
        self,
        world: &World,
        first: &Instance,
        nearness: Nearness,
    ) -> Result<Option<Instance>> {
        if self.is_nsnet() {
            return nsnet::attach(self.mode(MTU), &first.actor, nearness).map(Some);
        }
        match nearness {
            Nearness::Network => self.start(world, MTU).map(Some),
            Nearness::Process => Ok(None),
        }
    }

    fn mode(self, mtu: u16) -> nsnet::Host {
        nsnet::Host {
            mtu,
            offload: !matches!(self, Self::NsnetPlain | Self::NsnetShuttledPlain),
            shuttle: matches!(self, Self::NsnetShuttled | Self::NsnetShuttledPlain),
        }
    }
}

/// What two containers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Nearness {
    /// A network of nsnet, or the router of veth. A peer has a process of its own for each.
    Network,
    /// The process that serves both, which only nsnet has.
    Process,
}

/// Until the first connection must have come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client namespace with a network, which ends with this handle.
#[derive(Debug)]
pub(crate) struct Instance {
    /// A process in the client namespace.
    pub(crate) container: u32,
    /// What carries the packets, unless it is the kernel.
    workers: Vec<u32>,
    /// From starting the container's process until its first connection.
    pub(crate) attach: Duration,
    _program: Option<Program>,
    hosted: Option<nsnet::Hosted>,
    actor: Rc<Actor>,
    /// Of the network, where it is the world that numbers it. Free after the container has ended.
    number: Option<Number>,
}

impl Instance {
    /// Waits until the container, which was started at `start`, has connected to the server.
    fn connected(
        actor: Rc<Actor>,
        program: Option<Program>,
        container: u32,
        workers: Vec<u32>,
        start: Instant,
    ) -> Result<Self> {
        actor.connected(PATIENCE).map_err(|error| {
            let said = program.as_ref().map(Program::last_words).unwrap_or_default();
            format!("no connection to the server: {error}{said}")
        })?;
        let attach = clock::now().duration_since(start);
        Ok(Self { container, workers, attach, _program: program, hosted: None, actor, number: None })
    }

    pub(crate) fn cpu_seconds(&self) -> Result<Option<f64>> {
        self.sum(proc::cpu_seconds)
    }

    pub(crate) fn resident(&self) -> Result<Option<f64>> {
        self.sum(proc::resident)
    }

    pub(crate) fn peak_resident(&self) -> Result<Option<f64>> {
        self.sum(proc::peak_resident)
    }

    /// Over the workers. `None` for the kernel.
    fn sum(&self, of: impl Fn(u32) -> Result<f64>) -> Result<Option<f64>> {
        if self.workers.is_empty() {
            return Ok(None);
        }
        self.workers.iter().map(|pid| of(*pid)).sum::<Result<f64>>().map(Some)
    }
}

/// A peer's process, which ends with this handle.
#[derive(Debug)]
struct Program {
    child: Child,
    log: String,
}

impl Program {
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .rfind(|line| !line.trim().is_empty())
            .map_or_else(String::new, |line| format!("; it said: {line}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pid of the container, once it is in its namespaces.
fn entered(actor: &Actor) -> Result<u32> {
    actor.entered(PATIENCE).context("start the container")
}
