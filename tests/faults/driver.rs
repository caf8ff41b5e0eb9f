//! What the driver does, one fact a test, on the toy's steps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd::engine::event::{self, EventKind, EventSink};
use pgherd::engine::interrupt::Interrupt;
use pgherd::engine::lock::{self, Lock};
use pgherd::engine::operation::{self, Operation, Outcome, abandon};
use pgherd::engine::record::{End, OperationId, Record};
use pgherd::engine::shared_lock::{self, Claim, SharedLock};
use pgherd::engine::step::Stage;
use pgherd::engine::store::Store;
use pgherd::engine::view::{Ended, OperationView, StepState};
use pgherd::error::{Error, ErrorKind};
use pgherd::gate::{self, Blocked, BoxFuture, Gate};
use pgherd::repo::SharedRepo;
use pgherd::repo::dir::DirRepo;

use crate::toy::{Site, ToyStep, intent, stages};

const NO_WAIT: Duration = Duration::ZERO;
const CLUSTER: &str = "toys";

/// What a scripted gate does when a call begins or has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    FailBefore,
    FailAfter,
    HangBefore,
    HangAfter,
    Interrupt,
}

/// Lets acts befall the calls of some names, each so many times.
#[derive(Debug)]
struct Script {
    lines: Vec<(&'static str, Act, AtomicUsize)>,
    interrupt: Interrupt,
    /// Calls that began, in order.
    begun: Mutex<Vec<String>>,
    /// Told when an act befalls a call.
    reached: tokio::sync::Notify,
}

impl Script {
    fn new(call: &'static str, act: Act, times: usize) -> Arc<Self> {
        Self::of(&[(call, act, times)])
    }

