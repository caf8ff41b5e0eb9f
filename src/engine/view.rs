//! The state of an operation, folded from its records by one exhaustive match and never stored.
//!
//! The driver decides by it, and every picture of an operation, live or past, is drawn from it. No I/O and no clock.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::Value;

use crate::engine::record::{Actor, End, Entry, Failure, Header, OperationId, ProbeFound, Record};
use crate::engine::step::{Reversal, Unit};

/// An operation as its records tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationView {
    pub id: OperationId,
    pub kind: String,
    pub cluster: String,
    /// Who began it.
    pub by: Actor,
    pub topology: PathBuf,
    pub begun: Timestamp,
    /// The time of the last record.
    pub last: Timestamp,
    pub stages: Vec<StageView>,
    /// Since it turned back, its steps are undone, newest first; `None` while it goes forward.
    pub turned_back: Option<TurnedBack>,
    /// How the last drive ended; `None` while one runs, or after it was killed.
    pub ended: Option<Ended>,
    /// Drives after the first, takeovers, and what the operator said, oldest first.
    pub notes: Vec<(Timestamp, Note)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StageView {
    pub steps: Vec<StepView>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct StepView {
    pub describe: String,
    pub reversal: Reversal,
    pub state: StepState,
    /// When its last attempt began.
    pub started: Option<Timestamp>,
    /// When its last attempt or undo ended; `None` while one runs, or after it was killed.
    pub ended: Option<Timestamp>,
    /// How often `apply` was called.
    pub attempts: u32,
    /// How often `undo` was called.
    pub undo_attempts: u32,
    pub error: Option<Failure>,
    /// Only of a live operation.
    pub progress: Option<ProgressView>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    Waiting,
    /// Not begun as far as a copy of the journal tells, which may lack the last lines; a probe has to look.
    Unsure,
    /// `apply` was called; after a kill, its outcome is unknown.
    Running,
    /// `apply` said that it failed, or ran out of time.
    Failed,
    /// A probe found that it has not happened.
    NotDone,
    /// A probe found that only the operator can tell; the text says what to look at.
    CannotTell(String),
    Done(Value),
    Undoing,
    UndoFailed,
    Undone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgressView {
    pub done: u64,
    pub total: Option<u64>,
    pub unit: Unit,
}

/// Who turned an operation back, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnedBack {
    pub by: Actor,
    pub why: Failure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    By(End),
    /// The operator ended it where it stood.
    Abandoned {
        by: Actor,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    Resumed { by: Actor },
    TakenOver { by: Actor, reason: String },
    TakenFromCopy { by: Actor, reason: String, copies: Vec<String>, unreachable: Vec<String> },
}

/// A record that cannot follow the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(String);

impl OperationView {
    /// Begins the fold with the header's entry.
    ///
    /// # Errors
    /// [`Illegal`] if the entry is not a header.
    pub fn begin(entry: &Entry) -> Result<Self, Illegal> {
        let Record::Header(header) = &entry.record else {
            return Err(Illegal("the first record is not a header".to_owned()));
        };
        Ok(Self::of(header, entry.at))
    }

    fn of(header: &Header, at: Timestamp) -> Self {
        let stages = header
            .stages
            .iter()
            .map(|stage| StageView {
                steps: stage
                    .steps
                    .iter()
                    .map(|planned| StepView {
                        describe: planned.describe.clone(),
                        reversal: planned.reversal,
                        state: StepState::Waiting,
                        started: None,
                        ended: None,
                        attempts: 0,
                        undo_attempts: 0,
                        error: None,
                        progress: None,
                    })
                    .collect(),
            })
            .collect();
        Self {
            id: header.operation.clone(),
            kind: header.kind.clone(),
            cluster: header.cluster.clone(),
            by: header.by.clone(),
            topology: header.topology.file.clone(),
            begun: at,
            last: at,
            stages,
            turned_back: None,
            ended: None,
            notes: Vec::new(),
        }
    }

    /// Folds the next record in.
    ///
    /// # Errors
    /// [`Illegal`] if no driver could have written the record here.
    pub fn fold(&mut self, at: Timestamp, record: &Record) -> Result<(), Illegal> {
        if let Some(Ended::By(End::Done | End::Restored { .. }) | Ended::Abandoned { .. }) = self.ended {
            return Err(Illegal("a record follows the end of the operation".to_owned()));
        }
        match record {
            Record::Header(_) => return Err(Illegal("a second header".to_owned())),
            Record::StepStarted { stage, step, attempt } => {
                self.only(self.turned_back.is_none(), "a step is started while the operation goes back")?;
                let view = self.step_mut(*stage, *step)?;
                if matches!(view.state, StepState::Running | StepState::Done(_)) {
                    return Err(Illegal(format!("step {} is started twice", view.describe)));
                }
                view.state = StepState::Running;
                view.attempts = *attempt;
                view.started = Some(at);
                view.ended = None;
                view.error = None;
            }
            Record::StepDone { stage, step, evidence } => {
                let view = self.running(*stage, *step)?;
                view.state = StepState::Done(evidence.clone());
                view.ended = Some(at);
                view.progress = None;
            }
            Record::StepFailed { stage, step, error, again: _, timed_out: _ } => {
                let view = self.running(*stage, *step)?;
                view.state = StepState::Failed;
                view.ended = Some(at);
                view.error = Some(error.clone());
                view.progress = None;
            }
            Record::StepFound { stage, step, found } => {
                let view = self.step_mut(*stage, *step)?;
                if !view.is_unknown() {
                    return Err(Illegal(format!(
                        "step {} is probed though its outcome is known",
                        view.describe
                    )));
                }
                view.state = match found {
                    ProbeFound::Done { evidence } => {
                        view.error = None;
                        StepState::Done(evidence.clone())
                    }
                    ProbeFound::NotDone => StepState::NotDone,
                    ProbeFound::CannotTell { text } => StepState::CannotTell(text.clone()),
                };
            }
            Record::TurnedBack { by, why } => {
                if self.turned_back.is_some() {
                    return Err(Illegal("the operation turns back twice".to_owned()));
                }
                if self.pivot_passed() {
                    return Err(Illegal("the operation turns back after its pivot".to_owned()));
                }
                self.turned_back = Some(TurnedBack { by: by.clone(), why: why.clone() });
                self.ended = None;
            }
            Record::UndoStarted { stage, step, attempt } => {
                self.only(self.turned_back.is_some(), "a step is undone while the operation goes forward")?;
                let view = self.step_mut(*stage, *step)?;
                if !view.is_to_undo() {
                    return Err(Illegal(format!("step {} is undone with nothing to undo", view.describe)));
                }
                view.state = StepState::Undoing;
                view.undo_attempts = *attempt;
                view.ended = None;
            }
            Record::UndoDone { stage, step } => {
                let view = self.undoing(*stage, *step)?;
                view.state = StepState::Undone;
                view.ended = Some(at);
                view.progress = None;
            }
            Record::UndoFailed { stage, step, error } => {
                let view = self.undoing(*stage, *step)?;
                view.state = StepState::UndoFailed;
                view.ended = Some(at);
                view.error = Some(error.clone());
                view.progress = None;
            }
            Record::Resumed { by } => {
                self.ended = None;
                self.notes.push((at, Note::Resumed { by: by.clone() }));
            }
            Record::TakenOver { by, reason } => {
                self.ended = None;
                self.notes.push((at, Note::TakenOver { by: by.clone(), reason: reason.clone() }));
            }
            Record::TakenFromCopy { by, reason, copies, unreachable } => {
                self.ended = None;
                if self.turned_back.is_none() {
                    for step in self.stages.iter_mut().flat_map(|stage| &mut stage.steps) {
                        if matches!(step.state, StepState::Waiting | StepState::NotDone) {
                            step.state = StepState::Unsure;
                        }
                    }
                }
                let (by, reason) = (by.clone(), reason.clone());
                let (copies, unreachable) = (copies.clone(), unreachable.clone());
                self.notes.push((at, Note::TakenFromCopy { by, reason, copies, unreachable }));
            }
            Record::Abandoned { by, reason } => {
                self.ended = Some(Ended::Abandoned { by: by.clone(), reason: reason.clone() });
            }
            Record::Ended { end } => {
                let fits = match end {
                    End::Done => self.steps().all(|step| matches!(step.state, StepState::Done(_))),
                    End::Restored { .. } => {
                        self.turned_back.is_some() && !self.steps().any(StepView::is_to_undo)
                    }
                    End::Incomplete { .. } => self.pivot_passed(),
                    End::Stuck { .. } => true,
                };
                if !fits || self.ended.is_some() {
                    return Err(Illegal("the end does not fit what came before it".to_owned()));
                }
                self.ended = Some(Ended::By(end.clone()));
            }
        }
        self.last = at;
        Ok(())
    }

    /// Takes in how far a running step is.
    pub fn note_progress(&mut self, stage: usize, step: usize, progress: ProgressView) {
        if let Ok(view) = self.step_mut(stage, step)
            && matches!(view.state, StepState::Running | StepState::Undoing)
        {
            view.progress = Some(progress);
        }
    }

    /// Tells whether there is only forward: a pivot happened, or was begun and no probe has shown that it did not happen.
    pub fn pivot_passed(&self) -> bool {
        self.steps().any(|step| {
            step.reversal == Reversal::ForwardOnly
                && (step.is_unknown() || matches!(step.state, StepState::Done(_)))
        })
    }

    /// Tells whether nothing more can happen under this operation.
    pub fn is_finished(&self) -> bool {
        match &self.ended {
            Some(Ended::By(End::Done | End::Restored { .. }) | Ended::Abandoned { .. }) => true,
            Some(Ended::By(End::Incomplete { .. } | End::Stuck { .. })) | None => false,
        }
    }

    /// Returns the steps that are not done, as their descriptions.
    pub fn left(&self) -> Vec<String> {
        let open = self.steps().filter(|step| !matches!(step.state, StepState::Done(_)));
        open.map(|step| step.describe.clone()).collect()
    }

    /// Returns all steps in the order of the plan.
    pub fn steps(&self) -> impl Iterator<Item = &StepView> {
        self.stages.iter().flat_map(|stage| &stage.steps)
    }

    fn only(&self, allowed: bool, otherwise: &str) -> Result<(), Illegal> {
        if allowed && self.ended.is_none() { Ok(()) } else { Err(Illegal(otherwise.to_owned())) }
    }

    fn step_mut(&mut self, stage: usize, step: usize) -> Result<&mut StepView, Illegal> {
        self.stages
            .get_mut(stage)
            .and_then(|stage| stage.steps.get_mut(step))
            .ok_or_else(|| Illegal(format!("the plan has no step {step} in stage {stage}")))
    }

    fn running(&mut self, stage: usize, step: usize) -> Result<&mut StepView, Illegal> {
        let view = self.step_mut(stage, step)?;
        if view.state != StepState::Running {
            return Err(Illegal(format!("step {} ends without a start", view.describe)));
        }
        Ok(view)
    }

    fn undoing(&mut self, stage: usize, step: usize) -> Result<&mut StepView, Illegal> {
        let view = self.step_mut(stage, step)?;
        if view.state != StepState::Undoing {
            return Err(Illegal(format!("the undo of step {} ends without a start", view.describe)));
        }
        Ok(view)
    }
}

impl StepView {
    /// Tells whether the step was begun and it is not known how that ended.
    pub fn is_unknown(&self) -> bool {
        match self.state {
            StepState::Unsure | StepState::Running | StepState::Failed | StepState::CannotTell(_) => true,
            StepState::Waiting
            | StepState::NotDone
            | StepState::Done(_)
            | StepState::Undoing
            | StepState::UndoFailed
            | StepState::Undone => false,
        }
    }

    /// Tells whether going back has to call this step's undo: whatever was begun may have left something.
    pub fn is_to_undo(&self) -> bool {
        self.reversal == Reversal::Undo
            && match self.state {
                StepState::Waiting | StepState::Undone => false,
                StepState::Unsure
                | StepState::Running
                | StepState::Failed
                | StepState::NotDone
                | StepState::CannotTell(_)
                | StepState::Done(_)
                | StepState::Undoing
                | StepState::UndoFailed => true,
            }
    }
}
