//! What an encrypted repository promises: nobody reads it without a key, whatever was done to it is found and told for what it is, and a
//! key is exchanged without touching what it protects.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking, with what it found")]

#[path = "support/noise.rs"]
mod noise;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::join_all;
use jiff::Timestamp;
use noise::noise;
use pgherd::pg::system::SystemIdentifier;
use pgherd::pg::timeline::TimelineId;
use pgherd::repo::about::About;
use pgherd::repo::crypt::Encrypted;
use pgherd::repo::crypt::keyring::Keyring;
use pgherd::repo::crypt::rekey::{Half, Rekeyed, prove, rekey};
use pgherd::repo::dump::{self, DumpKeys};
use pgherd::repo::export::ExportKeys;
use pgherd::repo::faulty::{Fault, Faulty};
use pgherd::repo::layout::{self, BackupKeys, ClusterKeys, SystemKeys};
use pgherd::repo::{self, Key, Location, Put, RepoErrorKind, SharedRepo, wait};
use pgherd::secret::Secret;
use proptest::prelude::*;

const CHUNK: usize = 65_536;
const STORED_CHUNK: usize = CHUNK + 16;
const HEADER: usize = 72;
const TRAILER: usize = 16;

/// A repository in a directory, and what lies below the encryption.
struct Place {
    _directory: tempfile::TempDir,
    root: PathBuf,
    inner: SharedRepo,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = directory.path().join("repository");
        let inner = repo::create(&Location::plain(format!("file://{}", root.display()))).unwrap();
        let about = wait(Box::pin(About::of(&*inner))).unwrap().encrypted();
        wait(inner.store(&layout::repository(), &about.write())).unwrap();
        Self { _directory: directory, root, inner }
    }

    /// Opens it as somebody does who has these keys, and has read nothing yet.
    fn with(&self, keys: &str) -> SharedRepo {
        around(self.inner.clone(), keys)
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn change(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(key)).unwrap();
        change(&mut bytes);
        fs::write(self.file(key), bytes).unwrap();
    }
}

fn around(inner: SharedRepo, keys: &str) -> SharedRepo {
    let about = wait(Box::pin(About::of(&*inner))).unwrap();
    Arc::new(Encrypted::new(inner, &about, keyring(keys)).unwrap())
}

/// A keyring of one key a digit.
fn keyring(digits: &str) -> Keyring {
    let secret = |digit: char| Secret::new(digit.to_string().repeat(64));
    Keyring::parse(&digits.chars().map(secret).collect::<Vec<_>>()).unwrap()
}

fn cluster() -> ClusterKeys {
    ClusterKeys::new("inventory")
}

fn system() -> SystemKeys {
    cluster().system(SystemIdentifier::new(7_398_812_045_532_218_841).unwrap())
}

fn backup() -> BackupKeys {
    system().backup(&"20261121T100203Z-full".parse().unwrap())
}

fn wal(name: &str) -> Key {
    system().wal(name.parse().unwrap())
}

/// One object of each kind that is encrypted.
fn encrypted_kinds() -> Vec<Key> {
    let dumps = DumpKeys::new("inventory", "legal");
    let second: Timestamp = "2026-11-21T10:02:03Z".parse().unwrap();
    let export = ExportKeys::new(&system(), "shop", ("shop", "events_2019"), second).unwrap();
    vec![
        wal("0000000300000001000000A1"),
        wal("0000000300000001000000A1.partial"),
        wal("0000000300000001000000A1.00000028.backup"),
        wal("00000004.history"),
        backup().data(1),
        backup().files(),
        backup().manifest(),
        backup().pin(),
        export.rows(),
        export.manifest(),
        dumps.data(&dump::label(second)),
        dumps.manifest(&dump::label(second)),
    ]
}

/// One object of each kind that must be read without a key.
fn clear_kinds() -> Vec<Key> {
    vec![cluster().lock(), cluster().primary(), system().lease("7f3a"), layout::job("shop", "inventory.full")]
}

fn key_documents() -> BTreeSet<Key> {
    let timeline = |id| system().wal_key(TimelineId::new(id).unwrap());
    let documents = [timeline(3), timeline(4), system().rest_key(), backup().key_document()];
    documents.into_iter().chain([dump::key_document("inventory")]).collect()
}

