//! WAL archiving switched on: the program that servers call, the repository, and a segment that arrives.
//!
//! Everything in the repository is done as the os-user, as the server's own commands do it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::db::queries::{self, Archiver};
use crate::engine::step::{Found, Progress, Unit};
use crate::engine::store::Store;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::logins;
use crate::ops::apply::world::World;
use crate::ops::apply::{access, repository};
use crate::ops::binary::{self, Build, Installed};
use crate::ops::builds::{self, Copy};
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::{self, Doors};
use crate::ops::plan::{AccessSeen, ArchiveHost, ArchiveSeen, Reached, RecordSeen, RepositorySeen, SHARE};
use crate::ops::provision::{self, Site};
use crate::ops::shelf::Shelf;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::{SegmentName, WalFile, WalSegmentSize};
use crate::repo::Key;
use crate::repo::layout::{ClusterKeys, SystemKeys};
use crate::repo::primary::{self, Primary};
use crate::repo::seal;
use crate::topology::model::{Cluster, Repository};
use crate::topology::places::Places;

/// How long the archiver may go without archiving anything.
const ARRIVES: Duration = Duration::from_secs(60);
/// How long what was archived before may take to be seen.
const SEEN: Duration = Duration::from_secs(60);
/// How long a shared file system may take to show to one host what another has stored. What was never looked for there is asked of the
/// server at once (nfs(5), "Directory entry caching").
const SHARED: Duration = Duration::from_secs(15);
/// The archiver tries a segment so often, a second apart, before it waits for a minute (`NUM_ARCHIVE_RETRIES` in `pgarch.c`).
const TRIES: i64 = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// Looks at both ends of the archive on every host of the cluster's nodes; `None` where the cluster declares no backups.
pub(super) async fn look(
    doors: &Doors,
    cluster: &Cluster,
    build: &Build,
    store: &Store,
) -> Result<Option<ArchiveSeen>> {
    let Some(backups) = &cluster.backups else { return Ok(None) };
    let mut hosts = BTreeMap::new();
    for name in cluster.nodes.iter().map(|node| &node.host).collect::<BTreeSet<_>>() {
        let host = doors.host(name);
        let mut repositories = Vec::new();
        for declared in backups.repositories() {
            let access = access::look(doors, name, declared).await?;
            let repository = match access {
                AccessSeen::Missing => RepositorySeen::NoAccess,
                AccessSeen::NotNeeded | AccessSeen::Right | AccessSeen::Differs => {
                    repository::look(doors, cluster, name, declared, build).await
                }
            };
            repositories.push(Reached { access, repository });
        }
        let installed = binary::look(host, doors.places(name)).await?;
        let asker = Asker { host, places: doors.places(name), store, own: None };
        // What cannot be told may be needed.
        let older = unneeded(&asker, &installed, build.hash()?).await.unwrap_or_else(|error| {
            tracing::warn!(%error, host = name, "older copies of pgherd are left alone");
            Vec::new()
        });
        hosts.insert(name.clone(), ArchiveHost { installed, older, repositories });
    }
    let on = &cluster.preferred().host;
    let reachable = hosts.get(on).is_none_or(|at| at.repositories[0].repository != RepositorySeen::NoAccess);
    let primary = match reachable {
        true => look_at_record(doors, on, cluster, &backups.repository, build).await,
        false => RecordSeen::Missing,
    };
    let (version, hash) = (build.version().to_owned(), build.hash()?.to_owned());
    Ok(Some(ArchiveSeen { version, hash, hosts, primary }))
}

/// Reads the record of who is primary from a host of the cluster; there is none where the cluster declares no backups.
pub(crate) async fn look_at_record_of(
    doors: &Doors,
    cluster: &Cluster,
    host: &str,
    build: &Build,
) -> RecordSeen {
    match &cluster.backups {
        None => RecordSeen::Missing,
        Some(backups) => look_at_record(doors, host, cluster, &backups.repository, build).await,
    }
}

