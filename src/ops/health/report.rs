//! What `health` found. `docs/formats/health.md` describes it as JSON.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::topology::checks::{Check, Limits, Measure};

/// The judgement of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    pub herd: String,
    /// The worst of all findings.
    pub status: Status,
    /// Those that were looked at.
    pub clusters: Vec<String>,
    pub at: Timestamp,
    pub took_seconds: f64,
    /// In the order of the file and of [`Check::ALL`].
    pub findings: Vec<Finding>,
}

/// How a check ended. The order is from fine to worst: what is not known could be worse than a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    Warning,
    Unknown,
    Critical,
}

impl Status {
    /// Returns its code, as every plugin of Nagios has it.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    /// Returns its name, as every plugin of Nagios has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// One check of one thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub check: Check,
    pub cluster: String,
    pub subject: Subject,
    pub status: Status,
    /// One line: "41.0 s behind (38 MiB)".
    pub text: String,
    /// The next command, where something is wrong.
    pub next: Option<String>,
    /// The check of the same subject that says why this one is not known.
    pub follows: Option<Check>,
    pub measured: Vec<Measured>,
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Cluster,
    Node(String),
    /// By its host.
    Pooler(String),
    /// Something else of the cluster, in words: "certificate of a", "lose-primary".
    Part(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("-"),
            Self::Node(name) | Self::Part(name) => f.write_str(name),
            Self::Pooler(host) => write!(f, "pooler {host}"),
        }
    }
}

/// A number with what it is judged by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// `lag`, `lag_bytes`: unique within a finding.
    pub name: String,
    pub value: f64,
    pub measure: Measure,
    /// `None` for what is only told.
    pub limits: Option<Limits>,
    pub max: Option<f64>,
}
