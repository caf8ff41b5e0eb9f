//! How a set stands, as `health` judges it: how far ahead it reaches, and what is not as declared. Pure.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::grid::{Bound, Grid, Range, parse_bounds};
use super::mark::{Mark, State};
use super::refuse;
use crate::db::health::partitions::{PartSeen, SetSeen};
use crate::db::partition::MarkedRow;
use crate::error::Result;
use crate::topology::partitions::{DefaultPolicy, PartitionSet, TableName, Then, period};

/// What a new period lacks in its first day is made by a daily run, also on the day that the clock goes back.
const DAILY: SignedDuration = SignedDuration::from_hours(25);
/// What is no longer kept goes with a weekly run.
const WEEKLY: SignedDuration = SignedDuration::from_hours(8 * 24);
/// What a run prepares it attaches within its tries.
const PREPARED: SignedDuration = SignedDuration::from_hours(1);

/// How a set stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How many whole periods after the present one have a partition; `None` if the present one has none.
    pub ahead: Option<u32>,
    /// How many of them there must be by now.
    pub due: u32,
    /// Up to when every row has a partition; `None` without `ahead`.
    pub until: Option<String>,
    /// The first period that has no partition.
    pub lacks: String,
    pub default: Option<TableName>,
    /// Partitions whose detach was begun and not ended.
    pub pending: Vec<TableName>,
    /// What is not as declared, as fragments.
    pub amiss: Vec<Amiss>,
}

/// Something that is not as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amiss {
    /// Rows are refused because of it.
    pub refuses_rows: bool,
    pub what: String,
}

/// A partition that takes rows.
struct Piece<'a> {
    row: &'a PartSeen,
    range: Range,
    mark: Option<Mark>,
}

impl Piece<'_> {
    fn state(&self) -> Option<State> {
        self.mark.as_ref().map(|mark| mark.state)
    }
}

struct Look<'a> {
    set: &'a PartitionSet,
    seen: &'a SetSeen,
    grid: Grid,
    at: Timestamp,
    /// By their lower bounds, without the default one and those that are being detached.
    pieces: Vec<Piece<'a>>,
}

/// Says how a set stands at a moment, by what the catalog has of it and the tables that say they were made for it or taken from it.
///
/// # Errors
/// What makes it no set that can be maintained, as [`refuse`] says it.
pub fn standing(set: &PartitionSet, seen: &SetSeen, marked: &[MarkedRow], at: Timestamp) -> Result<Standing> {
    let shape = seen.shape.as_ref().ok_or_else(|| refuse::missing(set, &[]))?;
    let key = refuse::shape(set, shape)?;
    let zone = TimeZone::get(&set.timezone).map_err(|_| refuse::no_zone(set))?;
    let grid = Grid { every: set.every, key, zone };
    let mut pieces = Vec::new();
    for row in seen.parts.iter().filter(|row| !row.is_default && !row.detach_pending) {
        let range = parse_bounds(&row.bound)
            .map_err(|part| refuse::unread_bound(set, (&row.schema, &row.name), &row.bound, &part))?;
        pieces.push(Piece { row, range, mark: row.comment.as_deref().and_then(Mark::read) });
    }
    pieces.sort_by_key(|piece| piece.range);
    let look = Look { set, seen, grid, at, pieces };
    let present = look.grid.present(at);
    let until = look.covered(present);
    let (ahead, lacks) = look.ahead(present, until);
    Ok(Standing {
        ahead,
        due: look.due(present),
        until: ahead.map(|_| look.grid.shown(until)),
        lacks: period(lacks, set.every),
        default: look.default().map(table_of),
        pending: seen.parts.iter().filter(|row| row.detach_pending).map(table_of).collect(),
        amiss: look.amiss(marked),
    })
}

fn table_of(row: &PartSeen) -> TableName {
    TableName { schema: row.schema.clone(), name: row.name.clone() }
}

