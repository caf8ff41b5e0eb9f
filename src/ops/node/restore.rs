//! What a restore asks of a node: plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::Location;
use crate::repo::layout::Label;
use crate::units::ByteCount;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The end of the archive.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first transaction that ended after this.
    Time(Timestamp),
    /// After the first record that begins here or later.
    Lsn(Lsn),
    /// After the end of this transaction.
    Xid(u64),
    /// At this restore point.
    Name(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the archive"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(at) => write!(f, "{}", clock(*at)),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point {name:?}"),
        }
    }
}

/// Writes a moment as the messages do: `2026-11-21 09:41:06.718 UTC`.
pub fn clock(at: Timestamp) -> String {
    let text = at.strftime("%Y-%m-%d %H:%M:%S%.f").to_string();
    format!("{text} UTC")
}

/// What the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub target: Target,
    /// The timeline that the target is on, if the operator says so.
    pub timeline: Option<TimelineId>,
    /// The backup to begin with, if the operator says so.
    pub backup: Option<Label>,
}

/// Finds the backup and the WAL that bring a cluster to a moment; reads the repository, writes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanForRestore {
    pub repository: Location,
    pub cluster: String,
    /// The cluster's, if a node or its profile tells; else the one of the newest backup.
    pub system_identifier: Option<SystemIdentifier>,
    pub wish: Wish,
    /// The timeline of the primary, if one answers.
    pub primary: Option<TimelineId>,
}

/// Copies a backup into a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyForRestore {
    pub repository: Location,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    pub label: Label,
    pub data_directory: PathBuf,
    /// Where each tablespace of the backup goes, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    pub claim: Claim,
    pub dressing: Dressing,
    /// 0: as many as there are cores.
    pub workers: u32,
}

/// Why the directory may be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// It is new or empty, or holds what an earlier run of this very restore left: then only what differs is written.
    Scratch { id: String },
    /// A node's directory, which is new or empty.
    Node {},
    /// A node's directory, which the node's marker claims: only what differs from the backup is written.
    NodeDelta {},
}

/// How the restored directory starts: its configuration, and whether it recovers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dressing {
    /// Content of `pgherd.conf`; `None` leaves what the backup has.
    pub shared: Option<String>,
    /// Content of `pgherd.node.conf`.
    pub node: String,
    /// What our block of `pg_hba.conf` says.
    pub access: String,
    /// Who may be the superuser over the Unix socket.
    pub users: Vec<String>,
    /// Settings that are taken out of `postgresql.conf` and `postgresql.auto.conf`.
    pub neutral: Vec<String>,
    pub signal: Option<Signal>,
}

/// The file that has a server recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// `recovery.signal`: to the target.
    Recovery,
    /// `standby.signal`: until it is promoted.
    Standby,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    pub files: u64,
    pub directories: u64,
    /// Bytes of all files.
    pub size: ByteCount,
    /// Bytes that were read from the repository.
    pub fetched: ByteCount,
    /// Bytes that were written; less than `size` where files have holes, or what was there was right already.
    pub written: ByteCount,
    /// Files and directories that were removed since the backup does not have them.
    pub removed: u64,
    pub workers: u32,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
}
