//! `pgherd guard`.

use std::path::PathBuf;

use super::{App, Outcome};
use crate::ops::guard::{self, Because, Record, Start, Word};
use crate::ui::exit::Exit;

/// Refuse to start a node that must not run; what its unit calls first
///
/// Looks whether the data directory is the one that the node's marker claims, whether the node is fenced, and whether it would come up as a
/// primary although another node is one or is ahead: by the record in the repository, and by asking the other nodes that its profile names. A
/// standby may always start: it follows. Runs as the owner of the node's files and needs no topology.
///
/// With --ask-record somebody must have answered: where neither the record can be read nor another node answers, a primary may start only if
/// its commits wait for a standby (synchronous_standby_names), since alone it acknowledges none; any other is not started, and the unit asks
/// again. --start-anyway is an operator's word for that case and no other: it is kept beside the node, counts for its next start within
/// 10 minutes, and starts nothing by itself. The unit of a cluster's only node asks nobody.
///
/// Exit codes: 0 it may start, or the word is kept, 4 it must not, 10 that cannot be told.
///
/// Example: ExecStartPre=/usr/local/lib/pgherd/pgherd guard --profile /etc/pgherd/nodes/inventory-a/profile.json --ask-record
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// The node's profile
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
    /// Ask the record in the repository, and the other nodes, who is primary
    #[arg(long)]
    ask_record: bool,
    /// Let its next start go on although nobody can be asked: you know that no other node is primary
    #[arg(long, requires = "reason", requires = "ask_record")]
    start_anyway: bool,
    /// Why; kept beside the node
    #[arg(long, value_name = "TEXT", requires = "start_anyway")]
    reason: Option<String>,
}

pub fn run(args: &GuardArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &GuardArgs, app: &mut App) -> Outcome {
    let record = if args.ask_record { Record::Ask } else { Record::Leave };
    if let Some(why) = args.reason.as_deref().filter(|_| args.start_anyway) {
        let (node, word) = guard::start_anyway(&args.profile, record, why).await?;
        app.ui.remark(match word {
            Word::Given => {
                format!("the next start of {node} as a primary within 10 minutes goes on your word")
            }
            Word::NotNeeded(start) => format!("no word is needed: {}", told(&node, &start)),
        });
        return Ok(Exit::Done);
    }
    let (node, start) = guard::check(&args.profile, record).await?;
    app.ui.remark(told(&node, &start));
    Ok(Exit::Done)
}

fn told(node: &str, start: &Start) -> String {
    match start {
        Start::Standby => format!("{node} starts as a standby"),
        Start::Recovery => format!("{node} starts to recover"),
        Start::Primary { timeline, because } => {
            let because = match because {
                Because::NobodyElse => String::new(),
                Because::Waits => {
                    "; nobody could be asked, and its commits wait for a standby until one is there"
                        .to_owned()
                }
                Because::Allowed(word) => {
                    format!("; nobody could be asked, and {} said: {}", word.by, word.why)
                }
            };
            format!("{node} starts as a primary on timeline {timeline}{because}")
        }
    }
}
