//! A node kept from being a primary by an operator's word, and let go again.
//!
//! Other operations fence by [`shut_out`] and let go by [`lift`]. Nothing here makes another node primary.

mod mark;
pub mod step;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::mark::{
    Ended, Force, LastControl, Mark, ShutOut, let_in, lift, look, mark, new_mark, read, shut_out, take_back,
};
use self::step::{Done, FenceStep};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::engine::step::Stage;
use crate::engine::store::Store;
use crate::engine::view::StepState;
use crate::error::{Error, ErrorKind, Result};
use crate::host::programs::Programs;
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::notify::Subject;
use crate::ops::observe::{
    self, Claim, ClusterObserved, Depth, Directory, Doors, Fence, NodeObserved, Running, Server,
};
use crate::ops::plan::RecordSeen;
use crate::ops::provision::Site;
use crate::ops::roles;
use crate::pg::timeline::TimelineId;
use crate::topology::model::{Cluster, Herd, Node};

/// The kinds of these operations in their journals.
pub const FENCE: &str = "fence";
pub const UNFENCE: &str = "unfence";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Wish {
    /// Keep the node from being a primary; a fast shutdown gets so long.
    Fence {
        why: String,
        force: Force,
        limit: Duration,
    },
    Unfence,
}

/// What the journal keeps of the input: enough to go on without the topology file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub herd: String,
    pub cluster: Cluster,
    /// Its name within the cluster.
    pub node: String,
}

/// What is to be done, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FencePlan {
    pub cluster: String,
    /// Its name in the herd: `inventory-a`.
    pub node: String,
    /// One line: what the node is now.
    pub headline: String,
    /// One line each: what the operator should know.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub wish: Wish,
    #[serde(skip)]
    pub input: Input,
    /// None where nothing is to be done.
    pub steps: Vec<FenceStep>,
}

/// What the steps share.
#[derive(Debug)]
pub struct World {
    operation: String,
    input: Input,
    doors: Doors,
    programs: Programs,
}

impl World {
    async fn open(context: &Context, operation: String, input: Input) -> Result<Self> {
        let doors = Doors::open(&input.cluster, context.places.clone(), &context.gate)?;
        let node = node_of(&input)?;
        let programs = doors.programs(&input.cluster, &node.host).await?.clone();
        Ok(Self { operation, doors, programs, input })
    }

    /// Returns the node with everything that working on it needs.
    ///
    /// # Errors
    /// When a step names another node than the input.
    pub fn site(&self, name: &str) -> Result<Site<'_>> {
        let node = node_of(&self.input)?;
        if node.name != name {
            return Err(Error::failed(format!("the operation knows no node {name:?}")));
        }
        Ok(Site {
            herd: &self.input.herd,
            operation: &self.operation,
            cluster: &self.input.cluster,
            node,
            doors: &self.doors,
            programs: &self.programs,
            users: &[],
        })
    }
}

fn node_of(input: &Input) -> Result<&Node> {
    let found = input.cluster.node(&input.node);
    found.ok_or_else(|| Error::failed(format!("the operation knows no node {:?}", input.node)))
}

/// Looks at the node and its cluster, and decides; changes nothing.
///
/// # Errors
/// [`ErrorKind::Refused`] if it is not ours, or if it must stay fenced; [`ErrorKind::NotFound`] where that cannot be told.
pub async fn plan(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    node: &Node,
    wish: &Wish,
) -> Result<FencePlan> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let seen = observed.node(&node.name).expect("every node is observed");
    let name = cluster.full_name(&node.name);
    may_be_changed(&name, node, seen, wish)?;
    let adopted: BTreeSet<String> =
        observed.nodes.iter().filter(|seen| seen.is_adopted()).map(|seen| seen.node.clone()).collect();
    let input =
        Input { herd: herd.name.clone(), cluster: cluster.with_adopted(&adopted), node: node.name.clone() };
    let (steps, notes) = match wish {
        Wish::Fence { why, force, limit } => {
            (to_fence(&node.name, seen, why, *force, *limit), notes(cluster, &observed, seen))
        }
        Wish::Unfence => match &seen.fence {
            Fence::Fenced(mark) => {
                let record =
                    apply::archive::look_at_record_of(&doors, cluster, &node.host, &context.build).await;
                may_lift(cluster, &observed, seen, &record)?;
                (vec![FenceStep::Lift { node: node.name.clone(), mark: mark.clone() }], Vec::new())
            }
            Fence::Open | Fence::Unknown { .. } => (Vec::new(), Vec::new()),
        },
    };
    Ok(FencePlan {
        cluster: cluster.name.clone(),
        headline: headline(seen),
        node: name,
        notes,
        wish: wish.clone(),
        input,
        steps,
    })
}

