//! The driver: takes an operation forward stage by stage, or back, with every record on disk before its effect.
//!
//! - A stage's steps run side by side and are all awaited to their end, also when one fails; then comes the next stage.
//! - A step whose outcome is not known (found begun after a crash, or out of time) is probed before anything else is done with it.
//! - A failure before the pivot turns the operation back: what was begun is undone, newest first, the steps of a stage side by
//!   side, the failed one included. After the pivot there is only forward: the operation ends incomplete and can be resumed.
//! - First interrupt: no step is begun any more; those that run are awaited, then the operation turns back, or after the pivot
//!   ends incomplete. An undo goes on to its end. Second interrupt: everything stops at once, as if killed, to be resumed.
//! - A journal that cannot be written, or that another driver has written to, stops everything at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;

use super::{Operation, Outcome, not_understood};
use crate::engine::copies::Copies;
use crate::engine::event::{EventKind, EventSink};
use crate::engine::interrupt::Interrupt;
use crate::engine::journal::Journal;
use crate::engine::record::{Actor, End, Failure, OperationId, ProbeFound, Record};
use crate::engine::step::{Cx, Found, Progress, Reversal, Stage, Step, StepError, Unit, Warn};
use crate::engine::view::{Ended, ProgressView, StepState, StepView, TurnedBack};
use crate::error::{Error, ErrorKind, Result};
use crate::units::human_duration;

/// How long a stage, and the pivot, wait for the copies of the journal; a machine that lets them wait is not waited for again.
const COPIES_LIMIT: Duration = Duration::from_secs(1);
const JOURNAL_WATCH: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A probe only looks, so it may always be tried again; and an undo is all that stands between a failure and the operator.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Where a step stands in the plan.
#[derive(Debug, Clone, Copy)]
struct Place {
    stage: usize,
    step: usize,
}

/// How a step of a stage ended.
enum StepEnd {
    Done,
    Failed(Failure),
    /// Whether it happened is not known.
    Unknown(Failure),
    Interrupted,
}

/// What a probe brought.
enum Look {
    Done,
    NotDone,
    CannotTell(Failure),
    Failed(Failure),
}

/// Why the way forward ended.
enum Halt {
    AllDone,
    Failed(Failure),
    Unknown(Failure),
}

pub(super) struct Driver<'a, S: Step> {
    id: OperationId,
    journal: &'a Mutex<Journal>,
    stages: &'a [Stage<S>],
    world: &'a S::World,
    events: &'a EventSink,
    interrupt: &'a Interrupt,
    copies: Option<&'a Copies>,
}

impl<'a, S: Step> Driver<'a, S> {
    pub(super) fn new(
        operation: &'a Operation<S>,
        world: &'a S::World,
        events: &'a EventSink,
        interrupt: &'a Interrupt,
    ) -> Self {
        Self {
            id: operation.id(),
            journal: &operation.journal,
            stages: &operation.stages,
            world,
            events,
            interrupt,
            copies: operation.copies.as_ref(),
        }
    }

    /// Runs `work` until it ends or must not go on; then it is dropped wherever it stands.
    pub(super) async fn guarded(&self, work: impl Future<Output = Result<Outcome>>) -> Result<Outcome> {
        tokio::select! {
            biased;
            error = self.must_stop() => Err(error),
            outcome = work => outcome,
        }
    }

