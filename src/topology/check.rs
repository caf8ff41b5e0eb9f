//! Makes the model from what is written: fills in defaults, resolves names, and checks every rule that takes two values to see.
//!
//! Goes on after each problem. A key that is there but wrong was reported when it was decoded; only one that is missing is
//! reported here.

mod custom;
mod health;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::budget::{self, Limits, PoolDemand};
use super::declared::TLS_SETTINGS;
use super::decode::{Address, Cx, Decode as _, Named, NamedEntry, OwnOr, SettingText, Spanned, Via};
use super::merge::{merge, without_none};
use super::model::{
    Assertion, BackupSource, Backups, Cluster, DrillTarget, Herd, Host, Node, Objective, Pool, PoolMode,
    PoolTarget, PoolUser, Poolers, Postgres, Promote, Reach, Repository, RestoreDrill, RestoreProof, Role,
    Schema, SecretReference, Service, Ssh, Synchronous, Tls, VaultReference,
};
use super::problem::{Position, Report};
use super::yaml::{Node as Tree, Value};
use super::{foreign, raw, settings};
use crate::pg::ident::check_object_name;

/// The machine behind every host that is not reached by ssh.
const HERE: &str = "this machine";
/// Where data directories are if a node states none.
const DATA_ROOT: &str = "/var/lib/pgherd";
/// Client connections of one PgBouncer if the file states none.
pub(super) const DEFAULT_MAX_CLIENTS: u32 = 1000;
/// PgBouncer processes of one cluster on one host.
const MOST_PROCESSES: u32 = 64;
/// Roles that pgherd or PostgreSQL or PgBouncer have for themselves.
const OWN_ROLES: [&str; 5] = ["pgbouncer", "pgherd_probe", "pgherd_replicator", "postgres", "replicator"];
/// Databases that every cluster has, and the admin console of PgBouncer.
const OWN_DATABASES: [&str; 4] = ["pgbouncer", "postgres", "template0", "template1"];

/// Checks a whole file; `None` if it is not even a topology.
pub(super) fn check(tree: &Tree, file: PathBuf, base: &Path, report: &mut Report) -> Option<Herd> {
    let topology = raw::Topology::decode(tree, &mut Cx::new(report))?;
    let mut checker = Checker {
        report,
        base,
        herd: None,
        hosts: Vec::new(),
        host_index: HashMap::new(),
        repositories: Vec::new(),
        taken: HashMap::new(),
        directories: Vec::new(),
        full_names: HashMap::new(),
    };
    checker.format_version(&topology, tree);
    let name = checker.herd_name(&topology, tree);
    checker.herd.clone_from(&name);
    let timezone = checker.timezone(&topology);
    checker.regions(&topology, tree);
    checker.repositories(&topology, tree);
    let defaults = tree.find("defaults");
    if let Some(defaults) = defaults {
        checker.none_removes_something(None, "defaults", defaults);
    }
    let mut clusters = Vec::new();
    match (tree.find("clusters").map(|clusters| &clusters.value), topology.clusters) {
        (Some(Value::Mapping(entries)), _) => {
            for entry in entries {
                let merged = match defaults {
                    Some(defaults) => merge(defaults, &entry.value),
                    None => without_none(&entry.value),
                };
                checker.none_removes_something(defaults, &format!("clusters.{}", entry.key), &entry.value);
                clusters.extend(checker.cluster(&entry.key, entry.at, &merged));
            }
        }
        (None, _) => checker.missing(tree.at, "the file", "clusters", "clusters: {NAME: {...}}"),
        (Some(_), _) => {}
    }
    checker.repository_directories();
    checker.data_directories();
    let hosts = std::mem::take(&mut checker.hosts);
    let repositories = std::mem::take(&mut checker.repositories);
    let repositories = repositories.into_iter().filter_map(|declared| declared.repository).collect();
    Some(Herd { name: name?, timezone, file, hosts, repositories, clusters })
}

/// Tells whether a text can be the name of a user: it becomes a word of command lines and of sudoers.
fn is_user_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        && !text.starts_with('-')
}

/// Checks a name of pgherd's own: it becomes part of paths, slot names and `cluster_name`.
///
/// # Errors
/// The rule, as a sentence.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    // Cluster, hyphen and node together fit the 63 bytes of a slot's name.
    let valid = (1..=31).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    valid
        .then_some(())
        .ok_or("A name has up to 31 lowercase letters, digits and hyphens, and begins with a letter.")
}

struct Checker<'a> {
    report: &'a mut Report,
    base: &'a Path,
    /// `None` if its name is missing or wrong, which was reported.
    herd: Option<String>,
    hosts: Vec<Host>,
    host_index: HashMap<String, usize>,
    repositories: Vec<DeclaredRepository>,
    /// Who listens where: machine and port.
    taken: HashMap<(String, u16), (String, Position)>,
    directories: Vec<Directory>,
    /// Names of nodes in the whole herd, and where each was given.
    full_names: HashMap<String, Position>,
}

struct DeclaredRepository {
    name: String,
    /// The place of its URL.
    at: Position,
    /// `None` if its URL is wrong, which was reported.
    repository: Option<Repository>,
}

struct Directory {
    machine: String,
    path: PathBuf,
    owner: String,
    at: Position,
}

