//! File operations of this machine, with the rights of the thread that they are called on ([`super::acting`]).
//!
//! Blocking. Knows no processes. [`hand_over_directory`] is the one thing that root does for
//! another user, and only below directories that nobody but root can change.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::whole::sync_directory;
use super::{DiskSpace, FileKind};
use crate::units::ByteCount;

/// Reads a file; what would make the reader wait for somebody else, a pipe, is none.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
    let Some(mut file) = absent_is_none(opened)? else { return Ok(None) };
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// What `lstat` says, with the owner as a number.
pub(super) struct Status {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) owner: u32,
}

pub(super) fn stat(path: &Path) -> io::Result<Option<Status>> {
    let Some(found) = absent_is_none(fs::symlink_metadata(path))? else {
        return Ok(None);
    };
    let kind = match found.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Link,
        _ => FileKind::Other,
    };
    Ok(Some(Status { kind, mode: found.mode() & 0o7777, size: found.size(), owner: found.uid() }))
}

pub(super) fn list(path: &Path) -> io::Result<Option<Vec<String>>> {
    let Some(entries) = absent_is_none(fs::read_dir(path))? else {
        return Ok(None);
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()?;
    names.sort();
    Ok(Some(names))
}

/// Appends to a file of this length under its lock, and returns the length that it had.
pub(super) fn append(path: &Path, at: u64, bytes: &[u8]) -> io::Result<u64> {
    let opened = OpenOptions::new().append(true).create(at == 0).mode(0o600).open(path);
    let mut file = match opened {
        // A new one is missing its directory, which is somebody else's to make.
        Err(error) if error.kind() == ErrorKind::NotFound && at != 0 => return Ok(0),
        opened => opened?,
    };
    lock_for_append(&file)?;
    let appended = (|| {
        let length = file.metadata()?.len();
        if length == at {
            file.write_all(bytes)?;
            file.sync_all()?;
            if let (0, Some(directory)) = (at, path.parent()) {
                sync_directory(directory)?;
            }
        }
        Ok(length)
    })();
    // A program that another thread is just starting has this file open, too, until it is itself: closing ours would not give the lock back.
    rustix::fs::flock(&file, FlockOperation::Unlock)?;
    appended
}

/// Holds a file for one append; waits as long as `flock -w 2` does where the host is behind ssh.
fn lock_for_append(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            taken => return Ok(taken?),
        }
    }
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    // What unlink(2) says of a directory depends on who asks.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return Err(ErrorKind::IsADirectory.into());
    }
    match (absent_is_none(fs::remove_file(path))?, path.parent()) {
        (Some(()), Some(directory)) => sync_directory(directory),
        _ => Ok(()),
    }
}

/// Makes `path` with `mode` and its parents with 0755, unless it is there.
pub(super) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    let (ancestor, mut missing) = nearest(path)?;
    if missing.is_empty() {
        return if ancestor.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) };
    }
    missing.pop();
    let parent = make_parents(ancestor, &missing)?;
    make_with_mode(&parent.join(path.file_name().unwrap_or_default()), mode)?;
    sync_directory(&parent)
}

/// Makes `path` for another user and its missing parents for the caller.
///
/// Returns `false`, and does nothing, where somebody else than the caller could change the directories above, or has made a link on
/// the way there: there the other user has to make it itself. The new directory gets its name only when it has its owner and mode, so that a crash leaves
/// none that is half made.
pub(super) fn hand_over_directory(path: &Path, mode: u32, uid: u32, gid: u32) -> io::Result<bool> {
    let (ancestor, mut missing) = nearest(path)?;
    if missing.is_empty() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    if !only_callers(path)? || !only_callers(&ancestor)? {
        return Ok(false);
    }
    let name = missing.pop().unwrap_or_default();
    let parent = make_parents(ancestor, &missing)?;
    let unfinished = parent.join(format!(".{}.pgherd-new", name.display()));
    match fs::symlink_metadata(&unfinished) {
        Ok(_) => fs::remove_dir(&unfinished)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    make_with_mode(&unfinished, mode)?;
    std::os::unix::fs::lchown(&unfinished, Some(uid), Some(gid))?;
    fs::rename(&unfinished, parent.join(name))?;
    sync_directory(&parent)?;
    Ok(true)
}

/// Returns the deepest directory above `path`, or `path` itself, that is there, with its links followed, and what is missing below.
pub(super) fn nearest(path: &Path) -> io::Result<(PathBuf, Vec<PathBuf>)> {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        match fs::canonicalize(at) {
            Ok(found) => {
                missing.reverse();
                return Ok((found, missing));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => match (at.parent(), at.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(PathBuf::from(name));
                    at = parent;
                }
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

/// Tells whether nobody but the caller can rename what is on the way to `path`, links and all, as far as that is there.
fn only_callers(path: &Path) -> io::Result<bool> {
    let caller = rustix::process::geteuid().as_raw();
    for above in path.ancestors() {
        let Some(found) = absent_is_none(fs::symlink_metadata(above))? else { continue };
        let (others_write, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
        // Nobody writes to a link, whatever its mode says.
        if found.uid() != caller || (others_write && !sticky && !found.is_symlink()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn make_parents(mut at: PathBuf, names: &[PathBuf]) -> io::Result<PathBuf> {
    for name in names {
        at.push(name);
        match make_with_mode(&at, 0o755) {
            // Somebody else who needs it has made it meanwhile.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && fs::symlink_metadata(&at)?.is_dir() => {
            }
            made => made?,
        }
    }
    Ok(at)
}

/// Makes one directory with exactly this mode, whatever the umask.
pub(super) fn make_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode & 0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Tells whether `path`, after following links, is a directory that may be entered.
pub(super) fn can_enter(path: &Path) -> bool {
    // To find the name "." in a directory takes the right to search it.
    fs::metadata(path.join(".")).is_ok_and(|found| found.is_dir())
}

/// Measures the file system of `path`, or of its nearest parent that is there, as df(1) does.
pub(super) fn disk(path: &Path) -> io::Result<DiskSpace> {
    let mut nearest = path;
    loop {
        match (rustix::fs::statvfs(nearest).map_err(io::Error::from), nearest.parent()) {
            (Ok(found), _) => {
                let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(found.f_frsize));
                let used = found.f_blocks.saturating_sub(found.f_bfree);
                let total = bytes(used.saturating_add(found.f_bavail));
                return Ok(DiskSpace { total, free: bytes(found.f_bavail) });
            }
            (Err(error), Some(parent)) if error.kind() == ErrorKind::NotFound => nearest = parent,
            (Err(error), _) => return Err(error),
        }
    }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_make_directories_below_one_that_none_of_them_finds() {
        for _ in 0..50 {
            let directory = tempfile::tempdir().unwrap();
            std::thread::scope(|scope| {
                let makers = (0..8).map(|number| {
                    let path = directory.path().join(format!("config/nodes/inventory-{number}"));
                    scope.spawn(move || make_directory(&path, 0o750))
                });
                for maker in makers.collect::<Vec<_>>() {
                    maker.join().unwrap().unwrap();
                }
            });
            assert_eq!(fs::read_dir(directory.path().join("config/nodes")).unwrap().count(), 8);
        }
    }
}
