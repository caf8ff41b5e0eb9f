//! Drills: one that runs, what it came to, and those that ran before.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Format, Tone, Ui, Verbosity};
use crate::engine::record::Failure;
use crate::error::Error;
use crate::ops::drill::{Event, Held, Kept, Phase, Report, Verdict};
use crate::topology::model::DrillTarget;
use crate::units::{ByteCount, human_duration};

/// How often somebody who reads a log is told that it goes on.
const EVERY: Duration = Duration::from_secs(30);

/// Shows a drill while it runs, until its events end.
pub async fn draw(ui: &mut Ui, herd: &str, cluster: &str, mut events: UnboundedReceiver<Event>) {
    let name = format!("{herd}/{cluster}");
    let drawn = ui.format != Format::Json && ui.verbosity > Verbosity::Quiet && io::stderr().is_terminal();
    let bar = drawn.then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("  {spinner} {prefix}   {msg}")
            .expect("the template is well-formed");
        bar.set_style(style);
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    });
    let mut next = Instant::now() + EVERY;
    while let Some(event) = events.recv().await {
        let text = match event {
            Event::Phase(phase) => phase.text().to_owned(),
            Event::Chosen { target, seed, directory } => {
                let seed = seed.map(|seed| format!(" (seed {seed})")).unwrap_or_default();
                let text = format!("{name}   a copy of {target}{seed} in {}", directory.display());
                match &bar {
                    Some(bar) => bar.suspend(|| ui.note(text)),
                    None if ui.format != Format::Json => ui.note(text),
                    None => {}
                }
                continue;
            }
            Event::Progress(progress) => {
                let text = format!("{}   {} of {}", Phase::Fetch.text(), progress.done, progress.total);
                if bar.is_none() && ui.format != Format::Json && Instant::now() >= next {
                    next = Instant::now() + EVERY;
                    ui.note(format!("  … {name}   {text}"));
                }
                text
            }
        };
        if let Some(bar) = &bar {
            bar.set_message(text);
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// Returns the JSON document of drills.
pub fn document(reports: &[Report]) -> serde_json::Value {
    super::versioned(&json!({"drills": reports}))
}

/// Prints what drills came to, in the form that was asked for.
pub fn print(ui: &mut Ui, reports: &[Report]) {
    if ui.format == Format::Json {
        ui.json(&json!({"drills": reports}));
        return;
    }
    for report in reports {
        for line in lines(ui, report) {
            match report.verdict {
                Verdict::Passed => ui.remark(line),
                Verdict::Failed | Verdict::Error => ui.line(line),
            }
        }
        for note in &report.notes {
            ui.note(format!("NOTE:   {note}"));
        }
        if let Some(left) = &report.left {
            ui.message(format!(
                "The copy is in {left}; nothing runs there. Remove it when you have looked at it."
            ));
        }
    }
}

/// Returns why a drill did not run to its end.
pub fn error(failure: &Failure) -> Error {
    Error::from(failure)
}

fn lines(ui: &Ui, report: &Report) -> Vec<String> {
    let (tone, word) = match report.verdict {
        Verdict::Passed => (Tone::Good, "PASSED"),
        Verdict::Failed => (Tone::Bad, "FAILED"),
        Verdict::Error => (Tone::Bad, "ERROR "),
    };
    let mut lines = vec![format!("{}   {}", ui.paint(tone, word), what(report))];
    if !report.phases.is_empty() {
        lines.push(format!("         {}", way(report)));
    }
    if let Some(freshness) = &report.freshness {
        let age = human_duration(Duration::from_secs_f64(freshness.age_seconds));
        let since =
            if freshness.written_since == Some(false) { ", and nothing was written since" } else { "" };
        lines.push(format!("         newest archived commit was {age} old{since}"));
    }
    for judged in &report.objectives {
        let met = |met: bool| if met { ui.paint(Tone::Good, "OK") } else { ui.paint(Tone::Bad, "MISSED") };
        let rto = report.rto_seconds.unwrap_or_default();
        let rpo = report.freshness.as_ref().map(|freshness| freshness.rpo_seconds).unwrap_or_default();
        let of = |found: f64, declared: f64| {
            let text = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
            format!("{} of {}", text(found), text(declared))
        };
        lines.push(format!(
            "goal     {}   rto {}  {}   rpo {}  {}   ({})",
            judged.objective,
            of(rto, judged.declared_rto_seconds),
            met(judged.rto_met),
            of(rpo, judged.declared_rpo_seconds),
            met(judged.rpo_met),
            judged.why,
        ));
    }
    for proof in &report.proofs {
        let held = match proof.held {
            Held::Yes => ui.paint(Tone::Good, "holds"),
            Held::No => ui.paint(Tone::Bad, "does not hold"),
            Held::Skipped => ui.paint(Tone::Warning, "not tried"),
        };
        lines.push(format!("proof    {}   {held}: {}", proof.name, proof.found.replace('\n', "\n         ")));
    }
    let left = report.left.as_deref().unwrap_or("nothing");
    lines.push(format!("left     {left}"));
    lines
}

fn what(report: &Report) -> String {
    let name = &report.cluster;
    let moment = match (report.target, report.seed) {
        (Some(target), Some(seed)) => {
            format!("{} (random second, seed {seed})", target.strftime("%Y-%m-%d %H:%M:%S UTC"))
        }
        (Some(target), None) => target.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        (None, _) => match report.to {
            DrillTarget::Newest => "the newest archived moment".to_owned(),
            DrillTarget::RandomSecond => "a random second".to_owned(),
        },
    };
    let from = report.backup.as_ref().map(|backup| format!(" from {backup}")).unwrap_or_default();
    match report.verdict {
        Verdict::Passed | Verdict::Failed => format!("{name} restored to {moment}{from}"),
        Verdict::Error => format!("{name} could not be restored to {moment}{from}; nothing is proved"),
    }
}

/// Returns `choose 0.4 s · fetch 3m12s 96 MiB/s · replay 1m40s · start 6 s · checks 38 s = 5m36s`.
fn way(report: &Report) -> String {
    let parts: Vec<String> = report
        .phases
        .iter()
        .map(|time| {
            let mut text =
                format!("{} {}", time.phase.text(), human_duration(Duration::from_secs_f64(time.seconds)));
            if let (Phase::Fetch, Some(copied)) = (time.phase, &report.copied) {
                let rate = ByteCount((copied.size_bytes.0 as f64 / time.seconds.max(0.001)) as u64);
                text.push_str(&format!(" {rate}/s"));
            }
            text
        })
        .collect();
    let all = report.rto_seconds.map(|all| format!(" = {}", human_duration(Duration::from_secs_f64(all))));
    format!("{}{}", parts.join(" · "), all.unwrap_or_default())
}

/// Prints the drills that ran before, by cluster, oldest first.
pub fn print_list(ui: &mut Ui, found: &[(String, Vec<Kept>)]) {
    let all = || found.iter().flat_map(|(_, kept)| kept);
    if ui.format == Format::Json {
        let reports: Vec<&Report> = all().filter_map(|kept| kept.report.as_ref().ok()).collect();
        ui.json(&json!({"drills": reports}));
    } else {
        for (cluster, kept) in found {
            if kept.is_empty() {
                ui.line(format!("{cluster}   no drill yet"));
            }
            for report in kept.iter().filter_map(|kept| kept.report.as_ref().ok()) {
                let line = summary(ui, report);
                ui.line(line);
            }
        }
    }
    for error in all().filter_map(|kept| kept.report.as_ref().err()) {
        ui.message(format!("WARNING  {error}: {}", error.detail_text().unwrap_or_default()));
    }
}

fn summary(ui: &Ui, report: &Report) -> String {
    let (tone, word) = match report.verdict {
        Verdict::Passed => (Tone::Good, "passed"),
        Verdict::Failed => (Tone::Bad, "failed"),
        Verdict::Error => (Tone::Bad, "error "),
    };
    let took =
        report.rto_seconds.map(|rto| format!("   in {}", human_duration(Duration::from_secs_f64(rto))));
    format!(
        "{}   {}   {}   {}{}",
        report.id,
        report.begun.strftime("%Y-%m-%d %H:%M:%S UTC"),
        ui.paint(tone, word),
        what(report),
        took.unwrap_or_default()
    )
}
