//! Operations from their journals: the list of them, and one with its steps.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::told::{in_short, step_line};
use super::{Format, Tone, Ui};
use crate::engine::lock::Holder;
use crate::engine::record::{Actor, End, Failure, OperationId};
use crate::engine::step::Reversal;
use crate::engine::view::{Ended, Note, OperationView, StepState};
use crate::error::Error;

/// An operation with where its journal is.
#[derive(Debug)]
pub struct Row {
    pub view: OperationView,
    pub seat: Seat,
}

/// Where the journal of an operation was read.
#[derive(Debug)]
pub enum Seat {
    /// Here; with the process that drives it now.
    Here(Option<Holder>),
    /// On these hosts: another station writes it, or did.
    Copied(Vec<String>),
}

impl Seat {
    fn holder(&self) -> Option<&Holder> {
        match self {
            Self::Here(holder) => holder.as_ref(),
            Self::Copied(_) => None,
        }
    }

    fn copies(&self) -> &[String] {
        match self {
            Self::Here(_) => &[],
            Self::Copied(hosts) => hosts,
        }
    }
}

/// A journal of a listing that cannot be trusted.
#[derive(Debug)]
pub struct Damaged {
    pub file: String,
    pub error: Error,
}

/// Where an operation stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Running,
    /// Its process is gone, and it has not ended.
    Stopped,
    /// Another station began it, and the copies of its journal have no end.
    Elsewhere,
    Done,
    Restored,
    Incomplete,
    Stuck,
    Abandoned,
}

impl State {
    fn of(row: &Row) -> Self {
        match &row.view.ended {
            Some(Ended::By(End::Done)) => Self::Done,
            Some(Ended::By(End::Restored { .. })) => Self::Restored,
            Some(Ended::Abandoned { .. }) => Self::Abandoned,
            Some(Ended::By(End::Incomplete { .. })) => Self::Incomplete,
            Some(Ended::By(End::Stuck { .. })) => Self::Stuck,
            None => match &row.seat {
                Seat::Here(Some(_)) => Self::Running,
                Seat::Here(None) => Self::Stopped,
                Seat::Copied(_) => Self::Elsewhere,
            },
        }
    }

    fn word(self) -> (Tone, &'static str) {
        match self {
            Self::Running => (Tone::Good, "running"),
            Self::Stopped => (Tone::Bad, "stopped"),
            Self::Elsewhere => (Tone::Warning, "elsewhere"),
            Self::Done => (Tone::Good, "done"),
            Self::Restored => (Tone::Faint, "undone"),
            Self::Incomplete => (Tone::Warning, "incomplete"),
            Self::Stuck => (Tone::Bad, "stuck"),
            Self::Abandoned => (Tone::Faint, "abandoned"),
        }
    }
}

/// Returns the commands that go on with an operation, the likelier first.
fn next(row: &Row) -> Vec<String> {
    let view = &row.view;
    let state = State::of(row);
    match state {
        State::Running | State::Done | State::Restored | State::Abandoned => Vec::new(),
        State::Elsewhere | State::Incomplete | State::Stuck if matches!(row.seat, Seat::Copied(_)) => {
            vec![view.id.takeover_command()]
        }
        State::Elsewhere | State::Stopped | State::Incomplete | State::Stuck => {
            let undo = (!view.pivot_passed() && view.turned_back.is_none()).then(|| view.id.undo_command());
            std::iter::once(view.id.resume_command()).chain(undo).collect()
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    operations: Vec<Item<'a>>,
    damaged: Vec<DamagedItem<'a>>,
}

#[derive(Serialize)]
struct DamagedItem<'a> {
    file: &'a str,
    error: &'a str,
}

#[derive(Serialize)]
struct Item<'a> {
    operation: &'a OperationId,
    kind: &'a str,
    cluster: &'a str,
    state: State,
    begun: Timestamp,
    last: Timestamp,
    by: &'a Actor,
    /// Who drives it now.
    holder: Option<&'a Actor>,
    /// The hosts whose copy of the journal says this; none for a journal that is here.
    copies: &'a [String],
    topology: String,
    steps_done: usize,
    steps: usize,
    why: Option<&'a Failure>,
    next: Vec<String>,
}

