//! Backups: one that is being made, as a bar, lines or JSON lines, and what has become of it.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Format, Tone, Ui, Verbosity};
use crate::ops::backup::list::{
    BackupFacts, BackupItem, BackupState, ClusterBackups, RunningBackup, ShownBackup,
};
use crate::ops::backup::{Created, Event, Phase};
use crate::ops::node::{DamagedFile, Progress};
use crate::repo::layout::Label;
use crate::repo::manifest::{Source, Tablespace};
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
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => live.take(ui, event),
                None => break,
            },
            () = tokio::time::sleep_until(live.next) => live.tell(ui),
        }
    }
    if let Some(bar) = live.bar {
        bar.finish_and_clear();
    }
}

struct Live {
    name: String,
    cluster: String,
    bar: Option<ProgressBar>,
    phase: Phase,
    /// While it copies: how far it is, and when and where the copy began to be measured.
    copy: Option<(Progress, Instant, ByteCount)>,
    /// When the next line is due.
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
        let next = Instant::now() + every(ui);
        Self { name, cluster, bar, phase: Phase::ChecksArchiving, copy: None, next }
    }

    fn take(&mut self, ui: &mut Ui, event: Event) {
        match event {
            Event::Phase(phase) => {
                self.phase = phase;
                self.copy = None;
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
                let body = json!({"label": label, "node": node, "from": from, "why": why});
                self.json(ui, "backup_begun", &body);
            }
            Event::Progress(progress) => {
                let (_, since, from) = self.copy.unwrap_or((progress, Instant::now(), progress.done));
                self.copy = Some((progress, since, from));
                if let (Some(bar), Some(speed)) = (&self.bar, self.speed()) {
                    bar.set_length(progress.total.0);
                    bar.set_position(progress.done.0);
                    bar.set_message(how_far(progress, speed));
                }
            }
        }
    }

    /// Tells readers of a log, and programs, that it goes on.
    fn tell(&mut self, ui: &mut Ui) {
        self.next = Instant::now() + every(ui);
        let copy = self.copy.zip(self.speed());
        if ui.format == Format::Json {
            let Some(((progress, ..), speed)) = copy else { return };
            let body = json!({
                "done_bytes": progress.done, "total_bytes": progress.total, "stored_bytes": progress.stored,
                "bytes_per_second": speed.rate, "seconds_left": speed.left.map(|left| left.as_secs()),
            });
            self.json(ui, "backup_progress", &body);
        } else if self.bar.is_none() {
            let how = match copy {
                Some(((progress, ..), speed)) => how_far(progress, speed),
                None => self.phase.text().to_owned(),
            };
            ui.note(format!("  … {}   {how}", self.name));
        }
    }

    fn speed(&self) -> Option<Speed> {
        let (progress, since, from) = self.copy?;
        let seconds = since.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { (progress.done.0 - from.0) as f64 / seconds } else { 0.0 };
        let left = progress.total.0.saturating_sub(progress.done.0) as f64;
        let left = (rate > 0.0).then(|| Duration::from_secs_f64((left / rate).min(1e9)));
        Some(Speed { rate: ByteCount(rate as u64), left })
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

fn every(ui: &Ui) -> Duration {
    if ui.format == Format::Json { EVERY_JSON } else { EVERY }
}

#[derive(Debug, Clone, Copy)]
struct Speed {
    /// Bytes a second.
    rate: ByteCount,
    left: Option<Duration>,
}

/// Returns `1.1 GiB of 18.2 GiB   96.3 MiB/s   3m02s left`.
fn how_far(progress: Progress, speed: Speed) -> String {
    let mut text = format!("{} of {}", progress.done, progress.total);
    if let Some(left) = speed.left {
        text.push_str(&format!("   {}/s   {} left", speed.rate, human_duration(left)));
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
    if created.taken_over_bytes.0 > 0 {
        ui.remark(format!(
            "  resumed  {} of it had an aborted backup stored already",
            created.taken_over_bytes
        ));
    }
    for note in &created.notes {
        ui.note(format!("NOTE:   {note}"));
    }
    print_damaged(ui, created.damaged_pages, &created.damaged);
}

#[derive(Serialize)]
struct Lists<'a> {
    herd: &'a str,
    clusters: &'a [ClusterBackups],
}

/// Prints the backups of clusters.
pub fn print_list(ui: &mut Ui, herd: &str, lists: &[ClusterBackups]) {
    if ui.format == Format::Json {
        ui.json(&Lists { herd, clusters: lists });
        return;
    }
    for (index, list) in lists.iter().enumerate() {
        if index > 0 {
            ui.line("");
        }
        ui.line(format!("{herd}/{}   backups in {}", list.cluster, list.repository));
        if list.backups.is_empty() {
            ui.line("  none   next: pgherd backup create");
            continue;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["", "label", "state", "from", "ended", "took", "size", "stored", "WAL", "note"]);
        for item in &list.backups {
            table.add_row(row(ui, item));
        }
        for line in table.lines() {
            ui.line(line.trim_end());
        }
    }
}

fn row(ui: &Ui, item: &BackupItem) -> Vec<String> {
    let (word, tone) = match item.state {
        BackupState::Whole => ("whole", Tone::Good),
        BackupState::DamagedPages => ("damaged pages", Tone::Bad),
        BackupState::Running => ("running", Tone::Good),
        BackupState::Unfinished => ("unfinished", Tone::Warning),
        BackupState::Unreadable => ("unreadable", Tone::Bad),
    };
    let none = || "-".to_owned();
    let fact = |text: &dyn Fn(&BackupFacts) -> String| item.facts.as_ref().map_or_else(none, text);
    let mut notes: Vec<String> = item.why.iter().cloned().collect();
    notes.extend(item.running.as_ref().map(running));
    notes.extend(item.pin.as_ref().map(|pin| match pin.until {
        Some(until) => format!("pinned until {until:.0}"),
        None => "pinned".to_owned(),
    }));
    vec![
        String::new(),
        item.label.to_string(),
        ui.paint(tone, word),
        fact(&|facts| facts.node.clone()),
        fact(&|facts| facts.ended.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
        fact(&|facts| human_duration(Duration::from_secs_f64(facts.seconds))),
        fact(&|facts| facts.size_bytes.to_string()),
        fact(&|facts| facts.stored_bytes.to_string()),
        fact(&|facts| format!("{} …", facts.first_segment)),
        notes.join("; "),
    ]
}

/// Returns `copies   1.1 GiB of 18.2 GiB   96 MiB/s   3m02s left   by dba on db1 (pid 4711)`.
pub(super) fn running(running: &RunningBackup) -> String {
    let mut parts = Vec::new();
    if let Some(progress) = &running.progress {
        parts.push(progress.phase.clone());
        if progress.total.0 > 0 {
            parts.push(format!("{} of {}", progress.done, progress.total));
        }
        let left = progress.total.0.saturating_sub(progress.done.0);
        if let Some(left) = left.checked_div(progress.rate.0) {
            parts.push(format!("{}/s", progress.rate));
            parts.push(format!("{} left", human_duration(Duration::from_secs(left))));
        }
    }
    parts.push(format!("by {}", running.by));
    parts.join("   ")
}

/// Prints one backup in full.
pub fn print_shown(ui: &mut Ui, herd: &str, shown: &ShownBackup) {
    if ui.format == Format::Json {
        ui.json(shown);
        return;
    }
    let item = &shown.item;
    ui.line(format!("{herd}/{}   {}   in {}", shown.cluster, item.label, shown.repository));
    let mut lines: Vec<(&str, String)> = Vec::new();
    let word = match item.state {
        BackupState::Whole => "whole".to_owned(),
        BackupState::DamagedPages => "whole, with damaged pages".to_owned(),
        BackupState::Running => "running".to_owned(),
        BackupState::Unfinished => "unfinished".to_owned(),
        BackupState::Unreadable => "unreadable".to_owned(),
    };
    lines.push(("state", item.why.as_ref().map_or(word.clone(), |why| format!("{word}: {why}"))));
    lines.extend(item.running.as_ref().map(|made| ("progress", running(made))));
    lines.push(("system", item.system_identifier.to_string()));
    if let Some(facts) = &item.facts {
        let from = match facts.from {
            Source::Primary => "primary",
            Source::Standby => "standby",
        };
        lines.push(("from", format!("{} ({from}), PostgreSQL {}", facts.node, facts.server_version)));
        let took = human_duration(Duration::from_secs_f64(facts.seconds));
        lines.push(("begun", format!("{:.3}", facts.begun)));
        lines.push(("ended", format!("{:.3}, after {took}", facts.ended)));
        lines.push(("size", format!("{} in {} files", facts.size_bytes, facts.files)));
        lines
            .push(("LSN", format!("{} to {}, timeline {}", facts.start_lsn, facts.stop_lsn, facts.timeline)));
        lines.push(("WAL", format!("{} to {}", facts.first_segment, facts.last_segment)));
        let checksums =
            if facts.data_checksums { "checked" } else { "not checked: the cluster has no checksums" };
        lines.push(("pages", checksums.to_owned()));
        for tablespace in &facts.tablespaces {
            let Tablespace { oid, location, size } = tablespace;
            lines.push(("tablespace", format!("{oid}   {}   {size}", location.display())));
        }
        if !facts.needs.is_empty() {
            let needs: Vec<&str> = facts.needs.iter().map(Label::as_str).collect();
            lines.push(("needs", needs.join(", ")));
        }
        lines.push(("made by", format!("pgherd {}", facts.pgherd)));
    }
    lines.push(("occupies", format!("{} in {} objects", shown.occupied_bytes, shown.objects)));
    if let Some(pin) = &item.pin {
        let until = pin.until.map_or_else(|| "for good".to_owned(), |until| format!("until {until:.0}"));
        lines.push(("pinned", format!("{until} by {}: {}", pin.by, pin.reason)));
    }
    for (name, text) in lines {
        ui.line(format!("  {name:<10} {text}"));
    }
    let pages = item.facts.as_ref().map_or(0, |facts| facts.damaged_pages);
    print_damaged(ui, pages, &shown.damaged);
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
