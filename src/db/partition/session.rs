//! A session that maintains partitions: it waits for no lock longer than a moment, holds its set against other operators, and says who is in the way.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::sql::Block;
use crate::db::connect::{Conn, DbError};
use crate::pg::ident::quote_literal;

/// The first half of the key of the advisory locks: "part" in ASCII. The second is the table's oid.
pub(in crate::db) const LOCK_CLASS: i32 = 0x7061_7274;

/// Somebody who is in the way.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Blocker {
    pub pid: i32,
    pub user: Option<String>,
    pub application: Option<String>,
    pub state: Option<String>,
    /// Since its transaction began.
    pub seconds: Option<f64>,
    /// Its last statement, shortened.
    pub query: Option<String>,
}

const BLOCKER: &str = "a.pid::int4 AS pid, a.usename::text AS user, a.application_name AS application, a.state AS state,
    extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.backend_start))::float8 AS seconds, left(a.query, 200) AS query";

fn blocker(conn: &Conn, what: &str, row: &tokio_postgres::Row) -> Result<Blocker, DbError> {
    Ok(Blocker {
        pid: conn.field(what, row, "pid")?,
        user: conn.field(what, row, "user")?,
        application: conn.field(what, row, "application")?,
        state: conn.field(what, row, "state")?,
        seconds: conn.field(what, row, "seconds")?,
        query: conn.field(what, row, "query")?,
    })
}

/// Prepares a session: UTC and ISO, so that bounds are read as they are written; no long wait for a lock; a name that others see.
///
/// # Errors
/// [`DbError`].
pub async fn prepare(conn: &Conn, lock_timeout: Duration, name: &str) -> Result<(), DbError> {
    conn.batch(
        "prepare the session",
        &format!(
            "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET lock_timeout = {}; \
             SET idle_in_transaction_session_timeout = '60s'; SET row_security = off; SET synchronize_seqscans = off; \
             SET extra_float_digits = 1; SET application_name = {}",
            lock_timeout.as_millis(),
            quote_literal(name)
        ),
    )
    .await
}

/// Returns the process that serves a session.
///
/// # Errors
/// [`DbError`].
pub async fn pid(conn: &Conn) -> Result<i32, DbError> {
    const WHAT: &str = "ask for the process";
    let row = conn.query_one(WHAT, "SELECT pg_backend_pid() AS pid", &[]).await?;
    conn.field(WHAT, &row, "pid")
}

/// Holds a set for this session until it ends; otherwise says who holds it.
///
/// # Errors
/// [`DbError`].
pub async fn hold(conn: &Conn, parent: u32) -> Result<Result<(), Option<Blocker>>, DbError> {
    const WHAT: &str = "hold the set";
    // A lock's key has two halves of int4; an oid that is greater is taken by its bits.
    let key = parent.cast_signed();
    let params =
        [(&LOCK_CLASS as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT4), (&key, Type::INT4)];
    let row = conn.query_one(WHAT, "SELECT pg_try_advisory_lock($1, $2) AS held", &params).await?;
    if conn.field(WHAT, &row, "held")? {
        return Ok(Ok(()));
    }
    let sql = format!(
        "SELECT {BLOCKER} FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
          WHERE l.locktype = 'advisory' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid = $1::int4::int8::oid AND l.objid = ($2::int4::int8 & 4294967295)::oid AND l.objsubid = 2"
    );
    let rows = conn.query(WHAT, &sql, &params).await?;
    Ok(Err(rows.first().map(|row| blocker(conn, WHAT, row)).transpose()?))
}

/// Gives a set that this session holds back.
///
/// # Errors
/// [`DbError`].
pub async fn let_go(conn: &Conn, parent: u32) -> Result<(), DbError> {
    let params = [
        (&LOCK_CLASS as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT4),
        (&parent.cast_signed(), Type::INT4),
    ];
    conn.query("let the set go", "SELECT pg_advisory_unlock($1, $2)", &params).await.map(|_| ())
}

/// Returns who a process waits for at this moment.
///
/// # Errors
/// [`DbError`].
pub async fn blockers(conn: &Conn, pid: i32) -> Result<Vec<Blocker>, DbError> {
    const WHAT: &str = "see who is in the way";
    let sql = format!(
        "SELECT {BLOCKER} FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1)) ORDER BY seconds DESC NULLS LAST"
    );
    let rows = conn.query(WHAT, &sql, &[(&pid, Type::INT4)]).await?;
    rows.iter().map(|row| blocker(conn, WHAT, row)).collect()
}

/// Sends one block; no lock of a transaction is waited for longer than `share`. After an error its transaction is ended.
///
/// # Errors
/// [`DbError`]; the block has then had no effect, but for a concurrent detach, which may be pending.
pub async fn send(conn: &Conn, what: &str, block: &Block, share: Duration) -> Result<(), DbError> {
    match block {
        Block::Transaction(statements) => {
            let text = format!(
                "BEGIN; SET LOCAL lock_timeout = {}; {}; COMMIT",
                share.as_millis(),
                statements.join("; ")
            );
            let sent = conn.batch(what, &text).await;
            if sent.is_err() {
                end(conn).await?;
            }
            sent
        }
        Block::Alone(statement) => conn.batch(what, statement).await,
        Block::Concurrent { first, again } => match conn.batch(what, first).await {
            Err(error) if error.is_state("55000") => conn.batch(what, again).await,
            sent => sent,
        },
    }
}

/// Begins a transaction that the caller ends with [`commit`] or [`end`].
///
/// # Errors
/// [`DbError`].
pub async fn begin(conn: &Conn) -> Result<(), DbError> {
    conn.batch("begin", "BEGIN").await
}

/// Commits.
///
/// # Errors
/// [`DbError`].
pub async fn commit(conn: &Conn) -> Result<(), DbError> {
    conn.batch("commit", "COMMIT").await
}

/// Ends a transaction without effect; where none is open it does nothing.
///
/// # Errors
/// [`DbError`], but not that the session is gone, which ends it as well.
pub async fn end(conn: &Conn) -> Result<(), DbError> {
    match conn.batch("roll back", "ROLLBACK").await {
        Err(DbError::NotSent { .. } | DbError::Lost { .. } | DbError::ShuttingDown { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Tells whether an error says that somebody else was in the way: the lock was not to be had in time, or there was a deadlock.
pub fn was_in_the_way(error: &DbError) -> bool {
    error.is_state("55P03") || error.is_state("40P01")
}
