//! Maintenance of a cluster: neglected tables, invalid and bloated indexes, materialized views, old log files.
//!
//! Works on the primary, one thing after the other, and no longer than it may: what does not come to its turn is told and left to the next
//! run. Who waits for a lock gives up soon; that too is told. One thing that fails keeps no other from being done.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::db::maintenance::{self as sql, Refreshing, Relation};
use crate::db::promotion;
use crate::db::{Connector, DbError, Login, NodeConn, PrimaryConn, classify};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Command, Host};
use crate::ops::context::Context;
use crate::ops::observe::{self, Depth, Doors};
use crate::ops::roles::{Lead, lead};
use crate::topology::jobs::{Clean, Refresh, Reindex, Vacuum};
use crate::topology::model::{Cluster, Node};
use crate::units::{ByteCount, human_duration};

/// SQLSTATE lock_not_available.
const NO_LOCK: &str = "55P03";
/// Within this time a statement that was cancelled has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long before its end nothing is begun any more.
const TOO_LATE: Duration = Duration::from_secs(1);
/// What a REINDEX that was cut off has left is dropped within this time, or by the next run.
const SWEEP: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub cluster: String,
    /// What was done, a line each.
    pub done: Vec<String>,
    /// What would be done, a line each, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub would: Vec<String>,
    /// What was left to the next run, with the reason.
    pub left: Vec<String>,
    #[serde(skip)]
    pub failed: Vec<Error>,
}

/// The bounds of a run.
#[derive(Debug)]
pub struct Bounds<'a> {
    pub until: Instant,
    pub interrupt: &'a Interrupt,
    pub mode: Mode,
}

/// Whether what is found is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Mend,
    /// It is only told.
    Show,
}

impl Bounds<'_> {
    fn rest(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn is_over(&self) -> bool {
        self.interrupt.is_asked() || self.rest() < TOO_LATE
    }
}

/// How a statement ended, where that is not a failure.
enum Did {
    Done,
    /// It would be done; nothing was.
    Would,
    /// With the reason, a fragment.
    Left(String),
}

/// A way to the primary of a cluster.
struct Primary {
    connector: Connector,
    login: Login,
}

/// A session on the primary, in one database.
struct Work<'p> {
    primary: &'p Primary,
    conn: PrimaryConn,
    pid: i32,
}

/// Finds the primary of a cluster.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the reason where it cannot be told.
pub async fn leader<'c>(context: &Context, cluster: &'c Cluster) -> Result<(Doors, &'c Node)> {
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Roles).await;
    let cannot = |why: String| {
        Error::new(ErrorKind::NotFound, format!("cannot tell the primary of {}", cluster.name))
            .detail(format!("{why}. Nothing was changed."))
            .hint("See how it stands: pgherd status")
    };
    let name = match lead(&observed) {
        Lead::Primary(name) => name,
        Lead::Unborn => return Err(cannot("The cluster is not there yet".to_owned())),
        Lead::StoppedPrimary(name) => return Err(cannot(format!("{} is stopped", cluster.full_name(&name)))),
        Lead::Split(names) => return Err(cannot(format!("{} are primaries", names.join(" and ")))),
        Lead::Unknown { why } => return Err(cannot(why)),
    };
    Ok((doors, cluster.node(&name).expect("who leads is a node of the cluster")))
}

impl Primary {
    async fn find(context: &Context, cluster: &Cluster) -> Result<Self> {
        let (doors, node) = leader(context, cluster).await?;
        let login = doors.superuser(cluster, node, "postgres");
        Ok(Self { connector: Connector::new(context.gate.clone()), login })
    }

    async fn open(&self, database: &str) -> Result<Work<'_>> {
        let login = Login { database: database.to_owned(), ..self.login.clone() };
        let conn = match classify(self.connector.connect(&login).await?).await? {
            NodeConn::Primary(conn) => conn,
            NodeConn::Standby(_) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{} is no primary any more", login.server),
                )
                .detail("Another node has taken over meanwhile. The next run works there."));
            }
        };
        let pid = sql::begin(&conn).await?;
        Ok(Work { primary: self, conn, pid })
    }

    async fn databases(&self) -> Result<Vec<String>> {
        let work = self.open("postgres").await?;
        let mut databases = promotion::databases(&work.conn).await?;
        // Nobody works in a template; whoever makes one of a database has said so by its name or its flag.
        databases.retain(|name| name != "template1" && name != "template0");
        Ok(databases)
    }
}

