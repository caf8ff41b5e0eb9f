//! Copies a data directory into data objects, on the node itself, while its server runs.
//!
//! Threads, not tasks: the work is reading, checking, compressing and writing, and each worker does all of it with one buffer. Starts and
//! stops no backup, and writes no manifest: the controller does, who has the session.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, Mode, OFlags};

use super::chunk::{Frames, runs};
use super::noted::{Noted, Notes, Of};
use super::pages::{check_pages, fill};
use super::walk::{Found, Listing, PG_CONTROL, Walk, unread};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::{Copied, CopyForBackup, DamagedFile, Progress, Reporter};
use crate::pg::control_bytes::{self, ControlBytes};
use crate::pg::data_directory::tablespace_version_directory;
use crate::pg::page::BLOCK_SIZE;
use crate::pg::wal_file::WalFile;
use crate::repo::layout::{BackupKeys, ClusterKeys, SystemKeys};
use crate::repo::manifest::{self, Chunk, Contents, DataObject, Part, Tablespace};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Put, SharedRepo, Upload};
use crate::units::ByteCount;

/// What one chunk holds at most.
const CHUNK: usize = manifest::CHUNK.0 as usize;
/// A file of at least this size is read in ranges, a smaller one shares a chunk with its neighbours.
const LARGE: u64 = manifest::CHUNK.0;
/// What one worker takes of a large file at a time.
const RANGE: u64 = 32 << 20;
/// Level of zstd for the small things beside the chunks.
const LEVEL: i32 = 3;
/// More workers than this need more memory than they are worth, unless they are asked for.
const WORKERS: usize = 12;
const TELL: Duration = Duration::from_millis(250);
/// How often pg_control is read until its CRC is right.
const CONTROL_READS: u32 = 200;

/// Copies; see [`CopyForBackup`].
///
/// # Errors
/// When something cannot be read or stored. What was stored by then stays: the controller removes it.
pub fn run(request: &CopyForBackup, reporter: &Reporter) -> Result<Copied> {
    let repo = repo::open(&request.repository)?;
    let system = ClusterKeys::new(&request.cluster).system(request.system_identifier);
    let control = read_control(request)?.1;
    store_history(&repo, &system, request)?;
    let version_directory = tablespace_version_directory(request.version, control.catalog_version);
    let walk = Walk {
        root: &request.data_directory,
        tablespaces: &request.tablespaces,
        version_directory: &version_directory,
    };
    let mut listing = walk.list()?;
    listing.files.push(control_file(request)?);
    let keys = system.backup(&request.label);
    let noted = Noted::read(of(request, &repo, &keys))?;
    let copy = Copy::new(request, repo, keys, listing, noted);
    copy.all(reporter)?;
    copy.finish(system)
}

fn of<'a>(request: &'a CopyForBackup, repo: &'a SharedRepo, keys: &'a BackupKeys) -> Of<'a> {
    Of { repo: &**repo, keys, label: &request.label, system: request.system_identifier }
}

/// Stores the history of the timeline, which the archive lacks if it was switched on after the timeline began.
fn store_history(repo: &SharedRepo, system: &SystemKeys, request: &CopyForBackup) -> Result<()> {
    if request.timeline.as_u32() == 1 {
        return Ok(());
    }
    let file = WalFile::TimelineHistory(request.timeline);
    let name = file.to_string();
    let path = request.data_directory.join("pg_wal").join(&name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        // A standby that was made after the switch has it in the archive only.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unread(&format!("pg_wal/{name}"), &error)),
    };
    let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: request.system_identifier };
    let object = seal::seal(identity, &bytes, LEVEL)
        .map_err(|error| Error::failed(format!("could not compress {name}")).source(error))?;
    // One that is there came from the archiver.
    repo::wait(repo.create(&system.wal(file), &object))?;
    Ok(())
}

