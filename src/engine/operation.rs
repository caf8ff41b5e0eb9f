//! The driver: takes an operation forward stage by stage, or back, with every record on disk before its effect.
//!
//! - A stage's steps run side by side and are all awaited to their end, also when one fails; then comes the next stage.
//! - A step whose outcome is not known (found begun after a crash, or out of time) is probed before anything else is done with it.
//! - A failure before the pivot turns the operation back: what was begun is undone, newest first, the steps of a stage side by
//!   side, the failed one included. After the pivot there is only forward: the operation ends incomplete and can be resumed.
//! - First interrupt: no step is begun any more; those that run are awaited, then the operation turns back, or after the pivot
//!   ends incomplete. An undo goes on to its end. Second interrupt: everything stops at once, as if killed, to be resumed.
//! - A journal that cannot be written, or that another driver has written to, stops everything at once.
//!
//! Knows no operation by name, prints nothing, and makes no decision that the records do not show.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value;

use crate::engine::event::{EventKind, EventSink};
use crate::engine::interrupt::Interrupt;
use crate::engine::journal::Journal;
use crate::engine::lock::{self, Lock};
use crate::engine::record::{
    Actor, End, FORMAT, Failure, Header, OperationId, PlannedStage, PlannedStep, ProbeFound, Record,
    TopologyFile,
};
use crate::engine::shared_lock::SharedLock;
use crate::engine::step::{Cx, Found, Progress, Reversal, Stage, Step, StepError, Unit};
use crate::engine::store::{Listed, Store};
use crate::engine::view::{Ended, OperationView, ProgressView, StepState, StepView, TurnedBack};
use crate::error::{Error, ErrorKind, Result};
use crate::units::human_duration;

/// What is to be done, as planned.
#[derive(Debug, Clone)]
pub struct Intent<S> {
    /// Which operation it is, such as `apply`.
    pub kind: String,
    pub topology: TopologyFile,
    /// What identifies the plan and the world that it was made for.
    pub plan_digest: String,
    /// What a resume needs to build the steps' world again. Never holds a secret.
    pub input: Value,
    pub stages: Vec<Stage<S>>,
}

/// One operation with its journal and the lock of its cluster, ready to be driven.
#[derive(Debug)]
pub struct Operation<S> {
    journal: Mutex<Journal>,
    stages: Vec<Stage<S>>,
    /// Whether this drive has yet to tell the journal that it begins.
    announce: bool,
    lock: Lock,
    taken_over: bool,
}

/// How a drive ended.
#[derive(Debug)]
pub enum Outcome {
    Done,
    /// Everything that had begun is undone. `why` is of kind [`ErrorKind::Interrupted`] if the operator asked to stop.
    Restored {
        why: Error,
    },
    /// The pivot is passed; `left` describes the steps that are not done.
    Incomplete {
        why: Error,
        left: Vec<String>,
    },
    /// Only the operator can decide; `next` is the command that goes on.
    Stuck {
        why: Error,
        next: String,
    },
    /// The operation had ended before; nothing was done.
    AlreadyEnded(Ended),
}

const JOURNAL_WATCH: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A probe only looks, so it may always be tried again; and an undo is all that stands between a failure and the operator.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

impl<S: Step> Operation<S> {
    /// Begins an operation on the locked cluster: its journal is on disk when this returns, and nothing else has happened. An error
    /// gives the lock back.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if an unfinished operation of the cluster is in the store, [`ErrorKind::Stuck`] if a damaged journal
    /// could be one, [`ErrorKind::Failed`] if the journal cannot be written.
    pub async fn begin(store: &Store, lock: Lock, intent: Intent<S>) -> Result<Self> {
        let journal = new_journal(store, lock.cluster(), &intent);
        let (mut lock, journal) = lock.keep_for(journal).await?;
        lock.name_operation(journal.id());
        Ok(Self {
            journal: Mutex::new(journal),
            stages: intent.stages,
            announce: false,
            lock,
            taken_over: false,
        })
    }

    /// Opens an operation that no process drives any more, to resume or undo it; waits up to `wait` for one that does.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if a process still drives it or its cluster, [`ErrorKind::NotFound`] if there is no such operation,
    /// [`ErrorKind::Stuck`] if its journal is damaged or its steps are not known to this pgherd.
    pub async fn open(store: &Store, id: &OperationId, wait: Duration) -> Result<Self> {
        let cluster = store.read(id)?.header.cluster;
        let lock = Lock::take(store, &cluster, wait).await?;
        Self::opened(store, id, lock, true)
    }

