//! What the repository has for a restore, and what is chosen of it: on the node, as the os-user. Reads only.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::source;
use super::target::{self, Archived, Choice, Known, Span, names};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::restore::{PlanForRestore, Target};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::pg::wal_record::{self, Mark, SegmentMarks};
use crate::repo::layout::{ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::seal::{self, Identity, Kind};
use crate::repo::{self, Listed, Repo};
use crate::units::ByteCount;

/// Behind the target so many segments are read to count what would be given up; more take too long for a look.
const COUNTED: usize = 64;
/// Segments whose marks are kept: the search goes back and forth by a few.
const KEPT: usize = 8;

/// What a restore would do, as far as the repository tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    pub system_identifier: SystemIdentifier,
    pub choice: Choice,
    /// Of the backup that is chosen.
    pub manifest: Manifest,
    /// Stored bytes of the segments that are replayed.
    pub wal_stored: ByteCount,
    pub beyond: Beyond,
    /// Timelines of the archive that are newer than the target's, and are not followed.
    pub passed_over: Vec<TimelineId>,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
}

/// What the archive has behind the target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beyond {
    /// Transactions that committed; `None` if there is too much WAL to count them.
    pub commits: Option<u64>,
    /// The last of them.
    pub last: Option<Mark>,
    pub segments: u64,
}

/// Looks into the repository and decides.
///
/// # Errors
/// `NotFound` if it has nothing of the cluster; `Refused` if no backup reaches the target, and why; when it cannot be read.
pub fn survey(request: &PlanForRestore) -> Result<Survey> {
    let repo = repo::open(&request.url)?;
    let cluster = ClusterKeys::new(&request.cluster);
    let mut notes = Vec::new();
    let system = system(&*repo, &cluster, request)?;
    let keys = cluster.system(system);
    let backups = manifests(&*repo, &keys, &mut notes)?;
    let newest = backups.iter().max_by_key(|backup| backup.label.clone());
    let newest = newest.ok_or_else(|| nothing_of(&request.cluster, Some(system)))?;
    let segment_size = newest.wal_segment_size;
    let archive = Archive::list(&*repo, keys, segment_size)?;
    let known = Known { backups, segment_size, timelines: archive.timelines()?, primary: request.primary };
    let mut reader = Reader { archive: &archive, kept: VecDeque::new() };
    let choice = target::decide(&known, &request.wish, &mut |name| reader.marks(name))?;
    let beyond = beyond(&choice, &mut reader)?;
    let passed_over =
        known.timelines.keys().copied().filter(|timeline| *timeline > choice.timeline).collect();
    let wal_stored = archive.stored(&choice.wal);
    let manifest = known
        .backups
        .into_iter()
        .find(|backup| backup.label == choice.backup)
        .expect("the choice is one of these backups");
    Ok(Survey { system_identifier: system, choice, manifest, wal_stored, beyond, passed_over, notes })
}

/// Finds whose backups are looked at.
fn system(repo: &dyn Repo, cluster: &ClusterKeys, request: &PlanForRestore) -> Result<SystemIdentifier> {
    let mut labels: Vec<(Label, SystemIdentifier)> = Vec::new();
    for folder in repo::now(repo.list(Some(&cluster.folder())))?.folders {
        let Ok(system) = folder.parse::<SystemIdentifier>() else { continue };
        for label in repo::now(repo.list(Some(&cluster.system(system).backups())))?.folders {
            labels.extend(label.parse::<Label>().ok().map(|label| (label, system)));
        }
    }
    if let Some(wanted) = &request.wish.backup {
        let found = labels.iter().find(|(label, _)| label == wanted);
        return found.map(|(_, system)| *system).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no backup {wanted} of {}", request.cluster))
                .hint("See those that there are: pgherd backup list")
        });
    }
    match request.system_identifier {
        Some(own) if labels.iter().any(|(_, system)| *system == own) => Ok(own),
        Some(own) => Err(match labels.iter().max() {
            None => nothing_of(&request.cluster, Some(own)),
            Some((label, other)) => nothing_of(&request.cluster, Some(own)).hint(format!(
                "There are backups of an earlier cluster of that name, with system identifier {other}. If you want one of those, name it: \
                 --backup {label}"
            )),
        }),
        // No node is left that could tell.
        None => labels
            .iter()
            .max()
            .map(|(_, system)| *system)
            .ok_or_else(|| nothing_of(&request.cluster, None)),
    }
}

