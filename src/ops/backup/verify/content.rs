//! One backup: its manifest, its list, its data objects, and at full depth every file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{BackupVerified, Chance, NAMED, Problem, ProblemKind, Verdict, Work};
use crate::error::Result;
use crate::ops::backup::holdings::{Folder, OfSystem};
use crate::ops::backup::retention::Backup;
use crate::ops::node::VerifyDepth;
use crate::repo::codec::Decoder;
use crate::repo::layout::{BackupKeys, Label};
use crate::repo::manifest::{Chunk, Contents, ContentsError, File, Manifest};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Key};

/// What was found in a backup.
pub(super) struct Content {
    pub(super) backup: BackupVerified,
    pub(super) problems: Vec<Problem>,
}

/// Checks a backup as deep as was asked for.
pub(super) fn check(work: &Work<'_>, of: &OfSystem, backup: &Backup) -> Result<Content> {
    let label = &backup.label;
    let folder = of.folders.get(label).cloned().unwrap_or_default();
    let mut content = Content {
        backup: BackupVerified {
            system_identifier: of.system.id,
            label: label.clone(),
            verdict: Verdict::Sound,
            why: None,
            objects: folder.data.len() as u64,
            chunks: 0,
            chunks_read: 0,
            files_read: 0,
            stored: backup.stored,
        },
        problems: Vec::new(),
    };
    let keys = of.keys.backup(label);
    if backup.manifest.is_none() {
        // It is among what cannot be used or read; without it the rest is checked by its own hashes.
        content.backup.verdict = Verdict::CannotTell;
        content.backup.why.clone_from(&backup.broken);
    }
    match list(work, of, label, backup.manifest.as_ref()) {
        Ok(contents) => {
            let looked = Looked { work, of, label, keys, folder, contents };
            content.problems.extend(looked.objects());
            content.backup.chunks = looked.contents.chunks.len() as u64;
            looked.deep(&mut content)?;
        }
        Err(problem) => content.problems.push(problem),
    }
    content.problems.iter_mut().for_each(|problem| problem.backup = Some(label.clone()));
    Ok(content)
}

/// Reads the list of chunks and files.
fn list(
    work: &Work<'_>,
    of: &OfSystem,
    label: &Label,
    manifest: Option<&Manifest>,
) -> Result<Contents, Problem> {
    let key = of.keys.backup(label).files();
    let damaged = |why: String| Problem::new(ProblemKind::Damaged, key.clone(), why);
    let object = match repo::wait(work.repo.read(&key)) {
        Ok(Some(object)) => object,
        Ok(None) => {
            return Err(Problem::new(ProblemKind::Missing, key, "the backup cannot be read without it"));
        }
        Err(error) => return Err(Problem::unreadable(key, &error)),
    };
    work.expect(object.len() as u64);
    work.done(object.len() as u64);
    if let Some(manifest) = manifest {
        if object.len() as u64 != manifest.files_stored.0 {
            return Err(damaged(format!(
                "it has {} bytes, expected {}",
                object.len(),
                manifest.files_stored.0
            )));
        }
        if Blake3::of(&object) != manifest.files_blake3 {
            return Err(damaged("it does not have the hash that the manifest says".to_owned()));
        }
    }
    let identity = Identity { kind: Kind::Files, name: label.as_str(), system_identifier: of.system.id };
    let contents =
        seal::open(identity, &object).map_err(ContentsError::Seal).and_then(|text| Contents::read(&text));
    let contents = contents.map_err(|error| damaged(error.to_string()))?;
    match contradiction(&contents, manifest) {
        Some(why) => Err(damaged(why)),
        None => Ok(contents),
    }
}

