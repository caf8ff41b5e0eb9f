//! Runs one operation under every single fault, and under pairs of them, and asserts what must hold whatever happens:
//! the journal folds; the operation ends done or restored, wholly; a second resume changes nothing.
//!
//! A case is data, so a failing one is named in the panic and can be run alone.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd::engine::event::EventSink;
use pgherd::engine::interrupt::Interrupt;
use pgherd::engine::journal::{Mishap, Tap};
use pgherd::engine::lock::Lock;
use pgherd::engine::operation::{self, Intent, Operation, Outcome};
use pgherd::engine::record::OperationId;
use pgherd::engine::step::Step;
use pgherd::engine::store::{Listed, Store};
use pgherd::engine::view::Ended;
use pgherd::error::ErrorKind;
use pgherd::gate::{Blocked, BoxFuture, Gate};

/// An operation that the harness can begin again and again.
pub trait Scenario {
    type Step: Step;
    /// Where one case takes place: directories, servers.
    type Site;

    /// Makes a new site.
    async fn fresh(&self) -> Self::Site;
    /// The state directory of the site.
    fn state<'a>(&self, site: &'a Self::Site) -> &'a Path;
    async fn intent(&self, site: &Self::Site) -> Intent<Self::Step>;
    /// The steps' world, as a new process would build it, with every call through `gate`.
    async fn world(&self, site: &Self::Site, gate: Arc<dyn Gate>) -> <Self::Step as Step>::World;
    /// Everything at the site that a resume of an ended operation must leave as it is.
    async fn snapshot(&self, site: &Self::Site) -> String;
    /// Says what is wrong at the site after a drive; `ended` is `None` while the operation is unfinished.
    async fn check(&self, site: &Self::Site, ended: Option<&Ended>) -> Result<(), String>;
}

/// What befalls a call through a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    FailsBefore,
    FailsAfter,
    HangsBefore,
    HangsAfter,
    /// This call and all later ones fail: the host is gone.
    GoneFromHere,
    /// The operator asks to stop while the call runs.
    Interrupted,
}

pub const CALL_FAULTS: [CallFault; 6] = [
    CallFault::FailsBefore,
    CallFault::FailsAfter,
    CallFault::HangsBefore,
    CallFault::HangsAfter,
    CallFault::GoneFromHere,
    CallFault::Interrupted,
];

pub const MISHAPS: [Mishap; 4] =
    [Mishap::KilledBefore, Mishap::KilledWithin, Mishap::KilledAfter, Mishap::DiskFull];

/// One fault of a drive. Calls count from 0 in each drive, records from 0 in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Call(usize, CallFault),
    Record(u64, Mishap),
}

/// How the operator goes on after a drive that did not end the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Resume,
    /// And resume where undo is refused.
    Undo,
}

/// Drives with their faults; after them come drives without any, until the operation has ended.
#[derive(Debug, Clone)]
pub struct Case {
    pub drives: Vec<Vec<Fault>>,
    pub then: Then,
}

/// What the drives of a case did.
#[derive(Debug, Default)]
pub struct Trace {
    pub drives: Vec<Drive>,
    pub ended: Option<Ended>,
}

#[derive(Debug, Default)]
pub struct Drive {
    /// Calls through the gate.
    pub calls: Vec<String>,
    /// Numbers of the records that were appended, or tried to be.
    pub records: Vec<u64>,
}

/// Counts the calls of a drive and lets the faults befall them.
#[derive(Debug)]
struct FaultyGate {
    faults: Vec<(usize, CallFault)>,
    calls: Mutex<Vec<String>>,
    interrupt: Interrupt,
}

impl FaultyGate {
    fn new(faults: &[Fault], interrupt: Interrupt) -> Arc<Self> {
        let faults = faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Call(index, fault) => Some((*index, *fault)),
                Fault::Record(..) => None,
            })
            .collect();
        Arc::new(Self { faults, calls: Mutex::default(), interrupt })
    }

    /// Of side by side calls the last one that began is asked for: each `after` follows its own `before` in the toys and doors.
    fn fault(&self, index: usize) -> Option<CallFault> {
        self.faults.iter().find_map(|(at, fault)| {
            let hit = *at == index || (*fault == CallFault::GoneFromHere && index > *at);
            hit.then_some(*fault)
        })
    }

    fn index_of(&self, call: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().rposition(|begun| begun == call).expect("what ends has begun")
    }
}

