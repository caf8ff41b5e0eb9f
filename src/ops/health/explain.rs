//! What each check asks, and of whom; what it takes to be answered; what to do when it fires. `pgherd health explain` prints it.
//!
//! Holds no words of its own about thresholds: those are in `topology::checks` and in the file.

use serde::Serialize;

use crate::db::{health as ask, partition, queries};
use crate::topology::checks::Check;

/// One check, for those who want to know what it does before they believe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// A fragment: "how far each standby is behind the primary".
    pub title: &'static str,
    pub asks: Vec<Ask>,
    pub needs: Needs,
    /// What its numbers do not say; whole sentences.
    pub remark: Option<&'static str>,
    /// What to do when it fires; whole sentences.
    pub act: &'static str,
    /// Where PostgreSQL or PgBouncer documents what is asked.
    pub source: &'static str,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// A statement, exactly as it is sent.
    Sql { of: &'static str, sql: &'static str },
    /// Anything else; a fragment: "the file system of the data directory (statvfs)".
    Look { of: &'static str, what: &'static str },
}

/// What the role that asks must be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// No more than to connect, or no server at all.
    Nothing,
    /// Membership of `pg_monitor`.
    Monitor,
    /// Besides that, the privilege to read the sequences, whose values are shown to nobody else.
    Sequences,
    /// Besides that, the privilege to read the views of the configuration files.
    Configuration,
}

impl Needs {
    /// Returns the statement that gives it to `role`, if it takes any.
    pub fn grant(self, role: &str) -> Option<String> {
        let role = crate::pg::ident::quote_identifier(role);
        match self {
            Self::Nothing => None,
            Self::Monitor => Some(format!("GRANT pg_monitor TO {role}")),
            Self::Sequences => Some(ask::databases::SEQUENCES_GRANT.replace("{role}", &role)),
            Self::Configuration => Some(ask::configuration::BAD_LINES_GRANT.replace("{role}", &role)),
        }
    }
}

/// Every node that answers.
const EACH: &str = "each node that answers";
const THE_PRIMARY: &str = "the primary";
const THE_PRIMARY_15: &str = "the primary, from PostgreSQL 15 on";
const EACH_STANDBY: &str = "each standby that answers";
const EACH_DATABASE: &str = "each declared database of the primary";
const THE_STATION: &str = "the machine that pgherd runs on";
const THE_REPOSITORY: &str = "the repository";
const EACH_POOLER: &str = "each pooler process";

