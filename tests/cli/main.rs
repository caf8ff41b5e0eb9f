//! What a person sees: every verb that reads the topology, through the real binary, and every way in which a file is refused.

mod large;
mod monitoring;
mod refusals;
mod scale;
mod schedule;
mod schema;
mod setup;
mod verbs;

use std::path::Path;

/// The path of a file of the project.
fn project(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
