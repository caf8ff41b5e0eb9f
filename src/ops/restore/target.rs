//! Which backup, which timeline and which WAL bring a cluster to a moment, or why none can.
//!
//! Decides, never acts: everything it needs is in [`Known`], and what only the WAL itself tells comes through a function that reads
//! one segment.
//!
//! **Which timeline.** PostgreSQL's own default, the newest timeline of the archive, follows whatever was promoted last, such as a
//! test restore that forgot to switch archiving off. Here it is the timeline of the cluster's primary: the one that runs, else the one
//! that the repository's primary record names. Where nobody can say who is primary, the newest timeline is taken only if the
//! archive has a single line: every other timeline ended where the next one left it. Two lines that both went on are a question that
//! only the operator can answer with `--target-timeline`.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::restore::{Target, Wish, clock};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalSegmentSize};
use crate::pg::wal_record::{Mark, MarkKind};
use crate::repo::archive::Span;
use crate::repo::layout::Label;
use crate::repo::manifest::Manifest;

/// What the archive has of one timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived {
    /// The history file; `None` if it is not in the archive. Timeline 1 has none.
    pub history: Option<TimelineHistory>,
    /// In order, never touching each other.
    pub spans: Vec<Span>,
}

/// What is known of the cluster: its backups, its archive, its primary.
#[derive(Debug, Clone)]
pub struct Known {
    /// Those of one system identifier, in any order.
    pub backups: Vec<Manifest>,
    pub segment_size: WalSegmentSize,
    pub timelines: BTreeMap<TimelineId, Archived>,
    /// The timeline of the primary, if it answers or the repository has it on record.
    pub primary: Option<TimelineId>,
}

/// Reads the marks of one segment, in their order.
pub type ReadMarks<'a> = dyn FnMut(SegmentName) -> Result<Vec<Mark>> + 'a;

/// How a cluster comes to its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    pub target: Target,
    pub backup: Label,
    /// `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// The timelines that are replayed, in order: the backup's first, the target's last.
    pub timelines: Vec<TimelineId>,
    /// Where each ancestor of the timeline was left.
    pub forks: Vec<Fork>,
    /// Where the backup is consistent.
    pub consistent_at: Lsn,
    pub segment_size: WalSegmentSize,
    /// PostgreSQL's major version.
    pub major: u32,
    /// The segments that are replayed, in order; all of them are in the archive.
    pub wal: Vec<Span>,
    /// The last commit that the copy will have, where the WAL told.
    pub last: Option<Mark>,
    /// The first transaction behind the target, which the copy will not have, where the WAL told.
    pub next: Option<Mark>,
    /// The record behind which recovery stops, where it is known.
    pub stops_at: Option<Lsn>,
    /// What the archive has from the last replayed segment on: that segment, and those behind it without a gap.
    pub rest: Vec<Span>,
    /// Whether behind those there is WAL of which a segment is missing, or that another timeline has left.
    pub gap_behind: bool,
}

/// A switch of timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    pub left: TimelineId,
    pub at: Lsn,
}

impl Choice {
    /// Returns the timeline of the byte before `lsn`.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.forks.iter().find(|fork| lsn <= fork.at).map_or(self.timeline, |fork| fork.left)
    }

    /// Returns the last segment that recovery would find if it went on.
    pub fn reach(&self) -> SegmentName {
        self.rest.last().expect("the last replayed segment is part of it").last
    }

    /// Returns where replay ends, as far as the archive tells.
    pub fn replays_to(&self) -> Lsn {
        match (self.stops_at, &self.next) {
            (Some(at), _) => at,
            (None, Some(next)) => next.lsn,
            (None, None) => {
                self.wal.last().map_or(self.consistent_at, |span| span.last.end(self.segment_size))
            }
        }
    }

    /// Returns how many segments are replayed.
    pub fn segments(&self) -> u64 {
        self.wal.iter().map(|span| span.count(self.segment_size)).sum()
    }
}

