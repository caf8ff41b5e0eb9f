//! A rejoin: its plan before, and what it has come to.

use std::time::Duration;

use serde::Serialize;

use super::{Format, Tone, Ui, plan};
use crate::ops::plan::step::PlannedStep;
use crate::ops::rejoin::decide::{Decision, Way};
use crate::ops::rejoin::plan::RejoinPlan;
use crate::ops::rejoin::report::Report;
use crate::ops::rejoin::step::RejoinStep;
use crate::units::{ByteCount, human_duration};

/// What `--format json` prints of a plan.
#[derive(Debug, Serialize)]
struct Document<'a> {
    herd: &'a str,
    cluster: &'a str,
    headline: &'a str,
    node: &'a str,
    primary: &'a str,
    decision: &'a Decision,
    evidence: &'a [String],
    stages: &'a [Vec<PlannedStep<RejoinStep>>],
    notes: &'a [String],
}

/// Prints what would be done, in the form that was asked for.
pub fn print_plan(ui: &mut Ui, herd: &str, plan: &RejoinPlan) {
    let RejoinPlan { cluster, headline, wish: _, input, evidence, stages, notes } = plan;
    let (node, primary) = (&input.succession.from, &input.succession.to);
    if ui.format == Format::Json {
        let decision = &input.decision;
        let document = Document { herd, cluster, headline, node, primary, decision, evidence, stages, notes };
        ui.json_line("rejoin_plan", &document);
        return;
    }
    if stages.is_empty() {
        ui.remark(format!("{herd}/{cluster}   {headline}   {node} streams from it already. No changes."));
        return;
    }
    ui.remark(format!("{herd}/{cluster}   {headline}   {node} comes back: {}", input.decision.way));
    for line in evidence {
        ui.remark(format!("  {} {line}", ui.paint(Tone::Faint, ".")));
    }
    let pivot = |step: &RejoinStep| {
        plan::Pivot::step(match input.decision.way {
            Way::Rewind => matches!(step, RejoinStep::Rewind { .. }),
            Way::Follow | Way::Clone => matches!(step, RejoinStep::Streams { .. }),
        })
    };
    for line in plan::lines(ui, stages, pivot) {
        ui.remark(line);
    }
    for note in notes {
        ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
    }
}

/// Says what a rejoin has come to.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line("rejoined", report);
        return;
    }
    let took = human_duration(Duration::from_secs_f64(report.seconds.max(0.0)));
    let timeline = report.timeline.map(|timeline| format!(" on timeline {timeline}")).unwrap_or_default();
    let done = match report.done {
        Way::Follow => "nothing had to be taken back",
        Way::Rewind => "rewound",
        Way::Clone => "cloned",
    };
    ui.remark(format!("{} follows {}{timeline}   {done}   in {took}", report.node, report.primary));
    let row = |ui: &mut Ui, word: &str, text: &str| ui.remark(format!("  {word:<10} {text}"));
    if let (Some(fork), Some(ended)) = (report.fork, report.ended) {
        let past = ByteCount(report.past_bytes.unwrap_or(0));
        row(
            ui,
            "fork",
            &format!("{} on timeline {}; its WAL ended at {ended}, {past} past it", fork.at, fork.timeline),
        );
    }
    if let Some(why) = &report.not_rewound {
        row(ui, "rewind", &format!("not done: {why}"));
    }
    if !report.archived.is_empty() {
        row(ui, "archived", &report.archived.join(", "));
    }
    if let (Some(directory), false) = (&report.aside_directory, report.aside.is_empty()) {
        row(ui, "kept", &format!("{} in {}", report.aside.join(", "), directory.display()));
    }
    if let Some(why) = &report.not_archived {
        row(ui, "archive", &format!("did not take {why}"));
    }
    if let Some(label) = &report.backup {
        row(ui, "from", &format!("backup {label}, the archive, and {} for the rest", report.primary));
    }
    if let Some(path) = &report.set_aside {
        row(ui, "before", &format!("what it had is in {}; remove it when nobody needs it", path.display()));
    }
    if !report.slots_dropped.is_empty() {
        row(ui, "slots", &format!("dropped {}", report.slots_dropped.join(", ")));
    }
    if !report.write_seen_on.is_empty() {
        row(ui, "write", &format!("seen on {}", report.write_seen_on.join(", ")));
    }
}
