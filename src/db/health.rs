//! What `health` asks a server: typed rows, and what a login may not see.
//!
//! SQL for PostgreSQL 14 to 19, for a role that is a member of pg_monitor and nothing more.

pub mod herd;

use serde::{Deserialize, Serialize};

use super::connect::{Conn, DbError};

/// Who asks, and what that role may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    pub role: String,
    /// Whether it sees what other roles do and what is in the server's directories.
    pub monitor: bool,
}

pub(super) const ASKER: &str = "
SELECT current_user::text AS role, pg_has_role(current_user, 'pg_monitor', 'USAGE') AS monitor";

/// Finds out who asks.
///
/// # Errors
/// [`DbError`].
pub async fn asker(conn: &Conn) -> Result<Asker, DbError> {
    const WHAT: &str = "read its own role";
    let row = conn.query_one(WHAT, ASKER, &[]).await?;
    Ok(Asker { role: conn.field(WHAT, &row, "role")?, monitor: conn.field(WHAT, &row, "monitor")? })
}

/// How many client connections there are, and how many a role without privileges can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub clients: u32,
    /// `max_connections` without those that are kept for superusers and, from 16 on, for pg_use_reserved_connections.
    pub usable: u32,
}

/// Backends that serve clients alone count: walsenders have slots of their own (`max_wal_senders`), workers too.
pub const CONNECTIONS: &str = "
SELECT count(*) FILTER (WHERE backend_type = 'client backend')::int AS clients,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
         - coalesce(current_setting('reserved_connections', true)::int, 0) AS usable
  FROM pg_stat_activity";

/// Counts connections.
///
/// # Errors
/// [`DbError`].
pub async fn connections(conn: &Conn) -> Result<Connections, DbError> {
    const WHAT: &str = "count connections";
    let row = conn.query_one(WHAT, CONNECTIONS, &[]).await?;
    let count =
        |column: &str| conn.field::<i32>(WHAT, &row, column).map(|count| count.max(0).cast_unsigned());
    Ok(Connections { clients: count("clients")?, usable: count("usable")? })
}
