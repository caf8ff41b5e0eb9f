//! `pgherd apply`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::plan::Rotate;
use super::{App, Failure, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::error::{Error, ErrorKind};
use crate::ops::apply::{self, ConfirmedPlan, SavedPlan};
use crate::ops::context::Context;
use crate::ops::plan::ClusterPlan;
use crate::ops::schedule::{Jobs, Purpose};
use crate::topology::model::Herd;
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// What becomes visible only when a stopped primary is up again is planned in a second round.
const ROUNDS: usize = 3;

/// Make the herd what the file declares
///
/// Plans as `pgherd plan` does, shows the plan, asks, and runs it under a journal: every step is recorded before it happens, a
/// failure before the pivot is undone, and a killed run is finished by `pgherd operation resume` or taken back by
/// `pgherd operation undo`. Says "up" only after a row was written through the pooler and read on every standby.
///
/// Never touches a data directory that it did not make, unless --adopt names it, never rewrites a line of yours in postgresql.conf or pg_hba.conf, never
/// removes what has left the file, and restarts nothing without --allow-restart.
///
/// Exit codes: 0 done or nothing to do, 1 failed and undone, 4 refused, 5 another operation holds the cluster, 6 stuck, 7 done but
/// something is left, 130 interrupted and undone.
///
/// Example: pgherd apply --yes
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// A plan that `pgherd plan --out FILE` saved; without it a new plan is made
    #[arg(value_name = "PLAN")]
    pub plan: Option<PathBuf>,
    /// Give one of pgherd's own logins a new password: the standbys' (`replication`, role replicator) or the write proof's (`probe`, role
    /// pgherd_probe). A declared role gets a new one where the file says that its password is
    #[arg(long, value_name = "LOGIN", conflicts_with = "plan")]
    pub rotate: Option<Rotate>,
    /// Take over a cluster, or one node (inventory-a), that pgherd did not make, as it runs: nothing is initialised, stopped or
    /// restarted, and what would need a restart is told and left
    #[arg(long, value_name = "NAME", conflicts_with = "plan")]
    pub adopt: Vec<String>,
    /// Run the plan although it restarts nodes
    #[arg(long)]
    pub allow_restart: bool,
    /// Wait so long for another operation of the same cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub wait_lock: Option<Duration>,
}

pub fn run(args: &ApplyArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &ApplyArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let saved = args.plan.as_deref().map(|file| SavedPlan::read(file, &herd)).transpose()?;
    let begun = Instant::now();
    let wait = args.wait_lock.unwrap_or_default();
    for cluster in app.clusters(&herd)? {
        lock::until_free(&context.store, &cluster.name, wait).await?;
    }
    for round in 0..ROUNDS {
        let plans = match &saved {
            Some(saved) => saved.plans.clone(),
            // Once: a second round is for what the first one could not see.
            None => super::plan::plans(app, &herd, args.rotate.filter(|_| round == 0), &args.adopt).await?,
        };
        if saved.is_some() && app.globals.yes {
            ui::plan::print_agreed(&mut app.ui, &herd.name, &plans);
        } else if round == 0 || plans.iter().any(|plan| !plan.is_empty()) {
            ui::plan::print_before_apply(&mut app.ui, &herd.name, &plans);
        }
        if plans.iter().all(ClusterPlan::is_empty) {
            return Ok(Exit::Done);
        }
        allowed("pgherd apply", args.allow_restart, &plans)?;
        confirm(app, &herd)?;
        // From here on an interrupt is an operation's business; before, it just ends pgherd.
        let interrupt = app.interrupt()?;
        let drive = Drive { context: &context, herd: &herd, wait, interrupt: &interrupt };
        drive.all(app, &plans).await?;
        if plans.iter().flat_map(ClusterPlan::steps).any(|planned| planned.step.starts_jobs()) {
            Jobs::open(&context, &herd, Purpose::Take).await?.see().await?;
        }
        if saved.is_some() || !plans.iter().any(|plan| plan.more) {
            break;
        }
    }
    app.ui.note(format!("{} is as declared after {}", herd.name, units::human_duration(begun.elapsed())));
    app.ui.note("next     pgherd status");
    Ok(Exit::Done)
}

pub(super) fn allowed(command: &str, allow_restart: bool, plans: &[ClusterPlan]) -> Result<(), Error> {
    let restarts: Vec<&str> =
        plans.iter().flat_map(ClusterPlan::restarts).map(|step| step.subject.as_str()).collect();
    if restarts.is_empty() || allow_restart {
        return Ok(());
    }
    Err(Error::refused(format!("the plan restarts {}", restarts.join(", ")))
        .detail("Their connections would end. Nothing was changed.")
        .hint(format!("If that may happen now: {command} --allow-restart")))
}

pub(super) fn confirm(app: &App, herd: &Herd) -> Result<(), Error> {
    if app.globals.yes {
        return Ok(());
    }
    if !app.ui.is_interactive() {
        return Err(Error::usage("apply needs an answer, and there is no terminal to ask")
            .detail("Nothing was changed.")
            .hint("Say yes beforehand: pgherd apply --yes"));
    }
    if app.ui.ask(&format!("Apply this to {}? type yes: ", herd.name))? == "yes" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Interrupted, "not applied").detail("Nothing was changed."))
}

pub(super) struct Drive<'a> {
    pub(super) context: &'a Context,
    pub(super) herd: &'a Herd,
    pub(super) wait: Duration,
    pub(super) interrupt: &'a Interrupt,
}

impl Drive<'_> {
    /// Runs one operation a cluster; one that fails does not keep the others from what they are to be.
    pub(super) async fn all(&self, app: &mut App, plans: &[ClusterPlan]) -> Result<(), Failure> {
        let mut failed = Vec::new();
        for plan in plans.iter().filter(|plan| !plan.is_empty()) {
            match self.run(app, plan).await {
                Ok(()) => {}
                Err(error) => failed.push(error),
            }
            if self.interrupt.is_asked() {
                break;
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Failure::Errors(failed)) }
    }

    async fn run(&self, app: &mut App, plan: &ClusterPlan) -> Result<(), Error> {
        let cluster = super::find_cluster(self.herd, &plan.cluster)?;
        let request = apply::Request {
            herd: self.herd,
            cluster,
            plan: ConfirmedPlan::new(plan.clone()),
            topology: apply::topology_file(&self.herd.file)?,
            wait: self.wait,
        };
        let run = async |events: EventSink| apply::run(self.context, request, &events, self.interrupt).await;
        let id = app.drawing(run).await?;
        if let Some((nodes, seen)) = apply::proof_of(self.context, &id)? {
            ui::operation::print_up(&mut app.ui, &self.herd.name, cluster, &nodes, seen);
        }
        Ok(())
    }
}