    async fn must_stop(&self) -> Error {
        let told = async {
            self.interrupt.asked(1).await;
            self.events.tell(&self.id, self.events.now(), EventKind::Interrupted).await;
            self.interrupt.asked(2).await;
        };
        let taken = async {
            while self.journal().still_ours() {
                tokio::time::sleep(JOURNAL_WATCH).await;
            }
        };
        let overtaken = async {
            match self.copies {
                Some(copies) => copies.overtaken().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = overtaken => error,
            () = told => Error::new(ErrorKind::Interrupted, format!("operation {} was interrupted twice", self.id))
                .detail("It stopped where it was; nothing was undone.")
                .hint(self.ways()),
            () = taken => self.journal().taken_over(),
        }
    }

    pub(super) async fn run(&self, announce: bool) -> Result<Outcome> {
        self.tell_begun().await;
        if let Some(ended) = self.finished() {
            return Ok(Outcome::AlreadyEnded(ended));
        }
        if announce || self.journal().view().ended.is_some() {
            self.record(Record::Resumed { by: Actor::here() }).await?;
        }
        let turned_back = self.journal().view().turned_back.clone();
        let why = match turned_back {
            Some(TurnedBack { why, .. }) => why,
            None => match self.forward().await? {
                Halt::AllDone => return self.end(End::Done).await,
                Halt::Unknown(why) => return self.end(End::Stuck { why }).await,
                // After a takeover from a copy the pivot may have happened although this drive did not get so far.
                Halt::Failed(_) if let Some(why) = self.unsure_pivot().await? => {
                    return self.end(End::Stuck { why }).await;
                }
                Halt::Failed(why) if self.journal().view().pivot_passed() => {
                    return self.end(End::Incomplete { why }).await;
                }
                Halt::Failed(why) => {
                    self.turn_back(&why).await?;
                    why
                }
            },
        };
        self.back(why).await
    }

    pub(super) async fn undo(&self, announce: bool) -> Result<Outcome> {
        self.tell_begun().await;
        match self.finished() {
            Some(Ended::By(End::Done)) => {
                return Err(Error::refused(format!("cannot undo operation {}: it is done", self.id))
                    .hint("Declare what you want instead in the topology file, then run \"pgherd plan\"."));
            }
            Some(ended) => return Ok(Outcome::AlreadyEnded(ended)),
            None => {}
        }
        let turned_back = self.journal().view().turned_back.clone();
        let why = match turned_back {
            Some(TurnedBack { why, .. }) => {
                if announce || self.journal().view().ended.is_some() {
                    self.record(Record::Resumed { by: Actor::here() }).await?;
                }
                why
            }
            None => {
                self.refuse_after_the_pivot().await?;
                let why = Failure::from(&Error::failed(format!(
                    "operation {} was undone by the operator",
                    self.id
                )));
                self.turn_back(&why).await?;
                why
            }
        };
        self.back(why).await
    }

    /// From here on steps are undone. Who goes on from a copy must not take for done what is undone by then.
    async fn turn_back(&self, why: &Failure) -> Result<()> {
        self.record(Record::TurnedBack { by: Actor::here(), why: why.clone() }).await?;
        self.flush_copies().await;
        Ok(())
    }

    async fn flush_copies(&self) {
        if let Some(copies) = self.copies {
            copies.flush(COPIES_LIMIT).await;
        }
    }

    /// Looks for each pivot of which a copy of the journal did not tell; returns why, where that cannot be told.
    async fn unsure_pivot(&self) -> Result<Option<Failure>> {
        for place in self.places() {
            let view = self.step_view(place);
            if view.reversal != Reversal::ForwardOnly || view.state != StepState::Unsure {
                continue;
            }
            let evidence = self.evidence_before(place.stage)?;
            match self.find_out(place, &evidence).await? {
                Look::Done | Look::NotDone => {}
                Look::CannotTell(why) | Look::Failed(why) => return Ok(Some(why)),
            }
        }
        Ok(None)
    }

    /// Looks whether a pivot whose outcome is not known has happened, and refuses if one has or if nobody can tell.
    async fn refuse_after_the_pivot(&self) -> Result<()> {
        for place in self.places() {
            let view = self.step_view(place);
            if view.reversal != Reversal::ForwardOnly {
                continue;
            }
            if view.is_unknown() {
                let evidence = self.evidence_before(place.stage)?;
                if let Look::CannotTell(why) | Look::Failed(why) = self.find_out(place, &evidence).await? {
                    let what = format!(
                        "cannot undo operation {}: whether its pivot has happened is not known",
                        self.id
                    );
                    return Err(Error::refused(what)
                        .detail(format!("The pivot is \"{}\". {}", view.describe, sentence(&why)))
                        .hint(format!(
                            "Mend that, then run this again, or \"{}\".",
                            self.id.resume_command()
                        )));
                }
            }
            if matches!(self.step_view(place).state, StepState::Done(_)) {
                return Err(Error::refused(format!(
                    "cannot undo operation {}: its pivot has happened",
                    self.id
                ))
                .detail(format!("After \"{}\" there is only forward.", view.describe))
                .hint(format!("Go on with \"{}\".", self.id.resume_command())));
            }
        }
        Ok(())
    }

    async fn forward(&self) -> Result<Halt> {
        for (number, stage) in self.stages.iter().enumerate() {
            let open: Vec<Place> = (0..stage.steps.len())
                .map(|step| Place { stage: number, step })
                .filter(|place| !matches!(self.step_view(*place).state, StepState::Done(_)))
                .collect();
            if open.is_empty() {
                continue;
            }
            // So that a copy never lacks more than what belongs to one stage: of two, the later one may have undone what the probe of the
            // earlier one looks for.
            self.flush_copies().await;
            let evidence = self.evidence_before(number)?;
            let ends = try_join_all(open.iter().map(|place| self.drive_step(*place, &evidence))).await?;
            if let Some(halt) = self.halt(ends) {
                return Ok(halt);
            }
        }
        Ok(Halt::AllDone)
    }

    fn halt(&self, ends: Vec<StepEnd>) -> Option<Halt> {
        let (mut failed, mut unknown, mut interrupted) = (Vec::new(), Vec::new(), false);
        for end in ends {
            match end {
                StepEnd::Done => {}
                StepEnd::Failed(why) => failed.push(why),
                StepEnd::Unknown(why) => unknown.push(why),
                StepEnd::Interrupted => interrupted = true,
            }
        }
        if !unknown.is_empty() {
            unknown.append(&mut failed);
            return Some(Halt::Unknown(together(unknown)));
        }
        if !failed.is_empty() {
            return Some(Halt::Failed(together(failed)));
        }
        interrupted.then(|| {
            let what = format!("operation {} was interrupted", self.id);
            Halt::Failed(Failure::from(&Error::new(ErrorKind::Interrupted, what)))
        })
    }

    async fn drive_step(&self, place: Place, evidence: &[(S, S::Evidence)]) -> Result<StepEnd> {
        let step = self.step(place);
        let forward_only = step.reversal() == Reversal::ForwardOnly;
        if self.step_view(place).is_unknown() {
            match self.find_out(place, evidence).await? {
                Look::Done => return Ok(StepEnd::Done),
                Look::NotDone => {}
                Look::CannotTell(why) | Look::Failed(why) => return Ok(StepEnd::Unknown(why)),
            }
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            if self.interrupt.is_asked() {
                return Ok(StepEnd::Interrupted);
            }
            let Some((failure, trouble)) = self.apply_once(place, evidence).await? else {
                return Ok(StepEnd::Done);
            };
            let again = attempt < step.retry().attempts && trouble != Trouble::Final;
            // A pivot is never left unknown, and what ran out of time may have happened all the same.
            if trouble == Trouble::TimedOut || forward_only {
                match self.find_out(place, evidence).await? {
                    Look::Done => return Ok(StepEnd::Done),
                    Look::NotDone => {}
                    Look::CannotTell(why) => return Ok(StepEnd::Unknown(why)),
                    Look::Failed(why) if forward_only => return Ok(StepEnd::Unknown(why)),
                    // An undo tolerates a step that got half way.
                    Look::Failed(_) => return Ok(StepEnd::Failed(failure)),
                }
            }
            if !again {
                return Ok(StepEnd::Failed(failure));
            }
            let pause = backoff(step.retry().pause, attempt);
            let kind = EventKind::Pausing { stage: place.stage, step: place.step, pause };
            self.events.tell(&self.id, self.events.now(), kind).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.interrupt.asked(1) => {}
            }
        }
    }

