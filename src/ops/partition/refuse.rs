//! What makes a table no set that can be maintained, each with its evidence and the way out. Pure.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::grid::{Bound, Grid, KeyType};
use super::mark::{Mark, State};
use super::set::{Part, Wanted};
use crate::db::partition::session::Blocker;
use crate::db::partition::{
    DefaultRows, NameTaken, ParentRow, PartitionRow, PartmanRow, SessionFacts, Shape,
};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::ident::quote_identifier;
use crate::topology::partitions::{PartitionSet, TableName, period};
use crate::units::human_duration;

/// Says that a set cannot be maintained.
fn cannot(set: &PartitionSet, why: &str) -> Error {
    Error::refused(format!("cannot maintain the partitions of {}: {why}", set.table))
}

/// Checks that what we are connected to can be written to.
pub(super) fn session(facts: &SessionFacts, set: &PartitionSet, server: &str) -> Result<()> {
    if facts.in_recovery {
        return Err(cannot(set, &format!("{server} is a standby"))
            .detail(
                "Partitions are made on the primary, and standbys have them from there. Nothing was changed.",
            )
            .hint("See who is primary: pgherd status"));
    }
    if facts.read_only {
        return Err(cannot(set, &format!("{server} takes no writes in database {}", facts.database))
            .detail("transaction_read_only is on in a new session: default_transaction_read_only is set for the server, the database or the role. Nothing was changed.")
            .hint("See where it is set: select * from pg_db_role_setting, and show default_transaction_read_only."));
    }
    Ok(())
}

/// There is no such table.
pub(super) fn missing(set: &PartitionSet, otherwise: &[String]) -> Error {
    let error = Error::new(
        ErrorKind::NotFound,
        format!("there is no table {} in database {}", set.table, set.database),
    );
    match otherwise {
        [] => error.hint(format!(
            "Make it as a partitioned table: create table {} (...) partition by range ({}).",
            set.table.quoted(),
            quote_identifier(&set.by)
        )),
        names => error
            .detail(format!(
                "There is {}. Names in the file are exact, as they are in double quotes.",
                names.join(" and ")
            ))
            .hint(format!("Write it as it is: partitions: {{{}: ...}}.", names[0])),
    }
}

/// Checks that a relation is one whose partitions we may make and remove, and returns the type of what it is partitioned by.
pub(super) fn parent(
    set: &PartitionSet,
    parent: &ParentRow,
    hypertable: bool,
    at: Timestamp,
) -> Result<KeyType> {
    if hypertable {
        return Err(cannot(set, "it is a hypertable of TimescaleDB")
            .detail("TimescaleDB makes and drops its chunks itself. Nothing was changed.")
            .hint("Take it out of the topology; its own policies do this work."));
    }
    if let Some(extension) = &parent.extension {
        return Err(cannot(set, &format!("it belongs to the extension {extension}"))
            .detail("What is done to it would not survive an update of the extension. Nothing was changed.")
            .hint("Take it out of the topology."));
    }
    if parent.shape.kind == 'r' {
        return Err(plain(set, parent, at));
    }
    let kind = shape(set, &parent.shape)?;
    if !parent.may_act_as_owner {
        return Err(cannot(set, &format!("it belongs to {}, and we may not act as that role", parent.owner))
            .detail("New partitions belong to the owner of the table, and only an owner attaches and detaches. Nothing was changed.")
            .hint(format!("Give the role that pgherd logs in as a membership: grant {} to ROLE.", quote_identifier(&parent.owner))));
    }
    if !parent.owner_may_create {
        return Err(cannot(set, &format!("its owner {} may not make tables in schema {}", parent.owner, set.table.schema))
            .detail("New partitions are made by the owner of the table, so that its default privileges hold for them. Nothing was changed.")
            .hint(format!(
                "Grant it: grant create on schema {} to {}.",
                quote_identifier(&set.table.schema),
                quote_identifier(&parent.owner)
            )));
    }
    Ok(kind)
}

