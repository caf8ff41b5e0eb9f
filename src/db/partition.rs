//! Partitioned tables: what the catalog says of one, and the rows of its default partition.
//!
//! Reads only; [`sql`] writes the statements that change something, and [`session`] sends them.

pub mod session;
pub mod sql;

use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};
use crate::pg::ident::quote_identifier;

/// A relation as it is found under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentRow {
    pub oid: u32,
    pub shape: Shape,
    pub is_partition: bool,
    pub owner: String,
    /// Whether the owner may make tables in the schema.
    pub owner_may_create: bool,
    /// Whether we may act as the owner.
    pub may_act_as_owner: bool,
    pub tablespace: Option<String>,
    pub access_method: Option<String>,
    /// `relreplident`: `d`, `n`, `f` or `i`.
    pub replica_identity: char,
    /// The extension that it belongs to.
    pub extension: Option<String>,
}

/// What kind of relation it is, and how it is partitioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// `relkind`: `p` is a partitioned table.
    pub kind: char,
    /// `partstrat`: `r`, `l` or `h`; `None` where it is not partitioned.
    pub strategy: Option<char>,
    /// How many columns and expressions it is partitioned by.
    pub keys: i32,
    /// The column, if it is partitioned by one and not by an expression.
    pub key: Option<KeyColumn>,
}

/// A column that a table is partitioned by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: String,
    /// `timestamp with time zone`.
    pub type_name: String,
}

