//! Copies of journals on the machines that their operations change, so that another station can go on when the first one is lost.
//!
//! Best effort: one task a machine sends what the journal has gathered; none of its failures reaches the operation, and nobody waits for a
//! machine longer than a moment. A copy has the very bytes of the journal, and checks itself as that does; docs/formats/journal.md. The
//! one thing that a copy can do to an operation is to tell it that another station has taken it over: then it stops.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::engine::feed::Feed;
use crate::engine::journal::{self, Content};
use crate::engine::record::{Actor, OperationId, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host, HostError};

/// How long one look at a copy, or one delivery, may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many copies of a cluster's journals a machine keeps. All but the newest belong to operations that have ended: none begins beside an
/// unfinished one.
const KEPT: usize = 50;
const EXTENSION: &str = "jsonl";

/// Where the copies of one cluster's journals lie on one machine.
#[derive(Debug, Clone)]
pub struct Shelf {
    pub host: Arc<dyn Host>,
    pub directory: PathBuf,
}

impl Shelf {
    /// Returns the path of an operation's copy.
    pub fn path(&self, id: &OperationId) -> PathBuf {
        self.directory.join(format!("{id}.{EXTENSION}"))
    }

    /// Lists the operations of which there are copies whose names begin so.
    ///
    /// # Errors
    /// When the machine does not answer in time, or the directory cannot be read.
    pub async fn ids(&self, prefix: &str) -> Result<Vec<OperationId>> {
        let names = self.answered(self.host.list(&self.directory)).await?.unwrap_or_default();
        let ids = names.iter().filter_map(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.'));
        let known = |id: &&str| !id.starts_with('.') && id.starts_with(prefix);
        Ok(ids.filter(known).map(|id| OperationId(id.to_owned())).collect())
    }

    /// Reads a copy; `None` if there is none.
    ///
    /// # Errors
    /// As [`Shelf::ids`].
    pub async fn read(&self, id: &OperationId) -> Result<Option<Vec<u8>>> {
        self.answered(self.host.read(&self.path(id))).await
    }

    /// Removes all copies of the cluster's journals.
    ///
    /// # Errors
    /// As [`Shelf::ids`].
    pub async fn clear(&self) -> Result<()> {
        self.answered(self.host.remove_tree(&self.directory)).await
    }

    /// Brings the copy of a journal that nobody writes to its end.
    ///
    /// # Errors
    /// As [`Shelf::ids`].
    pub async fn complete(&self, id: &OperationId, lines: &[u8]) -> Result<()> {
        self.answered(self.bring(id, 0, &Feed::new(lines.to_vec()))).await.map(|_| ())
    }

    async fn answered<T>(&self, call: impl Future<Output = std::result::Result<T, HostError>>) -> Result<T> {
        match timeout(CALL_LIMIT, call).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Error::new(
                ErrorKind::NotFound,
                format!("host {} did not answer within {} s", self.host.name(), CALL_LIMIT.as_secs()),
            )),
        }
    }

    /// Sees that the copy of a journal has all of its lines, of which it had the first `at` bytes when it was last heard of.
    async fn bring(&self, id: &OperationId, at: u64, feed: &Feed) -> std::result::Result<Brought, HostError> {
        let path = self.path(id);
        // What has gathered goes in one piece.
        let lines = feed.lines().clone();
        if self.add(&path, at, &lines).await? {
            return Ok(Brought::Has(lines.len() as u64));
        }
        let found = self.host.read(&path).await?.unwrap_or_default();
        // Two hosts may be one machine: then the other's task may have brought more than there was when we looked.
        let lines = feed.lines().clone();
        let has = Brought::Has(lines.len() as u64);
        let lines = lines.as_slice();
        match Kin::of(&path, lines, &found) {
            Kin::Behind => {
                let added = self.add(&path, found.len() as u64, lines).await?;
                Ok(if added { has } else { Brought::Moved })
            }
            // What a crash of that machine left, or what nobody can read, helps nobody.
            Kin::Torn | Kin::Damaged(_) | Kin::Superseded => {
                self.host.write_atomic(&path, lines, 0o600).await.map(|()| has)
            }
            Kin::Other(other) if other.view.is_finished() => {
                self.host.write_atomic(&path, lines, 0o600).await.map(|()| has)
            }
            Kin::Other(_) => Ok(Brought::Refused),
            Kin::Ahead(content) | Kin::TakenOver(content) => {
                Ok(Brought::Overtaken(Box::new(overtaken(id, self.host.name(), &content))))
            }
            Kin::Parted(content) => Ok(Brought::Overtaken(Box::new(parted(id, self.host.name(), &content)))),
        }
    }

    /// Appends what follows the first `at` bytes; `false` if the copy is of another length.
    async fn add(&self, path: &Path, at: u64, lines: &[u8]) -> std::result::Result<bool, HostError> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(lines.len());
        let rest = &lines[from..];
        match self.host.append(path, at, rest).await {
            Err(HostError::File { kind: std::io::ErrorKind::NotFound, .. }) => {
                self.host.make_directory(&self.directory, 0o700).await?;
                Ok(self.host.append(path, at, rest).await? == at)
            }
            length => Ok(length? == at),
        }
    }

    /// Removes the oldest copies beyond those that are kept.
    async fn prune(&self) -> std::result::Result<(), HostError> {
        let names = self.host.list(&self.directory).await?.unwrap_or_default();
        if names.len() <= KEPT {
            return Ok(());
        }
        let directory = self.directory.display().to_string();
        let listed = self.host.run(&Command::new("ls").args(["-t", "--", &directory]).reads()).await?.text();
        let copies = listed.lines().filter(|name| name.ends_with(".jsonl"));
        for old in copies.skip(KEPT) {
            self.host.remove_file(&self.directory.join(old)).await?;
        }
        Ok(())
    }
}

