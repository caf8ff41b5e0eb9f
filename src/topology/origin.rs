//! What a cluster comes to, value by value, each with the line that it comes from: of the cluster, of `defaults`, or of nobody.
//!
//! Shows where a secret is and never reads it; of a command it shows the program alone.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::checks::{DeclaredChecks, Report};
use super::jobs::{Clean, Dump, Job, Refresh, Reindex, Vacuum, Work};
use super::model::{
    BackupSource, Cluster, Compression, DrillTarget, Herd, PoolTarget, PoolerAuth, Promote, Repository,
    RestoreProof, SecretReference, Service, Tls,
};
use super::partitions::{TableName, Then};
use super::problem::{Position, Problems};
use super::yaml::{Node, Value};

/// Who said a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Cluster,
    Defaults,
    /// Nobody: the default of pgherd.
    Pgherd,
}

/// One value of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The keys that lead to it: `nodes.a.port`.
    pub path: String,
    pub value: String,
    pub source: Source,
    /// Where it is written.
    pub at: Option<Position>,
}

/// Reads a topology and lists every value of a cluster; `None` if there is no such cluster.
///
/// # Errors
/// Every problem of the file.
pub fn explain(file: &Path, cluster: &str) -> Result<(Herd, Option<Vec<Effective>>), Problems> {
    let (herd, tree) = super::load_tree(file, &super::read(file)?, &super::directory_of(file))?;
    let values = herd.cluster(cluster).map(|cluster| {
        let own = tree.find("clusters").and_then(|clusters| clusters.find(&cluster.name));
        let mut list = List { own, defaults: tree.find("defaults"), values: Vec::new() };
        list.cluster(cluster);
        herd.jobs
            .iter()
            .filter(|job| job.cluster.as_ref() == Some(&cluster.name))
            .for_each(|job| list.job(job));
        list.values
    });
    Ok((herd, values))
}

struct List<'a> {
    own: Option<&'a Node>,
    defaults: Option<&'a Node>,
    values: Vec<Effective>,
}

fn place(tree: Option<&Node>, path: &[&str]) -> Option<Position> {
    path.iter().try_fold(tree?, |tree, key| tree.find(key)).map(|tree| tree.at)
}