/// Decides how to come to the target.
///
/// # Errors
/// `NotFound` without any backup; `Refused` when no backup reaches the target, with the reason and the nearest thing that works; and as `marks`.
pub fn decide(known: &Known, wish: &Wish, marks: &mut ReadMarks<'_>) -> Result<Choice> {
    let named = wish.backup.as_ref().map(|label| find(known, label)).transpose()?;
    let timeline = timeline(known, wish, named)?;
    let line = Line::to(known, timeline)?;
    let candidates = candidates(known, wish, &line, named)?;
    match &wish.target {
        Target::Immediate => {
            let backup = candidates[0];
            let wal = line.segments(known, backup.start_lsn, Some(backup.stop_lsn))?;
            Ok(line.choice(known, wish, backup, wal))
        }
        Target::Latest => {
            let backup = candidates[0];
            let wal = line.segments(known, backup.start_lsn, None)?;
            let mut choice = line.choice(known, wish, backup, wal);
            choice.last = line.last_mark(&choice, marks)?;
            Ok(choice)
        }
        Target::Lsn(lsn) => to_lsn(known, wish, &line, &candidates, *lsn),
        Target::Time(at) => to_time(known, wish, &line, &candidates, *at, marks),
        Target::Xid(_) | Target::Name(_) => to_mark(known, wish, &line, &candidates, marks),
    }
}

fn find<'k>(known: &'k Known, label: &Label) -> Result<&'k Manifest> {
    known.backups.iter().find(|backup| backup.label == *label).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no backup {label}"))
            .hint("See those that there are: pgherd backup list")
    })
}

/// Chooses the timeline; see the head of this file.
fn timeline(known: &Known, wish: &Wish, named: Option<&Manifest>) -> Result<TimelineId> {
    if let Some(timeline) = wish.timeline {
        return Ok(timeline);
    }
    if let (Target::Immediate, Some(backup)) = (&wish.target, named) {
        return Ok(backup.timeline);
    }
    if let Some(primary) = known.primary {
        return Ok(primary);
    }
    let backups = known.backups.iter().map(|backup| backup.timeline);
    let Some(newest) = known.timelines.keys().copied().chain(backups).max() else {
        return Err(no_backup());
    };
    let line = Line::to(known, newest)?;
    let beside: Vec<String> = known
        .timelines
        .iter()
        .filter(|(timeline, archived)| line.goes_on_beside(known, **timeline, archived))
        .map(|(timeline, archived)| {
            let last = archived
                .spans
                .last()
                .map_or_else(String::new, |span| format!(", archived up to {}", span.last));
            format!("timeline {timeline}{last}")
        })
        .collect();
    if beside.is_empty() {
        return Ok(newest);
    }
    Err(Error::refused(format!("cannot tell whether timeline {newest} is the cluster's own"))
        .detail(format!(
            "No primary answers, the repository has none on record, and beside timeline {newest} the archive goes on elsewhere: {}. \
             One of them may come from a test restore.",
            beside.join("; ")
        ))
        .hint(format!("Name the one that you want: --target-timeline {newest}")))
}

fn no_backup() -> Error {
    Error::new(ErrorKind::NotFound, "there is no backup to restore")
        .detail("The repository holds no complete backup of this cluster with this system identifier.")
        .hint("Make one: pgherd backup create")
}

/// One timeline with its ancestors: the log that recovery follows, as one axis of LSNs.
struct Line {
    timeline: TimelineId,
    legs: Vec<Leg>,
}

/// A stretch of one timeline.
#[derive(Debug, Clone, Copy)]
struct Leg {
    timeline: TimelineId,
    begin: Lsn,
    /// Where the next timeline left this one; `None` on the last.
    end: Option<Lsn>,
}

/// A look at the archive along a line.
struct Reach {
    have: Vec<Span>,
    /// The first segment that is missing although later ones are there.
    gap: Option<Gap>,
}

struct Gap {
    missing: Span,
    /// What comes after it.
    after: SegmentName,
}

