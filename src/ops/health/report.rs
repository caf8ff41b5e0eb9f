//! What `health` found. `docs/formats/health.md` describes it as JSON.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use crate::topology::checks::{Check, Limits, Measure, Worse};

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
    /// What should be known of the run itself; whole sentences.
    pub remarks: Vec<String>,
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
    pub check: CheckName,
    pub cluster: String,
    pub subject: Subject,
    pub status: Status,
    /// One line: "41.0 s behind (38 MiB)".
    pub text: String,
    /// The next command, where something is wrong.
    pub next: Option<String>,
    /// The check of the same subject that says why this one is not known.
    pub follows: Option<Check>,
    /// Held back: what it would be called if it had lasted longer.
    pub damped: Option<Damped>,
    pub measured: Vec<Measured>,
}

/// A breach that has not lasted long enough to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Damped {
    /// What it would be called.
    pub status: Status,
    /// Looks in a row.
    pub looks: u32,
    /// From how many on it counts.
    pub after: u32,
}

impl Finding {
    /// Tells whether it is worth a line of its own: what only follows from another one is not.
    pub fn is_trouble(&self) -> bool {
        self.status != Status::Ok && self.follows.is_none()
    }
}

/// The name of a check: one of pgherd's own, or one that the topology declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckName {
    Own(Check),
    Custom { name: String, worse: Worse },
}

impl CheckName {
    pub fn name(&self) -> &str {
        match self {
            Self::Own(check) => check.name(),
            Self::Custom { name, .. } => name,
        }
    }

    /// Returns on which side of its thresholds a value is worse.
    pub fn worse(&self) -> Worse {
        match self {
            Self::Own(check) => check.worse(),
            Self::Custom { worse, .. } => *worse,
        }
    }

    /// Returns the check, if it is one of pgherd's own.
    pub fn own(&self) -> Option<Check> {
        match self {
            Self::Own(check) => Some(*check),
            Self::Custom { .. } => None,
        }
    }
}

impl From<Check> for CheckName {
    fn from(check: Check) -> Self {
        Self::Own(check)
    }
}

impl PartialEq<Check> for CheckName {
    fn eq(&self, other: &Check) -> bool {
        self.own() == Some(*other)
    }
}

impl Serialize for CheckName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
