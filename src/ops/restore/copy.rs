//! Copies a backup into a data directory: on the node, as the os-user, in threads.
//!
//! Every chunk is checked against its hash before a byte of it is written, every file against its CRC-32C when it is whole, and
//! `global/pg_control` gets its name when everything else is durable: a copy that did not end cannot start. Blocks, and knows no server.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::dress;
use super::place::{self, Place, could_not};
use super::source::{CONTROL, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::restore::{CopyForRestore, Dressing, Restored, Signal};
use crate::ops::node::{Progress, Reporter};
use crate::pg::backup_manifest::{self, Listed, WalRange};
use crate::repo::codec::Decoder;
use crate::repo::manifest::{CHUNK, Chunk, File, Part};
use crate::repo::seal::Blake3;
use crate::repo::{self, Repo};
use crate::topology::declared;
use crate::units::ByteCount;

/// Blocks that are compared and written one by one where a file is there already.
const BLOCK: usize = 8192;
/// So many ranges of objects are asked for at the same time at most, unless there are more cores: each takes about 10 MiB of memory.
const MOST_IN_FLIGHT: usize = 16;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);
/// The name of pg_control until all else is there.
const UNFINISHED_CONTROL: &str = "global/pg_control.pgherd-restore";

/// Copies a backup; see [`CopyForRestore`].
///
/// # Errors
/// As [`copy`].
pub fn run(request: &CopyForRestore, reporter: &Reporter) -> Result<Restored> {
    let repo = repo::open(&request.repository)?;
    let told = |done: u64, total: u64| {
        reporter.progress(Progress { done: ByteCount(done), total: ByteCount(total), stored: ByteCount(0) });
    };
    told(0, 0);
    // Whoever asked for it may have been killed, and may be undoing by now what this would begin.
    if reporter.is_alone() {
        return Err(Error::new(ErrorKind::Interrupted, "nobody waits for the copy any more"));
    }
    copy(&*repo, request, &told, &|| reporter.is_alone())
}

/// Copies a backup. `told` takes bytes done and in all; `stop` says that nobody waits for the copy any more.
///
/// # Errors
/// `Refused` if the directory is not empty and not ours, or a server runs in it; when the backup is damaged, with what cannot be restored;
/// when the disk is full or the files cannot be written. What was copied stays, cannot start, and is used by the next run.
pub fn copy(
    repo: &dyn Repo,
    job: &CopyForRestore,
    told: &(dyn Fn(u64, u64) + Sync),
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Restored> {
    let source = Source::read(repo, &job.cluster, job.system_identifier, &job.label)?;
    let place = Place::take(job, &source)?;
    let removed = place.prepare(&source)?;
    let filled = fill(&source, &place, workers(job), told, stop)?;
    check(&source, &filled)?;
    let mut notes = Vec::new();
    let own = put_on(&place, &source, &job.dressing, &mut notes)?;
    place.sync()?;
    write_manifest(&place, &source, own)?;
    place.name_control(UNFINISHED_CONTROL)?;
    if source.manifest.damaged_pages > 0 {
        notes.push(format!(
            "{} pages were damaged on the node when the backup was made, and are so in the copy.",
            source.manifest.damaged_pages
        ));
    }
    Ok(Restored {
        files: source.manifest.files,
        directories: source.manifest.directories,
        size: source.manifest.size,
        fetched: ByteCount(filled.fetched),
        written: ByteCount(filled.written),
        removed,
        workers: u32::try_from(filled.workers).unwrap_or(u32::MAX),
        notes,
    })
}

/// Decides how many threads copy: as many as there are cores, and more where each waits for an object store most of its time.
fn workers(job: &CopyForRestore) -> usize {
    let asked = usize::try_from(job.workers).unwrap_or(usize::MAX);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match repo::Place::of(&job.repository.url) {
        _ if asked > 0 => asked,
        Some(repo::Place::Bucket { .. }) => (4 * cores).min(MOST_IN_FLIGHT.max(cores)),
        Some(repo::Place::Directory(_)) | None => cores,
    }
}

/// What the workers share.
struct Fill<'a> {
    source: &'a Source<'a>,
    place: &'a Place,
    /// `(file, part)` in the order of their chunks, and where each chunk's begin.
    parts: Vec<(u32, u32)>,
    begins: Vec<usize>,
    /// The CRC of each part, and where each file's begin.
    crcs: Vec<AtomicU32>,
    bases: Vec<usize>,
    next: AtomicUsize,
    done: AtomicU64,
    fetched: AtomicU64,
    written: AtomicU64,
    ended: AtomicBool,
    failure: Mutex<Option<Error>>,
}

