//! `pgherd run`.

use std::time::Duration;

use tokio::time::Instant;

use super::{App, Failure, Outcome, backup, backup_care, drill, health, partition};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::dump;
use crate::ops::maintenance::{self, Bounds, Mode};
use crate::ops::schedule::{self, Asked, Begun, Ended, Jobs, Purpose, Turn};
use crate::topology::jobs::{Job, Work};
use crate::topology::model::Herd;
use crate::ui;
use crate::ui::exit::Exit;
use crate::units::{self, human_duration};

/// Run a job, or whatever is due: what cron and systemd call
///
/// Says nothing if all goes well, and everything if it does not: cron then sends it by mail. With -v it always says everything. A job is
/// never run beside itself; what is recorded of each run is shown by "pgherd schedule list".
///
/// With --due only what is due is run, each job once however many of its times were missed; what somebody runs already is left to them,
/// without a word. What failed waits for its next time.
///
/// Every job ends after its timeout: what the topology says of it, an hour for other maintenance, 6 h for expire, a day for backups, their
/// verification and drills; --timeout says it for this run. Asked to end (SIGTERM, SIGINT) it stops as that verb does.
///
/// Where the topology says scheduler.lease, other stations run the same jobs: none is begun that another station runs, and none at all, but
/// for the judgement of the herd, while the repository cannot say so.
///
/// Exit codes: those of what the job does, health's too; 4 nothing has a schedule, 5 the job runs already, 10 there is no such job, or the
/// repository that stations share cannot be reached. With --due and several jobs: that of the first that did not end well.
///
/// --dry-run tells what maintenance would do now, and does nothing.
///
/// Example: pgherd run inventory/full
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The job, such as inventory/full; "pgherd schedule list" shows them
    #[arg(value_name = "JOB", required_unless_present = "due")]
    job: Option<String>,
    /// Only if it is due; without JOB everything that is
    #[arg(long)]
    due: bool,
    /// Begin up to so much later, drawn by chance; with --due what the topology says, if it is not said here
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    jitter: Option<Duration>,
    /// Wait so long for whoever runs the job
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "due")]
    wait_lock: Option<Duration>,
    /// Tell what maintenance would do now, and do nothing; for vacuum, reindex, refresh and clean
    #[arg(long, requires = "job", conflicts_with_all = ["due", "wait_lock", "jitter"])]
    dry_run: bool,
}

/// How long a job that was asked to end may take for that.
const GRACE: Duration = Duration::from_secs(120);

pub fn run(args: &RunArgs, app: &mut App) -> Outcome {
    super::block_on(jobs(args, app))?
}

async fn jobs(args: &RunArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    app.clusters(&herd)?;
    let cluster = app.globals.cluster.clone();
    let jobs = Jobs::open(&context, &herd, Purpose::Take).await?;
    let of_cluster = |job: &&Job| cluster.is_none() || job.cluster == cluster;
    let wanted: Vec<&Job> = match &args.job {
        Some(name) => vec![jobs.find(name, cluster.as_deref())?],
        None => herd.jobs.iter().filter(of_cluster).collect(),
    };
    if wanted.is_empty() {
        return Err(Error::refused("nothing has a schedule")
            .hint("Give something one in the topology, such as backups: {full: daily 02:00}.")
            .into());
    }
    if let (true, [job]) = (args.dry_run, wanted.as_slice()) {
        return show(app, &context, &herd, job).await;
    }
    let interrupt = Interrupt::on_signals()?;
    let jitter = args.jitter.unwrap_or(if args.due { herd.scheduler.jitter } else { Duration::ZERO });
    let asked = match (args.due, &args.job) {
        (false, _) => Asked::ByHand,
        (true, Some(_)) => Asked::ByTimer,
        (true, None) => Asked::Looking,
    };
    let limit = app.globals.timeout;
    let mut first = Exit::Done;
    let mut told = None;
    let mut waited = jitter.is_zero();
    for job in wanted {
        if interrupt.is_asked() {
            return Ok(Exit::Interrupted);
        }
        // Only once, and only if there is something to wait for.
        if !waited && (asked == Asked::ByHand || jobs.is_due(job).await.unwrap_or(false)) {
            wait(jitter, &interrupt).await?;
            waited = true;
        }
        app.globals.cluster.clone_from(&job.cluster);
        app.globals.timeout = Some(limit.unwrap_or(job.timeout));
        // What is wrong with one job keeps no other from being run.
        let exit = match jobs.take(job, asked, args.wait_lock.unwrap_or_default()).await {
            Ok(Turn::NotDue) => continue,
            Ok(Turn::Busy(_)) if args.due => continue,
            // A repository that cannot be reached is the same for every job.
            Err(error) if told.as_deref() == Some(error.what()) => continue,
            Ok(Turn::Busy(error)) | Err(error) => {
                told = Some(error.what().to_owned());
                Failure::from(error).print(&app.ui)
            }
            Ok(Turn::Begun(begun)) => match one(app, &context, (&jobs, &herd, job), *begun).await {
                Ok(exit) => exit,
                Err(error) => Failure::from(error).print(&app.ui),
            },
        };
        if first == Exit::Done {
            first = exit;
        }
    }
    Ok(first)
}

