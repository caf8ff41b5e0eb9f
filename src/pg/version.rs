//! [`PgVersion`] and the majors that pgherd runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The oldest major version that pgherd runs.
pub const OLDEST_MAJOR: u32 = 14;
/// The newest major version that pgherd runs.
pub const NEWEST_MAJOR: u32 = 19;

/// A PostgreSQL version, 10 or later: `15.18`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgVersion {
    pub major: u32,
    pub minor: u32,
}

impl PgVersion {
    /// Reads `server_version_num`: 150018 is 15.18.
    pub const fn from_number(number: u32) -> Self {
        Self { major: number / 10_000, minor: number % 10_000 }
    }

    /// Finds the version in what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub fn from_version_line(line: &str) -> Option<Self> {
        line.split_whitespace().find_map(|word| word.parse().ok())
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid PostgreSQL version {0:?}")]
pub struct PgVersionError(String);

impl FromStr for PgVersion {
    type Err = PgVersionError;

    /// Takes `15.18`, and `19beta1`, `19devel` or `19rc1` as minor 0.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || PgVersionError(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let major: u32 = text[..digits].parse().map_err(|_| invalid())?;
        let rest = &text[digits..];
        let minor = match rest.strip_prefix('.') {
            Some(minor) => minor.parse().map_err(|_| invalid())?,
            None if ["beta", "rc", "devel"].iter().any(|word| rest.starts_with(word)) => 0,
            None => return Err(invalid()),
        };
        if major < 10 { Err(invalid()) } else { Ok(Self { major, minor }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_binaries_print() {
        let found = |line| PgVersion::from_version_line(line).map(|v| v.to_string());
        assert_eq!(found("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)").as_deref(), Some("15.18"));
        assert_eq!(found("postgres (PostgreSQL) 19beta1").as_deref(), Some("19.0"));
        assert_eq!(found("PgBouncer 1.18.0"), None);
    }
}
