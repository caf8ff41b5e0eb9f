//! A node that is no standby of the present primary, brought back as one: an old primary after a failover, a standby that went its own way.
//!
//! It is never started as a primary, and what it had is never removed before it streams. The algorithm is that of docs/guide/rejoin.md.

mod copy;
pub mod decide;
pub mod evidence;
mod look;
pub mod nearer;
pub mod plan;
mod quarantine;
pub mod report;
pub mod rewind;
mod run;
pub mod step;
mod surplus;
pub mod world;

use std::time::Duration;

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::ops::notify::Subject;
use crate::ops::plan::step::stages;
use crate::ops::rejoin::plan::RejoinPlan;
use crate::ops::rejoin::step::RejoinStep;
use crate::ops::rejoin::world::{Input, World};
use crate::topology::model::{Cluster, Herd};

/// The kind of this operation in its journal.
pub const KIND: &str = "rejoin";

/// What a rejoin is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    /// What was shown and agreed to.
    pub plan: RejoinPlan,
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
    let Request { herd, cluster, plan: shown, topology, wait } = request;
    let lock = context.locker(cluster).take(wait).await?;
    let fresh = plan::plan(context, herd, cluster, &shown.wish).await;
    let fresh = fresh.map_err(|mut errors| errors.remove(0)).and_then(|fresh| {
        if fresh.is_still(&shown) {
            return Ok(fresh);
        }
        Err(Error::refused(format!("{} has changed since the plan was shown", cluster.name))
            .detail("What is there now asks for other steps. Nothing was changed.")
            .hint("Look at it again with --dry-run."))
    });
    let (lock, fresh) = lock.keep_for(fresh).await?;
    let intent = Intent::of(KIND, topology, &fresh.input, stages(&fresh.stages))?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) =
        operation.or_call_off(World::open(context, id.as_str().to_owned(), fresh.input).await).await?;
    let outcome = subject(context, &world).run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Goes on with a rejoin that no process drives any more, or takes it back until its pivot.
///
/// # Errors
/// As [`crate::engine::operation::run`] and [`crate::engine::operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<RejoinStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&input.succession.cluster).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    subject(context, &world).go(&mut operation, &world, way, events, interrupt).await
}

fn subject<'a>(context: &'a Context, world: &'a World) -> Subject<'a> {
    let input = &world.succession.input;
    Subject::without_change(context, &input.herd, &input.cluster)
}

/// Returns the cluster that an operation of this kind was given.
pub fn cluster_of(input: &serde_json::Value) -> Option<Cluster> {
    serde_json::from_value::<Input>(input.clone()).ok().map(|input| input.succession.cluster)
}
