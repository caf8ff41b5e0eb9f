//! The directories that a restore writes: whether it may, what must go, where each file belongs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::source::{CONTROL, Source, oid_of};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::restore::{Claim, CopyForRestore};
use crate::pg::backup_manifest::Listed;

/// In the root of a scratch copy and of each of its tablespaces: by this a restore knows its own again.
pub const MARKER: &str = "pgherd.restore.json";

/// How long the copy of a command that was killed may take to end.
const OTHERS: Duration = Duration::from_secs(10);
const FORMAT: u32 = 1;
const OWN_FILE_MODE: u32 = 0o600;

/// What [`MARKER`] holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    /// Of the restore; repeating it keeps the number.
    id: String,
    /// Where the file was written: a directory that was moved is not ours any more.
    directory: PathBuf,
}

impl Marker {
    fn text(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a marker is plain data");
        bytes.push(b'\n');
        bytes
    }
}

/// Tells whether a path of a backup is a marker, which a copy does not take over.
pub(super) fn is_marker(path: &str) -> bool {
    path.rsplit('/').next() == Some(MARKER)
}

/// Directories that may be written.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    /// What is there may be right already.
    reuse: bool,
    markers: Vec<Listed>,
    /// Locked, and opened before anything is written, so that no lost write goes unseen (fsync(2) tells of errors since the opening).
    roots: Vec<(PathBuf, File)>,
}

impl Place {
    /// Takes the data directory and those of the tablespaces.
    ///
    /// # Errors
    /// `Refused` if one of them is not empty and not ours, or a server runs in the data directory.
    pub(super) fn take(job: &CopyForRestore, source: &Source<'_>) -> Result<Self> {
        let root = job.data_directory.clone();
        let mut place = Self {
            root: root.clone(),
            tablespaces: BTreeMap::new(),
            reuse: false,
            markers: Vec::new(),
            roots: Vec::new(),
        };
        refuse_running(&root)?;
        place.take_directory(&root, "", &job.claim)?;
        for link in &source.contents.links {
            let oid = oid_of(&link.path).expect("Source::read checks the links");
            let to = job.tablespaces.get(&oid).ok_or_else(|| {
                Error::usage(format!("nothing says where tablespace {oid} goes"))
                    .detail(format!("It was in {} on the node.", link.target.display()))
                    .hint(format!("Add --tablespace {oid}=DIRECTORY."))
            })?;
            if to.starts_with(&root) || root.starts_with(to) {
                return Err(Error::usage(format!("tablespace {oid} cannot be in {}", to.display()))
                    .detail("It is the data directory, or one of the two is inside the other."));
            }
            place.take_directory(to, &format!("{}/", link.path), &job.claim)?;
            place.tablespaces.insert(oid, to.clone());
        }
        Ok(place)
    }

    /// Takes one directory: makes it, or proves that it is empty or ours.
    fn take_directory(&mut self, path: &Path, prefix: &str, claim: &Claim) -> Result<()> {
        let failed = |doing: &str, error: &io::Error| could_not(doing, path, error);
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => {
                return Err(Error::refused(format!(
                    "cannot restore into {}: it is no directory",
                    path.display()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| failed("make", &error))?;
            }
            Err(error) => return Err(failed("look at", &error)),
        }
        let open = File::open(path).map_err(|error| failed("open", &error))?;
        lock(path, &open)?;
        let owner = fs::metadata(path).map_err(|error| failed("look at", &error))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(Error::refused(format!("cannot restore into {}: it belongs to another user", path.display()))
                .detail("PostgreSQL starts only in a directory of its own user. Nothing in it was changed.")
                .hint("Give the directory to the user that owns the nodes' files, or choose one that is not there yet."));
        }
        let mut names = list(path).map_err(|error| failed("list", &error))?;
        // A tablespace's location may be a file system of its own: what a restore in place sets aside stays in it (`ops::in_place`).
        if !prefix.is_empty() && *claim == (Claim::Node {}) {
            names.retain(|name| !name.contains(".before-"));
        }
        let empty = names.is_empty();
        match claim {
            Claim::Scratch { id } => {
                let marker = Marker { format: FORMAT, id: id.clone(), directory: path.to_owned() };
                if !empty && read_marker(path).as_ref() != Some(&marker) {
                    return Err(not_empty(path, &names));
                }
                // First of all: what was made without it could not be told from somebody else's.
                let listed = write_file(&path.join(MARKER), &marker.text(), true)
                    .map_err(|error| failed("write the marker in", &error))?;
                self.markers.push(Listed { path: format!("{prefix}{MARKER}"), ..listed });
            }
            Claim::Node {} if !empty => return Err(not_empty(path, &names)),
            Claim::Node {} | Claim::NodeDelta {} => {}
        }
        self.reuse |= !empty;
        // Nobody else looks into it from the first file on; the mode that it had in the backup comes with the directories.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(|error| failed("set the mode of", &error))?;
        self.roots.push((path.to_owned(), open));
        Ok(())
    }

