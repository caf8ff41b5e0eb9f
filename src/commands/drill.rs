//! `pgherd drill`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{App, Outcome};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::drill::{self, Report, Verdict, Wish};
use crate::topology::model::{Cluster, DrillTarget, Herd};
use crate::ui;
use crate::ui::error::print_error;
use crate::ui::exit::Exit;

/// Rehearse what must work in an emergency, and see earlier rehearsals
///
/// A backup that was never restored is a hope. What a drill restores and proves is declared with `drills` in the topology.
#[derive(Debug, clap::Args)]
pub struct DrillArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Run a drill
    #[command(subcommand)]
    Run(What),
    List(ListArgs),
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Restore(RestoreArgs),
}

/// Restore a copy on scratch, start it, prove it, measure it, and remove it
///
/// Takes the newest moment of the archive, or a random second of everything that can be restored. Restores into a new directory beside the
/// data directories, starts a server there that listens on nothing but a Unix socket in that directory, and proves: pg_checksums reads
/// every page, pg_amcheck every table and index, the row that the last `apply` wrote is there, and each declared assertion yields one true.
/// Measures how long each part took and how old the newest archived transaction was, and holds both to the objective undo-mistake;
/// to lose-primary as well if there is no standby, to lose-region if every node is in one region.
///
/// Drills each cluster that declares `drills`, or, if none does, each with backups. Changes nothing of a cluster, its archive or its
/// backups. Nothing stays of the copy, also if the drill is killed; the report is kept in the state directory.
///
/// Exit codes: 0 passed, 1 failed (something did not hold, or an objective was missed), 2 usage, 3 could not be run to its end, so that
/// nothing is proved, 4 no cluster has backups, 10 no such cluster, 130 interrupted. Of several clusters the worst counts: 130, then 1,
/// then 3.
///
/// Example: pgherd drill run restore --cluster inventory --to random-second --junit drill.xml
#[derive(Debug, clap::Args)]
struct RestoreArgs {
    /// The moment to go to, whatever the topology says
    #[arg(long, value_name = "MOMENT", value_parser = moment_parser())]
    to: Option<DrillTarget>,
    /// Draw the random second with this number again
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Make the scratch directory in this one
    #[arg(long, value_name = "DIRECTORY")]
    scratch_dir: Option<PathBuf>,
    /// Also write the report to this file as JUnit XML, from the beginning on: a drill that is killed has written an error
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Also write the report to this file as JSON, from the beginning on
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the copy there, stopped, and say where
    #[arg(long)]
    keep: bool,
    /// Restore from this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Show the drills that ran before, oldest first
///
/// Reads the reports that this machine's drills have kept in the state directory.
///
/// Exit codes: 0 done, 1 the reports cannot be read, 2 usage, 10 no such cluster.
///
/// Example: pgherd drill list --cluster inventory
#[derive(Debug, clap::Args)]
struct ListArgs {}

fn moment_parser() -> impl clap::builder::TypedValueParser<Value = DrillTarget> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(["newest", "random-second"]).map(|word| match word.as_str() {
        "random-second" => DrillTarget::RandomSecond,
        _ => DrillTarget::Newest,
    })
}

pub fn run(args: &DrillArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::Run(What::Restore(args)) => super::block_on(restore(args, app))?,
        Verb::List(_) => list(app),
    }
}

fn list(app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let mut found = Vec::new();
    for cluster in app.clusters(&herd)? {
        found.push((cluster.name.clone(), drill::list(&context.places, &cluster.name)?));
    }
    ui::drill::print_list(&mut app.ui, &found);
    Ok(Exit::Done)
}

/// Runs the declared restore drill, as a job does.
pub(super) async fn restore_scheduled(app: &mut App) -> Outcome {
    let args = RestoreArgs {
        to: None,
        seed: None,
        scratch_dir: None,
        junit: None,
        json: None,
        keep: false,
        repository: None,
    };
    restore(&args, app).await
}

async fn restore(args: &RestoreArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let scratch = args.scratch_dir.as_deref().map(absolute).transpose()?;
    if args.seed.is_some() && args.to == Some(DrillTarget::Newest) {
        return Err(Error::usage("a seed draws a random second, and --to newest asks for none").into());
    }
    let to = args.to.or(args.seed.map(|_| DrillTarget::RandomSecond));
    let wish = Wish { to, seed: args.seed, scratch, keep: args.keep };
    let mut clusters = app.clusters(&herd)?;
    if app.globals.cluster.is_none() {
        let declared = clusters.iter().any(|cluster| cluster.drills.is_some());
        clusters
            .retain(|cluster| if declared { cluster.drills.is_some() } else { cluster.backups.is_some() });
    }
    if clusters.is_empty() {
        return Err(Error::refused("there is nothing to drill: no cluster has backups")
            .hint("Declare \"backups\" in the topology, run \"pgherd apply\", then make one: pgherd backup create")
            .into());
    }
    let interrupt = app.interrupt()?;
    let mut reports = Vec::new();
    for cluster in clusters {
        reports.push(one(args, app, (&context, &herd, cluster), &wish, &interrupt, &reports).await?);
        if interrupt.is_asked() {
            break;
        }
    }
    ui::drill::print(&mut app.ui, &reports);
    for report in &reports {
        if let Some(failure) = &report.error {
            print_error(&app.ui, &ui::drill::error(failure));
        }
    }
    Ok(exit(&reports))
}

/// Returns how a run ends: the worst of its drills.
fn exit(reports: &[Report]) -> Exit {
    let interrupted =
        |report: &Report| report.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Interrupted);
    if reports.iter().any(interrupted) {
        Exit::Interrupted
    } else if reports.iter().any(|report| report.verdict == Verdict::Failed) {
        Exit::Failed
    } else if reports.iter().any(|report| report.verdict == Verdict::Error) {
        Exit::Partial
    } else {
        Exit::Done
    }
}

/// Runs one drill; its files hold an error from its beginning until it has ended.
async fn one(
    args: &RestoreArgs,
    app: &mut App,
    world: (&Context, &Herd, &Cluster),
    wish: &Wish,
    interrupt: &Interrupt,
    before: &[Report],
) -> Result<Report> {
    let (context, herd, cluster) = world;
    let begun = drill::begin(herd, cluster, wish)?;
    write(args, before, &begun)?;
    let (told, stream) = mpsc::unbounded_channel();
    // Nobody is left to hear it only when the screen is gone.
    let tell: drill::Tell = Arc::new(move |event| told.send(event).unwrap_or(()));
    let (ended, ()) = tokio::join!(
        drill::run(context, (herd, cluster), wish, begun, tell, interrupt),
        ui::drill::draw(&mut app.ui, &herd.name, &cluster.name, stream),
    );
    let report = ended?;
    write(args, before, &report)?;
    Ok(report)
}

/// Writes the files that were asked for.
fn write(args: &RestoreArgs, before: &[Report], last: &Report) -> Result<()> {
    let reports: Vec<Report> = before.iter().chain([last]).cloned().collect();
    let put = |path: &Path, text: String| {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.map_err(|error| Error::failed(format!("could not write {}", path.display())).source(error))?;
        ui::file::write_whole(path, text.as_bytes())
    };
    if let Some(path) = &args.junit {
        put(path, ui::junit::drills(&reports))?;
    }
    if let Some(path) = &args.json {
        let document = ui::drill::document(&reports);
        put(
            path,
            format!("{}\n", serde_json::to_string_pretty(&document).expect("a JSON value can be written")),
        )?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::usage(format!("cannot use {}", path.display())).source(error))
}
