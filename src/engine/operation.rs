//! Operations: begun, opened, taken over, driven ([`drive`]) or abandoned.
//!
//! Knows no operation by name, prints nothing, and makes no decision that the records do not show.

mod drive;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use self::drive::{Driver, joined};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::journal::Journal;
use crate::engine::lock::{self, Lock};
use crate::engine::record::{
    Actor, End, FORMAT, Failure, Header, OperationId, PlannedStage, PlannedStep, Record, TopologyFile,
};
use crate::engine::shared_lock::SharedLock;
use crate::engine::step::{Stage, Step};
use crate::engine::store::{Listed, Store};
use crate::engine::view::{Ended, OperationView, StepState};
use crate::error::{Error, ErrorKind, Result};

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

    /// Returns the lock in the repository, if it is held.
    pub fn shared_lock(&self) -> Option<Arc<SharedLock>> {
        self.lock.shared().cloned()
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
