//! How a PgBouncer differs from what is declared, each difference with both values.
//!
//! Pure; mends nothing.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::files::PoolerFiles;
use super::{Console, ConsoleSeen, PoolerObserved, PoolerProcess, fingerprint};
use crate::ops::service::UnitSeen;

/// What an alias may open to a server.
const SIZES: [&str; 3] = ["pool_size", "reserve_pool", "max_db_connections"];

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// It does not run.
    Stopped,
    /// Whether it runs, or what it does, could not be told.
    Unknown { why: String },
    /// An entry of a file, such as `[databases] inventory`.
    Entry { file: String, entry: String, declared: Option<String>, found: Option<String> },
    /// Comments or the order of entries in a file.
    Wording { file: String },
    /// Its unit is not what starts it with its host.
    Unit { what: String },
    /// Names or verifiers in userlist.txt, which are not shown.
    Userlist,
    /// Its certificate, or the authorities that it believes.
    Certificate { why: String },
    /// Its own login, or the function that it asks the server through.
    Login { why: String },
    /// What an alias does in the running process.
    Route { alias: String, what: String, declared: String, found: String },
    /// A setting of the running process.
    Setting { name: String, declared: String, found: String, restart: bool },
}

impl Drift {
    /// Tells whether it is a difference in how many connections to a server may be opened, or through which aliases.
    pub fn is_of_connections(&self) -> bool {
        match self {
            Self::Entry { entry, declared, found, .. } => {
                let sizes = |value: &Option<String>| -> Vec<String> {
                    let words = value.as_deref().unwrap_or_default().split_whitespace();
                    words
                        .filter(|word| SIZES.iter().any(|size| word.starts_with(size)))
                        .map(str::to_owned)
                        .collect()
                };
                entry.starts_with("[databases]") && sizes(declared) != sizes(found)
            }
            Self::Route { what, .. } => what == "is" || SIZES.contains(&what.as_str()),
            Self::Stopped
            | Self::Unknown { .. }
            | Self::Wording { .. }
            | Self::Unit { .. }
            | Self::Userlist
            | Self::Certificate { .. }
            | Self::Login { .. }
            | Self::Setting { .. } => false,
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_nothing = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        match self {
            Self::Stopped => f.write_str("PgBouncer does not run"),
            Self::Unknown { why } => write!(f, "PgBouncer's state is unknown: {why}"),
            Self::Entry { file, entry, declared, found } => {
                write!(f, "{file} {entry}: {} -> {}", or_nothing(found), or_nothing(declared))
            }
            Self::Wording { file } => write!(f, "{file}: comments or order"),
            Self::Unit { what } => write!(f, "unit: {what}"),
            Self::Userlist => f.write_str("userlist.txt: roles or verifiers"),
            Self::Certificate { why } | Self::Login { why } => f.write_str(why),
            Self::Route { alias, what, declared, found } => {
                write!(f, "alias {alias}: {what} {found} -> {declared}")
            }
            Self::Setting { name, declared, found, restart } => {
                let how = if *restart { " (needs a restart)" } else { "" };
                write!(f, "running {name}: {found} -> {declared}{how}")
            }
        }
    }
}

/// Lists the differences, files first.
pub fn drift(files: &PoolerFiles, observed: &PoolerObserved) -> Vec<Drift> {
    let mut found = file_drift("pgbouncer.ini", &files.ini, observed.ini.as_deref());
    found.extend(file_drift("pgbouncer_hba.conf", &files.hba, observed.hba.as_deref()));
    if observed.userlist.as_deref() != Some(fingerprint(files.userlist.reveal().as_bytes()).as_str()) {
        found.push(Drift::Userlist);
    }
    found.extend(unit_drift(files, observed));
    match (&observed.process, &observed.console) {
        (PoolerProcess::Stopped, _) => found.push(Drift::Stopped),
        (PoolerProcess::Unknown { why }, _) | (_, ConsoleSeen::Unknown { why }) => {
            found.push(Drift::Unknown { why: why.clone() });
        }
        (PoolerProcess::Running { .. }, ConsoleSeen::Answered(console)) => {
            found.extend(running_drift(files, console))
        }
    }
    found
}

fn unit_drift(files: &PoolerFiles, observed: &PoolerObserved) -> Option<Drift> {
    let nothing = UnitSeen { text: None, enabled: false };
    let seen = observed.unit.as_ref().unwrap_or(&nothing);
    let what = seen.differs_from(files.unit.as_ref()?)?;
    Some(Drift::Unit { what: what.to_owned() })
}

fn file_drift(file: &str, declared: &str, found: Option<&str>) -> Vec<Drift> {
    if found == Some(declared) {
        return Vec::new();
    }
    let (declared, found) = (entries(declared), entries(found.unwrap_or_default()));
    let mut names: Vec<&String> = declared.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let differences: Vec<Drift> = names
        .into_iter()
        .filter(|name| declared.get(*name) != found.get(*name))
        .map(|name| Drift::Entry {
            file: file.to_owned(),
            entry: name.clone(),
            declared: declared.get(name).cloned(),
            found: found.get(name).cloned(),
        })
        .collect();
    if differences.is_empty() { vec![Drift::Wording { file: file.to_owned() }] } else { differences }
}

/// Shows two texts as a diff does: a line that is there and should not be with `-`, one that should be there with `+`, each below the
/// section that it is in. Lines that both have are left out.
pub(super) fn diff(found: &str, declared: &str) -> Vec<String> {
    let lines = |text: &str| -> Vec<(String, String)> {
        let mut section = String::new();
        let mut lines = Vec::new();
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            if line.starts_with('[') {
                section = line.to_owned();
            } else {
                lines.push((section.clone(), line.to_owned()));
            }
        }
        lines
    };
    let (found, declared) = (lines(found), lines(declared));
    let mut sections: Vec<&String> = Vec::new();
    for (section, _) in declared.iter().chain(&found) {
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    let mut shown = Vec::new();
    for section in sections {
        let only = |of: &[(String, String)], other: &[(String, String)], mark: char| -> Vec<String> {
            let own = of.iter().filter(|line| line.0 == *section && !other.contains(line));
            own.map(|(_, line)| format!("{mark} {line}")).collect()
        };
        let mut changed = only(&found, &declared, '-');
        changed.extend(only(&declared, &found, '+'));
        if !changed.is_empty() && !section.is_empty() {
            shown.push(format!("  {section}"));
        }
        shown.extend(changed);
    }
    shown
}

/// Reads `[section] key` with its last value, and a line without an equals sign as something that is there.
fn entries(text: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut entries = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = format!("{line} ");
        } else if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        } else if let Some((key, value)) = line.split_once('=') {
            entries.insert(format!("{section}{}", key.trim()), value.trim().to_owned());
        } else {
            entries.insert(format!("{section}{line}"), "there".to_owned());
        }
    }
    entries
}