#[derive(Serialize)]
struct Shown<'a> {
    operation: Item<'a>,
    stages: Vec<Vec<StepItem<'a>>>,
    notes: Vec<NoteItem<'a>>,
}

#[derive(Serialize)]
struct StepItem<'a> {
    describe: &'a str,
    reversal: Reversal,
    state: &'static str,
    started: Option<Timestamp>,
    ended: Option<Timestamp>,
    attempts: u32,
    undo_attempts: u32,
    error: Option<&'a Failure>,
}

#[derive(Serialize)]
struct NoteItem<'a> {
    at: Timestamp,
    what: &'static str,
    by: &'a Actor,
    reason: Option<&'a str>,
}

fn item(row: &Row) -> Item<'_> {
    let view = &row.view;
    Item {
        operation: &view.id,
        kind: &view.kind,
        cluster: &view.cluster,
        state: State::of(row),
        begun: view.begun,
        last: view.last,
        by: &view.by,
        holder: row.seat.holder().map(|holder| &holder.by),
        copies: row.seat.copies(),
        topology: view.topology.display().to_string(),
        steps_done: done(view),
        steps: view.steps().count(),
        why: why(view),
        next: next(row),
    }
}

fn done(view: &OperationView) -> usize {
    view.steps().filter(|step| matches!(step.state, StepState::Done(_))).count()
}

/// Returns why an operation ended without success, or turned back.
fn why(view: &OperationView) -> Option<&Failure> {
    match &view.ended {
        Some(Ended::By(End::Restored { why } | End::Incomplete { why } | End::Stuck { why })) => Some(why),
        Some(Ended::By(End::Done) | Ended::Abandoned { .. }) => None,
        None => view.turned_back.as_ref().map(|back| &back.why),
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Prints operations, oldest first; `hidden` older ones that ended are not among them.
pub fn print_list(ui: &mut Ui, rows: &[Row], damaged: &[Damaged], hidden: usize) {
    if ui.format == Format::Json {
        let operations = rows.iter().map(item).collect();
        let damaged = damaged
            .iter()
            .map(|damaged| DamagedItem { file: &damaged.file, error: damaged.error.what() })
            .collect();
        ui.json(&List { operations, damaged });
        return;
    }
    if rows.is_empty() && damaged.is_empty() {
        ui.remark("No operations.");
        return;
    }
    if !rows.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["id", "cluster", "kind", "begun (UTC)", "by", "steps", "state"]);
        for row in rows {
            let view = &row.view;
            let (tone, word) = State::of(row).word();
            table.add_row([
                view.id.to_string(),
                view.cluster.clone(),
                view.kind.clone(),
                time(view.begun),
                format!("{}@{}", view.by.user, view.by.host),
                format!("{} of {}", done(view), view.steps().count()),
                ui.paint(tone, word),
            ]);
        }
        for line in table.lines().collect::<Vec<_>>() {
            ui.line(format!(" {}", line.trim_end()));
        }
    }
    if hidden > 0 {
        ui.remark(format!("  and {hidden} older ones that ended: pgherd operation list --all"));
    }
    for row in rows {
        let commands = next(row);
        if !commands.is_empty() {
            ui.line(format!("next     {}", commands.join("   |   ")));
        }
    }
    for damaged in damaged {
        let word = ui.paint(Tone::Bad, "damaged");
        ui.line(format!("{word}  {}", damaged.error.what()));
    }
}

