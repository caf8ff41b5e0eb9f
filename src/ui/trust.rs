//! What becomes of finished backups: verified, expired, pinned.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Format, Tone, Ui, Verbosity};
use crate::ops::backup::expire::Expired;
use crate::ops::backup::pin::Before;
use crate::ops::backup::retention::{Fate, LockedWal, State, Tally, Verdict as Fated, WalVerdict};
use crate::ops::backup::transfer::Transferred;
use crate::ops::backup::verify::{Beside, BesideVerified, LostSpan, Problem, ProblemKind, Verdict, Verified};
use crate::ops::node::{Progress, VerifyDepth};
use crate::repo::layout::Label;
use crate::topology::model::Backups;
use crate::units::{ByteCount, human_duration};

/// How often somebody who reads a log is told that it goes on.
const EVERY: Duration = Duration::from_secs(30);
/// How often a program is told how far it is.
const EVERY_JSON: Duration = Duration::from_secs(1);

/// Shows how far work on a repository is, until nothing more is told.
pub async fn draw(
    ui: &mut Ui,
    herd: &str,
    cluster: &str,
    message_type: &str,
    mut stream: UnboundedReceiver<Progress>,
) {
    let drawn = ui.format != Format::Json && ui.verbosity > Verbosity::Quiet && io::stderr().is_terminal();
    let bar = drawn.then(|| {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("  {spinner} {prefix}   {bar:24} {percent} %   {msg}");
        bar.set_style(style.expect("the template is well-formed"));
        bar.set_prefix(format!("{herd}/{cluster}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    });
    let begun = Instant::now();
    let mut next = begun + if ui.format == Format::Json { EVERY_JSON } else { EVERY };
    while let Some(progress) = stream.recv().await {
        let rate = progress.done.0 as f64 / begun.elapsed().as_secs_f64().max(0.001);
        if let Some(bar) = &bar {
            bar.set_length(progress.total.0);
            bar.set_position(progress.done.0);
            bar.set_message(how_far(progress, rate));
        } else if Instant::now() >= next && ui.format == Format::Json {
            next = Instant::now() + EVERY_JSON;
            let body = json!({
                "cluster": cluster, "done_bytes": progress.done, "total_bytes": progress.total,
                "bytes_per_second": rate as u64,
            });
            ui.json_line(message_type, &body);
        } else if Instant::now() >= next {
            next = Instant::now() + EVERY;
            ui.note(format!("  … {herd}/{cluster}   {}", how_far(progress, rate)));
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

fn how_far(progress: Progress, rate: f64) -> String {
    format!("{} of {}   {}/s", progress.done, progress.total, ByteCount(rate as u64))
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

// ---- verify ------------------------------------------------------------------------------------------------------------

/// Prints what a verification found.
pub fn print_verified(ui: &mut Ui, herd: &str, verified: &Verified) {
    if ui.format == Format::Json {
        ui.json_line("backups_verified", verified);
        return;
    }
    let said = format!("{herd}/{}   {}", verified.cluster, depth(verified));
    if verified.verdict == Verdict::Sound {
        ui.remark(said)
    } else {
        ui.line(said)
    }
    for backup in &verified.backups {
        let word = match backup.verdict {
            Verdict::Sound => ui.paint(Tone::Good, "sound  "),
            Verdict::CannotTell => ui.paint(Tone::Warning, "UNKNOWN"),
            Verdict::Damaged => ui.paint(Tone::Bad, "DAMAGED"),
        };
        let read = match verified.depth {
            VerifyDepth::Quick => format!("{} objects, {}", backup.objects, backup.stored),
            VerifyDepth::Sampled => {
                format!("{} of {} chunks read, {} stored", backup.chunks_read, backup.chunks, backup.stored)
            }
            VerifyDepth::Full => format!(
                "{} chunks and {} files read, {} stored",
                backup.chunks_read, backup.files_read, backup.stored
            ),
        };
        let line = format!("  {}   {word}   {}", backup.label, backup.why.as_ref().unwrap_or(&read));
        if backup.verdict == Verdict::Sound { ui.remark(line) } else { ui.line(line) }
    }
    for wal in &verified.wal {
        ui.remark(format!(
            "  WAL of system {}   {} files, {}; {} read",
            wal.system_identifier, wal.files, wal.stored, wal.files_read
        ));
    }
    for (kind, word) in [(Beside::Export, "exports"), (Beside::Dump, "dumps")] {
        let of: Vec<&BesideVerified> = verified.beside.iter().filter(|one| one.kind == kind).collect();
        if !of.is_empty() {
            let stored = ByteCount(of.iter().map(|one| one.stored.0).sum());
            let read = of.iter().filter(|one| one.read).count();
            let rows: u64 = of.iter().filter_map(|one| one.rows).sum();
            let rows = if kind == Beside::Export { format!(" with {rows} rows") } else { String::new() };
            ui.remark(format!("  {word}   {}{rows}, {stored}; {read} read", of.len()));
        }
    }
    for problem in &verified.problems {
        print_problem(ui, problem);
    }
    print_lost(ui, verified);
    for label in &verified.unfinished {
        ui.note(format!(
            "NOTE:   {label} has no manifest: it is being made, or was interrupted. It is no backup."
        ));
    }
    if !verified.strays.is_empty() {
        let names: Vec<String> = verified.strays.iter().take(5).map(ToString::to_string).collect();
        let more = if verified.strays.len() > 5 { ", …" } else { "" };
        ui.note(format!(
            "NOTE:   {} objects were not put there by pgherd: {}{more}",
            verified.strays.len(),
            names.join(", ")
        ));
    }
    let took = human_duration(Duration::from_secs_f64(verified.seconds));
    let read = format!("{} read in {took}", verified.bytes_read);
    match verified.verdict {
        Verdict::Sound => ui.remark(format!("Nothing is wrong: {}.   {read}", proves(verified.depth))),
        Verdict::CannotTell => {
            ui.line(format!("Not everything could be read; nothing of the rest is wrong.   {read}"));
        }
        Verdict::Damaged => {
            ui.line(format!("{} objects are damaged or missing.   {read}", damaged(verified)));
            next_after(ui, verified);
        }
    }
}

fn next_after(ui: &Ui, verified: &Verified) {
    let beside = |problem: &&Problem| {
        verified.beside.iter().any(|one| problem.object.as_str().starts_with(one.folder.as_str()))
    };
    let damaged = || verified.problems.iter().filter(|problem| problem.kind != ProblemKind::Unreadable);
    if damaged().count() > damaged().filter(beside).count() || !verified.lost.is_empty() {
        ui.note("next     pgherd backup create   (a new backup depends on nothing that is damaged)");
    }
    if verified.beside.iter().any(|one| one.kind == Beside::Dump && one.verdict == Verdict::Damaged) {
        ui.note(
            "next     pgherd dump list   (another dump of it may be whole; pgherd run JOB makes a new one)",
        );
    }
}

fn damaged(verified: &Verified) -> usize {
    let damaged = |problem: &&Problem| problem.kind != ProblemKind::Unreadable;
    verified.problems.iter().filter(damaged).count()
}

fn depth(verified: &Verified) -> String {
    match verified.depth {
        VerifyDepth::Quick => "verified from listings and small documents".to_owned(),
        VerifyDepth::Sampled => format!("verified by chance, seed {}", verified.seed),
        VerifyDepth::Full => "verified in every byte".to_owned(),
    }
}

/// Says what a depth can say.
fn proves(depth: VerifyDepth) -> &'static str {
    match depth {
        VerifyDepth::Quick => "every object is there; what is in data and WAL was not read",
        VerifyDepth::Sampled => "every object is there, and what was read is what was stored",
        VerifyDepth::Full => "every byte is what was stored",
    }
}

fn print_problem(ui: &mut Ui, problem: &Problem) {
    let word = match problem.kind {
        ProblemKind::Damaged => ui.paint(Tone::Bad, "DAMAGED"),
        ProblemKind::Missing => ui.paint(Tone::Bad, "MISSING"),
        ProblemKind::Unreadable => ui.paint(Tone::Warning, "UNREADABLE"),
    };
    ui.line(format!("{word}  {}: {}", problem.object, problem.why));
    if !problem.files.is_empty() {
        let more = match problem.more_files {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        ui.line(format!("         files with bytes in it: {}{more}", problem.files.join(", ")));
    }
}

/// Says what can no longer be restored.
fn print_lost(ui: &mut Ui, verified: &Verified) {
    let word = ui.paint(Tone::Bad, "LOST");
    for backup in verified.backups.iter().filter(|backup| backup.verdict == Verdict::Damaged) {
        ui.line(format!("{word}     backup {} cannot be restored whole", backup.label));
    }
    for one in verified.beside.iter().filter(|one| one.verdict == Verdict::Damaged) {
        ui.line(format!(
            "{word}     {}",
            match one.kind {
                Beside::Export =>
                    format!("the rows of {}, which were dropped when they had been exported", one.name),
                Beside::Dump => format!("dump {} cannot be handed out", one.name),
            }
        ));
    }
    for span in &verified.lost {
        ui.line(format!("{word}     {}", lost_span(span)));
    }
}

fn lost_span(span: &LostSpan) -> String {
    let after =
        span.after.map_or_else(|| "from the first backup on".to_owned(), |at| format!("after {}", clock(at)));
    let until = span
        .until
        .map_or_else(|| "to the end of the archive".to_owned(), |at| format!("until {}", clock(at)));
    format!(
        "what was committed {after}, {until}, cannot be restored (timeline {}, {} to {})",
        span.timeline, span.from_lsn, span.to_lsn
    )
}

// ---- expire ------------------------------------------------------------------------------------------------------------

/// Prints what goes and what stays.
pub fn print_expiry(ui: &mut Ui, herd: &str, backups: &Backups, expired: &Expired) {
    if ui.format == Format::Json {
        ui.json_line("backups_expiring", expired);
        return;
    }
    ui.line(format!("{herd}/{}   {}", expired.cluster, rules(backups, expired)));
    for verdict in &expired.decision.backups {
        ui.line(backup_line(ui, verdict));
    }
    for wal in &expired.decision.wal {
        wal_lines(ui, wal).into_iter().for_each(|line| ui.line(line));
    }
    for export in &expired.exports {
        ui.line(format!(
            "  - export {}   {:>9}   {} rows, up to {}, kept for {}",
            export.table,
            export.stored.to_string(),
            export.rows,
            export.to.strftime("%Y-%m-%d %H:%M:%S"),
            export.keep
        ));
    }
    for locked in &expired.locked_exports {
        let stored = locked.stored.to_string();
        ui.line(format!("    export {}   {stored:>9}   locked until {}", locked.table, clock(locked.until)));
    }
    for unusable in &expired.unusable {
        ui.message(format!("WARNING:  {} cannot be used: {}", unusable.object, unusable.why));
    }
    if !expired.strays.is_empty() {
        ui.note(format!(
            "NOTE:   {} objects were not put there by pgherd and stay; the first is {}",
            expired.strays.len(),
            expired.strays[0]
        ));
    }
    ui.line(if expired.is_empty() {
        "Nothing goes.".to_owned()
    } else {
        format!("Frees {}.", expired.freed())
    });
}

fn rules(backups: &Backups, expired: &Expired) -> String {
    let window = backups.window.zip(expired.decision.window_begin);
    let window =
        window.map(|(window, begin)| format!("window {} (from {})", human_duration(window), clock(begin)));
    let keep_full = backups.keep_full.map(|keep| format!("keep-full {keep}"));
    let minimum = Some(format!("minimum-full {}", backups.minimum_full));
    let parts: Vec<String> = [window, keep_full, minimum].into_iter().flatten().collect();
    parts.join("   ")
}

fn backup_line(ui: &Ui, verdict: &Fated) -> String {
    let state = match &verdict.state {
        State::Whole => String::new(),
        State::Broken(why) => format!("   {}: {why}", ui.paint(Tone::Bad, "not whole")),
        State::Unfinished => "   unfinished".to_owned(),
    };
    let (mark, why) = match &verdict.fate {
        Fate::Goes(gone) => ("-", gone.to_string()),
        Fate::Stays(because) => (" ", because.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    format!("  {mark} {}   {:>9}   {why}{state}", verdict.label, verdict.stored.to_string())
}

fn wal_lines(ui: &Ui, wal: &WalVerdict) -> Vec<String> {
    let line = |mark: &str, tally: &Tally, why: String| {
        let last = tally.last.map_or_else(String::new, |last| format!(" to {last}"));
        let first = tally.first.map_or_else(String::new, |first| format!("{first}{last}"));
        format!("  {mark} WAL   {:>9}   {} files, {first}{why}", tally.stored.to_string(), tally.files)
    };
    let because = format!("   {}", ui.paint(Tone::Faint, &wal.because.to_string()));
    let mut lines = Vec::new();
    if wal.goes.files > 0 {
        lines.push(line("-", &wal.goes, String::new()));
    }
    if let Some(LockedWal { tally, until }) = &wal.locked {
        lines.push(line(" ", tally, format!("   locked until {}", clock(*until))));
    }
    if wal.stays.files > 0 {
        lines.push(line(" ", &wal.stays, because));
    }
    lines
}

/// Prints what was removed.
pub fn print_removed(ui: &mut Ui, herd: &str, expired: &Expired) {
    if ui.format == Format::Json {
        ui.json_line("backups_expired", expired);
        return;
    }
    let Some(removed) = &expired.removed else { return };
    if !expired.is_empty() {
        ui.remark(format!(
            "{herd}/{}   removed {} backups, {} WAL files and {} exports, {} are free",
            expired.cluster,
            removed.backups.len(),
            removed.wal_files,
            removed.exports,
            removed.freed
        ));
    }
    if removed.uploads > 0 {
        ui.remark(format!(
            "{herd}/{}   gave up {} uploads that nobody finished",
            expired.cluster, removed.uploads
        ));
    }
    for label in &expired.spared {
        ui.message(format!("WARNING:  {label} stays: somebody began to use it, or a rule keeps it by now"));
    }
}

// ---- copy --------------------------------------------------------------------------------------------------------------

/// Says what was copied from one repository into another one.
pub fn print_transferred(ui: &mut Ui, herd: &str, transferred: &Transferred) {
    if ui.format == Format::Json {
        ui.json_line("backups_copied", transferred);
        return;
    }
    let of = format!("{herd}/{}", transferred.cluster);
    for backup in &transferred.backups {
        let taken_over = match backup.taken_over {
            ByteCount(0) => String::new(),
            bytes => format!(", {bytes} of it were there from an interrupted copy"),
        };
        ui.remark(format!("{of}   {} copied, {}{taken_over}", backup.label, backup.stored));
    }
    ui.remark(format!(
        "{of}   {} backups, {} WAL files and {} exports copied, {} in {:.1} s; {} were there",
        transferred.backups.len(),
        transferred.wal,
        transferred.exports,
        transferred.stored,
        transferred.seconds,
        transferred.there
    ));
    if transferred.pins > 0 {
        ui.remark(format!("{of}   {} pinned there as here", transferred.pins));
    }
    ui.remark(format!("{:indent$}   {} → {}", "", transferred.from, transferred.to, indent = of.len()));
    for backup in &transferred.left {
        ui.message(format!("WARNING:  {} was left out: {}", backup.label, backup.why));
    }
    for object in &transferred.left_objects {
        ui.message(format!("WARNING:  {}", object.why));
    }
}

// ---- pin ---------------------------------------------------------------------------------------------------------------

/// Says that a backup is pinned.
pub fn print_pinned(
    ui: &mut Ui,
    herd: &str,
    cluster: &str,
    label: &Label,
    until: Option<Timestamp>,
    before: &Before,
) {
    if ui.format == Format::Json {
        ui.json(
            &json!({"cluster": cluster, "label": label, "pinned": true, "until": until, "before": before}),
        );
        return;
    }
    let until =
        until.map_or_else(|| "until it is unpinned".to_owned(), |until| format!("until {}", clock(until)));
    ui.remark(format!("{herd}/{cluster}   {label} stays {until}"));
    print_before(ui, before);
}

/// Says that a backup is not pinned.
pub fn print_unpinned(ui: &mut Ui, herd: &str, cluster: &str, label: &Label, before: &Before) {
    if ui.format == Format::Json {
        ui.json(&json!({"cluster": cluster, "label": label, "pinned": false, "before": before}));
        return;
    }
    ui.remark(match before {
        Before::NotPinned => format!("{herd}/{cluster}   {label} was not pinned"),
        Before::Pinned(_) | Before::Unreadable(_) => {
            format!("{herd}/{cluster}   {label} is left to the rules: pgherd backup expire --preview")
        }
    });
    print_before(ui, before);
}

fn print_before(ui: &Ui, before: &Before) {
    match before {
        Before::NotPinned => {}
        Before::Pinned(pin) => {
            let until = pin
                .until
                .map_or_else(|| "without an end".to_owned(), |until| format!("until {}", clock(until)));
            let reason = if pin.reason.is_empty() { String::new() } else { format!(": {}", pin.reason) };
            ui.note(format!("before   pinned by {} at {}, {until}{reason}", pin.by, clock(pin.at)));
        }
        Before::Unreadable(why) => ui.message(format!("WARNING:  it had a pin that cannot be read: {why}")),
    }
}
