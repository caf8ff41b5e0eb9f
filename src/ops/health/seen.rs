//! The look: everything that the checks of a cluster need, each fact known or with the reason why not.
//!
//! Nodes, poolers and the repository side by side, then what is asked of those that answer, all within one time ([`ALL`]).

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

use super::asked::{Asked, Why};
use super::before::Before;
use super::custom::{self, CustomSeen};
use super::herd::{self, HerdSeen, NodeFacts};
use crate::db::health::activity::{self, Horizon, LockWait, Longest, Prepared, Vitals};
use crate::db::health::configuration::{self, BadLine};
use crate::db::health::databases::{self, Counters, DeadRows, InvalidIndex, Sequences, Statements, Unfrozen};
use crate::db::health::partitions;
use crate::db::health::wal::{self, Directory, Replay, Sender, SlotSeen, Subscription};
use crate::db::health::{self as ask, Asker};
use crate::db::partition::{self as catalog, DefaultRows, MarkedRow, session};
use crate::db::queries::{self, Archiver};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::kept::{self, Kept};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved, PATIENCE, Running};
use crate::ops::partition;
use crate::ops::pooler::{self, PoolerSeen};
use crate::ops::roles::{self, Lead};
use crate::ops::split::{self, SplitBrain};
use crate::pg::ident::quote_identifier;
use crate::pg::lsn::Lsn;
use crate::topology::model::{Cluster, Herd, Node};
use crate::topology::partitions::{PartitionSet, TableName};
use crate::units::human_duration;

/// Everything that was seen of one cluster.
#[derive(Debug)]
pub struct Seen<'a> {
    pub cluster: &'a Cluster,
    pub at: Timestamp,
    pub observed: ClusterObserved,
    pub lead: Lead,
    /// What each primary has, where there are several.
    pub split: Option<SplitBrain>,
    /// In the order of the file.
    pub nodes: Vec<NodeSeen>,
    /// One of each process, in the order of the file.
    pub poolers: Vec<PoolerSeen>,
    /// `None` where no backups are declared.
    pub kept: Option<Asked<Kept>>,
    pub herd: HerdSeen,
    /// The look before this one, if there was one: for rates, and to tell what moves from what is stuck.
    pub before: Option<Before>,
    /// What checks were answered that the topology declares.
    pub custom: Vec<CustomSeen>,
}

/// What a node's server told beyond what `status` shows.
#[derive(Debug, Clone)]
pub struct NodeSeen {
    pub clock: Asked<Clock>,
    /// Where a standby had replayed to before any primary was asked, and up to where a primary had flushed after that.
    pub position: Asked<Position>,
    /// Where it stood after every primary had been asked.
    pub again: Asked<Position>,
    pub vitals: Asked<Vitals>,
    pub longest: Asked<Longest>,
    pub lock_wait: Asked<Option<LockWait>>,
    pub prepared: Asked<Option<Prepared>>,
    pub horizon: Asked<Option<Horizon>>,
    pub senders: Asked<Vec<Sender>>,
    /// `None` for a primary.
    pub replay: Asked<Option<Replay>>,
    pub slots: Asked<Vec<SlotSeen>>,
    pub wal: Asked<Directory>,
    pub subscriptions: Asked<Vec<Subscription>>,
    pub counters: Asked<Vec<Counters>>,
    pub pending_restart: Asked<Vec<String>>,
    pub bad_lines: Asked<Vec<BadLine>>,
    pub archiver: Asked<Archiver>,
    pub facts: NodeFacts,
    /// What only a connection to a database tells, of a primary and the declared databases.
    pub inside: Vec<Inside>,
}

/// The clock of a server, as it was when it answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clock {
    /// Ahead of ours, by the middle of the round trip.
    pub ahead_seconds: f64,
    /// By how much that can be wrong.
    pub half_trip_seconds: f64,
}

/// Where a server stood at a moment between two of our own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// `None` on a standby that has replayed nothing since its start.
    pub lsn: Option<Lsn>,
    pub sent: Timestamp,
    pub received: Timestamp,
}