/// Checks that a relation is partitioned by range of the declared column, and returns the type of that.
pub(super) fn shape(set: &PartitionSet, shape: &Shape) -> Result<KeyType> {
    if shape.kind != 'p' {
        return Err(cannot(set, &format!("it is {}", kind_name(shape.kind)))
            .detail("Only a partitioned table has partitions. Nothing was changed.")
            .hint("Name the partitioned table, or take it out of the topology."));
    }
    let strategy = shape.strategy.unwrap_or('r');
    if strategy != 'r' {
        let word = if strategy == 'l' { "LIST" } else { "HASH" };
        return Err(cannot(set, &format!("it is partitioned by {word}"))
            .detail("Time goes on, so that partitions by time are ranges. Nothing was changed.")
            .hint(format!("Partition it by range ({}), or take it out of the topology.", set.by)));
    }
    let Some(key) = shape.key.as_ref() else {
        let why = if shape.keys > 1 {
            format!("it is partitioned by {} columns", shape.keys)
        } else {
            "it is partitioned by an expression".to_owned()
        };
        return Err(cannot(set, &why)
            .detail("A period is a range of one column. Nothing was changed.")
            .hint(format!("Partition it by range ({}) alone, or take it out of the topology.", set.by)));
    };
    if key.name != set.by {
        return Err(cannot(set, &format!("it is partitioned by {}, the topology says {}", key.name, set.by))
            .hint(format!("Write by: {}.", key.name)));
    }
    KeyType::of(&key.type_name).ok_or_else(|| {
        cannot(set, &format!("{} is of type {}", key.name, key.type_name))
            .detail(
                "A period of the calendar is a range of date, timestamp or timestamptz. Nothing was changed.",
            )
            .hint("Partition it by such a column, or take it out of the topology.")
    })
}

fn kind_name(kind: char) -> &'static str {
    match kind {
        'v' => "a view",
        'm' => "a materialized view",
        'f' => "a foreign table",
        'S' => "a sequence",
        'i' | 'I' => "an index",
        'c' => "a composite type",
        'r' => "a table",
        'p' => "a partitioned table",
        _ => "something else",
    }
}

/// A plain table, with the way to convert it.
fn plain(set: &PartitionSet, parent: &ParentRow, at: Timestamp) -> Error {
    Error::refused(format!("cannot maintain the partitions of {}: it is a plain table", set.table))
        .detail("PostgreSQL cannot turn a table into a partitioned one in place. Nothing was changed.")
        .hint(format!(
            "The table can become the first partition of a new one:\n{}",
            conversion(set, parent, at)
        ))
}

/// Writes how a plain table becomes the first partition of a partitioned one: no row is moved. The slow part is done before the short one.
pub(super) fn conversion(set: &PartitionSet, parent: &ParentRow, at: Timestamp) -> String {
    let zone = TimeZone::get(&set.timezone).unwrap_or(TimeZone::UTC);
    // The server casts the literal: for a date and a timestamp the time is midnight, for a timestamptz the zone is said.
    let grid = Grid { every: set.every, key: KeyType::Date, zone: zone.clone() };
    let next = grid.next(grid.next(grid.present(at)));
    let (table, old) = (set.table.quoted(), set.table.beside(&format!("{}_before", set.table.name)));
    let (key, check) = (quote_identifier(&set.by), quote_identifier(&format!("{}_before", set.by)));
    let bound = format!("'{next} 00:00:00 {}'", set.timezone);
    [
        format!("  alter table {table} add constraint {check} check ({key} is not null and {key} < {bound}) not valid;"),
        format!("  alter table {table} validate constraint {check};     -- reads the table, blocks nobody"),
        "  begin;".to_owned(),
        "  set local lock_timeout = '2s';".to_owned(),
        format!("  alter table {table} rename to {};", quote_identifier(&old.name)),
        format!("  create table {table} (like {} including all excluding indexes excluding identity) partition by range ({key});", old.quoted()),
        format!("  alter table {table} drop constraint {check}, owner to {};", quote_identifier(&parent.owner)),
        format!("  alter table {table} attach partition {} for values from (minvalue) to ({bound});", old.quoted()),
        "  commit;".to_owned(),
        "  -- then: primary key and indexes (the key must hold the column), grants, foreign keys, triggers; and pgherd partition apply".to_owned(),
    ]
    .join("\n")
}

/// Checks that the owner may use the declared tablespace; `None`: there is none.
pub(super) fn tablespace(set: &PartitionSet, tablespace: &str, owner: &str, may: Option<bool>) -> Result<()> {
    let name = quote_identifier(tablespace);
    match may {
        Some(true) => Ok(()),
        Some(false) => {
            Err(cannot(set, &format!("its owner {owner} may not use the tablespace {tablespace}"))
                .detail("New partitions are made by the owner of the table. Nothing was changed.")
                .hint(format!("Grant it: grant create on tablespace {name} to {}.", quote_identifier(owner))))
        }
        None => Err(cannot(set, &format!("there is no tablespace {tablespace}"))
            .detail("Nothing was changed.")
            .hint(format!("Make it on every node, then: create tablespace {name} location '/PATH'."))),
    }
}

/// The zone is not known on this machine.
pub(super) fn no_zone(set: &PartitionSet) -> Error {
    cannot(set, &format!("the time zone {} is not known here", set.timezone))
        .hint("Install the package tzdata.")
}

