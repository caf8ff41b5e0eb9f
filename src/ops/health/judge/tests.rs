//! The judge on clusters that were never there: every fact is made up, so that each rule stands alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::asked::{Asked, Why};
use super::super::before::{Before, Counted, NodeBefore, SizeBefore, remember};
use super::super::herd::{Drill, Drills, HerdSeen, LockSeen, NodeFacts, Owed};
use super::super::report::{Finding, Status, Subject};
use super::super::seen::{Clock, Inside, NodeSeen, Partitions, Position, Seen};
use super::judge;
use crate::db::health::activity::{Blocker, Holder, Horizon, LockWait, Longest, Prepared, Session, Vitals};
use crate::db::health::configuration::BadLine;
use crate::db::health::databases::{
    Counters, DeadRows, InvalidIndex, Sequence, Sequences, Statement, Statements, Unfrozen,
};
use crate::db::health::herd::WalGenerated;
use crate::db::health::wal::{Directory as WalDirectory, Pause, Replay, Sender, SlotSeen, Subscription};
use crate::db::queries::{Archiver, Backlog, ServerFacts, ServerRole, TimelineSource, WalReceiver};
use crate::engine::record::Actor;
use crate::ops::drill::Verdict;
use crate::ops::kept::{Kept, LastBackup, MadeNow};
use crate::ops::observe::{Claim, ClusterObserved, Directory, Disk, Fence, NodeObserved, Running, Server};
use crate::ops::roles;
use crate::ops::schedule::{Ended, Listed, Run, Standing};
use crate::ops::status::OperationStatus;
use crate::ops::wal::Window;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::version::PgVersion;
use crate::repo::layout::Label;
use crate::topology::checks::Check;
use crate::topology::claim;
use crate::topology::load_text;
use crate::topology::model::{Cluster, Objective, Repository};
use crate::units::ByteCount;