/// What a connection to a database told.
#[derive(Debug, Clone)]
pub struct Inside {
    pub database: String,
    pub sequences: Asked<Sequences>,
    pub invalid_indexes: Asked<Vec<InvalidIndex>>,
    pub dead_rows: Asked<Option<DeadRows>>,
    pub unfrozen: Asked<Option<Unfrozen>>,
    /// `None` where it is not installed.
    pub statements: Asked<Option<Statements>>,
    pub partitions: Asked<Partitions>,
}

/// The declared partition sets of a database.
#[derive(Debug, Clone, Default)]
pub struct Partitions {
    pub sets: Vec<SetAsked>,
    /// Tables that say that they were made for a set, or taken from one.
    pub marked: Vec<MarkedRow>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct SetAsked {
    pub seen: partitions::SetSeen,
    /// `None` without a default partition.
    pub default_rows: Option<Asked<DefaultRows>>,
}

impl NodeSeen {
    /// Returns what is known of a node that nobody asked: nothing, for this reason.
    pub fn without(why: &Why) -> Self {
        Self {
            clock: Err(why.clone()),
            position: Err(why.clone()),
            again: Err(why.clone()),
            vitals: Err(why.clone()),
            longest: Err(why.clone()),
            lock_wait: Err(why.clone()),
            prepared: Err(why.clone()),
            horizon: Err(why.clone()),
            senders: Err(why.clone()),
            replay: Err(why.clone()),
            slots: Err(why.clone()),
            wal: Err(why.clone()),
            subscriptions: Err(why.clone()),
            counters: Err(why.clone()),
            pending_restart: Err(why.clone()),
            bad_lines: Err(why.clone()),
            archiver: Err(why.clone()),
            facts: NodeFacts::without(why),
            inside: Vec::new(),
        }
    }
}

impl Inside {
    fn without(database: &str, why: &Why) -> Self {
        Self {
            database: database.to_owned(),
            sequences: Err(why.clone()),
            invalid_indexes: Err(why.clone()),
            dead_rows: Err(why.clone()),
            unfrozen: Err(why.clone()),
            statements: Err(why.clone()),
            partitions: Err(why.clone()),
        }
    }
}

impl<'a> Seen<'a> {
    /// Returns the nodes with what was seen of each, in the order of the file.
    pub fn each(&self) -> impl Iterator<Item = (&'a Node, &NodeObserved, &NodeSeen)> {
        let seen = self.observed.nodes.iter().zip(&self.nodes);
        self.cluster.nodes.iter().zip(seen).map(|(node, (observed, seen))| (node, observed, seen))
    }

    /// Returns the node that accepts writes, if exactly one does.
    pub fn primary(&self) -> Option<&NodeObserved> {
        match &self.lead {
            Lead::Primary(name) => self.observed.node(name),
            Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
        }
    }

    /// Returns what the node that accepts writes was asked, if exactly one does.
    pub fn primary_asked(&self) -> Option<(&'a Node, &NodeSeen)> {
        let primary = self.primary()?;
        self.each().find(|(node, _, _)| node.name == primary.node).map(|(node, _, asked)| (node, asked))
    }

    /// Returns how large the primary's databases are, where that is known.
    pub fn size(&self) -> Option<u64> {
        self.primary_asked()?.1.facts.size.as_ref()?.as_ref().ok().copied()
    }