/// A bound that is no moment of the calendar.
pub(super) fn unread_bound(
    set: &PartitionSet,
    (schema, name): (&str, &str),
    bound: &str,
    part: &str,
) -> Error {
    cannot(set, &format!("the bound of {schema}.{name} cannot be read"))
        .detail(format!("{bound}: {part} is no moment between the years 1 and 9999. Nothing was changed."))
        .hint("Detach that partition, or take the table out of the topology.")
}

fn shown(grid: &Grid, part: &Part) -> String {
    format!("{} [{}, {})", part.row.name, grid.shown(part.range.0), grid.shown(part.range.1))
}

/// Checks that each partition begins where the one before it ends.
pub(super) fn gaps(set: &PartitionSet, grid: &Grid, parts: &[&Part]) -> Result<()> {
    for pair in parts.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        if before.range.1 == after.range.0 {
            continue;
        }
        let error = cannot(set, &format!("there is a gap between {} and {}", before.row.name, after.row.name))
            .detail(format!("{} is followed by {}. Rows between them are refused or go to a default partition. Nothing was changed.", shown(grid, before), shown(grid, after)));
        let (Bound::At(from), Bound::At(to)) = (before.range.1, after.range.0) else { return Err(error) };
        let name = set.names.name(&set.table.name, grid.day_of(from), set.every);
        return Err(error.hint(format!(
            "Fill it: create table {} partition of {} for values from ({}) to ({}); or detach what lies before it.",
            set.table.beside(&name).quoted(),
            set.table.quoted(),
            grid.literal(from),
            grid.literal(to)
        )));
    }
    Ok(())
}

/// Checks that the last partition is one period of the declared grid, and returns the period that follows it.
pub(super) fn last(set: &PartitionSet, grid: &Grid, last: &Part) -> Result<Date> {
    let upper = match last.range.1 {
        Bound::At(upper) => upper,
        Bound::Highest | Bound::Lowest => {
            return Err(cannot(set, &format!("{} reaches to MAXVALUE", last.row.name))
                .detail(format!("{} covers every period that is to come, so that no partition can be added. Nothing was changed.", shown(grid, last)))
                .hint("Detach it, and attach it again with an upper bound; or make it the default partition."));
        }
    };
    let after = grid.period_at(upper).ok_or_else(|| misaligned(set, grid, last))?;
    match last.range.0 {
        // What was a plain table reaches back for ever.
        Bound::Lowest => Ok(after),
        Bound::At(lower) => match grid.period_at(lower) {
            Some(start) if grid.next(start) == after => Ok(after),
            Some(_) | None => Err(misaligned(set, grid, last)),
        },
        Bound::Highest => Err(misaligned(set, grid, last)),
    }
}

/// A partition is not one period of the declared grid.
pub(super) fn misaligned(set: &PartitionSet, grid: &Grid, part: &Part) -> Error {
    let error =
        cannot(set, &format!("{} is not one {} of {}", part.row.name, set.every.word(), set.timezone));
    let expected = match part.range.0 {
        Bound::At(lower) => {
            let start = grid.floor(grid.day_of(lower));
            format!(
                "the {} {} is [{}, {})",
                set.every.word(),
                period(start, set.every),
                grid.shown(Bound::At(grid.bound(start))),
                grid.shown(Bound::At(grid.bound(grid.next(start))))
            )
        }
        Bound::Lowest | Bound::Highest => format!("a {} begins at midnight", set.every.word()),
    };
    let error = error.detail(format!(
        "It is {}; {expected}. A grid is followed as it is, never bent. Nothing was changed.",
        shown(grid, part)
    ));
    let other_hour = |bound| match bound {
        Bound::At(at)
            if grid.key == KeyType::Timestamptz && at.time() != grid.bound(grid.day_of(at)).time() =>
        {
            Some(at)
        }
        Bound::At(_) | Bound::Lowest | Bound::Highest => None,
    };
    match other_hour(part.range.0).or_else(|| other_hour(part.range.1)) {
        Some(at) => error.hint(format!(
            "Its days begin at {}: say whose midnight that is, such as timezone: Europe/Berlin.",
            at.strftime("%H:%M UTC")
        )),
        None => {
            error.hint("Declare the interval that the table has: every: day, week, month, quarter or year.")
        }
    }
}

/// So much is missing that it would be too many partitions.
pub(super) fn too_late(set: &PartitionSet, grid: &Grid, last: Option<&Part>) -> Error {
    let detail = match last {
        Some(last) => format!("The last partition is {}. Nothing was changed.", shown(grid, last)),
        None => "Nothing was changed.".to_owned(),
    };
    cannot(set, &format!("more than {} partitions are missing, ten years of them", set.every.ten_years()))
        .detail(detail)
        .hint("Attach one partition that covers the time in between, then run the same again.")
}

