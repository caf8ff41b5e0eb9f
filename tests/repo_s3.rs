//! What a bucket must hold to when its server, or the line to it, misbehaves: never a success that is none, the server's own words in the
//! error, and the same call succeeds when the server is well again. Beside it what killed writers leave.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends by panicking, with what it found"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[path = "support/bad_line.rs"]
mod bad_line;
#[path = "support/weed.rs"]
mod weed;

use aws_sdk_s3::types::ObjectLockMode;
use bad_line::{BadLine, Evil};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use pgherd::repo::retry::{Patience, Retry};
use pgherd::repo::s3::{S3Repo, Waits};
use pgherd::repo::{self, Key, Put, Repo as _, RepoError, RepoErrorKind, SharedRepo, Version};
use pgherd::topology::model::{LockMode, ObjectLock};
use pgherd::units::ByteCount;
use weed::{Weed, weed};

/// Long enough for a machine that is busy, short enough to be waited for.
const WAITS: Waits = Waits {
    connect: Duration::from_secs(2),
    answer: Duration::from_secs(3),
    slowest: ByteCount(4 << 20),
    stall: Duration::from_secs(2),
    patience: Patience { calls: 3, first: Duration::from_millis(10), longest: Duration::from_millis(50) },
};
/// One part, and the end of another.
const IN_PARTS: usize = (8 << 20) + 5;
/// More than one answer lists.
const MANY: usize = 1003;
/// Cases that run side by side.
const WIDE: usize = 4;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Bytes that tell where they stand, and of which of two contents they are.
fn content(length: usize, salt: u8) -> Vec<u8> {
    let blocks = (0..length.div_ceil(4096)).flat_map(|block| {
        let mut bytes = [block as u8 ^ salt; 4096];
        bytes[..8].copy_from_slice(&(block as u64).to_le_bytes());
        bytes
    });
    blocks.take(length).collect()
}

/// A repository in a bucket of its own; and ways to it, well and bad.
struct Bucket {
    weed: &'static Weed,
    name: String,
    well: SharedRepo,
}

impl Bucket {
    async fn new() -> Option<Self> {
        let weed = tokio::task::spawn_blocking(weed).await.unwrap()?;
        let name = tokio::task::spawn_blocking(|| weed.bucket()).await.unwrap();
        let well = Self::open(weed, &name, &weed.endpoint(), None).await;
        Some(Self { weed, name, well })
    }

    async fn open(weed: &Weed, name: &str, endpoint: &str, waits: Option<Waits>) -> SharedRepo {
        let url = format!("s3://{name}/v1");
        let access = weed.access(&url, endpoint).s3.unwrap();
        let (repo, _) = match waits {
            None => S3Repo::create(&url, &access, Waits::default(), false).await.unwrap(),
            Some(waits) => S3Repo::open(&url, &access, waits).await.unwrap(),
        };
        Arc::new(Retry::new(Arc::new(repo), WAITS.patience))
    }

    /// Returns a line on which nothing goes wrong yet, and the repository behind it.
    async fn line(&self) -> (BadLine, SharedRepo) {
        self.line_with(WAITS).await
    }

    async fn line_with(&self, waits: Waits) -> (BadLine, SharedRepo) {
        let line = BadLine::to(&self.weed.endpoint()).await;
        let repo = Self::open(self.weed, &self.name, &line.endpoint(), Some(waits)).await;
        line.mend();
        (line, repo)
    }
}

// ---- each call under each fault ----------------------------------------------------------------------------------------

/// A call of `Repo` on an object, or a listing, that was made ready for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    ReadVersioned,
    ReadRange,
    ReadBehindTheEnd,
    Create,
    ReplaceIf,
    Store,
    Upload,
    List,
    ListAll,
    Remove,
}