/// Only what pgherd made or has taken over is changed, and only what can be reached.
fn may_be_changed(name: &str, node: &Node, seen: &NodeObserved, wish: &Wish) -> Result<()> {
    let what = match wish {
        Wish::Fence { .. } => format!("cannot fence {name}"),
        Wish::Unfence => format!("cannot unfence {name}"),
    };
    match (&seen.marker, &seen.fence) {
        (Claim::Ours(_), Fence::Open | Fence::Fenced(_)) => Ok(()),
        (Claim::Unknown { why }, _) | (Claim::Ours(_), Fence::Unknown { why }) => {
            Err(Error::new(ErrorKind::NotFound, what)
                .detail(format!("{why}. Nothing was changed; whether it runs is not known."))
                .hint(
                    "If its host cannot be reached, make sure that it is off, or cut off from its clients.",
                ))
        }
        (Claim::None | Claim::Other(_), _) => Err(Error::refused(what)
            .detail(format!(
                "No marker of {name} claims {}. Nothing was changed.",
                node.data_directory.display()
            ))
            .hint("pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE")),
    }
}

fn to_fence(node: &str, seen: &NodeObserved, why: &str, force: Force, limit: Duration) -> Vec<FenceStep> {
    if matches!((&seen.fence, &seen.server), (Fence::Fenced(_), Server::Stopped)) && starts_as_standby(seen) {
        return Vec::new();
    }
    let (node, why) = (node.to_owned(), why.to_owned());
    vec![
        FenceStep::Mark { node: node.clone(), why: why.clone() },
        FenceStep::ShutOut { node, why, force, seconds: limit.as_secs().max(1) },
    ]
}

fn starts_as_standby(seen: &NodeObserved) -> bool {
    match &seen.directory {
        Directory::Cluster { standby_signal, .. } => *standby_signal,
        Directory::Missing | Directory::Empty => true,
        Directory::Foreign { .. } | Directory::Unknown { .. } => false,
    }
}

fn headline(seen: &NodeObserved) -> String {
    let is = match &seen.server {
        Server::Up(running) if running.is_primary() => "primary".to_owned(),
        Server::Up(_) => "a standby".to_owned(),
        Server::Starting => "starting up".to_owned(),
        Server::Stopped => "stopped".to_owned(),
        Server::Foreign { what } => what.clone(),
        Server::Unknown { why } => format!("unknown: {why}"),
    };
    match &seen.fence {
        Fence::Fenced(mark) => format!("{is}, {mark}"),
        Fence::Open => format!("{is}, not fenced"),
        Fence::Unknown { .. } => is,
    }
}

/// What a fence takes away.
fn notes(cluster: &Cluster, observed: &ClusterObserved, seen: &NodeObserved) -> Vec<String> {
    let Some(running) = seen.running() else { return Vec::new() };
    let leads =
        |other: &&NodeObserved| other.node != seen.node && other.running().is_some_and(Running::is_primary);
    if running.is_primary() && observed.nodes.iter().any(|other| leads(&other)) {
        return Vec::new();
    }
    if running.is_primary() {
        return vec![format!(
            "{} takes no writes from then on, until another node is promoted: pgherd failover",
            cluster.name
        )];
    }
    let Some(synchronous) = &cluster.synchronous else { return Vec::new() };
    let primary = observed.nodes.iter().find(|other| other.running().is_some_and(Running::is_primary));
    let Some(primary) = primary.and_then(NodeObserved::running) else { return Vec::new() };
    let acknowledges = |name: &String| {
        *name != seen.node
            && primary.senders.iter().any(|sender| {
                sender.application_name == cluster.full_name(name) && sender.state == "streaming"
            })
    };
    let left = synchronous.of.iter().filter(|name| acknowledges(name)).count();
    let needed = usize::try_from(synchronous.wait_for).unwrap_or(usize::MAX);
    if synchronous.of.contains(&seen.node) && left < needed {
        return vec![format!(
            "commits of {} then wait for a standby that is not there: {needed} must acknowledge, {left} of ({}) would be left",
            cluster.name,
            synchronous.of.join(", ")
        )];
    }
    Vec::new()
}

/// Decides whether a fenced node may be what it was: a standby always, a primary while nobody else is one or ahead of it.
fn may_lift(
    cluster: &Cluster,
    observed: &ClusterObserved,
    seen: &NodeObserved,
    record: &RecordSeen,
) -> Result<()> {
    if is_standby(seen) {
        return Ok(());
    }
    let name = cluster.full_name(&seen.node);
    let rejoin = || format!("Bring it back as a standby: pgherd rejoin {}", seen.node);
    let Some(own) = roles::timeline(seen) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("cannot unfence {name}: its pg_control cannot be read"),
        )
        .detail("It would come up as a primary, and its timeline is not known. Nothing was changed."));
    };
    let ahead = |what: String| {
        Error::refused(format!("cannot unfence {name}: {what}"))
            .detail(format!("{name} would come up as a primary, on timeline {own}. Nothing was changed."))
            .hint(rejoin())
    };
    for other in observed.nodes.iter().filter(|other| other.node != seen.node) {
        let theirs = cluster.full_name(&other.node);
        if other.running().is_some_and(Running::is_primary) {
            return Err(ahead(format!("{theirs} is primary")));
        }
        match standing(other) {
            Standing::Nothing => {}
            Standing::On(timeline) if timeline > own => {
                return Err(ahead(format!("{theirs} is on timeline {timeline}")));
            }
            Standing::On(_) => {}
            Standing::Unknown(why) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("cannot unfence {name}: whether {theirs} has become primary is not known"),
                )
                .detail(format!("{why}. {name} would come up as a primary. Nothing was changed."))
                .hint("Make that node answer, and try again."));
            }
        }
    }
    match record {
        RecordSeen::Says(record)
            if record.node != seen.node
                && record.timeline >= own
                && seen
                    .control()
                    .is_none_or(|control| control.system_identifier == record.system_identifier) =>
        {
            Err(ahead(format!(
                "the record in the repository says that {} is primary, on timeline {}",
                cluster.full_name(&record.node),
                record.timeline
            )))
        }
        RecordSeen::Says(_) | RecordSeen::Missing => Ok(()),
        // All others were asked, and none is ahead.
        RecordSeen::Unknown { .. } => Ok(()),
    }
}

