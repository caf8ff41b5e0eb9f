//! apply and destroy on real servers: each call through a door fails, loses its answer or hangs, and each record is followed by
//! a kill; then the operator resumes or undoes, and what must hold is looked for on the servers themselves.
//!
//! A case has a name such as `birth:17:after`, `mend:r5:killed-after` or `mend:r5:killed-after:undo`. `PGHERD_FAULT_ONLY` runs one alone, all of `birth`, or a
//! list of both divided by commas, `PGHERD_FAULT_SEED` repeats a sample of `PGHERD_FAULT_COUNT` cases of each operation,
//! `PGHERD_SOAK=1` runs all of them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgherd::db::logins::Purpose;
use pgherd::engine::event::EventSink;
use pgherd::engine::interrupt::Interrupt;
use pgherd::engine::journal::{Mishap, Tap};
use pgherd::engine::operation::{Operation, Outcome, Way};
use pgherd::engine::record::{End, OperationId, Record};
use pgherd::engine::store::{Listed, Store};
use pgherd::engine::view::{Ended, StepState};
use pgherd::error::{Error, ErrorKind};
use pgherd::gate::{self, Blocked, BoxFuture, Gate};
use pgherd::ops::apply::{self, ConfirmedPlan};
use pgherd::ops::context::Context;
use pgherd::ops::node::restore::{Target, Wish};
use pgherd::ops::plan::ClusterPlan;
use pgherd::ops::plan::step::ApplyStep;
use pgherd::ops::{destroy, failover, fence, in_place, rejoin, switchover};
use pgherd::topology::model::{Cluster, Herd};

use crate::harness::{Then, sample};
use crate::site::{CLUSTER, NODES, Shape, Site};

/// How long a call that hangs is waited for until its door gives it up.
const HANG: Duration = Duration::from_millis(300);
/// How long a drive may take; what takes longer hangs.
const DRIVE: Duration = Duration::from_secs(180);
/// A drive that takes longer than this is told of, although it ended well.
const SLOW: Duration = Duration::from_secs(20);
const WORKERS: usize = 2;
/// The stack of the main thread, in which pgherd itself drives operations (`ulimit -s`); a test's own thread has a quarter of it.
const STACK: usize = 8 << 20;
const SAMPLE: usize = 3;

/// What is done to which herd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A primary, its synchronous standby and a pooler, from nothing.
    Birth,
    /// A birth that fails where it would open to clients: what befalls the way back.
    Back,
    /// A standby for a primary that runs.
    Add,
    /// A pair whose WAL is to be archived, on a host with two builds of pgherd of before: one of them goes.
    Archive,
    /// A standby whose data directory is gone, made anew.
    Replace,
    /// A pair of which nothing runs, as after a reboot.
    Reboot,
    /// A pair with six things wrong.
    Mend,
    /// A pair that restarts for a setting, the standby first.
    Restart,
    /// A new password for the standbys' login.
    Rotate,
    /// A pair that begins to speak TLS.
    Encrypt,
    /// A pair that goes back to a restore point in its own place.
    InPlace,
    /// The same, failing right before its pivot: what befalls the way back.
    InPlaceBack,
    /// A pair whose standby becomes primary.
    Switch,
    /// The same, failing right before its pivot: what befalls the way back.
    SwitchBack,
    /// A pair whose primary was killed, and whose standby becomes primary.
    Fail,
    /// The same, failing right before its pivot: what befalls the way back.
    FailBack,
    /// An old primary that was killed and has nothing of its own: it follows.
    Rejoin,
    /// One that wrote what nobody else has: it is rewound.
    Rewind,
    /// The same, cloned beside what it has.
    Reclone,
    /// A primary that is kept from being one.
    Fence,
    /// The same one, let go again.
    Unfence,
    /// The removal of a pair whose WAL was archived, and of the program that did it.
    Destroy,
}

const KINDS: [Kind; 22] = [
    Kind::Birth,
    Kind::Back,
    Kind::Add,
    Kind::Archive,
    Kind::Replace,
    Kind::Reboot,
    Kind::Mend,
    Kind::Restart,
    Kind::Rotate,
    Kind::Encrypt,
    Kind::InPlace,
    Kind::InPlaceBack,
    Kind::Switch,
    Kind::SwitchBack,
    Kind::Fail,
    Kind::FailBack,
    Kind::Rejoin,
    Kind::Rewind,
    Kind::Reclone,
    Kind::Fence,
    Kind::Unfence,
    Kind::Destroy,
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Birth => "birth",
            Self::Back => "back",
            Self::Add => "add",
            Self::Archive => "archive",
            Self::Replace => "replace",
            Self::Reboot => "reboot",
            Self::Mend => "mend",
            Self::Restart => "restart",
            Self::Rotate => "rotate",
            Self::Encrypt => "encrypt",
            Self::InPlace => "in-place",
            Self::InPlaceBack => "in-place-back",
            Self::Switch => "switch",
            Self::SwitchBack => "switch-back",
            Self::Fail => "fail",
            Self::FailBack => "fail-back",
            Self::Rejoin => "rejoin",
            Self::Rewind => "rewind",
            Self::Reclone => "reclone",
            Self::Fence => "fence",
            Self::Unfence => "unfence",
            Self::Destroy => "destroy",
        }
    }

    /// What the topology declares when the operation begins.
    fn shape(self) -> Shape {
        match self {
            Self::Birth
            | Self::Back
            | Self::Archive
            | Self::InPlace
            | Self::InPlaceBack
            | Self::Switch
            | Self::SwitchBack
            | Self::Fail
            | Self::FailBack
            | Self::Rejoin
            | Self::Rewind
            | Self::Reclone
            | Self::Fence
            | Self::Unfence
            | Self::Destroy => Shape::Archived,
            Self::Add | Self::Replace | Self::Reboot | Self::Mend | Self::Rotate => Shape::Pair,
            Self::Restart => Shape::Larger,
            Self::Encrypt => Shape::Encrypted,
        }
    }

    /// What is there before, if anything.
    fn before(self) -> Option<Shape> {
        match self {
            Self::Birth | Self::Back => None,
            Self::Add => Some(Shape::Single),
            Self::InPlace
            | Self::InPlaceBack
            | Self::Switch
            | Self::SwitchBack
            | Self::Fail
            | Self::FailBack
            | Self::Rejoin
            | Self::Rewind
            | Self::Reclone
            | Self::Fence
            | Self::Unfence
            | Self::Destroy => Some(Shape::Archived),
            Self::Archive
            | Self::Replace
            | Self::Reboot
            | Self::Mend
            | Self::Restart
            | Self::Rotate
            | Self::Encrypt => Some(Shape::Pair),
        }
    }
}

impl Kind {
    fn goes_back_in_place(self) -> bool {
        matches!(self, Self::InPlace | Self::InPlaceBack)
    }

    fn switches(self) -> bool {
        matches!(self, Self::Switch | Self::SwitchBack)
    }

    fn fails_over(self) -> bool {
        matches!(self, Self::Fail | Self::FailBack)
    }

