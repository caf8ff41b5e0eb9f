//! What the WAL archive of a cluster holds, told from listings: runs of segments a timeline, gaps, histories; and how far WAL reaches.
//!
//! Only what is inside an object, a history or a transaction's end, is read from the object.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::{ClusterKeys, SystemKeys};
use super::place::{InSystem, Place};
use super::seal::{self, Identity, Kind};
use super::{Key, Repo, RepoError, RepoErrorKind, Result};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::pg::wal_record::{self, Mark, SegmentMarks};
use crate::units::ByteCount;

/// A run of segments of one timeline, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub first: SegmentName,
    pub last: SegmentName,
}

impl Span {
    fn numbered(timeline: TimelineId, first: u64, last: u64, size: WalSegmentSize) -> Self {
        Self { first: SegmentName::at(first, timeline, size), last: SegmentName::at(last, timeline, size) }
    }

    /// Returns how many segments it has.
    pub fn count(self, size: WalSegmentSize) -> u64 {
        self.last.number(size) - self.first.number(size) + 1
    }
}

/// What is archived of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeline {
    /// Runs without a gap, in order, never touching each other.
    pub spans: Vec<Span>,
    /// Whether its history file is there; timeline 1 has none.
    pub history: bool,
    /// Last segments of timelines that ended by a promotion.
    pub partials: BTreeSet<SegmentName>,
    /// `.backup` files.
    pub backups: u64,
    /// All of it, as it is stored.
    pub stored: ByteCount,
    /// When the last of it was stored, by the store's clock.
    pub newest: Option<Timestamp>,
}

/// The WAL archive of one system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalArchive {
    keys: SystemKeys,
    /// `None` if there is no segment.
    pub segment_size: Option<WalSegmentSize>,
    pub timelines: BTreeMap<TimelineId, Timeline>,
    /// Keys below the archive that are none of ours.
    pub strays: Vec<Key>,
}

/// How far WAL reaches along a history from where a backup begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The last segment without a gap before it; `None` if the first one is missing already.
    pub last: Option<SegmentName>,
    /// The segment that is missing although there is WAL behind it.
    pub missing: Option<SegmentName>,
}

impl WalArchive {
    /// Lists it.
    ///
    /// # Errors
    /// As the repository fails; [`RepoErrorKind::Damaged`] if the size of segments cannot be read from one.
    pub async fn look(repo: &dyn Repo, keys: &SystemKeys) -> Result<Self> {
        let cluster = ClusterKeys::new(keys.cluster());
        let mut files = Vec::new();
        let mut strays = Vec::new();
        for listed in repo.list_all(&keys.wal_folder()).await? {
            match Place::of(&cluster, &listed.key) {
                Place::System(_, InSystem::Wal(file)) => files.push((file, listed)),
                Place::System(
                    _,
                    InSystem::Lease(_)
                    | InSystem::Backup(..)
                    | InSystem::Export(..)
                    | InSystem::WalKey(_)
                    | InSystem::RestKey,
                )
                | Place::Lock
                | Place::Primary
                | Place::Stray => strays.push(listed.key),
            }
        }
        let newest = files.iter().filter(|(file, _)| matches!(file, WalFile::Segment(_)));
        let segment_size = match newest.max_by_key(|(_, listed)| listed.modified) {
            Some((_, listed)) => Some(segment_size(repo, &listed.key).await?),
            None => None,
        };
        let mut timelines: BTreeMap<TimelineId, Timeline> = BTreeMap::new();
        let mut segments: BTreeMap<TimelineId, BTreeSet<u64>> = BTreeMap::new();
        for (file, listed) in files {
            let timeline = timelines.entry(file.timeline()).or_default();
            match file {
                WalFile::Segment(name) => match segment_size {
                    Some(size) if name.fits(size) => {
                        segments.entry(name.timeline()).or_default().insert(name.number(size));
                    }
                    Some(_) | None => {
                        strays.push(listed.key);
                        continue;
                    }
                },
                WalFile::Partial(name) => {
                    timeline.partials.insert(name);
                }
                WalFile::TimelineHistory(_) => timeline.history = true,
                WalFile::BackupHistory(..) => timeline.backups += 1,
            }
            timeline.stored.0 += listed.size.0;
            timeline.newest = timeline.newest.max(Some(listed.modified));
        }
        for (id, numbers) in segments {
            if let (Some(size), Some(timeline)) = (segment_size, timelines.get_mut(&id)) {
                timeline.spans = runs(id, &numbers, size);
            }
        }
        strays.sort();
        Ok(Self { keys: keys.clone(), segment_size, timelines, strays })
    }

