//! What is measured, and the rows of the table that come of it.

mod background;
mod beside;
mod row;

pub(crate) use background::Background;
pub(crate) use row::{Better, Metric, Row, Table};

use row::{percentiles, row};

use crate::options::Plan;
use crate::subject::Nearness;
use crate::traffic::{Direction, Size};

/// The MTU of every measurement that is not about the MTU.
pub(crate) const MTU: u16 = 1500;
/// The largest that the peers know.
pub(crate) const LARGE_MTU: u16 = 65520;

/// Keep-alive connections.
pub(crate) const CONNECTIONS: usize = 64;
/// Connections being made at a time.
pub(crate) const CONCURRENT: usize = 16;
/// Idle connections.
pub(crate) const IDLE: usize = 10_000;
/// Streams beside which something is measured, where it is more than one.
const SEVERAL: usize = 10;
const MANY: usize = 100;
/// Bytes of a datagram that fits everywhere, and of a segment.
const DATAGRAM: usize = 1200;
const SMALL_DATAGRAM: usize = 64;

/// One measurement, of which one or more rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Bulk {
        direction: Direction,
        mtu: u16,
        streams: usize,
    },
    Requests,
    Connections,
    PingTcp,
    PingUdp,
    Datagrams {
        direction: Direction,
        size: Size,
    },
    Idle,
    Attach,
    /// Pings while streams run.
    Beside(Background),
    /// A byte every millisecond while streams run.
    Paced(Background),
    /// New connections while streams run.
    Setup(Background),
    /// Requests of one container while streams of another run.
    Neighbour {
        nearness: Nearness,
        background: Background,
    },
    /// What a container notices of the end of another with many connections.
    End,
    Memory,
}

/// All cases of which a row is wanted. Memory comes last: it is that of all before.
pub(crate) fn cases(plan: &Plan) -> Vec<Case> {
    let mut all = Vec::new();
    for mtu in [MTU, LARGE_MTU] {
        for streams in [1, 8] {
            all.extend([Direction::Up, Direction::Down].map(|direction| Case::Bulk {
                direction,
                mtu,
                streams,
            }));
        }
    }
    all.extend([Case::Requests, Case::Connections, Case::PingTcp, Case::PingUdp]);
    for size in [Size::Single(SMALL_DATAGRAM), Size::Single(DATAGRAM), Size::Segments(DATAGRAM)] {
        all.extend([Direction::Up, Direction::Down].map(|direction| Case::Datagrams { direction, size }));
    }
    all.extend([Case::Idle, Case::Attach]);
    for streams in [1, SEVERAL] {
        all.extend([up(streams), down(streams)].map(Case::Beside));
    }
    all.extend([down(SEVERAL), up(SEVERAL), Background::Everyday].map(Case::Paced));
    all.push(Case::Setup(down(SEVERAL)));
    for nearness in [Nearness::Network, Nearness::Process] {
        all.extend(
            [down(SEVERAL), down(MANY), up(SEVERAL)]
                .map(|background| Case::Neighbour { nearness, background }),
        );
    }
    all.extend([Case::End, Case::Memory]);
    all.retain(|case| case.rows().iter().any(|row| plan.wants(row.metric)));
    all
}

fn up(streams: usize) -> Background {
    Background::Bulk { direction: Direction::Up, streams }
}

fn down(streams: usize) -> Background {
    Background::Bulk { direction: Direction::Down, streams }
}

impl Case {
    pub(crate) fn title(self) -> String {
        match self {
            Self::Bulk { direction, mtu, streams } => {
                format!("TCP {}, MTU {mtu}, {streams}", direction.name())
            }
            Self::Requests => format!("requests, {CONNECTIONS} connections"),
            Self::Connections => format!("new connections, {CONCURRENT} at a time"),
            Self::PingTcp => "TCP ping".into(),
            Self::PingUdp => "UDP ping".into(),
            Self::Datagrams { direction, size: Size::Single(bytes) } => {
                format!("UDP {}, {bytes} B", direction.name())
            }
            Self::Datagrams { direction, size: Size::Segments(bytes) } => {
                format!("UDP {}, {bytes} B segments", direction.name())
            }
            Self::Idle => format!("{IDLE} idle connections"),
            Self::Attach => "attach".into(),
            Self::Beside(background) => format!("ping beside {}", background.title()),
            Self::Paced(background) => format!("byte/ms beside {}", background.title()),
            Self::Setup(background) => format!("new connections beside {}", background.title()),
            Self::Neighbour { nearness, background } => beside::neighbour_title(nearness, background),
            Self::End => format!("end of a neighbour with {IDLE} connections"),
            Self::Memory => "peak memory".into(),
        }
    }

    /// In the order of the figures that measuring gives.
    pub(crate) fn rows(self) -> Vec<Row> {
        use Better::{Higher, Lower};
        let title = self.title();
        match self {
            Self::Bulk { direction, mtu, streams } => {
                let up = direction.name();
                let mut rows =
                    vec![row(Metric::Bulk, &format!("tcp-{up}-{mtu}-{streams}"), &title, "Gbit/s", Higher)];
                if (mtu, streams) == (MTU, 1) {
                    let machine = format!("CPU per GB {up}, machine");
                    let process = format!("CPU per GB {up}, subject");
                    rows.push(row(Metric::Cpu, &format!("cpu-machine-{up}"), &machine, "s/GB", Lower));
                    rows.push(row(Metric::Cpu, &format!("cpu-subject-{up}"), &process, "s/GB", Lower));
                }
                rows
            }
            Self::Requests => vec![row(Metric::Requests, "requests", &title, "1/s", Higher)],
            Self::Connections => vec![row(Metric::Connections, "connections", &title, "1/s", Higher)],
            Self::PingTcp => percentiles(Metric::Ping, "ping-tcp", &title),
            Self::PingUdp => percentiles(Metric::Ping, "ping-udp", &title),
            Self::Datagrams { direction, size } => {
                let up = direction.name();
                let (metric, id, unit) = match size {
                    Size::Single(bytes) => (Metric::Udp, format!("udp-{up}-{bytes}"), "1000/s"),
                    Size::Segments(_) => (Metric::UdpSegmented, format!("udp-segmented-{up}"), "Gbit/s"),
                };
                vec![
                    row(metric, &id, &title, unit, Higher),
                    row(metric, &format!("{id}-loss"), &format!("{title}, lost"), "%", Lower),
                ]
            }
            Self::Idle => vec![
                row(Metric::Idle, "idle-memory", "memory of each idle connection", "KiB", Lower),
                row(
                    Metric::Idle,
                    "idle-requests",
                    &format!("request rate beside {IDLE} idle"),
                    "% of without",
                    Higher,
                ),
                row(
                    Metric::Idle,
                    "idle-latency",
                    &format!("request p50 beside {IDLE} idle"),
                    "% of without",
                    Lower,
                ),
                row(Metric::Idle, "idle-bulk", &format!("TCP up beside {IDLE} idle"), "% of without", Higher),
            ],
            Self::Attach => {
                vec![row(Metric::Attach, "attach", "container start to first connection", "ms", Lower)]
            }
            Self::Beside(background) => beside::pings(background),
            Self::Paced(background) => beside::paced(background, &title),
            Self::Setup(background) => beside::setup(background, &title),
            Self::Neighbour { nearness, background } => beside::neighbour(nearness, background),
            Self::End => {
                vec![row(Metric::End, "end-stall", &format!("longest stall at the {title}"), "ms", Lower)]
            }
            Self::Memory => vec![row(Metric::Memory, "memory", "peak memory", "MiB", Lower)],
        }
    }
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
