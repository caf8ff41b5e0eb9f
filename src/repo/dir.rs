//! A repository in a directory: of a local disk, or of a network file system that knows `rename` and `flock`.
//!
//! An object is written to a temporary file in `.tmp`, synced, renamed to its name, and the directory is synced: it is there whole and
//! durably, or not at all. Every call blocks and is done at its first poll, so it needs no tokio. A root without `repository.json` is
//! a disk that is not mounted: nothing is ever made there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::future::ready;
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use super::about::About;
use super::seal::Blake3;
use super::{
    BoxFuture, Key, Level, Listed, Put, Repo, RepoError, RepoErrorKind, Result, Upload, Version, Versioned,
    layout,
};
use crate::units::ByteCount;

/// Where unfinished objects are.
pub const UNFINISHED: &str = ".tmp";
/// Held while an object is compared and replaced, or removed.
pub const LOCK: &str = ".lock";
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;
/// Room for so much is made before a range is read, and for more while it is.
const PIECE: u64 = 8 << 20;
/// A writer locks its temporary file as soon as it has made it; a younger one without a lock may be between the two.
const YOUNG: Duration = Duration::from_secs(60);
/// Whoever holds [`LOCK`] needs it for a few calls to the file system.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A repository in a directory.
#[derive(Debug, Clone)]
pub struct DirRepo(Arc<Root>);

#[derive(Debug)]
struct Root {
    path: PathBuf,
    url: String,
}

impl DirRepo {
    /// Opens the repository in `root`.
    ///
    /// # Errors
    /// [`RepoErrorKind::Missing`] when there is none, [`RepoErrorKind::Damaged`] when `repository.json` is not what we wrote.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self::read(root)?.0)
    }

    /// Opens it, and returns what it says of itself.
    ///
    /// # Errors
    /// As [`DirRepo::open`].
    pub fn read(root: &Path) -> Result<(Self, About)> {
        let root = Root { path: root.to_owned(), url: format!("file://{}", root.display()) };
        let about = root.path.join(layout::REPOSITORY);
        let bytes = match fs::read(&about) {
            Ok(bytes) => bytes,
            Err(error) => return Err(root.failed("read repository.json", &error)),
        };
        let about = About::read(&bytes)
            .map_err(|error| root.error(RepoErrorKind::Damaged, "read repository.json", error.to_string()))?;
        Ok((Self(Arc::new(root)), about))
    }

    /// Makes the repository in `root` unless it is there, and opens it. Makes `root` too, but not what is above it.
    ///
    /// # Errors
    /// When `root` holds something that is no repository, or cannot be written.
    pub fn create(root: &Path) -> Result<Self> {
        Self::create_saying(root, |about| about)
    }

    /// The same of a repository whose objects are encrypted.
    ///
    /// # Errors
    /// As [`DirRepo::create`].
    pub fn create_encrypted(root: &Path) -> Result<Self> {
        Self::create_saying(root, About::encrypted)
    }

    fn create_saying(root: &Path, what: fn(About) -> About) -> Result<Self> {
        let made = Root { path: root.to_owned(), url: format!("file://{}", root.display()) };
        let failed = |error: io::Error| made.error(kind(&error), "make repository.json", error.to_string());
        let names = made.make().map_err(failed)?;
        if !names.iter().any(|name| name == layout::REPOSITORY) {
            let ours = [UNFINISHED, LOCK, "lost+found"];
            if let Some(foreign) = names.iter().find(|name| !ours.contains(&name.as_str())) {
                let why = format!("the directory holds {foreign:?}, so it is not a new repository");
                return Err(made.error(RepoErrorKind::Other, "make repository.json", why));
            }
            made.write_about(what).map_err(failed)?;
        }
        Self::open(root)
    }
}