impl Checker<'_> {
    fn missing(&mut self, at: Position, owner: &str, key: &str, example: &str) {
        self.report.add(at, format!("{owner} has no \"{key}\"")).hint(format!("Add it: {example}."));
    }

    fn format_version(&mut self, topology: &raw::Topology, tree: &Tree) {
        match &topology.pgherd {
            Some(version) if version.value != 1 => {
                self.report
                    .add(version.at, format!("unsupported format version {}", version.value))
                    .detail("This version of pgherd reads format 1.")
                    .hint("Write \"pgherd: 1\", or use the version of pgherd that the file was written for.");
            }
            None if tree.find("pgherd").is_none() => self.missing(tree.at, "the file", "pgherd", "pgherd: 1"),
            Some(_) | None => {}
        }
    }

    fn herd_name(&mut self, topology: &raw::Topology, tree: &Tree) -> Option<String> {
        match &topology.herd {
            Some(name) => self.name(name.at, "herd", &name.value).then(|| name.value.clone()),
            None => {
                if tree.find("herd").is_none() {
                    self.missing(tree.at, "the file", "herd", "herd: NAME");
                }
                None
            }
        }
    }

    /// Checks a name of pgherd's own.
    fn name(&mut self, at: Position, what: &str, name: &str) -> bool {
        let checked = check_name(name);
        if let Err(rule) = checked {
            self.report
                .add(at, format!("\"{name}\" cannot be the name of a {what}"))
                .detail(rule)
                .hint("Choose another name, such as \"inventory\" or \"db-1\".");
        }
        checked.is_ok()
    }

    /// Checks a name that PostgreSQL keeps: of a role, database or schema.
    fn object_name(&mut self, at: Position, what: &str, name: &str) -> bool {
        let quoting = name.chars().find(|c| matches!(c, '"' | '\'' | '\\'));
        let reason = match (check_object_name(name), quoting) {
            (Err(error), _) => error.to_string(),
            (Ok(()), Some(found)) => {
                format!("it holds the character {found:?}, which cannot stand in a file of PgBouncer")
            }
            (Ok(()), None) => return true,
        };
        self.report
            .add(at, format!("\"{name}\" cannot be the name of a {what}: {reason}"))
            .hint("Choose another name.");
        false
    }

    fn timezone(&mut self, topology: &raw::Topology) -> String {
        let Some(zone) = &topology.timezone else {
            return "UTC".to_owned();
        };
        if zone.value != "UTC" && jiff::tz::TimeZone::get(&zone.value).is_err() {
            let known: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let near =
                super::problem::nearest(&zone.value, &known.iter().map(String::as_str).collect::<Vec<_>>())
                    .map(str::to_owned);
            let problem = self.report.add(zone.at, format!("unknown time zone \"{}\"", zone.value));
            problem.detail("A zone is an IANA name such as UTC or Europe/Berlin.");
            match near {
                Some(near) => problem.hint(format!("Did you mean \"{near}\"?")),
                None if known.is_empty() => {
                    problem.hint("This machine has no time zones: install the package tzdata.")
                }
                None => problem.hint("\"timedatectl list-timezones\" lists them."),
            };
        }
        zone.value.clone()
    }

    fn regions(&mut self, topology: &raw::Topology, tree: &Tree) {
        self.ssh_files(topology);
        let ssh = topology.ssh.as_ref().map(|ssh| &ssh.value);
        let Some(regions) = &topology.regions else {
            if tree.find("regions").is_none() {
                self.missing(tree.at, "the file", "regions", "regions: {here: {hosts: {local: local}}}");
            }
            return;
        };
        let mut seen: HashMap<String, Position> = HashMap::new();
        for region in &regions.value.0 {
            self.name(region.at, "region", &region.name);
            // The names come from the tree, so that a host whose address is wrong is still a known host.
            let hosts = tree.find("regions").and_then(|tree| tree.find(&region.name)?.find("hosts"));
            let Some(Tree { value: Value::Mapping(hosts), .. }) = hosts else {
                self.missing(
                    region.at,
                    &format!("regions.{}", region.name),
                    "hosts",
                    "hosts: {local: local}",
                );
                continue;
            };
            let path = format!("regions.{}.hosts", region.name);
            for host in hosts {
                if !foreign::report_managed_host(self.report, host.at, &path, &host.key) {
                    self.name(host.at, "host", &host.key);
                }
                if let Some(first) = seen.insert(host.key.clone(), host.at) {
                    self.report
                        .add(host.at, format!("host \"{}\" is in two regions", host.key))
                        .detail(format!("It was given first at {first}."))
                        .hint("Keep one of the two.");
                    continue;
                }
                let raw =
                    region.value.hosts.as_ref().map(|hosts| hosts.value.0.as_slice()).unwrap_or_default();
                let raw = raw.iter().find(|raw| raw.name == host.key).map(|raw| &raw.value);
                let reach = raw.and_then(|raw| self.reach(raw, &format!("{path}.{}", host.key), ssh));
                self.host_index.insert(host.key.clone(), self.hosts.len());
                self.hosts.push(Host {
                    name: host.key.clone(),
                    region: region.name.clone(),
                    reach: reach.unwrap_or(Reach::Local),
                });
            }
        }
    }

    /// Decides how a host is reached; `None` after a problem was reported.
    fn reach(&mut self, raw: &Spanned<Address>, path: &str, ssh: Option<&raw::Ssh>) -> Option<Reach> {
        let place = match &raw.value {
            Address::Local => return Some(Reach::Local),
            Address::Plain(address) => {
                let address = self.address(raw.at, address, path)?;
                return Some(Reach::Ssh(self.ssh(address, None, None, ssh)?));
            }
            Address::Place(place) => place,
        };
        let Some(address) = &place.address else {
            self.missing(raw.at, path, "address", "address: 10.0.0.1");
            return None;
        };
        let address = self.address(address.at, &address.value, &format!("{path}.address"))?;
        match place.via.as_ref().map(|via| via.value) {
            Some(Via::Local) => {
                for (key, at) in [
                    ("user", place.user.as_ref().map(|user| user.at)),
                    ("port", place.port.as_ref().map(|port| port.at)),
                ] {
                    if let Some(at) = at {
                        self.report
                            .add(at, format!("{path}.{key} is of ssh, which does not reach this machine"))
                            .hint("Remove it, or remove \"via: local\".");
                    }
                }
                Some(Reach::Here { address })
            }
            Some(Via::Ssh) | None => {
                Some(Reach::Ssh(self.ssh(address, place.user.as_ref(), place.port.as_ref(), ssh)?))
            }
        }
    }

    /// Checks what ends up in PostgreSQL's files and on ssh's command line.
    fn address(&mut self, at: Position, address: &str, path: &str) -> Option<String> {
        let ip = address.parse::<std::net::IpAddr>();
        if ip.is_ok_and(|ip| !ip.is_unspecified() && !ip.is_multicast()) {
            return Some(address.to_owned());
        }
        self.report
            .add(at, format!("{path} must be an IP address"))
            .detail("It goes into PostgreSQL's and PgBouncer's files; user and port of ssh have keys of their own.")
            .hint("Write {address: 10.0.0.1, user: USER, port: 22}, or \"local\" for this machine.");
        None
    }

    fn ssh(
        &mut self,
        address: String,
        user: Option<&Spanned<String>>,
        port: Option<&Spanned<u32>>,
        raw: Option<&raw::Ssh>,
    ) -> Option<Ssh> {
        let user = user.or(raw.and_then(|raw| raw.user.as_ref()));
        if let Some(user) = user.filter(|user| !is_user_name(&user.value)) {
            self.report
                .add(user.at, format!("{:?} cannot be the name of a user", user.value))
                .hint("Write the name alone, such as user: dba.");
            return None;
        }
        let port = match port.or(raw.and_then(|raw| raw.port.as_ref())) {
            None => None,
            Some(port) => match u16::try_from(port.value) {
                Ok(number @ 1..) => Some(number),
                _ => {
                    self.report
                        .add(
                            port.at,
                            format!("the port of sshd must be from 1 to 65535, found {}", port.value),
                        )
                        .hint("sshd listens on 22 if nobody said otherwise.");
                    return None;
                }
            },
        };
        let file = |place: Option<&Spanned<raw::FilePlace>>| {
            place.and_then(|place| place.value.file.as_ref()).map(|file| self.base.join(&file.value))
        };
        let key = file(raw.and_then(|raw| raw.key.as_ref()));
        let host_keys = file(raw.and_then(|raw| raw.host_keys.as_ref()));
        let config = file(raw.and_then(|raw| raw.config.as_ref()));
        Some(Ssh { address, port, user: user.map(|user| user.value.clone()), key, host_keys, config })
    }

    /// Checks the files that "ssh" names: one without a path, or whose path ssh would read differently.
    fn ssh_files(&mut self, topology: &raw::Topology) {
        let Some(ssh) = &topology.ssh else { return };
        for (key, place) in
            [("key", &ssh.value.key), ("host-keys", &ssh.value.host_keys), ("config", &ssh.value.config)]
        {
            let Some(place) = place else { continue };
            match &place.value.file {
                None => self.missing(
                    place.at,
                    &format!("ssh.{key}"),
                    "file",
                    &format!("{key}: {{file: keys/{key}}}"),
                ),
                Some(file)
                    if file.value.contains(['"', '\\']) || file.value.chars().any(char::is_control) =>
                {
                    self.report
                        .add(
                            file.at,
                            format!("ssh.{key}.file holds a character that ssh's options cannot hold"),
                        )
                        .hint("Choose a path without quotes and backslashes.");
                }
                Some(_) => {}
            }
        }
    }

    fn repositories(&mut self, topology: &raw::Topology, tree: &Tree) {
        // The names come from the tree, so that a repository whose URL is wrong is still a known one.
        let Some(Tree { value: Value::Mapping(entries), .. }) = tree.find("repositories") else {
            return;
        };
        let raw = topology.repositories.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for entry in entries {
            let named = self.name(entry.at, "repository", &entry.key);
            let path = format!("repositories.{}", entry.key);
            if entry.value.find("url").is_none() && matches!(entry.value.value, Value::Mapping(_)) {
                self.missing(entry.at, &path, "url", "url: file:///var/lib/pgherd/repository");
            }
            let url = raw.iter().find(|raw| raw.name == entry.key).and_then(|raw| raw.value.url.as_ref());
            let checked = url.and_then(|url| self.repository_url(url, &format!("{path}.url")));
            self.repositories.push(DeclaredRepository {
                name: entry.key.clone(),
                at: url.map_or(entry.at, |url| url.at),
                repository: checked.filter(|_| named).map(|url| Repository { name: entry.key.clone(), url }),
            });
        }
    }

    /// Checks the URL of a repository and writes it without what does not matter. A URL may hold a password: only its scheme
    /// is shown.
    fn repository_url(&mut self, url: &Spanned<String>, path: &str) -> Option<String> {
        const HINT: &str = "Write the whole path of a directory: url: file:///var/lib/pgherd/repository.";
        let Some((scheme, rest)) = url.value.split_once("://") else {
            self.report.add(url.at, format!("{path} must be file:///ABSOLUTE/PATH")).hint(HINT);
            return None;
        };
        if scheme != "file" {
            self.report
                .add(url.at, format!("{path} must be file:///ABSOLUTE/PATH, found the scheme {scheme:?}"))
                .detail("This version keeps backups and WAL in directories.")
                .hint(HINT);
            return None;
        }
        // What a URL and a path would read differently is not taken.
        let odd = rest.chars().find(|c| matches!(c, '%' | '?' | '#') || c.is_control());
        let components: Vec<Component<'_>> = Path::new(rest).components().collect();
        let plain = components.iter().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if let Some(odd) = odd {
            self.report
                .add(url.at, format!("{path} holds the character {odd:?}"))
                .detail("In a URL it does not mean itself.")
                .hint("Choose a directory without it.");
            return None;
        }
        if components.first() != Some(&Component::RootDir) || components.len() < 2 || !plain {
            self.report
                .add(url.at, format!("{path} must be file:///ABSOLUTE/PATH, with no host and no \"..\""))
                .hint(HINT);
            return None;
        }
        let directory: PathBuf = components.iter().collect();
        Some(format!("file://{}", directory.display()))
    }

    /// No repository may lie in or over a data directory or another repository: one of the two would be backed up, counted or
    /// removed with the other.
    fn repository_directories(&mut self) {
        let overlap = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let declared: Vec<(&str, Position, &Path)> = self
            .repositories
            .iter()
            .filter_map(|declared| {
                Some((declared.name.as_str(), declared.at, declared.repository.as_ref()?.directory()))
            })
            .collect();
        for (index, (name, at, directory)) in declared.iter().enumerate() {
            if let Some((other, first, shared)) =
                declared[..index].iter().find(|(_, _, other)| overlap(directory, other))
            {
                self.report
                    .add(*at, format!("the repositories {other} and {name} overlap"))
                    .detail(format!(
                        "{other} is at {} (given at {first}), {name} at {}.",
                        shared.display(),
                        directory.display()
                    ))
                    .hint("Give each a directory of its own; clusters may share a repository.");
            }
            if let Some(data) = self.directories.iter().find(|data| overlap(directory, &data.path)) {
                self.report
                    .add(*at, format!("the repository {name} overlaps the data directory of {}", data.owner))
                    .detail(format!(
                        "The repository is at {}, the data directory at {}: whoever loses or removes one loses the other.",
                        directory.display(),
                        data.path.display()
                    ))
                    .hint("Give the repository a directory of its own, best on another disk.");
            }
        }
    }

    fn known_host(&mut self, host: &Spanned<String>) -> bool {
        if self.host_index.contains_key(&host.value) {
            return true;
        }
        if !foreign::report_managed_host(self.report, host.at, "host", &host.value) {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            self.report.add(host.at, format!("unknown host \"{}\"", host.value)).suggest(&host.value, names);
        }
        false
    }

    /// Names the machine behind a host: all local hosts are one.
    fn machine(&self, host: &str) -> String {
        match self.host_index.get(host).map(|index| &self.hosts[*index].reach) {
            Some(Reach::Local | Reach::Here { .. }) => HERE.to_owned(),
            Some(Reach::Ssh(ssh)) => match ssh.port {
                // Several machines may be behind one address.
                Some(port) => format!("{} port {port}", ssh.address),
                None => ssh.address.clone(),
            },
            None => host.to_owned(),
        }
    }

    /// Takes a port for a node or a pooler; two on one are a problem.
    fn listen(&mut self, at: Position, host: &str, port: u16, owner: String) {
        let machine = self.machine(host);
        match self.taken.get(&(machine.clone(), port)) {
            None => {
                self.taken.insert((machine, port), (owner, at));
            }
            Some((other, first)) => {
                let other = other.clone();
                let first = *first;
                let same = if machine == HERE { "that are \"local\"" } else { "with one address" };
                self.report
                    .add(at, format!("{owner} and {other} both listen on port {port} of {host}"))
                    .detail(format!("{other} has the port at {first}; hosts {same} are one machine."))
                    .hint("Give one of them another port.");
            }
        }
    }

    fn data_directories(&mut self) {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by(|a, b| (&a.machine, &a.path, a.at).cmp(&(&b.machine, &b.path, b.at)));
        // Paths sort by component, so whatever is below a directory follows it before anything else does.
        let mut above: Option<&Directory> = None;
        for directory in &directories {
            match above {
                Some(other)
                    if other.machine == directory.machine && directory.path.starts_with(&other.path) =>
                {
                    let (first, second) =
                        if other.at <= directory.at { (other, directory) } else { (directory, other) };
                    let what = if other.path == directory.path {
                        format!("{} and {} have the same data directory", second.owner, first.owner)
                    } else {
                        format!("the data directory of {} is inside that of {}", directory.owner, other.owner)
                    };
                    self.report
                        .add(second.at, what)
                        .detail(format!("{} is at {}, {} at {}.", other.owner, other.path.display(), directory.owner, directory.path.display()))
                        .hint("Give each node a data directory of its own, such as \"data-directory: /var/lib/pgherd/CLUSTER-NODE\".");
                }
                _ => above = Some(directory),
            }
        }
    }

    /// In `settings`, `none` is also a word of PostgreSQL: without something to take away it must not vanish silently.
    fn none_removes_something(&mut self, inherited: Option<&Tree>, path: &str, tree: &Tree) {
        let settings = |tree: &Tree| tree.find("postgres").and_then(|tree| tree.find("settings")).cloned();
        let inherited = inherited.and_then(settings);
        let Some(Tree { value: Value::Mapping(entries), .. }) = settings(tree) else {
            return;
        };
        for entry in entries {
            let removes = inherited.as_ref().is_some_and(|tree| tree.find(&entry.key).is_some());
            if entry.value.is_none_word() && !removes {
                self.report
                    .add(
                        entry.value.at,
                        format!("{path}.postgres.settings.{}: none takes nothing away", entry.key),
                    )
                    .detail(
                        "In a cluster, none removes what \"defaults\" say; here there is nothing to remove.",
                    )
                    .hint("Remove it; or put quotes around \"none\" if PostgreSQL's word is meant.");
            }
        }
    }
}

