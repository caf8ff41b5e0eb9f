//! What only makes sense beside the other nodes' answers: the settings that a standby must match, the provider's collations, the rate
//! of WAL, and the logins that end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

use crate::db::connect::{Conn, DbError};
use crate::pg::guc::STANDBY_FIVE;
use crate::units::ByteCount;

pub const FIVE: &str = "
SELECT name, setting::bigint AS setting FROM pg_settings WHERE name = ANY ($1::text[]) ORDER BY name";

/// Reads the settings that must be at least as high on a standby as on its primary.
///
/// # Errors
/// [`DbError`].
pub async fn five(conn: &Conn) -> Result<Vec<(String, i64)>, DbError> {
    const WHAT: &str = "read pg_settings";
    let names: &[&str] = &STANDBY_FIVE;
    let rows = conn.query(WHAT, FIVE, &[(&names, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| Ok((conn.field(WHAT, row, "name")?, conn.field(WHAT, row, "setting")?))).collect()
}

/// How much WAL was generated since the counters were reset.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WalGenerated {
    pub bytes: ByteCount,
    pub since: Timestamp,
    pub now: Timestamp,
}

impl WalGenerated {
    /// Returns bytes a second; `None` of less than a minute, which says nothing about a day.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.now.duration_since(self.since).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is read to three digits")]
        let bytes = self.bytes.0 as f64;
        (seconds >= 60.0).then(|| bytes / seconds)
    }
}

/// `pg_stat_wal` came with 14.
pub const WAL: &str = "
SELECT wal_bytes::bigint AS bytes, coalesce(stats_reset, pg_postmaster_start_time()) AS since, clock_timestamp() AS now FROM pg_stat_wal";

/// Reads how much WAL was generated.
///
/// # Errors
/// [`DbError`].
pub async fn wal_generated(conn: &Conn) -> Result<WalGenerated, DbError> {
    const WHAT: &str = "read pg_stat_wal";
    let row = conn.query_one(WHAT, WAL, &[]).await?;
    let bytes: i64 = conn.field(WHAT, &row, "bytes")?;
    Ok(WalGenerated {
        bytes: ByteCount(bytes.max(0).cast_unsigned()),
        since: conn.field(WHAT, &row, "since")?,
        now: conn.field(WHAT, &row, "now")?,
    })
}

/// Roles that can log in until a moment.
pub const LOGINS: &str = "
SELECT rolname::text AS role, rolvaliduntil AS until FROM pg_roles
 WHERE rolcanlogin AND isfinite(rolvaliduntil) ORDER BY rolvaliduntil, rolname";

/// Lists the roles whose password ends, the first one first.
///
/// # Errors
/// [`DbError`].
pub async fn ending_logins(conn: &Conn) -> Result<Vec<(String, Timestamp)>, DbError> {
    const WHAT: &str = "read pg_roles";
    let rows = conn.query(WHAT, LOGINS, &[]).await?;
    rows.iter().map(|row| Ok((conn.field(WHAT, row, "role")?, conn.field(WHAT, row, "until")?))).collect()
}

/// A database whose collation version is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collation {
    pub database: String,
    /// What its indexes were built with.
    pub recorded: String,
    /// What the library of this host has; `None` if it does not tell.
    pub actual: Option<String>,
}

/// For 15 and newer; the collations of C and POSIX have no version.
pub const COLLATIONS: &str = "
SELECT datname::text AS database, datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
  FROM pg_database WHERE datallowconn AND datcollversion IS NOT NULL ORDER BY datname";

/// Compares the recorded version of each database's collation with that of the host.
///
/// # Errors
/// [`DbError`]; before 15 there is no such function.
pub async fn collations(conn: &Conn) -> Result<Vec<Collation>, DbError> {
    const WHAT: &str = "read pg_database";
    let rows = conn.query(WHAT, COLLATIONS, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Collation {
                database: conn.field(WHAT, row, "database")?,
                recorded: conn.field(WHAT, row, "recorded")?,
                actual: conn.field(WHAT, row, "actual")?,
            })
        })
        .collect()
}
