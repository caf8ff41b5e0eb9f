//! Copies of a journal on other machines, and what another station makes of them, on the toy's steps and over real files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd::engine::copies::Shelf;
use pgherd::engine::event::EventSink;
use pgherd::engine::interrupt::Interrupt;
use pgherd::engine::journal::{Mishap, Tap};
use pgherd::engine::lock::Lock;
use pgherd::engine::operation::{self, FromCopy, Operation, Outcome};
use pgherd::engine::record::{OperationId, Record};
use pgherd::engine::store::Store;
use pgherd::error::{Error, ErrorKind};
use pgherd::gate::{self, Blocked, BoxFuture, Gate};
use pgherd::host::decorate::{Gated, Layered};
use pgherd::host::local::LocalHost;
use pgherd::ops::copies::longest;

use crate::harness::Scenario as _;
use crate::toy::{Site, Toy, ToyStep, intent, stages};

const CLUSTER: &str = "toys";

/// A machine of a test: a directory, reached through a gate.
fn machine(site: &Site, name: &str, gate: Arc<dyn Gate>) -> Shelf {
    let host = Layered::new(Arc::new(LocalHost::own(name)), Gated(gate));
    let directory = site.state.parent().unwrap().join(name).join("copies").join(CLUSTER);
    Shelf { host: Arc::new(host), directory }
}

fn healthy(site: &Site, name: &str) -> Shelf {
    machine(site, name, gate::open())
}

async fn begin(store: &Store, shelves: Vec<Shelf>) -> Operation<ToyStep> {
    let lock = Lock::take(store, CLUSTER, Duration::ZERO).await.unwrap().with_copies(shelves);
    Operation::begin(store, lock, intent(stages())).await.unwrap()
}

async fn drive(site: &Site, operation: &mut Operation<ToyStep>) -> Result<Outcome, Error> {
    let world = site.world(gate::open());
    operation::run(operation, &world, &EventSink::none(), &Interrupt::new()).await
}

/// The state directory of another station.
fn elsewhere(site: &Site) -> Store {
    Store::new(site.state.with_file_name("state-b"))
}

async fn take_over(
    store: &Store,
    id: &OperationId,
    lines: &[u8],
    shelves: Vec<Shelf>,
) -> Result<Operation<ToyStep>, Error> {
    let lock = Lock::take(store, CLUSTER, Duration::ZERO).await?.with_copies(shelves);
    let found = FromCopy {
        id: id.clone(),
        lines: lines.to_vec(),
        copies: vec!["db1".to_owned()],
        unreachable: Vec::new(),
        reason: "its station is gone".to_owned(),
    };
    Operation::take_from_copy(store, lock, found).await
}

fn killed_after(site: &Site, record: u64) -> Store {
    Store::new(&site.state).with_tap(Tap(Arc::new(move |seq| (seq == record).then_some(Mishap::KilledAfter))))
}

/// How many records the whole toy operation has.
async fn records() -> u64 {
    let site = Site::new();
    let store = Store::new(&site.state);
    let mut operation = begin(&store, Vec::new()).await;
    drive(&site, &mut operation).await.unwrap();
    store.read(&operation.id()).unwrap().entries.len() as u64
}

#[tokio::test]
async fn each_machine_has_the_very_bytes_of_the_journal_when_the_operation_has_ended() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let shelves = vec![healthy(&site, "db1"), healthy(&site, "db2")];
    let mut operation = begin(&store, shelves.clone()).await;
    assert!(matches!(drive(&site, &mut operation).await, Ok(Outcome::Done)));
    let journal = std::fs::read(store.path(&operation.id())).unwrap();
    for shelf in &shelves {
        let path = shelf.path(&operation.id());
        assert_eq!(std::fs::read(&path).unwrap(), journal);
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode(&path), mode(&shelf.directory)), (0o600, 0o700));
    }
}

/// Lets one call to a machine fail before its effect, after it, or never end; or all from that one on.
#[derive(Debug)]
struct OnCall {
    number: usize,
    act: Act,
    calls: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Before,
    After,
    Hang,
    AllHang,
}

impl OnCall {
    async fn meet(&self, number: usize, at: &[Act], call: &str) -> Result<(), Blocked> {
        let due = number == self.number || (self.act == Act::AllHang && number > self.number);
        match self.act {
            act if !due || !at.contains(&act) => Ok(()),
            Act::Before => Err(Blocked::Before(call.to_owned())),
            Act::After => Err(Blocked::After(call.to_owned())),
            Act::Hang | Act::AllHang => std::future::pending().await,
        }
    }
}

