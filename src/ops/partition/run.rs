//! Looks at the sets of a cluster, and does what is planned: each step by itself, tried again where somebody is in the way, and one set's failure is
//! no other's.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::time::Instant;

use super::export::{self, Exported};
use super::look::{self, Seen};
use super::plan::{self, Adopt, Kind, Plan, Step};
use super::set::Part;
use super::worker::{BACKOFF, Options, Way, Worker, chosen, in_the_way, jittered, still_the_one};
use crate::db::partition as catalog;
use crate::db::partition::session;
use crate::db::partition::sql::{self, Block, Script};
use crate::engine::interrupt::Interrupt;
use crate::engine::record::Failure;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::topology::model::{Cluster, Herd};
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::ByteCount;

/// What became of the sets of a cluster.
#[derive(Debug, Serialize)]
pub struct Applied {
    pub cluster: String,
    /// The primary, within the cluster.
    pub node: String,
    pub sets: Vec<SetApplied>,
    pub seconds: f64,
    pub interrupted: bool,
}

/// What became of one set.
#[derive(Debug, Serialize)]
pub struct SetApplied {
    pub table: TableName,
    pub database: String,
    pub done: Vec<StepDone>,
    pub exported: Vec<Exported>,
    /// How often somebody was in the way.
    pub retries: u32,
    pub notes: Vec<String>,
    pub failure: Option<Failure>,
    pub seconds: f64,
}

/// A step that was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepDone {
    pub kind: Kind,
    pub period: String,
    pub table: TableName,
    pub bytes: ByteCount,
}

/// What is planned for one set.
#[derive(Debug, Serialize)]
pub struct SetPlanned {
    pub table: TableName,
    pub database: String,
    pub plan: Option<Plan>,
    pub failure: Option<Failure>,
}

/// A set as it is.
#[derive(Debug, Serialize)]
pub struct SetListed {
    pub table: TableName,
    pub database: String,
    pub every: &'static str,
    pub set: Option<SetFacts>,
    pub failure: Option<Failure>,
}

/// What a set holds.
#[derive(Debug, Serialize)]
pub struct SetFacts {
    pub partitions: Vec<PartitionFacts>,
    /// How many whole periods after the present one have a partition.
    pub ahead: u32,
    pub ahead_declared: u32,
    /// Up to when rows have a partition.
    pub horizon: Option<String>,
    pub bytes: ByteCount,
    pub default_partition: Option<TableName>,
    /// Up to a million.
    pub default_rows: Option<i64>,
    pub detach_pending: Vec<TableName>,
    /// Tables that were partitions.
    pub detached: Vec<TableName>,
    /// How many steps the next `apply` has.
    pub to_do: Option<usize>,
}

/// A partition as it is shown.
#[derive(Debug, Serialize)]
pub struct PartitionFacts {
    pub table: TableName,
    pub period: String,
    pub from: String,
    pub to: String,
    pub bytes: ByteCount,
    pub detach_pending: bool,
    /// It is no longer kept: the next `apply` detaches it.
    pub over: bool,
    pub restored: bool,
}

/// Says what would be done to each set; changes nothing.
///
/// # Errors
/// When the primary cannot be found; a set's own trouble is in its place.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    options: &Options,
) -> Result<Vec<SetPlanned>> {
    let sets = chosen(cluster, &options.tables)?;
    let way = Way::open(context, herd, cluster).await?;
    let mut planned = Vec::new();
    for set in sets {
        let plan = async {
            let conn = way.connect(&set.database, options).await?;
            let seen = look::look(&conn, set, options.now()).await?;
            plan::plan(set, &seen, options.adopt)
        };
        let (plan, failure) = match plan.await {
            Ok(plan) => {
                let stop = plan.stop.clone();
                (Some(plan), stop)
            }
            Err(error) => (None, Some(Failure::from(&error))),
        };
        planned.push(SetPlanned { table: set.table.clone(), database: set.database.clone(), plan, failure });
    }
    Ok(planned)
}