impl Look<'_> {
    fn default(&self) -> Option<&PartSeen> {
        self.seen.parts.iter().find(|row| row.is_default)
    }

    /// Returns where a row first has no partition, from the begin of a period on; a grid other than the declared one holds rows as well.
    fn covered(&self, from: Date) -> Bound {
        let mut until = Bound::At(self.grid.bound(from));
        for piece in &self.pieces {
            if piece.range.0 <= until && until < piece.range.1 {
                until = piece.range.1;
            }
        }
        until
    }

    /// Counts the whole periods after the present one up to a bound; says which is the first that is not there.
    fn ahead(&self, present: Date, until: Bound) -> (Option<u32>, Date) {
        let holds = |start: Date| Bound::At(self.grid.bound(self.grid.next(start))) <= until;
        if !holds(present) {
            return (None, present);
        }
        let (mut ahead, mut start) = (0, self.grid.next(present));
        // What reaches to MAXVALUE has no end.
        while ahead < self.set.every.ten_years() && holds(start) {
            (ahead, start) = (ahead + 1, self.grid.next(start));
        }
        (Some(ahead), start)
    }

    /// Returns how many periods a run of a day ago has made ahead of the present one, if it made all.
    fn due(&self, present: Date) -> u32 {
        let mut start = self.grid.present(self.at - DAILY);
        let mut due = self.set.ahead;
        while start < present {
            (due, start) = (due.saturating_sub(1), self.grid.next(start));
        }
        due
    }

    fn amiss(&self, marked: &[MarkedRow]) -> Vec<Amiss> {
        let mut amiss: Vec<Amiss> = Vec::new();
        amiss.extend(self.refusing());
        let warns = |what: String| Amiss { refuses_rows: false, what };
        amiss.extend(self.default_policy().map(warns));
        amiss.extend(self.gap().map(warns));
        amiss.extend(self.off_the_grid().map(warns));
        amiss.extend(self.kept_too_long().map(warns));
        amiss.extend(self.left(marked).into_iter().map(warns));
        amiss
    }

    /// A constraint keeps a range out of the default partition while its own is attached; left behind, nobody takes those rows.
    fn refusing(&self) -> Option<Amiss> {
        let default = self.default().filter(|_| self.seen.held_by.is_none())?;
        let exclusion = default.exclusions.first()?;
        let what =
            format!("{exclusion} of {}, left by a run that was cut off, refuses rows", table_of(default));
        Some(Amiss { refuses_rows: true, what })
    }

    fn default_policy(&self) -> Option<String> {
        match (self.set.default_partition, self.default()) {
            (DefaultPolicy::Refuse, Some(default)) => {
                Some(format!("{} is a default partition, and none is wanted", table_of(default)))
            }
            (DefaultPolicy::Create, None) => Some("it has no default partition".to_owned()),
            (DefaultPolicy::Refuse | DefaultPolicy::Create | DefaultPolicy::Leave, _) => None,
        }
    }

    /// Those that were not brought back from the repository.
    fn lasting(&self) -> impl DoubleEndedIterator<Item = &Piece<'_>> {
        self.pieces.iter().filter(|piece| piece.state() != Some(State::Restored))
    }

    fn gap(&self) -> Option<String> {
        let mut before: Option<&Piece<'_>> = None;
        for piece in self.lasting() {
            if let Some(before) = before.filter(|before| before.range.1 != piece.range.0) {
                return Some(format!("there is a gap between {} and {}", before.row.name, piece.row.name));
            }
            before = Some(piece);
        }
        None
    }

    fn off_the_grid(&self) -> Option<String> {
        let last = self.lasting().next_back()?;
        let fits = match last.range {
            (Bound::At(from), Bound::At(to)) => {
                self.grid.period_at(from).is_some_and(|start| self.grid.bound(self.grid.next(start)) == to)
            }
            // What was a plain table reaches back for ever.
            (Bound::Lowest, Bound::At(to)) => self.grid.period_at(to).is_some(),
            (_, Bound::Highest | Bound::Lowest) | (Bound::Highest, _) => false,
        };
        let (every, zone) = (self.set.every.word(), &self.set.timezone);
        (!fits).then(|| format!("{} is not one {every} of {zone}", last.row.name))
    }

    fn kept_too_long(&self) -> Option<String> {
        let keep = self.set.keep?;
        let then = self.at - WEEKLY;
        let cutoff = Bound::At(self.grid.cutoff(then, keep));
        let last = self.pieces.iter().map(|piece| piece.range.1).max();
        let brought_back = |piece: &Piece<'_>| {
            let mark = piece.mark.as_ref().filter(|mark| mark.state == State::Restored);
            mark.is_some_and(|mark| mark.until.is_none_or(|until| until > then))
        };
        let over = |piece: &&Piece<'_>| {
            piece.range.1 <= cutoff && Some(piece.range.1) != last && !brought_back(piece)
        };
        let names: Vec<&str> = self.pieces.iter().filter(over).map(|piece| piece.row.name.as_str()).collect();
        let first = names.first()?;
        let others = match names.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        Some(format!("{first}{others} should have been detached more than a week ago (keep: {keep})"))
    }

    /// Tables that a run has begun with and not ended with.
    fn left(&self, marked: &[MarkedRow]) -> Vec<String> {
        if self.seen.held_by.is_some() {
            return Vec::new();
        }
        let mut left = Vec::new();
        for row in marked {
            let Some(mark) = Mark::read(&row.comment).filter(|mark| mark.of == self.set.table) else {
                continue;
            };
            let table = TableName { schema: row.schema.clone(), name: row.name.clone() };
            let since = self.at.duration_since(mark.at);
            match mark.state {
                State::Prepared if since > PREPARED => {
                    left.push(format!("{table} was made and not attached, by a run that was cut off"));
                }
                State::Detached if self.set.then != Then::Detach && row.kind == 'r' && since > WEEKLY => {
                    left.push(format!("{table} was detached at {:.0} and not dropped since", mark.at));
                }
                State::Prepared | State::Detached | State::Restored => {}
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::partition::{KeyColumn, Shape};
    use crate::ops::partition::look::tests::set;
    use crate::topology::partitions::Every;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Partitions by their bounds.
    fn seen(parts: &[(&str, &str)]) -> SetSeen {
        let bound = |(from, to): &(&str, &str)| format!("FOR VALUES FROM ('{from}') TO ('{to}')");
        let part = |(number, bounds): (usize, &(&str, &str))| PartSeen {
            schema: "shop".to_owned(),
            name: format!("p{number}"),
            bound: bound(bounds),
            is_default: false,
            detach_pending: false,
            comment: None,
            exclusions: Vec::new(),
        };
        let key = KeyColumn { name: "at".to_owned(), type_name: "date".to_owned() };
        SetSeen {
            schema: "shop".to_owned(),
            name: "events".to_owned(),
            shape: Some(Shape { kind: 'p', strategy: Some('r'), keys: 1, key: Some(key) }),
            parts: parts.iter().enumerate().map(part).collect(),
            held_by: None,
        }
    }

    const MONTHS: [(&str, &str); 3] =
        [("2026-10-01", "2026-11-01"), ("2026-11-01", "2026-12-01"), ("2026-12-01", "2027-01-01")];

    fn stands(seen: &SetSeen, set: &PartitionSet, when: &str) -> Standing {
        standing(set, seen, &[], at(when)).unwrap()
    }

    #[test]
    fn it_is_told_how_many_periods_are_ahead_and_which_is_the_first_without_a_partition() {
        let set = set(Every::Month, 2);
        let months = seen(&MONTHS);
        let found = stands(&months, &set, "2026-11-22T10:00:00Z");
        assert_eq!((found.ahead, found.due, found.lacks.as_str()), (Some(1), 2, "2027-01"));
        assert_eq!(found.until.as_deref(), Some("2027-01-01"));
        assert_eq!(found.amiss, []);
        let late = stands(&months, &set, "2027-01-01T00:00:00Z");
        assert_eq!((late.ahead, late.until, late.lacks.as_str()), (None, None, "2027-01"));
        assert_eq!(stands(&seen(&[]), &set, "2026-11-22T10:00:00Z").ahead, None);
    }

    #[test]
    fn a_new_period_has_a_day_to_get_what_it_lacks() {
        let month = set(Every::Month, 2);
        let due = |set: &PartitionSet, when| stands(&seen(&MONTHS), set, when).due;
        assert_eq!(due(&month, "2026-11-01T00:00:00Z"), 1);
        assert_eq!(due(&month, "2026-11-02T00:59:00Z"), 1);
        assert_eq!(due(&month, "2026-11-02T01:00:00Z"), 2);
        assert_eq!(due(&set(Every::Day, 14), "2026-11-02T03:00:00Z"), 13);
        assert_eq!(due(&set(Every::Day, 1), "2026-11-02T00:30:00Z"), 0);
    }

    #[test]
    fn a_gap_ends_what_is_ahead_and_another_grid_holds_rows_as_well() {
        let month = set(Every::Month, 2);
        let gap = seen(&[("2026-11-01", "2026-12-01"), ("2027-01-01", "2027-02-01")]);
        let found = stands(&gap, &month, "2026-11-22T10:00:00Z");
        assert_eq!((found.ahead, found.lacks.as_str()), (Some(0), "2026-12"));
        assert_eq!(found.amiss[0].what, "there is a gap between p0 and p1");
        let halves = seen(&[("2026-11-01", "2026-11-16"), ("2026-11-16", "2027-02-10")]);
        let found = stands(&halves, &month, "2026-11-22T10:00:00Z");
        assert_eq!((found.ahead, found.lacks.as_str()), (Some(2), "2027-02"));
        assert_eq!(found.amiss[0].what, "p1 is not one month of UTC");
        let mut open = seen(&MONTHS);
        open.parts[2].bound = "FOR VALUES FROM ('2026-12-01') TO (MAXVALUE)".to_owned();
        assert_eq!(stands(&open, &month, "2026-11-22T10:00:00Z").ahead, Some(120));
    }

    #[test]
    fn what_is_being_detached_takes_no_rows() {
        let mut pending = seen(&MONTHS);
        pending.parts[2].detach_pending = true;
        let found = stands(&pending, &set(Every::Month, 1), "2026-11-22T10:00:00Z");
        assert_eq!(found.ahead, Some(0));
        assert_eq!(found.pending[0].to_string(), "shop.p2");
    }

    #[test]
    fn what_is_kept_too_long_is_told_after_a_week() {
        let mut old =
            seen(&[("2025-10-01", "2025-11-01"), ("2025-11-01", "2025-12-01"), ("2025-12-01", "2027-01-01")]);
        let year = set(Every::Month, 1);
        let what =
            |seen: &SetSeen, when| stands(seen, &year, when).amiss.first().map(|amiss| amiss.what.clone());
        let off = "p2 is not one month of UTC";
        assert_eq!(what(&old, "2026-11-08T00:00:00Z").as_deref(), Some(off));
        let told = "p0 should have been detached more than a week ago (keep: 1 year)";
        let all = stands(&old, &year, "2026-11-10T00:00:00Z").amiss;
        assert!(all.iter().any(|amiss| amiss.what == told), "{all:?}");
        // Somebody wants it until January.
        let until = Some(at("2027-01-01T00:00:00Z"));
        let range = parse_bounds(&old.parts[0].bound).unwrap();
        let mark = Mark::new(State::Restored, &year.table, "p0", range, at("2026-11-01T00:00:00Z"));
        old.parts[0].comment = Some(Mark { until, ..mark }.text());
        assert!(stands(&old, &year, "2026-11-10T00:00:00Z").amiss.iter().all(|amiss| amiss.what != told));
    }

    #[test]
    fn what_a_run_has_left_is_told_but_not_while_one_works_on_it() {
        let mut create = set(Every::Month, 1);
        create.default_partition = DefaultPolicy::Create;
        create.then = Then::Drop;
        let mut of = seen(&MONTHS);
        let range = parse_bounds(&of.parts[0].bound).unwrap();
        let marked = |state, name: &str| MarkedRow {
            schema: "shop".to_owned(),
            name: name.to_owned(),
            kind: 'r',
            owner: "shop".to_owned(),
            comment: Mark::new(state, &create.table, name, range, at("2026-11-01T00:00:00Z")).text(),
            bytes: 0,
            checks: Vec::new(),
        };
        let left = [marked(State::Prepared, "new"), marked(State::Detached, "old")];
        let told = |of: &SetSeen| {
            let found = standing(&create, of, &left, at("2026-11-22T10:00:00Z")).unwrap();
            found.amiss.iter().map(|amiss| amiss.what.clone()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(
            told(&of),
            "it has no default partition; shop.new was made and not attached, by a run that was cut off; \
             shop.old was detached at 2026-11-01T00:00:00Z and not dropped since"
        );
        of.parts.push(PartSeen {
            name: "rest".to_owned(),
            bound: "DEFAULT".to_owned(),
            is_default: true,
            exclusions: vec!["pgherd_not_p3".to_owned()],
            ..of.parts[0].clone()
        });
        assert!(
            told(&of).starts_with("pgherd_not_p3 of shop.rest, left by a run that was cut off, refuses rows")
        );
        of.held_by = Some(4711);
        assert_eq!(told(&of), "");
    }
}
