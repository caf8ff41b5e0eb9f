//! Queries that somebody declared: whether each yields one `true`.

use tokio_postgres::types::Type;

use super::connect::{Conn, DbError};

/// Asks a declared query in a transaction that may not write, as whoever declared it would: with the database's own `search_path`.
///
/// Returns why it does not hold; `None` if it yields one row with one `true`.
///
/// # Errors
/// [`DbError`], except for what the server says against the query itself.
pub async fn why_not(conn: &Conn, sql: &str) -> Result<Option<String>, DbError> {
    const WHAT: &str = "ask an assertion";
    conn.batch(WHAT, "BEGIN READ ONLY").await?;
    let rows = match conn.query(WHAT, sql, &[]).await {
        Ok(rows) => rows,
        Err(DbError::Sql { refusal, .. }) => {
            conn.batch(WHAT, "ROLLBACK").await?;
            return Ok(Some(format!("{} (SQLSTATE {})", refusal.message, refusal.state)));
        }
        Err(error) => return Err(error),
    };
    conn.batch(WHAT, "ROLLBACK").await?;
    let [row] = rows.as_slice() else { return Ok(Some(format!("it yields {} rows, not one", rows.len()))) };
    let [column] = row.columns() else {
        return Ok(Some(format!("it yields {} columns, not one", row.columns().len())));
    };
    if *column.type_() != Type::BOOL {
        return Ok(Some(format!("it yields a value of type {}, not true", column.type_().name())));
    }
    let name = column.name().to_owned();
    Ok(match conn.field::<Option<bool>>(WHAT, row, &name)? {
        Some(true) => None,
        Some(false) => Some("it yields false".to_owned()),
        None => Some("it yields null".to_owned()),
    })
}

/// Tells whether an extension can be made in this database.
///
/// # Errors
/// [`DbError`].
pub async fn has_extension(conn: &Conn, name: &str) -> Result<bool, DbError> {
    const WHAT: &str = "look for an extension";
    let sql = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1) AS there";
    let row = conn.query_one(WHAT, sql, &[(&name, Type::TEXT)]).await?;
    conn.field(WHAT, &row, "there")
}

/// The row of the write proof, and when it was written by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRow {
    pub nonce: String,
    pub at: jiff::Timestamp,
}

/// Reads the row of the write proof; `None` if there is none, or not even the table.
///
/// # Errors
/// [`DbError`].
pub async fn probe_row(conn: &Conn) -> Result<Option<ProbeRow>, DbError> {
    const WHAT: &str = "read the probe row";
    match conn.query(WHAT, "SELECT nonce, at FROM pgherd.probe", &[]).await {
        Ok(rows) => rows
            .first()
            .map(|row| {
                Ok(ProbeRow { nonce: conn.field(WHAT, row, "nonce")?, at: conn.field(WHAT, row, "at")? })
            })
            .transpose(),
        Err(error) if error.is_state("42P01") => Ok(None),
        Err(error) => Err(error),
    }
}
