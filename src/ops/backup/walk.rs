//! What is in a data directory, and what of it a backup holds.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ops::node::DeclaredTablespace;
use crate::pg::data_directory::{Fork, Kept, RelationFile, holds_relations, kept};
use crate::repo::manifest::{Dir, Link};

/// The control file; read last, and not listed.
pub(super) const PG_CONTROL: &str = "global/pg_control";
/// How many things that were left out are named.
const NAMED: usize = 20;

/// A data directory as it was listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub dirs: Vec<Dir>,
    pub links: Vec<Link>,
    pub files: Vec<Found>,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
    left_out: usize,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the data directory.
    pub path: String,
    /// Where it is, if the path in the data directory does not lead there without a link.
    pub real: Option<Box<Path>>,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    /// Its number in the list of tablespaces.
    pub tablespace: Option<usize>,
    /// Pages of a relation: the number of the segment.
    pub segment: Option<u32>,
}

/// What is to be listed.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub root: &'a Path,
    pub tablespaces: &'a [DeclaredTablespace],
    /// The directory within a tablespace that this server uses.
    pub version_directory: &'a str,
}

impl Walk<'_> {
    /// Lists everything that a backup holds but for [`PG_CONTROL`].
    ///
    /// # Errors
    /// When a directory cannot be read; that something has vanished meanwhile is none.
    pub(super) fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let mode = fs::metadata(self.root).map_err(|error| unread(".", &error))?.mode() & 0o7777;
        listing.dirs.push(Dir { path: ".".to_owned(), mode });
        self.directory(&mut listing, self.root, "", None)?;
        if listing.left_out > NAMED {
            let more = listing.left_out - NAMED;
            listing.notes.push(format!(
                "{more} more files that are neither regular nor directories are not in the backup."
            ));
        }
        Ok(listing)
    }

    fn directory(
        &self,
        listing: &mut Listing,
        real: &Path,
        relative: &str,
        tablespace: Option<usize>,
    ) -> Result<()> {
        let mut names = match names(real) {
            Ok(names) => names,
            // A database or a tablespace that was dropped.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !relative.is_empty() => return Ok(()),
            Err(error) => return Err(unread(if relative.is_empty() { "." } else { relative }, &error)),
        };
        let paged = holds_relations(relative);
        let unlogged = if paged { unlogged(&names) } else { BTreeSet::new() };
        names.sort_unstable();
        for name in names {
            let Ok(name) = name.into_string() else {
                listing.leave_out(format!(
                    "A file in {} is not in the backup: its name is not UTF-8.",
                    real.display()
                ));
                continue;
            };
            let path = if relative.is_empty() { name.clone() } else { format!("{relative}/{name}") };
            let keep = kept(&path);
            if keep == Kept::Nothing || path == PG_CONTROL {
                continue;
            }
            let relation = RelationFile::parse(&name).filter(|_| paged);
            if relation.is_some_and(|file| file.fork != Fork::Init && unlogged.contains(&file.number)) {
                continue;
            }
            let at = real.join(&name);
            let found = match fs::symlink_metadata(&at) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unread(&path, &error)),
            };
            let kind = found.file_type();
            if kind.is_dir() {
                self.enter(listing, &at, path, &found, keep, tablespace)?;
            } else if kind.is_symlink() {
                self.link(listing, &at, path)?;
            } else if kind.is_file() && keep == Kept::Whole {
                listing.files.push(Found {
                    real: tablespace.map(|_| at.into_boxed_path()),
                    size: found.size(),
                    mode: found.mode() & 0o7777,
                    mtime: found.mtime(),
                    tablespace,
                    segment: relation.map(|file| file.segment),
                    path,
                });
            } else if keep == Kept::Whole {
                let what = if kind.is_socket() {
                    "socket"
                } else if kind.is_fifo() {
                    "pipe"
                } else {
                    "device"
                };
                listing.leave_out(format!("{path} is not in the backup: it is a {what}."));
            }
        }
        Ok(())
    }

    fn enter(
        &self,
        listing: &mut Listing,
        at: &Path,
        path: String,
        found: &Metadata,
        keep: Kept,
        tablespace: Option<usize>,
    ) -> Result<()> {
        listing.dirs.push(Dir { path: path.clone(), mode: found.mode() & 0o7777 });
        // A tablespace inside the data directory is copied by its link.
        let is_tablespace = self.tablespaces.iter().any(|declared| declared.location == at);
        if is_tablespace && !path.starts_with("pg_tblspc/") {
            return Ok(());
        }
        match keep {
            Kept::Whole => self.directory(listing, at, &path, tablespace),
            Kept::OnlyDirectories => self.only_directories(listing, at, &path),
            Kept::Nothing => Ok(()),
        }
    }

    fn only_directories(&self, listing: &mut Listing, real: &Path, relative: &str) -> Result<()> {
        let names = match names(real) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unread(relative, &error)),
        };
        for name in names.into_iter().filter_map(|name| name.into_string().ok()) {
            let path = format!("{relative}/{name}");
            if let (Kept::OnlyDirectories, Ok(found)) = (kept(&path), fs::symlink_metadata(real.join(&name)))
                && found.is_dir()
            {
                listing.dirs.push(Dir { path, mode: found.mode() & 0o7777 });
            }
        }
        Ok(())
    }

    fn link(&self, listing: &mut Listing, at: &Path, path: String) -> Result<()> {
        let target = match fs::read_link(at) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unread(&path, &error)),
        };
        if path == "pg_wal" {
            // `initdb --waldir`. A restored cluster has its WAL inside.
            listing.dirs.push(Dir { path: path.clone(), mode: 0o700 });
            return self.only_directories(listing, at, &path);
        }
        let oid = path.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse::<u32>().ok());
        let number = oid.and_then(|oid| self.tablespaces.iter().position(|declared| declared.oid == oid));
        let Some(number) = number else {
            listing.leave_out(format!(
                "{path} is not in the backup: it is a symbolic link to {}.",
                target.display()
            ));
            return Ok(());
        };
        listing.links.push(Link { path: path.clone(), target: target.clone() });
        let inside = target.join(self.version_directory);
        let Some(found) = fs::symlink_metadata(&inside).ok().filter(Metadata::is_dir) else { return Ok(()) };
        let path = format!("{path}/{}", self.version_directory);
        listing.dirs.push(Dir { path: path.clone(), mode: found.mode() & 0o7777 });
        self.directory(listing, &inside, &path, Some(number))
    }
}

impl Listing {
    fn leave_out(&mut self, note: String) {
        self.left_out += 1;
        if self.left_out <= NAMED {
            self.notes.push(note);
        }
    }
}

impl Found {
    /// Returns where the file is.
    pub(super) fn real(&self, root: &Path) -> PathBuf {
        self.real.as_deref().map_or_else(|| root.join(&self.path), Path::to_owned)
    }
}

/// Lists the numbers of the unlogged relations of a directory: those that have an init fork.
fn unlogged(names: &[std::ffi::OsString]) -> BTreeSet<u32> {
    names
        .iter()
        .filter_map(|name| RelationFile::parse(name.to_str()?))
        .filter(|file| file.fork == Fork::Init)
        .map(|file| file.number)
        .collect()
}

fn names(directory: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Tells that something of the data directory could not be read.
pub(super) fn unread(path: &str, error: &io::Error) -> Error {
    let failed = Error::failed(format!("could not read {path} of the data directory"))
        .detail(format!("The operating system says: {error}."));
    if error.kind() == io::ErrorKind::PermissionDenied {
        failed.hint("Give it to the user that runs the server, or move it out of the data directory.")
    } else {
        failed
    }
}
