//! `pgherd pooler`.

use std::time::{Duration, Instant};

use super::apply::{Drive, allowed, confirm};
use super::operation::Claim;
use super::{App, Failure, Outcome};
use crate::engine::event::EventSink;
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::engine::operation::Way;
use crate::error::{Error, ErrorKind};
use crate::host::programs::PgBouncerVersion;
use crate::ops::apply::{self, Wishes};
use crate::ops::hold::{self, Wish};
use crate::ops::observe::{self, Depth, Doors};
use crate::ops::plan::ClusterPlan;
use crate::ops::pooler::{self, Place, status};
use crate::ops::roles::{self, Lead};
use crate::topology::budget::{self, Known};
use crate::topology::model::Cluster;
use crate::ui;
use crate::ui::exit::Exit;
use crate::ui::pooler::Rendered;
use crate::units;

/// Look at PgBouncer, write its files, and hold clients back
///
/// One pooler a host and cluster, of one process or several. Its files follow from the topology, from where the nodes are now and from the
/// version of PgBouncer that is installed; `pgherd apply` writes them too, as part of everything else.
#[derive(Debug, clap::Args)]
pub struct PoolerArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Render(RenderArgs),
    Status(StatusArgs),
    Apply(ApplyArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
}

/// Print the files of PgBouncer as they should be
///
/// Complete: pgbouncer.ini, the access lines, and the userlist, in which every verifier is left out. Each key is one that the installed
/// version knows. With --version nothing is looked at: the preferred primary leads and every standby streams.
///
/// Changes nothing.
///
/// Exit codes: 0 printed, 2 there is no such host, 4 the topology asks for what that version does not have, 10 no primary answers.
///
/// Example: pgherd pooler render --cluster inventory --version 1.25
#[derive(Debug, clap::Args)]
struct RenderArgs {
    /// Only the pooler on this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// For this version, whatever is installed, without looking at anything
    #[arg(long, value_name = "VERSION", value_parser = version)]
    version: Option<PgBouncerVersion>,
    /// Print the arithmetic of the connections in place of the files
    #[arg(long)]
    budget: bool,
}

/// Show what each pooler does: pools, waiting clients, whether each alias leads where it says, and what differs from the file
///
/// An alias is true if it leads to the live primary, or to standbys that stream and are within their max-lag, and no connection to
/// another server is left. A file that was edited by hand is shown as a diff. With -v also the arithmetic of the connections.
///
/// Changes nothing.
///
/// Exit codes: 0 looked, also when something is wrong: read the problems; 3 something did not answer.
///
/// Example: pgherd pooler status --cluster inventory
#[derive(Debug, clap::Args)]
struct StatusArgs {}

/// Make the poolers what the file declares, and nothing else
///
/// The poolers' part of `pgherd apply`: planned, shown, confirmed and run under the same journal and lock. New files are tried out by a
/// PgBouncer of their own before they replace anything, and what the reload did is read back.
///
/// Never touches a node, a role or a database. Refused while nodes are to come or go: then `pgherd apply` is what is wanted.
///
/// Exit codes: as of `pgherd apply`.
///
/// Example: pgherd pooler apply --cluster inventory --yes
#[derive(Debug, clap::Args)]
struct ApplyArgs {
    /// Run the plan although it restarts a pooler, which disconnects its clients
    #[arg(long)]
    allow_restart: bool,
    /// Wait so long for another operation of the same cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Hold the clients of a cluster back: all poolers, or none
///
/// Clients stay connected and wait before their next transaction; those that log in meanwhile wait too. Transactions that run have --grace
/// to end; if one does not, everybody goes on and nothing was held back. Before anything is paused a process beside each pooler stands that
/// lets the clients go on when --for is over, whatever becomes of pgherd, of this machine or of the way between.
///
/// Refused where a client keeps its server connection for its whole session, where a pooler does not answer, and for longer than
/// query_wait_timeout.
///
/// Exit codes: 0 held back, 1 failed and everybody goes on, 4 refused, 5 another operation holds the cluster, 10 a pooler does not answer.
///
/// Example: pgherd pooler pause --cluster inventory --for 30s
#[derive(Debug, clap::Args)]
struct PauseArgs {
    /// Let them go on by themselves after this time
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = units::parse_duration)]
    time: Duration,
    /// How long transactions that run may take to end
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    grace: Duration,
    /// Wait so long for another operation of the same cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Let the clients of a cluster go on