async fn look_at_record(
    doors: &Doors,
    host: &str,
    cluster: &Cluster,
    repository: &Repository,
    build: &Build,
) -> RecordSeen {
    let read = async {
        let shelf = Shelf::of(doors, host, repository, build).await?;
        shelf.read(&ClusterKeys::new(&cluster.name).primary()).await
    };
    match read.await {
        Ok(None) => RecordSeen::Missing,
        Ok(Some(bytes)) => seal::read_document(&bytes)
            .map_or_else(|error| RecordSeen::Unknown { why: error.to_string() }, RecordSeen::Says),
        Err(error) => RecordSeen::Unknown { why: error.to_string() },
    }
}

/// What an install step wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Install<'a> {
    pub host: &'a str,
    pub hash: &'a str,
    pub before: Option<&'a str>,
}

/// Looks whether the link leads to the copy.
pub(super) async fn look_at_install(world: &World, wanted: Install<'_>) -> Result<Found<Evidence>> {
    let found = binary::look(world.doors.host(wanted.host), world.doors.places(wanted.host)).await?;
    Ok(if found == (Installed::Build { hash: wanted.hash.to_owned() }) {
        Found::Done(Evidence::Installed { hash: wanted.hash.to_owned() })
    } else {
        Found::NotDone
    })
}

/// Copies this build and has the link lead to it.
pub(super) async fn install(world: &World, wanted: Install<'_>) -> Result<Evidence> {
    let (host, places) = (world.doors.host(wanted.host), world.doors.places(wanted.host));
    if world.build.hash()? != wanted.hash {
        return Err(Error::refused(format!("cannot install pgherd {}: this is another build", wanted.hash))
            .detail(format!(
                "The operation was planned by the build {}, this is {}.",
                wanted.hash,
                world.build.hash()?
            ))
            .hint("Go on with the build that began it, or undo the operation and plan again."));
    }
    binary::ensure_copy(host, places, &world.build).await?;
    if let Some(before) = wanted.before {
        binary::mark_used(host, places, before).await?;
    }
    binary::link(host, places, &binary::target(wanted.hash)).await?;
    Ok(Evidence::Installed { hash: wanted.hash.to_owned() })
}

/// Puts the link back; the copy stays, since a command of some server may be running it.
pub(super) async fn uninstall(world: &World, wanted: Install<'_>) -> Result<()> {
    let (host, places) = (world.doors.host(wanted.host), world.doors.places(wanted.host));
    let ours = Installed::Build { hash: wanted.hash.to_owned() };
    // What is neither ours nor what we saw belongs to somebody else by now.
    if binary::look(host, places).await? != ours {
        return Ok(());
    }
    match wanted.before {
        Some(before) => binary::link(host, places, before).await,
        None if others_archive(host, places, &world.input.cluster).await? => Ok(()),
        None => binary::unlink(host, places).await,
    }
}

/// Whose copies are looked at, and for whom.
struct Asker<'a> {
    host: &'a dyn Host,
    places: &'a Places,
    store: &'a Store,
    /// The operation that asks.
    own: Option<&'a str>,
}

/// Finds the copies that nobody needs when `wanted` is in use. Who needs one is only looked for where one is to spare.
async fn unneeded(asker: &Asker<'_>, installed: &Installed, wanted: &str) -> Result<Vec<Copy>> {
    let copies = builds::copies(asker.host, asker.places).await?;
    let spare = builds::spare(&copies, installed, wanted, Timestamp::now());
    if spare.is_empty() {
        return Ok(Vec::new());
    }
    let needed = builds::needed(asker.host, asker.places, asker.store, asker.own, &[]).await?;
    Ok(spare.into_iter().filter(|copy| !needed.builds.contains_key(&copy.hash)).cloned().collect())
}