    /// Returns what a node was asked.
    pub fn asked(&self, node: &str) -> Option<&NodeSeen> {
        self.each().find(|(of, _, _)| of.name == node).map(|(_, _, asked)| asked)
    }
}

/// How long a look at a herd takes at most, however many hosts and nodes are silent; what a check of your own takes comes on top.
const ALL: Duration = Duration::from_millis(4500);
/// How long of it each node, pooler and repository has for its first answers, the way to its host included.
const FIRST: Duration = Duration::from_millis(3500);

/// Looks at one cluster.
///
/// # Errors
/// When a door cannot be opened at all.
pub async fn look<'a>(context: &Context, herd: &Herd, cluster: &'a Cluster) -> Result<Seen<'a>> {
    let until = Instant::now() + ALL;
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?.within(FIRST);
    let doors = match &context.role {
        Some(role) => doors.asking_as(role, apply::password(context, cluster, role).await?),
        None => doors,
    };
    let ((observed, conns), poolers, kept) = tokio::join!(
        observe::observe_and_stay(&doors, cluster, Depth::Servers),
        pooler::status::look(&doors, cluster),
        repository(&doors, context, cluster),
    );
    let left = until.saturating_duration_since(Instant::now());
    let mut later = doors.clone();
    later.connector = later.connector.timeouts(PATIENCE.min(left), PATIENCE.min(left));
    let lead = roles::lead(&observed);
    let primary = match &lead {
        Lead::Primary(name) => observed.node(name),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    let (split, nodes, custom, herd) = tokio::join!(
        split::look(&later, cluster, &observed),
        ask(&later, cluster, &observed, conns, until),
        custom::look(&doors, cluster, &observed, &lead),
        herd::look(context, &later, herd, cluster, &observed, primary, &poolers),
    );
    Ok(Seen {
        cluster,
        at: Timestamp::now(),
        observed,
        lead,
        split,
        nodes,
        poolers,
        kept,
        herd,
        before: None,
        custom,
    })
}

/// One node that is asked: its connection, who asks, and what was told at once.
struct Asking<'a> {
    conn: Conn,
    asker: Asker,
    clock: Clock,
    running: &'a Running,
}

/// Asks all nodes side by side, through the connections by which they were looked at. The positions come one after the other: first those
/// of all standbys, then those of the primaries, so that a standby is never ahead of what it is compared with; then once more those of the
/// standbys, which tells of each whether what was there when the primary answered has been replayed since.
async fn ask(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
    conns: Vec<Option<Conn>>,
    until: Instant,
) -> Vec<NodeSeen> {
    let nodes = observed.nodes.iter().zip(conns);
    let asked = join_all(nodes.map(|(seen, conn)| {
        in_time(until, async move {
            let (running, conn) = seen.running().zip(conn).ok_or(Why::NotUp)?;
            begin(conn, running).await
        })
    }))
    .await;
    let of = |primaries: bool| {
        let asked = &asked;
        join_all(asked.iter().map(move |asking| async move {
            match asking {
                Ok(asking) if asking.running.is_primary() == primaries => {
                    Some(in_time(until, position(&asking.conn)).await)
                }
                Ok(_) | Err(_) => None,
            }
        }))
    };
    let standbys = of(false).await;
    let primaries = of(true).await;
    let again = of(false).await;
    let positions = standbys.into_iter().zip(primaries).zip(again);
    let answers = cluster.nodes.iter().zip(&asked).zip(positions).map(
        |((node, asking), ((standby, primary), again))| async move {
            let told = match asking {
                Ok(asking) => {
                    in_time(until, async { Ok(questions(doors, cluster, node, asking).await) }).await
                }
                Err(why) => Err(why.clone()),
            };
            match told {
                Ok(told) => {
                    let position = standby.or(primary).unwrap_or(Err(Why::NotUp));
                    NodeSeen { again: again.unwrap_or_else(|| position.clone()), position, ..told }
                }
                Err(why) => NodeSeen::without(&why),
            }
        },
    );
    join_all(answers).await
}

/// Waits until the look is over, and no longer.
async fn in_time<T>(until: Instant, question: impl Future<Output = Asked<T>>) -> Asked<T> {
    let late = || format!("it did not answer within {}", human_duration(ALL));
    tokio::time::timeout_at(until, question).await.unwrap_or_else(|_| Err(Why::Failed(late())))
}

/// Learns who asks, by a connection that has answered already: its first statement fills caches, which would count as the way.
async fn begin(conn: Conn, running: &Running) -> Asked<Asking<'_>> {
    let sent = Timestamp::now();
    let asker = ask::asker(&conn).await.map_err(why)?;
    let received = Timestamp::now();
    let half = received.duration_since(sent).as_secs_f64() / 2.0;
    let ahead_seconds = asker.now.duration_since(sent).as_secs_f64() - half;
    Ok(Asking { conn, asker, clock: Clock { ahead_seconds, half_trip_seconds: half }, running })
}

