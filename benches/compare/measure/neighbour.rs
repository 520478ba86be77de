//! What one container notices of another.

use std::thread;
use std::time::Duration;

use super::Bench;
use super::figures::{Figures, OPENING};
use crate::actor::Report;
use crate::catalogue::{Background, IDLE, MTU};
use crate::error::{Context, Result};
use crate::subject::{Instance, Nearness, Subject};
use crate::traffic::Traffic;

/// Connections of the container that is looked at, with up to 1000 requests a second on each.
const CONNECTIONS: usize = 2;

/// Of the client that watches the end, before and after it.
const BEFORE_END: Duration = Duration::from_millis(500);
const WATCH_SECONDS: f64 = 3.0;

impl Bench<'_> {
    pub(super) fn neighbour(&self, subject: Subject, nearness: Nearness, background: Background) -> Figures {
        let first = subject.start(self.world, MTU)?;
        let Some(second) = subject.join(self.world, &first, nearness)? else { return Ok(Vec::new()) };
        let alone = self.modest_requests(&second).context("without streams")?;
        let streams = self.begin(&first, background)?;
        let beside = self.modest_requests(&second)?;
        streams.end()?;
        Ok(vec![Some(100.0 * beside.per_second() / alone.per_second()), Some(beside.p99)])
    }

    fn modest_requests(&self, instance: &Instance) -> Result<Report> {
        let seconds = self.plan.seconds;
        self.client_reports(instance, Traffic::PacedRequests { connections: CONNECTIONS, seconds })
    }

    pub(super) fn end_of_neighbour(&self, subject: Subject) -> Figures {
        if matches!(subject, Subject::Slirp4netns | Subject::Pasta) && !self.plan.idle_peers {
            return Ok(Vec::new());
        }
        let first = subject.start(self.world, MTU)?;
        let Some(second) = subject.join(self.world, &first, Nearness::Network)? else {
            return Ok(Vec::new());
        };
        let idle = self.pair(&first, Traffic::Idle { connections: IDLE })?;
        idle.1.ready(OPENING).context(format!("open {IDLE} connections"))?;
        let watch = self.prepare(&second, Traffic::Paced { seconds: WATCH_SECONDS })?;
        watch.cue()?;
        thread::sleep(BEFORE_END);
        // The processes of the container, and then its network.
        drop(idle.1);
        drop(first);
        let longest = watch.outcome()?.longest;
        Ok(vec![Some(longest / 1e3)])
    }
}
