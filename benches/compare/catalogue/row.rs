//! Rows of the table, and the groups in which one asks for them.

use serde::{Deserialize, Serialize};

/// A group of rows, as one asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    Bulk,
    Cpu,
    Requests,
    Connections,
    Ping,
    Udp,
    UdpSegmented,
    Idle,
    Attach,
    Beside,
    Paced,
    Setup,
    Neighbour,
    End,
    Memory,
}

impl Metric {
    pub(crate) const ALL: [Self; 15] = [
        Self::Bulk,
        Self::Cpu,
        Self::Requests,
        Self::Connections,
        Self::Ping,
        Self::Udp,
        Self::UdpSegmented,
        Self::Idle,
        Self::Attach,
        Self::Beside,
        Self::Paced,
        Self::Setup,
        Self::Neighbour,
        Self::End,
        Self::Memory,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Cpu => "cpu",
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Ping => "ping",
            Self::Udp => "udp",
            Self::UdpSegmented => "udp-segmented",
            Self::Idle => "idle",
            Self::Attach => "attach",
            Self::Beside => "beside",
            Self::Paced => "paced",
            Self::Setup => "setup",
            Self::Neighbour => "neighbour",
            Self::End => "end",
            Self::Memory => "memory",
        }
    }

    /// In which of the tables its rows are.
    pub(crate) fn table(self) -> Table {
        match self {
            Self::Beside | Self::Paced | Self::Setup | Self::Neighbour | Self::End => Table::BesideBulk,
            Self::Bulk
            | Self::Cpu
            | Self::Requests
            | Self::Connections
            | Self::Ping
            | Self::Udp
            | Self::UdpSegmented
            | Self::Idle
            | Self::Attach
            | Self::Memory => Table::Alone,
        }
    }
}

/// Rows that are shown together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    /// Nothing else runs.
    Alone,
    /// Other traffic of the subject runs meanwhile.
    BesideBulk,
}

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Alone, Self::BesideBulk];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Alone => "Alone",
            Self::BesideBulk => "Latency beside bulk",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) metric: Metric,
    /// A short name that stays as it is.
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
}

pub(super) fn row(metric: Metric, id: &str, title: &str, unit: &str, better: Better) -> Row {
    Row { metric, id: id.into(), title: title.into(), unit: unit.into(), better }
}

/// Two rows of round trips.
pub(super) fn percentiles(metric: Metric, id: &str, title: &str) -> Vec<Row> {
    ["p50", "p99"]
        .map(|percentile| {
            row(metric, &format!("{id}-{percentile}"), &format!("{title} {percentile}"), "µs", Better::Lower)
        })
        .to_vec()
}