/// A cluster while it is checked.
struct Draft<'a> {
    name: &'a str,
    /// The place of the name.
    at: Position,
    tree: &'a Tree,
}

impl Draft<'_> {
    fn has(&self, path: &[&str]) -> bool {
        path.iter().try_fold(self.tree, |tree, key| tree.find(key)).is_some()
    }

    /// The names under a key as they are written, also of those that could not be decoded.
    fn names(&self, key: &str) -> Vec<&str> {
        self.names_at(&[key])
    }

    fn names_at(&self, path: &[&str]) -> Vec<&str> {
        match path.iter().try_fold(self.tree, |tree, key| tree.find(key)).map(|tree| &tree.value) {
            Some(Value::Mapping(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
            Some(Value::Scalar(_) | Value::Sequence(_) | Value::Alias) | None => Vec::new(),
        }
    }

    /// Tells a list that is written empty from one whose items are all wrong, which was reported.
    fn is_empty_list(&self, path: &[&str]) -> bool {
        let found = path.iter().try_fold(self.tree, |tree, key| tree.find(key));
        matches!(found.map(|tree| &tree.value), Some(Value::Sequence(items)) if items.is_empty())
    }

    /// `clusters.inventory` with what is below it.
    fn path(&self, rest: &str) -> String {
        format!("clusters.{}{rest}", self.name)
    }
}

/// What a node takes from its cluster.
#[derive(Clone, Copy)]
struct OfCluster<'a> {
    default_port: Option<u16>,
    preferred: Option<&'a str>,
    postgres: Option<&'a Postgres>,
}

/// Where a node has what is not in its data directory, if not where pgherd would put it.
#[derive(Default)]
struct Layout {
    config: Option<PathBuf>,
    socket: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Layout {
    /// Debian keeps a cluster `VERSION/NAME` in these places (pg_createcluster(1)).
    fn of_debian(postgres: Option<&Postgres>, data_directory: &Path) -> Self {
        let mut names = data_directory.iter().rev();
        let (name, version) = (names.next(), names.next());
        let of = postgres.filter(|postgres| {
            let theirs = postgres.version.to_string();
            postgres.service == Service::Debian && version.is_some_and(|version| version == theirs.as_str())
        });
        match of.and(version.zip(name)) {
            Some((version, name)) => Self {
                config: Some(Path::new("/etc/postgresql").join(version).join(name)),
                socket: Some("/var/run/postgresql".into()),
                log: Some("/var/log/postgresql".into()),
            },
            None => Self::default(),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            socket: self.socket.or(other.socket),
            log: self.log.or(other.log),
        }
    }
}

impl Checker<'_> {
    fn cluster(&mut self, name: &str, at: Position, tree: &Tree) -> Option<Cluster> {
        let draft = Draft { name, at, tree };
        let valid_name = self.name(at, "cluster", name);
        // What is wrong with single values was reported where they are written, in `defaults` or in the cluster.
        let mut known = Report::new(Path::new(""));
        let raw = raw::Cluster::decode(tree, &mut Cx::new(&mut known))?;
        let postgres = self.postgres(&draft, raw.postgres.as_ref());
        let ports = raw.ports.as_ref().map(|ports| &ports.value);
        let node_port = ports.and_then(|ports| ports.postgres.as_ref());
        let default_port = node_port.map(|port| port.value.0);
        let nodes = self.nodes(&draft, raw.nodes.as_ref(), default_port, postgres.as_ref());
        let synchronous = raw.synchronous.as_ref().and_then(|rule| self.synchronous(&draft, rule, &nodes));
        let databases = self.databases(&draft, raw.databases.as_ref());
        let roles = self.roles(&draft, raw.roles.as_ref());
        let schemas = self.schemas(&draft, raw.schemas.as_ref(), &databases);
        let pooler_port = ports.and_then(|ports| ports.pooler.as_ref()).map(|port| (port.value.0, port.at));
        let poolers = raw.poolers.as_ref().and_then(|poolers| self.poolers(&draft, poolers, pooler_port));
        if let (Some(raw), Some(poolers)) = (&raw.poolers, &poolers) {
            self.pools_lead_somewhere(&draft, &raw.value);
            self.aliases(&draft, &raw.value, poolers, &databases);
            self.pool_nodes(&draft, &raw.value, &nodes);
            self.pool_users(&draft, &raw.value, &roles);
            self.budget(&draft, &raw.value, poolers, (&nodes, &roles), postgres.as_ref());
        }
        let objectives = self.objectives(&draft, &raw);
        let backups = raw.backups.as_ref().and_then(|backups| self.backups(&draft, backups));
        let drills = raw.drills.as_ref().and_then(|drills| drills.value.restore.as_ref());
        let drills = drills.and_then(|drill| self.restore_drill(&draft, drill, &databases));
        let hosts = self.hosts_of(&draft, &nodes, poolers.as_ref());
        let health = health::checks(self.report, &draft.path(".health"), raw.health.as_ref());
        let checks = self.custom_checks(&draft, &raw, &databases);
        (valid_name && !nodes.is_empty()).then_some(())?;
        Some(Cluster {
            name: name.to_owned(),
            postgres: postgres?,
            nodes: nodes.into_iter().map(|(node, _)| node).collect(),
            synchronous,
            databases,
            schemas,
            roles,
            poolers,
            objectives,
            backups,
            drills,
            hosts,
            health,
            checks,
        })
    }