    /// Calls a step's `apply`; `None` if it is done.
    async fn apply_once(
        &self,
        place: Place,
        evidence: &[(S, S::Evidence)],
    ) -> Result<Option<(Failure, Trouble)>> {
        let Place { stage, step: number } = place;
        let step = self.step(place);
        let attempt = self.step_view(place).attempts + 1;
        self.record(Record::StepStarted { stage, step: number, attempt }).await?;
        if step.reversal() == Reversal::ForwardOnly && !self.pivot_is_done() {
            self.flush_copies().await;
        }
        let (report, warn) = (self.reporter(place), |text| self.events.warn(&self.id, text));
        let cx = Cx { world: self.world, evidence, attempt, progress: Progress(&report), warn: Warn(&warn) };
        // On the heap: an operation's steps are one large future, and those of a stage are held side by side.
        let (error, trouble) = match tokio::time::timeout(step.timeout(), Box::pin(step.apply(&cx))).await {
            Ok(Ok(evidence)) => {
                let evidence = serde_json::to_value(evidence).map_err(|error| {
                    let what = format!("could not write down what the step \"{}\" left", step.describe());
                    Error::new(ErrorKind::Stuck, what).hint(self.ways()).source(error)
                })?;
                self.record(Record::StepDone { stage, step: number, evidence }).await?;
                return Ok(None);
            }
            Ok(Err(StepError { error, again })) => {
                (error, if again { Trouble::Passing } else { Trouble::Final })
            }
            Err(_) => (out_of_time(step.timeout()), Trouble::TimedOut),
        };
        let failure = Failure::from(&error.context(step.describe()));
        let record = Record::StepFailed {
            stage,
            step: number,
            again: trouble == Trouble::Passing,
            timed_out: trouble == Trouble::TimedOut,
            error: failure.clone(),
        };
        self.record(record).await?;
        Ok(Some((failure, trouble)))
    }

