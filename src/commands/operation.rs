//! `pgherd operation`.

use std::time::Duration;

use super::{App, Outcome};
use crate::engine::event::{self, EventSink};
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::engine::operation::{self, Operation};
use crate::engine::record::{Header, OperationId};
use crate::engine::step::Step;
use crate::engine::store::Listed;
use crate::engine::view::OperationView;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply::{self, Way};
use crate::ops::context::Context;
use crate::ops::destroy::{self, DestroyStep};
use crate::ops::hold::{self, HoldStep};
use crate::ops::in_place::{self, step::RestoreStep};
use crate::ops::plan::step::ApplyStep;
use crate::topology::model::Cluster;
use crate::ui;
use crate::ui::exit::Exit;
use crate::ui::journal::{Damaged, Row};
use crate::units;

/// See what pgherd has done, and go on with what was interrupted
///
/// Everything that changes a cluster runs under a journal. An operation that was killed, or that stopped because only you can
/// decide, stays here until it is resumed, undone or abandoned; until then nothing else changes its cluster.
#[derive(Debug, clap::Args)]
pub struct OperationArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    Show(ShowArgs),
    Resume(ResumeArgs),
    Undo(UndoArgs),
    Takeover(TakeoverArgs),
    Abandon(AbandonArgs),
}

/// List the operations: those that have not ended, and the newest that have
///
/// Changes nothing.
///
/// Exit codes: 0 listed, 6 a journal is damaged.
///
/// Example: pgherd operation list --cluster inventory
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Also the older ones that have ended
    #[arg(long)]
    all: bool,
}

/// Show an operation with its steps, what became of each, and the next command
///
/// Reads only the journal, also of an operation that another version of pgherd ran. Changes nothing.
///
/// Exit codes: 0 shown, 6 the journal is damaged, 10 there is no such operation.
///
/// Example: pgherd operation show 7f3a
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The operation's id, or its beginning
    id: String,
}

