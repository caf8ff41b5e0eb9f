//! `pgherd health`.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{App, Failure, Outcome};
use crate::error::{Error, Result};
use crate::net::http;
use crate::ops::context::Context;
use crate::ops::health::{self, Board, Health, Looked, Memory, Status};
use crate::topology;
use crate::topology::checks::Check;
use crate::topology::model::Herd;
use crate::topology::origin;
use crate::ui;
use crate::ui::ended::{Ended, Failed};
use crate::ui::exit::Exit;
use crate::ui::explain::{Declared, InEffect};
use crate::ui::{Asked, Format, Monitoring};
use crate::units;

/// Judge the herd: every check of every cluster
///
/// Looks at all nodes, poolers and repositories side by side and compares what it finds with the thresholds of the topology (key
/// "health"; pgherd's own where nothing is declared). Changes nothing. What cannot be seen is UNKNOWN, with what it takes to see it.
///
/// Besides human and json, --format takes nagios (one line for Nagios, Icinga and their kin), prometheus (metrics, for the textfile
/// collector of node_exporter) and junit (for CI). --output writes a file in place of standard output, as a whole or not at all; it is
/// also written where the run fails, and then says UNKNOWN.
///
/// With --role the servers are asked as that role, over the Unix socket: a member of pg_monitor that pg_hba.conf lets in there, by the
/// password that is declared for it under "roles" or by none (peer, trust); .pgpass is not read. What it may not see is UNKNOWN, with the
/// GRANT that shows it.
///
/// Exit codes: as a plugin of Nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN or bad usage; the worst of all checks counts, and what is not
/// known counts more than a warning.
///
/// Example: pgherd health --format prometheus --output /var/lib/node_exporter/pgherd.prom
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct HealthArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Write to this file in place of standard output, as a whole or not at all
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look twice, so far apart: tells a standby that catches up from one that is stuck
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    sample: Option<Duration>,
    /// Look again and again until interrupted, every 10 s or as often as given; after the first look only changes are printed
    #[arg(long, value_name = "EVERY", value_parser = units::parse_duration, num_args = 0..=1, default_missing_value = "10s")]
    watch: Option<Duration>,
    /// Ask the servers as this role in place of the superuser
    #[arg(long, value_name = "ROLE", env = "PGHERD_ROLE", hide_env_values = true)]
    role: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Explain(ExplainArgs),
    Serve(ServeArgs),
    Rules(RulesArgs),
    Dashboard(DashboardArgs),
}

/// Show what a check asks, what it needs, and from where on it warns
///
/// Prints the statements exactly as they are sent, the thresholds of each cluster and node with the line that they come from, the grant
/// that they take, and what to do when the check fires. Without a name it lists the checks. Connects to nothing.
///
/// Exit codes: 0 shown, 3 no such check, or the topology is not valid.
///
/// Example: pgherd health explain lag
#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// The check
    #[arg(value_name = "CHECK")]
    check: Option<String>,
}

/// Answer scrapes and load balancers over HTTP
///
/// Looks at the herd again and again and answers from the last look, so that nobody waits for a node: /metrics for Prometheus, /health
/// (503 while something is critical), and for load balancers /clusters/NAME/nodes/NODE/read-write (200 only for the live primary) and
/// .../read-only?max-lag=5s (200 only for a standby that streams and is not further behind). What is not known, or was looked at too long
/// ago, is 503; while two nodes are primaries, all are. Runs until SIGTERM or SIGINT. Reads the topology again before each look.
///
/// There is no password and no TLS: whoever reaches the address reads what "pgherd health" says.
///
/// Exit codes: 0 ended by a signal, 3 the topology is not valid or the address cannot be had.
///
/// Example: pgherd health serve --listen 127.0.0.1:9187 --every 5s
#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9187")]
    listen: SocketAddr,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = units::parse_duration)]
    every: Duration,
    /// Ask the servers as this role in place of the superuser
    #[arg(long, value_name = "ROLE", env = "PGHERD_ROLE", hide_env_values = true)]
    role: Option<String>,
}

