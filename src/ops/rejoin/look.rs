//! What there is of a node and of the primary: histories, where their WAL ends, and who still has what is needed.
//!
//! Reads only.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::db::promotion::Source;
use crate::db::queries::ServerFacts;
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs::Programs;
use crate::host::{Command, Host, HostError, LineSink};
use crate::ops::binary::Build;
use crate::ops::observe::{Directory as Seen, Doors, NodeObserved, Running};
use crate::ops::rejoin::decide::{Directory, Fork, Lineage, Measured, Reached};
use crate::ops::rejoin::rewind;
use crate::ops::shelf::Shelf;
use crate::pg::control_file::{ClusterState, ControlFile};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::layout::{ClusterKeys, SystemKeys};
use crate::repo::seal::{self, Identity, Kind};
use crate::topology::model::{Cluster, Node};
use crate::units::ByteCount;

/// How long reading a node's WAL past the fork may take; what lies there is what was written while there were two primaries.
const READ: Duration = Duration::from_secs(120);
/// More segments than this are not looked for one by one.
const MANY: u64 = 4096;

/// A node as it is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub doors: &'a Doors,
    pub cluster: &'a Cluster,
    pub node: &'a Node,
    pub seen: &'a NodeObserved,
    pub programs: &'a Programs,
    pub build: &'a Build,
}

impl Place<'_> {
    /// Opens the way to the archive; `None` where the cluster has none.
    async fn shelf(&self) -> Result<Option<Shelf<'_>>> {
        match &self.cluster.backups {
            Some(backups) => {
                Ok(Some(Shelf::of(self.doors, &self.node.host, &backups.repository, self.build).await?))
            }
            None => Ok(None),
        }
    }

    fn host(&self) -> &dyn Host {
        self.doors.host(&self.node.host)
    }

    fn wal(&self) -> PathBuf {
        self.node.data_directory.join("pg_wal")
    }

    fn name(&self) -> String {
        self.cluster.full_name(&self.node.name)
    }
}

/// The primary as it is looked at.
#[derive(Debug)]
pub(super) struct Primary<'a> {
    pub place: Place<'a>,
    pub running: &'a Running,
    pub source: &'a Source,
}

/// What was found of a node.
#[derive(Debug)]
pub(super) struct Found {
    pub measured: Measured,
    /// Whether it runs, and as what.
    pub state: String,
}

