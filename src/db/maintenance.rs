//! What keeps tables, indexes and materialized views fit: what is neglected, and the statements that mend it.
//!
//! Nothing here waits long for a lock: [`begin`] gives the session a short `lock_timeout`, so that a job that is in the way gives up.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Conn, DbError, PrimaryConn};
use crate::pg::ident::quote_identifier;
use crate::units::ByteCount;

/// A lock that is not had within this time is left to those who have it.
const LOCK: Duration = Duration::from_secs(5);

/// A table, an index or a view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    pub schema: String,
    pub name: String,
}

impl Relation {
    fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Prepares a session for maintenance, and returns its process: what one cancels.
///
/// # Errors
/// [`DbError`].
pub async fn begin(conn: &Conn) -> Result<i32, DbError> {
    const WHAT: &str = "begin maintenance";
    // A server that nobody listens to any more ends the statement by itself (PostgreSQL docs, "client_connection_check_interval", from 14 on).
    let sql = format!(
        "SET lock_timeout = {}; SET client_connection_check_interval = '5s'; SET application_name = 'pgherd maintenance'",
        LOCK.as_millis()
    );
    conn.batch(WHAT, &sql).await?;
    let row = conn.query_one(WHAT, "SELECT pg_backend_pid() AS pid", &[]).await?;
    conn.field(WHAT, &row, "pid")
}

/// Asks the server to end what another session does.
///
/// # Errors
/// [`DbError`].
pub async fn cancel(conn: &Conn, pid: i32) -> Result<(), DbError> {
    conn.query("cancel a statement", "SELECT pg_cancel_backend($1)", &[(&pid, Type::INT4)]).await?;
    Ok(())
}

/// A table that autovacuum has neglected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neglected {
    pub table: Relation,
    pub live: i64,
    pub dead: i64,
    /// Rows that have changed since it was analyzed.
    pub changed: i64,
    pub wants_vacuum: bool,
}

// Numeric, so that no count is too large to be multiplied.
const NEGLECTED: &str = "
SELECT s.schemaname::text AS schema, s.relname::text AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
       s.n_mod_since_analyze AS changed,
       s.n_dead_tup::numeric * 100 >= $1::int4::numeric * (s.n_live_tup + s.n_dead_tup) AND s.n_dead_tup > 0 AS wants_vacuum
  FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
 WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
   AND greatest(s.n_live_tup + s.n_dead_tup, s.n_mod_since_analyze) >= $3::int8
   AND (s.n_dead_tup::numeric * 100 >= $1::int4::numeric * (s.n_live_tup + s.n_dead_tup) AND s.n_dead_tup > 0
        OR s.n_mod_since_analyze::numeric * 100 >= $2::int4::numeric * greatest(s.n_live_tup, 1))
   AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum p WHERE p.relid = s.relid)
 ORDER BY s.n_dead_tup DESC, s.n_mod_since_analyze DESC, 1, 2";

/// Lists the tables of which a share of rows, in percent, is dead or has changed since it was analyzed, and that have so many rows, worst first.
///
/// # Errors
/// [`DbError`].
pub async fn neglected(conn: &Conn, dead: u32, changed: u32, rows: u32) -> Result<Vec<Neglected>, DbError> {
    const WHAT: &str = "look for neglected tables";
    let percent = |share: u32| i32::try_from(share).unwrap_or(100);
    let (dead, changed, rows) = (percent(dead), percent(changed), i64::from(rows));
    let rows = conn
        .query(WHAT, NEGLECTED, &[(&dead, Type::INT4), (&changed, Type::INT4), (&rows, Type::INT8)])
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Neglected {
                table: relation(conn, WHAT, row)?,
                live: conn.field(WHAT, row, "live")?,
                dead: conn.field(WHAT, row, "dead")?,
                changed: conn.field(WHAT, row, "changed")?,
                wants_vacuum: conn.field(WHAT, row, "wants_vacuum")?,
            })
        })
        .collect()
}

fn relation(conn: &Conn, what: &str, row: &tokio_postgres::Row) -> Result<Relation, DbError> {
    Ok(Relation { schema: conn.field(what, row, "schema")?, name: conn.field(what, row, "name")? })
}

/// Vacuums a table and analyzes it.
///
/// # Errors
/// [`DbError`]; 55P03 if somebody has a lock on it.
pub async fn vacuum(conn: &PrimaryConn, table: &Relation) -> Result<(), DbError> {
    conn.batch(&format!("vacuum {table}"), &format!("VACUUM (ANALYZE) {}", table.quoted())).await
}

