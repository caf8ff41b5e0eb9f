//! The way to the primary, and sessions there that wait for no lock longer than a moment.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::look::Seen;
use super::mark::{self, Mark, State};
use super::plan::{Adopt, is_the_one};
use super::refuse;
use crate::db::partition as catalog;
use crate::db::partition::session::{self, Blocker};
use crate::db::partition::sql::{Block, Script};
use crate::db::{Conn, DbError, Session};
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::observe::{self, Depth, Doors};
use crate::ops::roles::{self, Lead};
use crate::topology::model::{Cluster, Herd, Node};
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::human_duration;

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
    pub(super) lock_timeout: Duration,
    pub(super) tries: u32,
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

    pub(super) async fn send(
        &self,
        what: &str,
        block: &Block,
        share: Duration,
    ) -> Result<(), (DbError, Vec<Blocker>)> {
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

pub(super) fn in_the_way(script: &Script, tries: u32, share: Duration, blockers: &[Blocker]) -> Error {
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
    let rows = catalog::marked(conn, mark::BEGIN).await?;
    let row = rows.into_iter().find(|row| row.schema == table.schema && row.name == table.name);
    let why = match row {
        None => "it has no mark of a partition that was detached".to_owned(),
        Some(row) => match Mark::read(&row.comment) {
            Some(mark) if mark.state == State::Detached && mark.of == set.table => {
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
