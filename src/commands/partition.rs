//! `pgherd partition`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{App, Failure, Outcome};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::partition::{self, Adopt, Applied, Destination, DrainWish, Options, RestoreWish};
use crate::topology::model::{Cluster, Herd};
use crate::topology::partitions::TableName;
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Make partitions ahead of time, and let old ones go
///
/// Which tables, by which column, how far ahead and how long they are kept is declared with `partitions` in the topology. Nobody who reads or writes
/// such a table waits for pgherd longer than --lock-timeout.
#[derive(Debug, clap::Args)]
pub struct PartitionArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    List(ListArgs),
    Plan(PlanArgs),
    Apply(ApplyArgs),
    Drain(DrainArgs),
    Restore(RestoreArgs),
}

/// List the partitioned tables: partitions, bounds, sizes, how far ahead they reach
///
/// Also the rows of a default partition, detaches that were begun and not ended, and tables that were detached. With a table every partition of it;
/// with --exported what the repository holds of partitions that were dropped. Changes nothing.
///
/// Exit codes: 0 listed, 3 a table cannot be looked at, 10 no primary, no such table or no repository.
///
/// Example: pgherd partition list orders.order_events
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// The tables, with their schemas; all that are declared if none is named
    #[arg(value_name = "TABLE")]
    tables: Vec<TableName>,
    /// List what the repository holds of dropped partitions
    #[arg(long)]
    exported: bool,
    /// As if it were then
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
}

/// Show what `partition apply` would do: each statement with the locks that it takes
///
/// Changes nothing. With --at it says what would be done at another time, such as after the next month has begun.
///
/// Exit codes: 0 shown, 3 a table cannot be maintained, 10 no primary or no such table.
///
/// Example: pgherd partition plan --at "2027-01-01 00:05 UTC"
#[derive(Debug, clap::Args)]
struct PlanArgs {
    /// The tables, with their schemas; all that are declared if none is named
    #[arg(value_name = "TABLE")]
    tables: Vec<TableName>,
    /// As if it were then
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

/// Make the partitions that are missing, and detach, export and drop those that are no longer kept
///
/// First the missing ones of all tables: each is made beside its table and then attached, which lets others read and write meanwhile. Then, if all that
/// are wanted are there, the old ones of each table: detached (concurrently where there is no default partition), exported to the repository and read
/// back from there, dropped, as the topology declares. Only what pgherd has detached is dropped.
///
/// A lock is waited for no longer than --lock-timeout, all locks of a transaction together; who is in the way is told. One table's failure stops no
/// other. Killed at any moment, the next run goes on. A second run finds nothing to do.
///
/// Exit codes: 0 done or nothing to do, 3 some of the tables failed, 1 all of them did, 4 refused, 5 somebody else does it now, 10 no primary or no
/// such table, 130 interrupted. Whatever cut it off, a role change too, the next run ends it.
///
/// Example: pgherd partition apply --lock-timeout 500ms
#[derive(Debug, clap::Args)]
struct ApplyArgs {
    /// The tables, with their schemas; all that are declared if none is named
    #[arg(value_name = "TABLE")]
    tables: Vec<TableName>,
    /// As if it were then: a moment that is over, so that less is done than now
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Debug, clap::Args)]
struct Manner {
    /// Take tables over from pg_partman, with the partitions that they have
    #[arg(long)]
    adopt: bool,
    /// No longer than this is a lock waited for
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_lock_timeout)]
    lock_timeout: Duration,
    /// How often it is tried while others hold a lock
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
}

