//! `pgherd operation`.

use std::time::Duration;

use super::{App, Failure, Outcome};
use crate::engine::event::{self, EventSink};
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::engine::operation::{self, Operation, Way};
use crate::engine::record::{Header, OperationId};
use crate::engine::step::Step;
use crate::engine::store::Listed;
use crate::engine::view::OperationView;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::apply;
use crate::ops::context::Context;
use crate::ops::destroy::{self, DestroyStep};
use crate::ops::failover::{self, step::FailStep};
use crate::ops::fence::{self, step::FenceStep};
use crate::ops::hold::{self, HoldStep};
use crate::ops::in_place::{self, step::RestoreStep};
use crate::ops::plan::step::ApplyStep;
use crate::ops::rejoin::{self, step::RejoinStep};
use crate::ops::switchover::{self, step::SwitchStep};
use crate::ops::takeover;
use crate::topology::model::Cluster;
use crate::ui;
use crate::ui::exit::Exit;
use crate::ui::journal::{Damaged, Row, Seat};
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
/// Reads the journals of this station; with --hosts also the copies that other stations have left on the hosts of the topology. Changes
/// nothing.
///
/// Exit codes: 0 listed, 3 a host did not answer, 6 a journal is damaged.
///
/// Example: pgherd operation list --cluster inventory
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Also the older ones that have ended
    #[arg(long)]
    all: bool,
    /// Also those of other stations, from the copies of their journals on the hosts
    #[arg(long)]
    hosts: bool,
}

/// Show an operation with its steps, what became of each, and the next command
///
/// Reads only the journal, also of an operation that another version of pgherd ran; one that is not here is looked for among the copies on
/// the hosts of the topology. Changes nothing.
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
/// An operation that another station began, and whose journal is not here, is looked for on the hosts of the topology: each of them keeps
/// a copy. The longest that checks out is taken, and every step that may have been begun since is looked for before it is done. Allowed
/// once the other station's lock in the repository has expired, 90 s after its last sign of life. Without a repository, or sooner,
/// only with --force: make sure then that the other station is off, and has been for a minute, since what it had begun on a host ends only
/// then. When it comes back, it finds that it has lost the operation.
///
/// Exit codes: as of resume; 4 refused, 5 the process or the station lives, 6 two copies contradict each other, 10 there is no copy.
///
/// Example: pgherd operation takeover 7f3a --force --reason "its machine is gone"
#[derive(Debug, clap::Args)]
struct TakeoverArgs {
    /// The operation's id, or its beginning
    id: String,
    /// Take back what it has done, newest step first; refused after its pivot, or if that cannot be told
    #[arg(long)]
    undo: bool,
    /// Also from a process, or a station, that may live
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
        Verb::List(args) => super::block_on(list(args, app))?,
        Verb::Show(args) => super::block_on(show(args, app))?,
        Verb::Resume(args) => {
            let claim = Claim::Wait(args.wait_lock.unwrap_or_default());
            super::block_on(go_on(app, &args.id, &claim, Way::Forward))?
        }
        Verb::Undo(args) => {
            let claim = Claim::Wait(args.wait_lock.unwrap_or_default());
            super::block_on(go_on(app, &args.id, &claim, Way::Back))?
        }
        Verb::Takeover(args) => super::block_on(take_over(app, args))?,
        Verb::Abandon(args) => super::block_on(abandon(args, app))?,
    }
}

/// How many operations that have ended a listing shows.
const NEWEST: usize = 20;

async fn list(args: &ListArgs, app: &mut App) -> Outcome {
    let store = app.context()?.store;
    let (mut rows, mut damaged) = (Vec::new(), Vec::new());
    for listed in store.list()? {
        match listed {
            Listed::Readable(view)
                if app.globals.cluster.as_ref().is_none_or(|name| *name == view.cluster) =>
            {
                rows.push(Row { seat: Seat::Here(driver(app, &view)?), view: *view });
            }
            Listed::Readable(_) => {}
            Listed::Damaged { file, error } => {
                damaged.push(Damaged { file: file.display().to_string(), error })
            }
        }
    }
    let silent = if args.hosts { add_copies(app, &mut rows, &mut damaged).await? } else { Vec::new() };
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
    if let Some(hosts) = takeover::told(&silent) {
        app.ui.note(format!("WARNING: not looked at: {hosts}"));
    }
    Ok(match (damaged.is_empty(), silent.is_empty()) {
        (false, _) => Exit::Stuck,
        (true, false) => Exit::Partial,
        (true, true) => Exit::Done,
    })
}

