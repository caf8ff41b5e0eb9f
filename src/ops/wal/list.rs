//! What the archive of a cluster holds, and which moments can be restored from it. Runs where the repository is; reads only.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::ops::node::{ListWal, NodeDoor, NodeRequest, Priority};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalSegmentSize};
use crate::repo::archive::{self, Reach, Span, WalArchive};
use crate::repo::catalog::{self, Backup};
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::manifest::Manifest;
use crate::repo::{self, Repo};
use crate::topology::model::Repository;
use crate::units::ByteCount;

/// The archive of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalList {
    pub cluster: String,
    /// One for each system identifier that the cluster has had.
    pub systems: Vec<SystemWal>,
}

/// The archive of one system identifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemWal {
    pub system_identifier: SystemIdentifier,
    pub segment_size: Option<WalSegmentSize>,
    pub timelines: Vec<TimelineWal>,
    pub windows: Vec<Window>,
    /// Whole backups from which nothing can be restored for want of WAL.
    pub useless_backups: Vec<Label>,
}

/// What is archived of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineWal {
    pub timeline: TimelineId,
    /// Where it went on from another one.
    pub begins: Option<Begin>,
    /// It began by a promotion, and its history file is not archived.
    pub history_missing: bool,
    pub runs: Vec<Run>,
    /// Runs that are not archived although WAL behind them is.
    pub gaps: Vec<Run>,
    /// Last segments that a promotion left unfinished.
    pub partials: Vec<SegmentName>,
    pub stored: ByteCount,
    /// When the last of it was stored.
    pub newest: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    pub timeline: TimelineId,
    pub lsn: Lsn,
}

/// A run of segments, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub first: SegmentName,
    pub last: SegmentName,
    pub segments: u64,
}

/// Moments of which each one can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The timeline on which it ends.
    pub timeline: TimelineId,
    /// The oldest backup that reaches it.
    pub backup: Label,
    /// When that backup ended.
    pub first: Timestamp,
    /// When the last transaction committed whose WAL is archived without a gap; the end of a backup if none did since.
    pub last: Timestamp,
    pub last_lsn: Lsn,
    /// The segment that is missing behind it, if there is WAL behind that.
    pub ends_before: Option<SegmentName>,
}

/// Asks for the archive of a cluster on a host that its nodes use.
///
/// # Errors
/// When the repository is not there or cannot be read.
pub async fn list(door: &NodeDoor, repository: &Repository, cluster: &str) -> Result<WalList> {
    let request = ListWal { repository: door.location(repository), cluster: cluster.to_owned() };
    if host::is_own(door.host()) {
        return run(&request);
    }
    door.call(&NodeRequest::ListWal(request), Priority::Normal, Arc::new(|_| ())).await
}

/// Lists the archive of a cluster.
///
/// # Errors
/// As [`list`].
pub fn run(request: &ListWal) -> Result<WalList> {
    let repo = repo::open(&request.repository)?;
    repo::wait(Box::pin(look(&*repo, &request.cluster)))
}

async fn look(repo: &dyn Repo, cluster: &str) -> Result<WalList> {
    let keys = ClusterKeys::new(cluster);
    let backups = catalog::backups(repo, &keys).await?;
    let mut systems = Vec::new();
    for id in catalog::systems(repo, &keys).await? {
        let archive = WalArchive::look(repo, &keys.system(id)).await?;
        let manifests: Vec<&Manifest> =
            backups.iter().filter(|backup| backup.system == id).filter_map(Backup::manifest).collect();
        if !archive.timelines.is_empty() || !manifests.is_empty() {
            systems.push(system(repo, &archive, &manifests).await?);
        }
    }
    if systems.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no WAL of {cluster} in the repository"))
            .detail(format!("Looked in {}.", repo.url()))
            .hint("\"pgherd apply\" switches archiving on and proves that it works; \"pgherd status\" shows what waits."));
    }
    Ok(WalList { cluster: cluster.to_owned(), systems })
}