/// Move rows out of a default partition, into partitions of their own
///
/// One period at a time, each in one transaction: its rows are moved and its partition is attached, and no reader misses a row. Meanwhile whoever reads or
/// writes the default partition waits, so that a period with more rows than --rows is left. Asks before it moves anything.
///
/// Exit codes: 0 moved or nothing to move, 1 failed (the period that was being moved is as it was), 2 there is nobody to ask and no --yes, 3 some rows were left, 4 refused, 5 somebody else does it now, 10 no
/// primary or no such table, 130 interrupted or not agreed.
///
/// Example: pgherd partition drain orders.order_events --range 2026-12
#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// The table, with its schema
    #[arg(value_name = "TABLE")]
    table: TableName,
    /// Only this period, as `partition list` calls it: 2026-12, 2026-w49, 2026-q4; may be given more than once
    #[arg(long = "range", value_name = "PERIOD")]
    periods: Vec<String>,
    /// Move no period that has more rows
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    rows: u64,
    /// Only show what would be moved
    #[arg(long)]
    preview: bool,
    #[command(flatten)]
    manner: Manner,
}

/// Bring a partition back that was exported and dropped, row for row
///
/// The rows are read from the repository into a new table, counted and held against their checksum; then it is attached in its old place, where
/// `partition apply` leaves it alone for --keep-for. With --beside it stays a table of its own.
///
/// Exit codes: 0 brought back, 1 failed, 4 its name or its range is taken or the columns do not fit, 5 somebody else maintains the table now, 10 there is no
/// such export, 130 interrupted.
///
/// Example: pgherd partition restore orders.order_events order_events_2019_11
#[derive(Debug, clap::Args)]
struct RestoreArgs {
    /// The table, with its schema
    #[arg(value_name = "TABLE")]
    table: TableName,
    /// The partition, by the name that it had
    #[arg(value_name = "PARTITION")]
    partition: String,
    /// The export that was made at this time, if there are several
    #[arg(long, value_name = "TIME")]
    exported_at: Option<String>,
    /// Leave it a table of its own
    #[arg(long)]
    beside: bool,
    /// How long retention leaves it alone
    #[arg(long, value_name = "TIME", default_value = "30 days", value_parser = units::parse_duration, conflicts_with = "beside")]
    keep_for: Duration,
    #[command(flatten)]
    manner: Manner,
}

fn parse_lock_timeout(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_millis(50) || time > Duration::from_secs(60) {
        return Err("a lock is waited for from 50 ms to 60 s".to_owned());
    }
    Ok(time)
}

impl Manner {
    fn options(&self, tables: &[TableName], at: Option<Timestamp>) -> Options {
        Options {
            tables: tables.to_vec(),
            at,
            adopt: if self.adopt { Adopt::TakeOver } else { Adopt::Refuse },
            lock_timeout: self.lock_timeout,
            tries: self.tries,
        }
    }
}

pub fn run(args: &PartitionArgs, app: &mut App) -> Outcome {
    match &args.verb {
        Verb::List(args) => super::block_on(list(args, app))?,
        Verb::Plan(args) => super::block_on(plan(args, app))?,
        Verb::Apply(args) => super::block_on(apply(args, app))?,
        Verb::Drain(args) => super::block_on(drain(args, app))?,
        Verb::Restore(args) => super::block_on(restore(args, app))?,
    }
}

fn moment(text: Option<&String>, herd: &Herd) -> Result<Option<Timestamp>> {
    let read = |text: &String| clock::parse_moment(text, &herd.timezone).map_err(Error::usage);
    text.map(read).transpose()
}

/// Returns the clusters that were asked for; without a name those that declare partitions, and of these the ones with the named tables.
fn clusters<'h>(app: &App, herd: &'h Herd, tables: &[TableName]) -> Result<Vec<&'h Cluster>> {
    let mut clusters = app.clusters(herd)?;
    if app.globals.cluster.is_none() {
        clusters.retain(|cluster| !cluster.partitions.is_empty());
        let has =
            |cluster: &Cluster, table: &TableName| cluster.partitions.iter().any(|set| set.table == *table);
        if clusters.iter().any(|cluster| tables.iter().any(|table| has(cluster, table))) {
            clusters.retain(|cluster| tables.iter().all(|table| has(cluster, table)));
        }
    }
    if clusters.iter().all(|cluster| cluster.partitions.is_empty()) {
        return Err(Error::new(ErrorKind::NotFound, "no partitions are declared").hint(
            "Declare them in the topology: partitions: {SCHEMA.TABLE: {by: COLUMN, every: month, ahead: 3, keep: 2 years}}.",
        ));
    }
    match clusters.as_slice() {
        [] => Err(Error::usage("no cluster has all of these tables").hint("Name the tables of one cluster.")),
        _ => Ok(clusters),
    }
}