/// Stores one of each kind, and returns what was stored.
fn fill(repo: &SharedRepo) -> BTreeMap<Key, Vec<u8>> {
    let keys = encrypted_kinds().into_iter().chain(clear_kinds());
    let content = |(number, key): (usize, Key)| {
        let content = noise(1000 + number * 20_000);
        wait(repo.store(&key, &content)).unwrap();
        (key, content)
    };
    keys.enumerate().map(content).collect()
}

fn all(repo: &SharedRepo) -> Vec<repo::Listed> {
    let folders = wait(repo.list(None)).unwrap().folders;
    folders.iter().flat_map(|name| wait(repo.list_all(&Key::new(name).unwrap())).unwrap()).collect()
}

fn opens(repo: &SharedRepo, stored: &BTreeMap<Key, Vec<u8>>) {
    for (key, content) in stored {
        assert!(wait(repo.read(key)).unwrap().as_ref() == Some(content), "{key}");
    }
}

#[test]
fn what_is_in_the_repository_is_encrypted_but_for_what_holds_a_cluster_together() {
    let place = Place::new();
    let repo = place.with("1");
    let stored = fill(&repo);
    opens(&place.with("1"), &stored);
    for (key, content) in &stored {
        let raw = fs::read(place.file(key)).unwrap();
        if clear_kinds().contains(key) {
            assert!(raw == *content, "{key}");
        } else {
            assert!(raw.starts_with(b"\x89PGHENC\n"), "{key}");
            assert!(!raw.windows(16).any(|window| window == &content[..16]), "{key}");
        }
    }
    let listed: BTreeMap<Key, usize> =
        all(&repo).into_iter().map(|listed| (listed.key, listed.size.0 as usize)).collect();
    let documents: BTreeSet<Key> = listed.keys().filter(|key| !stored.contains_key(*key)).cloned().collect();
    assert_eq!(documents, key_documents());
    for (key, content) in &stored {
        assert_eq!(listed[key], content.len(), "the listing shows the size of the content of {key}");
        let folder = Key::new(key.as_str().rsplit_once('/').unwrap().0).unwrap();
        let level = wait(repo.list(Some(&folder))).unwrap();
        let shown = level.objects.iter().find(|listed| listed.key == *key).unwrap();
        assert_eq!(shown.size.0 as usize, content.len());
    }
}

#[test]
fn what_pgherd_has_no_name_for_is_not_stored_in_the_clear() {
    let place = Place::new();
    let repo = place.with("1");
    fill(&repo);
    let strays = ["notes.txt", "inventory/notes.txt", "_jobs/notes.txt", "_dumps/inventory/notes.txt"];
    for text in strays {
        let key = Key::new(text).unwrap();
        let refused = wait(repo.store(&key, b"x")).unwrap_err();
        assert_eq!(refused.kind, RepoErrorKind::Other, "{refused}");
        wait(repo.create(&key, b"x")).unwrap_err();
        assert!(wait(repo.upload(&key)).is_err());
        assert!(!place.file(&key).exists());
        // What somebody else has put there is listed and can be removed.
        wait(place.inner.store(&key, b"x")).unwrap();
        wait(repo.read(&key)).unwrap_err();
        assert_eq!(wait(repo.remove(&key)), Ok(true));
    }
    for document in key_documents() {
        let error = wait(repo.store(&document, b"x")).unwrap_err();
        assert!(error.why.contains("never one of another repository"), "{error}");
        assert!(wait(repo.read(&document)).unwrap().is_some());
    }
}

