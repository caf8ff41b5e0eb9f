//! The topology file: its model, how it is read and checked, and what is rendered from it.
//!
//! Decides nothing about the world and asks no server. Its only I/O is the file itself, the secrets that it refers to, and for
//! the first topology a look at which programs and ports this machine has.

pub mod budget;
mod check;
pub mod checks;
pub mod claim;
pub mod custom;
pub mod declared;
mod decode;
mod foreign;
pub mod hooks;
pub mod init;
pub mod jobs;
pub mod lints;
mod merge;
pub mod model;
pub mod notices;
pub mod origin;
pub mod partitions;
pub mod places;
pub mod problem;
mod raw;
pub mod render;
pub mod schedule;
pub mod schema;
pub mod secrets;
mod settings;
pub mod timers;
pub mod unit;
mod yaml;

use std::path::{Path, PathBuf};

pub use check::check_name;
use model::Herd;
use problem::{Position, Problems, Report};

/// Reads a topology file and checks everything that can be checked without looking at the world.
///
/// # Errors
/// Every problem of the file, in the order of their places.
pub fn load(path: &Path) -> Result<Herd, Problems> {
    load_text(path, &read(path)?, &directory_of(path))
}

/// Checks the text of a topology; `file` names it in problems, and relative paths count from `base`.
///
/// # Errors
/// Every problem of the text, in the order of their places.
pub fn load_text(file: &Path, text: &str, base: &Path) -> Result<Herd, Problems> {
    load_tree(file, text, base).map(|(herd, _)| herd)
}

fn load_tree(file: &Path, text: &str, base: &Path) -> Result<(Herd, yaml::Node), Problems> {
    let mut report = Report::new(file);
    let Some(tree) = yaml::read(text, &mut report) else {
        if report.is_empty() {
            report
                .add(None, "the file is empty")
                .hint("Write a first topology with \"pgherd init NAME --local\".");
        }
        return report.finish(None);
    };
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let herd = check::check(&tree, absolute, base, &mut report);
    report.finish(herd.map(|herd| (herd, tree)))
}

fn read(path: &Path) -> Result<String, Problems> {
    let mut report = Report::new(path);
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            report.add(None, "could not read the topology").detail(format!("{error}.")).hint(
                "Name another file with --file, or write a first one with \"pgherd init NAME --local\".",
            );
            return report.finish(None);
        }
    };
    String::from_utf8(bytes).or_else(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = String::from_utf8_lossy(valid.rsplit(|byte| *byte == b'\n').next().unwrap_or_default())
            .chars()
            .count()
            + 1;
        report.add(Position { line, column }, "the file is not UTF-8").hint("Save it as UTF-8.");
        report.finish(None)
    })
}

fn directory_of(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map(Path::to_owned).unwrap_or_default()
}
