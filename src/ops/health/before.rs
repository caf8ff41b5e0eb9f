//! What an earlier look saw: what counters and positions are compared with.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::db::health::databases::Counters;
use crate::pg::lsn::Lsn;

/// What an earlier look saw of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    pub at: Timestamp,
    /// By name.
    pub nodes: BTreeMap<String, NodeBefore>,
    /// How large the databases were, oldest first, an hour or more apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<SizeBefore>,
}

/// How large all databases of a cluster were together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeBefore {
    pub at: Timestamp,
    pub bytes: u64,
}

/// Adds a size to those that are remembered: one an hour, of the last two days.
pub fn remember(sizes: &mut Vec<SizeBefore>, now: SizeBefore) {
    const APART: SignedDuration = SignedDuration::from_hours(1);
    const KEPT: SignedDuration = SignedDuration::from_hours(48);
    // A clock that was set back would keep what is in the future for ever.
    sizes.retain(|size| size.at <= now.at && now.at.duration_since(size.at) <= KEPT);
    if sizes.last().is_none_or(|last| now.at.duration_since(last.at) >= APART) {
        sizes.push(now);
    }
}

/// Where a server stood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeBefore {
    /// A primary's write position, or how far a standby has received.
    pub lsn: Option<Lsn>,
    pub replayed_lsn: Option<Lsn>,
    /// `None` where it could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
}

/// What a server had counted, in all its databases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    pub blocks_hit: u64,
    pub blocks_read: u64,
    pub commits: u64,
    pub rollbacks: u64,
    pub deadlocks: u64,
    pub temp_bytes: u64,
    pub conflicts: u64,
}

impl Counted {
    /// Adds up what the databases have counted.
    pub fn of(rows: &[Counters], conflicts: u64) -> Self {
        rows.iter().fold(Self { conflicts, ..Self::default() }, |sum, row| Self {
            blocks_hit: sum.blocks_hit + row.blocks_hit,
            blocks_read: sum.blocks_read + row.blocks_read,
            commits: sum.commits + row.commits,
            rollbacks: sum.rollbacks + row.rollbacks,
            deadlocks: sum.deadlocks + row.deadlocks,
            temp_bytes: sum.temp_bytes + row.temp_bytes,
            conflicts: sum.conflicts,
        })
    }
}