impl Root {
    /// Makes the root unless it is there, and returns what is in it.
    fn make(&self) -> io::Result<Vec<String>> {
        make_directory(&self.path)?;
        if let Some(above) = self.path.parent() {
            sync_directory(above)?;
        }
        let names = fs::read_dir(&self.path)?;
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// Writes `repository.json`, unless somebody else was faster.
    fn write_about(&self, what: fn(About) -> About) -> io::Result<()> {
        let about = what(About::new(Timestamp::now())?);
        let mut unfinished = self.begin_file()?;
        unfinished.file.write_all(&about.write())?;
        unfinished.file.sync_all()?;
        unfinished.rename_new(&self.path.join(layout::REPOSITORY))?;
        sync_directory(&self.path)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.path.join(key.as_str())
    }

    fn error(&self, kind: RepoErrorKind, doing: impl Into<String>, why: impl Into<String>) -> RepoError {
        RepoError { kind, url: self.url.clone(), doing: doing.into(), why: why.into() }
    }

    /// Turns what the file system says into an error; of what is not found it says whether the repository is there at all.
    fn failed(&self, doing: &str, error: &io::Error) -> RepoError {
        if error.kind() == ErrorKind::NotFound
            && let Err(gone) = self.there(doing)
        {
            return gone;
        }
        self.error(kind(error), doing, error.to_string())
    }

    /// Proves that the repository is there. What is not found in one that is not there is not absent.
    fn there(&self, doing: &str) -> Result<()> {
        match fs::symlink_metadata(self.path.join(layout::REPOSITORY)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let root = self.path.display();
                let why = format!("there is no repository.json in {root}: its disk may not be mounted");
                Err(self.error(RepoErrorKind::Missing, doing, why))
            }
            Err(error) => Err(self.error(kind(&error), doing, error.to_string())),
        }
    }

