//! `pgherd failback`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{App, Failure, Outcome, rejoin as back, switchover as over};
use crate::error::Error;
use crate::ops::context::Context;
use crate::ops::rejoin::plan::RejoinPlan;
use crate::ops::switchover::plan::SwitchPlan;
use crate::ops::switchover::wish::Wish;
use crate::ops::{rejoin, switchover};
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Return leadership to the preferred node
///
/// After a failover another node leads than the topology prefers (prefer: primary). Where the preferred node is no healthy standby, it is
/// brought back first, as "pgherd rejoin" does; then the role is handed over, as "pgherd switchover" does. Both are shown, and one confirmation is
/// for both; the switchover has its preflight when the node is back, and if that refuses, the node stays a standby.
///
/// Exit codes: 0 done, or the preferred node is primary already, 1 failed and taken back, 2 bad usage, 4 refused with every reason, 5 another
/// operation holds the cluster, 6 stuck, 7 something is left to do, 10 no primary answers, 130 interrupted.
///
/// Example: pgherd failback --dry-run
#[derive(Debug, clap::Args)]
pub struct FailbackArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// How long transactions that run may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long a node that is back may take until it may be promoted.
const READY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be done.
enum Plan {
    Over(Box<SwitchPlan>),
    BackAndOver(Box<RejoinPlan>),
}

pub fn run(args: &FailbackArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &FailbackArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let cluster = app.one_cluster(&herd, "failback")?;
    let context = app.context()?;
    let wait = args.wait_lock.unwrap_or_default();
    let to = cluster.preferred().name.clone();
    let plan = app.planned(&context, cluster, wait, async || plan(&context, &herd, cluster).await).await?;
    match &plan {
        Plan::Over(plan) => {
            ui::switchover::print_plan(&mut app.ui, &herd.name, plan);
            if plan.stages.is_empty() {
                return Ok(Exit::Done);
            }
        }
        Plan::BackAndOver(plan) => {
            ui::rejoin::print_plan(&mut app.ui, &herd.name, plan);
            app.ui.note(format!(
                "then     switches over from {} to {to}, as \"pgherd switchover --to {to}\" does; its plan is shown when {to} streams",
                plan.input.succession.to
            ));
        }
    }
    if args.dry_run {
        app.ui.note("next     the same without --dry-run");
        return Ok(Exit::Done);
    }
    let question = match &plan {
        Plan::Over(_) => format!("Switch {} over to {to}?", cluster.name),
        Plan::BackAndOver(_) => format!("Bring {to} back and switch {} over to it?", cluster.name),
    };
    app.confirm_by_name("failback", &question, &to)?;
    let plan = match plan {
        Plan::Over(plan) => plan,
        Plan::BackAndOver(plan) => {
            back::drive(app, &herd, cluster, *plan, wait).await?;
            let plan = when_ready(&context, &herd, cluster).await.map_err(Failure::Errors)?;
            ui::switchover::print_plan(&mut app.ui, &herd.name, &plan);
            Box::new(plan)
        }
    };
    over::drive(app, &herd, cluster, *plan, wait).await?;
    app.ui.note("next     pgherd status");
    Ok(Exit::Done)
}

fn wish(cluster: &Cluster) -> Wish {
    Wish {
        to: Some(cluster.preferred().name.clone()),
        region: None,
        grace: GRACE,
        leave_logical_slots: false,
    }
}

/// Decides whether the preferred node has to come back first. Where it is a standby as it should be, what keeps it from leading is told.
async fn plan(context: &Context, herd: &Herd, cluster: &Cluster) -> Result<Plan, Vec<Error>> {
    let obstacles = match switchover::plan::plan(context, herd, cluster, &wish(cluster)).await {
        Ok(plan) => return Ok(Plan::Over(Box::new(plan))),
        Err(obstacles) => obstacles,
    };
    let node = cluster.preferred().name.clone();
    let wish = rejoin::plan::Wish { node, primary: None, clone: false, from: None };
    let plan = rejoin::plan::plan(context, herd, cluster, &wish).await?;
    if plan.stages.is_empty() {
        return Err(obstacles);
    }
    Ok(Plan::BackAndOver(Box::new(plan)))
}

/// Plans the switchover as soon as the node that is back may lead.
async fn when_ready(context: &Context, herd: &Herd, cluster: &Cluster) -> Result<SwitchPlan, Vec<Error>> {
    let deadline = Instant::now() + READY;
    loop {
        match switchover::plan::plan(context, herd, cluster, &wish(cluster)).await {
            Ok(plan) => return Ok(plan),
            Err(obstacles) if Instant::now() >= deadline => return Err(obstacles),
            Err(_) => sleep(PAUSE).await,
        }
    }
}
