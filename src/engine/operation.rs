//! Operations: begun, opened, taken over, driven ([`drive`]) or abandoned.
//!
//! Knows no operation by name, prints nothing, and makes no decision that the records do not show.

mod drive;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::drive::{Driver, joined};
use crate::engine::copies::{Copies, Shelf};
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

/// How long the end of an operation waits for the copies of its journal.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long a takeover waits until those who could be in its way can see it.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(10);

/// A copy of a journal that this station is to go on from.
#[derive(Debug)]
pub struct FromCopy {
    pub id: OperationId,
    /// The journal as the copy has it.
    pub lines: Vec<u8>,
    /// The machines that have it.
    pub copies: Vec<String>,
    /// The machines whose copies could not be looked at.
    pub unreachable: Vec<String>,
    pub reason: String,
}

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

impl<S> Intent<S> {
    /// Returns what is to be done, identified by its input.
    ///
    /// # Errors
    /// When the input cannot be written down.
    pub fn of(
        kind: &str,
        topology: TopologyFile,
        input: &impl Serialize,
        stages: Vec<Stage<S>>,
    ) -> Result<Self> {
        let input = written(input)?;
        let digest = Sha256::digest(input.to_string());
        let plan_digest = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { kind: kind.to_owned(), topology, plan_digest, input, stages })
    }
}

/// Writes an input down as the journal keeps it.
///
/// # Errors
/// When it is no JSON.
pub fn written(input: &impl Serialize) -> Result<Value> {
    serde_json::to_value(input).map_err(|error| Error::failed("could not write the input down").source(error))
}

/// Which way an unfinished operation is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Forward,
    Back,
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
    /// The copies of its journal on other machines.
    copies: Option<Copies>,
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
        let shelves = lock.take_shelves();
        let mut operation = Self {
            journal: Mutex::new(journal),
            stages: intent.stages,
            announce: false,
            lock,
            taken_over: false,
            copies: None,
        };
        operation.copy_to(shelves);
        Ok(operation)
    }

    /// Keeps an operation that has not begun to do anything for what was made for it; an error calls it off.
    ///
    /// # Errors
    /// That of `made`, or of a journal that cannot be written.
    pub async fn or_call_off<T>(self, made: Result<T>) -> Result<(Self, T)> {
        match made {
            Ok(made) => Ok((self, made)),
            Err(error) => {
                self.call_off(&error).await?;
                Err(error)
            }
        }
    }

    /// Returns the input that it was begun with.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if another version wrote it.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.header().input).map_err(|error| {
            Error::new(ErrorKind::Stuck, format!("cannot read the input of operation {}", self.id()))
                .hint("Use the version of pgherd that began it.")
                .source(error)
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

    /// Goes on, from a copy of its journal, with an operation that another station began. From here on that station finds, at each of
    /// the copies that are within reach, that it has lost the operation.
    ///
    /// The lock has what keeps other stations away, and the shelves.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if its steps are not known to this pgherd, [`ErrorKind::Failed`] if the takeover could be written to no
    /// machine: then nothing was done, and it may be tried again.
    pub async fn take_from_copy(store: &Store, mut lock: Lock, found: FromCopy) -> Result<Self> {
        let FromCopy { id, lines, copies, unreachable, reason } = found;
        let shelves = lock.take_shelves();
        let opened = store.adopt(&id, &lines).and_then(|()| {
            let mut journal = store.open(&id)?;
            let stages = journal.header().stages.iter().map(|stage| understood(&id, stage));
            let stages = stages.collect::<Result<_>>()?;
            if !journal.view().is_finished() {
                journal.append(Record::TakenFromCopy { by: Actor::here(), reason, copies, unreachable })?;
            }
            Ok((journal, stages))
        });
        let (mut lock, (journal, stages)) = lock.keep_for(opened).await?;
        lock.name_operation(&id);
        let journal = Mutex::new(journal);
        let mut operation = Self { journal, stages, announce: false, lock, taken_over: false, copies: None };
        operation.copy_to(shelves);
        if let Some(copies) = &operation.copies {
            let lacking = copies.finish(TAKEOVER_LIMIT).await;
            if copies.complete() == 0 {
                let hosts = lacking.join(", ");
                operation.lock.give_back().await;
                return Err(Error::failed(format!(
                    "could not tell any host that operation {id} is taken over"
                ))
                .detail(format!(
                    "Tried {hosts}. The station that began it would not have noticed; nothing was done."
                ))
                .hint(format!("When a host answers: {}", id.resume_command())));
            }
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
        self.finish_copies().await;
        self.lock.give_back().await;
        Ok(())
    }

    fn opened(store: &Store, id: &OperationId, mut lock: Lock, announce: bool) -> Result<Self> {
        let journal = store.open(id)?;
        let stages =
            journal.header().stages.iter().map(|stage| understood(id, stage)).collect::<Result<_>>()?;
        lock.name_operation(id);
        Ok(Self { journal: Mutex::new(journal), stages, announce, lock, taken_over: false, copies: None })
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
        let Some(shared) = self.lock.shared() else {
            let outcome = drive.await;
            self.finish_copies().await;
            return outcome;
        };
        let id = self.id();
        shared.name_operation(&id).await?;
        let outcome = tokio::select! {
            biased;
            lost = shared.lost() => Err(lost.hint(id.resume_command())),
            outcome = drive => outcome,
        };
        self.finish_copies().await;
        shared.give_back(!self.view().is_finished()).await;
        outcome
    }

    /// Has the journal copied to other machines from here on.
    pub fn copy_to(&mut self, shelves: Vec<Shelf>) {
        if shelves.is_empty() {
            return;
        }
        let id = self.id();
        let feed = self.journal.lock().unwrap_or_else(PoisonError::into_inner).feed();
        match feed {
            Ok(feed) => self.copies = Some(Copies::start(&id, feed, shelves)),
            Err(error) => tracing::warn!(%error, "the journal is not copied"),
        }
    }

    /// Returns its journal's lines as they are on disk.
    ///
    /// # Errors
    /// [`ErrorKind::Stuck`] if they cannot be read.
    pub fn lines(&self) -> Result<Vec<u8>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).lines()
    }

    /// Gives the lock in the repository back without having done anything; `unfinished`: it then names the operation.
    pub async fn let_go(&self, unfinished: bool) {
        if let Some(shared) = self.lock.shared() {
            shared.give_back(unfinished).await;
        }
    }

    /// Tells whether its journal is copied already.
    pub fn is_copied(&self) -> bool {
        self.copies.is_some()
    }

    /// Tells whether the lock in the repository is held for it already.
    pub fn is_shared(&self) -> bool {
        self.lock.shared().is_some()
    }

    async fn finish_copies(&self) {
        if let Some(copies) = &self.copies {
            copies.finish(END_LIMIT).await;
        }
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

/// Goes on with an operation that was opened, or takes it back.
///
/// # Errors
/// As [`run`] and [`undo`].
pub async fn go<S: Step>(
    operation: &mut Operation<S>,
    world: &S::World,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    match way {
        Way::Forward => run(operation, world, events, interrupt).await,
        Way::Back => undo(operation, world, events, interrupt).await,
    }
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