struct Filled {
    crcs: Vec<AtomicU32>,
    bases: Vec<usize>,
    fetched: u64,
    written: u64,
    workers: usize,
}

fn fill(
    source: &Source<'_>,
    place: &Place,
    workers: usize,
    told: &(dyn Fn(u64, u64) + Sync),
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Filled> {
    let workers = workers.clamp(1, source.contents.chunks.len().max(1));
    let fill = Fill::new(source, place);
    let total: u64 =
        source.contents.files.iter().flat_map(|file| &file.parts).map(|p| u64::from(p.length)).sum();
    let main = &thread::current();
    thread::scope(|scope| {
        let fill = &fill;
        let work = move || {
            if let Err(error) = fill.work() {
                fill.ended.store(true, Ordering::Relaxed);
                let mut failure = fill.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
            main.unpark();
        };
        let all: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        while all.iter().any(|worker| !worker.is_finished()) {
            thread::park_timeout(TELL);
            told(fill.done.load(Ordering::Relaxed), total);
            if stop() {
                fill.ended.store(true, Ordering::Relaxed);
            }
        }
    });
    if let Some(error) = fill.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if stop() {
        return Err(Error::new(ErrorKind::Interrupted, "the copy was interrupted")
            .detail("It is not complete and cannot start. Running the same restore again goes on with it."));
    }
    if place.reused() {
        for file in &source.contents.files {
            empty_holes(place, file)?;
        }
    }
    Ok(Filled {
        crcs: fill.crcs,
        bases: fill.bases,
        fetched: fill.fetched.into_inner(),
        written: fill.written.into_inner(),
        workers,
    })
}

impl<'a> Fill<'a> {
    fn new(source: &'a Source<'a>, place: &'a Place) -> Self {
        let files = &source.contents.files;
        let mut begins = vec![0_usize; source.contents.chunks.len() + 1];
        let mut bases = Vec::with_capacity(files.len());
        let mut count = 0;
        for file in files {
            bases.push(count);
            count += file.parts.len();
            for part in &file.parts {
                begins[index(part.chunk) + 1] += 1;
            }
        }
        for at in 1..begins.len() {
            begins[at] += begins[at - 1];
        }
        let mut free = begins.clone();
        let mut parts = vec![(0, 0); count];
        for (number, file) in files.iter().enumerate() {
            for (within, part) in file.parts.iter().enumerate() {
                let at = &mut free[index(part.chunk)];
                parts[*at] = (
                    u32::try_from(number).expect("a list of files has less than 2^32 lines"),
                    u32::try_from(within).expect("a file has less than 2^32 parts"),
                );
                *at += 1;
            }
        }
        Self {
            source,
            place,
            parts,
            begins,
            crcs: (0..count).map(|_| AtomicU32::new(0)).collect(),
            bases,
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            written: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Takes chunk after chunk until there is none left.
    fn work(&self) -> Result<()> {
        let mut raw = Vec::with_capacity(index(u32::try_from(CHUNK.0).expect("4 MiB")));
        let mut present = Vec::new();
        let reused = self.place.reused();
        let mut decoder =
            Decoder::new().map_err(|error| Error::failed("could not begin to decompress").source(error))?;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.source.contents.chunks.len() || self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            let parts = &self.parts[self.begins[number]..self.begins[number + 1]];
            if parts.is_empty() {
                continue;
            }
            let chunk = &self.source.contents.chunks[number];
            if reused {
                self.look(parts, chunk, &mut present)?;
                if chunk.content.is_some_and(|content| Blake3::of(&present) == content) {
                    self.keep(parts, &present);
                    continue;
                }
            }
            let frame = self.source.frame(number)?;
            self.fetched.fetch_add(frame.len() as u64, Ordering::Relaxed);
            decoder
                .decode(chunk.codec, &frame, index(chunk.size), &mut raw)
                .map_err(|why| self.source.damaged_chunk(number, &format!("it {why}")))?;
            for (file, part) in parts {
                self.write(index(*file), index(*part), &raw, reused.then_some(&present))?;
            }
        }
    }

    /// Reads into `present` what the files have where the parts of a chunk belong, each file in its size and mode from now on.
    fn look(&self, parts: &[(u32, u32)], chunk: &Chunk, present: &mut Vec<u8>) -> Result<()> {
        present.clear();
        present.resize(index(chunk.size), 0);
        for (number, within) in parts {
            let file = &self.source.contents.files[index(*number)];
            if place::is_marker(&file.path) {
                continue;
            }
            let part = file.parts[index(*within)];
            let path = self.path(file);
            look_at(&path, file, part.at, *within == 0, &mut present[range(part)])
                .map_err(|error| could_not("read", &path, &error))?;
        }
        Ok(())
    }

    /// Takes a chunk as done whose bytes are there already.
    fn keep(&self, parts: &[(u32, u32)], present: &[u8]) {
        for (number, within) in parts {
            let (number, within) = (index(*number), index(*within));
            self.seen(number, within, &present[range(self.source.contents.files[number].parts[within])]);
        }
    }

    /// Notes the bytes of a part that are in their place now.
    fn seen(&self, number: usize, within: usize, bytes: &[u8]) {
        self.crcs[self.bases[number] + within].store(crc32c::crc32c(bytes), Ordering::Relaxed);
        self.done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// Writes one part of a file, or what of it differs from what is `present`.
    fn write(&self, number: usize, within: usize, raw: &[u8], present: Option<&Vec<u8>>) -> Result<()> {
        let file = &self.source.contents.files[number];
        let part = file.parts[within];
        let bytes = &raw[range(part)];
        if !place::is_marker(&file.path) {
            let path = self.path(file);
            let written = match present {
                Some(present) => write_difference(&path, file, part.at, bytes, &present[range(part)]),
                None => write_part(&path, file, part.at, bytes, within == 0),
            };
            let written = written.map_err(|error| could_not("write", &path, &error))?;
            self.written.fetch_add(written, Ordering::Relaxed);
        }
        self.seen(number, within, bytes);
        Ok(())
    }

    /// Returns where a file of the backup is written.
    fn path(&self, file: &File) -> PathBuf {
        self.place.path(if file.path == CONTROL { UNFINISHED_CONTROL } else { &file.path })
    }
}

/// Returns where a part is in the bytes of its chunk.
fn range(part: Part) -> std::ops::Range<usize> {
    index(part.from)..index(part.from) + index(part.length)
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("usize has at least 32 bits here")
}

/// Writes `bytes` at `at` into a file that was not there before. Returns how many bytes it wrote.
fn write_part(path: &Path, file: &File, at: u64, bytes: &[u8], first: bool) -> io::Result<u64> {
    let open = place::open_file(path, file.mode)?;
    if first {
        open.set_permissions(fs::Permissions::from_mode(file.mode))?;
    }
    if (at > 0 || (bytes.len() as u64) < file.size) && open.metadata()?.len() != file.size {
        open.set_len(file.size)?;
    }
    open.write_all_at(bytes, at)?;
    Ok(bytes.len() as u64)
}

/// Reads what a file has at `at`, made and cut to its size if it is not.
fn look_at(path: &Path, file: &File, at: u64, first: bool, present: &mut [u8]) -> io::Result<()> {
    let open = place::open_file(path, file.mode)?;
    if first {
        open.set_permissions(fs::Permissions::from_mode(file.mode))?;
    }
    if open.metadata()?.len() != file.size {
        open.set_len(file.size)?;
    }
    open.read_exact_at(present, at)
}

/// Writes what of `bytes` differs from what is `present`. Returns how many bytes it wrote.
fn write_difference(path: &Path, file: &File, at: u64, bytes: &[u8], present: &[u8]) -> io::Result<u64> {
    if bytes == present {
        return Ok(0);
    }
    let open = place::open_file(path, file.mode)?;
    let mut written = 0;
    for (index, (wanted, found)) in bytes.chunks(BLOCK).zip(present.chunks(BLOCK)).enumerate() {
        if wanted != found {
            open.write_all_at(wanted, at + (index * BLOCK) as u64)?;
            written += wanted.len() as u64;
        }
    }
    Ok(written)
}

/// Returns the ranges of a file that no part covers, as offset and length.
fn holes(file: &File) -> Vec<(u64, u64)> {
    let mut holes = Vec::new();
    let mut at = 0;
    for part in &file.parts {
        if part.at > at {
            holes.push((at, part.at - at));
        }
        at = part.at + u64::from(part.length);
    }
    if file.size > at {
        holes.push((at, file.size - at));
    }
    holes
}

/// Writes zeros where a file that was there before has something else and the backup has nothing.
fn empty_holes(place: &Place, file: &File) -> Result<()> {
    let holes = holes(file);
    if holes.is_empty() || place::is_marker(&file.path) {
        return Ok(());
    }
    let path = place.path(&file.path);
    (|| {
        let open = place::open_file(&path, file.mode)?;
        let mut found = vec![0_u8; BLOCK];
        for (begin, length) in holes {
            let mut at = begin;
            while at < begin + length {
                let step = (begin + length - at).min(BLOCK as u64);
                let block = &mut found[..usize::try_from(step).unwrap_or(BLOCK)];
                open.read_exact_at(block, at)?;
                if block.iter().any(|byte| *byte != 0) {
                    block.fill(0);
                    open.write_all_at(block, at)?;
                }
                at += step;
            }
        }
        Ok(())
    })()
    .map_err(|error: io::Error| could_not("write", &path, &error))
}

/// Holds every file to have the CRC that the list says.
fn check(source: &Source<'_>, filled: &Filled) -> Result<()> {
    for (number, file) in source.contents.files.iter().enumerate() {
        let base = filled.bases[number];
        if file.crc_of(filled.crcs[base..].iter().map(|crc| crc.load(Ordering::Relaxed))) != file.crc32c {
            return Err(Error::failed(format!(
                "backup {} is damaged: {} does not have the checksum that files.zst says",
                source.manifest.label, file.path
            ))
            .detail("Its chunks are what was stored. The copy is not complete and cannot start.")
            .hint("Restore from another backup: --backup LABEL. Please report this."));
        }
    }
    Ok(())
}

/// Writes what the copy has of its own: configuration, backup_label, the signal. Returns what the manifest says of it.
fn put_on(
    place: &Place,
    source: &Source<'_>,
    dressing: &Dressing,
    notes: &mut Vec<String>,
) -> Result<Vec<Listed>> {
    let users: Vec<&str> = dressing.users.iter().map(String::as_str).collect();
    let conf = place.read_text("postgresql.conf")?;
    if conf.is_none() {
        notes.push(
            "The backup has no postgresql.conf: the configuration of that server lies outside its data directory, as Debian has it. \
             The copy starts with PostgreSQL's defaults and pgherd's settings; copy what else you need."
                .to_owned(),
        );
    }
    let conf = dress::neutralised(&conf.unwrap_or_default(), &dressing.neutral);
    let auto = place.read_text(declared::AUTO_FILE)?.unwrap_or_default();
    let mut texts = vec![
        (declared::NODE_FILE, dressing.node.clone()),
        ("postgresql.conf", declared::with_includes(&conf)),
        (declared::AUTO_FILE, dress::neutralised(&auto, &dressing.neutral)),
        (
            "pg_hba.conf",
            declared::with_access_lines(
                &place.read_text("pg_hba.conf")?.unwrap_or_default(),
                &dressing.access,
            ),
        ),
        (
            "pg_ident.conf",
            declared::with_users(&place.read_text("pg_ident.conf")?.unwrap_or_default(), &users),
        ),
        ("backup_label", source.manifest.backup_label.clone()),
    ];
    match (&dressing.shared, place.read_text(declared::SHARED_FILE)?) {
        (Some(shared), _) => texts.push((declared::SHARED_FILE, shared.clone())),
        // It is included, so it must be there.
        (None, None) => texts.push((declared::SHARED_FILE, String::new())),
        (None, Some(_)) => {}
    }
    let mut own = Vec::new();
    for (name, text) in texts {
        own.push(place.write_own(name, text.as_bytes())?);
    }
    own.extend(place.markers());
    match dressing.signal {
        Some(Signal::Recovery) => drop(place.write_own("recovery.signal", b"")?),
        Some(Signal::Standby) => drop(place.write_own("standby.signal", b"")?),
        None => {}
    }
    Ok(own)
}

/// Writes PostgreSQL's own manifest of the copy, for `pg_verifybackup`.
fn write_manifest(place: &Place, source: &Source<'_>, own: Vec<Listed>) -> Result<()> {
    let manifest = &source.manifest;
    let mut files: Vec<Listed> = source
        .contents
        .files
        .iter()
        .filter(|file| !own.iter().any(|listed| listed.path == file.path))
        .map(|file| Listed {
            path: file.path.clone(),
            size: file.size,
            mtime: file.mtime,
            crc32c: file.crc32c,
        })
        .collect();
    files.extend(own);
    let wal = WalRange { timeline: manifest.timeline, start: manifest.start_lsn, end: manifest.stop_lsn };
    let text = backup_manifest::write(manifest.major(), manifest.system_identifier, &files, &[wal]);
    place.write_durably("backup_manifest", text.as_bytes())
}

#[cfg(test)]
mod tests;
