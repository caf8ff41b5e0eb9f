//! What pgherd writes on a table that is not (yet, or any longer) a partition, as its comment: docs/formats/partitions.md.
//!
//! A mark dies with its table, and goes with it through a restore, a clone and a failover: no list elsewhere can name another table.

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

use super::grid::{Bound, Range};
use crate::topology::partitions::TableName;

/// How the comment begins.
pub const BEGIN: &str = "pgherd partition: ";
const FORMAT: u32 = 1;

/// What a table is to its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was made to be attached, and has no rows.
    Prepared,
    /// It is no longer kept: on a partition, it is being detached.
    Detached,
    /// It was brought back from the repository.
    Restored,
}

/// The mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub format: u32,
    pub state: State,
    pub of: TableName,
    /// The name that the table had.
    pub name: String,
    /// As in [`super::grid`]: UTC for a `timestamptz`; `None` for MINVALUE and MAXVALUE.
    pub from: Option<DateTime>,
    pub to: Option<DateTime>,
    pub at: Timestamp,
    /// The comment that the table had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// Of a restored partition: retention leaves it alone until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Mark {
    /// Makes a mark of a range.
    pub fn new(state: State, of: &TableName, name: &str, (from, to): Range, at: Timestamp) -> Self {
        let moment = |bound| match bound {
            Bound::At(at) => Some(at),
            Bound::Lowest | Bound::Highest => None,
        };
        Self {
            format: FORMAT,
            state,
            of: of.clone(),
            name: name.to_owned(),
            from: moment(from),
            to: moment(to),
            at,
            was: None,
            until: None,
        }
    }

    /// Writes the comment.
    pub fn text(&self) -> String {
        format!("{BEGIN}{}", serde_json::to_string(self).expect("a mark is plain data"))
    }

    /// Reads a comment; `None` if it is no mark, or one that this pgherd does not know.
    pub fn read(comment: &str) -> Option<Self> {
        let mark: Self = serde_json::from_str(comment.strip_prefix(BEGIN)?).ok()?;
        (mark.format == FORMAT).then_some(mark)
    }

    /// Returns the range that it says.
    pub fn range(&self) -> Range {
        (self.from.map_or(Bound::Lowest, Bound::At), self.to.map_or(Bound::Highest, Bound::At))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_mark_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../../tests/golden/partition-mark-v1.txt").trim_end();
        let mark = Mark::read(golden).unwrap();
        assert_eq!((mark.state, mark.of.to_string().as_str()), (State::Detached, "orders.order_events"));
        assert_eq!(mark.text(), golden);
        assert_eq!(Mark::read(&golden.replace("\"format\":1", "\"format\":2")), None);
        assert_eq!(Mark::read("the events of 2019"), None);
    }
}