async fn system(repo: &dyn Repo, archive: &WalArchive, manifests: &[&Manifest]) -> Result<SystemWal> {
    let mut histories = Vec::new();
    for timeline in archive.timelines.keys() {
        histories.push((*timeline, archive::history(repo, archive.keys(), *timeline).await?));
    }
    let size = archive.segment_size;
    let run = |span: Span| Run {
        first: span.first,
        last: span.last,
        segments: size.map_or(0, |size| span.count(size)),
    };
    let mut timelines = Vec::new();
    for ((id, found), (_, history)) in archive.timelines.iter().zip(&histories) {
        let left = history.as_ref().and_then(|history| history.ancestors().last());
        let mut gaps = archive.gaps(*id);
        gaps.extend(gaps_at_promotions(archive, *id, &histories));
        gaps.sort_by_key(|gap| gap.first);
        timelines.push(TimelineWal {
            timeline: *id,
            begins: left.map(|left| Begin { timeline: left.timeline, lsn: left.switchpoint }),
            history_missing: history.is_none(),
            runs: found.spans.iter().copied().map(run).collect(),
            gaps: gaps.into_iter().map(run).collect(),
            partials: found.partials.iter().copied().collect(),
            stored: found.stored,
            newest: found.newest,
        });
    }
    let (windows, useful) = windows(repo, archive, manifests, &histories).await?;
    let useless = manifests.iter().map(|manifest| &manifest.label).filter(|label| !useful.contains(label));
    Ok(SystemWal {
        system_identifier: archive.keys().system(),
        segment_size: size,
        timelines,
        windows,
        useless_backups: useless.cloned().collect(),
    })
}

type Histories = Vec<(TimelineId, Option<TimelineHistory>)>;

/// Finds what is missing where timelines meet: the end of one that another goes on from, and the begin of one that goes on.
fn gaps_at_promotions(archive: &WalArchive, id: TimelineId, histories: &Histories) -> Vec<Span> {
    let Some(size) = archive.segment_size else { return Vec::new() };
    let spans = |timeline| archive.timelines.get(&timeline).map_or(&[][..], |found| &found.spans);
    let mut gaps = BTreeSet::new();
    let span = |first: u64, last: u64| (SegmentName::at(first, id, size), SegmentName::at(last, id, size));
    for (later, history) in histories {
        let Some(history) = history else { continue };
        let left = history.ancestors().iter().find(|left| left.timeline == id);
        if let (Some(left), Some(last)) = (left, spans(id).last())
            && !spans(*later).is_empty()
        {
            let (from, end) = (last.last.number(size) + 1, left.switchpoint.as_u64() / size.as_u64());
            if from < end {
                gaps.insert(span(from, end - 1));
            }
        }
        // Where nothing is kept of the timeline before, this one begins where the archive does.
        let parent =
            history.ancestors().last().filter(|left| *later == id && !spans(left.timeline).is_empty());
        if let (Some(parent), Some(first)) = (parent, spans(id).first()) {
            let (from, end) = (parent.switchpoint.as_u64() / size.as_u64(), first.first.number(size));
            if from < end {
                gaps.insert(span(from, end - 1));
            }
        }
    }
    gaps.into_iter().map(|(first, last)| Span { first, last }).collect()
}

/// Finds the moments that can be restored, and the backups that reach any.
async fn windows(
    repo: &dyn Repo,
    archive: &WalArchive,
    manifests: &[&Manifest],
    histories: &Histories,
) -> Result<(Vec<Window>, BTreeSet<Label>)> {
    let mut useful = BTreeSet::new();
    let mut windows: Vec<(Reach, Window)> = Vec::new();
    for history in histories.iter().filter_map(|(_, history)| history.as_ref()) {
        // A timeline that another one goes on from is part of that one's windows, unless it went on as well.
        let ends = ends_in_another(archive, history, histories);
        for manifest in manifests {
            let reach = archive.reach(manifest.timeline, manifest.start_lsn, history);
            let Some(last) = reach.last.filter(|last| reaches_stop(*last, manifest, history)) else {
                continue;
            };
            useful.insert(manifest.label.clone());
            // What reaches no segment of this timeline is another timeline's window.
            if ends || (last.timeline() != history.timeline() && reach.missing.is_none()) {
                continue;
            }
            // Manifests come in order of time, so that the window is there already. Without a commit, its end is that of a backup.
            let known = windows.iter_mut().find(|(known, _)| known.last == Some(last));
            if let Some((_, window)) = known {
                if manifest.ended > window.last {
                    (window.last, window.last_lsn) = (manifest.ended, manifest.stop_lsn);
                }
                continue;
            }
            let needed = WalArchive::needed(
                manifest.timeline,
                manifest.start_lsn,
                last,
                history,
                manifest.wal_segment_size,
            );
            let commit = archive.last_commit(repo, &needed, manifest.stop_lsn).await?;
            let (at, lsn) = commit.map_or((manifest.ended, manifest.stop_lsn), |mark| (mark.at, mark.lsn));
            let window = Window {
                timeline: last.timeline(),
                backup: manifest.label.clone(),
                first: manifest.ended,
                // The clocks of two primaries may differ.
                last: at.max(manifest.ended),
                last_lsn: lsn,
                ends_before: reach.missing,
            };
            windows.push((reach, window));
        }
    }
    let mut windows: Vec<Window> = windows.into_iter().map(|(_, window)| window).collect();
    windows.sort_by_key(|window| (window.first, window.timeline, window.last));
    Ok((windows, useful))
}

