//! What lies on a node between its server and the repository: who is at which file, and what was stored ahead.
//!
//! All of it may be lost, or be of another time, at any moment: a mark counts only for the very file that it was made of, and whoever finds none does the
//! work himself. So nothing here is synced. docs/formats/spool.md is the format.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::repo::seal;
use crate::topology::claim::Profile;

/// That a file is durable in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    format: u32,
    name: WalFile,
    system_identifier: SystemIdentifier,
    /// The URL of the repository.
    stored_in: String,
    file: Identity,
}

/// What tells a file from any other, and from itself after it was written, renamed or copied back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: Timestamp,
    /// Nobody can set it.
    changed: Timestamp,
}

impl Mark {
    /// Describes a file as it is; `None` if the profile names no repository, or the clock of its file system is none of this world.
    pub(super) fn of(profile: &Profile, name: WalFile, file: &Metadata) -> Option<Self> {
        let moment = |seconds, nanoseconds| Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok();
        Some(Self {
            format: seal::FORMAT,
            name,
            system_identifier: profile.system_identifier,
            stored_in: profile.archive.as_ref()?.url.clone(),
            file: Identity {
                device: file.dev(),
                inode: file.ino(),
                size: file.len(),
                modified: moment(file.mtime(), file.mtime_nsec())?,
                changed: moment(file.ctime(), file.ctime_nsec())?,
            },
        })
    }
}

const MARK: &str = ".json";
const CONTENT: &str = ".wal";
const UNFINISHED: &str = ".unfinished";

/// The directory of a node for one of the two directions.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
}

impl Spool {
    /// Returns the one that a profile names, made if need be; `None` where there is none and none can be made, and where it is another user's, whose
    /// own calls could not use what we put there: then everybody works alone.
    pub(super) fn of(profile: &Profile, direction: &str) -> Option<Self> {
        let spool = Self::named(profile, direction)?;
        if !is_ours_to_make(spool.directory.parent()?) {
            return None;
        }
        let made = spool.directory.is_dir()
            || DirBuilder::new().recursive(true).mode(0o700).create(&spool.directory).is_ok();
        made.then_some(spool)
    }

    /// Returns the one that a profile names, if a call has made it: a copy of a cluster may have been removed since, with all that is beside it.
    pub(super) fn there(profile: &Profile, direction: &str) -> Option<Self> {
        Self::named(profile, direction).filter(|spool| spool.directory.is_dir())
    }

    fn named(profile: &Profile, direction: &str) -> Option<Self> {
        let root = profile.archive.as_ref()?.spool.as_ref()?;
        let node = root.join(format!("{}-{}", profile.cluster, profile.node));
        Some(Self { directory: node.join(direction) })
    }

    /// Locks it for its worker; `None` if it has one, or cannot be locked. The worker has it for as long as it lives, however it ends.
    pub(super) fn alone(&self) -> Option<File> {
        alone(&self.directory)
    }

