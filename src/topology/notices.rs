//! What somebody is told of a role change, over HTTP.

use serde::{Deserialize, Serialize};

/// What somebody is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// An operation begins, or goes on.
    Started,
    /// It has ended: done, or taken back completely. Nothing is left to do.
    Done,
    /// Somebody has to look: it is stuck, incomplete, or was left in its middle.
    Stuck,
}

impl Occasion {
    pub const ALL: [Self; 3] = [Self::Started, Self::Done, Self::Stuck];

    /// Returns its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Stuck => "stuck",
        }
    }
}
