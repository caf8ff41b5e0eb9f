//! One WAL file goes into the repository, durably, or whoever asked for it is told that it did not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pg::control_bytes;
use crate::pg::history::TimelineHistory;
use crate::pg::wal_file::{SegmentName, WalFile};
use crate::pg::wal_header::{SegmentHeader, SegmentHeaderError};
use crate::topology::claim::Profile;

use super::item::{Item, Pushed, Trouble};
use super::owed::Owed;
use super::{Archive, CONTROL_FILE, Store};

/// How hard zstd compresses unless it is told otherwise. Harder costs WAL that is written under load more time than its writers leave, and saves little.
pub const LEVEL: i32 = 1;

/// How long the other repositories of a node may take when one has a file.
const GRACE: Duration = Duration::from_secs(5);
/// Until one has it, each is waited for: its calls have deadlines of their own.
const NO_HURRY: Duration = Duration::from_secs(60);

/// Stores a WAL file in every repository of the node. It is durable in one of them when this returns, and what the others lack is written down
/// as [owed](super::owed).
///
/// # Errors
/// When it is durable in none: PostgreSQL keeps the file and tries again. When another file of its name is in one of them: nothing in the archive is ever replaced by
/// something else.
pub(super) fn push_into(archive: &Archive, file: WalFile, path: &Path, level: i32) -> Result<Pushed> {
    let content = fs::read(path)
        .map_err(|error| Error::failed(format!("could not read {}", path.display())).source(error))?;
    check_source(archive, file, &content)?;
    let item = Item::of(archive, file, content, level);
    match archive.stores.as_slice() {
        [only] => item.put(only.repo.open()?).map_err(|trouble| *trouble.error),
        several => everywhere(&archive.profile, several, item),
    }
}

/// Stores a file in several repositories side by side.
fn everywhere(profile: &Profile, stores: &[Store], item: Item) -> Result<Pushed> {
    let (owed, file, item) = (Owed::of(profile), item.file, Arc::new(item));
    // Who was away a moment ago is not asked again by every call.
    let is_away = |store: &&Store| owed.as_ref().is_some_and(|owed| owed.was_away(&store.name));
    let (away, asked): (Vec<&Store>, Vec<&Store>) = stores.iter().partition(is_away);
    let mut ended = side_by_side(&asked, &item);
    if !ended.iter().any(|(_, outcome)| outcome.is_ok()) {
        ended.extend(side_by_side(&away, &item));
    }
    // Two contents of one name are told wherever they are found.
    let is_wrong =
        |(_, outcome): &(_, Result<Pushed, Trouble>)| outcome.as_ref().is_err_and(|trouble| trouble.wrong);
    if let Some(at) = ended.iter().position(is_wrong)
        && let (_, Err(trouble)) = ended.swap_remove(at)
    {
        return Err(*trouble.error);
    }
    if !ended.iter().any(|(_, outcome)| outcome.is_ok()) {
        let (_, first) = ended.swap_remove(0);
        return first.map_err(|trouble| *trouble.error);
    }
    for store in stores {
        let outcome = ended.iter().find(|(name, _)| *name == store.name).map(|(_, outcome)| outcome);
        let why = match outcome {
            Some(Ok(_)) => {
                owed.iter().for_each(|owed| owed.is_back(&store.name));
                continue;
            }
            Some(Err(trouble)) => trouble.error.to_string(),
            None => "it was away a moment ago".to_owned(),
        };
        owe(owed.as_ref(), &store.name, file, why)?;
    }
    let first = ended.into_iter().find_map(|(_, outcome)| outcome.ok());
    Ok(first.expect("one was seen to have it"))
}

/// Writes down that a repository lacks a file. Without a place for that the file is not acknowledged: nobody would bring it there.
fn owe(owed: Option<&Owed>, repository: &str, file: WalFile, why: String) -> Result<()> {
    tracing::warn!(repository, why, "{file} is owed to a repository");
    let could_not =
        Error::failed(format!("could not store {file} in repository {repository}")).detail(format!("{why}."));
    match owed {
        None => Err(could_not),
        Some(owed) => owed.add(repository, file).map_err(|error| could_not.source(error)),
    }
}

