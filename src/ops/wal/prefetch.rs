//! Segments that are fetched before the server asks for them, and the worker that does.
//!
//! A server in recovery asks for one segment after the other. The call that has handed one over asks for those behind it, as many as were handed over lately:
//! the faster the replay, the further ahead. The worker fetches them, checks their hashes, and puts them into the [spool](super::spool); the call of
//! a segment that lies there checks it once more and gives it to the server by a rename. That a segment is not in the repository is kept nowhere, and what
//! belongs to a history that the server does not follow is neither asked for nor handed over: both are decided by the call, at its time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::read_stored;
use super::spool::{Claim, Spool};
use super::worker::{self, Done, Job, Worker};
use crate::error::{Error, Result};
use crate::host::aside;
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::seal::{self, Blake3};
use crate::topology::claim::Profile;

const DIRECTION: &str = "fetch";
/// How many segments lie there at most, and how many bytes.
const MOST: u64 = 16;
const ROOM: u64 = 256 << 20;
/// As many segments are asked for as were handed over in this time.
const LATELY: SignedDuration = SignedDuration::from_secs(10);
const PACE: &str = "pace";
const LOOK: Duration = Duration::from_millis(20);
/// How long a call waits for whoever fetches its segment, before it does so itself.
const PATIENCE: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(1);

/// That the content of a segment lies in the spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lies {
    format: u32,
    name: SegmentName,
    system_identifier: SystemIdentifier,
    /// The URL of the repository that it came from.
    stored_in: String,
    size: u64,
    content_blake3: Blake3,
}

impl Lies {
    fn of(profile: &Profile, name: SegmentName, content: &[u8]) -> Self {
        Self {
            format: seal::FORMAT,
            name,
            system_identifier: profile.system_identifier,
            stored_in: profile.archive.as_ref().map(|archive| archive.url.clone()).unwrap_or_default(),
            size: content.len() as u64,
            content_blake3: Blake3::of(content),
        }
    }

    fn is_of(&self, profile: &Profile, name: SegmentName) -> bool {
        self.format == seal::FORMAT
            && self.name == name
            && self.system_identifier == profile.system_identifier
            && profile.archive.as_ref().is_some_and(|archive| archive.url == self.stored_in)
    }
}

/// What a call finds of the segment that it is to hand over.
pub(super) struct Ahead<'a> {
    spool: Spool,
    profile: &'a Profile,
    name: SegmentName,
}

/// A segment that lay in the spool, whole.
pub(super) struct Lay {
    pub(super) content: Vec<u8>,
    /// Where it still lies. Nobody else touches it before this is dropped, and then it is gone.
    pub(super) path: PathBuf,
    _claim: Claim,
}

impl Drop for Lay {
    fn drop(&mut self) {
        // The server has it, or nobody will.
        fs::remove_file(&self.path).unwrap_or(());
    }
}

impl<'a> Ahead<'a> {
    /// Returns what there is for a running server in recovery; it names its files relative to its data directory.
    pub(super) fn of(profile: &'a Profile, file: WalFile, target: &Path) -> Option<Self> {
        let WalFile::Segment(name) = file else { return None };
        let recovers = target.is_relative() && worker::runs(Path::new(".")) && recovers(Path::new("."));
        let spool = Spool::of(profile, DIRECTION).filter(|_| recovers)?;
        Some(Self { spool, profile, name })
    }

    /// Takes the segment if it lies in the spool, or comes there while somebody fetches it.
    pub(super) fn take(&self) -> Option<Lay> {
        let (file, began) = (WalFile::Segment(self.name), Instant::now());
        // Who is not waited for is not asked.
        let claim = loop {
            match self.spool.claim(file).ok()? {
                Some(claim) => break claim,
                None if began.elapsed() < PATIENCE => thread::sleep(TURN),
                None => return None,
            }
        };
        let lies: Lies = self.spool.read(file).filter(|lies: &Lies| lies.is_of(self.profile, self.name))?;
        let path = self.spool.content(file);
        let content = fs::read(&path).ok()?;
        // What is in a file after a crash of the machine is anything.
        let whole = content.len() as u64 == lies.size && Blake3::of(&content) == lies.content_blake3;
        whole.then_some(Lay { content, path, _claim: claim })
    }