/// Reads pg_control until its CRC is right, and makes sure that it belongs to the cluster in which the backup was started.
fn read_control(request: &CopyForBackup) -> Result<(Vec<u8>, ControlBytes)> {
    let path = request.data_directory.join(PG_CONTROL);
    for _ in 0..CONTROL_READS {
        let mut bytes = Vec::with_capacity(control_bytes::SIZE);
        open(&path)
            .and_then(|file| file.take(control_bytes::SIZE as u64 * 2).read_to_end(&mut bytes))
            .map_err(|error| unread(PG_CONTROL, &error))?;
        if let Some(control) = ControlBytes::parse(&bytes) {
            belongs(request, &control)?;
            return Ok((bytes, control));
        }
        // The server is writing it.
        thread::sleep(Duration::from_millis(10));
    }
    Err(Error::failed(format!("{PG_CONTROL} of the data directory is damaged"))
        .detail("Its CRC is wrong, read again and again."))
}

/// Lists pg_control, the last file of all.
fn control_file(request: &CopyForBackup) -> Result<Found> {
    let path = request.data_directory.join(PG_CONTROL);
    let found = std::fs::symlink_metadata(path).map_err(|error| unread(PG_CONTROL, &error))?;
    Ok(Found {
        path: PG_CONTROL.to_owned(),
        real: None,
        size: found.size(),
        mode: found.mode() & 0o7777,
        mtime: found.mtime(),
        tablespace: None,
        segment: None,
    })
}

fn belongs(request: &CopyForBackup, control: &ControlBytes) -> Result<()> {
    let directory = request.data_directory.display();
    let found = if control.system_identifier != request.system_identifier {
        format!(
            "system identifier {}, the server has {}",
            control.system_identifier, request.system_identifier
        )
    } else if control.timeline != request.timeline {
        format!("timeline {}, the backup began on {}", control.timeline, request.timeline)
    } else if control.redo < request.start_lsn {
        format!("a checkpoint at {}, the backup begins at {}", control.redo, request.start_lsn)
    } else {
        return Ok(());
    };
    Err(Error::refused(format!("{directory} is not what the server that began the backup runs on"))
        .detail(format!("Its pg_control has {found}.")))
}

/// What one worker does in one go.
#[derive(Debug)]
enum Unit {
    /// A part of a large file.
    Range { file: usize, at: u64, length: u64 },
    /// Small files, by their numbers.
    Bundle { from: usize, to: usize },
}

/// What is known of a file's contents so far.
#[derive(Debug, Default)]
struct Content {
    parts: Vec<Part>,
    /// CRC-32C of ranges: `(at, length, crc)`.
    crcs: Vec<(u64, u64, u32)>,
    damaged: Vec<u32>,
    /// The size that it had when it was opened, where that is what counts.
    size: Option<u64>,
    vanished: bool,
}

struct Copy<'a> {
    request: &'a CopyForBackup,
    repo: SharedRepo,
    keys: BackupKeys,
    /// Its last file is pg_control.
    listing: Listing,
    contents: Vec<Mutex<Content>>,
    /// Numbers of files, small ones last, in the order of the listing.
    order: Vec<usize>,
    units: Vec<Unit>,
    next: AtomicUsize,
    /// What earlier runs of this backup have stored.
    noted: Noted,
    objects: AtomicU32,
    stored_objects: Mutex<Vec<DataObject>>,
    chunks: Mutex<Vec<Chunk>>,
    limit: Option<Limit>,
    total: u64,
    done: AtomicU64,
    stored: AtomicU64,
    /// Of which earlier runs had stored so much.
    taken_over: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    workers: usize,
}