/// Says what each set is.
///
/// # Errors
/// As [`plan`].
pub async fn list(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    options: &Options,
) -> Result<Vec<SetListed>> {
    let sets = chosen(cluster, &options.tables)?;
    let way = Way::open(context, herd, cluster).await?;
    let mut listed = Vec::new();
    for set in sets {
        let look = async {
            let conn = way.connect(&set.database, options).await?;
            look::look(&conn, set, options.now()).await
        };
        let (facts, failure) = match look.await {
            Ok(seen) => (Some(facts(set, &seen)), None),
            Err(error) => (None, Some(Failure::from(&error))),
        };
        let (table, database) = (set.table.clone(), set.database.clone());
        listed.push(SetListed { table, database, every: set.every.word(), set: facts, failure });
    }
    Ok(listed)
}

fn facts(set: &PartitionSet, seen: &Seen) -> SetFacts {
    let now = seen.grid.bound(seen.grid.next(seen.grid.present(seen.at)));
    let lasting = || seen.parts.iter().filter(|part| !part.is_restored());
    let ahead =
        lasting().filter(|part| matches!(part.range.0, super::grid::Bound::At(from) if from >= now)).count();
    SetFacts {
        partitions: seen
            .parts
            .iter()
            .map(|part| PartitionFacts {
                table: part.table(),
                period: plan::shown(set, seen, part.range),
                from: seen.grid.shown(part.range.0),
                to: seen.grid.shown(part.range.1),
                bytes: ByteCount(part.row.bytes.unsigned_abs()),
                detach_pending: part.row.detach_pending,
                over: plan::is_over(set, seen, part),
                restored: part.is_restored(),
            })
            .collect(),
        ahead: u32::try_from(ahead).unwrap_or(u32::MAX),
        ahead_declared: set.ahead,
        horizon: lasting().next_back().map(|part| seen.grid.shown(part.range.1)),
        bytes: ByteCount(seen.parts.iter().map(|part| part.row.bytes.unsigned_abs()).sum()),
        default_partition: seen.default.as_ref().map(plan::table_of),
        default_rows: seen.default_rows.as_ref().map(|rows| rows.rows),
        detach_pending: seen.parts.iter().filter(|part| part.row.detach_pending).map(Part::table).collect(),
        detached: seen
            .detached
            .iter()
            .map(|(_, row)| TableName { schema: row.schema.clone(), name: row.name.clone() })
            .collect(),
        to_do: plan::plan(set, seen, Adopt::Refuse).ok().map(|plan| plan.steps.len()),
    }
}

/// Does what is planned: first everything that is made, of all sets; then what goes, of a table before the tables that it has foreign keys to.
///
/// # Errors
/// When the primary cannot be found; a set's own failure is in its place, and the others go on.
pub async fn apply(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    options: &Options,
    interrupt: &Interrupt,
) -> Result<Applied> {
    let begun = Instant::now();
    let sets = chosen(cluster, &options.tables)?;
    let way = Way::open(context, herd, cluster).await?;
    let mut run = Run { context, way, options, interrupt, workers: BTreeMap::new() };
    let mut applied: Vec<SetApplied> = sets
        .iter()
        .map(|set| SetApplied {
            table: set.table.clone(),
            database: set.database.clone(),
            done: Vec::new(),
            exported: Vec::new(),
            retries: 0,
            notes: Vec::new(),
            failure: None,
            seconds: 0.0,
        })
        .collect();
    let mut links: Vec<(u32, Vec<u32>)> = Vec::new();
    for (set, report) in sets.iter().zip(&mut applied) {
        links.push(run.part(set, report, Half::Makes).await.unwrap_or_default());
    }
    for index in children_first(&links) {
        if applied[index].failure.is_none() {
            run.part(sets[index], &mut applied[index], Half::Removes).await;
        }
    }
    Ok(Applied {
        cluster: cluster.name.clone(),
        node: run.way.node.name.clone(),
        sets: applied,
        seconds: begun.elapsed().as_secs_f64(),
        interrupted: interrupt.is_asked(),
    })
}

