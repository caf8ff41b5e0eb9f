//! Where WAL stands, who keeps it, and whether it is replayed.

use jiff::Timestamp;

use super::{count, one, rows};
use crate::db::connect::{Conn, DbError};
use crate::pg::lsn::Lsn;

/// What a standby can have at most is what the primary has flushed: `walsender` sends nothing else.
pub const POSITION: &str = "
SELECT CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS lsn
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r";

/// Reads the LSN up to which a standby has replayed, or a primary flushed; `None` on a standby that has replayed nothing since its start.
///
/// # Errors
/// [`DbError`].
pub async fn position(conn: &Conn) -> Result<Option<Lsn>, DbError> {
    one(conn, "read its LSN", POSITION, |f| f.at("lsn")).await
}

/// How far behind a walsender knows its standby to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Sender {
    pub application_name: String,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// NULL on an idle primary, and before the standby's first answer.
    pub replay_lag_seconds: Option<f64>,
}

pub const SENDERS: &str = "
SELECT coalesce(r.application_name, '') AS application_name, coalesce(r.state, '') AS state,
       extract(epoch FROM r.replay_lag)::float8 AS replay_lag
  FROM pg_stat_replication r";

/// Lists how far behind each standby is, as the walsenders know it.
///
/// # Errors
/// [`DbError`].
pub async fn senders(conn: &Conn) -> Result<Vec<Sender>, DbError> {
    rows(conn, "read pg_stat_replication", SENDERS, |f| {
        Ok(Sender {
            application_name: f.at("application_name")?,
            state: f.at("state")?,
            replay_lag_seconds: f.at("replay_lag")?,
        })
    })
    .await
}

/// How a standby replays.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    pub pause: Pause,
    /// `recovery_min_apply_delay`: it is behind on purpose.
    pub delay_seconds: f64,
    /// By the server's clock, since the commit of the last transaction that was replayed.
    pub last_replayed_seconds: Option<f64>,
    /// Since the last message of the sender; `None` without a WAL receiver.
    pub silent_seconds: Option<f64>,
    /// Since the sender told for the first time of the newest WAL that we know of.
    pub known_seconds: Option<f64>,
    /// The end of that WAL.
    pub known_lsn: Option<Lsn>,
    /// Queries that recovery has cancelled, in all databases.
    pub conflicts: u64,
}

/// `pg_get_wal_replay_pause_state`, 14 and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    Not,
    Requested,
    Paused,
}

pub const REPLAY: &str = "
SELECT CASE WHEN r.in_recovery THEN pg_get_wal_replay_pause_state() END AS pause,
       extract(epoch FROM current_setting('recovery_min_apply_delay')::interval)::float8 AS delay,
       extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS last_replayed,
       extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time)::float8 AS silent,
       extract(epoch FROM clock_timestamp() - w.latest_end_time)::float8 AS known,
       w.latest_end_lsn AS known_lsn,
       (SELECT sum(c.confl_tablespace + c.confl_lock + c.confl_snapshot + c.confl_bufferpin + c.confl_deadlock
                   + coalesce((to_jsonb(c) ->> 'confl_active_logicalslot')::int8, 0))::int8
          FROM pg_stat_database_conflicts c) AS conflicts
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
  LEFT JOIN pg_stat_wal_receiver w ON true";

/// Asks a standby how it replays; `None` for a primary.
///
/// # Errors
/// [`DbError`].
pub async fn replay(conn: &Conn) -> Result<Option<Replay>, DbError> {
    one(conn, "ask how it replays", REPLAY, |f| {
        let pause = match f.at::<Option<String>>("pause")?.as_deref() {
            None => return Ok(None),
            Some("paused") => Pause::Paused,
            Some("pause requested") => Pause::Requested,
            Some(_) => Pause::Not,
        };
        Ok(Some(Replay {
            pause,
            delay_seconds: f.at("delay")?,
            last_replayed_seconds: f.at("last_replayed")?,
            silent_seconds: f.at("silent")?,
            known_seconds: f.at("known")?,
            known_lsn: f.at("known_lsn")?,
            conflicts: count(f, "conflicts")?,
        }))
    })
    .await
}

/// A replication slot, with why it does or does not keep WAL.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotSeen {
    pub name: String,
    pub logical: bool,
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` if it keeps no WAL.
    pub wal_status: Option<String>,
    /// What may still be written before it can be lost; `None` without `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
    /// `max_slot_wal_keep_size` in bytes; below zero for no limit.
    pub keep_size: i64,
    /// NULL if it keeps no WAL, also since it has lost it.
    pub retained: Option<u64>,
    /// 17 and later.
    pub invalidation: Option<String>,
    /// A logical one, 16 and later: it stood in the way of recovery.
    pub conflicting: bool,
    /// 17 and later.
    pub inactive_since: Option<Timestamp>,
    /// A copy of the primary's, 17 and later: nobody uses it before a failover.
    pub synced: bool,
}

