//! The nodes of a cluster, and which of them its commits wait for.

use super::super::decode::{Named, NamedEntry, Spanned};
use super::super::model::{Node, Postgres, Promote, Service, Synchronous};
use super::super::problem::Position;
use super::super::raw;
use super::{Checker, Directory, Draft, health};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Where data directories are if a node states none.
const DATA_ROOT: &str = "/var/lib/pgherd";

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
    /// Makes the nodes, each with the place of its name.
    pub(super) fn nodes(
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

    pub(super) fn synchronous(
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
}
