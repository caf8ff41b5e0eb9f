//! One error type in PostgreSQL's three lines: what happened, the evidence, the next command.
//!
//! Formats nothing for a terminal and knows no exit code: `ui::error` prints, `ui::exit` maps [`ErrorKind`] to a code.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of end an error is; each kind has one exit code in `ui::exit`. A journal keeps it by its name in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Tried and failed; nothing changed, or everything was undone.
    Failed,
    /// Bad usage or an invalid topology.
    Usage,
    /// Some parts succeeded, others did not.
    Partial,
    /// A safety gate said no.
    Refused,
    /// Another operation holds the cluster.
    Locked,
    /// An operation stopped where only the operator can decide.
    Stuck,
    /// The goal is reached, or the pivot is passed, but something is left to do.
    Incomplete,
    /// The named thing does not exist or cannot be reached.
    NotFound,
    /// The operator or a signal interrupted us.
    Interrupted,
}

/// An error as an operator reads it.
///
/// `what` is a lowercase fact without a full stop; `detail` and `hint` are whole sentences (style.md 5-7).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    detail: Option<String>,
    hint: Option<String>,
    context: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of `kind` that says `what` happened.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), detail: None, hint: None, context: Vec::new(), source: None }
    }

    /// Short for [`ErrorKind::Failed`].
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, what)
    }

    /// Short for [`ErrorKind::Refused`].
    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, what)
    }

    /// Short for [`ErrorKind::Usage`].
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, what)
    }

    /// Adds the evidence, as whole sentences.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to do next, as whole sentences.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what was being done, as a fragment: "read pg_control of inventory-a".
    #[must_use]
    pub fn context(mut self, doing: impl Into<String>) -> Self {
        self.context.push(doing.into());
        self
    }

    /// Keeps the cause; the printer walks the chain.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn what(&self) -> &str {
        &self.what
    }

    pub fn detail_text(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns what was being done, innermost first.
    pub fn contexts(&self) -> &[String] {
        &self.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