/// Tells what maintenance would do; nothing is recorded, since nothing is run.
async fn show(app: &mut App, context: &Context, herd: &Herd, job: &Job) -> Outcome {
    let instead = match &job.work {
        Work::Vacuum(_) | Work::Reindex(_) | Work::Refresh(_) | Work::Clean(_) => {
            app.globals.timeout = Some(app.globals.timeout.unwrap_or(job.timeout));
            return maintenance(app, context, herd, job, Mode::Show).await;
        }
        Work::Partitions => "pgherd partition plan",
        Work::Expire => "pgherd backup expire, which shows it and asks",
        Work::Full
        | Work::Verify
        | Work::VerifyFull
        | Work::Copy { .. }
        | Work::DrillRestore
        | Work::Health
        | Work::Dump(_) => "pgherd schedule list",
    };
    Err(Error::usage(format!("--dry-run is for maintenance, and {} is none", job.full_name()))
        .hint(format!("See instead: {instead}"))
        .into())
}

async fn wait(jitter: Duration, interrupt: &Interrupt) -> Result<()> {
    tokio::select! {
        () = tokio::time::sleep(schedule::draw(jitter)?) => Ok(()),
        () = interrupt.asked(1) => Err(Error::new(ErrorKind::Interrupted, "interrupted").detail("Nothing was begun.")),
    }
}

/// Runs a job whose turn it is, and records how it has ended.
async fn one(
    app: &mut App,
    context: &Context,
    world: (&Jobs<'_>, &Herd, &Job),
    begun: Begun,
) -> Result<Exit> {
    let (jobs, herd, job) = world;
    let limit = app.globals.timeout.unwrap_or(job.timeout);
    let since = Instant::now();
    if app.ui.verbosity < ui::Verbosity::Verbose {
        app.ui.hold();
    }
    let yes = std::mem::replace(&mut app.globals.yes, true);
    let outcome =
        match tokio::time::timeout(limit + GRACE, unless_lost(&begun, work(app, context, herd, job))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::failed(format!("{} did not end when its time was over", job.full_name()))
                .detail(format!("It was asked to end after {}.", human_duration(limit)))
                .into()),
        };
    app.globals.yes = yes;
    let exit = match outcome {
        Ok(exit) => exit,
        Err(failure) => failure.print(&app.ui),
    };
    let late = since.elapsed() >= limit && exit != Exit::Done;
    let ended = ended(exit, late);
    if exit == Exit::Done {
        app.ui.discard();
    } else {
        let took = human_duration(since.elapsed());
        let why = if late {
            format!(", ended after its timeout of {}", human_duration(limit))
        } else {
            String::new()
        };
        let due = begun
            .due
            .map(|due| format!(", due at {}", due.strftime("%Y-%m-%d %H:%M UTC")))
            .unwrap_or_default();
        app.ui.note(format!(
            "{} of {}{due}: exit code {} after {took}{why}",
            job.full_name(),
            herd.name,
            exit.code()
        ));
        app.ui.release();
    }
    jobs.end(begun, ended, exit.code()).await?;
    Ok(exit)
}

