//! The clients of all poolers of a cluster held back, all or none, and let go: an operation with a journal and an expiry.
//!
//! Before anything is paused a process beside each pooler stands that lets its clients go on by itself; see `ops::pooler::expiry`.

use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{self, Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::engine::step::{Cx, Found, Retry, Reversal, Stage, Step, StepError};
use crate::engine::store::Listed;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply;
use crate::ops::binary::Build;
use crate::ops::context::Context;
use crate::ops::observe::Doors;
use crate::ops::pooler::{
    ConsoleSeen, Paused, PoolerProcess, PoolerSeen, QUERY_WAIT_TIMEOUT, expiry, status, turn,
};
use crate::topology::model::Cluster;
use crate::units::human_duration;

/// The kind of this operation in its journal.
pub const KIND: &str = "pooler";

/// One change to what the poolers let through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HoldStep {
    /// A process beside each pooler that lets its clients go on after so many seconds.
    Arm { hosts: Vec<String>, seconds: u64 },
    /// PAUSE these poolers, all or none; transactions that run have so many seconds to end.
    Pause { hosts: Vec<String>, grace: u64 },
    /// RESUME these poolers and end what would have done it.
    Resume { hosts: Vec<String> },
}

/// What a step leaves in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Done {
    Armed {},
    Paused {},
    Resumed {},
}

/// What the journal keeps of the input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub cluster: Cluster,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    operation: String,
    cluster: Cluster,
    doors: Doors,
    build: Build,
}

impl World {
    fn open(context: &Context, operation: String, cluster: Cluster) -> Result<Self> {
        let doors = Doors::open(&cluster, context.places.clone(), &context.gate)?;
        Ok(Self { operation, cluster, doors, build: context.build.clone() })
    }

