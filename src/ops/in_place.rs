//! A whole cluster brought back to a moment in its own place, as one operation that can be read before, resumed and undone.
//!
//! Nothing of the old cluster is removed: its directories are renamed, and until the pivot renamed back if anything fails. Clients wait
//! meanwhile, and the archive hears of the new timeline only behind the pivot. Made of the rooms `apply` and `restore`, as its
//! neighbours are of other rooms.

mod archive;
pub mod aside;
pub mod evidence;
mod files;
mod lookup;
pub mod plan;
mod poolers;
pub mod report;
mod run;
mod seed;
mod servers;
pub mod step;
pub mod world;

use std::time::Duration;

use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::operation::{self, Intent, Operation, Outcome, Way};
use crate::engine::record::{OperationId, TopologyFile};
use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::ops::in_place::plan::RestorePlan;
use crate::ops::in_place::step::RestoreStep;
use crate::ops::in_place::world::{Input, World};
use crate::ops::plan::step::stages;
use crate::topology::model::{Cluster, Herd};

/// The kind of this operation in its journal.
pub const KIND: &str = "restore";

/// What a restore in place is asked to do.
#[derive(Debug)]
pub struct Request<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    /// What was shown and agreed to.
    pub plan: RestorePlan,
    pub topology: TopologyFile,
    /// How long to wait for another operation of the cluster to end.
    pub wait: Duration,
}

/// Drives a plan that was shown and agreed to.
///
/// # Errors
/// [`ErrorKind::Locked`] if another operation holds the cluster, `Refused` if the world moved since the plan was made, and as
/// [`operation::run`].
pub async fn run(
    context: &Context,
    request: Request<'_>,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<(OperationId, Outcome)> {
    let Request { herd, cluster, plan: shown, topology, wait } = request;
    let lock = context.locker(cluster).take(wait).await?;
    let RestorePlan { input: agreed, .. } = &shown;
    let fresh = plan::plan(context, herd, cluster, &agreed.wish, Some(&agreed.seed))
        .await
        .map_err(|mut errors| errors.remove(0))
        .and_then(|fresh| {
            if fresh.is_still(&shown) {
                return Ok(fresh);
            }
            Err(Error::refused(format!("{} has changed since the plan was shown", cluster.name))
                .detail("What is there now asks for other steps. Nothing was changed.")
                .hint("Look at it again with --preview."))
        });
    let (lock, fresh) = lock.keep_for(fresh).await?;
    let intent = Intent::of(KIND, topology, &fresh.input, stages(&fresh.stages))?;
    let operation = Operation::begin(&context.store, lock, intent).await?;
    let id = operation.id();
    let (mut operation, world) =
        operation.or_call_off(World::open(context, id.as_str().to_owned(), fresh.input).await).await?;
    let outcome = operation::run(&mut operation, &world, events, interrupt).await?;
    Ok((id, outcome))
}

/// Goes on with a restore that no process drives any more, or takes it back until its pivot.
///
/// # Errors
/// As [`operation::run`] and [`operation::undo`].
pub async fn go_on(
    context: &Context,
    mut operation: Operation<RestoreStep>,
    way: Way,
    events: &EventSink,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let id = operation.id();
    let input: Input = operation.input()?;
    context.locker(&input.cluster).join(&mut operation).await?;
    let world = World::open(context, id.as_str().to_owned(), input).await?;
    operation::go(&mut operation, &world, way, events, interrupt).await
}