impl Gate for FaultyGate {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(async move {
            let index = {
                let mut calls = self.calls.lock().unwrap();
                calls.push(call.to_owned());
                calls.len() - 1
            };
            match self.fault(index) {
                Some(CallFault::FailsBefore | CallFault::GoneFromHere) => {
                    Err(Blocked::Before(call.to_owned()))
                }
                Some(CallFault::HangsBefore) => std::future::pending().await,
                Some(CallFault::Interrupted) => {
                    self.interrupt.ask();
                    Ok(())
                }
                Some(CallFault::FailsAfter | CallFault::HangsAfter) | None => Ok(()),
            }
        })
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(async move {
            match self.fault(self.index_of(call)) {
                Some(CallFault::FailsAfter) => Err(Blocked::After(call.to_owned())),
                Some(CallFault::HangsAfter) => std::future::pending().await,
                Some(
                    CallFault::FailsBefore
                    | CallFault::GoneFromHere
                    | CallFault::HangsBefore
                    | CallFault::Interrupted,
                )
                | None => Ok(()),
            }
        })
    }
}

/// The store of one drive: its tap notes the records and lets the faults befall them.
fn store_of(state: &Path, faults: &[Fault]) -> (Store, Arc<Mutex<Vec<u64>>>) {
    let records: Arc<Mutex<Vec<u64>>> = Arc::default();
    let seen = records.clone();
    let faults = faults.to_vec();
    let tap = Tap(Arc::new(move |seq| {
        seen.lock().unwrap().push(seq);
        faults.iter().find_map(|fault| match fault {
            Fault::Record(at, mishap) if *at == seq => Some(*mishap),
            Fault::Record(..) | Fault::Call(..) => None,
        })
    }));
    (Store::new(state).with_tap(tap), records)
}

const NO_WAIT: Duration = Duration::ZERO;
/// Drives without faults that may be needed: an undo that is refused, and the resume after it.
const CLEAN_DRIVES: usize = 2;

/// Runs a case and asserts what must hold.
pub async fn run_case<S: Scenario>(scenario: &S, case: &Case) -> Trace {
    let site = scenario.fresh().await;
    let mut trace = Trace::default();
    let cluster = "toys";
    let before = scenario.snapshot(&site).await;
    let mut id: Option<OperationId> = None;
    for number in 0..case.drives.len() + CLEAN_DRIVES {
        let faults = case.drives.get(number).map_or(&[][..], Vec::as_slice);
        let (store, records) = store_of(scenario.state(&site), faults);
        let interrupt = Interrupt::new();
        let gate = FaultyGate::new(faults, interrupt.clone());
        let world = scenario.world(&site, gate.clone()).await;
        let events = EventSink::none();
        let drive = async {
            match &id {
                None => {
                    let lock = Lock::take(&store, cluster, NO_WAIT).await?;
                    let mut begun = Operation::begin(&store, lock, scenario.intent(&site).await).await?;
                    id = Some(begun.id());
                    operation::run(&mut begun, &world, &events, &interrupt).await
                }
                Some(id) => {
                    let mut opened = Operation::<S::Step>::open(&store, id, NO_WAIT).await?;
                    if case.then == Then::Undo {
                        match operation::undo(&mut opened, &world, &events, &interrupt).await {
                            Err(error) if error.kind() == ErrorKind::Refused => {}
                            ended => return ended,
                        }
                    }
                    operation::run(&mut opened, &world, &events, &interrupt).await
                }
            }
        };
        let outcome = drive.await;
        let calls = gate.calls.lock().unwrap().clone();
        trace.drives.push(Drive { calls, records: records.lock().unwrap().clone() });
        let store = Store::new(scenario.state(&site));
        // A process that dies with its header written leaves an operation whose id only the store can tell.
        if id.is_none() {
            id = store.list().unwrap().into_iter().find_map(|listed| match listed {
                Listed::Readable(view) => Some(view.id),
                Listed::Damaged { .. } => None,
            });
        }
        let Some(id) = &id else {
            assert_eq!(
                scenario.snapshot(&site).await,
                before,
                "{case:?}: something happened without a journal"
            );
            assert!(outcome.is_err(), "{case:?}: no journal and no error");
            continue;
        };
        let view = match store.read(id) {
            Ok(content) => content.view,
            Err(error) => panic!("{case:?}: after drive {number} the journal does not fold: {error:?}"),
        };
        let ended = if view.is_finished() { view.ended.clone() } else { None };
        if let Err(wrong) = scenario.check(&site, ended.as_ref()).await {
            panic!("{case:?}: after drive {number}, {outcome:?}: {wrong}");
        }
        if ended.is_some() {
            trace.ended = ended;
            second_resume_changes_nothing(scenario, &site, &store, id, case).await;
            return trace;
        }
        let clean = faults.is_empty();
        assert!(!clean, "{case:?}: drive {number} had no faults and did not end the operation: {outcome:?}");
    }
    panic!("{case:?}: the operation never ended");
}