    pub fn keys(&self) -> &SystemKeys {
        &self.keys
    }

    /// Returns the runs that are missing between the runs of one timeline.
    pub fn gaps(&self, timeline: TimelineId) -> Vec<Span> {
        let Some((size, found)) = self.segment_size.zip(self.timelines.get(&timeline)) else {
            return Vec::new();
        };
        let between = found.spans.windows(2).map(|pair| {
            Span::numbered(timeline, pair[0].last.number(size) + 1, pair[1].first.number(size) - 1, size)
        });
        between.collect()
    }

    /// Returns the run that holds segment `number` of a timeline.
    fn span(&self, timeline: TimelineId, number: u64, size: WalSegmentSize) -> Option<Span> {
        let spans = &self.timelines.get(&timeline)?.spans;
        spans.iter().find(|s| (s.first.number(size)..=s.last.number(size)).contains(&number)).copied()
    }

    /// Follows WAL along `history` from `from` on `timeline`, which is the history's or one of its ancestors, as recovery does: the segment
    /// in which a timeline goes on is read from the later one.
    pub fn reach(&self, timeline: TimelineId, from: Lsn, history: &TimelineHistory) -> Reach {
        let Some(size) = self.segment_size else { return Reach { last: None, missing: None } };
        let mut last = None;
        let mut number = from.as_u64() / size.as_u64();
        let mut legs = legs(timeline, history, size).into_iter().peekable();
        while let Some(leg) = legs.next() {
            // A timeline may have been left before the segment in which it began was full.
            while leg.end.is_none_or(|end| number < end) {
                let Some(span) = self.span(leg.timeline, number, size) else {
                    let later = self
                        .timelines
                        .get(&leg.timeline)
                        .is_some_and(|found| found.spans.iter().any(|span| span.first.number(size) > number));
                    let missing = later || legs.peek().is_some();
                    let name = SegmentName::at(number, leg.timeline, size);
                    return Reach { last, missing: missing.then_some(name) };
                };
                let end = leg.end.map_or(u64::MAX, |end| end - 1).min(span.last.number(size));
                last = Some(SegmentName::at(end, leg.timeline, size));
                number = end + 1;
            }
        }
        Reach { last, missing: None }
    }

    /// Returns what recovery along `history` reads of each timeline from `from` on `timeline` up to `to`, in order; what is not archived
    /// included.
    pub fn needed(
        timeline: TimelineId,
        from: Lsn,
        to: SegmentName,
        history: &TimelineHistory,
        size: WalSegmentSize,
    ) -> Vec<Span> {
        let mut number = from.as_u64() / size.as_u64();
        let mut spans = Vec::new();
        for leg in legs(timeline, history, size) {
            let last = leg.end.map_or(u64::MAX, |end| end.saturating_sub(1)).min(to.number(size));
            if last >= number {
                spans.push(Span::numbered(leg.timeline, number, last, size));
                number = last + 1;
            }
            if leg.timeline == to.timeline() {
                break;
            }
        }
        spans
    }

    /// Returns the segments of `spans` that are not archived, as runs.
    pub fn missing(&self, spans: &[Span]) -> Vec<Span> {
        let Some(size) = self.segment_size else { return spans.to_vec() };
        let mut missing = Vec::new();
        for wanted in spans {
            let timeline = wanted.first.timeline();
            let mut number = wanted.first.number(size);
            let found = self.timelines.get(&timeline).map_or(&[][..], |found| &found.spans);
            for span in found {
                let (first, last) = (span.first.number(size), span.last.number(size));
                if last < number || first > wanted.last.number(size) {
                    continue;
                }
                if first > number {
                    missing.push(Span::numbered(timeline, number, first - 1, size));
                }
                number = last + 1;
            }
            if number <= wanted.last.number(size) {
                missing.push(Span::numbered(timeline, number, wanted.last.number(size), size));
            }
        }
        missing
    }

