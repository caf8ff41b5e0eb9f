//! Server settings as the file gives them: which of them pgherd keeps for itself, and their values in PostgreSQL's spelling.

use super::decode::{Named, SettingText, Spanned};
use super::problem::Report;
use crate::pg::guc_units::{ValueError, measure, spell};
use std::collections::BTreeMap;

/// Settings that follow from other keys, with what to use instead.
const OWN: &[(&str, &str)] = &[
    ("archive_cleanup_command", "pgherd sets it itself. Remove it."),
    ("archive_command", "pgherd archives WAL itself. Remove it."),
    ("archive_library", "pgherd archives WAL itself. Remove it."),
    ("archive_mode", "pgherd archives WAL itself. Remove it."),
    ("cluster_name", "It is CLUSTER-NODE. Remove it."),
    ("config_file", "Use \"data-directory\" of a node."),
    ("data_directory", "Use \"data-directory\" of a node."),
    ("external_pid_file", "The pid file is in the data directory. Remove it."),
    ("hba_file", "Edit pg_hba.conf in the data directory: pgherd keeps only its marked block at the top."),
    ("hot_standby", "Standbys are always readable. Remove it."),
    (
        "ident_file",
        "Edit pg_ident.conf in the data directory: pgherd keeps only its marked block at the top.",
    ),
    ("include", "Write the settings themselves."),
    ("include_dir", "Write the settings themselves."),
    ("include_if_exists", "Write the settings themselves."),
    ("listen_addresses", "It follows from the addresses of the hosts. Remove it."),
    ("port", "Use \"ports: {postgres: ...}\", or \"port\" of a node."),
    ("primary_conninfo", "It follows from who is primary. Remove it."),
    ("primary_slot_name", "It follows from who is primary. Remove it."),
    ("promote_trigger_file", "Use \"pgherd switchover\". Remove it."),
    ("restore_command", "pgherd sets it itself. Remove it."),
    ("synchronous_standby_names", "Use \"synchronous: {wait-for: 1, of: [...]}\"."),
    ("unix_socket_directories", "pgherd connects through it and sets it itself. Remove it."),
];

/// Settings whose canonical name has capitals.
const CAPITALS: [&str; 3] = ["DateStyle", "IntervalStyle", "TimeZone"];

/// Checks the settings and spells them as postgresql.conf has them.
pub(super) fn check(settings: &Named<Spanned<SettingText>>, report: &mut Report) -> BTreeMap<String, String> {
    settings
        .0
        .iter()
        .filter_map(|entry| {
            let value = &entry.value;
            check_name(entry.name.as_str(), entry.at, report)
                .then(|| check_value(&entry.name, value, report))
                .flatten()
                .map(|value| (entry.name.clone(), value))
        })
        .collect()
}

fn check_name(name: &str, at: super::problem::Position, report: &mut Report) -> bool {
    let lower = name.to_lowercase();
    let canonical =
        CAPITALS.iter().find(|capital| capital.to_lowercase() == lower).map_or(lower.as_str(), |name| *name);
    if let Some((_, instead)) = OWN.iter().find(|(own, _)| *own == lower) {
        report.add(at, format!("setting \"{lower}\" is pgherd's own")).hint(*instead);
        return false;
    }
    if lower.starts_with("recovery_target") {
        report
            .add(at, format!("setting \"{lower}\" is pgherd's own"))
            .detail("A recovery target belongs to one restore, not to a cluster.")
            .hint("Remove it.");
        return false;
    }
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$'));
    if !valid {
        report
            .add(at, format!("\"{name}\" is not the name of a setting"))
            .hint(format!("Settings have PostgreSQL's spelling: \"{}\".", name.replace('-', "_")));
        return false;
    }
    if canonical != name {
        report
            .add(at, format!("PostgreSQL spells the setting \"{name}\" as \"{canonical}\""))
            .hint(format!("Write \"{canonical}\"."));
        return false;
    }
    true
}

fn check_value(name: &str, value: &Spanned<SettingText>, report: &mut Report) -> Option<String> {
    let (at, text) = (value.at, value.value.0.as_str());
    if text.chars().any(char::is_control) {
        report
            .add(at, format!("the value of {name} holds a line break or another control character"))
            .hint("Write it on one line.");
        return None;
    }
    if name == "wal_level" && !["replica", "logical"].contains(&text) {
        report
            .add(at, format!("wal_level must be \"replica\" or \"logical\", found \"{text}\""))
            .detail("Standbys and backups need at least replica.")
            .hint("Remove it.");
        return None;
    }
    let whole = ["max_connections", "superuser_reserved_connections", "reserved_connections"];
    if whole.contains(&name) && text.parse::<u32>().is_err() {
        report
            .add(at, format!("{name} must be a whole number, found \"{text}\""))
            .hint("Write a number without a unit.");
        return None;
    }
    if name == "shared_preload_libraries" && super::foreign::report_managed_library(report, at, name, text) {
        return None;
    }
    let Some(measure) = measure(name) else {
        return Some(text.to_owned());
    };
    match spell(measure, text) {
        Ok(spelled) => Some(spelled),
        Err(ValueError::NoUnit { each }) => {
            report
                .add(at, format!("{name} has no unit"))
                .detail(format!("To PostgreSQL, {text} would be {text} times {each}."))
                .hint(match each.ends_with('B') {
                    true => "Write the unit, such as \"64 MiB\" or \"64MB\".",
                    false => "Write the unit, such as \"30 s\" or \"5min\".",
                });
            None
        }
        Err(ValueError::AmbiguousM) => {
            report
                .add(at, format!("{name}: \"{text}\" is ambiguous: \"m\" could be minutes or months"))
                .hint("Write \"min\" if minutes are meant.");
            None
        }
        Err(ValueError::Unfit { expected }) => {
            report
                .add(at, format!("{name} must be {expected}, found \"{text}\""))
                .hint("Write a number and one of PostgreSQL's units (kB, MB, GB, TB; ms, s, min, h, d) or a binary one with a space.");
            None
        }
    }
}
