//! What a repository of a node lacks because it was away, and who brings it there.
//!
//! `SPOOL/CLUSTER-NODE/owed/REPOSITORY/FILE`, an empty file for each, made before the server is told that its file is archived. A call that finds the repository back starts a
//! worker, which takes each file from pg_wal or from a repository that has it, and ends at the first one that it cannot store. Where the marks are lost, or
//! another node is primary meanwhile, `pgherd backup copy` finds what is missing by listing.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::push::Item;
use super::{Archive, Store, read_profile};
use crate::error::{Error, Result};
use crate::host::aside;
use crate::pg::wal_file::WalFile;
use crate::repo::seal::{self, Identity, Kind};
use crate::repo::wait;
use crate::topology::claim::Profile;

const LOCK: &str = "worker.lock";
/// There since a repository was found to be away.
const AWAY: &str = "away";
/// For so long it is not asked again.
const A_MOMENT: Duration = Duration::from_secs(30);

/// The marks of a node.
#[derive(Debug)]
pub(super) struct Owed(PathBuf);

impl Owed {
    /// Returns those that a profile has a place for.
    pub(super) fn of(profile: &Profile) -> Option<Self> {
        let root = profile.archive.as_ref()?.spool.as_ref()?;
        Some(Self(root.join(format!("{}-{}", profile.cluster, profile.node)).join("owed")))
    }

    fn folder(&self, repository: &str) -> PathBuf {
        self.0.join(repository)
    }

