//! What an earlier look saw: what counters and positions are compared with.

use std::collections::BTreeMap;

use jiff::Timestamp;
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
