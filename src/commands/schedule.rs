//! `pgherd schedule`.

use std::path::PathBuf;

use super::{App, Outcome};
use crate::error::Error;
use crate::ops::schedule::{Jobs, Purpose};
use crate::ops::starter;
use crate::topology::timers::{self, Crontab, Rendered};
use crate::ui;
use crate::ui::exit::Exit;

/// See what runs by itself, and render what starts it
///
/// What has a schedule is declared in the topology: backups, verifications, expiry, drills, maintenance, and the judgement of the herd.
/// Each is a job, and "pgherd run" runs it.
#[derive(Debug, clap::Args)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    Render(RenderArgs),
}

/// List the jobs: when each runs next, when it last ended well, and what is overdue
///
/// Reads the topology and what this station has recorded of its runs; where several stations share them (scheduler.lease), what is in
/// their repository. Connects to no server.
///
/// Exit codes: 0 listed, 1 a record cannot be read, 2 the topology is not valid, 10 no such cluster, or the repository cannot be reached.
///
/// Example: pgherd schedule list --format json
#[derive(Debug, clap::Args)]
struct ListArgs {}

/// Print what has cron or systemd start the jobs
///
/// For cron it is one line of a user's crontab: pgherd is asked often what is due, so that the zone of the topology counts, also where the
/// clocks change, and what was missed is made up for. For systemd it is a service and a timer a job, each with the name of its file in
/// front of it; --to-dir writes them as files. Both name pgherd and the topology by their absolute paths, and what PGHERD_CONFIG_DIR,
/// PGHERD_STATE_DIR and PGHERD_LIB_DIR say now. Installs nothing: with scheduler.install in the topology "pgherd apply" does.
///
/// Exit codes: 0 rendered, 2 the topology is not valid or a path cannot stand in a crontab, 4 nothing has a schedule.
///
/// Example: (crontab -l; pgherd schedule render --as cron) | crontab -
#[derive(Debug, clap::Args)]
struct RenderArgs {
    /// What starts the jobs
    #[arg(long = "as", value_name = "KIND", value_parser = ["cron", "systemd"])]
    kind: String,
    /// Write the units as files into this directory
    #[arg(long, value_name = "DIRECTORY")]
    to_dir: Option<PathBuf>,
}

pub fn run(args: &ScheduleArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::List(_) => list(app),
        Verb::Render(args) => render(args, app),
    }
}

fn list(app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    app.clusters(&herd)?;
    let listed = super::block_on(async {
        Jobs::open(&context, &herd, Purpose::Look).await?.list(app.globals.cluster.as_deref()).await
    })??;
    ui::schedule::print_list(&mut app.ui, &herd, &listed);
    Ok(Exit::Done)
}

fn render(args: &RenderArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    if herd.jobs.is_empty() {
        return Err(Error::refused("nothing has a schedule")
            .hint("Give something one in the topology, such as backups: {full: daily 02:00}.")
            .into());
    }
    if args.kind == "cron" {
        if args.to_dir.is_some() {
            return Err(Error::usage("--to-dir is for the units of systemd").into());
        }
        let crontab = starter::with_station(&herd, |station| timers::crontab(&herd, station, Crontab::Own))?;
        app.ui.bytes(crontab.as_bytes());
        return Ok(Exit::Done);
    }
    let units = starter::with_station(&herd, |station| timers::units(&herd, station))?;
    match &args.to_dir {
        None => ui::schedule::print_units(&mut app.ui, &units),
        Some(directory) => {
            for Rendered { name, text } in &units {
                let path = directory.join(name);
                std::fs::write(&path, text).map_err(|error| {
                    Error::failed(format!("could not write {}", path.display())).source(error)
                })?;
            }
            app.ui.remark(format!("wrote {} units into {}", units.len(), directory.display()));
        }
    }
    Ok(Exit::Done)
}