async fn second_resume_changes_nothing<S: Scenario>(
    scenario: &S,
    site: &S::Site,
    store: &Store,
    id: &OperationId,
    case: &Case,
) {
    let look = async || (std::fs::read(store.path(id)).unwrap(), scenario.snapshot(site).await);
    let before = look().await;
    let interrupt = Interrupt::new();
    let gate = FaultyGate::new(&[], interrupt.clone());
    let world = scenario.world(site, gate.clone()).await;
    let mut again = Operation::<S::Step>::open(store, id, NO_WAIT).await.unwrap();
    let outcome = operation::run(&mut again, &world, &EventSink::none(), &interrupt).await;
    assert!(matches!(outcome, Ok(Outcome::AlreadyEnded(_))), "{case:?}: second resume: {outcome:?}");
    assert_eq!(*gate.calls.lock().unwrap(), Vec::<String>::new(), "{case:?}: second resume made calls");
    assert!(look().await == before, "{case:?}: second resume changed something");
}

/// Returns the cases that put one more fault into the last drive of `case`, after those it has, at every call and every record
/// that `trace` shows there.
pub fn with_one_more_fault(case: &Case, trace: &Trace) -> Vec<Case> {
    let number = case.drives.len() - 1;
    let drive = &trace.drives[number];
    let faults = &case.drives[number];
    let calls_from = faults.iter().filter_map(|fault| match fault {
        Fault::Call(at, _) => Some(at + 1),
        Fault::Record(..) => None,
    });
    let records_from = faults.iter().filter_map(|fault| match fault {
        Fault::Record(at, _) => Some(at + 1),
        Fault::Call(..) => None,
    });
    let calls = (calls_from.max().unwrap_or(0)..drive.calls.len())
        .flat_map(|at| CALL_FAULTS.map(|fault| Fault::Call(at, fault)));
    let first = records_from.max().unwrap_or(0);
    let records = drive.records.iter().copied().filter(|at| *at >= first);
    let records = records.flat_map(|at| MISHAPS.map(|mishap| Fault::Record(at, mishap)));
    let mut cases = Vec::new();
    for fault in calls.chain(records) {
        for then in [Then::Resume, Then::Undo] {
            let mut drives = case.drives.clone();
            drives[number].push(fault);
            cases.push(Case { drives, then });
        }
    }
    cases
}

/// Returns `count` of the cases, chosen by `seed`; the same ones for the same seed.
pub fn sample<T>(mut cases: Vec<T>, count: usize, seed: u64) -> Vec<T> {
    // SplitMix64 (Steele, Lea, Flood 2014): one multiply-xorshift a number, good enough to shuffle test cases.
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    let count = count.min(cases.len());
    for at in 0..count {
        let left = (cases.len() - at) as u64;
        let other = at + usize::try_from(random() % left).unwrap();
        cases.swap(at, other);
    }
    cases.truncate(count);
    cases
}