/// Adds what the copies on the hosts know and the journals here do not. Returns the hosts that did not answer.
async fn add_copies(
    app: &App,
    rows: &mut Vec<Row>,
    damaged: &mut Vec<Damaged>,
) -> Result<Vec<(String, Error)>, Failure> {
    let (context, herd) = (app.context()?, app.herd()?);
    let mut silent: Vec<(String, Error)> = Vec::new();
    for (_, gathered) in takeover::look(&context, &app.clusters(&herd)?, "").await {
        for (id, chain) in gathered.chains {
            match chain {
                Ok(chain) => match rows.iter_mut().find(|row| row.view.id == id) {
                    // What was taken over elsewhere ended there, or goes on.
                    Some(own)
                        if own.view.begun == chain.content.view.begun
                            && own.view.last >= chain.content.view.last => {}
                    Some(own) if own.view.begun == chain.content.view.begun => {
                        *own = Row { view: chain.content.view, seat: Seat::Copied(chain.hosts) };
                    }
                    Some(_) | None => {
                        rows.push(Row { view: chain.content.view, seat: Seat::Copied(chain.hosts) });
                    }
                },
                Err(error) => damaged.push(Damaged { file: format!("copies of {id}"), error }),
            }
        }
        for (host, error) in gathered.unreachable {
            if !silent.iter().any(|(known, _)| *known == host) {
                silent.push((host, error));
            }
        }
    }
    rows.sort_by(|a, b| (a.view.begun, &a.view.id).cmp(&(b.view.begun, &b.view.id)));
    Ok(silent)
}

async fn show(args: &ShowArgs, app: &mut App) -> Outcome {
    let context = app.context()?;
    let row = match context.store.find(&args.id) {
        Ok(id) => {
            let view = context.store.read(&id)?.view;
            Row { seat: Seat::Here(driver(app, &view)?), view }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // Without a topology there is nobody to ask.
            let Ok(herd) = app.herd() else { return Err(error.into()) };
            let chain = takeover::find(&context, &app.clusters(&herd)?, &args.id).await?;
            Row { view: chain.content.view, seat: Seat::Copied(chain.hosts) }
        }
        Err(error) => return Err(error.into()),
    };
    ui::journal::print_operation(&mut app.ui, &row);
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
    if let Some(cluster) = cluster_of(&context.store.read(&id)?.header) {
        if let Err(error) = context.locker(&cluster).forget(&id).await {
            app.ui.note(format!("WARNING: the lock in the repository still names operation {id}: {error}"));
        }
        takeover::tell_copies(&context, &cluster, &id).await;
    }
    app.ui.note(format!("operation {id} is abandoned; nothing else was changed"));
    app.ui.note("next     pgherd plan");
    Ok(Exit::Done)
}

/// Returns the cluster that an operation was given, which says where its repository is.
fn cluster_of(header: &Header) -> Option<Cluster> {
    match header.kind.as_str() {
        apply::KIND | in_place::KIND | switchover::KIND | failover::KIND | fence::FENCE | fence::UNFENCE => {
            serde_json::from_value(header.input.get("cluster")?.clone()).ok()
        }
        destroy::KIND => destroy::cluster_of(&header.input),
        hold::KIND => hold::cluster_of(&header.input),
        rejoin::KIND => rejoin::cluster_of(&header.input),
        _ => None,
    }
}

/// How an operation is claimed.
pub(super) enum Claim {
    /// From nobody, or from a process that ends within this time.
    Wait(Duration),
    /// From whoever drives it, for this reason.
    Force(String),
    /// From another station: the cluster as the operation has it and as it is declared here, and the reason if it may still live.
    Copy(Box<(Cluster, Option<Cluster>, Option<String>)>),
}

pub(super) async fn go_on(app: &mut App, id: &str, claim: &Claim, way: Way) -> Outcome {
    let context = app.context()?;
    let id = context.store.find(id)?;
    let kind = context.store.read(&id)?.header.kind;
    drive_to_end(app, &context, (&id, &kind), claim, way).await
}