/// Orders sets so that one whose rows point at another's comes before it: the other's rows can only go when nothing points at them.
fn children_first(links: &[(u32, Vec<u32>)]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < links.len() {
        let left = |index: &usize| !order.contains(index);
        // Nobody that is left points at it; in a circle the first one goes.
        let free = (0..links.len()).filter(left).find(|index| {
            !(0..links.len())
                .filter(left)
                .any(|other| other != *index && links[other].1.contains(&links[*index].0))
        });
        let next = free.or_else(|| (0..links.len()).find(left)).expect("one is left");
        order.push(next);
    }
    order
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Makes,
    Removes,
}

struct Run<'a> {
    context: &'a Context,
    way: Way<'a>,
    options: &'a Options,
    interrupt: &'a Interrupt,
    /// By database.
    workers: BTreeMap<String, Worker>,
}

impl Run<'_> {
    /// Does one half of what is planned for a set; returns the table and those that it has foreign keys to.
    async fn part(
        &mut self,
        set: &PartitionSet,
        report: &mut SetApplied,
        half: Half,
    ) -> Option<(u32, Vec<u32>)> {
        let begun = Instant::now();
        let done = self.try_part(set, report, half).await;
        report.seconds += begun.elapsed().as_secs_f64();
        match done {
            Ok(links) => Some(links),
            Err(error) => {
                report.failure = Some(Failure::from(&error));
                // Whatever became of the session, the next set begins with another.
                self.workers.remove(&set.database);
                None
            }
        }
    }

    async fn try_part(
        &mut self,
        set: &PartitionSet,
        report: &mut SetApplied,
        half: Half,
    ) -> Result<(u32, Vec<u32>)> {
        self.not_interrupted()?;
        let mut worker = match self.workers.remove(&set.database) {
            Some(worker) => worker,
            None => Worker::open(&self.way, &set.database, self.options).await?,
        };
        worker.retries = 0;
        let ended = self.with(&mut worker, set, report, half).await;
        report.retries += worker.retries;
        let links = ended?;
        session::let_go(&worker.conn, links.0).await?;
        self.workers.insert(set.database.clone(), worker);
        Ok(links)
    }

    async fn with(
        &self,
        worker: &mut Worker,
        set: &PartitionSet,
        report: &mut SetApplied,
        half: Half,
    ) -> Result<(u32, Vec<u32>)> {
        let first = look::look(&worker.conn, set, self.options.now()).await?;
        worker.hold(set, first.parent.oid).await?;
        // What was read before the set was held may have been changed by who held it.
        let seen = look::look(&worker.conn, set, self.options.now()).await?;
        let plan = plan::plan(set, &seen, self.options.adopt)?;
        if half == Half::Removes && !seen.wanted.is_empty() && plan.stop.is_none() {
            return Err(Error::failed(format!(
                "the partitions of {} end too early, so that none was removed",
                set.table
            ))
            .hint("Run the same again."));
        }
        let own = seen.parent.oid;
        let references = seen
            .foreign_keys
            .iter()
            .filter(|key| key.from_oid == own && key.to_oid != own)
            .map(|key| key.to_oid);
        let links = (own, references.collect());
        if half == Half::Makes {
            report.notes.clone_from(&plan.notes);
        }
        for step in plan.steps.iter().filter(|step| step.kind.makes() == (half == Half::Makes)) {
            self.not_interrupted()?;
            self.step(worker, set, &seen, step, report).await?;
            let done = StepDone {
                kind: step.kind,
                period: step.period.clone(),
                table: step.table.clone(),
                bytes: step.bytes,
            };
            report.done.push(done);
        }
        if let Some(stop) = &plan.stop {
            return Err(Error::from(stop));
        }
        Ok(links)
    }

    fn not_interrupted(&self) -> Result<()> {
        if self.interrupt.is_asked() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted")
                .detail("What was done by then is whole. The next run goes on."));
        }
        Ok(())
    }

    async fn step(
        &self,
        worker: &mut Worker,
        set: &PartitionSet,
        seen: &Seen,
        step: &Step,
        report: &mut SetApplied,
    ) -> Result<()> {
        match step.kind {
            Kind::Drop => drop_detached(worker, seen, set, &step.table).await,
            Kind::ExportAndDrop => {
                let exported =
                    export::export_and_drop(self.context, &self.way, set, seen, &step.table, self.options)
                        .await?;
                report.exported.push(exported);
                Ok(())
            }
            // Statistics that are a little old are no reason to fail.
            Kind::Analyze => {
                if let Err(error) = scripts(worker, &step.scripts).await {
                    report.notes.push(format!("Its statistics were not renewed: {error}."));
                }
                Ok(())
            }
            Kind::Create => {
                let made = scripts(worker, &step.scripts).await;
                if made.is_err() {
                    include_again(worker, seen, step, report).await;
                }
                made
            }
            Kind::TakeOver | Kind::CleanUp | Kind::CreateDefault | Kind::Finalize | Kind::Detach => {
                scripts(worker, &step.scripts).await
            }
        }
    }
}