impl<'a> Copy<'a> {
    fn new(
        request: &'a CopyForBackup,
        repo: SharedRepo,
        keys: BackupKeys,
        listing: Listing,
        noted: Noted,
    ) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers = match usize::try_from(request.workers).unwrap_or(usize::MAX) {
            0 => cores.min(WORKERS),
            asked => asked,
        };
        let (order, units) = plan(&listing.files[..listing.files.len() - 1]);
        Self {
            request,
            repo,
            keys,
            contents: listing.files.iter().map(|_| Mutex::default()).collect(),
            order,
            units,
            next: AtomicUsize::new(0),
            objects: AtomicU32::new(noted.base()),
            noted,
            stored_objects: Mutex::default(),
            chunks: Mutex::default(),
            limit: request.rate_limit.map(Limit::new),
            total: listing.files.iter().map(|file| file.size).sum(),
            done: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            taken_over: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::default(),
            workers,
            listing,
        }
    }

    /// Copies every file, pg_control last.
    fn all(&self, reporter: &Reporter) -> Result<()> {
        thread::scope(|scope| {
            // An object is synced while its worker fills the next one; one waits, so that memory stays bounded.
            let (finish, unfinished) = mpsc::sync_channel::<Object>(1);
            let finisher = scope.spawn(move || {
                let of = of(self.request, &self.repo, &self.keys);
                let mut notes = Notes::new(of, self.noted.base());
                for object in unfinished {
                    if let Err(error) = self.finish_object(object, &mut notes) {
                        self.fail(error);
                    }
                }
                // A backup that ends is not gone on with.
                if self.stopped()
                    && let Err(error) = notes.write()
                {
                    tracing::warn!(%error, "could not note what the backup had stored");
                }
            });
            let (ended, ends) = mpsc::channel::<()>();
            for _ in 0..self.workers {
                let (finish, ended) = (finish.clone(), ended.clone());
                scope.spawn(move || {
                    if let Err(error) = Worker::new(self, finish).and_then(Worker::run) {
                        self.fail(error);
                    }
                    drop(ended);
                });
            }
            drop(ended);
            while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(TELL) {
                self.tell(reporter);
            }
            if !self.stopped()
                && let Err(error) = Worker::new(self, finish.clone()).and_then(Worker::run_control)
            {
                self.fail(error);
            }
            drop(finish);
            // It may sync for long: somebody must go on telling that we live.
            while !finisher.is_finished() {
                self.tell(reporter);
                thread::sleep(TELL / 10);
            }
        });
        match lock(&self.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn tell(&self, reporter: &Reporter) {
        reporter.progress(Progress {
            done: ByteCount(self.done.load(Ordering::Relaxed)),
            total: ByteCount(self.total),
            stored: ByteCount(self.stored.load(Ordering::Relaxed)),
        });
        if reporter.is_alone() {
            self.fail(Error::new(ErrorKind::Interrupted, "nobody waits for this backup any more"));
        }
    }

    fn fail(&self, error: Error) {
        self.stop.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(error);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn finish_object(&self, object: Object, notes: &mut Notes<'_>) -> Result<()> {
        if self.stopped() {
            return Ok(());
        }
        repo::wait(object.upload.finish())?;
        let blake3 = Blake3::from_bytes(*object.hasher.finalize().as_bytes());
        let stored = DataObject { number: Some(object.number), size: ByteCount(object.size), blake3 };
        lock(&self.stored_objects).push(stored);
        notes.take(stored, object.chunks)
    }

    /// Returns the data objects that the backup has, and removes those of earlier runs that it has nothing in.
    fn settle_objects(&self) -> Result<Vec<DataObject>> {
        let mut objects = std::mem::take(&mut *lock(&self.stored_objects));
        let chunks = lock(&self.chunks);
        objects.extend(
            self.noted.used(&chunks).map(|(number, object)| DataObject { number: Some(number), ..object }),
        );
        drop(chunks);
        objects.sort_by_key(|object| object.number);
        if self.noted.base() > 0 {
            let used: BTreeSet<Option<u32>> = objects.iter().map(|object| object.number).collect();
            for listed in repo::wait(self.repo.list_all(self.keys.folder()))? {
                let number = self.keys.data_number(&listed.key);
                if number.is_some() && !used.contains(&number) {
                    repo::wait(self.repo.remove(&listed.key))?;
                }
            }
        }
        // Each says its number only where the line before it does not.
        let mut before = Some(0);
        for object in &mut objects {
            let number = object.number;
            if number == before.map(|before| before + 1) {
                object.number = None;
            }
            before = number;
        }
        Ok(objects)
    }

    /// Writes the list of files.
    fn finish(self, system: SystemKeys) -> Result<Copied> {
        let files_key = self.keys.files();
        let mut contents = Contents {
            objects: self.settle_objects()?,
            chunks: self.chunks.into_inner().unwrap_or_else(PoisonError::into_inner),
            dirs: self.listing.dirs,
            links: self.listing.links,
            files: Vec::with_capacity(self.listing.files.len()),
        };
        let mut tablespaces: Vec<Tablespace> = (self.request.tablespaces.iter())
            .map(|declared| Tablespace {
                oid: declared.oid,
                location: declared.location.clone(),
                size: ByteCount(0),
            })
            .collect();
        let mut damaged = Vec::new();
        for (found, content) in self.listing.files.into_iter().zip(self.contents) {
            let content = content.into_inner().unwrap_or_else(PoisonError::into_inner);
            if content.vanished {
                continue;
            }
            if let Some(number) = found.tablespace {
                tablespaces[number].size.0 += content.size.unwrap_or(found.size);
            }
            let file = content.file(found);
            if !file.damaged_blocks.is_empty() {
                damaged.push(DamagedFile { path: file.path.clone(), blocks: file.damaged_blocks.clone() });
            }
            contents.files.push(file);
        }
        let size = contents.files.iter().map(|file| file.size).sum();
        let stored = contents.objects.iter().map(|object| object.size.0).sum();
        let text = contents.write();
        let name = self.request.label.as_str();
        let identity = Identity { kind: Kind::Files, name, system_identifier: system.system() };
        let sealed = seal::seal(identity, &text, LEVEL)
            .map_err(|error| Error::failed("could not compress the list of files").source(error))?;
        if repo::wait(self.repo.create(&files_key, &sealed))? == Put::Refused {
            return Err(Error::failed(format!("there is already a backup {name}")));
        }
        Ok(Copied {
            files: contents.files.len() as u64,
            directories: contents.dirs.len() as u64,
            size: ByteCount(size),
            stored: ByteCount(stored),
            objects: u32::try_from(contents.objects.len()).unwrap_or(u32::MAX),
            damaged_pages: damaged.iter().map(|file| file.blocks.len() as u64).sum(),
            damaged,
            files_blake3: Blake3::of(&sealed),
            files_stored: ByteCount(sealed.len() as u64),
            tablespaces,
            notes: self.listing.notes,
            workers: u32::try_from(self.workers).unwrap_or(u32::MAX),
            taken_over: ByteCount(self.taken_over.into_inner()),
        })
    }
}

impl Content {
    fn file(mut self, found: Found) -> manifest::File {
        self.parts.sort_unstable_by_key(|part| part.at);
        self.crcs.sort_unstable_by_key(|(at, ..)| *at);
        self.damaged.sort_unstable();
        let crc32c = self.crcs.iter().fold(0, |crc, (_, length, next)| {
            crc32c::crc32c_combine(crc, *next, usize::try_from(*length).expect("this is a 64-bit program"))
        });
        manifest::File {
            path: found.path,
            mode: found.mode,
            size: self.size.unwrap_or(found.size),
            mtime: found.mtime,
            crc32c,
            parts: self.parts,
            damaged_blocks: self.damaged,
        }
    }
}

/// Divides the files into units: large ones in ranges first, then small ones side by side.
fn plan(files: &[Found]) -> (Vec<usize>, Vec<Unit>) {
    let mut units = Vec::new();
    let mut small = Vec::new();
    for (number, file) in files.iter().enumerate() {
        if file.size < LARGE {
            small.push(number);
            continue;
        }
        let ranges = (0..file.size).step_by(usize::try_from(RANGE).expect("some MiB"));
        units.extend(ranges.map(|at| Unit::Range { file: number, at, length: RANGE.min(file.size - at) }));
    }
    let mut from = 0;
    let mut size = 0;
    for (index, number) in small.iter().enumerate() {
        let more = files[*number].size;
        if size + more > LARGE && index > from {
            units.push(Unit::Bundle { from, to: index });
            (from, size) = (index, 0);
        }
        size += more;
        // Where a bundle ends is a matter of names as well: a file that has grown or gone since moves only the bundles next to it.
        if size >= LARGE / 4 && crc32c::crc32c(files[*number].path.as_bytes()).is_multiple_of(32) {
            units.push(Unit::Bundle { from, to: index + 1 });
            (from, size) = (index + 1, 0);
        }
    }
    if from < small.len() {
        units.push(Unit::Bundle { from, to: small.len() });
    }
    (small, units)
}

/// A data object that is being written.
struct Object {
    number: u32,
    upload: Box<dyn Upload>,
    size: u64,
    hasher: blake3::Hasher,
    chunks: Vec<Chunk>,
}

/// A part of a file that lies in the chunk that is being filled.
struct Pending {
    file: usize,
    at: u64,
    length: u32,
    from: u32,
}

struct Worker<'a> {
    copy: &'a Copy<'a>,
    finish: SyncSender<Object>,
    object: Option<Object>,
    frames: Frames,
    /// The bytes of the chunk that is being filled.
    raw: Vec<u8>,
    pending: Vec<Pending>,
    frame: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(copy: &'a Copy<'a>, finish: SyncSender<Object>) -> Result<Self> {
        let frames = Frames::new(copy.request.compression).map_err(no_memory)?;
        let raw = Vec::with_capacity(CHUNK);
        Ok(Self { copy, finish, object: None, frames, raw, pending: Vec::new(), frame: Vec::new() })
    }

    fn run(mut self) -> Result<()> {
        while !self.copy.stopped() {
            let Some(unit) = self.copy.units.get(self.copy.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            match unit {
                Unit::Range { file, at, length } => self.range(*file, *at, *length)?,
                Unit::Bundle { from, to } => {
                    for file in &self.copy.order[*from..*to] {
                        self.small(*file)?;
                    }
                    self.store()?;
                }
            }
        }
        self.end_object();
        Ok(())
    }

    /// Copies pg_control, the last file of the list.
    fn run_control(mut self) -> Result<()> {
        let (bytes, _) = read_control(self.copy.request)?;
        let number = self.copy.listing.files.len() - 1;
        let crc = crc32c::crc32c(&bytes);
        let mut content = lock(&self.copy.contents[number]);
        content.size = Some(bytes.len() as u64);
        content.crcs.push((0, bytes.len() as u64, crc));
        drop(content);
        self.raw.extend_from_slice(&bytes);
        self.keep(number, 0, 0);
        self.store()?;
        self.end_object();
        Ok(())
    }

    /// Copies a range of a large file, a chunk at a time.
    fn range(&mut self, number: usize, at: u64, length: u64) -> Result<()> {
        let found = &self.copy.listing.files[number];
        let Some(file) = self.open(number)? else { return Ok(()) };
        let end = at + length;
        // The kernel reads on while we compress.
        rustix::fs::fadvise(&file, at, std::num::NonZeroU64::new(length), Advice::WillNeed).ok();
        let mut at = at;
        while at < end && !self.copy.stopped() {
            let length = LARGE.min(end - at);
            self.read(&file, number, at, usize::try_from(length).expect("a chunk"), found)?;
            self.keep(number, at, 0);
            self.store()?;
            at += length;
        }
        Ok(())
    }

    /// Adds a small file to the chunk that is being filled.
    fn small(&mut self, number: usize) -> Result<()> {
        let found = &self.copy.listing.files[number];
        let Some(file) = self.open(number)? else { return Ok(()) };
        // What is no relation is replaced as a whole, and then its size of before is the size of another file.
        let size = match found.segment {
            Some(_) => found.size,
            None => {
                let now = file.metadata().map_err(|error| unread(&found.path, &error))?.size();
                if now <= LARGE { now } else { found.size }
            }
        };
        if size != found.size {
            lock(&self.copy.contents[number]).size = Some(size);
        }
        let length = usize::try_from(size).expect("a small file");
        if self.raw.len() + length > CHUNK {
            self.store()?;
        }
        let from = self.raw.len();
        self.read(&file, number, 0, length, found)?;
        self.keep(number, 0, from);
        Ok(())
    }

    /// Opens a file; `None` if it has vanished.
    fn open(&self, number: usize) -> Result<Option<File>> {
        let found = &self.copy.listing.files[number];
        match open(&found.real(&self.copy.request.data_directory)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                lock(&self.copy.contents[number]).vanished = true;
                Ok(None)
            }
            Err(error) => Err(unread(&found.path, &error)),
        }
    }

    /// Appends bytes of a file to the chunk that is being filled: checked, and with zeros where the file has shrunk.
    fn read(&mut self, file: &File, number: usize, at: u64, length: usize, found: &Found) -> Result<()> {
        let from = self.raw.len();
        if let Some(limit) = &self.copy.limit {
            limit.take(length as u64, &self.copy.stop);
        }
        self.raw.resize(from + length, 0);
        let bytes = &mut self.raw[from..];
        fill(file, bytes, at).map_err(|error| unread(&found.path, &error))?;
        let mut damaged = Vec::new();
        if let (Some(segment), true) = (found.segment, self.copy.request.data_checksums) {
            let first = segment * self.copy.request.blocks_a_file
                + u32::try_from(at / BLOCK_SIZE as u64).expect("a segment has 2^32 blocks at most");
            damaged = check_pages(file, bytes, at, first, self.copy.request.start_lsn);
        }
        let crc = crc32c::crc32c(bytes);
        let mut content = lock(&self.copy.contents[number]);
        content.crcs.push((at, length as u64, crc));
        content.damaged.extend(damaged);
        self.copy.done.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps of the bytes from `from` on what is not a hole, as parts of a file from `at` on.
    fn keep(&mut self, file: usize, at: u64, from: usize) {
        let found = runs(&self.raw[from..]);
        let mut end = from;
        for (begin, length) in found {
            self.raw.copy_within(from + begin..from + begin + length, end);
            let number = |value: usize| u32::try_from(value).expect("a chunk holds some MiB");
            self.pending.push(Pending {
                file,
                at: at + begin as u64,
                length: number(length),
                from: number(end),
            });
            end += length;
        }
        self.raw.truncate(end);
    }

    /// Stores the chunk that was filled.
    fn store(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            self.pending.clear();
            return Ok(());
        }
        let content = Blake3::of(&self.raw);
        let chunk = match self.copy.noted.chunk(&content) {
            Some(chunk) => {
                self.copy.taken_over.fetch_add(u64::from(chunk.stored), Ordering::Relaxed);
                chunk.clone()
            }
            None => self.store_new(content)?,
        };
        self.copy.stored.fetch_add(u64::from(chunk.stored), Ordering::Relaxed);
        let chunk = {
            let mut chunks = lock(&self.copy.chunks);
            chunks.push(chunk);
            u32::try_from(chunks.len() - 1).map_err(|_| Error::failed("the cluster has too many chunks"))?
        };
        for Pending { file, at, length, from } in self.pending.drain(..) {
            lock(&self.copy.contents[file]).parts.push(Part { at, length, chunk, from });
        }
        self.raw.clear();
        Ok(())
    }

    /// Compresses the chunk that was filled and appends it to the data object that is being written.
    fn store_new(&mut self, content: Blake3) -> Result<Chunk> {
        self.frames.frame(&self.raw, &mut self.frame).map_err(no_memory)?;
        let mut object = match self.object.take() {
            Some(object) => object,
            None => self.begin_object()?,
        };
        let chunk = Chunk {
            object: object.number,
            offset: object.size,
            stored: u32::try_from(self.frame.len()).expect("a chunk is some MiB"),
            size: u32::try_from(self.raw.len()).expect("a chunk is some MiB"),
            blake3: Blake3::of(&self.frame),
            backup: None,
            codec: self.copy.request.compression.codec(),
            content: Some(content),
        };
        repo::wait(object.upload.write(&self.frame))?;
        object.hasher.update(&self.frame);
        object.size += u64::from(chunk.stored);
        object.chunks.push(chunk.clone());
        let full = object.size >= manifest::OBJECT.0;
        self.object = Some(object);
        if full {
            self.end_object();
        }
        Ok(chunk)
    }

    fn begin_object(&self) -> Result<Object> {
        let number = self.copy.objects.fetch_add(1, Ordering::Relaxed) + 1;
        let upload = repo::wait(self.copy.repo.upload(&self.copy.keys.data(number)))?;
        Ok(Object { number, upload, size: 0, hasher: blake3::Hasher::new(), chunks: Vec::new() })
    }

    fn end_object(&mut self) {
        if let Some(object) = self.object.take() {
            // The finisher ends only after all workers.
            self.finish.send(object).expect("the finisher waits for all workers");
        }
    }
}

/// Opens a file, never through a link in its place.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Lets so many bytes a second through.
struct Limit {
    rate: f64,
    next: Mutex<Instant>,
}

impl Limit {
    fn new(rate: ByteCount) -> Self {
        Self { rate: rate.0.max(1) as f64, next: Mutex::new(Instant::now()) }
    }

    fn take(&self, bytes: u64, stop: &AtomicBool) {
        let from = {
            let mut next = lock(&self.next);
            let from = (*next).max(Instant::now());
            *next = from + Duration::from_secs_f64(bytes as f64 / self.rate);
            from
        };
        while !stop.load(Ordering::Relaxed) {
            let left = from.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(TELL));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_memory(error: io::Error) -> Error {
    Error::failed("could not compress").source(error)
}