    /// Asks for what follows, after the segment was handed over. `is_on` tells whether a segment belongs to the history that the server follows.
    pub(super) fn ask(&self, profile: &Path, size: WalSegmentSize, is_on: impl Fn(SegmentName) -> bool) {
        if self.ask_for(size, is_on) {
            let size = size.as_u64().to_string();
            worker::start(&self.spool, "prefetch", profile, &["--segment-size".into(), size.into()]);
        }
    }

    /// Tells whether anything is asked for that was not.
    fn ask_for(&self, size: WalSegmentSize, is_on: impl Fn(SegmentName) -> bool) -> bool {
        let most = (ROOM / size.as_u64()).clamp(1, MOST);
        let mut next = self.name;
        let follows: Vec<WalFile> = std::iter::from_fn(|| {
            next = next.next(size);
            is_on(next).then_some(WalFile::Segment(next))
        })
        .take(usize::try_from(most).expect("it is at most sixteen"))
        .collect();
        let ask = || -> std::io::Result<bool> {
            self.spool.keep(&follows.iter().copied().collect())?;
            let asked = self.spool.asked()?;
            let more = self.pace(Timestamp::now())?;
            let wanted: Vec<_> = follows.iter().take(more).filter(|file| !asked.contains(file)).collect();
            for file in &wanted {
                self.spool.ask(**file)?;
            }
            Ok(!wanted.is_empty())
        };
        // Without it everything is fetched by its own call.
        ask().unwrap_or(false)
    }

    /// Notes that a segment was handed over now, and returns how many were before it, lately.
    fn pace(&self, now: Timestamp) -> std::io::Result<usize> {
        let file = self.spool.directory().join(PACE);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut times: Vec<Timestamp> = text.lines().filter_map(|line| line.parse().ok()).collect();
        times.retain(|time| now.duration_since(*time).abs() < LATELY);
        let lately = times.len();
        times.push(now);
        let from = times.len().saturating_sub(usize::try_from(MOST).expect("it is sixteen"));
        let text: String = times[from..].iter().map(|time| format!("{time}\n")).collect();
        fs::write(file, text)?;
        Ok(lately)
    }
}

/// Tells whether a server recovers from the archive.
fn recovers(data: &Path) -> bool {
    ["recovery.signal", "standby.signal"].iter().any(|name| data.join(name).exists())
}

/// Removes what a server has not taken that does not recover any more.
pub(super) fn forget(profile: &Profile, data: &Path) {
    if let Some(spool) = Spool::there(profile, DIRECTION).filter(|_| !recovers(data)) {
        // What cannot be removed now is removed the next time.
        spool.keep(&BTreeSet::new()).unwrap_or(());
    }
}

/// Fetches ahead what was asked for of the data directory `data`, whose segments have this size, until there is a reason to end. Does nothing where
/// somebody else does.
///
/// # Errors
/// The one that ended it.
pub fn prefetch(profile: &Path, data: &Path, segment_size: u64) -> Result<()> {
    aside::leave_the_session();
    work(profile, data, segment_size)
}

fn work(profile: &Path, data: &Path, segment_size: u64) -> Result<()> {
    let Some(worker) = Worker::begin(profile, data, DIRECTION)? else { return Ok(()) };
    let ended = worker.work(LOOK, &Fetch { segment_size });
    // What nobody has taken by now is fetched anew by the call that asks for it.
    worker.spool.keep(&BTreeSet::new()).unwrap_or(());
    ended
}

struct Fetch {
    segment_size: u64,
}