impl Line {
    fn to(known: &Known, timeline: TimelineId) -> Result<Self> {
        let mut begin = Lsn::new(0);
        let mut legs = Vec::new();
        let history = known.timelines.get(&timeline).and_then(|archived| archived.history.as_ref());
        if history.is_none() && timeline.as_u32() > 1 {
            let seen: Vec<String> = known.timelines.keys().map(ToString::to_string).collect();
            return Err(Error::refused(format!("the history of timeline {timeline} is not in the archive"))
                .detail(format!(
                    "Without {timeline:08}.history nobody can tell which timelines it comes from; recovery would end on an older one. \
                     The archive knows the timelines {}.",
                    seen.join(", "),
                    timeline = Hex(timeline),
                ))
                .hint("A timeline that begins archives its history first: see \"pgherd wal list\" and the server's log."));
        }
        for ancestor in history.map_or(&[][..], TimelineHistory::ancestors) {
            legs.push(Leg { timeline: ancestor.timeline, begin, end: Some(ancestor.switchpoint) });
            begin = ancestor.switchpoint;
        }
        legs.push(Leg { timeline, begin, end: None });
        Ok(Self { timeline, legs })
    }

    fn leg(&self, timeline: TimelineId) -> Option<&Leg> {
        self.legs.iter().find(|leg| leg.timeline == timeline)
    }

    /// Tells whether a timeline has WAL that is not part of this line.
    fn goes_on_beside(&self, known: &Known, timeline: TimelineId, archived: &Archived) -> bool {
        match self.leg(timeline) {
            None => true,
            Some(Leg { end: None, .. }) => false,
            Some(Leg { end: Some(end), .. }) => {
                let fork = SegmentName::ending_at(*end, timeline, known.segment_size);
                archived.spans.last().is_some_and(|span| span.last > fork)
            }
        }
    }

    /// Tells whether a backup is consistent on this line: it ended before its timeline was left.
    fn holds(&self, backup: &Manifest) -> bool {
        self.leg(backup.timeline).is_some_and(|leg| leg.end.is_none_or(|end| backup.stop_lsn <= end))
    }

    /// Returns which segments recovery reads from `from` up to `to`, or as far as there can be any.
    ///
    /// Where a timeline begins, its own first segment is read, which begins with a copy of what the timeline before had written
    /// (`XLogFileReadAnyTLI` in `xlogrecovery.c` takes the newest timeline that has begun).
    fn wanted(&self, known: &Known, from: Lsn, to: Option<Lsn>) -> Vec<Span> {
        let size = known.segment_size;
        let number = |lsn: Lsn| lsn.as_u64() / size.as_u64();
        let last_of_all = to.map_or(u64::MAX / size.as_u64(), |to| {
            SegmentName::ending_at(to, self.timeline, size).number(size)
        });
        let mut spans = Vec::new();
        for (index, leg) in self.legs.iter().enumerate() {
            let first = number(leg.begin).max(number(from));
            let last = match self.legs.get(index + 1) {
                Some(next) => match number(next.begin).checked_sub(1) {
                    Some(last) => last.min(last_of_all),
                    None => continue,
                },
                None => last_of_all,
            };
            if first <= last {
                spans.push(spanned(leg.timeline, first, last, size));
            }
        }
        spans
    }

    /// Looks how much of what is wanted there is, up to the first that is missing.
    fn reach(&self, known: &Known, from: Lsn, to: Option<Lsn>) -> Reach {
        let size = known.segment_size;
        let mut have: Vec<Span> = Vec::new();
        let wanted = self.wanted(known, from, to);
        for (index, want) in wanted.iter().enumerate() {
            let begin = want.first.number(size);
            let present = spans_of(known, want.first.timeline());
            let found = present.iter().find(|span| span.first <= want.first && want.first <= span.last);
            let last = match found {
                Some(span) => span.last.number(size).min(want.last.number(size)),
                // The fork's segment under the name of the timeline before will do up to the fork.
                None => match self.fork_instead(known, want, to) {
                    Some(span) => {
                        have.push(span);
                        begin
                    }
                    None => return Reach { gap: self.gap(known, &wanted, index, begin), have },
                },
            };
            if found.is_some() {
                have.push(spanned(want.first.timeline(), begin, last, size));
            }
            if last < want.last.number(size) {
                return Reach { gap: self.gap(known, &wanted, index, last + 1), have };
            }
        }
        Reach { have, gap: None }
    }