/// A partition.
#[derive(Debug, Clone, PartialEq)]
pub struct PartitionRow {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`.
    pub kind: char,
    /// `FOR VALUES FROM (…) TO (…)` with UTC and ISO, or `DEFAULT`.
    pub bound: String,
    pub is_default: bool,
    /// A concurrent detach was begun and not ended.
    pub detach_pending: bool,
    pub comment: Option<String>,
    /// With indexes and TOAST.
    pub bytes: i64,
    /// What the statistics say; negative where they say nothing.
    pub rows: f64,
    /// `fillfactor=70`.
    pub options: Vec<String>,
}

/// A table that is no partition and whose comment begins as a mark of ours does.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkedRow {
    pub schema: String,
    pub name: String,
    pub kind: char,
    pub owner: String,
    pub comment: String,
    pub bytes: i64,
    /// Its CHECK constraints as PostgreSQL writes them.
    pub checks: Vec<String>,
}

/// A relation that has a name that a partition shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTaken {
    pub name: String,
    pub kind: char,
    /// The table that it is a partition of.
    pub partition_of: Option<String>,
    pub comment: Option<String>,
}

/// A foreign key to or from a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub from: String,
    pub from_oid: u32,
    pub to: String,
    pub to_oid: u32,
}

/// A set as pg_partman keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartmanRow {
    /// The schema of the extension.
    pub schema: String,
    pub interval: String,
    pub retention: Option<String>,
    /// Whether its partitions are partitioned in turn.
    pub has_sub_partitions: bool,
    /// The table that new partitions take their properties from.
    pub template: Option<String>,
}

/// What a session says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    pub in_recovery: bool,
    pub read_only: bool,
    /// `server_version_num`.
    pub version: u32,
    pub database: String,
}

fn letter(text: &str) -> char {
    text.chars().next().unwrap_or(' ')
}

fn oid(conn: &Conn, what: &str, number: i64) -> Result<u32, DbError> {
    u32::try_from(number).map_err(|_| conn.unexpected(what, format!("oid {number}")))
}

/// Asks a session what it is connected to.
///
/// # Errors
/// [`DbError`].
pub async fn session_facts(conn: &Conn) -> Result<SessionFacts, DbError> {
    const WHAT: &str = "ask whether it can be written to";
    const SQL: &str = "SELECT pg_is_in_recovery() AS in_recovery,
               current_setting('transaction_read_only')::bool AS read_only,
               current_setting('server_version_num')::int AS version, current_database()::text AS database";
    let row = conn.query_one(WHAT, SQL, &[]).await?;
    let version: i32 = conn.field(WHAT, &row, "version")?;
    Ok(SessionFacts {
        in_recovery: conn.field(WHAT, &row, "in_recovery")?,
        read_only: conn.field(WHAT, &row, "read_only")?,
        version: version.unsigned_abs(),
        database: conn.field(WHAT, &row, "database")?,
    })
}

const PARENT: &str = "
SELECT c.oid::int8 AS oid, c.relkind::text AS kind, c.relispartition, pg_get_userbyid(c.relowner)::text AS owner,
       has_schema_privilege(c.relowner, c.relnamespace, 'CREATE') AS owner_may_create,
       pg_has_role(c.relowner, 'MEMBER') AS may_act_as_owner,
       s.spcname::text AS tablespace, m.amname::text AS access_method, c.relreplident::text AS replica_identity,
       p.partstrat::text AS strategy, coalesce(p.partnatts, 0)::int4 AS keys, a.attname::text AS key,
       a.atttypid::regtype::text AS key_type,
       (SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
           AND d.deptype = 'e' LIMIT 1) AS extension
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
  LEFT JOIN pg_am m ON m.oid = c.relam
  LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0 AND p.partnatts = 1
 WHERE n.nspname = $1 AND c.relname = $2";

/// Looks for a relation by its exact name.
///
/// # Errors
/// [`DbError`].
pub async fn parent(conn: &Conn, schema: &str, name: &str) -> Result<Option<ParentRow>, DbError> {
    const WHAT: &str = "look at a partitioned table";
    let rows = conn.query(WHAT, PARENT, &[(&schema, Type::NAME), (&name, Type::NAME)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(ParentRow {
        oid: oid(conn, WHAT, conn.field(WHAT, row, "oid")?)?,
        shape: shape(conn, WHAT, row)?,
        is_partition: conn.field(WHAT, row, "relispartition")?,
        owner: conn.field(WHAT, row, "owner")?,
        owner_may_create: conn.field(WHAT, row, "owner_may_create")?,
        may_act_as_owner: conn.field(WHAT, row, "may_act_as_owner")?,
        tablespace: conn.field(WHAT, row, "tablespace")?,
        access_method: conn.field(WHAT, row, "access_method")?,
        replica_identity: letter(conn.field(WHAT, row, "replica_identity")?),
        extension: conn.field(WHAT, row, "extension")?,
    }))
}

/// Reads `kind`, `strategy`, `keys`, `key` and `key_type` of a row.
pub(super) fn shape(conn: &Conn, what: &str, row: &tokio_postgres::Row) -> Result<Shape, DbError> {
    let key: Option<String> = conn.field(what, row, "key")?;
    let key_type: Option<String> = conn.field(what, row, "key_type")?;
    Ok(Shape {
        kind: letter(conn.field(what, row, "kind")?),
        strategy: conn.field::<Option<&str>>(what, row, "strategy")?.map(letter),
        keys: conn.field(what, row, "keys")?,
        key: key.zip(key_type).map(|(name, type_name)| KeyColumn { name, type_name }),
    })
}

/// Returns relations whose names differ from a wanted one in nothing but case.
///
/// # Errors
/// [`DbError`].
pub async fn spelled_otherwise(conn: &Conn, schema: &str, name: &str) -> Result<Vec<String>, DbError> {
    const WHAT: &str = "look for a table under another spelling";
    const SQL: &str = "SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE lower(n.nspname) = lower($1) AND lower(c.relname) = lower($2) AND c.relkind IN ('r','p','v','f','m') ORDER BY 1";
    let rows = conn.query(WHAT, SQL, &[(&schema, Type::TEXT), (&name, Type::TEXT)]).await?;
    rows.iter().map(|row| conn.field(WHAT, row, "name")).collect()
}

/// Tells whether TimescaleDB has made a hypertable of it.
///
/// # Errors
/// [`DbError`].
pub async fn is_hypertable(conn: &Conn, schema: &str, name: &str) -> Result<bool, DbError> {
    const WHAT: &str = "look for a hypertable";
    let there = conn
        .query_one(WHAT, "SELECT to_regclass('_timescaledb_catalog.hypertable') IS NOT NULL AS there", &[])
        .await?;
    if !conn.field::<bool>(WHAT, &there, "there")? {
        return Ok(false);
    }
    const SQL: &str =
        "SELECT 1 AS one FROM _timescaledb_catalog.hypertable WHERE schema_name = $1 AND table_name = $2";
    Ok(!conn.query(WHAT, SQL, &[(&schema, Type::NAME), (&name, Type::NAME)]).await?.is_empty())
}

const PARTITIONS: &str = "
SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       coalesce(pg_get_expr(c.relpartbound, c.oid), '') AS bound, c.oid = p.partdefid AS is_default,
       i.inhdetachpending AS detach_pending, obj_description(c.oid, 'pg_class') AS comment,
       coalesce(CASE WHEN c.relkind = 'r' THEN pg_total_relation_size(c.oid) END, 0)::int8 AS bytes,
       c.reltuples::float8 AS rows, coalesce(c.reloptions, '{}') AS options
  FROM pg_inherits i
  JOIN pg_class c ON c.oid = i.inhrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_partitioned_table p ON p.partrelid = i.inhparent
 WHERE i.inhparent = $1::int8::oid
 ORDER BY n.nspname, c.relname";

/// Lists the partitions of a table, the default one and those whose detach is pending among them.
///
/// # Errors
/// [`DbError`].
pub async fn partitions(conn: &Conn, parent: u32) -> Result<Vec<PartitionRow>, DbError> {
    const WHAT: &str = "list partitions";
    let rows = conn.query(WHAT, PARTITIONS, &[(&i64::from(parent), Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            Ok(PartitionRow {
                oid: oid(conn, WHAT, conn.field(WHAT, row, "oid")?)?,
                schema: conn.field(WHAT, row, "schema")?,
                name: conn.field(WHAT, row, "name")?,
                kind: letter(conn.field(WHAT, row, "kind")?),
                bound: conn.field(WHAT, row, "bound")?,
                is_default: conn.field(WHAT, row, "is_default")?,
                detach_pending: conn.field(WHAT, row, "detach_pending")?,
                comment: conn.field(WHAT, row, "comment")?,
                bytes: conn.field(WHAT, row, "bytes")?,
                rows: conn.field(WHAT, row, "rows")?,
                options: conn.field(WHAT, row, "options")?,
            })
        })
        .collect()
}

pub const MARKED: &str = "
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       pg_get_userbyid(c.relowner)::text AS owner, d.description AS comment,
       coalesce(pg_total_relation_size(c.oid), 0)::int8 AS bytes,
       array(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c' ORDER BY k.conname) AS checks
  FROM pg_description d
  JOIN pg_class c ON c.oid = d.objoid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND left(d.description, length($1)) = $1
   AND c.relkind IN ('r', 'p') AND NOT c.relispartition
 ORDER BY 1, 2";

/// Lists the tables that are no partitions and whose comments begin with `mark`.
///
/// # Errors
/// [`DbError`].
pub async fn marked(conn: &Conn, mark: &str) -> Result<Vec<MarkedRow>, DbError> {
    const WHAT: &str = "list detached partitions";
    let rows = conn.query(WHAT, MARKED, &[(&mark, Type::TEXT)]).await?;
    rows.iter()
        .map(|row| {
            Ok(MarkedRow {
                schema: conn.field(WHAT, row, "schema")?,
                name: conn.field(WHAT, row, "name")?,
                kind: letter(conn.field(WHAT, row, "kind")?),
                owner: conn.field(WHAT, row, "owner")?,
                comment: conn.field(WHAT, row, "comment")?,
                bytes: conn.field(WHAT, row, "bytes")?,
                checks: conn.field(WHAT, row, "checks")?,
            })
        })
        .collect()
}

/// Finds what has one of these names in a schema already.
///
/// # Errors
/// [`DbError`].
pub async fn names_taken(conn: &Conn, schema: &str, names: &[String]) -> Result<Vec<NameTaken>, DbError> {
    const WHAT: &str = "look for names that are taken";
    const SQL: &str = "SELECT c.relname::text AS name, c.relkind::text AS kind, obj_description(c.oid, 'pg_class') AS comment,
               (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition LIMIT 1) AS partition_of
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = ANY ($2) ORDER BY 1";
    let rows = conn.query(WHAT, SQL, &[(&schema, Type::NAME), (&names, Type::TEXT_ARRAY)]).await?;
    rows.iter()
        .map(|row| {
            Ok(NameTaken {
                name: conn.field(WHAT, row, "name")?,
                kind: letter(conn.field(WHAT, row, "kind")?),
                partition_of: conn.field(WHAT, row, "partition_of")?,
                comment: conn.field(WHAT, row, "comment")?,
            })
        })
        .collect()
}

/// Lists the foreign keys from and to a table, without those that partitions have inherited.
///
/// # Errors
/// [`DbError`].
pub async fn foreign_keys(conn: &Conn, table: u32) -> Result<Vec<ForeignKey>, DbError> {
    const WHAT: &str = "list foreign keys";
    const SQL: &str = "SELECT k.conname::text AS name, k.conrelid::regclass::text AS from_name, k.conrelid::int8 AS from_oid,
               k.confrelid::regclass::text AS to_name, k.confrelid::int8 AS to_oid
          FROM pg_constraint k
         WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid = $1::int8::oid OR k.confrelid = $1::int8::oid) ORDER BY 1";
    let rows = conn.query(WHAT, SQL, &[(&i64::from(table), Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            Ok(ForeignKey {
                name: conn.field(WHAT, row, "name")?,
                from: conn.field(WHAT, row, "from_name")?,
                from_oid: oid(conn, WHAT, conn.field(WHAT, row, "from_oid")?)?,
                to: conn.field(WHAT, row, "to_name")?,
                to_oid: oid(conn, WHAT, conn.field(WHAT, row, "to_oid")?)?,
            })
        })
        .collect()
}

/// Returns the publications that a table is in by its own name.
///
/// # Errors
/// [`DbError`].
pub async fn publications(conn: &Conn, table: u32) -> Result<Vec<String>, DbError> {
    const WHAT: &str = "list publications";
    const SQL: &str =
        "SELECT p.pubname::text AS name FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE r.prrelid = $1::int8::oid AND NOT p.pubviaroot ORDER BY 1";
    let rows = conn.query(WHAT, SQL, &[(&i64::from(table), Type::INT8)]).await?;
    rows.iter().map(|row| conn.field(WHAT, row, "name")).collect()
}

/// Returns the privileges of a table as `GRANT` needs them: privileges and role, without those of its owner.
///
/// # Errors
/// [`DbError`].
pub async fn grants(conn: &Conn, table: u32) -> Result<Vec<(String, Option<String>, bool)>, DbError> {
    const WHAT: &str = "list privileges";
    const SQL: &str = "SELECT a.privilege_type AS privilege, CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END AS grantee, a.is_grantable
          FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.oid = $1::int8::oid AND a.grantee <> c.relowner ORDER BY 2 NULLS FIRST, 1";
    let rows = conn.query(WHAT, SQL, &[(&i64::from(table), Type::INT8)]).await?;
    rows.iter()
        .map(|row| {
            Ok((
                conn.field(WHAT, row, "privilege")?,
                conn.field(WHAT, row, "grantee")?,
                conn.field(WHAT, row, "is_grantable")?,
            ))
        })
        .collect()
}

/// Looks for the row that pg_partman keeps of a table.
///
/// # Errors
/// [`DbError`].
pub async fn partman(conn: &Conn, schema: &str, name: &str) -> Result<Option<PartmanRow>, DbError> {
    const WHAT: &str = "look at part_config of pg_partman";
    const EXTENSION: &str =
        "SELECT n.nspname::text AS schema FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'pg_partman'";
    let extension = conn.query(WHAT, EXTENSION, &[]).await?;
    let Some(row) = extension.first() else { return Ok(None) };
    let home: String = conn.field(WHAT, row, "schema")?;
    let sql = format!(
        "SELECT c.partition_interval::text AS interval, c.retention::text AS retention, c.template_table::text AS template,
                EXISTS (SELECT 1 FROM {home}.part_config_sub s WHERE s.sub_parent = c.parent_table) AS has_sub
           FROM {home}.part_config c WHERE c.parent_table = $1",
        home = quote_identifier(&home)
    );
    // It keeps the name without quotes, as create_parent was given it.
    let name = format!("{schema}.{name}");
    let rows = conn.query(WHAT, &sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(PartmanRow {
        schema: home,
        interval: conn.field(WHAT, row, "interval")?,
        retention: conn.field(WHAT, row, "retention")?,
        has_sub_partitions: conn.field(WHAT, row, "has_sub")?,
        template: conn.field(WHAT, row, "template")?,
    }))
}

/// Rows of a default partition: how many, up to a limit, and the first and last value of the key as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRows {
    pub rows: i64,
    /// Whether there are more than were counted.
    pub more: bool,
    pub first: Option<String>,
    pub last: Option<String>,
}

impl DefaultRows {
    /// Says how many there are, and from where to where: a fragment, `more than 1000 rows, from 2026-01-01 to 2026-03-07`.
    pub fn told(&self) -> String {
        let more = if self.more { "more than " } else { "" };
        let extent = self.first.as_ref().zip(self.last.as_ref());
        let extent = extent.map(|(first, last)| format!(", from {first} to {last}")).unwrap_or_default();
        format!("{more}{} rows{extent}", self.rows)
    }
}

/// Counts the rows of a default partition whose key is in `[from, to)`, no more than `limit`; without a range all of them.
///
/// # Errors
/// [`DbError`].
pub async fn default_rows(
    conn: &Conn,
    table: &str,
    key: &str,
    range: Option<(&str, &str)>,
    limit: i64,
) -> Result<DefaultRows, DbError> {
    const WHAT: &str = "count the rows of the default partition";
    let key = quote_identifier(key);
    let condition =
        range.map(|(from, to)| format!(" WHERE {key} >= {from} AND {key} < {to}")).unwrap_or_default();
    let sql = format!(
        "SELECT count(*) AS rows, min(k)::text AS first, max(k)::text AS last FROM (SELECT {key} AS k FROM {table}{condition} LIMIT {}) r",
        limit + 1
    );
    let row = conn.query_one(WHAT, &sql, &[]).await?;
    let rows: i64 = conn.field(WHAT, &row, "rows")?;
    Ok(DefaultRows {
        rows: rows.min(limit),
        more: rows > limit,
        first: conn.field(WHAT, &row, "first")?,
        last: conn.field(WHAT, &row, "last")?,
    })
}

/// Tells whether a table has a row.
///
/// # Errors
/// [`DbError`].
pub async fn has_rows(conn: &Conn, table: &str) -> Result<bool, DbError> {
    const WHAT: &str = "look for a row";
    Ok(!conn.query(WHAT, &format!("SELECT 1 AS one FROM {table} LIMIT 1"), &[]).await?.is_empty())
}

/// Counts the rows of a default partition by `every` (a word of `date_trunc`), in `zone` where the key has a time zone, with those that no partition can hold
/// (`infinity`, NULL) under `None`.
///
/// # Errors
/// [`DbError`].
pub async fn default_periods(
    conn: &Conn,
    table: &str,
    key: &str,
    (every, zone): (&str, Option<&str>),
) -> Result<Vec<(Option<String>, i64)>, DbError> {
    const WHAT: &str = "see which periods have rows in the default partition";
    let key = quote_identifier(key);
    let local = match zone {
        Some(_) => format!("({key} AT TIME ZONE $1::text)"),
        None => format!("({key}::timestamp)"),
    };
    let sql = format!(
        "SELECT CASE WHEN isfinite({key}) THEN date_trunc('{every}', {local})::date::text END AS period, count(*) AS rows
           FROM {table} WHERE $1::text IS NOT NULL OR true GROUP BY 1 ORDER BY 1"
    );
    let rows = conn.query(WHAT, &sql, &[(&zone, Type::TEXT)]).await?;
    rows.iter().map(|row| Ok((conn.field(WHAT, row, "period")?, conn.field(WHAT, row, "rows")?))).collect()
}

/// Returns the names of constraints of a table that begin with `prefix`.
///
/// # Errors
/// [`DbError`].
pub async fn constraints(conn: &Conn, table: u32, prefix: &str) -> Result<Vec<String>, DbError> {
    const WHAT: &str = "list constraints";
    const SQL: &str = "SELECT conname::text AS name FROM pg_constraint WHERE conrelid = $1::int8::oid AND left(conname::text, length($2)) = $2 ORDER BY 1";
    let rows = conn.query(WHAT, SQL, &[(&i64::from(table), Type::INT8), (&prefix, Type::TEXT)]).await?;
    rows.iter().map(|row| conn.field(WHAT, row, "name")).collect()
}

/// Returns the columns that rows are copied by: name and type, without generated ones.
///
/// # Errors
/// [`DbError`].
pub async fn columns(conn: &Conn, schema: &str, name: &str) -> Result<Vec<(String, String)>, DbError> {
    const WHAT: &str = "list columns";
    const SQL: &str = "SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type FROM pg_attribute a
          JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum";
    let rows = conn.query(WHAT, SQL, &[(&schema, Type::NAME), (&name, Type::NAME)]).await?;
    rows.iter().map(|row| Ok((conn.field(WHAT, row, "name")?, conn.field(WHAT, row, "type")?))).collect()
}

/// Counts all rows of a table.
///
/// # Errors
/// [`DbError`].
pub async fn count(conn: &Conn, table: &str) -> Result<u64, DbError> {
    const WHAT: &str = "count rows";
    let row = conn.query_one(WHAT, &format!("SELECT count(*) AS rows FROM {table}"), &[]).await?;
    Ok(conn.field::<i64>(WHAT, &row, "rows")?.unsigned_abs())
}

/// Has the rows of a table streamed out as CSV, in these columns; `take` is given each piece.
///
/// # Errors
/// [`DbError`], and what `take` says.
pub async fn copy_out(
    conn: &Conn,
    table: &str,
    columns: &[String],
    take: impl FnMut(&[u8]) -> crate::error::Result<()>,
) -> Result<crate::error::Result<()>, DbError> {
    let sql = format!("COPY {table} ({}) TO STDOUT WITH (FORMAT csv)", quoted(columns));
    conn.copy_out("copy rows out", &sql, take).await
}

/// Streams CSV into a table, in these columns; returns how many rows the server has taken.
///
/// # Errors
/// [`DbError`], and what `give` says.
pub async fn copy_in(
    conn: &Conn,
    table: &str,
    columns: &[String],
    give: impl FnMut() -> crate::error::Result<Option<Vec<u8>>>,
) -> Result<crate::error::Result<u64>, DbError> {
    let sql = format!("COPY {table} ({}) FROM STDIN WITH (FORMAT csv)", quoted(columns));
    conn.copy_in("copy rows in", &sql, give).await
}

/// Returns columns as they stand in a statement.
pub fn quoted(columns: &[String]) -> String {
    columns.iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ")
}

/// Tells whether a role may put tables in a tablespace; `None` if there is none of that name.
///
/// # Errors
/// [`DbError`].
pub async fn may_use_tablespace(conn: &Conn, name: &str, role: &str) -> Result<Option<bool>, DbError> {
    const WHAT: &str = "look for a tablespace";
    const SQL: &str = "SELECT has_tablespace_privilege($2::name, oid, 'CREATE') AS may FROM pg_tablespace WHERE spcname = $1";
    let rows = conn.query(WHAT, SQL, &[(&name, Type::NAME), (&role, Type::NAME)]).await?;
    rows.first().map(|row| conn.field(WHAT, row, "may")).transpose()
}
