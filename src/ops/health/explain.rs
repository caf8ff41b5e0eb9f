//! What each check asks, what it takes to be allowed to, and where the question comes from: what `health explain` prints.
//!
//! The SQL is the very text that is sent.

use serde::Serialize;

use crate::db::health::ASKER;
use crate::db::health::activity::{HORIZON, LOCK_WAIT, LONGEST, PREPARED, VITALS};
use crate::db::health::configuration::{BAD_LINES, BAD_LINES_GRANT, PENDING_RESTART};
use crate::db::health::databases::{
    COUNTERS, DEAD_ROWS, INVALID_INDEXES, SEQUENCES, STATEMENTS, STATEMENTS_SCHEMA, UNFROZEN,
};
use crate::db::health::wal::{DIRECTORY, POSITION, REPLAY, SENDERS, SLOTS, SUBSCRIPTIONS, SUBSCRIPTIONS_15};
use crate::db::queries::{ARCHIVER, REPLICATION, SERVER_FACTS};
use crate::topology::checks::Check;

/// What a check is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// What it finds out, as one sentence.
    pub title: &'static str,
    /// The SQL that is sent for it; none for what is no question to a server.
    pub asks: &'static [&'static str],
    /// What the role that asks needs beyond a login.
    pub needs: Needs,
    /// The view, function or file that answers, and the page of the manual that describes it.
    pub source: &'static str,
}

/// What the role that asks needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// What every role may see.
    Login,
    /// Membership in pg_monitor.
    Monitor,
    /// Besides pg_monitor, SELECT on the sequences: their values are shown to nobody else.
    Sequences,
    /// Besides pg_monitor, what [`Needs::grant`] says.
    ConfigurationFiles,
    /// The host: its disk, its processes or the repository.
    Host,
}

impl Needs {
    /// Returns what a superuser runs for it; `{role}` stands for the role that asks.
    pub const fn grant(self) -> Option<&'static str> {
        match self {
            Self::Login | Self::Host => None,
            Self::Monitor => Some("GRANT pg_monitor TO {role}"),
            Self::Sequences => Some("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"),
            Self::ConfigurationFiles => Some(BAD_LINES_GRANT),
        }
    }
}

