//! What a repository of a node lacks because it was away, and who brings it there.
//!
//! `SPOOL/CLUSTER-NODE/owed/REPOSITORY/FILE`, an empty file for each, made before the server is told that its file is archived. That call, or the next one, starts
//! a worker, which takes each file from a repository that has it, and tries for as long as there is something to bring. Where the marks are lost, or
//! another node is primary meanwhile, `pgherd backup copy` finds what is missing by listing.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::item::Item;
use super::spool;
use super::worker::{self, runs};
use super::{Archive, Store, read_profile, read_stored};
use crate::error::{Error, Result};
use crate::host::aside;
use crate::pg::wal_file::WalFile;
use crate::repo::SharedRepo;
use crate::topology::claim::Profile;

/// There since a repository was found to be away.
const AWAY: &str = "away";
/// For so long it is not asked again.
const A_MOMENT: Duration = Duration::from_secs(30);
/// How long a worker waits before it tries again.
const BETWEEN: Duration = Duration::from_secs(10);
/// An error that comes sooner is about one file.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How long a worker lives: what it runs as, and what it knows of the node, is of its beginning.
const LIFE: Duration = Duration::from_secs(3600);

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
        self.found_away(repository);
        for directory in [Some(folder.as_path()), folder.parent(), self.0.parent()].into_iter().flatten() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Returns what a repository lacks, histories first.
    pub(super) fn to(&self, repository: &str) -> BTreeSet<(bool, String)> {
        self.names(repository).map(|name| (!name.ends_with(".history"), name)).collect()
    }

    fn names(&self, repository: &str) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(self.folder(repository)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.parse::<WalFile>().is_ok())
    }

    /// Tells whether a repository was away a moment ago.
    pub(super) fn was_away(&self, repository: &str) -> bool {
        let changed = fs::metadata(self.folder(repository).join(AWAY)).and_then(|file| file.modified());
        let ago = changed.ok().and_then(|changed| SystemTime::now().duration_since(changed).ok());
        ago.is_some_and(|ago| ago < A_MOMENT)
    }

    /// Notes that a repository was found to be away.
    pub(super) fn found_away(&self, repository: &str) {
        let folder = self.folder(repository);
        let others = self.0.parent().is_some_and(|node| !spool::is_ours_to_make(node));
        if !self.was_away(repository) && !others {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            // Without it the next call asks it too.
            made.and_then(|()| File::create(folder.join(AWAY)).map(drop)).ok();
        }
    }

    /// Forgets that a repository was away.
    pub(super) fn is_back(&self, repository: &str) {
        // What stays is forgotten by time.
        fs::remove_file(self.folder(repository).join(AWAY)).ok();
    }

    /// Locks what is owed for whoever brings it there; `None` if somebody else does.
    fn alone(&self) -> Option<File> {
        spool::alone(&self.0)
    }

    /// Tells whether one of the repositories of a node lacks something.
    fn is_any(&self, node: &Profile) -> bool {
        let mut repositories = node.archive.iter().flat_map(|archive| archive.repositories());
        repositories.any(|known| self.names(&known.repository).next().is_some())
    }
}

/// Starts a worker where a repository lacks something.
pub(super) fn settle_aside(profile: &Path, node: &Profile) {
    if node.archive.as_ref().is_none_or(|archive| archive.copies.is_empty()) {
        return;
    }
    if let Some(owed) = Owed::of(node)
        && owed.is_any(node)
        && owed.alone().is_some()
    {
        worker::start_aside("settle", profile, &[]);
    }
}

/// Brings every repository of a node what it lacks, again and again, until nothing is owed any more, the server stops, its profile changes, or an hour is over. Does
/// nothing where somebody else does it.
///
/// # Errors
/// What could not be stored when it ended.
pub fn settle(profile: &Path) -> Result<()> {
    aside::leave_the_session();
    let node = read_profile(profile)?;
    let Some(owed) = Owed::of(&node) else { return Ok(()) };
    let begun = Instant::now();
    let stays = || {
        begun.elapsed() < LIFE
            && runs(&node.data_directory)
            && read_profile(profile).is_ok_and(|now| now == node)
    };
    loop {
        let Some(alone) = owed.alone() else { return Ok(()) };
        let mut ended = settle_once(&node, &owed);
        while ended.is_err() && stays() {
            thread::sleep(BETWEEN);
            ended = settle_once(&node, &owed);
        }
        drop(alone);
        // Who wrote something down since the last look has started nobody.
        if ended.is_err() || !owed.is_any(&node) {
            return ended;
        }
    }
}

fn settle_once(node: &Profile, owed: &Owed) -> Result<()> {
    let archive = Archive::of(node.clone(), node.data_directory.clone())?;
    let lacks = archive.stores.iter().filter(|store| !owed.to(&store.name).is_empty());
    // One that stays away keeps no other one waiting.
    lacks.map(|store| settle_one(&archive, store, owed)).fold(Ok(()), Result::and)
}

