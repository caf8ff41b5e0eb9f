//! A failover: its plan before, and what it has come to.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{Format, Tone, Ui, plan};
use crate::ops::failover::loss::Loss;
use crate::ops::failover::plan::FailPlan;
use crate::ops::failover::report::Report;
use crate::ops::failover::step::FailStep;
use crate::ops::failover::watch::Told;
use crate::ops::failover::witness::Witness;
use crate::ops::plan::step::PlannedStep;
use crate::units::human_duration;

/// What `--format json` prints of a plan.
#[derive(Debug, Serialize)]
struct Document<'a> {
    herd: &'a str,
    cluster: &'a str,
    headline: &'a str,
    from: &'a str,
    to: &'a str,
    because: &'a str,
    witnesses: &'a [Witness],
    loss: Option<&'a Loss>,
    stages: &'a [Vec<PlannedStep<FailStep>>],
    notes: &'a [String],
}

/// Prints what would be done, in the form that was asked for.
pub fn print_plan(ui: &mut Ui, herd: &str, plan: &FailPlan) {
    let FailPlan { cluster, headline, input, stages, notes, because, witnesses, loss, wish: _, made: _ } =
        plan;
    let (from, to) = (&input.from, &input.to);
    if ui.format == Format::Json {
        let loss = loss.as_ref();
        let document =
            Document { herd, cluster, headline, from, to, because, witnesses, loss, stages, notes };
        ui.json_line("failover_plan", &document);
        return;
    }
    ui.remark(format!("{herd}/{cluster}   {headline}   fails over to {to}"));
    for witness in witnesses {
        ui.remark(format!("  seen   {}: {}", witness.who, witness.told));
    }
    ui.remark(format!("  choice {because}"));
    for line in plan::lines(ui, stages, |step| plan::Pivot::step(matches!(step, FailStep::Promote { .. }))) {
        ui.remark(line);
    }
    if let Some(loss) = loss {
        ui.remark(format!("  {} {}", ui.paint(Tone::Bad, "loss"), told(loss)));
    }
    for note in notes {
        ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
    }
}

/// What a watcher says, as a line with its moment.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: Timestamp,
    cluster: &'a str,
    state: &'a str,
    node: Option<&'a str>,
    why: Vec<&'a str>,
}

/// Prints what a watcher has seen that it had not seen before.
pub fn print_told(ui: &mut Ui, cluster: &str, told: &Told) {
    let at = Timestamp::now();
    let (state, node, why) = match told {
        Told::Leads { node } => ("leads", Some(node.as_str()), Vec::new()),
        Told::Seen { why } => ("seen", None, vec![why.as_str()]),
        Told::Gone { node, why } => ("gone", Some(node.as_str()), vec![why.as_str()]),
        Told::Unclear { why } => ("unclear", None, vec![why.as_str()]),
        Told::Refused { why } => ("refused", None, why.iter().map(String::as_str).collect()),
    };
    if ui.format == Format::Json {
        ui.json_line("watch", &Line { at, cluster, state, node, why });
        return;
    }
    let why = why.join("; ");
    ui.remark(match told {
        Told::Leads { node } => format!("{at:.0}  {cluster}: {node} leads"),
        Told::Seen { .. } => {
            format!("{at:.0}  {cluster}: the primary does not answer here, and is not gone: {why}")
        }
        Told::Gone { node, .. } => format!("{at:.0}  {cluster}: nobody sees {node}: {why}"),
        Told::Unclear { .. } => format!("{at:.0}  {cluster}: {why}"),
        Told::Refused { .. } => format!("{at:.0}  {cluster}: a failover is due and cannot be done: {why}"),
    });
}

fn told(loss: &Loss) -> String {
    let seconds = match loss.seconds {
        Some(seconds) => format!("what was committed in the last {} may be lost", span(seconds)),
        None => "how much may be lost is not known".to_owned(),
    };
    match loss.bytes_known {
        Some(bytes) => format!("{seconds}; {bytes} are known to be on no standby"),
        None => seconds,
    }
}

fn span(seconds: f64) -> String {
    human_duration(Duration::from_secs_f64(seconds.max(0.0)))
}

/// Says what a failover has come to.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line("failed_over", report);
        return;
    }
    let timeline = report.timeline.map(|timeline| format!(" (timeline {timeline})")).unwrap_or_default();
    let begins = report.begins.map(|lsn| format!(" from {lsn} on")).unwrap_or_default();
    ui.remark(format!("{} is primary{timeline}{begins}   in {}", report.to, span(report.seconds)));
    let row = |ui: &mut Ui, word: &str, text: &str| ui.remark(format!("  {word:<10} {text}"));
    if let Some(seconds) = report.serving_after_seconds {
        row(ui, "clients", &format!("are led to it {} after the first step", span(seconds)));
    }
    if let Some(fence) = &report.fence {
        row(ui, "fence", fence);
    }
    if let Some(bytes) = report.salvaged {
        row(ui, "salvaged", &format!("{bytes} that only {} had", report.from));
    }
    if let Some(why) = &report.not_salvaged {
        row(ui, "lost", &format!("what only {} had could not be brought: {why}", report.from));
    }
    match report.synchronous.as_deref() {
        Some("") => row(ui, "commits", "wait for no standby until the others are back"),
        Some(names) => row(ui, "commits", &format!("wait for {names} until the others are back")),
        None => {}
    }
    if !report.streaming.is_empty() {
        row(ui, "follow", &report.streaming.join(", "));
    }
    if !report.backfilled.is_empty() {
        let count = report.backfilled.len();
        row(ui, "backfill", &format!("{count} segments that {} had not archived", report.from));
    }
    if let (Some(first), Some(last)) = (report.missing.first(), report.missing.last()) {
        row(ui, "missing", &format!("{first} to {last} are in no archive: take a backup now"));
    }
    if report.archive_whole == Some(true) {
        row(ui, "archive", "goes on without a gap");
    }
    if !report.write_seen_on.is_empty() {
        row(ui, "write", &format!("seen on {}", report.write_seen_on.join(", ")));
    }
}
