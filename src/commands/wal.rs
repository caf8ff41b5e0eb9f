//! `pgherd wal`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{App, Failure, Outcome};
use crate::error::{Error, ErrorKind};
use crate::ops::context::Context;
use crate::ops::node::NodeDoor;
use crate::ops::observe::Doors;
use crate::ops::wal::{self, Fetched, Pushed, Recovery, WalList};
use crate::topology::model::Cluster;
use crate::ui::exit::Exit;
use crate::ui::{self, Verbosity};

/// The WAL archive: what servers call, and what it holds
///
/// With `backups` in the topology, `pgherd apply` has every server store its WAL in the repository and fetch it from there.
#[derive(Debug, clap::Args)]
pub struct WalArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    Push(PushArgs),
    Fetch(FetchArgs),
    #[command(hide = true)]
    Ahead(AheadArgs),
    #[command(hide = true)]
    Settle(SettleArgs),
    Prefetch(PrefetchArgs),
}

/// Show what the archive holds: runs of WAL a timeline, every gap, and which moments can be restored
///
/// A moment can be restored if a backup ended before it and all WAL from that backup's begin up to the moment is archived: from the end
/// of the oldest such backup to the last archived commit, which is read from the WAL itself. Segments, gaps and histories are told from
/// listings. Needs the repository only; no server has to run. Changes nothing.
///
/// Exit codes: 0 listed (also when there are gaps), 1 something that has to be read is damaged, 10 no repository, or no WAL of the cluster.
///
/// Example: pgherd wal list --cluster inventory
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// In this one of the cluster's repositories; the first one if it is not said
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<String>,
}

/// Store a WAL file in the archive; PostgreSQL's archive_command
///
/// Ends with 0 only when the file is durable in the repository: whole, synced, under its name. A file that is there already with the same
/// content is success, since the server repeats itself after a crash; one with other content is an error, and nothing is overwritten: two
/// servers are writing WAL of one timeline. A segment must say in its header that it is this cluster's, of this major version, and
/// what its name says. Takes segments of any size, .partial, .history and .backup files. Needs no topology and no server, only the node's
/// profile.
///
/// Where more files wait, the call starts a process that stores them ahead, four side by side, and ends by itself when none waits any more: "pgherd
/// wal ahead" in a list of processes. A call whose file is stored already ends at once.
///
/// Exit codes: 0 durable, 1 not stored (PostgreSQL keeps the file and tries again), 2 bad usage, 4 not this cluster's, 10 no repository;
/// never more than 125.
///
/// Example: archive_command = '/usr/local/lib/pgherd/pgherd wal push --profile /etc/pgherd/nodes/inventory-a/profile.json "%p"'
#[derive(Debug, clap::Args)]
struct PushArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// The WAL file; PostgreSQL's %p
    path: PathBuf,
    /// How hard zstd compresses, from 1 to 19
    #[arg(long, value_name = "LEVEL", default_value_t = wal::LEVEL, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
}

/// Write a WAL file of the archive to a path; PostgreSQL's restore_command
///
/// Hands over only what has the hash that it was stored with. A file counts as absent only if the repository was seen to be without it and
/// nothing shows that there is WAL behind it: PostgreSQL would end recovery there and let clients in. A gap, an unreadable repository, a
/// damaged object and any other trouble stop recovery instead (126), or have a standby ask again (125).
///
/// Where the server asks for one segment after the other, a process that ends by itself fetches those that follow: "pgherd wal prefetch" in a list of
/// processes. As many as were handed over within the last 10 s, at most 16 and 256 MiB, in STATE/spool, never past a point where a later timeline goes on.
///
/// Exit codes: 0 it is there, 1 it is absent, 125 any error on a standby, 126 any error elsewhere.
///
/// Example: restore_command = '/usr/local/lib/pgherd/pgherd wal fetch --profile /etc/pgherd/nodes/inventory-a/profile.json "%f" "%p"'
#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// The name of the WAL file; PostgreSQL's %f
    name: String,
    /// Where to write it; PostgreSQL's %p
    path: PathBuf,
}

