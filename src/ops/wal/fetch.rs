//! `restore_command`: a WAL file comes out of the repository, whole, or the server is told why not.
//!
//! PostgreSQL takes every exit code up to 125 as "there is no such file", which ends a recovery and promotes; a greater one stops it
//! (`RestoreArchivedFile` in `xlogarchive.c`). So a file counts as absent only if the repository was seen to be without it, and if nothing
//! in the repository or in pg_wal says that there is WAL behind it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::seal;
use crate::repo::{Level, Listed, wait};
use crate::topology::claim::Profile;
use crate::units::ByteCount;

use super::prefetch::Ahead;
use super::{Archive, damaged, data_directory, read_profile, read_stored};

/// How long is waited for a segment that is missing while those behind it have just been stored: a primary stores some side by side.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
/// How long ago a segment was stored that tells of others on their way.
const JUST_NOW: SignedDuration = SignedDuration::from_secs(60);

/// What a fetch came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is at its target.
    Got { file: WalFile, size: ByteCount },
    /// The archive ends before it, or it never was.
    Absent { file: WalFile },
}

/// What the server does when it is told that a file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Ends recovery, and takes clients.
    Ends,
    /// Asks again later (`standby.signal`).
    Waits,
}

/// Tells what a server in the current directory would do if it did not get the file that it wants at `target`; without one, the worse.
///
/// A standby that is being promoted has removed its signal file when it asks for the history of the timeline that it leaves
/// (`writeTimeLineHistory` in `timeline.c`). It takes the one in its pg_wal then, and a repository that is away must not keep it from
/// becoming primary.
pub fn recovery(wanted: Option<(&str, &Path)>) -> Recovery {
    // standby.signal wins over recovery.signal (`readRecoverySignalFile` in `xlogrecovery.c`).
    let standby = Path::new("standby.signal").exists();
    let own = wanted.is_some_and(|(name, target)| {
        name.ends_with(".history") && target.parent().is_some_and(|pg_wal| pg_wal.join(name).exists())
    });
    if standby || own { Recovery::Waits } else { Recovery::Ends }
}

/// Writes the WAL file `name` to `target`, from the archive of the node whose profile is `profile`.
///
/// # Errors
/// Whenever it is neither got nor absent: the repository cannot be read, the object is damaged, a later segment is there.
pub fn fetch(profile: &Path, name: &str, target: &Path) -> Result<Fetched> {
    // A standby asks again by itself.
    let patience = match recovery(Some((name, target))) {
        Recovery::Ends => ON_ITS_WAY,
        Recovery::Waits => Duration::ZERO,
    };
    fetch_within(profile, name, target, patience)
}

/// `patience` is how long is waited for a segment that may be on its way.
fn fetch_within(profile: &Path, name: &str, target: &Path, patience: Duration) -> Result<Fetched> {
    let file: WalFile =
        name.parse().map_err(|error| Error::failed("cannot fetch from the WAL archive").source(error))?;
    // The first timeline has no history. A server that ends its recovery on it asks all the same (`writeTimeLineHistory` in `timeline.c`),
    // and could not be promoted if it were stopped here.
    if matches!(file, WalFile::TimelineHistory(timeline) if timeline.as_u32() == 1) {
        return Ok(Fetched::Absent { file });
    }
    let node = read_profile(profile)?;
    let data = data_directory(&node);
    let lines = Lines::read(&data, file, target)?;
    let ahead = Ahead::of(&node, file, target);
    if let Some(lay) = ahead.as_ref().and_then(Ahead::take) {
        let outcome = hand_over(&node, file, &lines, &lay.content, || {
            fs::rename(&lay.path, target).or_else(|_| write(target, &lay.content))
        })?;
        ask_for_more(ahead, profile, &lines, &outcome);
        return Ok(outcome);
    }
    let archive = Archive::of(node.clone(), data)?;
    let content = match read_stored(&archive, file)? {
        Some(content) => content,
        None => match absent(&archive, file, &lines, patience)? {
            Absence::Proven => return Ok(Fetched::Absent { file }),
            Absence::Arrived(content) => content,
        },
    };
    let outcome = hand_over(&node, file, &lines, &content, || write(target, &content))?;
    ask_for_more(ahead, profile, &lines, &outcome);
    Ok(outcome)
}