    /// Writes down, durably, that a repository lacks a file.
    ///
    /// # Errors
    /// As the file system's.
    pub(super) fn add(&self, repository: &str, file: WalFile) -> io::Result<()> {
        let folder = self.folder(repository);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.and_then(|()| File::create(folder.join(file.to_string()))?.sync_all())?;
        if !self.was_away(repository) {
            File::create(folder.join(AWAY))?;
        }
        for directory in [Some(folder.as_path()), folder.parent(), self.0.parent()].into_iter().flatten() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Returns what a repository lacks, histories first.
    pub(super) fn to(&self, repository: &str) -> BTreeSet<(bool, String)> {
        let Ok(entries) = fs::read_dir(self.folder(repository)) else { return BTreeSet::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| name.parse::<WalFile>().is_ok())
            .map(|name| (!name.ends_with(".history"), name))
            .collect()
    }

    /// Tells whether a repository was away a moment ago.
    pub(super) fn was_away(&self, repository: &str) -> bool {
        let changed = fs::metadata(self.folder(repository).join(AWAY)).and_then(|file| file.modified());
        let ago = changed.ok().and_then(|changed| SystemTime::now().duration_since(changed).ok());
        ago.is_some_and(|ago| ago < A_MOMENT)
    }

    /// Forgets that a repository was away.
    pub(super) fn is_back(&self, repository: &str) {
        // What stays is forgotten by time.
        fs::remove_file(self.folder(repository).join(AWAY)).ok();
    }

    /// Locks what a repository lacks for whoever brings it there; `None` if somebody else does.
    fn alone(&self, repository: &str) -> Option<File> {
        let file = File::create(self.folder(repository).join(LOCK)).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
    }
}

/// Starts a worker where a repository lacks something and is back.
pub(super) fn settle_aside(profile: &Path, node: &Profile) {
    let (Some(owed), Some(archive)) = (Owed::of(node), &node.archive) else { return };
    let waits = |name: &str| {
        !owed.to(name).is_empty() && !owed.was_away(name) && owed.alone(name).is_some()
    };
    if archive.copies.is_empty() || !archive.repositories().any(|known| waits(&known.repository)) {
        return;
    }
    let (Ok(program), Ok(profile)) = (std::env::current_exe(), std::path::absolute(profile)) else { return };
    let words = ["wal".into(), "settle".into(), "--profile".into(), profile.into_os_string()];
    if let Err(error) = aside::start(&program, &words) {
        tracing::debug!(%error, "what is owed stays owed until the next call");
    }
}

/// Brings every repository of a node what it lacks.
///
/// # Errors
/// The first thing that could not be stored; it stays owed.
pub fn settle(profile: &Path) -> Result<()> {
    aside::leave_the_session();
    let node = read_profile(profile)?;
    let Some(owed) = Owed::of(&node) else { return Ok(()) };
    let data = node.data_directory.clone();
    let archive = Archive::open(node, data)?;
    let mut first = Ok(());
    for store in &archive.stores {
        if !owed.to(&store.name).is_empty()
            && let Some(_alone) = owed.alone(&store.name)
        {
            first = first.and(settle_one(&archive, store, &owed));
        }
    }
    first
}

fn settle_one(archive: &Archive, store: &Store, owed: &Owed) -> Result<()> {
    let repo = store.repo.clone()?;
    for (_, name) in owed.to(&store.name) {
        let Ok(file) = name.parse::<WalFile>() else { continue };
        let key = archive.keys.wal(file);
        if let Some(content) = content(archive, file)? {
            let item = Item {
                cluster: archive.profile.cluster.clone(),
                system: archive.profile.system_identifier,
                file,
                key,
                content,
                level: super::LEVEL,
                sealed: OnceLock::new(),
            };
            item.put(&repo).map_err(|trouble| trouble.error)?;
        }
        let mark = owed.folder(&store.name).join(&name);
        fs::remove_file(&mark)
            .map_err(|error| Error::failed(format!("could not remove {}", mark.display())).source(error))?;
    }
    Ok(())
}

/// Reads a file from whichever repository has it; `None` if it was expired everywhere.
fn content(archive: &Archive, file: WalFile) -> Result<Option<Vec<u8>>> {
    let (key, name) = (archive.keys.wal(file), file.to_string());
    let Some(object) = wait(archive.repo.read(&key))? else { return Ok(None) };
    let identity =
        Identity { kind: Kind::Wal, name: &name, system_identifier: archive.profile.system_identifier };
    seal::open(identity, &object)
        .map(Some)
        .map_err(|error| Error::failed(format!("could not read {key}")).detail(format!("{error}.")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::wal::testing::Place;
    use crate::ops::wal::{Fetched, LEVEL, Pushed, fetch, push};

    const ONE: &str = "000000010000000000000003";
    const TWO: &str = "000000010000000000000004";

    /// A node whose WAL goes to `repository`, which is called main, and to `far`.
    fn place() -> Place {
        let place = Place::new();
        place.copy_to("far");
        place
    }

    fn put(place: &Place, name: &str) -> Result<Pushed> {
        push(&place.profile, &place.write(name, 7), LEVEL)
    }

    fn has(place: &Place, folder: &str, name: &str) -> bool {
        let object = place.object(name);
        let below = object.strip_prefix(place.directory.path().join("repository")).unwrap().to_owned();
        place.directory.path().join(folder).join(below).exists()
    }

    fn take_away(place: &Place, folder: &str) {
        let path = place.directory.path().join(folder);
        fs::rename(&path, path.with_extension("away")).unwrap();
    }

    fn bring_back(place: &Place, folder: &str) {
        let path = place.directory.path().join(folder);
        fs::rename(path.with_extension("away"), path).unwrap();
    }

    fn owed_to(place: &Place, repository: &str) -> Vec<String> {
        let owed = Owed::of(&read_profile(&place.profile).unwrap()).unwrap();
        owed.to(repository).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_file_goes_to_every_repository_and_is_acknowledged_when_one_has_it() {
        let place = place();
        assert!(matches!(put(&place, ONE).unwrap(), Pushed::Stored { .. }));
        assert!(has(&place, "repository", ONE) && has(&place, "far", ONE));
        assert_eq!((owed_to(&place, "main"), owed_to(&place, "far")), (Vec::new(), Vec::new()));
        assert!(matches!(put(&place, ONE).unwrap(), Pushed::AlreadyThere { .. }));

        for (folder, name, other) in [("far", "far", "repository"), ("repository", "main", "far")] {
            let file = if name == "far" { TWO } else { "000000010000000000000005" };
            take_away(&place, folder);
            put(&place, file).unwrap();
            assert!(has(&place, other, file), "{name}");
            assert_eq!(owed_to(&place, name), [file], "{name}");
            // It is not there yet: who brings it what it lacks says so, and nothing is forgotten.
            assert!(settle(&place.profile).is_err(), "{name}");
            assert_eq!(owed_to(&place, name), [file], "{name}");
            bring_back(&place, folder);
            settle(&place.profile).unwrap();
            assert!(has(&place, folder, file), "{name}");
            assert_eq!(owed_to(&place, name), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn what_no_repository_has_is_not_acknowledged_and_two_contents_of_one_name_are_told() {
        let place = place();
        take_away(&place, "repository");
        take_away(&place, "far");
        assert!(put(&place, ONE).is_err());
        assert_eq!((owed_to(&place, "main"), owed_to(&place, "far")), (Vec::new(), Vec::new()));
        bring_back(&place, "repository");
        put(&place, ONE).unwrap();
        take_away(&place, "repository");
        bring_back(&place, "far");
        // Another server has stored another file of this name in the repository that was away.
        fs::remove_file(place.pg_wal().join(ONE)).unwrap();
        push(&place.profile, &place.write(ONE, 8), LEVEL).unwrap();
        bring_back(&place, "repository");
        let error = settle(&place.profile).unwrap_err();
        assert!(error.detail_text().unwrap().contains("two primaries"), "{error:?}");
        let error = put(&place, ONE).unwrap_err();
        assert!(error.detail_text().unwrap().contains("two primaries"), "{error:?}");
    }

    #[test]
    fn a_file_is_fetched_from_whichever_repository_has_it_and_absent_only_if_each_says_so() {
        let place = place();
        take_away(&place, "repository");
        put(&place, ONE).unwrap();
        bring_back(&place, "repository");
        let target = place.pg_wal().join("RECOVERYXLOG");
        let get = |name: &str| fetch(&place.profile, name, &target);
        assert!(matches!(get(ONE).unwrap(), Fetched::Got { .. }));
        assert!(matches!(get(TWO).unwrap(), Fetched::Absent { .. }));
        take_away(&place, "far");
        assert!(get(TWO).is_err(), "what the other one holds cannot be told");
        assert!(get(ONE).is_err());
        bring_back(&place, "far");
        take_away(&place, "repository");
        assert!(matches!(get(ONE).unwrap(), Fetched::Got { .. }));
        assert!(get(TWO).is_err());
    }
}
