//! Running operations as plain lines on stderr, for logs and pipes: one when a step ends, and one for each running step every
//! 30 seconds, so that nobody takes a long clone for a hang.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Ui;
use super::told::{Live, how_far, step_name, told};
use crate::engine::event::EventStream;
use crate::engine::view::{OperationView, StepState};
use crate::units::human_duration;

const EVERY: Duration = Duration::from_secs(30);

/// Prints the events of a stream to its end.
pub(super) async fn draw(ui: &Ui, mut stream: EventStream) {
    let mut live = Live::default();
    let mut next = Instant::now() + EVERY;
    loop {
        tokio::select! {
            event = stream.next() => {
                let Some(event) = event else { return };
                let line = live.fold(&event).and_then(|view| told(view, &event.kind, ui.stderr_color));
                if let Some(line) = line {
                    ui.note(line);
                    next = Instant::now() + EVERY;
                }
            }
            () = tokio::time::sleep_until(next) => {
                live.operations().flat_map(|view| still_running(view, Timestamp::now())).for_each(|line| ui.note(line));
                next = Instant::now() + EVERY;
            }
        }
    }
}

/// Returns a line for each step that runs: `  … 4 clone inventory-b   1.1 GiB of 18.2 GiB   96.3 MiB/s   0m12s`.
fn still_running(view: &OperationView, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for (stage, steps) in view.stages.iter().enumerate() {
        for (step, seen) in steps.steps.iter().enumerate() {
            if !matches!(seen.state, StepState::Running | StepState::Undoing) {
                continue;
            }
            let since = seen.started.and_then(|from| Duration::try_from(now.duration_since(from)).ok());
            let parts =
                [step_name(view, stage, step), how_far(seen, now), human_duration(since.unwrap_or_default())];
            let text: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            lines.push(format!("  … {}", text.join("   ")));
        }
    }
    lines
}
