//! Backups: one that is being made, as a bar, lines or JSON lines, and what has become of it.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Format, Tone, Ui, Verbosity};
use crate::ops::backup::{Created, Event, Phase};
use crate::ops::node::{DamagedFile, Progress};
use crate::units::{ByteCount, human_duration};

/// How often somebody who reads a log is told that it goes on.
const EVERY: Duration = Duration::from_secs(30);
/// How often a program is told how far it is.
const EVERY_JSON: Duration = Duration::from_secs(1);
/// How many damaged files are named.
const NAMED: usize = 10;

/// Shows a backup while it is made, until its events end.
pub async fn draw(ui: &mut Ui, herd: &str, cluster: &str, mut events: UnboundedReceiver<Event>) {
    let mut live = Live::new(ui, format!("{herd}/{cluster}"), cluster.to_owned());
    while let Some(event) = events.recv().await {
        live.take(ui, event);
    }
    if let Some(bar) = live.bar {
        bar.finish_and_clear();
    }
}

struct Live {
    name: String,
    cluster: String,
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
    /// When and where the copy began to be measured.
    since: Option<(Instant, ByteCount)>,
    next: Instant,
}

impl Live {
    fn new(ui: &Ui, name: String, cluster: String) -> Self {
        let drawn =
            ui.format != Format::Json && ui.verbosity > Verbosity::Quiet && io::stderr().is_terminal();
        let bar = drawn.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            bar.set_style(waiting());
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { name, cluster, bar, phase: None, since: None, next: Instant::now() + EVERY }
    }

    fn take(&mut self, ui: &mut Ui, event: Event) {
        match event {
            Event::Phase(phase) => {
                self.phase = Some(phase);
                if let Some(bar) = &self.bar {
                    bar.set_style(if phase == Phase::Copies { copying() } else { waiting() });
                    bar.set_message(phase.text());
                }
                self.json(ui, "backup_phase", &json!({"phase": phase}));
            }
            Event::Chosen { label, node, from, why } => {
                let text = format!("{}   {label} from {node}, {why}", self.name);
                match &self.bar {
                    Some(bar) => bar.suspend(|| ui.note(text)),
                    None if ui.format != Format::Json => ui.note(text),
                    None => {}
                }
                self.json(
                    ui,
                    "backup_begun",
                    &json!({"label": label, "node": node, "from": from, "why": why}),
                );
            }
            Event::Progress(progress) => self.progress(ui, progress),
        }
    }

    fn progress(&mut self, ui: &mut Ui, progress: Progress) {
        let now = Instant::now();
        let (since, from) = *self.since.get_or_insert((now, progress.done));
        let seconds = (now - since).as_secs_f64();
        let rate = if seconds > 0.0 { (progress.done.0 - from.0) as f64 / seconds } else { 0.0 };
        let left = progress.total.0.saturating_sub(progress.done.0) as f64;
        let eta = (rate > 0.0).then(|| Duration::from_secs_f64((left / rate).min(1e9)));
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total.0);
            bar.set_position(progress.done.0);
            bar.set_message(how_far(progress, rate, eta));
            return;
        }
        if now < self.next {
            return;
        }
        if ui.format == Format::Json {
            self.next = now + EVERY_JSON;
            self.json(
                ui,
                "backup_progress",
                &json!({
                    "done_bytes": progress.done, "total_bytes": progress.total, "stored_bytes": progress.stored,
                    "bytes_per_second": rate as u64, "seconds_left": eta.map(|eta| eta.as_secs()),
                }),
            );
        } else {
            self.next = now + EVERY;
            ui.note(format!("  … {}   {}", self.name, how_far(progress, rate, eta)));
        }
    }

    fn json(&self, ui: &mut Ui, message_type: &str, body: &serde_json::Value) {
        if ui.format == Format::Json {
            let mut fields = serde_json::Map::new();
            fields.insert("cluster".to_owned(), self.cluster.clone().into());
            if let serde_json::Value::Object(body) = body {
                fields.extend(body.clone());
            }
            ui.json_line(message_type, &fields);
        }
    }
}

/// Returns `1.1 GiB of 18.2 GiB   96.3 MiB/s   3m02s left`.
fn how_far(progress: Progress, rate: f64, eta: Option<Duration>) -> String {
    let mut text = format!("{} of {}", progress.done, progress.total);
    if let Some(eta) = eta {
        text.push_str(&format!("   {}/s   {} left", ByteCount(rate as u64), human_duration(eta)));
    }
    text
}

fn copying() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}   {bar:24} {percent} %   {msg}")
        .expect("the template is well-formed")
}

fn waiting() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}   {msg}").expect("the template is well-formed")
}

/// Prints a backup that was made.
pub fn print_created(ui: &mut Ui, herd: &str, created: &Created) {
    if ui.format == Format::Json {
        ui.json_line("backup_created", created);
        return;
    }
    let rate = ByteCount((created.size_bytes.0 as f64 / created.copy_seconds.max(0.001)) as u64);
    ui.remark(format!("{herd}/{}   {}   full", created.cluster, created.label));
    ui.remark(format!("  from     {} ({})", created.node, created.why));
    ui.remark(format!(
        "  size     {} in {} files, {} stored in {}",
        created.size_bytes, created.files, created.stored_bytes, created.repository
    ));
    ui.remark(format!(
        "  took     {}   copied with {}/s by {} workers",
        human_duration(Duration::from_secs_f64(created.seconds)),
        rate,
        created.workers
    ));
    ui.remark(format!(
        "  WAL      {} to {}, all in the repository   consistent from {} on",
        created.wal.0, created.wal.1, created.stop_lsn
    ));
    for note in &created.notes {
        ui.note(format!("NOTE:   {note}"));
    }
    print_damaged(ui, created.damaged_pages, &created.damaged);
}

/// Names the damaged pages of a backup.
fn print_damaged(ui: &Ui, pages: u64, damaged: &[DamagedFile]) {
    if pages == 0 {
        return;
    }
    let word = ui.paint(Tone::Bad, "WARNING");
    ui.message(format!(
        "{word}  {pages} pages have a wrong checksum on the node; they are in the backup as they are."
    ));
    for file in damaged.iter().take(NAMED) {
        let blocks: Vec<String> = file.blocks.iter().take(NAMED).map(u32::to_string).collect();
        let more = if file.blocks.len() > NAMED { ", …" } else { "" };
        ui.message(format!("         {} blocks {}{more}", file.path, blocks.join(", ")));
    }
    if damaged.len() > NAMED {
        ui.message(format!("         and {} more files", damaged.len() - NAMED));
    }
    ui.message("HINT:   Keep the older backups, and find out what is in these blocks: pg_amcheck, pg_relation_filenode().");
}
