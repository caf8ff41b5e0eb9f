//! What stands in the configuration files and is not in effect.

use super::rows;
use crate::db::connect::{Conn, DbError};

pub const PENDING_RESTART: &str = "
SELECT s.name FROM pg_settings s WHERE s.pending_restart ORDER BY s.name";

/// Lists the settings that wait for a restart.
///
/// # Errors
/// [`DbError`].
pub async fn pending_restart(conn: &Conn) -> Result<Vec<String>, DbError> {
    rows(conn, "read pg_settings", PENDING_RESTART, |f| f.at("name")).await
}

/// A line of a configuration file that the server cannot apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    pub file: String,
    pub line: Option<i32>,
    pub error: String,
}

/// What a role needs to read [`BAD_LINES`] that is not a superuser: pg_monitor is not enough.
pub const BAD_LINES_GRANT: &str = "GRANT SELECT ON pg_file_settings, pg_hba_file_rules TO {role}; \
     GRANT EXECUTE ON FUNCTION pg_show_all_file_settings(), pg_hba_file_rules() TO {role}";

/// A setting that only waits for a restart is listed by `pg_file_settings` like one that cannot be applied.
pub const BAD_LINES: &str = "
SELECT coalesce(f.sourcefile, 'postgresql.conf') AS file, f.sourceline AS line, coalesce(f.name || ': ', '') || f.error AS error
  FROM pg_file_settings f LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name)
 WHERE f.error IS NOT NULL AND s.context IS DISTINCT FROM 'postmaster'
UNION ALL
SELECT coalesce(to_jsonb(h) ->> 'file_name', 'pg_hba.conf'), h.line_number, h.error
  FROM pg_hba_file_rules h WHERE h.error IS NOT NULL";

/// Lists the lines of postgresql.conf and pg_hba.conf that the server cannot apply.
///
/// # Errors
/// [`DbError`]; `Sql` with 42501 for a role that may not see them.
pub async fn bad_lines(conn: &Conn) -> Result<Vec<BadLine>, DbError> {
    rows(conn, "read its configuration files", BAD_LINES, |f| {
        Ok(BadLine { file: f.at("file")?, line: f.at("line")?, error: f.at("error")? })
    })
    .await
}
