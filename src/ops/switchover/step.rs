//! The steps of a switchover as data: what its plan shows, what its journal holds.

use serde::{Deserialize, Serialize};

use crate::topology::hooks::Point;

/// One change on the way. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SwitchStep {
    /// Does nothing; taken back, it runs the hook `after-undo`, when everything else is as it was.
    WhenUndone {},
    /// Run the operator's program of this point. Until the pivot its failure is that of the step; after it, `Hooked` sees to it.
    Hook { point: Point },
    /// A physical slot on the candidate that was not there, for a node that will follow it.
    Slot { on: String, slot: String },
    /// Write what the server holds while clients write, so that little is left for its last checkpoint.
    Checkpoint { node: String },
    /// A process beside each pooler that lets its clients go on after so many seconds.
    Arm { hosts: Vec<String>, seconds: u64 },
    /// PAUSE these poolers, all or none; transactions that run have so many seconds to end.
    Pause { hosts: Vec<String>, grace: u64 },
    /// Stop the primary (fast), keep where its log ended, and have it be a standby whenever it is started again.
    Stop { node: String },
    /// See that the candidate has the last record of the old primary.
    Has { node: String },
    /// See once more that the candidate is a standby; taken back, it is started anew, so that no promotion that was asked for comes late.
    Ready { node: String },
    /// The pivot: the candidate becomes primary, on a new timeline that begins where the old primary ended.
    Promote { node: String },
    /// Lead a standby to the new primary, the old primary by a start, and wait a moment for it; clients may need it for their commits.
    Follow { node: String },
    /// Lead what leads to the old primary to the new one, in the poolers on this host, and let their clients go on.
    Turn { host: String },
    /// Lead the aliases of the poolers on this host to where the nodes are now, and let the clients go on if they were not.
    Lead { host: String },
    /// The same as `Follow`, until it streams.
    Streams { node: String },
    /// Give the new primary its own settings and write a checkpoint of its timeline: what follows or rewinds looks for it in pg_control.
    Settle { node: String },
    /// Write down in the repository that the node is primary on its new timeline.
    Record { node: String },
    /// See the new timeline in the archive, its history and every segment, without a gap.
    Archive { node: String },
    /// Drop the slots of the old primary, which nobody uses any more.
    Slots { on: String, slots: Vec<String> },
    /// A row written through the pooler and read on these standbys.
    Prove { nodes: Vec<String> },
    /// See that the program of this point has done its work, and run it if it has not.
    Hooked { point: Point },
}
