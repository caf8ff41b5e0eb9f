//! What a pooler asks a server: the verifier of a role, through a function of pgherd's and a login that may do nothing else.

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