    /// Returns the hosts of a cluster that are more than this machine under another name.
    fn hosts_of(
        &mut self,
        draft: &Draft<'_>,
        nodes: &[(Node, Position)],
        poolers: Option<&Poolers>,
    ) -> Vec<Host> {
        let poolers = poolers.iter().flat_map(|poolers| &poolers.hosts).map(|host| (host, draft.at));
        let used: Vec<(&String, Position)> =
            nodes.iter().map(|(node, at)| (&node.host, *at)).chain(poolers).collect();
        let known = |host: &String| self.host_index.get(host).map(|index| &self.hosts[*index]);
        let apart = used.iter().filter_map(|(host, _)| known(host)).any(|host| !host.reach.is_here());
        let unreachable = used
            .iter()
            .find(|(host, _)| known(host).is_some_and(|host| host.reach == Reach::Local))
            .filter(|_| apart);
        let mut hosts: Vec<Host> = Vec::new();
        for host in used.iter().filter_map(|(host, _)| known(host)) {
            if host.reach != Reach::Local && !hosts.iter().any(|other| other.name == host.name) {
                hosts.push(host.clone());
            }
        }
        if let Some((host, at)) = unreachable {
            self.report
                .add(
                    *at,
                    format!("host {host} has no address that the other hosts of {} could reach", draft.name),
                )
                .detail(
                    "The cluster has hosts on other machines, and \"local\" alone is only known to this one.",
                )
                .hint(format!("Write {host}: {{address: 10.0.0.1, via: local}} under \"regions\"."));
        }
        hosts
    }
}

