//! A plan as people read it: in a terminal, in a pull request, as JSON.

use serde::Serialize;

use crate::ops::plan::ClusterPlan;
use crate::ops::plan::step::{ApplyStep, PlannedStep, Sign};
use crate::ui::pooler::{budget_table, each, most};
use crate::ui::{Format, Tone, Ui, Verbosity};

const WIDEST_TEXT: usize = 72;
const MOST_REASONS: usize = 6;

/// Prints the plans that an apply is about to run: as one of its JSON lines, else as [`print`] does.
pub fn print_before_apply(ui: &mut Ui, herd: &str, plans: &[ClusterPlan]) {
    match ui.format {
        Format::Json => ui.json_line("plan", &Document::new(herd, plans)),
        Format::Human | Format::Markdown => print(ui, herd, plans),
    }
}

/// Prints plans that were saved, read before, and agreed to with --yes: only what they come to.
pub fn print_agreed(ui: &mut Ui, herd: &str, plans: &[ClusterPlan]) {
    match ui.format {
        Format::Json => print_before_apply(ui, herd, plans),
        Format::Human | Format::Markdown => ui.remark(summary(&once(plans))),
    }
}

/// Prints the plans of a herd in the form that was asked for.
pub fn print(ui: &mut Ui, herd: &str, plans: &[ClusterPlan]) {
    match ui.format {
        Format::Human => human(ui, herd, &once(plans)),
        Format::Json => ui.json(&Document::new(herd, plans)),
        Format::Markdown => markdown(ui, herd, &once(plans)),
    }
}

/// Leaves out what an earlier plan does for all of a host's clusters.
fn once(plans: &[ClusterPlan]) -> Vec<ClusterPlan> {
    let mut seen: Vec<&PlannedStep> = Vec::new();
    let mut shown = Vec::new();
    for plan in plans {
        let stages = plan.keeping(|planned| !seen.contains(&planned));
        shown.push(ClusterPlan { stages, ..plan.clone() });
        seen.extend(plan.steps().filter(|planned| planned.step.is_common()));
    }
    shown
}

/// What `--format json` prints; documented in docs/formats/plan.md.
#[derive(Debug, Serialize)]
struct Document<'a> {
    herd: &'a str,
    changes: bool,
    add: usize,
    change: usize,
    interrupt: usize,
    remove: usize,
    clusters: &'a [ClusterPlan],
}

impl<'a> Document<'a> {
    fn new(herd: &'a str, clusters: &'a [ClusterPlan]) -> Self {
        let plans = once(clusters);
        let (add, change, interrupt) = totals(&plans);
        let remove = removed(&plans);
        let changes = clusters.iter().any(|plan| !plan.is_empty());
        Self { herd, changes, add, change, interrupt, remove, clusters }
    }
}

fn totals(plans: &[ClusterPlan]) -> (usize, usize, usize) {
    plans
        .iter()
        .map(ClusterPlan::counts)
        .fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
}

fn removed(plans: &[ClusterPlan]) -> usize {
    plans.iter().flat_map(ClusterPlan::steps).filter(|planned| planned.sign == Sign::Remove).count()
}

fn human(ui: &mut Ui, herd: &str, plans: &[ClusterPlan]) {
    for plan in plans {
        let headline =
            if plan.is_empty() { format!("{}: as declared", plan.headline) } else { plan.headline.clone() };
        ui.remark(format!("{herd}/{}   {headline}", plan.cluster));
        for line in lines(ui, &plan.stages, |step| Pivot::mark(matches!(step, ApplyStep::Keep {}))) {
            ui.remark(line);
        }
        for note in &plan.notes {
            ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
        }
        if plan.more {
            let when = if plan.adopt.is_empty() { "the primary answers" } else { "it is adopted" };
            ui.remark(format!(
                "  {} what else has changed is seen once {when}",
                ui.paint(Tone::Warning, "note")
            ));
        }
        if !plan.is_empty() || ui.verbosity == Verbosity::Verbose {
            for warning in &plan.warnings {
                ui.remark(format!("  {} {warning}", ui.paint(Tone::Warning, "warning")));
            }
        }
        for line in connections(ui, plan) {
            ui.remark(format!("  {line}"));
        }
    }
    ui.remark(summary(plans));
}

/// Returns the table of the connections, if the plan changes any: each node when most fall to it; with -v always, in each layout.
fn connections(ui: &Ui, plan: &ClusterPlan) -> Vec<String> {
    let Some(planned) = &plan.budget else { return Vec::new() };
    if ui.verbosity == Verbosity::Verbose {
        return budget_table(ui, "connections when", each(&planned.layouts));
    }
    if plan.is_empty() || !planned.changes {
        return Vec::new();
    }
    budget_table(ui, "connections, at most when", most(&planned.layouts))
}

