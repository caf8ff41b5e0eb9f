//! `pgherd failover`.

use std::time::Duration;

use super::{App, Failure, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind};
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::failover::loss::Accept;
use crate::ops::failover::plan::{FailPlan, Wish};
use crate::ops::failover::watch::{Told, Watch};
use crate::ops::failover::{self, Request, report};
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Make a standby primary when the primary is gone, without losing an acknowledged row
///
/// Asks every node and every host who sees the primary. One that answers anywhere, or that recovers from a crash, is not gone: refused. Then
/// the standbys let go of it, so that what they have stands still; the old primary is shut out where its host answers, starved where too few
/// standbys are left to confirm its commits, or taken for dead on your word; the one that has most, or is named, gets what it lacks from the
/// others and from the old primary's own disk, and is promoted. Poolers and standbys are led to it, and the archive is made whole.
///
/// Refused where an acknowledged row may be lost, with how much at most; --accept-data-loss CLUSTER agrees to that. Until the promotion
/// everything that fails is taken back. The old primary does not come back by itself: "pgherd rejoin" brings it back.
///
/// With --watch one process looks all the time, and does the same by itself once nobody has seen the primary for --when-down. It fails over
/// once and ends: what comes after is for a person to look at. It never loses rows unless the topology's objectives.lose-primary.rpo covers
/// it. It is no consensus of watchers: run one.
///
/// Exit codes: 0 done, 1 failed and taken back, 2 bad usage, 4 refused with every reason, 5 another operation holds the cluster, 6 stuck,
/// 7 the new primary serves and something is left, 10 no node answers, or no such node, 130 interrupted.
///
/// Example: pgherd failover --dry-run
#[derive(Debug, clap::Args)]
pub struct FailoverArgs {
    /// The node that is to be primary; else the one that has most
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// The region that it is to be in
    #[arg(long, value_name = "REGION", conflicts_with = "to")]
    region: Option<String>,
    /// Show who sees what and what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Agree that rows of this cluster that were acknowledged may be lost
    #[arg(long, value_name = "CLUSTER")]
    accept_data_loss: Option<String>,
    /// State that the old primary is off or cut off from everybody, and how you know
    #[arg(long, value_name = "HOW YOU KNOW")]
    old_primary_is_off: Option<String>,
    /// Stay, look at the primary all the time, and fail over once it is gone for --when-down; end after that
    #[arg(long, conflicts_with_all = ["dry_run", "to", "accept_data_loss", "old_primary_is_off"])]
    watch: bool,
    /// With --watch: how long nobody may have seen the primary
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration, requires = "watch")]
    when_down: Duration,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

pub fn run(args: &FailoverArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &FailoverArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let cluster = app.one_cluster(&herd, "failover")?;
    let wish = wish(args, cluster)?;
    let context = app.context()?;
    if args.watch {
        return watch(args, app, &herd, cluster, &context).await;
    }
    let wait = args.wait_lock.unwrap_or_default();
    let plan = app
        .planned(&context, cluster, wait, async || {
            failover::plan::plan(&context, &herd, cluster, &wish).await
        })
        .await?;
    ui::failover::print_plan(&mut app.ui, &herd.name, &plan);
    if args.dry_run {
        app.ui.note("next     the same without --dry-run");
        return Ok(Exit::Done);
    }
    let (from, to) = (&plan.input.from, &plan.input.to);
    let question = format!("Fail {} over from {from} to {to}?", plan.cluster);
    app.confirm_by_name("failover", &question, to)?;
    drive(app, &herd, cluster, &context, plan, wait).await
}

/// Runs a plan that was agreed to, and says what it has come to.
async fn drive(
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    context: &Context,
    plan: FailPlan,
    wait: Duration,
) -> Outcome {
    let topology = apply::topology_file(&herd.file)?;
    let request = Request { herd, cluster, plan, topology, wait };
    let run = async |events: EventSink, interrupt: Interrupt| {
        failover::run(context, request, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    ui::failover::print_report(&mut app.ui, &report::read(&context.store, &id)?);
    app.ui.note("next     pgherd status");
    Ok(Exit::Done)
}

/// What takes a shorter time than this to be called gone would fail over for every restart.
const SHORTEST: Duration = Duration::from_secs(5);

async fn watch(
    args: &FailoverArgs,
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    context: &Context,
) -> Outcome {
    if args.when_down < SHORTEST {
        return Err(Error::usage("--when-down is at least 5 s")
            .detail("A primary that restarts would be taken for gone.")
            .into());
    }
    let rpo = cluster.objectives.get("lose-primary").map(|objective| objective.rpo);
    let loss = rpo.filter(|rpo| !rpo.is_zero()).map_or(Accept::Nothing, Accept::UpTo);
    let wish = Wish { to: None, region: args.region.clone(), loss, statement: None };
    let interrupt = app.interrupt()?;
    let mut watch = Watch::begin(context, herd, cluster, &wish, args.when_down).await?;
    loop {
        let ui = &mut app.ui;
        let mut told = |told: &Told| ui::failover::print_told(ui, &cluster.name, told);
        let plan = watch.until_due(&mut told, &interrupt).await?;
        let Some(plan) = plan else { return Ok(Exit::Done) };
        ui::failover::print_plan(&mut app.ui, &herd.name, &plan);
        match drive(app, herd, cluster, context, plan, Duration::ZERO).await {
            Ok(exit) => return Ok(exit),
            Err(Failure::Error(error))
                if matches!(error.kind(), ErrorKind::Failed | ErrorKind::Locked | ErrorKind::Refused) =>
            {
                Failure::Error(error).print(&app.ui);
                watch.again();
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn wish(args: &FailoverArgs, cluster: &Cluster) -> Result<Wish, Error> {
    if let Some(named) = &args.accept_data_loss
        && *named != cluster.name
    {
        return Err(Error::usage(format!(
            "--accept-data-loss names {named}, and the cluster is {}",
            cluster.name
        ))
        .detail("Nothing was changed."));
    }
    let statement = args.old_primary_is_off.as_deref().map(str::trim);
    if statement == Some("") {
        return Err(Error::usage("--old-primary-is-off needs how you know it")
            .detail("It is kept in the journal. Nothing was changed."));
    }
    Ok(Wish {
        to: args.to.clone(),
        region: args.region.clone(),
        loss: if args.accept_data_loss.is_some() { Accept::Anything } else { Accept::Nothing },
        statement: statement.map(str::to_owned),
    })
}