    /// Takes a file for oneself; `None` if somebody else is at it.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn claim(&self, file: WalFile) -> io::Result<Option<Claim>> {
        let path = self.mark(file);
        Ok(locked(|| open(&path))?.map(|file| Claim { file, path, stays: false }))
    }

    /// Takes a file that is asked for; `None` also if it is not, any more.
    ///
    /// # Errors
    /// As [`Spool::claim`].
    pub(super) fn claim_asked(&self, file: WalFile) -> io::Result<Option<Claim>> {
        let path = self.mark(file);
        match locked(|| OpenOptions::new().read(true).write(true).open(&path)) {
            Ok(locked) => Ok(locked.map(|file| Claim { file, path, stays: false })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells whether a file is marked as stored, and is still the one that was.
    pub(super) fn has(&self, file: WalFile, mark: &Mark) -> bool {
        self.read::<Mark>(file).as_ref() == Some(mark)
    }

    /// Asks whoever works for this spool to store a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn ask(&self, file: WalFile) -> io::Result<()> {
        open(&self.mark(file)).map(drop)
    }

    /// Returns the files that were asked for, done or not.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn asked(&self) -> io::Result<BTreeSet<WalFile>> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(MARK)?.parse().ok()).collect())
    }

    /// Removes what there is of other files than these.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn keep(&self, wanted: &BTreeSet<WalFile>) -> io::Result<()> {
        for name in self.names()? {
            let file =
                [MARK, CONTENT, UNFINISHED].iter().find_map(|end| name.strip_suffix(end)?.parse().ok());
            if file.is_some_and(|file| !wanted.contains(&file)) {
                // What stays is looked at the next time.
                fs::remove_file(self.directory.join(&name)).unwrap_or(());
            }
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns where the content of a file lies, if it lies here.
    pub(super) fn content(&self, file: WalFile) -> PathBuf {
        self.directory.join(format!("{file}{CONTENT}"))
    }

    /// Puts the content of a file here in one piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn put(&self, file: WalFile, content: &[u8]) -> io::Result<()> {
        let unfinished = self.directory.join(format!("{file}{UNFINISHED}"));
        fs::write(&unfinished, content)?;
        fs::rename(unfinished, self.content(file))
    }

    /// Returns the mark of a file, if there is one that can be read.
    pub(super) fn read<M: DeserializeOwned>(&self, file: WalFile) -> Option<M> {
        seal::read_document(&fs::read(self.mark(file)).ok()?).ok()
    }

    fn mark(&self, file: WalFile) -> PathBuf {
        self.directory.join(format!("{file}{MARK}"))
    }
}

/// A file that nobody else is at. It is given back when this is dropped, or its process ends.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    path: PathBuf,
    stays: bool,
}

impl Claim {
    /// Leaves the mark that is there.
    pub(super) fn leave(mut self) {
        self.stays = true;
    }

