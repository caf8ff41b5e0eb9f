//! The place where a drill restores to, and its end: whoever dies, nothing stays.
//!
//! Before the directory is made, a document in the state directory says that it will be; a lock on that document is held as long as the
//! drill lives, and the kernel frees it. Three ways lead to the end of a scratch directory: the drill removes it; a guard, a child on the
//! host, removes it when the drill has died; the next drill of the cluster removes it when both have.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::time::{Instant, sleep};

use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::host::local::LocalHost;
use crate::host::{Command, Host, whole};
use crate::ops::drill::archive;
use crate::ops::node::scratch::Scratch;
use crate::ops::node::{NodeDoor, NodeRequest, Priority, Progress, Reporter};
use crate::ops::observe::{self, Doors};
use crate::ops::restore::{prepare, scratch as copy};
use crate::topology::model::{Cluster, Node};
use crate::topology::places::Places;
use crate::units::ByteCount;

const FORMAT: u32 = 1;
/// The longest path of a Unix socket (`sun_path` of unix(7), less its end).
const LONGEST_SOCKET: usize = 107;
/// What every scratch directory's name begins with.
const PREFIX: &str = "pgherd-drill-";
/// How often the guard looks whether the drill lives.
const LOOK: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(100);
/// How long an immediate shutdown, and the end of the last process that writes into the directory, may take.
const END: Duration = Duration::from_secs(60);

/// A scratch directory that this process answers for.
#[derive(Debug)]
pub(super) struct Held {
    pub scratch: Scratch,
    path: PathBuf,
    file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // A program that is being started has the file open as well, from fork until exec.
        rustix::fs::flock(&self.file, FlockOperation::Unlock).unwrap_or(());
    }
}

impl Held {
    /// Forgets the directory: it is gone, or somebody else's from now on.
    ///
    /// # Errors
    /// When the document cannot be removed.
    pub fn forget(self) -> Result<()> {
        fs::remove_file(&self.path)
            .map_err(|error| Error::failed(format!("could not remove {}", self.path.display())).source(error))
    }
}

fn registry(places: &Places) -> PathBuf {
    // No cluster's name begins with a dot.
    archive::root(places).join(".running")
}

/// Names a scratch directory below `base`; nothing is made yet.
pub(super) fn name(base: &Path, id: &str, cluster: &Cluster, host: &str, bin_directory: &Path) -> Scratch {
    Scratch {
        format: FORMAT,
        id: id.to_owned(),
        cluster: cluster.name.clone(),
        host: host.to_owned(),
        // Short, since a Unix socket has to find room below it.
        directory: base.join(format!("{PREFIX}{id}")),
        bin_directory: bin_directory.to_owned(),
        by: Actor::here(),
    }
}

/// Says in the state directory that a scratch directory will be made, then makes it with its marker.
///
/// # Errors
/// When either cannot be made.
pub(super) async fn make(places: &Places, host: &dyn Host, scratch: Scratch) -> Result<Held> {
    let held = register(places, scratch).map_err(|error| {
        Error::failed(format!("could not write below {}", registry(places).display())).source(error)
    })?;
    let directory = &held.scratch.directory;
    let could_not = |error| {
        Error::failed(format!("could not make the scratch directory {}", directory.display()))
            .hint("Name another place for it: --scratch-dir DIRECTORY")
            .source(error)
    };
    host.make_directory(directory, 0o700).await.map_err(could_not)?;
    let marker = document(&held.scratch);
    host.write_atomic(&directory.join(Scratch::MARKER), &marker, 0o600).await.map_err(could_not)?;
    Ok(held)
}

fn document(scratch: &Scratch) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(scratch).expect("plain data");
    bytes.push(b'\n');
    bytes
}

fn register(places: &Places, scratch: Scratch) -> io::Result<Held> {
    let registry = registry(places);
    fs::create_dir_all(&registry)?;
    let path = registry.join(format!("{}.json", scratch.id));
    // It gets its name when it is locked: who finds it before would take us for dead.
    let file = whole::replace_with(&path, 0o644, |file| {
        rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&document(&scratch))
    })?;
    Ok(Held { scratch, path, file })
}