    /// Opens an operation although a process that may still live holds it: the journal gets a record at which that process
    /// stops before its next effect, within about a second if it lives. What it is doing until then cannot be called back.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the process drives another operation, and as [`Operation::open`].
    pub async fn take_over(store: &Store, id: &OperationId, reason: &str) -> Result<Self> {
        let cluster = store.read(id)?.header.cluster;
        let holder = lock::holder(store, &cluster)?;
        let Some(holder) = holder else { return Self::open(store, id, Duration::ZERO).await };
        if holder.operation.as_ref() != Some(id) {
            let doing = holder
                .operation
                .map_or_else(|| "planning".to_owned(), |other| format!("driving operation {other}"));
            return Err(Error::refused(format!(
                "cannot take over operation {id}: another process holds {cluster}"
            ))
            .detail(format!("{} is {doing}.", holder.by))
            .hint("See what runs: pgherd operation list"));
        }
        let lock = Lock::take_away(store, &cluster)?;
        let mut operation = Self::opened(store, id, lock, false)?;
        operation.taken_over = true;
        if !operation.view().is_finished() {
            let record = Record::TakenOver { by: Actor::here(), reason: reason.to_owned() };
            operation.journal().append(record)?;
        }
        Ok(operation)
    }

    /// Ends an operation that was begun and cannot be driven; for as long as nothing has been done under it.
    ///
    /// # Errors
    /// As an append to the journal; the operation then stays unfinished.
    pub async fn call_off(self, why: &Error) -> Result<()> {
        {
            let mut journal = self.journal();
            if journal.view().steps().all(|step| step.state == StepState::Waiting) {
                let why = Failure::from(why);
                journal.append(Record::TurnedBack { by: Actor::here(), why: why.clone() })?;
                journal.append(Record::Ended { end: End::Restored { why } })?;
            }
        }
        self.lock.give_back().await;
        Ok(())
    }

    fn opened(store: &Store, id: &OperationId, mut lock: Lock, announce: bool) -> Result<Self> {
        let journal = store.open(id)?;
        let stages =
            journal.header().stages.iter().map(|stage| understood(id, stage)).collect::<Result<_>>()?;
        lock.name_operation(id);
        Ok(Self { journal: Mutex::new(journal), stages, announce, lock, taken_over: false })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_journal<S: Step>(store: &Store, cluster: &str, intent: &Intent<S>) -> Result<Journal> {
    refuse_beside_unfinished(store, cluster)?;
    let stages = intent.stages.iter().map(planned).collect::<Result<Vec<_>>>()?;
    let by = Actor::here();
    store.create(|operation| Header {
        format: FORMAT,
        operation,
        kind: intent.kind.clone(),
        cluster: cluster.to_owned(),
        by: by.clone(),
        topology: intent.topology.clone(),
        plan_digest: intent.plan_digest.clone(),
        input: intent.input.clone(),
        stages: stages.clone(),
    })
}

impl<S> Operation<S> {
    /// Drives while the lock in the repository, if there is one, is ours; gives it back afterwards.
    async fn holding_shared(&self, drive: impl Future<Output = Result<Outcome>>) -> Result<Outcome> {
        let Some(shared) = self.lock.shared() else { return drive.await };
        let id = self.id();
        shared.name_operation(&id).await?;
        let outcome = tokio::select! {
            biased;
            lost = shared.lost() => Err(lost.hint(id.resume_command())),
            outcome = drive => outcome,
        };
        shared.give_back(!self.view().is_finished()).await;
        outcome
    }

    /// Adds the lock in the repository to the local one that the operation holds.
    pub fn share(&mut self, shared: SharedLock) {
        self.lock.set_shared(shared);
    }

    /// Tells whether it was taken from a process that may still live.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    pub fn id(&self) -> OperationId {
        self.header().operation
    }

    pub fn header(&self) -> Header {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).header().clone()
    }

    /// Returns the operation as its records tell it by now.
    pub fn view(&self) -> OperationView {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).view().clone()
    }
}

