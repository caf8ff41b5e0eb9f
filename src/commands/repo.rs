//! `pgherd repo`.

use super::{App, Outcome};
use crate::error::Error;
use crate::ops::rekey;
use crate::repo::crypt::rekey::Half;
use crate::ui;
use crate::ui::exit::Exit;

/// Look after a repository itself
#[derive(Debug, clap::Args)]
pub struct RepoArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Rekey(RekeyArgs),
}

/// Exchange the key of an encrypted repository, without writing any data anew
///
/// Each backup and each timeline of WAL has a data key of its own, which the repository key wraps. First declare the new one, and the old one
/// beside it: "encrypt: {env: NEW}" and "encrypt-before: {env: OLD}", and bring both to the hosts with "pgherd apply". Then "repo rekey"
/// wraps every data key by the new one too, and "repo rekey --drop-old" leaves nothing that the old one opens. Then take "encrypt-before" out
/// of the topology, and apply. Each of them can be run again, also after it was killed, and beside backups.
///
/// Exit codes: 0 done, 2 several repositories and none was named, 3 some data keys open with no key at hand, 4 a host has other keys than declared,
/// or the repository is not encrypted, 10 there is no such repository, or it does not answer.
///
/// Example: pgherd repo rekey main
#[derive(Debug, clap::Args)]
struct RekeyArgs {
    /// The name of the repository in the topology; the only one if there is one
    #[arg(value_name = "REPOSITORY")]
    repository: Option<String>,
    /// Leave nothing that another key than the declared one opens
    #[arg(long)]
    drop_old: bool,
}

pub fn run(args: &RepoArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::Rekey(args) => super::block_on(exchange(args, app))?,
    }
}

async fn exchange(args: &RekeyArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let name = match (&args.repository, herd.repositories.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.name.clone(),
        (None, _) => {
            return Err(Error::usage("repo rekey is of one repository")
                .hint("Name it: pgherd repo rekey NAME")
                .into());
        }
    };
    let half = if args.drop_old { Half::DropOthers } else { Half::Add };
    let rekeyed = app.within(rekey::rekey(&context, &herd, &name, half)).await??;
    ui::repo::print_rekeyed(&mut app.ui, &name, half, &rekeyed);
    Ok(if rekeyed.failed.is_empty() { Exit::Done } else { Exit::Partial })
}