async fn take_over(app: &mut App, args: &TakeoverArgs) -> Outcome {
    let context = app.context()?;
    let reason = args.reason.clone().filter(|_| args.force);
    let way = if args.undo { Way::Back } else { Way::Forward };
    match context.store.find(&args.id) {
        Ok(id) if !is_behind(app, &context, &id).await => {
            let claim = reason.map_or(Claim::Wait(Duration::ZERO), Claim::Force);
            let kind = context.store.read(&id)?.header.kind;
            drive_to_end(app, &context, (&id, &kind), &claim, way).await
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        here => {
            let herd = match (app.herd(), here) {
                (Ok(herd), _) => herd,
                // Without a topology there is nobody to ask.
                (Err(Failure::Error(_)), Err(unknown)) => return Err(unknown.into()),
                (Err(why), _) => return Err(why),
            };
            let chain = takeover::find(&context, &app.clusters(&herd)?, &args.id).await?;
            let header = &chain.content.header;
            let id = &header.operation;
            let Some(cluster) = cluster_of(header) else { return Err(unknown_kind(id, &header.kind).into()) };
            app.ui.note(format!(
                "operation {id} of {}, last heard of at {:.0}; its journal is copied on {}",
                header.by,
                chain.content.view.last,
                chain.hosts.join(", ")
            ));
            let declared = herd.cluster(&cluster.name).cloned();
            let claim = Claim::Copy(Box::new((cluster, declared, reason)));
            drive_to_end(app, &context, (id, &header.kind), &claim, way).await
        }
    }
}

/// Tells whether a journal that is here is only the beginning of what the copies on the hosts have.
async fn is_behind(app: &App, context: &Context, id: &OperationId) -> bool {
    let Ok(content) = context.store.read(id) else { return false };
    let Some(cluster) = cluster_of(&content.header) else { return false };
    let Ok(herd) = app.herd() else { return false };
    let Some(declared) = herd.cluster(&cluster.name) else { return false };
    let Ok(lines) = std::fs::read(context.store.path(id)) else { return false };
    takeover::goes_on_elsewhere(context, declared, id, &lines).await
}

/// Drives an operation that is claimed so, and tells how it ended.
async fn drive_to_end(
    app: &mut App,
    context: &Context,
    (id, kind): (&OperationId, &str),
    claim: &Claim,
    way: Way,
) -> Outcome {
    let interrupt = app.interrupt()?;
    let (events, stream) = event::channel();
    let drive = drive(context, (id, kind), claim, way, events, &interrupt);
    let (ended, ()) = tokio::join!(drive, ui::operation::draw(&mut app.ui, stream));
    match (ended?, way) {
        (operation::Outcome::AlreadyEnded(_), _) => {
            app.ui.note(format!("operation {id} had ended; nothing was changed"));
        }
        (operation::Outcome::Restored { .. }, Way::Back) => {
            app.ui.note(format!("operation {id} is undone"));
        }
        (outcome, _) => {
            outcome.into_result(id)?;
            app.ui.note(format!("operation {id} is done"));
            if kind == in_place::KIND {
                ui::in_place::print_report(&mut app.ui, &in_place::report::read(&context.store, id)?);
            }
            if kind == rejoin::KIND {
                ui::rejoin::print_report(&mut app.ui, &rejoin::report::read(&context.store, id)?);
            }
            if kind == failover::KIND {
                ui::failover::print_report(&mut app.ui, &failover::report::read(&context.store, id)?);
            }
            if [fence::FENCE, fence::UNFENCE].contains(&kind) {
                ui::fence::print_report(&mut app.ui, &fence::report(&context.store, id)?);
            }
            if kind == switchover::KIND {
                ui::switchover::print_report(&mut app.ui, &switchover::report::read(&context.store, id)?);
            }
        }
    }
    Ok(Exit::Done)
}

/// Hands an operation to the room whose steps it has. The sink ends with it, and with the sink the drawing.
async fn drive(
    context: &Context,
    (id, kind): (&OperationId, &str),
    claim: &Claim,
    way: Way,
    events: EventSink,
    interrupt: &Interrupt,
) -> Result<operation::Outcome> {
    match kind {
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
        switchover::KIND => {
            let operation: Operation<SwitchStep> = claimed(context, id, claim, interrupt).await?;
            switchover::go_on(context, operation, way, &events, interrupt).await
        }
        rejoin::KIND => {
            let operation: Operation<RejoinStep> = claimed(context, id, claim, interrupt).await?;
            rejoin::go_on(context, operation, way, &events, interrupt).await
        }
        failover::KIND => {
            let operation: Operation<FailStep> = claimed(context, id, claim, interrupt).await?;
            failover::go_on(context, operation, way, &events, interrupt).await
        }
        fence::FENCE | fence::UNFENCE => {
            let operation: Operation<FenceStep> = claimed(context, id, claim, interrupt).await?;
            fence::go_on(context, operation, way, &events, interrupt).await
        }
        other => Err(unknown_kind(id, other)),
    }
}

fn unknown_kind(id: &OperationId, kind: &str) -> Error {
    Error::new(ErrorKind::Stuck, format!("cannot go on with operation {id}: this pgherd knows no \"{kind}\""))
        .detail("The journal was written by another version. Nothing was changed.")
        .hint(format!("Use the version that \"pgherd operation show {id}\" names."))
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
            Claim::Copy(given) => {
                let (cluster, declared, reason) = &**given;
                takeover::take_over(context, id, cluster, declared.as_ref(), reason.as_deref()).await
            }
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
