//! The WAL archive: PostgreSQL's `archive_command` and `restore_command`, and what the archive holds.
//!
//! [`push`] and [`fetch`] are called by the server itself, once a segment: no tokio, no database, no topology, only the node's profile and
//! the repository that it names. What they are asked for by PostgreSQL is in its documentation, "Continuous Archiving".

mod ahead;
mod fetch;
mod item;
mod list;
mod owed;
mod prefetch;
mod push;
mod spool;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use ahead::{ahead, push};
pub use fetch::{Fetched, Recovery, fetch, recovery};
pub use item::Pushed;
pub use list::{Begin, Run, SystemWal, TimelineWal, WalList, Window, list, run};
pub use owed::settle;
pub use prefetch::prefetch;
pub use push::LEVEL;

use self::owed::Owed;
use crate::error::{Error, Result};
use crate::pg::wal_file::WalFile;
use crate::repo::layout::{ClusterKeys, SystemKeys};
use crate::repo::seal::{self, Identity, Kind, SealError};
use crate::repo::several::{Member, Several};
use crate::repo::{Key, Location, RepoError, RepoErrorKind, wait};
use crate::topology::claim::{self, ArchiveCopy, Profile};

/// A node's archive.
#[derive(Debug)]
struct Archive {
    profile: Profile,
    /// What is read: all of the repositories, first those that were not away a moment ago.
    repo: Several,
    /// Where WAL goes, the first repository first.
    stores: Vec<Store>,
    keys: SystemKeys,
    /// The data directory of the server that the command is run for.
    data: PathBuf,
}

impl Archive {
    /// Returns the one that a profile names. What it is in is opened when it is needed.
    fn of(profile: Profile, data: PathBuf) -> Result<Self> {
        let store = |known: ArchiveCopy| Store {
            name: known.repository,
            repo: Arc::new(Member::new(Location { url: known.url, access: known.access })),
        };
        let stores: Vec<Store> = named(&profile)?.repositories().map(store).collect();
        let owed = Owed::of(&profile);
        let was_away = |store: &&Store| owed.as_ref().is_some_and(|owed| owed.was_away(&store.name));
        let (away, there): (Vec<&Store>, Vec<&Store>) = stores.iter().partition(was_away);
        let repo = Several::new(there.into_iter().chain(away).map(|store| Arc::clone(&store.repo)).collect());
        let keys = ClusterKeys::new(&profile.cluster).system(profile.system_identifier);
        Ok(Self { profile, repo, stores, keys, data })
    }

    /// Has the calls of the next moments ask those last that kept this one waiting.
    fn tell_who_is_away(&self) {
        if let (Some(owed), [_, _, ..]) = (Owed::of(&self.profile), self.stores.as_slice()) {
            let away = self.stores.iter().filter(|store| store.repo.kept_waiting());
            away.for_each(|store| owed.found_away(&store.name));
        }
    }
}

/// One of the repositories that a node's WAL goes to.
#[derive(Debug)]
struct Store {
    name: String,
    repo: Arc<Member>,
}

fn read_profile(file: &Path) -> Result<Profile> {
    let unusable = |why: String| {
        Error::failed(format!("cannot use the node profile {}", file.display()))
            .detail(format!("{why}."))
            .hint("\"pgherd plan\" shows what is wrong with the node's files, and \"pgherd apply\" writes them anew.")
    };
    let bytes = fs::read(file).map_err(|error| unusable(format!("It cannot be read: {error}")))?;
    claim::read(&bytes).map_err(|error| unusable(format!("In it, {error}")))
}

fn named(profile: &Profile) -> Result<&claim::Archive> {
    profile.archive.as_ref().ok_or_else(|| {
        Error::failed(format!("{}-{} has no archive", profile.cluster, profile.node))
            .detail("Its profile names no repository.")
            .hint("Declare \"backups\" for the cluster in the topology, then run \"pgherd apply\".")
    })
}

/// Reads a file that is stored, checked in every byte, from the first repository that has it whole; `None` if each of them says that there is none.
fn read_stored(archive: &Archive, file: WalFile) -> Result<Option<Vec<u8>>> {
    let (key, name) = (archive.keys.wal(file), file.to_string());
    let identity =
        Identity { kind: Kind::Wal, name: &name, system_identifier: archive.profile.system_identifier };
    let stored = archive.repo.first(|repo| {
        let Some(object) = wait(repo.read(&key))? else { return Ok(None) };
        let content = seal::open(identity, &object).map_err(|error| damaged(repo.url(), &key, &error));
        content.map(Some).inspect_err(|error| tracing::warn!(%error, "it is looked for elsewhere"))
    });
    archive.tell_who_is_away();
    stored
}

fn damaged(url: &str, key: &Key, why: &SealError) -> Error {
    Error::from(RepoError {
        kind: RepoErrorKind::Damaged,
        url: url.to_owned(),
        doing: format!("read {key}"),
        why: format!("The stored object is damaged: {why}"),
    })
}

/// Returns where a node's archive is.
pub fn location(archive: &claim::Archive) -> Location {
    Location { url: archive.url.clone(), access: archive.access.clone() }
}