    fn pivot_is_done(&self) -> bool {
        let pivots = |step: &StepView| {
            step.reversal == Reversal::ForwardOnly && matches!(step.state, StepState::Done(_))
        };
        self.journal().view().steps().any(pivots)
    }

    /// Probes a step whose outcome is not known and records what was found.
    async fn find_out(&self, place: Place, evidence: &[(S, S::Evidence)]) -> Result<Look> {
        let step = self.step(place);
        let (report, warn) = (self.reporter(place), |text| self.events.warn(&self.id, text));
        let attempt = self.step_view(place).attempts;
        let cx = Cx { world: self.world, evidence, attempt, progress: Progress(&report), warn: Warn(&warn) };
        let mut attempt = 1;
        let found = loop {
            let error = match tokio::time::timeout(step.timeout(), Box::pin(step.probe(&cx))).await {
                Ok(Ok(found)) => break found,
                Ok(Err(StepError { error, .. })) => error,
                Err(_) => out_of_time(step.timeout()),
            };
            if attempt == TRIES {
                return Ok(Look::Failed(Failure::from(
                    &error.context(format!("find out about \"{}\"", step.describe())),
                )));
            }
            tokio::time::sleep(backoff(step.retry().pause, attempt)).await;
            attempt += 1;
        };
        let (found, look) = match found {
            Found::Done(evidence) => {
                let evidence = serde_json::to_value(evidence).map_err(|error| {
                    let what = format!("could not write down what the step \"{}\" left", step.describe());
                    Error::new(ErrorKind::Stuck, what).hint(self.ways()).source(error)
                })?;
                (ProbeFound::Done { evidence }, Look::Done)
            }
            Found::NotDone => (ProbeFound::NotDone, Look::NotDone),
            Found::CannotTell(text) => {
                let what = format!("cannot tell whether \"{}\" has happened", step.describe());
                let why = Failure::from(&Error::new(ErrorKind::Stuck, what).detail(text.clone()));
                (ProbeFound::CannotTell { text }, Look::CannotTell(why))
            }
        };
        self.record(Record::StepFound { stage: place.stage, step: place.step, found }).await?;
        Ok(look)
    }

    async fn back(&self, why: Failure) -> Result<Outcome> {
        for (number, stage) in self.stages.iter().enumerate().rev() {
            let open: Vec<Place> = (0..stage.steps.len())
                .map(|step| Place { stage: number, step })
                .filter(|place| self.step_view(*place).is_to_undo())
                .collect();
            let evidence = self.evidence_before(number)?;
            let ends = try_join_all(open.iter().map(|place| self.undo_step(*place, &evidence))).await?;
            let failed: Vec<Failure> = ends.into_iter().flatten().collect();
            if !failed.is_empty() {
                let mut stuck = together(failed);
                stuck.detail = Some(joined(
                    stuck.detail.as_deref(),
                    &format!("It was being undone because: {}", sentence(&why)),
                ));
                return self.end(End::Stuck { why: stuck }).await;
            }
        }
        self.end(End::Restored { why }).await
    }

    /// Undoes a step, with some patience; returns the last error if that did not help.
    async fn undo_step(&self, place: Place, evidence: &[(S, S::Evidence)]) -> Result<Option<Failure>> {
        let Place { stage, step: number } = place;
        let step = self.step(place);
        let (report, warn) = (self.reporter(place), |text| self.events.warn(&self.id, text));
        let mut tried = 1;
        loop {
            let attempt = self.step_view(place).undo_attempts + 1;
            let cx =
                Cx { world: self.world, evidence, attempt, progress: Progress(&report), warn: Warn(&warn) };
            self.record(Record::UndoStarted { stage, step: number, attempt }).await?;
            let error = match tokio::time::timeout(step.timeout(), Box::pin(step.undo(&cx))).await {
                Ok(Ok(())) => {
                    self.record(Record::UndoDone { stage, step: number }).await?;
                    return Ok(None);
                }
                Ok(Err(StepError { error, .. })) => error,
                Err(_) => out_of_time(step.timeout()),
            };
            let failure = Failure::from(&error.context(format!("undo \"{}\"", step.describe())));
            self.record(Record::UndoFailed { stage, step: number, error: failure.clone() }).await?;
            if tried == TRIES {
                return Ok(Some(failure));
            }
            tokio::time::sleep(backoff(step.retry().pause, tried)).await;
            tried += 1;
        }
    }