    /// Returns the segment in which `want`'s timeline begins, under the name of the timeline before, where that is all that is needed.
    fn fork_instead(&self, known: &Known, want: &Span, to: Option<Lsn>) -> Option<Span> {
        let size = known.segment_size;
        let at = self.legs.iter().position(|leg| leg.timeline == want.first.timeline())?;
        let (leg, before) = (self.legs[at], self.legs.get(at.checked_sub(1)?)?);
        let fork = leg.begin.as_u64() / size.as_u64() == want.first.number(size);
        let name = want.first.on(before.timeline);
        let there =
            spans_of(known, before.timeline).iter().any(|span| span.first <= name && name <= span.last);
        (fork && there && to.is_some_and(|to| to <= leg.begin)).then_some(Span { first: name, last: name })
    }

    /// Returns the gap that begins at segment `number` of `wanted[index]`, if anything comes after it.
    fn gap(&self, known: &Known, wanted: &[Span], index: usize, number: u64) -> Option<Gap> {
        let size = known.segment_size;
        let timeline = wanted[index].first.timeline();
        let first = spanned(timeline, number, number, size).first;
        let same = spans_of(known, timeline)
            .iter()
            .find(|span| span.first > first && span.first <= wanted[index].last)
            .map(|span| span.first);
        let later = || {
            wanted[index + 1..].iter().find_map(|want| {
                spans_of(known, want.first.timeline())
                    .iter()
                    .find(|span| span.last >= want.first && span.first <= want.last)
                    .map(|span| span.first.max(want.first))
            })
        };
        let after = same.or_else(later)?;
        let last = if after.timeline() == timeline {
            after.number(size) - 1
        } else {
            wanted[index].last.number(size)
        };
        Some(Gap { missing: spanned(timeline, number, last.max(number), size), after })
    }

    /// Returns the segments from `from` to `to`, or to the end of the archive; all must be there.
    fn segments(&self, known: &Known, from: Lsn, to: Option<Lsn>) -> Result<Vec<Span>> {
        let size = known.segment_size;
        let reach = self.reach(known, from, to);
        if let Some(Gap { missing, after }) = reach.gap {
            let count = missing.count(size);
            let upto = reach.have.last().map_or_else(
                || "nothing after the backup can be replayed".to_owned(),
                |span| format!("replay would end with {}", span.last),
            );
            return Err(Error::refused(format!("WAL is missing on the way to the target: {}", told(missing, count)))
                .detail(format!("The archive goes on with {after}; {upto}."))
                .hint("See the gaps with \"pgherd wal list\". What another repository of the cluster has is brought by \"pgherd backup copy --from REPOSITORY --to REPOSITORY\"; a server that still has the segments archives them when its .ready files are there; else choose a target before the gap, or a backup after it."));
        }
        let last = reach.have.last().map(|span| span.last);
        let needed = to.map(|to| SegmentName::ending_at(to, self.timeline, size).number(size));
        match (last, needed) {
            (Some(last), Some(needed)) if last.number(size) >= needed => Ok(reach.have),
            (Some(_), None) => Ok(reach.have),
            (last, _) => {
                let has = last.map_or_else(
                    || "It has none of the segments that the backup needs".to_owned(),
                    |last| format!("On this line it ends with {last}"),
                );
                let to = to.map_or_else(String::new, |to| format!(" LSN {to} on timeline {}", self.timeline));
                Err(Error::refused(format!("the archive does not reach{to}"))
                    .detail(format!("{has}."))
                    .hint("See what can be restored: pgherd wal list"))
            }
        }
    }

