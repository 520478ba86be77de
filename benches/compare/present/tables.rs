//! The tables, in Markdown.

use std::fmt::Write;

use crate::catalogue::Table;
use crate::error::Result;
use crate::results::{Cell, Measured, Results};
use crate::subject::Subject;

pub(crate) fn tables(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = heading(&mut out, results)
        .and_then(|()| Table::ALL.into_iter().try_for_each(|table| tables_of(&mut out, results, table)));
    out
}

/// The rows of one group, seen in three ways.
fn tables_of(out: &mut String, results: &Results, table: Table) -> Result<()> {
    let rows: Vec<&Measured> = results.rows.iter().filter(|row| row.row.metric.table() == table).collect();
    if rows.is_empty() {
        return Ok(());
    }
    figures(out, results, &rows, table.title())?;
    ratios(out, results, &rows)?;
    ranges(out, results, &rows)
}

fn heading(out: &mut String, results: &Results) -> Result<()> {
    let environment = &results.environment;
    writeln!(
        out,
        "Linux {}, {} cores, {}, load {} before; {}",
        environment.kernel,
        environment.cores,
        environment.congestion_control,
        environment.load,
        environment.rounds()
    )?;
    for entry in &results.subjects {
        let of_kernel = if entry.subject == Subject::Veth { "of the kernel" } else { "version unknown" };
        let version = entry.version.as_deref().unwrap_or(of_kernel);
        match &entry.left_out {
            None => writeln!(out, "- {}: {version}", entry.subject.name())?,
            Some(reason) => writeln!(out, "- {}: left out, {reason}", entry.subject.name())?,
        }
    }
    writeln!(out)?;
    Ok(())
}

/// Each figure with its ratio to veth.
fn figures(out: &mut String, results: &Results, rows: &[&Measured], title: &str) -> Result<()> {
    let subjects: Vec<Subject> = results.measured().collect();
    head(out, title, &subjects.iter().map(|subject| subject.name().to_owned()).collect::<Vec<_>>())?;
    for row in rows {
        write!(out, "| {}, {} |", row.row.title, row.row.unit)?;
        for subject in &subjects {
            write!(out, " {} |", figure(row, *subject))?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    Ok(())
}

fn figure(row: &Measured, subject: Subject) -> String {
    let Some(cell) = row.cells.get(&subject) else { return "–".into() };
    let mut text = match (cell.median, row.ratio(subject, Subject::Veth)) {
        (Some(median), Some(ratio)) if subject != Subject::Veth => {
            format!("{} ({ratio:.2}x)", number(median))
        }
        (Some(median), _) => number(median),
        (None, _) if cell.failures.is_empty() => "–".into(),
        (None, _) => String::new(),
    };
    if let Some((reason, how_often)) = cell.failures.last().zip(cell.failed()) {
        let _ = write!(text, " {how_often}: {reason}");
    }
    text.trim().replace('|', "/")
}

/// nsnet beside each of the others.
fn ratios(out: &mut String, results: &Results, rows: &[&Measured]) -> Result<()> {
    let measured: Vec<Subject> = results.measured().collect();
    let others: Vec<Subject> = measured.iter().copied().filter(|subject| !subject.is_nsnet()).collect();
    let pairs: Vec<(Subject, Subject)> = [Subject::Nsnet, Subject::NsnetShuttled]
        .into_iter()
        .filter(|subject| measured.contains(subject))
        .flat_map(|subject| others.iter().map(move |other| (subject, *other)))
        .collect();
    if pairs.is_empty() {
        return Ok(());
    }
    let titles: Vec<_> = pairs.iter().map(|(of, to)| format!("{} / {}", of.name(), to.name())).collect();
    head(out, "Ratio", &titles)?;
    for row in rows {
        let ratio = |(of, to): &(Subject, Subject)| {
            let ratio = row.ratio(*of, *to)?;
            Some(format!("{ratio:.2}x{}", row.failed(&[*of, *to])))
        };
        let cells: Vec<_> = pairs.iter().map(ratio).collect();
        if cells.iter().any(Option::is_some) {
            write!(out, "| {} |", row.row.title)?;
            for cell in cells {
                write!(out, " {} |", cell.unwrap_or_else(|| "–".into()))?;
            }
            writeln!(out)?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// Lowest and highest sample.
fn ranges(out: &mut String, results: &Results, rows: &[&Measured]) -> Result<()> {
    if results.environment.rounds < 2 {
        return Ok(());
    }
    let subjects: Vec<Subject> = results.measured().collect();
    head(
        out,
        "Lowest..highest",
        &subjects.iter().map(|subject| subject.name().to_owned()).collect::<Vec<_>>(),
    )?;
    for row in rows {
        write!(out, "| {} |", row.row.title)?;
        for subject in &subjects {
            let range = row.cells.get(subject).and_then(Cell::range);
            let text =
                range.map_or_else(|| "–".into(), |(low, high)| format!("{}..{}", number(low), number(high)));
            write!(out, " {text} |")?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    Ok(())
}

fn head(out: &mut String, corner: &str, titles: &[String]) -> Result<()> {
    writeln!(out, "| {corner} | {} |", titles.join(" | "))?;
    writeln!(out, "|---|{}", "---:|".repeat(titles.len()))?;
    Ok(())
}

/// Three digits, or all before the point.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 9.995 => 2,
        medium if medium < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}
