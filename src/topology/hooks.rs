//! Programs of the operator that are run at named points of a role change.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// First of all, while clients still write.
    BeforeSwitchover,
    /// The old primary must not write any more, by whatever lies outside of PostgreSQL: power, network, cloud.
    Fence,
    /// Last of all before the pivot; clients wait.
    BeforePromote,
    /// As soon as the new primary is one.
    AfterPromote,
    /// Last of all.
    AfterSwitchover,
    /// Last of all.
    AfterFailover,
    /// The operation was taken back, and everything is as it was.
    AfterUndo,
}

impl Point {
    pub const ALL: [Self; 7] = [
        Self::BeforeSwitchover,
        Self::Fence,
        Self::BeforePromote,
        Self::AfterPromote,
        Self::AfterSwitchover,
        Self::AfterFailover,
        Self::AfterUndo,
    ];

    /// Returns its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BeforeSwitchover => "before-switchover",
            Self::Fence => "fence",
            Self::BeforePromote => "before-promote",
            Self::AfterPromote => "after-promote",
            Self::AfterSwitchover => "after-switchover",
            Self::AfterFailover => "after-failover",
            Self::AfterUndo => "after-undo",
        }
    }
}

/// Where a hook is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Where pgherd runs.
    Station,
    /// On the host of the node that was primary.
    OldPrimary,
    /// On the host of the node that is to be primary.
    NewPrimary,
    /// On a host of the cluster, by its name.
    Host(String),
}

impl Place {
    /// Returns it as the file has it.
    pub fn word(&self) -> &str {
        match self {
            Self::Station => "station",
            Self::OldPrimary => "old-primary",
            Self::NewPrimary => "new-primary",
            Self::Host(name) => name,
        }
    }
}

/// A program that is run at a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    pub point: Point,
    /// Absolute path.
    pub program: PathBuf,
    pub args: Vec<String>,
    pub timeout: Duration,
    pub on: Place,
}

impl Hook {
    /// How long a hook may take where the file says nothing.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// What takes longer is no hook of an operation that somebody waits for.
    pub const LONGEST: Duration = Duration::from_secs(600);
    /// Clients wait meanwhile.
    pub const LONGEST_BEFORE_PROMOTE: Duration = Duration::from_secs(30);

    /// Returns the longest that a hook of this point may be given.
    pub const fn longest(point: Point) -> Duration {
        match point {
            Point::BeforePromote => Self::LONGEST_BEFORE_PROMOTE,
            Point::BeforeSwitchover
            | Point::Fence
            | Point::AfterPromote
            | Point::AfterSwitchover
            | Point::AfterFailover
            | Point::AfterUndo => Self::LONGEST,
        }
    }
}