async fn position(conn: &Conn) -> Asked<Position> {
    let sent = Timestamp::now();
    let lsn = wal::position(conn).await.map_err(why)?;
    Ok(Position { lsn, sent, received: Timestamp::now() })
}

/// All of these are sent at once, and answered one after the other; each fails by itself.
async fn questions(doors: &Doors, cluster: &Cluster, node: &Node, asking: &Asking<'_>) -> NodeSeen {
    let Asking { conn, asker, clock, running } = asking;
    let needs = NeedsMonitor(asker);
    let counted = tokio::join!(
        needs.ask(activity::vitals(conn)),
        needs.ask(activity::longest(conn)),
        needs.ask(activity::lock_wait(conn)),
        asks(activity::prepared(conn)),
        needs.ask(activity::horizon(conn)),
        needs.ask(wal::senders(conn)),
        needs.ask(wal::replay(conn)),
        asks(wal::slots(conn)),
        needs.ask(wal::directory(conn)),
    );
    let (vitals, longest, lock_wait, prepared, horizon, senders, replay, slots, wal) = counted;
    let (subscriptions, counters, pending_restart, bad_lines, archiver) = tokio::join!(
        needs.ask(wal::subscriptions(conn, running.facts.version.major)),
        asks(databases::counters(conn)),
        needs.ask(configuration::pending_restart(conn)),
        bad_lines(conn, asker),
        needs.ask(queries::archiver(conn)),
    );
    NodeSeen {
        clock: Ok(*clock),
        position: Err(Why::NotUp),
        again: Err(Why::NotUp),
        vitals,
        longest,
        lock_wait,
        prepared,
        horizon,
        senders,
        replay,
        slots,
        wal,
        subscriptions,
        counters,
        pending_restart,
        bad_lines,
        archiver,
        facts: NodeFacts::ask(conn, &running.facts).await,
        inside: if running.is_primary() { inside(doors, cluster, node, asker).await } else { Vec::new() },
    }
}

async fn bad_lines(conn: &Conn, asker: &Asker) -> Asked<Vec<BadLine>> {
    match configuration::bad_lines(conn).await {
        Err(error) if error.is_state(INSUFFICIENT_PRIVILEGE) => {
            Err(not_granted(asker, configuration::BAD_LINES_GRANT))
        }
        other => other.map_err(why),
    }
}

/// Asks one database after the other, so that a node has two connections of ours at most.
async fn inside(doors: &Doors, cluster: &Cluster, node: &Node, asker: &Asker) -> Vec<Inside> {
    let connector = &doors.connector;
    let mut told = Vec::new();
    for database in &cluster.databases {
        let conn = match connector.connect(&doors.superuser(cluster, node, database)).await {
            Ok(conn) => conn,
            Err(error) => {
                let why = if error.is_state(INSUFFICIENT_PRIVILEGE) {
                    let grant =
                        format!("GRANT CONNECT ON DATABASE {} TO {{role}}", quote_identifier(database));
                    not_granted(asker, &grant)
                } else {
                    why(error)
                };
                told.push(Inside::without(database, &why));
                continue;
            }
        };
        let needs = NeedsMonitor(asker);
        let (sequences, invalid_indexes, dead_rows, unfrozen, statements) = tokio::join!(
            asks(databases::sequences(&conn)),
            needs.ask(databases::invalid_indexes(&conn)),
            asks(databases::dead_rows(&conn)),
            asks(databases::unfrozen(&conn)),
            needs.ask(databases::statements(&conn)),
        );
        let sequences = sequences.and_then(|sequences| match sequences.hidden {
            1.. => Err(not_granted(asker, databases::SEQUENCES_GRANT)),
            0 => Ok(sequences),
        });
        let partitions = partitions_of(&conn, cluster, database, asker).await;
        let database = database.clone();
        told.push(Inside {
            database,
            sequences,
            invalid_indexes,
            dead_rows,
            unfrozen,
            statements,
            partitions,
        });
    }
    told
}

