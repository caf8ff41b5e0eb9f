//! Rows leave a default partition: one period at a time, each in one transaction, so that no reader misses a row.

use jiff::civil::Date;
use serde::Serialize;

use super::grid::{Bound, Grid};
use super::look::{self, Seen};
use super::plan::{self, table_of};
use super::set::Wanted;
use super::worker::{self, Options, Way, Worker};
use crate::db::partition::{self as catalog, sql};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::topology::model::{Cluster, Herd};
use crate::topology::partitions::{Every, PartitionSet, TableName, period};

/// What is moved.
#[derive(Debug, Clone)]
pub struct DrainWish {
    pub table: TableName,
    /// The periods, as they are called: `2026-12`; all of them where it is empty.
    pub periods: Vec<String>,
    /// No period with more rows is moved.
    pub most_rows: u64,
    /// Only look.
    pub preview: bool,
}

/// What became of a default partition, or would.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drained {
    pub table: TableName,
    pub default_partition: Option<TableName>,
    pub periods: Vec<DrainedPeriod>,
    /// Rows that no period holds: `infinity`, `-infinity` and NULL.
    pub timeless_rows: i64,
    pub retries: u32,
    pub preview: bool,
}

/// One period.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DrainedPeriod {
    pub period: String,
    pub rows: i64,
    /// Where they go.
    pub partition: TableName,
    /// Empty partitions that are made with it, so that there is no gap.
    pub before: Vec<String>,
    pub moved: bool,
    /// Why it is left, as a fragment.
    pub left: Option<String>,
}

/// Moves rows, or says what that would take.
///
/// # Errors
/// [`ErrorKind::Refused`] with foreign keys to the table; [`ErrorKind::Locked`] while somebody else maintains the set; who was in the way. What was moved
/// by then is moved.
pub async fn drain(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &DrainWish,
    options: &Options,
    interrupt: &Interrupt,
) -> Result<Drained> {
    let set = worker::chosen(cluster, std::slice::from_ref(&wish.table))?.remove(0);
    let way = Way::open(context, herd, cluster).await?;
    let mut worker = Worker::open(&way, &set.database, options).await?;
    let seen = look::look(&worker.conn, set, options.now()).await?;
    let seen = if wish.preview {
        seen
    } else {
        worker.hold(set, seen.parent.oid).await?;
        // What was read before the set was held may have been changed by who held it.
        look::look(&worker.conn, set, options.now()).await?
    };
    let mut drained = Drained {
        table: set.table.clone(),
        default_partition: seen.default.as_ref().map(table_of),
        periods: Vec::new(),
        timeless_rows: 0,
        retries: 0,
        preview: wish.preview,
    };
    let Some(default) = seen.default.as_ref().map(table_of) else { return Ok(drained) };
    let own = seen.parent.oid;
    if let Some(key) = seen.foreign_keys.iter().find(|key| key.to_oid == own) {
        return Err(Error::refused(format!("cannot move rows of {default}: {} has a foreign key to {}", key.from, set.table))
            .detail(format!("A row that is moved is deleted and inserted, and what {} does on DELETE would follow. Nothing was changed.", key.name))
            .hint("Drop the foreign key, move the rows, and add it again as NOT VALID; then VALIDATE it."));
    }
    let zone = matches!(seen.grid.key, super::grid::KeyType::Timestamptz).then_some(set.timezone.as_str());
    let found =
        catalog::default_periods(&worker.conn, &default.quoted(), &set.by, (set.every.word(), zone)).await?;
    for (day, rows) in found {
        match day.as_deref().map(str::parse::<Date>) {
            Some(Ok(start)) => drained.periods.push(decide(set, &seen, wish, start, rows)),
            Some(Err(_)) | None => drained.timeless_rows += rows,
        }
    }
    named_exist(wish, &drained)?;
    close_gaps(set, &seen, &mut drained.periods);
    if wish.preview {
        return Ok(drained);
    }
    let names = plan::names(set, &seen);
    let columns: Vec<String> = catalog::columns(&worker.conn, &set.table.schema, &set.table.name)
        .await?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let columns = catalog::quoted(&columns);
    for one in drained.periods.iter_mut().filter(|one| one.left.is_none()) {
        if interrupt.is_asked() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted")
                .detail("What was moved by then is moved. The next run goes on."));
        }
        for called in &one.before {
            let empty = wanted(set, &seen.grid, called);
            make(&mut worker, set, &seen, &names, &empty, None).await?;
        }
        let wanted = wanted(set, &seen.grid, &one.period);
        make(&mut worker, set, &seen, &names, &wanted, Some(columns.as_str())).await?;
        one.moved = true;
    }
    drained.retries = worker.retries;
    Ok(drained)
}