/// Looks whether every copy is gone.
pub(super) async fn look_at_pruned(world: &World, host: &str, wanted: &[String]) -> Result<Found<Evidence>> {
    let copies = builds::copies(world.doors.host(host), world.doors.places(host)).await?;
    Ok(if copies.iter().any(|copy| wanted.contains(&copy.hash)) {
        Found::NotDone
    } else {
        Found::Done(Evidence::Pruned { gone: wanted.to_vec(), kept: Vec::new() })
    })
}

/// Removes those copies of `wanted` that nobody needs at this moment.
pub(super) async fn prune(world: &World, host: &str, wanted: &[String]) -> Result<Evidence> {
    let (door, places) = (world.doors.host(host), world.doors.places(host));
    let installed = binary::look(door, places).await?;
    let own = Some(world.operation.as_str());
    let asker = Asker { host: door, places, store: &world.store, own };
    let unneeded = unneeded(&asker, &installed, world.build.hash()?).await?;
    for copy in unneeded.iter().filter(|copy| wanted.contains(&copy.hash)) {
        builds::remove(door, places, &copy.hash).await?;
    }
    let left = builds::copies(door, places).await?;
    let (kept, gone) = wanted.iter().cloned().partition(|hash| left.iter().any(|copy| copy.hash == *hash));
    Ok(Evidence::Pruned { gone, kept })
}

/// Tells whether a server of another cluster on the host may call the link.
async fn others_archive(host: &dyn Host, places: &Places, cluster: &Cluster) -> Result<bool> {
    let profiles = observe::profiles(host, places).await?;
    Ok(profiles.iter().any(|profile| profile.cluster != cluster.name && profile.archive.is_some()))
}