impl Gate for OnCall {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(self.meet(number, &[Act::Before, Act::Hang, Act::AllHang], call))
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let number = self.calls.load(Ordering::SeqCst).saturating_sub(1);
        Box::pin(self.meet(number, &[Act::After], call))
    }
}

#[tokio::test(start_paused = true)]
async fn no_failure_of_a_copy_changes_an_operation_or_lets_it_wait_for_long() {
    for act in [Act::Before, Act::After, Act::Hang, Act::AllHang] {
        for number in 0..12 {
            let site = Site::new();
            let store = Store::new(&site.state);
            let fault = Arc::new(OnCall { number, act, calls: AtomicUsize::new(0) });
            let shelves = vec![healthy(&site, "db1"), machine(&site, "db2", fault)];
            let mut operation = begin(&store, shelves.clone()).await;
            let begun = tokio::time::Instant::now();
            let outcome = drive(&site, &mut operation).await;
            assert!(matches!(outcome, Ok(Outcome::Done)), "{act:?} at call {number}: {outcome:?}");
            assert!(
                begun.elapsed() < Duration::from_secs(4),
                "{act:?} at call {number}: {:?}",
                begun.elapsed()
            );
            let content = store.read(&operation.id()).unwrap();
            assert!(Toy.check(&site, content.view.ended.as_ref()).await.is_ok());
            let journal = std::fs::read(store.path(&operation.id())).unwrap();
            assert!(std::fs::read(shelves[0].path(&operation.id())).unwrap() == journal);
            // What the other one has is a beginning of it.
            let copy = std::fs::read(shelves[1].path(&operation.id())).unwrap_or_default();
            assert!(journal.starts_with(&copy), "{act:?} at call {number}");
            if matches!(act, Act::Before | Act::After) {
                assert!(
                    copy == journal,
                    "{act:?} at call {number}: {} of {} bytes",
                    copy.len(),
                    journal.len()
                );
            }
        }
    }
}