    /// Finds the last transaction that committed in `spans`, which follow each other, and not before `not_before`.
    ///
    /// # Errors
    /// As the repository fails; [`RepoErrorKind::Damaged`] for a segment that is.
    pub async fn last_commit(
        &self,
        repo: &dyn Repo,
        spans: &[Span],
        not_before: Lsn,
    ) -> Result<Option<Mark>> {
        let Some(size) = self.segment_size else { return Ok(None) };
        let mut next: Option<(SegmentName, SegmentMarks)> = None;
        for span in spans.iter().rev() {
            for number in (span.first.number(size)..=span.last.number(size)).rev() {
                let name = SegmentName::at(number, span.first.timeline(), size);
                if name.end(size) <= not_before {
                    return Ok(None);
                }
                let found = marks(repo, &self.keys, name, size).await?;
                let across = next.as_ref().zip(found.tail.as_ref());
                let across = across.and_then(|((next, marks), tail)| tail.complete(marks, next.start(size)));
                let commit = |mark: &&Mark| mark.is_commit() && mark.lsn > not_before;
                let last = across.iter().find(commit).or_else(|| found.marks.iter().rev().find(commit));
                if let Some(last) = last {
                    return Ok(Some(last.clone()));
                }
                next = Some((name, found));
            }
        }
        Ok(None)
    }
}

/// One timeline of a line of them.
struct Leg {
    timeline: TimelineId,
    /// The first segment that is the next timeline's; `None` on the last one.
    end: Option<u64>,
}

/// Returns the timelines of `history` from `timeline` on; none if it is not on it.
fn legs(timeline: TimelineId, history: &TimelineHistory, size: WalSegmentSize) -> Vec<Leg> {
    let ancestors = history.ancestors().iter().skip_while(|ancestor| ancestor.timeline != timeline);
    let mut legs: Vec<Leg> = ancestors
        .map(|left| Leg { timeline: left.timeline, end: Some(left.switchpoint.as_u64() / size.as_u64()) })
        .collect();
    if !legs.is_empty() || history.timeline() == timeline {
        legs.push(Leg { timeline: history.timeline(), end: None });
    }
    legs
}

fn runs(timeline: TimelineId, numbers: &BTreeSet<u64>, size: WalSegmentSize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut run: Option<(u64, u64)> = None;
    for number in numbers {
        run = match run {
            Some((first, last)) if last + 1 == *number => Some((first, *number)),
            Some((first, last)) => {
                spans.push(Span::numbered(timeline, first, last, size));
                Some((*number, *number))
            }
            None => Some((*number, *number)),
        };
    }
    spans.extend(run.map(|(first, last)| Span::numbered(timeline, first, last, size)));
    spans
}

fn damaged(repo: &dyn Repo, key: &Key, why: impl Into<String>) -> RepoError {
    RepoError {
        kind: RepoErrorKind::Damaged,
        url: repo.url().to_owned(),
        doing: format!("read {key}"),
        why: why.into(),
    }
}

async fn segment_size(repo: &dyn Repo, key: &Key) -> Result<WalSegmentSize> {
    let begin = repo.read_range(key, 0, seal::HEADER_MOST).await?;
    let begin = begin.ok_or_else(|| damaged(repo, key, "it was listed and is not there"))?;
    let (header, _) = seal::header(&begin).map_err(|error| damaged(repo, key, error.to_string()))?;
    WalSegmentSize::new(header.size).map_err(|error| damaged(repo, key, error.to_string()))
}

/// Reads a WAL file, every byte of it checked; `None` if it is not archived.
///
/// # Errors
/// As the repository fails; [`RepoErrorKind::Damaged`].
pub async fn file(repo: &dyn Repo, keys: &SystemKeys, file: WalFile) -> Result<Option<Vec<u8>>> {
    let key = keys.wal(file);
    let Some(object) = repo.read(&key).await? else { return Ok(None) };
    let name = file.to_string();
    let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: keys.system() };
    seal::open(identity, &object).map(Some).map_err(|error| damaged(repo, &key, error.to_string()))
}