fn wanted(set: &PartitionSet, grid: &Grid, called: &str) -> Wanted {
    let start = start_of(called, set.every).expect("a period was named by us");
    let name = set.names.name(&set.table.name, start, set.every);
    Wanted { start, from: grid.bound(start), to: grid.bound(grid.next(start)), name }
}

/// Makes a partition beside the default one: with the rows of these columns that it has in there, or without any.
async fn make(
    worker: &mut Worker,
    set: &PartitionSet,
    seen: &Seen,
    names: &sql::Names,
    wanted: &Wanted,
    columns: Option<&str>,
) -> Result<()> {
    let Some(default) = &names.default else { return Ok(()) };
    // What has the name may be what an interrupted run has prepared.
    let mut now = seen.clone();
    let found =
        catalog::names_taken(&worker.conn, &set.table.schema, std::slice::from_ref(&wanted.name)).await?;
    for found in found {
        let table = set.table.beside(&found.name).quoted();
        let has_rows = found.kind != 'r' || catalog::has_rows(&worker.conn, &table).await?;
        now.taken.push((found, has_rows));
    }
    for script in plan::prepare(set, &now, names, wanted)? {
        worker.insist(&script).await?;
    }
    let table = set.table.beside(&wanted.name).quoted();
    let (from, to) = (seen.grid.literal(wanted.from), seen.grid.literal(wanted.to));
    let script = match columns {
        Some(columns) => sql::drain(names, default, &table, columns, (&from, &to)),
        None => sql::attach(names, &table, (&from, &to), None, None),
    };
    worker.insist(&script).await
}

/// Says which empty partitions must come before those that rows are moved to, so that no gap is left; where rows that are not moved are in that gap, what is
/// behind it is left too.
fn close_gaps(set: &PartitionSet, seen: &Seen, periods: &mut [DrainedPeriod]) {
    let lasting = || seen.parts.iter().filter(|part| !part.is_restored());
    let ends = (lasting().next().map(|part| part.range.0), lasting().next_back().map(|part| part.range.1));
    let (Some(Bound::At(first)), Some(Bound::At(last))) = ends else { return };
    let (Some(first), Some(after)) = (seen.grid.period_at(first), seen.grid.period_at(last)) else { return };
    let with_rows: Vec<(String, bool)> =
        periods.iter().map(|one| (one.period.clone(), one.left.is_none())).collect();
    let (mut covered_to, mut starts) = (after, Vec::new());
    for one in periods.iter_mut().filter(|one| one.left.is_none()) {
        let Some(start) = start_of(&one.period, set.every) else { continue };
        if start < first {
            starts.push(start);
            continue;
        }
        let mut between = covered_to;
        while between < start {
            one.before.push(period(between, set.every));
            between = seen.grid.next(between);
        }
        covered_to = covered_to.max(seen.grid.next(start));
    }
    // Before the first partition, the gaps are closed with the oldest that is moved.
    if let Some(oldest) = starts.iter().min().copied() {
        let mut empty = Vec::new();
        let mut between = oldest;
        while between < first {
            if !starts.contains(&between) {
                empty.push(period(between, set.every));
            }
            between = seen.grid.next(between);
        }
        let called = period(oldest, set.every);
        if let Some(one) = periods.iter_mut().find(|one| one.period == called) {
            one.before = empty;
        }
    }
    let mut broken = false;
    for one in periods.iter_mut().filter(|one| one.left.is_none()) {
        let in_gap = one
            .before
            .iter()
            .find(|called| with_rows.iter().any(|(other, moved)| other == *called && !moved));
        broken |= in_gap.is_some();
        if broken {
            let which = in_gap.cloned().unwrap_or_else(|| "another period".to_owned());
            one.left = Some(format!("rows of {which} come between, and are not moved"));
        }
    }
}