    /// Tells whether files may be there already.
    pub(super) fn reused(&self) -> bool {
        self.reuse
    }

    pub(super) fn markers(&self) -> Vec<Listed> {
        self.markers.clone()
    }

    /// Returns where a path of the backup belongs.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        let in_tablespace = || {
            let rest = relative.strip_prefix("pg_tblspc/")?;
            let (oid, below) = rest.split_once('/').unwrap_or((rest, ""));
            let directory = self.tablespaces.get(&oid.parse().ok()?)?;
            Some(if below.is_empty() { directory.clone() } else { directory.join(below) })
        };
        if relative == "." {
            return self.root.clone();
        }
        in_tablespace().unwrap_or_else(|| self.root.join(relative))
    }

    /// Makes the directory unable to start, removes what the backup does not have, and makes directories, links and the files that have
    /// no bytes of their own. Returns how many things it removed.
    pub(super) fn prepare(&self, source: &Source<'_>) -> Result<u64> {
        let removed = if self.reuse { self.remove_others(source)? } else { 0 };
        let mut dirs: Vec<_> = source.contents.dirs.iter().collect();
        dirs.sort_by(|one, other| one.path.cmp(&other.path));
        for dir in dirs {
            let path = self.path(&dir.path);
            make_directory(&path, dir.mode).map_err(|error| could_not("make", &path, &error))?;
        }
        for link in &source.contents.links {
            let oid = oid_of(&link.path).expect("Source::read checks the links");
            let (path, to) = (self.root.join(&link.path), &self.tablespaces[&oid]);
            make_link(&path, to).map_err(|error| could_not("make", &path, &error))?;
        }
        for file in source.contents.files.iter().filter(|file| file.parts.is_empty()) {
            let path = self.path(&file.path);
            let made = open_file(&path, file.mode).and_then(|open| {
                open.set_permissions(fs::Permissions::from_mode(file.mode))?;
                // Longer than it should be: what is left of it may be anything.
                if self.reuse {
                    open.set_len(0)?
                }
                open.set_len(file.size)
            });
            made.map_err(|error| could_not("write", &path, &error))?;
        }
        Ok(removed)
    }

    fn remove_others(&self, source: &Source<'_>) -> Result<u64> {
        // From here on the directory does not start.
        let control = self.root.join(CONTROL);
        remove_if_there(&control).map_err(|error| could_not("remove", &control, &error))?;
        let global = self.root.join("global");
        if global.is_dir() {
            sync_directory(&global).map_err(|error| could_not("sync", &global, &error))?;
        }
        let contents = &source.contents;
        let dirs: BTreeSet<PathBuf> = contents.dirs.iter().map(|dir| self.path(&dir.path)).collect();
        let files: BTreeSet<PathBuf> = contents.files.iter().map(|file| self.path(&file.path)).collect();
        let links: BTreeSet<PathBuf> = contents.links.iter().map(|link| self.root.join(&link.path)).collect();
        let mut removed = 0;
        for root in std::iter::once(&self.root).chain(self.tablespaces.values()) {
            let keep = |path: &Path, kind: &fs::FileType| {
                if kind.is_dir() {
                    dirs.contains(path)
                } else if kind.is_symlink() {
                    // pg_wal may lie elsewhere: it stays there, and what is in it goes.
                    links.contains(path) || path == self.root.join("pg_wal")
                } else {
                    kind.is_file() && (files.contains(path) || *path == root.join(MARKER))
                }
            };
            removed += clean(root, &keep).map_err(|error| could_not("clean", root, &error))?;
        }
        let wal = self.root.join("pg_wal");
        if fs::symlink_metadata(&wal).is_ok_and(|found| found.is_symlink()) {
            removed += clean(&wal, &|_, _| false).map_err(|error| could_not("clean", &wal, &error))?;
        }
        Ok(removed)
    }

    /// Reads a file of the data directory as text; `None` if there is none.
    pub(super) fn read_text(&self, name: &str) -> Result<Option<String>> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(could_not("read", &path, &error)),
        }
    }

    /// Writes a file of the copy's own and returns what a manifest says of it.
    pub(super) fn write_own(&self, name: &str, bytes: &[u8]) -> Result<Listed> {
        let path = self.root.join(name);
        let listed = write_file(&path, bytes, false).map_err(|error| could_not("write", &path, &error))?;
        Ok(Listed { path: name.to_owned(), ..listed })
    }

    pub(super) fn write_durably(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        write_file(&path, bytes, true).map(drop).map_err(|error| could_not("write", &path, &error))
    }

    /// Makes all that was written durable, one call a file system.
    pub(super) fn sync(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (path, open) in &self.roots {
            let device = open.metadata().map_err(|error| could_not("look at", path, &error))?.dev();
            if seen.insert(device) {
                rustix::fs::syncfs(open).map_err(|error| could_not("sync", path, &error.into()))?;
            }
        }
        Ok(())
    }

    /// Gives pg_control its name: from here on the directory starts.
    pub(super) fn name_control(&self, unfinished: &str) -> Result<()> {
        let (from, to) = (self.root.join(unfinished), self.root.join(CONTROL));
        (|| {
            File::open(&from)?.sync_all()?;
            fs::rename(&from, &to)?;
            sync_directory(&self.root.join("global"))?;
            sync_directory(&self.root)
        })()
        .map_err(|error: io::Error| could_not("finish", &to, &error))
    }
}