    /// Turns the outcome of reading `doing` into absent or failed.
    fn read<T>(&self, doing: &str, outcome: io::Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.there(doing).map(|()| None),
            Err(error) => Err(self.failed(doing, &error)),
        }
    }

    /// Begins an object.
    ///
    /// The repository is proven to be there once more when the file is open: an open file keeps its disk mounted.
    fn begin(&self, doing: &str) -> Result<Unfinished> {
        self.there(doing)?;
        let unfinished = self.begin_file().map_err(|error| self.failed(doing, &error))?;
        self.there(doing)?;
        Ok(unfinished)
    }

    /// Begins a temporary file, and removes those of writers that were killed.
    fn begin_file(&self) -> io::Result<Unfinished> {
        let folder = self.path.join(UNFINISHED);
        make_directory(&folder)?;
        remove_abandoned(&folder)?;
        let path = folder.join(format!("{:032x}", chance()?));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        let unfinished = Unfinished { file, path: Some(path) };
        // As long as it is locked its writer lives. Nobody else can hold the lock of a file that is this new, but whoever looks.
        rustix::fs::flock(&unfinished.file, FlockOperation::LockShared)?;
        // The umask of PostgreSQL's children is 0077.
        unfinished.file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        Ok(unfinished)
    }

    /// Writes `bytes` to a temporary file that is synced.
    fn write(&self, bytes: &[u8], doing: &str) -> Result<Unfinished> {
        let mut unfinished = self.begin(doing)?;
        let written = unfinished.file.write_all(bytes).and_then(|()| unfinished.file.sync_all());
        written.map(|()| unfinished).map_err(|error| self.failed(doing, &error))
    }

    /// Gives a synced temporary file its name by `put`, with the directories above it, durably.
    ///
    /// Whoever removes the last object of a directory removes the directory, at any moment of this.
    fn place<T>(&self, key: &Key, doing: &str, mut put: impl FnMut(&Path) -> io::Result<T>) -> Result<T> {
        let target = self.path(key);
        let mut tries = 0;
        loop {
            let parent = self.make_parents(key);
            let outcome = parent.and_then(|parent| Ok((put(&target)?, parent)));
            match outcome {
                Ok((outcome, parent)) => {
                    return match sync_directory(&parent) {
                        // Somebody has removed the object, and the directory with it.
                        Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(doing, &error)),
                        _ => Ok(outcome),
                    };
                }
                Err(error) if error.kind() == ErrorKind::NotFound && tries < 100 => {
                    self.there(doing)?;
                    tries += 1;
                }
                Err(error) => return Err(self.failed(doing, &error)),
            }
        }
    }

    /// Makes the directories of an object below the root and returns the last one, whose way from the root is durable.
    ///
    /// A directory that holds something was entered durably in the one above it before that something was put into it. So only of
    /// an empty one this is not known: whoever made it may have been killed.
    fn make_parents(&self, key: &Key) -> io::Result<PathBuf> {
        let mut directory = self.path.clone();
        let mut parts: Vec<&str> = key.as_str().split('/').collect();
        parts.pop();
        for part in parts {
            let above = directory.clone();
            directory.push(part);
            let empty = match fs::read_dir(&directory) {
                Ok(mut entries) => entries.next().transpose()?.is_none(),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_directory(&directory)?;
                    true
                }
                Err(error) => return Err(error),
            };
            if empty {
                sync_directory(&above)?;
            }
        }
        Ok(directory)
    }

    /// Waits for the lock under which objects are compared and replaced.
    fn lock(&self, doing: &str) -> Result<File> {
        let path = self.path.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(|error| self.failed(doing, &error))?;
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(Errno::WOULDBLOCK) => {
                    let why = format!("another process has held {} for {LOCK_PATIENCE:?}", path.display());
                    return Err(self.error(RepoErrorKind::Passing, doing, why));
                }
                Err(error) => return Err(self.failed(doing, &error.into())),
            }
        }
    }

    fn read_whole(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        self.read(&format!("read {key}"), fs::read(self.path(key)))
    }

    fn read_versioned(&self, key: &Key) -> Result<Option<Versioned>> {
        let bytes = self.read_whole(key)?;
        Ok(bytes.map(|bytes| {
            let version = version(&bytes);
            (bytes, version)
        }))
    }

    fn read_range(&self, key: &Key, offset: u64, length: u64) -> Result<Option<Vec<u8>>> {
        let outcome = File::open(self.path(key)).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(usize::try_from(length.min(PIECE)).unwrap_or(0));
            file.take(length).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        self.read(&format!("read {key}"), outcome)
    }

    fn create(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let doing = format!("store {key}");
        let mut unfinished = self.write(bytes, &doing)?;
        // Where an object stands in the way, its writer may have been killed before it synced the directory: `place` does.
        self.place(key, &doing, |target| unfinished.rename_new(target))
    }

    fn replace_if(&self, key: &Key, bytes: &[u8], expected: &Version) -> Result<Put> {
        let doing = format!("replace {key}");
        let mut unfinished = self.write(bytes, &doing)?;
        let _lock = self.lock(&doing)?;
        match self.read_whole(key)? {
            Some(found) if version(&found) == *expected => {
                self.place(key, &doing, |target| unfinished.rename(target)).map(|()| Put::Stored)
            }
            _ => Ok(Put::Refused),
        }
    }

    fn store(&self, key: &Key, bytes: &[u8]) -> Result<()> {
        let doing = format!("store {key}");
        let unfinished = self.write(bytes, &doing)?;
        self.replace(key, unfinished, &doing)
    }

    fn replace(&self, key: &Key, mut unfinished: Unfinished, doing: &str) -> Result<()> {
        let _lock = self.lock(doing)?;
        self.place(key, doing, |target| unfinished.rename(target))
    }

    fn list(&self, folder: Option<&Key>) -> Result<Level> {
        let (path, doing) = match folder {
            Some(folder) => (self.path(folder), format!("list {folder}")),
            None => (self.path.clone(), "list the clusters".to_owned()),
        };
        let mut level = Level::default();
        let outcome = fs::read_dir(path).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                let Some(key) = key_of(folder, &entry) else { continue };
                // Follows a link: whole clusters may live on another disk, and one that was removed meanwhile is none.
                let Some(found) = absent_is_none(fs::metadata(entry.path()))? else { continue };
                if found.is_dir() {
                    level.folders.push(key.name().to_owned());
                } else if found.is_file() {
                    level.objects.push(listed(key, &found)?);
                }
            }
            Ok(())
        });
        self.read(&doing, outcome)?;
        // An empty directory where a disk is not mounted looks like an empty repository.
        self.there(&doing)?;
        level.objects.sort_by(|a, b| a.key.cmp(&b.key));
        level.folders.sort();
        Ok(level)
    }

    fn list_all(&self, folder: &Key) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(folder) = folders.pop() {
            let level = self.list(Some(&folder))?;
            found.extend(level.objects);
            folders.extend(level.folders.iter().filter_map(|name| folder.join(name).ok()));
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn remove(&self, key: &Key) -> Result<bool> {
        let doing = format!("remove {key}");
        self.there(&doing)?;
        let _lock = self.lock(&doing)?;
        let path = self.path(key);
        if self.read(&doing, fs::remove_file(&path))?.is_none() {
            return Ok(false);
        }
        self.sync_emptied(&path).map_err(|error| self.failed(&doing, &error))?;
        Ok(true)
    }

    /// Makes a removal durable, and removes the directories that it emptied.
    fn sync_emptied(&self, removed: &Path) -> io::Result<()> {
        let mut directory = removed.parent();
        while let Some(emptied) = directory.filter(|directory| *directory != self.path) {
            match fs::remove_dir(emptied) {
                Ok(()) => directory = emptied.parent(),
                // Another one has put something into it, or has removed it.
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => break,
                Err(error) if error.kind() == ErrorKind::NotFound => directory = emptied.parent(),
                // A cluster's folder may be a link, or a mounted disk.
                Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::ResourceBusy) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        directory.map_or(Ok(()), |directory| absent_is_none(sync_directory(directory)).map(|_| ()))
    }

    fn free_space(&self) -> Result<Option<ByteCount>> {
        const DOING: &str = "see how much room is left";
        self.there(DOING)?;
        let found =
            rustix::fs::statvfs(&self.path).map_err(|error| self.failed(DOING, &io::Error::from(error)))?;
        Ok(Some(ByteCount(found.f_bavail.saturating_mul(found.f_frsize))))
    }
}

/// A temporary file; removed when it is dropped without having been given a name.
#[derive(Debug)]
struct Unfinished {
    file: File,
    path: Option<PathBuf>,
}

impl Unfinished {
    fn temporary(&self) -> io::Result<&Path> {
        self.path.as_deref().ok_or_else(|| io::Error::other("the object has its name already"))
    }

    /// Renames unless there is a file of that name.
    fn rename_new(&mut self, target: &Path) -> io::Result<Put> {
        let path = self.temporary()?;
        match rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.path = None;
                Ok(Put::Stored)
            }
            Err(Errno::EXIST) => Ok(Put::Refused),
            // A file system without it, such as NFS, has hard links: the temporary name goes when this is dropped.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match fs::hard_link(path, target) {
                Ok(()) => Ok(Put::Stored),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Refused),
                Err(error) => Err(error),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn rename(&mut self, target: &Path) -> io::Result<()> {
        fs::rename(self.temporary()?, target)?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What stays behind is removed by a later writer.
            fs::remove_file(path).ok();
        }
    }
}