/// Has each of them store a file; who has not when another one has and [`GRACE`] is over, is not waited for.
fn side_by_side(stores: &[&Store], item: &Arc<Item>) -> Vec<(String, Result<Pushed, Trouble>)> {
    let (tell, told) = mpsc::channel();
    let mut waits: BTreeSet<String> = BTreeSet::new();
    let mut ended = Vec::new();
    for store in stores {
        let (tell, item, repo, name) =
            (tell.clone(), Arc::clone(item), Arc::clone(&store.repo), store.name.clone());
        waits.insert(name.clone());
        // Where it does not answer it ends with its call, at the latest with this process.
        thread::spawn(move || {
            let outcome = repo.open().map_err(Trouble::from).and_then(|repo| item.put(repo));
            tell.send((name, outcome)).unwrap_or(());
        });
    }
    let mut until: Option<Instant> = None;
    while !waits.is_empty() {
        let patience = until.map_or(NO_HURRY, |until| until.saturating_duration_since(Instant::now()));
        match told.recv_timeout(patience) {
            Ok((name, outcome)) => {
                if outcome.is_ok() {
                    until.get_or_insert_with(|| Instant::now() + GRACE);
                }
                waits.remove(&name);
                ended.push((name, outcome));
            }
            Err(_) if until.is_none() => {}
            Err(_) => break,
        }
    }
    for name in waits {
        let late = Error::failed(format!("repository {name} did not answer in {} s", GRACE.as_secs()));
        ended.push((name, Err(Trouble::away(late))));
    }
    ended
}

/// Holds the file to the cluster that the profile describes: what another one wrote must not get among its WAL.
fn check_source(archive: &Archive, file: WalFile, content: &[u8]) -> Result<()> {
    let profile = &archive.profile;
    let refused = |why: String| {
        Error::refused(format!("cannot archive {file} as WAL of {}-{}", profile.cluster, profile.node))
            .detail(format!("{why}. Nothing was stored."))
    };
    let control = archive.data.join(CONTROL_FILE);
    let mut first = [0; 8];
    File::open(&control)
        .and_then(|mut file| file.read_exact(&mut first))
        .map_err(|error| Error::failed(format!("could not read {}", control.display())).source(error))?;
    let found = control_bytes::system_identifier(&first);
    if found != Some(profile.system_identifier) {
        let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
        return Err(refused(format!(
            "{} has system identifier {found}, the node's profile has {}",
            control.display(),
            profile.system_identifier
        )));
    }
    match file {
        WalFile::Segment(name) | WalFile::Partial(name) => {
            check_segment(archive, name, content).map_err(|error| refused(format!("Of the file, {error}")))
        }
        WalFile::TimelineHistory(timeline) => {
            TimelineHistory::parse(timeline, &String::from_utf8_lossy(content))
                .map(drop)
                .map_err(|error| refused(format!("It is no timeline history: {error}")))
        }
        WalFile::BackupHistory(..) => Ok(()),
    }
}

