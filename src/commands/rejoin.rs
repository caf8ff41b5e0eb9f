//! `pgherd rejoin`.

use std::time::Duration;

use super::{App, Failure, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::error::Error;
use crate::ops::apply;
use crate::ops::rejoin::decide::Way;
use crate::ops::rejoin::nearer::CloneFrom;
use crate::ops::rejoin::plan::{RejoinPlan, Wish};
use crate::ops::rejoin::{self, Request, report};
use crate::ops::succession;
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Bring a node back as a standby of the present primary
///
/// For an old primary after a failover, and for a standby that went its own way or fell behind. Decides by timelines, histories and pg_control
/// whether the node can simply follow, has to be rewound by pg_rewind, or must be cloned again, and says why; --dry-run stops there.
///
/// The node never starts as a primary: first of all it is marked a standby. WAL that only it has is archived, or copied aside and named. A clone
/// is made beside what the node has, which is renamed and never removed, from the primary or, where that holds less to read, from the newest
/// backup and the archive; a rewind that fails or is interrupted ends as a clone. Afterwards its
/// own files are as they were, it streams, slots that nobody reads are gone, and the poolers' aliases lead to it.
///
/// Before the rewind, and for a clone until it streams, everything that fails is taken back; the node then stays stopped.
///
/// Exit codes: 0 done, or it streams already, 1 failed and taken back, 2 bad usage, 4 refused with every reason, 5 another operation holds the
/// cluster, 6 stuck, 7 something is left to do, 10 no primary answers, or no such node, 130 interrupted.
///
/// Example: pgherd rejoin a --dry-run
#[derive(Debug, clap::Args)]
pub struct RejoinArgs {
    /// The node that is to come back
    #[arg(value_name = "NODE")]
    node: String,
    /// Show what the node has, how it would come back and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Clone it, also where less would do
    #[arg(long)]
    clone: bool,
    /// Where a clone is read from; else from a backup and the archive where they hold less than the primary has
    #[arg(long, value_name = "SOURCE", value_enum)]
    from: Option<Source>,
    /// The primary to follow, where two nodes accept writes and nothing else says which of them counts
    #[arg(long, value_name = "NODE")]
    primary: Option<String>,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Where a new copy is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Source {
    /// The primary, by pg_basebackup
    Primary,
    /// The newest backup that leads to the primary, and the archive
    Backup,
}

impl From<Source> for CloneFrom {
    fn from(source: Source) -> Self {
        match source {
            Source::Primary => Self::Primary,
            Source::Backup => Self::Backup,
        }
    }
}

pub fn run(args: &RejoinArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &RejoinArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let cluster = app.one_cluster(&herd, "rejoin")?;
    let context = app.context()?;
    let wait = args.wait_lock.unwrap_or_default();
    let wish = Wish {
        node: args.node.clone(),
        primary: args.primary.clone(),
        clone: args.clone,
        from: args.from.map(CloneFrom::from),
    };
    let plan = app
        .planned(&context, cluster, wait, async || rejoin::plan::plan(&context, &herd, cluster, &wish).await)
        .await?;
    ui::rejoin::print_plan(&mut app.ui, &herd.name, &plan);
    if plan.stages.is_empty() {
        return Ok(Exit::Done);
    }
    if args.dry_run {
        app.ui.note("next     the same without --dry-run");
        return Ok(Exit::Done);
    }
    confirm(app, &plan)?;
    drive(app, &herd, cluster, plan, wait).await?;
    app.ui.note("next     pgherd status");
    Ok(Exit::Done)
}

/// Drives a plan that was agreed to, and tells what it came to.
pub(super) async fn drive(
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    plan: RejoinPlan,
    wait: Duration,
) -> Result<(), Failure> {
    let context = app.context()?;
    let topology = apply::topology_file(&herd.file)?;
    let request = Request { herd, cluster, plan, topology, wait };
    let run = async |events: EventSink, interrupt: Interrupt| {
        rejoin::run(&context, request, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    ui::rejoin::print_report(&mut app.ui, &report::read(&context.store, &id)?);
    Ok(())
}

/// Asks what the plan is to do, by the node's name.
fn confirm(app: &App, plan: &RejoinPlan) -> Result<(), Error> {
    let succession::Input { from, to, .. } = &plan.input.succession;
    let what = match plan.input.decision.way {
        Way::Follow => format!("Have {from} follow {to}"),
        Way::Rewind => format!("Rewind {from} to {to}"),
        Way::Clone => format!("Clone {from} from {to}"),
    };
    app.confirm_by_name("rejoin", &format!("{what}?"), from)
}
