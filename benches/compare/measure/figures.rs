//! The single measurements. The figures come in the order of the case's rows; `None` is one that this subject
//! does not have.

use std::thread;
use std::time::Duration;

use super::Bench;
use crate::actor::{Actor, Report};
use crate::catalogue::{CONCURRENT, CONNECTIONS, IDLE, MTU};
use crate::error::{Context, Result};
use crate::proc;
use crate::results::median;
use crate::role::Role;
use crate::subject::{Instance, Subject};
use crate::traffic::{Client, Direction, Server, Size, Traffic};

pub(super) type Figures = Result<Vec<Option<f64>>>;

/// Beyond the time that a measurement means to take.
pub(super) const PATIENCE: Duration = Duration::from_secs(12);

/// For 1 MiB, of a subject that shall be measured.
const SMOKE: Duration = Duration::from_secs(5);

/// After which what was in flight has arrived or is lost.
const IN_FLIGHT: Duration = Duration::from_millis(200);

/// For 10 000 connections to open.
pub(super) const OPENING: Duration = Duration::from_secs(60);

/// For memory to be given back and timers to run out after they have opened.
const REST: Duration = Duration::from_secs(3);

/// Starts of which one median is made.
const STARTS: usize = 3;

/// What is measured beside idle connections.
struct Load {
    requests: Report,
    bulk: Report,
}

