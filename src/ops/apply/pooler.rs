//! The cluster's poolers: where their aliases lead now, how they differ, and putting them right.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::db::objects as sql;
use crate::db::queries::ServerRole;
use crate::db::{Endpoint, Login, Session};
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::programs::{self, Programs};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::certificate::{self, Holder};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved, Running, Server};
use crate::ops::plan::PoolerDrift;
use crate::ops::pooler::{
    self, ConsoleSeen, Declared, Drift, Layout, Paused, Pooler, PoolerFiles, PoolerObserved, PoolerPaths,
    PoolerProcess, Standby, Target,
};
use crate::ops::service;
use crate::pg::scram::Verifier;
use crate::secret::Secret;
use crate::topology::claim::{self, PoolerProfile};
use crate::topology::declared::LOOPBACK;
use crate::topology::model::{Cluster, Node};
use crate::topology::unit::Unit;

/// How long the transactions of a pooler that is restarted may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long a standby may take to find its upstream again: longer than `wal_retrieve_retry_interval` by default.
const SETTLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// What one pooler is, by name.
struct Place<'a> {
    doors: &'a Doors,
    cluster: &'a Cluster,
    host: &'a str,
    programs: &'a Programs,
    paths: PoolerPaths,
    unit: Unit,
    /// Where clients reach it.
    listen: IpAddr,
    port: u16,
}

impl<'a> Place<'a> {
    async fn find(doors: &'a Doors, cluster: &'a Cluster, host: &'a str) -> Result<Self> {
        let programs = doors.programs(cluster, host).await?;
        let paths = PoolerPaths::new(doors.places(host).pooler(&cluster.name, host))?;
        let port = cluster.poolers.as_ref().map_or(0, |poolers| poolers.port);
        let listen = cluster.address(host).parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let unit = Unit::of_pooler(&cluster.name, host, &paths.ini());
        Ok(Self { doors, cluster, host, programs, paths, unit, listen, port })
    }

    fn door(&self) -> Pooler<'_> {
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

    async fn files(
        &self,
        primary: &Node,
        observed: &ClusterObserved,
        seen: &PoolerObserved,
    ) -> Result<PoolerFiles> {
        let (program, version) = programs::find_pgbouncer(self.doors.host(self.host)).await?;
        let verifiers = verifiers(self.doors, self.cluster, primary).await?;
        let mut layout = layout(self.cluster, primary, observed);
        keep_route(&mut layout, &seen.console);
        pooler::render(&Declared {
            cluster: self.cluster,
            host: self.host,
            os_user: self.doors.host(self.host).os_user(),
            listen: self.listen,
            layout: &layout,
            paths: &self.paths,
            program: &program,
            version,
            verifiers: &verifiers,
        })
    }
}

/// Looks at the PgBouncer of a host.
pub(crate) async fn observe_pooler(doors: &Doors, cluster: &Cluster, host: &str) -> Result<PoolerObserved> {
    Place::find(doors, cluster, host).await?.door().observe().await
}

/// Compares every pooler of the cluster with what is declared and with where the nodes are now.
pub(super) async fn drift(
    doors: &Doors,
    cluster: &Cluster,
    primary: &Node,
    observed: &ClusterObserved,
) -> BTreeMap<String, PoolerDrift> {
    let mut found = BTreeMap::new();
    for host in cluster.pooler_hosts() {
        let one = match one_drift(doors, cluster, host, primary, observed).await {
            Ok(drift) => drift,
            Err(error) => PoolerDrift::Unknown { why: error.to_string() },
        };
        found.insert(host.clone(), one);
    }
    found
}

async fn one_drift(
    doors: &Doors,
    cluster: &Cluster,
    host: &str,
    primary: &Node,
    observed: &ClusterObserved,
) -> Result<PoolerDrift> {
    let place = Place::find(doors, cluster, host).await?;
    let seen = place.door().observe().await?;
    if let Some(foreign) = foreign(&place, &seen).await {
        return Ok(foreign);
    }
    let files = place.files(primary, observed, &seen).await?;
    let mut drift = pooler::drift(&files, &seen);
    drift.extend(certificate_drift(doors, cluster, host).await?);
    Ok(if drift.is_empty() {
        PoolerDrift::Right
    } else if seen.ini.is_none() && seen.process == PoolerProcess::Stopped {
        PoolerDrift::Missing
    } else if drift == [Drift::Stopped] {
        PoolerDrift::Stopped
    } else {
        PoolerDrift::Differs {
            what: drift.iter().map(ToString::to_string).collect(),
            restart: drift.iter().any(|one| matches!(one, Drift::Setting { restart: true, .. })),
        }
    })
}

async fn certificate_drift(doors: &Doors, cluster: &Cluster, host: &str) -> Result<Option<Drift>> {
    let seen = certificate::look(doors, cluster, Holder::Pooler(host)).await?;
    Ok(seen.and_then(|seen| seen.wrong).map(|why| Drift::Certificate { why }))
}

