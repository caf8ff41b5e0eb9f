//! Who is connected, what they do, and who waits for whom.

use super::{count, one, rows};
use crate::db::connect::{Conn, DbError};
use jiff::Timestamp;

/// The server as a whole: connections, locks, processes, and the settings that these are judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Vitals {
    pub clients: u64,
    /// `max_connections` without those that are kept for superusers and, from 16 on, for pg_use_reserved_connections.
    pub usable: u64,
    pub now: Timestamp,
    /// When the postmaster started.
    pub started: Timestamp,
    /// When the checkpointer started: with the postmaster, or again after a process crashed, which the postmaster survives.
    pub checkpointer_started: Option<Timestamp>,
    /// Locks in the shared table.
    pub locks: u64,
    pub lock_slots: u64,
    pub archive_mode: String,
    /// Whether a command or a library is set that archives.
    pub archives: bool,
    pub freeze_max_age: u64,
    pub multixact_freeze_max_age: u64,
    pub failsafe_age: u64,
    pub multixact_failsafe_age: u64,
}

/// Backends that serve clients alone count: walsenders have slots of their own (`max_wal_senders`), workers too. Locks on the fast path
/// and those of serializable transactions have tables of their own.
pub const VITALS: &str = "
SELECT count(*) FILTER (WHERE a.backend_type = 'client backend') AS clients,
       current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
         - coalesce(current_setting('reserved_connections', true)::int8, 0) AS usable,
       clock_timestamp() AS now,
       pg_postmaster_start_time() AS started,
       min(a.backend_start) FILTER (WHERE a.backend_type = 'checkpointer') AS checkpointer_started,
       (SELECT count(*) FROM pg_locks l WHERE NOT l.fastpath AND l.mode <> 'SIReadLock') AS locks,
       current_setting('max_locks_per_transaction')::int8
         * (current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8) AS lock_slots,
       current_setting('archive_mode') AS archive_mode,
       coalesce(nullif(current_setting('archive_command'), '(disabled)'), '')
         || coalesce(current_setting('archive_library', true), '') <> '' AS archives,
       current_setting('autovacuum_freeze_max_age')::int8 AS freeze_max_age,
       current_setting('autovacuum_multixact_freeze_max_age')::int8 AS multixact_freeze_max_age,
       current_setting('vacuum_failsafe_age')::int8 AS failsafe_age,
       current_setting('vacuum_multixact_failsafe_age')::int8 AS multixact_failsafe_age
  FROM pg_stat_activity a";

/// Reads the vitals of a server.
///
/// # Errors
/// [`DbError`].
pub async fn vitals(conn: &Conn) -> Result<Vitals, DbError> {
    one(conn, "read its vitals", VITALS, |f| {
        Ok(Vitals {
            clients: count(f, "clients")?,
            usable: count(f, "usable")?,
            now: f.at("now")?,
            started: f.at("started")?,
            checkpointer_started: f.at("checkpointer_started")?,
            locks: count(f, "locks")?,
            lock_slots: count(f, "lock_slots")?,
            archive_mode: f.at("archive_mode")?,
            archives: f.at("archives")?,
            freeze_max_age: count(f, "freeze_max_age")?,
            multixact_freeze_max_age: count(f, "multixact_freeze_max_age")?,
            failsafe_age: count(f, "failsafe_age")?,
            multixact_failsafe_age: count(f, "multixact_failsafe_age")?,
        })
    })
    .await
}

/// Somebody who is connected.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub pid: i32,
    pub user: String,
    pub application: String,
    pub database: String,
    /// The beginning of its last query, in one line.
    pub query: String,
    pub seconds: f64,
}

/// The sessions that have been at it for longest, each of its kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Longest {
    /// Idle in a transaction, since it has become idle.
    pub idle: Option<Session>,
    /// A query that runs.
    pub query: Option<Session>,
    /// A transaction, since it has begun.
    pub transaction: Option<Session>,
}