/// A relation has the name of a partition that shall be made.
pub(super) fn name_taken(set: &PartitionSet, what_for: &str, found: &NameTaken) -> Error {
    let mark = found.comment.as_deref().and_then(Mark::read);
    let what = match (&found.partition_of, &mark) {
        (Some(parent), _) => format!("a partition of {parent}"),
        (None, Some(mark)) if mark.state == State::Detached => {
            format!("a partition that was detached from {} at {}", mark.of, mark.at)
        }
        (None, Some(mark)) => format!("a table that was prepared for {} and has rows", mark.of),
        (None, None) => format!("{} that has nothing to do with it", kind_name(found.kind)),
    };
    let table = set.table.beside(&found.name);
    cannot(set, &format!("{table} is taken"))
        .detail(format!(
            "The partition {what_for} would be called like that, and it is {what}. Nothing was changed."
        ))
        .hint(format!(
            "Rename one of them: alter table {} rename to NAME; or name partitions otherwise: names: \"{}\".",
            table.quoted(),
            set.names.as_str()
        ))
}

/// Two periods would have the same name.
pub(super) fn same_name(set: &PartitionSet, name: &str) -> Error {
    cannot(set, &format!("two partitions would be called {name}")).hint("Change \"names\" in the topology.")
}

/// Rows of a wanted range are in the default partition.
pub(super) fn rows_in_default(
    set: &PartitionSet,
    default: &TableName,
    wanted: &Wanted,
    rows: &DefaultRows,
) -> Error {
    cannot(set, &format!("the default partition {default} has rows of {}", period(wanted.start, set.every)))
        .detail(format!(
            "It is {}. A partition for them cannot be attached before they are out of there.",
            rows.told()
        ))
        .hint(format!(
            "See what moving them takes, and move them: pgherd partition drain {} --preview",
            set.table
        ))
}

/// A default partition that shall not be.
pub(super) fn default_is_there(set: &PartitionSet, default: &PartitionRow) -> Error {
    cannot(set, &format!("it has the default partition {}.{}, and the topology refuses one", default.schema, default.name))
        .detail("A default partition takes what has no partition, so that nobody notices; and no partition can be detached concurrently beside one. Nothing was changed.")
        .hint(format!(
            "See what is in it: pgherd partition list {}. When it is empty: alter table {} detach partition {}.",
            set.table,
            set.table.quoted(),
            TableName { schema: default.schema.clone(), name: default.name.clone() }.quoted()
        ))
}

/// pg_partman maintains it.
pub(super) fn partman(set: &PartitionSet, row: &PartmanRow) -> Error {
    let retention = row.retention.as_ref().map(|span| format!(", retention {span}")).unwrap_or_default();
    let detail = format!(
        "{}.part_config has it with interval {}{retention}. Two who make and drop partitions get in each other's way. Nothing was changed.",
        row.schema, row.interval
    );
    if row.has_sub_partitions {
        return cannot(set, "pg_partman maintains it, with partitions of partitions")
            .detail(detail)
            .hint("Take it out of the topology: partitions of partitions cannot be declared.");
    }
    cannot(set, "pg_partman maintains it").detail(detail).hint(format!(
        "Take it over, with the partitions as they are: pgherd partition apply {} --adopt",
        set.table
    ))
}

/// Another operator holds the set.
pub(super) fn held(set: &PartitionSet, by: Option<&Blocker>) -> Error {
    let error =
        Error::new(ErrorKind::Locked, format!("somebody else maintains the partitions of {} now", set.table));
    match by {
        Some(by) => error.detail(format!("{}. Nothing was changed.", blocker(by))),
        None => error.detail("They have just ended. Nothing was changed."),
    }
    .hint("Wait until they are done; then run the same again.")
}

/// Says who is in the way: `pid 812 (app, psql), active since 41 s: select …`.
pub(super) fn blocker(by: &Blocker) -> String {
    let who: Vec<&str> = [&by.user, &by.application]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .filter(|word| !word.is_empty())
        .collect();
    let who = if who.is_empty() { String::new() } else { format!(" ({})", who.join(", ")) };
    let since = by
        .seconds
        .filter(|seconds| *seconds >= 0.0)
        .map(|seconds| format!(" since {}", human_duration(std::time::Duration::from_secs_f64(seconds))))
        .unwrap_or_default();
    let query = by.query.as_ref().filter(|query| !query.is_empty());
    let query = query
        .map(|query| format!(": {}", query.split_whitespace().collect::<Vec<_>>().join(" ")))
        .unwrap_or_default();
    format!("pid {}{who}, {}{since}{query}", by.pid, by.state.as_deref().unwrap_or("there"))
}