fn nothing_of(cluster: &str, system: Option<SystemIdentifier>) -> Error {
    let of = system.map_or_else(String::new, |system| format!(" with system identifier {system}"));
    Error::new(ErrorKind::NotFound, format!("there is no backup of {cluster} to restore"))
        .detail(format!("The repository holds no whole backup of that cluster{of}."))
        .hint("Make one: pgherd backup create")
}

/// Reads the manifests of all whole backups; one that is damaged is passed over and told.
fn manifests(repo: &dyn Repo, keys: &SystemKeys, notes: &mut Vec<String>) -> Result<Vec<Manifest>> {
    let mut found = Vec::new();
    for folder in repo::now(repo.list(Some(&keys.backups())))?.folders {
        let Ok(label) = folder.parse::<Label>() else { continue };
        match source::manifest(repo, keys, &label) {
            Ok(manifest) => found.push(manifest),
            // Without a manifest it is what an interrupted backup left.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if repo::now(repo.read(&keys.backup(&label).manifest()))?.is_some() {
                    return Err(error);
                }
            }
            Err(error) if error.what().contains("damaged") => {
                notes.push(format!("Backup {label} was passed over: its manifest is damaged."));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The WAL archive of one system identifier, as a listing shows it.
struct Archive<'a> {
    repo: &'a dyn Repo,
    keys: SystemKeys,
    size: WalSegmentSize,
    segments: BTreeMap<SegmentName, ByteCount>,
    histories: Vec<TimelineId>,
}

impl<'a> Archive<'a> {
    fn list(repo: &'a dyn Repo, keys: SystemKeys, size: WalSegmentSize) -> Result<Self> {
        let (mut segments, mut histories) = (BTreeMap::new(), Vec::new());
        for Listed { key, size: stored, .. } in repo::now(repo.list_all(&keys.wal_folder()))? {
            let Some(name) = key.name().strip_suffix(".zst") else { continue };
            match name.parse::<WalFile>() {
                Ok(WalFile::Segment(name)) if name.fits(size) => {
                    segments.insert(name, stored);
                }
                Ok(WalFile::TimelineHistory(timeline)) => histories.push(timeline),
                // PostgreSQL asks for neither in recovery.
                Ok(WalFile::Segment(_) | WalFile::Partial(_) | WalFile::BackupHistory(..)) | Err(_) => {}
            }
        }
        Ok(Self { repo, keys, size, segments, histories })
    }

    /// Reads every history file, and joins the segments to runs.
    fn timelines(&self) -> Result<BTreeMap<TimelineId, Archived>> {
        let mut timelines: BTreeMap<TimelineId, Archived> = BTreeMap::new();
        for timeline in &self.histories {
            let history = self.history(*timeline)?;
            timelines.entry(*timeline).or_default().history = Some(history);
        }
        for name in self.segments.keys() {
            let spans = &mut timelines.entry(name.timeline()).or_default().spans;
            match spans.last_mut() {
                Some(span) if span.last.next(self.size) == *name => span.last = *name,
                Some(_) | None => spans.push(Span { first: *name, last: *name }),
            }
        }
        Ok(timelines)
    }

    fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        let file = WalFile::TimelineHistory(timeline);
        let bytes = self.read(file)?.ok_or_else(|| damaged(file, "it has just gone"))?;
        let text = String::from_utf8_lossy(&bytes);
        TimelineHistory::parse(timeline, &text).map_err(|error| damaged(file, &error.to_string()))
    }

    fn read(&self, file: WalFile) -> Result<Option<Vec<u8>>> {
        let Some(object) = repo::now(self.repo.read(&self.keys.wal(file)))? else { return Ok(None) };
        let name = file.to_string();
        let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: self.keys.system() };
        seal::open(identity, &object).map(Some).map_err(|error| damaged(file, &error.to_string()))
    }

    fn stored(&self, spans: &[Span]) -> ByteCount {
        let sizes = names(spans, self.size).into_iter().filter_map(|name| self.segments.get(&name));
        ByteCount(sizes.map(|size| size.0).sum())
    }

    /// Returns the segments that may go on where `name` ends: on its own timeline first.
    fn behind(&self, name: SegmentName) -> Vec<SegmentName> {
        let next = name.next(self.size);
        let own = self.segments.contains_key(&next).then_some(next);
        let other = self.histories.iter().map(|timeline| next.on(*timeline));
        let other = other.filter(|other| *other != next && self.segments.contains_key(other));
        own.into_iter().chain(other).collect()
    }
}