/// Has the primary finish a segment, and waits until it is in the repository and the archiver has crossed it off.
pub(crate) async fn prove(
    world: &World,
    node: &str,
    repository: &str,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Evidence> {
    let begun = Instant::now();
    let site = world.site(node)?;
    let repository = repository::declared(world, repository)?;
    let conn = logins::as_primary(site.connect().await?, &site.name()).await?;
    let system = queries::server_facts(&conn).await?.system_identifier;
    let segment = queries::finish_segment(&conn).await?;
    let key = ClusterKeys::new(&site.cluster.name).system(system).wal(WalFile::Segment(segment));
    let shelf = Shelf::of(&world.doors, &site.node.host, repository, &world.build).await?;
    let first = queries::archiver(&conn).await?;
    let mut last = first.clone();
    let mut deadline = Instant::now() + ARRIVES;
    loop {
        let there = shelf.has(&key).await.map_err(|error| {
            Error::failed(format!("could not look for {key} in repository {}", repository.name)).source(error)
        })?;
        let now = queries::archiver(&conn).await?;
        let waits = queries::waits_to_be_archived(&conn, segment).await?;
        if there && !waits {
            is_everywhere(world, &site, repository, &key).await?;
            let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Ok(Evidence::Archived { segment: segment.to_string(), milliseconds });
        }
        // A backlog may be long; while it shrinks there is nothing to complain of.
        if now.archived > last.archived {
            deadline = Instant::now() + ARRIVES;
            let waited = first.waiting.max(now.waiting);
            progress(waited - now.waiting, waited);
        }
        let gives_up = now.archived == last.archived && now.failed >= last.failed + TRIES;
        if now.archived > last.archived {
            last = now.clone();
        }
        if gives_up || Instant::now() >= deadline {
            return Err(does_not_arrive(&site, repository, (segment, waits), &now).await);
        }
        sleep(PAUSE).await;
    }
}

/// Sees that every host that answers finds the segment too: a copy of the repository says the same of itself, and holds other WAL.
async fn is_everywhere(world: &World, site: &Site<'_>, repository: &Repository, key: &Key) -> Result<()> {
    let hosts: BTreeSet<&String> = site.cluster.nodes.iter().map(|node| &node.host).collect();
    let others =
        hosts.into_iter().filter(|name| **name != site.node.host && !world.left_out.hosts.contains(*name));
    for name in others {
        let shelf = match Shelf::of(&world.doors, name, repository, &world.build).await {
            Ok(shelf) => shelf,
            // Who does not answer cannot be asked; its node comes back by another apply.
            Err(error) if error.is_silence() => continue,
            Err(error) => return Err(error.into()),
        };
        let deadline = Instant::now() + SHARED;
        loop {
            match shelf.has(key).await {
                Ok(true) => break,
                Ok(false) if Instant::now() < deadline => sleep(PAUSE).await,
                Ok(false) => {
                    let (shown, here) = (shelf.shown(key), &site.node.host);
                    let (place, name_of) = shown.rsplit_once('/').unwrap_or(("", &shown));
                    return Err(Error::refused(format!(
                        "{place} is not the same directory on host {name} as on host {here}"
                    ))
                    .detail(format!(
                        "{} has stored {name_of} there, and host {name} does not find it.",
                        site.name()
                    ))
                    .hint(SHARE));
                }
                Err(error) if error.is_silence() => break,
                Err(error) => {
                    let what = format!("could not see whether host {name} has the same repository");
                    return Err(Error::failed(what).source(error));
                }
            }
        }
    }
    Ok(())
}

async fn does_not_arrive(
    site: &Site<'_>,
    repository: &Repository,
    (segment, waits): (SegmentName, bool),
    seen: &Archiver,
) -> Error {
    let waiting = match seen.waiting {
        1 => "1 file waits".to_owned(),
        more => format!("{more} files wait"),
    };
    let mut told = provision::last_log_lines(site).await;
    told.push(match (seen.failing(), waits) {
        (Some((wal, at)), _) => {
            format!("The archiver has failed {} times, last with {wal} at {at:.0}; {waiting}.", seen.failed)
        }
        (None, true) => format!("{waiting}, {segment} among them, and the archiver has not failed."),
        (None, false) => {
            format!("The archiver says that {segment} is archived; it is not in {}.", repository.url)
        }
    });
    Error::failed(format!("the WAL of {} does not arrive in repository {}", site.name(), repository.name))
        .detail(told.join("\n"))
        .hint(format!("The server's log in {} says more.", site.places().log.display()))
}

/// Writes down who is primary, for every machine to read.
pub(crate) async fn record(world: &World, node: &str) -> Result<Evidence> {
    let site = world.site(node)?;
    let conn = logins::as_primary(site.connect().await?, &site.name()).await?;
    let facts = queries::server_facts(&conn).await?;
    let backups = site.cluster.backups.as_ref();
    let backups = backups.ok_or_else(|| Error::failed("the operation knows no repository"))?;
    let door = NodeDoor::with(&world.doors, &site.node.host, &world.build).await?;
    let repo = node::repository(&door, &backups.repository).await?;
    let is = Primary { system_identifier: facts.system_identifier, node, timeline: facts.timeline };
    let record = primary::record(&*repo, &site.cluster.name, is, &world.operation).await?;
    Ok(Evidence::Recorded { term: record.term })
}

/// A timeline that goes on in the archive: whether it has a history, and its segments there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GoesOn {
    pub history: bool,
    pub first: SegmentName,
    pub last: SegmentName,
}

