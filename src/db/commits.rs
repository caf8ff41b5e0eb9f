//! Whose commits are acknowledged before a standby has them: `synchronous_commit` as it is set apart from the sessions themselves.
//!
//! SQL for PostgreSQL 14 to 19. What a session or a function sets for itself cannot be seen from outside.

use super::connect::{Conn, DbError};

/// Sessions whose commits do not wait until a standby has them on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Of this role; of every one if there is none.
    pub role: Option<String>,
    /// In this database; in every one if there is none.
    pub database: Option<String>,
    /// The value of `synchronous_commit`: `off`, `local`, `remote_write`.
    pub value: String,
}

// The last line of a file that sets it counts; a session of pgherd's own has another value, so that its own is not asked.
const UNCONFIRMED: &str = "
SELECT NULL::text AS role, NULL::text AS database, f.setting AS value
  FROM (SELECT setting FROM pg_file_settings WHERE name = 'synchronous_commit' AND error IS NULL ORDER BY seqno DESC LIMIT 1) f
UNION ALL
SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole)::text END, d.datname::text, substr(c, length('synchronous_commit=') + 1)
  FROM pg_db_role_setting s
 CROSS JOIN LATERAL unnest(s.setconfig) c
  LEFT JOIN pg_database d ON d.oid = s.setdatabase
 WHERE starts_with(c, 'synchronous_commit=')
 ORDER BY 1 NULLS FIRST, 2 NULLS FIRST";

/// Asks a server, primary or standby, whose commits wait for no standby's disk by its files, roles and databases.
///
/// # Errors
/// [`DbError`].
pub async fn unconfirmed(conn: &Conn) -> Result<Vec<Unconfirmed>, DbError> {
    const WHAT: &str = "read who commits without a standby";
    let rows = conn.query(WHAT, UNCONFIRMED, &[]).await?;
    let found = rows.iter().map(|row| {
        Ok(Unconfirmed {
            role: conn.field(WHAT, row, "role")?,
            database: conn.field(WHAT, row, "database")?,
            value: conn.field(WHAT, row, "value")?,
        })
    });
    let found: Vec<Unconfirmed> = found.collect::<Result<_, DbError>>()?;
    Ok(found.into_iter().filter(|found| !waits_for_a_disk(&found.value)).collect())
}

/// Tells whether a commit with this value of `synchronous_commit` waits until a synchronous standby has it on its disk. A value is kept as it was
/// written, and words of a boolean are taken (`synchronous_commit_options` in `guc_tables.c`).
pub fn waits_for_a_disk(value: &str) -> bool {
    ["on", "true", "yes", "1", "remote_apply"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Tells whether a commit with this value waits for no standby at all.
pub fn waits_for_nobody(value: &str) -> bool {
    !waits_for_a_disk(value) && !value.eq_ignore_ascii_case("remote_write")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_as_postgresql_reads_it() {
        for (value, disk, nobody) in [
            ("on", true, false),
            ("ON", true, false),
            ("1", true, false),
            ("remote_apply", true, false),
            ("remote_write", false, false),
            ("local", false, true),
            ("off", false, true),
            ("false", false, true),
        ] {
            assert_eq!((waits_for_a_disk(value), waits_for_nobody(value)), (disk, nobody), "{value}");
        }
    }
}
