//! The registry of exit codes: every code that pgherd ends with, and what it means. Printed in the manual and by `--help`.

use std::fmt::Write as _;

use crate::error::ErrorKind;
use crate::ops::health::Status;

/// How a run of pgherd ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    /// Only `plan --detailed-exitcode` ends like this.
    Changes,
    Partial,
    Refused,
    Locked,
    Stuck,
    Incomplete,
    NotFound,
    Bug,
    /// Only `wal fetch` ends like this, and the next two.
    Absent,
    AskAgain,
    StopRecovery,
    Interrupted,
    /// Only `health` ends like this, and the next two.
    Warning,
    Critical,
    Unknown,
}

impl Exit {
    /// Returns how a run of `health` ends.
    pub const fn of_health(status: Status) -> Self {
        match status {
            Status::Ok => Self::Done,
            Status::Warning => Self::Warning,
            Status::Critical => Self::Critical,
            Status::Unknown => Self::Unknown,
        }
    }

    pub const ALL: [Self; 18] = [
        Self::Done,
        Self::Failed,
        Self::Absent,
        Self::Warning,
        Self::Usage,
        Self::Changes,
        Self::Critical,
        Self::Partial,
        Self::Unknown,
        Self::Refused,
        Self::Locked,
        Self::Stuck,
        Self::Incomplete,
        Self::NotFound,
        Self::Bug,
        Self::AskAgain,
        Self::StopRecovery,
        Self::Interrupted,
    ];

    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::Absent | Self::Warning => 1,
            Self::Usage | Self::Changes | Self::Critical => 2,
            Self::Partial | Self::Unknown => 3,
            Self::Refused => 4,
            Self::Locked => 5,
            Self::Stuck => 6,
            Self::Incomplete => 7,
            Self::NotFound => 10,
            // EX_SOFTWARE of sysexits.h; Rust's own 101 is for programs that do not say.
            Self::Bug => 70,
            // PostgreSQL takes 1 to 125 for "there is no such file" and stops recovery on what is greater.
            Self::AskAgain => 125,
            Self::StopRecovery => 126,
            Self::Interrupted => 130,
        }
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed; nothing changed, or everything was undone",
            Self::Usage => "bad usage, or an invalid topology",
            Self::Changes => "with `plan --detailed-exitcode`: there are changes (and every error is 1)",
            Self::Partial => "some parts succeeded, others did not",
            Self::Refused => "refused by a safety gate",
            Self::Locked => "locked by another operation",
            Self::Stuck => "stuck: only the operator can decide; see `pgherd operation list`",
            Self::Incomplete => "done, but something is left to do",
            Self::NotFound => "not found or not reachable",
            Self::Bug => "a bug in pgherd; what was running can be resumed or undone",
            Self::Absent => "with `wal fetch`: the file is not in the archive, and nothing that needs it",
            Self::AskAgain => "with `wal fetch` on a standby: any error; it asks again",
            Self::StopRecovery => "with `wal fetch` elsewhere: any error; recovery must not end here",
            Self::Interrupted => "interrupted",
            Self::Warning => "with `health`: WARNING",
            Self::Critical => "with `health`: CRITICAL",
            Self::Unknown => "with `health`: UNKNOWN, any error, and bad usage",
        }
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Failed => Self::Failed,
            ErrorKind::Usage => Self::Usage,
            ErrorKind::Partial => Self::Partial,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Locked => Self::Locked,
            ErrorKind::Stuck => Self::Stuck,
            ErrorKind::Incomplete => Self::Incomplete,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Interrupted => Self::Interrupted,
        }
    }
}

/// Returns the table of exit codes for the manual.
pub fn table() -> String {
    let mut text = "Exit codes:".to_owned();
    for exit in Exit::ALL {
        write!(text, "\n  {:>3}  {}", exit.code(), exit.meaning()).expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_code_of_its_own_but_for_planned_changes_absent_files_and_health() {
        let mut codes = Exit::ALL.map(Exit::code).to_vec();
        codes.dedup();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 10, 70, 125, 126, 130]);
    }
}