    fn holder(&self) -> Holder<'_> {
        Holder { doors: &self.doors, cluster: &self.cluster, build: &self.build, operation: &self.operation }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Wish {
    /// Hold clients back, for at most `time`; transactions that run have `grace` to end.
    Pause {
        time: Duration,
        grace: Duration,
    },
    Resume,
}

/// Sees that clients can be held back: every pooler runs and answers, none is held back already, none would keep PAUSE waiting for a client
/// to leave, and no client is told that it waited too long.
///
/// Returns every reason why it cannot be done: refused with what keeps it from being safe, not found where a pooler does not answer.
pub async fn obstacles(context: &Context, cluster: &Cluster, time: Duration) -> Vec<Error> {
    let doors = match Doors::look(cluster, context.places.clone(), &context.gate) {
        Ok(doors) => doors,
        Err(error) => return vec![error],
    };
    let seen = status::look(&doors, cluster).await;
    join_all(seen.iter().map(|seen| obstacle(&doors, cluster, seen, time)))
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect()
}

async fn obstacle(doors: &Doors, cluster: &Cluster, seen: &PoolerSeen, time: Duration) -> Result<()> {
    may_pause(cluster, seen, time)?;
    let place = crate::ops::pooler::Place::find(doors, cluster, &seen.host, 1).await?;
    let Some(hold) = expiry::held(&place).await? else { return Ok(()) };
    Err(Error::refused(format!("the clients of the pooler on {} are held back already", seen.host))
        .detail(format!("By operation {}, until {:.0}. Nothing was changed.", hold.operation, hold.until))
        .hint(format!("Let them go on: pgherd pooler resume --cluster {}", cluster.name)))
}

fn may_pause(cluster: &Cluster, seen: &PoolerSeen, time: Duration) -> Result<()> {
    let what = format!("cannot hold back the clients of {}", cluster.name);
    let silent = |why: &str| {
        Error::new(ErrorKind::NotFound, format!("{what}: the pooler on {} does not answer", seen.host))
            .detail(format!("{why}. Nothing was changed."))
            .hint("All of them are held back, or none. See each one: pgherd pooler status")
    };
    let observed = seen.observed.as_ref().map_err(|why| silent(why))?;
    let console = match (&observed.process, &observed.console) {
        (PoolerProcess::Running { .. }, ConsoleSeen::Answered(console)) => console,
        (PoolerProcess::Stopped, _) => return Err(silent("It does not run")),
        (PoolerProcess::Unknown { why }, _) | (_, ConsoleSeen::Unknown { why }) => return Err(silent(why)),
    };
    // In session mode PAUSE waits until the client leaves (PgBouncer docs, "PAUSE").
    let kept = console.pools.iter().find(|pool| pool.mode == "session" && pool.servers_active > 0);
    if let Some(pool) = kept {
        return Err(Error::refused(format!("{what}: clients of {} keep their connections", pool.alias))
            .detail(format!(
                "On {} {} of user {} lend server connections for whole sessions (pool_mode session); PAUSE would wait until they leave. \
                 Nothing was changed.",
                seen.host, pool.servers_active, pool.user
            ))
            .hint("Have these clients disconnect, or lend connections for transactions: mode: transaction."));
    }
    let wait =
        console.settings.get("query_wait_timeout").and_then(|row| row.value.split('.').next()?.parse().ok());
    let wait = wait.map_or(QUERY_WAIT_TIMEOUT, Duration::from_secs);
    if !wait.is_zero() && time >= wait {
        return Err(Error::refused(format!("{what} for {}", human_duration(time)))
            .detail(format!(
                "A client that waits longer than query_wait_timeout, {} on {}, gets an error. Nothing was changed.",
                human_duration(wait),
                seen.host
            ))
            .hint("Hold them back for a shorter time: --for 30s"));
    }
    Ok(())
}

/// Returns an operation of this kind that was left unfinished and that nobody drives.
///
/// # Errors
/// When the journals or the lock cannot be read.
pub fn left(context: &Context, cluster: &Cluster) -> Result<Option<OperationId>> {
    if crate::engine::lock::holder(&context.store, &cluster.name)?.is_some() {
        return Ok(None);
    }
    Ok(context.store.list()?.into_iter().find_map(|listed| match listed {
        Listed::Readable(view)
            if view.cluster == cluster.name && view.kind == KIND && !view.is_finished() =>
        {
            Some(view.id.clone())
        }
        Listed::Readable(_) | Listed::Damaged { .. } => None,
    }))
}

/// Holds the clients of a cluster back, or lets them go on, once another operation has ended within the time to wait.
///
/// # Errors
/// [`ErrorKind::Locked`] beside another operation, and as [`operation::run`].
pub async fn run(
    context: &Context,
    cluster: &Cluster,
    topology: TopologyFile,
    (wish, wait): (Wish, Duration),
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let lock = context.locker(cluster).take(wait).await?;
    let checked = match wish {
        Wish::Pause { time, .. } => {
            obstacles(context, cluster, time).await.into_iter().next().map_or(Ok(()), Err)
        }
        Wish::Resume => Ok(()),
    };
    let (lock, ()) = lock.keep_for(checked).await?;
    let hosts: Vec<String> = cluster.pooler_hosts().cloned().collect();
    let steps = match wish {
        Wish::Pause { time, grace } => vec![
            HoldStep::Arm { hosts: hosts.clone(), seconds: time.as_secs() },
            HoldStep::Pause { hosts, grace: grace.as_secs().max(1) },
        ],
        Wish::Resume => vec![HoldStep::Resume { hosts }],
    };
    let stages = steps.into_iter().map(|step| Stage { steps: vec![step] }).collect();
    let intent = Intent::of(KIND, topology, &Input { cluster: cluster.clone() }, stages)?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) =
        operation.or_call_off(World::open(context, id.as_str().to_owned(), cluster.clone())).await?;
    let outcome = operation::run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Returns the cluster that a journal's input names.
pub fn cluster_of(input: &serde_json::Value) -> Option<Cluster> {
    serde_json::from_value::<Input>(input.clone()).ok().map(|input| input.cluster)
}

/// Goes on with an operation of this kind that nobody drives any more, or takes it back: then the clients go on.
///
/// # Errors
/// As [`operation::run`] and [`operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<HoldStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let Input { cluster } = operation.input()?;
    context.locker(&cluster).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), cluster)?;
    operation::go(&mut operation, &world, way, events, interrupt).await
}

impl Step for HoldStep {
    type World = World;
    type Evidence = Done;

    fn describe(&self) -> String {
        match self {
            Self::Arm { hosts, seconds } => {
                format!("on {}: let clients go on by itself after {seconds} s", hosts.join(", "))
            }
            Self::Pause { hosts, .. } => {
                format!("hold back the clients of the pooler on {}", hosts.join(", "))
            }
            Self::Resume { hosts } => format!("let the clients of the pooler on {} go on", hosts.join(", ")),
        }
    }

    fn reversal(&self) -> Reversal {
        match self {
            Self::Arm { .. } | Self::Pause { .. } => Reversal::Undo,
            Self::Resume { .. } => Reversal::NothingToUndo,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            Self::Arm { .. } => Duration::from_secs(120),
            Self::Pause { grace, .. } => Duration::from_secs(grace + 30),
            Self::Resume { .. } => Duration::from_secs(60),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Resume { .. } => Retry { attempts: 3, pause: Duration::from_millis(500) },
            Self::Arm { .. } | Self::Pause { .. } => Retry::NEVER,
        }
    }

