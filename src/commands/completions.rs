//! `pgherd completions`.

use clap_complete::Shell;

use super::{App, Outcome};
use crate::ui::exit::Exit;

/// Print the completions of a shell
///
/// Writes a script to stdout that teaches the shell pgherd's commands and flags. Changes nothing.
///
/// Example: pgherd completions bash > /etc/bash_completion.d/pgherd
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub fn run(args: &CompletionsArgs, mut root: clap::Command, app: &mut App) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut root, "pgherd", &mut script);
    app.ui.bytes(&script);
    Ok(Exit::Done)
}