/// Finds what a list says that cannot be.
fn contradiction(contents: &Contents, manifest: Option<&Manifest>) -> Option<String> {
    for file in &contents.files {
        let mut end = 0;
        for part in &file.parts {
            let chunk = usize::try_from(part.chunk).ok().and_then(|n| contents.chunks.get(n));
            let Some(chunk) = chunk else {
                return Some(format!("{} has bytes in a chunk that is not listed", file.path));
            };
            let in_chunk = u64::from(part.from) + u64::from(part.length) <= u64::from(chunk.size);
            if part.at < end || part.at + u64::from(part.length) > file.size || !in_chunk {
                return Some(format!("the parts of {} do not fit", file.path));
            }
            end = part.at + u64::from(part.length);
        }
    }
    let manifest = manifest?;
    let size: u64 = contents.files.iter().map(|file| file.size).sum();
    let stored: u64 = contents.objects.iter().map(|object| object.size.0).sum();
    let says = [
        ("files", contents.files.len() as u64, manifest.files),
        ("directories", contents.dirs.len() as u64, manifest.directories),
        ("bytes of files", size, manifest.size.0),
        ("stored bytes", stored, manifest.stored.0),
    ];
    says.iter()
        .find(|(_, listed, expected)| listed != expected)
        .map(|(what, listed, expected)| format!("it lists {listed} {what}, the manifest says {expected}"))
}

/// A backup whose list is whole.
struct Looked<'a> {
    work: &'a Work<'a>,
    of: &'a OfSystem,
    label: &'a Label,
    keys: BackupKeys,
    folder: Folder,
    contents: Contents,
}

/// The chunks of one data object, by their place in it.
struct Task {
    owner: Label,
    object: u32,
    chunks: Vec<usize>,
}