/// Gives a file to the server by `give`, if it belongs to the history that the server follows.
fn hand_over(
    profile: &Profile,
    file: WalFile,
    lines: &Lines,
    content: &[u8],
    give: impl FnOnce() -> io::Result<()>,
) -> Result<Fetched> {
    let size = content.len() as u64;
    if let (WalFile::Segment(name), Ok(size)) = (file, WalSegmentSize::new(size)) {
        match lines.place_of(name, size) {
            Place::On => {}
            Place::Behind => return Ok(Fetched::Absent { file }),
            Place::Fork(history) => return Err(forked(profile, name, history)),
        }
    }
    give().map_err(|error| Error::failed(format!("could not write {file} for the server")).source(error))?;
    Ok(Fetched::Got { file, size: ByteCount(size) })
}

fn ask_for_more(ahead: Option<Ahead<'_>>, profile: &Path, lines: &Lines, outcome: &Fetched) {
    if let (Some(ahead), Fetched::Got { size, .. }) = (ahead, outcome)
        && let Ok(size) = WalSegmentSize::new(size.0)
    {
        ahead.ask(profile, size, |name| matches!(lines.place_of(name, size), Place::On));
    }
}

/// The histories in pg_wal: the server fetched them to recover along them.
#[derive(Debug)]
struct Lines(Vec<TimelineHistory>);

/// Where a segment lies to the histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    /// Before a point where a later timeline goes on, or of the last timeline.
    On,
    /// In it a later timeline goes on: what comes behind that point belongs to another history.
    Fork(&'a TimelineHistory),
    /// Behind every such point.
    Behind,
}

impl Lines {
    /// Reads those that lead away from the timeline of `file`, which the server wants at `target`.
    fn read(data: &Path, file: WalFile, target: &Path) -> Result<Self> {
        let WalFile::Segment(name) = file else { return Ok(Self(Vec::new())) };
        // The target is pg_wal/RECOVERYXLOG.
        let beside = target.parent().filter(|directory| !directory.as_os_str().is_empty());
        let pg_wal = beside.map_or_else(|| data.join("pg_wal"), Path::to_path_buf);
        let could_not =
            |error: io::Error| Error::failed(format!("could not read {}", pg_wal.display())).source(error);
        let mut lines = Vec::new();
        for entry in fs::read_dir(&pg_wal).map_err(could_not)? {
            let entry = entry.map_err(could_not)?;
            let Some(Ok(WalFile::TimelineHistory(timeline))) = entry.file_name().to_str().map(str::parse)
            else {
                continue;
            };
            if timeline <= name.timeline() {
                continue;
            }
            let text = fs::read_to_string(entry.path()).map_err(could_not)?;
            let history = TimelineHistory::parse(timeline, &text).map_err(|error| {
                Error::failed(format!("cannot read {}", entry.path().display())).source(error)
            })?;
            if fork(&history, name.timeline()).is_some() {
                lines.push(history);
            }
        }
        Ok(Self(lines))
    }

    /// Returns the history that leaves the segment's timeline last.
    fn last(&self, name: SegmentName) -> Option<(&TimelineHistory, Lsn)> {
        let leaves = self.0.iter().filter_map(|history| Some((history, fork(history, name.timeline())?)));
        leaves.max_by_key(|(_, switchpoint)| *switchpoint)
    }

    fn place_of(&self, name: SegmentName, size: WalSegmentSize) -> Place<'_> {
        match self.last(name) {
            Some((_, switchpoint)) if switchpoint <= name.start(size) => Place::Behind,
            Some((history, switchpoint)) if switchpoint < name.end(size) => Place::Fork(history),
            Some(_) | None => Place::On,
        }
    }
}

