//! One file a verb: its arguments, whose doc comments are the manual, and what it does with them.
//!
//! A verb turns its arguments into a call and the answer into output; what the call does is below this floor.

pub mod apply;
pub mod backup;
mod backup_care;
pub mod completions;
pub mod config;
pub mod destroy;
pub mod drill;
pub mod dump;
pub mod failback;
pub mod failover;
pub mod fence;
pub mod guard;
pub mod health;
pub mod in_place;
pub mod init;
pub mod man;
pub mod node;
pub mod operation;
pub mod partition;
pub mod plan;
pub mod pooler;
pub mod rejoin;
pub mod repo;
pub mod restore;
pub mod run;
pub mod schedule;
pub mod schema;
pub mod status;
pub mod switchover;
pub mod unfence;
pub mod validate;
pub mod wal;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::engine::event::{self, EventSink};
use crate::engine::interrupt::Interrupt;
use crate::engine::lock;
use crate::engine::record::OperationId;
use crate::engine::store::Store;
use crate::error::{Error, ErrorKind};
use crate::gate;
use crate::ops::binary::Build;
use crate::ops::context::Context;
use crate::topology::model::{Cluster, Herd};
use crate::topology::places::Places;
use crate::topology::problem::Problems;
use crate::ui::exit::Exit;
use crate::ui::{Asked, ColorChoice, Format, Monitoring, Ui, Verbosity, error};
use crate::{topology, ui, units};

/// How often it is asked whether another station is still at work.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// The topology file; else $PGHERD_TOPOLOGY, ./pgherd.yml or /etc/pgherd/pgherd.yml
    #[arg(short, long, global = true, value_name = "FILE", env = "PGHERD_TOPOLOGY", hide_env_values = true)]
    pub file: Option<PathBuf>,
    /// Only this cluster
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The form of the output
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human", value_parser = format_parser())]
    pub format: Asked,
    /// Print nothing on success
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Give up after this time, such as 30s or 5min; an operation that runs is then undone or left to be resumed
    #[arg(long, global = true, value_name = "TIME", value_parser = units::parse_duration)]
    pub timeout: Option<Duration>,
    /// Answer every question with yes
    #[arg(long, global = true)]
    pub yes: bool,
    /// When to use colours; NO_COLOR and FORCE_COLOR are respected
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", value_parser = color_parser())]
    pub color: ColorChoice,
}

fn format_parser() -> impl clap::builder::TypedValueParser<Value = Asked> {
    use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _};
    let usual = ["human", "json", "markdown"].map(PossibleValue::new);
    let monitoring = ["nagios", "prometheus", "junit"].map(|word| PossibleValue::new(word).hide(true));
    PossibleValuesParser::new(usual.into_iter().chain(monitoring)).map(|word| match word.as_str() {
        "json" => Asked::Usual(Format::Json),
        "markdown" => Asked::Usual(Format::Markdown),
        "nagios" => Asked::Monitoring(Monitoring::Nagios),
        "prometheus" => Asked::Monitoring(Monitoring::Prometheus),
        "junit" => Asked::Monitoring(Monitoring::Junit),
        _ => Asked::Usual(Format::Human),
    })
}

fn color_parser() -> impl clap::builder::TypedValueParser<Value = ColorChoice> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(["auto", "always", "never"]).map(|word| match word.as_str() {
        "always" => ColorChoice::Always,
        "never" => ColorChoice::Never,
        _ => ColorChoice::Auto,
    })
}

/// Why a verb ended without success.
#[derive(Debug)]
pub enum Failure {
    Error(Error),
    /// Several at once.
    Errors(Vec<Error>),
    /// The topology is invalid.
    Topology(Problems),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Topology(problems)
    }
}

impl Failure {
    /// Prints it and returns how the run ends.
    pub fn print(&self, ui: &Ui) -> Exit {
        match self {
            Self::Error(error) => error::print_error(ui, error),
            Self::Errors(errors) => error::print_errors(ui, errors),
            Self::Topology(problems) => error::print_problems(ui, problems),
        }
    }
}

/// How a verb ended.
pub type Outcome = Result<Exit, Failure>;

/// What every verb is given.
#[derive(Debug)]
pub struct App {
    pub globals: Globals,
    pub ui: Ui,
}

impl App {
    pub fn new(globals: Globals) -> Self {
        let verbosity = match (globals.quiet, globals.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        };
        let ui = Ui::new(globals.format.usual(), verbosity, globals.color);
        Self { globals, ui }
    }

