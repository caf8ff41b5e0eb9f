//! What a step is, and what it is given while it runs.

use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// How a step is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reversal {
    /// `undo` restores what was there before.
    Undo,
    /// There is nothing to take back (the step only looks, or corrects towards what was declared).
    NothingToUndo,
    /// The pivot: once it has happened there is only forward.
    ForwardOnly,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq)]
pub enum Found<E> {
    Done(E),
    NotDone,
    /// Only the operator can tell; the text says what to look at.
    CannotTell(String),
}

/// Why a step failed.
#[derive(Debug)]
pub struct StepError {
    pub error: Error,
    /// Whether trying the same again is known to be safe and may help.
    pub again: bool,
}

impl StepError {
    /// An error that a retry may get over.
    pub fn passing(error: Error) -> Self {
        Self { error, again: true }
    }

    /// The error of what may be done twice: a retry may get over it, unless it was refused for good.
    pub fn unless_refused(error: Error) -> Self {
        let again = !matches!(error.kind(), ErrorKind::Refused | ErrorKind::Usage);
        Self { error, again }
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

/// How often a passing error is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    pub attempts: u32,
    /// The first pause; doubled each time, with jitter.
    pub pause: Duration,
}

impl Retry {
    pub const NEVER: Self = Self { attempts: 1, pause: Duration::ZERO };
}

/// One change. Steps are data: the plan is what the journal holds.
///
/// `probe` is read-only. `apply` is idempotent. `undo` is idempotent and tolerates that `apply` never happened or got half way.
pub trait Step: Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static {
    /// What the steps of an operation share while they run: doors, connections, the declared cluster.
    type World: Send + Sync;
    /// What a step leaves for later ones and for the reader of the journal. Never holds a secret.
    type Evidence: Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send + Sync + 'static;

    /// Says what is done in a short line: `initdb inventory-a`.
    fn describe(&self) -> String;
    fn reversal(&self) -> Reversal;
    /// How long one `apply`, `probe` or `undo` may take.
    fn timeout(&self) -> Duration;
    fn retry(&self) -> Retry {
        Retry::NEVER
    }
    fn probe(
        &self,
        cx: &Cx<'_, Self>,
    ) -> impl Future<Output = Result<Found<Self::Evidence>, StepError>> + Send;
    fn apply(&self, cx: &Cx<'_, Self>) -> impl Future<Output = Result<Self::Evidence, StepError>> + Send;
    fn undo(&self, cx: &Cx<'_, Self>) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// What a step is given.
#[derive(Debug)]
pub struct Cx<'a, S: Step> {
    pub world: &'a S::World,
    /// The steps that ended before this stage, with what they left, in order.
    pub evidence: &'a [(S, S::Evidence)],
    /// How often the step, or its undo, has been begun, this time included; crashes count.
    pub attempt: u32,
    /// Reports how far the step is; lossy.
    pub progress: Progress<'a>,
    /// Tells of something that went wrong and does not make the step fail.
    pub warn: Warn<'a>,
}

/// Takes a whole sentence for the operator.
#[derive(Clone, Copy)]
pub struct Warn<'a>(pub &'a (dyn Fn(String) + Send + Sync));

impl std::fmt::Debug for Warn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warn")
    }
}

/// Takes `(done, total, unit)`; see `engine::event`.
#[derive(Clone, Copy)]
pub struct Progress<'a>(pub &'a (dyn Fn(u64, Option<u64>, Unit) + Send + Sync));

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Bytes,
    Items,
}

/// Steps that run side by side and are undone as a set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "S: DeserializeOwned"))]
pub struct Stage<S> {
    pub steps: Vec<S>,
}
