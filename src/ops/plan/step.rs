//! The steps of `apply` as data: what a plan shows, what a journal holds.
//!
//! How each is probed, done and undone is in `ops::apply`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::step::Stage;

use crate::db::logins::Purpose;
use crate::ops::objects::Change;
use crate::ops::starter::Piece;
use crate::topology::declared::Setting;

/// One change to a cluster. Node names are names within the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ApplyStep {
    /// The copy of this pgherd on a host, and the link that PostgreSQL's commands call.
    Install {
        host: String,
        version: String,
        /// Of the build, 16 digits.
        hash: String,
        /// Where the link led before, if there was one.
        before: Option<String>,
    },
    /// The directory of a repository, made or seen to be one, and something written to it and read back.
    Repository {
        host: String,
        name: String,
        url: String,
        /// Whether an empty directory was there before; undo leaves it as it was.
        directory_existed: bool,
    },
    /// What it takes to open a repository beside its URL, in a file on the host; secrets, which are in no plan and no journal.
    Access {
        host: String,
        name: String,
        url: String,
        /// Whether there was such a file, of other content.
        existed: bool,
    },
    /// The certificate authority of the herd, on the machine that pgherd runs on.
    Authority { herd: String },
    /// The certificate of a node that is there, and the authorities that it believes.
    Certificate { node: String },
    /// Take over a node as it runs: its marker, its profile, and pgherd's lines in `files`, which a reload takes.
    Adopt {
        node: String,
        /// Owner of the data directory.
        owner: String,
        /// The unit of systemd that is not pgherd's and runs it.
        unit: Option<String>,
        files: Vec<FileChange>,
    },
    /// Make the data directory of the first primary, with its files.
    Initdb { node: String },
    /// The systemd unit of a node, which starts it with its host; `before` is the text that was there.
    Unit { node: String, before: Option<String> },
    /// Start a node that is not running and wait until it answers.
    Start { node: String },
    /// The replication and probe logins, and the password files that name them on `nodes`.
    Logins { nodes: Vec<String> },
    /// A physical slot on `on`, which keeps the WAL that a standby still needs.
    Slot { on: String, slot: String },
    /// Copy the primary with `pg_basebackup`.
    Clone { node: String, from: String },
    /// Start a standby and wait until it streams.
    Follow { node: String, upstream: String },
    /// Put a node's files and settings right: replace files of ours, take back what ALTER SYSTEM set, have the server take the
    /// values, and see that it did.
    Configure {
        node: String,
        files: Vec<FileChange>,
        /// Settings that ALTER SYSTEM set against the declaration, with the values they have.
        resets: Vec<Setting>,
        activation: Activation,
        /// What must be in effect afterwards.
        expect: Vec<Setting>,
    },
    /// Roles, databases, schemas and grants of a new cluster; nobody can log in yet.
    Objects { changes: Vec<Change> },
    /// A WAL segment of the primary that arrives in the repository.
    Archive { node: String, repository: String },
    /// Who is primary, written into the repository.
    Record { node: String },
    /// The passwords of all declared roles, in one transaction: from here on clients may come in.
    Open { roles: Vec<String> },
    /// One role, database, schema or grant of a cluster that is already open.
    Mend { change: Change },
    /// A new password for one of pgherd's logins, kept beside the old one on the primary; nobody uses it yet.
    StagePassword { login: Purpose },
    /// The new password in the password files of `nodes` and on the server, and a login with it from each of them.
    RotatePassword { login: Purpose, nodes: Vec<String> },
    /// Forget the password that was replaced.
    ForgetPassword { login: Purpose },
    /// The pivot of a change: does nothing. Standbys that stream and settings that are in effect are not taken back because a
    /// pooler, or the write through it, fails.
    Keep {},
    /// PgBouncer on a host: its files, its process, where its aliases point.
    Pooler { host: String },
    /// A row written through the pooler and read on these standbys.
    Prove { nodes: Vec<String> },
    /// What has cron or systemd start the jobs, on the machine that pgherd runs on: put there, or taken away.
    Schedule { pieces: Vec<Piece> },
    /// Remove copies of pgherd from a host, by their hashes: those that are still needed by nobody when it is their turn.
    Prune { host: String, builds: Vec<String> },
}

impl ApplyStep {
    /// Tells whether the step is one of a host's or of the herd's and not of a cluster: what one operation did of it, others find done.
    pub fn is_common(&self) -> bool {
        matches!(
            self,
            Self::Install { .. }
                | Self::Repository { .. }
                | Self::Access { .. }
                | Self::Authority { .. }
                | Self::Schedule { .. }
                | Self::Prune { .. }
        )
    }

    /// Tells whether the step has something start the jobs.
    pub fn starts_jobs(&self) -> bool {
        matches!(self, Self::Schedule { pieces } if pieces.iter().any(|piece| piece.after.is_some()))
    }

    /// Returns the host that the step clears of copies of pgherd. Which of them may go changes from moment to moment, and the step looks for
    /// itself: it is the same step all the same.
    pub fn prunes(&self) -> Option<&str> {
        if let Self::Prune { host, .. } = self { Some(host) } else { None }
    }
}

/// How a server takes new values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// It is not running; it reads them when it starts.
    AtStart,
    Reload,
    Restart,
}

impl Activation {
    /// Returns what a description of the step adds: `, reload`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::AtStart => "",
            Self::Reload => ", reload",
            Self::Restart => ", restart",
        }
    }
}

/// A file that is replaced; `before` is what the plan saw there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileChange {
    pub path: PathBuf,
    pub before: Option<String>,
    pub after: String,
}

/// What kind of change a line of a plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// `+`
    Create,
    /// `~`
    Change,
    /// `-`
    Remove,
    /// `!`: interrupts clients.
    Disrupt,
    /// `.`: looks only.
    Look,
}

impl Sign {
    pub fn mark(self) -> char {
        match self {
            Self::Create => '+',
            Self::Change => '~',
            Self::Remove => '-',
            Self::Disrupt => '!',
            Self::Look => '.',
        }
    }
}

/// A step with what an operator wants to know before it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStep<S = ApplyStep> {
    pub sign: Sign,
    /// A node (`inventory-a`), a host, `pooler`, or the cluster.
    pub subject: String,
    /// What is done.
    pub text: String,
    /// Why, with the value found and the value declared; a line each.
    pub reason: Option<String>,
    /// What it locks, restarts or interrupts; `None` if nothing.
    pub impact: Option<String>,
    /// How it is taken back.
    pub undo: String,
    pub step: S,
}

/// Returns the steps of a plan as an operation takes them.
pub fn stages<S: Clone>(planned: &[Vec<PlannedStep<S>>]) -> Vec<Stage<S>> {
    let steps = |stage: &Vec<PlannedStep<S>>| stage.iter().map(|planned| planned.step.clone()).collect();
    planned.iter().map(|stage| Stage { steps: steps(stage) }).collect()
}