    async fn end(&self, end: End) -> Result<Outcome> {
        self.record(Record::Ended { end: end.clone() }).await?;
        Ok(match end {
            End::Done => Outcome::Done,
            End::Restored { why } => Outcome::Restored { why: Error::from(&why) },
            End::Incomplete { why } => {
                Outcome::Incomplete { why: Error::from(&why), left: self.journal().view().left() }
            }
            End::Stuck { why } => Outcome::Stuck { why: Error::from(&why), next: self.id.resume_command() },
        })
    }

    /// Appends a record, and tells it when it is on disk.
    async fn record(&self, record: Record) -> Result<()> {
        let entry = self.journal().append(record)?;
        self.events.tell(&self.id, entry.at, EventKind::Recorded(Box::new(entry.record))).await;
        Ok(())
    }

    async fn tell_begun(&self) {
        let view = Box::new(self.journal().view().clone());
        self.events.tell(&self.id, self.events.now(), EventKind::Begun(view)).await;
    }

    fn reporter(&self, place: Place) -> impl Fn(u64, Option<u64>, Unit) + Send + Sync {
        move |done, total, unit| {
            self.events.progress(&self.id, place.stage, place.step, ProgressView { done, total, unit });
        }
    }

    /// Returns what the steps before a stage left, in the order of the plan.
    fn evidence_before(&self, stage: usize) -> Result<Vec<(S, S::Evidence)>> {
        let mut evidence = Vec::new();
        for place in self.places().filter(|place| place.stage < stage) {
            let view = self.step_view(place);
            if let StepState::Done(value) = view.state {
                let left = serde_json::from_value(value)
                    .map_err(|error| not_understood(&self.id, &view.describe, error))?;
                evidence.push((self.step(place).clone(), left));
            }
        }
        Ok(evidence)
    }

    fn finished(&self) -> Option<Ended> {
        let journal = self.journal();
        let view = journal.view();
        if view.is_finished() { view.ended.clone() } else { None }
    }

    fn ways(&self) -> String {
        let undo = if self.journal().view().pivot_passed() {
            String::new()
        } else {
            format!("   or   {}", self.id.undo_command())
        };
        format!("{}{undo}", self.id.resume_command())
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let stages = self.stages.iter().enumerate();
        stages.flat_map(|(stage, steps)| (0..steps.steps.len()).map(move |step| Place { stage, step }))
    }

    fn step(&self, place: Place) -> &S {
        &self.stages[place.stage].steps[place.step]
    }

    fn step_view(&self, place: Place) -> StepView {
        self.journal().view().stages[place.stage].steps[place.step].clone()
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What kind of failure an attempt had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Safe to try again, and it may help.
    Passing,
    /// The outcome is not known; worth another attempt once a probe says that it did not happen.
    TimedOut,
    Final,
}

fn out_of_time(limit: Duration) -> Error {
    Error::failed(format!("no end within {}", human_duration(limit)))
}

/// Doubles the pause with each attempt and takes a random part off, so that several that failed together do not meet again.
fn backoff(first: Duration, attempt: u32) -> Duration {
    let first = if first.is_zero() { FIRST_PAUSE } else { first };
    let pause = first.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_PAUSE);
    let mut random = [0_u8; 1];
    match getrandom::fill(&mut random) {
        Ok(()) => pause.mul_f64(1.0 - f64::from(random[0]) / 1024.0),
        Err(_) => pause,
    }
}

/// Makes one failure of those that steps had side by side: the first one, with the others in its detail.
fn together(failures: Vec<Failure>) -> Failure {
    let mut failures = failures.into_iter();
    let mut first = failures.next().expect("called with at least one failure");
    for other in failures {
        first.detail = Some(joined(first.detail.as_deref(), &format!("Beside it: {}", sentence(&other))));
    }
    first
}

fn sentence(failure: &Failure) -> String {
    let doing = failure.context.first().map(|doing| format!("{doing}: ")).unwrap_or_default();
    let causes: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
    format!("{doing}{}{causes}.", failure.what)
}

pub(super) fn joined(first: Option<&str>, second: &str) -> String {
    match first {
        Some(first) => format!("{first} {second}"),
        None => second.to_owned(),
    }
}