/// Returns the data directory that the command is run for: the server runs its commands in its own, which for a copy that was
/// restored elsewhere is not the one of the profile.
fn data_directory(profile: &Profile) -> PathBuf {
    let here = PathBuf::from(".");
    if here.join(CONTROL_FILE).exists() { here } else { profile.data_directory.clone() }
}

const CONTROL_FILE: &str = "global/pg_control";

#[cfg(test)]
pub(super) mod testing {
    //! An archive in a directory of its own, with a node whose data directory is beside it.

    use super::*;
    use crate::repo;
    use crate::repo::about::About;
    use crate::repo::crypt::Encrypted;
    use crate::repo::crypt::keyring::Keyring;
    use crate::secret::Secret;

    pub const SYSTEM: u64 = 7_398_812_045_532_218_841;
    /// The smallest.
    pub const SIZE: u64 = 1 << 20;

    /// Opens the archive that the profile in `file` names.
    fn open(file: &Path) -> Result<Archive> {
        let profile = read_profile(file)?;
        let data = data_directory(&profile);
        Archive::of(profile, data)
    }

    #[derive(Debug)]
    pub struct Place {
        pub directory: tempfile::TempDir,
        pub profile: PathBuf,
    }

    impl Place {
        pub fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let data = directory.path().join("data");
            fs::create_dir_all(data.join("global")).unwrap();
            fs::create_dir_all(data.join("pg_wal/archive_status")).unwrap();
            fs::write(data.join(CONTROL_FILE), SYSTEM.to_le_bytes()).unwrap();
            let url = format!("file://{}", directory.path().join("repository").display());
            repo::create(&Location::plain(url.as_str())).unwrap();
            let golden = include_bytes!("../../topology/testdata/profile-1.json");
            let mut profile: Profile = claim::read(golden).unwrap();
            profile.data_directory = data;
            let named = profile.archive.as_mut().unwrap();
            named.url = url;
            named.spool = Some(directory.path().join("spool"));
            let file = directory.path().join("profile.json");
            fs::write(&file, claim::write(&profile)).unwrap();
            Self { directory, profile: file }
        }

        /// Opens the archive as if its repository were encrypted.
        pub(in crate::ops::wal) fn encrypted(&self) -> Archive {
            let archive = open(&self.profile).unwrap();
            let location = location(archive.profile.archive.as_ref().unwrap());
            let plain = repo::open(&location).unwrap();
            let about = wait(Box::pin(About::of(&*plain))).unwrap().encrypted();
            let keyring = Keyring::parse(&[Secret::new("1".repeat(64))]).unwrap();
            let repo = Arc::new(Encrypted::new(plain, &about, keyring).unwrap());
            let member = Arc::new(Member::opened(location, repo));
            let repo = Several::new(vec![Arc::clone(&member)]);
            let stores = vec![Store { name: "main".to_owned(), repo: member }];
            Archive { repo, stores, ..archive }
        }

        /// Makes another repository beside the first one, that WAL goes to as well.
        pub fn copy_to(&self, name: &str) {
            let url = format!("file://{}", self.directory.path().join(name).display());
            repo::create(&Location::plain(url.as_str())).unwrap();
            self.goes_to(name, &url, None);
        }

        /// Declares another repository that WAL goes to.
        pub fn goes_to(&self, name: &str, url: &str, access: Option<PathBuf>) {
            let mut profile: Profile = claim::read(&fs::read(&self.profile).unwrap()).unwrap();
            let archive = profile.archive.as_mut().unwrap();
            archive.copies.push(ArchiveCopy { repository: name.to_owned(), url: url.to_owned(), access });
            fs::write(&self.profile, claim::write(&profile)).unwrap();
        }

        pub fn pg_wal(&self) -> PathBuf {
            self.directory.path().join("data/pg_wal")
        }

        /// Returns where a WAL file is stored.
        pub fn object(&self, name: &str) -> PathBuf {
            let archive = open(&self.profile).unwrap();
            let key = archive.keys.wal(name.parse().unwrap());
            self.directory.path().join("repository").join(key.as_str())
        }

        /// Writes a WAL file into pg_wal; a segment's pages are all `fill`.
        pub fn write(&self, name: &str, fill: u8) -> PathBuf {
            let content = match name.len() {
                24 | 32 => segment(name, fill),
                _ => format!("1\t0/{fill:X}00000\tno recovery target specified\n").into_bytes(),
            };
            let path = self.pg_wal().join(name);
            fs::write(&path, content).unwrap();
            path
        }

        /// Writes a WAL file and pushes it.
        pub fn archive(&self, name: &str, fill: u8) {
            let path = self.write(name, fill);
            push(&self.profile, &path, LEVEL).unwrap();
            fs::remove_file(path).unwrap();
        }
    }

    /// Makes a segment of 15 with the right header.
    pub fn segment(name: &str, fill: u8) -> Vec<u8> {
        let name: crate::pg::wal_file::SegmentName = name[..24].parse().unwrap();
        let size = crate::pg::wal_file::WalSegmentSize::new(SIZE).unwrap();
        let mut bytes = vec![fill; SIZE as usize];
        bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&name.start(size).as_u64().to_le_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.to_le_bytes());
        bytes[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
        bytes
    }
}