/// The age of a transaction alone would call a busy one idle (`state_change` says since when it is). What takes long by its nature is left
/// out: dumps, VACUUM and its kin, and the building of indexes; so are walsenders and workers, and whoever asks.
pub const LONGEST: &str = r"
WITH client AS (
  SELECT a.pid, coalesce(a.usename, '')::text AS usename, coalesce(a.application_name, '') AS application, coalesce(a.datname, '')::text AS datname,
         left(btrim(regexp_replace(coalesce(a.query, ''), '\s+', ' ', 'g')), 60) AS query, a.state,
         a.application_name IN ('pgherd', 'pg_dump', 'pg_dumpall', 'pg_restore')
           OR a.query ~* '^\s*(vacuum|analyze|reindex|cluster|create\s+(unique\s+)?index|refresh\s+materialized)' AS spared,
         extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS idle,
         extract(epoch FROM clock_timestamp() - a.query_start)::float8 AS runs,
         extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS since
    FROM pg_stat_activity a
   WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid())
(SELECT 'idle' AS what, c.pid, c.usename, c.application, c.datname, c.query, c.idle AS seconds FROM client c
  WHERE c.state LIKE 'idle in transaction%' AND c.idle IS NOT NULL ORDER BY c.idle DESC LIMIT 1)
UNION ALL
(SELECT 'query', c.pid, c.usename, c.application, c.datname, c.query, c.runs FROM client c
  WHERE c.state = 'active' AND NOT c.spared AND c.runs IS NOT NULL ORDER BY c.runs DESC LIMIT 1)
UNION ALL
(SELECT 'transaction', c.pid, c.usename, c.application, c.datname, c.query, c.since FROM client c
  WHERE c.since IS NOT NULL AND NOT c.spared ORDER BY c.since DESC LIMIT 1)";

/// Finds the sessions that have been at it for longest.
///
/// # Errors
/// [`DbError`].
pub async fn longest(conn: &Conn) -> Result<Longest, DbError> {
    let found = rows(conn, "read pg_stat_activity", LONGEST, |f| {
        let session = Session {
            pid: f.at("pid")?,
            user: f.at("usename")?,
            application: f.at("application")?,
            database: f.at("datname")?,
            query: f.at("query")?,
            seconds: f.at("seconds")?,
        };
        Ok((f.at::<String>("what")?, session))
    })
    .await?;
    let mut longest = Longest::default();
    for (what, session) in found {
        match what.as_str() {
            "idle" => longest.idle = Some(session),
            "query" => longest.query = Some(session),
            _ => longest.transaction = Some(session),
        }
    }
    Ok(longest)
}

/// Who has waited longest for a lock, and who is at the root of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LockWait {
    /// How many wait.
    pub waiting: u64,
    pub pid: i32,
    pub user: String,
    pub seconds: f64,
    pub query: String,
    /// The one that waits for nobody; `None` if it is gone meanwhile.
    pub root: Option<Blocker>,
}

/// Who holds what others wait for.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocker {
    /// 0 for a prepared transaction.
    pub pid: i32,
    pub user: String,
    pub state: String,
    pub query: String,
}

/// `pg_blocking_pids` stops the lock manager for a moment, so it is asked for one chain alone, and only if somebody waits.
pub const LOCK_WAIT: &str = r"
WITH RECURSIVE waiting AS MATERIALIZED (
  SELECT l.pid, l.waitstart, count(*) OVER () AS waiting FROM pg_locks l
   WHERE NOT l.granted AND l.waitstart IS NOT NULL ORDER BY l.waitstart LIMIT 1),
chain(pid) AS (
  SELECT b.pid FROM waiting w, unnest(pg_blocking_pids(w.pid)) b(pid)
  UNION
  SELECT b.pid FROM chain c, unnest(pg_blocking_pids(c.pid)) b(pid)),
root AS (
  SELECT c.pid FROM chain c WHERE cardinality(pg_blocking_pids(c.pid)) = 0 LIMIT 1)
SELECT w.waiting, w.pid, coalesce(a.usename, '')::text AS usename, extract(epoch FROM clock_timestamp() - w.waitstart)::float8 AS seconds,
       left(btrim(regexp_replace(coalesce(a.query, ''), '\s+', ' ', 'g')), 60) AS query,
       r.pid AS root, coalesce(b.usename, '')::text AS root_usename, coalesce(b.state, '') AS root_state,
       left(btrim(regexp_replace(coalesce(b.query, ''), '\s+', ' ', 'g')), 60) AS root_query
  FROM waiting w
  LEFT JOIN pg_stat_activity a ON a.pid = w.pid
  LEFT JOIN root r ON true
  LEFT JOIN pg_stat_activity b ON b.pid = r.pid AND r.pid <> 0";

