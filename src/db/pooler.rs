//! What a pooler asks a server: the verifier of a role, through a function of pgherd's and a login that may do nothing else.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};
use crate::pg::ident::{quote_identifier, quote_literal};
use crate::secret::Secret;

/// What the pooler sends, with the name of a role.
pub const QUERY: &str = "SELECT usename, passwd FROM pgherd.pooler_login($1)";

/// The body of the function. A password whose time is over is none: PgBouncer itself does not look at it before 1.24.1 (CVE-2025-2291). Nobody
/// comes in as a superuser or for replication through a pooler.
const BODY: &str = "
SELECT rolname,
       CASE WHEN rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now() THEN rolpassword END
  FROM pg_catalog.pg_authid
 WHERE rolname = $1 AND rolcanlogin AND NOT rolsuper AND NOT rolreplication AND rolname !~ '^pgherd_pooler'
";

/// As PostgreSQL stores it: a fixed path, so that nobody puts another object before one of the catalog's.
const SEARCH_PATH: &str = "search_path=pg_catalog, pg_temp";

/// Says what keeps `role` from asking this database for verifiers; `None` if nothing does. For superusers.
///
/// # Errors
/// [`DbError`].
pub async fn why_it_cannot_ask(conn: &Conn, role: &str) -> Result<Option<String>, DbError> {
    const WHAT: &str = "look at the function for poolers";
    let sql = "SELECT p.prosrc = $1 AND p.prosecdef AND p.proconfig = ARRAY[$2]::text[]
                      AND o.rolsuper AS is_right,
                      EXISTS (SELECT FROM aclexplode(p.proacl) a
                               WHERE a.grantee = r.oid AND a.privilege_type = 'EXECUTE')
                      AND has_schema_privilege(r.oid, p.pronamespace, 'USAGE')
                      AND has_database_privilege(r.oid, current_database(), 'CONNECT') AS may,
                      p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a
                               WHERE a.grantee NOT IN (SELECT oid FROM pg_roles WHERE rolname ~ '^pgherd_pooler' OR rolsuper))
                        AS anybody
                 FROM pg_proc p
                 JOIN pg_roles o ON o.oid = p.proowner
                 LEFT JOIN pg_roles r ON r.rolname = $3
                WHERE p.oid = to_regprocedure('pgherd.pooler_login(name)')";
    let rows = conn
        .query(WHAT, sql, &[(&BODY, Type::TEXT), (&SEARCH_PATH, Type::TEXT), (&role, Type::NAME)])
        .await?;
    let database = conn.database();
    let Some(row) = rows.first() else {
        return Ok(Some(format!("database {database} has no function pgherd.pooler_login")));
    };
    if !conn.field::<bool>(WHAT, row, "is_right")? {
        return Ok(Some(format!("pgherd.pooler_login in database {database} is not what pgherd makes")));
    }
    if conn.field::<bool>(WHAT, row, "anybody")? {
        return Ok(Some(format!(
            "others than the poolers may call pgherd.pooler_login in database {database}"
        )));
    }
    let may: Option<bool> = conn.field(WHAT, row, "may")?;
    Ok((may != Some(true)).then(|| format!("{role} may not call pgherd.pooler_login in database {database}")))
}

/// The server's side of a pooled connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub pid: i32,
    /// As pg_stat_activity calls it.
    pub state: String,
    /// How long it has been in that state.
    pub since: Duration,
    pub advisory_locks: u32,
    /// The beginning of what it runs, or has run last.
    pub statement: String,
}

/// Looks at the sessions with these process numbers; those that have ended are left out.
///
/// # Errors
/// [`DbError`].
pub async fn sessions(conn: &Conn, pids: &[i32]) -> Result<Vec<SessionRow>, DbError> {
    const WHAT: &str = "look at pooled sessions";
    let sql = "SELECT a.pid, coalesce(a.state, '') AS state, left(coalesce(a.query, ''), 500) AS statement,
                      greatest(extract(epoch FROM clock_timestamp() - a.state_change), 0)::bigint AS seconds,
                      (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted) AS locks
                 FROM pg_stat_activity a
                WHERE a.pid = ANY ($1)
                ORDER BY a.pid";
    let rows = conn.query(WHAT, sql, &[(&pids, Type::INT4_ARRAY)]).await?;
    let read = |row| {
        let (seconds, locks): (Option<i64>, i64) =
            (conn.field(WHAT, row, "seconds")?, conn.field(WHAT, row, "locks")?);
        Ok(SessionRow {
            pid: conn.field(WHAT, row, "pid")?,
            state: conn.field(WHAT, row, "state")?,
            since: Duration::from_secs(u64::try_from(seconds.unwrap_or(0)).unwrap_or(0)),
            advisory_locks: u32::try_from(locks).unwrap_or(u32::MAX),
            statement: conn.field(WHAT, row, "statement")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Counts the temporary tables of this database that outlive their transactions, by their owner: of roles whose sessions here are all in `pids`.
///
/// # Errors
/// [`DbError`].
pub async fn temporary_tables(conn: &Conn, pids: &[i32]) -> Result<Vec<(String, u32)>, DbError> {
    const WHAT: &str = "look for temporary tables of pooled sessions";
    let sql = "SELECT r.rolname::text AS role, count(*) AS tables
                 FROM pg_class c
                 JOIN pg_roles r ON r.oid = c.relowner
                WHERE c.relpersistence = 't' AND c.relkind = 'r'
                  AND (SELECT coalesce(bool_and(a.pid = ANY ($1)), false)
                         FROM pg_stat_activity a
                        WHERE a.datname = current_database() AND a.usesysid = c.relowner)
                GROUP BY 1 ORDER BY 1";
    let rows = conn.query(WHAT, sql, &[(&pids, Type::INT4_ARRAY)]).await?;
    let read = |row| {
        let tables: i64 = conn.field(WHAT, row, "tables")?;
        Ok((conn.field(WHAT, row, "role")?, u32::try_from(tables).unwrap_or(u32::MAX)))
    };
    rows.iter().map(read).collect()
}

/// Makes the login of a pooler or puts it right. The session should be a `Quiet` one.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_login(conn: &Conn, role: &str, verifier: &Secret) -> Result<(), DbError> {
    let name = quote_identifier(role);
    let sql = format!(
        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {name}; END IF; END $do$;
         ALTER ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT NOREPLICATION PASSWORD {password}",
        literal = quote_literal(role),
        password = quote_literal(verifier.reveal()),
    );
    conn.batch(&format!("ensure login {role}"), &sql).await
}

/// Makes the function in this database or puts it right, and lets `role` call it and nobody else who is no pooler.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_function(conn: &Conn, role: &str) -> Result<(), DbError> {
    let (name, database) = (quote_identifier(role), quote_identifier(conn.database()));
    let sql = format!(
        "CREATE SCHEMA IF NOT EXISTS pgherd;
         REVOKE ALL ON SCHEMA pgherd FROM PUBLIC;
         CREATE OR REPLACE FUNCTION pgherd.pooler_login(name) RETURNS TABLE (usename name, passwd text)
           LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {body};
         ALTER FUNCTION pgherd.pooler_login(name) OWNER TO CURRENT_USER;
         REVOKE ALL ON FUNCTION pgherd.pooler_login(name) FROM PUBLIC;
         GRANT CONNECT ON DATABASE {database} TO {name};
         GRANT USAGE ON SCHEMA pgherd TO {name};
         GRANT EXECUTE ON FUNCTION pgherd.pooler_login(name) TO {name}",
        body = quote_literal(BODY),
    );
    conn.batch("ensure the function for poolers", &sql).await
}
