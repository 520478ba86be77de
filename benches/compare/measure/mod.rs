//! Measures all subjects in turns.

mod beside;
mod figures;
mod neighbour;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use crate::catalogue::{Case, LARGE_MTU, MTU, cases};
use crate::clock;
use crate::error::Result;
use crate::options::Plan;
use crate::proc;
use crate::results::{Cell, Environment, Measured, Participant, Results};
use crate::subject::container::congestion_control;
use crate::subject::{Instance, Subject};
use crate::world::World;

/// Between two measurements, for what is still under way to arrive or be forgotten.
const SETTLE: Duration = Duration::from_millis(50);

/// Instances that live as long as the benchmark. Idle ones cost nothing but memory.
type Instances = BTreeMap<(Subject, u16), std::result::Result<Instance, String>>;

pub(crate) fn run(plan: &Plan, world: &World) -> Result<Results> {
    let load = proc::load()?;
    let bench = Bench { plan, world };
    let mut instances = Instances::new();
    let participants: Vec<_> =
        plan.subjects.iter().map(|subject| bench.invite(*subject, &mut instances)).collect();
    let cases = cases(plan);
    let mut rows: Vec<Measured> = cases.iter().flat_map(|case| empty_rows(plan, *case)).collect();
    let mut order: Vec<Subject> =
        participants.iter().filter(|entry| entry.left_out.is_none()).map(|entry| entry.subject).collect();
    for round in 1..=plan.rounds {
        for case in &cases {
            let is_last = round == plan.rounds;
            if *case == Case::Memory && !is_last {
                continue;
            }
            let start = clock::now();
            for subject in &order {
                let outcome = bench.measure(*case, *subject, &mut instances);
                record(&mut rows, *case, *subject, outcome);
                thread::sleep(SETTLE);
            }
            let seconds = clock::now().duration_since(start).as_secs_f64();
            eprintln!("round {round} of {}: {} ({seconds:.1} s)", plan.rounds, case.title());
        }
        // Another begins the next round: whom one comes after shall not be the same every time.
        let next = order.len().min(1);
        order.rotate_left(next);
    }
    let environment = Environment {
        kernel: proc::kernel()?,
        cores: thread::available_parallelism()?.get(),
        congestion_control: congestion_control()?,
        load,
        seconds: plan.seconds,
        rounds: plan.rounds,
    };
    Ok(Results { environment, subjects: participants, rows })
}

fn empty_rows(plan: &Plan, case: Case) -> Vec<Measured> {
    let wanted = case.rows().into_iter().filter(|row| plan.wants(row.metric));
    wanted.map(|row| Measured { row, cells: BTreeMap::new() }).collect()
}

/// Files the figures of one measurement, or that there are none.
fn record(rows: &mut [Measured], case: Case, subject: Subject, outcome: Result<Vec<Option<f64>>>) {
    let figures = outcome.map_err(|error| error.to_string());
    if let Err(reason) = &figures {
        eprintln!("{}: {} failed: {reason}", subject.name(), case.title());
    }
    for (index, row) in case.rows().iter().enumerate() {
        let Some(measured) = rows.iter_mut().find(|measured| measured.row.id == row.id) else { continue };
        let cell: &mut Cell = measured.cells.entry(subject).or_default();
        match &figures {
            Ok(figures) => {
                if let Some(figure) = figures.get(index).copied().flatten() {
                    cell.add(figure);
                }
            }
            Err(reason) => cell.failures.push(reason.clone()),
        }
    }
}

/// What stays the same from measurement to measurement.
struct Bench<'a> {
    plan: &'a Plan,
    world: &'a World,
}

impl Bench<'_> {
    /// Starts a subject and finds out whether it carries anything.
    fn invite(&self, subject: Subject, instances: &mut Instances) -> Participant {
        let left_out = subject.start(self.world, MTU).and_then(|instance| {
            self.smoke_test(&instance)?;
            instances.insert((subject, MTU), Ok(instance));
            Ok(())
        });
        let left_out = left_out.err().map(|error| error.to_string());
        if let Some(reason) = &left_out {
            eprintln!("{} is left out: {reason}", subject.name());
        }
        Participant { subject, version: subject.version(), left_out }
    }

    fn measure(&self, case: Case, subject: Subject, instances: &mut Instances) -> Result<Vec<Option<f64>>> {
        let mtu = if let Case::Bulk { mtu, .. } = case { mtu } else { MTU };
        debug_assert!([MTU, LARGE_MTU].contains(&mtu), "two instances of each subject");
        let instance = instances
            .entry((subject, mtu))
            .or_insert_with(|| subject.start(self.world, mtu).map_err(|error| error.to_string()));
        let instance = instance.as_ref().map_err(Clone::clone)?;
        match case {
            Case::Bulk { direction, streams, mtu: _ } => self.bulk(instance, direction, streams),
            Case::Requests => self.requests(instance),
            Case::Connections => self.connections(instance),
            Case::PingTcp => self.ping_tcp(instance),
            Case::PingUdp => self.ping_udp(instance),
            Case::Datagrams { direction, size } => self.datagrams(instance, direction, size),
            Case::Idle => self.idle(subject),
            Case::Attach => self.attach(subject),
            Case::Beside(background) => self.pings_beside(instance, background),
            Case::Paced(background) => self.paced_beside(instance, background),
            Case::Setup(background) => self.setup_beside(instance, background),
            Case::Neighbour { nearness, background } => self.neighbour(subject, nearness, background),
            Case::End => self.end_of_neighbour(subject),
            Case::Memory => figures::memory(instance),
        }
    }
}
