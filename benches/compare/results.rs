//! The results, as they are written to JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalogue::Row;
use crate::subject::Subject;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) environment: Environment,
    pub(crate) subjects: Vec<Participant>,
    pub(crate) rows: Vec<Measured>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    /// Of TCP, in every namespace.
    pub(crate) congestion_control: String,
    /// Processes that were running when it began, on the average of the minute before.
    pub(crate) load: String,
    pub(crate) seconds: f64,
    pub(crate) rounds: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Participant {
    pub(crate) subject: Subject,
    pub(crate) version: Option<String>,
    /// Why it is not measured.
    pub(crate) left_out: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    #[serde(flatten)]
    pub(crate) row: Row,
    pub(crate) cells: BTreeMap<Subject, Cell>,
}

/// What came of one subject in one row. Empty where there is nothing to measure: the kernel has no process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) samples: Vec<f64>,
    pub(crate) median: Option<f64>,
    pub(crate) failures: Vec<String>,
}

impl Results {
    /// Whether every figure of nsnet that was wanted is there.
    pub(crate) fn nsnet_is_complete(&self) -> bool {
        let none_left_out =
            self.subjects.iter().all(|entry| !entry.subject.is_nsnet() || entry.left_out.is_none());
        let mut cells = self.rows.iter().flat_map(|row| &row.cells);
        none_left_out && cells.all(|(subject, cell)| !subject.is_nsnet() || cell.failures.is_empty())
    }

    /// Those that were measured.
    pub(crate) fn measured(&self) -> impl Iterator<Item = Subject> {
        self.subjects.iter().filter(|entry| entry.left_out.is_none()).map(|entry| entry.subject)
    }
}

impl Environment {
    /// What the figures are of.
    pub(crate) fn rounds(&self) -> String {
        match self.rounds {
            1 => format!("1 round of {} s", self.seconds),
            rounds => format!("medians of {rounds} rounds of {} s", self.seconds),
        }
    }
}

impl Measured {
    pub(crate) fn median(&self, subject: Subject) -> Option<f64> {
        self.cells.get(&subject)?.median
    }

    /// Which of these failed how often; empty if none did. A ratio of what is left says less than it seems to.
    pub(crate) fn failed(&self, subjects: &[Subject]) -> String {
        let of = |subject: &Subject| Some((*subject, self.cells.get(subject)?.failed()?));
        let failed = subjects.iter().filter_map(of);
        failed.map(|(subject, how_often)| format!(", {} {how_often}", subject.name())).collect()
    }

    /// The figure of one subject over that of another. `None` also for percentages, of which it would tell nothing.
    pub(crate) fn ratio(&self, of: Subject, to: Subject) -> Option<f64> {
        if self.row.unit.starts_with('%') {
            return None;
        }
        let ratio = self.median(of)? / self.median(to)?;
        ratio.is_finite().then_some(ratio)
    }
}

impl Cell {
    pub(crate) fn add(&mut self, sample: f64) {
        self.samples.push(sample);
        self.median = median(&self.samples);
    }

    /// Lowest and highest sample.
    pub(crate) fn range(&self) -> Option<(f64, f64)> {
        let lowest = self.samples.iter().copied().reduce(f64::min)?;
        let highest = self.samples.iter().copied().reduce(f64::max)?;
        Some((lowest, highest))
    }

    /// How often it failed, if it did.
    pub(crate) fn failed(&self) -> Option<String> {
        let (failed, all) = (self.failures.len(), self.failures.len() + self.samples.len());
        (failed > 0).then(|| format!("failed {failed} of {all}"))
    }
}

/// Of an even number, the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let lower = sorted.get(sorted.len().checked_sub(1)? / 2)?;
    let upper = sorted.get(sorted.len() / 2)?;
    Some(f64::midpoint(*lower, *upper))
}