/// What a call was made on.
struct Subject {
    call: Call,
    key: Key,
    version: Version,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Subject {
    async fn prepare(bucket: &Bucket, call: Call, name: &str) -> Self {
        let key = match call {
            Call::List | Call::ListAll => key("many"),
            _ => key(&format!("subjects/{name}")),
        };
        let length = if call == Call::Upload { IN_PARTS } else { 70_001 };
        let (old, new) = (content(70_001, 0), content(length, 0x5a));
        let mut version = Version(String::new());
        if !matches!(call, Call::Create | Call::List | Call::ListAll) {
            bucket.well.store(&key, &old).await.unwrap();
            version = bucket.well.read_versioned(&key).await.unwrap().unwrap().1;
        }
        Self { call, key, version, old, new }
    }

    /// Makes the call, and holds a success of it against what was made ready.
    async fn make(&self, repo: &SharedRepo) -> Result<Option<Put>, RepoError> {
        let Self { call, key, version, old, new } = self;
        match call {
            Call::Read => assert!(repo.read(key).await?.as_ref() == Some(old)),
            Call::ReadVersioned => {
                let (bytes, found) = repo.read_versioned(key).await?.unwrap();
                assert!(bytes == *old && found == *version);
            }
            Call::ReadRange => {
                let found = repo.read_range(key, 1000, 50_000).await?.unwrap();
                assert!(found == old[1000..51_000], "{} bytes", found.len());
            }
            Call::ReadBehindTheEnd => {
                assert_eq!(repo.read_range(key, old.len() as u64, 10).await?, Some(Vec::new()));
            }
            Call::Create => return repo.create(key, new).await.map(Some),
            Call::ReplaceIf => return repo.replace_if(key, new, version).await.map(Some),
            Call::Store => repo.store(key, new).await?,
            Call::Upload => {
                let mut upload = repo.upload(key).await?;
                for piece in new.chunks(3_000_000) {
                    upload.write(piece).await?;
                }
                upload.finish().await?;
            }
            Call::List => {
                let level = repo.list(Some(key)).await?;
                assert_eq!((level.objects.len(), level.folders), (MANY, vec!["deeper".to_owned()]));
            }
            Call::ListAll => assert_eq!(repo.list_all(key).await?.len(), MANY + 1),
            Call::Remove => {
                repo.remove(key).await?;
            }
        }
        Ok(None)
    }

    /// Holds what is in the bucket against how the call ended; `None`: it failed, and may have done it all the same.
    async fn is_true(&self, bucket: &Bucket, outcome: Option<Option<Put>>) {
        let found = match self.call {
            Call::List | Call::ListAll => return,
            _ => bucket.well.read(&self.key).await.unwrap(),
        };
        let is = |bytes: &Vec<u8>| found.as_ref() == Some(bytes);
        let case = format!("{:?} {outcome:?}: {:?} bytes", self.call, found.as_ref().map(Vec::len));
        match (self.call, outcome) {
            (Call::Create | Call::ReplaceIf, Some(Some(Put::Stored))) => assert!(is(&self.new), "{case}"),
            // What a failed call before this one has stored.
            (Call::Create | Call::ReplaceIf, Some(_)) => {
                panic!("{case}: refused although nobody else is there")
            }
            (Call::Store | Call::Upload, Some(_)) => assert!(is(&self.new), "{case}"),
            (Call::Remove, Some(_)) => assert!(found.is_none(), "{case}"),
            (Call::Create, None) => assert!(found.is_none() || is(&self.new), "{case}"),
            (Call::ReplaceIf | Call::Store | Call::Upload, None) => {
                assert!(is(&self.old) || is(&self.new), "{case}");
            }
            (Call::Remove, None) => assert!(found.is_none() || is(&self.old), "{case}"),
            _ => assert!(is(&self.old), "{case}"),
        }
    }
}

/// A fault, how the error must be called, and what it must tell.
type Fault = (Evil, RepoErrorKind, &'static str);

/// What may befall every call.
const EVERY: [Fault; 10] = [
    (Evil::Says(500, "InternalError"), RepoErrorKind::Passing, "500"),
    (Evil::Says(503, "SlowDown"), RepoErrorKind::Passing, "503"),
    (Evil::Says(429, "TooManyRequests"), RepoErrorKind::Passing, "429"),
    (Evil::Says(507, "InsufficientStorage"), RepoErrorKind::Full, "507"),
    (Evil::Says(403, "AccessDenied"), RepoErrorKind::Denied, "403"),
    (
        Evil::Says(403, "RequestTimeTooSkewed"),
        RepoErrorKind::Other,
        "the clock of this host or of the server is wrong",
    ),
    (Evil::Resets, RepoErrorKind::Passing, ""),
    (Evil::LosesAnswer, RepoErrorKind::Passing, ""),
    (Evil::DoesItAndFails, RepoErrorKind::Passing, "500"),
    (Evil::Stalls, RepoErrorKind::Passing, "timeout"),
];

/// What may befall those whose answer holds something.
const BODY: [Fault; 3] = [
    (Evil::CutsBody, RepoErrorKind::Passing, ""),
    (Evil::StallsInBody, RepoErrorKind::Passing, ""),
    (Evil::SaysLess, RepoErrorKind::Passing, ""),
];

/// Has each fault befall each request of a call: that one alone, and that one with all that follow.
async fn suffers(calls: &[Call], faults: &[Fault]) {
    let Some(bucket) = Bucket::new().await else { return };
    if calls.iter().any(|call| matches!(call, Call::List | Call::ListAll)) {
        fill(&bucket).await;
    }
    let mut cases = Vec::new();
    for call in calls {
        for nth in 1..=requests(&bucket, *call).await {
            for fault in faults {
                cases.push((*call, nth, *fault, Lasts::Once));
                // A server that stalls for ever is one, whenever it begins.
                if nth == 1 || !matches!(fault.0, Evil::Stalls | Evil::StallsInBody) {
                    cases.push((*call, nth, *fault, Lasts::On));
                }
            }
        }
    }
    let bucket = &bucket;
    let run =
        stream::iter(cases.into_iter().enumerate()).map(|(number, (call, nth, fault, lasts))| async move {
            suffer(bucket, number, call, nth, fault, lasts).await
        });
    run.buffer_unordered(WIDE).collect::<Vec<()>>().await;
}

/// How long a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    Once,
    On,
}

/// How many requests a call is made of that decide its outcome; what removes empty folders behind it does not.
async fn requests(bucket: &Bucket, call: Call) -> usize {
    let subject = Subject::prepare(bucket, call, &format!("counted-{call:?}")).await;
    let (line, repo) = bucket.line().await;
    subject.make(&repo).await.unwrap();
    let requests = line.mend();
    if call == Call::Remove { 2 } else { requests }
}

async fn suffer(bucket: &Bucket, number: usize, call: Call, nth: usize, fault: Fault, lasts: Lasts) {
    let (evil, kind, told) = fault;
    let case = format!("{call:?}, request {nth}, {evil:?} {lasts:?}");
    let subject = Subject::prepare(bucket, call, &format!("{call:?}-{number}")).await;
    let (line, repo) = bucket.line().await;
    line.now(move |_, request| {
        let befalls = request == nth || lasts == Lasts::On && request > nth;
        befalls.then_some(evil)
    });
    let outcome = subject.make(&repo).await;
    match &outcome {
        Ok(_) => assert!(
            lasts == Lasts::Once && kind == RepoErrorKind::Passing || is_harmless(call, evil),
            "{case}: no error"
        ),
        Err(error) => {
            // An answer to HEAD has no body that could say more than its status.
            let is_head = error.doing.starts_with("look at") && kind == RepoErrorKind::Other;
            let (kind, told) = if is_head { (RepoErrorKind::Denied, "403") } else { (kind, told) };
            assert!(lasts == Lasts::On || kind != RepoErrorKind::Passing, "{case}: not tried again: {error}");
            assert_eq!(error.kind, kind, "{case}: {error}");
            assert!(error.why.contains(told), "{case}: {error}");
        }
    }
    subject.is_true(bucket, outcome.as_ref().ok().cloned()).await;
    if outcome.is_err() {
        line.mend();
        let again = subject.make(&repo).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        match again {
            // The call that failed has done it.
            Some(Put::Refused) => subject.is_true(bucket, Some(Some(Put::Stored))).await,
            again => subject.is_true(bucket, Some(again)).await,
        }
    }
}

/// A listing whose last `>` alone is missing shows everything.
fn is_harmless(call: Call, evil: Evil) -> bool {
    matches!(call, Call::List | Call::ListAll) && matches!(evil, Evil::SaysLess)
}

async fn fill(bucket: &Bucket) {
    let names = (0..MANY).map(|number| key(&format!("many/{number:04}")));
    let names = names.chain([key("many/deeper/one")]);
    let stored = stream::iter(names).map(|key| async move { bucket.well.store(&key, b"x").await.unwrap() });
    stored.buffer_unordered(16).collect::<Vec<()>>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_read_is_whole_or_an_error() {
    let calls = [Call::Read, Call::ReadVersioned, Call::ReadRange];
    suffers(&calls, &[&EVERY[..], &BODY[..]].concat()).await;
    suffers(&[Call::ReadBehindTheEnd], &EVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_to_be_stored_is_there_byte_for_byte() {
    suffers(&[Call::Create, Call::ReplaceIf, Call::Store], &EVERY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upload_in_parts_is_there_whole_or_not_at_all() {
    // 500, 503 and 429 are one to whoever sends parts, and 500 is there twice.
    suffers(&[Call::Upload], &EVERY[2..]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_of_several_pages_is_whole_or_an_error() {
    suffers(&[Call::List, Call::ListAll], &[&EVERY[..], &BODY[..]].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_to_be_removed_is_gone() {
    suffers(&[Call::Remove], &EVERY).await;
}

// ---- answers that say something else than what is -----------------------------------------------------------------------

/// The requests that put an object together.
fn completes(line: &str) -> bool {
    line.starts_with("POST ") && line.contains("uploadId=")
}

fn error_inside(_: &str) -> String {
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>".to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_error_in_an_answer_that_says_200_is_an_error() {
    let Some(bucket) = Bucket::new().await else { return };
    let (line, repo) = bucket.line().await;
    // Once: the object was made all the same, as the next call finds.
    let subject = Subject::prepare(&bucket, Call::Upload, "once").await;
    line.now(|request, _| (completes(request)).then_some(Evil::Rewrites(error_inside)));
    let once = subject.make(&repo).await;
    subject.is_true(&bucket, once.ok()).await;
    // For ever, and nothing is made.
    let subject = Subject::prepare(&bucket, Call::Upload, "ever").await;
    line.now(|request, _| (completes(request)).then_some(Evil::Says(200, "InternalError")));
    let error = subject.make(&repo).await.unwrap_err();
    assert_eq!(error.kind, RepoErrorKind::Passing);
    assert!(error.why.contains("200 InternalError: as told"), "{error}");
    assert!(bucket.well.read(&subject.key).await.unwrap() == Some(subject.old.clone()));
    line.mend();
    subject.make(&repo).await.unwrap();
    subject.is_true(&bucket, Some(None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upload_that_the_server_has_forgotten_is_not_taken_for_an_older_object() {
    let Some(bucket) = Bucket::new().await else { return };
    let (line, repo) = bucket.line().await;
    let mut subject = Subject::prepare(&bucket, Call::Upload, "older").await;
    subject.old = content(IN_PARTS, 0);
    bucket.well.store(&subject.key, &subject.old).await.unwrap();
    line.now(|request, _| completes(request).then_some(Evil::Says(404, "NoSuchUpload")));
    let error = subject.make(&repo).await.unwrap_err();
    assert_eq!(error.kind, RepoErrorKind::Other, "{error}");
    assert!(error.why.contains("NoSuchUpload") && error.why.contains("of another upload"), "{error}");
    assert!(bucket.well.read(&subject.key).await.unwrap() == Some(subject.old));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_that_goes_on_without_saying_where_is_an_error() {
    let Some(bucket) = Bucket::new().await else { return };
    fill(&bucket).await;
    let (line, repo) = bucket.line().await;
    let without = |body: &str| body.replace("NextContinuationToken", "Nothing");
    line.now(move |_, _| Some(Evil::Rewrites(without)));
    let error = repo.list_all(&key("many")).await.unwrap_err();
    assert_eq!(error.kind, RepoErrorKind::Passing, "{error}");
    assert!(error.why.contains("goes on, and not where"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_that_ends_in_the_middle_is_an_error() {
    let Some(bucket) = Bucket::new().await else { return };
    fill(&bucket).await;
    let (line, repo) = bucket.line().await;
    let cut = |body: &str| {
        let ends: Vec<usize> = body.match_indices("</Contents>").map(|(at, end)| at + end.len()).collect();
        ends.get(ends.len() / 2).map_or(body, |end| &body[..*end]).to_owned()
    };
    line.now(move |_, _| Some(Evil::Rewrites(cut)));
    for listed in [repo.list_all(&key("many")).await.err(), repo.list(Some(&key("many"))).await.err()] {
        assert_eq!(listed.unwrap().kind, RepoErrorKind::Passing);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_put_that_lost_its_answer_and_then_its_place_was_refused() {
    let Some(bucket) = Bucket::new().await else { return };
    let (line, repo) = bucket.line().await;
    for (number, call) in [Call::Create, Call::ReplaceIf].into_iter().enumerate() {
        let subject = Subject::prepare(&bucket, call, &format!("lost-{number}")).await;
        bucket.well.store(&subject.key, b"theirs").await.unwrap();
        line.now(|_, request| (request == 1).then_some(Evil::LosesAnswer));
        assert_eq!(subject.make(&repo).await, Ok(Some(Put::Refused)), "{call:?}");
        assert_eq!(bucket.well.read(&subject.key).await.unwrap().unwrap(), b"theirs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_line_is_no_stall() {
    let Some(bucket) = Bucket::new().await else { return };
    let (line, repo) = bucket.line_with(Waits { slowest: ByteCount(100_000), ..WAITS }).await;
    let subject = Subject::prepare(&bucket, Call::Store, "slow").await;
    // It takes longer than an answer may take to begin.
    let content = content(600_000, 7);
    line.now(|_, _| Some(Evil::Takes(120_000)));
    let begun = Instant::now();
    repo.store(&subject.key, &content).await.unwrap();
    assert!(begun.elapsed() > WAITS.answer, "{:?}", begun.elapsed());
    assert_eq!(line.mend(), 1, "it is sent once");
    assert!(bucket.well.read(&subject.key).await.unwrap() == Some(content));
}

// ---- what killed writers leave -----------------------------------------------------------------------------------------

const WRITER: &str = "PGHERD_TEST_S3_WRITER";

/// Runs in a process of its own: writes until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_writer_that_is_killed() {
    let Ok(at) = std::env::var(WRITER) else { return };
    let (url, endpoint) = at.split_once(' ').unwrap();
    let access = pgherd::repo::access::S3Access {
        endpoint: Some(endpoint.to_owned()),
        path_style: true,
        credentials: Some(pgherd::repo::access::Credentials {
            access_key: pgherd::secret::Secret::new(weed::ACCESS_KEY),
            secret_key: pgherd::secret::Secret::new(weed::SECRET_KEY),
        }),
        ..Default::default()
    };
    let (repo, _) = S3Repo::open(url, &access, Waits::default()).await.unwrap();
    let mut upload = repo.upload(&key("inventory/object")).await.unwrap();
    loop {
        upload.write(&content(1 << 20, 1)).await.unwrap();
        println!("\nwriting");
    }
}

/// Starts a writer and kills it when parts of what it writes are with the server.
fn kill_a_writer(bucket: &Bucket) {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_writer_that_is_killed", "--nocapture"])
        .env(WRITER, format!("s3://{}/v1 {}", bucket.name, bucket.weed.endpoint()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    // Four parts are on their way at most, so that one has come when there are five.
    let written = lines.map_while(Result::ok).filter(|line| line == "writing").take(48).count();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(written, 48);
}

/// Returns how many uploads there are in the bucket, whoever's they are.
fn uploads(bucket: &Bucket) -> usize {
    let name = bucket.name.clone();
    bucket.weed.now(|client| async move {
        client.list_multipart_uploads().bucket(name).send().await.unwrap().uploads().len()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_killed_writer_leaves_is_seen_by_nobody_and_swept_when_it_is_old() {
    let Some(bucket) = Bucket::new().await else { return };
    tokio::task::block_in_place(|| kill_a_writer(&bucket));
    assert_eq!(bucket.well.read(&key("inventory/object")).await, Ok(None));
    assert_eq!(bucket.well.list(None).await.unwrap().folders, Vec::<String>::new());
    assert_eq!(bucket.well.list_all(&key("inventory")).await, Ok(Vec::new()));
    assert_eq!(uploads(&bucket), 1);

    // Another repository in the bucket, with an upload that is under way.
    let beside = bucket.name.clone();
    bucket.weed.now(|client| async move {
        client.create_multipart_upload().bucket(beside).key("v2/inventory/object").send().await.unwrap();
    });
    let day_ago = Timestamp::now().checked_sub(SignedDuration::from_hours(24)).unwrap();
    assert_eq!(bucket.well.sweep(day_ago).await, Ok(0));
    assert_eq!(uploads(&bucket), 2);
    let later = Timestamp::now().checked_add(SignedDuration::from_secs(60)).unwrap();
    // As a command comes to it: on threads of its own.
    let directory = tempfile::tempdir().unwrap();
    let access = bucket.weed.access(bucket.well.url(), &bucket.weed.endpoint());
    let opened = repo::open(&Weed::location(directory.path(), &access)).unwrap();
    assert_eq!(opened.sweep(later).await, Ok(1));
    assert_eq!(uploads(&bucket), 1);
    assert_eq!(bucket.well.sweep(later).await, Ok(0));

    bucket.well.store(&key("inventory/object"), b"the next one").await.unwrap();
    assert_eq!(bucket.well.list_all(&key("inventory")).await.unwrap().len(), 1);
}

// ---- object lock -------------------------------------------------------------------------------------------------------

/// Returns how an object is locked, as the server says.
fn lock_of(weed: &Weed, bucket: &str, name: &str) -> Option<(ObjectLockMode, SignedDuration)> {
    let (bucket, name) = (bucket.to_owned(), format!("v1/{name}"));
    weed.now(|client| async move {
        let found = client.head_object().bucket(bucket).key(name).send().await.unwrap();
        let until = Timestamp::from_second(found.object_lock_retain_until_date()?.secs()).unwrap();
        Some((found.object_lock_mode()?.clone(), until.duration_since(Timestamp::now())))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_stored_is_locked_for_as_long_as_is_declared_but_for_what_is_written_again_and_again() {
    let Some(weed) = tokio::task::spawn_blocking(weed).await.unwrap() else { return };
    let name = tokio::task::spawn_blocking(|| weed.locking_bucket()).await.unwrap();
    let url = format!("s3://{name}/v1");
    let mut access = weed.access(&url, &weed.endpoint()).s3.unwrap();
    let lock = ObjectLock { seconds: 7 * 86_400, mode: LockMode::Compliance };
    access.object_lock = Some(lock);
    let (repo, _) = S3Repo::create(&url, &access, Waits::default(), false).await.unwrap();
    assert_eq!(repo.object_lock(), Some(lock));
    let week = SignedDuration::from_hours(7 * 24);
    let about_a_week = |found: Option<(ObjectLockMode, SignedDuration)>| {
        let (mode, left) = found.expect("it is locked");
        assert_eq!(mode, ObjectLockMode::Compliance);
        assert!(left <= week && left > week - SignedDuration::from_mins(10), "{left}");
    };
    let system = "inventory/7398812045532218841";
    let backup = format!("{system}/backup/20261122T020000Z-full");
    for locked in ["key/wal-00000001.json", "wal/0000000100000000/000000010000000000000003.zst"] {
        assert_eq!(repo.create(&key(&format!("{system}/{locked}")), b"x").await.unwrap(), Put::Stored);
        about_a_week(lock_of(weed, &name, &format!("{system}/{locked}")));
    }
    let data = format!("{backup}/data/000001");
    let mut upload = repo.upload(&key(&data)).await.unwrap();
    upload.write(&content(IN_PARTS, 0)).await.unwrap();
    upload.finish().await.unwrap();
    about_a_week(lock_of(weed, &name, &data));
    about_a_week(lock_of(weed, &name, "repository.json"));
    for passing in [
        "inventory/lock.json".to_owned(),
        "inventory/primary.json".to_owned(),
        format!("{system}/lease/1.json"),
        format!("{backup}/pin.json"),
        format!("{backup}/progress/000001.zst"),
        "_jobs/shop/inventory/full.json".to_owned(),
    ] {
        repo.store(&key(&passing), b"x").await.unwrap();
        assert_eq!(lock_of(weed, &name, &passing), None, "{passing}");
    }

    // Whoever has our keys hides what is locked, and cannot destroy it.
    assert!(repo.remove(&key(&data)).await.unwrap());
    assert_eq!(repo.read(&key(&data)).await.unwrap(), None);
    let (bucket, hidden) = (name.clone(), format!("v1/{data}"));
    weed.now(|client| async move {
        let versions = client.list_object_versions().bucket(&bucket).prefix(&hidden).send().await.unwrap();
        let version = versions.versions()[0].version_id().unwrap();
        let destroyed =
            client.delete_object().bucket(&bucket).key(&hidden).version_id(version).send().await.unwrap_err();
        assert_eq!(destroyed.raw_response().unwrap().status().as_u16(), 403);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bucket_that_locks_nothing_is_refused_where_object_lock_is_declared() {
    let Some(bucket) = Bucket::new().await else { return };
    let url = format!("s3://{}/v1", bucket.name);
    let mut access = bucket.weed.access(&url, &bucket.weed.endpoint()).s3.unwrap();
    access.object_lock = Some(ObjectLock { seconds: 86_400, mode: LockMode::Governance });
    for error in [
        S3Repo::create(&url, &access, WAITS, false).await.unwrap_err(),
        S3Repo::prove(&url, &access, WAITS).await.unwrap_err(),
    ] {
        assert!(error.why.contains("the bucket was made without it"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let Some(bucket) = Bucket::new().await else { return };
    let mut upload = bucket.well.upload(&key("inventory/object")).await.unwrap();
    upload.write(&content(IN_PARTS, 1)).await.unwrap();
    assert_eq!(uploads(&bucket), 1);
    drop(upload);
    let deadline = Instant::now() + Duration::from_secs(30);
    while uploads(&bucket) > 0 {
        assert!(Instant::now() < deadline, "its parts are there for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bucket.well.read(&key("inventory/object")).await, Ok(None));
}