    fn rejoins(self) -> bool {
        matches!(self, Self::Rejoin | Self::Rewind | Self::Reclone)
    }

    fn fences(self) -> bool {
        matches!(self, Self::Fence | Self::Unfence)
    }

    /// Who leads when it is done.
    fn leads(self) -> &'static str {
        if self.switches() || self.fails_over() || self.rejoins() { NODES[1] } else { NODES[0] }
    }

    /// The first call with these words fails, and only what comes after it is counted.
    fn trigger(self) -> Option<&'static str> {
        match self {
            // The statement that sets the passwords of the declared roles: the pivot of a birth.
            Self::Back => Some(PIVOT),
            Self::InPlaceBack => Some("sql read the system catalogs"),
            Self::SwitchBack | Self::FailBack => Some("sql promote"),
            Self::Birth
            | Self::Add
            | Self::Archive
            | Self::Replace
            | Self::Reboot
            | Self::Mend
            | Self::Restart
            | Self::Rotate
            | Self::Encrypt
            | Self::InPlace
            | Self::Switch
            | Self::Fail
            | Self::Destroy
            | Self::Rejoin
            | Self::Rewind
            | Self::Reclone
            | Self::Fence
            | Self::Unfence => None,
        }
    }
}

/// What befalls a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Before,
    After,
    Hangs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Call(usize, Mode),
    /// What befalls a record, and which way the operator goes after it.
    Record(u64, Mishap, Then),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    kind: Kind,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name();
        match self.fault {
            Fault::None => write!(f, "{kind}:clean"),
            Fault::Call(at, mode) => {
                let mode = match mode {
                    Mode::Before => "before",
                    Mode::After => "after",
                    Mode::Hangs => "hangs",
                };
                write!(f, "{kind}:{at}:{mode}")
            }
            Fault::Record(at, mishap, then) => {
                let mishap = if mishap == Mishap::KilledBefore { "killed-before" } else { "killed-after" };
                let then = if then == Then::Undo { ":undo" } else { "" };
                write!(f, "{kind}:r{at}:{mishap}{then}")
            }
        }
    }
}

impl Case {
    fn parse(text: &str) -> Option<Self> {
        let (name, fault) = text.trim().split_once(':')?;
        let kind = KINDS.into_iter().find(|kind| kind.name() == name)?;
        if fault == "clean" {
            return Some(Self { kind, fault: Fault::None });
        }
        let (at, mode) = fault.split_once(':')?;
        let fault = match (at.strip_prefix('r'), mode) {
            (Some(at), _) => {
                let (mishap, then) = match mode.strip_suffix(":undo") {
                    Some(mishap) => (mishap, Then::Undo),
                    None => (mode, Then::Resume),
                };
                let mishap = match mishap {
                    "killed-before" => Mishap::KilledBefore,
                    "killed-after" => Mishap::KilledAfter,
                    _ => return None,
                };
                Fault::Record(at.parse().ok()?, mishap, then)
            }
            (None, "before") => Fault::Call(at.parse().ok()?, Mode::Before),
            (None, "after") => Fault::Call(at.parse().ok()?, Mode::After),
            (None, "hangs") => Fault::Call(at.parse().ok()?, Mode::Hangs),
            (None, _) => return None,
        };
        Some(Self { kind, fault })
    }

    /// After a kill both ways are cases of their own; of the calls, every second case tries to take the operation back before it
    /// goes on.
    fn undoes(&self) -> bool {
        match self.fault {
            Fault::None => false,
            Fault::Call(at, mode) => (at + mode as usize) % 2 == 1,
            Fault::Record(_, _, then) => then == Then::Undo,
        }
    }
}

/// Counts the calls of a drive and lets one fault befall one of them.
#[derive(Debug)]
struct Faulty {
    fault: Option<(usize, Mode)>,
    /// The first call with these words fails, and only the calls after it count.
    trigger: Option<&'static str>,
    state: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    counted: Vec<String>,
    triggered: bool,
    /// The call whose answer will be lost.
    armed: Option<String>,
    hit: Option<String>,
}

impl Faulty {
    fn new(case: &Case) -> Arc<Self> {
        let fault = match case.fault {
            Fault::Call(at, mode) => Some((at, mode)),
            Fault::None | Fault::Record(..) => None,
        };
        let trigger = case.kind.trigger();
        Arc::new(Self { fault, trigger, state: Mutex::default() })
    }

    fn begin(&self, call: &str) -> Option<Mode> {
        let mut state = self.state.lock().unwrap();
        if self.trigger.is_some() && !state.triggered {
            if !self.trigger.is_some_and(|words| call.ends_with(words)) {
                return None;
            }
            state.triggered = true;
            return Some(Mode::Before);
        }
        let index = state.counted.len();
        state.counted.push(call.to_owned());
        let (_, mode) = self.fault.filter(|(at, _)| *at == index)?;
        state.hit = Some(call.to_owned());
        if mode == Mode::After {
            state.armed = Some(call.to_owned());
            return None;
        }
        Some(mode)
    }

    fn loses(&self, call: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        let loses = state.armed.as_deref() == Some(call);
        if loses {
            state.armed = None;
        }
        loses
    }
}

const PIVOT: &str = "sql set password of toys_app";

impl Gate for Faulty {
    fn before<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(async move {
            match self.begin(call) {
                None | Some(Mode::After) => Ok(()),
                Some(Mode::Before) => Err(Blocked::Before(call.to_owned())),
                Some(Mode::Hangs) => {
                    tokio::time::sleep(HANG).await;
                    Err(Blocked::After(call.to_owned()))
                }
            }
        })
    }

    fn after<'a>(&'a self, call: &'a str) -> BoxFuture<'a, Result<(), Blocked>> {
        Box::pin(std::future::ready(if self.loses(call) {
            Err(Blocked::After(call.to_owned()))
        } else {
            Ok(())
        }))
    }
}

/// A call that only looks: to lose its answer and to hang are one and the same.
fn only_looks(call: &str) -> bool {
    const LOOKS: [&str; 14] = [
        ": find",
        ": read ",
        ": readlink",
        ": look ",
        ": list ",
        ": measure ",
        ": connect",
        ": sql read ",
        ": sql look ",
        ": sql ask ",
        ": pgrep",
        ": pg_controldata",
        ": printenv",
        ": postgres",
    ];
    LOOKS.iter().any(|words| call.contains(words))
}

/// How a case went.
#[derive(Debug, Default, Clone)]
struct Ran {
    calls: Vec<String>,
    records: u64,
    /// The first drive ended without a journal, and nothing had happened.
    refused: bool,
    /// How the first drive ended.
    first: &'static str,
    resumed: bool,
    undone: bool,
    /// The fault befell nothing: there were fewer calls this time.
    missed: bool,
    hit: Option<String>,
    took: Duration,
}

/// One worker's place, with what it has prepared there.
struct Bench {
    site: Site,
    prepared: Vec<Kind>,
    /// The place is still as it was prepared for this kind.
    fresh_for: Option<Kind>,
    /// What there is and what is planned when an operation of this kind begins; each time the same.
    initial: Option<(Kind, Initial)>,
}