#[test]
fn many_who_store_the_first_object_of_a_timeline_agree_on_its_key() {
    let place = Place::new();
    let threads: Vec<_> = (0..16)
        .map(|number| {
            let repo = place.with("1");
            std::thread::spawn(move || {
                let key = wal(&format!("0000000300000001000000{number:02X}"));
                assert_eq!(wait(repo.create(&key, &noise(number))), Ok(Put::Stored));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let repo = place.with("1");
    for number in 0..16 {
        let key = wal(&format!("0000000300000001000000{number:02X}"));
        assert_eq!(wait(repo.read(&key)).unwrap().unwrap(), noise(number));
    }
}

// ---- ranges -----------------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_range_of_any_object_is_that_of_its_content(
        length in prop_oneof![0..300_000_usize, (0..5_usize).prop_map(|chunks| chunks * CHUNK)],
        ranges in prop::collection::vec((0..400_000_u64, prop_oneof![0..400_000_u64, Just(u64::MAX)]), 1..8),
    ) {
        let place = Place::new();
        let (content, key) = (noise(length), backup().data(1));
        wait(place.with("1").store(&key, &content)).unwrap();
        let repo = place.with("1");
        let edges = [(length as u64, 1), (0, 0), (1 << 40, 1), (length as u64 / CHUNK as u64 * CHUNK as u64, CHUNK as u64)];
        for (offset, wanted) in ranges.into_iter().chain(edges) {
            let from = (offset as usize).min(length);
            let to = offset.saturating_add(wanted).min(length as u64) as usize;
            let found = wait(repo.read_range(&key, offset, wanted)).unwrap().unwrap();
            prop_assert!(found == content[from..to.max(from)], "{} bytes from {} of {}", wanted, offset, length);
        }
    }
}

#[test]
fn a_range_reads_no_more_than_the_chunks_that_it_is_in() {
    let place = Place::new();
    let (content, key) = (noise(6 * CHUNK + 100), backup().data(1));
    wait(place.with("1").store(&key, &content)).unwrap();
    place.change(&key, |bytes| bytes[HEADER + 3 * STORED_CHUNK + 5] ^= 1);
    let repo = place.with("1");
    let range = |from: usize, length: usize| wait(repo.read_range(&key, from as u64, length as u64));
    assert!(range(0, 3 * CHUNK).unwrap().unwrap() == content[..3 * CHUNK]);
    assert!(range(4 * CHUNK, 3 * CHUNK).unwrap().unwrap() == content[4 * CHUNK..]);
    for (from, length) in [(3 * CHUNK - 1, 2), (3 * CHUNK, 1), (4 * CHUNK - 1, 1), (0, 7 * CHUNK)] {
        let error = range(from, length).unwrap_err();
        assert_eq!(error.kind, RepoErrorKind::Damaged);
        assert!(error.why.contains("its chunk 3 is not what was stored there"), "{error}");
    }
}

#[test]
fn a_range_that_reaches_the_end_proves_that_it_is_the_end() {
    let place = Place::new();
    let (content, key) = (noise(3 * CHUNK), backup().data(1));
    wait(place.with("1").store(&key, &content)).unwrap();
    // Cut off behind the second chunk, with the trailer that a shorter object would have.
    place.change(&key, |bytes| {
        let end = bytes[bytes.len() - 8..].to_vec();
        bytes.truncate(HEADER + 2 * STORED_CHUNK);
        bytes.extend((2 * CHUNK as u64).to_le_bytes());
        bytes.extend(end);
    });
    let repo = place.with("1");
    let range = |from: usize, length: usize| wait(repo.read_range(&key, from as u64, length as u64));
    assert!(range(10, 100).unwrap().unwrap() == content[10..110]);
    for (from, length) in [(CHUNK, 1), (0, 2 * CHUNK), (2 * CHUNK, 1), (3 * CHUNK, 1), (1 << 40, 1)] {
        let error = range(from, length).unwrap_err();
        assert!(error.why.contains("its chunk 1 is not what was stored there"), "{from}: {error}");
    }
}

#[test]
fn an_object_that_was_replaced_is_read_anew() {
    let place = Place::new();
    let (reader, writer, key) = (place.with("1"), place.with("1"), backup().data(1));
    for content in [noise(300_000), noise(200_001), noise(300_002)] {
        wait(writer.store(&key, &content)).unwrap();
        for from in [150_000, 10] {
            let found = wait(reader.read_range(&key, from, 20_000)).unwrap().unwrap();
            assert!(found == content[from as usize..][..20_000]);
        }
    }
    wait(writer.remove(&key)).unwrap();
    assert_eq!(wait(reader.read_range(&key, 150_000, 1)), Ok(None));
}

#[test]
fn a_backup_that_was_removed_and_one_that_took_its_name_are_told_apart() {
    let place = Place::new();
    let (reader, writer, key) = (place.with("1"), place.with("1"), backup().data(1));
    wait(writer.store(&key, b"first")).unwrap();
    assert_eq!(wait(reader.read(&key)).unwrap().unwrap(), b"first");
    wait(writer.remove(&key)).unwrap();
    wait(writer.remove(&backup().key_document())).unwrap();
    assert_eq!(wait(reader.read(&key)), Ok(None));
    wait(writer.store(&key, b"second")).unwrap();
    assert_eq!(wait(reader.read(&key)).unwrap().unwrap(), b"second");
}

// ---- what is told of damage --------------------------------------------------------------------------------------------

/// Stores an object of three chunks, does something to it, and returns how it cannot be read any more.
fn told(keys: &str, harm: impl FnOnce(&Place, &Key)) -> (RepoErrorKind, String) {
    let place = Place::new();
    let key = backup().data(1);
    wait(place.with("1").store(&key, &noise(2 * CHUNK + 100))).unwrap();
    harm(&place, &key);
    let repo = place.with(keys);
    let error = wait(repo.read(&key)).unwrap_err();
    for ranged in [wait(repo.read_range(&key, 0, u64::MAX)), wait(repo.read_range(&key, 2 * CHUNK as u64, 1))]
    {
        // A range that was not in the damaged chunk says nothing of it.
        if let Err(ranged) = ranged {
            assert_eq!((ranged.kind, &ranged.why), (error.kind, &error.why));
        }
    }
    (error.kind, error.why)
}

#[test]
fn whatever_is_wrong_is_told_for_what_it_is() {
    let document = backup().key_document();
    let ids = |digits: &str| keyring(digits).ids()[0].to_string();
    let found = [
        told("23", |_, _| {}),
        told("1", |place, key| place.change(key, |bytes| bytes[HEADER + STORED_CHUNK] ^= 1)),
        told("1", |place, key| place.change(key, |bytes| bytes[20] ^= 1)),
        told("1", |place, key| place.change(key, |bytes| bytes.truncate(HEADER + STORED_CHUNK))),
        told("1", |place, key| place.change(key, |bytes| *bytes.last_mut().unwrap() ^= 1)),
        told("1", |place, key| {
            let other = backup().data(2);
            wait(place.with("1").store(&other, b"other")).unwrap();
            fs::copy(place.file(&other), place.file(key)).unwrap();
        }),
        told("1", |place, key| fs::write(place.file(key), noise(2 * CHUNK + 100)).unwrap()),
        told("1", |place, _| {
            place.change(&document, |bytes| {
                let at = bytes.windows(10).position(|window| window == b"\"wrapped\":").unwrap() + 20;
                bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            });
        }),
        told("1", |place, _| {
            wait(place.with("1").store(&wal("0000000300000001000000A1"), b"x")).unwrap();
            let other = system().wal_key(TimelineId::new(3).unwrap());
            fs::copy(place.file(&other), place.file(&document)).unwrap();
        }),
        told("1", |place, _| fs::remove_file(place.file(&document)).unwrap()),
    ];
    let below = document.as_str();
    let expected = [
        format!(
            "its key document {below} does not open: it is for key {}, and the keys given are {} or {}",
            ids("1"),
            ids("2"),
            ids("3")
        ),
        "its chunk 1 is not what was stored there".to_owned(),
        "its header was changed".to_owned(),
        "its end is missing, or something was added to it".to_owned(),
        "its trailer was changed".to_owned(),
        "it was stored under another name, or with another data key".to_owned(),
        "it is not encrypted, and everything of its kind is in this repository".to_owned(),
        format!("its key document {below} does not open: it is damaged: its hash does not fit"),
        format!(
            "its key document {below} does not open: it is the key document {}, which was moved",
            system().wal_key(TimelineId::new(3).unwrap())
        ),
        format!("its key document {below} is missing"),
    ];
    for ((kind, why), expected) in found.iter().zip(&expected) {
        assert_eq!(why, expected);
        let is_wrong_key = why.contains("the keys given are");
        assert_eq!(*kind, if is_wrong_key { RepoErrorKind::WrongKey } else { RepoErrorKind::Damaged });
    }
    assert_eq!(found.iter().map(|(_, why)| why).collect::<BTreeSet<_>>().len(), found.len());
}

#[test]
fn a_key_document_that_is_cut_off_anywhere_is_damaged_and_no_wrong_key() {
    let place = Place::new();
    let key = backup().data(1);
    wait(place.with("1").store(&key, b"content")).unwrap();
    let whole = fs::read(place.file(&backup().key_document())).unwrap();
    for length in 0..whole.len() {
        fs::write(place.file(&backup().key_document()), &whole[..length]).unwrap();
        let error = wait(place.with("1").read(&key)).unwrap_err();
        assert_eq!(error.kind, RepoErrorKind::Damaged, "{length}: {error}");
        // Nor is it taken for absent: nothing is stored with another key.
        assert_eq!(wait(place.with("1").store(&key, b"x")).unwrap_err().kind, RepoErrorKind::Damaged);
    }
}

/// A store that fails, cuts or flips anything at any moment: what is read is what was stored, or an error.
#[test]
fn whatever_befalls_the_store_nothing_else_is_read_than_was_stored() {
    let (first, second) = (wal("0000000300000001000000A1"), wal("0000000300000001000000A2"));
    let content = |key: &Key| noise(if *key == first { 70_000 } else { 5 });
    let kind = RepoErrorKind::Passing;
    let faults = [
        Fault::Before(kind),
        Fault::After(kind),
        Fault::CutTo(0),
        Fault::CutTo(100),
        Fault::Flip(3),
        Fault::Flip(997),
    ];
    for fault in faults {
        for at in 1.. {
            let place = Place::new();
            let faulty = Arc::new(Faulty::new(place.inner.clone(), |_, _| None));
            let repo = around(faulty.clone(), "1");
            let base = faulty.calls();
            faulty.now_decide(move |number, _| (number == base + at).then_some(fault));
            for key in [&first, &second] {
                // That it failed is told; whether it was stored all the same is seen by reading.
                let content = content(key);
                wait(repo.create(key, &content)).ok();
                if let Ok(Some(found)) = wait(repo.read(key)) {
                    assert!(found == content, "{fault:?} of call {at}");
                }
                if let Ok(Some(found)) = wait(repo.read_range(key, 3, 65_536)) {
                    assert!(found == content[3..content.len().min(65_539)], "{fault:?} of call {at}");
                }
            }
            let calls = faulty.calls() - base;
            faulty.now_decide(|_, _| None);
            let wrong =
                |key: &Key| wait(repo.read(key)).is_ok_and(|found| found.is_some_and(|f| f != content(key)));
            assert!(![&first, &second].into_iter().any(wrong));
            if calls < at {
                break;
            }
        }
    }
}

// ---- another key ------------------------------------------------------------------------------------------------------

fn rotate(place: &Place, keys: &str, half: Half) -> Rekeyed {
    wait(Box::pin(rekey(&*place.inner, &keyring(keys), half))).unwrap()
}

/// Files of the directory that are no key documents, with their bytes and times.
fn data_of(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if metadata.is_dir() {
                folders.push(path);
            } else if Key::new(name).is_ok_and(|key| !key_documents().contains(&key)) {
                found.insert(path.clone(), (fs::read(path).unwrap(), metadata.modified().unwrap()));
            }
        }
    }
    found
}

