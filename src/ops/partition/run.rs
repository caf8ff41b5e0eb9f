//! Looks at the sets of a cluster, and does what is planned: each step by itself, tried again where somebody is in the way, and one set's failure is
//! no other's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::export::{self, Exported};
use super::look::{self, Seen};
use super::plan::{self, Adopt, Kind, Plan, Step, is_the_one};
use super::refuse;
use crate::db::partition as catalog;
use crate::db::partition::session::{self, Blocker};
use crate::db::partition::sql::{self, Block, Script};
use crate::db::{Conn, DbError, Session};
use crate::engine::interrupt::Interrupt;
use crate::engine::record::{Actor, Failure};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::observe::{self, Depth, Doors};
use crate::ops::roles::{self, Lead};
use crate::topology::model::{Cluster, Herd, Node};
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::{ByteCount, human_duration};

/// How long a statement may take that reads a whole table: VALIDATE of a default partition, ANALYZE, a move of rows.
pub(super) const LONG: Duration = Duration::from_secs(6 * 3600);
/// The first wait before something is tried again; it doubles.
pub(super) const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(15);
/// How often is looked who is in the way.
const WATCH: Duration = Duration::from_millis(200);

/// How partitions are maintained.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only these; all of them where it is empty.
    pub tables: Vec<TableName>,
    /// As if it were then; now if it is not said.
    pub at: Option<Timestamp>,
    pub adopt: Adopt,
    /// How long somebody may be kept waiting by a lock that we wait for.
    pub lock_timeout: Duration,
    /// How often it is tried.
    pub tries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            at: None,
            adopt: Adopt::Refuse,
            lock_timeout: Duration::from_secs(2),
            tries: 5,
        }
    }
}

impl Options {
    pub(super) fn now(&self) -> Timestamp {
        self.at.unwrap_or_else(Timestamp::now)
    }
}

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

/// The way to the primary of a cluster.
#[derive(Debug)]
pub(super) struct Way<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    pub node: &'a Node,
    pub doors: Doors,
}

impl<'a> Way<'a> {
    /// Finds the primary.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where none is seen; the doors' own.
    pub(super) async fn open(context: &Context, herd: &'a Herd, cluster: &'a Cluster) -> Result<Self> {
        let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
        let observed = observe::observe(&doors, cluster, Depth::Servers).await;
        let why = match roles::lead(&observed) {
            Lead::Primary(name) => {
                let node = cluster.node(&name).expect("the lead is a node of the cluster");
                return Ok(Self { herd, cluster, node, doors });
            }
            Lead::Unborn => "it is not there yet".to_owned(),
            Lead::StoppedPrimary(name) => format!("{} is stopped", cluster.full_name(&name)),
            Lead::Split(names) => format!("{} are both writable", names.join(" and ")),
            Lead::Unknown { why } => why,
        };
        Err(Error::new(ErrorKind::NotFound, format!("no primary of {} is seen: {why}", cluster.name))
            .detail(
                "Partitions are made on the primary, and standbys have them from there. Nothing was changed.",
            )
            .hint(format!("See what is the matter: pgherd status --cluster {}", cluster.name)))
    }

    /// Logs in to the primary itself: a pooler in transaction mode would give each statement another session.
    ///
    /// # Errors
    /// [`DbError`]; `NotSent` where it has become a standby.
    pub(super) async fn connect(&self, database: &str, options: &Options) -> Result<Conn> {
        let login = self.doors.superuser(self.cluster, self.node, database);
        let login = crate::db::Login { session: Session::Tool, ..login };
        let connector = self.doors.connector.clone().timeouts(Duration::from_secs(5), LONG);
        // What has become a standby since is found by `look`, which says it of each set.
        let conn = connector.connect(&login).await?;
        let by = Actor::here();
        let name = format!("pgherd partition: {} on {} (pid {})", by.user, by.host, by.pid);
        session::prepare(&conn, options.lock_timeout, &name).await?;
        Ok(conn)
    }
}

/// Sessions to one database.
pub(super) struct Worker {
    pub conn: Conn,
    watcher: Conn,
    pid: i32,
    lock_timeout: Duration,
    tries: u32,
    pub retries: u32,
}

impl Worker {
    pub(super) async fn open(way: &Way<'_>, database: &str, options: &Options) -> Result<Self> {
        let conn = way.connect(database, options).await?;
        let watcher = way.connect(database, options).await?;
        let pid = session::pid(&conn).await?;
        Ok(Self { conn, watcher, pid, lock_timeout: options.lock_timeout, tries: options.tries, retries: 0 })
    }

    /// Runs a script, block by block, each tried again while somebody is in the way.
    ///
    /// # Errors
    /// Who was in the way in the end; [`DbError`].
    pub(super) async fn insist(&mut self, script: &Script) -> Result<()> {
        let share = script.share(self.lock_timeout);
        for block in &script.blocks {
            let mut wait = BACKOFF;
            let mut tried = 1;
            while let Err((error, blockers)) = self.send(&script.what, block, share).await {
                if !session::was_in_the_way(&error) {
                    return Err(error.into());
                }
                if tried >= self.tries {
                    return Err(in_the_way(script, self.tries, share, &blockers));
                }
                tracing::info!(what = script.what, tried, "somebody is in the way");
                (tried, self.retries) = (tried + 1, self.retries + 1);
                tokio::time::sleep(jittered(wait)).await;
                wait = (wait * 2).min(LONGEST);
            }
        }
        Ok(())
    }

