//! What became of a repository.

use serde_json::json;

use super::{Format, Ui};
use crate::error::Error;
use crate::repo::crypt::rekey::{Half, Rekeyed};
use crate::ui::error;

/// Says what the exchange of a key came to.
pub fn print_rekeyed(ui: &mut Ui, name: &str, half: Half, rekeyed: &Rekeyed) {
    if ui.format == Format::Json {
        ui.json(&json!({"repository": name, "half": half, "rekeyed": rekeyed}));
    } else {
        let Rekeyed { documents, rewrapped, already, failed } = rekeyed;
        let keys = if *documents == 1 { "data key" } else { "data keys" };
        let failed = match failed.len() {
            0 => String::new(),
            some => format!(", {some} that no key at hand opens"),
        };
        ui.line(format!("repository {name}   {documents} {keys}: {rewrapped} wrapped anew, {already} as they should be{failed}"));
        if rekeyed.failed.is_empty() {
            ui.line(match half {
                Half::Add => "Both keys open it now.   next: pgherd repo rekey --drop-old",
                Half::DropOthers => "Only the declared key opens it now.   next: take encrypt-before out of the topology, then: pgherd apply",
            });
        }
    }
    let told: Vec<Error> = rekeyed.failed.iter().cloned().map(Error::from).collect();
    if !told.is_empty() {
        error::print_errors(ui, &told);
    }
}
