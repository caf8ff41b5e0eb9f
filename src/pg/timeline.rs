//! [`TimelineId`]: which history a cluster is on.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// A timeline; 1 at initdb, a new one at every promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// Returns `None` for 0, which PostgreSQL never uses.
    pub const fn new(id: u32) -> Option<Self> {
        match NonZeroU32::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    pub const fn as_u32(self) -> u32 {
        self.0.get()
    }

    /// Reads the timeline from the first 8 digits of a WAL file name.
    ///
    /// ```
    /// use pgherd::pg::timeline::TimelineId;
    /// assert_eq!(TimelineId::from_wal_file_name("00000003000000000000007A").unwrap().as_u32(), 3);
    /// ```
    pub fn from_wal_file_name(name: &str) -> Option<Self> {
        let digits = name.get(..8).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u32::from_str_radix(digits, 16).ok().and_then(Self::new)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