impl Job for Fetch {
    fn asked(&self, worker: &Worker) -> Result<Vec<WalFile>> {
        if !recovers(&worker.archive.data) {
            return Ok(Vec::new());
        }
        let asked = worker.spool.asked();
        let asked = asked
            .map_err(|error| Error::failed("could not see which WAL files are asked for").source(error))?;
        Ok(asked.into_iter().filter(|file| worker.spool.read::<Lies>(*file).is_none()).collect())
    }

    fn size(&self, _worker: &Worker, _file: WalFile) -> u64 {
        self.segment_size
    }

    /// Puts a segment into the spool. That it is not in the repository is told by nobody but the call that asks for it.
    fn one(&self, worker: &Worker, file: WalFile) -> Result<Done> {
        let WalFile::Segment(name) = file else { return Ok(Done::No) };
        let could_not = |error| Error::failed(format!("could not put {file} into the spool")).source(error);
        let Some(claim) = worker.spool.claim_asked(file).map_err(could_not)? else { return Ok(Done::No) };
        if worker.spool.read::<Lies>(file).is_some() {
            claim.leave();
            return Ok(Done::No);
        }
        let Some(content) = read_stored(&worker.archive, file)? else { return Ok(Done::No) };
        worker.spool.put(file, &content).map_err(could_not)?;
        claim.write(&Lies::of(&worker.archive.profile, name, &content)).map_err(could_not)?;
        Ok(Done::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::wal::read_profile;
    use crate::ops::wal::testing::{Place, SIZE, segment};

    fn name(number: u32) -> SegmentName {
        format!("0000000100000000{number:08X}").parse().unwrap()
    }

    /// A server seems to recover from the archive.
    fn recover(place: &Place) -> PathBuf {
        let data = place.directory.path().join("data");
        fs::write(data.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        fs::write(data.join("recovery.signal"), "").unwrap();
        data
    }

    fn at<'a>(profile: &'a Profile, number: u32) -> Ahead<'a> {
        Ahead { spool: Spool::of(profile, DIRECTION).unwrap(), profile, name: name(number) }
    }

    fn lies(profile: &Profile, number: u32) -> bool {
        let spool = Spool::of(profile, DIRECTION).unwrap();
        spool.read(WalFile::Segment(name(number))).is_some_and(|lies: Lies| lies.is_of(profile, name(number)))
    }

    #[track_caller]
    fn until(what: &str, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(TURN);
        }
    }

    fn asked(profile: &Profile) -> Vec<String> {
        let spool = Spool::of(profile, DIRECTION).unwrap();
        spool.asked().unwrap().iter().map(WalFile::to_string).collect()
    }

    #[test]
    fn the_golden_mark_reads_and_writes_byte_for_byte() {
        let golden = include_bytes!("../../../tests/golden/spool-segment-v1.json");
        let lies: Lies = seal::read_document(golden).unwrap();
        assert_eq!(lies.size, 16 << 20);
        assert_eq!(seal::write_document(&lies), golden);
    }

    #[test]
    fn as_many_are_asked_for_as_were_handed_over_lately_and_none_past_a_fork() {
        let place = Place::new();
        let profile = read_profile(&place.profile).unwrap();
        let size = WalSegmentSize::new(SIZE).unwrap();
        assert!(!at(&profile, 3).ask_for(size, |_| true), "one alone may be the last");
        assert!(at(&profile, 4).ask_for(size, |_| true));
        assert_eq!(asked(&profile), [name(5).to_string()]);
        assert!(at(&profile, 5).ask_for(size, |_| true));
        assert_eq!(asked(&profile), [6, 7].map(|number| name(number).to_string()));
        assert!(at(&profile, 6).ask_for(size, |_| true));
        assert_eq!(asked(&profile), [7, 8, 9].map(|number| name(number).to_string()));
        // In segment 9 a later timeline goes on.
        at(&profile, 7).ask_for(size, |next| next < name(9));
        assert_eq!(asked(&profile), [name(8).to_string()]);
        for number in 8..40 {
            at(&profile, number).ask_for(size, |_| true);
        }
        assert_eq!(asked(&profile).len(), 16);
        // A recovery that begins anew asks for what it needs.
        at(&profile, 3).ask_for(size, |_| true);
        assert_eq!(asked(&profile)[0], name(4).to_string());
        assert_eq!(asked(&profile).len(), 16);
        let large = WalSegmentSize::new(1 << 30).unwrap();
        at(&profile, 1).ask_for(large, |_| true);
        assert_eq!(asked(&profile).len(), 1, "what lies there has its bounds");
    }

