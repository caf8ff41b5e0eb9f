//! `pgherd backup`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::backup_care::{self, CopyArgs, ExpireArgs, PinArgs, UnpinArgs, VerifyArgs};
use super::{App, Failure, Outcome};
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::backup::care::CopyWish;
use crate::ops::backup::{self, Created, Wish};
use crate::ops::context::Context;
use crate::ops::node::Priority;
use crate::repo::layout::Label;
use crate::topology::model::{BackupSource, Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units::{self, ByteCount};

/// Make backups, and see which there are
///
/// A backup is a whole copy of a running cluster in its repository. With the WAL that the cluster archives it can be restored to any
/// moment after its end. Which repository, and what is kept for how long, is declared with `backups` in the topology.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Create(CreateArgs),
    List(ListArgs),
    Show(ShowArgs),
    Verify(VerifyArgs),
    Copy(CopyArgs),
    Expire(ExpireArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
}

/// Make a full backup of each cluster that declares backups, while it runs
///
/// Reads a standby where one can give it, else the primary, and says which and why. First it makes sure that WAL arrives in the
/// repository. Then it copies every file, checks every page whose checksum the server wrote, and waits until all WAL that a restore
/// needs is in the repository. Only then is there a backup. One that fails, is interrupted or killed leaves none, and the server ends
/// it by itself; what it had stored is removed, at the latest by the next one.
///
/// With --copy it is then brought into the cluster's other repositories, without the database being read again.
///
/// Changes nothing in a data directory. Writes into the repository, and has the primary write a checkpoint and end a WAL segment.
///
/// Exit codes: 0 done, 1 failed, 3 done, but pages are damaged (the report names file and blocks), or another repository does not have it, 4 refused, 5 a backup of this cluster
/// runs already, 10 no primary or no repository, 130 interrupted.
///
/// Example: pgherd backup create --cluster inventory --rate-limit "50 MiB/s"
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Read from here, whatever the topology says
    #[arg(long, value_name = "NODE", value_parser = source_parser())]
    from: Option<BackupSource>,
    /// How many threads read, check and compress; as many as the node has cores, but not more than 12
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=128))]
    workers: Option<u32>,
    /// Take processor and disk only when nobody else wants them (nice 19, ionice idle)
    #[arg(long)]
    low_priority: bool,
    /// Read no more than this, such as "50 MiB/s"
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate_limit: Option<ByteCount>,
    /// How long a WAL segment may take to arrive in the repository
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = units::parse_duration)]
    archive_timeout: Duration,
    /// Then copy it, and whatever else they lack, into the cluster's other repositories
    #[arg(long)]
    copy: bool,
}

/// List the backups of each cluster, oldest first
///
/// Also one that is being made, with how far it is, and what an interrupted one left. Reads only the repository: no server need run.
///
/// Exit codes: 0 listed, 4 the cluster declares no backups, 10 no such cluster, or no repository.
///
/// Example: pgherd backup list --cluster inventory --format json
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Show one backup in full
///
/// What it holds, where it was read, which WAL a restore of it needs, and which pages in it are damaged. Reads only the repository.
///
/// Exit codes: 0 shown, 4 the cluster declares no backups, 10 no such backup, or no repository.
///
/// Example: pgherd backup show 20261121T100203Z-full
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The backup's label
    #[arg(value_name = "LABEL")]
    label: Label,
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

fn source_parser() -> impl clap::builder::TypedValueParser<Value = BackupSource> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(["standby", "primary"]).map(|word| match word.as_str() {
        "primary" => BackupSource::Primary,
        _ => BackupSource::Standby,
    })
}

fn parse_rate(text: &str) -> Result<ByteCount, String> {
    let size = text.trim().strip_suffix("/s").ok_or("expected a size a second, such as 50 MiB/s")?;
    match ByteCount::parse(size) {
        Ok(ByteCount(0)) => Err("nothing could be read".to_owned()),
        Ok(rate) => Ok(rate),
        Err(error) => Err(error.to_string()),
    }
}