/// Returns where `history` leaves `timeline`.
fn fork(history: &TimelineHistory, timeline: TimelineId) -> Option<Lsn> {
    history.ancestors().iter().find(|ancestor| ancestor.timeline == timeline).map(|found| found.switchpoint)
}

/// The server asks for the segment of the later timeline first, and would replay all of the one that it gets.
fn forked(profile: &Profile, name: SegmentName, history: &TimelineHistory) -> Error {
    let timeline = history.timeline();
    let wanted = name.on(timeline);
    Error::failed(format!("{wanted} is missing from the archive of {}", profile.cluster))
        .detail(format!(
            "Timeline {} goes on from timeline {} within it. What {name} holds behind that point belongs to another history, so it was not \
             handed over.",
            timeline.as_u32(),
            name.timeline().as_u32()
        ))
        .hint(format!("On the primary, \"select pg_switch_wal()\" has {wanted} archived, if it is still to come."))
}

/// Puts a file at its target in one piece.
///
/// It is not synced: PostgreSQL does that before it gives the file its name (`KeepFileRestoredFromArchive` in `xlogarchive.c`).
fn write(target: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = target.as_os_str().to_owned();
    // One restore runs at a time, so that what a killed one left is written over.
    beside.push(".pgherd-unfinished");
    let beside = PathBuf::from(beside);
    let written = fs::write(&beside, content).and_then(|()| fs::rename(&beside, target));
    if written.is_err() {
        // The first error is the one to tell.
        fs::remove_file(&beside).ok();
    }
    written
}

/// What is known of a file that was not found.
enum Absence {
    Proven,
    /// It was stored meanwhile.
    Arrived(Vec<u8>),
}

/// Makes sure that nothing needs a file that was not found.
fn absent(archive: &Archive, file: WalFile, lines: &Lines, patience: Duration) -> Result<Absence> {
    let mut wait_for = Duration::ZERO;
    let needed = match file {
        WalFile::Segment(name) => match later_segment(archive, name)? {
            Some((later, stored)) => {
                if Timestamp::now().duration_since(stored) < JUST_NOW {
                    wait_for = patience;
                }
                Some(format!("The archive goes on with {later}"))
            }
            None => partial(archive, name)?.or(needed_by(archive, name, lines)?),
        },
        WalFile::TimelineHistory(timeline) => later_timeline(archive, timeline)?,
        WalFile::Partial(_) | WalFile::BackupHistory(..) => None,
    };
    // Segments are stored in order, so that one which is found behind this one may have come after this one was looked for.
    let began = Instant::now();
    loop {
        if let Some(content) = read_stored(archive, file)? {
            return Ok(Absence::Arrived(content));
        }
        if began.elapsed() >= wait_for {
            break;
        }
        thread::sleep(LOOK);
    }
    match needed {
        None => Ok(Absence::Proven),
        Some(why) => {
            Err(Error::failed(format!("{file} is missing from the archive of {}", archive.profile.cluster))
                .detail(format!(
                    "{why}, so recovery must not end here as if there were nothing more. Looked in {}.",
                    archive.repo.url()
                ))
                .hint("\"pgherd wal list\" shows every gap, and which moments can be restored."))
        }
    }
}

/// Returns `name` or the next segment of its timeline that is in the archive, and when it was stored, by the store's clock.
fn later_segment(archive: &Archive, name: SegmentName) -> Result<Option<(SegmentName, Timestamp)>> {
    let wal = archive.keys.wal_folder();
    let timeline = format!("{:08X}", name.timeline().as_u32());
    let mut folders = archive.repo.list(&wal)?.folders;
    folders.retain(|folder| folder.starts_with(&timeline) && *folder >= name.folder());
    for folder in folders {
        let Ok(folder) = wal.join(&folder) else { continue };
        let level = archive.repo.list(&folder)?;
        let segment = level.objects.iter().find_map(|object| match file_of(object)? {
            WalFile::Segment(found) if found >= name => Some((found, object.modified)),
            WalFile::Segment(_)
            | WalFile::Partial(_)
            | WalFile::TimelineHistory(_)
            | WalFile::BackupHistory(..) => None,
        });
        if segment.is_some() {
            return Ok(segment);
        }
    }
    Ok(None)
}