/// Finds the scratch directories of drills of this cluster that are dead.
///
/// # Errors
/// When the state directory cannot be read.
pub(super) fn of_the_dead(places: &Places, cluster: &Cluster) -> Result<Vec<Held>> {
    let registry = registry(places);
    let could_not =
        |error: io::Error| Error::failed(format!("could not read {}", registry.display())).source(error);
    let entries = match fs::read_dir(&registry) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(could_not(error)),
    };
    let mut dead = Vec::new();
    for entry in entries {
        let path = entry.map_err(could_not)?.path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        // One that has just ended has removed it.
        let Ok(file) = File::open(&path) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let Ok(bytes) = fs::read(&path) else { continue };
        let Ok(scratch) = serde_json::from_slice::<Scratch>(&bytes) else { continue };
        if scratch.cluster == cluster.name {
            dead.push(Held { scratch, path, file });
        }
    }
    Ok(dead)
}

/// Ends what runs in a scratch directory and removes it.
///
/// # Errors
/// When the server does not end, or the directory is not the one that was made, or cannot be removed.
pub(super) async fn clear(host: &dyn Host, scratch: &Scratch) -> Result<()> {
    let directory = &scratch.directory;
    let could_not =
        || Error::failed(format!("could not remove the scratch directory {}", directory.display()));
    let Some(names) = host.list(directory).await.map_err(|error| could_not().source(error))? else {
        return Ok(());
    };
    let marker =
        host.read(&directory.join(Scratch::MARKER)).await.map_err(|error| could_not().source(error))?;
    let ours = match &marker {
        Some(bytes) => serde_json::from_slice::<Scratch>(bytes).is_ok_and(|found| found.id == scratch.id),
        // Killed before the marker was there, or while it was removed.
        None => names.is_empty(),
    };
    let named = directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours || !named {
        return Err(could_not()
            .detail(format!("{} in it does not say that drill {} made it.", Scratch::MARKER, scratch.id))
            .hint("Look what it is, and remove it by hand."));
    }
    let deadline = Instant::now() + END;
    loop {
        stop(host, scratch).await?;
        match remove(host, directory).await {
            Ok(()) => return Ok(()),
            Err(error) if is_empty(host, directory).await => return Err(could_not().source(error)),
            // A child that still copies makes files in what is being removed, until it sees that nobody listens.
            Err(_) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(error) => return Err(could_not().source(error)),
        }
    }
}

async fn is_empty(host: &dyn Host, directory: &Path) -> bool {
    matches!(host.list(directory).await, Ok(Some(names)) if names.is_empty())
}

/// Removes the marker last: until then a directory that is half gone is known to be ours.
async fn remove(host: &dyn Host, directory: &Path) -> Result<(), crate::host::HostError> {
    for name in host.list(directory).await?.unwrap_or_default() {
        if name != Scratch::MARKER {
            host.remove_tree(&directory.join(name)).await?;
        }
    }
    host.remove_tree(directory).await
}

/// Ends the server in a scratch directory, if one runs.
///
/// # Errors
/// When it does not end.
pub(super) async fn stop(host: &dyn Host, scratch: &Scratch) -> Result<()> {
    let data = scratch.data();
    if observe::postmaster(host, &data).await?.is_none() {
        return Ok(());
    }
    let directory = data.display().to_string();
    let command = Command::new(scratch.bin_directory.join("pg_ctl"))
        .args(["stop", "-D", &directory, "-m", "immediate", "-w", "-t", &END.as_secs().to_string(), "-s"])
        .timeout(END + Duration::from_secs(5));
    let stopped = host.run(&command).await;
    match observe::postmaster(host, &data).await? {
        None => Ok(()),
        Some(pid) => {
            let failed = Error::failed(format!("could not stop the scratch server in {directory}"))
                .detail(format!("Its postmaster is process {pid}."))
                .hint("Stop it by hand, then remove the directory above it.");
            Err(match stopped {
                Ok(_) => failed,
                Err(error) => failed.source(error),
            })
        }
    }
}

/// Starts the guard: it lives as long as the task that is returned.
pub(super) fn guarded(door: Arc<NodeDoor>, scratch: Scratch) -> Guard {
    let request = NodeRequest::GuardScratch(Box::new(scratch));
    Guard(tokio::spawn(async move {
        let ended = door.call::<()>(&request, Priority::Normal, Arc::new(|_| ())).await;
        tracing::warn!(?ended, "the guard of the scratch directory has ended");
    }))
}

