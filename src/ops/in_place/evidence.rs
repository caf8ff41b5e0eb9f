//! What the steps of a restore in place leave in its journal. Persisted: a change is a new format. Never holds a secret.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ops::pooler::Paused;
use crate::ops::restore::recover::Achieved;
use crate::ops::restore::survey::Beyond;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::pg::wal_record::Mark;

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// By host of the pooler.
    Held { poolers: Vec<(String, Paused)> },
    /// The segment is in the repository.
    Archived { segment: String, milliseconds: u64 },
    /// No process works on the data directory. `log` is what its pg_control says, if it can be read.
    Stopped { log: Option<LogEnd> },
    /// `pushed` came into the repository now; `left` did not, for the reason in `why`. `last` is the last segment that is archived.
    Backfilled { pushed: Vec<String>, left: Vec<String>, why: Option<String>, last: Option<SegmentName> },
    /// Each path and the name that it has now.
    SetAside { moved: Vec<Moved> },
    /// A data directory is complete.
    Made { system_identifier: SystemIdentifier },
    /// The server has replayed to the target and waits there. `next` is the first transaction that it does not have, `beyond` all of them.
    Recovered { achieved: Box<Achieved>, next: Option<Mark>, beyond: Beyond },
    /// It is a primary; `history` is its own line of descent, `end` where its timeline began.
    Promoted { timeline: TimelineId, begins: Lsn },
    /// The logins are as the password files say.
    LoginsSet {},
    /// Every declared role that is there has its password.
    PasswordsSet {},
    /// The slot is there; `created` tells whether this operation made it.
    SlotThere { created: bool },
    /// The standby streams.
    Streams { timeline: TimelineId, lsn: Option<Lsn> },
    /// So many catalogs could be read from beginning to end.
    CatalogsRead { databases: u64, catalogs: u64 },
    /// Nothing is taken back any more.
    Kept {},
    /// The node has its own configuration and access rules.
    Opened {},
    /// The archive goes on.
    ArchiveGoesOn { history: bool, first: SegmentName, last: SegmentName },
    /// The primary record says so.
    Recorded { term: u64 },
    /// The pooler answers through each of these aliases.
    PoolerAnswers { aliases: Vec<String> },
    /// The clients go on.
    Resumed {},
    /// The row was read on these nodes.
    Proved { nodes: Vec<String>, milliseconds: u64 },
}

/// Where the log of a stopped server ended, as far as its pg_control tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEnd {
    /// Whether it was shut down, so that its last checkpoint is its last record.
    pub clean: bool,
    pub timeline: TimelineId,
    /// Where the record of the last checkpoint begins.
    pub checkpoint: Lsn,
}

/// A path that was renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    pub from: PathBuf,
    pub to: PathBuf,
}