/// Compares what runs with what its files are to say.
pub(super) fn running_drift(files: &PoolerFiles, console: &Console) -> Vec<Drift> {
    let mut found = Vec::new();
    for route in &files.routes {
        let mut differs = |what: &str, declared: String, found_value: String| {
            if declared != found_value {
                found.push(Drift::Route {
                    alias: route.alias.clone(),
                    what: what.to_owned(),
                    declared,
                    found: found_value,
                });
            }
        };
        let Some(row) = console.databases.iter().find(|row| row.alias == route.alias) else {
            differs("is", "there".to_owned(), "missing".to_owned());
            continue;
        };
        differs("host", route.host.clone(), row.host.clone());
        differs("port", route.port.to_string(), row.port.to_string());
        differs("database", route.database.clone(), row.database.clone());
        differs("pool_size", route.pool_size.to_string(), row.pool_size.to_string());
        differs("reserve_pool", route.reserve.to_string(), row.reserve.to_string());
        differs(
            "pool_mode",
            route.mode.word().to_owned(),
            row.mode.clone().unwrap_or_else(|| mode_of(files)),
        );
        differs("max_db_connections", route.max_connections().to_string(), row.max_connections.to_string());
        let accepts = |disabled: bool| if disabled { "refused" } else { "accepted" }.to_owned();
        differs("clients", accepts(route.to.is_empty()), accepts(row.disabled));
    }
    for row in &console.databases {
        if files.routes.iter().all(|route| route.alias != row.alias) {
            let (declared, found_value) =
                ("not there".to_owned(), format!("leading to {}:{}", row.host, row.port));
            found.push(Drift::Route {
                alias: row.alias.clone(),
                what: "is".to_owned(),
                declared,
                found: found_value,
            });
        }
    }
    for (name, declared) in &files.settings {
        if let Some(row) = console.settings.get(name)
            && plain(name, declared) != plain(name, &row.value)
        {
            found.push(Drift::Setting {
                name: name.clone(),
                declared: declared.clone(),
                found: row.value.clone(),
                restart: !row.reloads || begins_to_ask(name, &row.value),
            });
        }
    }
    found
}