#[tokio::test]
async fn an_operation_that_was_killed_at_any_record_is_driven_to_its_end_from_a_copy() {
    for killed in 1..records().await - 1 {
        let site = Site::new();
        let shelf = healthy(&site, "db1");
        let mut operation = begin(&killed_after(&site, killed), vec![shelf.clone()]).await;
        let id = operation.id();
        drive(&site, &mut operation).await.unwrap_err();
        drop(operation);
        let copy = shelf.read(&id).await.unwrap().unwrap();
        let store = elsewhere(&site);
        let mut operation = take_over(&store, &id, &copy, vec![shelf.clone()]).await.unwrap();
        let outcome = drive(&site, &mut operation).await;
        assert!(matches!(outcome, Ok(Outcome::Done)), "killed at {killed}: {outcome:?}");
        let ended = store.read(&id).unwrap().view.ended;
        Toy.check(&site, ended.as_ref()).await.unwrap_or_else(|why| panic!("killed at {killed}: {why}"));
        assert_eq!(shelf.read(&id).await.unwrap().unwrap(), std::fs::read(store.path(&id)).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_taken_from_a_copy_can_be_undone_until_its_pivot() {
    for killed in 1..records().await - 1 {
        for lacking in [0, 1] {
            let site = Site::new();
            let mut operation = begin(&killed_after(&site, killed), Vec::new()).await;
            let id = operation.id();
            drive(&site, &mut operation).await.unwrap_err();
            drop(operation);
            let journal = std::fs::read(Store::new(&site.state).path(&id)).unwrap();
            let mut lines: Vec<&[u8]> = journal.split_inclusive(|byte| *byte == b'\n').collect();
            lines.truncate(lines.len() - lacking);
            let sealed = site.root.join("sealed").exists();
            let mut operation = take_over(&elsewhere(&site), &id, &lines.concat(), Vec::new()).await.unwrap();
            let (world, events) = (site.world(gate::open()), EventSink::none());
            let outcome = operation::undo(&mut operation, &world, &events, &Interrupt::new()).await;
            let which = format!("killed at {killed}, {lacking} lacking: {outcome:?}");
            match outcome {
                Ok(Outcome::Restored { .. }) => assert!(site.is_initial() && !sealed, "{which}"),
                Err(refused) => assert!(refused.kind() == ErrorKind::Refused && sealed, "{which}"),
                Ok(_) => panic!("{which}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_copy_lacks_nothing_is_lost_and_what_cannot_be_told_is_left_to_the_operator() {
    let mut stuck = 0;
    for killed in 1..records().await - 1 {
        for lacking in 0..=killed {
            let site = Site::new();
            let mut operation = begin(&killed_after(&site, killed), Vec::new()).await;
            let id = operation.id();
            drive(&site, &mut operation).await.unwrap_err();
            drop(operation);
            let journal = std::fs::read(Store::new(&site.state).path(&id)).unwrap();
            let mut lines: Vec<&[u8]> = journal.split_inclusive(|byte| *byte == b'\n').collect();
            lines.truncate(lines.len() - usize::try_from(lacking).unwrap());
            let store = elsewhere(&site);
            let mut operation = take_over(&store, &id, &lines.concat(), Vec::new()).await.unwrap();
            let outcome = drive(&site, &mut operation).await;
            let ended = store.read(&id).unwrap().view.ended;
            let which = format!("killed at {killed}, {lacking} records lacking");
            match outcome {
                Ok(Outcome::Done) => {
                    Toy.check(&site, ended.as_ref()).await.unwrap_or_else(|why| panic!("{which}: {why}"));
                }
                // The last stage takes away what the second one put there: who knows of neither cannot tell.
                Ok(Outcome::Stuck { .. }) => {
                    Toy.check(&site, None).await.unwrap_or_else(|why| panic!("{which}: {why}"));
                    stuck += 1;
                }
                other => panic!("{which}: {other:?}"),
            }
        }
    }
    assert!(stuck > 0, "the case is not met any more");
}

#[tokio::test(start_paused = true)]
async fn an_undo_of_which_the_copy_knows_is_taken_to_its_end() {
    let site = Site::new();
    let shelf = healthy(&site, "db1");
    let store = Store::new(&site.state);
    let mut operation = begin(&store, vec![shelf.clone()]).await;
    let id = operation.id();
    // The second move fails, and what was begun is undone; the station dies at the first undo.
    let fail = Arc::new(FailOnce("write coral to ben", Mutex::new(false)));
    let seen = Arc::new(Mutex::new(false));
    let world = site.world(Arc::new(DieAfter { inner: fail, call: "remove coral from ben", died: seen }));
    let events = EventSink::none();
    let interrupt = Interrupt::new();
    let run = operation::run(&mut operation, &world, &events, &interrupt);
    assert!(tokio::time::timeout(Duration::from_secs(3), run).await.is_err(), "it hangs, as the dead do");
    drop(operation);
    let copy = shelf.read(&id).await.unwrap().unwrap();
    let store = elsewhere(&site);
    let mut operation = take_over(&store, &id, &copy, vec![shelf]).await.unwrap();
    let outcome = drive(&site, &mut operation).await;
    assert!(matches!(outcome, Ok(Outcome::Restored { .. })), "{outcome:?}");
    assert!(site.is_initial(), "{}", site.listing());
}

#[derive(Debug)]
struct FailOnce(&'static str, Mutex<bool>);

impl Gate for FailOnce {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        let fails = call == self.0 && !std::mem::replace(&mut *self.1.lock().unwrap(), true);
        Box::pin(std::future::ready(if fails { Err(Blocked::After(call.to_owned())) } else { Ok(()) }))
    }

    fn after<'a>(&'a self, _call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Never answers again once a call was made.
#[derive(Debug)]
struct DieAfter {
    inner: Arc<dyn Gate>,
    call: &'static str,
    died: Arc<Mutex<bool>>,
}

impl Gate for DieAfter {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        if *self.died.lock().unwrap() { Box::pin(std::future::pending()) } else { self.inner.before(call) }
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        if call == self.call {
            *self.died.lock().unwrap() = true;
            return Box::pin(std::future::pending());
        }
        self.inner.after(call)
    }
}

#[tokio::test(start_paused = true)]
async fn a_station_that_still_lives_stops_when_a_copy_shows_that_it_has_lost_the_operation() {
    let site = Site::new();
    let shelf = healthy(&site, "db1");
    let mut first = begin(&Store::new(&site.state), vec![shelf.clone()]).await;
    let id = first.id();
    let copy = loop {
        match shelf.read(&id).await.unwrap() {
            Some(copy) if copy.ends_with(b"\n") => break copy,
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut second = take_over(&elsewhere(&site), &id, &copy, vec![shelf.clone()]).await.unwrap();
    let lost = drive(&site, &mut first).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Locked);
    assert!(lost.what().starts_with(&format!("operation {id} was taken over by")), "{lost}");
    let records = Store::new(&site.state).read(&id).unwrap().entries;
    assert!(!records.iter().any(|entry| matches!(entry.record, Record::Ended { .. })), "{records:?}");
    drop(first);
    assert!(matches!(drive(&site, &mut second).await, Ok(Outcome::Done)));
    assert_eq!(
        shelf.read(&id).await.unwrap().unwrap(),
        std::fs::read(elsewhere(&site).path(&id)).unwrap(),
        "the copy is the second one's"
    );
}

#[tokio::test(start_paused = true)]
async fn a_takeover_that_no_machine_hears_of_does_nothing() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let operation = begin(&store, Vec::new()).await;
    let (id, lines) = (operation.id(), operation.lines().unwrap());
    let silent = OnCall { number: 0, act: Act::AllHang, calls: AtomicUsize::new(0) };
    let shelf = machine(&site, "db1", Arc::new(silent));
    let refused = take_over(&elsewhere(&site), &id, &lines, vec![shelf]).await.unwrap_err();
    assert_eq!(refused.what(), format!("could not tell any host that operation {id} is taken over"));
    assert!(site.is_initial());
}

#[tokio::test]
async fn a_copy_that_is_torn_damaged_or_gone_is_written_anew() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("torn", |path| append(path, b"{\"seq\":")),
        ("filled with zeros", |path| append(path, &[0; 64])),
        ("rubbish", |path| std::fs::write(path, "rubbish\n").unwrap()),
        ("gone", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (what, harm) in harms {
        let site = Site::new();
        let shelf = healthy(&site, "db1");
        let store = Store::new(&site.state);
        let mut operation = begin(&store, vec![shelf.clone()]).await;
        let path = shelf.path(&operation.id());
        while !std::fs::read(&path).is_ok_and(|copy| copy.ends_with(b"\n")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        harm(&path);
        drive(&site, &mut operation).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == operation.lines().unwrap(), "{what}");
    }
}

fn append(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[tokio::test]
async fn the_oldest_copies_go_when_there_are_many() {
    let site = Site::new();
    let shelf = healthy(&site, "db1");
    std::fs::create_dir_all(&shelf.directory).unwrap();
    let old: Vec<PathBuf> =
        (0..60).map(|number| shelf.directory.join(format!("{number:06x}.jsonl"))).collect();
    for (age, path) in old.iter().enumerate() {
        std::fs::write(path, "old").unwrap();
        let at = std::time::SystemTime::now() - Duration::from_secs(1000 - age as u64);
        std::fs::File::open(path).unwrap().set_modified(at).unwrap();
    }
    let mut operation = begin(&Store::new(&site.state), vec![shelf.clone()]).await;
    drive(&site, &mut operation).await.unwrap();
    let kept = || std::fs::read_dir(&shelf.directory).unwrap().count();
    while kept() > 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(shelf.path(&operation.id()).exists() && old[59].exists() && !old[0].exists());
}

#[tokio::test]
async fn the_longest_copy_that_checks_out_counts_and_a_fork_is_refused_with_both() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let mut operation = begin(&store, Vec::new()).await;
    let id = operation.id();
    let header = operation.lines().unwrap();
    // Another station takes it over from the header alone, while the first one goes on.
    let other = take_over(&elsewhere(&site), &id, &header, Vec::new()).await.unwrap().lines().unwrap();
    drive(&site, &mut operation).await.unwrap();
    let whole = operation.lines().unwrap();
    let on = |host: &str, copy: &[u8]| (host.to_owned(), copy.to_vec());
    let torn = [&whole[..], b"{\"seq\""].concat();
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    let copies =
        [on("db1", &header), on("db2", &torn), on("db3", &damaged), on("db4", &whole), on("db5", b"{\"s")];
    let chain = longest(&id, &copies).unwrap().unwrap();
    assert_eq!((chain.lines, chain.hosts), (whole.clone(), vec!["db2".to_owned(), "db4".to_owned()]));
    assert!(longest(&id, &[on("db5", b"{\"s")]).unwrap().is_none());
    assert_eq!(longest(&id, &[on("db3", &damaged)]).unwrap_err().kind(), ErrorKind::Stuck);
    let fork = longest(&id, &[on("db1", &whole), on("db2", &other)]).unwrap_err();
    assert_eq!(
        (fork.kind(), fork.what()),
        (ErrorKind::Stuck, &*format!("operation {id} has gone on in two ways"))
    );
    let told = fork.detail_text().unwrap();
    assert!(told.contains("host db1") && told.contains("host db2 (2 lines"), "{told}");
}
