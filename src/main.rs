//! The roof: parse, dispatch, error to exit code. Synchronous; a command that needs tokio starts it.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use pgherd::cli::{Cli, Command};
use pgherd::commands::{self, App, Outcome};
use pgherd::error::Error;
use pgherd::ui::error::print_error;
use pgherd::ui::exit::Exit;
use pgherd::ui::{Asked, ColorChoice, Format, Ui, Verbosity};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && asks_for_json() => {
            let text = error.to_string();
            let what = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let error = Error::usage(what).hint("\"pgherd --help\" shows the commands and flags.");
            print_error(&Ui::new(Format::Json, Verbosity::Normal, ColorChoice::Never), &error);
            return usage_exit().code().into();
        }
        Err(error) => {
            let exit = if error.use_stderr() { usage_exit() } else { Exit::Done };
            // Nobody is left to be told if this cannot be written: `pgherd --help | head` is no error.
            error.print().unwrap_or(());
            return exit.code().into();
        }
    };
    let mut app = App::new(cli.globals);
    report_panics_as_bugs();
    app.ui.begin_log();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| dispatch(&cli.command, &mut app)));
    let exit = match ended {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => failure.print(&app.ui),
        Err(_) => Exit::Bug,
    };
    let exit = match app.ui.finish() {
        Err(error) if exit == Exit::Done => {
            print_error(&app.ui, &Error::failed("could not write to standard output").source(error))
        }
        _ => exit,
    };
    let exit = if let Command::Wal(args) = &cli.command { args.exit(exit) } else { exit };
    let exit = if let Command::Health(_) = &cli.command { commands::health::exit(exit) } else { exit };
    exit.code().into()
}

/// How a command line ends that could not be parsed.
fn usage_exit() -> Exit {
    let args: Vec<_> = std::env::args_os().collect();
    if commands::health::is_asked_for(&args) { Exit::Unknown } else { commands::wal::usage_exit(&args) }
}

fn dispatch(command: &Command, app: &mut App) -> Outcome {
    if let (Asked::Monitoring(_), false) = (app.globals.format, matches!(command, Command::Health(_))) {
        return Err(Error::usage("only \"pgherd health\" writes nagios, prometheus and junit")
            .hint("Write --format human, json or markdown.")
            .into());
    }
    match command {
        Command::Init(args) => commands::init::run(args, app),
        Command::Validate(args) => commands::validate::run(args, app),
        Command::Schema(args) => commands::schema::run(args, app),
        Command::Plan(args) => commands::plan::run(args, app),
        Command::Apply(args) => commands::apply::run(args, app),
        Command::Operation(args) => commands::operation::run(args, app),
        Command::Config(args) => commands::config::run(args, app),
        Command::Status(args) => commands::status::run(args, app),
        Command::Health(args) => commands::health::run(args, app),
        Command::Restore(args) => commands::restore::run(args, app),
        Command::Backup(args) => commands::backup::run(args, app),
        Command::Wal(args) => commands::wal::run(args, app),
        Command::Partition(args) => commands::partition::run(args, app),
        Command::Drill(args) => commands::drill::run(args, app),
        Command::Dump(args) => commands::dump::run(args, app),
        Command::Repo(args) => commands::repo::run(args, app),
        Command::Switchover(args) => commands::switchover::run(args, app),
        Command::Failback(args) => commands::failback::run(args, app),
        Command::Rejoin(args) => commands::rejoin::run(args, app),
        Command::Failover(args) => commands::failover::run(args, app),
        Command::Fence(args) => commands::fence::run(args, app),
        Command::Unfence(args) => commands::unfence::run(args, app),
        Command::Pooler(args) => commands::pooler::run(args, app),
        Command::Schedule(args) => commands::schedule::run(args, app),
        Command::Run(args) => commands::run::run(args, app),
        Command::Node(args) => commands::node::run(args, app),
        Command::Guard(args) => commands::guard::run(args, app),
        Command::Destroy(args) => commands::destroy::run(args, app),
        Command::Completions(args) => commands::completions::run(args, Cli::command(), app),
        Command::Man(args) => commands::man::run(args, Cli::command(), app),
    }
}

/// Whether the command line wants JSON although it could not be parsed.
fn asks_for_json() -> bool {
    let args: Vec<_> = std::env::args_os().collect();
    args.iter().any(|arg| arg == "--format=json") || args.windows(2).any(|pair| pair == ["--format", "json"])
}

/// Says of a panic that it is our fault, where it was, and what to do.
fn report_panics_as_bugs() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        eprintln!(
            "ERROR:  pgherd stopped because of a bug in itself\n\
             DETAIL: {} at {place}, version {}.\n\
             HINT:   What was running is in the journal: \"pgherd operation list\" shows how to go on. Please report this.",
            info.payload_as_str().unwrap_or("panic"),
            env!("PGHERD_VERSION"),
        );
    }));
}