impl List<'_> {
    /// Adds a value whose place is that of its own path.
    fn add(&mut self, path: &[&str], value: impl Into<String>) {
        self.add_from(path, path, value);
    }

    /// Adds a value that may be said under another path too.
    fn add_from(&mut self, path: &[&str], other: &[&str], value: impl Into<String>) {
        let found = [path, other].into_iter().find_map(|path| {
            let own = place(self.own, path).map(|at| (Source::Cluster, Some(at)));
            own.or_else(|| place(self.defaults, path).map(|at| (Source::Defaults, Some(at))))
        });
        let (source, at) = found.unwrap_or((Source::Pgherd, None));
        self.values.push(Effective { path: path.join("."), value: value.into(), source, at });
    }

    fn cluster(&mut self, cluster: &Cluster) {
        self.postgres(cluster);
        for node in &cluster.nodes {
            let name = node.name.as_str();
            self.add(&["nodes", name, "host"], &node.host);
            self.add_from(&["nodes", name, "port"], &["ports", "postgres"], node.port.to_string());
            self.add(&["nodes", name, "data-directory"], node.data_directory.display().to_string());
            for (key, place) in [
                ("config-directory", &node.config_directory),
                ("socket-directory", &node.socket_directory),
                ("log-directory", &node.log_directory),
            ] {
                if let Some(place) = place {
                    self.add(&["nodes", name, key], place.display().to_string());
                }
            }
            if node.preferred {
                self.add(&["nodes", name, "prefer"], "primary");
            }
            let promote = match node.promote {
                Promote::Automatic => "automatic",
                Promote::ByHand => "by-hand",
            };
            self.add(&["nodes", name, "promote"], promote);
            if let Some(connections) = node.pool_connections {
                self.add(&["nodes", name, "pool-connections"], connections.to_string());
            }
        }
        match &cluster.synchronous {
            None => self.add(&["synchronous"], "none"),
            Some(rule) => {
                self.add(&["synchronous", "wait-for"], rule.wait_for.to_string());
                self.add(&["synchronous", "of"], list(&rule.of));
            }
        }
        for database in &cluster.databases {
            self.add(&["databases", database], "{}");
        }
        for schema in &cluster.schemas {
            let name = schema.name.as_str();
            self.add(&["schemas", name, "database"], &schema.database);
            self.add(&["schemas", name, "owner"], &schema.owner);
            self.add(&["schemas", name, "write"], list(&schema.write));
            self.add(&["schemas", name, "read"], list(&schema.read));
        }
        for role in &cluster.roles {
            let name = role.name.as_str();
            self.add(
                &["roles", name, "password"],
                role.password.as_ref().map_or("none".to_owned(), reference),
            );
            self.add(&["roles", name, "pools"], list(&role.pools));
            self.add(
                &["roles", name, "connections"],
                role.connections.map_or("none".to_owned(), |limit| limit.to_string()),
            );
        }
        self.partitions(cluster);
        self.poolers(cluster);
        for (scenario, objective) in &cluster.objectives {
            self.add(&["objectives", scenario, "rpo"], written(objective.rpo));
            self.add(&["objectives", scenario, "rto"], written(objective.rto));
        }
        self.backups(cluster);
        self.drills(cluster);
        self.health(&["health"], &cluster.health);
        for check in &cluster.checks {
            let path = |key| ["checks", check.name.as_str(), key];
            self.add(&path("database"), &check.database);
            self.add(&path("sql"), &check.sql);
            self.add(&path("measure"), check.measure.word());
            for (key, limit) in [("warn", check.limits.warn), ("crit", check.limits.crit)] {
                if let Some(limit) = limit {
                    self.add(&path(key), check.measure.written(limit));
                }
            }
            self.add(&path("timeout"), written(check.timeout));
            self.add(&path("on"), check.on.word());
        }
        for node in &cluster.nodes {
            self.health(&["nodes", &node.name, "health"], &node.health);
        }
        if let Some(notify) = &cluster.notify {
            self.add(&["notify", "url"], reference(&notify.url));
            let events: Vec<String> = notify.events.iter().map(|event| event.word().to_owned()).collect();
            self.add(&["notify", "events"], list(&events));
            if let Some(ca) = &notify.ca {
                self.add(&["notify", "ca", "file"], ca.display().to_string());
            }
        }
        for hook in &cluster.hooks {
            let point = hook.point.word();
            let path = |key| ["hooks", point, key];
            let more = if hook.args.is_empty() { "" } else { ", ..." };
            let run = format!("[{}{more}]", hook.program.display());
            self.add_from(&path("run"), &["hooks", point], run);
            self.add(&path("timeout"), written(hook.timeout));
            self.add(&path("on"), hook.on.word());
        }
    }

    fn partitions(&mut self, cluster: &Cluster) {
        let tables =
            |tree: Option<&Node>| match tree.and_then(|tree| tree.find("partitions")).map(|tree| &tree.value)
            {
                Some(Value::Mapping(entries)) => entries.iter().map(|entry| entry.key.clone()).collect(),
                Some(Value::Scalar(_) | Value::Sequence(_) | Value::Alias) | None => Vec::new(),
            };
        let keys = [tables(self.own), tables(self.defaults)].concat();
        for set in &cluster.partitions {
            // The name may be written with quotes that it does not need.
            let key = keys.iter().find(|key| TableName::parse(key).is_ok_and(|table| table == set.table));
            let name = key.cloned().unwrap_or_else(|| set.table.to_string());
            let path = |key| ["partitions", name.as_str(), key];
            self.add(&path("database"), &set.database);
            self.add(&path("by"), &set.by);
            self.add(&path("every"), set.every.word());
            self.add(&path("ahead"), set.ahead.to_string());
            self.add(&path("keep"), set.keep.map_or("none".to_owned(), |keep| keep.to_string()));
            if set.keep.is_some() {
                self.add(&path("then"), set.then.word());
            }
            if set.then == Then::ExportAndDrop {
                let keep = set.keep_exports.map_or("none".to_owned(), |keep| keep.to_string());
                self.add(&path("keep-exports"), keep);
            }
            self.add(&path("timezone"), &set.timezone);
            self.add(&path("default-partition"), set.default_partition.word());
            if let Some(tablespace) = &set.tablespace {
                self.add(&path("tablespace"), tablespace);
            }
            self.add(&path("grants"), if set.copies_grants { "copy" } else { "none" });
            self.add(&path("names"), set.names.as_str());
        }
    }

    fn health(&mut self, under: &[&str], checks: &DeclaredChecks) {
        for (check, declared) in checks {
            let mut add = |key: &str, value: String| self.add(&[under, &[check.name(), key]].concat(), value);
            let limits = declared.limits.or(check.limits());
            for (key, value) in [("warn", limits.warn), ("crit", limits.crit)] {
                if let (Some(value), Some(measure)) = (value, check.measure()) {
                    add(key, measure.written(value));
                }
            }
            if let Some(after) = declared.after {
                add("after", after.to_string());
            }
            if let Some(report) = declared.report {
                let word = match report {
                    Report::Critical => "critical",
                    Report::Warning => "warning",
                    Report::Never => "never",
                };
                add("report", word.to_owned());
            }
        }
    }

    fn backups(&mut self, cluster: &Cluster) {
        let Some(backups) = &cluster.backups else {
            self.add(&["backups"], "none");
            return;
        };
        let Repository { name, url, s3: _, keys: _, access: _ } = &backups.repository;
        self.add(&["backups", "repository"], format!("{name} ({url})"));
        for Repository { name, url, s3: _, keys: _, access: _ } in &backups.copies {
            self.add(&["backups", "copies", name], url);
        }
        let from = match backups.from {
            BackupSource::Standby => "standby",
            BackupSource::Primary => "primary",
        };
        self.add(&["backups", "from"], from);
        self.add(&["backups", "window"], backups.window.map_or("none".to_owned(), written));
        let keep = backups.keep_full.map_or("none".to_owned(), |count| count.to_string());
        self.add(&["backups", "keep-full"], keep);
        self.add(&["backups", "minimum-full"], backups.minimum_full.to_string());
        self.add(&["backups", "compression"], backups.compression.codec().word());
        if let Compression::Zstd { level } = backups.compression {
            self.add(&["backups", "compression-level"], level.to_string());
        }
    }

    fn drills(&mut self, cluster: &Cluster) {
        let Some(drill) = &cluster.drills else {
            return;
        };
        let to = match drill.to {
            DrillTarget::Newest => "newest",
            DrillTarget::RandomSecond => "random-second",
        };
        self.add(&["drills", "restore", "to"], to);
        let prove = drill.prove.iter().map(|proof| match proof {
            RestoreProof::Checksums => "checksums".to_owned(),
            RestoreProof::Amcheck => "amcheck".to_owned(),
            RestoreProof::Assertions => "assertions".to_owned(),
        });
        self.add(&["drills", "restore", "prove"], list(&prove.collect::<Vec<_>>()));
        for assertion in &drill.assertions {
            let path = |key| ["drills", "restore", "assertions", assertion.name.as_str(), key];
            self.add(&path("database"), &assertion.database);
            self.add(&path("sql"), &assertion.sql);
        }
    }

    fn job(&mut self, job: &Job) {
        let when = job.when.to_string();
        let mut maintenance = |name: &[&str], rest: &[(&str, String)]| {
            let path = |key| [&["maintenance"], name, &[key]].concat();
            self.add(&path("when"), when.clone());
            self.add(&path("timeout"), written(job.timeout));
            for (key, value) in rest {
                self.add(&path(key), value.clone());
            }
        };
        let percent = |share: u32| format!("{share} %");
        match &job.work {
            Work::Vacuum(Vacuum { dead, changed, rows }) => {
                let rest =
                    [("dead", percent(*dead)), ("changed", percent(*changed)), ("rows", rows.to_string())];
                maintenance(&["vacuum"], &rest);
            }
            Work::Reindex(Reindex { bloat, at_least }) => {
                maintenance(&["reindex"], &[("bloat", percent(*bloat)), ("at-least", at_least.to_string())]);
            }
            Work::Refresh(Refresh { database, views }) => {
                let name = job.name.strip_prefix("refresh-").unwrap_or(&job.name);
                let views: Vec<String> =
                    views.iter().map(|view| format!("{}.{}", view.schema, view.name)).collect();
                maintenance(&["refresh", name], &[("database", database.clone()), ("views", list(&views))]);
            }
            Work::Partitions => maintenance(&["partitions"], &[]),
            Work::Clean(Clean { logs }) => maintenance(&["clean"], &[("logs", written(*logs))]),
            Work::Dump(Dump { name, database, schemas, keep }) => {
                let path = |key| ["dumps", name.as_str(), key];
                self.add(&path("when"), when.clone());
                self.add(&path("timeout"), written(job.timeout));
                self.add(&path("database"), database);
                let all = if schemas.is_empty() { "all".to_owned() } else { list(schemas) };
                self.add(&path("schemas"), all);
                self.add(&path("keep"), written(*keep));
            }
            Work::DrillRestore => self.add(&["drills", "restore", "when"], when),
            Work::Full | Work::Verify | Work::VerifyFull | Work::Expire => {
                self.add(&["backups", &job.name], when);
            }
            Work::Copy { to } => {
                self.add(&["backups", "copies", to, "when"], when);
                self.add(&["backups", "copies", to, "timeout"], written(job.timeout));
            }
            // It is of no cluster.
            Work::Health => {}
        }
    }

    fn postgres(&mut self, cluster: &Cluster) {
        let postgres = &cluster.postgres;
        self.add(&["postgres", "version"], postgres.version.to_string());
        let directory = postgres.bin_directory.as_ref();
        self.add(
            &["postgres", "bin-directory"],
            directory.map_or("looked for on each host".to_owned(), |path| path.display().to_string()),
        );
        self.add(
            &["postgres", "os-user"],
            postgres.os_user.as_deref().unwrap_or("owner of the data directory, else postgres or the caller"),
        );
        self.add(
            &["postgres", "service"],
            match postgres.service {
                Service::PgCtl => "pg_ctl",
                Service::Systemd => "systemd",
                Service::Debian => "debian",
            },
        );
        match &postgres.tls {
            None => self.add(&["postgres", "tls"], "none"),
            Some(Tls::Own { .. }) => self.add(&["postgres", "tls"], "own"),
            Some(Tls::Given { ca, certificate, key }) => {
                for (name, path) in [("ca", ca), ("certificate", certificate), ("key", key)] {
                    self.add(&["postgres", "tls", name, "file"], path.display().to_string());
                }
            }
        }
        self.add(
            &["postgres", "tune", "memory"],
            postgres
                .tune_memory
                .map_or("the host's, shared by its nodes".to_owned(), |memory| memory.to_string()),
        );
        for (name, value) in &postgres.settings {
            self.add(&["postgres", "settings", name], value);
        }
    }

    fn poolers(&mut self, cluster: &Cluster) {
        let Some(poolers) = &cluster.poolers else {
            self.add(&["poolers"], "none");
            return;
        };
        self.add(&["poolers", "hosts"], list(&poolers.hosts));
        self.add(&["ports", "pooler"], poolers.port.to_string());
        self.add(&["poolers", "mode"], poolers.mode.word());
        self.add(&["poolers", "max-clients"], poolers.max_clients.to_string());
        self.add(&["poolers", "processes"], poolers.processes.to_string());
        let auth = match poolers.auth {
            PoolerAuth::Userlist => "userlist",
            PoolerAuth::Query => "query",
        };
        self.add(&["poolers", "auth"], auth);
        for user in &poolers.users {
            let path = |key| ["poolers", "users", user.name.as_str(), key];
            if let Some(mode) = user.mode {
                self.add(&path("mode"), mode.word());
            }
            for (key, count) in
                [("connections", user.connections), ("size", user.size), ("clients", user.clients)]
            {
                if let Some(count) = count {
                    self.add(&path(key), count.to_string());
                }
            }
        }
        for pool in &poolers.pools {
            let path = |key| ["poolers", "pools", pool.name.as_str(), key];
            let to = match pool.to {
                PoolTarget::Primary => "primary",
                PoolTarget::Standbys => "standbys",
            };
            self.add(&path("to"), to);
            self.add(&path("size"), pool.size.to_string());
            self.add(&path("reserve"), pool.reserve.to_string());
            if pool.to == PoolTarget::Standbys {
                self.add(&path("max-lag"), pool.max_lag.map_or("none".to_owned(), written));
                self.add(&path("fallback"), if pool.fallback_to_primary { "primary" } else { "none" });
                if !pool.of.is_empty() {
                    self.add(&path("of"), list(&pool.of));
                }
            }
            if let Some(mode) = pool.mode {
                self.add(&path("mode"), mode.word());
            }
        }
    }
}

/// Writes a span of time as the file has it: exactly, with its largest unit.
fn written(span: Duration) -> String {
    let ms = span.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let unit = units.into_iter().find(|(factor, _)| ms >= *factor && ms.is_multiple_of(*factor));
    match unit {
        Some((factor, unit)) => format!("{} {unit}", ms / factor),
        None if ms == 0 => "0 s".to_owned(),
        None => format!("{ms} ms"),
    }
}

fn list(names: &[String]) -> String {
    format!("[{}]", names.join(", "))
}

fn reference(reference: &SecretReference) -> String {
    match reference {
        SecretReference::Env(name) => format!("{{env: {name}}}"),
        SecretReference::File(path) => format!("{{file: {}}}", path.display()),
        SecretReference::Command(argv) => match argv.as_slice() {
            [program] => format!("{{command: [{program}]}}"),
            [program, ..] => format!("{{command: [{program}, ...]}}"),
            [] => "{command: []}".to_owned(),
        },
        SecretReference::Vault(vault) => {
            format!("{{vault: {} of {} at {}}}", vault.field, vault.path, vault.url)
        }
    }
}
