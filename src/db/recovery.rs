//! A server in recovery: how far it has replayed, whether it has stopped by itself, and what it waits for.
//!
//! SQL for PostgreSQL 14 to 19.

use jiff::Timestamp;
use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};
use crate::pg::lsn::Lsn;

/// What the startup process waits for where there is no more WAL.
pub const NO_MORE_WAL: &str = "RecoveryRetrieveRetryInterval";

/// Where a server in recovery is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub in_recovery: bool,
    /// The end of the last record that was replayed.
    pub replayed_lsn: Option<Lsn>,
    /// When the last transaction that was replayed ended, by the clock of the server that wrote it.
    pub last_transaction: Option<Timestamp>,
    /// Replay has stopped: at its target, or since a setting is too low to go on (`RecoveryRequiresIntParameter`).
    pub paused: bool,
    /// What the startup process waits for: [`NO_MORE_WAL`] where there is none.
    pub startup_waits: Option<String>,
    pub startup_pid: Option<u32>,
}

// A function that only a server in recovery has must not be called when it has just ended.
const RECOVERY: &str = "
SELECT r.in_recovery, pg_last_wal_replay_lsn() AS replayed_lsn, pg_last_xact_replay_timestamp() AS last_transaction,
       CASE WHEN r.in_recovery THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END AS paused,
       s.wait_event AS startup_waits, s.pid AS startup_pid
  FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r
  LEFT JOIN pg_stat_activity s ON s.backend_type = 'startup'";

/// Asks a server how far its recovery is.
///
/// # Errors
/// [`DbError`]; `Sql` with 55000 if its recovery ended in this very moment.
pub async fn recovery(conn: &Conn) -> Result<Recovery, DbError> {
    const WHAT: &str = "read how far recovery is";
    let row = conn.query_one(WHAT, RECOVERY, &[]).await?;
    Ok(Recovery {
        in_recovery: conn.field(WHAT, &row, "in_recovery")?,
        replayed_lsn: conn.field(WHAT, &row, "replayed_lsn")?,
        last_transaction: conn.field(WHAT, &row, "last_transaction")?,
        paused: conn.field(WHAT, &row, "paused")?,
        startup_waits: conn.field(WHAT, &row, "startup_waits")?,
        startup_pid: conn.field::<Option<i32>>(WHAT, &row, "startup_pid")?.map(i32::cast_unsigned),
    })
}

/// Returns the number that the next transaction gets, with its epoch.
///
/// # Errors
/// [`DbError`].
pub async fn next_transaction(conn: &Conn) -> Result<u64, DbError> {
    const WHAT: &str = "read the next transaction number";
    let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS next";
    let row = conn.query_one(WHAT, sql, &[]).await?;
    let text: String = conn.field(WHAT, &row, "next")?;
    text.parse().map_err(|_| conn.unexpected(WHAT, format!("transaction number {text:?}")))
}

/// Settings that a server in recovery needs to be at least as high as they were on the primary.
pub const AT_LEAST: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Returns the value of each of [`AT_LEAST`].
///
/// # Errors
/// [`DbError`].
pub async fn at_least(conn: &Conn) -> Result<[u32; 5], DbError> {
    const WHAT: &str = "read what recovery needs";
    let sql = "SELECT name, setting::int AS value FROM pg_settings WHERE name = ANY ($1)";
    let names: Vec<&str> = AT_LEAST.into();
    let rows = conn.query(WHAT, sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    let mut values = [0; 5];
    for row in &rows {
        let name: String = conn.field(WHAT, row, "name")?;
        let value: i32 = conn.field(WHAT, row, "value")?;
        if let Some(at) = AT_LEAST.iter().position(|known| *known == name) {
            values[at] = value.unsigned_abs();
        }
    }
    Ok(values)
}
