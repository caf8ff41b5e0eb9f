//! A restore: what it would do, how far it is, what it has achieved.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::{Format, Tone, Ui, Verbosity};
use crate::ops::drill::RtoEstimate;
use crate::ops::node::restore::{Target, clock};
use crate::ops::restore::prepare::{GivenUp, Moved};
use crate::ops::restore::scratch::{DirectoryState, Event, Phase, Preview, Report, State};
use crate::ops::restore::standby::Rebuilt;
use crate::ops::restore::survey::Survey;
use crate::pg::wal_record::{Mark, MarkKind};
use crate::units::{ByteCount, human_duration};

/// How often somebody who reads a log is told that it goes on.
const EVERY: Duration = Duration::from_secs(30);
/// How often a program is told how far it is.
const EVERY_JSON: Duration = Duration::from_secs(1);

/// Prints what a restore would do.
pub fn print_preview(ui: &mut Ui, herd: &str, preview: &Preview, estimate: Option<&RtoEstimate>) {
    if ui.format == Format::Json {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            preview: &'a Preview,
            estimate: Option<&'a RtoEstimate>,
        }
        ui.json(&Document { preview, estimate });
        return;
    }
    let survey = &preview.survey;
    let choice = &survey.choice;
    let manifest = &survey.manifest;
    ui.line(format!("{herd}/{}   restore to {}", preview.cluster, preview.directory.display()));
    ui.line(format!("  target   {}", target_line(preview)));
    ui.line(format!(
        "  backup   {} of {}, {}, consistent from {} on   timelines {}",
        choice.backup,
        manifest.node,
        manifest.size,
        clock(manifest.ended),
        timelines(survey)
    ));
    let count = choice.segments();
    ui.line(format!(
        "  fetch    {} + {count} WAL segment{} ({}), {count} present, 0 missing",
        manifest.stored,
        plural(count),
        survey.wal_stored
    ));
    for room in &preview.room {
        ui.line(format!(
            "  room     {} needs {}, {} free",
            room.path.display(),
            room.needed_bytes,
            room.free_bytes
        ));
    }
    ui.line(format!("  RTO      {}", rto(estimate)));
    ui.line(format!("  gives up {}", given_up(&preview.gives_up)));
    ui.line(format!("  touches  {}", touches(preview)));
    for obstacle in &preview.obstacles {
        let word = ui.paint(Tone::Bad, "OBSTACLE");
        ui.line(format!("{word} {obstacle}"));
    }
    for note in &preview.notes {
        ui.note(format!("NOTE:   {note}"));
    }
    if preview.obstacles.is_empty() {
        ui.remark("next     the same without --preview");
    }
}

fn rto(estimate: Option<&RtoEstimate>) -> String {
    let Some(estimate) = estimate else {
        return "no estimate: no drill of this cluster was measured yet (pgherd drill run restore)"
            .to_owned();
    };
    let seconds = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
    format!(
        "about {}, by drill {} of {}: files came with {}/s, {} of WAL took {}",
        seconds(estimate.seconds),
        estimate.drill,
        clock(estimate.begun),
        estimate.fetch_rate,
        estimate.replayed,
        seconds(estimate.replay_seconds)
    )
}

fn target_line(preview: &Preview) -> String {
    let choice = &preview.survey.choice;
    let line = |mark: &Mark| {
        let what = match &mark.kind {
            MarkKind::Commit { xid } | MarkKind::Abort { xid } | MarkKind::Prepare { xid } => {
                format!("xid {xid}")
            }
            MarkKind::RestorePoint { name } => name.clone(),
        };
        format!("{what} at {}, LSN {}", clock(mark.at), mark.lsn)
    };
    let last = match &choice.last {
        Some(mark) => format!("last commit: {}, timeline {}", line(mark), choice.timeline_at(mark.lsn)),
        None => format!("timeline {}", choice.timeline),
    };
    match choice.target {
        Target::Immediate => format!("{}   LSN {}", preview.target, choice.consistent_at),
        Target::Latest | Target::Time(_) | Target::Lsn(_) | Target::Xid(_) | Target::Name(_) => {
            format!("{}   {last}", preview.target)
        }
    }
}

fn timelines(survey: &Survey) -> String {
    let numbers: Vec<String> = survey.choice.timelines.iter().map(ToString::to_string).collect();
    match numbers.len() {
        1 => numbers[0].clone(),
        _ => format!("{}, every history file present", numbers.join(" → ")),
    }
}

