//! What every backend of a repository must do: [`conforms`] is called by each with an empty repository of its own.
//!
//! Then what only a directory can do wrong: a disk that is full or not mounted, a writer that is killed.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

#[path = "support/noise.rs"]
mod noise;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
#[path = "support/weed.rs"]
mod weed;

use futures_util::FutureExt as _;
use noise::noise;
use pgherd::repo::crypt::Encrypted;
use pgherd::repo::crypt::keyring::Keyring;
use pgherd::repo::crypt::protection::Protection;
use pgherd::repo::dir::DirRepo;
use pgherd::repo::faulty::{Fault, Faulty};
use pgherd::repo::retry::{Patience, Retry};
use pgherd::repo::{self, Key, Location, Put, Repo as _, RepoErrorKind, SharedRepo, Version, wait};
use pgherd::secret::Secret;
use pgherd::units::ByteCount;
use tokio::sync::Barrier;

/// More than one answer of an object store lists.
const MANY: usize = 1100;
const RACERS: usize = 16;
const ROUNDS: usize = 40;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Holds a backend to the contract of `Repo`. `repo` holds nothing but its `repository.json`.
async fn conforms(repo: SharedRepo) {
    what_is_not_there_is_none(&repo).await;
    what_is_stored_is_read_back(&repo).await;
    a_range_is_cut_where_the_object_ends(&repo).await;
    an_object_is_replaced_whole(&repo).await;
    an_upload_appears_when_it_is_finished(&repo).await;
    a_listing_misses_nothing(&repo).await;
    what_was_removed_is_gone(&repo).await;
    a_version_changes_with_the_content(&repo).await;
    of_many_that_create_one_wins(&repo).await;
    of_many_that_replace_one_wins(&repo).await;
    keys_that_begin_alike_are_apart(&repo).await;
}

async fn what_is_not_there_is_none(repo: &SharedRepo) {
    let absent = key("absent/object");
    assert_eq!(repo.read(&absent).await, Ok(None));
    assert_eq!(repo.read_versioned(&absent).await, Ok(None));
    assert_eq!(repo.read_range(&absent, 0, 1).await, Ok(None));
    assert_eq!(repo.remove(&absent).await, Ok(false));
    assert_eq!(repo.replace_if(&absent, b"x", &Version("0".to_owned())).await, Ok(Put::Refused));
    assert_eq!(repo.read(&absent).await, Ok(None));
    assert_eq!(repo.list(Some(&key("absent"))).await, Ok(repo::Level::default()));
    assert_eq!(repo.list_all(&key("absent")).await, Ok(Vec::new()));
}

async fn what_is_stored_is_read_back(repo: &SharedRepo) {
    for length in [0, 1, 511, 512, 513, 4096, (1 << 20) - 1, 1 << 20, (5 << 20) + 7] {
        let content = noise(length);
        for (name, key) in [("stored", key("sizes/stored")), ("created", key(&format!("sizes/{length}")))] {
            match name {
                "stored" => repo.store(&key, &content).await.unwrap(),
                _ => assert_eq!(repo.create(&key, &content).await, Ok(Put::Stored)),
            }
            assert!(repo.read(&key).await.unwrap() == Some(content.clone()), "{name}, {length} bytes");
            let (bytes, _) = repo.read_versioned(&key).await.unwrap().unwrap();
            assert!(bytes == content, "{name}, {length} bytes");
        }
    }
    if let Some(free) = repo.free_space().await.unwrap() {
        assert!(free > ByteCount(0));
    }
}

async fn a_range_is_cut_where_the_object_ends(repo: &SharedRepo) {
    let (key, content) = (key("ranges/object"), noise(10_000));
    repo.store(&key, &content).await.unwrap();
    for (offset, length) in
        [(0, 1), (0, 10_000), (0, 10_001), (9_999, 1), (1, 9_999), (4_095, 4_097), (9_990, 100)]
    {
        let (from, to) = (offset as usize, ((offset + length) as usize).min(content.len()));
        let found = repo.read_range(&key, offset, length).await.unwrap().unwrap();
        assert!(found == content[from..to], "{length} bytes from {offset}");
    }
    for (offset, length) in [(10_000, 1), (1 << 40, 5), (0, 0), (5, 0)] {
        assert_eq!(
            repo.read_range(&key, offset, length).await,
            Ok(Some(Vec::new())),
            "{length} from {offset}"
        );
    }
}

