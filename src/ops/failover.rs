//! Another node made primary when the one that was is gone: no acknowledged row lost unless that was agreed to, and never a second primary.
//!
//! Nothing is concluded from silence. The standbys let go of the old primary first, so that what they have stands still; then the old one is
//! fenced, with evidence; and only who has everything is promoted. Until then everything is taken back. The algorithm is that of
//! docs/guide/failover.md.

mod backfill;
pub mod evidence;
pub mod loss;
mod obstacles;
pub mod plan;
pub mod quorum;
pub mod report;
mod run;
mod salvage;
pub mod sight;
mod stages;
mod standbys;
pub mod step;
mod waited;
pub mod watch;
pub mod witness;

use std::time::Duration;

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::error::{Error, Result};
use crate::ops::cluster_lock::{Locker, WithoutAnswer};
use crate::ops::context::Context;
use crate::ops::failover::plan::FailPlan;
use crate::ops::failover::step::FailStep;
use crate::ops::notify::Subject;
use crate::ops::plan::step::stages;
use crate::ops::succession::{Input, World};
use crate::topology::model::{Cluster, Herd};

/// The kind of this operation in its journal.
pub const KIND: &str = "failover";

/// What a failover is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    /// What was shown and agreed to.
    pub plan: FailPlan,
    pub topology: TopologyFile,
    /// How long to wait for another operation of the cluster to end.
    pub wait: Duration,
}

/// Drives a plan that was shown and agreed to.
///
/// # Errors
/// [`ErrorKind::Locked`](crate::error::ErrorKind::Locked) if another operation holds the cluster, `Refused` if the world moved since the plan
/// was made, and as [`crate::engine::operation::run`].
pub async fn run(
    context: &Context,
    request: Request<'_>,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let Request { herd, cluster, plan: shown, topology, wait } = request;
    let present = plan::without(cluster, &shown.input.left_out);
    let lock = locker(context, &present).take(wait).await?;
    let (lock, fresh) = lock.keep_for(again(context, herd, cluster, shown).await).await?;
    let intent = Intent::of(KIND, topology, &fresh.input, stages(&fresh.stages))?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) =
        operation.or_call_off(World::open(context, id.as_str().to_owned(), fresh.input).await).await?;
    let outcome = Subject::of(context, &world.input).run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Makes the plan again, unless that was done just now, and sees that it is the one that was agreed to.
async fn again(context: &Context, herd: &Herd, cluster: &Cluster, shown: FailPlan) -> Result<FailPlan> {
    if plan::holds(context, cluster, &shown).await {
        return Ok(shown);
    }
    let fresh = plan::plan(context, herd, cluster, &shown.wish).await;
    let fresh = fresh.map_err(|mut errors| errors.remove(0))?;
    if fresh.is_still(&shown) {
        return Ok(fresh);
    }
    Err(Error::refused(format!("{} has changed since the plan was shown", cluster.name))
        .detail("What is there now asks for other steps. Nothing was changed.")
        .hint("Look at it again with --dry-run."))
}

/// A repository that does not answer holds no failover up.
fn locker<'a>(context: &'a Context, present: &'a Cluster) -> Locker<'a> {
    Locker { without_answer: WithoutAnswer::GoOn, ..context.locker(present) }
}

/// Goes on with a failover that no process drives any more, or takes it back until its pivot.
///
/// # Errors
/// As [`crate::engine::operation::run`] and [`crate::engine::operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<FailStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    let present = plan::without(&input.cluster, &input.left_out);
    locker(context, &present).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    Subject::of(context, &world.input).go(&mut operation, &world, way, events, interrupt).await
}