impl Work<'_> {
    /// Does one thing within the bounds; cancels it on the server when they are over.
    async fn within(
        &self,
        bounds: &Bounds<'_>,
        work: impl Future<Output = Result<(), DbError>>,
    ) -> Result<Did, DbError> {
        if bounds.mode == Mode::Show {
            return Ok(Did::Would);
        }
        if bounds.is_over() {
            return Ok(Did::Left("there was no time left".to_owned()));
        }
        let limit = bounds.rest();
        self.conn.set_deadline(limit).await?;
        let mut work = std::pin::pin!(work);
        let ended = tokio::select! {
            ended = &mut work => ended,
            () = bounds.interrupt.asked(1) => {
                let canceller = self.primary.connector.connect(&self.primary.login).await;
                if let Ok(canceller) = canceller {
                    // What cannot be cancelled ends with its session, or at its deadline on the server.
                    sql::cancel(&canceller, self.pid).await.ok();
                }
                match tokio::time::timeout(PATIENCE, &mut work).await {
                    Ok(ended) => ended,
                    Err(_) => return Ok(Did::Left("it was interrupted, and the server has not ended it yet".to_owned())),
                }
            }
        };
        match ended {
            Ok(()) => Ok(Did::Done),
            Err(error) if error.is_state(NO_LOCK) => Ok(Did::Left("somebody has a lock on it".to_owned())),
            Err(DbError::Timeout { .. }) if bounds.interrupt.is_asked() => {
                Ok(Did::Left("it was interrupted".to_owned()))
            }
            Err(DbError::Timeout { .. }) => {
                Ok(Did::Left(format!("it was ended after {}", human_duration(limit))))
            }
            Err(error) => Err(error),
        }
    }
}

impl Report {
    fn of(cluster: &Cluster) -> Self {
        Self { cluster: cluster.name.clone(), ..Self::default() }
    }

    /// Takes up what came of one thing, which `said` tells; `true` if it was done. An error after which nothing more can be asked of the
    /// server ends the run.
    fn take(&mut self, what: &str, said: &str, did: Result<Did, DbError>) -> Result<bool> {
        match did {
            Ok(Did::Done) => Ok(true),
            Ok(Did::Would) => {
                self.would.push(format!("{what}   {said}"));
                Ok(false)
            }
            Ok(Did::Left(why)) => {
                self.left.push(format!("{what}: {why}"));
                Ok(false)
            }
            Err(error @ DbError::Sql { .. }) => {
                self.failed.push(error.into());
                Ok(false)
            }
            // The session has ended: a failover, a crash, a stop. What is not done is found anew.
            Err(error) => Err(cut_off(error)),
        }
    }
}

/// Says of a session that has ended that the run is to be tried again.
fn cut_off(error: DbError) -> Error {
    let lost = error.outcome_unknown() || matches!(error, DbError::NotSent { .. });
    if !lost {
        return error.into();
    }
    Error::new(ErrorKind::NotFound, "the primary went away in the middle of maintenance")
        .detail("What was done by then is done; the next run looks for the rest.")
        .hint("See who is primary now: pgherd status")
        .source(error)
}

/// Vacuums and analyzes neglected tables of every database, the worst first.
///
/// # Errors
/// [`ErrorKind::NotFound`] without a primary, or when it goes away.
pub async fn vacuum(
    context: &Context,
    cluster: &Cluster,
    wish: &Vacuum,
    bounds: &Bounds<'_>,
) -> Result<Report> {
    let primary = Primary::find(context, cluster).await?;
    let mut report = Report::of(cluster);
    for database in primary.databases().await? {
        let work = primary.open(&database).await?;
        for found in sql::neglected(&work.conn, wish.dead, wish.changed, wish.rows).await? {
            let name = format!("{database}: {}", found.table);
            let begun = Instant::now();
            let (did, said) = if found.wants_vacuum {
                let said = format!(
                    "vacuumed and analyzed, {} of {} rows were dead",
                    found.dead,
                    found.live + found.dead
                );
                (work.within(bounds, sql::vacuum(&work.conn, &found.table)).await, said)
            } else {
                let said = format!("analyzed, {} rows had changed since it was last", found.changed);
                (work.within(bounds, sql::analyze(&work.conn, &found.table)).await, said)
            };
            if report.take(&name, &said, did)? {
                report.done.push(format!("{name}   {said}   {}", human_duration(begun.elapsed())));
            }
        }
    }
    Ok(report)
}

