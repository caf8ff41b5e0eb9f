//! The two logins that pgherd makes for itself: the standbys' and the write proof's.

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

use crate::db::connect::{Conn, DbError, PrimaryConn};
use crate::pg::ident::{quote_identifier, quote_literal};
use crate::secret::Secret;
use crate::topology::declared;
use crate::topology::model::Cluster;

/// What one of pgherd's logins may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Stream WAL and copy the cluster.
    Replication,
    /// Write and read the row of the write proof.
    Probe,
}

impl Purpose {
    /// Says whose login it is.
    pub fn whose(self) -> &'static str {
        match self {
            Self::Replication => "the standbys",
            Self::Probe => "the write proof",
        }
    }

    /// Returns the role that logs in for it.
    pub fn role(self, cluster: &Cluster) -> &'static str {
        match self {
            Self::Replication => declared::replication_role(cluster),
            Self::Probe => declared::PROBE_ROLE,
        }
    }
}

/// A login as it is stored.
#[derive(Debug, Clone)]
pub struct StoredLogin {
    /// Whether its attributes are what its purpose needs and nothing more.
    pub fits: bool,
    /// The stored password verifier.
    pub verifier: Option<Secret>,
}

/// Reads a login; `None` if there is no such role. For superusers.
///
/// # Errors
/// [`DbError`].
pub async fn stored_login(conn: &Conn, role: &str, purpose: Purpose) -> Result<Option<StoredLogin>, DbError> {
    const WHAT: &str = "read a login";
    let sql =
        "SELECT rolcanlogin AND NOT rolsuper AND NOT rolcreatedb AND NOT rolcreaterole AND NOT rolbypassrls
                      AND rolreplication = $2 AS fits, rolpassword
                 FROM pg_authid WHERE rolname = $1";
    let replication = purpose == Purpose::Replication;
    let rows = conn.query(WHAT, sql, &[(&role, Type::NAME), (&replication, Type::BOOL)]).await?;
    rows.first()
        .map(|row| {
            Ok(StoredLogin {
                fits: conn.field(WHAT, row, "fits")?,
                verifier: conn.field::<Option<String>>(WHAT, row, "rolpassword")?.map(Secret::new),
            })
        })
        .transpose()
}

/// Makes a login or puts it right, with `verifier` as its password. The session should be a `Quiet` one.
///
/// # Errors
/// [`DbError`].
pub async fn ensure_login(
    conn: &PrimaryConn,
    role: &str,
    purpose: Purpose,
    verifier: &Secret,
) -> Result<(), DbError> {
    let name = quote_identifier(role);
    let replication = match purpose {
        Purpose::Replication => "REPLICATION",
        Purpose::Probe => "NOREPLICATION",
    };
    let sql = format!(
        "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN CREATE ROLE {name}; END IF; END $do$;
         ALTER ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT {replication} PASSWORD {password}",
        literal = quote_literal(role),
        password = quote_literal(verifier.reveal()),
    );
    conn.batch(&format!("ensure login {role}"), &sql).await
}

/// The functions that `pg_rewind` calls on its source (PostgreSQL docs, "pg_rewind").
const REWIND_FUNCTIONS: &str = "pg_catalog.pg_ls_dir(text, boolean, boolean), pg_catalog.pg_stat_file(text, boolean), \
     pg_catalog.pg_read_binary_file(text), pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)";

/// Lets a role read the server's files in the way that `pg_rewind` does, in the session's database.
///
/// # Errors
/// [`DbError`].
pub async fn grant_rewind(conn: &PrimaryConn, role: &str) -> Result<(), DbError> {
    let sql = format!("GRANT EXECUTE ON FUNCTION {REWIND_FUNCTIONS} TO {}", quote_identifier(role));
    conn.batch("grant what pg_rewind reads", &sql).await
}

/// Takes back what [`grant_rewind`] let a role do.
///
/// # Errors
/// [`DbError`].
pub async fn revoke_rewind(conn: &PrimaryConn, role: &str) -> Result<(), DbError> {
    let sql = format!("REVOKE EXECUTE ON FUNCTION {REWIND_FUNCTIONS} FROM {}", quote_identifier(role));
    conn.batch("revoke what pg_rewind reads", &sql).await
}