async fn an_object_is_replaced_whole(repo: &SharedRepo) {
    let key = key("replaced/object");
    for content in [noise(100_000), noise(10), Vec::new(), noise(70_000)] {
        repo.store(&key, &content).await.unwrap();
        assert!(repo.read(&key).await.unwrap() == Some(content));
    }
    assert_eq!(repo.create(&key, b"x").await, Ok(Put::Refused));
    assert!(repo.read(&key).await.unwrap() == Some(noise(70_000)));
}

async fn an_upload_appears_when_it_is_finished(repo: &SharedRepo) {
    let key = key("uploads/object");
    let mut upload = repo.upload(&key).await.unwrap();
    let content = noise(3 << 20);
    for piece in content.chunks(100_003) {
        upload.write(piece).await.unwrap();
        assert_eq!(repo.read(&key).await, Ok(None));
    }
    upload.write(b"").await.unwrap();
    assert!(repo.list_all(&self::key("uploads")).await.unwrap().is_empty());
    upload.finish().await.unwrap();
    assert!(repo.read(&key).await.unwrap() == Some(content.clone()));

    // The old object stays until the new one is whole, and one that is given up changes nothing.
    let mut upload = repo.upload(&key).await.unwrap();
    upload.write(b"given up").await.unwrap();
    drop(upload);
    assert!(repo.read(&key).await.unwrap() == Some(content));
    repo.upload(&key).await.unwrap().finish().await.unwrap();
    assert_eq!(repo.read(&key).await, Ok(Some(Vec::new())));
    assert_eq!(repo.list_all(&self::key("uploads")).await.unwrap().len(), 1);
}

async fn a_listing_misses_nothing(repo: &SharedRepo) {
    let names: Vec<String> = (0..MANY).map(|number| format!("{number:04}.zst")).collect();
    let begun = Timestamp::now();
    for name in &names {
        repo.store(&key("listed/wal").join(name).unwrap(), name.as_bytes()).await.unwrap();
    }
    repo.store(&key("listed/wal/deeper/than/that"), b"12345").await.unwrap();
    repo.store(&key("listed/manifest.json"), b"").await.unwrap();

    let level = repo.list(Some(&key("listed/wal"))).await.unwrap();
    let found: Vec<&str> = level.objects.iter().map(|object| object.key.name()).collect();
    assert_eq!(found, names);
    assert_eq!(level.folders, ["deeper"]);
    // A store may keep whole seconds, and another clock.
    let near = |at: Timestamp| at.duration_since(begun).abs() < jiff::SignedDuration::from_secs(600);
    assert!(level.objects.iter().all(|object| object.size == ByteCount(8) && near(object.modified)));

    let level = repo.list(Some(&key("listed"))).await.unwrap();
    assert_eq!((level.objects.len(), level.folders), (1, vec!["wal".to_owned()]));
    let all = repo.list_all(&key("listed")).await.unwrap();
    assert_eq!(all.len(), MANY + 2);
    assert!(all.is_sorted_by(|a, b| a.key < b.key));
    assert!(all.iter().any(|o| o.key.as_str() == "listed/wal/deeper/than/that" && o.size == ByteCount(5)));
    let root = repo.list(None).await.unwrap();
    assert!(root.folders.contains(&"listed".to_owned()));
    let objects: Vec<&str> = root.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(objects, ["repository.json"]);
}