/// Print alert rules for Prometheus
///
/// They alert on what the checks have judged, so thresholds are set in the topology alone. Reads no topology and connects to nothing.
///
/// Exit codes: 0 printed.
///
/// Example: pgherd health rules > /etc/prometheus/rules/pgherd.yml
#[derive(Debug, clap::Args)]
struct RulesArgs {}

/// Print a dashboard for Grafana
///
/// To be imported; it asks for the Prometheus that has the metrics. Reads no topology and connects to nothing.
///
/// Exit codes: 0 printed.
///
/// Example: pgherd health dashboard > pgherd.json
#[derive(Debug, clap::Args)]
struct DashboardArgs {}

pub fn run(args: &HealthArgs, app: &mut App) -> Outcome {
    match &args.verb {
        None => match args.watch {
            None => judge(args, app),
            Some(every) => super::block_on(watch(args, every, app))?,
        },
        Some(Verb::Explain(args)) => explain(args, app),
        Some(Verb::Serve(args)) => super::block_on(serve(args, app))?,
        Some(Verb::Rules(_)) => {
            app.ui.bytes(ui::templates::RULES.as_bytes());
            Ok(Exit::Done)
        }
        Some(Verb::Dashboard(_)) => {
            app.ui.bytes(ui::templates::DASHBOARD.as_bytes());
            Ok(Exit::Done)
        }
    }
}

/// Returns the exit by which monitoring understands how the run has ended: an error is UNKNOWN.
pub fn exit(ended: Exit) -> Exit {
    match ended {
        Exit::Done | Exit::Warning | Exit::Critical | Exit::Unknown | Exit::Interrupted => ended,
        Exit::Failed
        | Exit::Absent
        | Exit::Usage
        | Exit::Changes
        | Exit::Partial
        | Exit::Refused
        | Exit::Locked
        | Exit::Stuck
        | Exit::Incomplete
        | Exit::NotFound
        | Exit::Bug
        | Exit::AskAgain
        | Exit::StopRecovery => Exit::Unknown,
    }
}

/// Tells whether a command line that could not be parsed was one of `health`: bad usage would be CRITICAL by its number.
pub fn is_asked_for<T: AsRef<OsStr>>(args: &[T]) -> bool {
    let mut words =
        args.iter().skip(1).map(AsRef::as_ref).filter(|word| !word.as_encoded_bytes().starts_with(b"-"));
    words.any(|word| word == "health")
}

/// Judges, and tells how it ended also where it failed: whoever reads the file or the line must not believe the last one for ever.
fn judge(args: &HealthArgs, app: &mut App) -> Outcome {
    let judged = super::block_on(look(args, app)).map_err(Failure::from).and_then(|judged| judged);
    let asked = app.globals.format;
    match &judged {
        Ok(health) => {
            for remark in &health.remarks {
                app.ui.note(format!("NOTICE: {remark}"));
            }
            tell(args, app, asked, Ended::Judged(health))?;
        }
        Err(failure) => {
            // A plugin's line is what its scheduler shows; all others have the error on standard error.
            if args.output.is_some() || asked == Asked::Monitoring(Monitoring::Nagios) {
                let failed = failed(failure, app);
                tell(args, app, asked, Ended::Failed(&failed))?;
            }
        }
    }
    judged.map(|health| Exit::of_health(health.status))
}

/// Judges the herd, as a job does.
pub(super) async fn scheduled(app: &mut App) -> Outcome {
    let args = HealthArgs { verb: None, output: None, sample: None, watch: None, role: None };
    let health = look(&args, app).await?;
    for remark in &health.remarks {
        app.ui.note(format!("NOTICE: {remark}"));
    }
    ui::health::print(&mut app.ui, app.globals.format, Ended::Judged(&health));
    Ok(Exit::of_health(health.status))
}

