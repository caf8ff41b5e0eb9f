//! Dumps: what was made, what there is, what was fetched.

use std::path::Path;

use comfy_table::{Table, presets};
use serde_json::json;

use super::{Format, Tone, Ui};
use crate::ops::dump::{Dumped, ListedDump};
use crate::repo::dump::DumpManifest;

/// Prints the dumps of clusters.
pub fn print_list(ui: &mut Ui, herd: &str, lists: &[(String, Vec<ListedDump>)]) {
    if ui.format == Format::Json {
        let clusters: Vec<_> =
            lists.iter().map(|(cluster, dumps)| json!({"cluster": cluster, "dumps": dumps})).collect();
        return ui.json(&json!({"herd": herd, "clusters": clusters}));
    }
    for (cluster, dumps) in lists {
        if dumps.is_empty() {
            ui.line(format!("{herd}/{cluster}   no dumps"));
            continue;
        }
        ui.line(format!("{herd}/{cluster}"));
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["", "dump", "label", "database", "size", "entries", "read on", "note"]);
        for dump in dumps {
            let row = |values: [String; 5]| {
                let [database, size, entries, node, note] = values;
                [String::new(), dump.name.clone(), dump.label.clone(), database, size, entries, node, note]
            };
            table.add_row(match (&dump.manifest, &dump.trouble) {
                (Some(manifest), _) => row([
                    of(manifest),
                    manifest.size.to_string(),
                    manifest.entries.to_string(),
                    manifest.node.clone(),
                    String::new(),
                ]),
                (None, trouble) => {
                    let note = ui.paint(Tone::Warning, trouble.as_deref().unwrap_or_default());
                    row(["-".to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned(), note])
                }
            });
        }
        for line in table.lines() {
            ui.line(line.trim_end());
        }
    }
}

fn of(manifest: &DumpManifest) -> String {
    if manifest.schemas.is_empty() {
        return manifest.database.clone();
    }
    format!("{} ({})", manifest.database, manifest.schemas.join(", "))
}

/// Says what was made.
pub fn print_made(ui: &mut Ui, dumped: &Dumped) {
    if ui.format == Format::Json {
        return ui.json(dumped);
    }
    let manifest = &dumped.manifest;
    ui.remark(format!(
        "{}   dump {} {} of {}, {}, {} entries, read whole by pg_restore and from the repository",
        manifest.cluster,
        manifest.name,
        manifest.label,
        of(manifest),
        manifest.size,
        manifest.entries
    ));
    if !dumped.removed.is_empty() {
        ui.remark(format!("{}   removed, no longer kept: {}", manifest.cluster, dumped.removed.join(", ")));
    }
}

/// Says what was fetched.
pub fn print_fetched(ui: &mut Ui, manifest: &DumpManifest, to: &Path) {
    if ui.format == Format::Json {
        return ui.json(&json!({"file": to, "dump": manifest}));
    }
    ui.remark(format!(
        "{}   dump {} {} of {}, {}, its checksum holds",
        to.display(),
        manifest.name,
        manifest.label,
        of(manifest),
        manifest.size
    ));
    ui.remark(format!("next     pg_restore --no-owner --dbname=DATABASE {}", to.display()));
}
