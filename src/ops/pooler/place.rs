//! One PgBouncer by name: where it is, what its files should say, and where its aliases may lead now.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use super::files::named;
use crate::db::objects as sql;
use crate::db::queries::ServerRole;
use crate::error::{Error, Result};
use crate::host::programs::{self, PgBouncerVersion, Programs};
use crate::ops::observe::{ClusterObserved, Doors, NodeObserved, Running};
use crate::ops::pooler::{
    self, ConsoleSeen, Declared, Layout, Pooler, PoolerFiles, PoolerObserved, PoolerPaths, Standby, Target,
};
use crate::pg::lsn::Lsn;
use crate::pg::scram::Verifier;
use crate::secret::Secret;
use crate::topology::declared::PROBE_ROLE;
use crate::topology::model::{Cluster, Node};
use crate::topology::places::Places;
use crate::topology::unit::Unit;

/// What one PgBouncer process is, by name.
#[derive(Debug)]
pub struct Place<'a> {
    pub doors: &'a Doors,
    pub cluster: &'a Cluster,
    pub host: &'a str,
    /// From 1.
    pub process: u32,
    pub programs: &'a Programs,
    pub paths: PoolerPaths,
    pub unit: Unit,
    /// Where clients reach it.
    pub listen: IpAddr,
    pub port: u16,
}

impl<'a> Place<'a> {
    /// Finds one process of a host.
    ///
    /// # Errors
    /// When the cluster's programs are not there, or its directory cannot be used.
    pub async fn find(doors: &'a Doors, cluster: &'a Cluster, host: &'a str, process: u32) -> Result<Self> {
        let programs = doors.programs(cluster, host).await?;
        let paths = paths(doors.places(host), cluster, host, process)?;
        let port = cluster.poolers.as_ref().map_or(0, |poolers| poolers.port);
        let unit = Unit::of_pooler(&cluster.name, &named(host, process), &paths.ini());
        Ok(Self { doors, cluster, host, process, programs, paths, unit, listen: listen(cluster, host), port })
    }

    /// Finds all processes of a host, the first one first.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub async fn all(doors: &'a Doors, cluster: &'a Cluster, host: &'a str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for process in 1..=processes(cluster) {
            found.push(Self::find(doors, cluster, host, process).await?);
        }
        Ok(found)
    }

    pub fn door(&self) -> Pooler<'_> {
        Pooler {
            host: self.doors.host(self.host),
            programs: self.programs,
            paths: &self.paths,
            listen: self.listen,
            port: self.port,
            unit: &self.unit,
            service: self.cluster.postgres.service,
        }
    }

    /// Returns its name: the host's, and its number where the host has several.
    pub fn name(&self) -> String {
        if processes(self.cluster) == 1 { self.host.to_owned() } else { named(self.host, self.process) }
    }

    /// Says what its files should be, with the verifiers that the primary stores and the version that is installed.
    ///
    /// # Errors
    /// When PgBouncer is not there, the primary does not tell, or [`pooler::render`] refuses.
    pub async fn files(
        &self,
        primary: &Node,
        observed: &ClusterObserved,
        seen: &PoolerObserved,
    ) -> Result<PoolerFiles> {
        let (program, version) = programs::find_pgbouncer(self.doors.host(self.host)).await?;
        let verifiers = verifiers(self.doors, self.cluster, primary).await?;
        let mut layout = layout(self.cluster, primary, observed);
        keep_routes(&mut layout, &seen.console);
        self.files_of(&program, version, &layout, &verifiers)
    }

    fn files_of(
        &self,
        program: &Path,
        version: PgBouncerVersion,
        layout: &Layout,
        verifiers: &BTreeMap<String, Verifier>,
    ) -> Result<PoolerFiles> {
        pooler::render(&Declared {
            cluster: self.cluster,
            host: self.host,
            process: self.process,
            os_user: self.doors.host(self.host).os_user(),
            listen: self.listen,
            layout,
            paths: &self.paths,
            program,
            version,
            verifiers,
        })
    }
}

/// Returns how many processes of a cluster's poolers a host has.
pub fn processes(cluster: &Cluster) -> u32 {
    cluster.poolers.as_ref().map_or(1, |poolers| poolers.processes.max(1))
}

/// Returns the directory of one process; those after the first one are in the first one's, so that they are removed with it.
fn paths(places: &Places, cluster: &Cluster, host: &str, process: u32) -> Result<PoolerPaths> {
    let first = places.pooler(&cluster.name, host);
    PoolerPaths::new(if process == 1 { first } else { first.join(process.to_string()) })
}