    async fn probe(&self, _cx: &Cx<'_, Self>) -> Result<Found<Done>, StepError> {
        // Each is idempotent; and what stood before a kill may have ended since.
        Ok(Found::NotDone)
    }

    async fn apply(&self, cx: &Cx<'_, Self>) -> Result<Done, StepError> {
        let world = cx.world;
        match self {
            Self::Arm { hosts, seconds } => {
                world.holder().arm(hosts, Duration::from_secs(*seconds)).await?;
                Ok(Done::Armed {})
            }
            Self::Pause { hosts, grace } => {
                world.holder().pause(hosts, Duration::from_secs(*grace)).await?;
                Ok(Done::Paused {})
            }
            Self::Resume { hosts } => {
                world.holder().resume(hosts).await.map_err(StepError::passing)?;
                Ok(Done::Resumed {})
            }
        }
    }

    async fn undo(&self, cx: &Cx<'_, Self>) -> Result<(), StepError> {
        match self {
            Self::Arm { hosts, .. } | Self::Pause { hosts, .. } => {
                Ok(cx.world.holder().take_back(hosts).await?)
            }
            Self::Resume { .. } => Ok(()),
        }
    }
}

/// Who holds clients back: an operation, on the poolers of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub doors: &'a Doors,
    pub cluster: &'a Cluster,
    pub build: &'a Build,
    pub operation: &'a str,
}

impl Holder<'_> {
    /// Starts what lets the clients of these hosts' poolers go on by themselves after `time`.
    ///
    /// # Errors
    /// When it does not stand on one of them.
    pub async fn arm(self, hosts: &[String], time: Duration) -> Result<()> {
        let Self { doors, cluster, build, operation } = self;
        let armed = hosts.iter().map(|host| expiry::arm(doors, cluster, host, build, operation, time));
        all(hosts, join_all(armed).await, "have clients go on by themselves")
    }

    /// Pauses all, or none: what cannot be drained in time is an error, and taking it back lets everybody go on.
    ///
    /// # Errors
    /// When transactions do not end in time, a pooler does not answer, or nothing would end the pause.
    pub async fn pause(self, hosts: &[String], grace: Duration) -> Result<()> {
        let of = (self.doors, self.cluster, self.build);
        let asked = hosts.iter().map(|host| turn::pause(of, host, self.operation, grace));
        let answers = join_all(asked).await;
        for (host, answer) in hosts.iter().zip(&answers) {
            if let Ok(Paused::Draining) = answer {
                return Err(Error::failed(format!(
                    "transactions on {host} did not end within {}",
                    human_duration(grace)
                ))
                .detail("Everybody goes on: a pooler is held back with all others or not at all.")
                .hint("See who runs them: SELECT * FROM pg_stat_activity WHERE state <> 'idle'"));
            }
        }
        all(hosts, answers, "hold back its clients")
    }

    /// Lets everybody go on, and ends what would have done it.
    ///
    /// # Errors
    /// When a pooler does not answer; the others are told all the same.
    pub async fn resume(self, hosts: &[String]) -> Result<()> {
        let asked = hosts.iter().map(|host| apply::pooler::resume(self.doors, self.cluster, host));
        let answers = join_all(asked).await;
        for (host, answer) in hosts.iter().zip(&answers) {
            // Where clients could not be let go the process beside the pooler stays to do it.
            if answer.is_ok() {
                expiry::disarm(self.doors, self.cluster, host).await?;
            }
        }
        all(hosts, answers, "let its clients go on")
    }

    /// Lets everybody go on after a pause that did not come about. A pooler that does not answer has its own process beside it that goes
    /// on trying, so that nothing is left for the operator to finish.
    ///
    /// # Errors
    /// When clients of a pooler cannot be let go and nothing beside it will do it.
    pub async fn take_back(self, hosts: &[String]) -> Result<()> {
        let asked = hosts.iter().map(|host| apply::pooler::resume(self.doors, self.cluster, host));
        let answers = join_all(asked).await;
        for (host, answer) in hosts.iter().zip(answers) {
            match answer {
                Ok(()) => expiry::disarm(self.doors, self.cluster, host).await?,
                Err(error) => {
                    let place = crate::ops::pooler::Place::find(self.doors, self.cluster, host, 1).await?;
                    let hold = expiry::held(&place).await?;
                    if hold.is_none_or(|hold| hold.operation != self.operation) {
                        return Err(error.context(format!("let its clients go on, on {host}")));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Tells the first error, with its host; all were asked before.
fn all<T>(hosts: &[String], answers: Vec<Result<T>>, what: &str) -> Result<()> {
    for (host, answer) in hosts.iter().zip(answers) {
        answer.map_err(|error| error.context(format!("{what}, on {host}")))?;
    }
    Ok(())
}
