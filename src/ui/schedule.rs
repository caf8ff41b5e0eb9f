//! Jobs: what runs when, how it stands with each, what starts them, and what maintenance has done.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{Format, Tone, Ui};
use crate::ops::maintenance::Report;
use crate::ops::schedule::{Listed, Run, Standing};
use crate::topology::model::Herd;
use crate::topology::timers::Rendered;
use crate::units::human_duration;

#[derive(Serialize)]
struct Document<'a> {
    herd: &'a str,
    timezone: &'a str,
    jobs: &'a [Listed],
}

/// Prints jobs in the form that was asked for.
pub fn print_list(ui: &mut Ui, herd: &Herd, jobs: &[Listed]) {
    if ui.format == Format::Json {
        return ui.json(&Document { herd: &herd.name, timezone: &herd.timezone, jobs });
    }
    if jobs.is_empty() {
        return ui.line(format!("{}   nothing has a schedule", herd.name));
    }
    ui.line(format!("{}   times of {}", herd.name, herd.timezone));
    let zone = TimeZone::get(&herd.timezone).unwrap_or(TimeZone::UTC);
    let clock = |at: Timestamp| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "job", "when", "next", "last success", "took", "state"]);
    for job in jobs {
        let success = job.last_success.as_ref();
        table.add_row([
            String::new(),
            job.job.clone(),
            job.when.clone(),
            if job.next <= Timestamp::now() { "now".to_owned() } else { clock(job.next) },
            success.map_or_else(|| "-".to_owned(), |run| clock(run.begun)),
            success.and_then(took).unwrap_or_else(|| "-".to_owned()),
            state(ui, job, &clock),
        ]);
    }
    for line in table.lines() {
        ui.line(line.trim_end());
    }
}

fn took(run: &Run) -> Option<String> {
    let span = run.ended?.duration_since(run.begun);
    Some(human_duration(span.try_into().ok()?))
}

fn state(ui: &Ui, job: &Listed, clock: &impl Fn(Timestamp) -> String) -> String {
    let last = || {
        let Some(run) = &job.last else { return String::new() };
        let how = match (run.ended, run.exit) {
            (Some(_), Some(0)) => return String::new(),
            (Some(_), Some(exit)) => format!("exit code {exit}"),
            (Some(_) | None, _) => "it was killed".to_owned(),
        };
        let times =
            if job.failures > 1 { format!(", {} times in a row", job.failures) } else { String::new() };
        format!(": {how} at {}{times}", clock(run.begun))
    };
    match job.standing {
        Standing::Running => match &job.running {
            Some(running) => format!("runs since {} as {}", clock(running.since), running.by),
            None => "runs".to_owned(),
        },
        Standing::Unseen => "nobody has asked for it yet".to_owned(),
        Standing::New => "not due yet".to_owned(),
        Standing::Met => ui.paint(Tone::Good, "ok"),
        Standing::Due => "due".to_owned(),
        Standing::Failed => format!("{}{}", ui.paint(Tone::Warning, "failed"), last()),
        Standing::Overdue => format!("{}{}", ui.paint(Tone::Bad, "OVERDUE"), last()),
    }
}

/// Prints units, each with the name of its file in front of it.
pub fn print_units(ui: &mut Ui, units: &[Rendered]) {
    if ui.format == Format::Json {
        return ui.json(&serde_json::json!({"units": units}));
    }
    for (index, unit) in units.iter().enumerate() {
        if index > 0 {
            ui.line("");
        }
        ui.line(format!("# ---- {} ----", unit.name));
        ui.bytes(unit.text.as_bytes());
    }
}

/// Prints what maintenance has done and left.
pub fn print_report(ui: &mut Ui, report: &Report) {
    if ui.format == Format::Json {
        return ui.json(report);
    }
    for line in &report.done {
        ui.remark(format!("{}   {line}", report.cluster));
    }
    for line in &report.would {
        ui.remark(format!("{}   would be: {line}", report.cluster));
    }
    for line in &report.left {
        ui.remark(format!("{}   left: {line}", report.cluster));
    }
    let lines = [&report.done, &report.would, &report.left];
    if lines.iter().all(|lines| lines.is_empty()) && report.failed.is_empty() {
        ui.remark(format!("{}   nothing to do", report.cluster));
    }
}