    fn of(lines: &[(&'static str, Act, usize)]) -> Arc<Self> {
        Arc::new(Self {
            lines: lines.iter().map(|(call, act, times)| (*call, *act, AtomicUsize::new(*times))).collect(),
            interrupt: Interrupt::new(),
            begun: Mutex::default(),
            reached: tokio::sync::Notify::new(),
        })
    }

    async fn befall(&self, call: &str, acts: &[Act]) -> Result<(), Blocked> {
        let due = |times: &AtomicUsize| {
            times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        };
        let line = self.lines.iter().find(|(of, act, times)| *of == call && acts.contains(act) && due(times));
        let Some((_, act, _)) = line else { return Ok(()) };
        self.reached.notify_one();
        match act {
            Act::FailBefore => Err(Blocked::Before(call.to_owned())),
            Act::FailAfter => Err(Blocked::After(call.to_owned())),
            Act::HangBefore | Act::HangAfter => std::future::pending().await,
            Act::Interrupt => {
                self.interrupt.ask();
                Ok(())
            }
        }
    }

    fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }
}

impl Gate for Script {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        self.begun.lock().unwrap().push(call.to_owned());
        Box::pin(self.befall(call, &[Act::FailBefore, Act::HangBefore, Act::Interrupt]))
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(self.befall(call, &[Act::FailAfter, Act::HangAfter]))
    }
}

async fn begin(site: &Site, stages: Vec<Stage<ToyStep>>) -> Operation<ToyStep> {
    let store = Store::new(&site.state);
    let lock = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap();
    Operation::begin(&store, lock, intent(stages)).await.unwrap()
}

/// Begins the toy operation and drives it through the script.
async fn drive(site: &Site, script: &Arc<Script>) -> (OperationId, Result<Outcome, Error>) {
    let mut operation = begin(site, stages()).await;
    let world = site.world(script.clone());
    let events = EventSink::none();
    let outcome = sendable(operation::run(&mut operation, &world, &events, &script.interrupt)).await;
    (operation.id(), outcome)
}

/// Holds the drive to what a multi-threaded runtime asks of it.
fn sendable<F: Future + Send>(future: F) -> F {
    future
}

async fn resume(site: &Site, id: &OperationId) -> Result<Outcome, Error> {
    let mut operation = Operation::<ToyStep>::open(&Store::new(&site.state), id, NO_WAIT).await?;
    let world = site.world(gate::open());
    operation::run(&mut operation, &world, &EventSink::none(), &Interrupt::new()).await
}

async fn undo(site: &Site, id: &OperationId) -> Result<Outcome, Error> {
    let mut operation = Operation::<ToyStep>::open(&Store::new(&site.state), id, NO_WAIT).await?;
    let world = site.world(gate::open());
    operation::undo(&mut operation, &world, &EventSink::none(), &Interrupt::new()).await
}

fn view(site: &Site, id: &OperationId) -> OperationView {
    Store::new(&site.state).read(id).unwrap().view
}

fn kinds(site: &Site, id: &OperationId) -> Vec<Record> {
    Store::new(&site.state).read(id).unwrap().entries.into_iter().map(|entry| entry.record).collect()
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_pivot_undoes_newest_first_the_failed_step_and_its_siblings_included() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("remove brass from bank", Act::FailAfter, 1)).await;
    let Ok(Outcome::Restored { why }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.what(), "injected fault: the answer of remove brass from bank was lost");
    assert_eq!(why.contexts(), ["move brass from bank to anna"]);
    assert!(site.is_initial(), "{}", site.listing());
    let undone: Vec<(usize, usize)> = kinds(&site, &id)
        .into_iter()
        .filter_map(
            |record| if let Record::UndoDone { stage, step } = record { Some((stage, step)) } else { None },
        )
        .collect();
    assert_eq!(undone, [(2, 0), (2, 1), (1, 0), (0, 0), (0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_does_not_cut_its_siblings_short() {
    let site = Site::new();
    let script = Script::new("write brass to anna", Act::FailBefore, 1);
    drive(&site, &script).await.1.unwrap();
    assert!(script.begun().contains(&"remove coral from bank".to_owned()), "{:?}", script.begun());
}

#[tokio::test(start_paused = true)]
async fn a_passing_error_is_tried_again_and_each_attempt_is_on_record() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("make anna", Act::FailBefore, 1)).await;
    assert!(matches!(outcome, Ok(Outcome::Done)), "{outcome:?}");
    let step = &view(&site, &id).stages[0].steps[0];
    assert_eq!((step.attempts, &step.error), (2, &None));
}

#[tokio::test(start_paused = true)]
async fn attempts_end_where_the_step_says() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("make anna", Act::FailBefore, 9)).await;
    assert!(matches!(outcome, Ok(Outcome::Restored { .. })), "{outcome:?}");
    assert_eq!(view(&site, &id).stages[0].steps[0].attempts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_step_out_of_time_that_happened_all_the_same_is_not_repeated() {
    let site = Site::new();
    let script = Script::new("remove amber from bank", Act::HangAfter, 1);
    let (id, outcome) = drive(&site, &script).await;
    assert!(matches!(outcome, Ok(Outcome::Done)), "{outcome:?}");
    assert_eq!(view(&site, &id).stages[1].steps[0].attempts, 1);
    let again = script.begun().iter().filter(|call| *call == "write amber to anna").count();
    assert_eq!(again, 1);
}

#[tokio::test(start_paused = true)]
async fn a_step_out_of_time_that_did_not_happen_turns_the_operation_back() {
    let site = Site::new();
    let (_, outcome) = drive(&site, &Script::new("write amber to anna", Act::HangBefore, 1)).await;
    let Ok(Outcome::Restored { why }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.what(), "no end within 5.0 s");
    assert!(site.is_initial());
}

#[tokio::test(start_paused = true)]
async fn a_pivot_whose_answer_was_lost_is_looked_for_and_never_undone() {
    let site = Site::new();
    let (_, outcome) = drive(&site, &Script::new("seal", Act::FailAfter, 1)).await;
    assert!(matches!(outcome, Ok(Outcome::Done)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pivot_that_did_not_happen_lets_the_operation_turn_back() {
    let site = Site::new();
    let (_, outcome) = drive(&site, &Script::new("seal", Act::FailBefore, 1)).await;
    assert!(matches!(outcome, Ok(Outcome::Restored { .. })), "{outcome:?}");
    assert!(site.is_initial());
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_pivot_ends_incomplete_says_what_is_left_and_can_be_resumed_but_not_undone() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("write report", Act::FailBefore, 9)).await;
    let Ok(outcome @ Outcome::Incomplete { .. }) = outcome else { panic!("{outcome:?}") };
    let error = outcome.into_result(&id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incomplete);
    assert_eq!(
        error.detail_text(),
        Some(&*format!("It failed at: publish. Left to do in operation {id}: publish."))
    );
    assert_eq!(
        error.hint_text(),
        Some(&*format!("Mend the cause, then run \"pgherd operation resume {id}\"."))
    );
    let refused = undo(&site, &id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_eq!(refused.detail_text(), Some("After \"seal\" there is only forward."));
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::Done)));
}

#[tokio::test(start_paused = true)]
async fn an_undo_that_keeps_failing_is_stuck_and_a_resume_goes_on_with_it() {
    let site = Site::new();
    let script = Script::of(&[("seal", Act::FailBefore, 1), ("remove amber from anna", Act::FailBefore, 3)]);
    let (id, outcome) = drive(&site, &script).await;
    let Ok(Outcome::Stuck { why, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.contexts(), ["undo \"move amber from bank to anna\""]);
    let because = "It was being undone because: seal: injected fault: seal was not started.";
    assert_eq!(why.detail_text(), Some(because));
    assert_eq!(view(&site, &id).stages[1].steps[0].state, StepState::UndoFailed);
    assert_eq!(view(&site, &id).stages[0].steps[0].undo_attempts, 0, "what is older is not touched");
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::Restored { .. })));
    assert!(site.is_initial());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_tell_stops_for_the_operator_until_the_world_is_mended() {
    let site = Site::new();
    let script = Script::new("remove amber from bank", Act::HangAfter, 1);
    let mut operation = begin(&site, stages()).await;
    let id = operation.id();
    let world = site.world(script.clone());
    let (events, interrupt) = (EventSink::none(), Interrupt::new());
    let steal = async {
        script.reached.notified().await;
        std::fs::rename(site.root.join("anna/amber"), site.root.join("stolen")).unwrap();
    };
    let (outcome, ()) = tokio::join!(operation::run(&mut operation, &world, &events, &interrupt), steal);
    drop(operation);
    let Ok(Outcome::Stuck { why, next }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.what(), "cannot tell whether \"move amber from bank to anna\" has happened");
    assert_eq!(why.detail_text(), Some("amber is neither in bank nor in anna"));
    assert_eq!(next, format!("pgherd operation resume {id}"));
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::Stuck { .. })), "still nobody can tell");
    std::fs::rename(site.root.join("stolen"), site.root.join("anna/amber")).unwrap();
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::Done)));
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_before_the_pivot_awaits_what_runs_and_restores() {
    let site = Site::new();
    let script = Script::new("write amber to anna", Act::Interrupt, 1);
    let (id, outcome) = drive(&site, &script).await;
    let Ok(outcome @ Outcome::Restored { .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(outcome.into_result(&id).unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(site.is_initial());
    let begun = script.begun();
    assert!(
        begun.contains(&"remove amber from bank".to_owned()),
        "the running step was cut short: {begun:?}"
    );
    assert!(!begun.contains(&"write brass to anna".to_owned()), "another step was begun: {begun:?}");
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_after_the_pivot_ends_incomplete() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("seal", Act::Interrupt, 1)).await;
    let Ok(Outcome::Incomplete { why, left }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(why.kind(), ErrorKind::Interrupted);
    assert_eq!(left, ["publish", "move amber from anna to ben"]);
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::Done)));
}