pub const SLOTS: &str = "
SELECT s.slot_name::text AS name, s.slot_type = 'logical' AS logical, s.active, s.wal_status, s.safe_wal_size,
       pg_size_bytes(current_setting('max_slot_wal_keep_size')) AS keep_size,
       pg_wal_lsn_diff(CASE WHEN r.in_recovery THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                            ELSE pg_current_wal_lsn() END, s.restart_lsn)::int8 AS retained,
       to_jsonb(s) ->> 'invalidation_reason' AS invalidation,
       coalesce((to_jsonb(s) ->> 'conflicting')::boolean, false) AS conflicting,
       (to_jsonb(s) ->> 'inactive_since')::timestamptz AS inactive_since,
       coalesce((to_jsonb(s) ->> 'synced')::boolean, false) AS synced
  FROM pg_replication_slots s, (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
 WHERE NOT s.temporary
 ORDER BY s.slot_name";

/// Lists the permanent slots.
///
/// # Errors
/// [`DbError`].
pub async fn slots(conn: &Conn) -> Result<Vec<SlotSeen>, DbError> {
    rows(conn, "read pg_replication_slots", SLOTS, |f| {
        let retained: Option<i64> = f.at("retained")?;
        Ok(SlotSeen {
            name: f.at("name")?,
            logical: f.at("logical")?,
            active: f.at("active")?,
            wal_status: f.at("wal_status")?,
            safe_wal_size: f.at("safe_wal_size")?,
            keep_size: f.at("keep_size")?,
            // Below zero on a standby whose slot was just copied ahead of its replay.
            retained: retained.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            invalidation: f.at("invalidation")?,
            conflicting: f.at("conflicting")?,
            inactive_since: f.at("inactive_since")?,
            synced: f.at("synced")?,
        })
    })
    .await
}

/// The directory `pg_wal`, and what it should hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directory {
    pub size: u64,
    pub max_wal_size: u64,
    pub wal_keep_size: u64,
}

pub const DIRECTORY: &str = "
SELECT (SELECT coalesce(sum(w.size), 0)::int8 FROM pg_ls_waldir() w) AS size,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal_size,
       pg_size_bytes(current_setting('wal_keep_size')) AS wal_keep_size";

/// Measures the directory `pg_wal`.
///
/// # Errors
/// [`DbError`].
pub async fn directory(conn: &Conn) -> Result<Directory, DbError> {
    one(conn, "measure pg_wal", DIRECTORY, |f| {
        Ok(Directory {
            size: count(f, "size")?,
            max_wal_size: count(f, "max_wal_size")?,
            wal_keep_size: count(f, "wal_keep_size")?,
        })
    })
    .await
}

/// An enabled logical subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub name: String,
    pub database: String,
    /// Whether its apply worker runs.
    pub running: bool,
    /// Since its counters were reset; `None` before 15.
    pub errors: Option<u64>,
}

/// The workers of tables that are copied, and those that apply in parallel, come and go.
pub const SUBSCRIPTIONS: &str = "
SELECT s.subname::text AS name, d.datname::text AS database, NULL::int8 AS errors,
       EXISTS (SELECT FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NULL AND t.pid IS NOT NULL) AS running
  FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
 WHERE s.subenabled ORDER BY s.subname";

pub const SUBSCRIPTIONS_15: &str = "
SELECT s.subname::text AS name, d.datname::text AS database, e.apply_error_count + e.sync_error_count AS errors,
       EXISTS (SELECT FROM pg_stat_subscription t WHERE t.subid = s.oid AND t.relid IS NULL AND t.pid IS NOT NULL) AS running
  FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
  LEFT JOIN pg_stat_subscription_stats e ON e.subid = s.oid
 WHERE s.subenabled ORDER BY s.subname";

/// Lists the enabled subscriptions of all databases.
///
/// # Errors
/// [`DbError`].
pub async fn subscriptions(conn: &Conn, major: u32) -> Result<Vec<Subscription>, DbError> {
    let sql = if major >= 15 { SUBSCRIPTIONS_15 } else { SUBSCRIPTIONS };
    rows(conn, "read pg_stat_subscription", sql, |f| {
        let errors: Option<i64> = f.at("errors")?;
        Ok(Subscription {
            name: f.at("name")?,
            database: f.at("database")?,
            running: f.at("running")?,
            errors: errors.map(i64::unsigned_abs),
        })
    })
    .await
}