/// Measures what the decision rests on.
///
/// # Errors
/// When a history cannot be read, or the host cannot tell.
pub(super) async fn measure(own: Place<'_>, primary: &Primary<'_>, wants_clone: bool) -> Result<Found> {
    let system = primary.running.facts.system_identifier;
    let theirs = history(primary.place, system, primary.running.facts.timeline).await?;
    let primary_lsn = primary.running.facts.role.lsn().unwrap_or(Lsn::new(0));
    let nothing = |directory: Directory, state: &str| Found {
        measured: Measured {
            directory,
            lineage: Lineage::Foreign,
            reached: Reached { timeline: theirs.timeline(), lsn: Lsn::new(0), past: false },
            primary: theirs.timeline(),
            primary_lsn,
            led: false,
            sees_pages: false,
            missing: None,
            wants_clone,
        },
        state: state.to_owned(),
    };
    let half = rewind::rewinding(own.host(), &own.doors.node_places(own.cluster, own.node)).await?;
    if let Some(half) = half {
        return Ok(nothing(Directory::HalfRewound { operation: half.operation }, "half rewound"));
    }
    let control = match &own.seen.directory {
        Seen::Missing | Seen::Empty => return Ok(nothing(Directory::Empty, "empty")),
        Seen::Cluster { control: Some(control), .. } => control,
        Seen::Cluster { control: None, .. } => {
            let why = "pg_controldata does not read its pg_control".to_owned();
            return Ok(nothing(Directory::Broken { why }, "broken"));
        }
        Seen::Foreign { names } => {
            return Err(Error::refused(format!(
                "cannot use {}: it is no cluster",
                own.node.data_directory.display()
            ))
            .detail(format!("In it are {}.", names.join(", "))));
        }
        Seen::Unknown { why } => {
            return Err(Error::new(ErrorKind::NotFound, format!("could not look at {}", own.name()))
                .detail(why.clone()));
        }
    };
    let size = WalSegmentSize::new(u64::from(control.wal_segment_size))
        .map_err(|error| Error::failed("could not read the segment size").source(error))?;
    let names = own.host().list(&own.wal()).await.map_err(Error::from)?.unwrap_or_default();
    let (timeline, named) = timeline(own.seen, control, &names);
    let history = match history(own, system, timeline).await {
        Ok(history) => history,
        Err(error) => {
            let why = format!("the history of its timeline {timeline} is nowhere: {error}");
            return Ok(nothing(Directory::Broken { why }, "broken"));
        }
    };
    let lineage = match theirs.parts_from(&history) {
        None => Lineage::Foreign,
        Some((_, None)) => Lineage::Same,
        Some((timeline, Some(at))) => Lineage::Parts(Fork { timeline, at }),
    };
    // Where its lineage is the primary's own, it has gone no other way on whatever timeline it is.
    let within = matches!(lineage, Lineage::Parts(fork) if fork.timeline == timeline);
    let known = known_end(own.seen, control);
    let reached = match lineage {
        Lineage::Foreign => Reached { timeline, lsn: known, past: true },
        Lineage::Same => Reached { timeline, lsn: known, past: known > primary_lsn },
        Lineage::Parts(fork) => {
            let last = match own.seen.running() {
                Some(_) => None,
                None => last_record(own, (timeline, fork.at), &names, size).await?,
            };
            let lsn = last.unwrap_or(known).max(known);
            Reached { timeline, lsn, past: !within || last.is_some() || known > fork.at }
        }
    };
    let directory = if named < timeline && reached.past && own.seen.running().is_none() {
        Directory::Ahead { control: named }
    } else {
        Directory::Whole
    };
    let sees_pages = control.data_checksums || control.wal_log_hints;
    let needs = match lineage {
        Lineage::Foreign => None,
        Lineage::Same if reached.past || led(own.seen, control) => None,
        Lineage::Same => Some((known, None)),
        Lineage::Parts(fork) if reached.past => {
            let from = if control.checkpoint_redo <= fork.at { control.checkpoint_redo } else { fork.at };
            Some((from, Some(reached)))
        }
        Lineage::Parts(_) => Some((reached.lsn, None)),
    };
    let missing = match needs {
        None => None,
        Some((from, rewound)) => {
            let keys = ClusterKeys::new(&own.cluster.name).system(system);
            let archive = Archive { shelf: own.shelf().await?, keys: &keys };
            missing(&archive, primary, &theirs, &names, size, (from, rewound)).await?
        }
    };
    Ok(Found {
        measured: Measured {
            directory,
            lineage,
            reached,
            primary: theirs.timeline(),
            primary_lsn,
            led: led(own.seen, control),
            sees_pages,
            missing,
            wants_clone,
        },
        state: state(own.seen, control),
    })
}

fn led(seen: &NodeObserved, control: &ControlFile) -> bool {
    match seen.running() {
        Some(running) => running.is_primary(),
        None => !matches!(control.state, ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery),
    }
}

fn state(seen: &NodeObserved, control: &ControlFile) -> String {
    match seen.running() {
        Some(running) if running.is_primary() => "runs as a primary".to_owned(),
        Some(_) => "runs as a standby".to_owned(),
        None => match control.state {
            ClusterState::ShutDown => "shut down".to_owned(),
            ClusterState::ShutDownInRecovery => "shut down as a standby".to_owned(),
            ClusterState::InArchiveRecovery => "crashed as a standby".to_owned(),
            ClusterState::StartingUp
            | ClusterState::ShuttingDown
            | ClusterState::InCrashRecovery
            | ClusterState::InProduction
            | ClusterState::Other(_) => "crashed".to_owned(),
        },
    }
}

/// Returns the timeline that a node's WAL is on, and the one that its pg_control names. A server that ended right after its promotion still
/// has the old one there.
fn timeline(seen: &NodeObserved, control: &ControlFile, wal: &[String]) -> (TimelineId, TimelineId) {
    let named = control
        .minimum_recovery
        .map_or(control.checkpoint_timeline, |(_, timeline)| timeline.max(control.checkpoint_timeline));
    if let Some(running) = seen.running() {
        return (running.facts.timeline.max(named), named);
    }
    let newest = wal.iter().filter_map(|name| match name.parse() {
        Ok(WalFile::Segment(segment)) => Some(segment.timeline()),
        Ok(WalFile::Partial(_) | WalFile::TimelineHistory(_) | WalFile::BackupHistory(..)) | Err(_) => None,
    });
    (newest.max().unwrap_or(named).max(named), named)
}