/// Drives an operation to its end; one that was opened goes on where its records end. One that had ended is left alone.
///
/// # Errors
/// If the drive had to stop without an end: the journal could not be written ([`ErrorKind::Stuck`]), another driver took over
/// ([`ErrorKind::Locked`]), or the operator interrupted twice ([`ErrorKind::Interrupted`]). The operation can then be resumed.
pub async fn run<S: Step>(
    operation: &mut Operation<S>,
    world: &S::World,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let driver = Driver::new(operation, world, events, interrupt);
    operation.holding_shared(driver.guarded(driver.run(operation.announce))).await
}

/// Takes back what an operation has done; allowed only before its pivot.
///
/// # Errors
/// [`ErrorKind::Refused`] with the reason if there is only forward, and as [`run`].
pub async fn undo<S: Step>(
    operation: &mut Operation<S>,
    world: &S::World,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let driver = Driver::new(operation, world, events, interrupt);
    operation.holding_shared(driver.guarded(driver.undo(operation.announce))).await
}

/// Ends an unfinished operation where it stands, on the operator's word; nothing is changed but the journal.
///
/// # Errors
/// [`ErrorKind::Locked`] if a process drives it, [`ErrorKind::Refused`] if it has ended, and as [`Store::read`].
pub async fn abandon(store: &Store, id: &OperationId, reason: &str) -> Result<()> {
    let cluster = store.read(id)?.header.cluster;
    let _lock = Lock::take(store, &cluster, Duration::ZERO).await?;
    let mut journal = store.open(id)?;
    if journal.view().is_finished() {
        return Err(Error::refused(format!("cannot abandon operation {id}: it has ended"))
            .hint(format!("pgherd operation show {id}")));
    }
    journal.append(Record::Abandoned { by: Actor::here(), reason: reason.to_owned() })?;
    Ok(())
}

fn planned<S: Step>(stage: &Stage<S>) -> Result<PlannedStage> {
    let steps = stage.steps.iter().map(|step| {
        let value = serde_json::to_value(step).map_err(|error| {
            Error::failed(format!("could not write the step \"{}\" down", step.describe())).source(error)
        })?;
        Ok(PlannedStep { describe: step.describe(), reversal: step.reversal(), step: value })
    });
    Ok(PlannedStage { steps: steps.collect::<Result<_>>()? })
}

fn understood<S: Step>(id: &OperationId, stage: &PlannedStage) -> Result<Stage<S>> {
    let steps = stage.steps.iter().map(|planned| {
        serde_json::from_value(planned.step.clone())
            .map_err(|error| not_understood(id, &planned.describe, error))
    });
    Ok(Stage { steps: steps.collect::<Result<_>>()? })
}

fn not_understood(id: &OperationId, describe: &str, error: serde_json::Error) -> Error {
    Error::new(
        ErrorKind::Stuck,
        format!("cannot go on with operation {id}: this pgherd does not know its step \"{describe}\""),
    )
    .detail("The journal was written by another version. Nothing was changed.")
    .hint(format!("Use the version that \"pgherd operation show {id}\" names."))
    .source(error)
}

/// Refuses while an operation of the cluster is unfinished.
///
/// # Errors
/// [`ErrorKind::Locked`] with how it can be ended, [`ErrorKind::Stuck`] if a damaged journal could be one.
pub fn refuse_beside_unfinished(store: &Store, cluster: &str) -> Result<()> {
    for listed in store.list()? {
        match listed {
            Listed::Readable(view) if view.cluster == cluster && !view.is_finished() => {
                let back = if view.pivot_passed() {
                    String::new()
                } else {
                    format!("   or   {}", view.id.undo_command())
                };
                return Err(Error::new(
                    ErrorKind::Locked,
                    format!("cluster {cluster} has the unfinished operation {}", view.id),
                )
                .detail(format!("It is \"{}\", begun by {} at {:.0}.", view.kind, view.by, view.begun))
                .hint(format!("{}{back}", view.id.resume_command())));
            }
            Listed::Readable(_) => {}
            // Which cluster it belongs to cannot be trusted either.
            Listed::Damaged { error, .. } => return Err(error),
        }
    }
    Ok(())
}

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

struct Driver<'a, S: Step> {
    id: OperationId,
    journal: &'a Mutex<Journal>,
    stages: &'a [Stage<S>],
    world: &'a S::World,
    events: &'a EventSink,
    interrupt: &'a Interrupt,
}