#[tokio::test(start_paused = true)]
async fn a_second_interrupt_stops_at_once_and_leaves_the_rest_to_a_resume() {
    let site = Site::new();
    let script = Script::new("write amber to anna", Act::HangBefore, 1);
    let mut operation = begin(&site, stages()).await;
    let id = operation.id();
    let world = site.world(script.clone());
    let events = EventSink::none();
    let twice = async {
        script.reached.notified().await;
        script.interrupt.ask();
        script.interrupt.ask();
    };
    let drive = operation::run(&mut operation, &world, &events, &script.interrupt);
    let (outcome, ()) = tokio::join!(drive, twice);
    drop(operation);
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    let ways = format!("pgherd operation resume {id}   or   pgherd operation undo {id}");
    assert_eq!(error.hint_text(), Some(&*ways));
    assert!(!view(&site, &id).is_finished());
    assert!(matches!(undo(&site, &id).await, Ok(Outcome::Restored { .. })));
    assert!(site.is_initial());
}

#[tokio::test(start_paused = true)]
async fn a_taken_over_driver_stops_without_touching_anything_more() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let script = Script::new("write brass to anna", Act::HangBefore, 1);
    let mut old = begin(&site, stages()).await;
    let id = old.id();
    let world = site.world(script.clone());
    let (events, interrupt) = (EventSink::none(), Interrupt::new());
    let take_over = async {
        script.reached.notified().await;
        let refused = Operation::<ToyStep>::open(&store, &id, NO_WAIT).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Locked);
        let pid = std::process::id().to_string();
        assert!(refused.detail_text().unwrap().contains(&pid), "{refused:?}");
        assert_eq!(lock::holder(&store, CLUSTER).unwrap().unwrap().operation.as_ref(), Some(&id));
        let touched = script.begun();
        let mut new = Operation::<ToyStep>::take_over(&store, &id, "it hangs").await.unwrap();
        let open = site.world(gate::open());
        let outcome = operation::run(&mut new, &open, &EventSink::none(), &Interrupt::new()).await;
        (touched, outcome)
    };
    let (old_end, (touched, new_end)) =
        tokio::join!(operation::run(&mut old, &world, &events, &interrupt), take_over);
    assert!(matches!(new_end, Ok(Outcome::Done)), "{new_end:?}");
    let error = old_end.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(error.what(), format!("operation {id} was taken over by another process"));
    assert_eq!(script.begun(), touched);
    assert_eq!(view(&site, &id).ended, Some(Ended::By(End::Done)));
}

