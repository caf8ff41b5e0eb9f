//! Queries of checks that somebody declared: one row of numbers, from a transaction that may not write.

use serde_json::Value;

use super::connect::{Conn, DbError};

/// A column of the answer: its name, and its value where that is a number.
pub type Column = (String, Option<f64>);

/// Why a query that was sent has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The role may not read something that it reads.
    NotGranted,
    /// A fragment: what the server says against it, or what the answer is instead of one row.
    Said(String),
}

/// What a role needs to read every table of a database, whichever a declared query reads.
pub const GRANT: &str = "GRANT pg_read_all_data TO {role}";

/// Asks a declared query; the first column is the one that is judged.
///
/// Returns why there is no answer where the server says something against the query, or the answer is not one row.
///
/// # Errors
/// [`DbError`], except for what the server says against the query itself.
pub async fn row(conn: &Conn, sql: &str) -> Result<Result<Vec<Column>, NoAnswer>, DbError> {
    const WHAT: &str = "ask a declared check";
    conn.batch(WHAT, "BEGIN READ ONLY").await?;
    // By the extended protocol, which takes one statement: nobody ends the transaction from within. As a common table expression, so
    // that whatever the columns are comes back as text and in order, and a write is what the server refuses.
    let sql = format!(
        "WITH q AS (\n{}\n) SELECT row_to_json(q)::text AS told FROM q LIMIT 2",
        sql.trim().trim_end_matches(';')
    );
    let rows = match conn.query(WHAT, &sql, &[]).await {
        Ok(rows) => rows,
        Err(DbError::Sql { refusal, .. }) => {
            conn.batch(WHAT, "ROLLBACK").await?;
            // insufficient_privilege
            let may_not = refusal.state == "42501";
            let said = || NoAnswer::Said(format!("{} (SQLSTATE {})", refusal.message, refusal.state));
            return Ok(Err(if may_not { NoAnswer::NotGranted } else { said() }));
        }
        Err(error) => return Err(error),
    };
    conn.batch(WHAT, "ROLLBACK").await?;
    let [row] = rows.as_slice() else {
        let many = if rows.is_empty() { "no row" } else { "several rows" };
        return Ok(Err(NoAnswer::Said(format!("it yields {many}, not one"))));
    };
    let told: String = conn.field(WHAT, row, "told")?;
    let told: Value =
        serde_json::from_str(&told).map_err(|error| conn.unexpected(WHAT, error.to_string()))?;
    let Value::Object(columns) = told else { return Err(conn.unexpected(WHAT, "it is no row".to_owned())) };
    Ok(Ok(columns.into_iter().map(|(name, value)| (name, number(&value))).collect()))
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(is_true) => Some(if *is_true { 1.0 } else { 0.0 }),
        // What JSON has no number for, such as NaN, and what is text.
        Value::String(text) => text.trim().parse::<f64>().ok().filter(|number| number.is_finite()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_read_from_what_looks_like_one_and_from_nothing_else() {
        for (value, read) in [
            (json!(41), Some(41.0)),
            (json!(0.5), Some(0.5)),
            (json!(true), Some(1.0)),
            (json!("12.5"), Some(12.5)),
            (json!("NaN"), None),
            (json!("00:00:05"), None),
            (json!(null), None),
            (json!([1]), None),
        ] {
            assert_eq!(number(&value), read, "{value}");
        }
    }
}