fn is_wrong_key(place: &Place, keys: &str) -> bool {
    let (repo, mut kinds) = (place.with(keys), encrypted_kinds().into_iter());
    kinds.all(|key| wait(repo.read(&key)).is_err_and(|error| error.kind == RepoErrorKind::WrongKey))
}

#[test]
fn a_key_is_exchanged_without_touching_what_it_protects() {
    let place = Place::new();
    let stored = fill(&place.with("1"));
    let data = data_of(&place.root);
    let documents = key_documents().len() as u64;
    assert!(is_wrong_key(&place, "2"));

    let report = rotate(&place, "21", Half::Add);
    assert_eq!(report, Rekeyed { documents, rewrapped: documents, already: 0, failed: Vec::new() });
    for keys in ["1", "2", "12", "21"] {
        opens(&place.with(keys), &stored);
    }
    let again = rotate(&place, "21", Half::Add);
    assert_eq!(again, Rekeyed { documents, rewrapped: 0, already: documents, failed: Vec::new() });

    let report = rotate(&place, "21", Half::DropOthers);
    assert_eq!((report.rewrapped, report.already), (documents, 0));
    opens(&place.with("2"), &stored);
    assert!(is_wrong_key(&place, "1"));
    assert_eq!(rotate(&place, "21", Half::DropOthers).rewrapped, 0);

    assert!(data_of(&place.root) == data, "neither a byte nor a time has changed");
}