#[tokio::test(start_paused = true)]
async fn a_takeover_of_a_dead_process_is_a_resume() {
    let site = Site::new();
    let (id, outcome) = drive(&site, &Script::new("write report", Act::FailBefore, 9)).await;
    assert!(matches!(outcome, Ok(Outcome::Incomplete { .. })));
    let store = Store::new(&site.state);
    let mut taken = Operation::<ToyStep>::take_over(&store, &id, "gone").await.unwrap();
    let world = site.world(gate::open());
    let outcome = operation::run(&mut taken, &world, &EventSink::none(), &Interrupt::new()).await;
    assert!(matches!(outcome, Ok(Outcome::Done)));
    assert!(!kinds(&site, &id).iter().any(|record| matches!(record, Record::TakenOver { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_operation_keeps_others_off_its_cluster_until_it_is_abandoned() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let (id, _) = drive(&site, &Script::new("write report", Act::FailBefore, 9)).await;
    let lock = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap();
    let error = Operation::begin(&store, lock, intent(stages())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(error.what(), format!("cluster toys has the unfinished operation {id}"));
    assert_eq!(error.hint_text(), Some(&*format!("pgherd operation resume {id}")));
    let elsewhere = Lock::take(&store, "others", NO_WAIT).await.unwrap();
    Operation::begin(&store, elsewhere, intent(stages())).await.unwrap();
    abandon(&store, &id, "settled by hand").await.unwrap();
    assert_eq!(abandon(&store, &id, "again").await.unwrap_err().kind(), ErrorKind::Refused);
    let lock = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap();
    Operation::begin(&store, lock, intent(stages())).await.unwrap();
    assert!(matches!(resume(&site, &id).await, Ok(Outcome::AlreadyEnded(Ended::Abandoned { .. }))));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_cannot_begin_keeps_no_other_machine_away() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let (_, outcome) = drive(&site, &Script::new("write report", Act::FailBefore, 9)).await;
    assert!(matches!(outcome, Ok(Outcome::Incomplete { .. })));
    let directory = tempfile::tempdir().unwrap();
    let repo: SharedRepo = Arc::new(DirRepo::create(&directory.path().join("repository")).unwrap());
    let shared = SharedLock::take(repo.clone(), CLUSTER, Claim::New, NO_WAIT, &|_| false).await.unwrap();
    let lock = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap().with_shared(shared);
    Operation::begin(&store, lock, intent(stages())).await.unwrap_err();
    assert_eq!(shared_lock::holder(&repo, CLUSTER).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_cannot_be_driven_is_called_off_and_blocks_nobody() {
    let site = Site::new();
    let operation = begin(&site, stages()).await;
    let id = operation.id();
    operation.call_off(&Error::failed("no door to host db2")).await.unwrap();
    assert!(view(&site, &id).is_finished());
    assert!(site.is_initial());
    begin(&site, stages()).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_journal_keeps_everybody_off() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let (id, _) = drive(&site, &Script::new("write report", Act::FailBefore, 9)).await;
    let path = store.path(&id);
    let text = std::fs::read_to_string(&path).unwrap().replacen("step_done", "step_gone", 1);
    std::fs::write(&path, text).unwrap();
    let lock = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap();
    let error = Operation::begin(&store, lock, intent(stages())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stuck);
    let what = format!(
        "cannot trust the journal {} at line 4: it is damaged (its checksum does not match)",
        path.display()
    );
    assert_eq!(error.what(), what);
    assert_eq!(resume(&site, &id).await.unwrap_err().kind(), ErrorKind::Stuck);
}

#[tokio::test(start_paused = true)]
async fn a_second_operator_waits_for_the_lock_as_long_as_asked() {
    let site = Site::new();
    let store = Store::new(&site.state);
    let held = Lock::take(&store, CLUSTER, NO_WAIT).await.unwrap();
    let error = Lock::take(&store, CLUSTER, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(error.what(), "cluster toys is locked by a process that is still planning");
    let release = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        drop(held);
    };
    let (taken, ()) = tokio::join!(Lock::take(&store, CLUSTER, Duration::from_secs(60)), release);
    taken.unwrap();
    assert_eq!(lock::holder(&store, CLUSTER).unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn events_fold_into_what_the_journal_holds_also_for_a_slow_reader() {
    let site = Site::new();
    let mut operation = begin(&site, stages()).await;
    let world = site.world(gate::open());
    let (sink, mut stream) = event::channel();
    let interrupt = Interrupt::new();
    let drive = async {
        let outcome = operation::run(&mut operation, &world, &sink, &interrupt).await;
        drop(sink);
        outcome
    };
    let read = async {
        let mut live: Option<OperationView> = None;
        let mut numbers = Vec::new();
        while let Some(event) = stream.next().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
            numbers.push(event.seq);
            match event.kind {
                EventKind::Begun(view) => live = Some(*view),
                EventKind::Recorded(record) => live.as_mut().unwrap().fold(event.at, &record).unwrap(),
                EventKind::Progress { stage, step, progress } => {
                    live.as_mut().unwrap().note_progress(stage, step, progress);
                }
                EventKind::Pausing { .. } | EventKind::Warning { .. } | EventKind::Interrupted => {
                    panic!("{event:?}")
                }
            }
        }
        (live.unwrap(), numbers)
    };
    let (outcome, (live, numbers)) = tokio::join!(drive, read);
    assert!(matches!(outcome, Ok(Outcome::Done)));
    assert_eq!(live, operation.view());
    assert_eq!(live, view(&site, &operation.id()), "a past journal draws the same picture");
    assert!(live.steps().all(|step| matches!(step.state, StepState::Done(_))));
    assert!(numbers.is_sorted(), "{numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_behind_slows_the_driver_and_one_that_is_gone_does_not() {
    let id = begin(&Site::new(), stages()).await.id();
    let (sink, stream) = event::channel();
    let begun = tokio::time::Instant::now();
    let flood = async {
        for _ in 0..1_000 {
            sink.tell(&id, sink.now(), EventKind::Interrupted).await;
        }
        begun.elapsed()
    };
    let leave = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(stream);
    };
    let (took, ()) = tokio::join!(flood, leave);
    assert_eq!(took.as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_ended_incomplete_can_be_driven_on_at_once() {
    let site = Site::new();
    let mut operation = begin(&site, stages()).await;
    let world = site.world(Script::new("write report", Act::FailBefore, 2));
    let (events, interrupt) = (EventSink::none(), Interrupt::new());
    let first = operation::run(&mut operation, &world, &events, &interrupt).await;
    assert!(matches!(first, Ok(Outcome::Incomplete { .. })), "{first:?}");
    let second = operation::run(&mut operation, &world, &events, &interrupt).await;
    assert!(matches!(second, Ok(Outcome::Done)), "{second:?}");
}
