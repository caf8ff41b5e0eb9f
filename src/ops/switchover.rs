//! Another node made primary while all of them are well: no row lost, no second primary, and clients of the poolers that wait for a moment.
//!
//! Until the pivot, which is the promotion, everything is taken back and the old primary serves again. The algorithm is that of
//! docs/guide/switchover.md.

pub mod appointment;
pub mod evidence;
mod obstacles;
pub mod plan;
pub mod report;
mod run;
mod stages;
mod standbys;
pub mod step;
pub mod wish;

use std::time::Duration;

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::ops::notify::Subject;
use crate::ops::plan::step::stages;
use crate::ops::succession::{Input, World};
use crate::ops::switchover::plan::SwitchPlan;
use crate::ops::switchover::step::SwitchStep;
use crate::topology::model::{Cluster, Herd};

/// The kind of this operation in its journal.
pub const KIND: &str = "switchover";

/// What a switchover is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    /// What was shown and agreed to.
    pub plan: SwitchPlan,
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
    let outcome = Subject::of(context, &world.input).run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Goes on with a switchover that no process drives any more, or takes it back until its pivot.
///
/// # Errors
/// As [`crate::engine::operation::run`] and [`crate::engine::operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<SwitchStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&input.cluster).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    Subject::of(context, &world.input).go(&mut operation, &world, way, events, interrupt).await
}