fn listen(cluster: &Cluster, host: &str) -> IpAddr {
    cluster.address(host).parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Looks at the PgBouncers of a host, the first process first.
///
/// # Errors
/// When its programs or its files cannot be looked at; what does not answer is unknown.
pub async fn observe_poolers(doors: &Doors, cluster: &Cluster, host: &str) -> Result<Vec<PoolerObserved>> {
    let mut seen = Vec::new();
    for place in Place::all(doors, cluster, host).await? {
        seen.push(place.door().observe().await?);
    }
    Ok(seen)
}

/// Says what the files of one process would be, offline: the preferred primary leads, every other node streams, and every verifier is a
/// stand-in. For reading, never for use.
///
/// # Errors
/// As [`pooler::render`].
pub fn render_offline(
    cluster: &Cluster,
    host: &str,
    process: u32,
    version: PgBouncerVersion,
    places: &Places,
) -> Result<(PoolerPaths, PoolerFiles)> {
    let primary = cluster.preferred();
    let standbys = cluster.nodes.iter().filter(|node| node.name != primary.name).map(|node| Standby {
        target: target(cluster, node),
        streams: true,
        behind: Some(Duration::ZERO),
    });
    let stand_in = Verifier::derive(&Secret::new("stand-in"), &[0; 16], 4096);
    let names = cluster.roles.iter().map(|role| role.name.as_str()).chain([PROBE_ROLE]);
    let paths = paths(&places.on(cluster.reach(host)), cluster, host, process)?;
    let files = pooler::render(&Declared {
        cluster,
        host,
        process,
        os_user: cluster.postgres.os_user.as_deref().unwrap_or("postgres"),
        listen: listen(cluster, host),
        layout: &Layout::new(target(cluster, primary), standbys.collect()),
        paths: &paths,
        program: Path::new("/usr/sbin/pgbouncer"),
        version,
        verifiers: &names.map(|name| (name.to_owned(), stand_in.clone())).collect(),
    })?;
    Ok((paths, files))
}

pub(super) fn target(cluster: &Cluster, node: &Node) -> Target {
    Target { node: node.name.clone(), host: cluster.address(&node.host).to_owned(), port: node.port }
}

/// Decides where the aliases may lead.
pub fn layout(cluster: &Cluster, primary: &Node, observed: &ClusterObserved) -> Layout {
    let ahead = observed
        .node(&primary.name)
        .and_then(NodeObserved::running)
        .and_then(|running| running.facts.role.lsn());
    let standbys = cluster
        .nodes
        .iter()
        .filter(|node| node.name != primary.name)
        .map(|node| {
            let running = observed.node(&node.name).and_then(NodeObserved::running);
            Standby {
                target: target(cluster, node),
                streams: running.is_some_and(streams),
                behind: running.and_then(|running| behind(running, ahead)),
            }
        })
        .collect();
    Layout::new(target(cluster, primary), standbys)
}

/// Notes where each alias leads now: clients are not moved to another standby only because it came back.
fn keep_routes(layout: &mut Layout, console: &ConsoleSeen) {
    let ConsoleSeen::Answered(console) = console else { return };
    layout.kept =
        console.databases.iter().map(|row| (row.alias.clone(), (row.host.clone(), row.port))).collect();
}

/// Tells whether a server is a standby that receives WAL.
pub fn streams(running: &Running) -> bool {
    match &running.facts.role {
        ServerRole::Standby { receiver: Some(receiver), .. } => receiver.status == "streaming",
        ServerRole::Standby { receiver: None, .. } | ServerRole::Primary { .. } => false,
    }
}

/// Returns how old what a standby has not replayed yet is; `None` if that is not known.
fn behind(running: &Running, ahead: Option<Lsn>) -> Option<Duration> {
    let ServerRole::Standby { replayed_lsn, last_replayed, .. } = &running.facts.role else { return None };
    if replayed_lsn.is_some() && *replayed_lsn >= ahead {
        return Some(Duration::ZERO);
    }
    last_replayed.map(|at| Duration::try_from(running.facts.now.duration_since(at)).unwrap_or_default())
}

/// Reads the verifiers of all roles as the primary stores them.
async fn verifiers(doors: &Doors, cluster: &Cluster, primary: &Node) -> Result<BTreeMap<String, Verifier>> {
    let conn = doors.connector.connect(&doors.superuser(cluster, primary, "postgres")).await?;
    let rows = sql::roles(&conn).await.map_err(Error::from)?;
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((row.name, Verifier::parse(row.verifier?.reveal()).ok()?)))
        .collect())
}
