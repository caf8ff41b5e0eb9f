//! A server that becomes a primary, and whether what it then has can be read.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;

/// How often is looked whether recovery has ended.
const LOOK: Duration = Duration::from_millis(10);
/// How long one database's catalogs may take.
const CATALOGS: Duration = Duration::from_secs(600);
/// How long a checkpoint may take.
const CHECKPOINT: Duration = Duration::from_secs(1800);

/// The name of a session that may ask for a promotion.
const ASKS: &str = "pgherd-promote";
/// SQLSTATE of what comes too late: object_not_in_prerequisite_state.
const TOO_LATE: &str = "55000";
/// How long a session of that name may take to end once it is told to.
const LETS_GO: Duration = Duration::from_secs(10);

/// Asks a server in recovery to end it, and waits for up to `limit`; tells whether it has. Also one that is paused at its target
/// ends (`recoveryPausesHere` in `xlogrecovery.c`).
///
/// # Errors
/// [`DbError`].
pub async fn promote(conn: &Conn, limit: Duration) -> Result<bool, DbError> {
    // By it `recovery` finds a session whose client is gone and that has still to read what it was sent.
    conn.batch("say who asks", &format!("SET application_name = '{ASKS}'")).await?;
    conn.set_deadline(limit + Duration::from_secs(5)).await?;
    // Its own wait looks every 100 ms (`pg_promote` in `xlogfuncs.c`), and clients wait as long.
    conn.query_one("promote", "SELECT pg_promote(false)", &[]).await?;
    ended(conn, limit).await
}