/// How a delivery ended.
enum Brought {
    /// So many bytes, all that there were.
    Has(u64),
    /// The copy changed meanwhile: try again.
    Moved,
    /// Another operation has the name there, and has not ended.
    Refused,
    /// The copy goes on where the journal does not.
    Overtaken(Box<Error>),
}

/// How a copy stands to a journal of the same name.
#[derive(Debug)]
pub enum Kin {
    /// It is the journal's beginning, or all of it.
    Behind,
    /// The same, but for an end that is no line.
    Torn,
    Damaged(Error),
    /// Another operation's.
    Other(Box<Content>),
    /// It goes on where the journal ends.
    Ahead(Box<Content>),
    /// Another station took the operation over before the journal's last lines.
    TakenOver(Box<Content>),
    /// The journal's operation was taken over before the copy's last lines.
    Superseded,
    /// Each has lines that the other has not.
    Parted(Box<Content>),
}

impl Kin {
    /// Compares a copy with the lines of a journal that can be trusted; `path` is the copy's, for errors.
    pub fn of(path: &Path, journal: &[u8], copy: &[u8]) -> Self {
        let common = journal.iter().zip(copy).take_while(|(a, b)| a == b).count();
        if common == copy.len() {
            return Self::Behind;
        }
        let whole = copy.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if common >= whole {
            return Self::Torn;
        }
        let theirs = match journal::parse(path, copy) {
            Ok(Some(content)) => Box::new(content),
            Ok(None) => return Self::Torn,
            Err(error) => return Self::Damaged(error),
        };
        let alike = journal[..common].iter().filter(|byte| **byte == b'\n').count();
        if common == journal.len() {
            return Self::Ahead(theirs);
        }
        if alike == 0 {
            return Self::Other(theirs);
        }
        let ours = journal::parse(path, journal).ok().flatten();
        let takes = |content: &Content| {
            matches!(
                content.entries.get(alike).map(|entry| &entry.record),
                Some(Record::TakenFromCopy { .. })
            )
        };
        match (ours.is_some_and(|ours| takes(&ours)), takes(&theirs)) {
            (true, false) => Self::Superseded,
            (false, true) => Self::TakenOver(theirs),
            (true, true) | (false, false) => Self::Parted(theirs),
        }
    }
}

