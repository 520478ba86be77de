//! Rows of what is measured while other traffic of the subject runs.

use super::Background;
use super::Better::{Higher, Lower};
use super::row::{Metric, Row, percentiles, row};
use crate::subject::Nearness;

pub(super) fn pings(background: Background) -> Vec<Row> {
    let protocol = |protocol: &str| {
        let title = format!("{} ping beside {}", protocol.to_uppercase(), background.title());
        percentiles(Metric::Beside, &format!("beside-{}-{protocol}", background.id()), &title)
    };
    let mut rows = [protocol("tcp"), protocol("udp")].concat();
    rows.push(bulk(Metric::Beside, background, "pings"));
    rows
}

pub(super) fn paced(background: Background, title: &str) -> Vec<Row> {
    let mut rows = percentiles(Metric::Paced, &format!("paced-{}", background.id()), title);
    rows.push(bulk(Metric::Paced, background, "a byte/ms"));
    rows
}

pub(super) fn setup(background: Background, title: &str) -> Vec<Row> {
    vec![
        row(Metric::Setup, &format!("setup-{}", background.id()), title, "1/s", Higher),
        bulk(Metric::Setup, background, "new connections"),
    ]
}

pub(super) fn neighbour(nearness: Nearness, background: Background) -> Vec<Row> {
    let near = match nearness {
        Nearness::Network => "neighbour",
        Nearness::Process => "neighbour-network",
    };
    let id = format!("{near}-{}", background.id());
    let title = neighbour_title(nearness, background);
    let (rate, p99) = (format!("requests beside {title}"), format!("request beside {title} p99"));
    vec![
        row(Metric::Neighbour, &format!("{id}-rate"), &rate, "% of without", Higher),
        row(Metric::Neighbour, &format!("{id}-p99"), &p99, "µs", Lower),
    ]
}

pub(super) fn neighbour_title(nearness: Nearness, background: Background) -> String {
    let whose = match nearness {
        Nearness::Network => "neighbour's",
        Nearness::Process => "other network's",
    };
    format!("{whose} {}", background.title())
}

/// The rate of the streams beside which something is measured.
fn bulk(metric: Metric, background: Background, measured: &str) -> Row {
    let id = format!("{}-{}-bulk", metric.name(), background.id());
    let title = format!("{} beside {measured}", background.title());
    row(metric, &id, &title, "Gbit/s", Higher)
}