/// Waits for up to `limit` until a server has ended its recovery; tells whether it has.
///
/// # Errors
/// [`DbError`].
pub async fn ended(conn: &Conn, limit: Duration) -> Result<bool, DbError> {
    const WHAT: &str = "see whether its recovery has ended";
    let begun = Instant::now();
    loop {
        let row = conn.query_one(WHAT, "SELECT NOT pg_is_in_recovery() AS ended", &[]).await?;
        if conn.field(WHAT, &row, "ended")? {
            return Ok(true);
        }
        if begun.elapsed() >= limit {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

/// Whether a server recovers, and whether it will go on doing so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    Ended,
    /// Somebody has asked it to end it, and it will.
    Asked,
    /// Nobody has, and no session is left that could still read such a request of ours.
    Unasked,
}

/// Tells whether a server has been asked to end its recovery: `pg_is_in_recovery` says that it recovers for as long as the end takes, seconds
/// on a busy machine. Ends the sessions of those who asked and may not have been heard yet.
///
/// The request is a file until the startup process takes it (`CheckPromoteSignal` in `xlogrecovery.c`); from then on replay can be neither paused nor resumed
/// (`PromoteIsTriggered` in `pg_wal_replay_pause` and `pg_wal_replay_resume`).
///
/// # Errors
/// [`DbError`]; [`DbError::Unexpected`] when such a session does not end.
pub async fn recovery(conn: &Conn) -> Result<Recovery, DbError> {
    const WHAT: &str = "see whether its recovery is to end";
    // Of what is asked here what is not so changes nothing: who does not pause is resumed, who pauses is paused.
    const CHANGES_NOTHING: &str = "SELECT CASE pg_get_wal_replay_pause_state() WHEN 'not paused' THEN pg_wal_replay_resume()
                                                                               ELSE pg_wal_replay_pause() END";
    end_who_asks(conn).await?;
    // Between the removal of the file and what follows it the startup process can be caught once.
    for _ in 0..2 {
        let row = conn
            .query_one(
                WHAT,
                "SELECT pg_is_in_recovery() AS recovers, (pg_stat_file('promote', true)).size IS NOT NULL AS asked",
                &[],
            )
            .await?;
        if !conn.field::<bool>(WHAT, &row, "recovers")? {
            return Ok(Recovery::Ended);
        }
        if conn.field(WHAT, &row, "asked")? {
            return Ok(Recovery::Asked);
        }
        match conn.batch(WHAT, CHANGES_NOTHING).await {
            Ok(()) => {}
            Err(error) if error.is_state(TOO_LATE) => return Ok(Recovery::Asked),
            Err(error) => return Err(error),
        }
        sleep(LOOK).await;
    }
    Ok(Recovery::Unasked)
}

async fn end_who_asks(conn: &Conn) -> Result<(), DbError> {
    const WHAT: &str = "end who asks for a promotion";
    const OTHERS: &str = "FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()";
    let begun = Instant::now();
    loop {
        let left = conn
            .query(WHAT, &format!("SELECT pg_terminate_backend(pid) {OTHERS}"), &[(&ASKS, Type::TEXT)])
            .await?;
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() >= LETS_GO {
            return Err(conn.unexpected(WHAT, format!("{} sessions that do not end", left.len())));
        }
        sleep(LOOK).await;
    }
}

/// Has the server write a checkpoint and waits for it.
///
/// # Errors
/// [`DbError`].
pub async fn checkpoint(conn: &Conn) -> Result<(), DbError> {
    conn.set_deadline(CHECKPOINT).await?;
    conn.batch("checkpoint", "CHECKPOINT").await
}

/// Where the last checkpoint of a server begins, by its pg_control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    pub begins: Lsn,
    pub timeline: TimelineId,
}

/// Has a server write what it holds and returns where the checkpoint is that its pg_control then names: on a standby the last one of its
/// primary that it has replayed (PostgreSQL docs, "WAL Configuration": restartpoints).
///
/// # Errors
/// [`DbError`].
pub async fn last_checkpoint(conn: &Conn) -> Result<Checkpoint, DbError> {
    const WHAT: &str = "read its last checkpoint";
    checkpoint(conn).await?;
    let sql = "SELECT checkpoint_lsn, timeline_id FROM pg_control_checkpoint()";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let timeline: i32 = conn.field(WHAT, &row, "timeline_id")?;
    let timeline = TimelineId::new(timeline.cast_unsigned())
        .ok_or_else(|| conn.unexpected(WHAT, "timeline 0".to_owned()))?;
    Ok(Checkpoint { begins: conn.field(WHAT, &row, "checkpoint_lsn")?, timeline })
}

/// What could keep a server from ending when it is told to, or would not come along.
#[derive(Debug, Clone, PartialEq)]
pub struct Hindrances {
    /// Transactions older than asked for: process, user, database, application, seconds.
    pub long: Vec<(i32, String, String, String, f64)>,
    /// Names of prepared transactions.
    pub prepared: Vec<String>,
    /// Logical slots that a standby does not have by itself.
    pub logical: Vec<String>,
    /// Base backups that run: application names.
    pub backups: Vec<String>,
}

const LONG: &str = "
SELECT pid, coalesce(usename::text, '') AS usename, coalesce(datname::text, '') AS datname, application_name,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds
  FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
   AND xact_start < clock_timestamp() - make_interval(secs => $1)
 ORDER BY xact_start LIMIT 20";

/// Looks for what could keep a primary from ending; transactions count from an age of `long` on.
///
/// # Errors
/// [`DbError`].
pub async fn hindrances(conn: &Conn, long: Duration) -> Result<Hindrances, DbError> {
    const WHAT: &str = "look for what would hold it up";
    let seconds = long.as_secs_f64();
    let mut found =
        Hindrances { long: Vec::new(), prepared: Vec::new(), logical: Vec::new(), backups: Vec::new() };
    for row in conn.query(WHAT, LONG, &[(&seconds, Type::FLOAT8)]).await? {
        found.long.push((
            conn.field(WHAT, &row, "pid")?,
            conn.field(WHAT, &row, "usename")?,
            conn.field(WHAT, &row, "datname")?,
            conn.field(WHAT, &row, "application_name")?,
            conn.field(WHAT, &row, "seconds")?,
        ));
    }
    let names = async |sql: &str| -> Result<Vec<String>, DbError> {
        let rows = conn.query(WHAT, sql, &[]).await?;
        rows.iter().map(|row| conn.field(WHAT, row, "name")).collect()
    };
    found.prepared = names("SELECT gid AS name FROM pg_prepared_xacts ORDER BY prepared LIMIT 20").await?;
    found.logical = names(
        "SELECT slot_name::text AS name FROM pg_replication_slots
          WHERE slot_type = 'logical' AND NOT temporary ORDER BY 1",
    )
    .await?;
    found.backups =
        names("SELECT application_name AS name FROM pg_stat_replication WHERE state = 'backup' ORDER BY 1")
            .await?;
    Ok(found)
}

/// What a server that is to lead has room for, and what it could not do later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub senders: Share,
    pub slots: Share,
    /// Whether `pg_rewind` could take it back from a branch of its own: data checksums or `wal_log_hints`.
    pub can_be_rewound: bool,
    pub full_page_writes: bool,
}

/// So many of so many are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub used: i32,
    pub all: i32,
}

impl Share {
    /// Returns how many are left.
    pub fn free(self) -> usize {
        usize::try_from(self.all - self.used).unwrap_or(0)
    }
}