async fn scripts(worker: &mut Worker, scripts: &[Script]) -> Result<()> {
    for script in scripts {
        worker.insist(script).await?;
    }
    Ok(())
}

/// Takes off what keeps a range out of the default partition: nothing is attached for it, and its rows would be refused.
async fn include_again(worker: &mut Worker, seen: &Seen, step: &Step, report: &mut SetApplied) {
    let Some(default) = &seen.default else { return };
    let table = plan::table_of(default);
    let left = catalog::constraints(&worker.conn, default.oid, sql::EXCLUSION).await.unwrap_or_default();
    for name in left {
        if let Err(error) = worker.insist(&sql::include(&table.quoted(), &name)).await {
            report.notes.push(format!(
                "The constraint {name} of {table} still refuses rows of {}: {error}. The next run takes it off; or: alter table {} drop constraint {}.",
                step.period,
                table.quoted(),
                crate::pg::ident::quote_identifier(&name)
            ));
        }
    }
}

/// Drops a table if, while nobody else can touch it, it is still the one that was detached.
async fn drop_detached(
    worker: &mut Worker,
    seen: &Seen,
    set: &PartitionSet,
    table: &TableName,
) -> Result<()> {
    let script = sql::drop_table(&table.quoted());
    let [Block::Transaction(statements)] = script.blocks.as_slice() else {
        unreachable!("a drop is one transaction");
    };
    let (lock, drop) = statements.split_at(1);
    let mut tried = 1;
    loop {
        session::begin(&worker.conn).await?;
        let held = worker.send(&script.what, &Block::Alone(lock[0].clone()), worker.lock_timeout).await;
        let checked = match held {
            Ok(()) => still_the_one(&worker.conn, seen, set, table).await,
            Err((error, blockers)) if session::was_in_the_way(&error) => {
                session::end(&worker.conn).await?;
                if tried >= worker.tries {
                    return Err(in_the_way(&script, worker.tries, worker.lock_timeout, &blockers));
                }
                tokio::time::sleep(jittered(BACKOFF * 2_u32.pow(tried.min(5) - 1))).await;
                (tried, worker.retries) = (tried + 1, worker.retries + 1);
                continue;
            }
            Err((error, _)) => Err(error.into()),
        };
        let dropped = match checked {
            Ok(()) => worker.conn.batch(&script.what, &drop.join("; ")).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        return match dropped {
            Ok(()) => Ok(session::commit(&worker.conn).await?),
            Err(error) => {
                session::end(&worker.conn).await?;
                Err(error)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_whose_rows_point_at_another_goes_first() {
        // 10 is pointed at by 20, which is pointed at by 30; 40 and 50 point at each other.
        let links = [(10, vec![]), (20, vec![10]), (30, vec![20]), (40, vec![50]), (50, vec![40])];
        assert_eq!(children_first(&links), [2, 1, 0, 3, 4]);
    }
}
