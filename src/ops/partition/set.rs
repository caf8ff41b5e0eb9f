//! What a set is made of: the partitions that it has, and those that it shall have.

use jiff::civil::{Date, DateTime};

use super::grid::Range;
use super::mark::{Mark, State};
use crate::db::partition::PartitionRow;
use crate::topology::partitions::TableName;

/// A partition with its bounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub row: PartitionRow,
    pub range: Range,
    pub mark: Option<Mark>,
}

impl Part {
    pub(super) fn table(&self) -> TableName {
        TableName { schema: self.row.schema.clone(), name: self.row.name.clone() }
    }

    /// Tells whether somebody has brought it back from the repository.
    pub(super) fn is_restored(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.state == State::Restored)
    }
}

/// A partition that shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub start: Date,
    pub from: DateTime,
    pub to: DateTime,
    pub name: String,
}
