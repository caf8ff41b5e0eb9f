//! What is no longer kept: how it is told, and the steps by which it goes, the oldest first.

use super::{Kind, Step, bound_sql, shown, step};
use crate::db::partition::MarkedRow;
use crate::db::partition::sql::{self, Names};
use crate::ops::partition::grid::{Bound, Grid, Range};
use crate::ops::partition::look::Seen;
use crate::ops::partition::mark::{Mark, State};
use crate::ops::partition::set::Part;
use crate::topology::partitions::{PartitionSet, TableName, Then};
use crate::units::ByteCount;

/// Tells whether a partition is no longer kept. The last one always is, and so is one that was brought back, until its time is over.
pub(in crate::ops::partition) fn is_over(set: &PartitionSet, seen: &Seen, part: &Part) -> bool {
    let held = part.mark.as_ref().filter(|mark| mark.state == State::Restored);
    if held.is_some_and(|mark| mark.until.is_none_or(|until| until > seen.at)) {
        return false;
    }
    let last = seen.parts.iter().map(|part| part.range.1).max();
    range_is_over(set, seen, part.range) && Some(part.range.1) != last
}

fn range_is_over(set: &PartitionSet, seen: &Seen, range: Range) -> bool {
    let Some(keep) = set.keep else { return false };
    match range.1 {
        Bound::At(upper) => upper <= seen.grid.cutoff(seen.at, keep),
        Bound::Lowest | Bound::Highest => false,
    }
}

/// Finishes, detaches and removes what is no longer kept, the oldest first.
pub(super) fn old(
    set: &PartitionSet,
    seen: &Seen,
    names: &Names,
    steps: &mut Vec<Step>,
    notes: &mut Vec<String>,
) {
    for part in seen.parts.iter().filter(|part| part.row.detach_pending) {
        let is_ours = part.mark.as_ref().is_some_and(|mark| mark.state == State::Detached);
        // Somebody else's detach is ended, since only one may be pending, and what they wanted with the table is theirs to say.
        let mark = (is_ours || is_over(set, seen, part)).then(|| detached_mark(set, seen, part).text());
        let scripts = vec![sql::finalize(names, &part.table().quoted(), mark.as_deref())];
        let finalize = step(Kind::Finalize, &shown(set, seen, part.range), &part.table(), scripts);
        steps.push(Step { bytes: bytes(part.row.bytes), range: Some(part.range), ..finalize });
        if mark.is_some() && is_over(set, seen, part) {
            steps.extend(remove(
                set,
                seen,
                part.range,
                &part.table(),
                part.row.kind,
                bytes(part.row.bytes),
                notes,
            ));
        }
    }
    for (mark, row) in &seen.detached {
        let table = TableName { schema: row.schema.clone(), name: row.name.clone() };
        if set.then == Then::Detach {
            continue;
        }
        if !range_is_over(set, seen, mark.range()) {
            notes.push(format!("{table} was detached and is within what is kept now; it is left as it is."));
        } else if let Err(why) = is_the_one(&seen.grid, mark, row) {
            notes.push(format!("{table} was detached and is left as it is: {why}."));
        } else {
            steps.extend(remove(set, seen, mark.range(), &table, row.kind, bytes(row.bytes), notes));
        }
    }
    for part in seen.parts.iter().filter(|part| !part.row.detach_pending && is_over(set, seen, part)) {
        let table = part.table();
        let mark = detached_mark(set, seen, part).text();
        let quoted = table.quoted();
        let script = match &names.default {
            None => sql::detach_concurrently(names, &quoted, &mark),
            Some(_) => {
                let lower = match part.range.0 {
                    Bound::At(at) => Some(seen.grid.literal(at)),
                    Bound::Lowest | Bound::Highest => None,
                };
                let upper = bound_sql(&seen.grid, part.range.1);
                sql::detach(names, &quoted, (lower.as_deref(), &upper), &mark)
            }
        };
        let detach = step(Kind::Detach, &shown(set, seen, part.range), &table, vec![script]);
        steps.push(Step { bytes: bytes(part.row.bytes), range: Some(part.range), ..detach });
        steps.extend(remove(set, seen, part.range, &table, part.row.kind, bytes(part.row.bytes), notes));
    }
}

fn bytes(count: i64) -> ByteCount {
    ByteCount(count.unsigned_abs())
}

fn detached_mark(set: &PartitionSet, seen: &Seen, part: &Part) -> Mark {
    let was = match &part.mark {
        Some(mark) => mark.was.clone(),
        None => part.row.comment.clone(),
    };
    Mark { was, ..Mark::new(State::Detached, &set.table, &part.row.name, part.range, seen.at) }
}

/// Tells whether a table is the one that was detached: it has its name, and a CHECK of its bounds.
///
/// # Errors
/// What is not so, as a fragment.
pub(in crate::ops::partition) fn is_the_one(grid: &Grid, mark: &Mark, row: &MarkedRow) -> Result<(), String> {
    if mark.name != row.name {
        return Err(format!("it was called {} then", mark.name));
    }
    let lower = mark.from.map(|from| format!(">= {}", grid.literal(from)));
    let upper = mark.to.map(|to| format!("< {}", grid.literal(to)));
    let (Some(upper), lower) = (upper, lower) else { return Err("its mark has no upper bound".to_owned()) };
    let says =
        |check: &String| check.contains(&upper) && lower.as_ref().is_none_or(|lower| check.contains(lower));
    if row.checks.iter().any(says) {
        Ok(())
    } else {
        Err("it has no CHECK of the bounds that it had".to_owned())
    }
}

/// Returns the step that removes a detached table, if the set wants that.
fn remove(
    set: &PartitionSet,
    seen: &Seen,
    range: Range,
    table: &TableName,
    kind: char,
    bytes: ByteCount,
    notes: &mut Vec<String>,
) -> Option<Step> {
    let which = match set.then {
        Then::Detach => return None,
        Then::Drop => Kind::Drop,
        Then::ExportAndDrop => Kind::ExportAndDrop,
    };
    if kind != 'r' {
        notes.push(format!("{table} is no plain table, so that it is detached and not dropped."));
        return None;
    }
    let drop = step(which, &shown(set, seen, range), table, vec![sql::drop_table(&table.quoted())]);
    Some(Step { bytes, range: Some(range), ..drop })
}