/// Returns how far a node has got, as far as it or its pg_control says.
fn known_end(seen: &NodeObserved, control: &ControlFile) -> Lsn {
    let recorded =
        control.minimum_recovery.map_or(control.checkpoint, |(lsn, _)| lsn.max(control.checkpoint));
    seen.running().and_then(|running| running.facts.role.lsn()).map_or(recorded, |lsn| lsn.max(recorded))
}

/// Reads the history of a timeline: from the node's pg_wal, else from the archive.
async fn history(
    place: Place<'_>,
    system: SystemIdentifier,
    timeline: TimelineId,
) -> Result<TimelineHistory> {
    let parse = |text: &[u8]| {
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(text)).map_err(|error| {
            Error::failed(format!("cannot read the history of timeline {timeline}")).source(error)
        })
    };
    if timeline.as_u32() == 1 {
        return parse(b"");
    }
    let file = WalFile::TimelineHistory(timeline);
    let own = place.wal().join(file.to_string());
    if let Some(bytes) = place.host().read(&own).await.map_err(Error::from)? {
        return parse(&bytes);
    }
    let missing = || {
        Error::failed(format!("{} has no history of timeline {timeline}", place.name()))
            .detail(format!("Looked for {}.", own.display()))
    };
    let Some(shelf) = place.shelf().await? else { return Err(missing()) };
    let keys = ClusterKeys::new(&place.cluster.name).system(system);
    let Some(object) = shelf.read(&keys.wal(file)).await? else { return Err(missing()) };
    let name = file.to_string();
    let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: system };
    let text = seal::open(identity, &object)
        .map_err(|error| Error::failed(format!("cannot read {name} in the archive")).source(error))?;
    parse(&text)
}

/// Returns where the last record of a node's WAL ends that begins at `from` or behind it; `None` if there is none. Where there is more of it than
/// can be read in the time of a look, at least where one ends.
async fn last_record(
    place: Place<'_>,
    (timeline, from): (TimelineId, Lsn),
    wal: &[String],
    size: WalSegmentSize,
) -> Result<Option<Lsn>> {
    let is_there = |segment: SegmentName| wal.iter().any(|name| *name == segment.to_string());
    let mut segment = SegmentName::holding(from, timeline, size);
    // pg_waldump waits 5 s for a segment that is not there (`WALDumpOpenSegment` in `pg_waldump.c`).
    if !is_there(segment) {
        return Ok(None);
    }
    while is_there(segment.next(size)) {
        segment = segment.next(size);
    }
    let (start, end) = (from.to_string(), segment.end(size).to_string());
    let read = async |more: &[&str]| {
        let last: Arc<Mutex<Option<Lsn>>> = Arc::default();
        let seen = Arc::clone(&last);
        let lines: LineSink = Arc::new(move |is_error, line| {
            if let (false, Some(end)) = (is_error, record_end(line)) {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
            }
        });
        let (wal, timeline) = (place.wal().display().to_string(), timeline.to_string());
        let command = Command::new(place.programs.path("pg_waldump"))
            .args(["-p", wal.as_str(), "-t", timeline.as_str(), "-s", start.as_str(), "-e", end.as_str()])
            .args(more.iter().copied())
            .reads()
            .timeout(READ);
        let ended = place.host().stream(&command, lines).await;
        let last = *last.lock().unwrap_or_else(PoisonError::into_inner);
        match ended {
            // It ends with an error where the WAL ends.
            Ok(_) | Err(HostError::Exited { .. }) => Ok(last),
            Err(error) => {
                Err(Error::failed(format!("could not read the WAL of {}", place.name())).source(error))
            }
        }
    };
    let Some(first) = read(&["-n", "1"]).await? else { return Ok(None) };
    Ok(Some(read(&[]).await.ok().flatten().map_or(first, |last| last.max(first))))
}

/// Reads where a record ends, but for the page headers in it: `... len (rec/tot): 54/ 54, tx: 0, lsn: 0/03000028, prev ...`.
fn record_end(line: &str) -> Option<Lsn> {
    let (_, rest) = line.split_once("len (rec/tot):")?;
    let total: u64 = rest.split_once('/')?.1.split(',').next()?.trim().parse().ok()?;
    let lsn: Lsn = rest.split_once("lsn: ")?.1.split(',').next()?.trim().parse().ok()?;
    // MAXALIGN
    Some(Lsn::new(lsn.as_u64().checked_add(total)?.checked_next_multiple_of(8)?))
}

