//! The steps of a failover as data: what its plan shows, what its journal holds.

use serde::{Deserialize, Serialize};

use crate::topology::hooks::Point;

/// One change on the way. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FailStep {
    /// Does nothing; taken back, it runs the hook `after-undo`, when everything else is as it was.
    WhenUndone {},
    /// Run the operator's program of this point. Until the pivot its failure is that of the step; after it, `Hooked` sees to it.
    Hook { point: Point },
    /// A fence: the operator's program that cuts the old primary off. One that is not needed may fail.
    FenceHook { needed: bool },
    /// Have a standby receive nothing any more: what it has stands still, and it confirms nothing to the old primary.
    Freeze { node: String },
    /// A fence: mark the old primary so that nothing starts it, and stop what is left of it.
    ShutOut { node: String },
    /// A fence: the synchronous standbys of these names confirm nothing, and without `need` of them no commit of the old primary ends.
    Starve { nodes: Vec<String>, need: usize },
    /// A fence: what the operator said of the old primary.
    Statement { said: String },
    /// See that the node has what every other standby has; fetch it where it has not.
    Complete { node: String, others: Vec<String> },
    /// Bring what only the data directory of the old primary has; `may_lose`: without it all the same, since the operator has agreed or
    /// enough standbys have what was promised.
    Salvage { from: String, node: String, may_lose: bool },
    /// A physical slot on the new primary that was not there, for a node that will follow it.
    Slot { on: String, slot: String },
    /// See that all is replayed; taken back, the node is started anew, so that no promotion that was asked for comes late.
    Ready { node: String },
    /// The pivot: the node becomes primary, on a new timeline.
    Promote { node: String },
    /// Lead a standby to the new primary, and wait a moment for it; commits may need it.
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
    /// Archive what the old primary had not archived, up to where the new timeline begins.
    Backfill { node: String },
    /// See the new timeline in the archive, its history and every segment, without a gap.
    Archive { node: String },
    /// A row written through the pooler and read on these standbys.
    Prove { nodes: Vec<String> },
    /// Run a hook that has not done its work yet; what clients need is there.
    Hooked { point: Point },
}
