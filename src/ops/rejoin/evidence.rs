//! What the steps of a rejoin leave in its journal. Persisted: a change is a new format. Never holds a secret.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::layout::Label;

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// pg_control of the primary names its timeline.
    Checkpointed { timeline: TimelineId },
    /// The slot is there; `created` tells whether this operation made it.
    SlotThere { created: bool },
    /// The node is stopped, and starts as nothing but a standby.
    Stopped {},
    /// Where the WAL of the node ends, with everything of it replayed.
    Ended { timeline: TimelineId, lsn: Lsn },
    /// Its WAL could not be replayed.
    NotReplayed { why: String },
    /// The primary's timeline is in the archive; `why_not` if it is not.
    Archived { why_not: Option<String> },
    /// What only the node had: files that are in the archive now, those that were there before, and those that were copied aside.
    Saved {
        stored: Vec<String>,
        there: Vec<String>,
        aside: Vec<String>,
        directory: Option<PathBuf>,
        why: Option<String>,
    },
    /// The node may read the primary's files.
    Opened {},
    /// The node's own files and its pg_control are kept beside its facts.
    FilesKept { directory: PathBuf },
    /// It was rewound.
    Rewound {},
    /// It had nothing past the fork.
    NothingToRewind {},
    /// It could not be rewound.
    NotRewound { why: String },
    /// It was cloned, from the primary or from a backup; what it had is there under another name.
    Cloned {
        system_identifier: SystemIdentifier,
        aside: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<Label>,
    },
    /// A clone was not needed.
    NotCloned {},
    /// It runs as a standby of the primary.
    Started {},
    /// The standby streams.
    Streams { timeline: TimelineId, lsn: Option<Lsn> },
    /// What was opened is closed, and what was kept for a rewind is gone.
    Closed {},
    /// The primary's settings are its own.
    Settled {},
    /// The node is not fenced any more; whether it was.
    Unfenced { was: bool },
    /// These slots are gone.
    SlotsGone { slots: Vec<String> },
    /// The pooler answers through each of these aliases.
    Led { aliases: Vec<String> },
    /// The row was read on these nodes.
    Proved { nodes: Vec<String>, milliseconds: u64 },
}