const ROOM: &str = "
SELECT (SELECT count(*) FROM pg_stat_replication)::int AS senders, current_setting('max_wal_senders')::int AS max_senders,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots, current_setting('max_replication_slots')::int AS max_slots,
       current_setting('data_checksums')::bool OR current_setting('wal_log_hints')::bool AS can_be_rewound,
       current_setting('full_page_writes')::bool AS full_page_writes";

/// Asks a server what it has room for.
///
/// # Errors
/// [`DbError`].
pub async fn room(conn: &Conn) -> Result<Room, DbError> {
    const WHAT: &str = "look for room";
    let row = conn.query_one(WHAT, ROOM, &[]).await?;
    Ok(Room {
        senders: Share {
            used: conn.field(WHAT, &row, "senders")?,
            all: conn.field(WHAT, &row, "max_senders")?,
        },
        slots: Share { used: conn.field(WHAT, &row, "slots")?, all: conn.field(WHAT, &row, "max_slots")? },
        can_be_rewound: conn.field(WHAT, &row, "can_be_rewound")?,
        full_page_writes: conn.field(WHAT, &row, "full_page_writes")?,
    })
}

/// Lists the databases that one can connect to.
///
/// # Errors
/// [`DbError`].
pub async fn databases(conn: &Conn) -> Result<Vec<String>, DbError> {
    const WHAT: &str = "list the databases";
    let sql = "SELECT datname::text AS name FROM pg_database WHERE datallowconn ORDER BY 1";
    let rows = conn.query(WHAT, sql, &[]).await?;
    rows.iter().map(|row| conn.field(WHAT, row, "name")).collect()
}

// As text, so that every column is looked at, also the ones that are stored apart. Large objects are no catalog but data.
const READ_CATALOGS: &str = "
SET enable_indexscan = off;
SET enable_indexonlyscan = off;
SET enable_bitmapscan = off;
DO $do$
DECLARE
  name name;
BEGIN
  FOR name IN SELECT relname FROM pg_class
               WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND relname <> 'pg_largeobject'
  LOOP
    EXECUTE format('SELECT count(length(t::text)) FROM pg_catalog.%I t', name);
  END LOOP;
END $do$";

/// Reads every system catalog of the session's database from its first to its last page, each with its checksum, and returns how many
/// there are.
///
/// # Errors
/// [`DbError`]; `Sql` with XX001 or XX002 for a page or a row that is damaged.
pub async fn read_catalogs(conn: &Conn) -> Result<u64, DbError> {
    const WHAT: &str = "read the system catalogs";
    conn.set_deadline(CATALOGS).await?;
    conn.batch(WHAT, READ_CATALOGS).await?;
    let sql = "SELECT count(*) AS count FROM pg_class
                WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND relname <> 'pg_largeobject'";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let count: i64 = conn.field(WHAT, &row, "count")?;
    Ok(count.unsigned_abs())
}

/// What a copy of a server needs: the WAL that it still has, and how large it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Names of what lies in pg_wal.
    pub wal: Vec<String>,
    /// All databases, in bytes.
    pub size: u64,
    /// Its WAL, in bytes.
    pub wal_size: u64,
    /// Whether there are tablespaces beside the two of every cluster.
    pub has_tablespaces: bool,
    pub max_wal_senders: u64,
    pub max_replication_slots: u64,
}

const SOURCE: &str = "
SELECT (SELECT coalesce(array_agg(name), '{}') FROM pg_ls_waldir()) AS wal,
       (SELECT coalesce(sum(size), 0)::int8 FROM pg_ls_waldir()) AS wal_size,
       (SELECT sum(pg_database_size(oid))::int8 FROM pg_database) AS size,
       (SELECT count(*) FROM pg_tablespace) > 2 AS has_tablespaces,
       current_setting('max_wal_senders')::int8 AS max_wal_senders,
       current_setting('max_replication_slots')::int8 AS max_replication_slots";

/// Asks a server for what a copy of it needs.
///
/// # Errors
/// [`DbError`].
pub async fn source(conn: &Conn) -> Result<Source, DbError> {
    const WHAT: &str = "measure what a copy needs";
    let row = conn.query_one(WHAT, SOURCE, &[]).await?;
    let number =
        |name: &str| conn.field::<i64>(WHAT, &row, name).map(|value| u64::try_from(value).unwrap_or(0));
    Ok(Source {
        wal: conn.field(WHAT, &row, "wal")?,
        size: number("size")?,
        wal_size: number("wal_size")?,
        has_tablespaces: conn.field(WHAT, &row, "has_tablespaces")?,
        max_wal_senders: number("max_wal_senders")?,
        max_replication_slots: number("max_replication_slots")?,
    })
}
