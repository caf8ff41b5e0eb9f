//! [`Lsn`]: a position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::ByteCount;

/// A position in the write-ahead log, in bytes from its beginning.
///
/// Two LSNs compare only within one timeline; nothing here adds two of them.
///
/// ```
/// use pgherd::pg::lsn::Lsn;
/// let lsn: Lsn = "0/7A41F028".parse().unwrap();
/// assert_eq!(lsn.to_string(), "0/7A41F028");
/// assert_eq!("1/00000010".parse::<Lsn>().unwrap().to_string(), "1/10");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// The text is not an LSN: two hexadecimal halves of at most 8 digits around a slash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid LSN {0:?}, expected two hexadecimal halves such as 0/7A41F028")]
pub struct LsnError(String);

impl Lsn {
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns how many bytes `self` is behind `ahead`; zero if it is not behind.
    pub fn lag_behind(self, ahead: Self) -> ByteCount {
        ByteCount(ahead.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = LsnError;

    /// Takes padded and unpadded halves: PostgreSQL 19 pads the second one.
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let invalid = || LsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let half = |digits: &str| {
            let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
            if hex && (1..=8).contains(&digits.len()) { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        Ok(Self(half(high).ok_or_else(invalid)? << 32 | half(low).ok_or_else(invalid)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_lsn_reads_back(position in any::<u64>()) {
            let lsn = Lsn::new(position);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
        }
    }

    #[test]
    fn refuses_what_postgresql_refuses() {
        for text in ["", "/", "0", "0/", "/0", "0/G", "0/123456789", "+1/0", "0/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
