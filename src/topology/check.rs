//! Makes the model from what is written: fills in defaults, resolves names, and checks every rule that takes two values to see.
//!
//! Goes on after each problem. A key that is there but wrong was reported when it was decoded; only one that is missing is
//! reported here.

mod backups;
mod custom;
mod health;
mod hooks;
mod hosts;
mod jobs;
mod nodes;
mod objects;
mod partitions;
mod poolers;
mod repositories;

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use super::declared::TLS_SETTINGS;
use super::decode::{Cx, Decode as _, Named, OwnOr, SettingText, Spanned};
use super::jobs::Job;
use super::merge::{merge, without_none};
use super::model::{
    Cluster, Herd, Host, Node, Poolers, Postgres, Reach, Repository, SecretReference, Service, Tls,
    VaultReference,
};
use super::problem::{Position, Report};
use super::yaml::{Node as Tree, Value};
use super::{raw, settings};
use crate::pg::ident::check_object_name;

/// Checks a whole file; `None` if it is not even a topology.
pub(super) fn check(tree: &Tree, file: PathBuf, base: &Path, report: &mut Report) -> Option<Herd> {
    let topology = raw::Topology::decode(tree, &mut Cx::new(report))?;
    let mut checker = Checker {
        report,
        base,
        herd: None,
        timezone: "UTC".to_owned(),
        hosts: Vec::new(),
        host_index: HashMap::new(),
        repositories: Vec::new(),
        taken: HashMap::new(),
        directories: Vec::new(),
        full_names: HashMap::new(),
        jobs: Vec::new(),
    };
    checker.format_version(&topology, tree);
    let name = checker.herd_name(&topology, tree);
    checker.herd.clone_from(&name);
    let timezone = checker.timezone(&topology);
    checker.timezone.clone_from(&timezone);
    checker.regions(&topology, tree);
    checker.repositories(&topology, tree);
    let defaults = tree.find("defaults");
    if let Some(defaults) = defaults {
        checker.none_removes_something(None, "defaults", defaults);
    }
    let mut clusters = Vec::new();
    match (tree.find("clusters").map(|clusters| &clusters.value), &topology.clusters) {
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
    let mut jobs = std::mem::take(&mut checker.jobs);
    let scheduler = checker.scheduler(&topology, &clusters, &mut jobs);
    let hosts = std::mem::take(&mut checker.hosts);
    let repositories = std::mem::take(&mut checker.repositories);
    let repositories = repositories.into_iter().filter_map(|declared| declared.repository).collect();
    Some(Herd { name: name?, timezone, file, hosts, repositories, clusters, scheduler, jobs })
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
    /// The zone of every clock time in the file.
    timezone: String,
    hosts: Vec<Host>,
    host_index: HashMap<String, usize>,
    repositories: Vec<DeclaredRepository>,
    /// Who listens where: machine and port.
    taken: HashMap<(String, u16), (String, Position)>,
    directories: Vec<Directory>,
    /// Names of nodes in the whole herd, and where each was given.
    full_names: HashMap<String, Position>,
    /// What has a schedule, of the clusters so far.
    jobs: Vec<Job>,
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
        self.known_zone(zone);
        zone.value.clone()
    }

    /// Reports a zone that is none.
    fn known_zone(&mut self, zone: &Spanned<String>) {
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
        let partitions = self.partitions(&draft, &raw, &databases);
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
        let used: BTreeSet<String> = nodes
            .iter()
            .map(|(node, _)| node.host.clone())
            .chain(poolers.iter().flat_map(|poolers| poolers.hosts.clone()))
            .collect();
        let hooks = self.hooks(&draft, &raw, &used);
        let jobs = self.jobs_of(&draft, &raw, &databases);
        self.jobs.extend(jobs);
        let notify = raw.notify.as_ref().and_then(|notify| self.notify(&draft, notify));
        (valid_name && !nodes.is_empty()).then_some(())?;
        Some(Cluster {
            name: name.to_owned(),
            postgres: postgres?,
            nodes: nodes.into_iter().map(|(node, _)| node).collect(),
            synchronous,
            databases,
            schemas,
            roles,
            partitions,
            poolers,
            objectives,
            backups,
            drills,
            hosts,
            health,
            checks,
            hooks,
            notify,
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
    /// Returns the database that an entry means: what it states, else the only one; `None` after it was reported that there is none.
    ///
    /// `keys` lead from the cluster to the entry. `postgres`, which every cluster has, is one of them with `maintenance`.
    fn database_of(
        &mut self,
        draft: &Draft<'_>,
        (keys, at): (&[&str], Position),
        stated: Option<&Spanned<String>>,
        databases: &[String],
        maintenance: bool,
    ) -> Option<String> {
        let path = draft.path(&format!(".{}", keys.join(".")));
        match (stated, databases) {
            (Some(stated), _)
                if databases.contains(&stated.value) || (maintenance && stated.value == "postgres") =>
            {
                Some(stated.value.clone())
            }
            (Some(stated), _) => {
                self.report
                    .add(stated.at, format!("unknown database \"{}\" in {path}", stated.value))
                    .suggest(&stated.value, databases.iter().map(String::as_str));
                None
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => {
                if !draft.has(&[keys, &["database"]].concat()) {
                    let example = match databases {
                        [] => "database: NAME",
                        _ => "database: NAME, since the cluster has several",
                    };
                    self.missing(at, &path, "database", example);
                }
                None
            }
        }
    }

    fn postgres(&mut self, draft: &Draft<'_>, raw: Option<&Spanned<raw::Postgres>>) -> Option<Postgres> {
        if !draft.has(&["postgres", "version"]) {
            self.missing(draft.at, &draft.path(".postgres"), "version", "postgres: {version: 18}");
        }
        let raw = &raw?.value;
        if let Some(directory) = &raw.bin_directory {
            self.absolute(directory, "bin-directory");
        }
        if let Some(user) = &raw.os_user
            && (!hosts::is_user_name(&user.value) || user.value == "root")
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

    /// Has every path of a reference count from the topology.
    fn reference(&self, stated: &SecretReference) -> SecretReference {
        match stated {
            SecretReference::File(_) | SecretReference::Env(_) | SecretReference::Command(_) => {
                self.below_base(stated)
            }
            SecretReference::Vault(vault) => SecretReference::Vault(Box::new(VaultReference {
                token: self.below_base(&vault.token),
                ca: vault.ca.as_ref().map(|ca| self.base.join(ca)),
                ..(**vault).clone()
            })),
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
}
