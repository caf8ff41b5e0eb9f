//! The steps of a rejoin as data: what its plan shows, what its journal holds.

use serde::{Deserialize, Serialize};

use crate::repo::layout::Label;

/// One change on the way. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RejoinStep {
    /// A checkpoint of the primary, so that its pg_control names its timeline: a rewind looks for it there.
    Checkpoint { on: String },
    /// The node's physical slot on the primary.
    Slot { on: String, slot: String },
    /// Fence the node and mark it a standby, take its archiver its command, and stop it (fast).
    Stop { node: String },
    /// Have the node replay what WAL it has, as a standby without an upstream that nobody else can reach, and stop it again.
    Replay { node: String },
    /// See the primary's timeline in the archive: only then may what lies past the fork go there.
    Archived { on: String },
    /// Archive what only the node has; what cannot be archived is copied aside.
    Save { node: String },
    /// Keep the node's own files, and its pg_control.
    Keep { node: String },
    /// Let the node read the primary's files: the functions of `pg_rewind`, and a line in pg_hba.conf.
    Open { on: String, node: String },
    /// Take back what only the node has.
    Rewind { node: String, from: String },
    /// Set aside what the node has and copy the primary, or a backup of it; `unless_rewound`: only where the rewind did not come to its end.
    Clone {
        node: String,
        from: String,
        unless_rewound: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<Label>,
    },
    /// Give the node its files and settings, and start it as a standby of the primary.
    Start { node: String, upstream: String },
    /// See it stream.
    Streams { node: String, upstream: String },
    /// Have the primary's commits wait for whom the topology declares; fewer were left until now.
    Settle { on: String },
    /// Take back what `Open` let in, and forget what was kept.
    Close { on: String, node: String },
    /// Let the node go that was fenced: it follows.
    Unfence { node: String },
    /// Drop the slots of the node that nobody reads.
    Slots { on: String, slots: Vec<String> },
    /// Lead the aliases of the pooler on a host to where the nodes are now.
    Lead { host: String },
    /// A row written on the primary and read on the node.
    Prove { nodes: Vec<String> },
}
