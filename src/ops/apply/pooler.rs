//! The cluster's poolers: where their aliases lead now, how they differ, and putting them right.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::db::{Endpoint, Login, Session};
use crate::engine::step::Found;
use crate::error::{Error, Result};
use crate::host::programs::{self, PgBouncerVersion};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::certificate::{self, Holder};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved, Server};
use crate::ops::plan::PoolerDrift;
use crate::ops::pooler::{self, Drift, Paused, Place, PoolerObserved, PoolerProcess};
use crate::ops::service;
use crate::pg::scram::Verifier;
use crate::secret::Secret;
use crate::topology::claim::{self, PoolerProfile};
use crate::topology::declared::LOOPBACK;
use crate::topology::model::{Cluster, Node};
use crate::topology::places::Places;

/// How long the transactions of a pooler that is restarted may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long a standby may take to find its upstream again: longer than `wal_retrieve_retry_interval` by default.
const SETTLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Refuses what no PgBouncer of this version can be, before anything is made that would have to wait for it.
pub(super) fn obstacle(
    cluster: &Cluster,
    host: &str,
    version: PgBouncerVersion,
    places: &Places,
) -> Result<()> {
    for process in 1..=pooler::processes(cluster) {
        pooler::render_offline(cluster, host, process, version, places)?;
    }
    Ok(())
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
    let mut all: Vec<Drift> = Vec::new();
    let mut told: Vec<String> = Vec::new();
    let mut missing = true;
    let mut seen_all = Vec::new();
    let places = Place::all(doors, cluster, host).await?;
    for place in &places {
        seen_all.push(place.door().observe().await?);
    }
    if let Some(foreign) = foreign(&places, &seen_all).await {
        return Ok(foreign);
    }
    for (place, seen) in places.iter().zip(&seen_all) {
        let files = place.files(primary, observed, seen).await?;
        let mut drift = pooler::drift(&files, seen);
        drift.extend(place.login_drift(primary).await?);
        missing &= seen.ini.is_none() && seen.process == PoolerProcess::Stopped;
        told.extend(drift.iter().map(|drift| match places.len() {
            1 => drift.to_string(),
            _ => format!("process {}: {drift}", place.process),
        }));
        all.extend(drift);
    }
    let certificate = certificate_drift(doors, cluster, host).await?;
    told.extend(certificate.iter().map(ToString::to_string));
    all.extend(certificate);
    Ok(if all.is_empty() {
        PoolerDrift::Right
    } else if missing {
        PoolerDrift::Missing
    } else if all.iter().all(|drift| *drift == Drift::Stopped) {
        PoolerDrift::Stopped
    } else {
        PoolerDrift::Differs {
            what: told,
            restart: all.iter().any(|one| matches!(one, Drift::Setting { restart: true, .. })),
            connections: all.iter().any(Drift::is_of_connections),
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
        let look = async {
            let places = Place::all(doors, cluster, host).await?;
            let mut seen = Vec::new();
            for place in &places {
                seen.push(place.door().observe().await?);
            }
            Ok::<_, Error>(foreign(&places, &seen).await.unwrap_or(PoolerDrift::Stopped))
        };
        let drift = look.await.unwrap_or_else(|error| PoolerDrift::Unknown { why: error.to_string() });
        found.insert(host.clone(), drift);
    }
    found
}

async fn foreign(places: &[Place<'_>], seen: &[PoolerObserved]) -> Option<PoolerDrift> {
    let place = places.first()?;
    let port = place.port;
    let taken = seen.iter().all(|seen| seen.process == PoolerProcess::Stopped)
        && observe::listens(place.doors.host(place.host), port).await;
    taken.then(|| PoolerDrift::Foreign { what: format!("something else listens on {LOOPBACK}:{port}") })
}

/// Looks whether the pooler does what it should.
pub(crate) async fn look(world: &World, host: &str) -> Result<Found<Evidence>> {
    let cluster = &world.input.cluster;
    let observed = settled(world).await;
    let mut aliases = Vec::new();
    for place in Place::all(&world.doors, cluster, host).await? {
        let seen = place.door().observe().await?;
        let files = place.files(world.primary()?.node, &observed, &seen).await?;
        let login = place.login_drift(world.primary()?.node).await?;
        if !pooler::drift(&files, &seen).is_empty() || login.is_some() {
            return Ok(Found::NotDone);
        }
        aliases = files.routes.iter().map(|route| route.alias.clone()).collect();
    }
    if certificate_drift(&world.doors, cluster, host).await?.is_some() {
        return Ok(Found::NotDone);
    }
    Ok(Found::Done(Evidence::PoolerAnswers { aliases }))
}

/// Writes the files of a host's pooler, starts it or has it read them, and sees that it does what they say: one process after the other, so
/// that clients find one that takes them.
pub(crate) async fn ensure(world: &World, host: &str) -> Result<Evidence> {
    let cluster = &world.input.cluster;
    let observed = settled(world).await;
    let mut aliases = Vec::new();
    for mut place in Place::all(&world.doors, cluster, host).await? {
        place.equip_login(world.primary()?.node).await?;
        aliases = ensure_process(world, &place, &observed).await?;
    }
    Ok(Evidence::PoolerAnswers { aliases })
}

async fn ensure_process(world: &World, place: &Place<'_>, observed: &ClusterObserved) -> Result<Vec<String>> {
    let (cluster, host) = (place.cluster, place.host);
    let door = place.door();
    let before = door.observe().await?;
    let files = place.files(world.primary()?.node, observed, &before).await?;
    let (program, _) = programs::find_pgbouncer(world.doors.host(host)).await?;
    if place.process == 1 {
        write_profile(world, place).await?;
        // What its configuration names is there before it.
        certificate::equip(&world.doors, cluster, Holder::Pooler(host)).await?;
    }
    let aliases = files.routes.iter().map(|route| route.alias.clone()).collect();
    match before.process {
        PoolerProcess::Running { .. } if pooler::must_restart(&files, &before) => {
            door.install_tried(&program, &files, &before).await?;
            door.stop(GRACE).await?;
        }
        PoolerProcess::Running { .. } => {
            let restart = door.replace(&program, &files, &before).await?;
            if restart.is_empty() {
                certificate::until_shown(&world.doors, cluster, Holder::Pooler(host)).await?;
                return Ok(aliases);
            }
            door.stop(GRACE).await?;
        }
        PoolerProcess::Stopped => door.install_tried(&program, &files, &before).await?,
        // One that runs all the same would go on with what it has read before.
        PoolerProcess::Unknown { why } => {
            return Err(
                Error::failed(format!("could not tell whether the pooler on {host} runs")).detail(why)
            );
        }
    }
    let mut siblings = false;
    for other in Place::all(&world.doors, cluster, host).await?.iter().filter(|o| o.process != place.process)
    {
        siblings |= matches!(other.door().observe().await?.process, PoolerProcess::Running { .. });
    }
    door.ensure_started(&program, &files, siblings).await?;
    certificate::until_shown(&world.doors, cluster, Holder::Pooler(host)).await?;
    Ok(aliases)
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
        for place in Place::all(&world.doors, cluster, host).await? {
            let alias = place.door().replace_verifier(role, verifier).await?;
            places.extend(alias.map(|alias| (place, alias)));
        }
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
        let left_out = &world.left_out.nodes;
        let observed = observe::observe_but(&world.doors, &world.input.cluster, Depth::Roles, left_out).await;
        let unsettled = |node: &NodeObserved| match &node.server {
            _ if left_out.contains(&node.node) => false,
            Server::Up(running) => !running.is_primary() && !pooler::streams(running),
            Server::Starting | Server::Unknown { .. } => true,
            Server::Stopped | Server::Foreign { .. } => false,
        };
        if !observed.nodes.iter().any(unsettled) || Instant::now() >= deadline {
            return observed;
        }
        sleep(PAUSE).await;
    }
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

/// Holds back the clients of a host's pooler; see [`pooler::Pooler::pause`].
///
/// # Errors
/// As [`pooler::Pooler::pause`].
pub(crate) async fn pause(doors: &Doors, cluster: &Cluster, host: &str, grace: Duration) -> Result<Paused> {
    let places = Place::all(doors, cluster, host).await?;
    let pause_one = async |place: &Place<'_>| match place.door().observe().await?.process {
        // It has no clients, and is not started meanwhile.
        PoolerProcess::Stopped => Ok(Paused::Drained),
        PoolerProcess::Running { .. } | PoolerProcess::Unknown { .. } => {
            place.door().process().pause(grace).await
        }
    };
    let paused = join_all(places.iter().map(pause_one)).await;
    let mut all = Paused::Drained;
    for one in paused {
        if one? == Paused::Draining {
            all = Paused::Draining;
        }
    }
    Ok(all)
}

/// Lets the clients of a host's pooler go on; see [`pooler::Pooler::resume`].
///
/// # Errors
/// As [`pooler::Pooler::resume`]; every process is told before the first one's error is.
pub(crate) async fn resume(doors: &Doors, cluster: &Cluster, host: &str) -> Result<()> {
    let places = Place::all(doors, cluster, host).await?;
    let resumed = join_all(places.iter().map(async |place| place.door().process().resume().await)).await;
    resumed.into_iter().collect()
}

/// Stops the pooler of a cluster on a host, all its processes, and removes its directory.
///
/// What the file says now is no guide to what was started once: every directory that is there is looked at.
///
/// # Errors
/// When it does not end, or the host cannot.
pub(crate) async fn remove(doors: &Doors, cluster: &Cluster, host: &str) -> Result<()> {
    let door = doors.host(host);
    let first = Place::find(doors, cluster, host, 1).await?;
    let directory = first.paths.directory().to_owned();
    let names = door.list(&directory).await?.unwrap_or_default();
    let mut places = vec![first];
    for process in names.iter().filter_map(|name| name.parse::<u32>().ok()).filter(|process| *process > 1) {
        places.push(Place::find(doors, cluster, host, process).await?);
    }
    for place in &places {
        place.door().sweep().await?;
        place.door().stop(GRACE).await?;
        service::remove_unit(door, &place.unit).await.map_err(|error| {
            Error::failed(format!("could not remove {}", place.unit.name())).source(error)
        })?;
    }
    crate::ops::provision::remove_whole(door, &directory)
        .await
        .map_err(|error| Error::failed(format!("could not remove {}", directory.display())).source(error))
}
