//! A backup as a restore reads it: its manifest and its list of files, checked before a byte is written.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, ErrorKind, Result};
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::{BackupKeys, ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::{CHUNK, Chunk, Contents, File, Manifest};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Key, Repo, RepoError, RepoErrorKind};

/// What starts a server: it gets its name last.
pub(super) const CONTROL: &str = "global/pg_control";

/// Files of the data directory that a restore writes itself.
const OURS: [&str; 6] = [
    "backup_label",
    "backup_manifest",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
];

/// A backup whose list of files holds together.
#[derive(Debug)]
pub(super) struct Source<'a> {
    repo: &'a dyn Repo,
    keys: SystemKeys,
    pub(super) manifest: Manifest,
    pub(super) contents: Contents,
}

impl<'a> Source<'a> {
    /// Reads the manifest and the list of files.
    ///
    /// # Errors
    /// `NotFound` if there is no such backup; when either is damaged, or does not fit the other.
    pub(super) fn read(
        repo: &'a dyn Repo,
        cluster: &str,
        system: SystemIdentifier,
        label: &Label,
    ) -> Result<Self> {
        let keys = ClusterKeys::new(cluster).system(system);
        let manifest = manifest(repo, &keys, label)?;
        let backup = keys.backup(label);
        let contents = contents(repo, &backup, &manifest)?;
        let source = Self { repo, keys, manifest, contents };
        source.check().map_err(|why| damaged(label, &backup.files(), &why))?;
        Ok(source)
    }

    /// Returns where a chunk's data object is.
    pub(super) fn object(&self, chunk: &Chunk) -> Key {
        self.keys.backup(chunk.backup.as_ref().unwrap_or(&self.manifest.label)).data(chunk.object)
    }

    /// Reads the frame of a chunk and proves that it is the one that was stored.
    ///
    /// # Errors
    /// When it cannot be read; when it is missing, cut off or damaged, with the files that cannot be restored then.
    pub(super) fn frame(&self, number: usize) -> Result<Vec<u8>> {
        let chunk = &self.contents.chunks[number];
        let key = self.object(chunk);
        let length = u64::from(chunk.stored);
        let read = repo::wait(self.repo.read_range(&key, chunk.offset, length));
        let frame = read.map_err(|error| or_damaged(error, |why| self.damaged_chunk(number, why)))?;
        let frame = frame.ok_or_else(|| self.damaged_chunk(number, "it is missing"))?;
        if frame.len() as u64 != length {
            return Err(self.damaged_chunk(number, "it ends too early"));
        }
        if Blake3::of(&frame) != chunk.blake3 {
            return Err(self.damaged_chunk(number, "it does not have the hash that it was stored with"));
        }
        Ok(frame)
    }

    /// Says that a chunk cannot be used, and which files are lost with it.
    pub(super) fn damaged_chunk(&self, number: usize, why: &str) -> Error {
        const NAMED: usize = 3;
        let chunk = &self.contents.chunks[number];
        let lost: Vec<&str> = self
            .contents
            .files
            .iter()
            .filter(|file| file.parts.iter().any(|part| usize::try_from(part.chunk) == Ok(number)))
            .map(|file| file.path.as_str())
            .collect();
        let more = lost.len().saturating_sub(NAMED);
        let and_more = if more == 0 { String::new() } else { format!(" and {more} more files") };
        let label = &self.manifest.label;
        Error::failed(format!("backup {label} is damaged: {} cannot be used", self.object(chunk)))
            .detail(format!(
                "Of the {} bytes from byte {} on {why}. They hold a part of {}{and_more}. The copy is not complete and cannot start.",
                chunk.stored,
                chunk.offset,
                lost[..lost.len().min(NAMED)].join(", ")
            ))
            .hint(format!(
                "See what else is damaged with \"pgherd backup verify --full\", and restore from another backup: --backup LABEL. \
                 {label} cannot be restored."
            ))
    }

