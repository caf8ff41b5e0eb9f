//! What can be restored with the backups and the WAL that are whole, and what cannot any more. Decides, never acts.
//!
//! A segment of a timeline can be restored if a whole backup that leads to the timeline ends before it, and every segment from that
//! backup's start to it is whole. Where PostgreSQL finds a segment on several timelines of a history it takes the newest one
//! (`XLogFileReadAnyTLI` in `xlogrecovery.c`), which holds what its parent had before the switch.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ops::backup::retention::{Backup, Leads, System, leads_to};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::layout::Label;
use crate::repo::manifest::Manifest;

/// Segments of one timeline that lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub first: SegmentName,
    pub last: SegmentName,
}

/// A time of which nothing can be restored any more, although there was a backup before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostSpan {
    pub system_identifier: SystemIdentifier,
    pub timeline: TimelineId,
    pub from_lsn: Lsn,
    pub to_lsn: Lsn,
    /// When the segment before it was archived; `None`: it begins with the first backup.
    pub after: Option<Timestamp>,
    /// When the last of it was archived, or what follows it; `None`: it reaches to the end of the archive.
    pub until: Option<Timestamp>,
}

/// What follows from what is whole.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// What is missing between segments that are there.
    pub(super) missing: Vec<Run>,
    /// The backups that have no whole WAL from their start to their stop, and the first segment that is wrong.
    pub(super) without_wal: BTreeMap<Label, SegmentName>,
    pub(super) lost: Vec<LostSpan>,
}

/// Tells what can be restored of a system. `bad` are the WAL files that are not whole, `broken` the backups that are not.
pub(super) fn reach(system: &System, bad: &BTreeSet<WalFile>, broken: &BTreeSet<Label>) -> Reach {
    let Some(size) = newest_size(system) else { return Reach::default() };
    let known = Known::new(system, bad, broken, size);
    let mut reach = Reach::default();
    for (_, manifest) in &known.backups {
        let (first, last) = manifest.wal();
        let numbers = first.number(size)..=last.number(size);
        if let Some(wrong) =
            numbers.map(|n| segment(manifest.timeline, n, size)).find(|name| !known.is_whole(*name))
        {
            reach.without_wal.insert(manifest.label.clone(), wrong);
        }
    }
    let mut missing = BTreeSet::new();
    for timeline in known.timelines() {
        known.follow(timeline, &mut missing, &mut reach.lost);
    }
    // What a backup needs for itself is missed even where nothing lies behind it.
    missing.extend(reach.without_wal.values().filter(|name| !known.segments.contains_key(name)));
    reach.missing = runs(&missing, size);
    reach
}

/// Returns the segment size of the newest backup. Those of before a `pg_resetwal --wal-segsize` have other names for other places.
fn newest_size(system: &System) -> Option<WalSegmentSize> {
    let newest =
        system.backups.iter().filter(|backup| backup.manifest.is_some()).max_by_key(|backup| &backup.label);
    newest.and_then(|backup| backup.manifest.as_ref()).map(|manifest| manifest.wal_segment_size)
}

fn segment(timeline: TimelineId, number: u64, size: WalSegmentSize) -> SegmentName {
    SegmentName::holding(Lsn::new(number.saturating_mul(size.as_u64())), timeline, size)
}

struct Known<'a> {
    system: &'a System,
    size: WalSegmentSize,
    /// Backups with this segment size, and whether they are whole.
    backups: Vec<(bool, &'a Manifest)>,
    /// When it was archived, and whether it is whole.
    segments: BTreeMap<SegmentName, (Timestamp, bool)>,
}

impl<'a> Known<'a> {
    fn new(
        system: &'a System,
        bad: &BTreeSet<WalFile>,
        broken: &BTreeSet<Label>,
        size: WalSegmentSize,
    ) -> Self {
        let whole = |backup: &Backup| backup.broken.is_none() && !broken.contains(&backup.label);
        let backups = system
            .backups
            .iter()
            .filter_map(|backup| Some((whole(backup), backup.manifest.as_ref()?)))
            .filter(|(_, manifest)| manifest.wal_segment_size == size);
        let segments = system.wal.iter().filter_map(|wal| match wal.file {
            WalFile::Segment(name) => Some((name, (wal.at, !bad.contains(&wal.file)))),
            WalFile::Partial(_) | WalFile::TimelineHistory(_) | WalFile::BackupHistory(..) => None,
        });
        Self { system, size, backups: backups.collect(), segments: segments.collect() }
    }

    fn is_whole(&self, name: SegmentName) -> bool {
        self.segments.get(&name).is_some_and(|(_, whole)| *whole)
    }