/// Drops what a cut-off REINDEX has left, and builds invalid and bloated indexes of every database anew, the worst first.
///
/// # Errors
/// As [`vacuum`].
pub async fn reindex(
    context: &Context,
    cluster: &Cluster,
    wish: &Reindex,
    bounds: &Bounds<'_>,
) -> Result<Report> {
    let primary = Primary::find(context, cluster).await?;
    let mut report = Report::of(cluster);
    for database in primary.databases().await? {
        let work = primary.open(&database).await?;
        sweep(&work, &database, bounds, &mut report).await?;
        for found in sql::invalid_indexes(&work.conn).await?.iter().filter(|found| !found.left_over) {
            let name = format!("{database}: {}", found.index);
            rebuild(&work, &name, &found.index, "it was invalid", bounds, &mut report).await?;
        }
        for found in sql::bloated_indexes(&work.conn, wish.bloat, wish.at_least).await? {
            let name = format!("{database}: {}", found.index);
            let why = format!("{} % of {} was wasted", found.wasted, found.size);
            rebuild(&work, &name, &found.index, &why, bounds, &mut report).await?;
        }
        // A statement that was cut off has left its half; until it is dropped every writer keeps that up to date as well.
        if bounds.mode == Mode::Mend {
            let rest =
                Bounds { until: Instant::now() + SWEEP, interrupt: &Interrupt::new(), mode: Mode::Mend };
            sweep(&work, &database, &rest, &mut report).await?;
        }
    }
    Ok(report)
}

async fn sweep(work: &Work<'_>, database: &str, bounds: &Bounds<'_>, report: &mut Report) -> Result<()> {
    for found in sql::invalid_indexes(&work.conn).await?.iter().filter(|found| found.left_over) {
        let name = format!("{database}: {}", found.index);
        let did = work.within(bounds, sql::drop_index(&work.conn, &found.index)).await;
        let said = format!("dropped: a REINDEX of {} that was cut off had left it", found.table);
        if report.take(&name, &said, did)? {
            report.done.push(format!("{name}   {said}"));
        }
    }
    Ok(())
}

async fn rebuild(
    work: &Work<'_>,
    name: &str,
    index: &Relation,
    why: &str,
    bounds: &Bounds<'_>,
    report: &mut Report,
) -> Result<()> {
    let begun = Instant::now();
    let before = sql::size(&work.conn, index).await?.unwrap_or_default();
    let did = work.within(bounds, sql::reindex(&work.conn, index)).await;
    if report.take(name, &format!("built anew, {why}"), did)? {
        let after = sql::size(&work.conn, index).await?.unwrap_or_default();
        let took = human_duration(begun.elapsed());
        report.done.push(format!("{name}   built anew, {why}   {before} -> {after}   {took}"));
    }
    Ok(())
}

/// Refreshes materialized views in their order.
///
/// # Errors
/// As [`vacuum`].
pub async fn refresh(
    context: &Context,
    cluster: &Cluster,
    wish: &Refresh,
    bounds: &Bounds<'_>,
) -> Result<Report> {
    let primary = Primary::find(context, cluster).await?;
    let mut report = Report::of(cluster);
    let work = primary.open(&wish.database).await?;
    for view in &wish.views {
        let view = Relation { schema: view.schema.clone(), name: view.name.clone() };
        let name = format!("{}: {view}", wish.database);
        let Some(facts) = sql::view(&work.conn, &view).await? else {
            report.failed.push(
                Error::new(
                    ErrorKind::Failed,
                    format!("there is no materialized view {view} in {}", wish.database),
                )
                .hint("Make it, or take it out of \"views\" in the topology."),
            );
            continue;
        };
        let (way, said) = if facts.is_populated && facts.has_unique_index {
            (Refreshing::Concurrently, "refreshed concurrently")
        } else if facts.has_unique_index {
            (Refreshing::Locked, "filled for the first time")
        } else {
            (
                Refreshing::Locked,
                "refreshed; readers waited, since no unique index lets it be done concurrently",
            )
        };
        let begun = Instant::now();
        let did = work.within(bounds, sql::refresh(&work.conn, &view, way)).await;
        if report.take(&name, said, did)? {
            report.done.push(format!("{name}   {said}   {}", human_duration(begun.elapsed())));
        }
    }
    Ok(report)
}

/// A log file of a server.
#[derive(Debug, Clone, PartialEq)]
struct LogFile {
    /// When it was written last, in seconds since 1970.
    written: f64,
    size: u64,
    name: String,
}

