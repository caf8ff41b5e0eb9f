//! What a set is on the primary, read in one session; what makes it no set that can be maintained is an error here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::grid::{Bound, Grid, parse_bounds};
use super::mark::{self, Mark, State};
use super::refuse;
use super::set::{Part, Wanted};
use crate::db::Conn;
use crate::db::partition::{
    self as catalog, DefaultRows, ForeignKey, MarkedRow, NameTaken, ParentRow, PartitionRow, PartmanRow,
    SessionFacts,
};
use crate::error::Result;
use crate::pg::ident::MOST_BYTES;
use crate::topology::partitions::{DefaultPolicy, PartitionSet, TableName};

/// The most rows of a default partition that are counted.
pub(super) const MOST_COUNTED: i64 = 1_000_000;

/// Everything that was seen of a set.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub at: Timestamp,
    pub session: SessionFacts,
    pub parent: ParentRow,
    pub grid: Grid,
    /// By their lower bounds, without the default partition.
    pub parts: Vec<Part>,
    pub default: Option<PartitionRow>,
    /// Constraints that an interrupted run has left on the default partition.
    pub leftovers: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
    pub publications: Vec<String>,
    pub grants: Vec<(String, Option<String>, bool)>,
    pub partman: Option<PartmanRow>,
    /// Tables that were partitions of it.
    pub detached: Vec<(Mark, MarkedRow)>,
    pub wanted: Vec<Wanted>,
    /// What has the name of a wanted partition; those that a run has prepared with whether they have rows.
    pub taken: Vec<(NameTaken, bool)>,
    /// Rows of the default partition.
    pub default_rows: Option<DefaultRows>,
    /// Rows of the default partition in wanted ranges, by the name of the partition.
    pub in_the_way: BTreeMap<String, DefaultRows>,
}

/// Looks at a set.
///
/// # Errors
/// What keeps it from being maintained, as `refuse` says it; [`crate::db::DbError`].
pub(super) async fn look(conn: &Conn, set: &PartitionSet, at: Timestamp) -> Result<Seen> {
    let session = catalog::session_facts(conn).await?;
    refuse::session(&session, set, conn.server())?;
    let (schema, name) = (set.table.schema.as_str(), set.table.name.as_str());
    let Some(parent) = catalog::parent(conn, schema, name).await? else {
        return Err(refuse::missing(set, &catalog::spelled_otherwise(conn, schema, name).await?));
    };
    let hypertable = parent.shape.kind == 'r' && catalog::is_hypertable(conn, schema, name).await?;
    let key = refuse::parent(set, &parent, hypertable, at)?;
    if let Some(tablespace) = &set.tablespace {
        let may = catalog::may_use_tablespace(conn, tablespace, &parent.owner).await?;
        refuse::tablespace(set, tablespace, &parent.owner, may)?;
    }
    let zone = TimeZone::get(&set.timezone).map_err(|_| refuse::no_zone(set))?;
    let grid = Grid { every: set.every, key, zone };
    let (mut parts, mut default) = (Vec::new(), None);
    for row in catalog::partitions(conn, parent.oid).await? {
        if row.is_default {
            default = Some(row);
            continue;
        }
        let range = parse_bounds(&row.bound)
            .map_err(|part| refuse::unread_bound(set, (&row.schema, &row.name), &row.bound, &part))?;
        let mark = row.comment.as_deref().and_then(Mark::read);
        parts.push(Part { row, range, mark });
    }
    parts.sort_by_key(|part| part.range);
    let detached = catalog::marked(conn, mark::BEGIN).await?;
    let detached = detached
        .into_iter()
        .filter_map(|row| Mark::read(&row.comment).map(|mark| (mark, row)))
        .filter(|(mark, _)| mark.of == set.table && mark.state == State::Detached)
        .collect();
    let leftovers = match &default {
        Some(default) => {
            catalog::constraints(conn, default.oid, crate::db::partition::sql::EXCLUSION).await?
        }
        None => Vec::new(),
    };
    let wanted = wanted(set, &grid, &parts, at)?;
    let mut taken = Vec::new();
    let mut names: Vec<String> = wanted.iter().map(|wanted| wanted.name.clone()).collect();
    if default.is_none() && set.default_partition == DefaultPolicy::Create {
        names.push(default_name(set));
    }
    for found in catalog::names_taken(conn, schema, &names).await? {
        let is_table = found.kind == 'r' && found.partition_of.is_none();
        let has_rows = is_table && catalog::has_rows(conn, &set.table.beside(&found.name).quoted()).await?;
        taken.push((found, has_rows));
    }
    let mut in_the_way = BTreeMap::new();
    let mut default_rows = None;
    if let Some(default) = &default {
        let table = TableName { schema: default.schema.clone(), name: default.name.clone() }.quoted();
        default_rows = Some(catalog::default_rows(conn, &table, &set.by, None, MOST_COUNTED).await?);
        for one in &wanted {
            let (from, to) = (grid.literal(one.from), grid.literal(one.to));
            let range = Some((from.as_str(), to.as_str()));
            let rows = catalog::default_rows(conn, &table, &set.by, range, MOST_COUNTED).await?;
            if rows.rows > 0 {
                in_the_way.insert(one.name.clone(), rows);
            }
        }
    }
    Ok(Seen {
        at,
        foreign_keys: catalog::foreign_keys(conn, parent.oid).await?,
        publications: catalog::publications(conn, parent.oid).await?,
        grants: if set.copies_grants { catalog::grants(conn, parent.oid).await? } else { Vec::new() },
        partman: catalog::partman(conn, schema, name).await?,
        session,
        parent,
        grid,
        parts,
        default,
        leftovers,
        detached,
        wanted,
        taken,
        default_rows,
        in_the_way,
    })
}