impl Looked<'_> {
    /// Holds the listing against the list.
    fn objects(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (number, object) in self.contents.numbered() {
            let key = self.keys.data(number);
            match self.folder.data.get(&number) {
                None => problems.push(
                    self.affected(Problem::new(ProblemKind::Missing, key, "it is not there"), |chunk| {
                        chunk.backup.is_none() && chunk.object == number
                    }),
                ),
                Some(size) if *size != object.size => {
                    let why = format!("it has {} bytes, expected {}", size.0, object.size.0);
                    problems.push(self.affected(Problem::new(ProblemKind::Damaged, key, why), |chunk| {
                        chunk.backup.is_none()
                            && chunk.object == number
                            && chunk.offset + u64::from(chunk.stored) > size.0
                    }));
                }
                Some(_) => {}
            }
        }
        let listed: BTreeSet<u32> = self.contents.numbered().map(|(number, _)| number).collect();
        for number in self.folder.data.keys().filter(|number| !listed.contains(number)) {
            let why = "it is not in the backup's list";
            problems.push(Problem::new(ProblemKind::Damaged, self.keys.data(*number), why));
        }
        for (needed, number) in self.elsewhere() {
            let there = self.of.folders.get(&needed).is_some_and(|folder| folder.data.contains_key(&number));
            if !there {
                let key = self.of.keys.backup(&needed).data(number);
                let problem = Problem::new(ProblemKind::Missing, key, "chunks of this backup are in it");
                problems.push(self.affected(problem, |chunk| {
                    chunk.backup.as_ref() == Some(&needed) && chunk.object == number
                }));
            }
        }
        problems
    }

    /// Returns the data objects of other backups that have chunks of this one.
    fn elsewhere(&self) -> Vec<(Label, u32)> {
        let mut objects: Vec<(Label, u32)> = self
            .contents
            .chunks
            .iter()
            .filter_map(|chunk| Some((chunk.backup.clone()?, chunk.object)))
            .collect();
        objects.sort();
        objects.dedup();
        objects
    }

    /// Reads chunks: none, some by chance, or all.
    fn deep(&self, content: &mut Content) -> Result<()> {
        let all = self.contents.chunks.len();
        let chosen: Vec<usize> = match self.work.request.depth {
            VerifyDepth::Quick => return Ok(()),
            VerifyDepth::Sampled => Chance::new(self.work.request.seed, self.label.as_str()).pick(all),
            VerifyDepth::Full => (0..all).collect(),
        };
        let full = self.work.request.depth == VerifyDepth::Full;
        let tasks = self.tasks(&chosen, full);
        self.work.expect(chosen.iter().map(|n| u64::from(self.contents.chunks[*n].stored)).sum());
        let files = Files::new(&self.contents, full);
        let read = AtomicU64::new(0);
        let found = self.work.in_parallel(&tasks, |task| {
            let mut wrong = self.read(task, &files, &read);
            if full && task.owner == *self.label && wrong.is_empty() {
                wrong.extend(self.untiled(task));
            }
            wrong
        })?;
        content.backup.chunks_read = read.into_inner();
        // What the listing has shown is not told once more.
        let known: Vec<Key> = content.problems.iter().map(|problem| problem.object.clone()).collect();
        let deep: Vec<Problem> = found.into_iter().flatten().collect();
        let whole = known.is_empty() && deep.is_empty();
        content.problems.extend(deep.into_iter().filter(|problem| !known.contains(&problem.object)));
        if full && whole {
            content.problems.extend(files.wrong(self));
            content.backup.files_read = self.contents.files.len() as u64;
        }
        Ok(())
    }

    /// Puts chunks together by the object that they are in. An object without chunks is read all the same.
    fn tasks(&self, chosen: &[usize], full: bool) -> Vec<Task> {
        let mut tasks: BTreeMap<(Label, u32), Vec<usize>> = BTreeMap::new();
        for number in chosen {
            let chunk = &self.contents.chunks[*number];
            let owner = chunk.backup.clone().unwrap_or_else(|| self.label.clone());
            tasks.entry((owner, chunk.object)).or_default().push(*number);
        }
        if full {
            for (number, _) in self.contents.numbered() {
                tasks.entry((self.label.clone(), number)).or_default();
            }
        }
        let made = tasks.into_iter().map(|((owner, object), mut chunks)| {
            chunks.sort_by_key(|number| self.contents.chunks[*number].offset);
            Task { owner, object, chunks }
        });
        made.collect()
    }

    /// Reads the chunks of one object and checks each.
    fn read(&self, task: &Task, files: &Files, read: &AtomicU64) -> Vec<Problem> {
        let key = self.of.keys.backup(&task.owner).data(task.object);
        let mut wrong: Vec<(usize, ProblemKind, String)> = Vec::new();
        for number in &task.chunks {
            let chunk = &self.contents.chunks[*number];
            match self.chunk(&key, chunk) {
                Ok(bytes) => {
                    read.fetch_add(1, Ordering::Relaxed);
                    files.take(*number, &bytes);
                }
                Err((kind, why)) => wrong.push((*number, kind, why)),
            }
            self.work.done(u64::from(chunk.stored));
        }
        let Some((_, kind, why)) = wrong.first() else { return Vec::new() };
        let more = match wrong.len() {
            1 => String::new(),
            count => format!(", and {} more chunks of it", count - 1),
        };
        let problem = Problem::new(*kind, key.clone(), format!("{why}{more}"));
        let numbers: Vec<usize> = wrong.iter().map(|(number, ..)| *number).collect();
        vec![self.affected_by(problem, |number| numbers.contains(&number))]
    }

    fn chunk(&self, key: &Key, chunk: &Chunk) -> Result<Vec<u8>, (ProblemKind, String)> {
        let at = format!("at byte {}", chunk.offset);
        let stored = match repo::wait(self.work.repo.read_range(key, chunk.offset, u64::from(chunk.stored))) {
            Ok(Some(stored)) => stored,
            Ok(None) => return Err((ProblemKind::Missing, "it is not there".to_owned())),
            Err(error) => return Err((ProblemKind::of(&error), error.why)),
        };
        let damaged = |why: &str| Err((ProblemKind::Damaged, format!("the chunk {at} {why}")));
        if stored.len() as u64 != u64::from(chunk.stored) {
            return damaged("is cut off");
        }
        if Blake3::of(&stored) != chunk.blake3 {
            return damaged("does not have the hash that the list says");
        }
        let size = usize::try_from(chunk.size).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let mut decoder = Decoder::new().map_err(|error| (ProblemKind::Unreadable, error.to_string()))?;
        match decoder.decode(chunk.codec, &stored, size, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(why) => damaged(&why),
        }
    }

    /// Looks at the bytes of an object that are in no chunk: there are none, or its own hash tells.
    fn untiled(&self, task: &Task) -> Option<Problem> {
        let (_, listed) = self.contents.numbered().find(|(number, _)| *number == task.object)?;
        let mut end = 0;
        let tiled = task.chunks.iter().all(|number| {
            let chunk = &self.contents.chunks[*number];
            let fits = chunk.offset == end;
            end = chunk.offset + u64::from(chunk.stored);
            fits
        });
        if tiled && end == listed.size.0 {
            return None;
        }
        let key = self.keys.data(task.object);
        match repo::wait(self.work.repo.read(&key)) {
            Ok(Some(object)) if Blake3::of(&object) == listed.blake3 => None,
            Ok(Some(_)) => {
                Some(Problem::new(ProblemKind::Damaged, key, "it does not have the hash that the list says"))
            }
            Ok(None) => Some(Problem::new(ProblemKind::Missing, key, "it is not there")),
            Err(error) => Some(Problem::unreadable(key, &error)),
        }
    }

    fn affected(&self, problem: Problem, is: impl Fn(&Chunk) -> bool) -> Problem {
        self.affected_by(problem, |number| self.contents.chunks.get(number).is_some_and(&is))
    }

    /// Names the files that have bytes in the chunks of a problem.
    fn affected_by(&self, mut problem: Problem, is: impl Fn(usize) -> bool) -> Problem {
        let in_it = |file: &&File| file.parts.iter().any(|part| usize::try_from(part.chunk).is_ok_and(&is));
        let mut files = self.contents.files.iter().filter(in_it).map(|file| file.path.clone());
        problem.files = files.by_ref().take(NAMED).collect();
        problem.more_files = files.count() as u64;
        problem
    }
}