/// Explains a check.
pub fn explained(check: Check) -> Explained {
    let facts = || Ask::Sql { of: EACH, sql: queries::SERVER_FACTS };
    match check {
        Check::Connect => Explained {
            title: "whether the server of each node answers",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "each node whose socket refuses",
                    what: "postmaster.pid, and whether its process works in the data directory",
                },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "Stopped is critical, starting up a warning; a server that says nothing in time is unknown, never down.",
            ),
            act: "\"pgherd status -v\" says why; \"pgherd plan\" shows what apply would start.",
            source: "https://www.postgresql.org/docs/current/server-start.html",
        },
        Check::Primary => Explained {
            title: "whether exactly one node accepts writes",
            asks: vec![
                facts(),
                Ask::Look { of: "each node that is stopped", what: "pg_control (pg_controldata)" },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "A node that does not answer may be a primary: then it is unknown who is, and not \"nobody\".",
            ),
            act: "Two primaries: keep clients away, decide which is right, and fence the other: \"pgherd fence NODE\". None: \"pgherd plan\".",
            source: "https://www.postgresql.org/docs/current/warm-standby-failover.html",
        },
        Check::SystemIdentifier => Explained {
            title: "whether each node still is of its cluster",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "each node",
                    what: "its marker: the system identifier that it was made with",
                },
            ],
            needs: Needs::Nothing,
            remark: None,
            act: "Somebody put another cluster into the data directory. Find out who before anything is started or removed.",
            source: "https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA",
        },
        Check::Standbys => Explained {
            title: "whether every declared standby streams",
            asks: vec![facts()],
            needs: Needs::Monitor,
            remark: None,
            act: "The standby's log says why its WAL receiver ends; \"pgherd plan\" shows what is not as declared.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-RECEIVER-VIEW",
        },
        Check::Lag => Explained {
            title: "how far each standby is behind the primary",
            asks: vec![
                facts(),
                Ask::Sql { of: EACH, sql: ask::wal::POSITION },
                Ask::Sql { of: EACH_STANDBY, sql: ask::wal::REPLAY },
                Ask::Sql { of: THE_PRIMARY, sql: ask::wal::SENDERS },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "Nothing is missing, no seconds: an idle primary makes no lag. A standby that receives nothing counts from its last sign \
                 of the primary. A standby that a commit waits for, or that clients read from, warns at 1.0 s and is critical at 5.0 s, \
                 unless the file says otherwise.",
            ),
            act: "Compare sent, flushed and replayed LSN in pg_stat_replication: the network, the disk, or a query that holds replay up.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-VIEW",
        },
        Check::Connections => Explained {
            title: "how many of the connections that clients can have are taken",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::VITALS }],
            needs: Needs::Monitor,
            remark: Some(
                "Walsenders and background workers do not count; connections that are reserved are no client's.",
            ),
            act: "See who holds them: SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC.",
            source: "https://www.postgresql.org/docs/current/runtime-config-connection.html",
        },
        Check::Disk => Explained {
            title: "how full the file system of each data directory is",
            asks: vec![Ask::Look {
                of: "the host of each node",
                what: "the file system of the data directory (statvfs)",
            }],
            needs: Needs::Nothing,
            remark: Some("As Use% of df: what is kept for root, or by a quota, is neither used nor free."),
            act: "Free space or grow the disk. Never remove files from pg_wal by hand.",
            source: "https://www.postgresql.org/docs/current/disk-full.html",
        },
        Check::Copies => Explained {
            title: "whether every repository of the cluster was given all WAL",
            asks: vec![Ask::Look {
                of: "each node",
                what: "what it has written down as owed to a repository",
            }],
            needs: Needs::Nothing,
            remark: Some(
                "A node writes down what a repository lacks that was away, before the server is told that the file is archived. What a node that is gone has written down is not seen.",
            ),
            act: "See why the repository was away. What it lacks is brought there by itself when it is back, or by pgherd backup copy.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::Archive => Explained {
            title: "whether WAL gets into the repository",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: queries::ARCHIVER },
                Ask::Sql { of: THE_PRIMARY, sql: ask::activity::VITALS },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "A failure that nothing was archived after is critical at once, whatever the number of files that wait.",
            ),
            act: "The server's log has the words of \"pgherd wal push\". Until it works again pg_wal grows.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ARCHIVER-VIEW",
        },
        Check::BackupAge => Explained {
            title: "how long ago the newest backup ended",
            asks: vec![Ask::Look { of: THE_REPOSITORY, what: "the manifests of the cluster's backups" }],
            needs: Needs::Nothing,
            remark: Some("Only a backup that is complete counts."),
            act: "\"pgherd backup list\" shows them, \"pgherd backup create\" makes one.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::BackupRunning => Explained {
            title: "how long the backup that is being made has taken, beside the last one",
            asks: vec![Ask::Look {
                of: THE_REPOSITORY,
                what: "the lease of whoever makes one, and the last manifest",
            }],
            needs: Needs::Nothing,
            remark: Some(
                "A last one that took less than 5 minutes counts as 5 minutes; the first one has nothing to be compared with.",
            ),
            act: "\"pgherd backup list\" shows who makes it and how far it is; it may wait for WAL that is not archived.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::Uptime => Explained {
            title: "how long the server has been up",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::VITALS }],
            needs: Needs::Monitor,
            remark: Some("It warns of nothing unless the file says so: a restart is what an operator does."),
            act: "Where nobody started it, the log and \"last reboot\" say who did.",
            source: "https://www.postgresql.org/docs/current/functions-info.html",
        },
        Check::Crash => Explained {
            title: "whether a process of the server crashed of late",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::VITALS }],
            needs: Needs::Monitor,
            remark: Some(
                "The postmaster survives a crash of its children; the checkpointer that is younger than it tells. It clears by itself.",
            ),
            act: "The log names the signal and the statement. Out of memory is in the log of the kernel.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW",
        },
        Check::Clock => Explained {
            title: "how far the clock of each server is from ours",
            asks: vec![Ask::Sql { of: EACH, sql: ask::ASKER }],
            needs: Needs::Nothing,
            remark: Some("Half of the round trip may be no difference at all, and does not count."),
            act: "Mend what keeps the time: every number of seconds that two servers are asked for is wrong by it.",
            source: "https://www.postgresql.org/docs/current/functions-datetime.html",
        },
        Check::IdleInTransaction => Explained {
            title: "who has been idle in a transaction for longest",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::LONGEST }],
            needs: Needs::Monitor,
            remark: Some("Counts since the session became idle, so that a busy transaction is not one."),
            act: "End the session, mend its program, or set idle_in_transaction_session_timeout.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW",
        },
        Check::LongQuery => Explained {
            title: "which query has run for longest",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::LONGEST }],
            needs: Needs::Monitor,
            remark: Some(
                "Left out are dumps, VACUUM and its kin, and the building of indexes: these take long by their nature.",
            ),
            act: "Look at its plan; pg_cancel_backend ends it.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW",
        },
        Check::LongTransaction => Explained {
            title: "which transaction has been open for longest",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::LONGEST }],
            needs: Needs::Monitor,
            remark: Some("Left out is what \"long-query\" leaves out."),
            act: "It holds its locks and keeps dead rows from being vacuumed; pg_terminate_backend ends it.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW",
        },
        Check::LockWait => Explained {
            title: "who has waited longest for a lock, and who is at the root of it",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::LOCK_WAIT }],
            needs: Needs::Monitor,
            remark: Some("The one at the root waits for nobody; to end others in between helps none."),
            act: "End the one at the root.",
            source: "https://www.postgresql.org/docs/current/view-pg-locks.html",
        },
        Check::LockTable => Explained {
            title: "how full the shared table of locks is",
            asks: vec![Ask::Sql { of: EACH, sql: ask::activity::VITALS }],
            needs: Needs::Monitor,
            remark: Some("Every partition that a query touches takes a lock of its own."),
            act: "Raise max_locks_per_transaction (a restart), or touch fewer tables in a transaction.",
            source: "https://www.postgresql.org/docs/current/runtime-config-locks.html",
        },
        Check::PreparedTransactions => Explained {
            title: "which prepared transaction is oldest",
            asks: vec![Ask::Sql { of: THE_PRIMARY, sql: ask::activity::PREPARED }],
            needs: Needs::Nothing,
            remark: Some("A standby shows none, whatever the primary has."),
            act: "Ask its coordinator what became of it; then COMMIT PREPARED or ROLLBACK PREPARED.",
            source: "https://www.postgresql.org/docs/current/view-pg-prepared-xacts.html",
        },
        Check::LagBytes => Explained {
            title: "how many bytes each standby is behind the primary",
            asks: vec![Ask::Sql { of: EACH, sql: ask::wal::POSITION }],
            needs: Needs::Monitor,
            remark: Some(
                "Standbys are asked first, the primary second, so that none is ahead of what it is compared with. A standby that is behind on purpose is fine.",
            ),
            act: "As for \"lag\".",
            source: "https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL",
        },
        Check::Receiver => Explained {
            title: "when each WAL receiver last heard of its sender",
            asks: vec![Ask::Sql { of: EACH_STANDBY, sql: ask::wal::REPLAY }],
            needs: Needs::Monitor,
            remark: Some(
                "A sender speaks every 30 s even where nothing is written. That there is no receiver at all is told by \"standbys\".",
            ),
            act: "See whether the network is cut in between.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-RECEIVER-VIEW",
        },
        Check::Replay => Explained {
            title: "whether replay is paused",
            asks: vec![Ask::Sql { of: EACH_STANDBY, sql: ask::wal::REPLAY }],
            needs: Needs::Monitor,
            remark: Some("A standby with recovery_min_apply_delay is not paused."),
            act: "SELECT pg_wal_replay_resume() on the standby.",
            source: "https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL",
        },
        Check::Conflicts => Explained {
            title: "how many queries a standby cancels in an hour",
            asks: vec![Ask::Sql { of: EACH_STANDBY, sql: ask::wal::REPLAY }],
            needs: Needs::Monitor,
            remark: Some(
                "Since the last look if that was five minutes ago or more, else on an average since the counters were reset.",
            ),
            act: "Raise max_standby_streaming_delay, set hot_standby_feedback, or query another node.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-CONFLICTS-VIEW",
        },
        Check::Slots => Explained {
            title: "whether a slot is lost, invalid, about to be, or left by its user",
            asks: vec![Ask::Sql { of: EACH, sql: ask::wal::SLOTS }],
            needs: Needs::Nothing,
            remark: Some(
                "Lost, invalid and unreserved are critical. Before 17 nothing tells since when nobody uses a slot, so that it warns at once. On a standby a slot that nobody uses is for when it is primary.",
            ),
            act: "Bring its user back, or drop the slot: until then it keeps WAL.",
            source: "https://www.postgresql.org/docs/current/view-pg-replication-slots.html",
        },
        Check::MissingSlots => Explained {
            title: "whether the primary has a slot for each declared standby",
            asks: vec![Ask::Sql { of: THE_PRIMARY, sql: ask::wal::SLOTS }],
            needs: Needs::Nothing,
            remark: Some("A standby that was taken over may have another slot, or none."),
            act: "\"pgherd plan\" shows what apply would make.",
            source: "https://www.postgresql.org/docs/current/view-pg-replication-slots.html",
        },
        Check::Subscriptions => Explained {
            title: "whether every enabled logical subscription runs without errors",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::wal::SUBSCRIPTIONS },
                Ask::Sql { of: THE_PRIMARY_15, sql: ask::wal::SUBSCRIPTIONS_15 },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "One whose worker does not run is critical. Errors count until they are reset: pg_stat_reset_subscription_stats.",
            ),
            act: "The log of the server says what its worker fails at.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-SUBSCRIPTION",
        },
        Check::WalSize => Explained {
            title: "how large pg_wal is, against max_wal_size and wal_keep_size",
            asks: vec![
                Ask::Sql { of: EACH, sql: ask::wal::DIRECTORY },
                Ask::Sql { of: EACH, sql: ask::wal::SLOTS },
                Ask::Sql { of: THE_PRIMARY, sql: queries::ARCHIVER },
            ],
            needs: Needs::Monitor,
            remark: Some("Names who keeps most of it: a slot, the archiver, or the next checkpoints."),
            act: "Mend who keeps it. Never remove files from pg_wal by hand.",
            source: "https://www.postgresql.org/docs/current/wal-configuration.html",
        },
        Check::XidAge => Explained {
            title: "how old the oldest transaction ID of a database is",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::databases::COUNTERS },
                Ask::Sql { of: THE_PRIMARY, sql: ask::activity::VITALS },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "Critical from vacuum_failsafe_age on at the latest. At 2^31 the server refuses to write.",
            ),
            act: "VACUUM (FREEZE) the oldest tables, once whoever holds the horizon is gone: \"xmin-horizon\".",
            source: "https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND",
        },
        Check::MultixactAge => Explained {
            title: "how old the oldest MultiXact ID of a database is",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::databases::COUNTERS },
                Ask::Sql { of: THE_PRIMARY, sql: ask::activity::VITALS },
            ],
            needs: Needs::Monitor,
            remark: Some("Rows that several transactions lock use them up, without any transaction ID."),
            act: "VACUUM (FREEZE) the oldest tables.",
            source: "https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-MULTIXACT-WRAPAROUND",
        },
        Check::Freeze => Explained {
            title: "whether autovacuum keeps up with freezing",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::databases::COUNTERS },
                Ask::Sql { of: THE_PRIMARY, sql: ask::activity::VITALS },
                Ask::Sql { of: EACH_DATABASE, sql: ask::databases::UNFROZEN },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "At 100 % autovacuum begins, which is routine. The limits of single tables count as well.",
            ),
            act: "See pg_stat_progress_vacuum and autovacuum_max_workers, and who holds the horizon.",
            source: "https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND",
        },
        Check::XminHorizon => Explained {
            title: "who keeps dead rows from being vacuumed",
            asks: vec![Ask::Sql { of: THE_PRIMARY, sql: ask::activity::HORIZON }],
            needs: Needs::Monitor,
            remark: Some("A session, a standby with hot_standby_feedback, a slot or a prepared transaction."),
            act: "End or drop what holds it.",
            source: "https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-SPACE-RECOVERY",
        },
        Check::DeadRows => Explained {
            title: "which table has the largest share of dead rows",
            asks: vec![Ask::Sql { of: EACH_DATABASE, sql: ask::databases::DEAD_ROWS }],
            needs: Needs::Nothing,
            remark: Some(
                "Of tables with 10 000 dead rows or more. It says nothing about space that is lost for good.",
            ),
            act: "VACUUM the table; then see why autovacuum did not.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ALL-TABLES-VIEW",
        },
        Check::Checksums => Explained {
            title: "whether a page was read that did not match its checksum",
            asks: vec![Ask::Sql { of: EACH, sql: ask::databases::COUNTERS }],
            needs: Needs::Nothing,
            remark: Some("Where data checksums are not enabled nothing is known, which is a warning."),
            act: "Find the file in the log, and restore it before it is overwritten.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW",
        },
        Check::InvalidIndexes => Explained {
            title: "which indexes are invalid",
            asks: vec![Ask::Sql { of: EACH_DATABASE, sql: ask::databases::INVALID_INDEXES }],
            needs: Needs::Monitor,
            remark: Some(
                "Not those of a table whose indexes are being built, and not those of partitioned tables, which wait for their partitions.",
            ),
            act: "Drop them, or REINDEX INDEX CONCURRENTLY.",
            source: "https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY",
        },
        Check::Sequences => Explained {
            title: "which sequence is nearest to its end",
            asks: vec![Ask::Sql { of: EACH_DATABASE, sql: ask::databases::SEQUENCES }],
            needs: Needs::Sequences,
            remark: Some(
                "Its end is where the column that it feeds ends, if that is sooner. One that cycles has none.",
            ),
            act: "Give the column the type bigint before it ends.",
            source: "https://www.postgresql.org/docs/current/view-pg-sequences.html",
        },
        Check::Partitions => Explained {
            title: "whether each partitioned table is as declared",
            asks: vec![
                Ask::Sql { of: EACH_DATABASE, sql: ask::partitions::SETS },
                Ask::Sql { of: EACH_DATABASE, sql: partition::MARKED },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "A table that cannot be maintained is critical, and so is what refuses rows. What a run has left is told when none works on it; what should be gone, after a week.",
            ),
            act: "\"pgherd partition plan\" shows what is to be done, \"pgherd partition apply\" does it and says what keeps it from that.",
            source: "https://www.postgresql.org/docs/current/ddl-partitioning.html",
        },
        Check::PartitionHorizon => Explained {
            title: "for how many periods to come each partitioned table has a partition",
            asks: vec![Ask::Sql { of: EACH_DATABASE, sql: ask::partitions::SETS }],
            needs: Needs::Nothing,
            remark: Some(
                "Fewer than declared under \"partitions\" are a warning, a present or next period without one is critical. What a new period lacks has a day to be made.",
            ),
            act: "\"pgherd partition apply\" makes them; see why its job has not: \"pgherd schedule list\".",
            source: "https://www.postgresql.org/docs/current/ddl-partitioning.html#DDL-PARTITIONING-DECLARATIVE-MAINTENANCE",
        },
        Check::DefaultPartition => Explained {
            title: "how many rows are in a default partition",
            asks: vec![Ask::Look {
                of: "each default partition of a declared table",
                what: "its rows, up to 100 000 of them (SELECT count(*) FROM (SELECT … LIMIT 100001))",
            }],
            needs: Needs::Nothing,
            remark: Some(
                "A row in it keeps the partition of its period from being attached. It takes SELECT on the default partition.",
            ),
            act: "\"pgherd partition drain TABLE --preview\" shows what is in it, without --preview it moves the rows to where they belong.",
            source: "https://www.postgresql.org/docs/current/sql-createtable.html#SQL-CREATETABLE-PARTITION",
        },
        Check::PendingDetach => Explained {
            title: "which partitions are half detached",
            asks: vec![Ask::Sql { of: EACH_DATABASE, sql: ask::partitions::SETS }],
            needs: Needs::Nothing,
            remark: Some(
                "DETACH PARTITION ... CONCURRENTLY was cut off; no other partition of that table can be detached concurrently until it is ended.",
            ),
            act: "\"pgherd partition apply\" ends it; by hand: ALTER TABLE ... DETACH PARTITION ... FINALIZE.",
            source: "https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-DETACH-PARTITION",
        },
        Check::PendingRestart => Explained {
            title: "which settings wait for a restart",
            asks: vec![Ask::Sql { of: EACH, sql: ask::configuration::PENDING_RESTART }],
            needs: Needs::Monitor,
            remark: None,
            act: "\"pgherd plan\" shows the restart.",
            source: "https://www.postgresql.org/docs/current/view-pg-settings.html",
        },
        Check::Configuration => Explained {
            title: "which lines of the configuration files cannot be applied",
            asks: vec![Ask::Sql { of: EACH, sql: ask::configuration::BAD_LINES }],
            needs: Needs::Configuration,
            remark: Some("What only waits for a restart is told by \"pending-restart\"."),
            act: "Mend the line: with it the server reads no change of that file, and may not start again.",
            source: "https://www.postgresql.org/docs/current/view-pg-hba-file-rules.html",
        },
        Check::CacheHit => Explained {
            title: "how many blocks are found in shared buffers",
            asks: vec![Ask::Sql { of: EACH, sql: ask::databases::COUNTERS }],
            needs: Needs::Nothing,
            remark: Some(
                "Since the last look if 100 000 blocks were read since, else since the counters were reset. Blocks in the cache of the system count as read.",
            ),
            act: "See which queries read most, or give shared_buffers more.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW",
        },
        Check::Rollbacks => Explained {
            title: "how many transactions are rolled back",
            asks: vec![Ask::Sql { of: EACH, sql: ask::databases::COUNTERS }],
            needs: Needs::Nothing,
            remark: Some(
                "Since the last look if there were 1000 transactions since, else since the counters were reset.",
            ),
            act: "The log of the server says what fails.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW",
        },
        Check::Deadlocks => Explained {
            title: "how many deadlocks there are in an hour",
            asks: vec![Ask::Sql { of: EACH, sql: ask::databases::COUNTERS }],
            needs: Needs::Nothing,
            remark: Some(
                "Since the last look if that was five minutes ago or more, else on an average since the counters were reset.",
            ),
            act: "The log of the server shows both sides of each.",
            source: "https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-DEADLOCKS",
        },
        Check::TempFiles => Explained {
            title: "how much is written to temporary files in an hour",
            asks: vec![Ask::Sql { of: EACH, sql: ask::databases::COUNTERS }],
            needs: Needs::Nothing,
            remark: Some("As for \"deadlocks\"."),
            act: "Set log_temp_files to see whose they are, or raise work_mem.",
            source: "https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-WORK-MEM",
        },
        Check::Growth => Explained {
            title: "how long the disks last if the databases grow on as they did",
            asks: vec![Ask::Sql { of: THE_PRIMARY, sql: ask::databases::SIZE }],
            needs: Needs::Monitor,
            remark: Some(
                "One size an hour is remembered on the station for two days; the oldest one is compared with, and the smallest free space of all nodes counts.",
            ),
            act: "See which tables grow, and whether partitions are dropped in time; or grow the disk.",
            source: "https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-DBSIZE",
        },
        Check::SlowQueries => Explained {
            title: "how long queries take on average",
            asks: vec![
                Ask::Sql { of: EACH_DATABASE, sql: ask::databases::STATEMENTS_SCHEMA },
                Ask::Sql { of: EACH_DATABASE, sql: ask::databases::STATEMENTS },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "Made where pg_stat_statements is installed in a declared database; since it was reset.",
            ),
            act: "The statement that is named took most of the time.",
            source: "https://www.postgresql.org/docs/current/pgstatstatements.html",
        },
        Check::Divergence => Explained {
            title: "whether a node has WAL that the primary never had",
            asks: vec![
                facts(),
                Ask::Look {
                    of: THE_PRIMARY,
                    what: "the history file of its timeline in pg_wal: where each timeline was left",
                },
                Ask::Look { of: "each other node", what: "pg_control (pg_controldata)" },
            ],
            needs: Needs::Nothing,
            remark: Some(
                "A node is past the point where the primary left its timeline: it can follow only after pg_rewind, or cloned anew. \
                 Numbers of timelines alone say nothing.",
            ),
            act: "Save what only that node has before it is made anew.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES",
        },
        Check::Settings => Explained {
            title: "whether each standby is as high as the primary in the five settings that must match",
            asks: vec![Ask::Sql { of: EACH, sql: ask::herd::FIVE }],
            needs: Needs::Nothing,
            remark: Some("A standby that is lower stops to replay, and does not start again."),
            act: "\"pgherd plan\" shows what is not as declared, and in which order it is put right.",
            source: "https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN",
        },
        Check::Version => Explained {
            title: "whether all nodes run the same version",
            asks: vec![facts()],
            needs: Needs::Nothing,
            remark: Some(
                "Another major version than declared is critical, several minor ones are a warning.",
            ),
            act: "Install the same packages on every host and restart, standbys first.",
            source: "https://www.postgresql.org/docs/current/warm-standby.html#STANDBY-PLANNING",
        },
        Check::Collation => Explained {
            title: "whether each host sorts as the databases were built",
            asks: vec![Ask::Sql { of: EACH, sql: ask::herd::COLLATIONS }],
            needs: Needs::Nothing,
            remark: Some("PostgreSQL 14 does not record it for databases, and C needs none."),
            act: "Another version of the library can sort otherwise, and an index finds rows no more: REINDEX, then ALTER DATABASE … REFRESH COLLATION VERSION.",
            source: "https://www.postgresql.org/docs/current/sql-alterdatabase.html",
        },
        Check::Failover => Explained {
            title: "whether somebody could take over now",
            asks: vec![facts(), Ask::Sql { of: THE_PRIMARY, sql: queries::REPLICATION }],
            needs: Needs::Monitor,
            remark: Some(
                "Standbys that stream and replay, are not \"by-hand\", a primary that could be rewound, and enough synchronous standbys \
                 after the loss of one. What only a trial shows, it does not.",
            ),
            act: "\"pgherd status\" shows which standby does not stream.",
            source: "https://www.postgresql.org/docs/current/warm-standby-failover.html",
        },
        Check::Rpo => Explained {
            title: "what each loss that an objective names would cost now",
            asks: vec![
                facts(),
                Ask::Sql { of: THE_PRIMARY, sql: queries::REPLICATION },
                Ask::Look { of: THE_REPOSITORY, what: "up to which commit WAL is archived without a gap" },
            ],
            needs: Needs::Monitor,
            remark: Some(
                "The threshold is the declared rpo. Of lose-region only standbys in another region count: where a repository stands is not declared.",
            ),
            act: "See which standby is behind, or why WAL does not get into the repository: \"pgherd status\".",
            source: "https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION",
        },
        Check::Window => Explained {
            title: "how far back every second can be restored",
            asks: vec![Ask::Look {
                of: THE_REPOSITORY,
                what: "the backups, and the archived WAL behind each without a gap",
            }],
            needs: Needs::Nothing,
            remark: Some(
                "WAL that is missing is critical; a window that has not grown to what is declared yet is a warning.",
            ),
            act: "A new backup begins a window without the gap: \"pgherd backup create\". \"pgherd wal list\" names what is missing.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html",
        },
        Check::Drill => Explained {
            title: "when a restore was rehearsed last, and how it ended",
            asks: vec![Ask::Look { of: THE_STATION, what: "the reports of its drills" }],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd drill list\" shows them, \"pgherd drill run restore\" rehearses.",
            source: "https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-PITR-RECOVERY",
        },
        Check::Jobs => Explained {
            title: "whether what has a schedule ran, and ended well",
            asks: vec![Ask::Look { of: THE_STATION, what: "the records of its runs, and who runs what now" }],
            needs: Needs::Nothing,
            remark: Some(
                "A job is overdue when no run ended well an hour and its timeout after its time; nobody has to start anything for that to be seen.",
            ),
            act: "\"pgherd schedule list\" shows them, \"pgherd run JOB\" runs one; if nothing runs at all, look whether cron or the timers do.",
            source: "https://www.postgresql.org/docs/current/maintenance.html",
        },
        Check::Runway => Explained {
            title: "how long until WAL fills the primary's disk, if nothing takes it away",
            asks: vec![
                Ask::Sql { of: EACH, sql: ask::herd::WAL },
                Ask::Look {
                    of: "the host of the primary",
                    what: "the file system of the data directory (statvfs)",
                },
            ],
            needs: Needs::Nothing,
            remark: Some("The rate is the mean since the server's statistics were reset."),
            act: "Free space, grow the disk, or bound what slots keep: max_slot_wal_keep_size.",
            source: "https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-WAL-VIEW",
        },
        Check::Expiry => Explained {
            title: "when certificates and passwords end",
            asks: vec![
                Ask::Sql { of: THE_PRIMARY, sql: ask::herd::LOGINS },
                Ask::Look {
                    of: "each server and pooler that runs",
                    what: "the certificate that it shows over the wire",
                },
            ],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd plan\" renews the herd's own certificates; a role is given a new password, or ALTER ROLE … VALID UNTIL.",
            source: "https://www.postgresql.org/docs/current/sql-createrole.html",
        },
        Check::Operations => Explained {
            title: "whether an operation was left unfinished",
            asks: vec![Ask::Look { of: THE_STATION, what: "the journals of its operations" }],
            needs: Needs::Nothing,
            remark: Some("It keeps its cluster locked, and something may be half done."),
            act: "\"pgherd operation show\" tells how far it is; resume it or undo it.",
            source: "https://www.postgresql.org/docs/current/high-availability.html",
        },
        Check::Fenced => Explained {
            title: "whether a node is kept from being a primary",
            asks: vec![Ask::Look { of: "each node", what: "its fence: fenced.json beside its marker" }],
            needs: Needs::Nothing,
            remark: Some(
                "One that accepts writes although it is fenced is critical: something started it behind pgherd's back.",
            ),
            act: "\"pgherd rejoin\" brings it back as a standby, \"pgherd unfence\" lets it be what it was.",
            source: "https://www.postgresql.org/docs/current/warm-standby-failover.html",
        },
        Check::Lock => Explained {
            title: "who holds the lock of the cluster in its repository, and since when",
            asks: vec![Ask::Look { of: THE_REPOSITORY, what: "the lock of the cluster" }],
            needs: Needs::Nothing,
            remark: Some(
                "Who is gone and left an operation in it keeps every other one away until that one is taken over.",
            ),
            act: "\"pgherd operation list --hosts\" shows it from here; \"pgherd operation takeover\" goes on with it.",
            source: "https://www.postgresql.org/docs/current/high-availability.html",
        },
        Check::Poolers => Explained {
            title: "whether every declared PgBouncer runs, answers, and reads the files that pgherd wrote",
            asks: vec![Ask::Look {
                of: EACH_POOLER,
                what: "its process, its files, and SHOW CONFIG on its console",
            }],
            needs: Needs::Nothing,
            remark: None,
            act: "\"pgherd pooler status\" shows what differs, \"pgherd pooler apply\" puts it right.",
            source: "https://www.pgbouncer.org/usage.html#admin-console",
        },
        Check::Routes => Explained {
            title: "whether every alias leads where it should: to the live primary, to live standbys",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW DATABASES and SHOW SERVERS on its console" }],
            needs: Needs::Nothing,
            remark: Some(
                "What it should be is decided by who is primary now, never by the file. A paused or disabled alias is told, too.",
            ),
            act: "\"pgherd pooler apply\" leads them to where they should.",
            source: "https://www.pgbouncer.org/usage.html#show-databases",
        },
        Check::PoolWait => Explained {
            title: "how long the first client in any queue has waited for a server connection",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW POOLS on its console: maxwait" }],
            needs: Needs::Nothing,
            remark: Some("While an alias is paused its clients wait on purpose, and do not count."),
            act: "Find what holds the server connections (long transactions), or give the pool more.",
            source: "https://www.pgbouncer.org/usage.html#show-pools",
        },
        Check::PoolClients => Explained {
            title: "how many of the clients that a PgBouncer takes are connected",
            asks: vec![Ask::Look { of: EACH_POOLER, what: "SHOW POOLS and max_client_conn" }],
            needs: Needs::Nothing,
            remark: None,
            act: "Raise max-clients, within the limit of open files, or find who keeps connections that it does not use.",
            source: "https://www.pgbouncer.org/config.html#max_client_conn",
        },
        Check::Budget => Explained {
            title: "whether the poolers fit into max_connections, today and after each failover",
            asks: vec![
                facts(),
                Ask::Look {
                    of: "the topology",
                    what: "sizes of all pools, for each node that could be promoted",
                },
            ],
            needs: Needs::Nothing,
            remark: Some("What is in effect on each server counts, not what the file says it should be."),
            act: "Make pools smaller or raise max_connections: a failover into a full server is an outage of its own.",
            source: "https://www.pgbouncer.org/config.html#max_db_connections",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_what_it_asks_and_what_to_do() {
        for check in Check::ALL {
            let Explained { title, asks, act, source, remark, .. } = explained(check);
            assert!(!title.is_empty() && !title.ends_with('.'), "{check:?}: {title}");
            assert!(!asks.is_empty(), "{check:?}");
            assert!(act.ends_with('.') && remark.is_none_or(|remark| remark.ends_with('.')), "{check:?}");
            assert!(source.starts_with("https://"), "{check:?}");
        }
    }
}
