//! The chart: how the subjects compare with veth, as SVG.
//!
//! One group of bars for each row, one bar for each subject; a longer bar is better. Where less is better, times for example,
//! the bar shows the inverse of the ratio. The colours follow the reader's light or dark mode by a media query.

use std::fmt::Write;

use crate::catalogue::Better;
use crate::error::Result;
use crate::results::{Measured, Results};
use crate::subject::Subject;

/// Rows of the chart, by their ids, with a title that needs no table around it.
const ROWS: [(&str, &str); 16] = [
    ("tcp-up-1500-1", "TCP throughput up"),
    ("tcp-down-1500-1", "TCP throughput down"),
    ("tcp-up-1500-8", "TCP up, 8 streams"),
    ("tcp-down-1500-8", "TCP down, 8 streams"),
    ("cpu-machine-up", "CPU time per gigabyte up"),
    ("cpu-machine-down", "CPU time per gigabyte down"),
    ("requests", "Requests per second, 64 connections"),
    ("connections", "New connections per second"),
    ("ping-tcp-p50", "TCP round trip, p50"),
    ("ping-udp-p50", "UDP round trip, p50"),
    ("beside-up-10-tcp-p99", "Round trip beside 10 uploads, p99"),
    ("beside-down-10-tcp-p99", "Round trip beside 10 downloads, p99"),
    ("udp-up-1200", "UDP datagrams up, 1200 B"),
    ("udp-down-1200", "UDP datagrams down, 1200 B"),
    ("udp-segmented-up", "UDP segments up"),
    ("udp-segmented-down", "UDP segments down"),
];

/// Bars of a group; the variants without offload are left to the table.
const SUBJECTS: [Subject; 4] = [Subject::Nsnet, Subject::NsnetShuttled, Subject::Slirp4netns, Subject::Pasta];

const WIDTH: f64 = 900.0;
/// Where bars begin.
const LEFT: f64 = 270.0;
/// Room for the figure at the end of the longest bar.
const RIGHT: f64 = 70.0;
const TOP: f64 = 84.0;
const BAR: f64 = 11.0;
const BETWEEN_GROUPS: f64 = 13.0;
const BOTTOM: f64 = 20.0;

/// Beyond, bars are cut off: one that is many times veth would leave no room for the others.
const LONGEST_RATIO: f64 = 2.0;

/// Width of a character of the small font, at most on average.
const CHARACTER: f64 = 6.5;

/// Opacity of a bar that stands for less than all rounds.
const PARTLY_FAILED: f64 = 0.4;

const STYLE: &str = "\
text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
.head { font-size: 16px; font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.veth { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3; }
.s0 { fill: #0969da; } .s1 { fill: #80b8f5; } .s2 { fill: #c4762b; } .s3 { fill: #8c959f; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .small { fill: #9198a1; } .grid { stroke: #3d444d; } .veth { stroke: #9198a1; }
  .s0 { fill: #4493f8; } .s1 { fill: #1f5faa; } .s2 { fill: #d28a45; } .s3 { fill: #656c76; }
}
";

/// One bar.
struct Bar<'a> {
    subject: Subject,
    /// Its place in [`SUBJECTS`].
    number: usize,
    row: &'a Measured,
}

/// # Errors
/// If nothing can be compared with veth.
pub(crate) fn chart(results: &Results) -> Result<String> {
    let subjects: Vec<Subject> =
        SUBJECTS.into_iter().filter(|wanted| results.measured().any(|it| it == *wanted)).collect();
    let groups: Vec<(&str, &Measured)> = ROWS
        .iter()
        .filter_map(|(id, title)| Some((*title, results.rows.iter().find(|row| row.row.id == *id)?)))
        .filter(|(_, row)| row.median(Subject::Veth).is_some())
        .collect();
    if subjects.is_empty() || groups.is_empty() {
        return Err("a chart needs veth, another subject, and a metric that both have".into());
    }
    let bars =
        groups.iter().flat_map(|(_, row)| subjects.iter().filter_map(|subject| goodness(row, *subject)));
    let scale = (WIDTH - LEFT - RIGHT) / bars.fold(1.0, f64::max).min(LONGEST_RATIO);

    let group_height = subjects.len() as f64 * BAR + BETWEEN_GROUPS;
    let end = TOP + groups.len() as f64 * group_height;
    let mut out = String::new();
    let height = end + BOTTOM;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<style>\n{STYLE}</style>"
    )?;
    legend(&mut out, results, &subjects)?;
    grid(&mut out, scale, end)?;
    for (index, (title, row)) in groups.iter().enumerate() {
        let top = TOP + index as f64 * group_height;
        let middle = top + subjects.len() as f64 * BAR / 2.0 + 4.5;
        text(&mut out, LEFT - 10.0, middle, "text-anchor=\"end\"", title)?;
        for (place, subject) in subjects.iter().enumerate() {
            let number = SUBJECTS.iter().position(|known| known == subject).unwrap_or_default();
            bar(&mut out, &Bar { subject: *subject, number, row }, top + place as f64 * BAR, scale)?;
        }
    }
    writeln!(out, "</svg>")?;
    Ok(out)
}