    #[test]
    fn what_was_asked_for_is_fetched_and_handed_over_once_and_what_is_not_there_is_kept_nowhere() {
        let place = Place::new();
        let data = recover(&place);
        let profile = read_profile(&place.profile).unwrap();
        for number in 3..9 {
            place.archive(&name(number).to_string(), 7);
        }
        let spool = Spool::of(&profile, DIRECTION).unwrap();
        for number in 4..12 {
            spool.ask(WalFile::Segment(name(number))).unwrap();
        }
        thread::scope(|scope| {
            let worker = scope.spawn(|| work(&place.profile, &data, SIZE));
            until("they are fetched", || (4..9).all(|number| lies(&profile, number)));
            until("nothing is kept of the others", || asked(&profile).len() == 5);
            let lay = at(&profile, 4).take().unwrap();
            assert!(lay.content == segment(&name(4).to_string(), 7));
            assert!(fs::read(&lay.path).unwrap() == lay.content);
            let path = lay.path.clone();
            drop(lay);
            assert!(!path.exists() && at(&profile, 4).take().is_none());

            // It came meanwhile, and is asked for again.
            assert!(at(&profile, 9).take().is_none());
            place.archive(&name(9).to_string(), 7);
            spool.ask(WalFile::Segment(name(9))).unwrap();
            until("it is fetched", || lies(&profile, 9));

            // What a machine that crashed has left of a file.
            let broken = spool.content(WalFile::Segment(name(5)));
            fs::write(&broken, vec![0; SIZE as usize]).unwrap();
            assert!(at(&profile, 5).take().is_none());
            fs::write(spool.content(WalFile::Segment(name(6))), b"short").unwrap();
            assert!(at(&profile, 6).take().is_none());
            let mut elsewhere = profile.clone();
            elsewhere.archive.as_mut().unwrap().url.push_str("-2");
            assert!(at(&elsewhere, 7).take().is_none());

            fs::remove_file(data.join("recovery.signal")).unwrap();
            worker.join().unwrap().unwrap();
        });
        assert!(asked(&profile).is_empty() && !spool.content(WalFile::Segment(name(8))).exists());
    }

    #[test]
    fn what_a_killed_worker_has_left_goes_when_the_recovery_has_ended() {
        let place = Place::new();
        let data = recover(&place);
        let profile = read_profile(&place.profile).unwrap();
        let spool = Spool::of(&profile, DIRECTION).unwrap();
        let file = WalFile::Segment(name(4));
        spool.put(file, b"content").unwrap();
        spool.ask(file).unwrap();
        forget(&profile, &data);
        assert!(spool.content(file).exists());
        fs::remove_file(data.join("recovery.signal")).unwrap();
        forget(&profile, &data);
        assert!(!spool.content(file).exists() && asked(&profile).is_empty());
    }

    #[test]
    fn a_damaged_object_ends_the_worker_and_is_told_by_the_call() {
        let place = Place::new();
        let data = recover(&place);
        let profile = read_profile(&place.profile).unwrap();
        place.archive(&name(4).to_string(), 7);
        fs::write(place.object(&name(4).to_string()), b"something else").unwrap();
        let spool = Spool::of(&profile, DIRECTION).unwrap();
        spool.ask(WalFile::Segment(name(4))).unwrap();
        work(&place.profile, &data, SIZE).unwrap_err();
        assert!(at(&profile, 4).take().is_none());
    }
}