/// Keeps everybody else out of a directory. The copy of a command that was killed ends as soon as it finds nobody listening, and until
/// then it writes.
fn lock(path: &Path, open: &File) -> Result<()> {
    let deadline = Instant::now() + OTHERS;
    loop {
        match rustix::fs::flock(open, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    ErrorKind::Locked,
                    format!("another restore writes into {}", path.display()),
                )
                .detail("Nothing in it was changed by this one.")
                .hint("Wait until it has ended, or name another directory."));
            }
            Err(error) => return Err(could_not("lock", path, &error.into())),
        }
    }
}

fn not_empty(path: &Path, names: &[String]) -> Error {
    const NAMED: usize = 5;
    let more = if names.len() > NAMED { ", …" } else { "" };
    Error::refused(format!("cannot restore into {}: it is not empty", path.display()))
        .detail(format!(
            "It holds {}{more}, which no unfinished restore of this command made. Nothing in it was changed.",
            names[..names.len().min(NAMED)].join(", ")
        ))
        .hint("Name a directory that is not there yet, or move this one away.")
}

/// Refuses a data directory that a server uses, whoever started it.
fn refuse_running(root: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(root.join("postmaster.pid")) else { return Ok(()) };
    let first = text.lines().next().unwrap_or_default().trim();
    let Ok(pid) = first.trim_start_matches('-').parse::<u32>() else { return Ok(()) };
    let works_there = match fs::read_link(format!("/proc/{pid}/cwd")) {
        // A postmaster changes into its data directory (`ChangeToDataDir`).
        Ok(cwd) => fs::canonicalize(root).is_ok_and(|root| root == cwd),
        // A process of another user: nobody can say that it is not the server.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    if !works_there {
        return Ok(());
    }
    Err(Error::refused(format!("cannot restore into {}: a server runs in it", root.display()))
        .detail(format!("Its postmaster is process {pid}. Nothing in the directory was changed."))
        .hint(format!("Name another directory, or stop the server first: pg_ctl stop -D {}", root.display())))
}

fn read_marker(path: &Path) -> Option<Marker> {
    let bytes = fs::read(path.join(MARKER)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Removes everything below `directory` that `keep` does not name; what a link leads to is never touched.
fn clean(directory: &Path, keep: &dyn Fn(&Path, &fs::FileType) -> bool) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        match (keep(&path, &kind), kind.is_dir()) {
            (true, true) => removed += clean(&path, keep)?,
            (true, false) => {}
            (false, true) => {
                fs::remove_dir_all(&path)?;
                removed += 1;
            }
            (false, false) => {
                fs::remove_file(&path)?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn make_link(path: &Path, to: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|found| found == to) {
        return Ok(());
    }
    remove_if_there(path)?;
    std::os::unix::fs::symlink(to, path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens a file to read and write, made if it is not there; never through a link.
pub(super) fn open_file(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(mode | 0o600))?))
}

fn write_file(path: &Path, bytes: &[u8], durably: bool) -> io::Result<Listed> {
    let mut open = open_file(path, OWN_FILE_MODE)?;
    open.set_len(0)?;
    open.write_all(bytes)?;
    open.set_permissions(fs::Permissions::from_mode(OWN_FILE_MODE))?;
    if durably {
        open.sync_all()?;
        if let Some(directory) = path.parent() {
            sync_directory(directory)?;
        }
    }
    let mtime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Listed {
        path: String::new(),
        size: bytes.len() as u64,
        mtime: i64::try_from(mtime).unwrap_or(0),
        crc32c: crc32c::crc32c(bytes),
    })
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Says what the operating system refused.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other kinds of the operating system have no hint of their own"
)]
pub(super) fn could_not(doing: &str, path: &Path, error: &io::Error) -> Error {
    let failed = Error::failed(format!("could not {doing} {}", path.display())).detail(format!("{error}."));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => failed.hint(
            "Make room on that file system, then run the same restore again: it goes on with what is there. The copy cannot start \
             before it is complete.",
        ),
        io::ErrorKind::PermissionDenied => {
            failed.hint("Choose a directory that the user that owns the nodes' files may write.")
        }
        io::ErrorKind::NotFound if doing == "make" => failed.hint("Make the directory above it first."),
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_marker_reads_and_writes_byte_for_byte() {
        let golden = include_bytes!("../../../tests/golden/restore-marker-v1.json");
        let marker: Marker = serde_json::from_slice(golden).unwrap();
        assert_eq!((marker.format, marker.directory.to_str()), (FORMAT, Some("/srv/r")));
        assert_eq!(marker.text(), golden);
    }
}
