//! What the steps of a failover leave in its journal. Persisted: a change is a new format. Never holds a secret.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ops::hook::Ran;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::topology::hooks::Point;
use crate::units::ByteCount;

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// The hook `after-undo` will be run if this is taken back.
    WhenUndone {},
    /// A hook was run, and how it ended: well, or why not.
    Hooked { point: Point, ran: Option<Ran>, why_not: Option<String> },
    /// The standby receives nothing; what it has.
    Frozen { timeline: TimelineId, has: Lsn },
    /// Nothing runs for the data directory, and nothing starts it. What its pg_control says, if it could be read.
    ShutOut { state: Option<String>, timeline: Option<TimelineId>, checkpoint: Option<Lsn> },
    /// These standbys receive nothing.
    Starved { frozen: Vec<String> },
    /// It is written down.
    Stated {},
    /// The node has all of that; from whom what it lacked came.
    Complete { has: Lsn, fetched: Option<Fetched> },
    /// What only the old primary had is there.
    Salvaged { segments: u32, bytes: ByteCount, last_commit: Option<LastCommit> },
    /// What only the old primary had could not be brought; the operator had agreed to lose it, or its commits waited for no standby.
    NotSalvaged { why: String },
    /// The slot is there.
    SlotThere {},
    /// It is a standby that has replayed everything and may be promoted.
    Ready { replayed: Option<Lsn> },
    /// It is primary.
    Promoted { timeline: TimelineId, begins: Lsn },
    /// It was led to the new primary; why it does not stream yet, if it does not.
    Pointed { why_not: Option<String> },
    /// The standby streams.
    Streams { timeline: TimelineId, lsn: Option<Lsn> },
    /// The pooler answers through each of these aliases.
    Led { aliases: Vec<String> },
    /// Its settings are a primary's, and pg_control names the new timeline.
    Settled {},
    /// The primary record says so.
    Recorded { term: u64 },
    /// These segments were archived in place of the old primary; and those that nobody has any more.
    Backfilled { archived: Vec<SegmentName>, missing: Vec<SegmentName> },
    /// The archive goes on.
    ArchiveGoesOn { history: bool, first: SegmentName, last: SegmentName },
    /// The row was read on these nodes.
    Proved { nodes: Vec<String>, milliseconds: u64 },
}

/// WAL that a standby had from another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetched {
    pub from: String,
    /// What it lacked.
    pub bytes: ByteCount,
}

/// The last commit that a node's WAL holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastCommit {
    /// Where its record ends.
    pub lsn: Lsn,
    pub at: Timestamp,
}
