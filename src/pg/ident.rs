//! Quoting of identifiers and literals for SQL.

/// Quotes an identifier for SQL; always with double quotes, so that no word list is needed.
///
/// ```
/// assert_eq!(pgherd::pg::ident::quote_identifier("a\"b"), "\"a\"\"b\"");
/// ```
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string literal for SQL, safe with `standard_conforming_strings` on or off.
///
/// ```
/// assert_eq!(pgherd::pg::ident::quote_literal("it's"), "'it''s'");
/// assert_eq!(pgherd::pg::ident::quote_literal("a\\b"), " E'a\\\\b'");
/// ```
///
/// Mirrors `quote_literal_internal` in `quote.c`.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// The most bytes of a name: `NAMEDATALEN - 1`. PostgreSQL cuts off what is longer.
pub const MOST_BYTES: usize = 63;

/// Why a name cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} bytes, PostgreSQL takes 63")]
    TooLong(usize),
    #[error("it begins with \"pg_\", which PostgreSQL keeps for itself")]
    Reserved,
    #[error("it holds the character {0:?}")]
    Character(char),
}

/// Checks the name of a role, database or schema: 1 to 63 bytes, not `pg_…`, no control character.
///
/// # Errors
/// [`NameError`] says what is wrong.
pub fn check_object_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MOST_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    if name.starts_with("pg_") {
        return Err(NameError::Reserved);
    }
    match name.chars().find(|c| c.is_control()) {
        Some(found) => Err(NameError::Character(found)),
        None => Ok(()),
    }
}
