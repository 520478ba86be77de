//! What is measured while other traffic runs.

use std::thread;
use std::time::Duration;

use super::Bench;
use super::figures::{Figures, PATIENCE, gigabits};
use crate::actor::{Actor, Report};
use crate::catalogue::Background;
use crate::error::{Context, Result};
use crate::subject::Instance;
use crate::traffic::{Direction, Traffic};

/// For windows to grow before anything is measured beside the streams.
const RAMP_UP: Duration = Duration::from_millis(300);

/// Streams under way.
pub(super) struct Streams {
    receivers: Vec<Actor>,
    /// They send until the receivers are gone.
    _senders: Vec<Actor>,
}

impl Bench<'_> {
    pub(super) fn pings_beside(&self, instance: &Instance, background: Background) -> Figures {
        let seconds = self.plan.seconds;
        let (tcp, udp) = (Traffic::PingTcp { seconds }, Traffic::PingUdp { seconds });
        let (tcp, udp) = (self.prepare(instance, tcp)?, self.prepare(instance, udp)?);
        let streams = self.begin(instance, background)?;
        let (tcp, udp) = (tcp.report().context("TCP")?, udp.report().context("UDP")?);
        let rate = streams.end()?;
        Ok([tcp.p50, tcp.p99, udp.p50, udp.p99, rate].map(Some).to_vec())
    }

    pub(super) fn paced_beside(&self, instance: &Instance, background: Background) -> Figures {
        let paced = self.prepare(instance, Traffic::Paced { seconds: self.plan.seconds })?;
        let streams = self.begin(instance, background)?;
        let paced = paced.report()?;
        let rate = streams.end()?;
        Ok([paced.p50, paced.p99, rate].map(Some).to_vec())
    }

    pub(super) fn setup_beside(&self, instance: &Instance, background: Background) -> Figures {
        let streams = self.begin(instance, background)?;
        let mut figures = self.connections(instance)?;
        figures.push(Some(streams.end()?));
        Ok(figures)
    }

    /// Starts streams, and waits until each has carried something.
    pub(super) fn begin(&self, instance: &Instance, background: Background) -> Result<Streams> {
        let (mut receivers, mut senders) = (Vec::new(), Vec::new());
        for load in background.loads() {
            let (server, client) = self.pair(instance, Traffic::Load(load))?;
            let (receiver, sender) = match load.direction {
                Direction::Up => (server, client),
                Direction::Down => (client, server),
            };
            receiver.ready(PATIENCE).context("begin the streams")?;
            receivers.push(receiver);
            senders.push(sender);
        }
        thread::sleep(RAMP_UP);
        Ok(Streams { receivers, _senders: senders })
    }
}

impl Streams {
    /// The Gbit/s of all together.
    pub(super) fn end(mut self) -> Result<f64> {
        let reports = self.receivers.iter_mut().map(|receiver| {
            receiver.finish();
            receiver.report(PATIENCE)
        });
        let reports: Vec<Report> = reports.collect::<Result<_>>().context("the streams beside it")?;
        Ok(reports.iter().map(gigabits).sum())
    }
}