fn touches(preview: &Preview) -> String {
    let mut paths = vec![preview.directory.display().to_string()];
    paths.extend(
        preview.tablespaces.iter().map(|moved| format!("{} (tablespace {})", moved.to.display(), moved.oid)),
    );
    let state = match preview.directory_state {
        DirectoryState::New | DirectoryState::Empty => "",
        DirectoryState::Unfinished => " (an unfinished restore is there, and is gone on with)",
        DirectoryState::Finished => " (a finished copy is there)",
        DirectoryState::NotEmpty => " (it is not empty)",
    };
    format!("{}{state} only; production is not touched, and the copy archives nothing", paths.join(", "))
}

/// Says what is lost if the copy takes the cluster's place.
fn given_up(given: &GivenUp) -> String {
    let mut parts = Vec::new();
    if let Some(seconds) = given.seconds {
        parts.push(human_duration(Duration::from_secs_f64(seconds)));
    }
    match (given.primary_transactions, given.archived_commits) {
        (Some(count), _) => parts.push(format!("at most {count} transaction{}", plural(count))),
        (None, Some(count)) => parts.push(format!("{count} archived transaction{}", plural(count))),
        (None, None) => {}
    }
    if parts.is_empty() {
        return "not known: no primary answers, and there is too much WAL behind the target to count"
            .to_owned();
    }
    let until = match given.archived_until {
        Some(until) => format!(" (archived until {})", clock(until)),
        None => String::new(),
    };
    format!(
        "{} behind the target{until}, if it takes the cluster's place; nothing, if you only look at it",
        parts.join(" = ")
    )
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Prints a restore that is done.
pub fn print_report(ui: &mut Ui, herd: &str, report: &Report) {
    if ui.format == Format::Json {
        ui.json_line("restored", report);
        return;
    }
    let took = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
    ui.remark(format!(
        "{herd}/{}   restored to {} from {}",
        report.cluster,
        report.directory.display(),
        report.label
    ));
    ui.remark(format!("  target   {}", report.target));
    if let Some(achieved) = &report.achieved {
        ui.remark(format!(
            "  reached  LSN {} on timeline {}, last transaction {}",
            achieved.lsn,
            achieved.timeline,
            last_transaction(achieved.last_transaction)
        ));
        ui.remark(format!("  gives up {}", given_up(&report.gives_up)));
    }
    let rate = ByteCount((report.copied.size.0 as f64 / report.seconds.copy.max(0.001)) as u64);
    let mut phases = vec![
        format!("choose {}", took(report.seconds.choose)),
        format!("copy {} ({}, {rate}/s)", took(report.seconds.copy), report.copied.size),
    ];
    if report.achieved.is_some() {
        phases.push(format!("replay {}", took(report.seconds.replay)));
    }
    if report.promoted_to.is_some() {
        phases.push(format!("promote {}", took(report.seconds.promote)));
    }
    ui.remark(format!("  took     {} = {}", took(report.seconds.all), phases.join(" + ")));
    ui.remark(format!("  state    {}", state_line(report)));
    if matches!(report.state, State::Promoted | State::Paused) {
        ui.remark(format!("  connect  {}", connect(report)));
    }
    for Moved { oid, to, .. } in &report.tablespaces {
        ui.remark(format!("  tablespace {oid} is in {}", to.display()));
    }
    ui.remark(format!("  remove   {}", remove(report)));
    for note in &report.notes {
        ui.note(format!("NOTE:   {note}"));
    }
}

/// Prints a standby that was made anew.
pub fn print_rebuilt(ui: &mut Ui, herd: &str, rebuilt: &Rebuilt) {
    if ui.format == Format::Json {
        ui.json_line("rebuilt", rebuilt);
        return;
    }
    let took = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
    ui.remark(format!(
        "{herd}/{}   {} streams from {} on timeline {}, made anew from {}",
        rebuilt.cluster, rebuilt.node, rebuilt.primary, rebuilt.timeline, rebuilt.label
    ));
    let rate = ByteCount((rebuilt.copied.size.0 as f64 / rebuilt.seconds.copy.max(0.001)) as u64);
    ui.remark(format!(
        "  took     {} = choose {} + copy {} ({}, {rate}/s) + catch up {}",
        took(rebuilt.seconds.all),
        took(rebuilt.seconds.choose),
        took(rebuilt.seconds.copy),
        rebuilt.copied.size,
        took(rebuilt.seconds.replay)
    ));
    for Moved { oid, to, .. } in &rebuilt.tablespaces {
        ui.remark(format!("  tablespace {oid} is in {}", to.display()));
    }
    for aside in &rebuilt.set_aside {
        ui.remark(format!("  before   {} is in {}", aside.from.display(), aside.to.display()));
    }
    if !rebuilt.set_aside.is_empty() {
        let paths: Vec<String> =
            rebuilt.set_aside.iter().map(|aside| aside.to.display().to_string()).collect();
        ui.remark(format!("  remove   rm -r {}", paths.join(" ")));
    }
    for note in &rebuilt.notes {
        ui.note(format!("NOTE:   {note}"));
    }
}

fn last_transaction(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "before the backup".to_owned(), clock)
}

