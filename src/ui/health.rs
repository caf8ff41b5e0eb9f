//! The judgement of the herd, for people and as JSON: what is wrong first, what is fine in one line.

use crate::ops::health::{Finding, Health, Status};
use crate::topology::checks::Check;
use crate::ui::{Format, Tone, Ui, Verbosity};

/// Prints the judgement in the form that was asked for.
pub fn print(ui: &mut Ui, health: &Health) {
    match ui.format {
        Format::Json => ui.json(health),
        Format::Human | Format::Markdown => {
            for cluster in &health.clusters {
                human(ui, health, cluster);
            }
        }
    }
}

fn human(ui: &mut Ui, health: &Health, cluster: &str) {
    let of: Vec<&Finding> = health.findings.iter().filter(|finding| finding.cluster == *cluster).collect();
    let worst = of.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    if worst == Status::Ok && ui.verbosity == Verbosity::Quiet {
        return;
    }
    let word = ui.paint(tone(worst), worst.word());
    ui.line(format!("{}/{cluster}   {word}", health.herd));
    let mut shown: Vec<&Finding> = of
        .iter()
        .copied()
        .filter(|finding| {
            ui.verbosity == Verbosity::Verbose || (finding.status != Status::Ok && finding.follows.is_none())
        })
        .collect();
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    let width =
        |text: fn(&Finding) -> String| shown.iter().map(|finding| text(finding).chars().count()).max();
    let checks = width(|finding| finding.check.name().to_owned()).unwrap_or(0);
    let subjects = width(|finding| finding.subject.to_string()).unwrap_or(0);
    for finding in &shown {
        let word = ui.paint(tone(finding.status), &format!("{:<8}", finding.status.word()));
        let (check, subject) = (finding.check.name(), finding.subject.to_string());
        ui.line(format!("  {word}  {check:<checks$}  {subject:<subjects$}  {}", finding.text));
        if let Some(next) = &finding.next {
            ui.line(format!("  {:<8}  {:<checks$}  {:<subjects$}  next: {next}", "", "", ""));
        }
    }
    if ui.verbosity == Verbosity::Verbose {
        return;
    }
    let follow = of.iter().filter(|finding| finding.follows.is_some()).count();
    if follow > 0 {
        ui.line(format!("  {follow} more are not known because of that"));
    }
    let mut fine: Vec<Check> =
        of.iter().filter(|finding| finding.status == Status::Ok).map(|finding| finding.check).collect();
    fine.dedup();
    if !fine.is_empty() {
        let names: Vec<&str> = fine.into_iter().map(Check::name).collect();
        ui.line(format!("  fine      {}", names.join(", ")));
    }
}

fn tone(status: Status) -> Tone {
    match status {
        Status::Ok => Tone::Good,
        Status::Warning | Status::Unknown => Tone::Warning,
        Status::Critical => Tone::Bad,
    }
}
