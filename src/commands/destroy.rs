//! `pgherd destroy`.

use std::time::Duration;

use super::{App, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::error::{Error, ErrorKind};
use crate::ops::destroy::{self, Removal};
use crate::ui::exit::Exit;
use crate::units;

/// Remove a cluster, or one node, by its name
///
/// Stops the pooler and the nodes and removes their data directories, logs and files: only what pgherd's own markers claim, whether
/// the topology file still names it or not. A data directory that is not what its marker says is refused and left alone. With --node
/// only that node goes, and its slot on the primary; the primary of nodes that stay is refused. Backups and archived WAL stay in their
/// repository. With the last node of a host the copies of pgherd that apply has put there go as well, unless somebody still uses them.
/// What apply has installed on this machine to start the cluster's jobs goes first.
///
/// Asks for the cluster's name; there is no undo. A killed run is finished by `pgherd operation resume`.
///
/// Exit codes: 0 removed, 4 refused, 5 another operation holds the cluster, 7 something is left, 10 nothing has that name.
///
/// Example: pgherd destroy inventory --node c
#[derive(Debug, clap::Args)]
pub struct DestroyArgs {
    /// The cluster's name
    #[arg(value_name = "CLUSTER")]
    pub name: String,
    /// Only this node of the cluster
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// The name once more, instead of being asked for it (--yes alone is not enough here)
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
    /// Wait so long for another operation of the same cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    pub wait_lock: Option<Duration>,
}

pub fn run(args: &DestroyArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &DestroyArgs, app: &mut App) -> Outcome {
    let context = app.context()?;
    let wait = args.wait_lock.unwrap_or_default();
    lock::until_free(&context.store, &args.name, wait).await?;
    // Without a topology what stands on this machine can still go.
    let hosts = match app.topology_file() {
        Ok(_) => app.herd()?.hosts,
        Err(_) => Vec::new(),
    };
    let removal = destroy::plan(&context, &hosts, &args.name, args.node.as_deref()).await?;
    for line in &removal.lines {
        app.ui.note(format!("  - {line}"));
    }
    for line in &removal.stays {
        app.ui.note(format!("  . {line}: stays"));
    }
    confirm(args, app, &removal)?;
    let run = async |events: EventSink, interrupt: Interrupt| {
        destroy::run(&context, &hosts, removal, wait, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    for line in destroy::left_by(&context, &id)? {
        app.ui.note(format!("  . {line}: stays after all"));
    }
    app.ui.remark(match &args.node {
        Some(node) => format!("{}-{node} is removed", args.name),
        None => format!("{} is removed", args.name),
    });
    Ok(Exit::Done)
}

/// Nothing is removed without its name.
fn confirm(args: &DestroyArgs, app: &App, removal: &Removal) -> Result<(), Error> {
    let name = match &args.node {
        Some(node) => format!("{}-{node}", removal.input.cluster),
        None => removal.input.cluster.clone(),
    };
    let answer = match &args.confirm {
        Some(given) => given.clone(),
        None if app.ui.is_interactive() => {
            app.ui.ask(&format!("There is no undo. Type {name} to remove it: "))?
        }
        None => {
            return Err(Error::usage("destroy needs the name once more, and there is no terminal to ask")
                .detail("Nothing was changed.")
                .hint(format!("Give it with the command: --confirm {name}")));
        }
    };
    if answer == name {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("not removed: the answer was {answer:?}, not {name:?}"))
        .detail("Nothing was changed."))
}