/// Analyzes a table.
///
/// # Errors
/// As [`vacuum`].
pub async fn analyze(conn: &PrimaryConn, table: &Relation) -> Result<(), DbError> {
    conn.batch(&format!("analyze {table}"), &format!("ANALYZE {}", table.quoted())).await
}

/// An index that no query uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub index: Relation,
    pub table: Relation,
    /// It is what a REINDEX CONCURRENTLY that did not come to its end has left beside the index itself.
    pub left_over: bool,
}

// A REINDEX CONCURRENTLY that is cut off leaves its new index as NAME_ccnew, or the old one as NAME_ccold; to be dropped, and for the former the
// command may be tried again (PostgreSQL docs, "REINDEX", "Rebuilding Indexes Concurrently"). That name alone could be a user's own: the index that it
// stands beside must be there too, and of the same table.
const INVALID: &str = r"
SELECT n.nspname::text AS schema, i.relname::text AS name, tn.nspname::text AS table_schema, t.relname::text AS table_name,
       i.relname ~ '_cc(new|old)[0-9]*$'
       AND EXISTS (SELECT FROM pg_index y JOIN pg_class j ON j.oid = y.indexrelid
                    WHERE y.indrelid = x.indrelid AND y.indexrelid <> x.indexrelid AND y.indisvalid
                      AND starts_with(j.relname::text, regexp_replace(i.relname::text, '_cc(new|old)[0-9]*$', ''))) AS left_over
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_namespace n ON n.oid = i.relnamespace
  JOIN pg_class t ON t.oid = x.indrelid
  JOIN pg_namespace tn ON tn.oid = t.relnamespace
 WHERE NOT x.indisvalid AND i.relkind = 'i' AND t.relkind IN ('r', 'm', 't') AND i.relpersistence <> 't' AND tn.nspname NOT IN ('pg_catalog', 'information_schema')
   AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = x.indrelid)
 ORDER BY 1, 2";

/// Lists the indexes that are not valid and that nobody builds in this moment.
///
/// # Errors
/// [`DbError`].
pub async fn invalid_indexes(conn: &Conn) -> Result<Vec<Invalid>, DbError> {
    const WHAT: &str = "look for invalid indexes";
    let rows = conn.query(WHAT, INVALID, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Invalid {
                index: relation(conn, WHAT, row)?,
                table: Relation {
                    schema: conn.field(WHAT, row, "table_schema")?,
                    name: conn.field(WHAT, row, "table_name")?,
                },
                left_over: conn.field(WHAT, row, "left_over")?,
            })
        })
        .collect()
}

/// An index that takes more room than its entries need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bloated {
    pub index: Relation,
    pub size: ByteCount,
    /// The share that is wasted, in percent, as far as statistics tell.
    pub wasted: i32,
}

// What a B-tree needs: an entry is 8 bytes of header and its columns, rounded up to 8, and 4 bytes of line pointer; a leaf page has 24 bytes of header
// and 16 at its end, and is filled up to fillfactor, 90 by itself (PostgreSQL docs, "Database Page Layout", "CREATE INDEX"; src/include/access/itup.h,
// nbtree.h). Inner pages are added by a hundredth. The widths are those of ANALYZE; without them nothing is said. Equal entries are stored
// once, so that such an index needs less than this: it is taken for sound.
const BLOATED: &str = "
WITH sized AS (
  SELECT i.oid, n.nspname::text AS schema, i.relname::text AS name, pg_relation_size(i.oid) AS bytes, i.reltuples,
         current_setting('block_size')::int AS block,
         coalesce((SELECT split_part(o, '=', 2)::int FROM unnest(i.reloptions) o WHERE o LIKE 'fillfactor=%'), 90) AS fillfactor,
         (SELECT CASE WHEN count(st.stawidth) = x.indnatts THEN sum(st.stawidth * (1 - st.stanullfrac)) END
            FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k(att, n)
            LEFT JOIN pg_statistic st
              ON st.starelid = CASE WHEN k.att = 0 THEN x.indexrelid ELSE x.indrelid END
             AND st.staattnum = CASE WHEN k.att = 0 THEN k.n ELSE k.att END AND NOT st.stainherit) AS width
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_am a ON a.oid = i.relam
    JOIN pg_namespace n ON n.oid = i.relnamespace
   WHERE a.amname = 'btree' AND x.indisvalid AND i.relkind = 'i' AND i.relpersistence <> 't' AND i.reltuples >= 0
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
     AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = x.indrelid)
), needed AS (
  SELECT *, 1.01 * block * (1 + ceil(reltuples * (4 + 8 * ceil((8 + width) / 8.0)) / ((block - 40) * fillfactor / 100.0))) AS needs
    FROM sized WHERE width IS NOT NULL AND bytes >= $2::int8
)
SELECT schema, name, bytes, (100 * (1 - needs / bytes))::int4 AS wasted
  FROM needed WHERE 100 * (1 - needs / bytes) >= $1::int4
 ORDER BY bytes - needs DESC, 1, 2";