/// Sees the timeline of a promoted node in the archive: its history, if it has one, and every segment from its first one to one that is
/// finished now.
///
/// `promoted` is that timeline and where it begins.
///
/// # Errors
/// When the archive does not take what is finished now, and with the first file that it lacks.
pub(crate) async fn goes_on(
    world: &World,
    node: &str,
    promoted: (TimelineId, Lsn),
    progress: Progress<'_>,
) -> Result<GoesOn> {
    let (last, _) = arrives(world, node, progress).await?;
    let last: SegmentName =
        last.parse().map_err(|error| Error::failed(format!("{last} is no segment")).source(error))?;
    let site = world.site(node)?;
    let control = provision::control_file(&site).await?;
    let size = WalSegmentSize::new(u64::from(control.wal_segment_size))
        .map_err(|error| Error::failed("could not read the segment size").source(error))?;
    let (timeline, begins) = promoted;
    let first = SegmentName::holding(begins, timeline, size);
    let keys = ClusterKeys::new(&site.cluster.name).system(control.system_identifier);
    let history = timeline.as_u32() > 1;
    let shelf = Shelf::of(&world.doors, &site.node.host, repository(world)?, &world.build).await?;
    if history {
        seen(&shelf, &site, &keys, WalFile::TimelineHistory(timeline)).await?;
    }
    let mut segment = first;
    while segment.number(size) <= last.number(size) {
        seen(&shelf, &site, &keys, WalFile::Segment(segment)).await?;
        segment = segment.next(size);
    }
    Ok(GoesOn { history, first, last })
}

/// Has the primary finish its segment; returns the segment that arrived, and how many milliseconds that took.
///
/// # Errors
/// As [`prove`].
pub(crate) async fn arrives(world: &World, node: &str, progress: Progress<'_>) -> Result<(String, u64)> {
    let repository = repository(world)?.name.clone();
    let report = |done: u64, total: u64| (progress.0)(done, Some(total), Unit::Items);
    let proved = prove(world, node, &repository, &report).await?;
    if let Evidence::Archived { segment, milliseconds } = proved {
        return Ok((segment, milliseconds));
    }
    Err(Error::failed(format!("the archive was proved by {proved:?}")))
}

fn repository(world: &World) -> Result<&Repository> {
    let backups = world.input.cluster.backups.as_ref();
    let backups = backups.ok_or_else(|| Error::failed("the operation knows no repository"))?;
    Ok(&backups.repository)
}

async fn seen(shelf: &Shelf<'_>, site: &Site<'_>, keys: &SystemKeys, file: WalFile) -> Result<()> {
    let key = keys.wal(file);
    let deadline = Instant::now() + SEEN;
    loop {
        let found = shelf.has(&key).await.map_err(|error| {
            Error::failed(format!("could not look for {file} in the repository")).source(error)
        })?;
        if found {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::failed(format!("the archive has a gap: {file} is not in it"))
                .detail(format!("Looked for {} for {} s.", shelf.shown(&key), SEEN.as_secs()))
                .hint(format!("The server's log in {} says why.", site.places().log.display())));
        }
        sleep(PAUSE).await;
    }
}

/// Removes the WAL of a cluster that this operation made and that nobody has used, unless there is a backup of it.
pub(super) async fn forget(world: &World, site: &Site<'_>) -> Result<()> {
    let Some(backups) = &site.cluster.backups else { return Ok(()) };
    let made = match observe::observe_claim(site.host(), &site.places(), site.node).await {
        observe::Claim::Ours(marker) if marker.operation == site.operation => marker.system_identifier,
        observe::Claim::Ours(_)
        | observe::Claim::Other(_)
        | observe::Claim::None
        | observe::Claim::Unknown { .. } => None,
    };
    let Some(system) = made else { return Ok(()) };
    let keys = ClusterKeys::new(&site.cluster.name);
    let remove = async {
        let shelf = Shelf::of(&world.doors, &site.node.host, &backups.repository, &world.build).await?;
        if !shelf.names(&keys.system(system).backups()).await?.is_empty() {
            return Ok(());
        }
        shelf.remove_all(&keys.system(system).folder()).await?;
        if shelf.names(&keys.folder()).await?.is_empty() {
            shelf.remove_all(&keys.folder()).await?;
        }
        Ok(())
    };
    remove.await.map_err(|error: Error| {
        Error::failed(format!(
            "could not remove the WAL of {} from repository {}",
            site.name(),
            backups.repository.name
        ))
        .source(error)
    })
}
