//! nsnet, its host side in a process of its own so that its memory and CPU time can be told.

use std::io::{self, BufRead};
use std::process::Stdio;
use std::time::Duration;

use nsnet::container::supervise::die_with_parent;
use nsnet::host::{Member, Network, Offload};
use serde::{Deserialize, Serialize};

use super::container::Container;
use super::{Instance, PATIENCE, entered};
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
    /// Attaches a container when it gets its cue.
    pub(crate) fn run(self) -> Result<()> {
        let offload = if self.offload { Offload::ALL } else { Offload::NONE };
        let network = Network::builder().mtu(self.mtu).offload(offload).build()?;
        say(&Say::Ready(0))?;
        let mut lines = io::stdin().lock().lines();
        let Some(_cue) = lines.next().transpose()? else { return Ok(()) };

        let mut command = Role::Container(Container::Nsnet { shuttle: self.shuttle }).command()?;
        command.stdin(Stdio::null());
        die_with_parent(&mut command);
        let mut attachment = network.attach(&mut command, Member::new())?;
        let _container = command.spawn()?;
        let ready = attachment.wait_ready(Duration::from_secs(10))?;
        if self.offload && !ready.offload.tso4 {
            return Err(format!("the kernel grants no segmentation offload: {:?}", ready.offload).into());
        }
        while lines.next().transpose()?.is_some() {}
        Ok(())
    }
}

pub(super) fn start(host: Host) -> Result<Instance> {
    let mut actor = Actor::start(&Role::Host(host))?;
    actor.ready(PATIENCE).context("start the host side")?;
    let start = clock::now();
    actor.cue()?;
    let container = entered(&actor)?;
    let workers = if host.shuttle { vec![actor.pid(), container] } else { vec![actor.pid()] };
    Instance::connected(actor, None, container, workers, start)
}