/// Returns the only cluster that has a table.
fn only<'h>(app: &App, herd: &'h Herd, table: &TableName) -> Result<&'h Cluster> {
    let clusters = clusters(app, herd, std::slice::from_ref(table))?;
    match clusters.as_slice() {
        [one] => Ok(one),
        several => {
            let names: Vec<&str> = several.iter().map(|cluster| cluster.name.as_str()).collect();
            Err(Error::usage(format!("{table} could be of {}", names.join(" or ")))
                .hint("Name the cluster: --cluster NAME"))
        }
    }
}

async fn list(args: &ListArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let manner =
        Options { tables: args.tables.clone(), at: moment(args.at.as_ref(), &herd)?, ..Options::default() };
    let mut whole = true;
    let mut lists = Vec::new();
    for cluster in clusters(app, &herd, &args.tables)? {
        if args.exported {
            let mut exports = app.within(partition::exports(&context, &herd, cluster)).await??;
            exports.retain(|export| {
                args.tables.is_empty() || args.tables.iter().any(|table| table.to_string() == export.of)
            });
            ui::partition::print_exports(&mut app.ui, &herd.name, &cluster.name, &exports);
            continue;
        }
        let sets = app.within(partition::list(&context, &herd, cluster, &manner)).await??;
        whole &= sets.iter().all(|set| set.failure.is_none());
        lists.push((cluster.name.clone(), sets));
    }
    if !args.exported {
        ui::partition::print_list(&mut app.ui, &herd.name, &lists, !args.tables.is_empty());
    }
    Ok(if whole { Exit::Done } else { Exit::Partial })
}

async fn plan(args: &PlanArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let options = args.manner.options(&args.tables, moment(args.at.as_ref(), &herd)?);
    let mut plans = Vec::new();
    for cluster in clusters(app, &herd, &args.tables)? {
        plans.push((
            cluster.name.clone(),
            app.within(partition::plan_sets(&context, &herd, cluster, &options)).await??,
        ));
    }
    ui::partition::print_plans(&mut app.ui, &herd.name, &plans, options.lock_timeout);
    let whole = plans.iter().flat_map(|(_, sets)| sets).all(|set| set.failure.is_none());
    Ok(if whole { Exit::Done } else { Exit::Partial })
}

/// Maintains the declared partitions, as a job does.
pub(super) async fn apply_scheduled(app: &mut App) -> Outcome {
    let Options { lock_timeout, tries, .. } = Options::default();
    let manner = Manner { adopt: false, lock_timeout, tries };
    apply(&ApplyArgs { tables: Vec::new(), at: None, manner }, app).await
}

async fn apply(args: &ApplyArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let at = moment(args.at.as_ref(), &herd)?;
    if let Some(at) = at.filter(|at| *at > Timestamp::now()) {
        return Err(Error::usage(format!("{at} is not over yet"))
            .detail("At a later time more would go than is declared now. Nothing was changed.")
            .hint("See what would be done then: pgherd partition plan --at TIME")
            .into());
    }
    let options = args.manner.options(&args.tables, at);
    let interrupt = app.interrupt()?;
    let (mut failed, mut applied) = (Vec::new(), Vec::new());
    for cluster in clusters(app, &herd, &args.tables)? {
        match partition::apply(&context, &herd, cluster, &options, &interrupt).await {
            Ok(one) => {
                ui::partition::print_applied(&mut app.ui, &herd.name, &one);
                applied.push(one);
            }
            Err(error) => failed.push(error),
        }
        if interrupt.is_asked() {
            break;
        }
    }
    ended(&applied, failed, app)
}