async fn look(args: &HealthArgs, app: &App) -> Result<Health, Failure> {
    let herd = app.herd()?;
    let context = Context { role: args.role.clone(), ..app.context()? };
    let clusters = app.clusters(&herd)?;
    Ok(app.within(health::examine(&context, &herd, &clusters, args.sample)).await?.health)
}

/// Looks until interrupted. Writes the whole to a file each time, or to the screen what has changed.
async fn watch(args: &HealthArgs, every: Duration, app: &mut App) -> Outcome {
    let asked = app.globals.format;
    if args.output.is_none() && asked != Asked::Usual(Format::Human) {
        return Err(Error::usage("--watch prints changes for people, or writes a file each time")
            .hint("Add --output FILE, or leave --format out.")
            .into());
    }
    let mut herd = app.herd()?;
    let context = Context { role: args.role.clone(), ..app.context()? };
    let interrupt = app.interrupt()?;
    let mut memory = Memory::default();
    let mut before: Option<Health> = None;
    loop {
        let clusters = app.clusters(&herd)?;
        let looked = tokio::select! {
            looked = health::examine_again(&context, &herd, &clusters, args.sample, &mut memory) => looked,
            () = interrupt.asked(1) => return Ok(Exit::Done),
        };
        match (&args.output, &before) {
            (Some(_), _) | (None, None) => tell(args, app, asked, Ended::Judged(&looked.health))?,
            (None, Some(before)) => ui::health::print_changes(&mut app.ui, before, &looked.health),
        }
        before = Some(looked.health);
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = interrupt.asked(1) => return Ok(Exit::Done),
        }
        match app.herd() {
            Ok(read) => herd = read,
            Err(failure) => {
                failure.print(&app.ui);
            }
        }
    }
}

async fn serve(args: &ServeArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    app.clusters(&herd)?;
    let interrupt = app.interrupt()?;
    let listener = http::listen(args.listen).await?;
    let address = listener.local_addr().map_or(args.listen, |address| address);
    let board: Arc<Mutex<Option<Board>>> = Arc::default();
    let shown = Arc::clone(&board);
    let answering = tokio::spawn(http::serve(listener, move |asked| {
        let board = shown.lock().unwrap_or_else(PoisonError::into_inner);
        health::answer(board.as_ref(), Instant::now(), asked)
    }));
    app.ui.note(format!("listening on http://{address}"));
    let ended = tokio::select! {
        ended = look_on(args, app, herd, &board) => ended,
        () = interrupt.asked(1) => Ok(Exit::Done),
    };
    answering.abort();
    ended
}

/// How long a look of `health serve` may take before it is given up.
const LONGEST: Duration = Duration::from_secs(60);

/// Looks for ever, and shows each look when it is over.
async fn look_on(args: &ServeArgs, app: &App, mut herd: Herd, board: &Mutex<Option<Board>>) -> Outcome {
    let context = Context { role: args.role.clone(), ..app.context()? };
    let file = app.topology_file()?;
    let mut memory = Memory::default();
    let mut remark = None;
    loop {
        let begun = tokio::time::Instant::now();
        let clusters = app.clusters(&herd)?;
        let look = health::examine_again(&context, &herd, &clusters, None, &mut memory);
        // Every door has its own deadlines; one that has none must not be the last look for ever. Until then the board grows old.
        if let Ok(mut looked) = tokio::time::timeout(LONGEST, look).await {
            looked.health.remarks.extend(remark.take());
            let board_now = shown(looked, args.every);
            *board.lock().unwrap_or_else(PoisonError::into_inner) = Some(board_now);
        }
        tokio::time::sleep_until(begun + args.every).await;
        match topology::load(&file) {
            Ok(read) if app.clusters(&read).is_ok() => herd = read,
            Ok(_) => {}
            Err(problems) => {
                remark =
                    Some(format!("The topology is not valid, so what it said before counts: {problems}"));
            }
        }
    }
}