/// While no primary answers, only somebody else's hold on the port can be told.
pub(super) async fn drift_without_primary(doors: &Doors, cluster: &Cluster) -> BTreeMap<String, PoolerDrift> {
    let mut found = BTreeMap::new();
    for host in cluster.pooler_hosts() {
        let place = match Place::find(doors, cluster, host).await {
            Ok(place) => place,
            Err(error) => {
                found.insert(host.clone(), PoolerDrift::Unknown { why: error.to_string() });
                continue;
            }
        };
        let drift = match place.door().observe().await {
            Ok(seen) => foreign(&place, &seen).await.unwrap_or(PoolerDrift::Stopped),
            Err(error) => PoolerDrift::Unknown { why: error.to_string() },
        };
        found.insert(host.clone(), drift);
    }
    found
}

async fn foreign(place: &Place<'_>, seen: &PoolerObserved) -> Option<PoolerDrift> {
    let port = place.port;
    let taken =
        seen.process == PoolerProcess::Stopped && observe::listens(place.doors.host(place.host), port).await;
    taken.then(|| PoolerDrift::Foreign { what: format!("something else listens on {LOOPBACK}:{port}") })
}

/// Decides where the aliases may lead.
fn layout(cluster: &Cluster, primary: &Node, observed: &ClusterObserved) -> Layout {
    let target = |node: &Node| Target {
        node: node.name.clone(),
        host: cluster.address(&node.host).to_owned(),
        port: node.port,
    };
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
                target: target(node),
                streams: running.is_some_and(streams),
                behind: running.and_then(|running| behind(running, ahead)),
            }
        })
        .collect();
    Layout { primary: target(primary), standbys }
}

/// Puts the standby that an alias leads to now before the others: clients are not moved to another standby only
/// because it came back.
fn keep_route(layout: &mut Layout, console: &ConsoleSeen) {
    let ConsoleSeen::Answered(console) = console else { return };
    let leads_to =
        |at: &Target| console.databases.iter().any(|row| row.port == at.port && row.host == at.host);
    if let Some(kept) =
        layout.standbys.iter().map(|standby| &standby.target).find(|target| leads_to(target)).cloned()
    {
        layout.standbys.sort_by_key(|standby| standby.target != kept);
    }
}

fn streams(running: &Running) -> bool {
    match &running.facts.role {
        ServerRole::Standby { receiver: Some(receiver), .. } => receiver.status == "streaming",
        ServerRole::Standby { receiver: None, .. } | ServerRole::Primary { .. } => false,
    }
}

fn behind(running: &Running, ahead: Option<crate::pg::lsn::Lsn>) -> Option<Duration> {
    let ServerRole::Standby { replayed_lsn, last_replayed, .. } = &running.facts.role else { return None };
    if replayed_lsn.is_some() && *replayed_lsn >= ahead {
        return Some(Duration::ZERO);
    }
    last_replayed.map(|at| Duration::try_from(running.facts.now.duration_since(at)).unwrap_or_default())
}

/// Reads the verifiers of all roles as the primary stores them.
async fn verifiers(doors: &Doors, cluster: &Cluster, primary: &Node) -> Result<BTreeMap<String, Verifier>> {
    let conn = doors.connector.connect(&doors.superuser(cluster, primary, "postgres")).await?;
    let rows = sql::roles(&conn).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((row.name, Verifier::parse(row.verifier?.reveal()).ok()?)))
        .collect())
}

/// Looks whether the pooler does what it should.
pub(crate) async fn look(world: &World, host: &str) -> Result<Found<Evidence>> {
    let cluster = &world.input.cluster;
    let place = Place::find(&world.doors, cluster, host).await?;
    let observed = settled(world).await;
    let seen = place.door().observe().await?;
    let files = place.files(world.primary()?.node, &observed, &seen).await?;
    let mut drift = pooler::drift(&files, &seen);
    drift.extend(certificate_drift(&world.doors, cluster, host).await?);
    Ok(if drift.is_empty() { Found::Done(answers(&files)) } else { Found::NotDone })
}

/// Writes the pooler's files, starts it or has it read them, and sees that it does what they say.
pub(crate) async fn ensure(world: &World, host: &str) -> Result<Evidence> {
    let cluster = &world.input.cluster;
    let place = Place::find(&world.doors, cluster, host).await?;
    let observed = settled(world).await;
    let door = place.door();
    let before = door.observe().await?;
    let files = place.files(world.primary()?.node, &observed, &before).await?;
    let (program, _) = programs::find_pgbouncer(world.doors.host(host)).await?;
    write_profile(world, &place).await?;
    // What its configuration names is there before it.
    certificate::equip(&world.doors, cluster, Holder::Pooler(host)).await?;
    door.install(&files, &before).await?;
    match before.process {
        PoolerProcess::Running { .. } => {
            let restart = door.reload_and_verify(&files).await?;
            if restart.is_empty() {
                certificate::until_shown(&world.doors, cluster, Holder::Pooler(host)).await?;
                return Ok(answers(&files));
            }
            door.stop(GRACE).await?;
        }
        PoolerProcess::Stopped => {}
        // One that runs all the same would go on with what it has read before.
        PoolerProcess::Unknown { why } => {
            return Err(
                Error::failed(format!("could not tell whether the pooler on {host} runs")).detail(why)
            );
        }
    }
    door.ensure_started(&program, &files).await?;
    certificate::until_shown(&world.doors, cluster, Holder::Pooler(host)).await?;
    Ok(answers(&files))
}

