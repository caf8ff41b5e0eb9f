//! `pgherd switchover`.

use std::time::Duration;

use super::{App, Failure, Outcome};
use crate::clock::{self, Clock as _, SystemClock};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::error::Error;
use crate::ops::apply;
use crate::ops::switchover::appointment::Appointment;
use crate::ops::switchover::plan::SwitchPlan;
use crate::ops::switchover::wish::Wish;
use crate::ops::switchover::{self, Request, report};
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Make another node primary, without losing a row
///
/// Looks for everything that is in the way and tells all of it at once, before anything is changed; --dry-run stops there. Then: slots on the
/// new primary, checkpoints while clients write, PAUSE on all poolers or none, a fast stop of the primary, and the proof that the new one has
/// its very last record. Only then is it promoted, the poolers led to it and their clients let go. The others follow without a restart, the
/// old primary comes back as a standby, and the archive is seen to go on without a gap.
///
/// Until the promotion everything that fails is taken back: the old primary serves again and clients go on. Clients of a pooler in transaction
/// mode see a pause and no error; connections that lead to the primary directly end. If pgherd is killed, clients go on by themselves after
/// 90 s, and "pgherd operation" resumes or undoes.
///
/// With --at everything is looked at now and once more then, by this process; nothing is held meanwhile. If what is to be done, or the
/// topology, has changed by then, or the machine has slept through the moment, it is refused.
///
/// Exit codes: 0 done, or the node is primary already, 1 failed and taken back, 2 bad usage, 4 refused with every reason, 5 another
/// operation holds the cluster, 6 stuck, 7 the new primary serves and something is left, 10 no primary answers, or no such node,
/// 130 interrupted.
///
/// Example: pgherd switchover --to b --dry-run
#[derive(Debug, clap::Args)]
pub struct SwitchoverArgs {
    /// The node that is to be primary; else the preferred one, or who has replayed most
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// The region that it is to be in: its preferred node, or who has replayed most there
    #[arg(long, value_name = "REGION", conflicts_with = "to")]
    region: Option<String>,
    /// Show what is in the way and what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until this moment, within the next 24 h, and begin then: RFC 3339, or a clock time of the topology's zone
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// How long transactions that run may take to end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    grace: Duration,
    /// Leave logical slots behind on the old primary
    #[arg(long)]
    leave_logical_slots: bool,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Clients are held back for no longer than this, whatever transactions do.
const LONGEST_GRACE: Duration = Duration::from_secs(30);

pub fn run(args: &SwitchoverArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &SwitchoverArgs, app: &mut App) -> Outcome {
    if args.grace > LONGEST_GRACE {
        return Err(Error::usage("transactions that run may take at most 30 s to end")
            .detail("Meanwhile all other clients wait.")
            .into());
    }
    let herd = app.herd()?;
    let appointment = appointment(args, &herd)?;
    let cluster = app.one_cluster(&herd, "switchover")?;
    let context = app.context()?;
    let wait = args.wait_lock.unwrap_or_default();
    let wish = Wish {
        to: args.to.clone(),
        region: args.region.clone(),
        grace: args.grace,
        leave_logical_slots: args.leave_logical_slots,
    };
    let plan = app
        .planned(&context, cluster, wait, async || {
            switchover::plan::plan(&context, &herd, cluster, &wish).await
        })
        .await?;
    ui::switchover::print_plan(&mut app.ui, &herd.name, &plan);
    if plan.stages.is_empty() {
        return Ok(Exit::Done);
    }
    if args.dry_run {
        app.ui.note("next     the same without --dry-run");
        return Ok(Exit::Done);
    }
    let (from, to) = (&plan.input.from, &plan.input.to);
    let question = format!("Switch {} from {from} to {to}?", plan.cluster);
    app.confirm_by_name("switchover", &question, to)?;
    if let Some(appointment) = appointment {
        app.ui.note(format!("waits until {:.0}; nothing is held meanwhile", appointment.moment()));
        appointment.wait(&SystemClock, &app.interrupt()?).await?;
        if app.herd()? != herd {
            return Err(Error::refused(format!(
                "{} has changed since the plan was shown",
                herd.file.display()
            ))
            .detail("Nothing was changed.")
            .hint("Look at it again with --dry-run.")
            .into());
        }
    }
    drive(app, &herd, cluster, plan, wait).await?;
    app.ui.note("next     pgherd status");
    Ok(Exit::Done)
}

/// Drives a plan that was agreed to, and tells what it came to.
pub(super) async fn drive(
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    plan: SwitchPlan,
    wait: Duration,
) -> Result<(), Failure> {
    let context = app.context()?;
    let topology = apply::topology_file(&herd.file)?;
    let request = Request { herd, cluster, plan, topology, wait };
    let run = async |events: EventSink, interrupt: Interrupt| {
        switchover::run(&context, request, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    ui::switchover::print_report(&mut app.ui, &report::read(&context.store, &id)?);
    Ok(())
}

fn appointment(args: &SwitchoverArgs, herd: &Herd) -> Result<Option<Appointment>, Error> {
    let Some(text) = &args.at else { return Ok(None) };
    let moment = clock::parse_moment(text, &herd.timezone)
        .map_err(|why| Error::usage(format!("cannot read the moment {text:?}: {why}")))?;
    Appointment::at(moment, SystemClock.now()).map(Some)
}
