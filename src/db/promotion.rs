//! A server that becomes a primary, and whether what it then has can be read.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};

/// How long one database's catalogs may take.
const CATALOGS: Duration = Duration::from_secs(600);
/// How long a checkpoint may take.
const CHECKPOINT: Duration = Duration::from_secs(1800);

/// Asks a server in recovery to end it, and waits for up to `limit`; tells whether it has. Also one that is paused at its target
/// ends (`recoveryPausesHere` in `xlogrecovery.c`).
///
/// # Errors
/// [`DbError`].
pub async fn promote(conn: &Conn, limit: Duration) -> Result<bool, DbError> {
    const WHAT: &str = "promote";
    conn.set_deadline(limit + Duration::from_secs(5)).await?;
    let seconds = i32::try_from(limit.as_secs()).unwrap_or(i32::MAX);
    let sql = "SELECT pg_promote(true, $1) AS promoted";
    let row = conn.query_one(WHAT, sql, &[(&seconds, Type::INT4)]).await?;
    conn.field(WHAT, &row, "promoted")
}

/// Has the server write a checkpoint and waits for it.
///
/// # Errors
/// [`DbError`].
pub async fn checkpoint(conn: &Conn) -> Result<(), DbError> {
    conn.set_deadline(CHECKPOINT).await?;
    conn.batch("checkpoint", "CHECKPOINT").await
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