/// Returns who wrote to a journal last, as far as it says so.
fn last_writer(content: &Content) -> &Actor {
    let mut newest = content.entries.iter().rev().filter_map(|entry| match &entry.record {
        Record::Header(header) => Some(&header.by),
        Record::TurnedBack { by, .. }
        | Record::Resumed { by }
        | Record::TakenOver { by, .. }
        | Record::TakenFromCopy { by, .. }
        | Record::Abandoned { by, .. } => Some(by),
        Record::StepStarted { .. }
        | Record::StepDone { .. }
        | Record::StepFailed { .. }
        | Record::StepFound { .. }
        | Record::UndoStarted { .. }
        | Record::UndoDone { .. }
        | Record::UndoFailed { .. }
        | Record::Ended { .. } => None,
    });
    newest.next().unwrap_or(&content.header.by)
}

/// The error of a station whose operation has gone on elsewhere.
pub(crate) fn overtaken(id: &OperationId, host: &str, content: &Content) -> Error {
    let by = last_writer(content);
    Error::new(ErrorKind::Locked, format!("operation {id} was taken over by {by}"))
        .detail(format!(
            "The copy of its journal on host {host} goes on where the journal here does not; its last line is of {:.0}. Nothing \
             more was begun here.",
            content.view.last
        ))
        .hint(if content.view.is_finished() {
            format!("It has ended there. To have its end in the journal here too: pgherd operation takeover {id}")
        } else {
            format!("See it: pgherd operation list --hosts. To go on with it here: pgherd operation takeover {id}")
        })
}

/// The error where two stations have gone on with one operation.
pub(crate) fn parted(id: &OperationId, host: &str, content: &Content) -> Error {
    Error::new(ErrorKind::Stuck, format!("operation {id} has gone on in two ways"))
        .detail(format!(
            "The copy of its journal on host {host} (last written by {}, {} lines) and another one each have lines that the other \
             has not. Nothing more was begun.",
            last_writer(content),
            content.entries.len()
        ))
        .hint("Compare both with the cluster, settle what is left by hand, and move the one that is wrong out of its directory.")
}

/// How far the copy on one machine is.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    has: u64,
    /// Deliveries that failed since the last one that did not.
    failures: u32,
}

#[derive(Debug)]
struct Sender {
    host: String,
    standing: watch::Receiver<Standing>,
    overtaken: watch::Receiver<Option<Arc<Error>>>,
    /// Ends its pause.
    again: Arc<Notify>,
    /// Nobody waits a second time for a machine that has once let everybody wait.
    late: AtomicBool,
    task: JoinHandle<()>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The copies of a journal that is being written.
#[derive(Debug)]
pub(crate) struct Copies {
    id: OperationId,
    feed: Arc<Feed>,
    senders: Vec<Sender>,
}

impl Copies {
    /// Begins to copy what is in the journal and what comes into it, for as long as this lives.
    pub(crate) fn start(id: &OperationId, feed: Arc<Feed>, shelves: Vec<Shelf>) -> Self {
        let begin = |shelf: Shelf| {
            let host = shelf.host.name().to_owned();
            let (standing, told) = watch::channel(Standing::default());
            let (overtaken, lost) = watch::channel(None);
            let again = Arc::new(Notify::new());
            let task = Delivery { shelf, id: id.clone(), feed: Arc::clone(&feed), standing, overtaken };
            let task = tokio::spawn(task.run(Arc::clone(&again)));
            Sender { host, standing: told, overtaken: lost, again, late: AtomicBool::new(false), task }
        };
        let senders = shelves.into_iter().map(begin).collect();
        Self { id: id.clone(), feed, senders }
    }

    /// Waits until the copies have what the journal has; leaves out those that fail, and all of them after `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let length = self.feed.length();
        join_all(self.senders.iter().map(|sender| async move {
            let mut standing = sender.standing.clone();
            let there = standing.borrow().has >= length;
            if there || sender.late.load(Ordering::Relaxed) {
                sender.late.store(!there, Ordering::Relaxed);
                return;
            }
            let reached = standing.wait_for(|now| now.has >= length || now.failures > 0);
            let late = !matches!(timeout(limit, reached).await, Ok(Ok(now)) if now.has >= length);
            sender.late.store(late, Ordering::Relaxed);
        }))
        .await;
    }