/// Has every pooler let `role` in by `verifier`, which the primary is about to store.
///
/// PgBouncer has no password for a server: it logs in with the keys that a client of the role has shown last (PgBouncer docs,
/// "auth_file"). Clients that stay connected show none. With `password` one is shown for them, through a pool that has a server
/// connection and needs no other one for it; from then on the poolers can open connections with the new password only, so the
/// verifier is to be stored at once. A pooler that is not there or has no such role is left to its own step.
pub(super) async fn let_in(
    world: &World,
    role: &str,
    verifier: &Verifier,
    password: Option<&Secret>,
) -> Result<()> {
    let cluster = &world.input.cluster;
    let mut places = Vec::new();
    for host in cluster.pooler_hosts() {
        let place = Place::find(&world.doors, cluster, host).await?;
        let alias = place.door().replace_verifier(role, verifier).await?;
        places.extend(alias.map(|alias| (place, alias)));
    }
    let Some(password) = password else { return Ok(()) };
    for (place, alias) in places {
        let login = Login {
            server: format!("the pooler on {}", place.host),
            endpoint: Endpoint::Tcp { host: LOOPBACK.to_owned(), port: place.port },
            tunnel: world.doors.host(place.host).tunnel(),
            user: role.to_owned(),
            database: alias,
            tls: certificate::identity(&world.doors, cluster, place.host)?,
            password: Some(password.clone()),
            session: Session::Plain,
        };
        world
            .doors
            .connector
            .connect(&login)
            .await
            .map_err(|error| Error::from(error).context("show the pooler the new password"))?;
    }
    Ok(())
}

/// Observes the nodes until each is known, and gives a standby that runs and does not stream a moment: a primary that was just
/// restarted is looked for again after a while, and an alias that was led away from the standby by then would have to be led back.
async fn settled(world: &World) -> ClusterObserved {
    let deadline = Instant::now() + SETTLE;
    loop {
        let observed = observe::observe(&world.doors, &world.input.cluster, Depth::Servers).await;
        let unsettled = |node: &NodeObserved| match &node.server {
            Server::Up(running) => !running.is_primary() && !streams(running),
            Server::Starting | Server::Unknown { .. } => true,
            Server::Stopped | Server::Foreign { .. } => false,
        };
        if !observed.nodes.iter().any(unsettled) || Instant::now() >= deadline {
            return observed;
        }
        sleep(PAUSE).await;
    }
}

fn answers(files: &PoolerFiles) -> Evidence {
    Evidence::PoolerAnswers { aliases: files.routes.iter().map(|route| route.alias.clone()).collect() }
}

async fn write_profile(world: &World, place: &Place<'_>) -> Result<()> {
    let host = world.doors.host(place.host);
    let profile = PoolerProfile {
        format: claim::FORMAT,
        herd: world.input.herd.clone(),
        cluster: place.cluster.name.clone(),
        host: place.host.to_owned(),
        os_user: host.os_user().to_owned(),
        port: place.port,
    };
    let directory = place.paths.directory();
    let could_not = |error| {
        Error::failed(format!("could not write the profile of the pooler on {}", place.host)).source(error)
    };
    host.make_directory(directory, 0o700).await.map_err(could_not)?;
    host.write_atomic(&directory.join("profile.json"), &claim::write(&profile), 0o600)
        .await
        .map_err(could_not)
}

/// Holds back the clients of a pooler; see [`Pooler::pause`].
///
/// # Errors
/// As [`Pooler::pause`].
pub(crate) async fn pause(doors: &Doors, cluster: &Cluster, host: &str, grace: Duration) -> Result<Paused> {
    Place::find(doors, cluster, host).await?.door().pause(grace).await
}

/// Lets the clients of a pooler go on; see [`Pooler::resume`].
///
/// # Errors
/// As [`Pooler::resume`].
pub(crate) async fn resume(doors: &Doors, cluster: &Cluster, host: &str) -> Result<()> {
    Place::find(doors, cluster, host).await?.door().resume().await
}

/// Stops the pooler of a cluster and removes its directory.
///
/// # Errors
/// When it does not end, or the host cannot.
pub(crate) async fn remove(doors: &Doors, cluster: &Cluster, host: &str) -> Result<()> {
    let place = Place::find(doors, cluster, host).await?;
    let door = doors.host(host);
    let directory = place.paths.directory();
    place.door().stop(GRACE).await?;
    service::remove_unit(door, &place.unit)
        .await
        .map_err(|error| Error::failed(format!("could not remove {}", place.unit.name())).source(error))?;
    crate::ops::provision::remove_whole(door, directory)
        .await
        .map_err(|error| Error::failed(format!("could not remove {}", directory.display())).source(error))
}