pub fn run(args: &BackupArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::Create(args) => super::block_on(create(args, app))?,
        Verb::List(args) => super::block_on(list(args, app))?,
        Verb::Show(args) => super::block_on(show(args, app))?,
        Verb::Copy(args) => super::block_on(backup_care::copy(args, app))?,
        Verb::Verify(args) => super::block_on(backup_care::verify(args, app))?,
        Verb::Expire(args) => super::block_on(backup_care::expire(args, app))?,
        Verb::Pin(args) => super::block_on(backup_care::pin(args, app))?,
        Verb::Unpin(args) => super::block_on(backup_care::unpin(args, app))?,
    }
}

/// Makes a full backup, as a job does.
pub(super) async fn scheduled(app: &mut App) -> Outcome {
    let archive_timeout = Duration::from_secs(5 * 60);
    let args = CreateArgs {
        from: None,
        workers: None,
        low_priority: false,
        rate_limit: None,
        archive_timeout,
        copy: false,
    };
    create(&args, app).await
}

async fn create(args: &CreateArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let wish = Wish {
        from: args.from,
        workers: args.workers.unwrap_or(0),
        priority: if args.low_priority { Priority::Low } else { Priority::Normal },
        rate_limit: args.rate_limit,
        archive_timeout: args.archive_timeout,
    };
    let clusters = app.clusters_with_backups(&herd)?;
    let interrupt = app.interrupt()?;
    let mut failed = Vec::new();
    let mut partial = false;
    for cluster in clusters {
        match one(app, &context, &herd, cluster, &wish, &interrupt).await {
            Ok(created) => {
                partial |= created.damaged_pages > 0;
                ui::backup::print_created(&mut app.ui, &herd.name, &created);
                if args.copy {
                    match copied(app, &herd, cluster, wish.priority, &interrupt).await {
                        Ok(whole) => partial |= !whole,
                        Err(error) => failed.push(error),
                    }
                }
            }
            Err(error) => failed.push(error),
        }
        if interrupt.is_asked() {
            break;
        }
    }
    match (failed.is_empty(), partial) {
        (false, _) => Err(Failure::Errors(failed)),
        (true, true) => Ok(Exit::Partial),
        (true, false) => Ok(Exit::Done),
    }
}

/// Brings the other repositories of a cluster what they lack; tells whether each of them has all of it. There is a backup whether they have or
/// not, so a repository that fails is told at once, and only an interrupt is an error.
async fn copied(
    app: &mut App,
    herd: &Herd,
    cluster: &Cluster,
    priority: Priority,
    interrupt: &Interrupt,
) -> Result<bool> {
    let mut whole = true;
    for to in cluster.backups.iter().flat_map(|backups| &backups.copies) {
        let wish = CopyWish { to, labels: &[], workers: 0, priority };
        match backup_care::bring(app, herd, cluster, &wish, interrupt).await {
            Ok(transferred) => whole &= transferred.is_whole(),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                whole = false;
                Failure::Errors(vec![error]).print(&app.ui);
            }
        }
    }
    Ok(whole)
}

async fn list(args: &ListArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let mut lists = Vec::new();
    for cluster in app.clusters_with_backups(&herd)? {
        lists.push(app.within(backup::list::list(&context, cluster)).await??);
    }
    ui::backup::print_list(&mut app.ui, &herd.name, &lists);
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let mut missing = None;
    for cluster in app.clusters_with_backups(&herd)? {
        match app.within(backup::list::show(&context, cluster, &args.label)).await? {
            Ok(shown) => {
                ui::backup::print_shown(&mut app.ui, &herd.name, &shown);
                return Ok(Exit::Done);
            }
            // The label may be that of another cluster.
            Err(error) if error.kind() == ErrorKind::NotFound => missing = missing.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(missing.expect("a herd has a cluster").into())
}

async fn one(
    app: &mut App,
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
    interrupt: &Interrupt,
) -> Result<Created, Error> {
    let (told, stream) = mpsc::unbounded_channel();
    // Nobody is left to hear it only when the screen is gone.
    let tell: backup::Tell = Arc::new(move |event| told.send(event).unwrap_or(()));
    let (ended, ()) = tokio::join!(
        backup::create(context, herd, cluster, wish, tell, interrupt),
        ui::backup::draw(&mut app.ui, &herd.name, &cluster.name, stream),
    );
    ended
}
