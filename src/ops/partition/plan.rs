//! Decides what is to be done to a set, as statements that are printed and run alike. Pure.
//!
//! First what is missing, then what is no longer kept ([`retention`]): a partition goes only when every one that is wanted is there.

mod notes;
mod retention;

use std::collections::BTreeMap;

pub(super) use retention::{is_over, is_the_one};
use serde::Serialize;

use super::grid::{Bound, Grid, Range};
use super::look::{Seen, default_name};
use super::mark::{Mark, State};
use super::refuse;
use super::set::{Part, Wanted};
use crate::db::partition::PartitionRow;
use crate::db::partition::sql::{self, EXCLUSION, Grant, Names, NewTable, Script};
use crate::engine::record::Failure;
use crate::error::Result;
use crate::pg::ident::{MOST_BYTES, quote_identifier};
use crate::topology::partitions::{DefaultPolicy, PartitionSet, TableName, period};
use crate::units::ByteCount;

/// What a step brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Out of the hands of pg_partman.
    TakeOver,
    /// What an interrupted run has left is removed.
    CleanUp,
    CreateDefault,
    Create,
    Analyze,
    /// A concurrent detach that was cut off is ended.
    Finalize,
    Detach,
    Drop,
    ExportAndDrop,
}

impl Kind {
    /// Tells whether it is done before anything may go.
    pub(super) fn makes(self) -> bool {
        match self {
            Self::TakeOver | Self::CleanUp | Self::CreateDefault | Self::Create | Self::Analyze => true,
            Self::Finalize | Self::Detach | Self::Drop | Self::ExportAndDrop => false,
        }
    }
}

/// One thing that is done to a set; after it the set is whole, whatever follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    pub kind: Kind,
    /// `2026-12`; empty where it is about no period.
    pub period: String,
    pub table: TableName,
    /// What it frees or moves.
    pub bytes: ByteCount,
    /// What runs, in this order.
    pub scripts: Vec<Script>,
    #[serde(skip)]
    pub(super) range: Option<Range>,
}

/// What is to be done to a set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub table: TableName,
    pub database: String,
    pub steps: Vec<Step>,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
    /// Why it goes no further than its steps.
    pub stop: Option<Failure>,
}

/// How a set of pg_partman is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    Refuse,
    TakeOver,
}

/// Returns what statements need to know of a set.
pub(super) fn names(set: &PartitionSet, seen: &Seen) -> Names {
    let other = |from: bool| {
        let own = seen.parent.oid;
        let keys = seen.foreign_keys.iter();
        keys.filter(
            move |key| if from { key.from_oid == own } else { key.to_oid == own && key.from_oid != own },
        )
        .map(move |key| if from { key.to.clone() } else { key.from.clone() })
        .collect()
    };
    Names {
        parent: set.table.quoted(),
        owner: quote_identifier(&seen.parent.owner),
        key: quote_identifier(&set.by),
        default: seen.default.as_ref().map(|default| table_of(default).quoted()),
        references: other(true),
        referenced_by: other(false),
    }
}

pub(super) fn table_of(row: &PartitionRow) -> TableName {
    TableName { schema: row.schema.clone(), name: row.name.clone() }
}

/// Writes a bound as ATTACH takes it.
pub(super) fn bound_sql(grid: &Grid, bound: Bound) -> String {
    match bound {
        Bound::Lowest => "MINVALUE".to_owned(),
        Bound::Highest => "MAXVALUE".to_owned(),
        Bound::At(at) => grid.literal(at),
    }
}