/// The most rows of a default partition that are counted.
const MOST_COUNTED: i64 = 100_000;

/// Looks at the declared sets of a database; where none are, nothing is asked.
async fn partitions_of(conn: &Conn, cluster: &Cluster, database: &str, asker: &Asker) -> Asked<Partitions> {
    let declared: Vec<&PartitionSet> =
        cluster.partitions.iter().filter(|set| set.database == database).collect();
    if declared.is_empty() {
        return Ok(Partitions::default());
    }
    partitions::prepare(conn).await.map_err(why)?;
    let names: Vec<(&str, &str)> =
        declared.iter().map(|set| (set.table.schema.as_str(), set.table.name.as_str())).collect();
    let mut sets = Vec::new();
    for (set, seen) in declared.iter().zip(partitions::sets(conn, &names).await.map_err(why)?) {
        let default_rows = match seen.parts.iter().find(|part| part.is_default) {
            Some(default) => Some(default_rows(conn, set, default, asker).await),
            None => None,
        };
        sets.push(SetAsked { seen, default_rows });
    }
    Ok(Partitions { sets, marked: catalog::marked(conn, partition::MARK).await.map_err(why)? })
}

async fn default_rows(
    conn: &Conn,
    set: &PartitionSet,
    default: &partitions::PartSeen,
    asker: &Asker,
) -> Asked<DefaultRows> {
    let table = TableName { schema: default.schema.clone(), name: default.name.clone() }.quoted();
    match catalog::default_rows(conn, &table, &set.by, None, MOST_COUNTED).await {
        Err(error) if error.is_state(INSUFFICIENT_PRIVILEGE) => {
            Err(not_granted(asker, &format!("GRANT SELECT ON {table} TO {{role}}")))
        }
        Err(error) if session::was_in_the_way(&error) => {
            Err(Why::Failed("somebody keeps it locked".to_owned()))
        }
        counted => counted.map_err(why),
    }
}

/// SQLSTATE of a missing grant.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// What a missing grant is, which `{role}` takes the place of the role in.
fn not_granted(asker: &Asker, grant: &str) -> Why {
    Why::NotGranted {
        role: asker.role.clone(),
        grant: grant.replace("{role}", &quote_identifier(&asker.role)),
    }
}

/// Asks what every role may see.
async fn asks<T>(question: impl Future<Output = std::result::Result<T, DbError>>) -> Asked<T> {
    question.await.map_err(why)
}

/// Asks what only a member of pg_monitor sees. Without it some views answer with NULL instead of an error.
struct NeedsMonitor<'a>(&'a Asker);

impl NeedsMonitor<'_> {
    async fn ask<T>(&self, question: impl Future<Output = std::result::Result<T, DbError>>) -> Asked<T> {
        if !self.0.monitor {
            return Err(not_granted(self.0, "GRANT pg_monitor TO {role}"));
        }
        question.await.map_err(why)
    }
}

fn why(error: DbError) -> Why {
    Why::Failed(error.to_string())
}

async fn repository(doors: &Doors, context: &Context, cluster: &Cluster) -> Option<Asked<Kept>> {
    let repository = &cluster.backups.as_ref()?.repository;
    let look = kept::look(doors, &context.build, cluster, repository);
    Some(told(tokio::time::timeout(FIRST, look).await))
}

fn told<T>(look: std::result::Result<Result<T>, tokio::time::error::Elapsed>) -> Asked<T> {
    let one_line = |error: &Error| match error.detail_text() {
        Some(detail) => format!("{}: {}", error.what(), detail.trim_end_matches('.')),
        None => error.what().to_owned(),
    };
    match look {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(error)) => Err(Why::Failed(one_line(&error))),
        Err(_) => Err(Why::Failed(format!("it did not answer within {}", human_duration(FIRST)))),
    }
}
