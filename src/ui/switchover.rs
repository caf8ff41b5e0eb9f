//! A switchover: its plan before, and what it has come to.

use std::time::Duration;

use serde::Serialize;

use super::{Format, Tone, Ui, plan};
use crate::ops::plan::step::PlannedStep;
use crate::ops::switchover::plan::SwitchPlan;
use crate::ops::switchover::report::Report;
use crate::ops::switchover::step::SwitchStep;
use crate::units::human_duration;

/// What `--format json` prints of a plan.
#[derive(Debug, Serialize)]
struct Document<'a> {
    herd: &'a str,
    cluster: &'a str,
    headline: &'a str,
    from: &'a str,
    to: &'a str,
    stages: &'a [Vec<PlannedStep<SwitchStep>>],
    notes: &'a [String],
}

/// Prints what would be done, in the form that was asked for.
pub fn print_plan(ui: &mut Ui, herd: &str, plan: &SwitchPlan) {
    let SwitchPlan { cluster, headline, input, stages, notes, wish: _ } = plan;
    if ui.format == Format::Json {
        let document = Document { herd, cluster, headline, from: &input.from, to: &input.to, stages, notes };
        ui.json_line("switchover_plan", &document);
        return;
    }
    if stages.is_empty() {
        ui.remark(format!("{herd}/{cluster}   {headline}   {} is primary already. No changes.", input.to));
        return;
    }
    ui.remark(format!("{herd}/{cluster}   {headline}   switches over to {}", input.to));
    for line in plan::lines(ui, stages, |step| plan::Pivot::step(matches!(step, SwitchStep::Promote { .. })))
    {
        ui.remark(line);
    }
    for note in notes {
        ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
    }
}

/// Says what a switchover has come to.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line("switched_over", report);
        return;
    }
    let span = |seconds: f64| human_duration(Duration::from_secs_f64(seconds.max(0.0)));
    let timeline = report.timeline.map(|timeline| format!(" (timeline {timeline})")).unwrap_or_default();
    let begins = report.begins.map(|lsn| format!(" from {lsn} on")).unwrap_or_default();
    ui.remark(format!("{} is primary{timeline}{begins}   in {}", report.to, span(report.seconds)));
    let row = |ui: &mut Ui, word: &str, text: &str| ui.remark(format!("  {word:<10} {text}"));
    match (report.clients_waited_seconds, report.without_primary_seconds) {
        (Some(waited), _) => row(ui, "clients", &format!("of the poolers waited {}", span(waited))),
        (None, Some(gap)) => row(ui, "clients", &format!("no node took writes for {}", span(gap))),
        (None, None) => {}
    }
    if !report.streaming.is_empty() {
        row(ui, "follow", &report.streaming.join(", "));
    }
    if report.archive_whole == Some(true) {
        row(ui, "archive", "goes on without a gap");
    }
    if !report.write_seen_on.is_empty() {
        row(ui, "write", &format!("seen on {}", report.write_seen_on.join(", ")));
    }
    for hook in &report.hooks {
        let said = hook.said.last().map(|line| format!(": {line}")).unwrap_or_default();
        row(ui, "hook", &format!("{} took {}{said}", hook.point.word(), span(hook.seconds)));
    }
}