/// Store ahead what "pgherd wal push" asks for, which starts it
///
/// Ends by itself: when nothing was asked for within 5 s, at the first file that it cannot store (the call of that file tells why), when the server stops or its
/// profile changes, and after 10 minutes. Does nothing where another one runs for the node.
///
/// Exit codes: 0 nothing is left to do, 1 something could not be stored.
///
/// Example: none, since nobody types it
#[derive(Debug, clap::Args)]
struct AheadArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// The data directory of the server that it works for
    #[arg(long, value_name = "DIRECTORY")]
    data_directory: PathBuf,
    /// How hard zstd compresses, from 1 to 19
    #[arg(long, value_name = "LEVEL", default_value_t = wal::LEVEL, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
}

/// Bring a repository that was away the WAL that it lacks; "pgherd wal push" starts it
///
/// Takes each file that is owed from another repository of the node, and tries again every 10 s. Ends by itself: when nothing is owed any more, when the server stops or
/// its profile changes, and after an hour; the next "pgherd wal push" starts it again. Does nothing where another one runs for the node.
///
/// Exit codes: 0 nothing is owed any more, 1 something could not be stored.
///
/// Example: none, since nobody types it
#[derive(Debug, clap::Args)]
struct SettleArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
}

/// Fetch ahead what "pgherd wal fetch" asks for, which starts it
///
/// Ends by itself: when nothing was asked for within 5 s, at the first segment that it cannot fetch (the call of that segment tells why), when the recovery
/// ends, the server stops or its profile changes, and after 10 minutes. Does nothing where another one runs for the node.
///
/// Exit codes: 0 nothing is left to do, 1 something could not be fetched.
///
/// Example: none, since nobody types it
#[derive(Debug, clap::Args)]
struct PrefetchArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// The data directory of the server that it works for
    #[arg(long, value_name = "DIRECTORY")]
    data_directory: PathBuf,
    /// How large its segments are
    #[arg(long, value_name = "BYTES")]
    segment_size: u64,
}

pub fn run(args: &WalArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::List(args) => super::block_on(list(args, app))?,
        Verb::Push(args) => push(args, app),
        Verb::Fetch(args) => fetch(args, app),
        Verb::Settle(args) => {
            wal::settle(&args.profile)?;
            Ok(Exit::Done)
        }
        Verb::Ahead(args) => {
            wal::ahead(&args.profile, &args.data_directory, args.level)?;
            Ok(Exit::Done)
        }
        Verb::Prefetch(args) => {
            wal::prefetch(&args.profile, &args.data_directory, args.segment_size)?;
            Ok(Exit::Done)
        }
    }
}

async fn list(args: &ListArgs, app: &mut App) -> Outcome {
    let herd = app.herd_with_repository(args.repository.as_deref())?;
    let context = app.context()?;
    let mut clusters = app.clusters(&herd)?;
    if app.globals.cluster.is_none() && clusters.iter().any(|cluster| cluster.backups.is_some()) {
        clusters.retain(|cluster| cluster.backups.is_some());
    }
    let mut lists = Vec::new();
    let mut failed = Vec::new();
    for cluster in clusters {
        match app.within(list_of(cluster, &context)).await? {
            Ok(list) => lists.push(list),
            Err(error) => failed.push(error),
        }
    }
    ui::wal::print(&mut app.ui, &herd.name, &lists);
    if failed.is_empty() { Ok(Exit::Done) } else { Err(Failure::Errors(failed)) }
}

async fn list_of(cluster: &Cluster, context: &Context) -> Result<WalList, Error> {
    let Some(backups) = &cluster.backups else {
        return Err(Error::new(ErrorKind::NotFound, format!("{} has no archive", cluster.name))
            .hint("Declare \"backups\" for it in the topology, then run \"pgherd apply\"."));
    };
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let door = NodeDoor::with(&doors, &cluster.preferred().host, &context.build).await?;
    wal::list(&door, &backups.repository, &cluster.name).await
}