/// Returns how a new table is made, like the newest partition in what the parent cannot say.
pub(super) fn new_table(set: &PartitionSet, seen: &Seen, table: &TableName) -> NewTable {
    let newest = seen.parts.iter().rev().find(|part| part.row.kind == 'r' && !part.is_restored());
    let mut grants: BTreeMap<(Option<String>, bool), Vec<&str>> = BTreeMap::new();
    for (privilege, to, grantable) in &seen.grants {
        grants.entry((to.clone(), *grantable)).or_default().push(privilege);
    }
    let tablespace = set.tablespace.as_ref().or(seen.parent.tablespace.as_ref());
    NewTable {
        table: table.quoted(),
        tablespace: tablespace.map(|name| quote_identifier(name)),
        access_method: seen.parent.access_method.as_deref().map(quote_identifier),
        options: newest.map(|part| part.row.options.clone()).unwrap_or_default(),
        full_replica_identity: seen.parent.replica_identity == 'f',
        no_replica_identity: seen.parent.replica_identity == 'n',
        grants: grants
            .into_iter()
            .map(|((to, with_grant_option), privileges)| Grant {
                privileges: privileges.join(", "),
                to: to.map_or("PUBLIC".to_owned(), |role| quote_identifier(&role)),
                with_grant_option,
            })
            .collect(),
    }
}

/// Decides.
///
/// # Errors
/// What keeps the set from being maintained, as [`refuse`] says it.
pub(super) fn plan(set: &PartitionSet, seen: &Seen, adopt: Adopt) -> Result<Plan> {
    let names = names(set, seen);
    let mut steps = Vec::new();
    if let Some(row) = &seen.partman {
        if adopt == Adopt::Refuse || row.has_sub_partitions {
            return Err(refuse::partman(set, row));
        }
        let plain = format!("{}.{}", set.table.schema, set.table.name);
        steps.push(step(Kind::TakeOver, "", &set.table, vec![sql::leave_partman(&row.schema, &plain)]));
    }
    if let (DefaultPolicy::Refuse, Some(default)) = (set.default_partition, &seen.default) {
        return Err(refuse::default_is_there(set, default));
    }
    if let Some(default) = &seen.default {
        let table = table_of(default);
        for leftover in &seen.leftovers {
            let scripts = vec![sql::include(&table.quoted(), leftover)];
            steps.push(step(Kind::CleanUp, "", &table, scripts));
        }
    }
    let restored = |part: &&Part| part.is_restored();
    for part in seen.parts.iter().filter(|part| !restored(part)) {
        if let Some(mark) =
            part.mark.as_ref().filter(|_| !part.row.detach_pending && !is_over(set, seen, part))
        {
            let scripts = vec![sql::mark(&part.table().quoted(), mark.was.as_deref())];
            steps.push(step(Kind::CleanUp, &shown(set, seen, part.range), &part.table(), scripts));
        }
    }
    let made = steps.len();
    let mut stop = None;
    for wanted in &seen.wanted {
        if let (Some(rows), Some(default)) = (seen.in_the_way.get(&wanted.name), &seen.default) {
            // What comes before it can be made, and what comes after it would leave a gap.
            let error = refuse::rows_in_default(set, &table_of(default), wanted, rows);
            stop = Some(Failure::from(&error));
            break;
        }
        steps.push(create(set, seen, &names, wanted)?);
    }
    if set.default_partition == DefaultPolicy::Create && seen.default.is_none() {
        steps.push(create_default(set, seen, &names)?);
    }
    if steps.len() > made {
        let scripts = vec![sql::analyze(&names.parent, seen.session.version)];
        steps.push(step(Kind::Analyze, "", &set.table, scripts));
    }
    let mut notes = notes::notes(set, seen);
    if stop.is_none() {
        retention::old(set, seen, &names, &mut steps, &mut notes);
    }
    Ok(Plan { table: set.table.clone(), database: set.database.clone(), steps, notes, stop })
}

fn step(kind: Kind, period: &str, table: &TableName, scripts: Vec<Script>) -> Step {
    Step { kind, period: period.to_owned(), table: table.clone(), bytes: ByteCount(0), scripts, range: None }
}

