//! `pgherd fence`.

use std::time::Duration;

use super::{App, Failure, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind};
use crate::ops::apply;
use crate::ops::fence::{self, FencePlan, Force, Request, Wish};
use crate::topology::model::{Cluster, Herd, Node};
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Stop a node and keep it from being a primary
///
/// Writes a mark beside the node that says who fenced it, when and why, then stops its server (fast) and sees that none of its processes
/// is left. From then on it does not come up as a primary: not by pgherd, not by its unit, not by a boot of its host, which starts a standby.
/// A server that does not end within --within goes on ending, and the fence is taken back; with --immediate it is ended as a power cut would.
///
/// Never promotes another node, never removes data. "pgherd rejoin" brings the node back as a standby, "pgherd unfence" as what it was.
///
/// Exit codes: 0 fenced, or was already, 1 failed and taken back, 2 bad usage, 4 refused, 5 another operation holds the cluster, 6 stuck:
/// whether it has ended is not known, 10 its host does not answer, or no such node, 130 interrupted.
///
/// Example: pgherd fence a --reason "its disk answers late"
#[derive(Debug, clap::Args)]
pub struct FenceArgs {
    /// The node, as a or inventory-a
    #[arg(value_name = "NODE")]
    node: String,
    /// Why; kept beside the node and in the journal
    #[arg(long, value_name = "TEXT", default_value = "by hand")]
    reason: String,
    /// How long a fast shutdown may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::parse_duration)]
    within: Duration,
    /// End what a fast shutdown does not end in time as a power cut would
    #[arg(long)]
    immediate: bool,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

pub fn run(args: &FenceArgs, app: &mut App) -> Outcome {
    let force = if args.immediate { Force::ThenKill } else { Force::Fast };
    let wish = Wish::Fence { why: args.reason.clone(), force, limit: args.within };
    super::block_on(execute(app, &args.node, &wish, args.wait_lock.unwrap_or_default()))?
}

pub(super) async fn execute(app: &mut App, name: &str, wish: &Wish, wait: Duration) -> Outcome {
    let herd = app.herd()?;
    let (cluster, node) = one_node(app, &herd, name)?;
    let context = app.context()?;
    let look = async || fence::plan(&context, &herd, cluster, node, wish).await.map_err(|error| vec![error]);
    let plan = app.planned(&context, cluster, wait, look).await?;
    ui::fence::print_plan(&mut app.ui, &herd.name, &plan);
    if plan.steps.is_empty() {
        return Ok(Exit::Done);
    }
    if matches!(wish, Wish::Fence { .. }) {
        confirm(app, &plan)?;
    }
    let topology = apply::topology_file(&herd.file)?;
    let request = Request { herd: &herd, cluster, node, plan, topology, wait };
    let run = async |events: EventSink, interrupt: Interrupt| {
        fence::run(&context, request, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    let report = fence::report(&context.store, &id)?;
    ui::fence::print_report(&mut app.ui, &report);
    app.ui.note(if report.fenced {
        "next     pgherd status".to_owned()
    } else {
        format!("next     pgherd apply --cluster {}", cluster.name)
    });
    Ok(Exit::Done)
}

/// Finds the node that is meant, by its name in its cluster or in the herd.
fn one_node<'h>(app: &App, herd: &'h Herd, name: &str) -> Result<(&'h Cluster, &'h Node), Failure> {
    let clusters = app.clusters(herd)?;
    let all = clusters.iter().flat_map(|cluster| cluster.nodes.iter().map(move |node| (*cluster, node)));
    let full = |(cluster, node): &(&Cluster, &Node)| cluster.full_name(&node.name);
    let meant: Vec<_> = all.clone().filter(|found| found.1.name == name || full(found) == name).collect();
    match meant.as_slice() {
        [one] => Ok(*one),
        [] => {
            let names: Vec<String> = all.map(|found| full(&found)).collect();
            Err(Error::new(ErrorKind::NotFound, format!("there is no node {name:?}"))
                .detail("Nothing was changed.")
                .hint(format!("The nodes are: {}.", names.join(", ")))
                .into())
        }
        several => {
            let names: Vec<String> = several.iter().map(full).collect();
            Err(Error::usage(format!("which node {name} is meant?"))
                .detail(format!("There are {}. Nothing was changed.", names.join(", ")))
                .hint("Name it in full.")
                .into())
        }
    }
}

fn confirm(app: &App, plan: &FencePlan) -> Result<(), Error> {
    if app.globals.yes {
        return Ok(());
    }
    let name = &plan.node;
    if !app.ui.is_interactive() {
        return Err(Error::usage("fence needs the node's name once more, and there is no terminal to ask")
            .detail("Nothing was changed.")
            .hint("Say yes beforehand with --yes."));
    }
    let answer =
        app.ui.ask(&format!("Stop {name} and keep it from being a primary? Type the node's name: "))?;
    if answer == *name || answer == plan.input.node {
        return Ok(());
    }
    Err(Error::refused(format!("not fenced: the answer was {answer:?}, not {name:?}"))
        .detail("Nothing was changed."))
}
