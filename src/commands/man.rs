//! `pgherd man`.

use std::path::PathBuf;

use super::{App, Outcome};
use crate::error::Error;
use crate::ui::exit::Exit;

/// Print the manual page
///
/// Writes the manual page of pgherd to stdout, or with --to the pages of pgherd and of each of its commands into a directory.
/// Replaces pages that are there already; touches nothing else.
///
/// Example: pgherd man --to /usr/local/share/man/man1
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write all pages into this directory
    #[arg(long, value_name = "DIRECTORY")]
    to: Option<PathBuf>,
}

pub fn run(args: &ManArgs, root: clap::Command, app: &mut App) -> Outcome {
    let could_not = |error: std::io::Error| {
        Error::failed("could not write the manual")
            .source(error)
            .hint("Name an existing directory with --to.")
    };
    match &args.to {
        Some(directory) => clap_mangen::generate_to(root, directory).map_err(could_not)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(root).render(&mut page).map_err(could_not)?;
            app.ui.bytes(&page);
        }
    }
    Ok(Exit::Done)
}
