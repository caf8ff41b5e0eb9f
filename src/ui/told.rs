//! What a person is told of an operation: the text of its steps and events. Prints nothing itself.
//!
//! One fold, [`OperationView`], is behind bars, lines, JSON lines and a past journal.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::{Tone, paint};
use crate::engine::event::{Event, EventKind};
use crate::engine::record::{Failure, OperationId, Record};
use crate::engine::step::{Reversal, Unit};
use crate::engine::view::{OperationView, ProgressView, StepState, StepView};
use crate::units::{ByteCount, human_duration};

/// The operations of a run as their events tell them.
#[derive(Debug, Default)]
pub(super) struct Live(BTreeMap<OperationId, OperationView>);

impl Live {
    /// Takes an event in and returns its operation as it is now; `None` for one that did not say that it begins.
    pub(super) fn fold(&mut self, event: &Event) -> Option<&OperationView> {
        if let EventKind::Begun(view) = &event.kind {
            self.0.insert(event.operation.clone(), (**view).clone());
        }
        let view = self.0.get_mut(&event.operation)?;
        match &event.kind {
            // The driver has folded this record before it told it; a picture that fails must not stop an operation.
            EventKind::Recorded(record) => view.fold(event.at, record).unwrap_or(()),
            EventKind::Progress { stage, step, progress } => view.note_progress(*stage, *step, *progress),
            EventKind::Begun(_)
            | EventKind::Pausing { .. }
            | EventKind::Warning { .. }
            | EventKind::Interrupted => {}
        }
        Some(view)
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = &OperationView> {
        self.0.values()
    }
}

/// Returns what a person is told of an event, if anything; `view` is the operation after it.
pub(super) fn told(view: &OperationView, kind: &EventKind, color: bool) -> Option<String> {
    match kind {
        EventKind::Begun(_) => Some(headline(view)),
        EventKind::Recorded(record) => match &**record {
            Record::StepDone { stage, step, .. }
            | Record::StepFailed { stage, step, .. }
            | Record::StepFound { stage, step, .. }
            | Record::UndoDone { stage, step }
            | Record::UndoFailed { stage, step, .. } => Some(step_line(view, *stage, *step, color)),
            Record::TurnedBack { why, .. } => {
                let undoing = paint(color, Tone::Warning, "undoing what was begun");
                Some(format!("  {undoing}: {}", in_short(why)))
            }
            Record::Resumed { .. }
            | Record::Header(_)
            | Record::StepStarted { .. }
            | Record::UndoStarted { .. }
            | Record::TakenOver { .. }
            | Record::TakenFromCopy { .. }
            | Record::Abandoned { .. }
            | Record::Ended { .. } => None,
        },
        EventKind::Pausing { stage, step, pause } => {
            let describe = &view.stages[*stage].steps[*step].describe;
            Some(format!("    {describe}: again in {}", human_duration(*pause)))
        }
        EventKind::Warning { text } => Some(format!("  {}: {text}", paint(color, Tone::Warning, "WARNING"))),
        EventKind::Interrupted => {
            let then = match (&view.turned_back, view.pivot_passed()) {
                (Some(_), _) => "the undo goes on to its end",
                (None, true) => "what runs is awaited, the rest is left for a resume",
                (None, false) => "what runs is awaited, then everything is undone",
            };
            Some(format!(
                "  {}: {then}; once more to stop at once and leave it as it is",
                paint(color, Tone::Warning, "interrupted")
            ))
        }
        EventKind::Progress { .. } => None,
    }
}

fn headline(view: &OperationView) -> String {
    let all = view.steps().count();
    let done = view.steps().filter(|step| matches!(step.state, StepState::Done(_))).count();
    let steps = match (view.steps().any(|step| step.started.is_some()), all) {
        (true, _) => format!("goes on after {done} of {all} steps"),
        (false, 1) => "1 step".to_owned(),
        (false, _) => format!("{all} steps"),
    };
    format!("operation {}   {} {}   {steps}", view.id, view.kind, view.cluster)
}

const WIDEST_STEP: usize = 64;

/// Returns a step with its number in the plan, aligned with the others of its operation.
pub(super) fn step_name(view: &OperationView, stage: usize, step: usize) -> String {
    let widest = view.steps().map(|step| step.describe.chars().count()).max().unwrap_or(0);
    let digits = view.stages.len().to_string().len();
    let describe = &view.stages[stage].steps[step].describe;
    format!("{:>digits$} {describe:<width$}", stage + 1, width = widest.min(WIDEST_STEP))
}

/// Returns a step with what has become of it: `  ✓ 1 initdb inventory-a    0.9 s`.
pub(super) fn step_line(view: &OperationView, stage: usize, step: usize, color: bool) -> String {
    let seen = &view.stages[stage].steps[step];
    let why = || seen.error.as_ref().map(in_short).unwrap_or_default();
    let took = took(seen).map(human_duration).unwrap_or_default();
    let (tone, mark, text) = match &seen.state {
        StepState::Waiting if seen.reversal == Reversal::ForwardOnly => {
            (Tone::Faint, "·", "pivot: after it there is only forward".to_owned())
        }
        StepState::Waiting => (Tone::Faint, "·", String::new()),
        StepState::Unsure => (Tone::Warning, "?", "not known to have begun".to_owned()),
        StepState::Running => (Tone::Warning, "…", "begun".to_owned()),
        StepState::Done(_) if took.is_empty() => (Tone::Good, "✓", "found done".to_owned()),
        StepState::Done(_) => (Tone::Good, "✓", took),
        StepState::Failed => (Tone::Bad, "✗", format!("{took}   {}", why())),
        StepState::NotDone => (Tone::Faint, "·", "has not happened".to_owned()),
        StepState::CannotTell(text) => (Tone::Warning, "?", text.clone()),
        StepState::Undoing => (Tone::Warning, "…", "undo begun".to_owned()),
        StepState::UndoFailed => (Tone::Bad, "✗", format!("could not be undone: {}", why())),
        StepState::Undone => (Tone::Faint, "↩", "undone".to_owned()),
    };
    let line = format!("  {} {}   {text}", paint(color, tone, mark), step_name(view, stage, step));
    line.trim_end().to_owned()
}

fn took(step: &StepView) -> Option<Duration> {
    let span = step.ended?.duration_since(step.started?);
    Duration::try_from(span).ok()
}

/// Returns an error in one line: what, and the causes.
pub(super) fn in_short(failure: &Failure) -> String {
    let mut text = failure.what.clone();
    for cause in &failure.causes {
        text.push_str(": ");
        text.push_str(cause);
    }
    text
}

/// Returns how far a running step is: `12.4 MiB of 24.1 MiB   118.3 MiB/s`; empty if it does not say.
pub(super) fn how_far(step: &StepView, now: Timestamp) -> String {
    let Some(ProgressView { done, total, unit }) = step.progress else { return String::new() };
    let amount = |number: u64| match unit {
        Unit::Bytes => ByteCount(number).to_string(),
        Unit::Items => number.to_string(),
    };
    let of = total.map(|total| format!(" of {}", amount(total))).unwrap_or_default();
    let running = step.started.and_then(|from| Duration::try_from(now.duration_since(from)).ok());
    let per_second = match (unit, running) {
        (Unit::Bytes, Some(running)) if running >= Duration::from_secs(1) => {
            let speed = u128::from(done) * 1000 / running.as_millis();
            format!("   {}/s", ByteCount(u64::try_from(speed).unwrap_or(u64::MAX)))
        }
        (Unit::Bytes | Unit::Items, _) => String::new(),
    };
    format!("{}{of}{per_second}", amount(done))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::journal;

    const RESTORED: &[u8] = include_bytes!("../../tests/golden/journal-v1-restored.jsonl");

    /// Folds a journal as if its records came as events, and returns what was told.
    fn retold(bytes: &[u8]) -> (Live, Vec<String>) {
        let entries = journal::parse(Path::new("7f3a.jsonl"), bytes).unwrap().unwrap().entries;
        let first = Box::new(OperationView::begin(&entries[0]).unwrap());
        let operation = first.id.clone();
        let later =
            entries[1..].iter().map(|entry| (entry.at, EventKind::Recorded(Box::new(entry.record.clone()))));
        let mut live = Live::default();
        let mut lines = Vec::new();
        for (at, kind) in std::iter::once((first.begun, EventKind::Begun(first))).chain(later) {
            let event = Event { seq: 0, at, operation: operation.clone(), kind };
            lines.extend(told(live.fold(&event).unwrap(), &event.kind, false));
        }
        (live, lines)
    }

    #[test]
    fn an_operation_reads_as_it_went() {
        let (_, lines) = retold(RESTORED);
        let expected = "\
operation 7f3a   apply inventory   4 steps
  ✓ 1 initdb inventory-a   500 ms
  ✗ 1 start inventory-b    500 ms   could not start inventory-b: pg_ctl start ended with status 1
  ✗ 1 start inventory-b    250 ms   could not start inventory-b: pg_ctl start ended with status 1
  ? 1 start inventory-b    a postmaster.pid of another host
  · 1 start inventory-b    has not happened
  ✓ 1 start inventory-b    found done
  undoing what was begun: could not start inventory-b: pg_ctl start ended with status 1
  ↩ 1 start inventory-b    undone
  ✗ 1 initdb inventory-a   could not be undone: could not remove it: pg_ctl start ended with status 1
  ↩ 1 initdb inventory-a   undone";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn a_running_step_says_how_far_and_how_fast_it_is() {
        let mut view = journal::parse(Path::new("7f3a.jsonl"), RESTORED).unwrap().unwrap().view;
        let step = &mut view.stages[0].steps[0];
        step.started = Some(Timestamp::UNIX_EPOCH);
        let later = Timestamp::from_second(2).unwrap();
        assert_eq!(how_far(step, later), "");
        step.progress = Some(ProgressView { done: 12 << 20, total: Some(24 << 20), unit: Unit::Bytes });
        assert_eq!(how_far(step, later), "12 MiB of 24 MiB   6 MiB/s");
        assert_eq!(how_far(step, Timestamp::UNIX_EPOCH), "12 MiB of 24 MiB");
        step.progress = Some(ProgressView { done: 3, total: None, unit: Unit::Items });
        assert_eq!(how_far(step, later), "3");
    }

    #[test]
    fn an_interrupt_says_what_follows() {
        let (live, _) = retold(&RESTORED[..RESTORED.iter().position(|byte| *byte == b'\n').unwrap() + 1]);
        let view = live.operations().next().unwrap();
        let line = told(view, &EventKind::Interrupted, false).unwrap();
        assert!(
            line.starts_with("  interrupted: what runs is awaited, then everything is undone;"),
            "{line}"
        );
    }
}