/// Prints an operation with its steps.
pub fn print_operation(ui: &mut Ui, row: &Row) {
    if ui.format == Format::Json {
        ui.json(&shown(row));
        return;
    }
    let view = &row.view;
    let (tone, word) = State::of(row).word();
    let word = ui.paint(tone, word);
    ui.line(format!("operation {}   {} {}   {word}", view.id, view.kind, view.cluster));
    ui.line(format!("begun    {} UTC by {}, pgherd {}", time(view.begun), view.by, view.by.version));
    ui.line(format!("topology {}", view.topology.display()));
    if !row.seat.copies().is_empty() {
        ui.line(format!(
            "copied   on {}: what its station did after {} UTC is not known here",
            row.seat.copies().join(", "),
            time(view.last)
        ));
    }
    if let Some(holder) = row.seat.holder() {
        ui.line(format!("driven   by {} since {} UTC", holder.by, time(holder.since)));
    }
    for (stage, steps) in view.stages.iter().enumerate() {
        for step in 0..steps.steps.len() {
            let line = step_line(view, stage, step, ui.stdout_color);
            ui.line(line);
        }
    }
    for (at, note) in &view.notes {
        let text = match note {
            Note::Resumed { by } => format!("resumed  {} UTC by {by}", time(*at)),
            Note::TakenOver { by, reason } => format!("taken    {} UTC by {by}: {reason}", time(*at)),
            Note::TakenFromCopy { by, reason, copies, unreachable } => {
                let missing = match unreachable.as_slice() {
                    [] => String::new(),
                    hosts => format!("; not looked at: {}", hosts.join(", ")),
                };
                format!(
                    "taken    {} UTC by {by} from the copy on {}{missing}: {reason}",
                    time(*at),
                    copies.join(", ")
                )
            }
        };
        ui.line(text);
    }
    if let Some(why) = why(view) {
        ui.line(format!("because  {}", in_short(why)));
        ui_detail(ui, why);
    }
    if let Some(Ended::Abandoned { by, reason }) = &view.ended {
        ui.line(format!("left     by {by}: {reason}"));
    }
    if view.ended.is_some() {
        ui.line(format!("ended    {} UTC", time(view.last)));
    }
    let commands = next(row);
    if !commands.is_empty() {
        ui.line(format!("next     {}", commands.join("   |   ")));
    }
}

fn ui_detail(ui: &mut Ui, why: &Failure) {
    for text in why.detail.iter().chain(&why.hint) {
        ui.line(format!("         {text}"));
    }
}

fn shown<'a>(row: &'a Row) -> Shown<'a> {
    let view = &row.view;
    let step_items = |steps: &'a [crate::engine::view::StepView]| {
        steps
            .iter()
            .map(|step| StepItem {
                describe: &step.describe,
                reversal: step.reversal,
                state: state_word(&step.state),
                started: step.started,
                ended: step.ended,
                attempts: step.attempts,
                undo_attempts: step.undo_attempts,
                error: step.error.as_ref(),
            })
            .collect()
    };
    let notes = view.notes.iter().map(|(at, note)| match note {
        Note::Resumed { by } => NoteItem { at: *at, what: "resumed", by, reason: None },
        Note::TakenOver { by, reason } => NoteItem { at: *at, what: "taken_over", by, reason: Some(reason) },
        Note::TakenFromCopy { by, reason, .. } => {
            NoteItem { at: *at, what: "taken_from_copy", by, reason: Some(reason) }
        }
    });
    Shown {
        operation: item(row),
        stages: view.stages.iter().map(|stage| step_items(&stage.steps)).collect(),
        notes: notes.collect(),
    }
}

fn state_word(state: &StepState) -> &'static str {
    match state {
        StepState::Waiting => "waiting",
        StepState::Unsure => "unsure",
        StepState::Running => "running",
        StepState::Failed => "failed",
        StepState::NotDone => "not_done",
        StepState::CannotTell(_) => "cannot_tell",
        StepState::Done(_) => "done",
        StepState::Undoing => "undoing",
        StepState::UndoFailed => "undo_failed",
        StepState::Undone => "undone",
    }
}