async fn what_was_removed_is_gone(repo: &SharedRepo) {
    let key = key("removed/folder/object");
    repo.store(&key, b"x").await.unwrap();
    assert_eq!(repo.remove(&key).await, Ok(true));
    assert_eq!(repo.read(&key).await, Ok(None));
    assert_eq!(repo.remove(&key).await, Ok(false));
    // A server that keeps folders may show an empty one for a while.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while repo.list(None).await.unwrap().folders.contains(&"removed".to_owned()) {
        assert!(std::time::Instant::now() < deadline, "an empty folder is shown for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(repo.list(Some(&self::key("removed"))).await, Ok(repo::Level::default()));
    assert_eq!(repo.list_all(&self::key("removed")).await, Ok(Vec::new()));
    assert_eq!(repo.create(&key, b"again").await, Ok(Put::Stored));
}

async fn a_version_changes_with_the_content(repo: &SharedRepo) {
    let key = key("versions/object");
    repo.store(&key, b"first").await.unwrap();
    let (_, first) = repo.read_versioned(&key).await.unwrap().unwrap();
    assert_eq!(repo.replace_if(&key, b"second", &first).await, Ok(Put::Stored));
    assert_eq!(repo.replace_if(&key, b"third", &first).await, Ok(Put::Refused));
    let (bytes, second) = repo.read_versioned(&key).await.unwrap().unwrap();
    assert_eq!(bytes, b"second");
    assert_ne!(first, second);
    repo.remove(&key).await.unwrap();
    assert_eq!(repo.replace_if(&key, b"third", &second).await, Ok(Put::Refused));
    assert_eq!(repo.read(&key).await, Ok(None));
}

/// Runs `racer` as often as there are racers, at one moment, and returns how many stored.
async fn race<F, R>(racer: F) -> usize
where
    F: Fn(usize) -> R,
    R: Future<Output = repo::Result<Put>> + Send + 'static,
{
    let start = Arc::new(Barrier::new(RACERS));
    let racers: Vec<_> = (0..RACERS)
        .map(|number| {
            let (start, run) = (start.clone(), racer(number));
            tokio::spawn(async move {
                start.wait().await;
                run.await
            })
        })
        .collect();
    let mut stored = 0;
    for racer in racers {
        stored += usize::from(racer.await.unwrap().unwrap() == Put::Stored);
    }
    stored
}

/// Each racer writes what it alone writes; the object is the winner's.
async fn of_many_that_create_one_wins(repo: &SharedRepo) {
    for round in 0..ROUNDS {
        let key = key(&format!("race/create/{round}/object"));
        let stored = race(|number| {
            let (repo, key) = (repo.clone(), key.clone());
            async move {
                let outcome = repo.create(&key, format!("{number}").as_bytes()).await?;
                if outcome == Put::Stored {
                    let found = repo.read(&key).await?.unwrap();
                    assert_eq!(found, format!("{number}").as_bytes(), "the winner finds its own");
                }
                Ok(outcome)
            }
        })
        .await;
        assert_eq!(stored, 1, "round {round}");
    }
}

async fn of_many_that_replace_one_wins(repo: &SharedRepo) {
    let key = key("race/replace");
    repo.store(&key, b"0").await.unwrap();
    for round in 0..ROUNDS {
        let (_, version) = repo.read_versioned(&key).await.unwrap().unwrap();
        let stored = race(|number| {
            let (repo, key, version) = (repo.clone(), key.clone(), version.clone());
            async move { repo.replace_if(&key, format!("{round} {number}").as_bytes(), &version).await }
        })
        .await;
        assert_eq!(stored, 1, "round {round}");
    }
}

async fn keys_that_begin_alike_are_apart(repo: &SharedRepo) {
    for name in ["alike/a", "alike/ab", "alike/a.b", "alike-not/a", "alike/c/a"] {
        repo.store(&key(name), name.as_bytes()).await.unwrap();
    }
    let all = repo.list_all(&key("alike")).await.unwrap();
    let found: Vec<&str> = all.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(found, ["alike/a", "alike/a.b", "alike/ab", "alike/c/a"]);
    assert_eq!(repo.list_all(&key("alike/a")).await.unwrap_or_default(), Vec::new());
    assert_eq!(repo.read(&key("alike/a")).await.unwrap().unwrap(), b"alike/a");
}

// ---- the directory ----------------------------------------------------------------------------------------------------

fn directory() -> (tempfile::TempDir, PathBuf, SharedRepo) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("repository");
    let repo = repo::create(&Location::plain(format!("file://{}", root.display()))).unwrap();
    (directory, root, repo)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_directory_conforms() {
    let (_directory, root, repo) = directory();
    conforms(repo).await;
    assert_eq!(fs::read_dir(root.join(".tmp")).unwrap().count(), 0, "no temporary file stays behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_bucket_conforms() {
    let Some(weed) = weed::weed() else { return };
    let directory = tempfile::tempdir().unwrap();
    let bucket = weed.bucket();
    let at = |prefix: &str| {
        let url = format!("s3://{bucket}{prefix}");
        weed::Weed::location(directory.path(), &weed.access(&url, &weed.endpoint()))
    };
    let inner = at("/v1/inner");
    assert_eq!(repo::open(&inner).unwrap_err().kind, RepoErrorKind::Missing);
    let repo = repo::create(&inner).unwrap();
    conforms(Arc::clone(&repo)).await;
    drop(repo);
    repo::open(&inner).unwrap();
    // What is no repository is not made one; nor is what lies over another.
    assert_eq!(repo::create(&at("/v1")).unwrap_err().kind, RepoErrorKind::Other);
    assert_eq!(repo::create(&at("")).unwrap_err().kind, RepoErrorKind::Other);
    // Beside it there is room for another one, which does not see it.
    let beside = repo::create(&at("/v1/inner2")).unwrap();
    assert_eq!(beside.list(None).await.unwrap().folders, Vec::<String>::new());
    let nowhere = weed.access("s3://there-is-no-such-bucket/v1", &weed.endpoint());
    let error = repo::create(&weed::Weed::location(directory.path(), &nowhere)).unwrap_err();
    assert_eq!(error.kind, RepoErrorKind::Missing, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn what_stands_around_a_backend_conforms() {
    let (_directory, _, repo) = directory();
    conforms(Arc::new(Retry::new(Arc::new(Faulty::new(repo, |_, _| None)), Patience::default()))).await;
}

/// Encrypts everything: the names of this suite are none of the layout's. Key documents are kept apart, since they are listed as well.
fn everything(key: &Key) -> Protection {
    match key.as_str().split('/').next() {
        Some("repository.json") | None => Protection::Clear,
        Some("keys") => Protection::KeyDocument,
        Some(first) => Protection::By(self::key(&format!("keys/{first}.json"))),
    }
}

fn encrypted() -> (tempfile::TempDir, PathBuf, SharedRepo) {
    let (directory, root, inner) = directory();
    let keyring = Keyring::parse(&[Secret::new("5".repeat(64))]).unwrap();
    (directory, root, Arc::new(Encrypted::with_protection(inner, keyring, everything)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn an_encrypted_directory_conforms() {
    let (_directory, root, repo) = encrypted();
    conforms(repo).await;
    assert_eq!(fs::read_dir(root.join(".tmp")).unwrap().count(), 0, "no temporary file stays behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn what_stands_around_encryption_conforms() {
    let (_directory, _, repo) = encrypted();
    conforms(Arc::new(Retry::new(Arc::new(Faulty::new(repo, |_, _| None)), Patience::default()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn encryption_of_what_stands_around_a_backend_conforms() {
    let (_directory, _, inner) = directory();
    let around = Arc::new(Retry::new(Arc::new(Faulty::new(inner, |_, _| None)), Patience::default()));
    let keyring = Keyring::parse(&[Secret::new("5".repeat(64))]).unwrap();
    conforms(Arc::new(Encrypted::with_protection(around, keyring, everything))).await;
}

/// Each call of a directory is done at its first poll, which the WAL hot path relies on.
#[test]
fn a_directory_never_waits() {
    for (_directory, _, repo) in [directory(), encrypted()] {
        never_waits(&repo);
    }
}

fn at_once<T>(call: repo::BoxFuture<'_, T>) -> T {
    call.now_or_never().expect("a directory answers at its first poll")
}

fn never_waits(repo: &SharedRepo) {
    let key = key("inventory/lock.json");
    at_once(repo.create(&key, b"1")).unwrap();
    let (_, version) = at_once(repo.read_versioned(&key)).unwrap().unwrap();
    at_once(repo.replace_if(&key, b"2", &version)).unwrap();
    at_once(repo.store(&key, b"3")).unwrap();
    let mut upload = at_once(repo.upload(&key)).unwrap();
    at_once(upload.write(b"4")).unwrap();
    at_once(upload.finish()).unwrap();
    assert_eq!(at_once(repo.read(&key)).unwrap().unwrap(), b"4");
    assert_eq!(at_once(repo.read_range(&key, 0, 1)).unwrap().unwrap(), b"4");
    at_once(repo.list(None)).unwrap();
    at_once(repo.list_all(&self::key("inventory"))).unwrap();
    at_once(repo.free_space()).unwrap();
    at_once(repo.remove(&key)).unwrap();
}

#[test]
fn another_url_than_of_an_absolute_directory_is_refused() {
    for url in ["", "/srv/repository", "file://srv/repository", "s3://", "file:/srv"] {
        assert_eq!(repo::open(&Location::plain(url)).unwrap_err().kind, RepoErrorKind::Other, "{url:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}/nothing", directory.path().display());
    assert_eq!(repo::open(&Location::plain(url)).unwrap_err().kind, RepoErrorKind::Missing);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

const WRITER: &str = "PGHERD_TEST_WRITER";

/// Runs in a process of its own, as [`a_killed_writer_leaves_nothing_that_is_seen`] starts it: writes until it is killed.
#[test]
fn the_writer_that_is_killed() {
    let Some(root) = std::env::var_os(WRITER) else { return };
    let repo = DirRepo::open(Path::new(&root)).unwrap();
    let mut upload = wait(repo.upload(&key("inventory/object"))).unwrap();
    println!("\nwriting");
    loop {
        wait(upload.write(&noise(100_000))).unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_nothing_that_is_seen() {
    let (_directory, root, repo) = directory();
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_writer_that_is_killed", "--nocapture"])
        .env(WRITER, &root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "writing"));
    writer.kill().unwrap();
    writer.wait().unwrap();

    assert_eq!(wait(repo.read(&key("inventory/object"))), Ok(None));
    assert_eq!(wait(repo.list(None)).unwrap().folders, Vec::<String>::new());
    let left =
        || fs::read_dir(root.join(".tmp")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [abandoned] = left().try_into().unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&abandoned).unwrap().set_modified(hour_ago).unwrap();
    wait(repo.store(&key("inventory/object"), b"the next one")).unwrap();
    assert_eq!(left(), Vec::<PathBuf>::new());
}

/// A file system in memory that holds a megabyte; root alone may make one.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&at).status();
        assert!(mounted.unwrap().success(), "root may mount");
        Self(at)
    }

    fn unmount(self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
        std::mem::forget(self);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

/// An ordinary user cannot mount: `repo::dir` tests an empty directory in the place of the repository.
#[test]
fn a_disk_that_is_full_says_so_and_keeps_what_it_has() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = Small::mount(directory.path().join("disk"));
    let url = format!("file://{}", disk.0.display());
    let repo = repo::create(&Location::plain(url.as_str())).unwrap();
    wait(repo.store(&key("inventory/kept"), &noise(200_000))).unwrap();
    let full = |error: repo::RepoError| assert_eq!(error.kind, RepoErrorKind::Full, "{error}");
    full(wait(repo.store(&key("inventory/kept"), &noise(2 << 20))).unwrap_err());
    full(wait(repo.create(&key("inventory/new"), &noise(2 << 20))).unwrap_err());
    let mut upload = wait(repo.upload(&key("inventory/new"))).unwrap();
    full((0..40).find_map(|_| wait(upload.write(&noise(100_000))).err()).unwrap());
    drop(upload);
    assert!(wait(repo.read(&key("inventory/kept"))).unwrap() == Some(noise(200_000)));
    assert_eq!(wait(repo.list_all(&key("inventory"))).unwrap().len(), 1);
    // Nothing of what failed takes room.
    wait(repo.store(&key("inventory/new"), &noise(500_000))).unwrap();

    let (root, again) = (disk.0.clone(), repo.clone());
    disk.unmount();
    let missing = |kind: RepoErrorKind| assert_eq!(kind, RepoErrorKind::Missing);
    missing(wait(again.store(&key("inventory/new"), b"x")).unwrap_err().kind);
    missing(wait(again.read(&key("inventory/kept"))).unwrap_err().kind);
    missing(wait(again.list(None)).unwrap_err().kind);
    missing(repo::open(&Location::plain(url)).unwrap_err().kind);
    assert_eq!(fs::read_dir(root).unwrap().count(), 0, "nothing is made where the disk was");
}

#[tokio::test(start_paused = true)]
async fn a_fault_befalls_the_call_that_it_was_meant_for() {
    let (_directory, _, inner) = directory();
    let key = key("inventory/object");
    inner.store(&key, b"content").await.unwrap();
    let faulty = Faulty::new(inner.clone(), |number, call| match (number, call) {
        (1, "read inventory/object") => Some(Fault::Before(RepoErrorKind::Denied)),
        (2, _) => Some(Fault::CutTo(3)),
        (3, _) => Some(Fault::Flip(8)),
        (4, _) => Some(Fault::After(RepoErrorKind::Passing)),
        (5, _) => Some(Fault::Hang),
        _ => None,
    });
    assert_eq!(faulty.read(&key).await.unwrap_err().kind, RepoErrorKind::Denied);
    assert_eq!(faulty.read(&key).await.unwrap().unwrap(), b"con");
    assert_eq!(faulty.read(&key).await.unwrap().unwrap(), b"cnntent");
    assert_eq!(faulty.store(&key, b"new").await.unwrap_err().kind, RepoErrorKind::Passing);
    assert_eq!(inner.read(&key).await.unwrap().unwrap(), b"new");
    let hung = tokio::time::timeout(Duration::from_secs(3600), faulty.remove(&key)).await;
    assert!(hung.is_err());
    assert_eq!(faulty.read(&key).await.unwrap().unwrap(), b"new");
    assert_eq!(faulty.calls(), 6);
}
