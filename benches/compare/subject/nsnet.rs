//! nsnet, its host side in a process of its own so that its memory and CPU time can be told.

use std::io::{self, BufRead};
use std::process::Stdio;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsnet::container::supervise::die_with_parent;
use nsnet::host::{Member, Network, Offload};
use serde::{Deserialize, Serialize};

use super::container::Container;
use super::{Instance, Nearness, PATIENCE, entered};
use crate::actor::{Actor, Say, say};
use crate::clock;
use crate::error::{Context, Result};
use crate::role::Role;

/// The host side.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) mtu: u16,
    pub(crate) offload: bool,
    pub(crate) shuttle: bool,
}

impl Host {
    /// Attaches a container at each cue, which says where.
    pub(crate) fn run(self) -> Result<()> {
        let mut networks = vec![self.network()?];
        say(&Say::Ready(0))?;
        for line in io::stdin().lock().lines() {
            match serde_json::from_str(&line?).context("read the cue")? {
                Nearness::Network => {}
                Nearness::Process => networks.push(self.network()?),
            }
            self.attach(networks.last().ok_or("no network")?)?;
        }
        Ok(())
    }

    fn network(self) -> Result<Network> {
        let offload = if self.offload { Offload::ALL } else { Offload::NONE };
        Ok(Network::builder().mtu(self.mtu).offload(offload).build()?)
    }

    /// The container's network ends with its first process.
    fn attach(self, network: &Network) -> Result<()> {
        let mut command = Role::Container(Container::Nsnet { shuttle: self.shuttle }).command()?;
        command.stdin(Stdio::null());
        die_with_parent(&mut command);
        let mut attachment = network.attach(&mut command, Member::new())?;
        let mut container = command.spawn()?;
        let ready = attachment.wait_ready(Duration::from_secs(10))?;
        if self.offload && !ready.offload.tso4 {
            return Err(format!("the kernel grants no segmentation offload: {:?}", ready.offload).into());
        }
        thread::spawn(move || {
            // However it has ended.
            let _ = container.wait();
            attachment.close();
        });
        Ok(())
    }
}

/// A container that the host side has started. It ends with this handle.
#[derive(Debug)]
pub(super) struct Hosted(Pid);

impl Drop for Hosted {
    fn drop(&mut self) {
        // It may have ended with the host side already.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

pub(super) fn start(host: Host) -> Result<Instance> {
    let actor = Rc::new(Actor::start(&Role::Host(host))?);
    actor.ready(PATIENCE).context("start the host side")?;
    attach(host, &actor, Nearness::Network)
}

/// Attaches a container to the latest network of the host side, or to another one.
pub(super) fn attach(host: Host, actor: &Rc<Actor>, nearness: Nearness) -> Result<Instance> {
    let start = clock::now();
    actor.tell(&serde_json::to_string(&nearness)?)?;
    let container = entered(actor)?;
    let hosted = Hosted(Pid::from_raw(container.try_into()?));
    let workers = if host.shuttle { vec![actor.pid(), container] } else { vec![actor.pid()] };
    let mut instance = Instance::connected(Rc::clone(actor), None, container, workers, start)?;
    instance.hosted = Some(hosted);
    Ok(instance)
}
