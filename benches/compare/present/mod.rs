//! Shows results: as Markdown, as a chart.

mod chart;
mod tables;

pub(crate) use chart::chart;
pub(crate) use tables::tables;