/// Where WAL is looked for that a server does not have any more.
struct Archive<'a> {
    shelf: Option<Shelf<'a>>,
    keys: &'a SystemKeys,
}

impl Archive<'_> {
    async fn has(&self, segment: SegmentName) -> Result<bool> {
        match &self.shelf {
            Some(shelf) => Ok(shelf.has(&self.keys.wal(WalFile::Segment(segment))).await?),
            None => Ok(false),
        }
    }
}

/// Returns WAL that is nowhere any more: of the primary's line from `from` to what it still has, and, for a rewind, of the node's own.
async fn missing(
    archive: &Archive<'_>,
    primary: &Primary<'_>,
    line: &TimelineHistory,
    own: &[String],
    size: WalSegmentSize,
    (from, rewound): (Lsn, Option<Reached>),
) -> Result<Option<String>> {
    let number = |name: &String| match name.parse() {
        Ok(WalFile::Segment(segment)) => Some(segment.number(size)),
        Ok(WalFile::Partial(_) | WalFile::TimelineHistory(_) | WalFile::BackupHistory(..)) | Err(_) => None,
    };
    let first = SegmentName::holding(from, line.timeline(), size).number(size);
    let oldest = primary.source.wal.iter().filter_map(number).min().unwrap_or(u64::MAX);
    if oldest.saturating_sub(first) > MANY {
        return Ok(Some(format!("{} segments before the oldest that the primary has", oldest - first)));
    }
    for number in first..oldest {
        let mut found = false;
        for timeline in timelines(line) {
            found = found || archive.has(SegmentName::at(number, timeline, size)).await?;
        }
        if !found {
            return Ok(Some(format!(
                "WAL from {} on",
                SegmentName::at(number, line.timeline(), size).start(size)
            )));
        }
    }
    let Some(reached) = rewound else { return Ok(None) };
    let last = SegmentName::ending_at(reached.lsn, reached.timeline, size).number(size);
    for number in first..=last {
        if own.iter().any(
            |name| matches!(name.parse(), Ok(WalFile::Segment(segment)) if segment.number(size) == number),
        ) {
            continue;
        }
        let segment = SegmentName::at(number, reached.timeline, size);
        if !archive.has(segment).await? {
            return Ok(Some(format!("{segment} of the node itself")));
        }
    }
    Ok(None)
}

fn timelines(line: &TimelineHistory) -> Vec<TimelineId> {
    line.ancestors().iter().map(|ancestor| ancestor.timeline).chain([line.timeline()]).collect()
}

/// Finds a timeline in the archive that is newer than the primary's. Every standby of the cluster looks for the newest one there, and does not start
/// where it finds one that the primary is not on (`recovery_target_timeline`, cnpg#3147).
pub(super) async fn newer_history(
    own: &Place<'_>,
    primary: &ServerFacts,
    found: &Found,
) -> Result<Option<Error>> {
    let Some(shelf) = own.shelf().await? else { return Ok(None) };
    let keys = ClusterKeys::new(&own.cluster.name).system(primary.system_identifier);
    let leads = primary.timeline.as_u32();
    let last = found.measured.reached.timeline.as_u32().max(leads.saturating_add(1));
    for timeline in (leads.saturating_add(1)..=last).filter_map(TimelineId::new) {
        let file = WalFile::TimelineHistory(timeline);
        if shelf.has(&keys.wal(file)).await? {
            let why = format!("the archive has {file}, and the primary is on timeline {leads}");
            return Ok(Some(
                Error::refused(format!("cannot bring {} back: {why}", own.name()))
                    .detail("A standby looks for the newest timeline in the archive, and would not follow the primary. Nothing was changed.")
                    .hint(format!(
                        "If {} has the rows that count, bring the other one back. Else have the primary begin a timeline that is newer still: stop it, \
                         start it as a standby, promote it.",
                        own.name()
                    )),
            ));
        }
    }
    Ok(None)
}

/// Returns what a copy of the primary takes, roughly.
pub(super) fn size(source: &Source) -> ByteCount {
    ByteCount(source.size.saturating_add(source.wal_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_a_record_ends() {
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03000028, prev 0/02FFFF00, desc: CHECKPOINT_SHUTDOWN redo 0/3000028";
        assert_eq!(record_end(line), Some("0/30000A0".parse().unwrap()));
        assert_eq!(record_end("first record is after 0/3000000, at 0/3000028, skipping over 40 bytes"), None);
    }
}