/// Finds who has waited longest for a lock; `None` if nobody waits.
///
/// # Errors
/// [`DbError`].
pub async fn lock_wait(conn: &Conn) -> Result<Option<LockWait>, DbError> {
    let mut found = rows(conn, "read pg_locks", LOCK_WAIT, |f| {
        let root = match f.at::<Option<i32>>("root")? {
            Some(pid) => Some(Blocker {
                pid,
                user: f.at("root_usename")?,
                state: f.at("root_state")?,
                query: f.at("root_query")?,
            }),
            None => None,
        };
        Ok(LockWait {
            waiting: count(f, "waiting")?,
            pid: f.at("pid")?,
            user: f.at("usename")?,
            seconds: f.at("seconds")?,
            query: f.at("query")?,
            root,
        })
    })
    .await?;
    Ok(found.pop())
}

/// The oldest prepared transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// How many there are.
    pub count: u64,
    pub name: String,
    pub database: String,
    pub owner: String,
    pub seconds: f64,
}

/// Always empty on a standby, whatever the primary has.
pub const PREPARED: &str = "
SELECT count(*) OVER () AS count, p.gid AS name, p.database::text AS database, p.owner::text AS owner,
       extract(epoch FROM clock_timestamp() - p.prepared)::float8 AS seconds
  FROM pg_prepared_xacts p ORDER BY p.prepared LIMIT 1";

/// Finds the oldest prepared transaction.
///
/// # Errors
/// [`DbError`].
pub async fn prepared(conn: &Conn) -> Result<Option<Prepared>, DbError> {
    let mut found = rows(conn, "read pg_prepared_xacts", PREPARED, |f| {
        Ok(Prepared {
            count: count(f, "count")?,
            name: f.at("name")?,
            database: f.at("database")?,
            owner: f.at("owner")?,
            seconds: f.at("seconds")?,
        })
    })
    .await?;
    Ok(found.pop())
}

/// Who keeps the oldest row versions from being vacuumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon {
    pub holder: Holder,
    /// A process, a slot or a prepared transaction, with what is known of it.
    pub name: String,
    /// In transactions.
    pub age: u64,
}

/// What kind of thing holds the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Session,
    /// A standby with `hot_standby_feedback` and without a slot.
    Standby,
    Slot,
    Prepared,
}

/// The oldest transaction that runs is also in everybody else's snapshot, so that of those who hold the same the one whose own transaction it
/// is comes first. A session that is idle in one has no snapshot, and holds it all the same.
pub const HORIZON: &str = "
SELECT h.what, h.name, h.age::int8 AS age FROM (
  SELECT 'prepared' AS what, p.gid AS name, age(p.transaction) AS age, 1 AS place, p.prepared AS since FROM pg_prepared_xacts p
  UNION ALL
  SELECT CASE WHEN a.backend_type = 'walsender' THEN 'standby' ELSE 'session' END,
         CASE WHEN a.backend_type = 'walsender' THEN a.application_name ELSE 'pid ' || a.pid || coalesce(' of ' || a.usename, '') END,
         age(x.xid), CASE WHEN a.backend_type = 'walsender' THEN 3 ELSE x.place END, a.xact_start
    FROM pg_stat_activity a, LATERAL (VALUES (a.backend_xid, 1), (a.backend_xmin, 4)) x(xid, place)
   WHERE x.xid IS NOT NULL AND a.pid <> pg_backend_pid()
  UNION ALL
  SELECT 'slot', s.slot_name, greatest(age(s.xmin), age(s.catalog_xmin)), 2, NULL FROM pg_replication_slots s
   WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL) h
 ORDER BY h.age DESC, h.place, h.since LIMIT 1";

/// Finds who holds the horizon; `None` if nobody does.
///
/// # Errors
/// [`DbError`].
pub async fn horizon(conn: &Conn) -> Result<Option<Horizon>, DbError> {
    let mut found = rows(conn, "find the xmin horizon", HORIZON, |f| {
        let holder = match f.at::<String>("what")?.as_str() {
            "standby" => Holder::Standby,
            "slot" => Holder::Slot,
            "prepared" => Holder::Prepared,
            _ => Holder::Session,
        };
        Ok(Horizon { holder, name: f.at("name")?, age: count(f, "age")? })
    })
    .await?;
    Ok(found.pop())
}