/// Returns how a default partition is called that is made.
pub(super) fn default_name(set: &PartitionSet) -> String {
    let name = format!("{}_default", set.table.name);
    if name.len() > MOST_BYTES { "default_partition".to_owned() } else { name }
}

/// Decides which partitions are missing from the present period to the last one ahead; a lower bound is always the upper bound before it.
fn wanted(set: &PartitionSet, grid: &Grid, parts: &[Part], at: Timestamp) -> Result<Vec<Wanted>> {
    let lasting: Vec<&Part> = parts.iter().filter(|part| !part.is_restored()).collect();
    refuse::gaps(set, grid, &lasting)?;
    let present = grid.present(at);
    let mut end = grid.next(present);
    for _ in 0..set.ahead {
        end = grid.next(end);
    }
    let (mut begin, mut missing) = (present, Vec::new());
    if let (Some(first), Some(last)) = (lasting.first(), lasting.last()) {
        begin = refuse::last(set, grid, last)?;
        // A set that begins in the future lacks what comes before.
        if let Bound::At(lower) = first.range.0
            && grid.bound(present) < lower
        {
            let until = grid.period_at(lower).ok_or_else(|| refuse::misaligned(set, grid, first))?;
            missing.push((present, until));
        }
    }
    missing.push((begin, end));
    let mut wanted = Vec::new();
    for (mut start, until) in missing {
        while start < until {
            let next = grid.next(start);
            wanted.push(Wanted {
                start,
                from: grid.bound(start),
                to: grid.bound(next),
                name: set.names.name(&set.table.name, start, set.every),
            });
            if wanted.len() > set.every.ten_years() as usize {
                return Err(refuse::too_late(set, grid, lasting.last().copied()));
            }
            start = next;
        }
    }
    Ok(wanted)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ops::partition::grid::KeyType;
    use crate::topology::partitions::{Every, Keep, NamePattern, Then};

    pub(in crate::ops::partition) fn set(every: Every, ahead: u32) -> PartitionSet {
        PartitionSet {
            table: TableName::parse("shop.events").unwrap(),
            database: "shop".to_owned(),
            by: "at".to_owned(),
            every,
            ahead,
            keep: Some(Keep::parse("1 year").unwrap()),
            then: Then::Detach,
            keep_exports: None,
            timezone: "UTC".to_owned(),
            default_partition: DefaultPolicy::Leave,
            tablespace: None,
            copies_grants: false,
            names: NamePattern::usual(every),
        }
    }

    pub(in crate::ops::partition) fn part(name: &str, from: &str, to: &str) -> Part {
        let quoted = |text: &str| if text.ends_with("VALUE") { text.to_owned() } else { format!("'{text}'") };
        let bound = format!("FOR VALUES FROM ({}) TO ({})", quoted(from), quoted(to));
        Part {
            range: parse_bounds(&bound).unwrap(),
            mark: None,
            row: PartitionRow {
                oid: 1,
                schema: "shop".to_owned(),
                name: name.to_owned(),
                kind: 'r',
                bound,
                is_default: false,
                detach_pending: false,
                comment: None,
                bytes: 8192,
                rows: 10.0,
                options: Vec::new(),
            },
        }
    }

    fn names(set: &PartitionSet, parts: &[Part], at: &str) -> Vec<String> {
        let grid = Grid { every: set.every, key: KeyType::Date, zone: TimeZone::UTC };
        let wanted = wanted(set, &grid, parts, at.parse().unwrap()).unwrap();
        wanted.into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn what_is_missing_goes_on_from_the_last_bound() {
        let set = set(Every::Month, 2);
        let november = [part("p", "2026-11-01", "2026-12-01")];
        let at = "2026-11-22T10:00:00Z";
        assert_eq!(names(&set, &november, at), ["events_2026_12", "events_2027_01"]);
        assert_eq!(names(&set, &[], at), ["events_2026_11", "events_2026_12", "events_2027_01"]);
        // Nobody has run it for two months: nothing is left out.
        let late = names(&set, &november, "2027-01-02T00:00:00Z");
        assert_eq!(late, ["events_2026_12", "events_2027_01", "events_2027_02", "events_2027_03"]);
        // More than wanted is there.
        assert!(
            names(
                &set,
                &[
                    part("p", "2026-11-01", "2026-12-01"),
                    part("q", "2026-12-01", "2027-01-01"),
                    part("r", "2027-01-01", "2027-02-01"),
                    part("s", "2027-02-01", "2027-03-01")
                ],
                at
            )
            .is_empty()
        );
    }

    #[test]
    fn a_set_that_begins_in_the_future_gets_the_present_too() {
        let set = set(Every::Month, 1);
        let parts = [part("p", "2027-01-01", "2027-02-01")];
        assert_eq!(names(&set, &parts, "2026-11-22T10:00:00Z"), ["events_2026_11", "events_2026_12"]);
    }

    #[test]
    fn what_a_plain_table_became_is_followed() {
        let set = set(Every::Month, 1);
        let parts = [part("old", "MINVALUE", "2026-12-01")];
        assert_eq!(names(&set, &parts, "2026-11-22T10:00:00Z"), ["events_2026_12"]);
    }

    #[test]
    fn a_partition_that_was_brought_back_leaves_no_gap() {
        let set = set(Every::Month, 1);
        let mut old = part("old", "2020-01-01", "2020-02-01");
        old.mark = Some(Mark::new(State::Restored, &set.table, "old", old.range, Timestamp::UNIX_EPOCH));
        let parts = [old, part("p", "2026-11-01", "2026-12-01")];
        assert_eq!(names(&set, &parts, "2026-11-22T10:00:00Z"), ["events_2026_12"]);
    }
}