///
/// Also those of a pause that was interrupted, and of one that somebody gave on the console. On poolers that hold nobody back it changes
/// nothing.
///
/// Exit codes: 0 they go on, 1 failed, 5 another operation holds the cluster: end that one.
///
/// Example: pgherd pooler resume --cluster inventory
#[derive(Debug, clap::Args)]
struct ResumeArgs {
    /// Wait so long for another operation of the same cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

/// Reads `1.25` or `1.25.1`.
fn version(text: &str) -> Result<PgBouncerVersion, String> {
    let whole = if text.split('.').count() == 2 { format!("{text}.0") } else { text.to_owned() };
    PgBouncerVersion::from_version_line(&format!("PgBouncer {whole}"))
        .ok_or_else(|| format!("{text:?} is no version of PgBouncer, such as 1.25"))
}

pub fn run(args: &PoolerArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::Render(args) => super::block_on(render(args, app))?,
        Verb::Status(_) => super::block_on(show(app))?,
        Verb::Apply(args) => super::block_on(execute(args, app))?,
        Verb::Pause(args) => {
            let grace = args.grace.min(args.time);
            let wait = args.wait_lock.unwrap_or_default();
            super::block_on(hold(app, Wish::Pause { time: args.time, grace }, wait))?
        }
        Verb::Resume(args) => super::block_on(hold(app, Wish::Resume, args.wait_lock.unwrap_or_default()))?,
    }
}

/// Returns the clusters that were asked for and have poolers.
fn pooled<'h>(app: &App, herd: &'h crate::topology::model::Herd) -> Result<Vec<&'h Cluster>, Error> {
    let mut clusters = app.clusters(herd)?;
    clusters.retain(|cluster| cluster.poolers.is_some());
    if clusters.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            match &app.globals.cluster {
                Some(name) => format!("cluster {name} declares no poolers"),
                None => format!("no cluster of {} declares poolers", herd.name),
            },
        )
        .hint("Declare \"poolers\" in the topology."));
    }
    Ok(clusters)
}

async fn render(args: &RenderArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let mut clusters = pooled(app, &herd)?;
    if let Some(host) = &args.host {
        clusters.retain(|cluster| cluster.pooler_hosts().any(|name| name == host));
        if clusters.is_empty() {
            return Err(Error::usage(format!("no pooler is declared on a host \"{host}\"")).into());
        }
    }
    if args.budget {
        let budgets: Vec<_> =
            clusters.iter().map(|cluster| budget::budget(cluster, &Known::default())).collect();
        ui::pooler::print_budgets(&mut app.ui, &herd.name, &budgets);
        return Ok(Exit::Done);
    }
    let mut rendered = Vec::new();
    for cluster in clusters {
        let hosts = cluster.pooler_hosts().filter(|name| args.host.as_ref().is_none_or(|host| host == *name));
        for host in hosts {
            match args.version {
                Some(version) => rendered.extend(offline(app, cluster, host, version)?),
                None => {
                    let live = live(app, cluster, host);
                    rendered.extend(app.within(live).await??);
                }
            }
        }
    }
    ui::pooler::print_rendered(&mut app.ui, &herd.name, &rendered);
    Ok(Exit::Done)
}

fn offline(
    app: &App,
    cluster: &Cluster,
    host: &str,
    version: PgBouncerVersion,
) -> Result<Vec<Rendered>, Error> {
    let places = app.context()?.places;
    (1..=pooler::processes(cluster))
        .map(|process| {
            let (paths, files) = pooler::render_offline(cluster, host, process, version, &places)?;
            Ok(Rendered::new(cluster, host, process, &version.to_string(), &paths, &files))
        })
        .collect()
}

