//! A look at nodes that are to be taken over as they run: what their own superuser, their files and their service manager say.
//!
//! Reads only. Before pgherd's lines are in pg_hba.conf it may be no one that the server lets in; the owner of the data directory usually is,
//! so his `psql` asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use crate::db::look::{self, Look};
use crate::host::{Command, FileKind, Host, HostError};
use crate::ops::observe::{
    self, Claim, ClusterObserved, Directory, Doors, NodeObserved, PATIENCE, Running, Server,
};
use crate::ops::service::{self, Manager};
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// What was found of a node that is to be taken over, beside what is observed of every node.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Whether pgherd can log in by itself already.
    pub logs_in: bool,
    /// Where the running postmaster listens; `None` if none runs.
    pub listens: Option<Listens>,
    /// What the owner's `psql` was told, or why it was told nothing.
    pub told: Result<Told, String>,
    /// Who runs it.
    pub manager: Manager,
    /// The node, by its name in the herd, that has this data directory already.
    pub claimed_by: Option<String>,
    /// Configuration files that are links: replacing one would cut it off from what it leads to.
    pub links: Vec<PathBuf>,
}

/// What `postmaster.pid` says (`miscadmin.h`, `LOCK_FILE_LINE_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listens {
    pub pid: u32,
    pub port: u16,
    /// The first directory of its Unix sockets.
    pub socket_directory: PathBuf,
}

/// Of what the server told, what only matters for taking it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub superuser: bool,
    pub config_file: PathBuf,
    pub hba_file: PathBuf,
    pub ident_file: PathBuf,
    pub wal_level: String,
}

/// Looks at each node of `names` that runs unclaimed, side by side, and puts what its server told into `observed`.
pub async fn look(
    doors: &Doors,
    cluster: &Cluster,
    observed: &mut ClusterObserved,
    names: &BTreeSet<String>,
) -> BTreeMap<String, Candidate> {
    let nodes = cluster.nodes.iter().zip(&observed.nodes);
    let looks = join_all(nodes.filter(|(node, seen)| names.contains(&node.name) && is_candidate(seen)).map(
        async |(node, seen)| {
            let (candidate, running) = look_at(doors, cluster, node, seen).await;
            let host = doors.host(&node.host);
            let places = doors.node_places(cluster, node);
            let files =
                observe::observe_files(host, &cluster.full_name(&node.name), node, &places).await.ok();
            (node.name.clone(), candidate, running, files)
        },
    ))
    .await;
    let mut found = BTreeMap::new();
    for (name, candidate, running, files) in looks {
        if let Some(seen) = observed.nodes.iter_mut().find(|seen| seen.node == name) {
            seen.files = files;
            if let Some(running) = running {
                seen.server = Server::Up(Box::new(running));
            }
        }
        found.insert(name, candidate);
    }
    found
}

/// Tells whether a node holds a cluster that nobody claims under its name.
fn is_candidate(seen: &NodeObserved) -> bool {
    matches!(seen.marker, Claim::None) && matches!(seen.directory, Directory::Cluster { .. })
}

async fn look_at(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    seen: &NodeObserved,
) -> (Candidate, Option<Running>) {
    let host = doors.host(&node.host);
    let listens = listens(host, &node.data_directory).await;
    let looked = match (&listens, doors.programs(cluster, &node.host).await) {
        (None, _) => Err("it does not run".to_owned()),
        (Some(_), Err(error)) => Err(error.to_string()),
        (Some(at), Ok(programs)) => ask(host, &programs.path("psql"), at, "postgres", &look::query())
            .await
            .and_then(|text| look::parse(&text).map_err(|why| format!("its answer cannot be read: {why}"))),
    };
    let name = cluster.full_name(&node.name);
    let server = service::Server { host, node: &name, data_directory: &node.data_directory };
    let manager = match &listens {
        Some(at) => service::who_runs(server, at.pid).await,
        None => service::manager(server).await,
    };
    let candidate = Candidate {
        logs_in: matches!(seen.server, Server::Up(_)),
        listens,
        told: looked.as_ref().map(told).map_err(Clone::clone),
        manager: manager.unwrap_or(Manager::PgCtl),
        claimed_by: claimed_by(doors, cluster, node).await,
        links: links(host, node).await,
    };
    (candidate, looked.ok().map(running))
}

