//! What is asked of all databases at once, and what only a connection to each of them tells.

use jiff::Timestamp;

use super::{count, rows};
use crate::db::connect::{Conn, DbError};

/// A row of `pg_stat_database`, with the ages of `pg_database`.
#[derive(Debug, Clone, PartialEq)]
pub struct Counters {
    /// `None` for what belongs to no database: the shared catalogs.
    pub database: Option<String>,
    pub xid_age: u64,
    pub multixact_age: u64,
    pub commits: u64,
    pub rollbacks: u64,
    pub blocks_hit: u64,
    pub blocks_read: u64,
    pub temp_bytes: u64,
    pub deadlocks: u64,
    /// `None` where data checksums are not enabled.
    pub checksum_failures: Option<u64>,
    /// Since when is counted, where anything says so.
    pub since: Option<Timestamp>,
}

/// From 15 on a database's `stats_reset` is NULL until somebody resets it; the time of `pg_stat_bgwriter` is that of the last reset of all, as
/// after a crash.
pub const COUNTERS: &str = "
SELECT d.datname::text AS database, age(d.datfrozenxid)::int8 AS xid_age, mxid_age(d.datminmxid)::int8 AS multixact_age,
       s.xact_commit, s.xact_rollback, s.blks_hit, s.blks_read, s.temp_bytes, s.deadlocks, s.checksum_failures,
       coalesce(s.stats_reset, (SELECT b.stats_reset FROM pg_stat_bgwriter b)) AS since
  FROM pg_stat_database s LEFT JOIN pg_database d ON d.oid = s.datid
 WHERE d.oid IS NOT NULL OR s.datid = 0
 ORDER BY d.datname";

/// Lists the counters of all databases.
///
/// # Errors
/// [`DbError`].
pub async fn counters(conn: &Conn) -> Result<Vec<Counters>, DbError> {
    rows(conn, "read pg_stat_database", COUNTERS, |f| {
        Ok(Counters {
            database: f.at("database")?,
            xid_age: count(f, "xid_age")?,
            multixact_age: count(f, "multixact_age")?,
            commits: count(f, "xact_commit")?,
            rollbacks: count(f, "xact_rollback")?,
            blocks_hit: count(f, "blks_hit")?,
            blocks_read: count(f, "blks_read")?,
            temp_bytes: count(f, "temp_bytes")?,
            deadlocks: count(f, "deadlocks")?,
            checksum_failures: f.at::<Option<i64>>("checksum_failures")?.map(i64::unsigned_abs),
            since: f.at("since")?,
        })
    })
    .await
}

/// How large all databases are together, where the role may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// `None` for a role that may not connect to all of them.
    pub bytes: Option<u64>,
    pub role: String,
}

pub const SIZE: &str = "
SELECT current_user::text AS role,
       CASE WHEN pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
            THEN (SELECT sum(pg_database_size(d.oid))::int8 FROM pg_database d) END AS bytes";

/// Measures all databases; the server looks at every file of theirs.
///
/// # Errors
/// [`DbError`].
pub async fn size(conn: &Conn) -> Result<Size, DbError> {
    super::one(conn, "measure its databases", SIZE, |f| {
        let bytes: Option<i64> = f.at("bytes")?;
        Ok(Size { bytes: bytes.map(i64::unsigned_abs), role: f.at("role")? })
    })
    .await
}

/// A sequence, and how much of it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// With its schema.
    pub name: String,
    /// Percent of what it can give, or what the column that it feeds can hold.
    pub share: f64,
    /// The type of that column, if it ends before the sequence does.
    pub column: Option<String>,
}

/// The sequence of a database that is nearest to its end, and those whose value the role may not see.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sequences {
    pub nearest: Option<Sequence>,
    /// How many hide their value.
    pub hidden: u64,
}

/// What a role needs to read every sequence that is no superuser: pg_monitor is not enough.
pub const SEQUENCES_GRANT: &str = "GRANT pg_read_all_data TO {role}";

/// A column is fed by a sequence that it owns (serial, identity), or that its default names. One that cycles within its column never ends. What
/// was never used has no value, and what may not be seen has none either, which is why that is counted: pg_monitor is not enough for it.
pub const SEQUENCES: &str = "
WITH fed AS (
  SELECT d.objid AS sequence, d.refobjid AS relation, d.refobjsubid::int2 AS attribute FROM pg_depend d
   WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
  UNION
  SELECT d.refobjid, f.adrelid, f.adnum FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid
   WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass),