#[derive(Debug, Clone)]
struct Initial {
    picture: String,
    /// Of a removal there is none.
    plan: Option<ClusterPlan>,
}

/// Everything that a case needs to know.
struct Scene<'a> {
    site: &'a Site,
    case: &'a Case,
    herd: Herd,
}

impl Bench {
    fn new() -> Self {
        Self { site: Site::new(), prepared: Vec::new(), fresh_for: None, initial: None }
    }

    /// Puts the place into the state that the operation starts from.
    async fn make_fresh(&mut self, kind: Kind) {
        if self.fresh_for == Some(kind) {
            return;
        }
        if let Some(shape) = kind.before()
            && !self.prepared.contains(&kind)
        {
            self.site.restore("nothing");
            let herd = self.site.declare(shape);
            let context = self.site.context(gate::open(), self.site.store());
            let plan = apply::prepare(&context, &herd, herd.cluster(CLUSTER).unwrap()).await.unwrap();
            let (_, outcome) = run_apply(&context, &herd, &plan).await.unwrap();
            assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
            self.site.write_row(herd.cluster(CLUSTER).unwrap()).await;
            match kind {
                Kind::Mend => spoil(&self.site, herd.cluster(CLUSTER).unwrap()).await,
                Kind::Replace => {
                    self.site.stop(NODES[1]);
                    std::fs::remove_dir_all(self.site.data(NODES[1])).unwrap();
                }
                Kind::Reboot => {
                    self.site.stop_pooler();
                    self.site.stop(NODES[1]);
                    self.site.stop(NODES[0]);
                }
                Kind::InPlace | Kind::InPlaceBack => have_an_accident(&self.site, &herd).await,
                Kind::Archive => self.site.have_older_builds(),
                Kind::Fail | Kind::FailBack => self.site.kill(NODES[0]),
                Kind::Rejoin | Kind::Reclone => {
                    self.site.kill(NODES[0]);
                    let (_, outcome) = run_failover(&context, &herd).await.unwrap();
                    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
                }
                Kind::Unfence => {
                    let (_, outcome) = run_fence(&context, &herd, Kind::Fence).await.unwrap();
                    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
                }
                Kind::Rewind => go_two_ways(&self.site, herd.cluster(CLUSTER).unwrap()).await,
                Kind::Birth
                | Kind::Back
                | Kind::Add
                | Kind::Restart
                | Kind::Rotate
                | Kind::Encrypt
                | Kind::Switch
                | Kind::SwitchBack
                | Kind::Fence
                | Kind::Destroy => {}
            }
            self.site.keep(kind.name());
            self.prepared.push(kind);
        }
        self.site.restore(kind.name());
        self.fresh_for = Some(kind);
    }

    /// Runs a case; what is wrong comes back with everything that one wants to see of it.
    async fn run(&mut self, case: &Case) -> Result<Ran, String> {
        self.make_fresh(case.kind).await;
        let herd = self.site.declare(case.kind.shape());
        let begun = Instant::now();
        let scene = Scene { site: &self.site, case, herd };
        let initial = match &self.initial {
            Some((kind, initial)) if *kind == case.kind => initial.clone(),
            _ => {
                let (picture, plan) = (self.site.picture(scene.cluster()).await, scene.plan().await?);
                self.initial.insert((case.kind, Initial { picture, plan })).1.clone()
            }
        };
        let ended = scene.play(&initial).await;
        self.fresh_for = ended.as_ref().ok().filter(|ran| ran.refused).map(|_| case.kind);
        ended
            .map(|ran| Ran { took: begun.elapsed(), ..ran })
            .map_err(|wrong| format!("{case}: {wrong}\n{}", self.site.evidence()))
    }
}