    /// Checks that the list can be restored at all: nothing in it leads out of the data directory or out of a chunk.
    fn check(&self) -> Result<(), String> {
        let Contents { objects: _, chunks, dirs, links, files } = &self.contents;
        for (number, chunk) in chunks.iter().enumerate() {
            if u64::from(chunk.size) > CHUNK.0 || chunk.object == 0 {
                return Err(format!("chunk {number} is none"));
            }
            if chunk.backup.as_ref().is_some_and(|label| !self.manifest.needs.contains(label)) {
                return Err(format!("chunk {number} is in a backup that the manifest does not name"));
            }
        }
        let mut seen = BTreeSet::new();
        let paths = dirs.iter().map(|dir| &dir.path).chain(files.iter().map(|file| &file.path));
        for path in paths.chain(links.iter().map(|link| &link.path)) {
            // The data directory itself has a mode as well, and so has a tablespace, beside its link.
            let twice = path == "." || links.iter().any(|link| link.path == *path);
            if !is_safe(path) && path != "." {
                return Err(format!("{path:?} is no path in a data directory"));
            }
            if OURS.contains(&path.as_str()) || (!seen.insert(path) && !twice) {
                return Err(format!("{path:?} must not be there, or is there twice"));
            }
        }
        let linked: BTreeMap<u32, ()> =
            links.iter().filter_map(|link| Some((oid_of(&link.path)?, ()))).collect();
        let declared: BTreeMap<u32, ()> =
            self.manifest.tablespaces.iter().map(|tablespace| (tablespace.oid, ())).collect();
        if linked.len() != links.len() || linked != declared {
            return Err("its links are not the tablespaces that the manifest names".to_owned());
        }
        for file in files {
            check_file(file, chunks)?;
        }
        for needed in [CONTROL, "PG_VERSION"] {
            if !files.iter().any(|file| file.path == needed) {
                return Err(format!("{needed} is not in it"));
            }
        }
        Ok(())
    }
}

fn check_file(file: &File, chunks: &[Chunk]) -> Result<(), String> {
    let mut at = 0;
    for part in &file.parts {
        let chunk = usize::try_from(part.chunk).ok().and_then(|number| chunks.get(number));
        let within = chunk.is_some_and(|chunk| {
            u64::from(part.from) + u64::from(part.length) <= u64::from(chunk.size) && part.length > 0
        });
        let end = part.at.checked_add(u64::from(part.length));
        match end.filter(|end| within && part.at >= at && *end <= file.size) {
            Some(end) => at = end,
            None => {
                return Err(format!(
                    "a part of {:?} is not where its neighbours and its chunk are",
                    file.path
                ));
            }
        }
    }
    Ok(())
}

/// Tells whether a path stays below the data directory.
fn is_safe(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Returns the tablespace of `pg_tblspc/16385`.
pub(super) fn oid_of(path: &str) -> Option<u32> {
    path.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse().ok())
}

/// Reads a backup's manifest.
///
/// # Errors
/// `NotFound` if there is no such backup; when it is damaged or another one's.
pub(super) fn manifest(repo: &dyn Repo, keys: &SystemKeys, label: &Label) -> Result<Manifest> {
    let key = keys.backup(label).manifest();
    let wrong = |why: &str| damaged(label, &key, why);
    let read = repo::wait(repo.read(&key)).map_err(|error| or_damaged(error, wrong))?;
    let bytes = read.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no backup {label} of {}", keys.cluster()))
            .hint("See those that there are: pgherd backup list")
    })?;
    let manifest: Manifest = seal::read_document(&bytes).map_err(|error| wrong(&error.to_string()))?;
    if manifest.label != *label
        || manifest.system_identifier != keys.system()
        || manifest.cluster != keys.cluster()
    {
        let why = format!(
            "it says that it is {} of cluster {}, system {}",
            manifest.label, manifest.cluster, manifest.system_identifier
        );
        return Err(wrong(&why));
    }
    Ok(manifest)
}

fn contents(repo: &dyn Repo, backup: &BackupKeys, manifest: &Manifest) -> Result<Contents> {
    let (label, key) = (&manifest.label, backup.files());
    let wrong = |why: &str| damaged(label, &key, why);
    let read = repo::wait(repo.read(&key)).map_err(|error| or_damaged(error, wrong))?;
    let bytes = read.ok_or_else(|| wrong("it is missing"))?;
    if bytes.len() as u64 != manifest.files_stored.0 || Blake3::of(&bytes) != manifest.files_blake3 {
        return Err(wrong("it is not the one that the manifest names"));
    }
    let identity =
        Identity { kind: Kind::Files, name: label.as_str(), system_identifier: manifest.system_identifier };
    let text = seal::open(identity, &bytes).map_err(|error| wrong(&error.to_string()))?;
    Contents::read(&text).map_err(|error| wrong(&error.to_string()))
}

/// Damage that the repository finds itself, as an encrypted one does, is damage of the backup.
fn or_damaged(error: RepoError, damaged: impl FnOnce(&str) -> Error) -> Error {
    if error.kind == RepoErrorKind::Damaged { damaged(&error.why) } else { error.into() }
}

fn damaged(label: &Label, key: &Key, why: &str) -> Error {
    Error::failed(format!("backup {label} is damaged: {key} cannot be used"))
        .detail(format!("{key}: {why}. Nothing was restored."))
        .hint("See what else is damaged with \"pgherd backup verify --full\", and restore from another backup: --backup LABEL")
}