    fn choice(&self, known: &Known, wish: &Wish, backup: &Manifest, wal: Vec<Span>) -> Choice {
        let mut timelines: Vec<TimelineId> = wal.iter().map(|span| span.first.timeline()).collect();
        timelines.insert(0, backup.timeline);
        timelines.dedup();
        let last = wal.last().map_or_else(|| backup.wal().1, |span| span.last);
        let size = known.segment_size;
        let reach = self.reach(known, backup.start_lsn, None);
        let newer = known.timelines.keys().any(|timeline| *timeline > self.timeline);
        let gap_behind = newer || reach.gap.is_some();
        let mut rest = reach.have;
        rest.retain(|span| span.last.number(size) > last.number(size));
        if let Some(first) = rest.first_mut() {
            let from = first.first.number(size).max(last.number(size) + 1);
            *first = spanned(first.first.timeline(), from, first.last.number(size), size);
        }
        rest.insert(0, Span { first: last, last });
        Choice {
            target: wish.target.clone(),
            backup: backup.label.clone(),
            timeline: self.timeline,
            timelines,
            forks: self
                .legs
                .iter()
                .filter_map(|leg| Some(Fork { left: leg.timeline, at: leg.end? }))
                .collect(),
            consistent_at: backup.stop_lsn,
            segment_size: known.segment_size,
            major: backup.major(),
            wal,
            last: None,
            next: None,
            stops_at: None,
            rest,
            gap_behind,
        }
    }

    /// Returns the last commit of a choice's WAL, reading back from its end.
    fn last_mark(&self, choice: &Choice, marks: &mut ReadMarks<'_>) -> Result<Option<Mark>> {
        let names = names(&choice.wal, choice.segment_size);
        for name in names.into_iter().rev() {
            let mut found = self.marks(name, marks)?;
            found.retain(|mark| mark.is_commit() && mark.lsn > choice.consistent_at);
            if let Some(mark) = found.pop() {
                return Ok(Some(mark));
            }
        }
        Ok(None)
    }

    /// Reads the marks of a segment that belong to this line: behind a fork a segment may go on with another story.
    fn marks(&self, name: SegmentName, marks: &mut ReadMarks<'_>) -> Result<Vec<Mark>> {
        let mut found = marks(name)?;
        if let Some(Leg { end: Some(end), .. }) = self.leg(name.timeline()) {
            found.retain(|mark| mark.lsn <= *end);
        }
        Ok(found)
    }
}

struct Hex(TimelineId);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0.as_u32())
    }
}

fn spans_of(known: &Known, timeline: TimelineId) -> &[Span] {
    known.timelines.get(&timeline).map_or(&[], |archived| &archived.spans)
}

fn told(span: Span, count: u64) -> String {
    if count == 1 {
        span.first.to_string()
    } else {
        format!("{} to {} ({count} segments)", span.first, span.last)
    }
}

fn spanned(timeline: TimelineId, first: u64, last: u64, size: WalSegmentSize) -> Span {
    Span { first: SegmentName::at(first, timeline, size), last: SegmentName::at(last, timeline, size) }
}

/// Lists every segment of spans.
pub fn names(spans: &[Span], size: WalSegmentSize) -> Vec<SegmentName> {
    let mut names = Vec::new();
    for span in spans {
        let mut at = span.first;
        while at < span.last {
            names.push(at);
            at = at.next(size);
        }
        names.push(span.last);
    }
    names
}

/// Returns the backups that are consistent on the line, newest first: at least one.
fn candidates<'k>(
    known: &'k Known,
    wish: &Wish,
    line: &Line,
    named: Option<&'k Manifest>,
) -> Result<Vec<&'k Manifest>> {
    if known.backups.is_empty() {
        return Err(no_backup());
    }
    let mut on_line: Vec<&Manifest> = known.backups.iter().filter(|backup| line.holds(backup)).collect();
    on_line.sort_by(|one, other| (other.stop_lsn, &other.label).cmp(&(one.stop_lsn, &one.label)));
    if let Some(named) = named {
        if !on_line.iter().any(|backup| backup.label == named.label) {
            return Err(off_line(line, named));
        }
        return Ok(vec![named]);
    }
    if on_line.is_empty() {
        let newest = known.backups.iter().max_by_key(|backup| &backup.label).expect("not empty, seen above");
        let which = if wish.timeline.is_some() { "" } else { " (the primary's)" };
        return Err(Error::refused(format!("no backup leads to timeline {}{which}", line.timeline))
            .detail(off_line(line, newest).detail_text().unwrap_or_default().to_owned())
            .hint("See backups and timelines: pgherd backup list, pgherd wal list"));
    }
    Ok(on_line)
}