/// Brings one repository what it lacks. A file that cannot be brought, since it is damaged where it is or another one is there in its place, keeps none of those
/// behind it waiting.
fn settle_one(archive: &Archive, store: &Store, owed: &Owed) -> Result<()> {
    let repo = store.repo.open()?;
    let mut ended = Ok(());
    for (_, name) in owed.to(&store.name) {
        let Ok(file) = name.parse::<WalFile>() else { continue };
        let begun = Instant::now();
        let brought = bring(archive, file, repo).and_then(|()| {
            let mark = owed.folder(&store.name).join(&name);
            fs::remove_file(&mark)
                .map_err(|error| Error::failed(format!("could not remove {}", mark.display())).source(error))
        });
        match brought {
            Ok(()) => owed.is_back(&store.name),
            // Whoever does not answer does not answer for the next one either.
            Err(error) if begun.elapsed() > AT_ONCE => return Err(error),
            Err(error) => ended = ended.and(Err(error)),
        }
    }
    ended
}

/// Stores a file in a repository as another one has it. What was expired everywhere is owed to nobody.
fn bring(archive: &Archive, file: WalFile, repo: &SharedRepo) -> Result<()> {
    let Some(content) = read_stored(archive, file)? else { return Ok(()) };
    let item = Item::of(archive, file, content, super::LEVEL);
    item.put(repo).map(drop).map_err(|trouble| *trouble.error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
    fn a_file_that_cannot_be_brought_keeps_none_behind_it_waiting() {
        let place = place();
        take_away(&place, "far");
        put(&place, ONE).unwrap();
        put(&place, TWO).unwrap();
        assert_eq!(owed_to(&place, "far"), [ONE, TWO]);
        fs::write(place.object(ONE), b"something else").unwrap();
        bring_back(&place, "far");
        settle(&place.profile).unwrap_err();
        assert!(has(&place, "far", TWO) && !has(&place, "far", ONE));
        assert_eq!(owed_to(&place, "far"), [ONE]);
    }

    #[test]
    fn what_is_damaged_in_one_repository_beyond_recognition_stops_no_archiving() {
        let place = place();
        put(&place, ONE).unwrap();
        let far = place.directory.path().join("far");
        let object =
            far.join(place.object(ONE).strip_prefix(place.directory.path().join("repository")).unwrap());
        fs::write(&object, b"").unwrap();
        assert!(matches!(put(&place, ONE).unwrap(), Pushed::AlreadyThere { .. }));
        assert_eq!(owed_to(&place, "far"), [ONE]);
        assert_eq!(fs::read(&object).unwrap(), b"", "it is left for whoever wants to see it");
    }

    #[test]
    fn a_repository_whose_opening_hangs_keeps_no_file_from_the_others() {
        let place = Place::new();
        // Whoever comes is let in, and never answered.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = "s3://far/v1";
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let credentials = serde_json::json!({"access_key": "a", "secret_key": "b"});
        let s3 = serde_json::json!({
            "region": "here", "endpoint": endpoint, "path_style": true, "credentials": credentials
        });
        let access = place.directory.path().join("access.json");
        let text = serde_json::json!({"format": 1, "url": url, "s3": s3, "keys": []}).to_string();
        fs::write(&access, text).unwrap();
        fs::set_permissions(&access, fs::Permissions::from_mode(0o600)).unwrap();
        place.goes_to("far", url, Some(access));

        let begun = Instant::now();
        put(&place, ONE).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(owed_to(&place, "far"), [ONE]);
        // The next call does not even ask, and what one has is fetched without the other.
        let begun = Instant::now();
        put(&place, TWO).unwrap();
        let target = place.pg_wal().join("RECOVERYXLOG");
        assert!(matches!(fetch(&place.profile, ONE, &target).unwrap(), Fetched::Got { .. }));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(owed_to(&place, "far"), [ONE, TWO]);
    }

    #[test]
    fn a_segment_that_is_damaged_in_one_is_fetched_from_another_which_need_not_answer_otherwise() {
        let place = place();
        put(&place, ONE).unwrap();
        let target = place.pg_wal().join("RECOVERYXLOG");
        let whole = fs::read(place.object(ONE)).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(place.object(ONE), &damaged).unwrap();
        assert!(matches!(fetch(&place.profile, ONE, &target).unwrap(), Fetched::Got { .. }));
        assert_eq!(fs::read(&target).unwrap(), fs::read(place.pg_wal().join(ONE)).unwrap());
        assert!(!place.directory.path().join("spool/inventory-a/owed/main/away").exists());
        // Where no other one has it, it is the damage that is told.
        fs::remove_dir_all(place.directory.path().join("far")).unwrap();
        let error = fetch(&place.profile, ONE, &target).unwrap_err();
        assert!(
            error.to_string().contains("damaged") || error.detail_text().unwrap().contains("damaged"),
            "{error:?}"
        );
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
