//! What the repository has for a restore, and what is chosen of it: on the node, as the os-user. Reads only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::target::{self, Archived, Choice, Known, names};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::restore::{PlanForRestore, Target};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalSegmentSize};
use crate::pg::wal_record::{Mark, SegmentMarks};
use crate::repo::archive::{self, Span, WalArchive};
use crate::repo::catalog::{self, Backup, State};
use crate::repo::layout::{ClusterKeys, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::{self, Repo};
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
    let repo = repo::open(&request.repository)?;
    let cluster = ClusterKeys::new(&request.cluster);
    let backups = repo::wait(Box::pin(catalog::backups(&*repo, &cluster)))?;
    let system = system(&backups, request)?;
    let keys = cluster.system(system);
    let (mut whole, mut notes) = (Vec::new(), Vec::new());
    for backup in backups.into_iter().filter(|backup| backup.system == system) {
        match backup.state {
            State::Whole(manifest)
                if manifest.label == backup.label && manifest.system_identifier == system =>
            {
                whole.push(*manifest);
            }
            State::Whole(manifest) => notes.push(format!(
                "Backup {} was passed over: its manifest is that of {}.",
                backup.label, manifest.label
            )),
            State::Damaged(error) => {
                notes.push(format!("Backup {} was passed over: of its manifest, {error}.", backup.label));
            }
            State::Unfinished => {}
        }
    }
    let newest = whole.last().ok_or_else(|| nothing_of(&request.cluster, Some(system)))?;
    let segment_size = newest.wal_segment_size;
    let archive = repo::wait(Box::pin(WalArchive::look(&*repo, &keys)))?;
    let timelines = timelines(&*repo, &keys, &archive)?;
    let known = Known { backups: whole, segment_size, timelines, primary: request.primary };
    let mut reader = Reader { repo: &*repo, keys: &keys, known: &known, kept: VecDeque::new() };
    let choice = target::decide(&known, &request.wish, &mut |name| reader.marks(name))?;
    let beyond = beyond(&choice, &mut reader)?;
    let passed_over =
        known.timelines.keys().copied().filter(|timeline| *timeline > choice.timeline).collect();
    let wal_stored = stored(&*repo, &keys, &choice.wal, segment_size)?;
    let manifest = known
        .backups
        .into_iter()
        .find(|backup| backup.label == choice.backup)
        .expect("the choice is one of these backups");
    Ok(Survey { system_identifier: system, choice, manifest, wal_stored, beyond, passed_over, notes })
}

/// Finds whose backups are looked at.
fn system(backups: &[Backup], request: &PlanForRestore) -> Result<SystemIdentifier> {
    if let Some(wanted) = &request.wish.backup {
        let found = backups.iter().find(|backup| backup.label == *wanted);
        return found.map(|backup| backup.system).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no backup {wanted} of {}", request.cluster))
                .hint("See those that there are: pgherd backup list")
        });
    }
    let newest = backups.iter().rfind(|backup| backup.manifest().is_some());
    match (request.system_identifier, newest) {
        (Some(own), Some(newest)) if backups.iter().all(|b| b.system != own || b.manifest().is_none()) => {
            Err(nothing_of(&request.cluster, Some(own)).hint(format!(
                "There are backups of an earlier cluster of that name, with system identifier {}. If you want one of those, name it: \
                 --backup {}",
                newest.system, newest.label
            )))
        }
        (Some(own), _) => Ok(own),
        // No node is left that could tell.
        (None, Some(newest)) => Ok(newest.system),
        (None, None) => Err(nothing_of(&request.cluster, None)),
    }
}

fn nothing_of(cluster: &str, system: Option<SystemIdentifier>) -> Error {
    let of = system.map_or_else(String::new, |system| format!(" with system identifier {system}"));
    Error::new(ErrorKind::NotFound, format!("there is no backup of {cluster} to restore"))
        .detail(format!("The repository holds no whole backup of that cluster{of}."))
        .hint("Make one: pgherd backup create")
}

/// Reads every history file: each must be whole, since recovery would end on an older timeline without it.
fn timelines(
    repo: &dyn Repo,
    keys: &SystemKeys,
    archive: &WalArchive,
) -> Result<BTreeMap<TimelineId, Archived>> {
    let mut timelines = BTreeMap::new();
    for (id, found) in &archive.timelines {
        let history =
            if found.history { repo::wait(Box::pin(archive::history(repo, keys, *id)))? } else { None };
        timelines.insert(*id, Archived { history, spans: found.spans.clone() });
    }
    Ok(timelines)
}

/// Returns how many bytes the segments of spans have in the repository.
fn stored(repo: &dyn Repo, keys: &SystemKeys, spans: &[Span], size: WalSegmentSize) -> Result<ByteCount> {
    let wanted: BTreeSet<SegmentName> = names(spans, size).into_iter().collect();
    let folders: BTreeSet<String> = wanted.iter().map(|name| name.folder()).collect();
    let mut bytes = 0;
    for folder in folders {
        let Ok(folder) = keys.wal_folder().join(&folder) else { continue };
        for listed in repo::wait(repo.list(Some(&folder)))?.objects {
            let name = listed.key.name().strip_suffix(".zst").and_then(|name| name.parse().ok());
            if name.is_some_and(|name| wanted.contains(&name)) {
                bytes += listed.size.0;
            }
        }
    }
    Ok(ByteCount(bytes))
}

/// Reads segments for their marks, and keeps the last few.
struct Reader<'a> {
    repo: &'a dyn Repo,
    keys: &'a SystemKeys,
    known: &'a Known,
    kept: VecDeque<(SegmentName, SegmentMarks)>,
}

impl Reader<'_> {
    /// Returns the marks of the records that begin in a segment.
    fn marks(&mut self, name: SegmentName) -> Result<Vec<Mark>> {
        let found = self.segment(name)?;
        let mut marks = found.marks;
        if let Some(tail) = found.tail {
            for next in self.behind(name) {
                let behind = self.segment(next)?;
                if let Some(mark) = tail.complete(&behind, next.start(self.known.segment_size)) {
                    marks.push(mark);
                    break;
                }
            }
        }
        Ok(marks)
    }

    /// Returns the segments that may go on where `name` ends: on its own timeline first.
    fn behind(&self, name: SegmentName) -> Vec<SegmentName> {
        let next = name.next(self.known.segment_size);
        let has = |name: &SegmentName| {
            let spans = self.known.timelines.get(&name.timeline()).map_or(&[][..], |found| &found.spans);
            spans.iter().any(|span| span.first <= *name && *name <= span.last)
        };
        let others = self.known.timelines.keys().map(|timeline| next.on(*timeline));
        std::iter::once(next).chain(others.filter(|other| *other != next)).filter(has).collect()
    }

    fn segment(&mut self, name: SegmentName) -> Result<SegmentMarks> {
        if let Some((_, kept)) = self.kept.iter().find(|(kept, _)| *kept == name) {
            return Ok(kept.clone());
        }
        let size = self.known.segment_size;
        let marks = repo::wait(Box::pin(archive::marks(self.repo, self.keys, name, size)))?;
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