/// Tells whether a process would begin to ask the server for verifiers. It asks only for roles that it has never known, and a role of its
/// old userlist stays known, without a password (seen with 1.18): such a role could not log in any more before a restart.
fn begins_to_ask(name: &str, found: &str) -> bool {
    name == "auth_user" && found.is_empty()
}

/// Tells whether a process has to be restarted for new files whatever a reload would say of it.
pub fn must_restart(files: &PoolerFiles, before: &PoolerObserved) -> bool {
    let ConsoleSeen::Answered(console) = &before.console else { return false };
    let asks = files.settings.iter().any(|(name, _)| name == "auth_user");
    asks && console.settings.get("auth_user").is_some_and(|row| begins_to_ask("auth_user", &row.value))
}

/// The mode of an alias that has none of its own.
fn mode_of(files: &PoolerFiles) -> String {
    let general = files.settings.iter().find(|(name, _)| name == "pool_mode");
    general.map(|(_, mode)| mode.clone()).unwrap_or_default()
}

/// PgBouncer shows the mode of its socket in decimal (448 for 0700).
fn plain(name: &str, value: &str) -> String {
    match (name, value.strip_prefix('0')) {
        ("unix_socket_mode", Some(octal)) => {
            u32::from_str_radix(octal, 8).map_or_else(|_| value.to_owned(), |mode| mode.to_string())
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::{DatabaseRow, SettingRow};
    use super::super::files::tests::{V1_18, cluster, layout, rendered};
    use super::*;

    fn as_declared(files: &PoolerFiles) -> PoolerObserved {
        let databases = files.routes.iter().map(|route| DatabaseRow {
            alias: route.alias.clone(),
            host: route.host.clone(),
            port: route.port,
            database: route.database.clone(),
            pool_size: route.pool_size,
            reserve: route.reserve,
            max_connections: route.max_connections(),
            current_connections: 0,
            mode: None,
            paused: false,
            disabled: route.to.is_empty(),
        });
        let settings = files.settings.iter().map(|(name, value)| {
            let value = if name == "unix_socket_mode" { "448" } else { value }.to_owned();
            (name.clone(), SettingRow { value, reloads: !name.starts_with("listen_") })
        });
        PoolerObserved {
            ini: Some(files.ini.clone()),
            hba: Some(files.hba.clone()),
            userlist: Some(fingerprint(files.userlist.reveal().as_bytes())),
            unit: Some(UnitSeen { text: files.unit.clone(), enabled: true }),
            process: PoolerProcess::Running { pid: 7 },
            console: ConsoleSeen::Answered(Console {
                version: V1_18,
                databases: databases.collect(),
                pools: Vec::new(),
                servers: Vec::new(),
                settings: settings.collect(),
                held_back: None,
            }),
        }
    }

    #[test]
    fn only_what_may_be_opened_is_a_difference_in_connections() {
        let files = rendered(&cluster(), &layout()).unwrap();
        let of = |seen: &PoolerObserved| drift(&files, seen).iter().any(Drift::is_of_connections);
        let mut seen = as_declared(&files);
        seen.ini = seen.ini.map(|ini| ini.replace("max_client_conn = 100", "max_client_conn = 9"));
        assert!(!drift(&files, &seen).is_empty() && !of(&seen));
        let size = format!("pool_size={}", files.routes[0].pool_size);
        let elsewhere = format!("port={}", files.routes[0].port);
        seen.ini = Some(files.ini.replace(&elsewhere, "port=1"));
        assert!(!drift(&files, &seen).is_empty() && !of(&seen));
        seen.ini = Some(files.ini.replace(&size, "pool_size=9"));
        assert!(of(&seen), "{:?}", drift(&files, &seen));
    }

    #[test]
    fn a_unit_that_is_missing_changed_or_not_enabled_is_told() {
        let mut systemd = cluster();
        systemd.postgres.service = crate::topology::model::Service::Systemd;
        let files = rendered(&systemd, &layout()).unwrap();
        let right = as_declared(&files);
        assert!(shown(&files, &right).is_empty());
        let with = |text: Option<&str>, enabled| PoolerObserved {
            unit: Some(UnitSeen { text: text.map(str::to_owned), enabled }),
            ..right.clone()
        };
        let wanted = files.unit.as_deref();
        assert_eq!(
            shown(&files, &with(None, false)),
            ["unit: there is none: nothing starts it with its host"]
        );
        assert_eq!(shown(&files, &with(Some("[Service]\n"), true)), ["unit: it is not what pgherd writes"]);
        assert_eq!(
            shown(&files, &with(wanted, false)),
            ["unit: it is not enabled: nothing starts it with its host"]
        );
    }

    fn shown(files: &PoolerFiles, observed: &PoolerObserved) -> Vec<String> {
        drift(files, observed).iter().map(ToString::to_string).collect()
    }

    fn console(observed: &mut PoolerObserved) -> &mut Console {
        let ConsoleSeen::Answered(console) = &mut observed.console else { panic!("it answers") };
        console
    }

    #[test]
    fn what_is_as_declared_does_not_differ() {
        let files = rendered(&cluster(), &layout()).unwrap();
        assert_eq!(shown(&files, &as_declared(&files)), Vec::<String>::new());
    }

    #[test]
    fn a_hand_edit_is_shown_with_both_values() {
        let files = rendered(&cluster(), &layout()).unwrap();
        let mut observed = as_declared(&files);
        observed.ini =
            Some(files.ini.replace("max_client_conn = 1000", "max_client_conn = 50") + "verbose = 1\n");
        assert_eq!(
            shown(&files, &observed),
            [
                "pgbouncer.ini [pgbouncer] max_client_conn: 50 -> 1000",
                "pgbouncer.ini [pgbouncer] verbose: 1 -> nothing"
            ]
        );
        observed.ini = Some(format!("; mine\n{}", files.ini));
        observed.userlist = None;
        observed.hba = Some("host all all 0.0.0.0/0 trust\n".to_owned() + &files.hba);
        assert_eq!(
            shown(&files, &observed),
            [
                "pgbouncer.ini: comments or order",
                "pgbouncer_hba.conf host all all 0.0.0.0/0 trust: there -> nothing",
                "userlist.txt: roles or verifiers"
            ]
        );
    }

    #[test]
    fn what_runs_is_compared_too() {
        let files = rendered(&cluster(), &layout()).unwrap();
        let mut observed = as_declared(&files);
        let running = console(&mut observed);
        running.databases[0].port = 5442;
        running.databases[1].disabled = true;
        running.settings.get_mut("listen_port").unwrap().value = "6432".to_owned();
        assert_eq!(
            shown(&files, &observed),
            [
                "alias inventory: port 5442 -> 5441",
                "alias inventory_ro: clients refused -> accepted",
                "running listen_port: 6432 -> 6441 (needs a restart)"
            ]
        );
        let running = console(&mut observed);
        running.databases.remove(1);
        running.databases[0].alias = "old".to_owned();
        let shown = shown(&files, &observed);
        assert_eq!(shown[0], "alias inventory: is missing -> there");
        assert_eq!(shown[2], "alias old: is leading to 127.0.0.1:5442 -> not there");
    }

    #[test]
    fn a_diff_shows_what_is_there_and_what_should_be_below_its_section() {
        let files = rendered(&cluster(), &layout()).unwrap();
        let edited = files.ini.replace("max_client_conn = 1000", "max_client_conn = 50") + "verbose = 1\n";
        assert_eq!(
            diff(&edited, &files.ini),
            ["  [pgbouncer]", "- max_client_conn = 50", "- verbose = 1", "+ max_client_conn = 1000"]
        );
        assert!(diff(&files.ini, &files.ini).is_empty());
    }

    #[test]
    fn unknown_is_not_stopped() {
        let files = rendered(&cluster(), &layout()).unwrap();
        let mut observed = as_declared(&files);
        observed.console = ConsoleSeen::Unknown { why: "no answer within 10 s".to_owned() };
        assert_eq!(shown(&files, &observed), ["PgBouncer's state is unknown: no answer within 10 s"]);
        observed.process = PoolerProcess::Stopped;
        assert_eq!(shown(&files, &observed), ["PgBouncer does not run"]);
    }
}
