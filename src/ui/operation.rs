//! An operation while it runs, in the form that was asked for, and what is said when it has succeeded.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::{Format, Ui, Verbosity, events_json, lines, progress};
use crate::engine::event::EventStream;
use crate::topology::model::Cluster;
use crate::units::human_duration;

/// Shows operations while they run, until every sink of the stream is gone: bars on a terminal, lines elsewhere, JSON lines on
/// stdout with `--format json`.
pub async fn draw(ui: &mut Ui, stream: EventStream) {
    match ui.format {
        Format::Json => events_json::draw(ui, stream).await,
        Format::Human | Format::Markdown if ui.verbosity == Verbosity::Quiet => drain(stream).await,
        Format::Human | Format::Markdown if io::stderr().is_terminal() => progress::draw(ui, stream).await,
        Format::Human | Format::Markdown => lines::draw(ui, stream).await,
    }
}

/// The driver waits for its reader, also for one who shows nothing.
async fn drain(mut stream: EventStream) {
    while stream.next().await.is_some() {}
}

/// Says that a cluster is up, and where a write was seen.
pub fn print_up(ui: &mut Ui, herd: &str, cluster: &Cluster, nodes: &[String], seen: Duration) {
    ui.remark(format!(
        "{herd}/{} is up   write seen on {} after {}",
        cluster.name,
        nodes.join(", "),
        human_duration(seen)
    ));
}
