//! `pgherd restore --in-place`: what the flags of `restore` come to when a whole cluster goes back.

use std::time::Duration;

use super::{App, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind};
use crate::ops::apply;
use crate::ops::in_place::{self, Request};
use crate::ops::node::restore::Wish;
use crate::topology::model::{Cluster, Herd};
use crate::ui;
use crate::ui::exit::Exit;

/// What was asked for.
#[derive(Debug)]
pub struct Asked<'a> {
    pub herd: &'a Herd,
    pub cluster: &'a Cluster,
    pub wish: Wish,
    /// The node that comes from the backup; the preferred one if none is named.
    pub node: Option<&'a str>,
    /// Only show what would be done.
    pub preview: bool,
    /// How long to wait for another operation of the cluster to end.
    pub wait: Duration,
}

/// Plans, shows, asks and runs.
///
/// # Errors
/// As the plan and the operation end.
pub async fn execute(asked: &Asked<'_>, app: &mut App) -> Outcome {
    let (herd, cluster) = (asked.herd, asked.cluster);
    let context = app.context()?;
    let look = async || in_place::plan::plan(&context, herd, cluster, &asked.wish, asked.node).await;
    let plan = app.planned(&context, cluster, asked.wait, look).await?;
    ui::in_place::print_plan(&mut app.ui, &herd.name, &plan);
    if asked.preview {
        app.ui.note("next     the same without --preview");
        return Ok(Exit::Done);
    }
    confirm(app, &cluster.name)?;
    let topology = apply::topology_file(&herd.file)?;
    let request = Request { herd, cluster, plan, topology, wait: asked.wait };
    let run = async |events: EventSink, interrupt: Interrupt| {
        in_place::run(&context, request, &events, &interrupt).await
    };
    let id = app.drive(run).await?;
    ui::in_place::print_report(&mut app.ui, &in_place::report::read(&context.store, &id)?);
    app.ui.note("next     pgherd status   |   pgherd backup create");
    Ok(Exit::Done)
}

/// A whole cluster goes back only by its name, or by a yes that was given beforehand.
fn confirm(app: &App, name: &str) -> Result<(), Error> {
    if app.globals.yes {
        return Ok(());
    }
    if !app.ui.is_interactive() {
        return Err(Error::usage(
            "restore --in-place needs the cluster's name, and there is no terminal to ask",
        )
        .detail("Nothing was changed.")
        .hint("Say yes beforehand with --yes, or see what would be done with --preview."));
    }
    let answer = app.ui.ask(&format!("Clients wait until it is done. Type {name} to bring it back: "))?;
    if answer == name {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("not restored: the answer was {answer:?}, not {name:?}"))
        .detail("Nothing was changed."))
}
