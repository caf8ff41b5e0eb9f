//! A restore in place: its plan before, and what it has come to.

use std::time::Duration;

use serde::Serialize;

use super::{Format, Tone, Ui, plan};
use crate::ops::in_place::plan::RestorePlan;
use crate::ops::in_place::report::Report;
use crate::ops::in_place::step::RestoreStep;
use crate::ops::node::restore::clock;
use crate::ops::plan::step::PlannedStep;
use crate::ops::restore::recover::Achieved;
use crate::ops::restore::target::Choice;
use crate::units::human_duration;

/// What `--format json` prints of a plan.
#[derive(Debug, Serialize)]
struct Document<'a> {
    herd: &'a str,
    cluster: &'a str,
    headline: &'a str,
    /// The node that comes from the backup.
    node: &'a str,
    choice: &'a Choice,
    stages: &'a [Vec<PlannedStep<RestoreStep>>],
    notes: &'a [String],
}

/// Prints what would be done, in the form that was asked for.
pub fn print_plan(ui: &mut Ui, herd: &str, plan: &RestorePlan) {
    if ui.format == Format::Json {
        let RestorePlan { cluster, headline, input, stages, notes } = plan;
        let document =
            Document { herd, cluster, headline, node: &input.seed, choice: &input.choice, stages, notes };
        ui.json_line("restore_plan", &document);
        return;
    }
    ui.remark(format!("{herd}/{}   {}", plan.cluster, plan.headline));
    for line in plan::lines(ui, &plan.stages, |step| plan::Pivot::mark(matches!(step, RestoreStep::Keep {})))
    {
        ui.remark(line);
    }
    for note in &plan.notes {
        ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
    }
}

/// Says which transactions the cluster does not have any more.
fn given_up(report: &Report, achieved: &Achieved) -> String {
    let Some(first) = &report.given_up_from else { return "nothing that is known".to_owned() };
    let beyond = report.given_up.as_ref();
    let commits = match beyond.and_then(|beyond| beyond.commits) {
        Some(1) => "1 transaction".to_owned(),
        Some(commits) => format!("{commits} transactions"),
        None => "more transactions than were counted".to_owned(),
    };
    let last = beyond.and_then(|beyond| beyond.last.as_ref()).map_or(first.at, |last| last.at);
    let from = achieved.last_transaction.unwrap_or(first.at);
    let span = Duration::try_from(last.duration_since(from)).unwrap_or_default();
    format!("{commits}, {} until {}", human_duration(span), clock(last))
}

/// Says what a restore has come to, and what is left for the operator.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line("restored", report);
        return;
    }
    let span = |seconds: f64| human_duration(Duration::from_secs_f64(seconds.max(0.0)));
    let timeline = report.timeline.map(|timeline| format!(" on timeline {timeline}")).unwrap_or_default();
    ui.remark(format!(
        "{} is restored to {}{timeline}   primary {}   in {}",
        report.cluster,
        report.target,
        report.primary,
        span(report.seconds)
    ));
    let row = |ui: &mut Ui, word: &str, text: &str| ui.remark(format!("  {word:<10} {text}"));
    if let Some(achieved) = &report.achieved {
        let last = achieved
            .last_transaction
            .map_or_else(|| "none was replayed".to_owned(), |at| clock(at).to_string());
        row(
            ui,
            "reached",
            &format!("last transaction {last}, LSN {} on timeline {}", achieved.lsn, achieved.timeline),
        );
        row(ui, "gave up", &given_up(report, achieved));
    }
    if let Some(waited) = report.clients_waited_seconds {
        row(ui, "clients", &format!("waited {}", span(waited)));
    }
    if !report.write_seen_on.is_empty() {
        row(ui, "write", &format!("seen on {}", report.write_seen_on.join(", ")));
    }
    for left in &report.not_archived {
        let why = left.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        if !left.files.is_empty() {
            row(
                ui,
                "archive",
                &format!("does not have {} of the old {}{why}", left.files.join(", "), left.node),
            );
        }
        if let Some(behind) = left.behind {
            let text = format!(
                "the old {} was not shut down: its WAL behind {behind} is only in its pg_wal",
                left.node
            );
            row(ui, "archive", &text);
        }
    }
    for aside in &report.set_aside {
        for moved in &aside.moved {
            row(ui, "old data", &format!("{} in {}", aside.node, moved.to.display()));
        }
    }
    if !report.set_aside.is_empty() {
        ui.remark("Nothing removes the old data. When you are sure that you do not need it:");
        for aside in &report.set_aside {
            ui.remark(format!("  {}", aside.remove));
        }
    }
}
