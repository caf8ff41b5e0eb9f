//! `pgherd status`.

use std::time::Duration;

use super::{App, Outcome};
use crate::ops::status;
use crate::ui;
use crate::ui::exit::Exit;
use crate::units;

/// Show the herd as it is
///
/// One screen a cluster: every node with its observed role, state, LSN, lag, slot, disk; where the poolers lead; operations that run
/// or were left unfinished; and what is wrong, with the next command. A node that does not answer is unknown, with the reason, and
/// never hides the others. Needs no secret and changes nothing.
///
/// Exit codes: 0 shown (also when something is wrong), 2 invalid topology, 10 no such cluster.
///
/// Example: pgherd --cluster inventory status --watch
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Look again and again until interrupted; every 2 s, or as often as given
    #[arg(long, value_name = "EVERY", value_parser = units::parse_duration, num_args = 0..=1, default_missing_value = "2s")]
    pub watch: Option<Duration>,
}

pub fn run(args: &StatusArgs, app: &mut App) -> Outcome {
    super::block_on(execute(args, app))?
}

async fn execute(args: &StatusArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let context = app.context()?;
    loop {
        let clusters = app.clusters(&herd)?;
        let reports = app.within(status::status(&context, &herd, &clusters)).await??;
        if args.watch.is_some() {
            app.ui.clear_screen();
        }
        ui::status::print(&mut app.ui, &herd.name, &reports);
        let Some(pause) = args.watch else { return Ok(Exit::Done) };
        tokio::time::sleep(pause).await;
    }
}