    fn timelines(&self) -> BTreeSet<TimelineId> {
        let backups = self.backups.iter().map(|(_, manifest)| manifest.timeline);
        self.segments.keys().map(|name| name.timeline()).chain(backups).collect()
    }

    /// Returns the timelines on the way to `timeline` with their first segment, oldest first.
    fn way(&self, timeline: TimelineId) -> Vec<(TimelineId, u64)> {
        let history = self.system.histories.iter().find(|history| history.timeline() == timeline);
        let (mut way, mut begin) = (Vec::new(), 0);
        for ancestor in history.iter().flat_map(|history| history.ancestors()) {
            way.push((ancestor.timeline, begin));
            begin = ancestor.switchpoint.as_u64() / self.size.as_u64();
        }
        way.push((timeline, begin));
        way
    }

    /// Returns the last segment of a timeline that there is, or that a later timeline begins behind.
    fn end(&self, timeline: TimelineId) -> Option<u64> {
        let of_it = |name: &&SegmentName| name.timeline() == timeline;
        let last = self.segments.keys().filter(of_it).map(|name| name.number(self.size)).max();
        let left = self.system.histories.iter().filter_map(|history| {
            let last = history.ancestors().last().filter(|of| of.timeline == timeline)?;
            (last.switchpoint.as_u64() / self.size.as_u64()).checked_sub(1)
        });
        last.into_iter().chain(left).max()
    }

    /// Walks to a timeline and along it, and notes what is missing and which of its own segments cannot be restored.
    fn follow(&self, timeline: TimelineId, missing: &mut BTreeSet<SegmentName>, lost: &mut Vec<LostSpan>) {
        let way = self.way(timeline);
        let (own, end) = (way[way.len() - 1].1, self.end(timeline));
        let mut leading: Vec<(bool, u64, u64)> = self
            .backups
            .iter()
            .filter(|(_, manifest)| leads_to(self.system, manifest, timeline) == Leads::Yes)
            .map(|(whole, manifest)| {
                let (first, last) = manifest.wal();
                (*whole, first.number(self.size), last.number(self.size))
            })
            .collect();
        leading.sort_by_key(|(_, _, stop)| *stop);
        let (Some(begin), Some(end)) = (leading.iter().map(|(_, start, _)| *start).min(), end) else {
            return;
        };
        let mut arrived = leading.iter().peekable();
        let (mut some, mut start, mut wrong) = (false, None, None);
        let mut span: Option<(u64, u64)> = None;
        for number in begin..=end {
            let on = way.iter().rfind(|(_, begin)| *begin <= number).map_or(timeline, |(on, _)| *on);
            let name = segment(on, number, self.size);
            if !self.is_whole(name) {
                wrong = Some(number);
                if !self.segments.contains_key(&name) {
                    missing.insert(name);
                }
            }
            while let Some((whole, begins, _)) = arrived.next_if(|(_, _, stop)| *stop <= number) {
                some = true;
                if *whole {
                    start = start.max(Some(*begins));
                }
            }
            let restorable = start.is_some_and(|start| wrong.is_none_or(|wrong| start > wrong));
            if number < own || !some {
                continue;
            }
            match (&mut span, restorable) {
                (None, false) => span = Some((number, number)),
                (Some((_, last)), false) => *last = number,
                (Some(found), true) => {
                    lost.push(self.lost(timeline, &way, *found, end));
                    span = None;
                }
                (None, true) => {}
            }
        }
        lost.extend(span.map(|span| self.lost(timeline, &way, span, end)));
    }

    fn lost(
        &self,
        timeline: TimelineId,
        way: &[(TimelineId, u64)],
        (first, last): (u64, u64),
        end: u64,
    ) -> LostSpan {
        let at = |number: u64| {
            let on = way.iter().rfind(|(_, begin)| *begin <= number).map_or(timeline, |(on, _)| *on);
            self.segments.get(&segment(on, number, self.size)).map(|(at, _)| *at)
        };
        LostSpan {
            system_identifier: self.system.id,
            timeline,
            from_lsn: segment(timeline, first, self.size).start(self.size),
            to_lsn: segment(timeline, last, self.size).end(self.size),
            after: first.checked_sub(1).and_then(at),
            until: if last == end { None } else { at(last).or_else(|| (last..=end).find_map(at)) },
        }
    }
}

/// Puts segments that lie side by side together.
fn runs(names: &BTreeSet<SegmentName>, size: WalSegmentSize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for name in names {
        match runs.last_mut() {
            Some(run) if run.last.timeline() == name.timeline() && run.last.next(size) == *name => {
                run.last = *name
            }
            Some(_) | None => runs.push(Run { first: *name, last: *name }),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