/// The parts of a cluster.
impl Checker<'_> {
    fn postgres(&mut self, draft: &Draft<'_>, raw: Option<&Spanned<raw::Postgres>>) -> Option<Postgres> {
        if !draft.has(&["postgres", "version"]) {
            self.missing(draft.at, &draft.path(".postgres"), "version", "postgres: {version: 18}");
        }
        let raw = &raw?.value;
        if let Some(directory) = &raw.bin_directory {
            self.absolute(directory, "bin-directory");
        }
        if let Some(user) = &raw.os_user
            && (!is_user_name(&user.value) || user.value == "root")
        {
            self.report
                .add(user.at, format!("os-user cannot be {:?}", user.value))
                .detail("PostgreSQL refuses to run as root.")
                .hint("Write the name of an ordinary user, such as \"postgres\".");
        }
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(draft, tls));
        if let (Some(_), Some(settings)) = (&raw.tls, &raw.settings) {
            self.no_setting_beside_tls(&settings.value);
        }
        let tune_memory =
            raw.tune.as_ref().and_then(|tune| tune.value.memory.as_ref()).map(|memory| memory.value);
        let settings = raw.settings.as_ref().map(|settings| settings::check(&settings.value, self.report));
        Some(Postgres {
            version: raw.version.as_ref()?.value.0,
            bin_directory: raw.bin_directory.as_ref().map(|directory| PathBuf::from(&directory.value)),
            os_user: raw.os_user.as_ref().map(|user| user.value.clone()),
            service: raw.service.as_ref().map_or(Service::default(), |service| service.value),
            tls,
            tune_memory,
            settings: settings.unwrap_or_default(),
        })
    }

    fn tls(&mut self, draft: &Draft<'_>, raw: &Spanned<OwnOr<raw::TlsFiles>>) -> Option<Tls> {
        let files = match &raw.value {
            OwnOr::Own => return self.herd.clone().map(|herd| Tls::Own { herd }),
            OwnOr::Given(files) => files,
        };
        let mut found = Vec::new();
        for (key, place) in [("ca", &files.ca), ("certificate", &files.certificate), ("key", &files.key)] {
            match place {
                None => self.missing(
                    raw.at,
                    &draft.path(".postgres.tls"),
                    key,
                    &format!("{key}: {{file: tls/{key}.pem}}"),
                ),
                Some(place) => match &place.value.file {
                    None => self.missing(
                        place.at,
                        &draft.path(&format!(".postgres.tls.{key}")),
                        "file",
                        &format!("{key}: {{file: tls/{key}.pem}}"),
                    ),
                    Some(file) => found.push(self.base.join(&file.value)),
                },
            }
        }
        let [ca, certificate, key] = <[PathBuf; 3]>::try_from(found).ok()?;
        Some(Tls::Given { ca, certificate, key })
    }

    /// What `tls` sets is not set twice.
    fn no_setting_beside_tls(&mut self, settings: &Named<Spanned<SettingText>>) {
        for entry in
            settings.0.iter().filter(|entry| TLS_SETTINGS.contains(&entry.name.to_lowercase().as_str()))
        {
            self.report
                .add(entry.at, format!("setting \"{}\" follows from \"tls\"", entry.name))
                .hint("Remove one of them.");
        }
    }

    /// Has a relative path count from the topology.
    fn below_base(&self, reference: &SecretReference) -> SecretReference {
        match reference {
            SecretReference::File(path) => SecretReference::File(self.base.join(path)),
            SecretReference::Env(_) | SecretReference::Command(_) | SecretReference::Vault(_) => {
                reference.clone()
            }
        }
    }

    fn absolute(&mut self, path: &Spanned<String>, key: &str) -> bool {
        let parts: Vec<Component<'_>> = Path::new(&path.value).components().collect();
        let plain = parts.iter().skip(1).all(|part| matches!(part, Component::Normal(_)));
        let printable = !path.value.chars().any(char::is_control);
        let valid = parts.first() == Some(&Component::RootDir) && parts.len() > 1 && plain && printable;
        if !valid {
            self.report
                .add(
                    path.at,
                    format!("{key} must be an absolute path without \"..\", found {:?}", path.value),
                )
                .hint("Write the whole path from / on.");
        }
        valid
    }

    /// Makes the nodes, each with the place of its name.
    fn nodes(
        &mut self,
        draft: &Draft<'_>,
        raw: Option<&Spanned<Named<raw::Node>>>,
        default_port: Option<u16>,
        postgres: Option<&Postgres>,
    ) -> Vec<(Node, Position)> {
        if draft.names("nodes").is_empty() && (raw.is_some() || !draft.has(&["nodes"])) {
            self.missing(draft.at, &draft.path(""), "nodes", "nodes: {a: {host: HOST}}");
        }
        let Some(raw) = raw.map(|raw| &raw.value.0) else {
            return Vec::new();
        };
        let mut on_host: HashMap<&str, Vec<&str>> = HashMap::new();
        for NamedEntry { name, value, .. } in raw {
            if let Some(host) = &value.host {
                on_host.entry(host.value.as_str()).or_default().push(name);
            }
        }
        let cluster = OfCluster { default_port, preferred: self.preferred(draft, raw), postgres };
        let mut nodes = Vec::with_capacity(raw.len());
        for entry in raw {
            let shares = entry.value.host.as_ref().map(|host| on_host[host.value.as_str()].as_slice());
            let shares = shares.unwrap_or_default();
            if let Some(node) = self.node(draft, entry, shares, cluster) {
                nodes.push((node, entry.at));
            }
        }
        nodes
    }

    fn preferred<'n>(&mut self, draft: &Draft<'_>, nodes: &'n [NamedEntry<raw::Node>]) -> Option<&'n str> {
        let mut preferring = nodes.iter().filter_map(|node| Some((node, node.value.prefer.as_ref()?)));
        let first = preferring.next();
        if let Some((first, _)) = first {
            for (other, prefer) in preferring {
                self.report
                    .add(
                        prefer.at,
                        format!(
                            "{} has two preferred primaries: {} and {}",
                            draft.name, first.name, other.name
                        ),
                    )
                    .detail(format!("{} has it at {}.", first.name, first.at))
                    .hint("Keep \"prefer: primary\" at one node.");
            }
        }
        first.map(|(first, _)| first).or(nodes.first()).map(|node| node.name.as_str())
    }

    fn node(
        &mut self,
        draft: &Draft<'_>,
        entry: &NamedEntry<raw::Node>,
        on_host: &[&str],
        cluster: OfCluster<'_>,
    ) -> Option<Node> {
        let (name, raw) = (entry.name.as_str(), &entry.value);
        let OfCluster { default_port, preferred, postgres } = cluster;
        let full = format!("{}-{name}", draft.name);
        let valid_name = self.name(entry.at, "node", name);
        if let Some(first) = self.full_names.insert(full.clone(), entry.at)
            && first != entry.at
        {
            self.report
                .add(entry.at, format!("two nodes are called {full}"))
                .detail(format!("The other is at {first}; a node is called CLUSTER-NODE in the whole herd."))
                .hint("Rename one of the clusters or nodes.");
        }
        let has = |key: &str| draft.has(&["nodes", name, key]);
        if !has("host") {
            self.missing(entry.at, &full, "host", "host: HOST");
        }
        let host = raw.host.as_ref()?;
        if !self.known_host(host) {
            return None;
        }
        let unstated: Vec<&str> = ["port", "data-directory"].into_iter().filter(|key| !has(key)).collect();
        if on_host.len() > 1 && !unstated.is_empty() {
            let others: Vec<String> = on_host
                .iter()
                .filter(|other| **other != name)
                .take(5)
                .map(|other| format!("{}-{other}", draft.name))
                .collect();
            self.report
                .add(entry.at, format!("{full} must state {}", unstated.join(" and ")))
                .detail(format!("It shares host {} with {}.", host.value, others.join(", ")))
                .hint(format!(
                    "Write {name}: {{host: {}, port: PORT, data-directory: {DATA_ROOT}/{full}}}.",
                    host.value
                ));
            return None;
        }
        if default_port.is_none() && !has("port") && !draft.has(&["ports", "postgres"]) {
            self.missing(
                entry.at,
                &full,
                "port",
                "port: 5432, or ports: {postgres: 5432} for the whole cluster",
            );
        }
        let data_directory = match &raw.data_directory {
            Some(directory) => self
                .absolute(directory, "data-directory")
                .then(|| (PathBuf::from(&directory.value), directory.at)),
            None if has("data-directory") => None,
            None => Some((Path::new(DATA_ROOT).join(&full), entry.at)),
        };
        let mut layout = Layout::default();
        for (key, raw, place) in [
            ("config-directory", &raw.config_directory, &mut layout.config),
            ("socket-directory", &raw.socket_directory, &mut layout.socket),
            ("log-directory", &raw.log_directory, &mut layout.log),
        ] {
            if let Some(stated) = raw
                && self.absolute(stated, key)
            {
                *place = Some(PathBuf::from(&stated.value));
            }
        }
        let port = match &raw.port {
            Some(port) => Some((port.value.0, port.at)),
            None if has("port") => None,
            None => default_port.map(|port| (port, entry.at)),
        };
        if let Some((port, at)) = port {
            self.listen(at, &host.value, port, full.clone());
        }
        if let Some((path, at)) = &data_directory {
            let machine = self.machine(&host.value);
            self.directories.push(Directory {
                machine,
                path: path.components().collect(),
                owner: full,
                at: *at,
            });
        }
        valid_name.then_some(())?;
        let data_directory = data_directory?.0;
        let layout = layout.or(Layout::of_debian(postgres, &data_directory));
        Some(Node {
            name: name.to_owned(),
            host: host.value.clone(),
            port: port?.0,
            config_directory: layout.config.filter(|stated| *stated != data_directory),
            socket_directory: layout.socket,
            log_directory: layout.log,
            adopted: false,
            data_directory,
            preferred: preferred == Some(name),
            promote: raw.promote.as_ref().map_or(Promote::Automatic, |promote| promote.value),
            pool_connections: raw.pool_connections.as_ref().map(|count| count.value),
            health: health::checks(
                self.report,
                &draft.path(&format!(".nodes.{name}.health")),
                raw.health.as_ref(),
            ),
        })
    }

    fn synchronous(
        &mut self,
        draft: &Draft<'_>,
        raw: &Spanned<raw::Synchronous>,
        nodes: &[(Node, Position)],
    ) -> Option<Synchronous> {
        let path = draft.path(".synchronous");
        for (key, example) in [("wait-for", "wait-for: 1"), ("of", "of: [a, b]")] {
            if !draft.has(&["synchronous", key]) {
                self.missing(raw.at, &path, key, example);
            }
        }
        let (wait_for, of) = (raw.value.wait_for.as_ref()?, raw.value.of.as_ref()?);
        let names = draft.names("nodes");
        let known: HashSet<&str> = names.iter().copied().collect();
        let mut seen = HashSet::new();
        for node in &of.value {
            if !known.contains(node.value.as_str()) {
                self.report
                    .add(node.at, format!("unknown node \"{}\" in {path}", node.value))
                    .suggest(&node.value, names.iter().copied());
            } else if !seen.insert(node.value.as_str()) {
                self.report
                    .add(node.at, format!("node \"{}\" is named twice in {path}", node.value))
                    .hint("Keep one of the two.");
            }
        }
        let one_is_primary = nodes.iter().any(|(node, _)| {
            seen.contains(node.name.as_str()) && (node.preferred || node.promote == Promote::Automatic)
        });
        let standbys = seen.len().saturating_sub(usize::from(one_is_primary));
        if wait_for.value == 0 {
            self.report
                .add(wait_for.at, format!("{path}.wait-for must be 1 or more"))
                .hint("Write \"synchronous: none\" if commits are to wait for no standby.");
        } else if wait_for.value as usize > standbys && seen.len() == of.value.len() {
            let given = of.value.iter().map(|node| node.value.as_str()).collect::<Vec<_>>().join(", ");
            let primary = if one_is_primary { ", and one of them is or becomes the primary" } else { "" };
            self.report
                .add(
                    wait_for.at,
                    format!(
                        "{path} waits for {} synchronous standbys, its nodes can give {standbys}",
                        wait_for.value
                    ),
                )
                .detail(format!("It names {given}{primary}; every commit would wait forever."))
                .hint("Lower wait-for, name more nodes in \"of\", or write \"synchronous: none\".");
        }
        Some(Synchronous {
            wait_for: wait_for.value,
            of: of.value.iter().map(|node| node.value.clone()).collect(),
        })
    }

    fn databases(&mut self, draft: &Draft<'_>, raw: Option<&Spanned<Named<raw::Database>>>) -> Vec<String> {
        let Some(raw) = raw else {
            return vec![draft.name.to_owned()];
        };
        if raw.value.0.is_empty() && draft.names("databases").is_empty() {
            self.report
                .add(raw.at, format!("{} names no database", draft.path(".databases")))
                .hint("Remove the key: the cluster then has one database that is named like it.");
        }
        for entry in &raw.value.0 {
            if OWN_DATABASES.contains(&entry.name.as_str()) {
                self.report
                    .add(entry.at, format!("database \"{}\" cannot be declared", entry.name))
                    .detail("PostgreSQL or PgBouncer has it for its own use.")
                    .hint("Choose another name.");
            } else {
                self.object_name(entry.at, "database", &entry.name);
            }
        }
        raw.value.names().map(str::to_owned).collect()
    }

    fn role_name(&mut self, at: Position, name: &str) -> bool {
        if OWN_ROLES.contains(&name) {
            self.report
                .add(at, format!("role \"{name}\" cannot be declared: pgherd has it for its own use"))
                .hint("Choose another name.");
            return false;
        }
        self.object_name(at, "role", name)
    }

    fn roles(&mut self, draft: &Draft<'_>, raw: Option<&Spanned<Named<raw::Role>>>) -> Vec<Role> {
        let pools: Vec<&str> =
            match draft.tree.find("poolers").and_then(|tree| tree.find("pools")).map(|tree| &tree.value) {
                Some(Value::Mapping(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
                Some(Value::Scalar(_) | Value::Sequence(_) | Value::Alias) | None => Vec::new(),
            };
        let mut roles = Vec::new();
        for NamedEntry { name, at, value } in raw.map(|raw| raw.value.0.as_slice()).unwrap_or_default() {
            self.role_name(*at, name);
            let used = value.pools.as_ref().map(|pools| pools.value.as_slice()).unwrap_or_default();
            for pool in used {
                if !pools.contains(&pool.value.as_str()) {
                    self.report
                        .add(pool.at, format!("unknown pool \"{}\" of role {name}", pool.value))
                        .suggest(&pool.value, pools.iter().copied());
                }
            }
            self.twice(used, &format!("pool of role {name}"));
            if let Some(pool) = used.first()
                && !draft.has(&["roles", name, "password"])
            {
                self.report
                    .add(*at, format!("role {name} may use the pool \"{}\" but has no password", pool.value))
                    .detail("Without a password it cannot log in.")
                    .hint("Say where its password is: password: {env: NAME} or {file: PATH}; or remove its pools.");
            }
            if let Some(limit) = value.connections.as_ref().filter(|limit| limit.value == 0) {
                self.report
                    .add(limit.at, format!("connections of role {name} must be 1 or more"))
                    .hint("Remove the key if the role is not to be limited.");
            }
            let password = value.password.as_ref().map(|password| match &password.value {
                SecretReference::File(_) | SecretReference::Env(_) | SecretReference::Command(_) => {
                    self.below_base(&password.value)
                }
                SecretReference::Vault(vault) => SecretReference::Vault(Box::new(VaultReference {
                    token: self.below_base(&vault.token),
                    ca: vault.ca.as_ref().map(|ca| self.base.join(ca)),
                    ..(**vault).clone()
                })),
            });
            roles.push(Role {
                name: name.clone(),
                password,
                pools: used.iter().map(|pool| pool.value.clone()).collect(),
                connections: value.connections.as_ref().map(|limit| limit.value),
            });
        }
        roles
    }

    fn twice(&mut self, names: &[Spanned<String>], what: &str) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name.value.as_str()) {
                self.report
                    .add(name.at, format!("{what} \"{}\" is named twice", name.value))
                    .hint("Keep one of the two.");
            }
        }
    }

    fn schemas(
        &mut self,
        draft: &Draft<'_>,
        raw: Option<&Spanned<Named<raw::Schema>>>,
        databases: &[String],
    ) -> Vec<Schema> {
        let roles = draft.names("roles");
        let known: HashSet<&str> = roles.iter().copied().collect();
        let mut schemas = Vec::new();
        for NamedEntry { name, at, value } in raw.map(|raw| raw.value.0.as_slice()).unwrap_or_default() {
            let path = draft.path(&format!(".schemas.{name}"));
            self.object_name(*at, "schema", name);
            match &value.owner {
                Some(owner) => {
                    self.role_name(owner.at, &owner.value);
                }
                None if !draft.has(&["schemas", name, "owner"]) => {
                    self.missing(*at, &path, "owner", &format!("owner: {name}_owner"));
                }
                None => {}
            }
            let [write, read] = [&value.write, &value.read]
                .map(|list| list.as_ref().map(|list| list.value.as_slice()).unwrap_or_default());
            for role in write.iter().chain(read) {
                if !known.contains(role.value.as_str()) {
                    self.report
                        .add(role.at, format!("unknown role \"{}\" in {path}", role.value))
                        .suggest(&role.value, roles.iter().copied());
                }
            }
            self.twice(write, &format!("role in {path}.write"));
            self.twice(read, &format!("role in {path}.read"));
            let database = match (&value.database, databases) {
                (Some(database), _) if databases.contains(&database.value) => Some(database.value.clone()),
                (Some(database), _) => {
                    self.report
                        .add(database.at, format!("unknown database \"{}\" in {path}", database.value))
                        .suggest(&database.value, databases.iter().map(String::as_str));
                    None
                }
                (None, [only]) => Some(only.clone()),
                (None, several) => {
                    if !draft.has(&["schemas", name, "database"]) {
                        self.missing(*at, &path, "database", "database: NAME, since the cluster has several");
                    }
                    several.first().cloned()
                }
            };
            let (Some(owner), Some(database)) = (&value.owner, database) else {
                continue;
            };
            let names = |list: &[Spanned<String>]| list.iter().map(|role| role.value.clone()).collect();
            schemas.push(Schema {
                name: name.clone(),
                database,
                owner: owner.value.clone(),
                write: names(write),
                read: names(read),
            });
        }
        schemas
    }

    fn poolers(
        &mut self,
        draft: &Draft<'_>,
        raw: &Spanned<raw::Poolers>,
        port: Option<(u16, Position)>,
    ) -> Option<Poolers> {
        let path = draft.path(".poolers");
        if !draft.has(&["poolers", "hosts"]) {
            self.missing(raw.at, &path, "hosts", "hosts: [HOST]");
        }
        if !draft.has(&["poolers", "pools"]) {
            self.missing(raw.at, &path, "pools", "pools: {rw: {to: primary, size: 20}}");
        }
        if !draft.has(&["ports", "pooler"]) {
            self.missing(draft.at, &draft.path(".ports"), "pooler", "ports: {pooler: 6432}");
        }
        let raw = &raw.value;
        let hosts = raw.hosts.as_ref().map(|hosts| hosts.value.as_slice()).unwrap_or_default();
        if let Some(list) = raw.hosts.as_ref().filter(|list| list.value.is_empty()) {
            self.report
                .add(list.at, format!("{path}.hosts names no host"))
                .hint("Write \"poolers: none\" if the cluster has no pooler.");
        }
        self.twice(hosts, &format!("host in {path}.hosts"));
        for host in hosts {
            if self.known_host(host)
                && let Some((port, at)) = port
            {
                let at = if hosts.len() > 1 { host.at } else { at };
                self.listen(at, &host.value, port, format!("the pooler of {}", draft.name));
            }
        }
        if let Some(limit) = raw.max_clients.as_ref().filter(|limit| limit.value == 0) {
            self.report
                .add(limit.at, format!("{path}.max-clients must be 1 or more"))
                .hint(format!("Remove the key for the default of {DEFAULT_MAX_CLIENTS}."));
        }
        let processes = raw.processes.as_ref().map_or(1, |count| count.value);
        if let Some(count) =
            raw.processes.as_ref().filter(|count| count.value == 0 || count.value > MOST_PROCESSES)
        {
            self.report
                .add(count.at, format!("{path}.processes must be 1 to {MOST_PROCESSES}"))
                .detail("A PgBouncer uses one core; more processes than cores gain nothing.")
                .hint("Remove the key for one.");
        }
        let mut pools = Vec::new();
        for entry in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            pools.extend(self.pool(draft, entry, hosts.len() * processes as usize));
        }
        let users = raw.users.as_ref().map(|users| users.value.0.as_slice()).unwrap_or_default();
        let user = |entry: &NamedEntry<raw::PoolUser>| PoolUser {
            name: entry.name.clone(),
            mode: entry.value.mode.as_ref().map(|mode| mode.value),
            connections: entry.value.connections.as_ref().map(|count| count.value),
            size: entry.value.size.as_ref().map(|count| count.value),
            clients: entry.value.clients.as_ref().map(|count| count.value),
        };
        Some(Poolers {
            processes,
            auth: raw.auth.as_ref().map(|auth| auth.value).unwrap_or_default(),
            users: users.iter().map(user).collect(),
            hosts: hosts.iter().map(|host| host.value.clone()).collect(),
            port: port?.0,
            mode: raw.mode.as_ref().map_or(PoolMode::Transaction, |mode| mode.value),
            max_clients: raw.max_clients.as_ref().map_or(DEFAULT_MAX_CLIENTS, |limit| limit.value),
            pools,
        })
    }

    fn pool(&mut self, draft: &Draft<'_>, entry: &NamedEntry<raw::Pool>, poolers: usize) -> Option<Pool> {
        let NamedEntry { name, at, value } = entry;
        let path = draft.path(&format!(".poolers.pools.{name}"));
        self.name(*at, "pool", name);
        for (key, example) in [("to", "to: primary"), ("size", "size: 20")] {
            if !draft.has(&["poolers", "pools", name, key]) {
                self.missing(*at, &path, key, example);
            }
        }
        let (to, size) = (value.to.as_ref()?, value.size.as_ref()?);
        if (size.value as usize) < poolers.max(1) {
            self.report
                .add(size.at, format!("{path}.size is {}, too small for {poolers} poolers", size.value))
                .detail("A size is the total for a node, divided among the poolers; each needs at least 1.")
                .hint("Raise the size, or name fewer hosts in \"poolers\".");
        }
        if to.value == PoolTarget::Primary {
            let stated = [
                ("max-lag", value.max_lag.as_ref().map(|lag| lag.at)),
                ("fallback", value.fallback.as_ref().map(|fallback| fallback.at)),
                ("of", value.of.as_ref().map(|of| of.at)),
            ];
            for (key, at) in stated.into_iter().filter_map(|(key, at)| Some((key, at?))) {
                self.report
                    .add(at, format!("{path}.{key} is only for pools that lead to standbys"))
                    .hint("Remove it, or write \"to: standbys\".");
            }
        }
        Some(Pool {
            name: name.clone(),
            to: to.value,
            size: size.value,
            reserve: value.reserve.as_ref().map_or(0, |reserve| reserve.value),
            max_lag: value.max_lag.as_ref().map(|lag| lag.value),
            fallback_to_primary: value.fallback.is_some(),
            mode: value.mode.as_ref().map(|mode| mode.value),
            of: value.of.iter().flat_map(|of| &of.value).map(|name| name.value.clone()).collect(),
        })
    }

    fn pools_lead_somewhere(&mut self, draft: &Draft<'_>, raw: &raw::Poolers) {
        if draft.names("nodes").len() != 1 {
            return;
        }
        for pool in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            if let Some(to) = pool.value.to.as_ref().filter(|to| to.value == PoolTarget::Standbys)
                && !draft.has(&["poolers", "pools", &pool.name, "fallback"])
            {
                self.report
                    .add(
                        to.at,
                        format!("pool \"{}\" leads to standbys, and {} has none", pool.name, draft.name),
                    )
                    .hint("Add a node, or write \"fallback: primary\".");
            }
        }
    }

    /// What a pool may lead to are nodes of the cluster.
    fn pool_nodes(&mut self, draft: &Draft<'_>, raw: &raw::Poolers, nodes: &[(Node, Position)]) {
        let names: Vec<&str> = nodes.iter().map(|(node, _)| node.name.as_str()).collect();
        for entry in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            let Some(of) = &entry.value.of else { continue };
            let path = draft.path(&format!(".poolers.pools.{}.of", entry.name));
            if of.value.is_empty() {
                self.report
                    .add(of.at, format!("{path} names no node"))
                    .hint("Remove the key: the pool then leads to any standby.");
            }
            for name in of.value.iter().filter(|name| !names.contains(&name.value.as_str())) {
                self.report
                    .add(name.at, format!("unknown node \"{}\" in {path}", name.value))
                    .suggest(&name.value, names.iter().copied());
            }
            self.twice(&of.value, &format!("node in {path}"));
        }
    }

    /// Limits are for roles that come through the poolers.
    fn pool_users(&mut self, draft: &Draft<'_>, raw: &raw::Poolers, roles: &[Role]) {
        let known: Vec<&str> =
            roles.iter().filter(|role| !role.pools.is_empty()).map(|role| role.name.as_str()).collect();
        for entry in raw.users.as_ref().map(|users| users.value.0.as_slice()).unwrap_or_default() {
            let path = draft.path(&format!(".poolers.users.{}", entry.name));
            if !known.contains(&entry.name.as_str()) {
                self.report
                    .add(entry.at, format!("{path} limits a role that has no pools"))
                    .suggest(&entry.name, known.iter().copied());
            }
            let plain =
                entry.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
            if !plain {
                self.report
                    .add(entry.at, format!("PgBouncer cannot limit the role {:?}", entry.name))
                    .detail("Its configuration takes letters, digits, \"_\", \".\" and \"-\" in a name, quoted or not.")
                    .hint("Rename the role, or limit it with \"connections\" of the role itself.");
            }
            let value = &entry.value;
            // 0 means "no limit" to PgBouncer, and as a pool's size so only since 1.24.
            for (key, count) in
                [("connections", &value.connections), ("size", &value.size), ("clients", &value.clients)]
            {
                if let Some(count) = count.as_ref().filter(|count| count.value == 0) {
                    self.report
                        .add(count.at, format!("{path}.{key} must be 1 or more"))
                        .hint("Remove the key if the role is not to be limited.");
                }
            }
        }
    }

    /// The names under which clients reach the databases must differ.
    fn aliases(&mut self, draft: &Draft<'_>, raw: &raw::Poolers, poolers: &Poolers, databases: &[String]) {
        let Some(raw) = &raw.pools else {
            return;
        };
        let mut seen: HashMap<String, (&str, &str)> = HashMap::new();
        for pool in &poolers.pools {
            let at =
                raw.value.0.iter().find(|entry| entry.name == pool.name).map_or(raw.at, |entry| entry.at);
            for database in databases {
                let alias = pool.alias(database);
                // PgBouncer's parser takes no quoted name, whatever its manual says (pgbouncer issue 971; seen with 1.18).
                let plain =
                    alias.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
                if !plain {
                    self.report
                        .add(at, format!("PgBouncer cannot have the alias {alias:?}"))
                        .detail("Its configuration takes letters, digits, \"_\", \".\" and \"-\" in a name, quoted or not.")
                        .hint("Rename the database, or write \"poolers: none\".");
                } else if alias.len() > 63 {
                    self.report
                        .add(
                            at,
                            format!(
                                "the alias \"{alias}\" of {} has {} bytes, PgBouncer takes 63",
                                draft.name,
                                alias.len()
                            ),
                        )
                        .hint("Shorten the name of the pool or of the database.");
                } else if alias == "pgbouncer" {
                    self.report
                        .add(at, "the alias \"pgbouncer\" is PgBouncer's admin console")
                        .hint("Rename the pool or the database.");
                }
                if let Some((other_database, other_pool)) = seen.insert(alias.clone(), (database, &pool.name))
                {
                    self.report
                        .add(at, format!("two pools of {} have the alias \"{alias}\"", draft.name))
                        .detail(format!(
                            "It is database {other_database} through pool {other_pool}, and database {database} through pool {}.",
                            pool.name
                        ))
                        .hint("Rename the pool or the database.");
                }
            }
        }
    }

    /// No node may be asked for more connections than it has, whichever role it has.
    fn budget(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Poolers,
        poolers: &Poolers,
        (nodes, roles): (&[(Node, Position)], &[Role]),
        postgres: Option<&Postgres>,
    ) {
        let (Some(postgres), Some(raw_pools)) = (postgres, &raw.pools) else {
            return;
        };
        let limits = Limits::declared(postgres);
        let direct = budget::direct(roles);
        let usable = limits.free().saturating_sub(direct);
        let mut has = format!("{limits}");
        if direct > 0 {
            has.push_str(&format!(" - {direct} of roles without a pool"));
        }
        has.push_str(&format!(" = {usable}"));
        // A node that is alone serves the pools that fall back, any other one its share of them.
        let worst = |node: &Node| -> (&str, Vec<PoolDemand>) {
            let of = |primary| budget::demand(&poolers.pools, &node.name, primary, true);
            let sum = |pools: &[PoolDemand]| -> u64 {
                pools.iter().map(|pool| u64::from(pool.size) + u64::from(pool.reserve)).sum()
            };
            let (primary, standby) = (of(true), of(false));
            if sum(&primary) >= sum(&standby) { ("primary", primary) } else { ("standby", standby) }
        };
        let told = |pools: &[PoolDemand]| -> (u64, String) {
            let needed = pools.iter().map(|pool| u64::from(pool.size) + u64::from(pool.reserve)).sum();
            let sum = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            (needed, if sum.contains([',', '+']) { format!("{sum} = {needed}") } else { sum })
        };
        let most = nodes.iter().map(|(node, _)| worst(node)).max_by_key(|(_, pools)| told(pools).0);
        if let Some((role, pools)) = most
            && told(&pools).0 > u64::from(usable)
        {
            let (needed, sum) = told(&pools);
            let largest = pools.iter().rev().max_by_key(|pool| pool.size);
            let at = largest
                .and_then(|pool| raw_pools.value.0.iter().find(|entry| entry.name == pool.pool))
                .and_then(|entry| entry.value.size.as_ref())
                .map_or(raw_pools.at, |size| size.at);
            self.report
                .add(
                    at,
                    format!(
                        "the pools may open {needed} connections to a node of {}, it has {usable} for them",
                        draft.name
                    ),
                )
                .detail(format!("As {role}: {sum}. {has}."))
                .hint("Lower a size or a reserve, or raise max_connections under \"settings\".");
        }
        for (node, at) in nodes {
            let Some(stated) = node.pool_connections else {
                continue;
            };
            let (role, pools) = worst(node);
            let (needed, sum) = told(&pools);
            let full = format!("{}-{}", draft.name, node.name);
            if needed > u64::from(stated) {
                self.report
                    .add(*at, format!("the pools may open {needed} connections to {full}, its pool-connections are {stated}"))
                    .detail(format!("As {role}: {sum}."))
                    .hint("Lower a size or a reserve, or raise its pool-connections.");
            }
            if stated > usable {
                self.report
                    .add(*at, format!("{full} has pool-connections {stated}, more than the {usable} that its server has for them"))
                    .detail(format!("{has}."))
                    .hint("Lower pool-connections, or raise max_connections under \"settings\".");
            }
        }
    }

    fn objectives(&mut self, draft: &Draft<'_>, cluster: &raw::Cluster) -> BTreeMap<String, Objective> {
        let Some(raw) = cluster.objectives.as_ref().map(|raw| &raw.value) else {
            return BTreeMap::new();
        };
        let synchronous = cluster.synchronous.is_some();
        let scenarios = [
            ("lose-primary", &raw.lose_primary),
            ("lose-region", &raw.lose_region),
            ("undo-mistake", &raw.undo_mistake),
        ];
        let mut objectives = BTreeMap::new();
        for (scenario, objective) in
            scenarios.into_iter().filter_map(|(name, objective)| Some((name, objective.as_ref()?)))
        {
            for (key, example) in [("rpo", "rpo: 5 s"), ("rto", "rto: 30 s")] {
                if !draft.has(&["objectives", scenario, key]) {
                    self.missing(objective.at, &draft.path(&format!(".objectives.{scenario}")), key, example);
                }
            }
            if scenario == "undo-mistake" && !draft.has(&["backups"]) {
                self.report
                    .add(objective.at, format!("{} cannot undo a mistake: it has no backups", draft.name))
                    .detail("What was deleted on purpose or by accident is deleted on every standby too.")
                    .hint("Declare \"backups: {repository: NAME}\", or remove the objective.");
            }
            let (Some(rpo), Some(rto)) = (&objective.value.rpo, &objective.value.rto) else {
                continue;
            };
            if scenario == "lose-primary" && rpo.value.is_zero() && !synchronous {
                let standbys: Vec<&str> = draft.names("nodes");
                let hint = if standbys.len() > 1 {
                    format!(
                        "Declare \"synchronous: {{wait-for: 1, of: [{}]}}\", or an rpo above 0 s.",
                        standbys.join(", ")
                    )
                } else {
                    "Add a standby and declare \"synchronous: {wait-for: 1, of: [...]}\", or an rpo above 0 s.".to_owned()
                };
                self.report
                    .add(rpo.at, format!("{} cannot lose its primary with an rpo of 0 s: it has no synchronous standby", draft.name))
                    .detail("A commit is acknowledged before any standby has it, so the newest ones die with the primary.")
                    .hint(hint);
            }
            objectives.insert(scenario.to_owned(), Objective { rpo: rpo.value, rto: rto.value });
        }
        objectives
    }

    fn backups(&mut self, draft: &Draft<'_>, raw: &Spanned<raw::Backups>) -> Option<Backups> {
        let path = draft.path(".backups");
        if !draft.has(&["backups", "repository"]) {
            self.missing(raw.at, &path, "repository", "repository: NAME");
        }
        let raw = &raw.value;
        for (key, count) in [("keep-full", &raw.keep_full), ("minimum-full", &raw.minimum_full)] {
            if let Some(count) = count.as_ref().filter(|count| count.value == 0) {
                self.report
                    .add(count.at, format!("{path}.{key} must be 1 or more"))
                    .hint("Remove the key; the newest full backup always stays.");
            }
        }
        if let Some(window) = raw.window.as_ref().filter(|window| window.value.is_zero()) {
            self.report
                .add(window.at, format!("{path}.window must be longer than 0"))
                .hint("Write a span of time such as \"30 days\", or remove the key.");
        }
        if let (Some(keep), Some(minimum)) = (&raw.keep_full, &raw.minimum_full)
            && keep.value < minimum.value
        {
            self.report
                .add(
                    keep.at,
                    format!("{path}.keep-full is {}, minimum-full is {}", keep.value, minimum.value),
                )
                .detail(format!(
                    "The newest {} always stay, so {} can never be what is kept.",
                    minimum.value, keep.value
                ))
                .hint("Raise keep-full, or lower minimum-full.");
        }
        let repository = raw.repository.as_ref()?;
        let names: Vec<String> = self.repositories.iter().map(|known| known.name.clone()).collect();
        let Some(known) = self.repositories.iter().find(|known| known.name == repository.value) else {
            self.report
                .add(repository.at, format!("unknown repository \"{}\" in {path}", repository.value))
                .suggest(&repository.value, names.iter().map(String::as_str));
            return None;
        };
        Some(Backups {
            repository: known.repository.clone()?,
            from: raw.from.as_ref().map_or(BackupSource::Standby, |from| from.value),
            window: raw.window.as_ref().map(|window| window.value),
            keep_full: raw.keep_full.as_ref().map(|count| count.value),
            minimum_full: raw.minimum_full.as_ref().map_or(1, |count| count.value),
        })
    }

    fn restore_drill(
        &mut self,
        draft: &Draft<'_>,
        raw: &Spanned<raw::RestoreDrill>,
        databases: &[String],
    ) -> Option<RestoreDrill> {
        let path = draft.path(".drills.restore");
        if !draft.has(&["backups"]) {
            self.report
                .add(raw.at, format!("{path} has nothing to restore: {} has no backups", draft.name))
                .hint("Declare \"backups: {repository: NAME}\", or remove the drill.");
        }
        let raw = &raw.value;
        let assertions = self.assertions(draft, raw, databases);
        let prove = match &raw.prove {
            Some(prove) => {
                if prove.value.is_empty() && draft.is_empty_list(&["drills", "restore", "prove"]) {
                    self.report
                        .add(prove.at, format!("{path}.prove names nothing"))
                        .detail("A restore that is not checked proves little.")
                        .hint("Remove the key: all that can be checked is then checked.");
                }
                let mut proofs: Vec<RestoreProof> = Vec::new();
                for proof in &prove.value {
                    if proofs.contains(&proof.value) {
                        self.report
                            .add(proof.at, format!("{path}.prove names one check twice"))
                            .hint("Keep one of the two.");
                    }
                    let asks = proof.value == RestoreProof::Assertions;
                    if asks && draft.names_at(&["drills", "restore", "assertions"]).is_empty() {
                        self.report
                            .add(proof.at, format!("{path} proves assertions and has none"))
                            .hint("Declare \"assertions: {NAME: {sql: select ...}}\", or remove the word.");
                    }
                    proofs.push(proof.value);
                }
                if let Some(raw) = raw.assertions.as_ref().filter(|raw| !raw.value.0.is_empty())
                    && !proofs.contains(&RestoreProof::Assertions)
                {
                    self.report
                        .add(raw.at, format!("{path} has assertions and does not prove them"))
                        .hint("Add \"assertions\" to \"prove\", or remove \"prove\".");
                }
                proofs
            }
            None => {
                let mut all = vec![RestoreProof::Checksums, RestoreProof::Amcheck];
                all.extend((!assertions.is_empty()).then_some(RestoreProof::Assertions));
                all
            }
        };
        Some(RestoreDrill {
            to: raw.to.as_ref().map_or(DrillTarget::Newest, |to| to.value),
            prove,
            assertions,
        })
    }

    fn assertions(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::RestoreDrill,
        databases: &[String],
    ) -> Vec<Assertion> {
        let mut assertions = Vec::new();
        let entries = raw.assertions.as_ref().map(|raw| raw.value.0.as_slice()).unwrap_or_default();
        for NamedEntry { name, at, value } in entries {
            let path = draft.path(&format!(".drills.restore.assertions.{name}"));
            self.name(*at, "drill's assertion", name);
            let has = |key| draft.has(&["drills", "restore", "assertions", name, key]);
            if !has("sql") {
                self.missing(*at, &path, "sql", "sql: \"select count(*) > 0 from SCHEMA.TABLE\"");
            }
            let database = match (&value.database, databases) {
                (Some(database), _) if databases.contains(&database.value) => Some(database.value.clone()),
                (Some(database), _) => {
                    self.report
                        .add(database.at, format!("unknown database \"{}\" in {path}", database.value))
                        .suggest(&database.value, databases.iter().map(String::as_str));
                    None
                }
                (None, [only]) => Some(only.clone()),
                (None, _) => {
                    if !has("database") {
                        self.missing(*at, &path, "database", "database: NAME, since the cluster has several");
                    }
                    None
                }
            };
            if let (Some(database), Some(sql)) = (database, &value.sql) {
                assertions.push(Assertion { name: name.clone(), database, sql: sql.value.clone() });
            }
        }
        assertions
    }
}
