//! `pgherd dump`.

use std::path::PathBuf;

use super::{App, Outcome};
use crate::error::Error;
use crate::ops::dump;
use crate::ui;
use crate::ui::exit::Exit;

/// See the dumps that jobs have made, and fetch one
///
/// A dump is what pg_dump makes of one database, or of some of its schemas, for those who must hand it out. Which are made, when, and how
/// long each is kept is declared with `dumps` in the topology; "pgherd run CLUSTER/dump-NAME" makes one now. It is no backup: it goes back
/// to no moment but its own, and pg_restore brings it back, into any database.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    Fetch(FetchArgs),
}

/// List the dumps in the repository of each cluster, name by name, oldest first
///
/// Exit codes: 0 listed, 4 the cluster has no repository, 10 no such cluster, or the repository cannot be reached.
///
/// Example: pgherd dump list --cluster orders
#[derive(Debug, clap::Args)]
struct ListArgs {}

/// Write a dump into a new file, and prove by its checksum that it is what pg_dump wrote
///
/// The file is made with mode 0600, appears whole or not at all, and is never written over another one.
///
/// Exit codes: 0 fetched, 1 the dump is damaged or the file cannot be written, 2 several clusters have a repository and none was named, 4 the
/// file is there, 10 there is no such dump.
///
/// Example: pgherd dump fetch legal --cluster orders --to orders.dump
#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// The name of the dump in the topology
    #[arg(value_name = "NAME")]
    name: String,
    /// Which of them; the newest if it is not said
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// The new file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

pub fn run(args: &DumpArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::List(_) => super::block_on(list(app))?,
        Verb::Fetch(args) => super::block_on(fetch(args, app))?,
    }
}

async fn list(app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let mut lists = Vec::new();
    for cluster in app.clusters_with_backups(&herd)? {
        lists.push((cluster.name.clone(), app.within(dump::list(&context, cluster)).await??));
    }
    ui::dump::print_list(&mut app.ui, &herd.name, &lists);
    Ok(Exit::Done)
}

async fn fetch(args: &FetchArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let clusters = app.clusters_with_backups(&herd)?;
    let [cluster] = clusters.as_slice() else {
        return Err(Error::usage("dump fetch is of one cluster").hint("Name it: --cluster NAME").into());
    };
    let fetching = dump::fetch(&context, cluster, &args.name, args.label.as_deref(), &args.to);
    let manifest = app.within(fetching).await??;
    ui::dump::print_fetched(&mut app.ui, &manifest, &args.to);
    Ok(Exit::Done)
}