#[test]
fn a_key_opens_everything_or_is_told_with_the_first_that_it_does_not_open() {
    let place = Place::new();
    let tried = |keys: &str| wait(Box::pin(prove(&*place.inner, &keyring(keys))));
    assert_eq!(tried("2"), Ok(()), "there is nothing that it would have to open");
    fill(&place.with("1"));
    assert_eq!(tried("1"), Ok(()));
    assert_eq!(tried("21"), Ok(()));
    assert_eq!(tried("2").unwrap_err().kind, RepoErrorKind::WrongKey);

    // One that another key has wrapped, and one that is damaged, which is none of a key's business.
    rotate(&place, "21", Half::Add);
    let of_one_key = wal("0000000700000001000000A1");
    wait(place.with("1").store(&of_one_key, b"x")).unwrap();
    let error = tried("2").unwrap_err();
    assert_eq!(error.kind, RepoErrorKind::WrongKey);
    assert!(error.why.contains("wal-00000007.json"), "{error}");
    place.change(&system().wal_key(TimelineId::new(7).unwrap()), |bytes| bytes.truncate(100));
    assert_eq!(tried("2"), Ok(()));
}

#[test]
fn a_key_document_that_cannot_be_opened_is_told_and_holds_nothing_else_up() {
    let place = Place::new();
    let stored = fill(&place.with("1"));
    let (damaged, foreign) = (backup().key_document(), wal("0000000700000001000000A1"));
    place.change(&damaged, |bytes| bytes.truncate(100));
    wait(place.with("9").store(&foreign, b"x")).unwrap();
    let report = rotate(&place, "21", Half::DropOthers);
    let documents = key_documents().len() as u64 + 1;
    assert_eq!((report.documents, report.rewrapped, report.already), (documents, documents - 2, 0));
    let kinds: Vec<RepoErrorKind> = report.failed.iter().map(|error| error.kind).collect();
    assert_eq!(kinds, [RepoErrorKind::WrongKey, RepoErrorKind::Damaged]);
    assert_eq!(wait(place.with("9").read(&foreign)).unwrap().unwrap(), b"x");
    let left = stored.into_iter().filter(|(key, _)| !key.as_str().contains("/backup/")).collect();
    opens(&place.with("2"), &left);
}