/// Returns what a check is made of.
pub const fn explained(check: Check) -> Explained {
    let (title, asks, needs, source): (&str, &[&str], Needs, &str) = match check {
        Check::Connect => (
            "The server of each node answers.",
            &[SERVER_FACTS],
            Needs::Login,
            "a login over the Unix socket",
        ),
        Check::Primary => (
            "Exactly one node of the cluster accepts writes.",
            &[SERVER_FACTS],
            Needs::Login,
            "pg_is_in_recovery() of every node",
        ),
        Check::SystemIdentifier => (
            "Each node is of the cluster that it was made for.",
            &[SERVER_FACTS],
            Needs::Login,
            "pg_control_system(), pg_controldata and the marker of the node",
        ),
        Check::Standbys => {
            ("Each declared standby streams.", &[SERVER_FACTS], Needs::Monitor, "pg_stat_wal_receiver")
        }
        Check::Lag => (
            "No standby is far behind, in seconds.",
            &[POSITION, REPLAY, SENDERS, REPLICATION],
            Needs::Monitor,
            "pg_last_wal_replay_lsn(), pg_current_wal_flush_lsn(), pg_stat_wal_receiver, pg_stat_replication.replay_lag",
        ),
        Check::LagBytes => (
            "No standby is far behind, in bytes.",
            &[POSITION],
            Needs::Monitor,
            "pg_last_wal_replay_lsn(), pg_current_wal_flush_lsn()",
        ),
        Check::Connections => (
            "There is room for clients.",
            &[VITALS],
            Needs::Monitor,
            "pg_stat_activity, max_connections and what is reserved of it",
        ),
        Check::Disk => (
            "The file system of the data directory has room.",
            &[],
            Needs::Host,
            "statvfs of the data directory",
        ),
        Check::Archive => (
            "WAL gets into the archive.",
            &[ARCHIVER, VITALS],
            Needs::Monitor,
            "pg_stat_archiver, pg_ls_archive_statusdir()",
        ),
        Check::BackupAge => {
            ("The newest backup is young enough.", &[], Needs::Host, "the manifests of the repository")
        }
        Check::Uptime => (
            "How long the server has been up; no alarm unless a threshold is declared.",
            &[VITALS],
            Needs::Monitor,
            "pg_postmaster_start_time()",
        ),
        Check::Crash => (
            "No process of the server has crashed of late.",
            &[VITALS],
            Needs::Monitor,
            "pg_stat_activity.backend_start of the checkpointer",
        ),
        Check::Clock => (
            "The clock of the server agrees with ours.",
            &[ASKER],
            Needs::Login,
            "clock_timestamp(), less half of the round trip",
        ),
        Check::IdleInTransaction => (
            "Nobody sits idle in a transaction.",
            &[LONGEST],
            Needs::Monitor,
            "pg_stat_activity.state_change",
        ),
        Check::LongQuery => (
            "No query runs for too long; VACUUM, dumps and the building of indexes are left out.",
            &[LONGEST],
            Needs::Monitor,
            "pg_stat_activity.query_start",
        ),
        Check::LongTransaction => (
            "No transaction is open for too long; VACUUM, dumps and the building of indexes are left out.",
            &[LONGEST],
            Needs::Monitor,
            "pg_stat_activity.xact_start",
        ),
        Check::LockWait => (
            "Nobody waits long for a lock; names who is at the root.",
            &[LOCK_WAIT],
            Needs::Monitor,
            "pg_locks.waitstart, pg_blocking_pids()",
        ),
        Check::LockTable => (
            "The shared table of locks has room.",
            &[VITALS],
            Needs::Monitor,
            "pg_locks, max_locks_per_transaction",
        ),
        Check::PreparedTransactions => (
            "No prepared transaction was left behind.",
            &[PREPARED],
            Needs::Login,
            "pg_prepared_xacts of the primary",
        ),
        Check::Receiver => (
            "Each WAL receiver hears of its sender.",
            &[REPLAY],
            Needs::Monitor,
            "pg_stat_wal_receiver.last_msg_receipt_time",
        ),
        Check::Replay => (
            "No standby has its replay paused.",
            &[REPLAY],
            Needs::Monitor,
            "pg_get_wal_replay_pause_state()",
        ),
        Check::Conflicts => (
            "Standbys cancel few queries, as an average over an hour or more.",
            &[REPLAY],
            Needs::Monitor,
            "pg_stat_database_conflicts",
        ),
        Check::Slots => (
            "No slot is lost, invalid, about to be, or left behind by its user.",
            &[SLOTS],
            Needs::Login,
            "pg_replication_slots",
        ),
        Check::MissingSlots => (
            "The primary has a slot for each declared standby.",
            &[SLOTS],
            Needs::Login,
            "pg_replication_slots",
        ),
        Check::Subscriptions => (
            "Every enabled logical subscription runs without errors.",
            &[SUBSCRIPTIONS, SUBSCRIPTIONS_15],
            Needs::Monitor,
            "pg_stat_subscription, and pg_stat_subscription_stats from 15 on",
        ),
        Check::WalSize => (
            "pg_wal is about as large as max_wal_size lets it be; names who keeps more.",
            &[DIRECTORY, SLOTS, ARCHIVER],
            Needs::Monitor,
            "pg_ls_waldir()",
        ),
        Check::XidAge => (
            "No database has transaction IDs left unfrozen for too long.",
            &[COUNTERS, VITALS],
            Needs::Monitor,
            "pg_database.datfrozenxid, vacuum_failsafe_age",
        ),
        Check::MultixactAge => (
            "No database has MultiXact IDs left unfrozen for too long.",
            &[COUNTERS, VITALS],
            Needs::Monitor,
            "pg_database.datminmxid, vacuum_multixact_failsafe_age",
        ),
        Check::Freeze => (
            "Autovacuum keeps up with freezing.",
            &[COUNTERS, UNFROZEN, VITALS],
            Needs::Monitor,
            "pg_database, pg_class.relfrozenxid, autovacuum_freeze_max_age, also of single tables",
        ),
        Check::XminHorizon => (
            "Nobody keeps dead rows from being vacuumed; names who does.",
            &[HORIZON],
            Needs::Monitor,
            "pg_stat_activity.backend_xmin, pg_replication_slots, pg_prepared_xacts",
        ),
        Check::DeadRows => {
            ("No table is neglected by VACUUM.", &[DEAD_ROWS], Needs::Login, "pg_stat_all_tables")
        }
        Check::Checksums => (
            "No page was read that did not match its checksum.",
            &[COUNTERS],
            Needs::Login,
            "pg_stat_database.checksum_failures",
        ),
        Check::InvalidIndexes => (
            "No index is invalid, but for those that are being built.",
            &[INVALID_INDEXES],
            Needs::Monitor,
            "pg_index.indisvalid, pg_stat_progress_create_index",
        ),
        Check::Sequences => (
            "No sequence is near its end, or near that of the column that it feeds.",
            &[SEQUENCES],
            Needs::Sequences,
            "pg_sequence, pg_sequence_last_value(), pg_attribute",
        ),
        Check::PendingRestart => (
            "No setting waits for a restart.",
            &[PENDING_RESTART],
            Needs::Monitor,
            "pg_settings.pending_restart",
        ),
        Check::Configuration => (
            "Every line of postgresql.conf and pg_hba.conf can be applied.",
            &[BAD_LINES],
            Needs::ConfigurationFiles,
            "pg_file_settings, pg_hba_file_rules",
        ),
        Check::CacheHit => (
            "Most blocks are found in shared buffers.",
            &[COUNTERS],
            Needs::Login,
            "pg_stat_database.blks_hit, blks_read",
        ),
        Check::Rollbacks => {
            ("Few transactions are rolled back.", &[COUNTERS], Needs::Login, "pg_stat_database.xact_rollback")
        }
        Check::Deadlocks => (
            "There are few deadlocks, as an average over an hour or more.",
            &[COUNTERS],
            Needs::Login,
            "pg_stat_database.deadlocks",
        ),
        Check::TempFiles => (
            "Few bytes go to temporary files, as an average over an hour or more.",
            &[COUNTERS],
            Needs::Login,
            "pg_stat_database.temp_bytes",
        ),
        Check::SlowQueries => (
            "Queries take a short time on average, where pg_stat_statements is installed.",
            &[STATEMENTS_SCHEMA, STATEMENTS],
            Needs::Monitor,
            "pg_stat_statements",
        ),
    };
    Explained { title, asks, needs, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_what_it_asks_and_what_that_takes() {
        for check in Check::ALL {
            let Explained { title, asks, needs, source } = explained(check);
            assert!(title.ends_with('.') && !source.is_empty(), "{check:?}");
            assert_eq!(asks.is_empty(), needs == Needs::Host, "{check:?}");
            assert!(asks.iter().all(|sql| sql.contains("SELECT")), "{check:?}");
        }
    }
}
