//! Quantities with their unit: [`ByteCount`], spans of time and shares, as people write and read them.
//!
//! Parses what the topology accepts (`32 GiB`, `30 s`, `5 min`, `75 %`): a unit is required, and `m` is refused because it could
//! be minutes or months.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

const BINARY_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Why a text is not a quantity. The message is lowercase and names what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("{0:?} has no unit, expected {1}")]
    Missing(String, &'static str),
    #[error("{0:?} is ambiguous: \"m\" could be minutes or months; write \"min\" or \"months\"")]
    AmbiguousM(String),
    #[error("{0:?} has the unknown unit {1:?}, expected {2}")]
    Unknown(String, String, &'static str),
    #[error("{0:?} is not a number with a unit, expected {1}")]
    NotANumber(String, &'static str),
    #[error("{0:?} is too large")]
    TooLarge(String),
}

const BYTES_EXPECTED: &str = "a size such as 64 MiB or 32 GiB";
const DURATION_EXPECTED: &str = "a time such as 30 s, 5 min or 2 h";

fn split(text: &str, expected: &'static str) -> Result<(u64, String), UnitError> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(UnitError::NotANumber(trimmed.to_owned(), expected));
    }
    let unit = trimmed[digits..].trim();
    let number = trimmed[..digits].parse().map_err(|_| UnitError::TooLarge(trimmed.to_owned()))?;
    if unit.is_empty() {
        return Err(UnitError::Missing(trimmed.to_owned(), expected));
    }
    if unit == "m" {
        return Err(UnitError::AmbiguousM(trimmed.to_owned()));
    }
    if !unit.chars().all(|c| c.is_ascii_alphabetic() || c == '%') {
        return Err(UnitError::NotANumber(trimmed.to_owned(), expected));
    }
    Ok((number, unit.to_owned()))
}

impl ByteCount {
    /// Parses a size with a binary unit: `B`, `KiB`, `MiB`, `GiB` or `TiB`.
    ///
    /// ```
    /// use pgherd::units::ByteCount;
    /// assert_eq!(ByteCount::parse("64 MiB"), Ok(ByteCount(64 << 20)));
    /// assert!(ByteCount::parse("64").is_err());
    /// assert!(ByteCount::parse("64 m").is_err());
    /// ```
    ///
    /// # Errors
    /// [`UnitError`] if the unit is missing, unknown or ambiguous.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text, BYTES_EXPECTED)?;
        let factor = BINARY_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor)
            .ok_or_else(|| UnitError::Unknown(text.trim().to_owned(), unit, BYTES_EXPECTED))?;
        number.checked_mul(factor).map(Self).ok_or_else(|| UnitError::TooLarge(text.trim().to_owned()))
    }
}

impl fmt::Display for ByteCount {
    /// One decimal where the unit is not met exactly: `18.2 GiB`, `64 MiB`, `0 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = BINARY_UNITS
            .iter()
            .rev()
            .find(|(_, factor)| self.0 >= *factor)
            .copied()
            .unwrap_or(BINARY_UNITS[0]);
        if self.0.is_multiple_of(factor) {
            write!(f, "{} {name}", self.0 / factor)
        } else {
            let tenths = (u128::from(self.0) * 10 + u128::from(factor) / 2) / u128::from(factor);
            write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}

/// Parses a span of time with a unit: `ms`, `s`, `min`, `h`, `d` or `days`.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(pgherd::units::parse_duration("5 min"), Ok(Duration::from_secs(300)));
/// assert!(pgherd::units::parse_duration("5 m").is_err());
/// ```
///
/// # Errors
/// [`UnitError`] if the unit is missing, unknown or ambiguous.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text, DURATION_EXPECTED)?;
    let too_large = || UnitError::TooLarge(text.trim().to_owned());
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(too_large);
    match unit.as_str() {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "min" => seconds(60),
        "h" => seconds(3600),
        "d" | "day" | "days" => seconds(86_400),
        _ => Err(UnitError::Unknown(text.trim().to_owned(), unit, DURATION_EXPECTED)),
    }
}

/// Writes a span of time as an operator reads it: `412 ms`, `9.4 s`, `5m36s`, `3h12m`, `12 d`.
pub fn human_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.subsec_millis()),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_are_written() {
        for text in ["0 B", "1 KiB", "64 MiB", "32 GiB", "3 TiB"] {
            assert_eq!(ByteCount::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(ByteCount(1_536).to_string(), "1.5 KiB");
    }

    #[test]
    fn a_unit_is_required_and_m_is_refused() {
        assert!(matches!(ByteCount::parse("64"), Err(UnitError::Missing(..))));
        assert!(matches!(parse_duration("5 m"), Err(UnitError::AmbiguousM(_))));
        assert!(matches!(parse_duration("5 weeks"), Err(UnitError::Unknown(..))));
        assert!(matches!(ByteCount::parse("64 GB"), Err(UnitError::Unknown(..))));
        assert!(matches!(ByteCount::parse("-1 GiB"), Err(UnitError::NotANumber(..))));
        assert!(matches!(ByteCount::parse("99999999999 TiB"), Err(UnitError::TooLarge(_))));
    }

    #[test]
    fn durations_are_short() {
        let shown: Vec<String> = [0_u64, 412, 9_400, 336_000, 11_520_000, 1_036_800_000]
            .map(|ms| human_duration(Duration::from_millis(ms)))
            .into();
        assert_eq!(shown, ["0 ms", "412 ms", "9.4 s", "5m36s", "3h12m", "12 d"]);
    }
}