/// Why a backup does not lead to the line's timeline.
fn off_line(line: &Line, backup: &Manifest) -> Error {
    let why = match line.leg(backup.timeline) {
        Some(Leg { end: Some(end), .. }) => format!(
            "Backup {} ended at {} on timeline {}, behind {end}, where timeline {} had left it.",
            backup.label, backup.stop_lsn, backup.timeline, line.timeline
        ),
        Some(Leg { end: None, .. }) | None => format!(
            "Backup {} is on timeline {}, which is no ancestor of timeline {}.",
            backup.label, backup.timeline, line.timeline
        ),
    };
    Error::refused(format!("backup {} does not lead to timeline {}", backup.label, line.timeline))
        .detail(why)
        .hint("Leave out --backup to have one chosen that does, or name another --target-timeline.")
}

/// Says that the target is before the end of every backup that could be used.
fn before_every_backup(wish: &Wish, candidates: &[&Manifest]) -> Error {
    let oldest = candidates.last().expect("there is a candidate");
    let which = if wish.backup.is_some() { "the backup" } else { "the oldest backup that leads there" };
    Error::refused(format!("cannot restore to {}: {which} ends later", wish.target))
        .detail(format!(
            "Backup {} is consistent from {} on (LSN {}, timeline {}), and no earlier.",
            oldest.label,
            clock(oldest.ended),
            oldest.stop_lsn,
            oldest.timeline
        ))
        .hint("Choose a later target, or restore the backup as it is with --target-immediate.")
}

fn to_lsn(known: &Known, wish: &Wish, line: &Line, candidates: &[&Manifest], lsn: Lsn) -> Result<Choice> {
    let backup = candidates.iter().find(|backup| backup.stop_lsn <= lsn);
    let backup = backup.ok_or_else(|| before_every_backup(wish, candidates))?;
    // The record that begins at the target ends behind it.
    let wal = line.segments(known, backup.start_lsn, Some(Lsn::new(lsn.as_u64().saturating_add(1))))?;
    Ok(line.choice(known, wish, backup, wal))
}

fn to_time(
    known: &Known,
    wish: &Wish,
    line: &Line,
    candidates: &[&Manifest],
    at: Timestamp,
    marks: &mut ReadMarks<'_>,
) -> Result<Choice> {
    let backup = candidates.iter().find(|backup| backup.ended < at);
    let backup = backup.ok_or_else(|| before_every_backup(wish, candidates))?;
    let reach = line.reach(known, backup.start_lsn, None);
    let size = known.segment_size;
    let names = names(&reach.have, size);
    let mut ends = |name: SegmentName| -> Result<Vec<Mark>> {
        Ok(line.marks(name, marks)?.into_iter().filter(Mark::ends_a_transaction).collect())
    };
    // The last segment whose first transaction ended by then; times rise, but for what clocks and concurrent commits do to them,
    // so one segment before it is read as well.
    let (mut low, mut high) = (0, names.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let mut probe = middle;
        let first = loop {
            match ends(names[probe])?.first() {
                Some(mark) => break Some(mark.at),
                None if probe + 1 < high => probe += 1,
                None => break None,
            }
        };
        match first {
            Some(first) if first <= at => low = probe + 1,
            Some(_) | None => high = middle,
        }
    }
    let (mut last, mut next) = (None, None);
    'search: for name in &names[low.saturating_sub(2)..] {
        for mark in ends(*name)? {
            if mark.at > at {
                next = Some((*name, mark));
                break 'search;
            }
            if mark.is_commit() {
                last = Some(mark);
            }
        }
    }
    let Some((name, next)) = next else {
        return Err(in_the_future(known, wish, line, &reach, &names, at, marks)?);
    };
    let wal = line.segments(known, backup.start_lsn, Some(next.lsn.min(name.end(size))))?;
    let mut choice = line.choice(known, wish, backup, wal);
    choice.last = last.filter(|mark| mark.lsn > backup.stop_lsn);
    choice.next = Some(next);
    Ok(choice)
}