fn files(level: &Level) -> impl Iterator<Item = WalFile> {
    level.objects.iter().filter_map(file_of)
}

fn file_of(object: &Listed) -> Option<WalFile> {
    object.key.name().strip_suffix(".zst")?.parse().ok()
}

/// The last segment of a timeline that ended by a promotion is stored as `.partial`, and its WAL again in the first segment of the next
/// timeline. If neither is there, what was committed in it would be lost without a word.
fn partial(archive: &Archive, name: SegmentName) -> Result<Option<String>> {
    let key = archive.keys.wal(WalFile::Partial(name));
    let there = archive.repo.first(|repo| wait(repo.read_range(&key, 0, 1)))?.is_some();
    Ok(there.then(|| {
        format!(
            "Of this segment there is {name}.partial, and what the next timeline made of it is not archived; \"zstd -dc\" of {key}, put into \
             pg_wal as {name}, is the last WAL of this timeline"
        )
    }))
}

/// Tells whether the recovery goes on to a later timeline behind the begin of a segment that was not found.
fn needed_by(archive: &Archive, name: SegmentName, lines: &Lines) -> Result<Option<String>> {
    // Where the size of segments is not known, there is none in the archive to recover from.
    let Some((history, switchpoint)) = lines.last(name) else { return Ok(None) };
    let Some(size) = segment_size(archive)? else { return Ok(None) };
    Ok((name.start(size) < switchpoint).then(|| {
        format!(
            "Timeline {} goes on from timeline {} at {switchpoint}, behind the begin of this segment",
            history.timeline().as_u32(),
            name.timeline().as_u32(),
        )
    }))
}

/// Reads the size of segments in the header of one that is stored.
fn segment_size(archive: &Archive) -> Result<Option<WalSegmentSize>> {
    let wal = archive.keys.wal_folder();
    for folder in archive.repo.list(&wal)?.folders {
        let Ok(folder) = wal.join(&folder) else { continue };
        let level = archive.repo.list(&folder)?;
        let segment = files(&level).find(|file| matches!(file, WalFile::Segment(_)));
        let Some(segment) = segment else { continue };
        let key = archive.keys.wal(segment);
        let begin = archive.repo.first(|repo| wait(repo.read_range(&key, 0, seal::HEADER_MOST)))?;
        let Some(begin) = begin else { continue };
        let (header, _) = seal::header(&begin).map_err(|error| damaged(archive.repo.url(), &key, &error))?;
        return Ok(WalSegmentSize::new(header.size).ok());
    }
    Ok(None)
}