async fn live(app: &App, cluster: &Cluster, host: &str) -> Result<Vec<Rendered>, Error> {
    let context = app.context()?;
    let doors = Doors::look(cluster, context.places, &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    let Lead::Primary(primary) = roles::lead(&observed) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("cannot say what the poolers of {} should be: no primary answers", cluster.name),
        )
        .hint(
            "See what each node says: pgherd status. Without looking: pgherd pooler render --version 1.25",
        ));
    };
    let primary = cluster.node(&primary).expect("roles::lead names nodes of the cluster");
    let mut rendered = Vec::new();
    for place in Place::all(&doors, cluster, host).await? {
        let seen = place.door().observe().await?;
        let files = place.files(primary, &observed, &seen).await?;
        let (_, version) = crate::host::programs::find_pgbouncer(doors.host(host)).await?;
        rendered.push(Rendered::new(
            cluster,
            host,
            place.process,
            &version.to_string(),
            &place.paths,
            &files,
        ));
    }
    Ok(rendered)
}

async fn show(app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let clusters = pooled(app, &herd)?;
    let looks = clusters.iter().map(async |cluster| {
        let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
        Ok::<_, Error>(status::status(&doors, cluster).await)
    });
    let found: Result<Vec<_>, Error> =
        app.within(futures_util::future::join_all(looks)).await?.into_iter().collect();
    let found = found?;
    ui::pooler::print_status(&mut app.ui, &herd.name, &found);
    let partial = found.iter().any(status::PoolersStatus::is_partial);
    Ok(if partial { Exit::Partial } else { Exit::Done })
}

async fn execute(args: &ApplyArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let begun = Instant::now();
    let wait = args.wait_lock.unwrap_or_default();
    let clusters = pooled(app, &herd)?;
    for cluster in &clusters {
        lock::until_free(&context.store, &cluster.name, wait).await?;
    }
    let wishes = Wishes { only_poolers: true, ..Wishes::default() };
    let looks = clusters.iter().map(|cluster| apply::prepare_wishing(&context, &herd, cluster, &wishes));
    let (mut plans, mut obstacles) = (Vec::new(), Vec::new());
    for planned in app.within(futures_util::future::join_all(looks)).await? {
        match planned {
            Ok(plan) => plans.push(plan),
            Err(errors) => obstacles.extend(errors),
        }
    }
    if !obstacles.is_empty() {
        return Err(Failure::Errors(obstacles));
    }
    ui::plan::print_before_apply(&mut app.ui, &herd.name, &plans);
    if plans.iter().all(ClusterPlan::is_empty) {
        return Ok(Exit::Done);
    }
    allowed("pgherd pooler apply", args.allow_restart, &plans)?;
    confirm(app, &herd)?;
    let interrupt = app.interrupt()?;
    let drive = Drive { context: &context, herd: &herd, wait, interrupt: &interrupt };
    drive.all(app, &plans).await?;
    app.ui.note(format!("the poolers are as declared after {}", units::human_duration(begun.elapsed())));
    app.ui.note("next     pgherd pooler status");
    Ok(Exit::Done)
}

/// Holds back or lets go, cluster by cluster.
async fn hold(app: &mut App, wish: Wish, wait: Duration) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    if let Wish::Pause { time, .. } = wish
        && time < Duration::from_secs(1)
    {
        return Err(Error::usage("cannot hold clients back for less than a second").into());
    }
    for cluster in pooled(app, &herd)? {
        lock::until_free(&context.store, &cluster.name, wait).await?;
        if let (Wish::Resume, Some(id)) = (wish, hold::left(&context, cluster)?) {
            // A pause that was killed on its way: taking it back is what is asked for.
            super::operation::go_on(app, id.as_str(), &Claim::Wait(wait), Way::Back).await?;
            continue;
        }
        let topology = apply::topology_file(&herd.file)?;
        let run = async |events: EventSink, interrupt: Interrupt| {
            hold::run(&context, cluster, topology, (wish, wait), &events, &interrupt).await
        };
        app.drive(run).await?;
        match wish {
            Wish::Pause { time, .. } => {
                let time = units::human_duration(time);
                app.ui.note(format!(
                    "the clients of {} wait; they go on by themselves {time} after the start",
                    cluster.name
                ));
                app.ui.note(format!("next     pgherd --cluster {} pooler resume", cluster.name));
            }
            Wish::Resume => app.ui.note(format!("the clients of {} go on", cluster.name)),
        }
    }
    Ok(Exit::Done)
}
