//! What a backup has stored so far, noted beside its data while it runs, so that the next one goes on where one was aborted.
//!
//! A chunk is taken over by the hash of its bytes alone: every file is read and hashed again, whatever its size and its time say, and what
//! is saved is to compress and to store. docs/formats/backup.md, "progress".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::{BackupKeys, Label};
use crate::repo::manifest::{Chunk, Contents, DataObject};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Put, Repo};

/// Each run of a backup numbers its objects from a multiple of this on: whoever still writes for an aborted one never meets another.
const SPAN: u32 = 100_000;
/// How often it is noted what was stored at most; later a hundredth of the time since the begin, so that notes stay few.
const EVERY: Duration = Duration::from_secs(2);
/// Level of zstd of the notes.
const LEVEL: i32 = 3;

/// The backup whose notes these are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) repo: &'a dyn Repo,
    pub(super) keys: &'a BackupKeys,
    pub(super) label: &'a Label,
    pub(super) system: SystemIdentifier,
}

impl Of<'_> {
    fn write(&self, number: u32, contents: &Contents) -> Result<Put> {
        let name = self.name(number);
        let sealed = seal::seal(self.identity(&name), &contents.write(), LEVEL)
            .map_err(|error| Error::failed("could not compress the notes of a backup").source(error))?;
        Ok(repo::wait(self.repo.create(&self.keys.progress(number), &sealed))?)
    }

    /// Reads one note; `None` for one that cannot be used, or is not there any more.
    fn read(&self, number: u32) -> Result<Option<Contents>> {
        let Some(sealed) = repo::wait(self.repo.read(&self.keys.progress(number)))? else { return Ok(None) };
        let text = seal::open(self.identity(&self.name(number)), &sealed);
        Ok(text.ok().and_then(|text| Contents::read(&text).ok()))
    }

    fn name(&self, number: u32) -> String {
        format!("{}/{number:06}", self.label)
    }

    fn identity<'n>(&self, name: &'n str) -> Identity<'n> {
        Identity { kind: Kind::Progress, name, system_identifier: self.system }
    }
}

/// What earlier runs of a backup have stored.
#[derive(Debug, Default)]
pub(super) struct Noted {
    objects: BTreeMap<u32, DataObject>,
    chunks: HashMap<Blake3, Chunk>,
    base: u32,
}

impl Noted {
    /// Reads what earlier runs have noted, as far as it is there, and makes sure that this one has numbers of its own.
    ///
    /// # Errors
    /// As the repository fails.
    pub(super) fn read(of: Of<'_>) -> Result<Self> {
        let listed = repo::wait(of.repo.list_all(of.keys.folder()))?;
        let data: BTreeMap<u32, u64> = listed
            .iter()
            .filter_map(|listed| Some((of.keys.data_number(&listed.key)?, listed.size.0)))
            .collect();
        let notes: BTreeSet<u32> =
            listed.iter().filter_map(|listed| of.keys.progress_number(&listed.key)).collect();
        let mut noted = Self::default();
        for number in &notes {
            let contents = of.read(*number)?.unwrap_or_default();
            let there =
                |(number, object): &(u32, &DataObject)| data.get(number).copied() == Some(object.size.0);
            noted.objects.extend(contents.numbered().filter(there).map(|(number, object)| (number, *object)));
            noted
                .chunks
                .extend(contents.chunks.into_iter().filter_map(|chunk| Some((chunk.content?, chunk))));
        }
        noted.chunks.retain(|_, chunk| noted.objects.contains_key(&chunk.object));
        let last = data.keys().chain(&notes).max().map_or(0, |last| (last / SPAN + 1) * SPAN);
        noted.base = last;
        // A list of an aborted run is not ours.
        if listed.iter().any(|listed| listed.key == of.keys.files()) {
            repo::wait(of.repo.remove(&of.keys.files()))?;
        }
        while noted.base > 0 && of.write(noted.base, &Contents::default())? == Put::Refused {
            noted.base += SPAN;
        }
        Ok(noted)
    }

    /// Returns the chunk that holds bytes of this hash.
    pub(super) fn chunk(&self, content: &Blake3) -> Option<&Chunk> {
        self.chunks.get(content)
    }

    /// Returns the number after which those of this run begin.
    pub(super) fn base(&self) -> u32 {
        self.base
    }

    /// Returns the objects of earlier runs that `chunks` are in.
    pub(super) fn used<'n>(&'n self, chunks: &'n [Chunk]) -> impl Iterator<Item = (u32, DataObject)> + 'n {
        let used: BTreeSet<u32> = chunks.iter().map(|chunk| chunk.object).collect();
        self.objects
            .iter()
            .filter(move |(number, _)| used.contains(number))
            .map(|(number, object)| (*number, *object))
    }
}

