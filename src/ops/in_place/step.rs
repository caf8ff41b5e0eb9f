//! The steps of a restore in place as data: what its plan shows, what its journal holds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One change on the way. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RestoreStep {
    /// PAUSE these poolers, all or none: clients wait before their next transaction.
    Pause { hosts: Vec<String> },
    /// Have the primary finish the segment that it writes, and see it in the repository.
    LastWal { node: String },
    /// Stop a server (fast) and keep where its log ended.
    Stop { node: String },
    /// Push what a stopped server had not archived yet, and say what cannot be.
    Backfill { node: String },
    /// Rename the data directory of a node, and what its tablespaces hold, aside.
    SetAside { node: String, paths: Vec<PathBuf> },
    /// Copy the backup into the data directory and give it the node's own files; its marker comes last.
    Copy { node: String },
    /// Start what was copied, with no way in but its socket, and replay to the target; see that it is the target.
    Recover { node: String },
    /// Promote it and start it anew, closed to clients and to the archive.
    Promote { node: String },
    /// The logins of standbys and of the write proof as the password files have them.
    Logins { nodes: Vec<String> },
    /// The passwords of these roles as they are declared.
    Passwords { roles: Vec<String> },
    /// A physical slot on `on`.
    Slot { on: String, slot: String },
    /// Copy the restored node with `pg_basebackup`.
    Clone { node: String, from: String },
    /// Start a standby and wait until it streams.
    Follow { node: String, upstream: String },
    /// Read every system catalog of every database.
    Catalogs { node: String },
    /// The pivot: changes nothing. From here on clients and the archive get what was restored, and there is only forward.
    Keep {},
    /// Give a node the configuration that the topology declares and its own access rules.
    Open { node: String },
    /// See the history of the new timeline and its first segments in the repository, without a gap.
    Archive { node: String },
    /// Write down in the repository that the node is primary on its new timeline.
    Record { node: String },
    /// PgBouncer on a host: its files, its process, where its aliases point.
    Pooler { host: String },
    /// RESUME: the clients go on.
    Resume { hosts: Vec<String> },
    /// A row written through the pooler and read on these standbys.
    Prove { nodes: Vec<String> },
}
