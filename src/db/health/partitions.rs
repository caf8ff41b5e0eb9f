//! The declared partition sets of a database, in one statement: what each is, its partitions, and who maintains it at this moment.
//!
//! Of the catalog alone, so that it takes no lock that a partition which is being detached would hold up; rows are asked for elsewhere.

use tokio_postgres::types::Type;

use crate::db::connect::{Conn, DbError};
use crate::db::partition::session::LOCK_CLASS;
use crate::db::partition::sql::EXCLUSION;
use crate::db::partition::{Shape, shape};
use crate::db::queries::Fields;

/// A declared set as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSeen {
    pub schema: String,
    pub name: String,
    /// `None` where there is no such table.
    pub shape: Option<Shape>,
    pub parts: Vec<PartSeen>,
    /// The process of a session of pgherd that maintains it now.
    pub held_by: Option<i32>,
}

/// One of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSeen {
    pub schema: String,
    pub name: String,
    /// `FOR VALUES FROM (…) TO (…)` with UTC and ISO, or `DEFAULT`.
    pub bound: String,
    pub is_default: bool,
    pub detach_pending: bool,
    pub comment: Option<String>,
    /// Of the default partition: constraints that keep a range out of it while that is attached.
    pub exclusions: Vec<String>,
}

// A bound names no column, so that pg_get_expr needs no relation; one that it is given it locks, in newer versions.
pub const SETS: &str = "
SELECT w.schema, w.name, c.relkind::text AS kind, p.partstrat::text AS strategy, coalesce(p.partnatts, 0)::int4 AS keys,
       a.attname::text AS key, a.atttypid::regtype::text AS key_type,
       (SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
         WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
           AND l.classid = $3::int8::oid AND l.objid = c.oid LIMIT 1) AS held_by,
       m.nspname::text AS part_schema, k.relname::text AS part, coalesce(pg_get_expr(k.relpartbound, 0), '') AS bound,
       k.oid = p.partdefid AS is_default, i.inhdetachpending AS detach_pending, obj_description(k.oid, 'pg_class') AS comment,
       array(SELECT x.conname::text FROM pg_constraint x
              WHERE k.oid = p.partdefid AND x.conrelid = k.oid AND left(x.conname::text, length($4)) = $4 ORDER BY 1) AS exclusions
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (schema, name, place)
  LEFT JOIN pg_namespace n ON n.nspname = w.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0 AND p.partnatts = 1
  LEFT JOIN pg_inherits i ON i.inhparent = p.partrelid
  LEFT JOIN pg_class k ON k.oid = i.inhrelid
  LEFT JOIN pg_namespace m ON m.oid = k.relnamespace
 ORDER BY w.place, k.relname";

/// Has bounds shown as they are read here, and waits for no lock longer than a moment; for the rest of the session.
///
/// # Errors
/// [`DbError`].
pub async fn prepare(conn: &Conn) -> Result<(), DbError> {
    conn.batch(
        "prepare the session",
        "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET lock_timeout = '1s'; SET row_security = off",
    )
    .await
}

/// Looks at sets, by schema and name, in a session that [`prepare`] has prepared.
///
/// # Errors
/// [`DbError`].
pub async fn sets(conn: &Conn, names: &[(&str, &str)]) -> Result<Vec<SetSeen>, DbError> {
    const WHAT: &str = "look at partitioned tables";
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().copied().unzip();
    let class = i64::from(LOCK_CLASS);
    let rows = conn
        .query(
            WHAT,
            SETS,
            &[
                (&schemas, Type::TEXT_ARRAY),
                (&tables, Type::TEXT_ARRAY),
                (&class, Type::INT8),
                (&EXCLUSION, Type::TEXT),
            ],
        )
        .await?;
    let mut sets: Vec<SetSeen> = Vec::new();
    for row in &rows {
        let f = Fields { conn, what: WHAT, row };
        let (schema, name): (String, String) = (f.at("schema")?, f.at("name")?);
        if sets.last().is_none_or(|last| (&last.schema, &last.name) != (&schema, &name)) {
            let there = f.at::<Option<&str>>("kind")?.is_some();
            let shape = if there { Some(shape(conn, WHAT, row)?) } else { None };
            sets.push(SetSeen { schema, name, shape, parts: Vec::new(), held_by: f.at("held_by")? });
        }
        let set = sets.last_mut().expect("one was pushed");
        set.parts.extend(part(&f)?);
    }
    Ok(sets)
}

/// Reads the partition of a row; `None` for a table without any.
fn part(f: &Fields<'_>) -> Result<Option<PartSeen>, DbError> {
    let Some(name) = f.at::<Option<String>>("part")? else { return Ok(None) };
    Ok(Some(PartSeen {
        schema: f.at("part_schema")?,
        name,
        bound: f.at("bound")?,
        is_default: f.at("is_default")?,
        detach_pending: f.at("detach_pending")?,
        comment: f.at("comment")?,
        exclusions: f.at("exclusions")?,
    }))
}