/// Notes what is stored.
#[derive(Debug)]
pub(super) struct Notes<'a> {
    of: Of<'a>,
    next: u32,
    begun: Instant,
    written: Instant,
    pending: Contents,
}

impl<'a> Notes<'a> {
    /// Begins behind the numbers up to `base`.
    pub(super) fn new(of: Of<'a>, base: u32) -> Self {
        let now = Instant::now();
        Self { of, next: base + 1, begun: now, written: now, pending: Contents::default() }
    }

    /// Notes an object that is stored durably, with its chunks; writes when it is time.
    ///
    /// # Errors
    /// As the repository fails.
    pub(super) fn take(&mut self, object: DataObject, chunks: Vec<Chunk>) -> Result<()> {
        self.pending.objects.push(object);
        self.pending.chunks.extend(chunks);
        if self.written.elapsed() < EVERY.max(self.begun.elapsed() / 100) {
            return Ok(());
        }
        self.write()
    }

    /// Writes what is not written yet.
    ///
    /// # Errors
    /// As the repository fails.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.pending.objects.is_empty() {
            return Ok(());
        }
        self.of.write(self.next, &self.pending)?;
        self.pending = Contents::default();
        self.next += 1;
        self.written = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::backup::trial::Trial;
    use crate::topology::model::Codec;
    use crate::units::ByteCount;

    fn chunk(object: u32, content: &[u8]) -> Chunk {
        Chunk {
            object,
            offset: 0,
            stored: 3,
            size: 3,
            blake3: Blake3::of(content),
            backup: None,
            codec: Codec::Zstd,
            content: Some(Blake3::of(content)),
        }
    }

    #[test]
    fn what_was_noted_and_is_there_is_found_by_the_next_run_under_numbers_of_its_own() {
        for trial in [Trial::new(), Trial::encrypted()] {
            let system = Trial::system();
            let label: Label = "20261121T100203Z-full".parse().unwrap();
            let keys = system.backup(&label);
            let of = Of { repo: &*trial.repo, keys: &keys, label: &label, system: system.system() };
            assert_eq!(Noted::read(of).unwrap().base(), 0);

            let mut notes = Notes::new(of, 0);
            for (number, content) in [(1, b"one"), (2, b"two"), (7, b"new")] {
                let object =
                    DataObject { number: Some(number), size: ByteCount(3), blake3: Blake3::of(content) };
                notes.take(object, vec![chunk(number, content)]).unwrap();
                // The second was lost, the third was cut off.
                match number {
                    1 => repo::wait(trial.repo.store(&keys.data(number), content)).unwrap(),
                    7 => repo::wait(trial.repo.store(&keys.data(number), b"ne")).unwrap(),
                    _ => {}
                }
            }
            notes.write().unwrap();
            repo::wait(trial.repo.store(&keys.files(), b"of the run before")).unwrap();

            for run in 1..4 {
                let noted = Noted::read(of).unwrap();
                assert_eq!(noted.base(), run * SPAN);
                assert_eq!(noted.chunk(&Blake3::of(b"one")), Some(&chunk(1, b"one")));
                for lost in [b"two", b"new"] {
                    assert_eq!(noted.chunk(&Blake3::of(lost)), None);
                }
                assert_eq!(
                    noted.used(&[chunk(1, b"one")]).map(|(number, _)| number).collect::<Vec<_>>(),
                    [1]
                );
                assert_eq!(noted.used(&[chunk(9, b"one")]).count(), 0);
            }
            assert!(repo::wait(trial.repo.read(&keys.files())).unwrap().is_none());
        }
    }

    #[test]
    fn a_note_that_is_damaged_takes_nothing_over() {
        let trial = Trial::new();
        let system = Trial::system();
        let label: Label = "20261121T100203Z-full".parse().unwrap();
        let keys = system.backup(&label);
        let of = Of { repo: &*trial.repo, keys: &keys, label: &label, system: system.system() };
        let mut notes = Notes::new(of, 0);
        let object = DataObject { number: Some(1), size: ByteCount(3), blake3: Blake3::of(b"one") };
        notes.take(object, vec![chunk(1, b"one")]).unwrap();
        notes.write().unwrap();
        repo::wait(trial.repo.store(&keys.data(1), b"one")).unwrap();
        trial.flip(&keys.progress(1), 800);
        let noted = Noted::read(of).unwrap();
        assert_eq!(noted.chunk(&Blake3::of(b"one")), None);
        assert_eq!(noted.base(), SPAN);
    }
}