fn damaged(file: WalFile, why: &str) -> Error {
    Error::failed(format!("{file} in the repository is damaged"))
        .detail(format!("{why}."))
        .hint("See what can no longer be restored: pgherd backup verify --full")
}

/// Reads segments for their marks, and keeps the last few.
struct Reader<'a> {
    archive: &'a Archive<'a>,
    kept: VecDeque<(SegmentName, SegmentMarks)>,
}

impl Reader<'_> {
    /// Returns the marks of the records that begin in a segment.
    fn marks(&mut self, name: SegmentName) -> Result<Vec<Mark>> {
        let found = self.segment(name)?;
        let mut marks = found.marks;
        if let Some(tail) = found.tail {
            for next in self.archive.behind(name) {
                let behind = self.segment(next)?;
                let start: Lsn = next.start(self.archive.size);
                if let Some(mark) = tail.complete(&behind, start) {
                    marks.push(mark);
                    break;
                }
            }
        }
        Ok(marks)
    }

    fn segment(&mut self, name: SegmentName) -> Result<SegmentMarks> {
        if let Some((_, kept)) = self.kept.iter().find(|(kept, _)| *kept == name) {
            return Ok(kept.clone());
        }
        let file = WalFile::Segment(name);
        let bytes = self.archive.read(file)?.ok_or_else(|| damaged(file, "it has just gone"))?;
        let marks = wal_record::marks(name, self.archive.size, &bytes)
            .map_err(|error| damaged(file, &error.to_string()))?;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((name, marks.clone()));
        Ok(marks)
    }
}

/// Counts what the archive has behind the target.
fn beyond(choice: &Choice, reader: &mut Reader<'_>) -> Result<Beyond> {
    let from = match (&choice.target, choice.stops_at, &choice.next) {
        (Target::Latest, ..) => return Ok(Beyond { commits: Some(0), ..Beyond::default() }),
        (Target::Lsn(lsn), ..) => Some(*lsn),
        (_, Some(at), _) => Some(at),
        (_, None, Some(next)) => Some(Lsn::new(next.lsn.as_u64() - 1)),
        (_, None, None) => Some(choice.consistent_at),
    };
    let behind = |mark: &Mark| mark.is_commit() && from.is_none_or(|from| mark.lsn > from);
    let rest = names(&choice.rest, choice.segment_size);
    let mut beyond = Beyond { segments: rest.len() as u64 - 1, ..Beyond::default() };
    for name in rest.iter().rev() {
        beyond.last = reader.marks(*name)?.into_iter().rev().find(|mark| behind(mark));
        if beyond.last.is_some() {
            break;
        }
    }
    if rest.len() <= COUNTED {
        let mut commits = 0;
        for name in &rest {
            commits += reader.marks(*name)?.iter().filter(|mark| behind(mark)).count() as u64;
        }
        beyond.commits = Some(commits);
    }
    Ok(beyond)
}
