//! What the steps of an apply leave in its journal. Persisted: a change is a new format. Never holds a secret.

use serde::{Deserialize, Serialize};

use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Evidence {
    /// The copy is there and the link leads to it.
    Installed { hash: String },
    /// The repository took something and gave it back; `id` is its own.
    RepositoryThere { id: String },
    /// The host has what it takes to open the repository, and it was seen to open it.
    AccessThere {},
    /// The segment is in the repository, and the archiver knows that it is.
    Archived { segment: String, milliseconds: u64 },
    /// The primary record says so.
    Recorded { term: u64 },
    /// The herd has its certificate authority, whose certificate begins with these digits of SHA-256.
    AuthorityThere { fingerprint: String },
    /// The node has the certificate that it should, and shows it where it runs.
    CertificateThere {},
    /// The node is claimed and lets pgherd in.
    Adopted { system_identifier: SystemIdentifier },
    /// A data directory is complete.
    Made { system_identifier: SystemIdentifier },
    /// The unit of the node is there and enabled.
    UnitThere {},
    /// The server answers.
    Answers { system_identifier: SystemIdentifier },
    /// The logins are as the password files say.
    LoginsSet {},
    /// The slot is there; `created` tells whether this operation made it.
    SlotThere { created: bool },
    /// The standby streams.
    Streams { timeline: TimelineId, lsn: Option<Lsn> },
    /// Files, resets and values are as planned.
    Configured {},
    /// Roles, databases, schemas and grants are as planned.
    Granted {},
    /// Every declared role has its password.
    Opened {},
    /// The new password is kept beside the old one.
    PasswordStaged {},
    /// Password files and server have the new password; these nodes logged in with it.
    PasswordRotated { nodes: Vec<String> },
    /// The old password is gone.
    PasswordForgotten {},
    /// Nothing is taken back any more.
    Kept {},
    /// The pooler answers through each of these aliases.
    PoolerAnswers { aliases: Vec<String> },
    /// The row was read on these nodes.
    Proved { nodes: Vec<String>, milliseconds: u64 },
    /// What starts the jobs is as planned.
    ScheduleInstalled {},
    /// These copies of pgherd are gone; somebody needs those that are `kept`, or did when it was their turn.
    Pruned { gone: Vec<String>, kept: Vec<String> },
}