/// Lists the B-tree indexes of at least `at_least` of which this share, in percent, is wasted, most bytes first.
///
/// # Errors
/// [`DbError`].
pub async fn bloated_indexes(conn: &Conn, share: u32, at_least: ByteCount) -> Result<Vec<Bloated>, DbError> {
    const WHAT: &str = "look for bloated indexes";
    let share = i32::try_from(share).unwrap_or(100);
    let bytes = i64::try_from(at_least.0.max(1)).unwrap_or(i64::MAX);
    let rows = conn.query(WHAT, BLOATED, &[(&share, Type::INT4), (&bytes, Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            let bytes: i64 = conn.field(WHAT, row, "bytes")?;
            Ok(Bloated {
                index: relation(conn, WHAT, row)?,
                size: ByteCount(bytes.unsigned_abs()),
                wasted: conn.field(WHAT, row, "wasted")?,
            })
        })
        .collect()
}

/// Builds an index anew beside the old one, while its table is written.
///
/// # Errors
/// [`DbError`]; 55P03 if somebody has a lock on its table.
pub async fn reindex(conn: &PrimaryConn, index: &Relation) -> Result<(), DbError> {
    conn.batch(&format!("reindex {index}"), &format!("REINDEX INDEX CONCURRENTLY {}", index.quoted())).await
}

/// Drops an index that no query uses, while its table is written.
///
/// # Errors
/// As [`reindex`].
pub async fn drop_index(conn: &PrimaryConn, index: &Relation) -> Result<(), DbError> {
    let sql = format!("DROP INDEX CONCURRENTLY IF EXISTS {}", index.quoted());
    conn.batch(&format!("drop {index}"), &sql).await
}

/// Returns the size of a relation; `None` if there is none of that name.
///
/// # Errors
/// [`DbError`].
pub async fn size(conn: &Conn, relation: &Relation) -> Result<Option<ByteCount>, DbError> {
    const WHAT: &str = "measure a relation";
    let sql = "SELECT pg_relation_size(to_regclass($1)) AS bytes";
    let row = conn.query_one(WHAT, sql, &[(&relation.quoted(), Type::TEXT)]).await?;
    let bytes: Option<i64> = conn.field(WHAT, &row, "bytes")?;
    Ok(bytes.map(|bytes| ByteCount(bytes.unsigned_abs())))
}

/// A materialized view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewFacts {
    /// Whether it holds rows: only then can it be refreshed concurrently.
    pub is_populated: bool,
    /// Whether a unique index of plain columns covers all rows (PostgreSQL docs, "REFRESH MATERIALIZED VIEW").
    pub has_unique_index: bool,
}

/// Looks at a materialized view; `None` if there is none of that name.
///
/// # Errors
/// [`DbError`].
pub async fn view(conn: &Conn, view: &Relation) -> Result<Option<ViewFacts>, DbError> {
    const WHAT: &str = "look at a materialized view";
    const SQL: &str = "
SELECT c.relispopulated AS is_populated,
       EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indimmediate
                  AND x.indpred IS NULL AND x.indexprs IS NULL) AS has_unique_index
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'm' AND n.nspname = $1 AND c.relname = $2";
    let rows = conn.query(WHAT, SQL, &[(&view.schema, Type::TEXT), (&view.name, Type::TEXT)]).await?;
    rows.first()
        .map(|row| {
            Ok(ViewFacts {
                is_populated: conn.field(WHAT, row, "is_populated")?,
                has_unique_index: conn.field(WHAT, row, "has_unique_index")?,
            })
        })
        .transpose()
}

/// Fills a materialized view anew; `concurrently` lets it be read meanwhile.
///
/// # Errors
/// [`DbError`]; 55P03 if somebody has a lock on it.
pub async fn refresh(conn: &PrimaryConn, view: &Relation, way: Refreshing) -> Result<(), DbError> {
    let word = match way {
        Refreshing::Concurrently => "CONCURRENTLY ",
        Refreshing::Locked => "",
    };
    let sql = format!("REFRESH MATERIALIZED VIEW {word}{}", view.quoted());
    conn.batch(&format!("refresh {view}"), &sql).await
}

/// How a materialized view is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshing {
    /// While it is read.
    Concurrently,
    /// Readers wait until it is done.
    Locked,
}
