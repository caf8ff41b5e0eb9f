//! A node that is fenced, or let go: what it is before, and what has become of it.

use super::{Format, Tone, Ui};
use crate::ops::fence::{Ended, FencePlan, Report, ShutOut};

/// Says what the node is now, and what a fence takes away.
pub fn print_plan(ui: &mut Ui, herd: &str, plan: &FencePlan) {
    if ui.format == Format::Json {
        ui.json_line("fence_plan", plan);
        return;
    }
    ui.remark(format!("{herd}/{}   {} is {}", plan.cluster, plan.node, plan.headline));
    if plan.steps.is_empty() {
        ui.remark("  No changes.");
    }
    for note in &plan.notes {
        ui.remark(format!("  {} {note}", ui.paint(Tone::Warning, "note")));
    }
}

/// Says what has become of it.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line(if report.fenced { "fenced" } else { "unfenced" }, report);
        return;
    }
    let node = &report.node;
    match (&report.shut_out, report.fenced) {
        (Some(shut_out), _) => {
            ui.remark(format!("{node} is fenced: {}", how(shut_out)));
            if !shut_out.sealed {
                ui.remark(format!(
                    "  {} its data directory takes no standby.signal: only pgherd and the units that it writes heed the fence",
                    ui.paint(Tone::Warning, "note")
                ));
            }
        }
        (None, true) => ui.remark(format!("{node} is fenced")),
        (None, false) => ui.remark(format!("{node} is not fenced any more")),
    }
}

fn how(shut_out: &ShutOut) -> String {
    let ended = match shut_out.ended {
        Ended::Before => "nothing of it runs",
        Ended::Fast => "stopped (fast), nothing of it runs",
        Ended::Killed => "killed, nothing of it runs",
    };
    match &shut_out.control {
        None => format!("{ended}; its pg_control cannot be read"),
        Some(control) => {
            let word = if shut_out.is_clean() { "shutdown checkpoint" } else { "last checkpoint" };
            format!("{ended}; {word} {} on timeline {}", control.checkpoint, control.timeline)
        }
    }
}