fn told(look: &Look) -> Told {
    Told {
        superuser: look.superuser,
        config_file: look.path("config_file"),
        hba_file: look.path("hba_file"),
        ident_file: look.path("ident_file"),
        wal_level: look.settings.get("wal_level").map(|row| row.setting.clone()).unwrap_or_default(),
    }
}

fn running(look: Look) -> Running {
    Running { facts: look.facts, senders: look.senders, slots: look.slots, settings: look.settings }
}

/// Has `psql` ask a server as the owner of its files, and returns what it printed.
///
/// # Errors
/// What `psql` said, or the host.
pub async fn ask(
    host: &dyn Host,
    psql: &Path,
    at: &Listens,
    database: &str,
    sql: &str,
) -> Result<String, String> {
    let command = Command::new(psql)
        .args(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1"])
        .args(["-h", &at.socket_directory.display().to_string(), "-p", &at.port.to_string()])
        .args(["-U", declared::SUPERUSER, "-d", database, "-c", sql])
        .env("PGOPTIONS", look::OPTIONS)
        .env("PGCONNECT_TIMEOUT", PATIENCE.as_secs().to_string())
        .env("PGAPPNAME", "pgherd")
        .reads();
    match host.run(&command).await {
        Ok(output) => Ok(output.text()),
        Err(HostError::Exited { stderr, .. }) => Err(stderr.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads where the postmaster of a data directory listens; `None` if none runs.
pub async fn listens(host: &dyn Host, data_directory: &Path) -> Option<Listens> {
    let pid = observe::postmaster(host, data_directory).await.ok().flatten()?;
    let bytes = host.read(&data_directory.join("postmaster.pid")).await.ok().flatten()?;
    parse_lock_file(&String::from_utf8_lossy(&bytes), pid)
}

fn parse_lock_file(text: &str, pid: u32) -> Option<Listens> {
    let lines: Vec<&str> = text.lines().collect();
    let port = lines.get(3)?.trim().parse().ok()?;
    let socket_directory = PathBuf::from(lines.get(4)?.trim());
    Some(Listens { pid, port, socket_directory })
}

/// Finds the node that has the data directory already, by the profiles on its host.
async fn claimed_by(doors: &Doors, cluster: &Cluster, node: &Node) -> Option<String> {
    let profiles =
        observe::profiles(doors.host(&node.host), doors.places(&node.host)).await.unwrap_or_default();
    let own = cluster.full_name(&node.name);
    profiles
        .into_iter()
        .filter(|profile| profile.data_directory == node.data_directory)
        .map(|profile| (format!("{}-{}", profile.cluster, profile.node), profile.herd))
        .find(|(name, _)| *name != own)
        .map(|(name, herd)| format!("{name} of herd {herd}"))
}

async fn links(host: &dyn Host, node: &Node) -> Vec<PathBuf> {
    let files = [declared::CONF_FILE, declared::HBA_FILE, declared::IDENT_FILE];
    let stats = join_all(files.map(|name| async move {
        let path = node.configuration().join(name);
        let is_link = matches!(host.stat(&path).await, Ok(Some(stat)) if stat.kind == FileKind::Link);
        is_link.then_some(path)
    }))
    .await;
    stats.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_tells_port_and_socket() {
        let text = "4711\n/srv/a\n1700000000\n5433\n/tmp\nlocalhost\n  5433001         3\nready   \n";
        let found = parse_lock_file(text, 4711).unwrap();
        assert_eq!(found, Listens { pid: 4711, port: 5433, socket_directory: PathBuf::from("/tmp") });
        assert_eq!(parse_lock_file("4711\n/srv/a\n", 4711), None);
    }
}