/// Reads a history; that of timeline 1 is empty, and `None` means that it is not archived.
///
/// # Errors
/// As [`file`].
pub async fn history(
    repo: &dyn Repo,
    keys: &SystemKeys,
    timeline: TimelineId,
) -> Result<Option<TimelineHistory>> {
    let wanted = WalFile::TimelineHistory(timeline);
    let text = match file(repo, keys, wanted).await? {
        Some(text) => text,
        None if timeline.as_u32() == 1 => Vec::new(),
        None => return Ok(None),
    };
    let parsed = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text));
    parsed.map(Some).map_err(|error| damaged(repo, &keys.wal(wanted), error.to_string()))
}

/// Reads the ends of transactions and the restore points of a segment.
///
/// # Errors
/// As [`file`]; a segment that is not archived is damage here.
pub async fn marks(
    repo: &dyn Repo,
    keys: &SystemKeys,
    name: SegmentName,
    size: WalSegmentSize,
) -> Result<SegmentMarks> {
    let key = keys.wal(WalFile::Segment(name));
    let content = file(repo, keys, WalFile::Segment(name)).await?;
    let content = content.ok_or_else(|| damaged(repo, &key, "it was listed and is not there"))?;
    wal_record::marks(name, size, &content).map_err(|error| damaged(repo, &key, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::system::SystemIdentifier;
    use crate::repo::dir::DirRepo;
    use crate::repo::wait;

    const MIB: u64 = 1 << 20;

    fn timeline(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn size() -> WalSegmentSize {
        WalSegmentSize::new(MIB).unwrap()
    }

    fn keys() -> SystemKeys {
        ClusterKeys::new("inventory").system(SystemIdentifier::new(7).unwrap())
    }

    fn span(text: &str) -> Span {
        let (first, last) = text.split_once('-').unwrap();
        let (timeline_of, first) = first.split_once('/').unwrap();
        let (first, last) = (first.parse().unwrap(), last.parse().unwrap());
        Span::numbered(timeline(timeline_of.parse().unwrap()), first, last, size())
    }

    fn shown(spans: &[Span]) -> Vec<String> {
        let number = |name: SegmentName| name.number(size());
        spans
            .iter()
            .map(|s| format!("{}/{}-{}", s.first.timeline().as_u32(), number(s.first), number(s.last)))
            .collect()
    }

    /// An archive of these runs, `TIMELINE/FIRST-LAST`.
    fn archive(spans: &[&str]) -> WalArchive {
        let mut timelines: BTreeMap<TimelineId, Timeline> = BTreeMap::new();
        for span in spans.iter().map(|text| span(text)) {
            timelines.entry(span.first.timeline()).or_default().spans.push(span);
        }
        WalArchive { keys: keys(), segment_size: Some(size()), timelines, strays: Vec::new() }
    }

    /// The history of `id`, whose ancestors were left at these numbers of segments and a half.
    fn history(id: u32, left: &[(u32, u64)]) -> TimelineHistory {
        let text: String = left
            .iter()
            .map(|(of, number)| format!("{of}\t{}\twhy\n", Lsn::new(number * MIB + MIB / 2)))
            .collect();
        TimelineHistory::parse(timeline(id), &text).unwrap()
    }

    fn store(repo: &DirRepo, name: &str, content: &[u8]) {
        let system_identifier = keys().system();
        let object = seal::seal(Identity { kind: Kind::Wal, name, system_identifier }, content, 1).unwrap();
        wait(repo.store(&keys().wal(name.parse().unwrap()), &object)).unwrap();
    }

    #[test]
    fn a_listing_tells_runs_gaps_and_what_else_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        assert_eq!(wait(Box::pin(WalArchive::look(&repo, &keys()))).unwrap().segment_size, None);
        let segment = vec![0; size().as_u64() as usize];
        // Segments of 1 MiB: 4,095 is the last of its log.
        for number in [3_u64, 4, 7, 4095, 4096] {
            store(&repo, &SegmentName::at(number, timeline(1), size()).to_string(), &segment);
        }
        store(&repo, "000000020000000100000000", &segment);
        store(&repo, "000000010000000100000001.partial", &segment);
        store(&repo, "000000010000000000000004.00000028.backup", b"x");
        store(&repo, "00000002.history", b"1\t1/80000\twhy\n");
        wait(repo.store(&keys().wal_folder().join("stray").unwrap(), b"x")).unwrap();

        let found = wait(Box::pin(WalArchive::look(&repo, &keys()))).unwrap();
        assert_eq!(found.segment_size, Some(size()));
        assert_eq!(shown(&found.timelines[&timeline(1)].spans), ["1/3-4", "1/7-7", "1/4095-4096"]);
        assert_eq!(shown(&found.gaps(timeline(1))), ["1/5-6", "1/8-4094"]);
        let one = &found.timelines[&timeline(1)];
        assert_eq!((one.partials.len(), one.backups, one.history), (1, 1, false));
        assert!(found.timelines[&timeline(2)].history);
        assert_eq!(found.strays.len(), 1);
        let history = wait(Box::pin(super::history(&repo, &keys(), timeline(2)))).unwrap().unwrap();
        assert_eq!(history.ancestors().len(), 1);
        assert_eq!(wait(Box::pin(super::history(&repo, &keys(), timeline(3)))).unwrap(), None);
    }

    #[test]
    fn wal_reaches_up_to_the_first_gap_and_over_promotions() {
        let from = Lsn::new(4 * MIB + 40);
        let reach = |spans: &[&str], history: &TimelineHistory| {
            let found = archive(spans).reach(timeline(1), from, history);
            let name = |name: SegmentName| format!("{}/{}", name.timeline().as_u32(), name.number(size()));
            (found.last.map(name).unwrap_or_default(), found.missing.map(name).unwrap_or_default())
        };
        let told = |last: &str, missing: &str| (last.to_owned(), missing.to_owned());
        let one = history(1, &[]);
        assert_eq!(reach(&["1/3-9"], &one), told("1/9", ""));
        assert_eq!(reach(&["1/3-6", "1/8-9"], &one), told("1/6", "1/7"));
        assert_eq!(reach(&["1/5-9"], &one), told("", "1/4"));
        assert_eq!(reach(&["1/1-3"], &one), told("", ""));
        // Timeline 2 goes on in segment 7, which is read from it.
        let two = history(2, &[(1, 7)]);
        assert_eq!(reach(&["1/3-9", "2/7-12"], &two), told("2/12", ""));
        assert_eq!(reach(&["1/3-6", "2/7-12"], &two), told("2/12", ""));
        assert_eq!(reach(&["1/3-5", "2/7-12"], &two), told("1/5", "1/6"));
        assert_eq!(reach(&["1/3-9", "2/8-12"], &two), told("1/6", "2/7"));
        assert_eq!(reach(&["1/3-9"], &two), told("1/6", ""));
        // Timeline 2 was left in the segment in which it began.
        let three = history(3, &[(1, 7), (2, 7)]);
        assert_eq!(reach(&["1/3-6", "3/7-8"], &three), told("3/8", ""));
        // Somebody else's line.
        assert_eq!(reach(&["1/3-9"], &history(5, &[(4, 7)])), told("", ""));
    }

    #[test]
    fn what_is_needed_and_missing_is_told_in_runs() {
        let from = Lsn::new(4 * MIB + 40);
        let two = history(2, &[(1, 7)]);
        let to = SegmentName::at(9, timeline(2), size());
        let needed = WalArchive::needed(timeline(1), from, to, &two, size());
        assert_eq!(shown(&needed), ["1/4-6", "2/7-9"]);
        assert_eq!(shown(&archive(&["1/1-9", "2/7-20"]).missing(&needed)), [""; 0]);
        assert_eq!(
            shown(&archive(&["1/5-5", "2/8-8"]).missing(&needed)),
            ["1/4-4", "1/6-6", "2/7-7", "2/9-9"]
        );
        assert_eq!(shown(&archive(&[]).missing(&needed)), ["1/4-6", "2/7-9"]);
    }
}
