//! Who is told of role changes, over HTTP.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::model::SecretReference;

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

/// Where role changes are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Whoever knows such an address may often write there, so it is kept like a password.
    pub url: SecretReference,
    /// At least one.
    pub events: Vec<Occasion>,
    /// Absolute path of the authorities that are believed; the system's if none is stated.
    pub ca: Option<PathBuf>,
}