fn state_line(report: &Report) -> String {
    match (report.state, report.promoted_to) {
        (State::Promoted, Some(timeline)) => {
            format!("accepts writes, on a timeline of its own ({timeline}) that is archived nowhere")
        }
        (State::Promoted, None) => "accepts writes".to_owned(),
        (State::Paused, _) => "paused at its target: can be read; SELECT pg_promote() opens it".to_owned(),
        (State::Stopped, _) => "stopped at its target".to_owned(),
        (State::ReadyToStart, _) => format!(
            "complete, not started: {} start -D {}",
            report.bin_directory.join("pg_ctl").display(),
            report.directory.display()
        ),
    }
}

fn connect(report: &Report) -> String {
    let port = if report.port == crate::ops::restore::scratch::PORT {
        String::new()
    } else {
        format!(" -p {}", report.port)
    };
    format!("psql -h {}{port} -U {}", report.socket_directory.display(), report.superuser)
}

fn remove(report: &Report) -> String {
    let mut paths = vec![report.directory.display().to_string(), report.beside.display().to_string()];
    paths.extend(report.tablespaces.iter().map(|moved| moved.to.display().to_string()));
    let stop = match report.state {
        State::Promoted | State::Paused => format!(
            "{} stop -D {} && ",
            report.bin_directory.join("pg_ctl").display(),
            report.directory.display()
        ),
        State::Stopped | State::ReadyToStart => String::new(),
    };
    format!("{stop}rm -r {}", paths.join(" "))
}

/// Shows a restore while it runs, until its events end.
pub async fn draw(ui: &mut Ui, herd: &str, cluster: &str, mut events: UnboundedReceiver<Event>) {
    let mut live = Live::new(ui, format!("{herd}/{cluster}"), cluster.to_owned());
    while let Some(event) = events.recv().await {
        live.take(ui, &event);
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
    /// When and where the present phase began to be measured.
    since: Option<(Instant, u64)>,
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
            bar.set_message("chooses backup and WAL");
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { name, cluster, bar, phase: None, since: None, next: Instant::now() + EVERY }
    }

    fn take(&mut self, ui: &mut Ui, event: &Event) {
        match event {
            Event::Phase(phase) => {
                self.phase = Some(*phase);
                self.since = None;
                if let Some(bar) = &self.bar {
                    let measured = matches!(phase, Phase::Copies | Phase::Recovers);
                    bar.set_style(if measured { moving() } else { waiting() });
                    bar.set_message(phase.text());
                }
                self.json(ui, "restore_phase", &json!({"phase": phase}));
            }
            Event::Progress(progress) => {
                self.progress(ui, progress.done.0, progress.total.0, &json!({}));
            }
            Event::Replay { at, from, to } => {
                let done = at.as_u64().saturating_sub(from.as_u64());
                let total = to.as_u64().saturating_sub(from.as_u64()).max(done);
                self.progress(ui, done, total, &json!({"replayed_lsn": at}));
            }
        }
    }

    fn progress(&mut self, ui: &mut Ui, done: u64, total: u64, more: &serde_json::Value) {
        let now = Instant::now();
        let (since, from) = *self.since.get_or_insert((now, done));
        let seconds = (now - since).as_secs_f64();
        let rate = if seconds > 0.0 { done.saturating_sub(from) as f64 / seconds } else { 0.0 };
        let left = total.saturating_sub(done) as f64;
        let eta = (rate > 0.0).then(|| Duration::from_secs_f64((left / rate).min(1e9)));
        let what = self.phase.map_or("", Phase::text);
        let mut text = format!("{what} {} of {}", ByteCount(done), ByteCount(total));
        if let Some(eta) = eta {
            text.push_str(&format!("   {}/s   {} left", ByteCount(rate as u64), human_duration(eta)));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(text);
            return;
        }
        if now < self.next {
            return;
        }
        if ui.format == Format::Json {
            self.next = now + EVERY_JSON;
            let mut body = json!({
                "phase": self.phase, "done_bytes": done, "total_bytes": total,
                "bytes_per_second": rate as u64, "seconds_left": eta.map(|eta| eta.as_secs()),
            });
            if let (serde_json::Value::Object(body), serde_json::Value::Object(more)) = (&mut body, more) {
                body.extend(more.clone());
            }
            self.json(ui, "restore_progress", &body);
        } else {
            self.next = now + EVERY;
            ui.note(format!("  … {}   {text}", self.name));
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

fn moving() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}   {bar:24} {percent} %   {msg}")
        .expect("the template is well-formed")
}

fn waiting() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}   {msg}").expect("the template is well-formed")
}