/// Says that the archive has no transaction after the target: recovery could not know that it has reached it.
fn in_the_future(
    known: &Known,
    wish: &Wish,
    line: &Line,
    reach: &Reach,
    names: &[SegmentName],
    at: Timestamp,
    marks: &mut ReadMarks<'_>,
) -> Result<Error> {
    let mut newest = None;
    for name in names.iter().rev() {
        newest = line.marks(*name, marks)?.into_iter().rev().find(Mark::ends_a_transaction);
        if newest.is_some() {
            break;
        }
    }
    let told = match (&newest, names.last()) {
        (Some(mark), _) => format!(
            "The last archived transaction on timeline {} ended at {} (LSN {}).",
            line.timeline,
            clock(mark.at),
            mark.lsn
        ),
        (None, Some(last)) => {
            format!("No transaction was archived after the backup, whose WAL reaches to {last}.")
        }
        (None, None) => "No WAL was archived after the backup.".to_owned(),
    };
    let error =
        Error::refused(format!("cannot restore to {}: the archive does not reach that far", wish.target));
    Ok(match &reach.gap {
        Some(Gap { missing, after }) => error
            .detail(format!(
                "{told} Then {} is missing; the archive goes on with {after}.",
                self::told(*missing, missing.count(known.segment_size))
            ))
            .hint("See the gaps: pgherd wal list"),
        None => error.detail(told).hint(format!(
            "For all that is archived leave out --target-time. What ran until {} may still be on the primary: its present segment \
             is archived when it is full, or after pg_switch_wal().",
            clock(at)
        )),
    })
}

/// Looks for a transaction or a restore point: behind the newest backup first, then behind those before it.
fn to_mark(
    known: &Known,
    wish: &Wish,
    line: &Line,
    candidates: &[&Manifest],
    marks: &mut ReadMarks<'_>,
) -> Result<Choice> {
    let is_it = |mark: &Mark| match &mark.kind {
        // recovery_target_xid has 32 bits: the epoch of a 64-bit transaction number is not looked at.
        MarkKind::Commit { xid } | MarkKind::Abort { xid } => {
            matches!(wish.target, Target::Xid(wanted) if wanted & u64::from(u32::MAX) == u64::from(*xid))
        }
        MarkKind::RestorePoint { name } => matches!(&wish.target, Target::Name(wanted) if wanted == name),
        MarkKind::Prepare { .. } => false,
    };
    let mut searched_from = None;
    for backup in candidates {
        let reach = line.reach(known, backup.start_lsn, searched_from);
        let mut last = None;
        for name in names(&reach.have, known.segment_size) {
            for mark in line.marks(name, marks)? {
                if mark.is_commit() && mark.lsn > backup.stop_lsn {
                    last = Some(mark.clone());
                }
                if !is_it(&mark) {
                    continue;
                }
                if mark.lsn <= backup.stop_lsn {
                    // It is in this backup; an older one may end before it.
                    continue;
                }
                let wal = line.segments(known, backup.start_lsn, Some(mark.lsn))?;
                let mut choice = line.choice(known, wish, backup, wal);
                choice.last = last;
                choice.stops_at = Some(mark.lsn);
                return Ok(choice);
            }
        }
        searched_from = Some(backup.stop_lsn);
    }
    let oldest = candidates.last().expect("there is a candidate");
    let behind = if candidates.len() == 1 { "backup" } else { "oldest backup" };
    Err(Error::refused(format!("{} is not in the archive", wish.target))
        .detail(format!(
            "Timeline {} was searched from the end of the {behind} {} ({}) to the end of what is archived without a gap.",
            line.timeline,
            oldest.label,
            clock(oldest.ended)
        ))
        .hint(match wish.target {
            Target::Name(_) => "Restore points are made with pg_create_restore_point(), and are found once their segment is archived.",
            Target::Xid(_) | Target::Time(_) | Target::Lsn(_) | Target::Latest | Target::Immediate => {
                "A transaction is found once the segment that holds its end is archived."
            }
        }))
}

#[cfg(test)]
mod tests;
