//! What `health` asks a server: typed rows, and what a login may not see.
//!
//! SQL for PostgreSQL 14 to 19, for a role that is a member of pg_monitor and nothing more; what takes another grant says so at its constant.
//! A column that not every version has is read through `to_jsonb`, which has it or not. Times are measured on the server, by its own clock.

pub mod activity;
pub mod configuration;
pub mod databases;
pub mod partitions;
pub mod wal;

pub mod herd;

use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

use super::connect::{Conn, DbError};
use super::queries::Fields;

/// Who asks, and what that role may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    pub role: String,
    /// Whether it sees what other roles do and what is in the server's directories.
    pub monitor: bool,
    /// The server's clock when it answered.
    pub now: jiff::Timestamp,
}

pub const ASKER: &str = "
SELECT current_user::text AS role, pg_has_role(current_user, 'pg_monitor', 'USAGE') AS monitor, clock_timestamp() AS now";

/// Finds out who asks.
///
/// # Errors
/// [`DbError`].
pub async fn asker(conn: &Conn) -> Result<Asker, DbError> {
    const WHAT: &str = "read its own role";
    let row = conn.query_one(WHAT, ASKER, &[]).await?;
    let f = Fields { conn, what: WHAT, row: &row };
    Ok(Asker { role: f.at("role")?, monitor: f.at("monitor")?, now: f.at("now")? })
}

/// Asks for any number of rows.
async fn rows<T>(
    conn: &Conn,
    what: &'static str,
    sql: &str,
    read: impl Fn(&Fields<'_>) -> Result<T, DbError>,
) -> Result<Vec<T>, DbError> {
    let rows: Vec<Row> = conn.query(what, sql, &[]).await?;
    rows.iter().map(|row| read(&Fields { conn, what, row })).collect()
}

/// Asks for one row.
async fn one<T>(
    conn: &Conn,
    what: &'static str,
    sql: &str,
    read: impl Fn(&Fields<'_>) -> Result<T, DbError>,
) -> Result<T, DbError> {
    let row = conn.query_one(what, sql, &[]).await?;
    read(&Fields { conn, what, row: &row })
}

/// Reads a number that cannot be below zero; NULL is zero.
fn count(f: &Fields<'_>, column: &str) -> Result<u64, DbError> {
    Ok(u64::try_from(f.at::<Option<i64>>(column)?.unwrap_or_default()).unwrap_or(0))
}
