//! Checks of `health` that the file declares: a query whose first column is held against thresholds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checks::{Limits, Measure, Worse};

/// A check that the file declares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomCheck {
    /// None of pgherd's own checks has it.
    pub name: String,
    pub database: String,
    pub sql: String,
    pub measure: Measure,
    pub limits: Limits,
    pub timeout: Duration,
    pub on: On,
}

/// Which nodes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    Primary,
    Standbys,
    All,
}

impl CustomCheck {
    /// How long a query may take where the file says nothing.
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    /// A look that takes longer is none.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// Returns on which side of its thresholds a value is worse: below, where what is critical is less than what is a warning.
    pub fn worse(&self) -> Worse {
        match (self.limits.warn, self.limits.crit) {
            (Some(warn), Some(crit)) if crit < warn => Worse::Below,
            _ => Worse::Above,
        }
    }
}

impl On {
    /// Returns its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standbys => "standbys",
            Self::All => "all",
        }
    }
}