narrow AS (
  SELECT DISTINCT ON (fed.sequence) fed.sequence, t.typname::text AS type,
         CASE t.typname WHEN 'int2' THEN 32767::numeric WHEN 'int4' THEN 2147483647 ELSE 9223372036854775807 END AS top
    FROM fed JOIN pg_attribute a ON a.attrelid = fed.relation AND a.attnum = fed.attribute AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
   WHERE t.typname IN ('int2', 'int4', 'int8')
   ORDER BY fed.sequence, top),
used AS (
  SELECT n.nspname::text AS schema, c.relname::text AS name, q.seqincrement > 0 AS up, q.seqcycle,
         q.seqmin::numeric AS low, q.seqmax::numeric AS high,
         l.top, l.type, r.readable, CASE WHEN r.readable THEN pg_sequence_last_value(c.oid) END::numeric AS last
    FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN narrow l ON l.sequence = c.oid,
         LATERAL (SELECT has_sequence_privilege(c.oid, 'SELECT, USAGE') AS readable OFFSET 0) r
   WHERE c.relpersistence <> 't'),
shares AS (
  SELECT u.schema, u.name, u.readable,
         CASE WHEN u.up AND u.top < u.high OR NOT u.up AND -u.top - 1 > u.low THEN u.type END AS narrower,
         CASE WHEN u.last IS NULL THEN NULL
              WHEN u.up AND u.seqcycle AND u.high <= coalesce(u.top, u.high) THEN NULL
              WHEN NOT u.up AND u.seqcycle AND u.low >= -coalesce(u.top, -u.low) - 1 THEN NULL
              WHEN u.up THEN 100 * (u.last - u.low + 1) / (least(u.high, coalesce(u.top, u.high)) - u.low + 1)
              ELSE 100 * (u.high - u.last + 1) / (u.high - greatest(u.low, -coalesce(u.top, -u.low) - 1) + 1) END AS share
    FROM used u)
SELECT (SELECT count(*) FROM shares WHERE NOT readable) AS hidden,
       w.schema || '.' || w.name AS name, w.share::float8 AS share, w.narrower
  FROM (SELECT 1) one LEFT JOIN (SELECT * FROM shares WHERE share IS NOT NULL ORDER BY share DESC LIMIT 1) w ON true";

/// Finds the sequence of this database that is nearest to its end.
///
/// # Errors
/// [`DbError`].
pub async fn sequences(conn: &Conn) -> Result<Sequences, DbError> {
    super::one(conn, "read sequences", SEQUENCES, |f| {
        let nearest = match f.at::<Option<String>>("name")? {
            Some(name) => Some(Sequence { name, share: f.at("share")?, column: f.at("narrower")? }),
            None => None,
        };
        Ok(Sequences { nearest, hidden: count(f, "hidden")? })
    })
    .await
}

/// An index that is there and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidIndex {
    /// With its schema.
    pub name: String,
    pub table: String,
}

/// An index of a partitioned table is invalid until all partitions have theirs, and one that is being built until it is: a REINDEX CONCURRENTLY
/// has two of them, `_ccnew` and `_ccold`, so its whole table is left out.
pub const INVALID_INDEXES: &str = "
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, i.indrelid::regclass::text AS table
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT i.indisvalid AND c.relkind = 'i'
   AND i.indrelid NOT IN (SELECT p.relid FROM pg_stat_progress_create_index p WHERE p.datname = current_database() AND p.relid IS NOT NULL)
 ORDER BY 1 LIMIT 20";

/// Lists the invalid indexes of this database that nobody builds.
///
/// # Errors
/// [`DbError`].
pub async fn invalid_indexes(conn: &Conn) -> Result<Vec<InvalidIndex>, DbError> {
    rows(conn, "look for invalid indexes", INVALID_INDEXES, |f| {
        Ok(InvalidIndex { name: f.at("name")?, table: f.at("table")? })
    })
    .await
}

/// A table with the dead rows that it has.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadRows {
    /// With its schema.
    pub table: String,
    pub dead: u64,
    /// Percent of all its rows.
    pub share: f64,
    /// `None` if not since the counters were reset, as after a crash: that is no proof of neglect.
    pub vacuumed: Option<Timestamp>,
}

/// Fewer rows are nothing that anybody would vacuum for.
pub const DEAD_ROWS: &str = "
SELECT quote_ident(t.schemaname) || '.' || quote_ident(t.relname) AS table, t.n_dead_tup AS dead,
       (100.0 * t.n_dead_tup / (t.n_live_tup + t.n_dead_tup))::float8 AS share, greatest(t.last_vacuum, t.last_autovacuum) AS vacuumed
  FROM pg_stat_all_tables t
 WHERE t.n_dead_tup >= 10000
 ORDER BY share DESC LIMIT 1";