impl<'a, S: Step> Driver<'a, S> {
    fn new(
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
        }
    }

    /// Runs `work` until it ends or must not go on; then it is dropped wherever it stands.
    async fn guarded(&self, work: impl Future<Output = Result<Outcome>>) -> Result<Outcome> {
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
        tokio::select! {
            () = told => Error::new(ErrorKind::Interrupted, format!("operation {} was interrupted twice", self.id))
                .detail("It stopped where it was; nothing was undone.")
                .hint(self.ways()),
            () = taken => self.journal().taken_over(),
        }
    }

    async fn run(&self, announce: bool) -> Result<Outcome> {
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
                Halt::Failed(why) if self.journal().view().pivot_passed() => {
                    return self.end(End::Incomplete { why }).await;
                }
                Halt::Failed(why) => {
                    self.record(Record::TurnedBack { by: Actor::here(), why: why.clone() }).await?;
                    why
                }
            },
        };
        self.back(why).await
    }

    async fn undo(&self, announce: bool) -> Result<Outcome> {
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
                self.record(Record::TurnedBack { by: Actor::here(), why: why.clone() }).await?;
                why
            }
        };
        self.back(why).await
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
        let report = self.reporter(place);
        let cx = Cx { world: self.world, evidence, progress: Progress(&report) };
        let (error, trouble) = match tokio::time::timeout(step.timeout(), step.apply(&cx)).await {
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

    /// Probes a step whose outcome is not known and records what was found.
    async fn find_out(&self, place: Place, evidence: &[(S, S::Evidence)]) -> Result<Look> {
        let step = self.step(place);
        let report = self.reporter(place);
        let cx = Cx { world: self.world, evidence, progress: Progress(&report) };
        let mut attempt = 1;
        let found = loop {
            let error = match tokio::time::timeout(step.timeout(), step.probe(&cx)).await {
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
        let report = self.reporter(place);
        let cx = Cx { world: self.world, evidence, progress: Progress(&report) };
        let mut tried = 1;
        loop {
            let attempt = self.step_view(place).undo_attempts + 1;
            self.record(Record::UndoStarted { stage, step: number, attempt }).await?;
            let error = match tokio::time::timeout(step.timeout(), step.undo(&cx)).await {
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

fn joined(first: Option<&str>, second: &str) -> String {
    match first {
        Some(first) => format!("{first} {second}"),
        None => second.to_owned(),
    }
}

impl Outcome {
    /// Turns what is not a success into the error that the operator reads. An operation that had ended before is a success:
    /// nothing was asked for that is not so.
    ///
    /// # Errors
    /// Kind [`ErrorKind::Failed`] (or what the failed step said: refused, not found, interrupted) for restored,
    /// [`ErrorKind::Incomplete`] and [`ErrorKind::Stuck`] for these.
    pub fn into_result(self, id: &OperationId) -> Result<()> {
        match self {
            Self::Done | Self::AlreadyEnded(_) => Ok(()),
            Self::Restored { why } => {
                let kind = match why.kind() {
                    kind @ (ErrorKind::Interrupted | ErrorKind::Refused | ErrorKind::NotFound) => kind,
                    ErrorKind::Failed
                    | ErrorKind::Usage
                    | ErrorKind::Partial
                    | ErrorKind::Locked
                    | ErrorKind::Stuck
                    | ErrorKind::Incomplete => ErrorKind::Failed,
                };
                Err(told(&why, kind, &format!("Everything that operation {id} had begun was undone."), None))
            }
            Self::Incomplete { why, left } => {
                let what_is_left = format!("Left to do in operation {id}: {}.", left.join(", "));
                Err(told(&why, ErrorKind::Incomplete, &what_is_left, Some(&id.resume_command())))
            }
            Self::Stuck { why, next } => {
                let stopped = format!("Operation {id} stopped there; nothing more was changed.");
                Err(told(&why, ErrorKind::Stuck, &stopped, Some(&next)))
            }
        }
    }
}

fn told(why: &Error, kind: ErrorKind, also: &str, next: Option<&str>) -> Error {
    let mut failure = Failure::from(why);
    failure.kind = kind;
    if !failure.context.is_empty() {
        let place: Vec<String> = failure.context.drain(..).rev().collect();
        failure.detail =
            Some(joined(failure.detail.as_deref(), &format!("It failed at: {}.", place.join(": "))));
    }
    failure.detail = Some(joined(failure.detail.as_deref(), also));
    if let Some(next) = next {
        let then = format!("Mend the cause, then run \"{next}\".");
        failure.hint = Some(joined(failure.hint.as_deref(), &then));
    }
    Error::from(&failure)
}
