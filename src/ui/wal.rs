//! The WAL archive: runs and gaps a timeline, and what can be restored.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::{Format, Tone, Ui};
use crate::ops::wal::{Run, SystemWal, TimelineWal, WalList, Window};

#[derive(Serialize)]
struct Document<'a> {
    herd: &'a str,
    clusters: &'a [WalList],
}

/// Prints archives in the form that was asked for.
pub fn print(ui: &mut Ui, herd: &str, lists: &[WalList]) {
    match ui.format {
        Format::Json => ui.json(&Document { herd, clusters: lists }),
        Format::Human | Format::Markdown => {
            let systems =
                lists.iter().flat_map(|list| list.systems.iter().map(|system| (&list.cluster, system)));
            for (index, (cluster, system)) in systems.enumerate() {
                if index > 0 {
                    ui.line("");
                }
                human(ui, &format!("{herd}/{cluster}"), system);
            }
        }
    }
}

fn human(ui: &mut Ui, name: &str, system: &SystemWal) {
    let mut head = vec![name.to_owned(), format!("system {}", system.system_identifier)];
    head.extend(system.segment_size.map(|size| format!("segments of {}", size.bytes())));
    ui.line(head.join("   "));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "timeline", "first", "last", "segments", "stored", "note"]);
    for timeline in &system.timelines {
        rows(ui, &mut table, timeline);
    }
    for line in table.lines() {
        ui.line(line.trim_end());
    }
    if system.windows.is_empty() {
        let none = ui.paint(Tone::Bad, "nothing can be restored");
        ui.line(format!("  {none}: no whole backup with the WAL that it needs"));
    }
    for window in &system.windows {
        ui.line(format!("  {}", restorable(ui, window)));
    }
    for label in &system.useless_backups {
        let missing = ui.paint(Tone::Bad, "WAL is missing");
        ui.line(format!("  {label}   {missing} that a restore of this backup needs"));
    }
}

/// The runs of a timeline with the gaps between them.
fn rows(ui: &Ui, table: &mut Table, timeline: &TimelineWal) {
    let mut runs: Vec<(&Run, bool)> = timeline.runs.iter().map(|run| (run, false)).collect();
    runs.extend(timeline.gaps.iter().map(|gap| (gap, true)));
    runs.sort_by_key(|(run, _)| run.first);
    let mut note = Vec::new();
    note.extend(
        timeline.begins.map(|begin| format!("from timeline {} at {}", begin.timeline.as_u32(), begin.lsn)),
    );
    if timeline.history_missing {
        note.push(ui.paint(Tone::Bad, &format!("{:08X}.history is missing", timeline.timeline.as_u32())));
    }
    note.extend(timeline.partials.iter().map(|name| format!("ends in {name}.partial")));
    let (mut id, mut stored, mut note) =
        (timeline.timeline.as_u32().to_string(), timeline.stored.to_string(), note.join(", "));
    if runs.is_empty() {
        table.add_row(["".to_owned(), id, String::new(), String::new(), "0".to_owned(), stored, note]);
        return;
    }
    for (run, gap) in runs {
        let (first, last, segments) = (run.first.to_string(), run.last.to_string(), run.segments.to_string());
        let row = if gap {
            let missing = ui.paint(Tone::Bad, "missing");
            [String::new(), String::new(), first, last, segments, String::new(), missing]
        } else {
            let taken = [&mut id, &mut stored, &mut note].map(std::mem::take);
            let [id, stored, note] = taken;
            [String::new(), id, first, last, segments, stored, note]
        };
        table.add_row(row);
    }
}

fn restorable(ui: &Ui, window: &Window) -> String {
    let words = ui.paint(Tone::Good, "can be restored");
    let mut text = format!(
        "{words}: {} to {}   (timeline {}, LSN {}, from backup {})",
        clock(window.first),
        clock(window.last),
        window.timeline.as_u32(),
        window.last_lsn,
        window.backup,
    );
    if let Some(missing) = window.ends_before {
        text.push_str(&format!("; then {missing} is missing"));
    }
    text
}

fn clock(at: Timestamp) -> String {
    format!("{} UTC", at.strftime("%Y-%m-%d %H:%M:%S%.f"))
}