fn decide(set: &PartitionSet, seen: &Seen, wish: &DrainWish, start: Date, rows: i64) -> DrainedPeriod {
    let called = period(start, set.every);
    let partition = set.table.beside(&set.names.name(&set.table.name, start, set.every));
    let (from, to) = (Bound::At(seen.grid.bound(start)), Bound::At(seen.grid.bound(seen.grid.next(start))));
    let other = seen.parts.iter().find(|part| part.range.0 < to && from < part.range.1);
    let far = start.year() > seen.grid.present(seen.at).year() + 10;
    let left = if !wish.periods.is_empty() && !wish.periods.contains(&called) {
        Some("not asked for".to_owned())
    } else if let Some(other) = other {
        Some(format!("{} has a part of that time", other.row.name))
    } else if far {
        Some("more than ten years ahead: a slip of the pen?".to_owned())
    } else if u64::try_from(rows).is_ok_and(|rows| rows > wish.most_rows) {
        Some(format!(
            "more than {} rows: whoever reads or writes the default partition would wait",
            wish.most_rows
        ))
    } else {
        None
    };
    DrainedPeriod { period: called, rows, partition, before: Vec::new(), moved: false, left }
}

/// A period that was named and has no row is a slip of the pen.
fn named_exist(wish: &DrainWish, drained: &Drained) -> Result<()> {
    let unknown = wish.periods.iter().find(|named| !drained.periods.iter().any(|one| one.period == **named));
    let Some(unknown) = unknown else { return Ok(()) };
    let known: Vec<&str> = drained.periods.iter().map(|one| one.period.as_str()).collect();
    let error = Error::new(
        ErrorKind::NotFound,
        format!("the default partition of {} has no rows of {unknown}", drained.table),
    );
    Err(if known.is_empty() {
        error.hint("It is empty.")
    } else {
        error.hint(format!("It has rows of {}.", known.join(", ")))
    })
}

/// Reads how a period is called.
fn start_of(called: &str, every: Every) -> Option<Date> {
    let (year, rest) = called.split_once('-').unwrap_or((called, ""));
    let year: i16 = year.parse().ok()?;
    let start = match every {
        Every::Year => Date::new(year, 1, 1).ok()?,
        Every::Quarter => {
            Date::new(year, (rest.strip_prefix('q')?.parse::<i8>().ok()? - 1) * 3 + 1, 1).ok()?
        }
        Every::Month => Date::new(year, rest.parse().ok()?, 1).ok()?,
        Every::Week => {
            let week = rest.strip_prefix('w')?.parse().ok()?;
            jiff::civil::ISOWeekDate::new(year, week, jiff::civil::Weekday::Monday).ok()?.date()
        }
        Every::Day => called.parse().ok()?,
    };
    (period(start, every) == called).then_some(start)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn a_period_is_read_as_it_is_called() {
        for (every, start) in [
            (Every::Day, date(2026, 12, 5)),
            (Every::Week, date(2024, 12, 30)),
            (Every::Week, date(2026, 12, 28)),
            (Every::Month, date(2026, 12, 1)),
            (Every::Quarter, date(2026, 10, 1)),
            (Every::Year, date(2026, 1, 1)),
        ] {
            assert_eq!(start_of(&period(start, every), every), Some(start));
        }
        for (every, text) in [
            (Every::Month, "2026-13"),
            (Every::Month, "2026-1"),
            (Every::Week, "2026-w54"),
            (Every::Year, "now"),
        ] {
            assert_eq!(start_of(text, every), None, "{text}");
        }
    }
}