    /// Returns the one cluster that a verb is about: the file has no other, or one was named.
    ///
    /// # Errors
    /// When there are several, or none of that name.
    pub fn one_cluster<'h>(&self, herd: &'h Herd, verb: &str) -> Result<&'h Cluster, Error> {
        match self.clusters(herd)?.as_slice() {
            [one] => Ok(one),
            several => {
                let names: Vec<&str> = several.iter().map(|cluster| cluster.name.as_str()).collect();
                Err(Error::usage(format!("{verb} is of one cluster"))
                    .detail(format!("There are {}. Nothing was changed.", names.join(", ")))
                    .hint(format!("Name one: pgherd {verb} --cluster NAME")))
            }
        }
    }

    /// Has the operator type a name before a verb changes who is primary; `--yes` has said it beforehand.
    ///
    /// # Errors
    /// When something else is typed, or nobody can be asked.
    pub fn confirm_by_name(&self, verb: &str, question: &str, name: &str) -> Result<(), Error> {
        if self.globals.yes {
            return Ok(());
        }
        if !self.ui.is_interactive() {
            return Err(Error::usage(format!(
                "{verb} needs the node's name, and there is no terminal to ask"
            ))
            .detail("Nothing was changed.")
            .hint("Say yes beforehand with --yes, or see what would be done with --dry-run."));
        }
        let answer = self.ui.ask(&format!("{question} Type the node's name: "))?;
        if answer == name {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Refused, format!("no {verb}: the answer was {answer:?}, not {name:?}"))
            .detail("Nothing was changed."))
    }

    /// Has an operation driven while its events are drawn; returns its id if it ended as it should.
    ///
    /// # Errors
    /// Those of the drive, and how it ended otherwise.
    pub async fn drive(
        &mut self,
        work: impl AsyncFnOnce(
            EventSink,
            Interrupt,
        ) -> Result<(OperationId, crate::engine::operation::Outcome), Error>,
    ) -> Result<OperationId, Error> {
        let interrupt = self.interrupt()?;
        self.drawing(async |events| work(events, interrupt).await).await
    }

    /// The same, for work that several share an interrupt of.
    pub async fn drawing(
        &mut self,
        work: impl AsyncFnOnce(EventSink) -> Result<(OperationId, crate::engine::operation::Outcome), Error>,
    ) -> Result<OperationId, Error> {
        // The drawing ends with the sink, which ends with the work.
        let (events, stream) = event::channel();
        let drawn = ui::operation::draw(&mut self.ui, stream);
        let (ended, ()) = tokio::join!(work(events), drawn);
        let (id, outcome) = ended?;
        outcome.into_result(&id)?;
        Ok(id)
    }

    /// Finds the topology file: the one that was named, else the first of the usual places that exists.
    ///
    /// # Errors
    /// When there is none.
    pub fn topology_file(&self) -> Result<PathBuf, Error> {
        const USUAL: [&str; 2] = ["pgherd.yml", "/etc/pgherd/pgherd.yml"];
        // A variable that is set to nothing is one that is not set.
        match self.globals.file.as_ref().filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => Ok(file.clone()),
            None => USUAL.iter().map(PathBuf::from).find(|file| file.exists()).ok_or_else(|| {
                Error::usage("there is no topology file")
                    .detail(format!("Looked for {}; PGHERD_TOPOLOGY is not set.", USUAL.join(" and ")))
                    .hint("Name it with --file, or write a first one with \"pgherd init NAME --local\".")
            }),
        }
    }

    /// Returns what every operation of this run shares.
    ///
    /// # Errors
    /// When nothing says where an ordinary user's files belong.
    pub fn context(&self) -> Result<Context, Error> {
        let root = rustix::process::geteuid().is_root();
        let places = Places::decide(root, |name| std::env::var(name).ok())?;
        let store = Store::new(places.state());
        Ok(Context { places, gate: gate::open(), store, build: Build::own(), role: None })
    }

    /// Reads and checks the topology.
    ///
    /// # Errors
    /// Every problem of the file, or that there is none.
    pub fn herd(&self) -> Result<Herd, Failure> {
        Ok(topology::load(&self.topology_file()?)?)
    }

    /// Waits for a look at the herd, no longer than `--timeout`.
    ///
    /// # Errors
    /// When the time is up; a look changes nothing.
    pub async fn within<F: Future>(&self, look: F) -> Result<F::Output, Error> {
        let Some(limit) = self.globals.timeout else { return Ok(look.await) };
        tokio::time::timeout(limit, look).await.map_err(|_| {
            Error::new(ErrorKind::NotFound, format!("no answer within {}", units::human_duration(limit)))
                .detail("Nothing was changed.")
                .hint("Give it more time with --timeout, or see which node is slow: pgherd status")
        })
    }

    /// Has a change of a cluster planned; not before no other operation of it runs, for which it waits up to `wait`.
    ///
    /// What keeps it from being planned may be the middle of what somebody changes from another station: then that is told.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] with the holder; every reason why it cannot be planned.
    pub async fn planned<P>(
        &self,
        context: &Context,
        cluster: &Cluster,
        wait: Duration,
        plan: impl AsyncFn() -> Result<P, Vec<Error>>,
    ) -> Result<P, Failure> {
        let deadline = Instant::now() + wait;
        lock::until_free(&context.store, &cluster.name, wait).await?;
        loop {
            let errors = match self.within(plan()).await? {
                Ok(plan) => return Ok(plan),
                Err(errors) => errors,
            };
            match context.locker(cluster).refuse_held_elsewhere().await {
                Ok(()) => return Err(Failure::Errors(errors)),
                Err(held) if Instant::now() >= deadline => return Err(held.into()),
                Err(_) => tokio::time::sleep(BETWEEN_LOOKS).await,
            }
        }
    }

    /// Returns what interrupts an operation: SIGINT, SIGTERM, and the end of `--timeout`.
    ///
    /// # Errors
    /// When the operating system gives no signal handler.
    pub fn interrupt(&self) -> Result<Interrupt, Error> {
        let interrupt = Interrupt::on_signals()?;
        if let Some(limit) = self.globals.timeout {
            let late = interrupt.clone();
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                late.ask();
            });
        }
        Ok(interrupt)
    }

    /// Returns the clusters that were asked for: the one of `--cluster`, else all.
    ///
    /// # Errors
    /// When there is no cluster of that name.
    pub fn clusters<'h>(&self, herd: &'h Herd) -> Result<Vec<&'h Cluster>, Error> {
        match &self.globals.cluster {
            None => Ok(herd.clusters.iter().collect()),
            Some(name) => Ok(vec![find_cluster(herd, name)?]),
        }
    }

    /// Loads the topology; with the name of a repository as if that one were each cluster's only one. Clusters that do not use it have none then.
    ///
    /// # Errors
    /// As [`App::herd`]; when none of the clusters that were asked for uses it.
    pub fn herd_with_repository(&mut self, repository: Option<&str>) -> Result<Herd, Failure> {
        let mut herd = self.herd()?;
        let Some(name) = repository else { return Ok(herd) };
        let known: std::collections::BTreeSet<String> = self
            .clusters(&herd)?
            .iter()
            .filter_map(|cluster| cluster.backups.as_ref())
            .flat_map(|backups| backups.repositories().map(|repository| repository.name.clone()))
            .collect();
        if !known.contains(name) {
            let known: Vec<String> = known.into_iter().collect();
            let error = Error::new(
                ErrorKind::NotFound,
                format!("no cluster of {} uses a repository {name}", herd.name),
            );
            return Err(match known.as_slice() {
                [] => error.hint("Declare \"backups\" for a cluster in the topology.").into(),
                some => error.hint(format!("There are: {}.", some.join(", "))).into(),
            });
        }
        for cluster in &mut herd.clusters {
            match cluster.with_repository(name) {
                Some(seen) => *cluster = seen,
                None => cluster.backups = None,
            }
        }
        Ok(herd)
    }

    /// Returns the clusters that were asked for; without a name those that declare backups, if there are any.
    ///
    /// # Errors
    /// As [`App::clusters`].
    pub fn clusters_with_backups<'h>(&self, herd: &'h Herd) -> Result<Vec<&'h Cluster>, Error> {
        let mut clusters = self.clusters(herd)?;
        if self.globals.cluster.is_none() && clusters.iter().any(|cluster| cluster.backups.is_some()) {
            clusters.retain(|cluster| cluster.backups.is_some());
        }
        Ok(clusters)
    }
}

/// Runs what needs tokio.
///
/// # Errors
/// When the operating system gives no threads.
pub fn block_on<F: Future>(future: F) -> Result<F::Output, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::failed("could not start the asynchronous runtime").source(error))?;
    Ok(runtime.block_on(future))
}

/// Finds a cluster by name.
///
/// # Errors
/// When there is none of that name; names the ones that there are.
pub fn find_cluster<'h>(herd: &'h Herd, name: &str) -> Result<&'h Cluster, Error> {
    herd.cluster(name).ok_or_else(|| {
        let names: Vec<&str> = herd.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        Error::new(ErrorKind::NotFound, format!("there is no cluster \"{name}\" in {}", herd.file.display()))
            .hint(format!("Its clusters are: {}.", names.join(", ")))
    })
}
