//! `pgherd guard`.

use std::path::PathBuf;

use super::{App, Outcome};
use crate::ops::guard::{self, Record, Start};
use crate::ui::exit::Exit;

/// Refuse to start a node that must not run; what its unit calls first
///
/// Looks whether the data directory is the one that the node's marker claims, and whether it would come up as a primary although the record
/// in the repository says that another node has become it. A standby may always start: it follows. Runs as the owner of the node's files,
/// needs no topology and no server, and changes nothing.
///
/// With --ask-record a repository that cannot be read is no permission: whether there is another primary is then unknown, and the unit asks
/// again. The unit of a cluster's only node does not ask.
///
/// Exit codes: 0 it may start, 4 it must not, 10 that cannot be told.
///
/// Example: ExecStartPre=/usr/local/lib/pgherd/pgherd guard --profile /etc/pgherd/nodes/inventory-a/profile.json --ask-record
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// Ask the record in the repository who is primary
    #[arg(long)]
    ask_record: bool,
}

pub fn run(args: &GuardArgs, app: &mut App) -> Outcome {
    let record = if args.ask_record { Record::Ask } else { Record::Leave };
    let (node, start) = guard::check(&args.profile, record)?;
    app.ui.remark(match start {
        Start::Standby => format!("{node} starts as a standby"),
        Start::Recovery => format!("{node} starts to recover"),
        Start::Primary(timeline) => format!("{node} starts as a primary on timeline {timeline}"),
    });
    Ok(Exit::Done)
}
