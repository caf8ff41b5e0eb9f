//! `pgherd schema`.

use super::{App, Outcome};
use crate::topology;
use crate::ui::exit::Exit;

/// Print the JSON Schema of the topology file
///
/// Writes the schema to stdout: every key of the format with what it means, for editors and for CI. Changes nothing.
///
/// Example: pgherd schema > topology.schema.json
#[derive(Debug, clap::Args)]
pub struct SchemaArgs {}

pub fn run(_args: &SchemaArgs, app: &mut App) -> Outcome {
    app.ui.line(topology::schema::text().trim_end());
    Ok(Exit::Done)
}