/// Go on with an operation that was killed, is stuck or incomplete
///
/// Each step that had begun is looked for first: what has happened is not done again. An operation that was being undone is undone
/// to its end. On one that has ended it changes nothing.
///
/// Exit codes: as of the command that began it; 5 a process still drives it.
///
/// Example: pgherd operation resume 7f3a
#[derive(Debug, clap::Args)]
struct ResumeArgs {
    /// The operation's id, or its beginning
    id: String,
    /// Wait so long for a process that still drives it to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Take back what an unfinished operation has done, newest step first
///
/// Possible until its pivot, the step after which there is only forward; from then on it is refused. Never removes a data
/// directory that clients could already use.
///
/// Exit codes: 0 undone, 4 refused, 5 a process still drives it, 6 stuck, 10 there is no such operation.
///
/// Example: pgherd operation undo 7f3a
#[derive(Debug, clap::Args)]
struct UndoArgs {
    /// The operation's id, or its beginning
    id: String,
    /// Wait so long for a process that still drives it to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Go on with an operation in place of the process that drives it
///
/// Where that process is gone, this is the same as resume. Where it still lives, it is refused without --force: with it, the other
/// process stops before its next effect, but what it is doing at this moment cannot be called back. Make sure that it hangs.
///
/// Exit codes: as of resume; 4 refused, 5 the process lives.
///
/// Example: pgherd operation takeover 7f3a --force --reason "its machine is gone"
#[derive(Debug, clap::Args)]
struct TakeoverArgs {
    /// The operation's id, or its beginning
    id: String,
    /// Also from a process that lives
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// End an unfinished operation where it stands, on your word
///
/// For what can be neither resumed nor undone, and has been settled by hand. Changes nothing but the journal; from then on other
/// operations may change the cluster, and `pgherd plan` shows what there is.
///
/// Exit codes: 0 done, 4 it has ended, 5 a process still drives it, 10 there is no such operation.
///
/// Example: pgherd operation abandon 7f3a --reason "db3 was scrapped"
#[derive(Debug, clap::Args)]
struct AbandonArgs {
    /// The operation's id, or its beginning
    id: String,
    /// Why; kept in the journal
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub fn run(args: &OperationArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::List(args) => list(args, app),
        Verb::Show(args) => show(args, app),
        Verb::Resume(args) => {
            let claim = Claim::Wait(args.wait_lock.unwrap_or_default());
            super::block_on(go_on(app, &args.id, &claim, Way::Forward))?
        }
        Verb::Undo(args) => {
            let claim = Claim::Wait(args.wait_lock.unwrap_or_default());
            super::block_on(go_on(app, &args.id, &claim, Way::Back))?
        }
        Verb::Takeover(args) => {
            let claim = match &args.reason {
                Some(reason) if args.force => Claim::Force(reason.clone()),
                _ => Claim::Wait(Duration::ZERO),
            };
            super::block_on(go_on(app, &args.id, &claim, Way::Forward))?
        }
        Verb::Abandon(args) => super::block_on(abandon(args, app))?,
    }
}

/// How many operations that have ended a listing shows.
const NEWEST: usize = 20;

fn list(args: &ListArgs, app: &mut App) -> Outcome {
    let store = app.context()?.store;
    let (mut rows, mut damaged) = (Vec::new(), Vec::new());
    for listed in store.list()? {
        match listed {
            Listed::Readable(view)
                if app.globals.cluster.as_ref().is_none_or(|name| *name == view.cluster) =>
            {
                rows.push(Row { holder: driver(app, &view)?, view: *view });
            }
            Listed::Readable(_) => {}
            Listed::Damaged { file, error } => {
                damaged.push(Damaged { file: file.display().to_string(), error })
            }
        }
    }
    let mut hidden = 0;
    if !args.all {
        let ended = rows.iter().filter(|row| row.view.is_finished()).count();
        let mut surplus = ended.saturating_sub(NEWEST);
        rows.retain(|row| {
            let leave_out = row.view.is_finished() && surplus > 0;
            surplus -= usize::from(leave_out);
            hidden += usize::from(leave_out);
            !leave_out
        });
    }
    ui::journal::print_list(&mut app.ui, &rows, &damaged, hidden);
    Ok(if damaged.is_empty() { Exit::Done } else { Exit::Stuck })
}

fn show(args: &ShowArgs, app: &mut App) -> Outcome {
    let store = app.context()?.store;
    let view = store.read(&store.find(&args.id)?)?.view;
    let holder = driver(app, &view)?;
    ui::journal::print_operation(&mut app.ui, &view, holder.as_ref());
    Ok(Exit::Done)
}

/// Returns the process that drives an operation now.
fn driver(app: &App, view: &OperationView) -> Result<Option<lock::Holder>> {
    if view.is_finished() {
        return Ok(None);
    }
    let holder = lock::holder(&app.context()?.store, &view.cluster)?;
    Ok(holder.filter(|holder| holder.operation.as_ref() == Some(&view.id)))
}

async fn abandon(args: &AbandonArgs, app: &mut App) -> Outcome {
    let context = app.context()?;
    let id = context.store.find(&args.id)?;
    operation::abandon(&context.store, &id, &args.reason).await?;
    if let Some(cluster) = cluster_of(&context.store.read(&id)?.header)
        && let Err(error) = context.locker(&cluster).forget(&id).await
    {
        app.ui.note(format!("WARNING: the lock in the repository still names operation {id}: {error}"));
    }
    app.ui.note(format!("operation {id} is abandoned; nothing else was changed"));
    app.ui.note("next     pgherd plan");
    Ok(Exit::Done)
}

/// Returns the cluster that an operation was given, which says where its repository is.
fn cluster_of(header: &Header) -> Option<Cluster> {
    match header.kind.as_str() {
        apply::KIND => serde_json::from_value(header.input.get("cluster")?.clone()).ok(),
        destroy::KIND => destroy::cluster_of(&header.input),
        hold::KIND => hold::cluster_of(&header.input),
        _ => None,
    }
}

/// How an operation is claimed.
pub(super) enum Claim {
    /// From nobody, or from a process that ends within this time.
    Wait(Duration),
    /// From whoever drives it, for this reason.
    Force(String),
}

pub(super) async fn go_on(app: &mut App, id: &str, claim: &Claim, way: Way) -> Outcome {
    let context = app.context()?;
    let id = context.store.find(id)?;
    let interrupt = app.interrupt()?;
    let (events, stream) = event::channel();
    let drive = drive(&context, &id, claim, way, events, &interrupt);
    let (ended, ()) = tokio::join!(drive, ui::operation::draw(&mut app.ui, stream));
    match (ended?, way) {
        (operation::Outcome::AlreadyEnded(_), _) => {
            app.ui.note(format!("operation {id} had ended; nothing was changed"));
        }
        (operation::Outcome::Restored { .. }, Way::Back) => {
            app.ui.note(format!("operation {id} is undone"));
        }
        (outcome, _) => {
            outcome.into_result(&id)?;
            app.ui.note(format!("operation {id} is done"));
            if context.store.read(&id)?.header.kind == in_place::KIND {
                ui::in_place::print_report(&mut app.ui, &in_place::report::read(&context.store, &id)?);
            }
        }
    }
    Ok(Exit::Done)
}

/// Hands an operation to the room whose steps it has. The sink ends with it, and with the sink the drawing.
async fn drive(
    context: &Context,
    id: &OperationId,
    claim: &Claim,
    way: Way,
    events: EventSink,
    interrupt: &Interrupt,
) -> Result<operation::Outcome> {
    let kind = context.store.read(id)?.header.kind;
    match kind.as_str() {
        apply::KIND => {
            let operation: Operation<ApplyStep> = claimed(context, id, claim, interrupt).await?;
            apply::go_on(context, operation, way, &events, interrupt).await
        }
        destroy::KIND => {
            let operation: Operation<DestroyStep> = claimed(context, id, claim, interrupt).await?;
            destroy::go_on(context, operation, way, &events, interrupt).await
        }
        hold::KIND => {
            let operation: Operation<HoldStep> = claimed(context, id, claim, interrupt).await?;
            hold::go_on(context, operation, way, &events, interrupt).await
        }
        in_place::KIND => {
            let operation: Operation<RestoreStep> = claimed(context, id, claim, interrupt).await?;
            in_place::go_on(context, operation, way, &events, interrupt).await
        }
        other => Err(Error::new(
            ErrorKind::Stuck,
            format!("cannot go on with operation {id}: this pgherd knows no \"{other}\""),
        )
        .detail("The journal was written by another version. Nothing was changed.")
        .hint(format!("Use the version that \"pgherd operation show {id}\" names."))),
    }
}

async fn claimed<S: Step>(
    context: &Context,
    id: &OperationId,
    claim: &Claim,
    interrupt: &Interrupt,
) -> Result<Operation<S>> {
    let claimed = async {
        match claim {
            Claim::Wait(wait) => Operation::open(&context.store, id, *wait).await,
            Claim::Force(reason) => Operation::take_over(&context.store, id, reason).await,
        }
    };
    tokio::select! {
        () = interrupt.asked(1) => {
            Err(Error::new(ErrorKind::Interrupted, format!("interrupted while waiting for operation {id}"))
                .detail("Nothing was changed."))
        }
        claimed = claimed => claimed,
    }
}