const HERD: &str = "
pgherd: 1
herd: shop
repositories: {main: {url: file:///srv/repository}}
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    backups: {repository: main}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /srv/b}
    poolers: none
";
const NOW: &str = "2026-06-01T12:00:00Z";
const END: u64 = 0x3_00F0_0000;
const HOUR: f64 = 3600.0;

/// A primary a and its standby b, of which every fact can be set.
struct World {
    cluster: Cluster,
    observed: ClusterObserved,
    nodes: Vec<NodeSeen>,
    before: Option<Before>,
    kept: Asked<Kept>,
    drills: Drills,
    jobs: Vec<Listed>,
    operations: Asked<Vec<OperationStatus>>,
    lock: Asked<Option<LockSeen>>,
    owed: Asked<Vec<Owed>>,
}

impl World {
    fn sound() -> Self {
        let herd = load_text(Path::new("/pgherd.yml"), HERD, Path::new("/")).unwrap();
        let cluster = herd.cluster("inventory").unwrap().clone();
        let nodes = ["a", "b"].map(|name| NodeObserved {
            node: name.to_owned(),
            marker: Claim::None,
            profile: None,
            fence: Fence::Open,
            directory: Directory::Missing,
            server: Server::Up(Box::new(running(name == "a"))),
            files: None,
            disk: Some(Disk { total: ByteCount(100 << 30), free: ByteCount(50 << 30) }),
        });
        Self {
            observed: ClusterObserved {
                cluster: cluster.name.clone(),
                nodes: nodes.into(),
                left: Vec::new(),
            },
            nodes: vec![asked(true), asked(false)],
            cluster,
            before: None,
            kept: Err(Why::Failed("nobody looked".to_owned())),
            drills: Drills::default(),
            jobs: Vec::new(),
            operations: Ok(Vec::new()),
            lock: Ok(None),
            owed: Ok(Vec::new()),
        }
    }

    /// Declares what may be lost, in seconds.
    fn may_lose(&mut self, scenario: &str, seconds: u64) {
        let rpo = Duration::from_secs(seconds);
        self.cluster.objectives.insert(scenario.to_owned(), Objective { rpo, rto: rpo });
    }

    /// Has the repository hold backups from which one can go to any second since so many seconds.
    fn restorable(&mut self, since: i64, ends_before: Option<&str>) {
        let window = Window {
            timeline: TimelineId::new(1).unwrap(),
            backup: "20260531T120000Z-full".parse().unwrap(),
            first: ago(since),
            last: ago(120),
            last_lsn: Lsn::new(END - 0x1000),
            ends_before: ends_before.map(|name| name.parse().unwrap()),
        };
        let system = SystemIdentifier::new(7).unwrap();
        let (running, unreadable) = (Vec::new(), Vec::new());
        self.kept = Ok(Kept { last: None, running, unreadable, windows: vec![(system, vec![window])] });
    }

    /// Returns the one finding about a part of the cluster.
    #[track_caller]
    fn of_part(&self, check: Check, part: &str) -> Finding {
        let subject = Subject::Part(part.to_owned());
        let found = self.judged().into_iter().find(|found| found.check == check && found.subject == subject);
        found.unwrap_or_else(|| panic!("no {check:?} of {part}"))
    }

    fn a(&mut self) -> &mut NodeSeen {
        &mut self.nodes[0]
    }

    fn b(&mut self) -> &mut NodeSeen {
        &mut self.nodes[1]
    }

    fn vitals(&mut self) -> &mut Vitals {
        self.a().vitals.as_mut().unwrap()
    }

    fn replay(&mut self) -> &mut Replay {
        self.b().replay.as_mut().unwrap().as_mut().unwrap()
    }

    fn slot(&mut self) -> &mut SlotSeen {
        &mut self.a().slots.as_mut().unwrap()[0]
    }

    fn counters(&mut self) -> &mut Counters {
        &mut self.a().counters.as_mut().unwrap()[0]
    }

    fn inside(&mut self) -> &mut Inside {
        &mut self.a().inside[0]
    }

    /// What b has replayed before and after a was asked, in bytes behind its end.
    fn behind(&mut self, first: u64, again: u64) {
        self.b().position = Ok(position(END - first, 0));
        self.b().again = Ok(position(END - again, 20));
    }

    fn running(&mut self, node: usize) -> &mut Running {
        match &mut self.observed.nodes[node].server {
            Server::Up(running) => running,
            other
            @ (Server::Starting | Server::Stopped | Server::Foreign { .. } | Server::Unknown { .. }) => {
                panic!("{other:?}")
            }
        }
    }

    fn receiver(&mut self) -> &mut Option<Box<WalReceiver>> {
        match &mut self.running(1).facts.role {
            ServerRole::Standby { receiver, .. } => receiver,
            ServerRole::Primary { .. } => panic!("it is a standby"),
        }
    }

    fn judged(&self) -> Vec<Finding> {
        judge(&Seen {
            cluster: &self.cluster,
            at: now(),
            observed: self.observed.clone(),
            lead: roles::lead(&self.observed),
            split: None,
            nodes: self.nodes.clone(),
            poolers: Vec::new(),
            kept: Some(self.kept.clone()),
            herd: HerdSeen {
                history: None,
                drills: Some(Ok(self.drills.clone())),
                jobs: Ok(self.jobs.clone()),
                tls: None,
                operations: self.operations.clone(),
                lock: self.lock.clone(),
                owed: self.owed.clone(),
                regions: BTreeMap::new(),
            },
            before: self.before.clone(),
            custom: Vec::new(),
        })
    }

    /// Returns the one finding of a check of a node, or of the cluster.
    #[track_caller]
    fn finds(&self, check: Check, node: &str) -> Finding {
        let subject = if node == "-" { Subject::Cluster } else { Subject::Node(node.to_owned()) };
        let mut found = self.judged();
        found.retain(|finding| finding.check == check && finding.subject == subject);
        assert_eq!(found.len(), 1, "{check:?} of {node}: {found:#?}");
        found.remove(0)
    }

    /// Holds a check to end so, and to say something.
    #[track_caller]
    fn says(&self, check: Check, node: &str, status: Status, text: &str) -> Finding {
        let found = self.finds(check, node);
        assert!(found.status == status && found.text.contains(text), "{found:#?}");
        assert!(matches!(status, Status::Ok | Status::Unknown) || found.next.is_some(), "{found:#?}");
        found
    }
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn position(lsn: u64, millis: i64) -> Position {
    let sent = now() + SignedDuration::from_millis(millis);
    Position { lsn: Some(Lsn::new(lsn)), sent, received: sent + SignedDuration::from_millis(2) }
}

fn running(primary: bool) -> Running {
    let role = if primary {
        ServerRole::Primary { written_lsn: Lsn::new(END) }
    } else {
        ServerRole::Standby {
            received_lsn: Some(Lsn::new(END)),
            replayed_lsn: Some(Lsn::new(END)),
            replay_paused: false,
            last_replayed: Some(ago(7200)),
            receiver: Some(Box::new(WalReceiver {
                status: "streaming".to_owned(),
                received_timeline: TimelineId::new(1),
                written_lsn: None,
                flushed_lsn: None,
                latest_end_lsn: None,
                latest_end_at: None,
                last_message_at: None,
                sender_host: None,
                sender_port: None,
                slot: Some("inventory_b".to_owned()),
            })),
        }
    };
    Running {
        facts: ServerFacts {
            version: PgVersion::from_number(150_004),
            system_identifier: SystemIdentifier::new(7).unwrap(),
            timeline: TimelineId::new(1).unwrap(),
            timeline_from: TimelineSource::WalFile,
            role,
            started: ago(86_400),
            now: now(),
            data_checksums: true,
            synchronous_standby_names: String::new(),
        },
        senders: Vec::new(),
        slots: Vec::new(),
        settings: BTreeMap::new(),
    }
}

fn asked(primary: bool) -> NodeSeen {
    NodeSeen {
        clock: Ok(Clock { ahead_seconds: 0.004, half_trip_seconds: 0.002 }),
        position: Ok(position(END, if primary { 10 } else { 0 })),
        again: Ok(position(END, 20)),
        vitals: Ok(Vitals {
            clients: 10,
            usable: 90,
            now: now(),
            started: ago(86_400),
            checkpointer_started: Some(ago(86_399)),
            locks: 40,
            lock_slots: 6400,
            archive_mode: "on".to_owned(),
            archives: true,
            freeze_max_age: 200_000_000,
            multixact_freeze_max_age: 400_000_000,
            failsafe_age: 1_600_000_000,
            multixact_failsafe_age: 1_600_000_000,
        }),
        longest: Ok(Longest::default()),
        lock_wait: Ok(None),
        prepared: Ok(None),
        horizon: Ok(None),
        senders: Ok(if primary {
            vec![Sender {
                application_name: "inventory-b".to_owned(),
                state: "streaming".to_owned(),
                replay_lag_seconds: None,
            }]
        } else {
            Vec::new()
        }),
        // Nothing was committed for two hours.
        replay: Ok((!primary).then_some(Replay {
            pause: Pause::Not,
            delay_seconds: 0.0,
            last_replayed_seconds: Some(2.0 * HOUR),
            silent_seconds: Some(3.0),
            known_seconds: Some(2.0 * HOUR),
            known_lsn: Some(Lsn::new(END)),
            conflicts: 0,
        })),
        slots: Ok(if primary { vec![slot("inventory_b")] } else { Vec::new() }),
        wal: Ok(WalDirectory { size: 1 << 30, max_wal_size: 1 << 30, wal_keep_size: 0 }),
        subscriptions: Ok(Vec::new()),
        counters: Ok(vec![Counters {
            database: Some("inventory".to_owned()),
            xid_age: 1000,
            multixact_age: 0,
            commits: 5000,
            rollbacks: 10,
            blocks_hit: 990_000,
            blocks_read: 10_000,
            temp_bytes: 0,
            deadlocks: 0,
            checksum_failures: Some(0),
            since: Some(ago(86_400)),
        }]),
        pending_restart: Ok(Vec::new()),
        bad_lines: Ok(Vec::new()),
        archiver: Ok(Archiver {
            archived: 5,
            failed: 0,
            last_archived: Some(("000000010000000000000004".to_owned(), ago(60))),
            last_failed: None,
            waiting: 0,
            backlog: None,
        }),
        facts: NodeFacts::without(&Why::Failed("nobody looked".to_owned())),
        inside: if primary {
            vec![Inside {
                database: "inventory".to_owned(),
                sequences: Ok(Sequences::default()),
                invalid_indexes: Ok(Vec::new()),
                dead_rows: Ok(None),
                unfrozen: Ok(None),
                statements: Ok(None),
                partitions: Ok(Partitions::default()),
            }]
        } else {
            Vec::new()
        },
    }
}

fn slot(name: &str) -> SlotSeen {
    SlotSeen {
        name: name.to_owned(),
        logical: false,
        active: true,
        wal_status: Some("reserved".to_owned()),
        safe_wal_size: None,
        keep_size: -1,
        retained: Some(1 << 20),
        invalidation: None,
        conflicting: false,
        inactive_since: None,
        synced: false,
    }
}

fn session(seconds: f64) -> Session {
    Session {
        pid: 4711,
        user: "app".to_owned(),
        application: "shop".to_owned(),
        database: "inventory".to_owned(),
        query: "UPDATE item SET n = 1".to_owned(),
        seconds,
    }
}

/// What is asked of servers; the other checks are made of files and of nodes beside each other, and have tests of their own.
const OF_SERVERS: [Check; 38] = [
    Check::Connect,
    Check::Primary,
    Check::Standbys,
    Check::Lag,
    Check::Connections,
    Check::Disk,
    Check::Archive,
    Check::Uptime,
    Check::Crash,
    Check::Clock,
    Check::IdleInTransaction,
    Check::LongQuery,
    Check::LongTransaction,
    Check::LockWait,
    Check::LockTable,
    Check::PreparedTransactions,
    Check::LagBytes,
    Check::Receiver,
    Check::Replay,
    Check::Conflicts,
    Check::Slots,
    Check::MissingSlots,
    Check::Subscriptions,
    Check::WalSize,
    Check::XidAge,
    Check::MultixactAge,
    Check::Freeze,
    Check::XminHorizon,
    Check::DeadRows,
    Check::Checksums,
    Check::InvalidIndexes,
    Check::Sequences,
    Check::PendingRestart,
    Check::Configuration,
    Check::CacheHit,
    Check::Rollbacks,
    Check::Deadlocks,
    Check::TempFiles,
];

#[test]
fn a_sound_cluster_is_fine_in_every_check_that_is_asked_of_servers() {
    let judged = World::sound().judged();
    for check in OF_SERVERS {
        let of: Vec<&Finding> = judged.iter().filter(|finding| finding.check == check).collect();
        assert!(!of.is_empty(), "nobody makes {check:?}");
        for finding in of {
            assert_eq!(finding.status, Status::Ok, "{finding:#?}");
        }
    }
}

#[test]
fn what_nobody_may_see_is_unknown_with_the_grant_and_never_fine() {
    let mut world = World::sound();
    let why = Why::NotGranted { role: "mon".to_owned(), grant: "GRANT pg_monitor TO mon".to_owned() };
    world.nodes = vec![NodeSeen::without(&why), NodeSeen::without(&why)];
    let other = [Check::Connect, Check::Primary, Check::Standbys, Check::Disk, Check::SlowQueries];
    for finding in world.judged() {
        let Some(check) = OF_SERVERS.into_iter().find(|check| finding.check == *check) else { continue };
        if other.contains(&check) {
            continue;
        }
        // What is in databases was not even asked for without a connection.
        let inside = matches!(check, Check::DeadRows | Check::InvalidIndexes | Check::Sequences);
        if !inside {
            assert_eq!(finding.status, Status::Unknown, "{finding:#?}");
            assert_eq!(finding.next.as_deref(), Some("GRANT pg_monitor TO mon"), "{finding:#?}");
        }
    }
}

#[test]
fn an_idle_primary_has_no_lag_whatever_the_clock_says() {
    let mut world = World::sound();
    world.says(Check::Lag, "b", Status::Ok, "nothing is missing");
    // Its first commit for two hours came in between.
    world.behind(200, 0);
    let lag = world.says(Check::Lag, "b", Status::Ok, "all of it was there at the next look");
    assert!(lag.measured[0].value < 0.1, "{lag:#?}");
    // The standby is slower than a round trip: it knew all that there was 3 s ago.
    world.behind(200, 200);
    world.replay().known_lsn = Some(Lsn::new(END - 200));
    let lag = world.says(Check::Lag, "b", Status::Ok, "since the primary told of what is missing");
    assert!(lag.measured[0].value < 4.0, "{lag:#?}");
}

#[test]
fn a_receiver_that_is_cut_off_makes_lag_also_on_an_idle_primary() {
    let mut world = World::sound();
    *world.receiver() = None;
    (world.replay().silent_seconds, world.replay().known_seconds) = (None, None);
    world.says(
        Check::Lag,
        "b",
        Status::Critical,
        "2h00m behind (0 B; time since its last sign of the primary)",
    );
    world.says(Check::Standbys, "b", Status::Critical, "it has no WAL receiver");
}

#[test]
fn replay_lag_counts_where_it_is_known_and_grows_on_while_replay_is_paused() {
    let mut world = World::sound();
    world.behind(5 << 20, 4 << 20);
    world.a().senders.as_mut().unwrap()[0].replay_lag_seconds = Some(41.0);
    world.says(Check::Lag, "b", Status::Warning, "41.0 s behind (5 MiB; replay_lag of pg_stat_replication)");
    world.says(Check::LagBytes, "b", Status::Ok, "5 MiB behind");
    world.replay().pause = Pause::Paused;
    world.says(Check::Lag, "b", Status::Critical, "2h00m behind (5 MiB; age of the last transaction");
    world.says(Check::Replay, "b", Status::Critical, "it is paused");
    world.replay().last_replayed_seconds = Some(50.0);
    world.says(Check::Replay, "b", Status::Warning, "it is paused");
    world.replay().pause = Pause::Requested;
    world.says(Check::Replay, "b", Status::Warning, "it is about to be paused");
}

#[test]
fn bytes_are_counted_beyond_4_gib() {
    let mut world = World::sound();
    world.b().position = Ok(position(END - (5 << 30), 0));
    world.b().again = Ok(position(END - (5 << 30), 20));
    world.says(Check::LagBytes, "b", Status::Critical, "5 GiB behind");
}

#[test]
fn lag_is_unknown_where_the_primary_is() {
    let mut world = World::sound();
    world.observed.nodes[0].server = Server::Unknown { why: "it did not answer".to_owned() };
    world.nodes[0] = NodeSeen::without(&Why::NotUp);
    for check in [Check::Lag, Check::LagBytes] {
        world.says(check, "b", Status::Unknown, "the primary is not known");
    }
    for check in [Check::XidAge, Check::Sequences, Check::MissingSlots, Check::PreparedTransactions] {
        assert_eq!(world.finds(check, "-").follows, Some(Check::Primary));
    }
}

#[test]
fn a_standby_that_is_behind_on_purpose_is_neither_late_nor_paused() {
    let mut world = World::sound();
    world.behind(2 << 30, 2 << 30);
    world.replay().delay_seconds = HOUR;
    world.a().senders.as_mut().unwrap()[0].replay_lag_seconds = Some(HOUR + 10.0);
    let lag = world.says(Check::Lag, "b", Status::Ok, "of which 1h00m on purpose");
    assert!(lag.measured[0].value > HOUR, "{lag:#?}");
    world.says(Check::LagBytes, "b", Status::Ok, "on purpose: recovery_min_apply_delay");
    world.says(Check::Replay, "b", Status::Ok, "it is not paused");
    world.a().senders.as_mut().unwrap()[0].replay_lag_seconds = Some(HOUR + 40.0);
    world.says(Check::Lag, "b", Status::Warning, "on purpose");
}

#[test]
fn two_looks_tell_what_moves_from_what_is_stuck() {
    let mut world = World::sound();
    world.behind(3 << 20, 2 << 20);
    world.a().senders.as_mut().unwrap()[0].replay_lag_seconds = Some(2.0);
    let mut before = |bytes: u64| {
        let stood = NodeBefore { replayed_lsn: Some(Lsn::new(END - bytes)), ..NodeBefore::default() };
        world.before =
            Some(Before { at: ago(10), nodes: BTreeMap::from([("b".to_owned(), stood)]), sizes: Vec::new() });
        world.finds(Check::Lag, "b")
    };
    let moving = before(12 << 20);
    assert!(moving.status == Status::Ok && moving.text.contains("replays 1 MiB/s"), "{moving:#?}");
    let stuck = before(2 << 20);
    assert!(stuck.status == Status::Warning && stuck.text.contains("stuck for 10"), "{stuck:#?}");
}

#[test]
fn a_receiver_that_hears_nothing_is_told_from_one_that_is_not_there() {
    let mut world = World::sound();
    world.replay().silent_seconds = Some(75.0);
    world.says(Check::Receiver, "b", Status::Warning, "heard of the primary 1m15s ago");
    *world.receiver() = None;
    assert!(world.judged().iter().all(|finding| finding.check != Check::Receiver));
}

#[test]
fn a_crash_shows_by_the_age_of_the_children_and_clears_by_itself() {
    let mut world = World::sound();
    world.says(Check::Crash, "a", Status::Ok, "no process has crashed");
    world.vitals().checkpointer_started = Some(ago(90));
    world.says(Check::Crash, "a", Status::Warning, "all were started anew 1m30s ago");
    world.vitals().checkpointer_started = Some(ago(700));
    world.says(Check::Crash, "a", Status::Ok, "started anew");
    // A restart is no alarm.
    (world.vitals().started, world.vitals().checkpointer_started) = (ago(5), Some(ago(5)));
    world.says(Check::Uptime, "a", Status::Ok, "up 5");
    world.says(Check::Crash, "a", Status::Ok, "no process has crashed");
}

#[test]
fn half_of_the_way_is_no_skew() {
    let mut world = World::sound();
    world.a().clock = Ok(Clock { ahead_seconds: -2.5, half_trip_seconds: 1.0 });
    world.says(Check::Clock, "a", Status::Ok, "1.5 s behind ours");
    world.a().clock = Ok(Clock { ahead_seconds: 6.2, half_trip_seconds: 1.0 });
    world.says(Check::Clock, "a", Status::Critical, "5.2 s ahead of ours");
}

#[test]
fn sessions_are_named_with_what_they_do() {
    let mut world = World::sound();
    world.a().longest = Ok(Longest {
        idle: Some(session(360.0)),
        query: Some(session(4000.0)),
        transaction: Some(session(50_000.0)),
    });
    let idle = world.says(
        Check::IdleInTransaction,
        "a",
        Status::Warning,
        "pid 4711 (app through shop in inventory) is idle in a transaction for 6m00s: UPDATE item SET n = 1",
    );
    assert_eq!(idle.next.as_deref(), Some("SELECT pg_terminate_backend(4711)"));
    world.says(Check::LongQuery, "a", Status::Warning, "runs for 1h06m");
    world.says(Check::LongTransaction, "a", Status::Critical, "has been in a transaction for 13h53m");
}

#[test]
fn a_lock_wait_names_the_root_of_it() {
    let mut world = World::sound();
    let mut wait = LockWait {
        waiting: 3,
        pid: 12,
        user: "app".to_owned(),
        seconds: 45.0,
        query: "SELECT 1".to_owned(),
        root: Some(Blocker {
            pid: 4711,
            user: "bi".to_owned(),
            state: "idle in transaction".to_owned(),
            query: "LOCK TABLE item".to_owned(),
        }),
    };
    world.a().lock_wait = Ok(Some(wait.clone()));
    let found = world.says(
        Check::LockWait,
        "a",
        Status::Warning,
        "for 45.0 s, at the root for pid 4711 (bi, idle in transaction: LOCK TABLE item)",
    );
    assert_eq!(found.next.as_deref(), Some("SELECT pg_terminate_backend(4711)"));
    wait.root.as_mut().unwrap().pid = 0;
    world.a().lock_wait = Ok(Some(wait));
    world.says(Check::LockWait, "a", Status::Warning, "for a prepared transaction");
    world.vitals().locks = 5500;
    world.says(Check::LockTable, "a", Status::Critical, "5500 of 6400 locks");
}

#[test]
fn a_lost_slot_is_critical_although_it_retains_nothing() {
    let mut world = World::sound();
    (world.slot().active, world.slot().wal_status, world.slot().retained) =
        (false, Some("lost".to_owned()), None);
    world.says(Check::Slots, "a", Status::Critical, "inventory_b is lost");
    world.slot().wal_status = Some("unreserved".to_owned());
    world.says(Check::Slots, "a", Status::Critical, "is about to be lost");
    (world.slot().wal_status, world.slot().invalidation) = (None, Some("idle_timeout".to_owned()));
    world.says(Check::Slots, "a", Status::Critical, "is invalid: idle_timeout");
    *world.slot() = SlotSeen { conflicting: true, ..slot("sub") };
    world.says(Check::Slots, "a", Status::Critical, "in conflict with recovery");
}

#[test]
fn a_slot_that_nobody_uses_warns_once_it_is_known_for_how_long() {
    let mut world = World::sound();
    world.slot().active = false;
    world.says(Check::Slots, "a", Status::Warning, "inventory_b is used by nobody and keeps 1 MiB");
    world.slot().inactive_since = Some(ago(60));
    world.says(Check::Slots, "a", Status::Ok, "1, which keep 1 MiB at most");
    world.slot().inactive_since = Some(ago(700));
    world.says(Check::Slots, "a", Status::Warning, "was used by nobody for 11m40s");
    world.slot().synced = true;
    world.says(Check::Slots, "a", Status::Ok, "");
    // One that was never used keeps nothing.
    *world.slot() = SlotSeen { active: false, wal_status: None, retained: None, ..slot("new") };
    world.says(Check::Slots, "a", Status::Ok, "");
    // On a standby it is for when it is primary.
    world.b().slots = Ok(vec![SlotSeen { active: false, ..slot("inventory_a") }]);
    world.says(Check::Slots, "b", Status::Ok, "");
    *world.slot() = SlotSeen { safe_wal_size: Some(20), keep_size: 100, ..slot("inventory_b") };
    world.says(Check::Slots, "a", Status::Warning, "is lost after 20 B more");
}

#[test]
fn a_declared_standby_without_a_slot_is_critical() {
    let mut world = World::sound();
    world.a().slots = Ok(vec![slot("other")]);
    world.says(Check::MissingSlots, "-", Status::Critical, "a has no slot inventory_b");
}

#[test]
fn what_a_repository_lacks_is_told_where_a_cluster_has_several() {
    let mut world = World::sound();
    assert!(world.judged().iter().all(|finding| finding.check != Check::Copies));
    let backups = world.cluster.backups.as_mut().unwrap();
    backups.copies = vec![Repository { name: "far".to_owned(), ..backups.repository.clone() }];
    world.says(Check::Copies, "-", Status::Ok, "every repository was given all WAL");
    world.owed = Ok(vec![Owed { node: "a".to_owned(), repository: "far".to_owned(), files: 3 }]);
    world.says(Check::Copies, "-", Status::Warning, "3 WAL files of a owed to repository far");
    world.owed = Err(Why::Failed("no answer".to_owned()));
    world.says(Check::Copies, "-", Status::Unknown, "no answer");
}

#[test]
fn the_archiver_fails_also_where_it_never_succeeded() {
    let mut world = World::sound();
    let archiver = |world: &mut World| world.a().archiver.clone().unwrap();
    let failed = Some(("000000010000000000000001".to_owned(), ago(5)));
    let never = Archiver { last_archived: None, last_failed: failed, waiting: 1, ..archiver(&mut world) };
    world.a().archiver = Ok(never);
    world.says(Check::Archive, "-", Status::Critical, "nothing was archived since; 1 wait");
    world.vitals().archive_mode = "always".to_owned();
    world.says(Check::Archive, "-", Status::Critical, "nothing was archived since");
    world.vitals().archives = false;
    world.says(Check::Archive, "-", Status::Critical, "neither archive_command nor archive_library is set");
    world.vitals().archive_mode = "off".to_owned();
    world.says(Check::Archive, "-", Status::Critical, "archive_mode is off");
    // Nobody asked for it.
    world.cluster.backups = None;
    assert!(world.judged().iter().all(|finding| finding.check != Check::Archive));
}

#[test]
fn a_large_pg_wal_names_who_keeps_it() {
    let mut world = World::sound();
    world.a().wal = Ok(WalDirectory { size: 3 << 30, max_wal_size: 1 << 30, wal_keep_size: 0 });
    world.says(Check::WalSize, "a", Status::Warning, "(1 GiB); most of it is kept by the next checkpoints");
    world.a().archiver.as_mut().unwrap().waiting = 180;
    world.says(Check::WalSize, "a", Status::Warning, "the archiver (180 files wait)");
    world.slot().retained = Some(2 << 30);
    world.says(Check::WalSize, "a", Status::Warning, "slot inventory_b (2 GiB)");
}

#[test]
fn ages_are_critical_from_the_failsafe_on_at_the_latest() {
    let mut world = World::sound();
    world.counters().xid_age = 600_000_000;
    world.says(Check::XidAge, "-", Status::Warning, "inventory is 600 M transactions old, 27.9 % of 2^31");
    world.says(Check::Freeze, "-", Status::Critical, "database inventory is at 300 %");
    world.vitals().failsafe_age = 550_000_000;
    world.says(Check::XidAge, "-", Status::Critical, "");
    world.counters().multixact_age = 1_100_000_000;
    world.says(Check::MultixactAge, "-", Status::Critical, "1100 M multixacts old");
    // A table with a limit of its own is overdue before its database is.
    let mut world = World::sound();
    world.inside().unfrozen =
        Ok(Some(Unfrozen { table: "public.item".to_owned(), share: 130.0, age: 13_000_000 }));
    world.says(Check::Freeze, "-", Status::Warning, "public.item in inventory is at 130 %");
}

#[test]
fn the_horizon_is_named_by_the_kind_of_its_holder() {
    let mut world = World::sound();
    for (holder, name, text) in [
        (Holder::Session, "pid 5 of app", "pid 5 of app holds it for 20 M transactions"),
        (Holder::Standby, "inventory-b", "standby inventory-b holds it"),
        (Holder::Slot, "sub", "slot sub holds it"),
        (Holder::Prepared, "order-7", "prepared transaction order-7 holds it"),
    ] {
        world.a().horizon = Ok(Some(Horizon { holder, name: name.to_owned(), age: 20_000_000 }));
        world.says(Check::XminHorizon, "-", Status::Warning, text);
    }
    world.a().prepared = Ok(Some(Prepared {
        count: 2,
        name: "order-7".to_owned(),
        database: "inventory".to_owned(),
        owner: "app".to_owned(),
        seconds: 400.0,
    }));
    world.says(
        Check::PreparedTransactions,
        "-",
        Status::Critical,
        "2 prepared transactions, the oldest order-7",
    );
}

#[test]
fn checksums_that_are_not_enabled_are_not_fine() {
    let mut world = World::sound();
    world.counters().checksum_failures = Some(2);
    world.says(Check::Checksums, "a", Status::Critical, "2 pages did not match their checksum, in inventory");
    world.counters().database = None;
    world.says(Check::Checksums, "a", Status::Critical, "in the shared catalogs");
    world.counters().checksum_failures = None;
    world.running(0).facts.data_checksums = false;
    world.says(Check::Checksums, "a", Status::Warning, "not enabled");
}

#[test]
fn what_is_in_databases_is_told_by_name_and_what_is_hidden_is_unknown() {
    let mut world = World::sound();
    world.inside().sequences = Ok(Sequences {
        nearest: Some(Sequence {
            name: "public.item_id_seq".to_owned(),
            share: 93.2,
            column: Some("int4".to_owned()),
        }),
        hidden: 0,
    });
    world.says(
        Check::Sequences,
        "-",
        Status::Critical,
        "public.item_id_seq in inventory has used 93.2 % of what its column of type int4 can hold",
    );
    world.inside().sequences =
        Err(Why::NotGranted { role: "mon".to_owned(), grant: "GRANT pg_read_all_data TO mon".to_owned() });
    let hidden = world.says(Check::Sequences, "-", Status::Unknown, "in inventory: role mon may not see it");
    assert_eq!(hidden.next.as_deref(), Some("GRANT pg_read_all_data TO mon"));
    world.inside().invalid_indexes =
        Ok(vec![InvalidIndex { name: "public.i".to_owned(), table: "item".to_owned() }]);
    world.says(Check::InvalidIndexes, "-", Status::Warning, "public.i of item in inventory");
    world.inside().dead_rows =
        Ok(Some(DeadRows { table: "public.item".to_owned(), dead: 20_000, share: 66.7, vacuumed: None }));
    world.says(Check::DeadRows, "-", Status::Warning, "20000 dead rows (66.7 %), not vacuumed since");
}

#[test]
fn queries_are_judged_by_their_mean_where_they_are_counted() {
    let mut world = World::sound();
    assert!(world.judged().iter().all(|finding| finding.check != Check::SlowQueries));
    world.inside().statements = Ok(Some(Statements {
        calls: 100,
        seconds: 90.0,
        slowest: Some(Statement { query: "SELECT 1".to_owned(), calls: 10, mean_seconds: 8.0 }),
    }));
    world.says(Check::SlowQueries, "-", Status::Warning, "most of it in 10 calls of 8.0 s: SELECT 1");
}

#[test]
fn configuration_that_is_not_in_effect_is_named() {
    let mut world = World::sound();
    world.a().pending_restart = Ok(vec!["max_connections".to_owned(), "shared_buffers".to_owned()]);
    world.says(
        Check::PendingRestart,
        "a",
        Status::Warning,
        "max_connections, shared_buffers in effect after",
    );
    world.a().bad_lines = Ok(vec![BadLine {
        file: "pg_hba.conf".to_owned(),
        line: Some(7),
        error: "invalid connection type".to_owned(),
    }]);
    world.says(Check::Configuration, "a", Status::Critical, "pg_hba.conf:7: invalid connection type");
}

#[test]
fn a_subscription_without_a_worker_is_critical_and_errors_warn() {
    let mut world = World::sound();
    let one = |running, errors| Subscription {
        name: "orders".to_owned(),
        database: "inventory".to_owned(),
        running,
        errors,
    };
    world.a().subscriptions = Ok(vec![one(true, Some(0))]);
    world.says(Check::Subscriptions, "-", Status::Ok, "");
    world.a().subscriptions = Ok(vec![one(true, Some(3))]);
    world.says(Check::Subscriptions, "-", Status::Warning, "orders in inventory has had 3 errors");
    world.a().subscriptions = Ok(vec![one(false, None), one(true, Some(3))]);
    world.says(Check::Subscriptions, "-", Status::Critical, "orders in inventory does not run");
}

#[test]
fn counters_are_judged_since_the_last_look_where_enough_has_happened_since() {
    let mut world = World::sound();
    world.counters().blocks_read = 400_000;
    world.says(Check::CacheHit, "a", Status::Warning, "71.2 % of the blocks in shared buffers since 2026");
    let mut before = |counted: Counted, seconds: i64| {
        let stood = NodeBefore { counted: Some(counted), ..NodeBefore::default() };
        world.before = Some(Before {
            at: ago(seconds),
            nodes: BTreeMap::from([("a".to_owned(), stood)]),
            sizes: Vec::new(),
        });
    };
    let counted = Counted { blocks_hit: 890_000, blocks_read: 400_000, commits: 4000, ..Counted::default() };
    before(counted, 600);
    world.says(Check::CacheHit, "a", Status::Ok, "100 % of the blocks in shared buffers since the last look");
    world.says(Check::Rollbacks, "a", Status::Ok, "1 % of the transactions rolled back since the last look");
    // Reset in between: what it says goes back.
    world.counters().blocks_hit = 5;
    world.counters().blocks_read = 5;
    world.says(Check::CacheHit, "a", Status::Ok, "too little has happened since 2026");

    world.counters().deadlocks = 48;
    world.says(Check::Deadlocks, "a", Status::Warning, "288 of deadlocks an hour since the last look");
    world.before = None;
    world.says(Check::Deadlocks, "a", Status::Ok, "2 of deadlocks an hour since 2026");
    // The first of an hour is one an hour, not sixty.
    world.counters().since = Some(ago(60));
    world.says(Check::Deadlocks, "a", Status::Warning, "48 of deadlocks an hour");
    world.counters().temp_bytes = 11 << 30;
    world.says(Check::TempFiles, "a", Status::Warning, "11 GiB of temporary files an hour");
    world.replay().conflicts = 480;
    world.says(Check::Conflicts, "b", Status::Warning, "20 queries cancelled an hour");
}

#[test]
fn databases_that_grow_on_fill_the_smallest_disk_in_so_many_days() {
    let mut world = World::sound();
    world.a().facts.size = Some(Ok(100 << 30));
    world.b().facts.size = None;
    world.says(Check::Growth, "-", Status::Ok, "100 GiB; nothing is known of an hour ago");
    let mut grown = |bytes: u64, hours: i64, free: u64| {
        let sizes = vec![SizeBefore { at: ago(hours * 3600), bytes }];
        world.before = Some(Before { at: ago(60), nodes: BTreeMap::new(), sizes });
        world.observed.nodes[1].disk = Some(Disk { total: ByteCount(100 << 30), free: ByteCount(free) });
        world.finds(Check::Growth, "-")
    };
    let day = grown(95 << 30, 24, 40 << 30);
    assert_eq!(
        (day.status, day.text.as_str()),
        (
            Status::Warning,
            "100 GiB, growing by 5 GiB a day over 24h00m: the 40 GiB that are free on b last 8 d, warning up to 14 d"
        )
    );
    assert_eq!(grown(95 << 30, 12, 20 << 30).status, Status::Critical);
    assert_eq!(grown(99 << 30, 24, 40 << 30).status, Status::Ok);
    assert_eq!(grown(101 << 30, 24, 40 << 30).text, "100 GiB, which has not grown in 24h00m");
    assert!(grown(1 << 30, 0, 40 << 30).text.ends_with("nothing is known of an hour ago"));
}

#[test]
fn journals_that_nobody_may_read_tell_of_no_operation_that_there_is_none() {
    let mut world = World::sound();
    world.says(Check::Operations, "-", Status::Ok, "nothing is unfinished");
    world.operations = Err(Why::Failed("could not list the journals in /srv/operations".to_owned()));
    world.says(Check::Operations, "-", Status::Unknown, "could not list the journals");
}

#[test]
fn a_size_an_hour_is_remembered_for_two_days() {
    let mut sizes = Vec::new();
    for minute in (0..4000).rev() {
        remember(&mut sizes, SizeBefore { at: ago(minute * 60), bytes: 1 });
    }
    assert_eq!(sizes.len(), 48, "{sizes:?}");
    // A clock that was an hour ahead has left something that is yet to come.
    sizes.push(SizeBefore { at: ago(-3600), bytes: 2 });
    remember(&mut sizes, SizeBefore { at: now(), bytes: 3 });
    assert!(sizes.iter().all(|size| size.at <= now()), "{sizes:?}");
}

#[test]
fn a_backup_that_takes_twice_as_long_as_the_last_one_is_stuck() {
    let mut world = World::sound();
    world.restorable(7200, None);
    world.says(Check::BackupRunning, "-", Status::Ok, "none is being made");
    let label: Label = "20260601T115000Z-full".parse().unwrap();
    let mut since = |seconds: i64, last_took: Option<i64>| {
        let kept = world.kept.as_mut().unwrap();
        kept.running = vec![MadeNow {
            label: label.clone(),
            by: "root@db1".to_owned(),
            since: ago(seconds),
            phase: None,
            done: Some(ByteCount(1 << 30)),
            total: Some(ByteCount(4 << 30)),
        }];
        kept.last = last_took.map(|took| LastBackup {
            label: label.clone(),
            system_identifier: SystemIdentifier::new(7).unwrap(),
            begun: ago(90_000 + took),
            ended: ago(90_000),
            size: ByteCount(4 << 30),
            stored: ByteCount(1 << 30),
        });
        world.finds(Check::BackupRunning, "-")
    };
    assert_eq!(since(1199, Some(600)).status, Status::Ok);
    let late = since(1200, Some(600));
    assert_eq!(
        (late.status, late.text.as_str()),
        (
            Status::Warning,
            "20260601T115000Z-full is being made by root@db1 since 20m00s, 1 GiB of 4 GiB; the last one took 10m00s, warning from 200 % on"
        )
    );
    assert_eq!(since(599, Some(2)).status, Status::Ok, "a short one is no measure");
    assert!(since(90_000, None).text.ends_with("it is the first one"));
}

#[test]
fn several_minor_versions_are_a_warning_and_another_major_one_is_critical() {
    let mut world = World::sound();
    world.says(Check::Version, "-", Status::Ok, "15.4 on a, b");
    world.running(1).facts.version = PgVersion::from_number(150_003);
    world.says(Check::Version, "-", Status::Warning, "15.4 on a; 15.3 on b");
    world.running(1).facts.version = PgVersion::from_number(160_001);
    world.says(Check::Version, "-", Status::Critical, "15 is declared");
}

#[test]
fn a_segment_that_still_waits_is_not_missing() {
    let mut world = World::sound();
    world.restorable(86_400, Some("000000010000000000000009"));
    world.a().archiver.as_mut().unwrap().waiting = 3;
    world.says(Check::Window, "-", Status::Ok, "every second since");
    // This one the archiver has crossed off.
    world.restorable(86_400, Some("000000010000000000000003"));
    world.says(Check::Window, "-", Status::Critical, "WAL is missing from 000000010000000000000003 on");
}

#[test]
fn what_piles_up_is_told_with_its_age_and_with_the_time_that_the_disk_takes_it() {
    let mut world = World::sound();
    let archiver = world.a().archiver.as_mut().unwrap();
    archiver.waiting = 9;
    let oldest = Duration::from_secs(64);
    archiver.backlog = Some(Backlog { segments: 1, segment_size: ByteCount(16 << 20), oldest });
    world.says(Check::Archive, "-", Status::Ok, "9 wait, the first one for 1m04s; 000000010000000000000004");
    let archiver = world.a().archiver.as_mut().unwrap();
    archiver.backlog = Some(Backlog { segments: 9, segment_size: ByteCount(16 << 20), oldest });
    let told = "WAL comes at 2 MiB a second, which would fill the 50 GiB that are free in 7h06m";
    world.says(Check::Archive, "-", Status::Ok, told);
    let archiver = world.a().archiver.as_mut().unwrap();
    archiver.last_failed = Some(("000000010000000000000005".to_owned(), ago(5)));
    world.says(Check::Archive, "-", Status::Critical, told);
}

#[test]
fn a_window_with_a_hole_is_critical_and_one_that_grows_a_warning() {
    let mut world = World::sound();
    world.finds(Check::Window, "-");
    world.restorable(3 * 86_400, None);
    world.says(Check::Window, "-", Status::Ok, "every second since 2026-05-29T12:00:00Z");
    world.cluster.backups.as_mut().unwrap().window = Some(Duration::from_secs(7 * 86_400));
    world.says(Check::Window, "-", Status::Warning, "7 d are declared: it grows");
    world.restorable(30 * 86_400, Some("000000010000000000000009"));
    let hole = "WAL is missing from 000000010000000000000009 on";
    world.says(Check::Window, "-", Status::Critical, hole);
    world.kept.as_mut().unwrap().windows.clear();
    world.says(Check::Window, "-", Status::Critical, "nothing can be restored");
}

#[test]
fn a_drill_that_did_not_pass_counts_although_one_before_it_did() {
    let drill = |days: i64, verdict| Drill {
        id: "0a1b2c3d".to_owned(),
        ended: ago(days * 86_400),
        verdict,
        rto_seconds: Some(336.0),
    };
    let mut world = World::sound();
    world.says(Check::Drill, "-", Status::Warning, "no drill has passed on this station yet");
    let passed = drill(3, Verdict::Passed);
    world.drills = Drills { last: Some(passed.clone()), passed: Some(passed.clone()) };
    world.says(Check::Drill, "-", Status::Ok, "passed 3 d ago, restored in 5m36s");
    world.drills.last = Some(drill(1, Verdict::Failed));
    world.says(Check::Drill, "-", Status::Critical, "did not pass");
    let old = drill(40, Verdict::Passed);
    world.drills = Drills { last: Some(old.clone()), passed: Some(old) };
    world.says(Check::Drill, "-", Status::Warning, "warning from");
}

#[test]
fn a_job_that_nobody_starts_any_more_is_told_and_one_that_failed_too() {
    let run = |hours: i64, exit: Option<u8>| Run {
        due: Some(ago(hours * 3600)),
        attempt: 1,
        begun: ago(hours * 3600),
        ended: exit.map(|_| ago(hours * 3600 - 60)),
        outcome: exit.map(|exit| if exit == 0 { Ended::Done } else { Ended::Failed }),
        exit,
        by: Actor::here(),
    };
    let job = |standing, last: Option<Run>, last_success: Option<Run>, failures| Listed {
        job: "inventory/full".to_owned(),
        does: "full backup",
        when: "daily 02:00".to_owned(),
        timeout_seconds: 86_400,
        next: now(),
        standing,
        running: None,
        last,
        last_success,
        failures,
    };
    let good = Some(run(7, Some(0)));
    for (listed, status, text) in [
        (
            job(Standing::Unseen, None, None, 0),
            Status::Warning,
            "nobody has asked on this station whether it is due",
        ),
        (job(Standing::New, None, None, 0), Status::Ok, "it has not been due yet"),
        (job(Standing::Met, good.clone(), good.clone(), 0), Status::Ok, "it ended well last 7h00m ago"),
        (
            job(Standing::Failed, Some(run(2, Some(1))), good.clone(), 1),
            Status::Warning,
            "its last run, 2h00m ago, ended with exit code 1; it ended well last 7h00m ago",
        ),
        (
            job(Standing::Overdue, Some(run(30, None)), None, 2),
            Status::Critical,
            "it is overdue (daily 02:00); its last run, 30h00m ago, was killed; it has not ended well yet",
        ),
    ] {
        let mut world = World::sound();
        world.jobs = vec![listed];
        let found: Vec<Finding> =
            world.judged().into_iter().filter(|finding| finding.check == Check::Jobs).collect();
        let [found] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((found.status, found.text.as_str()), (status, text));
        assert_eq!(found.subject, Subject::Part("full".to_owned()));
        assert_eq!(found.next.is_some(), status != Status::Ok);
    }
}

#[test]
fn the_disk_lasts_as_long_as_wal_comes_at_its_rate() {
    let mut world = World::sound();
    world.a().facts.wal = Ok(WalGenerated { bytes: ByteCount(10 << 30), since: ago(36_000), now: now() });
    let mut free = |gib: u64, status| {
        world.observed.nodes[0].disk = Some(Disk { total: ByteCount(100 << 30), free: ByteCount(gib << 30) });
        world.says(Check::Runway, "a", status, "1 GiB of WAL an hour");
    };
    free(50, Status::Ok);
    free(10, Status::Warning);
    free(3, Status::Critical);
    world.a().facts.wal = Ok(WalGenerated { bytes: ByteCount(10 << 30), since: ago(30), now: now() });
    world.says(Check::Runway, "a", Status::Ok, "not enough WAL was written yet");
}

#[test]
fn what_a_loss_would_cost_is_what_the_best_that_is_left_does_not_have() {
    let mut world = World::sound();
    world.may_lose("lose-primary", 5);
    assert_eq!(world.of_part(Check::Rpo, "lose-primary").text, "nothing would be lost (b would take over)");
    if let ServerRole::Standby { received_lsn, replayed_lsn, receiver, .. } = &mut world.running(1).facts.role
    {
        *received_lsn = Some(Lsn::new(END - 4096));
        *replayed_lsn = Some(Lsn::new(END - 4096));
        receiver.as_mut().unwrap().last_message_at = Some(ago(30));
    }
    let missed = world.of_part(Check::Rpo, "lose-primary");
    assert_eq!(missed.status, Status::Critical, "{missed:#?}");
    assert_eq!(missed.text, "30.0 s and 4 KiB would be lost (b would take over); 5.0 s may be");

    // Nobody knows where a repository stands, so that a region without a standby elsewhere is not known.
    world.may_lose("lose-region", 300);
    assert_eq!(world.of_part(Check::Rpo, "lose-region").status, Status::Unknown);

    world.may_lose("undo-mistake", 60);
    world.restorable(86_400, None);
    assert_eq!(world.of_part(Check::Rpo, "undo-mistake").status, Status::Ok);
    world.a().archiver.as_mut().unwrap().waiting = 3;
    assert_eq!(world.of_part(Check::Rpo, "undo-mistake").status, Status::Ok, "a minute is what may be");
    world.a().archiver.as_mut().unwrap().last_archived =
        Some(("000000010000000000000003".to_owned(), ago(90)));
    let stale = world.of_part(Check::Rpo, "undo-mistake");
    assert_eq!(stale.status, Status::Critical, "{stale:#?}");
}

#[test]
fn a_fenced_node_is_told_until_it_is_back_and_one_that_accepts_writes_is_critical() {
    let mut world = World::sound();
    world.says(Check::Fenced, "-", Status::Ok, "no node is fenced");
    let mark = claim::read(include_bytes!("../../../topology/testdata/fenced-1.json")).unwrap();
    world.observed.nodes[1].fence = Fence::Fenced(mark);
    world.says(Check::Fenced, "b", Status::Warning, "fenced since 2026-11-22T03:12:07Z by ada on station");
    world.says(Check::Failover, "-", Status::Critical, "nobody could take over: b: it is fenced");
    world.observed.nodes[0].fence = world.observed.nodes[1].fence.clone();
    world.observed.nodes[1].fence = Fence::Open;
    world.says(Check::Fenced, "a", Status::Critical, "it accepts writes although it is fenced since");
    world.observed.nodes[0].fence = Fence::Unknown { why: "its host is silent".to_owned() };
    world.says(Check::Fenced, "-", Status::Unknown, "not every node can be looked at");
}

#[test]
fn a_lock_that_is_held_long_or_left_behind_is_told_with_its_holder() {
    let mut world = World::sound();
    world.says(Check::Lock, "-", Status::Ok, "nobody holds it");
    let held = LockSeen {
        by: "ada on station (pid 7)".to_owned(),
        since: ago(60),
        operation: Some("7f3a".to_owned()),
        lives: true,
    };
    world.lock = Ok(Some(held.clone()));
    world.says(Check::Lock, "-", Status::Ok, "ada on station (pid 7) holds it since");
    world.lock = Ok(Some(LockSeen { since: ago(7 * 3600), ..held.clone() }));
    world.says(Check::Lock, "-", Status::Warning, "operation 7f3a");
    world.lock = Ok(Some(LockSeen { lives: false, ..held }));
    let found = world.says(Check::Lock, "-", Status::Warning, "left operation 7f3a in it");
    assert_eq!(found.next.as_deref(), Some("pgherd operation takeover 7f3a"));
    world.lock = Err(Why::Failed("it is damaged".to_owned()));
    world.says(Check::Lock, "-", Status::Unknown, "it is damaged");
}

#[test]
fn who_could_take_over_is_told_with_what_stands_in_the_way() {
    let mut world = World::sound();
    world.says(Check::Failover, "-", Status::Ok, "b could take over");
    world.running(0).facts.data_checksums = false;
    world.says(Check::Failover, "-", Status::Warning, "pg_rewind needs wal_log_hints or checksums");
    if let ServerRole::Standby { replay_paused, .. } = &mut world.running(1).facts.role {
        *replay_paused = true;
    }
    world.says(Check::Failover, "-", Status::Critical, "nobody could take over: b: its replay is paused");
}