/// A guard that runs.
#[derive(Debug)]
pub(super) struct Guard(tokio::task::JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The guard itself, on the host: waits until nobody listens any more, then ends and removes the directory. Where only root may take it out
/// of its parent, it stays, empty, until the next drill.
///
/// # Errors
/// As the end fails; nobody hears it, and the next drill tries again.
pub async fn guard(scratch: &Scratch, reporter: &Reporter) -> Result<()> {
    while !reporter.is_alone() {
        sleep(LOOK).await;
        reporter.progress(Progress::default());
    }
    let host = LocalHost::new(&scratch.host, None)?;
    clear(&host, scratch).await
}

/// Chooses where the scratch directory goes: what was named, else beside the data directory that has most room.
///
/// # Errors
/// `Refused` if there is not enough room, or the place belongs to a node or the repository; when it is not there.
pub(super) async fn base(
    doors: &Doors,
    cluster: &Cluster,
    host: &str,
    named: Option<&Path>,
    needed: ByteCount,
) -> Result<PathBuf> {
    let on_it = |node: &&Node| node.host == host;
    let mut candidates: Vec<PathBuf> = match named {
        Some(named) => vec![named.to_owned()],
        None => cluster
            .nodes
            .iter()
            .filter(on_it)
            .filter_map(|node| Some(node.data_directory.parent()?.to_owned()))
            .collect(),
    };
    candidates.dedup();
    let mut found: Vec<(ByteCount, PathBuf)> = Vec::new();
    for base in candidates {
        if let Some(whose) = taken(cluster, &base) {
            return Err(Error::refused(format!(
                "cannot restore below {}: it belongs to {whose}",
                base.display()
            ))
            .hint("Name another place for the scratch directory: --scratch-dir DIRECTORY"));
        }
        let space = doors.host(host).disk(&base).await.map_err(|error| {
            Error::new(
                ErrorKind::NotFound,
                format!("cannot use {} for the scratch directory", base.display()),
            )
            .hint("Name a directory that is there: --scratch-dir DIRECTORY")
            .source(error)
        })?;
        found.push((space.free, base));
    }
    let most = found.into_iter().max_by_key(|(free, _)| free.0);
    match most {
        Some((free, base)) if free.0 >= needed.0 => Ok(base),
        Some((free, base)) => {
            Err(Error::refused(format!("there is not enough room for a drill below {}", base.display()))
                .detail(format!(
                    "The restored copy needs about {needed}, and {free} are free. Nothing was restored."
                ))
                .hint("Name a place with more room: --scratch-dir DIRECTORY"))
        }
        None => Err(Error::usage("there is no place for the scratch directory")
            .hint("Name one: --scratch-dir DIRECTORY")),
    }
}

/// Says whose directory `base` lies in.
fn taken(cluster: &Cluster, base: &Path) -> Option<String> {
    let node = cluster.nodes.iter().find(|node| base.starts_with(&node.data_directory));
    let repository = cluster.backups.as_ref().map(|backups| &backups.repository);
    let repository =
        repository.filter(|repository| repository.directory().is_some_and(|taken| base.starts_with(taken)));
    node.map(|node| cluster.full_name(&node.name))
        .or(repository.map(|found| format!("repository {}", found.name)))
}

/// Refuses a directory in which the copy's Unix socket could not be made.
///
/// # Errors
/// `Refused` with its path.
pub(super) fn socket_fits(cluster: &Cluster, scratch: &Scratch) -> Result<()> {
    let beside = prepare::beside(&scratch.data(), "-pgherd");
    let path = beside.join(format!("run/{}/.s.PGSQL.{}", cluster.full_name(copy::NAME), copy::PORT));
    let length = path.as_os_str().len();
    if length <= LONGEST_SOCKET {
        return Ok(());
    }
    Err(Error::refused(format!("the path {} is too long", scratch.directory.display()))
        .detail(format!(
            "The copy's Unix socket would be {}: {length} bytes, and the most is {LONGEST_SOCKET}. Nothing was restored.",
            path.display()
        ))
        .hint("Name a place with a shorter path: --scratch-dir DIRECTORY"))
}