/// Does what a job is for; ends it as SIGTERM would once another station may run it.
async fn unless_lost(begun: &Begun, work: impl Future<Output = Outcome>) -> Outcome {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        outcome = &mut work => return outcome,
        () = begun.lost() => {}
    }
    tracing::error!("another station may run this job now: it is ended here");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
        .map_err(|error| Error::failed("could not end the job").source(std::io::Error::from(error)))?;
    work.await
}

/// Says whether a run is to be tried again: when what it needs was used, or could not be reached, or it was interrupted.
fn ended(exit: Exit, late: bool) -> Ended {
    match exit {
        // Health was judged, whatever the judgement.
        Exit::Done | Exit::Warning | Exit::Critical => Ended::Done,
        Exit::Interrupted if late => Ended::Failed,
        Exit::Locked | Exit::NotFound | Exit::Interrupted => Ended::Again,
        Exit::Failed
        | Exit::Usage
        | Exit::Changes
        | Exit::Partial
        | Exit::Refused
        | Exit::Stuck
        | Exit::Incomplete
        | Exit::Bug
        | Exit::Absent
        | Exit::AskAgain
        | Exit::StopRecovery
        | Exit::Unknown => Ended::Failed,
    }
}

/// Does what a job is for.
async fn work(app: &mut App, context: &Context, herd: &Herd, job: &Job) -> Outcome {
    match &job.work {
        Work::Full => backup::scheduled(app).await,
        Work::Verify => backup_care::verify_scheduled(false, app).await,
        Work::VerifyFull => backup_care::verify_scheduled(true, app).await,
        Work::Expire => backup_care::expire_scheduled(app).await,
        Work::Copy { to } => backup_care::copy_scheduled(to, app).await,
        Work::DrillRestore => drill::restore_scheduled(app).await,
        Work::Dump(wish) => {
            let interrupt = app.interrupt()?;
            let timeout = app.globals.timeout.unwrap_or(job.timeout);
            let dumped = dump::make(
                context,
                herd,
                super::find_cluster(herd, job.cluster.as_deref().unwrap_or_default())?,
                wish,
                timeout,
                &interrupt,
            )
            .await?;
            ui::dump::print_made(&mut app.ui, &dumped);
            Ok(Exit::Done)
        }
        Work::Partitions => partition::apply_scheduled(app).await,
        Work::Health => health::scheduled(app).await,
        Work::Vacuum(_) | Work::Reindex(_) | Work::Refresh(_) | Work::Clean(_) => {
            maintenance(app, context, herd, job, Mode::Mend).await
        }
    }
}

/// Does maintenance within the job's time, or only looks, and tells what came of it.
async fn maintenance(app: &mut App, context: &Context, herd: &Herd, job: &Job, mode: Mode) -> Outcome {
    // The end of the time is a bound of its own: what has none left is told, and that is no failure.
    let interrupt = Interrupt::on_signals()?;
    let limit = app.globals.timeout.unwrap_or(Duration::MAX);
    let until =
        Instant::now().checked_add(limit).unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
    let bounds = Bounds { until, interrupt: &interrupt, mode };
    let cluster = super::find_cluster(herd, job.cluster.as_deref().unwrap_or_default())?;
    let report = match &job.work {
        Work::Vacuum(wish) => maintenance::vacuum(context, cluster, wish, &bounds).await?,
        Work::Reindex(wish) => maintenance::reindex(context, cluster, wish, &bounds).await?,
        Work::Refresh(wish) => maintenance::refresh(context, cluster, wish, &bounds).await?,
        Work::Clean(wish) => maintenance::clean(context, cluster, wish, &bounds).await?,
        Work::Full
        | Work::Verify
        | Work::VerifyFull
        | Work::Expire
        | Work::Copy { .. }
        | Work::DrillRestore
        | Work::Health
        | Work::Partitions
        | Work::Dump(_) => return Err(Error::failed(format!("{} is no maintenance", job.full_name())).into()),
    };
    ui::schedule::print_report(&mut app.ui, &report);
    if interrupt.is_asked() {
        return Ok(Exit::Interrupted);
    }
    match (report.failed.is_empty(), report.done.is_empty()) {
        (true, _) => Ok(Exit::Done),
        (false, false) => {
            Failure::Errors(report.failed).print(&app.ui);
            Ok(Exit::Partial)
        }
        (false, true) => Err(Failure::Errors(report.failed)),
    }
}