impl Bench<'_> {
    pub(super) fn smoke_test(&self, instance: &Instance) -> Result<()> {
        let (_server, client) = self.pair(instance, Traffic::Smoke)?;
        client.report(SMOKE).context("1 MiB")?;
        Ok(())
    }

    pub(super) fn bulk(&self, instance: &Instance, direction: Direction, streams: usize) -> Figures {
        let (machine, process) = (proc::machine_cpu_seconds()?, instance.cpu_seconds()?);
        let report = self.bulk_once(instance, direction, streams)?;
        let (machine_after, process_after) = (proc::machine_cpu_seconds()?, instance.cpu_seconds()?);
        // The CPU time is that of the whole run, so the bytes are as well.
        let gigabytes = report.total as f64 / 1e9;
        let process = process.zip(process_after).map(|(before, after)| (after - before) / gigabytes);
        Ok(vec![Some(gigabits(&report)), Some((machine_after - machine) / gigabytes), process])
    }

    fn bulk_once(&self, instance: &Instance, direction: Direction, streams: usize) -> Result<Report> {
        let seconds = self.plan.seconds;
        let (server, client) = self.pair(instance, Traffic::Bulk { direction, streams, seconds })?;
        let (receiver, sender) = match direction {
            Direction::Up => (&server, &client),
            Direction::Down => (&client, &server),
        };
        receiver.report(self.patience()).map_err(|error| {
            let also = sender.hear(Duration::ZERO).err().filter(|_| direction == Direction::Up);
            also.unwrap_or(error)
        })
    }

    pub(super) fn requests(&self, instance: &Instance) -> Figures {
        Ok(vec![Some(self.requests_once(instance)?.per_second())])
    }

    fn requests_once(&self, instance: &Instance) -> Result<Report> {
        self.client_reports(
            instance,
            Traffic::Requests { connections: CONNECTIONS, seconds: self.plan.seconds },
        )
    }

    pub(super) fn connections(&self, instance: &Instance) -> Figures {
        let traffic = Traffic::Connections { concurrent: CONCURRENT, seconds: self.plan.seconds };
        Ok(vec![Some(self.client_reports(instance, traffic)?.per_second())])
    }

    pub(super) fn ping_tcp(&self, instance: &Instance) -> Figures {
        let report = self.prepare(instance, Traffic::PingTcp { seconds: self.plan.seconds })?.report()?;
        Ok(vec![Some(report.p50), Some(report.p99)])
    }

    pub(super) fn ping_udp(&self, instance: &Instance) -> Figures {
        let report = self.prepare(instance, Traffic::PingUdp { seconds: self.plan.seconds })?.report()?;
        Ok(vec![Some(report.p50), Some(report.p99)])
    }

    pub(super) fn datagrams(&self, instance: &Instance, direction: Direction, size: Size) -> Figures {
        let traffic = Traffic::Datagrams { direction, size, seconds: self.plan.seconds };
        let (server, client) = self.pair(instance, traffic)?;
        let (sender, mut receiver) = match direction {
            Direction::Up => (client, server),
            Direction::Down => (server, client),
        };
        let sent = sender.report(self.patience()).context("the sender")?;
        thread::sleep(IN_FLIGHT);
        receiver.finish();
        let received = receiver.report(PATIENCE).context("the receiver")?;
        if received.amount == 0 {
            return Err(format!("none of {} datagrams arrived", sent.amount).into());
        }
        // What was buffered when the sender stopped must not count as faster than it was sent.
        let per_second = received.amount as f64 / received.seconds.max(sent.seconds);
        let figure = match size {
            Size::Single(_) => per_second / 1e3,
            Size::Segments(bytes) => per_second * bytes as f64 * 8.0 / 1e9,
        };
        let lost = 100.0 * (1.0 - received.amount as f64 / sent.amount as f64);
        Ok(vec![Some(figure), Some(lost)])
    }

    /// With an instance of its own, so that nothing it has allocated before blurs the memory.
    pub(super) fn idle(&self, subject: Subject) -> Figures {
        if !subject.is_nsnet() && !self.plan.idle_peers {
            return Ok(Vec::new());
        }
        let instance = subject.start(self.world, MTU)?;
        let before = self.load(&instance)?;
        thread::sleep(REST);
        let memory = instance.resident()?;
        let idle = self.pair(&instance, Traffic::Idle { connections: IDLE })?;
        idle.1.ready(OPENING).context(format!("open {IDLE} connections"))?;
        thread::sleep(REST);
        let memory_after = instance.resident()?;
        let beside = self.load(&instance)?;
        drop(idle);
        thread::sleep(REST);
        let after = self.load(&instance)?;
        let kib = memory.zip(memory_after).map(|(before, after)| (after - before) / IDLE as f64 / 1024.0);
        // The machine may have become faster or slower meanwhile: compared with the mean of before and after.
        let per_cent = |of: fn(&Load) -> f64| Some(100.0 * of(&beside) / ((of(&before) + of(&after)) / 2.0));
        Ok(vec![
            kib,
            per_cent(|load| load.requests.per_second()),
            per_cent(|load| load.requests.p50),
            per_cent(|load| load.bulk.per_second()),
        ])
    }

    fn load(&self, instance: &Instance) -> Result<Load> {
        Ok(Load {
            requests: self.requests_once(instance)?,
            bulk: self.bulk_once(instance, Direction::Up, 1)?,
        })
    }

    pub(super) fn attach(&self, subject: Subject) -> Figures {
        let starts = (0..STARTS).map(|_| Ok(subject.start(self.world, MTU)?.attach.as_secs_f64() * 1e3));
        Ok(vec![median(&starts.collect::<Result<Vec<_>>>()?)])
    }

    pub(super) fn client_reports(&self, instance: &Instance, traffic: Traffic) -> Result<Report> {
        let (_server, client) = self.pair(instance, traffic)?;
        let report = client.report(self.patience())?;
        if report.amount == 0 { Err("nothing came back".into()) } else { Ok(report) }
    }

    /// Starts a client that measures at its cue.
    pub(super) fn prepare(&self, instance: &Instance, traffic: Traffic) -> Result<Prepared> {
        let (server, client) = self.pair(instance, traffic)?;
        client.ready(PATIENCE).context("prepare the client")?;
        Ok(Prepared { client, patience: self.patience(), _server: server })
    }

    /// A server and its client.
    pub(super) fn pair(&self, instance: &Instance, traffic: Traffic) -> Result<(Actor, Actor)> {
        let namespace = self.world.server.pid;
        let server = Actor::start(&Role::Server(Server { namespace, traffic }))?;
        let port = server.ready(PATIENCE).context("start the server")?;
        let client = Client { namespace: instance.container, port, traffic };
        Ok((server, Actor::start(&Role::Client(client))?))
    }

    fn patience(&self) -> Duration {
        PATIENCE + Duration::from_secs_f64(self.plan.seconds)
    }
}

/// A client that is connected and waits for its cue.
pub(super) struct Prepared {
    client: Actor,
    patience: Duration,
    _server: Actor,
}

impl Prepared {
    /// Measures, and says what it saw.
    pub(super) fn report(&self) -> Result<Report> {
        self.cue()?;
        self.outcome()
    }

    pub(super) fn cue(&self) -> Result<()> {
        self.client.cue()
    }

    pub(super) fn outcome(&self) -> Result<Report> {
        self.client.report(self.patience)
    }
}

pub(super) fn memory(instance: &Instance) -> Figures {
    Ok(vec![instance.peak_resident()?.map(|bytes| bytes / f64::from(1 << 20))])
}

pub(super) fn gigabits(report: &Report) -> f64 {
    report.per_second() * 8.0 / 1e9
}
