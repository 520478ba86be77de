//! The command line.

use std::path::PathBuf;

use lexopt::prelude::*;
use serde::{Deserialize, Serialize};

use crate::catalogue::{Metric, Table};
use crate::error::Result;
use crate::subject::Subject;

pub(crate) const HELP: &str = "\
Measures nsnet beside other networks for a namespace. Needs no root.

Usage: cargo bench --bench compare -- [OPTIONS]

Options:
      --quick           One short round: two to three minutes instead of forty. Leaves out what is
                        measured beside other traffic, unless --metric names it
      --rounds N        Rounds, of which the medians are shown (default 3)
      --seconds N       How long each single measurement takes (default 2; may have a fraction)
      --only LIST       Subjects, separated by commas: veth, nsnet, nsnet-plain, nsnet-shuttled,
                        nsnet-shuttled-plain, slirp4netns, pasta
      --metric LIST     Metrics, separated by commas. Alone: bulk, cpu, requests, connections, ping, udp,
                        udp-segmented, idle, attach, memory; beside other traffic: beside, paced, setup,
                        neighbour, end
      --idle-peers      Open the connections of idle and end through the peers as well
      --json FILE       Write every sample to FILE
      --svg FILE        Draw a chart of the ratios to veth
      --chart-from FILE Measure nothing, show what --json has written
  -h, --help            Print this help

Modes of nsnet:
  nsnet                 The TUN device handed over to the host side, with every offload
  nsnet-plain           Handed over, without offload
  nsnet-shuttled        The container side copies frames between device and host, with every offload
  nsnet-shuttled-plain  Copied, without offload

slirp4netns and pasta are taken from $PATH. docs/design/benchmark.md explains what is measured.

Exit status: 0 if nsnet was measured in full, whatever the figures are.
";

/// What the user wants.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) source: Source,
    pub(crate) json: Option<PathBuf>,
    pub(crate) svg: Option<PathBuf>,
}

/// Where the results come from.
#[derive(Debug)]
pub(crate) enum Source {
    Measurement(Plan),
    File(PathBuf),
}

/// What to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) seconds: f64,
    pub(crate) rounds: u32,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) idle_peers: bool,
}

impl Plan {
    const QUICK_SECONDS: f64 = 0.4;

    pub(crate) fn wants(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }
}

/// Whether it was started to measure, by `cargo bench`, rather than by `cargo test`.
pub(crate) fn is_bench() -> bool {
    std::env::args_os().any(|argument| argument == "--bench")
}

/// `None` if it is help that is wanted.
pub(crate) fn parse() -> Result<Option<Request>> {
    let mut plan = Plan {
        seconds: 2.0,
        rounds: 3,
        subjects: Subject::ALL.to_vec(),
        metrics: Vec::new(),
        idle_peers: false,
    };
    let (mut quick, mut metrics) = (false, None);
    let (mut json, mut svg, mut chart_from) = (None, None, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => (quick, plan.seconds, plan.rounds) = (true, Plan::QUICK_SECONDS, 1),
            Long("rounds") => plan.rounds = parser.value()?.parse()?,
            Long("seconds") => plan.seconds = parser.value()?.parse()?,
            Long("only") => plan.subjects = list(&parser.value()?.string()?, &Subject::ALL, Subject::name)?,
            Long("metric") => metrics = Some(list(&parser.value()?.string()?, &Metric::ALL, Metric::name)?),
            Long("idle-peers") => plan.idle_peers = true,
            Long("json") => json = Some(parser.value()?.into()),
            Long("svg") => svg = Some(parser.value()?.into()),
            Long("chart-from") => chart_from = Some(parser.value()?.into()),
            // What cargo adds.
            Long("bench") => {}
            Short('h') | Long("help") => return Ok(None),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
        }
    }
    if plan.rounds == 0 || !(0.05..=3600.0).contains(&plan.seconds) {
        return Err("at least one round, and 0.05 to 3600 seconds, are needed".into());
    }
    plan.metrics = metrics.unwrap_or_else(|| {
        Metric::ALL.into_iter().filter(|metric| !quick || metric.table() == Table::Alone).collect()
    });
    let source = chart_from.map_or(Source::Measurement(plan), Source::File);
    Ok(Some(Request { source, json, svg }))
}

/// Those of `all` that are in `list`, in the order of `all`.
fn list<T: Copy>(list: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Result<Vec<T>> {
    let words: Vec<&str> = list.split(',').collect();
    if let Some(unknown) = words.iter().find(|word| !all.iter().any(|item| name(*item) == **word)) {
        let known: Vec<&str> = all.iter().map(|item| name(*item)).collect();
        return Err(format!("{unknown:?} is none of {}", known.join(", ")).into());
    }
    Ok(all.iter().copied().filter(|item| words.contains(&name(*item))).collect())
}