/// Tells whether the node runs as a standby, or has ended as one.
fn is_standby(seen: &NodeObserved) -> bool {
    if let Some(running) = seen.running() {
        return !running.is_primary();
    }
    starts_as_standby(seen) && seen.ended_as_standby()
}

/// Where another node stands.
enum Standing {
    /// It has no data.
    Nothing,
    On(TimelineId),
    Unknown(String),
}

fn standing(other: &NodeObserved) -> Standing {
    let unread = || Standing::Unknown(format!("The pg_control of {} could not be read", other.node));
    match (&other.server, &other.directory) {
        (Server::Unknown { why } | Server::Foreign { what: why }, _) => Standing::Unknown(why.clone()),
        (Server::Starting, _) => Standing::Unknown(format!("{} is starting up", other.node)),
        (Server::Stopped, Directory::Missing | Directory::Empty) => Standing::Nothing,
        (Server::Stopped, Directory::Unknown { why }) => Standing::Unknown(why.clone()),
        (Server::Up(_) | Server::Stopped, _) => roles::timeline(other).map_or_else(unread, Standing::On),
    }
}

/// What a fence is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    pub node: &'a Node,
    /// What was shown and agreed to.
    pub plan: FencePlan,
    pub topology: TopologyFile,
    /// How long to wait for another operation of the cluster to end.
    pub wait: Duration,
}

/// Drives a plan that was shown and agreed to.
///
/// # Errors
/// [`ErrorKind::Locked`] if another operation holds the cluster, `Refused` if the world moved since the plan was made, and as
/// [`crate::engine::operation::run`].
pub async fn run(
    context: &Context,
    request: Request<'_>,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let Request { herd, cluster, node, plan: shown, topology, wait } = request;
    let lock = context.locker(cluster).take(wait).await?;
    let fresh = plan(context, herd, cluster, node, &shown.wish).await.and_then(|fresh| {
        if fresh.steps == shown.steps {
            return Ok(fresh);
        }
        Err(Error::refused(format!("{} has changed since it was looked at", shown.node))
            .detail("Nothing was changed.")
            .hint("Look at it again: pgherd status"))
    });
    let (lock, fresh) = lock.keep_for(fresh).await?;
    let kind = match fresh.wish {
        Wish::Fence { .. } => FENCE,
        Wish::Unfence => UNFENCE,
    };
    let stages = fresh.steps.into_iter().map(|step| Stage { steps: vec![step] }).collect();
    let intent = Intent::of(kind, topology, &fresh.input, stages)?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) =
        operation.or_call_off(World::open(context, id.as_str().to_owned(), fresh.input).await).await?;
    let outcome = subject(context, &world).run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Goes on with an operation of these kinds that no process drives any more, or takes it back until its pivot.
///
/// # Errors
/// As [`crate::engine::operation::run`] and [`crate::engine::operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<FenceStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&input.cluster).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    subject(context, &world).go(&mut operation, &world, way, events, interrupt).await
}

fn subject<'a>(context: &'a Context, world: &'a World) -> Subject<'a> {
    Subject::without_change(context, &world.input.herd, &world.input.cluster)
}

/// What a fence has come to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub cluster: String,
    /// Its name in the herd.
    pub node: String,
    pub operation: OperationId,
    pub fenced: bool,
    /// How its server ended; `None` after an unfence.
    pub shut_out: Option<ShutOut>,
}

/// Reads what an operation has come to.
///
/// # Errors
/// When its journal cannot be read.
pub fn report(store: &Store, id: &OperationId) -> Result<Report> {
    let content = store.read(id)?;
    let unreadable = |error: serde_json::Error| {
        Error::new(ErrorKind::Stuck, format!("cannot read the journal of operation {id}")).source(error)
    };
    let input: Input = serde_json::from_value(content.header.input.clone()).map_err(unreadable)?;
    let mut shut_out = None;
    for step in content.view.steps() {
        let StepState::Done(value) = &step.state else { continue };
        match serde_json::from_value(value.clone()).map_err(unreadable)? {
            Done::ShutOut(found) => shut_out = Some(found),
            Done::Marked {} | Done::Lifted {} => {}
        }
    }
    Ok(Report {
        node: input.cluster.full_name(&input.node),
        cluster: content.header.cluster,
        operation: id.clone(),
        fenced: content.header.kind == FENCE,
        shut_out,
    })
}
