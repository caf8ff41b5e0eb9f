//! What the steps of a switchover leave in its journal. Persisted: a change is a new format. Never holds a secret.

use serde::{Deserialize, Serialize};

use crate::ops::hook::Ran;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::topology::hooks::Point;

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// The hook `after-undo` will be run if this is taken back.
    WillBeTold {},
    /// A hook was run, and how it ended: well, or why not.
    Hooked { point: Point, ran: Option<Ran>, why_not: Option<String> },
    /// The slot is there.
    SlotThere {},
    /// A checkpoint was written; how long the last one took.
    Checkpointed { milliseconds: u64 },
    /// Clients will go on by themselves.
    Armed {},
    /// Clients wait.
    Held {},
    /// The server has ended, cleanly: its last record is the shutdown checkpoint that begins here.
    Stopped { timeline: TimelineId, checkpoint: Lsn },
    /// The candidate has replayed that record, and its own pg_control names it.
    HasAll { checkpoint: Lsn },
    /// It is a standby that may be promoted.
    Ready {},
    /// It is primary, and its timeline comes from the old one.
    Promoted { timeline: TimelineId, begins: Lsn },
    /// It was led to the new primary; why it does not stream yet, if it does not.
    Pointed { why_not: Option<String> },
    /// The standby streams.
    Streams { timeline: TimelineId, lsn: Option<Lsn> },
    /// The pooler answers through each of these aliases, and its clients go on.
    Led { aliases: Vec<String> },
    /// Its settings are a primary's, and pg_control names the new timeline.
    Settled {},
    /// The primary record says so.
    Recorded { term: u64 },
    /// The archive goes on.
    ArchiveGoesOn { history: bool, first: SegmentName, last: SegmentName },
    /// These slots are gone.
    SlotsGone { slots: Vec<String> },
    /// The row was read on these nodes.
    Proved { nodes: Vec<String>, milliseconds: u64 },
}
