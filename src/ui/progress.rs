//! Running operations on a terminal: a line on stderr for each step that has ended, and below them one that moves for each step
//! that runs.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use jiff::Timestamp;

use super::Ui;
use super::told::{Live, how_far, step_name, told};
use crate::engine::event::EventStream;
use crate::engine::record::OperationId;
use crate::engine::view::{OperationView, StepState};
use crate::units::human_duration;

const TICK: Duration = Duration::from_millis(100);

/// Draws the events of a stream to its end, and leaves only whole lines behind.
pub(super) async fn draw(ui: &Ui, mut stream: EventStream) {
    let mut live = Live::default();
    let mut bars =
        Bars { all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), running: BTreeMap::new() };
    while let Some(event) = stream.next().await {
        let Some(view) = live.fold(&event) else { continue };
        bars.follow(view);
        if let Some(line) = told(view, &event.kind, ui.stderr_color) {
            bars.all.suspend(|| ui.note(line));
        }
    }
    bars.all.clear().unwrap_or(());
}

struct Bars {
    all: MultiProgress,
    running: BTreeMap<(OperationId, usize, usize), ProgressBar>,
}

impl Bars {
    /// Makes a bar for each step that runs now, and takes away those of steps that do not.
    fn follow(&mut self, view: &OperationView) {
        for (stage, steps) in view.stages.iter().enumerate() {
            for (step, seen) in steps.steps.iter().enumerate() {
                let key = (view.id.clone(), stage, step);
                if !matches!(seen.state, StepState::Running | StepState::Undoing) {
                    if let Some(bar) = self.running.remove(&key) {
                        bar.finish_and_clear();
                        self.all.remove(&bar);
                    }
                    continue;
                }
                let bar = self.running.entry(key).or_insert_with(|| {
                    let bar = self.all.add(ProgressBar::new_spinner().with_style(style()));
                    bar.set_prefix(step_name(view, stage, step));
                    bar.enable_steady_tick(TICK);
                    bar
                });
                let undo = if seen.state == StepState::Undoing { "undo" } else { "" };
                let parts = [undo.to_owned(), how_far(seen, Timestamp::now())];
                let text: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                bar.set_message(text.join("   "));
            }
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {prefix}   {msg}   {took}")
        .expect("the template is well-formed")
        .with_key("took", |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            write!(text, "{}", human_duration(state.elapsed())).unwrap_or(());
        })
}