/// Finds WAL of `timeline` or of a later one: then its history was once there. Recovery looks for histories one number after the other,
/// and stops at the first that it does not get (`findNewestTimeLine` in `timeline.c`).
fn later_timeline(archive: &Archive, timeline: TimelineId) -> Result<Option<String>> {
    let level = archive.repo.list(&archive.keys.wal_folder())?;
    let of_folders = level
        .folders
        .iter()
        .filter_map(|folder| TimelineId::new(u32::from_str_radix(folder.get(..8)?, 16).ok()?));
    let of_histories = files(&level).map(WalFile::timeline);
    let newest = of_folders.chain(of_histories).filter(|found| *found >= timeline).max();
    Ok(newest.map(|newest| {
        if newest == timeline {
            format!("The archive has WAL of timeline {}", timeline.as_u32())
        } else {
            format!("The archive has timeline {}", newest.as_u32())
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::wal::testing::{Place, segment};

    fn fetched(place: &Place, name: &str) -> Result<Fetched> {
        let target = place.pg_wal().join("RECOVERYXLOG");
        fs::remove_file(&target).unwrap_or(());
        let outcome = fetch_within(&place.profile, name, &target, Duration::ZERO);
        assert_eq!(matches!(outcome, Ok(Fetched::Got { .. })), target.exists(), "{outcome:?}");
        outcome
    }

    #[track_caller]
    fn absent(place: &Place, name: &str) {
        assert_eq!(fetched(place, name).unwrap(), Fetched::Absent { file: name.parse().unwrap() });
    }

    #[track_caller]
    fn trouble(place: &Place, name: &str, why: &str) {
        let error = fetched(place, name).unwrap_err();
        let told = format!("{} {}", error.what(), error.detail_text().unwrap_or_default());
        assert!(told.contains(why), "{told}");
    }

    fn segment_name(number: u32) -> String {
        format!("0000000100000000{number:08X}")
    }

    #[test]
    fn what_was_pushed_is_fetched() {
        let place = Place::new();
        for name in [segment_name(3), "00000002.history".to_owned()] {
            place.archive(&name, 7);
            assert!(matches!(fetched(&place, &name).unwrap(), Fetched::Got { .. }));
        }
        fetched(&place, &segment_name(3)).unwrap();
        let found = fs::read(place.pg_wal().join("RECOVERYXLOG")).unwrap();
        assert!(found == segment(&segment_name(3), 7));
        assert_eq!(fs::read_dir(place.pg_wal()).unwrap().count(), 2, "nothing unfinished stays");
    }

    #[test]
    fn behind_the_end_of_the_archive_is_absent_and_in_a_gap_is_not() {
        let place = Place::new();
        absent(&place, &segment_name(3));
        for number in [3, 5] {
            place.archive(&segment_name(number), 7);
        }
        absent(&place, &segment_name(6));
        trouble(&place, &segment_name(4), "The archive goes on with 000000010000000000000005");
        trouble(&place, &segment_name(2), "The archive goes on");
        place.archive("000000010000000100000000", 7);
        trouble(&place, &segment_name(6), "The archive goes on with 000000010000000100000000");
        absent(&place, "000000010000000100000001");
    }

    #[test]
    fn a_history_is_absent_only_if_its_timeline_never_was() {
        let place = Place::new();
        place.archive(&segment_name(3), 7);
        absent(&place, "00000001.history");
        absent(&place, "00000002.history");
        place.archive("000000020000000000000003", 7);
        trouble(&place, "00000002.history", "The archive has WAL of timeline 2");
        place.archive("00000004.history", 7);
        trouble(&place, "00000003.history", "The archive has timeline 4");
        absent(&place, "00000005.history");
    }

    #[test]
    fn the_first_timeline_has_no_history_whatever_is_archived() {
        let place = Place::new();
        place.archive(&segment_name(3), 7);
        place.archive("00000002.history", 7);
        absent(&place, "00000001.history");
        fs::remove_dir_all(place.directory.path().join("repository")).unwrap();
        absent(&place, "00000001.history");
    }

    #[test]
    fn a_server_that_has_the_history_itself_is_not_stopped() {
        let place = Place::new();
        let target = place.pg_wal().join("RECOVERYHISTORY");
        assert_eq!(recovery(Some(("00000002.history", &target))), Recovery::Ends);
        place.write("00000002.history", 7);
        assert_eq!(recovery(Some(("00000002.history", &target))), Recovery::Waits);
        assert_eq!(recovery(Some(("00000003.history", &target))), Recovery::Ends);
        assert_eq!(recovery(None), Recovery::Ends);
    }

    #[test]
    fn a_last_segment_that_is_only_partial_is_missing() {
        let place = Place::new();
        place.archive(&segment_name(3), 7);
        place.archive(&format!("{}.partial", segment_name(4)), 7);
        trouble(&place, &segment_name(4), "zstd -dc");
        absent(&place, &segment_name(5));
    }

    /// Timeline 2 leaves 1 in segment 5, and the server recovers along it.
    #[test]
    fn a_segment_counts_as_the_history_in_pg_wal_says() {
        let place = Place::new();
        for number in [3, 5, 6] {
            place.archive(&segment_name(number), 7);
        }
        assert!(matches!(fetched(&place, &segment_name(6)).unwrap(), Fetched::Got { .. }));
        fs::write(place.pg_wal().join("00000002.history"), "1\t0/580000\tbefore\n").unwrap();
        assert!(matches!(fetched(&place, &segment_name(3)).unwrap(), Fetched::Got { .. }));
        trouble(&place, &segment_name(5), "000000020000000000000005 is missing");
        absent(&place, &segment_name(6));
        absent(&place, &segment_name(7));
        absent(&place, "000000020000000000000005");

        // Segments of timeline 1 that the old primary did not get to archive before it died.
        for number in [5, 6] {
            fs::remove_file(place.object(&segment_name(number))).unwrap();
        }
        trouble(&place, &segment_name(4), "Timeline 2 goes on from timeline 1 at 0/580000");
        trouble(&place, &segment_name(5), "Timeline 2 goes on from timeline 1 at 0/580000");
        absent(&place, &segment_name(6));
    }

    #[test]
    fn a_segment_that_is_stored_beside_those_behind_it_is_waited_for() {
        let place = Place::new();
        for number in [3, 5] {
            place.archive(&segment_name(number), 7);
        }
        let target = place.pg_wal().join("RECOVERYXLOG");
        thread::scope(|scope| {
            let waits = scope.spawn(|| fetch_within(&place.profile, &segment_name(4), &target, ON_ITS_WAY));
            place.archive(&segment_name(4), 7);
            assert!(matches!(waits.join().unwrap().unwrap(), Fetched::Got { .. }));
        });
        // What was stored long ago tells of nothing that is on its way.
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::options()
            .write(true)
            .open(place.object(&segment_name(5)))
            .unwrap()
            .set_modified(old)
            .unwrap();
        fs::remove_file(place.object(&segment_name(4))).unwrap();
        let began = Instant::now();
        fetch_within(&place.profile, &segment_name(4), &target, ON_ITS_WAY).unwrap_err();
        assert!(began.elapsed() < ON_ITS_WAY);
    }

    #[test]
    fn a_damaged_object_is_never_handed_over() {
        let place = Place::new();
        let name = segment_name(3);
        place.archive(&name, 7);
        let object = place.object(&name);
        let whole = fs::read(&object).unwrap();
        for bit in (0..whole.len() * 8).step_by(61) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&object, flipped).unwrap();
            trouble(&place, &name, "could not read");
        }
        fs::write(&object, &whole[..whole.len() / 2]).unwrap();
        trouble(&place, &name, "could not read");
    }

    #[test]
    fn a_repository_that_is_gone_is_not_an_empty_one() {
        let place = Place::new();
        place.archive(&segment_name(3), 7);
        let root = place.directory.path().join("repository");
        fs::rename(&root, place.directory.path().join("aside")).unwrap();
        trouble(&place, &segment_name(4), "could not read repository.json");
        fs::create_dir(&root).unwrap();
        trouble(&place, &segment_name(4), "could not read repository.json");
    }

    #[test]
    fn a_target_that_cannot_be_written_is_trouble() {
        let place = Place::new();
        place.archive(&segment_name(3), 7);
        let target = place.pg_wal().join("RECOVERYXLOG");
        fs::create_dir(&target).unwrap();
        let error = fetch(&place.profile, &segment_name(3), &target).unwrap_err();
        assert!(error.what().contains("could not write 000000010000000000000003"), "{error}");
    }
}