    /// Says what has become of the file.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn write(mut self, mark: &impl Serialize) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(&seal::write_document(mark))?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.stays {
            // An empty one says nothing.
            fs::remove_file(&self.path).ok();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Tells whether what is put into a directory can be used by the calls that come later: whether it is ours, or nobody has made it.
pub(super) fn is_ours_to_make(directory: &Path) -> bool {
    fs::metadata(directory).map_or(true, |found| found.uid() == rustix::process::geteuid().as_raw())
}

/// Locks a directory for its worker; `None` if it has one, or cannot be locked.
pub(super) fn alone(directory: &Path) -> Option<File> {
    locked(|| open(&directory.join("worker.lock"))).ok().flatten()
}

fn locked(open: impl Fn() -> io::Result<File>) -> io::Result<Option<File>> {
    loop {
        let file = open()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever had it may have removed it between the two.
            Ok(()) if file.metadata()?.nlink() == 0 => {}
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::ops::wal::read_profile;
    use crate::ops::wal::testing::Place;

    const NAME: &str = "000000010000000000000003";

    fn marked(place: &Place) -> (Profile, Spool, Mark) {
        let profile = read_profile(&place.profile).unwrap();
        let spool = Spool::of(&profile, "push").unwrap();
        let mark =
            Mark::of(&profile, NAME.parse().unwrap(), &fs::metadata(place.write(NAME, 7)).unwrap()).unwrap();
        spool.claim(mark.name).unwrap().unwrap().write(&mark).unwrap();
        assert!(spool.has(mark.name, &mark));
        (profile, spool, mark)
    }

    #[test]
    fn the_golden_mark_reads_and_writes_byte_for_byte() {
        let golden = include_bytes!("../../../tests/golden/spool-mark-v1.json");
        let mark: Mark = seal::read_document(golden).unwrap();
        assert_eq!(mark.name.to_string(), NAME);
        assert_eq!(seal::write_document(&mark), golden);
    }

    #[test]
    fn a_mark_counts_for_the_very_file_that_it_was_made_of() {
        let place = Place::new();
        let (profile, spool, mark) = marked(&place);
        let path = place.pg_wal().join(NAME);
        let believed = |profile: &Profile| {
            spool.has(mark.name, &Mark::of(profile, mark.name, &fs::metadata(&path).unwrap()).unwrap())
        };
        assert!(believed(&profile));
        let mut elsewhere = profile.clone();
        elsewhere.archive.as_mut().unwrap().url.push_str("-2");
        assert!(!believed(&elsewhere));
        let mut another = profile.clone();
        another.system_identifier = SystemIdentifier::new(12).unwrap();
        assert!(!believed(&another));

        // Put back from a copy: the same name, size, content and time of its last change.
        let copy = place.directory.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&copy).unwrap().set_modified(modified).unwrap();
        fs::rename(&copy, &path).unwrap();
        assert!(!believed(&profile));
    }

    #[test]
    fn a_file_written_in_place_is_another_one_whatever_time_it_shows() {
        let place = Place::new();
        let (profile, spool, mark) = marked(&place);
        let path = place.pg_wal().join(NAME);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        // The kernel's clock ticks every few milliseconds.
        let changed = fs::metadata(&path).unwrap().ctime_nsec();
        while fs::metadata(&path).unwrap().ctime_nsec() == changed {
            fs::write(&path, fs::read(&path).unwrap()).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
        assert!(
            !spool.has(mark.name, &Mark::of(&profile, mark.name, &fs::metadata(&path).unwrap()).unwrap())
        );
    }

    #[test]
    fn a_mark_that_is_torn_flipped_or_of_another_format_says_nothing() {
        let place = Place::new();
        let (_, spool, mark) = marked(&place);
        let path = spool.mark(mark.name);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(!spool.has(mark.name, &mark), "{length}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            assert!(!spool.has(mark.name, &mark), "{at}");
        }
        fs::write(&path, seal::write_document(&Mark { format: 2, ..mark.clone() })).unwrap();
        assert!(!spool.has(mark.name, &mark));
    }

    #[test]
    fn one_at_a_time_is_at_a_file_and_what_does_not_wait_any_more_goes() {
        let place = Place::new();
        let (profile, spool, mark) = marked(&place);
        let first = spool.claim(mark.name).unwrap().unwrap();
        assert!(spool.claim(mark.name).unwrap().is_none());
        first.leave();
        assert!(spool.has(mark.name, &mark));
        let alone = spool.alone().unwrap();
        assert!(Spool::of(&profile, "push").unwrap().alone().is_none());
        drop(alone);
        assert!(spool.alone().is_some());
        let waits = BTreeSet::from([mark.name, "00000002.history".parse().unwrap()]);
        spool.keep(&waits).unwrap();
        assert_eq!(spool.asked().unwrap(), BTreeSet::from([mark.name]));
        spool.ask(mark.name).unwrap();
        spool.ask("00000002.history".parse().unwrap()).unwrap();
        assert!(spool.has(mark.name, &mark));
        assert_eq!(spool.asked().unwrap(), waits);
        spool.put(mark.name, b"content").unwrap();
        spool.keep(&BTreeSet::new()).unwrap();
        assert!(spool.asked().unwrap().is_empty());
        assert!(!spool.content(mark.name).exists());
        assert!(!spool.mark(mark.name).exists());
        assert!(spool.alone().is_some());
    }

    #[test]
    fn of_many_that_take_a_file_one_has_it_also_while_it_comes_and_goes() {
        let place = Place::new();
        let spool = Spool::of(&read_profile(&place.profile).unwrap(), "push").unwrap();
        let file: WalFile = NAME.parse().unwrap();
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::SeqCst) < 20_000 {
                        let Some(claim) = spool.claim(file).unwrap() else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        // It is removed.
                        drop(claim);
                    }
                });
            }
        });
        assert!(spool.claim_asked(file).unwrap().is_none(), "nobody asks for it any more");
        assert!(spool.asked().unwrap().is_empty());
        spool.ask(file).unwrap();
        assert!(spool.claim_asked(file).unwrap().is_some());
    }

    #[test]
    fn without_a_spool_everybody_works_alone() {
        let place = Place::new();
        let mut profile = read_profile(&place.profile).unwrap();
        let root = profile.archive.as_ref().unwrap().spool.clone().unwrap();
        fs::write(&root, "in the way").unwrap();
        assert!(Spool::of(&profile, "push").is_none());
        let path = place.write(NAME, 7);
        crate::ops::wal::push(&place.profile, &path, 1).unwrap();
        profile.archive.as_mut().unwrap().spool = None;
        assert!(Spool::of(&profile, "push").is_none());
    }
}