/// What is said on success would fill the server's log, except that something was mended.
fn push(args: &PushArgs, app: &App) -> Outcome {
    match wal::push(&args.profile, &args.path, args.level)? {
        Pushed::Stored { file, size, stored } => verbose(app, format!("{file}: {size} stored as {stored}")),
        Pushed::Ahead { file } => verbose(app, format!("{file}: was stored ahead")),
        Pushed::AlreadyThere { file } => verbose(app, format!("{file}: the same is there already")),
        Pushed::Mended { file, damage } => {
            app.ui.message(format!(
                "{file} was damaged in the archive ({damage}) and has been replaced by the same content"
            ));
        }
    }
    Ok(Exit::Done)
}

fn fetch(args: &FetchArgs, app: &App) -> Outcome {
    match wal::fetch(&args.profile, &args.name, &args.path)? {
        Fetched::Got { file, size } => {
            verbose(app, format!("{file}: {size}"));
            Ok(Exit::Done)
        }
        // A standby asks every five seconds.
        Fetched::Absent { file } => {
            verbose(app, format!("{file}: not in the archive"));
            Ok(Exit::Absent)
        }
    }
}

fn verbose(app: &App, text: String) {
    if app.ui.verbosity == Verbosity::Verbose {
        app.ui.message(text);
    }
}

impl WalArgs {
    /// Returns the exit by which PostgreSQL understands how the run has ended.
    pub fn exit(&self, ended: Exit) -> Exit {
        match &self.verb {
            Verb::Fetch(args) if !matches!(ended, Exit::Done | Exit::Absent) => {
                trouble(Some((&args.name, &args.path)))
            }
            Verb::Push(_) if ended.code() > 125 => Exit::Failed,
            Verb::List(_)
            | Verb::Push(_)
            | Verb::Fetch(_)
            | Verb::Ahead(_)
            | Verb::Prefetch(_)
            | Verb::Settle(_) => ended,
        }
    }
}

/// Returns how a command line ends that could not be parsed. Of `wal fetch`, exit code 2 would say that there is no such file.
pub fn usage_exit<T: AsRef<OsStr>>(args: &[T]) -> Exit {
    let mut args = args.iter().map(AsRef::as_ref);
    let fetch = args.any(|arg| arg == "wal") && args.any(|arg| arg == "fetch");
    if fetch { trouble(None) } else { Exit::Usage }
}

fn trouble(wanted: Option<(&str, &Path)>) -> Exit {
    match wal::recovery(wanted) {
        Recovery::Ends => Exit::StopRecovery,
        Recovery::Waits => Exit::AskAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_fetch_does_not_pass_for_an_absent_file() {
        let exit = |line: &str| usage_exit(&line.split(' ').collect::<Vec<_>>()).code();
        assert_eq!(exit("pgherd wal fetch --profil x"), 126);
        assert_eq!(exit("pgherd --quiet wal fetch"), 126);
        assert_eq!(exit("pgherd wal push"), 2);
        assert_eq!(exit("pgherd backup"), 2);
    }

    #[test]
    fn what_postgresql_understands_is_all_that_it_is_told() {
        let args = |verb| WalArgs { verb };
        let (profile, path) = (PathBuf::from("profile.json"), PathBuf::from("pg_wal/x"));
        let push =
            args(Verb::Push(PushArgs { profile: profile.clone(), path: path.clone(), level: wal::LEVEL }));
        let fetch = args(Verb::Fetch(FetchArgs { profile, name: "x".to_owned(), path }));
        for exit in Exit::ALL {
            assert_eq!(push.exit(exit) == Exit::Done, exit == Exit::Done);
            assert!(push.exit(exit).code() <= 125);
            let told = fetch.exit(exit).code();
            let known = matches!(exit, Exit::Done | Exit::Absent);
            assert_eq!(told, if known { exit.code() } else { 126 });
        }
    }
}