    async fn send(&self, what: &str, block: &Block, share: Duration) -> Result<(), (DbError, Vec<Blocker>)> {
        let seen: Mutex<Vec<Blocker>> = Mutex::default();
        // More often than the shortest wait ends.
        let every = (share / 4).clamp(Duration::from_millis(10), WATCH);
        let watch = async {
            loop {
                tokio::time::sleep(every).await;
                // Who is in the way is only told; that it cannot be seen is no reason to fail.
                if let Ok(found) = session::blockers(&self.watcher, self.pid).await
                    && !found.is_empty()
                {
                    *seen.lock().unwrap_or_else(PoisonError::into_inner) = found;
                }
            }
        };
        let sent = tokio::select! {
            sent = session::send(&self.conn, what, block, share) => sent,
            () = watch => unreachable!("it has no end"),
        };
        sent.map_err(|error| (error, seen.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    pub(super) async fn hold(&self, set: &PartitionSet, parent: u32) -> Result<()> {
        match session::hold(&self.conn, parent).await? {
            Ok(()) => Ok(()),
            Err(by) => Err(refuse::held(set, by.as_ref())),
        }
    }
}

pub(super) fn jittered(wait: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    // Without chance it waits the whole time, which is as good.
    let share = if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 255.0 } else { 1.0 };
    wait.mul_f64(0.5 + share)
}

fn in_the_way(script: &Script, tries: u32, share: Duration, blockers: &[Blocker]) -> Error {
    let who = match blockers {
        [] => "Nobody was seen to hold the locks when it was looked.".to_owned(),
        blockers => {
            format!("In the way: {}.", blockers.iter().map(refuse::blocker).collect::<Vec<_>>().join("; "))
        }
    };
    let locks: Vec<String> =
        script.locks.iter().map(|lock| format!("{} on {}", lock.mode, lock.relation)).collect();
    let error = Error::failed(format!("could not {}: others hold its locks", script.what)).detail(format!(
        "It was tried {tries} times, and no lock was waited for longer than {}: {}. {who}",
        human_duration(share),
        locks.join(", ")
    ));
    match blockers.first() {
        Some(blocker) => error.hint(format!(
            "Wait until they are done and run the same again; or end the session: select pg_terminate_backend({}).",
            blocker.pid
        )),
        None => error.hint("Run the same again."),
    }
}

/// Returns the sets that were asked for.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a table that is not declared.
pub(super) fn chosen<'a>(cluster: &'a Cluster, tables: &[TableName]) -> Result<Vec<&'a PartitionSet>> {
    if let Some(unknown) =
        tables.iter().find(|table| !cluster.partitions.iter().any(|set| set.table == **table))
    {
        let known: Vec<String> = cluster.partitions.iter().map(|set| set.table.to_string()).collect();
        let error = Error::new(
            ErrorKind::NotFound,
            format!("{unknown} is not among the partitions of {}", cluster.name),
        );
        return Err(match known.as_slice() {
            [] => error.hint(format!("Declare it: partitions: {{{unknown}: {{by: COLUMN, every: month}}}}.")),
            known => error.hint(format!("Declared are: {}.", known.join(", "))),
        });
    }
    Ok(cluster.partitions.iter().filter(|set| tables.is_empty() || tables.contains(&set.table)).collect())
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
        detach_pending: seen
            .parts
            .iter()
            .filter(|part| part.row.detach_pending)
            .map(look::Part::table)
            .collect(),
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

/// Checks that a table is one that was detached from a set.
///
/// # Errors
/// [`ErrorKind::Refused`] with what is not so.
pub(super) async fn still_the_one(
    conn: &Conn,
    seen: &Seen,
    set: &PartitionSet,
    table: &TableName,
) -> Result<()> {
    let rows = catalog::marked(conn, super::mark::BEGIN).await?;
    let row = rows.into_iter().find(|row| row.schema == table.schema && row.name == table.name);
    let why = match row {
        None => "it has no mark of a partition that was detached".to_owned(),
        Some(row) => match super::mark::Mark::read(&row.comment) {
            Some(mark) if mark.state == super::mark::State::Detached && mark.of == set.table => {
                match is_the_one(&seen.grid, &mark, &row) {
                    Ok(()) => return Ok(()),
                    Err(why) => why,
                }
            }
            Some(_) | None => format!("its mark does not say that it was detached from {}", set.table),
        },
    };
    Err(Error::refused(format!("cannot drop {table}: {why}"))
        .detail("Only a table that pgherd has detached is dropped: by its mark, its name and the CHECK of its bounds. Nothing was dropped.")
        .hint(format!("Look at it: \\d+ {}", table.quoted())))
}

/// What is given to whoever tells how far an export is; nobody yet.
pub(super) fn silent() -> Arc<dyn Fn(crate::ops::node::Progress) + Send + Sync> {
    Arc::new(|_| ())
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