    /// As [`Copies::flush`], and tries those that failed once more. Returns the machines whose copies lack something.
    pub(crate) async fn finish(&self, limit: Duration) -> Vec<&str> {
        let length = self.feed.length();
        let ends = self.senders.iter().map(|sender| async move {
            let mut standing = sender.standing.clone();
            let before = *standing.borrow();
            sender.again.notify_one();
            let reached = standing.wait_for(|now| now.has >= length || now.failures > before.failures);
            let there = matches!(timeout(limit, reached).await, Ok(Ok(now)) if now.has >= length);
            (!there).then_some(sender.host.as_str())
        });
        let lacking: Vec<&str> = join_all(ends).await.into_iter().flatten().collect();
        if !lacking.is_empty() {
            tracing::warn!(operation = %self.id, hosts = lacking.join(", "), "the copies of the journal are not complete");
        }
        lacking
    }

    /// Returns how many machines have at least one copy that is as far as the journal.
    pub(crate) fn complete(&self) -> usize {
        let length = self.feed.length();
        self.senders.iter().filter(|sender| sender.standing.borrow().has >= length).count()
    }

    /// Ends when a copy shows that another station has the operation, with the error that says so.
    pub(crate) async fn overtaken(&self) -> Error {
        if self.senders.is_empty() {
            return std::future::pending().await;
        }
        let told = self.senders.iter().map(|sender| {
            let mut overtaken = sender.overtaken.clone();
            Box::pin(async move {
                let told = overtaken.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
                match told {
                    Some(error) => error,
                    // Its task has ended without that.
                    None => std::future::pending().await,
                }
            })
        });
        let (error, _, _) = select_all(told).await;
        let mut same = Error::new(error.kind(), error.what());
        if let Some(detail) = error.detail_text() {
            same = same.detail(detail);
        }
        if let Some(hint) = error.hint_text() {
            same = same.hint(hint);
        }
        same
    }
}

/// What the task of one machine works on.
struct Delivery {
    shelf: Shelf,
    id: OperationId,
    feed: Arc<Feed>,
    standing: watch::Sender<Standing>,
    overtaken: watch::Sender<Option<Arc<Error>>>,
}

impl Delivery {
    async fn run(self, again: Arc<Notify>) {
        let mut length = self.feed.lengths();
        let mut now = Standing::default();
        let mut pruned = false;
        while length.wait_for(|length| *length > now.has).await.is_ok() {
            let host = self.shelf.host.name();
            let why = match timeout(CALL_LIMIT, self.shelf.bring(&self.id, now.has, &self.feed)).await {
                Ok(Ok(Brought::Has(has))) => {
                    now = Standing { has, failures: 0 };
                    self.standing.send_replace(now);
                    if !std::mem::replace(&mut pruned, true) {
                        timeout(CALL_LIMIT, self.shelf.prune()).await.ok();
                    }
                    continue;
                }
                Ok(Ok(Brought::Overtaken(error))) => {
                    self.overtaken.send_replace(Some(Arc::new(*error)));
                    self.fails(now);
                    return;
                }
                Ok(Ok(Brought::Refused)) => {
                    tracing::warn!(operation = %self.id, host, "another operation has this name there: no copy is kept");
                    self.fails(now);
                    return;
                }
                Ok(Ok(Brought::Moved)) => "the copy changed meanwhile".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            tracing::debug!(operation = %self.id, host, why, "the copy of the journal was not written");
            let pause = FIRST_PAUSE.saturating_mul(1 << now.failures.min(16)).min(LONGEST_PAUSE);
            now = self.fails(now);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = again.notified() => {}
            }
        }
    }

    fn fails(&self, mut now: Standing) -> Standing {
        now.failures += 1;
        self.standing.send_replace(now);
        now
    }
}