/// Does to a running pair what operators and accidents do, behind pgherd's back.
async fn spoil(site: &Site, cluster: &Cluster) {
    let conn = site.connect(cluster, "a", CLUSTER).await.unwrap();
    conn.batch("override a setting", "ALTER SYSTEM SET work_mem = '9MB'").await.unwrap();
    conn.batch("revoke", &format!("REVOKE USAGE ON SCHEMA {CLUSTER} FROM toys_app")).await.unwrap();
    site.stop("b");
    conn.batch("drop the slot", &format!("SELECT pg_drop_replication_slot('{CLUSTER}_b')")).await.unwrap();
    drop(conn);
    for node in NODES {
        let file = site.data(node).join("pgherd.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        // In place, so that the file keeps its owner.
        std::fs::write(&file, text.replace("log_lock_waits = 'on'", "log_lock_waits = 'off'")).unwrap();
    }
    site.stop_pooler();
}

/// Has b lead from where a, which is dead by then, has gone on.
async fn go_two_ways(site: &Site, cluster: &Cluster) {
    site.stop(NODES[1]);
    site.ask(cluster, NODES[0], "CREATE TABLE public.fork ()").await.unwrap();
    site.kill(NODES[0]);
    site.start(NODES[1]);
    site.ask(cluster, NODES[1], "SELECT pg_promote()::text").await.unwrap();
    site.ask(cluster, NODES[1], "CHECKPOINT").await.unwrap();
}

/// What a drive ends with whose journal died under it (`engine::journal`).
const KILLED: &str = "killed by the test";

/// What was committed behind this restore point is given up.
const TARGET: &str = "before-the-accident";

/// Makes a backup and a restore point, and then what nobody wanted.
async fn have_an_accident(site: &Site, herd: &Herd) {
    let cluster = herd.cluster(CLUSTER).unwrap();
    site.pgherd(&["backup", "create", "--quiet"]);
    for sql in [
        format!("SELECT pg_create_restore_point('{TARGET}')::text"),
        "CREATE TABLE public.accident ()".to_owned(),
    ] {
        site.ask(cluster, NODES[0], &sql).await.unwrap();
    }
    let segment =
        site.ask(cluster, NODES[0], "SELECT pg_walfile_name(pg_switch_wal())").await.unwrap().remove(0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !site.is_stored(&segment) {
        assert!(Instant::now() < deadline, "{segment} does not arrive in the repository");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run_in_place(context: &Context, herd: &Herd) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let cluster = herd.cluster(CLUSTER).unwrap();
    let wish = Wish { target: Target::Name(TARGET.to_owned()), timeline: None, backup: None };
    let plan = in_place::plan::plan(&looking, herd, cluster, &wish, None).await;
    let request = in_place::Request {
        herd,
        cluster,
        plan: plan.map_err(|mut errors| errors.remove(0))?,
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    in_place::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_rejoin(context: &Context, herd: &Herd, kind: Kind) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let cluster = herd.cluster(CLUSTER).unwrap();
    let wish = rejoin::plan::Wish {
        node: NODES[0].to_owned(),
        primary: None,
        clone: kind == Kind::Reclone,
        from: None,
    };
    let plan =
        rejoin::plan::plan(&looking, herd, cluster, &wish).await.map_err(|mut errors| errors.remove(0))?;
    let way = if kind == Kind::Rewind {
        rejoin::decide::Way::Rewind
    } else if kind == Kind::Reclone {
        rejoin::decide::Way::Clone
    } else {
        rejoin::decide::Way::Follow
    };
    assert_eq!(plan.input.decision.way, way, "{:?}", plan.evidence);
    let request = rejoin::Request {
        herd,
        cluster,
        plan,
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    rejoin::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_switchover(context: &Context, herd: &Herd) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let cluster = herd.cluster(CLUSTER).unwrap();
    let wish = switchover::wish::Wish {
        to: Some(NODES[1].to_owned()),
        region: None,
        grace: Duration::from_secs(10),
        leave_logical_slots: false,
    };
    // A herd that was just started may not stream yet.
    let deadline = Instant::now() + Duration::from_secs(20);
    let plan = loop {
        match switchover::plan::plan(&looking, herd, cluster, &wish).await {
            Ok(plan) => break plan,
            Err(mut errors) if Instant::now() >= deadline => return Err(errors.remove(0)),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let request = switchover::Request {
        herd,
        cluster,
        plan,
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    switchover::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_failover(context: &Context, herd: &Herd) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let cluster = herd.cluster(CLUSTER).unwrap();
    let wish = failover::plan::Wish {
        to: None,
        region: None,
        loss: failover::loss::Accept::Nothing,
        statement: None,
    };
    let plan = failover::plan::plan(&looking, herd, cluster, &wish).await;
    let request = failover::Request {
        herd,
        cluster,
        plan: plan.map_err(|mut errors| errors.remove(0))?,
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    failover::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_fence(context: &Context, herd: &Herd, kind: Kind) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let cluster = herd.cluster(CLUSTER).unwrap();
    let node = cluster.node(NODES[0]).unwrap();
    let wish = if kind == Kind::Fence {
        let why = "its disk answers late".to_owned();
        fence::Wish::Fence { why, force: fence::Force::Fast, limit: Duration::from_secs(30) }
    } else {
        fence::Wish::Unfence
    };
    let request = fence::Request {
        herd,
        cluster,
        node,
        plan: fence::plan(&looking, herd, cluster, node, &wish).await?,
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    fence::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_apply(
    context: &Context,
    herd: &Herd,
    plan: &ClusterPlan,
) -> Result<(OperationId, Outcome), Error> {
    let cluster = herd.cluster(CLUSTER).unwrap();
    let request = apply::Request {
        herd,
        cluster,
        plan: ConfirmedPlan::new(plan.clone()),
        topology: apply::topology_file(&herd.file)?,
        wait: Duration::ZERO,
    };
    apply::run(context, request, &EventSink::none(), &Interrupt::new()).await
}

async fn run_destroy(context: &Context) -> Result<(OperationId, Outcome), Error> {
    let looking = Context { gate: gate::open(), ..context.clone() };
    let removal = destroy::plan(&looking, &[], CLUSTER, None).await?;
    destroy::run(context, &[], removal, Duration::ZERO, &EventSink::none(), &Interrupt::new()).await
}

impl Scene<'_> {
    fn cluster(&self) -> &Cluster {
        self.herd.cluster(CLUSTER).unwrap()
    }

    /// Runs the operation under its fault, goes on as an operator would, and looks after each drive.
    async fn play(&self, initial: &Initial) -> Result<Ran, String> {
        let old: Vec<OperationId> = self.operations();
        let mut ran = Ran::default();
        let gate = Faulty::new(self.case);
        let (store, records) = self.tapped_store();
        let context = self.site.context(gate.clone(), store);
        let first = self
            .limited(async {
                match &initial.plan {
                    _ if self.case.kind.fences() => run_fence(&context, &self.herd, self.case.kind).await,
                    Some(_) if self.case.kind.goes_back_in_place() => {
                        run_in_place(&context, &self.herd).await
                    }
                    Some(_) if self.case.kind.fails_over() => run_failover(&context, &self.herd).await,
                    Some(_) if self.case.kind.rejoins() => {
                        run_rejoin(&context, &self.herd, self.case.kind).await
                    }
                    Some(_) if self.case.kind.switches() => run_switchover(&context, &self.herd).await,
                    None => run_destroy(&context).await,
                    Some(plan) => run_apply(&context, &self.herd, plan).await,
                }
            })
            .await;
        {
            let state = gate.state.lock().unwrap();
            (ran.calls, ran.hit) = (state.counted.clone(), state.hit.clone());
        }
        ran.records = *records.lock().unwrap();
        let first = first.map_err(|late| self.told(&ran, &late, &[]))?;
        ran.missed = match self.case.fault {
            Fault::None => false,
            Fault::Call(..) => ran.hit.is_none(),
            Fault::Record(at, ..) => ran.records <= at,
        };
        ran.first = match &first {
            Ok((_, Outcome::Done)) => "done",
            Ok((_, Outcome::Restored { .. })) => "restored",
            Ok((_, Outcome::Incomplete { .. })) => "incomplete",
            Ok((_, Outcome::Stuck { .. })) => "stuck",
            Ok((_, Outcome::AlreadyEnded(_))) => "ended before",
            Err(_) => "stopped",
        };
        if first.as_ref().is_err_and(|error| error.what() == KILLED) {
            self.site.end_planners_lock();
        }
        let mut story = vec![format!("first drive: {first:?}")];
        let id = self.operations().into_iter().find(|id| !old.contains(id));
        let Some(id) = id else {
            ran.refused = true;
            if first.is_ok() {
                return Err(self.told(&ran, "no journal and no error", &story));
            }
            if ran.missed {
                return Err(self.told(&ran, "it was refused, and nothing had befallen it", &story));
            }
            self.same_as_before(initial).await.map_err(|wrong| self.told(&ran, &wrong, &story))?;
            return Ok(ran);
        };
        let mut open = self.site.is_open(self.cluster()).await;
        let wrong = self.go_on(&id, &mut ran, &mut story, &mut open).await.and_then(|ended| {
            match (&ended, self.case.kind) {
                // One that was killed before it turned back goes on, and what kept it from its pivot is gone by then.
                (Ended::By(End::Done), Kind::Back) if !ran.missed && self.turned_back(&id) => {
                    Err("a birth that turned back is done".to_owned())
                }
                (Ended::By(End::Restored { .. }), _) if open && self.case.kind.before().is_none() => {
                    Err("it was undone after it had been opened to clients".to_owned())
                }
                _ => Ok(ended),
            }
        });
        let ended = wrong.map_err(|wrong| self.told(&ran, &wrong, &story))?;
        let looked = match ended {
            Ended::By(End::Done) if self.case.kind == Kind::Destroy => self.nothing_left().await,
            Ended::By(End::Done) if self.case.kind.fails_over() => self.failed_over().await,
            Ended::By(End::Done) if self.case.kind.rejoins() => self.rejoined().await,
            Ended::By(End::Done) if self.case.kind == Kind::Fence => self.fenced(&id).await,
            Ended::By(ended) if self.case.kind.fences() => {
                let done = ended == End::Done;
                if self.is_let_go() != (done == (self.case.kind == Kind::Unfence)) {
                    Err(format!("it ended as {ended:?}, and its mark says otherwise"))
                } else if self.is_let_go() {
                    self.leads_again().await
                } else {
                    self.same_as_before(initial).await
                }
            }
            Ended::By(End::Restored { .. }) if self.case.kind.rejoins() => self.out_of_the_way().await,
            Ended::By(End::Done) => match self.accident_is_there(false).await {
                Ok(()) => self.as_declared().await,
                wrong => wrong,
            },
            Ended::By(End::Restored { .. }) => match self.same_as_before(initial).await {
                Ok(()) => self.accident_is_there(true).await,
                wrong => wrong,
            }
            .and(self.clients_go_on().await),
            other => Err(format!("it ended as {other:?}")),
        };
        looked.map_err(|wrong| self.told(&ran, &wrong, &story))?;
        self.second_resume_changes_nothing(&id).await.map_err(|wrong| self.told(&ran, &wrong, &story))?;
        Ok(ran)
    }

    fn turned_back(&self, id: &OperationId) -> bool {
        let content = self.site.store().read(id).unwrap();
        content.entries.iter().any(|entry| matches!(entry.record, Record::TurnedBack { .. }))
    }

    /// Resumes or undoes without faults until the operation has ended, and looks after each drive.
    async fn go_on(
        &self,
        id: &OperationId,
        ran: &mut Ran,
        story: &mut Vec<String>,
        open: &mut bool,
    ) -> Result<Ended, String> {
        for drive in 0..3 {
            let view = self
                .site
                .store()
                .read(id)
                .map_err(|error| format!("the journal does not fold: {error:?}"))?
                .view;
            self.between_drives(&view, open).await?;
            if view.is_finished() {
                return Ok(view.ended.expect("what is finished has ended"));
            }
            let undo = drive == 0 && self.case.undoes();
            let way = if undo { Way::Back } else { Way::Forward };
            let ended = self.limited(self.drive(id, way)).await?;
            story.push(format!("{way:?}: {ended:?}"));
            match (way, &ended) {
                (Way::Back, Err(error)) if error.kind() == ErrorKind::Refused => {}
                (Way::Back, _) => ran.undone = true,
                (Way::Forward, _) => ran.resumed = true,
            }
        }
        Err("three drives without a fault did not end the operation".to_owned())
    }

    async fn drive(&self, id: &OperationId, way: Way) -> Result<Outcome, Error> {
        let context = self.site.context(gate::open(), self.site.store());
        let (events, interrupt) = (EventSink::none(), Interrupt::new());
        if self.case.kind == Kind::Destroy {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return destroy::go_on(&context, operation, way, &events, &interrupt).await;
        }
        if self.case.kind.goes_back_in_place() {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return in_place::go_on(&context, operation, way, &events, &interrupt).await;
        }
        if self.case.kind.fails_over() {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return failover::go_on(&context, operation, way, &events, &interrupt).await;
        }
        if self.case.kind.fences() {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return fence::go_on(&context, operation, way, &events, &interrupt).await;
        }
        if self.case.kind.rejoins() {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return rejoin::go_on(&context, operation, way, &events, &interrupt).await;
        }
        if self.case.kind.switches() {
            let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
            return switchover::go_on(&context, operation, way, &events, &interrupt).await;
        }
        let operation = Operation::open(&context.store, id, Duration::ZERO).await?;
        apply::go_on(&context, operation, way, &events, &interrupt).await
    }

    async fn limited<T>(&self, drive: impl Future<Output = T>) -> Result<T, String> {
        tokio::time::timeout(DRIVE, drive)
            .await
            .map_err(|_| format!("a drive took longer than {} s", DRIVE.as_secs()))
    }

    fn tapped_store(&self) -> (Store, Arc<Mutex<u64>>) {
        let records: Arc<Mutex<u64>> = Arc::default();
        let (seen, fault) = (records.clone(), self.case.fault);
        let tap = Tap(Arc::new(move |seq| {
            *seen.lock().unwrap() = seq + 1;
            match fault {
                Fault::Record(at, mishap, _) if at == seq => Some(mishap),
                Fault::Record(..) | Fault::Call(..) | Fault::None => None,
            }
        }));
        (self.site.store().with_tap(tap), records)
    }

    fn operations(&self) -> Vec<OperationId> {
        let listed = self.site.store().list().unwrap();
        let ids = listed.into_iter().map(|listed| match listed {
            Listed::Readable(view) => view.id,
            Listed::Damaged { file, error } => panic!("{} is damaged: {error:?}", file.display()),
        });
        ids.collect()
    }

    async fn plan(&self) -> Result<Option<ClusterPlan>, String> {
        // While no node may be primary there is none.
        if matches!(self.case.kind, Kind::Destroy | Kind::Unfence) {
            return Ok(None);
        }
        let context = self.site.context(gate::open(), self.site.store());
        let rotate = (self.case.kind == Kind::Rotate).then_some(Purpose::Replication);
        let wishes = apply::Wishes { rotate, ..apply::Wishes::default() };
        let plan = apply::prepare_wishing(&context, &self.herd, self.cluster(), &wishes).await;
        plan.map(Some).map_err(|errors| format!("no plan can be made: {errors:?}"))
    }

    /// What holds at any time.
    async fn between_drives(
        &self,
        view: &pgherd::engine::view::OperationView,
        open: &mut bool,
    ) -> Result<(), String> {
        let mut primaries = Vec::new();
        for node in NODES {
            let rows = self.site.ask(self.cluster(), node, "SELECT pg_is_in_recovery()::text").await;
            primaries.extend((rows == Some(vec!["false".to_owned()])).then_some(node));
        }
        if primaries.len() > 1 {
            return Err(format!("two primaries accept writes: {}", primaries.join(", ")));
        }
        *open |= self.site.is_open(self.cluster()).await;
        *open |= view.steps().any(|step| {
            step.describe.contains("open to clients") && matches!(step.state, StepState::Done(_))
        });
        if self.case.kind.before().is_some() {
            self.row_is_kept(&primaries).await?;
        }
        let there = |data: std::path::PathBuf| data.join("PG_VERSION").exists();
        let kept = there(self.site.data(NODES[0])) || self.site.aside(NODES[0]).into_iter().any(there);
        if *open && self.case.kind != Kind::Destroy && !kept {
            return Err("the data of a cluster that was open to clients is gone".to_owned());
        }
        Ok(())
    }

    /// Behind the target there is what a restore in place gives up and an undo brings back; clients come in either way.
    async fn accident_is_there(&self, expected: bool) -> Result<(), String> {
        if !self.case.kind.goes_back_in_place() {
            return Ok(());
        }
        let sql = "SELECT to_regclass('public.accident') IS NOT NULL";
        let found = self.site.ask(self.cluster(), NODES[0], sql).await;
        if found != Some(vec![if expected { "t" } else { "f" }.to_owned()]) {
            return Err(format!("what was committed behind the target is there: {found:?}"));
        }
        Ok(())
    }

    /// Nobody is held back any more.
    async fn clients_go_on(&self) -> Result<(), String> {
        let serves = !self.case.kind.fails_over() && !self.case.kind.fences();
        if !serves || self.case.kind.before().is_none_or(|shape| shape != Shape::Archived) {
            return Ok(());
        }
        let conn = self.site.enter(self.cluster(), CLUSTER).await.map_err(|error| error.to_string())?;
        conn.simple("ask", "SELECT 1").await.map_err(|error| format!("clients wait: {error}"))?;
        Ok(())
    }

    /// The row that a client wrote before the operation is there.
    async fn row_is_kept(&self, nodes: &[&str]) -> Result<(), String> {
        for node in nodes {
            if !self.site.has_row(self.cluster(), node).await? {
                return Err(format!("the row that was written before is not on {node}"));
            }
        }
        Ok(())
    }

    /// What holds when it is done: everything is as declared, clients come in, and there is nothing more to plan.
    async fn as_declared(&self) -> Result<(), String> {
        let context = self.site.context(gate::open(), self.site.store());
        let plan = apply::prepare(&context, &self.herd, self.cluster())
            .await
            .map_err(|errors| format!("no plan can be made: {errors:?}"))?;
        // What could not be told while it was planned keeps an older build until the next apply: also a server of another test's.
        let left = || plan.steps().filter(|step| !matches!(step.step, ApplyStep::Prune { .. }));
        if left().next().is_some() || !plan.notes.is_empty() {
            let steps: Vec<String> =
                left().map(|step| format!("{} {}: {:?}", step.subject, step.text, step.reason)).collect();
            return Err(format!("done, and there is more to do: {steps:?}, notes {:?}", plan.notes));
        }
        let expected = ["pgbouncer", "postgres a", "postgres b"];
        if self.site.running() != expected {
            return Err(format!("done, and there run: {:?}", self.site.running()));
        }
        for (alias, in_recovery) in [(CLUSTER.to_owned(), "f"), (format!("{CLUSTER}_ro"), "t")] {
            let conn = self
                .site
                .enter(self.cluster(), &alias)
                .await
                .map_err(|error| format!("done, and {error}"))?;
            let sql = format!(
                "SELECT pg_is_in_recovery() FROM (SELECT has_schema_privilege('{CLUSTER}', 'usage') AS may) s WHERE may"
            );
            let rows = conn.simple("ask", &sql).await.map_err(|error| format!("done, and {error}"))?;
            let answer: Vec<String> = rows.into_iter().flat_map(|row| row.into_values().flatten()).collect();
            if answer != [in_recovery] {
                return Err(format!("done, and {alias} answers {answer:?}"));
            }
        }
        if self.case.kind.before().is_some() {
            self.row_is_kept(&NODES).await?;
        }
        let leads =
            self.site.ask(self.cluster(), self.case.kind.leads(), "SELECT NOT pg_is_in_recovery()").await;
        if leads != Some(vec!["t".to_owned()]) {
            return Err(format!("done, and {} does not lead: {leads:?}", self.case.kind.leads()));
        }
        if self.cluster().backups.is_some() {
            self.wal_arrives().await?;
        }
        self.whole_or_absent()
    }

    /// What holds when another node has taken over: it alone serves, and the old primary stays down until it is brought back.
    async fn failed_over(&self) -> Result<(), String> {
        let expected = ["pgbouncer", "postgres b"];
        if self.site.running() != expected {
            return Err(format!("done, and there run: {:?}", self.site.running()));
        }
        if !self.site.facts(NODES[0]).join("fenced.json").exists() {
            return Err("done, and the old primary is not kept from starting".to_owned());
        }
        let conn =
            self.site.enter(self.cluster(), CLUSTER).await.map_err(|error| format!("done, and {error}"))?;
        let rows = conn
            .simple("ask", "SELECT pg_is_in_recovery()")
            .await
            .map_err(|error| format!("done, and {error}"))?;
        let answer: Vec<String> = rows.into_iter().flat_map(|row| row.into_values().flatten()).collect();
        if answer != ["f"] {
            return Err(format!("done, and clients are led to {answer:?}"));
        }
        self.row_is_kept(&[NODES[1]]).await?;
        self.wal_arrives().await?;
        self.whole_or_absent()
    }

    /// The node follows, nothing of what brought it back is left, and one apply later there is nothing more to do.
    async fn rejoined(&self) -> Result<(), String> {
        for left in ["fenced.json", "rewinding.json", "before-rewind"] {
            if self.site.facts(NODES[0]).join(left).exists() {
                return Err(format!("done, and {left} is left"));
            }
        }
        // Who promoted b in the case of a rewind told nobody.
        if self.case.kind == Kind::Rewind {
            let context = self.site.context(gate::open(), self.site.store());
            let plan = apply::prepare(&context, &self.herd, self.cluster()).await;
            let plan = plan.map_err(|errors| format!("no plan can be made: {errors:?}"))?;
            let (_, outcome) =
                run_apply(&context, &self.herd, &plan).await.map_err(|error| format!("{error:?}"))?;
            if !matches!(outcome, Outcome::Done) {
                return Err(format!("done, and an apply ended as {outcome:?}"));
            }
        }
        self.as_declared().await
    }

    /// What holds of a primary that is fenced: nothing of it runs and nothing starts it as one; and it is let go without a trace.
    async fn fenced(&self, id: &OperationId) -> Result<(), String> {
        let expected = ["pgbouncer", "postgres b"];
        if self.site.running() != expected {
            return Err(format!("done, and there run: {:?}", self.site.running()));
        }
        if self.is_let_go() {
            return Err("done, and it is not marked".to_owned());
        }
        let report = fence::report(&self.site.store(), id).map_err(|error| format!("{error:?}"))?;
        let sealed = report.shut_out.is_some_and(|out| out.sealed);
        if sealed != self.site.data(NODES[0]).join("standby.signal").exists() {
            return Err(format!("done, and that it starts as a standby ({sealed}) is not true"));
        }
        let context = self.site.context(gate::open(), self.site.store());
        let plan = apply::prepare(&context, &self.herd, self.cluster()).await;
        if plan.is_ok() {
            return Err("done, and apply would go on with it".to_owned());
        }
        let let_go = run_fence(&context, &self.herd, Kind::Unfence).await;
        if !matches!(let_go, Ok((_, Outcome::Done))) {
            return Err(format!("done, and it is not let go: {let_go:?}"));
        }
        self.leads_again().await
    }

    fn is_let_go(&self) -> bool {
        !self.site.facts(NODES[0]).join("fenced.json").exists()
    }

    /// One that is not fenced, whether it was stopped or not, is what it was one apply later.
    async fn leads_again(&self) -> Result<(), String> {
        let context = self.site.context(gate::open(), self.site.store());
        let plan = apply::prepare(&context, &self.herd, self.cluster()).await;
        let plan = plan.map_err(|errors| format!("no plan can be made: {errors:?}"))?;
        let (_, outcome) =
            run_apply(&context, &self.herd, &plan).await.map_err(|error| format!("{error:?}"))?;
        if !matches!(outcome, Outcome::Done) {
            return Err(format!("an apply ended as {outcome:?}"));
        }
        self.as_declared().await
    }

    /// What is taken back leaves the old primary stopped; the other one leads, and serves.
    async fn out_of_the_way(&self) -> Result<(), String> {
        if self.site.running().iter().any(|name| name == "postgres a") {
            return Err("it was taken back, and the old primary runs".to_owned());
        }
        for left in ["rewinding.json", "before-rewind"] {
            if self.site.facts(NODES[0]).join(left).exists() {
                return Err(format!("it was taken back, and {left} is left"));
            }
        }
        if !self.site.data(NODES[0]).join("PG_VERSION").exists() {
            return Err("it was taken back, and what the old primary had is not in its place".to_owned());
        }
        let leads = self.site.ask(self.cluster(), NODES[1], "SELECT NOT pg_is_in_recovery()").await;
        if leads != Some(vec!["t".to_owned()]) {
            return Err(format!("it was taken back, and b does not lead: {leads:?}"));
        }
        self.row_is_kept(&[NODES[1]]).await
    }

    /// A segment that is finished now is in the repository soon.
    async fn wal_arrives(&self) -> Result<(), String> {
        let switch =
            "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_logical_emit_message(false, 'test', 'test')";
        let segment = self
            .site
            .ask(self.cluster(), self.case.kind.leads(), switch)
            .await
            .and_then(|rows| rows.into_iter().next());
        let segment = segment.ok_or("done, and no segment can be finished")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.site.is_stored(&segment) {
            if Instant::now() > deadline {
                return Err(format!("done, and {segment} does not arrive in the repository"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn whole_or_absent(&self) -> Result<(), String> {
        for node in NODES {
            let marker =
                std::fs::read_to_string(self.site.facts(node).join("marker.json")).unwrap_or_default();
            let claimed =
                marker.contains("\"system_identifier\"") && !marker.contains("\"system_identifier\": null");
            let data = self.site.data(node).join("global/pg_control").exists();
            if claimed != data {
                return Err(format!("{node} is half made: marker {marker:?}, pg_control there: {data}"));
            }
        }
        Ok(())
    }

    /// What holds when nothing happened or everything was undone.
    async fn same_as_before(&self, initial: &Initial) -> Result<(), String> {
        let mut now = self.site.picture(self.cluster()).await;
        // The readers of a look that was broken off by another one's error end a moment later.
        let deadline = Instant::now() + Duration::from_secs(3);
        while now != initial.picture && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            now = self.site.picture(self.cluster()).await;
        }
        if now != initial.picture {
            return Err(format!("it is not as before:\n{}", differences(&initial.picture, &now)));
        }
        // There the standby was marked and not there from the beginning.
        if self.case.kind != Kind::Replace {
            self.whole_or_absent()?;
        }
        // What a cluster archived before it was born to the end goes with it; what one archived that lives stays.
        if self.case.kind.before().is_none() && self.site.has_wal() {
            return Err("WAL is left in the repository".to_owned());
        }
        // A grant or a login that was put right stays right, and so does the record of who is primary; a certificate that nobody shows yet
        // is in nobody's way.
        let steps = |plan: &ClusterPlan| -> Vec<ApplyStep> {
            let lasting = |step: &&ApplyStep| {
                !matches!(
                    step,
                    ApplyStep::Mend { .. }
                        | ApplyStep::Logins { .. }
                        | ApplyStep::Repository { .. }
                        | ApplyStep::Record { .. }
                        | ApplyStep::Authority { .. }
                        | ApplyStep::Certificate { .. }
                )
            };
            plan.steps().map(|planned| &planned.step).filter(lasting).cloned().collect()
        };
        match (&initial.plan, &self.plan().await?) {
            (Some(planned), Some(now)) if steps(planned) != steps(now) => {
                Err(format!("another plan is needed now: {:?}", steps(now)))
            }
            _ => Ok(()),
        }
    }

    async fn nothing_left(&self) -> Result<(), String> {
        let left = self.site.picture(self.cluster()).await;
        // The directory above the data directories is the operator's.
        if self.site.has_program() {
            return Err("removed, and pgherd's own copies are left".to_owned());
        }
        if left == "data: " { Ok(()) } else { Err(format!("removed, and there is left:\n{left}")) }
    }

    async fn second_resume_changes_nothing(&self, id: &OperationId) -> Result<(), String> {
        let look = async || {
            let journal = std::fs::read(self.site.store().path(id)).unwrap();
            (journal, self.site.picture(self.cluster()).await, self.site.running_exactly())
        };
        let before = look().await;
        let again = self.limited(self.drive(id, Way::Forward)).await?;
        if !matches!(again, Ok(Outcome::AlreadyEnded(_))) {
            return Err(format!("the second resume: {again:?}"));
        }
        if look().await != before { Err("the second resume changed something".to_owned()) } else { Ok(()) }
    }

    /// Says what was wrong, with the way there.
    fn told(&self, ran: &Ran, wrong: &str, story: &[String]) -> String {
        let at = match self.case.fault {
            Fault::Call(at, _) => at.min(ran.calls.len()),
            Fault::None | Fault::Record(..) => ran.calls.len(),
        };
        let calls = &ran.calls[at.saturating_sub(12)..(at + 12).min(ran.calls.len())];
        let journal: Vec<String> = self
            .operations()
            .last()
            .and_then(|id| self.site.store().read(id).ok())
            .map(|content| content.entries)
            .unwrap_or_default()
            .into_iter()
            .map(|entry| match entry.record {
                Record::Header(header) => format!("{} header of {}", entry.seq, header.operation),
                record => format!("{} {record:?}", entry.seq),
            })
            .collect();
        format!(
            "{wrong}\nhit: {:?}\ncalls around it:\n  {}\n{}\njournal:\n  {}",
            ran.hit,
            calls.join("\n  "),
            story.join("\n"),
            journal.join("\n  ")
        )
    }
}

fn differences(before: &str, now: &str) -> String {
    let only = |a: &str, b: &str, sign: char| -> Vec<String> {
        a.lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {line}"))
            .collect()
    };
    [only(before, now, '-'), only(now, before, '+')].concat().join("\n")
}

/// Returns every case of a kind, as the clean run shows its calls and records.
fn cases_of(kind: Kind, clean: &Ran) -> Vec<Case> {
    let calls = clean.calls.iter().enumerate().flat_map(|(at, call)| {
        let modes: &[Mode] = if only_looks(call) {
            &[Mode::Before, Mode::After]
        } else {
            &[Mode::Before, Mode::After, Mode::Hangs]
        };
        modes.iter().map(move |mode| Fault::Call(at, *mode))
    });
    let records = (0..clean.records).flat_map(|at| {
        [Mishap::KilledBefore, Mishap::KilledAfter]
            .into_iter()
            .flat_map(move |mishap| [Then::Resume, Then::Undo].map(|then| Fault::Record(at, mishap, then)))
    });
    calls.chain(records).map(|fault| Case { kind, fault }).collect()
}

/// Adds what befalls the request for a promotion itself to a sample: what is not known of it may have made a primary.
fn with_the_request(all: &[Case], mut chosen: Vec<Case>, clean: &Ran) -> Vec<Case> {
    let asks =
        |case: &&Case| matches!(case.fault, Fault::Call(at, _) if clean.calls[at].ends_with(": sql promote"));
    for case in all.iter().filter(asks) {
        if !chosen.contains(case) {
            chosen.push(*case);
        }
    }
    chosen
}

/// What came of the cases of one kind.
#[derive(Debug, Default)]
struct Tally {
    calls: usize,
    records: u64,
    cases: usize,
    first: std::collections::BTreeMap<&'static str, usize>,
    refused: usize,
    missed: usize,
    resumed: usize,
    undone: usize,
    seconds: f64,
    failed: Vec<String>,
    slow: Vec<String>,
}

impl Tally {
    fn add(&mut self, case: &Case, ran: &Ran) {
        self.cases += 1;
        if ran.refused {
            self.refused += 1;
        } else {
            *self.first.entry(ran.first).or_default() += 1;
        }
        self.missed += usize::from(ran.missed);
        self.resumed += usize::from(ran.resumed);
        self.undone += usize::from(ran.undone);
        if ran.took > SLOW {
            self.slow.push(format!("{case} took {:.0} s ({:?})", ran.took.as_secs_f64(), ran.hit));
        }
    }

    fn row(&self, kind: Kind) -> String {
        let first = |word: &str| self.first.get(word).copied().unwrap_or_default();
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            kind.name(),
            self.calls,
            self.records,
            self.cases,
            self.refused,
            first("done"),
            first("restored"),
            first("incomplete"),
            first("stuck"),
            first("stopped"),
            self.resumed,
            self.undone,
            self.failed.len(),
            self.seconds
        )
    }
}

const HEAD: &str = "| operation | calls | records | cases | not begun | done | restored | incomplete | stuck | killed | resumed | undone | failed | seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|";

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Which cases of a kind to run, once its calls are known.
enum Choice {
    All,
    /// So many, chosen by the seed.
    Some(usize, u64),
    These(Vec<Case>),
}

/// Runs the cases of a kind with the benches side by side.
fn run_kind(kind: Kind, benches: &mut [Bench], choice: &Choice) -> Tally {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let clean = Case { kind, fault: Fault::None };
    let cases = match choice {
        Choice::These(cases) => cases.clone(),
        Choice::All | Choice::Some(..) => {
            let first = std::thread::scope(|scope| {
                let worker = std::thread::Builder::new().stack_size(STACK);
                worker.spawn_scoped(scope, || block_on(benches[0].run(&clean))).unwrap().join().unwrap()
            });
            let ran = first.unwrap_or_else(|wrong| panic!("{wrong}"));
            (tally.calls, tally.records) = (ran.calls.len(), ran.records);
            tally.add(&clean, &ran);
            let all = cases_of(kind, &ran);
            match choice {
                Choice::Some(count, seed) => with_the_request(&all, sample(all.clone(), *count, *seed), &ran),
                Choice::All | Choice::These(_) => all,
            }
        }
    };
    let total = cases.len();
    let queue = Mutex::new(VecDeque::from(cases));
    let shared = Mutex::new(&mut tally);
    std::thread::scope(|scope| {
        for bench in benches {
            let worker = std::thread::Builder::new().stack_size(STACK);
            let spawned = worker.spawn_scoped(scope, || {
                loop {
                    let Some(case) = queue.lock().unwrap().pop_front() else { return };
                    let ended = block_on(bench.run(&case));
                    let mut tally = shared.lock().unwrap();
                    match ended {
                        Ok(ran) => {
                            tally.add(&case, &ran);
                            if total < 20 {
                                let first = if ran.refused { "not begun" } else { ran.first };
                                eprintln!(
                                    "{case}: {first} in {:.1} s ({:?})",
                                    ran.took.as_secs_f64(),
                                    ran.hit
                                );
                            }
                        }
                        Err(wrong) => {
                            tally.cases += 1;
                            tally.failed.push(case.to_string());
                            eprintln!("FAILED {wrong}\n");
                        }
                    }
                    if tally.cases % 25 == 0 {
                        let (cases, failed) = (tally.cases, tally.failed.len());
                        eprintln!(
                            "{}: {cases} of {total}, {failed} failed, {:.0} s",
                            kind.name(),
                            begun.elapsed().as_secs_f64()
                        );
                    }
                }
            });
            spawned.unwrap();
        }
    });
    tally.seconds = begun.elapsed().as_secs_f64();
    tally
}

#[test]
fn apply_and_destroy_end_whole_under_any_one_fault_on_real_servers() {
    let only = std::env::var("PGHERD_FAULT_ONLY").ok();
    let soak = std::env::var("PGHERD_SOAK").is_ok_and(|value| !value.is_empty() && value != "0");
    let seed = match std::env::var("PGHERD_FAULT_SEED") {
        Ok(seed) => seed.parse().expect("PGHERD_FAULT_SEED is a number"),
        // The same sample each time, so that a red run is about the change and not about the draw; `make soak` runs all of them.
        Err(_) => 7719,
    };
    let count = std::env::var("PGHERD_FAULT_COUNT").ok();
    let count: Option<usize> = count.map(|count| count.parse().expect("PGHERD_FAULT_COUNT is a number"));
    let size = count.unwrap_or(SAMPLE);
    eprintln!("PGHERD_FAULT_SEED={seed} PGHERD_FAULT_COUNT={size} repeats a sample");
    let choices: Vec<(Kind, Choice)> = match &only {
        Some(list) => KINDS
            .into_iter()
            .map(|kind| {
                if list.split(',').any(|name| name == kind.name()) {
                    return (kind, count.map_or(Choice::All, |count| Choice::Some(count, seed)));
                }
                let named = list.split(',').filter(|name| name.split(':').next() == Some(kind.name()));
                let parse = |name: &str| {
                    Case::parse(name).unwrap_or_else(|| panic!("PGHERD_FAULT_ONLY: no case {name:?}"))
                };
                (kind, Choice::These(named.map(parse).collect()))
            })
            .collect(),
        None if soak => KINDS.map(|kind| (kind, Choice::All)).into(),
        None => KINDS.map(|kind| (kind, Choice::Some(size, seed))).into(),
    };
    let begun = Instant::now();
    let mut benches: Vec<Bench> = (0..WORKERS).map(|_| Bench::new()).collect();
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for (kind, choice) in &choices {
        if matches!(choice, Choice::These(cases) if cases.is_empty()) {
            continue;
        }
        let tally = run_kind(*kind, &mut benches, choice);
        eprintln!("{HEAD}\n{}", tally.row(*kind));
        for slow in &tally.slow {
            eprintln!("slow: {slow}");
        }
        if tally.missed > 0 {
            eprintln!(
                "{}: {} faults befell nothing, there were fewer calls than in the clean run",
                kind.name(),
                tally.missed
            );
        }
        rows.push(tally.row(*kind));
        failed.extend(tally.failed);
    }
    eprintln!("\n{HEAD}\n{}\nin {:.0} s", rows.join("\n"), begun.elapsed().as_secs_f64());
    assert!(
        failed.is_empty(),
        "{} cases failed; again: PGHERD_FAULT_ONLY={}",
        failed.len(),
        failed.join(",")
    );
}