fn check_segment(archive: &Archive, name: SegmentName, content: &[u8]) -> Result<(), SegmentHeaderError> {
    let profile = &archive.profile;
    let header = SegmentHeader::parse(content)?;
    header.check(name, content.len() as u64, profile.system_identifier, profile.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ops::wal::testing::{Place, segment};
    use crate::repo::seal::Blake3;

    const NAME: &str = "000000010000000000000003";

    fn push(profile: &Path, path: &Path) -> Result<Pushed> {
        crate::ops::wal::push(profile, path, LEVEL)
    }

    #[test]
    fn the_same_again_is_success_and_something_else_is_not() {
        let place = Place::new();
        let path = place.write(NAME, 7);
        assert!(matches!(push(&place.profile, &path).unwrap(), Pushed::Stored { .. }));
        assert!(matches!(push(&place.profile, &path).unwrap(), Pushed::AlreadyThere { .. }));
        let stored = fs::read(place.object(NAME)).unwrap();

        let path = place.write(NAME, 8);
        let error = push(&place.profile, &path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        let detail = error.detail_text().unwrap();
        for hash in [7, 8].map(|fill| Blake3::of(&segment(NAME, fill)).to_string()) {
            assert!(detail.contains(&hash), "{detail}");
        }
        assert!(detail.contains("two primaries"), "{detail}");
        assert_eq!(fs::read(place.object(NAME)).unwrap(), stored);
    }

    #[test]
    fn in_an_encrypted_archive_the_same_is_known_and_what_is_damaged_is_mended_by_what_its_header_tells() {
        let place = Place::new();
        let archive = place.encrypted();
        let file: WalFile = NAME.parse().unwrap();
        // More than one chunk, however it is compressed.
        let path = place.write(NAME, 7);
        let mut content = fs::read(&path).unwrap();
        let mut state = 1_u32;
        for byte in &mut content[8192..300_000] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = state.to_be_bytes()[0];
        }
        fs::write(&path, &content).unwrap();
        let push = || push_into(&archive, file, &path, LEVEL);
        assert!(matches!(push().unwrap(), Pushed::Stored { .. }));
        assert!(matches!(push().unwrap(), Pushed::AlreadyThere { .. }));

        let flip = |at: usize| {
            let mut object = fs::read(place.object(NAME)).unwrap();
            object[at] ^= 1;
            fs::write(place.object(NAME), object).unwrap();
        };
        flip(200_000);
        let Pushed::Mended { damage, .. } = push().unwrap() else { panic!("it is mended") };
        assert!(damage.contains("its chunk 3 is not what was stored there"), "{damage}");
        assert!(matches!(push().unwrap(), Pushed::AlreadyThere { .. }));
        // Of its header, which is in the first chunk, nothing is known then.
        flip(500);
        let error = push().unwrap_err();
        assert!(error.detail_text().unwrap().contains("has to be removed by hand"), "{error:?}");
        flip(500);
        assert!(matches!(push().unwrap(), Pushed::AlreadyThere { .. }));
    }

    #[test]
    fn every_kind_of_wal_file_is_stored() {
        let place = Place::new();
        for name in [
            NAME,
            "000000010000000000000003.partial",
            "00000002.history",
            "000000010000000000000003.00000028.backup",
        ] {
            let path = place.write(name, 7);
            assert!(matches!(push(&place.profile, &path).unwrap(), Pushed::Stored { .. }), "{name}");
            assert!(place.object(name).exists());
        }
        let path = place.pg_wal().join("xlogtemp.4711");
        fs::write(&path, "x").unwrap();
        assert!(push(&place.profile, &path).is_err());
    }

    #[test]
    fn what_another_cluster_wrote_is_refused() {
        let place = Place::new();
        let path = place.write(NAME, 7);
        let refused = || {
            let error = push(&place.profile, &path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
            assert!(!place.object(NAME).exists());
        };
        let mut other = segment(NAME, 7);
        other[24] ^= 1;
        fs::write(&path, other).unwrap();
        refused();
        fs::write(&path, &segment(NAME, 7)[..1000]).unwrap();
        refused();
        fs::write(&path, segment("000000010000000000000004", 7)).unwrap();
        refused();
        place.write(NAME, 7);
        let control = place.directory.path().join("data").join(CONTROL_FILE);
        fs::write(&control, 12_u64.to_le_bytes()).unwrap();
        refused();
        let history = place.write("00000002.history", 7);
        assert_eq!(push(&place.profile, &history).unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_torn_history_is_not_stored() {
        let place = Place::new();
        let path = place.write("00000003.history", 7);
        fs::write(&path, "1\t0/30").unwrap();
        push(&place.profile, &path).unwrap();
        let path = place.write("00000004.history", 7);
        fs::write(&path, [0; 20]).unwrap();
        assert_eq!(push(&place.profile, &path).unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_damaged_object_is_replaced_only_by_what_it_was() {
        let place = Place::new();
        let path = place.write(NAME, 7);
        push(&place.profile, &path).unwrap();
        let object = place.object(NAME);
        let whole = fs::read(&object).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;

        fs::write(&object, &damaged).unwrap();
        assert!(matches!(push(&place.profile, &path).unwrap(), Pushed::Mended { .. }));
        assert_eq!(fs::read(&object).unwrap(), whole);

        fs::write(&object, &damaged).unwrap();
        place.write(NAME, 8);
        push(&place.profile, &path).unwrap_err();
        assert_eq!(fs::read(&object).unwrap(), damaged);

        fs::write(&object, b"").unwrap();
        let error = push(&place.profile, &path).unwrap_err();
        assert!(error.detail_text().unwrap().contains("removed by hand"), "{error:?}");
    }

    #[test]
    fn a_repository_that_is_gone_is_not_made_again() {
        let place = Place::new();
        let path = place.write(NAME, 7);
        let root = place.directory.path().join("repository");
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        assert_eq!(push(&place.profile, &path).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