/// An upload into a directory.
struct DirUpload {
    root: Arc<Root>,
    key: Key,
    unfinished: Unfinished,
}

impl Upload for DirUpload {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let outcome = self.unfinished.file.write_all(bytes);
        Box::pin(ready(outcome.map_err(|error| self.root.failed(&format!("store {}", self.key), &error))))
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        let Self { root, key, unfinished } = *self;
        let doing = format!("store {key}");
        let synced = unfinished.file.sync_all().map_err(|error| root.failed(&doing, &error));
        let outcome =
            synced.and_then(|()| root.there(&doing)).and_then(|()| root.replace(&key, unfinished, &doing));
        Box::pin(ready(outcome))
    }
}

impl Repo for DirRepo {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(ready(self.0.read_whole(key)))
    }

    fn read_versioned<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>>> {
        Box::pin(ready(self.0.read_versioned(key)))
    }

    fn read_range<'a>(
        &'a self,
        key: &'a Key,
        offset: u64,
        length: u64,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(ready(self.0.read_range(key, offset, length)))
    }

    fn create<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<Put>> {
        Box::pin(ready(self.0.create(key, bytes)))
    }

    fn replace_if<'a>(
        &'a self,
        key: &'a Key,
        bytes: &'a [u8],
        version: &'a Version,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(ready(self.0.replace_if(key, bytes, version)))
    }

    fn store<'a>(&'a self, key: &'a Key, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(self.0.store(key, bytes)))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Box<dyn Upload>>> {
        let begun = self.0.begin(&format!("store {key}"));
        let upload = |unfinished| DirUpload { root: self.0.clone(), key: key.clone(), unfinished };
        Box::pin(ready(begun.map(|unfinished| Box::new(upload(unfinished)) as Box<dyn Upload>)))
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> BoxFuture<'a, Result<Level>> {
        Box::pin(ready(self.0.list(folder)))
    }

    fn list_all<'a>(&'a self, folder: &'a Key) -> BoxFuture<'a, Result<Vec<Listed>>> {
        Box::pin(ready(self.0.list_all(folder)))
    }

    fn remove<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool>> {
        Box::pin(ready(self.0.remove(key)))
    }

    fn free_space<'a>(&'a self) -> BoxFuture<'a, Result<Option<ByteCount>>> {
        Box::pin(ready(self.0.free_space()))
    }
}

