//! What a line of the journal says: the [`Record`]s and the plain data in them.
//!
//! Every type here is persisted (`docs/formats/journal.md`): a change is a new format. No I/O, no folding.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::step::Reversal;
use crate::error::{Error, ErrorKind};

/// The format that this binary writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// Names an operation: 4 to 8 hexadecimal digits, unique in its store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub(crate) String);

impl OperationId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns `pgherd operation resume 7f3a`.
    pub fn resume_command(&self) -> String {
        format!("pgherd operation resume {}", self.0)
    }

    /// Returns `pgherd operation takeover 7f3a`.
    pub fn takeover_command(&self) -> String {
        format!("pgherd operation takeover {}", self.0)
    }

    /// Returns `pgherd operation undo 7f3a`.
    pub fn undo_command(&self) -> String {
        format!("pgherd operation undo {}", self.0)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who drives an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// The operator's login; behind sudo the one who called it.
    pub user: String,
    pub host: String,
    pub pid: u32,
    /// The version of pgherd.
    pub version: String,
}

impl Actor {
    /// Returns this process.
    pub fn here() -> Self {
        let user = ["SUDO_USER", "LOGNAME", "USER"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
            .unwrap_or_else(|| login_of(rustix::process::getuid().as_raw()));
        Self {
            user,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            version: env!("PGHERD_VERSION").to_owned(),
        }
    }
}

/// Returns the login of a user, for those whom cron gives no environment.
fn login_of(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let login = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let login = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| login.to_owned())
    });
    login.unwrap_or_else(|| format!("uid {uid}"))
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} (pid {})", self.user, self.host, self.pid)
    }
}

/// The topology file that an operation was planned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopologyFile {
    pub file: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The first record: everything that a resume needs, and that a person wants to know first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub format: u32,
    pub operation: OperationId,
    /// Which operation it is, such as `apply`; tells a resume whose steps these are.
    pub kind: String,
    pub cluster: String,
    pub by: Actor,
    pub topology: TopologyFile,
    /// What identifies the plan and the world that it was made for.
    pub plan_digest: String,
    /// What the operation was given, such as the declared cluster. Never holds a secret.
    pub input: serde_json::Value,
    pub stages: Vec<PlannedStage>,
}

/// Steps that run side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStage {
    pub steps: Vec<PlannedStep>,
}

/// A step with what a reader needs who does not know its type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStep {
    pub describe: String,
    pub reversal: Reversal,
    pub step: serde_json::Value,
}

/// An error as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub kind: ErrorKind,
    pub what: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// What was being done, innermost first.
    pub context: Vec<String>,
    /// The causes, nearest first.
    pub causes: Vec<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let first = std::error::Error::source(error);
        let causes = std::iter::successors(first, |cause| cause.source()).map(ToString::to_string).collect();
        Self {
            kind: error.kind(),
            what: error.what().to_owned(),
            detail: error.detail_text().map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
            context: error.contexts().to_vec(),
            causes,
        }
    }
}

/// A cause that was read back from a journal.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Cause {
    text: String,
    source: Option<Box<Cause>>,
}

impl From<&Failure> for Error {
    fn from(failure: &Failure) -> Self {
        let mut error = Self::new(failure.kind, failure.what.clone());
        if let Some(detail) = &failure.detail {
            error = error.detail(detail.clone());
        }
        if let Some(hint) = &failure.hint {
            error = error.hint(hint.clone());
        }
        for doing in &failure.context {
            error = error.context(doing.clone());
        }
        let chain = failure
            .causes
            .iter()
            .rev()
            .fold(None, |source, text| Some(Box::new(Cause { text: text.clone(), source })));
        match chain {
            Some(cause) => error.source(*cause),
            None => error,
        }
    }
}

/// What a probe said, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ProbeFound {
    Done { evidence: serde_json::Value },
    NotDone,
    CannotTell { text: String },
}

/// How a drive ended. `Incomplete` and `Stuck` may be resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum End {
    /// Every step is done.
    Done,
    /// Every step that had begun is undone.
    Restored { why: Failure },
    /// The pivot is passed, something is left to do.
    Incomplete { why: Failure },
    /// Only the operator can decide.
    Stuck { why: Failure },
}

/// One line of the journal. `stage` and `step` count from 0; `attempt` from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// Only and always the first line.
    Header(Box<Header>),
    /// Written before `apply` is called.
    StepStarted {
        stage: usize,
        step: usize,
        attempt: u32,
    },
    StepDone {
        stage: usize,
        step: usize,
        evidence: serde_json::Value,
    },
    /// `again`: the error is known to be safe to try again. `timed_out`: what the step did is not known.
    StepFailed {
        stage: usize,
        step: usize,
        again: bool,
        timed_out: bool,
        error: Failure,
    },
    /// A probe looked at a step whose outcome was not known.
    StepFound {
        stage: usize,
        step: usize,
        found: ProbeFound,
    },
    /// From here on the steps are undone, newest first.
    TurnedBack {
        by: Actor,
        why: Failure,
    },
    /// Written before `undo` is called.
    UndoStarted {
        stage: usize,
        step: usize,
        attempt: u32,
    },
    UndoDone {
        stage: usize,
        step: usize,
    },
    UndoFailed {
        stage: usize,
        step: usize,
        error: Failure,
    },
    /// Another drive begins.
    Resumed {
        by: Actor,
    },
    /// Another driver takes the operation away from one that may still live.
    TakenOver {
        by: Actor,
        reason: String,
    },
    /// Another station goes on from a copy of the journal. What was done after the last line of the copy is not known.
    TakenFromCopy {
        by: Actor,
        reason: String,
        /// The machines that had the copy which it goes on from.
        copies: Vec<String>,
        /// The machines whose copies could not be looked at.
        unreachable: Vec<String>,
    },
    /// The operator ends the operation where it stands and answers for what is left.
    Abandoned {
        by: Actor,
        reason: String,
    },
    Ended {
        end: End,
    },
}

/// A record with its place and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Counts from 0, the header.
    pub seq: u64,
    pub at: jiff::Timestamp,
    /// `sha256` of the line before; empty for the first.
    pub previous: String,
    pub record: Record,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_back_from_a_failure_with_its_causes() {
        let cause = Cause {
            text: "connection refused".to_owned(),
            source: Some(Box::new(Cause { text: "os error 111".to_owned(), source: None })),
        };
        let error = Error::refused("cannot promote b")
            .detail("It is 4 MiB behind.")
            .hint("Wait.")
            .context("ask b for its LSN")
            .source(cause);
        let failure = Failure::from(&error);
        assert_eq!(failure.causes, ["connection refused", "os error 111"]);
        assert_eq!(Failure::from(&Error::from(&failure)), failure);
    }
}