/// Killed at any call, or told nothing of how it ended: everything opens, and running it again ends it.
#[test]
fn a_rotation_that_ends_anywhere_leaves_everything_readable_and_can_be_ended() {
    for half in [Half::Add, Half::DropOthers] {
        for fault in [Fault::Before(RepoErrorKind::Passing), Fault::After(RepoErrorKind::Passing)] {
            for at in 1.. {
                let place = Place::new();
                let stored = fill(&place.with("1"));
                let faulty =
                    Faulty::new(place.inner.clone(), move |number, _| (number == at).then_some(fault));
                let ended = wait(Box::pin(rekey(&faulty, &keyring("21"), half)));
                opens(&place.with("21"), &stored);
                if ended.is_ok() {
                    break;
                }
                let report = rotate(&place, "21", half);
                assert_eq!(report.documents, report.rewrapped + report.already);
                opens(&place.with("2"), &stored);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn rotations_at_once_and_backups_meanwhile_do_no_harm() {
    let place = Place::new();
    let mut stored = fill(&place.with("1"));
    let writers = (0..4).map(|writer| {
        // Nobody has told it of the new key yet.
        let repo = place.with("1");
        tokio::spawn(async move {
            let mut stored = BTreeMap::new();
            for second in 0..20 {
                let label = format!("20261122T1{writer}00{second:02}Z-full").parse().unwrap();
                let key = system().backup(&label).data(1);
                repo.store(&key, &noise(second)).await.unwrap();
                stored.insert(key, noise(second));
            }
            stored
        })
    });
    let writers: Vec<_> = writers.collect();
    let rotations: Vec<_> = (0..4)
        .map(|_| {
            let inner = place.inner.clone();
            tokio::spawn(async move { rekey(&*inner, &keyring("21"), Half::Add).await.unwrap() })
        })
        .collect();
    for written in join_all(writers).await {
        stored.extend(written.unwrap());
    }
    for report in join_all(rotations).await {
        assert_eq!(report.unwrap().failed, []);
    }
    opens(&place.with("1"), &stored);
    // What was made behind the back of the last one.
    let report = rotate(&place, "21", Half::Add);
    assert_eq!(report.documents, key_documents().len() as u64 + 80);
    opens(&place.with("2"), &stored);
    rotate(&place, "21", Half::DropOthers);
    opens(&place.with("2"), &stored);
    assert!(is_wrong_key(&place, "1"));
}

/// A backup that begins while a rotation goes round is found by the same rotation.
#[test]
fn a_rotation_goes_round_until_there_is_nothing_new() {
    let place = Place::new();
    fill(&place.with("1"));
    let (inner, late) = (place.inner.clone(), place.with("1"));
    let label = "20261122T100000Z-full".parse().unwrap();
    let key = system().backup(&label).data(1);
    let made = key.clone();
    // The list of backups was read before the first document is.
    let faulty = Faulty::new(inner, move |_, call| {
        if call.starts_with("replace ") {
            wait(late.store(&made, b"late")).unwrap();
        }
        None
    });
    let report = wait(Box::pin(rekey(&faulty, &keyring("21"), Half::DropOthers))).unwrap();
    assert_eq!(report.rewrapped, key_documents().len() as u64 + 1);
    assert_eq!(wait(place.with("2").read(&key)).unwrap().unwrap(), b"late");
}

// ---- by hand ----------------------------------------------------------------------------------------------------------

/// Returns the first block of `language` in the page of the format.
fn from_the_page(language: &str) -> &'static str {
    let page = include_str!("../docs/formats/encryption.md");
    let begin = page.find(&format!("```{language}\n")).unwrap() + language.len() + 4;
    &page[begin..begin + page[begin..].find("```").unwrap()]
}

fn decrypt(place: &Place, script: &Path, keys: &str, document: &Key, key: &Key) -> std::process::Output {
    let secret = place.root.parent().unwrap().join("key");
    fs::write(&secret, format!("{}\n", keys.repeat(64))).unwrap();
    let mut command = Command::new("python3");
    command.arg(script).arg(secret).args([place.file(document), place.file(key)]).arg(key.as_str());
    command.stdin(Stdio::null()).output().unwrap()
}

fn decrypts_a_folder(place: &Place, script: &Path, stored: &BTreeMap<Key, Vec<u8>>) {
    let (above, folder) = (script.parent().unwrap(), backup().folder().clone());
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = Command::new("sh")
        .args(["-c", from_the_page("sh"), "decrypt-folder"])
        .args([above.join("key"), place.root.clone()])
        .args([folder.as_str(), backup().key_document().as_str()])
        .arg(above.join("clear"))
        .env("PATH", format!("{}:{}", above.display(), std::env::var("PATH").unwrap()))
        .status();
    assert!(ended.unwrap().success());
    for (key, content) in stored.iter().filter(|(key, _)| key.as_str().starts_with(folder.as_str())) {
        assert!(fs::read(above.join("clear").join(key.as_str())).unwrap() == *content, "{key}");
    }
}

#[test]
fn an_object_is_decrypted_by_hand_as_the_page_says() {
    let there = Command::new("python3").args(["-c", "import cryptography"]).output();
    assert!(
        there.is_ok_and(|output| output.status.success()),
        "python3-cryptography is missing: scripts/setup --test installs it"
    );
    let place = Place::new();
    let script = place.root.parent().unwrap().join("decrypt");
    fs::write(&script, from_the_page("python")).unwrap();
    let repo = place.with("1");
    let stored = fill(&repo);
    rotate(&place, "21", Half::Add);
    let document = backup().key_document();
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK, 20 * CHUNK + 7] {
        let (key, content) = (backup().data(2), noise(length));
        let mut upload = wait(repo.upload(&key)).unwrap();
        wait(upload.write(&content)).unwrap();
        wait(upload.finish()).unwrap();
        for keys in ["1", "2"] {
            let output = decrypt(&place, &script, keys, &document, &key);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == content, "{length} bytes");
        }
    }
    for key in encrypted_kinds().iter().filter(|key| key.as_str().contains("/backup/")) {
        assert!(decrypt(&place, &script, "1", &document, key).stdout == stored[key], "{key}");
    }
    decrypts_a_folder(&place, &script, &stored);
    // It finds what pgherd finds.
    let key = backup().data(1);
    let says = |keys: &str, document: &Key| {
        let output = decrypt(&place, &script, keys, document, &key);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(says("3", &document).contains("key document"), "{}", says("3", &document));
    assert!(says("1", &system().rest_key()).contains("another name"));
    place.change(&key, |bytes| bytes[HEADER + 10] ^= 1);
    assert!(says("1", &document).contains("chunk 0"));
    place.change(&key, |bytes| bytes.truncate(bytes.len() - TRAILER - 1));
    assert!(says("1", &document).contains("end is missing"));
}