/// What this backend tells contents apart by.
fn version(bytes: &[u8]) -> Version {
    Version(Blake3::of(bytes).to_string())
}

fn kind(error: &io::Error) -> RepoErrorKind {
    // What a network file system says while its server is away.
    const PASSING: [ErrorKind; 8] = [
        ErrorKind::Interrupted,
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::StaleNetworkFileHandle,
        ErrorKind::NotConnected,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
        ErrorKind::NetworkDown,
    ];
    let found = error.kind();
    if matches!(found, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        RepoErrorKind::Full
    } else if matches!(found, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) {
        RepoErrorKind::Denied
    } else if PASSING.contains(&found) {
        RepoErrorKind::Passing
    } else {
        RepoErrorKind::Other
    }
}

/// Returns the key of an entry; `None` if no object of ours can have that name, such as those that begin with a dot.
fn key_of(folder: Option<&Key>, entry: &fs::DirEntry) -> Option<Key> {
    let name = entry.file_name().into_string().ok()?;
    match folder {
        Some(folder) => folder.join(&name),
        None => Key::new(name),
    }
    .ok()
}

fn listed(key: Key, found: &fs::Metadata) -> io::Result<Listed> {
    let modified = Timestamp::try_from(found.modified()?).map_err(io::Error::other)?;
    Ok(Listed { key, size: ByteCount(found.len()), modified })
}

/// Removes temporary files whose writer is dead: nobody holds their lock. What another one cleans up meanwhile is no error.
fn remove_abandoned(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let age = |found: &fs::Metadata| SystemTime::now().duration_since(found.modified().ok()?).ok();
        let old = fs::symlink_metadata(&path).is_ok_and(|found| age(&found).is_some_and(|age| age > YOUNG));
        if !old {
            continue;
        }
        // For writing, since NFS gives an exclusive lock on nothing else.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            fs::remove_file(&path).ok();
        }
    }
    Ok(())
}

/// Returns a number by chance.
fn chance() -> io::Result<u128> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u128::from_ne_bytes(bytes))
}

