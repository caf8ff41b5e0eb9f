//! `backup verify`, on the node: reads what the repository holds and says what of it is not what was stored, and what that costs.
//!
//! Changes nothing but its own lease. What could not be read is never called whole, and never called damaged either.

mod beside;
mod chance;
mod content;
mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use beside::{Beside, BesideVerified};
pub use reach::{LostSpan, Run};

use self::chance::Chance;
use super::holdings::{Holdings, OfSystem};
use crate::engine::lease::{Held, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::{Progress, Reporter, VerifyBackups, VerifyDepth};
use crate::pg::history::TimelineHistory;
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::pg::wal_header::SegmentHeader;
use crate::repo::layout::{self, Label, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::seal::{self, Identity, Kind};
use crate::repo::{self, Key, RepoError, RepoErrorKind, SharedRepo};
use crate::units::ByteCount;

/// How many files of a damaged object are named.
const NAMED: usize = 10;
/// More workers than this need more memory than they are worth, unless they are asked for.
const WORKERS: usize = 12;
const TELL: Duration = Duration::from_millis(250);

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    pub cluster: String,
    /// The repository's URL.
    pub url: String,
    pub depth: VerifyDepth,
    /// What chance began with; the same seed chooses the same.
    pub seed: u64,
    pub verdict: Verdict,
    pub backups: Vec<BackupVerified>,
    pub wal: Vec<WalVerified>,
    /// Exports of partitions, and dumps.
    pub beside: Vec<BesideVerified>,
    /// Everything that is not as it was stored, or could not be looked at.
    pub problems: Vec<Problem>,
    /// Times that cannot be restored any more.
    pub lost: Vec<LostSpan>,
    /// Objects that pgherd did not put there.
    pub strays: Vec<Key>,
    /// Folders without a manifest: backups that run, or were interrupted. They are no backups.
    pub unfinished: Vec<Label>,
    pub bytes_read: ByteCount,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is wrong, as far as this depth looks.
    Sound,
    /// Something could not be looked at.
    CannotTell,
    /// Something is damaged or missing.
    Damaged,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupVerified {
    pub system_identifier: SystemIdentifier,
    pub label: Label,
    pub verdict: Verdict,
    /// Why it cannot be restored, or not be said to be whole.
    pub why: Option<String>,
    pub objects: u64,
    pub chunks: u64,
    pub chunks_read: u64,
    /// Files whose checksum was compared.
    pub files_read: u64,
    pub stored: ByteCount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalVerified {
    pub system_identifier: SystemIdentifier,
    pub files: u64,
    pub files_read: u64,
    pub stored: ByteCount,
    /// Segments that lie between others and are not there.
    pub missing: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    pub kind: ProblemKind,
    pub object: Key,
    pub why: String,
    /// The backup that it belongs to.
    pub backup: Option<Label>,
    /// The first files of the data directory that have bytes in it.
    pub files: Vec<String>,
    pub more_files: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    Damaged,
    Missing,
    /// It could not be read; what it is nobody knows.
    Unreadable,
}

impl Problem {
    fn new(kind: ProblemKind, object: Key, why: impl Into<String>) -> Self {
        Self { kind, object, why: why.into(), backup: None, files: Vec::new(), more_files: 0 }
    }

    fn unreadable(object: Key, error: &RepoError) -> Self {
        Self::new(ProblemKind::of(error), object, error.why.clone())
    }
}

impl ProblemKind {
    /// Says what is known of an object whose reading failed: whoever decrypts may have found it damaged.
    fn of(error: &RepoError) -> Self {
        if error.kind == RepoErrorKind::Damaged { Self::Damaged } else { Self::Unreadable }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Damaged | Self::Missing => Verdict::Damaged,
            Self::Unreadable => Verdict::CannotTell,
        }
    }
}

/// Verifies.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no backup, or none of a label; [`ErrorKind::Locked`] while one is being removed;
/// [`ErrorKind::Interrupted`] when nobody listens any more; otherwise as the repository fails as a whole.
pub async fn run(request: &VerifyBackups, reporter: &Reporter) -> Result<Verified> {
    run_in(repo::open(&request.repository)?, request, reporter).await
}

pub(super) async fn run_in(
    repo: SharedRepo,
    request: &VerifyBackups,
    reporter: &Reporter,
) -> Result<Verified> {
    let begun = std::time::Instant::now();
    let seen = Holdings::read(&repo, &request.cluster, Timestamp::now()).await?;
    asked_for(request, &seen)?;
    let mut leases = Vec::new();
    let ended = verify(request, reporter, &repo, seen, &mut leases).await;
    for held in leases {
        if let Err(error) = held.release().await {
            tracing::warn!(%error, "could not give the lease back; it expires by itself");
        }
    }
    ended.map(|verified| Verified { seconds: begun.elapsed().as_secs_f64(), ..verified })
}

/// Refuses to verify nothing.
fn asked_for(request: &VerifyBackups, seen: &Holdings) -> Result<()> {
    let there: BTreeSet<&Label> =
        seen.systems.iter().flat_map(|of| &of.system.backups).map(|backup| &backup.label).collect();
    let missing = request.labels.iter().find(|label| !there.contains(label));
    let what = match missing {
        Some(label) => format!("cluster {} has no backup {label}", request.cluster),
        None if there.is_empty() && !seen.has_more_than_backups() => {
            format!("cluster {} has no backup", request.cluster)
        }
        None => return Ok(()),
    };
    let error = Error::new(ErrorKind::NotFound, what);
    // What cannot be read may be what was asked for.
    Err(match seen.unlisted.iter().chain(&seen.unreadable).next() {
        Some((_, unreadable)) => error.detail(format!("{unreadable}.")),
        None => error.hint(format!("See which there are: pgherd backup list --cluster {}", request.cluster)),
    })
}

async fn verify(
    request: &VerifyBackups,
    reporter: &Reporter,
    repo: &SharedRepo,
    seen: Holdings,
    leases: &mut Vec<Held>,
) -> Result<Verified> {
    for of in &seen.systems {
        let labels: Vec<Label> = of
            .system
            .backups
            .iter()
            .map(|backup| backup.label.clone())
            .filter(|label| request.labels.is_empty() || request.labels.contains(label))
            .collect();
        if !labels.is_empty() {
            leases.push(Held::take_to_use(repo, &of.keys, Purpose::Verify, labels).await?);
        }
    }
    // What was removed before the leases were there is not looked for.
    let holdings = Holdings::read(repo, &request.cluster, Timestamp::now()).await?;
    let work = Work::new(request, repo, reporter);
    let mut verified = work.empty();
    if request.labels.is_empty() {
        work.documents(&holdings, &mut verified);
        verified.strays = holdings.strays.iter().map(|listed| listed.key.clone()).collect();
    }
    for of in &holdings.systems {
        work.system(of, &holdings, &mut verified)?;
    }
    if request.labels.is_empty() {
        beside::check(&work, &holdings, &mut verified)?;
    }
    for (object, error) in holdings.unlisted.iter().chain(&holdings.unreadable) {
        if !verified.problems.iter().any(|problem| problem.object == *object) {
            verified.problems.push(Problem::unreadable(object.clone(), error));
        }
    }
    verified.bytes_read = ByteCount(work.read.load(Ordering::Relaxed));
    let problems = verified.problems.iter().map(|problem| problem.kind.verdict());
    let backups = verified.backups.iter().map(|backup| backup.verdict);
    verified.verdict = problems.chain(backups).max().unwrap_or(Verdict::Sound);
    if !verified.lost.is_empty() {
        verified.verdict = Verdict::Damaged;
    }
    verified.backups.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(verified)
}

/// What every part of a verification needs.
struct Work<'a> {
    request: &'a VerifyBackups,
    repo: &'a SharedRepo,
    reporter: &'a Reporter,
    workers: usize,
    /// Bytes read so far, and those that will be, as far as that is known.
    read: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

impl<'a> Work<'a> {
    fn new(request: &'a VerifyBackups, repo: &'a SharedRepo, reporter: &'a Reporter) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers = match usize::try_from(request.workers).unwrap_or(usize::MAX) {
            0 => cores.min(WORKERS),
            asked => asked,
        };
        let (read, total) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { request, repo, reporter, workers, read, total, stop: AtomicBool::new(false) }
    }

    fn empty(&self) -> Verified {
        Verified {
            cluster: self.request.cluster.clone(),
            url: self.request.repository.url.clone(),
            depth: self.request.depth,
            seed: self.request.seed,
            verdict: Verdict::Sound,
            backups: Vec::new(),
            wal: Vec::new(),
            beside: Vec::new(),
            problems: Vec::new(),
            lost: Vec::new(),
            strays: Vec::new(),
            unfinished: Vec::new(),
            bytes_read: ByteCount(0),
            seconds: 0.0,
        }
    }

    /// Checks the small documents that belong to no backup.
    fn documents(&self, holdings: &Holdings, verified: &mut Verified) {
        let leases = holdings.systems.iter().flat_map(|of| &of.leases).map(|listed| &listed.key);
        let key_documents = holdings.systems.iter().flat_map(|of| &of.key_documents);
        let others = holdings.documents.iter().chain(leases).chain(key_documents).cloned();
        for key in [layout::repository()].into_iter().chain(others) {
            match repo::wait(self.repo.read(&key)) {
                // Locks and leases come and go.
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    if let Err(error) = seal::read_document::<serde_json::Value>(&bytes) {
                        verified.problems.push(Problem::new(ProblemKind::Damaged, key, error.to_string()));
                    }
                }
                Err(error) => verified.problems.push(Problem::unreadable(key, &error)),
            }
        }
    }

    /// Checks what there is of one system identifier.
    fn system(&self, of: &OfSystem, holdings: &Holdings, verified: &mut Verified) -> Result<()> {
        let wanted = |label: &Label| self.request.labels.is_empty() || self.request.labels.contains(label);
        let mut problems: Vec<Problem> = Vec::new();
        for (object, error) in &of.unusable {
            let is_in = |label: &&Label| object.as_str().starts_with(of.keys.backup(label).folder().as_str());
            let mut problem = Problem::new(ProblemKind::Damaged, object.clone(), error.to_string());
            problem.backup = of.folders.keys().find(is_in).cloned();
            if self.request.labels.is_empty() || problem.backup.as_ref().is_some_and(wanted) {
                problems.push(problem);
            }
        }
        let mut checked: Vec<BackupVerified> = Vec::new();
        for backup in of.system.backups.iter().filter(|backup| wanted(&backup.label)) {
            let content = content::check(self, of, backup)?;
            problems.extend(content.problems);
            checked.push(content.backup);
        }
        let (mut wal, found) = self.wal(of)?;
        problems.extend(found);
        let bad: BTreeSet<WalFile> = of
            .system
            .wal
            .iter()
            .filter(|stored| {
                let key = of.keys.wal(stored.file);
                problems
                    .iter()
                    .any(|problem| problem.object == key && problem.kind != ProblemKind::Unreadable)
            })
            .map(|stored| stored.file)
            .collect();
        for problem in problems.iter_mut().filter(|problem| problem.kind == ProblemKind::Missing) {
            let folder = holdings.unlisted.iter().find(|(folder, _)| is_below(&problem.object, folder));
            if let Some((_, error)) = folder {
                let label = problem.backup.take();
                *problem = Problem::unreadable(problem.object.clone(), error);
                problem.backup = label;
            }
        }
        judge(&mut checked, &problems);
        let broken: BTreeSet<Label> = checked
            .iter()
            .filter(|backup| backup.verdict == Verdict::Damaged)
            .map(|backup| backup.label.clone())
            .collect();
        // Where a folder could not be listed nothing is known to be missing.
        let reach = if holdings.unlisted.is_empty() {
            reach::reach(&of.system, &bad, &broken)
        } else {
            reach::Reach::default()
        };
        for backup in &mut checked {
            if let Some(segment) = reach.without_wal.get(&backup.label) {
                backup.verdict = Verdict::Damaged;
                backup
                    .why
                    .get_or_insert_with(|| format!("WAL segment {segment}, which it needs, is not whole"));
            }
        }
        if self.request.labels.is_empty() {
            problems.extend(missing_segments(of, &reach));
            if holdings.unlisted.is_empty() {
                problems.extend(missing_histories(of));
            }
            wal.missing = reach.missing;
            verified.lost.extend(reach.lost);
            verified
                .unfinished
                .extend(of.system.unfinished.iter().map(|unfinished| unfinished.label.clone()));
        } else {
            let named = reach.without_wal.iter().filter(|(label, _)| self.request.labels.contains(label));
            for (_, name) in named.filter(|(_, name)| !of.has(WalFile::Segment(**name))) {
                let key = of.keys.wal(WalFile::Segment(*name));
                problems.push(Problem::new(ProblemKind::Missing, key, "a backup needs it"));
            }
        }
        verified.wal.push(wal);
        verified.backups.extend(checked);
        verified.problems.extend(problems);
        Ok(())
    }

    /// Checks WAL files: all of them, or some by chance and every history file.
    fn wal(&self, of: &OfSystem) -> Result<(WalVerified, Vec<Problem>)> {
        let wanted: Vec<_> = of.system.wal.iter().filter(|wal| self.wants(of, wal.file)).collect();
        let mut verified = WalVerified {
            system_identifier: of.system.id,
            files: wanted.len() as u64,
            files_read: 0,
            stored: ByteCount(wanted.iter().map(|wal| wal.stored.0).sum()),
            missing: Vec::new(),
        };
        let mut problems: Vec<Problem> = wanted
            .iter()
            .filter(|wal| wal.stored.0 == 0)
            .map(|wal| Problem::new(ProblemKind::Damaged, of.keys.wal(wal.file), "it is empty"))
            .collect();
        let chosen: Vec<_> = match self.request.depth {
            VerifyDepth::Quick => Vec::new(),
            VerifyDepth::Full => wanted,
            VerifyDepth::Sampled => {
                let mut chance = Chance::new(self.request.seed, of.keys.wal_folder().as_str());
                let picked: BTreeSet<usize> = chance.pick(wanted.len()).into_iter().collect();
                let history = |file| matches!(file, WalFile::TimelineHistory(_));
                let numbered = wanted.into_iter().enumerate();
                numbered
                    .filter(|(n, wal)| picked.contains(n) || history(wal.file))
                    .map(|(_, wal)| wal)
                    .collect()
            }
        };
        let major = major(of);
        let chosen: Vec<_> = chosen.into_iter().filter(|wal| wal.stored.0 > 0).collect();
        self.expect(chosen.iter().map(|wal| wal.stored.0).sum());
        let found = self.in_parallel(&chosen, |wal| {
            let problem = self.wal_file(&of.keys, wal.file, major);
            self.done(wal.stored.0);
            problem
        })?;
        verified.files_read = chosen.len() as u64;
        // History files were opened before, and are in the list of what cannot be used.
        let known: BTreeSet<&Key> = of.unusable.iter().map(|(key, _)| key).collect();
        problems.extend(found.into_iter().flatten().filter(|problem| !known.contains(&problem.object)));
        Ok((verified, problems))
    }

    /// Whether a WAL file belongs to what was asked for: all of it, or what named backups need to become consistent.
    fn wants(&self, of: &OfSystem, file: WalFile) -> bool {
        if self.request.labels.is_empty() {
            return true;
        }
        let WalFile::Segment(name) = file else { return false };
        let named = of.system.backups.iter().filter(|backup| self.request.labels.contains(&backup.label));
        named.filter_map(|backup| backup.manifest.as_ref()).any(|manifest| {
            let (first, last) = manifest.wal();
            first <= name && name <= last
        })
    }

    /// Opens one WAL file and checks all of it.
    fn wal_file(&self, keys: &SystemKeys, file: WalFile, major: Option<u32>) -> Option<Problem> {
        let key = keys.wal(file);
        let object = match repo::wait(self.repo.read(&key)) {
            Ok(Some(object)) => object,
            Ok(None) => return Some(Problem::new(ProblemKind::Missing, key, "it was there a moment ago")),
            Err(error) => return Some(Problem::unreadable(key, &error)),
        };
        let name = file.to_string();
        let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: keys.system() };
        let why = match seal::open(identity, &object) {
            Err(error) => error.to_string(),
            Ok(content) => wrong_content(keys, file, &content, major)?,
        };
        Some(Problem::new(ProblemKind::Damaged, key, why))
    }

    /// Adds to what will be read.
    fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Nobody waits for the rest.
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn done(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Does `work` for each of `tasks` in threads, and tells how far all of it is.
    fn in_parallel<T: Sync, R: Send>(&self, tasks: &[T], work: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
        let (next, done, results) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
        let main = thread::current();
        self.tell();
        thread::scope(|scope| {
            for _ in 0..self.workers.min(tasks.len()) {
                scope.spawn(|| {
                    while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if !self.stop.load(Ordering::Relaxed) {
                            let result = work(task);
                            results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                        }
                        if done.fetch_add(1, Ordering::Release) + 1 == tasks.len() {
                            main.unpark();
                        }
                    }
                });
            }
            while done.load(Ordering::Acquire) < tasks.len() {
                thread::park_timeout(TELL);
                self.tell();
            }
        });
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "nobody waits for the verification any more"));
        }
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells how far it is, and stops where nobody listens any more.
    fn tell(&self) {
        let (read, total) = (self.read.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        self.reporter.progress(Progress {
            done: ByteCount(read),
            total: ByteCount(total),
            stored: ByteCount(0),
        });
        if self.reporter.is_alone() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Says what is wrong with the content of a WAL file that is what was stored.
fn wrong_content(keys: &SystemKeys, file: WalFile, content: &[u8], major: Option<u32>) -> Option<String> {
    match file {
        WalFile::Segment(name) | WalFile::Partial(name) => {
            let checked = SegmentHeader::parse(content).and_then(|header| {
                let major = major.or_else(|| header.page.major()).unwrap_or(0);
                header.check(name, content.len() as u64, keys.system(), major)
            });
            checked.err().map(|error| error.to_string())
        }
        WalFile::TimelineHistory(timeline) => {
            let text = String::from_utf8_lossy(content);
            TimelineHistory::parse(timeline, &text).err().map(|error| error.to_string())
        }
        WalFile::BackupHistory(..) => None,
    }
}

/// Returns the major version of a system, which it keeps for its life.
fn major(of: &OfSystem) -> Option<u32> {
    of.system.backups.iter().find_map(|backup| backup.manifest.as_ref()).map(Manifest::major)
}

fn is_below(key: &Key, folder: &Key) -> bool {
    key.as_str().strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

fn missing_segments<'a>(of: &'a OfSystem, reach: &'a reach::Reach) -> impl Iterator<Item = Problem> + 'a {
    reach.missing.iter().map(|run| {
        let why = if run.first == run.last {
            "a restore needs it".to_owned()
        } else {
            format!("a restore needs it; all up to {} are missing too", run.last)
        };
        Problem::new(ProblemKind::Missing, of.keys.wal(WalFile::Segment(run.first)), why)
    })
}

/// Finds timelines that the archive has WAL of and that cannot be reached from an earlier one, since their history file is not there.
fn missing_histories(of: &OfSystem) -> Vec<Problem> {
    let segments = of.system.wal.iter().filter_map(|wal| match wal.file {
        WalFile::Segment(name) => Some(name.timeline()),
        WalFile::Partial(_) | WalFile::TimelineHistory(_) | WalFile::BackupHistory(..) => None,
    });
    let backups = of.system.backups.iter().filter_map(|backup| Some(backup.manifest.as_ref()?.timeline));
    let timelines: BTreeSet<_> = segments.chain(backups).collect();
    let listed: BTreeSet<_> = of.system.wal.iter().map(|wal| wal.file).collect();
    timelines
        .iter()
        .skip(1)
        .map(|timeline| WalFile::TimelineHistory(*timeline))
        .filter(|file| !listed.contains(file))
        .map(|file| {
            let why = "without it no restore of an earlier timeline's backup gets to this timeline";
            Problem::new(ProblemKind::Missing, of.keys.wal(file), why)
        })
        .collect()
}

/// Says of each backup what the problems that were found with it come to.
fn judge(checked: &mut [BackupVerified], problems: &[Problem]) {
    let mut of: BTreeMap<&Label, Vec<&Problem>> = BTreeMap::new();
    for problem in problems {
        if let Some(label) = &problem.backup {
            of.entry(label).or_default().push(problem);
        }
    }
    for backup in checked {
        let found = of.remove(&backup.label).unwrap_or_default();
        // A pin does not keep anybody from restoring.
        let worst = found
            .into_iter()
            .filter(|problem| problem.object.name() != "pin.json")
            .max_by_key(|problem| problem.kind.verdict());
        if let Some(problem) = worst {
            backup.verdict = problem.kind.verdict();
            backup.why = Some(format!("{}: {}", problem.object.name(), problem.why));
        }
    }
}

#[cfg(test)]
mod tests;