/// Returns the last line: what the plans come to.
pub fn summary(plans: &[ClusterPlan]) -> String {
    if plans.iter().all(ClusterPlan::is_empty) {
        return "No changes.".to_owned();
    }
    let (add, change, interrupt) = totals(plans);
    let cost = match interrupt {
        0 => "Nothing restarts; nothing is interrupted.".to_owned(),
        1 => "1 step interrupts clients: it needs --allow-restart.".to_owned(),
        more => format!("{more} steps interrupt clients: they need --allow-restart."),
    };
    // What is removed is old and of pgherd's own: data goes by its name only, which no plan does.
    let remove = match removed(plans) {
        0 => String::new(),
        some => format!("{some} to remove, "),
    };
    format!("Plan: {add} to add, {change} to change, {remove}0 to destroy. {cost}")
}

/// Where the pivot of a plan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pivot {
    /// The step is it, and does something.
    Step,
    /// The step only stands for it.
    Mark,
    Elsewhere,
}

impl Pivot {
    pub(super) fn mark(is_it: bool) -> Self {
        if is_it { Self::Mark } else { Self::Elsewhere }
    }

    pub(super) fn step(is_it: bool) -> Self {
        if is_it { Self::Step } else { Self::Elsewhere }
    }
}

/// Returns the steps, with a line before the one that is the pivot, or in its place.
pub(super) fn lines<S>(ui: &Ui, stages: &[Vec<PlannedStep<S>>], pivot: impl Fn(&S) -> Pivot) -> Vec<String> {
    let width = |of: &dyn Fn(&PlannedStep<S>) -> usize| stages.iter().flatten().map(of).max().unwrap_or(0);
    let subject_width = width(&|step| step.subject.chars().count());
    let text_width = width(&|step| step.text.chars().count()).min(WIDEST_TEXT);
    let mut lines = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        for step in stage {
            let tone = match step.sign {
                Sign::Create => Tone::Good,
                Sign::Change => Tone::Warning,
                Sign::Remove | Sign::Disrupt => Tone::Bad,
                Sign::Look => Tone::Faint,
            };
            let pivot = pivot(&step.step);
            if pivot != Pivot::Elsewhere {
                lines.push(ui.paint(Tone::Faint, "     ── pivot: from here on there is only forward ──"));
            }
            if pivot == Pivot::Mark {
                continue;
            }
            let sign = ui.paint(tone, &step.sign.mark().to_string());
            lines.push(format!(
                "{:>3}  {sign} {:<subject_width$}   {:<text_width$}   {}",
                number + 1,
                step.subject,
                step.text,
                ui.paint(Tone::Faint, &format!("undo: {}", step.undo)),
            ));
            let indent = " ".repeat(subject_width + 10);
            lines.extend(reasons(ui, step).into_iter().map(|reason| format!("{indent}because {reason}")));
            lines.extend(
                step.impact.iter().map(|impact| format!("{indent}{}", ui.paint(Tone::Warning, impact))),
            );
        }
    }
    lines
}

/// Returns the reasons of a step; a long list is cut, unless more was asked for.
fn reasons<S>(ui: &Ui, step: &PlannedStep<S>) -> Vec<String> {
    let mut reasons: Vec<String> =
        step.reason.iter().flat_map(|reason| reason.lines()).map(str::to_owned).collect();
    if ui.verbosity < Verbosity::Verbose && reasons.len() > MOST_REASONS {
        let more = reasons.len() - MOST_REASONS + 1;
        reasons.truncate(MOST_REASONS - 1);
        reasons.push(format!("{more} more differences (-v shows them)"));
    }
    reasons
}

fn markdown(ui: &mut Ui, herd: &str, plans: &[ClusterPlan]) {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
    for plan in plans {
        ui.line(format!("### {herd}/{}\n\n{}\n", plan.cluster, plan.headline));
        if !plan.is_empty() {
            ui.line("| # | | what | step | because | costs | undo |");
            ui.line("|---|---|---|---|---|---|---|");
        }
        for (number, stage) in plan.stages.iter().enumerate() {
            for step in stage {
                ui.line(format!(
                    "| {} | `{}` | {} | {} | {} | {} | {} |",
                    number + 1,
                    step.sign.mark(),
                    cell(&step.subject),
                    cell(&step.text),
                    cell(step.reason.as_deref().unwrap_or("")),
                    cell(step.impact.as_deref().unwrap_or("")),
                    cell(&step.undo),
                ));
            }
        }
        for note in &plan.notes {
            ui.line(format!("\n- note: {note}"));
        }
        if !plan.is_empty() || ui.verbosity == Verbosity::Verbose {
            for warning in &plan.warnings {
                ui.line(format!("\n- warning: {warning}"));
            }
        }
        let table = connections(ui, plan);
        if !table.is_empty() {
            ui.line(format!("\n```text\n{}\n```", table.join("\n")));
        }
        ui.line("");
    }
    ui.line(format!("**{}**", summary(plans)));
}