/// Finds the table of this database with the largest share of dead rows.
///
/// # Errors
/// [`DbError`].
pub async fn dead_rows(conn: &Conn) -> Result<Option<DeadRows>, DbError> {
    let mut found = rows(conn, "read pg_stat_all_tables", DEAD_ROWS, |f| {
        Ok(DeadRows {
            table: f.at("table")?,
            dead: count(f, "dead")?,
            share: f.at("share")?,
            vacuumed: f.at("vacuumed")?,
        })
    })
    .await?;
    Ok(found.pop())
}

/// The table whose rows have waited longest to be frozen, measured by its own limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfrozen {
    /// With its schema.
    pub table: String,
    /// Percent of `autovacuum_freeze_max_age`, or of the table's own, which can only be lower.
    pub share: f64,
    pub age: u64,
}

pub const UNFROZEN: &str = "
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS table, a.age, (100.0 * a.age / a.at)::float8 AS share
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
       LATERAL (SELECT age(c.relfrozenxid)::int8 AS age,
                       least(current_setting('autovacuum_freeze_max_age')::int8,
                             (SELECT o.option_value::int8 FROM pg_options_to_table(c.reloptions) o
                               WHERE o.option_name = 'autovacuum_freeze_max_age')) AS at) a
 WHERE c.relkind IN ('r', 'm', 't') AND c.relfrozenxid <> 0 AND c.relpersistence <> 't'
 ORDER BY share DESC LIMIT 1";

/// Finds the table of this database that waits longest to be frozen.
///
/// # Errors
/// [`DbError`].
pub async fn unfrozen(conn: &Conn) -> Result<Option<Unfrozen>, DbError> {
    let mut found = rows(conn, "read pg_class", UNFROZEN, |f| {
        Ok(Unfrozen { table: f.at("table")?, share: f.at("share")?, age: count(f, "age")? })
    })
    .await?;
    Ok(found.pop())
}

/// What pg_stat_statements has counted, on the whole server.
#[derive(Debug, Clone, PartialEq)]
pub struct Statements {
    pub calls: u64,
    pub seconds: f64,
    /// The statement that has taken most of it.
    pub slowest: Option<Statement>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Its beginning, in one line.
    pub query: String,
    pub calls: u64,
    pub mean_seconds: f64,
}

pub const STATEMENTS_SCHEMA: &str = "
SELECT quote_ident(n.nspname) AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'pg_stat_statements'";

/// `{schema}` is where the extension was installed.
pub const STATEMENTS: &str = r"
WITH s AS MATERIALIZED (SELECT query, calls, total_exec_time FROM {schema}.pg_stat_statements)
SELECT t.calls, t.seconds, w.query, w.calls AS of_calls, w.mean
  FROM (SELECT coalesce(sum(s.calls), 0)::int8 AS calls, coalesce(sum(s.total_exec_time), 0)::float8 / 1000 AS seconds FROM s) t
  LEFT JOIN (SELECT left(btrim(regexp_replace(coalesce(s.query, ''), '\s+', ' ', 'g')), 60) AS query, s.calls,
                    s.total_exec_time / greatest(s.calls, 1) / 1000 AS mean
               FROM s ORDER BY s.total_exec_time DESC LIMIT 1) w ON true";

/// Reads pg_stat_statements through this database; `None` where it is not installed.
///
/// # Errors
/// [`DbError`]; `Sql` with 55000 where its library is not loaded.
pub async fn statements(conn: &Conn) -> Result<Option<Statements>, DbError> {
    const WHAT: &str = "read pg_stat_statements";
    let schema = rows(conn, WHAT, STATEMENTS_SCHEMA, |f| f.at::<String>("schema")).await?.pop();
    let Some(schema) = schema else { return Ok(None) };
    super::one(conn, WHAT, &STATEMENTS.replace("{schema}", &schema), |f| {
        let slowest = match f.at::<Option<String>>("query")? {
            Some(query) => {
                Some(Statement { query, calls: count(f, "of_calls")?, mean_seconds: f.at("mean")? })
            }
            None => None,
        };
        Ok(Statements { calls: count(f, "calls")?, seconds: f.at("seconds")?, slowest })
    })
    .await
    .map(Some)
}