/// One failure among others is a part; all of one kind are that kind.
fn ended(applied: &[Applied], failed: Vec<Error>, app: &App) -> Outcome {
    let sets = || applied.iter().flat_map(|one| &one.sets);
    let errors: Vec<Error> =
        failed.into_iter().chain(sets().filter_map(|set| set.failure.as_ref()).map(Error::from)).collect();
    let Some(first) = errors.first() else { return Ok(Exit::Done) };
    let kind = first.kind();
    let alike = errors.iter().all(|error| error.kind() == kind) && sets().all(|set| set.failure.is_some());
    let exit = Failure::Errors(errors).print(&app.ui);
    Ok(if kind == ErrorKind::Interrupted || alike { exit } else { Exit::Partial })
}

async fn drain(args: &DrainArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let cluster = only(app, &herd, &args.table)?;
    let interrupt = app.interrupt()?;
    let options = args.manner.options(std::slice::from_ref(&args.table), None);
    let look = DrainWish {
        table: args.table.clone(),
        periods: args.periods.clone(),
        most_rows: args.rows,
        preview: true,
    };
    let before = partition::drain(&context, &herd, cluster, &look, &options, &interrupt).await?;
    let nothing = before.periods.iter().all(|one| one.left.is_some());
    if args.preview || nothing || app.ui.format != ui::Format::Json {
        ui::partition::print_drained(&mut app.ui, &herd.name, &cluster.name, &before);
    }
    let left = |drained: &partition::Drained| {
        let unmoved =
            |one: &partition::DrainedPeriod| !one.moved && one.left.as_deref() != Some("not asked for");
        if drained.timeless_rows > 0 || drained.periods.iter().any(unmoved) {
            Exit::Partial
        } else {
            Exit::Done
        }
    };
    if args.preview {
        return Ok(Exit::Done);
    }
    if nothing {
        return Ok(left(&before));
    }
    agree(app, &args.table)?;
    let wish = DrainWish { preview: false, ..look };
    let after = partition::drain(&context, &herd, cluster, &wish, &options, &interrupt).await?;
    ui::partition::print_drained(&mut app.ui, &herd.name, &cluster.name, &after);
    Ok(left(&after))
}

fn agree(app: &App, table: &TableName) -> Result<()> {
    if app.globals.yes {
        return Ok(());
    }
    if !app.ui.is_interactive() {
        return Err(Error::usage("drain needs an answer, and there is no terminal to ask")
            .detail("Nothing was moved.")
            .hint("Say yes beforehand with --yes, or only look with --preview."));
    }
    if app.ui.ask(&format!("Move these rows of {table}? type yes: "))? == "yes" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Interrupted, "not moved").detail("Nothing was moved."))
}

async fn restore(args: &RestoreArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let cluster = only(app, &herd, &args.table)?;
    let interrupt = app.interrupt()?;
    let options = args.manner.options(std::slice::from_ref(&args.table), None);
    let keep = SignedDuration::try_from(args.keep_for).map_err(|error| Error::usage(error.to_string()))?;
    let now = Timestamp::from_second(Timestamp::now().as_second())
        .map_err(|error| Error::usage(error.to_string()))?;
    let until = now.checked_add(keep).map_err(|error| Error::usage(error.to_string()))?;
    let wish = RestoreWish {
        table: args.table.clone(),
        partition: args.partition.clone(),
        exported_at: moment(args.exported_at.as_ref(), &herd)?,
        destination: if args.beside { Destination::Beside } else { Destination::Attached { until } },
    };
    let back = partition::restore(&context, &herd, cluster, &wish, &options, &interrupt).await?;
    ui::partition::print_brought_back(&mut app.ui, &herd.name, &cluster.name, &back, until);
    Ok(Exit::Done)
}