/// The ratio to veth such that more is better.
fn goodness(row: &Measured, subject: Subject) -> Option<f64> {
    match row.row.better {
        Better::Higher => row.ratio(subject, Subject::Veth),
        Better::Lower => row.ratio(Subject::Veth, subject),
    }
}

fn legend(out: &mut String, results: &Results, subjects: &[Subject]) -> Result<()> {
    let environment = &results.environment;
    text(out, 12.0, 24.0, "class=\"head\"", "Relative to a veth pair with NAT (longer is better)")?;
    let how = format!(
        "MTU 1500, Linux {}, {} cores, {}",
        environment.kernel,
        environment.cores,
        environment.rounds()
    );
    text(out, 12.0, 42.0, "class=\"small\"", &how)?;
    let mut left = LEFT;
    for subject in subjects {
        let number = SUBJECTS.iter().position(|known| known == subject).unwrap_or_default();
        writeln!(
            out,
            "<rect class=\"s{number}\" x=\"{left}\" y=\"53\" width=\"11\" height=\"11\" rx=\"2\"/>"
        )?;
        text(out, left + 16.0, 63.0, "", subject.name())?;
        left += 44.0 + 7.2 * subject.name().len() as f64;
    }
    Ok(())
}

fn grid(out: &mut String, scale: f64, end: f64) -> Result<()> {
    for quarter in 0..=8 {
        let ratio = f64::from(quarter) / 4.0;
        let x = LEFT + ratio * scale;
        if x > WIDTH - RIGHT + 1.0 {
            break;
        }
        let class = if quarter == 4 { "veth" } else { "grid" };
        let (top, bottom) = (TOP - 6.0, end - 4.0);
        writeln!(out, "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>")?;
        let label = if quarter == 4 { "veth = 1".to_owned() } else { format!("{ratio}") };
        text(out, x, end + 11.0, "class=\"small\" text-anchor=\"middle\"", &label)?;
    }
    Ok(())
}

fn bar(out: &mut String, bar: &Bar<'_>, top: f64, scale: f64) -> Result<()> {
    let ratio = goodness(bar.row, bar.subject);
    let failed = bar.row.failed(&[bar.subject, Subject::Veth]);
    let length = ratio.unwrap_or_default().min(LONGEST_RATIO) * scale;
    let (number, height) = (bar.number, BAR - 2.0);
    let opacity = if failed.is_empty() { 1.0 } else { PARTLY_FAILED };
    writeln!(
        out,
        "<rect class=\"s{number}\" x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{height}\" rx=\"1.5\" \
         opacity=\"{opacity}\"/>"
    )?;
    let label = ratio.map_or_else(|| "failed".into(), |ratio| format!("{ratio:.2}{failed}"));
    // A long word on failures may begin on its bar, which is pale then.
    let latest = WIDTH - label.len() as f64 * CHARACTER;
    text(out, (LEFT + length + 4.0).min(latest), top + height - 0.5, "class=\"small\"", &label)
}

fn text(out: &mut String, x: f64, y: f64, attributes: &str, words: &str) -> Result<()> {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{words}</text>")?;
    Ok(())
}