fn shown(looked: Looked, every: Duration) -> Board {
    let ended = Ended::Judged(&looked.health);
    Board {
        metrics: ui::health::text(Asked::Monitoring(Monitoring::Prometheus), ended),
        judgement: ui::health::text(Asked::Usual(Format::Json), ended),
        critical: looked.health.status == Status::Critical,
        at: Instant::now(),
        // A look that waits for silent nodes takes a few seconds itself.
        stale: every * 2 + Duration::from_secs(10),
        routes: looked.routes,
    }
}

fn tell(args: &HealthArgs, app: &mut App, asked: Asked, ended: Ended<'_>) -> Result<()> {
    match &args.output {
        Some(path) => ui::health::write(path, &app.ui, asked, ended),
        None => {
            ui::health::print(&mut app.ui, asked, ended);
            Ok(())
        }
    }
}

fn failed(failure: &Failure, app: &App) -> Failed {
    let nothing = || Failed::from(&Error::failed("the run failed"));
    let failed = match failure {
        Failure::Error(error) => error.into(),
        Failure::Errors(errors) => errors.first().map_or_else(nothing, Failed::from),
        Failure::Topology(problems) => problems.iter().next().map_or_else(nothing, |problem| {
            let place = match problem.at {
                Some(at) => format!("{}:{at}", problem.file.display()),
                None => problem.file.display().to_string(),
            };
            Failed {
                what: format!("{place}: {}", problem.what),
                detail: problem.detail.clone(),
                hint: problem.hint.clone(),
                ..nothing()
            }
        }),
    };
    let Ok(herd) = app.herd() else { return failed };
    let last_success = app.context().ok().and_then(|context| health::last_success(&context, &herd));
    Failed { herd: Some(herd.name), last_success, ..failed }
}

fn explain(args: &ExplainArgs, app: &mut App) -> Outcome {
    // What a check asks is worth knowing before there is a topology.
    let file = app.topology_file().ok();
    let herd = if file.is_some() { Some(app.herd()?) } else { None };
    let clusters = herd.as_ref().map(|herd| app.clusters(herd)).transpose()?.unwrap_or_default();
    let Some(name) = &args.check else {
        ui::explain::print_list(
            &mut app.ui,
            &Check::ALL.map(|check| (check, health::explained(check))),
            &clusters,
        );
        return Ok(Exit::Done);
    };
    if let Some(check) = Check::named(name) {
        let mut in_effect = Vec::new();
        for cluster in clusters {
            let file = file.as_deref().expect("clusters come from a file");
            let values = origin::explain(file, &cluster.name)?.1.unwrap_or_default();
            in_effect.extend(InEffect::list(file, cluster, check, &values));
        }
        ui::explain::print(&mut app.ui, check, &health::explained(check), &in_effect);
        return Ok(Exit::Done);
    }
    let declared: Vec<Declared<'_>> = clusters
        .iter()
        .flat_map(|cluster| cluster.checks.iter().map(|check| Declared { cluster: &cluster.name, check }))
        .filter(|declared| declared.check.name == *name)
        .collect();
    if declared.is_empty() {
        return Err(Error::usage(format!("there is no check \"{name}\""))
            .hint("\"pgherd health explain\" lists the checks.")
            .into());
    }
    ui::explain::print_declared(&mut app.ui, &declared);
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_goes_wrong_is_unknown_and_never_critical() {
        for ended in Exit::ALL {
            let code = exit(ended).code();
            let told = matches!(ended, Exit::Done | Exit::Warning | Exit::Critical | Exit::Interrupted);
            assert_eq!(code, if told { ended.code() } else { 3 }, "{ended:?}");
        }
        assert!(is_asked_for(&["pgherd", "--cluster", "a", "health", "--formt"]));
        assert!(!is_asked_for(&["pgherd", "status", "--formt"]));
    }
}
