//! `pgherd health`.

use std::ffi::OsStr;

use super::{App, Outcome};
use crate::ops::health;
use crate::ui;
use crate::ui::exit::Exit;

/// Judge the herd: every check of every cluster
///
/// Looks at all nodes, poolers and repositories side by side and compares what it finds with the thresholds of the topology (key
/// "health"; pgherd's own where nothing is declared). Changes nothing. What cannot be seen is UNKNOWN, with what it takes to see it.
///
/// Exit codes: as a plugin of Nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN or bad usage; the worst of all checks counts, and what is not
/// known counts more than a warning.
///
/// Example: pgherd health --format nagios
#[derive(Debug, clap::Args)]
pub struct HealthArgs {}

pub fn run(args: &HealthArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
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

async fn execute(_: &HealthArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    let clusters = app.clusters(&herd)?;
    let health = app.within(health::examine(&context, &herd, &clusters)).await??;
    ui::health::print(&mut app.ui, &health);
    Ok(Exit::of_health(health.status))
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
