//! `pgherd unfence`.

use std::time::Duration;

use super::{App, Outcome};
use crate::ops::fence::Wish;
use crate::units;

/// Let a fenced node be what it was
///
/// A standby may always be let go. A node that ended as a primary may only if every other node of its cluster answers or has ended, none
/// is primary or on a later timeline, and the record in the repository does not name another: else it would be a second primary, and
/// "pgherd rejoin" is the way. Removes the mark and starts nothing: "pgherd apply" does.
///
/// Exit codes: 0 let go, or was not fenced, 1 failed and taken back, 2 bad usage, 4 refused, 5 another operation holds the cluster, 6 stuck,
/// 10 that cannot be told, its host does not answer, or no such node, 130 interrupted.
///
/// Example: pgherd unfence a
#[derive(Debug, clap::Args)]
pub struct UnfenceArgs {
    /// The node, as a or inventory-a
    #[arg(value_name = "NODE")]
    node: String,
    /// Wait so long for another operation of the cluster to end
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    wait_lock: Option<Duration>,
}

pub fn run(args: &UnfenceArgs, app: &mut App) -> Outcome {
    let wait = args.wait_lock.unwrap_or_default();
    super::block_on(super::fence::execute(app, &args.node, &Wish::Unfence, wait))?
}