fn create(set: &PartitionSet, seen: &Seen, names: &Names, wanted: &Wanted) -> Result<Step> {
    if seen.wanted.iter().filter(|other| other.name == wanted.name).count() > 1 {
        return Err(refuse::same_name(set, &wanted.name));
    }
    let table = set.table.beside(&wanted.name);
    let mut scripts = prepare(set, seen, names, wanted)?;
    let literals = (seen.grid.literal(wanted.from), seen.grid.literal(wanted.to));
    let range = (literals.0.as_str(), literals.1.as_str());
    let mut exclusion = None;
    // A range that is written to now must not be refused by the default partition while its own is not attached yet.
    if let Some(default) = names.default.as_ref().filter(|_| wanted.start > seen.grid.present(seen.at)) {
        let name = exclusion_name(&wanted.name);
        scripts.push(sql::exclude(names, default, &name, range));
        exclusion = Some(name);
    }
    scripts.push(sql::attach(names, &table.quoted(), range, exclusion.as_deref(), None));
    Ok(Step {
        range: Some((Bound::At(wanted.from), Bound::At(wanted.to))),
        ..step(Kind::Create, &period(wanted.start, set.every), &table, scripts)
    })
}

/// Returns what makes the table of a wanted partition; one that an interrupted run has prepared is made anew.
pub(super) fn prepare(
    set: &PartitionSet,
    seen: &Seen,
    names: &Names,
    wanted: &Wanted,
) -> Result<Vec<Script>> {
    let table = set.table.beside(&wanted.name);
    let mut scripts = discarded(set, seen, &wanted.name, &period(wanted.start, set.every))?;
    let range = (Bound::At(wanted.from), Bound::At(wanted.to));
    let mark = Mark::new(State::Prepared, &set.table, &wanted.name, range, seen.at);
    scripts.push(sql::create(names, &new_table(set, seen, &table), &mark.text()));
    Ok(scripts)
}

/// Returns what removes a table of that name which an interrupted run has prepared.
///
/// # Errors
/// [`refuse::name_taken`] if it is another one.
fn discarded(set: &PartitionSet, seen: &Seen, name: &str, what: &str) -> Result<Vec<Script>> {
    let Some((found, has_rows)) = seen.taken.iter().find(|(found, _)| found.name == name) else {
        return Ok(Vec::new());
    };
    let mark = found.comment.as_deref().and_then(Mark::read);
    let ours =
        mark.is_some_and(|mark| mark.state == State::Prepared && mark.of == set.table && mark.name == name);
    if !ours || *has_rows || found.partition_of.is_some() || found.kind != 'r' {
        return Err(refuse::name_taken(set, what, found));
    }
    Ok(vec![sql::discard(&set.table.beside(name).quoted())])
}

/// A name of its own for each partition, within what PostgreSQL takes.
pub(super) fn exclusion_name(partition: &str) -> String {
    let mut name = format!("{EXCLUSION}{partition}");
    while name.len() > MOST_BYTES {
        // From the front, since the end tells partitions apart.
        name.remove(EXCLUSION.len());
    }
    name
}

fn create_default(set: &PartitionSet, seen: &Seen, names: &Names) -> Result<Step> {
    let name = default_name(set);
    let table = set.table.beside(&name);
    let mut scripts = discarded(set, seen, &name, "default")?;
    let mark = Mark::new(State::Prepared, &set.table, &name, (Bound::Lowest, Bound::Highest), seen.at);
    scripts.push(sql::create(names, &new_table(set, seen, &table), &mark.text()));
    scripts.push(sql::attach_default(names, &table.quoted()));
    Ok(step(Kind::CreateDefault, "default", &table, scripts))
}

/// Returns how a range is called for short.
pub(super) fn shown(set: &PartitionSet, seen: &Seen, range: Range) -> String {
    match range {
        (Bound::At(from), Bound::At(_)) => match seen.grid.period_at(from) {
            Some(start) => period(start, set.every),
            None => seen.grid.shown(range.0),
        },
        (_, to) => format!("before {}", seen.grid.shown(to)),
    }
}