/// Removes the log files of every node that were not written for a while; the newest of each kind stays.
///
/// # Errors
/// When no host can be reached at all.
pub async fn clean(
    context: &Context,
    cluster: &Cluster,
    wish: &Clean,
    bounds: &Bounds<'_>,
) -> Result<Report> {
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let mut report = Report::of(cluster);
    let now = context.store.clock().now();
    for node in &cluster.nodes {
        if bounds.is_over() {
            report.left.push(format!("{}: there was no time left", cluster.full_name(&node.name)));
            continue;
        }
        let directory = doors.node_places(cluster, node).log;
        match clean_node(doors.host(&node.host), &directory, (wish.logs, now), bounds.mode).await {
            Ok((0, _)) => {}
            Ok((files, bytes)) => {
                let told = told(cluster, node, files, bytes, &directory);
                match bounds.mode {
                    Mode::Mend => report.done.push(told),
                    Mode::Show => report.would.push(told),
                }
            }
            Err(error) => report.failed.push(error),
        }
    }
    Ok(report)
}

fn told(cluster: &Cluster, node: &Node, files: usize, bytes: ByteCount, directory: &Path) -> String {
    let name = cluster.full_name(&node.name);
    let plural = if files == 1 { "" } else { "s" };
    format!("{name}   removed {files} log file{plural}, {bytes}, in {}", directory.display())
}

async fn clean_node(
    host: &dyn Host,
    directory: &Path,
    (keep, now): (Duration, Timestamp),
    mode: Mode,
) -> Result<(usize, ByteCount)> {
    if host.stat(directory).await?.is_none() {
        return Ok((0, ByteCount(0)));
    }
    // Files only, never a link, and nothing below.
    let path = directory.display().to_string();
    let find = Command::new("find")
        .args([path.as_str(), "-maxdepth", "1", "-type", "f", "-printf", "%T@ %s %f\\n"])
        .reads();
    let output = host.run(&find).await?;
    let mut removed = (0, ByteCount(0));
    for file in old(parse(&output.text()), keep, now) {
        if mode == Mode::Mend {
            host.remove_file(&directory.join(&file.name)).await?;
        }
        removed = (removed.0 + 1, ByteCount(removed.1.0 + file.size));
    }
    Ok(removed)
}

fn parse(listing: &str) -> Vec<LogFile> {
    let file = |line: &str| {
        let (written, rest) = line.split_once(' ')?;
        let (size, name) = rest.split_once(' ')?;
        Some(LogFile { written: written.parse().ok()?, size: size.parse().ok()?, name: name.to_owned() })
    };
    listing.lines().filter_map(file).collect()
}

/// Chooses what goes: logs that were not written for a while. The newest one of each kind may still be open.
fn old(mut files: Vec<LogFile>, keep: Duration, now: Timestamp) -> Vec<LogFile> {
    // As the server itself names them (log_destination), and no other file.
    let kind = |name: &str| {
        [".log", ".csv", ".json"].into_iter().find(|end| name.ends_with(end) && name.len() > end.len())
    };
    files.sort_by(|a, b| b.written.total_cmp(&a.written));
    let mut seen = Vec::new();
    files.retain(|file| {
        let Some(kind) = kind(&file.name) else { return false };
        let is_newest = !seen.contains(&kind);
        seen.push(kind);
        !is_newest && now.as_second() as f64 - file.written > keep.as_secs_f64()
    });
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_logs_go_and_the_newest_of_each_kind_stays() {
        let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        let day = |days: i64| now.as_second() - days * 86_400;
        let listing = format!(
            "{}.5 100 postgresql-old.log\n{}.0 7 postgresql-new.log\n{} 9 postgresql-older.log\n{} 5 only.csv\n{} 1 notes.txt\n{} 1 .log\n\
             {} 12 with space.log\nrubbish\n",
            day(20),
            day(1),
            day(30),
            day(40),
            day(90),
            day(90),
            day(50)
        );
        let names: Vec<String> = old(parse(&listing), Duration::from_secs(14 * 86_400), now)
            .into_iter()
            .map(|file| file.name)
            .collect();
        assert_eq!(names, ["postgresql-old.log", "postgresql-older.log", "with space.log"]);
        // A server that says nothing for a month still has its log open.
        let quiet = format!("{} 9 postgresql.log\n", day(40));
        assert!(old(parse(&quiet), Duration::from_secs(14 * 86_400), now).is_empty());
    }
}