/// Tells whether a segment is at or behind the end of a backup, on its line.
fn reaches_stop(last: SegmentName, manifest: &Manifest, history: &TimelineHistory) -> bool {
    let size = manifest.wal_segment_size;
    let stop = SegmentName::ending_at(manifest.stop_lsn, manifest.timeline, size);
    history.is_ancestor(manifest.timeline, manifest.stop_lsn) && last.number(size) >= stop.number(size)
}

/// Tells whether WAL of a timeline ends where another archived timeline goes on from it.
fn ends_in_another(archive: &WalArchive, history: &TimelineHistory, histories: &Histories) -> bool {
    let Some(size) = archive.segment_size else { return false };
    let found = archive.timelines.get(&history.timeline());
    let last = found.and_then(|found| found.spans.last()).map(|span| span.last.number(size));
    histories.iter().filter_map(|(_, later)| later.as_ref()).any(|later| {
        let left = later.ancestors().iter().find(|left| left.timeline == history.timeline());
        let goes_on = archive.timelines.get(&later.timeline()).is_some_and(|found| !found.spans.is_empty());
        left.is_some_and(|left| {
            goes_on && last.is_none_or(|last| last <= left.switchpoint.as_u64() / size.as_u64())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::TimelineId;
    use crate::repo::dir::DirRepo;
    use crate::repo::layout::SystemKeys;
    use crate::repo::seal::{self, Identity, Kind};

    const MIB: u64 = 1 << 20;

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn name(id: u32, number: u64) -> SegmentName {
        SegmentName::at(number, timeline(id), WalSegmentSize::new(MIB).unwrap())
    }

    /// An empty segment of 18: a page header and no record.
    fn segment(name: SegmentName, system: u64) -> Vec<u8> {
        let mut bytes = vec![0; MIB as usize];
        bytes[0..2].copy_from_slice(&0xD118_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&name.timeline().as_u32().to_le_bytes());
        let start = name.start(WalSegmentSize::new(MIB).unwrap()).as_u64();
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[24..32].copy_from_slice(&system.to_le_bytes());
        bytes[32..36].copy_from_slice(&(MIB as u32).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }

    struct Place {
        _directory: tempfile::TempDir,
        repo: DirRepo,
        keys: SystemKeys,
    }

    impl Place {
        fn new(segments: &[(u32, std::ops::RangeInclusive<u64>)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
            let keys = ClusterKeys::new("inventory").system(SystemIdentifier::new(7).unwrap());
            let place = Self { _directory: directory, repo, keys };
            for (id, numbers) in segments {
                for number in numbers.clone() {
                    place.store(&name(*id, number).to_string(), &segment(name(*id, number), 7));
                }
            }
            place
        }

        fn store(&self, name: &str, content: &[u8]) {
            let identity = Identity { kind: Kind::Wal, name, system_identifier: self.keys.system() };
            let object = seal::seal(identity, content, 1).unwrap();
            repo::wait(self.repo.store(&self.keys.wal(name.parse().unwrap()), &object)).unwrap();
        }

        /// Stores a backup of these segments, which ended at this minute.
        fn backup(&self, id: u32, first: u64, last: u64, minute: u64) {
            let golden = include_bytes!("../../../tests/golden/manifest-v1.json");
            let mut manifest: Manifest = seal::read_document(golden).unwrap();
            manifest.label = format!("20261121T10{minute:02}00Z-full").parse().unwrap();
            manifest.ended = format!("2026-11-21T10:{minute:02}:30Z").parse().unwrap();
            manifest.timeline = timeline(id);
            manifest.start_lsn = Lsn::new(first * MIB + 40);
            manifest.stop_lsn = Lsn::new(last * MIB + 400);
            manifest.wal_segment_size = WalSegmentSize::new(MIB).unwrap();
            let key = self.keys.backup(&manifest.label).manifest();
            repo::wait(self.repo.store(&key, &seal::write_document(&manifest))).unwrap();
        }

        fn list(&self) -> SystemWal {
            let mut list = repo::wait(Box::pin(look(&self.repo, "inventory"))).unwrap();
            assert_eq!(list.systems.len(), 1);
            list.systems.remove(0)
        }
    }

    fn runs(runs: &[Run]) -> Vec<String> {
        let size = WalSegmentSize::new(MIB).unwrap();
        runs.iter().map(|run| format!("{}-{}", run.first.number(size), run.last.number(size))).collect()
    }

    fn windows(list: &SystemWal) -> Vec<String> {
        let size = WalSegmentSize::new(MIB).unwrap();
        let minute = |at: Timestamp| at.strftime("%M").to_string();
        let missing =
            |name: SegmentName| format!(" before {}/{}", name.timeline().as_u32(), name.number(size));
        list.windows
            .iter()
            .map(|w| {
                let id = w.timeline.as_u32();
                let behind = w.ends_before.map(missing).unwrap_or_default();
                format!("{id}: {}-{}{behind}", minute(w.first), minute(w.last))
            })
            .collect()
    }

    #[test]
    fn a_gap_parts_what_can_be_restored() {
        let place = Place::new(&[(1, 3..=6), (1, 9..=12)]);
        assert_eq!(place.list().windows, []);
        place.backup(1, 4, 4, 10);
        place.backup(1, 5, 5, 20);
        place.backup(1, 10, 10, 40);
        // Its WAL is not all there.
        place.backup(1, 6, 7, 30);
        let list = place.list();
        assert_eq!(runs(&list.timelines[0].gaps), ["7-8"]);
        assert_eq!(windows(&list), ["1: 10-20 before 1/7", "1: 40-40"]);
        assert_eq!(list.useless_backups.len(), 1);
    }

    #[test]
    fn a_promotion_is_one_line_and_what_is_missing_at_it_a_gap() {
        let history = format!("1\t{}\twhy\n", Lsn::new(7 * MIB + 100));
        let place = Place::new(&[(1, 3..=6), (2, 7..=9)]);
        place.store("00000002.history", history.as_bytes());
        place.backup(1, 4, 4, 10);
        let list = place.list();
        assert!(list.timelines.iter().all(|timeline| timeline.gaps.is_empty() && !timeline.history_missing));
        assert_eq!(windows(&list), ["2: 10-10"]);

        let place = Place::new(&[(1, 3..=5), (2, 8..=9)]);
        place.backup(1, 4, 4, 10);
        let list = place.list();
        assert!(list.timelines[1].history_missing);
        assert_eq!(windows(&list), ["1: 10-10"]);
        place.store("00000002.history", history.as_bytes());
        let list = place.list();
        assert_eq!(
            (runs(&list.timelines[0].gaps), runs(&list.timelines[1].gaps)),
            (vec!["6-6".to_owned()], vec!["7-7".to_owned()])
        );
        assert_eq!(windows(&list), ["1: 10-10 before 1/6"]);
    }

    #[test]
    fn a_timeline_that_went_on_beside_its_child_is_a_line_of_its_own() {
        let place = Place::new(&[(1, 3..=12), (2, 7..=9)]);
        place.store("00000002.history", format!("1\t{}\twhy\n", Lsn::new(7 * MIB + 100)).as_bytes());
        place.backup(1, 4, 4, 10);
        place.backup(1, 10, 10, 40);
        assert_eq!(windows(&place.list()), ["1: 10-40", "2: 10-10"]);
    }

    #[test]
    fn an_archive_whose_oldest_wal_was_removed_has_no_gap_there() {
        let place = Place::new(&[(2, 9..=12)]);
        place.store("00000002.history", format!("1\t{}\twhy\n", Lsn::new(7 * MIB + 100)).as_bytes());
        assert_eq!(runs(&place.list().timelines[0].gaps), [""; 0]);
    }

    #[test]
    fn a_cluster_without_wal_is_not_found() {
        let place = Place::new(&[]);
        let error = repo::wait(Box::pin(look(&place.repo, "inventory"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