/// Makes one directory unless it is there; not those above it.
fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        // The umask of PostgreSQL's children is 0077.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn absent_is_none<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::wait;

    fn repository() -> (tempfile::TempDir, DirRepo) {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        (directory, repo)
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_repository_is_made_once_and_keeps_its_id() {
        let (_directory, repo) = repository();
        let about = fs::read(repo.0.path.join(layout::REPOSITORY)).unwrap();
        assert_eq!(About::read(&about).unwrap().id.len(), 32);
        DirRepo::create(&repo.0.path).unwrap();
        assert_eq!(fs::read(repo.0.path.join(layout::REPOSITORY)).unwrap(), about);
    }

    #[test]
    fn a_directory_that_holds_something_else_is_not_made_a_repository() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        fs::write(directory.path().join("letters.txt"), "dear").unwrap();
        let error = DirRepo::create(directory.path()).unwrap_err();
        assert!(error.why.contains("letters.txt"), "{error}");
        fs::remove_file(directory.path().join("letters.txt")).unwrap();
        DirRepo::create(directory.path()).unwrap();
    }

    #[test]
    fn a_damaged_repository_json_is_found() {
        let (_directory, repo) = repository();
        fs::write(repo.0.path.join(layout::REPOSITORY), "{}").unwrap();
        assert_eq!(DirRepo::open(&repo.0.path).unwrap_err().kind, RepoErrorKind::Damaged);
    }

    #[test]
    fn a_root_whose_disk_is_gone_is_neither_read_nor_made_again() {
        let (_directory, repo) = repository();
        let key = key("inventory/lock.json");
        wait(repo.create(&key, b"held")).unwrap();
        let upload = wait(repo.upload(&key)).unwrap();
        let mut aside = repo.0.path.clone();
        aside.set_extension("aside");
        fs::rename(&repo.0.path, &aside).unwrap();
        fs::create_dir(&repo.0.path).unwrap();

        let gone = |kind: RepoErrorKind| assert_eq!(kind, RepoErrorKind::Missing);
        gone(wait(repo.read(&key)).unwrap_err().kind);
        gone(wait(repo.list(None)).unwrap_err().kind);
        gone(wait(repo.list_all(&Key::new("inventory").unwrap())).unwrap_err().kind);
        gone(wait(repo.store(&key, b"x")).unwrap_err().kind);
        gone(wait(repo.create(&key, b"x")).unwrap_err().kind);
        gone(wait(repo.remove(&key)).unwrap_err().kind);
        gone(wait(upload.finish()).unwrap_err().kind);
        assert_eq!(fs::read_dir(&repo.0.path).unwrap().count(), 0);

        fs::remove_dir(&repo.0.path).unwrap();
        gone(wait(repo.store(&key, b"x")).unwrap_err().kind);
        assert!(!repo.0.path.exists());
    }

    #[test]
    fn what_is_stored_is_readable_for_the_group_whatever_the_umask() {
        let (_directory, repo) = repository();
        wait(repo.store(&key("inventory/1/wal/a"), b"x")).unwrap();
        assert_eq!(mode(&repo.0.path.join("inventory/1/wal/a")), 0o640);
        assert_eq!(mode(&repo.0.path.join("inventory/1/wal")), 0o750);
    }

    #[test]
    fn the_file_of_a_killed_writer_goes_when_it_is_old() {
        let (_directory, repo) = repository();
        let left = |name: &str, age: u64| {
            let path = repo.0.path.join(UNFINISHED).join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            (path, file)
        };
        let (old, _) = left("old", 3600);
        let (young, _) = left("young", 1);
        let (living, file) = left("living", 3600);
        rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
        wait(repo.store(&key("a"), b"x")).unwrap();
        assert_eq!((old.exists(), young.exists(), living.exists()), (false, true, true));
    }

    #[test]
    fn a_removal_takes_the_directories_that_it_emptied_and_no_more() {
        let (_directory, repo) = repository();
        wait(repo.store(&key("a/b/c/d"), b"x")).unwrap();
        wait(repo.store(&key("a/e"), b"x")).unwrap();
        assert!(wait(repo.remove(&key("a/b/c/d"))).unwrap());
        assert_eq!(wait(repo.list(Some(&key("a")))).unwrap().folders, Vec::<String>::new());
        assert!(wait(repo.remove(&key("a/e"))).unwrap());
        assert_eq!(wait(repo.list(None)).unwrap().folders, Vec::<String>::new());
        assert!(repo.0.path.join(layout::REPOSITORY).exists());
    }
}