/// The CRCs of the parts of all files, as their chunks come by.
struct Files {
    /// `(chunk, from, length, slot)` in order of the chunks; the slot is where its CRC goes.
    parts: Vec<(u32, u32, u32, u32)>,
    crcs: Vec<AtomicU32>,
}

impl Files {
    fn new(contents: &Contents, full: bool) -> Self {
        let files = contents.files.iter().filter(|_| full).flat_map(|file| &file.parts);
        let mut parts: Vec<(u32, u32, u32, u32)> =
            (0..).zip(files).map(|(slot, part)| (part.chunk, part.from, part.length, slot)).collect();
        parts.sort_unstable();
        let crcs = parts.iter().map(|_| AtomicU32::new(0)).collect();
        Self { parts, crcs }
    }

    fn take(&self, chunk: usize, bytes: &[u8]) {
        let Ok(chunk) = u32::try_from(chunk) else { return };
        let first = self.parts.partition_point(|part| part.0 < chunk);
        for (_, from, length, slot) in self.parts[first..].iter().take_while(|part| part.0 == chunk) {
            let begin = usize::try_from(*from).unwrap_or(usize::MAX);
            let end = begin.saturating_add(usize::try_from(*length).unwrap_or(usize::MAX));
            let slot = usize::try_from(*slot).ok().and_then(|slot| self.crcs.get(slot));
            if let (Some(part), Some(slot)) = (bytes.get(begin..end), slot) {
                slot.store(crc32c::crc32c(part), Ordering::Relaxed);
            }
        }
    }

    /// Finds the files whose bytes do not add up to their checksum.
    fn wrong(&self, looked: &Looked<'_>) -> Option<Problem> {
        let mut slots = self.crcs.iter().map(|crc| crc.load(Ordering::Relaxed));
        let mut wrong = Vec::new();
        for file in &looked.contents.files {
            if file.crc_of(slots.by_ref()) != file.crc32c {
                wrong.push(file.path.clone());
            }
        }
        let first = wrong.first()?;
        let why = format!("{first} does not have the checksum that it says, although all chunks are whole");
        let mut problem = Problem::new(ProblemKind::Damaged, looked.keys.files(), why);
        problem.more_files = wrong.len().saturating_sub(NAMED) as u64;
        problem.files = wrong.into_iter().take(NAMED).collect();
        Some(problem)
    }
}
