//! Dumps: what pg_dump makes of one database or some of its schemas, in the repository, with a retention of its own.
//!
//! The controller finds the primary; a child on its host, as the os-user, runs pg_dump into a scratch file beside the objects, has
//! pg_restore list and read it, stores it, reads it back, and writes the manifest last. A dump is no backup: it is not restored by `restore`.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::engine::interrupt::Interrupt;
use crate::error::{Error, ErrorKind, Result};
use crate::host::local::LocalHost;
use crate::host::{Command, Host as _, RunAs};
use crate::ops::context::Context;
use crate::ops::maintenance::leader;
use crate::ops::node::{self, MakeDump, NodeDoor, NodeRequest, Priority, Progress, Reporter};
use crate::ops::observe::Doors;
use crate::pg::ident::quote_identifier;
use crate::repo::dump::{self as stored, DumpKeys, DumpManifest, FoundDump};
use crate::repo::seal::{self, Blake3};
use crate::repo::{self, Key, Put, SharedRepo};
use crate::topology::jobs::Dump as Wish;
use crate::topology::model::{Cluster, Herd, Repository};
use crate::units::ByteCount;

const CHUNK: usize = 4 << 20;
/// What a scratch directory's name begins with.
const PREFIX: &str = ".dump-";
/// How many names are tried for one.
const MOST_SCRATCH: u32 = 10;
/// What has no manifest after so long was left by one that was killed.
const ABANDONED: Duration = Duration::from_secs(86_400);
/// pg_dump waits no longer for a table that somebody has locked.
const LOCK_WAIT: &str = "30s";

/// What was made and removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dumped {
    pub manifest: DumpManifest,
    /// Labels of dumps that were older than they are kept.
    pub removed: Vec<String>,
}

/// A dump as `dump list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ListedDump {
    pub name: String,
    pub label: String,
    /// `None` where it cannot be used.
    pub manifest: Option<DumpManifest>,
    /// Why it cannot.
    pub trouble: Option<String>,
}

/// Makes the dump that the topology declares.
///
/// # Errors
/// [`ErrorKind::NotFound`] without a primary, [`ErrorKind::Interrupted`] on request; nothing is stored then.
pub async fn make(
    context: &Context,
    herd: &Herd,
    cluster: &Cluster,
    wish: &Wish,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<Dumped> {
    let repository = repository_of(cluster)?;
    let (doors, node) = leader(context, cluster).await?;
    let programs = doors.programs(cluster, &node.host).await?;
    let login = doors.superuser(cluster, node, &wish.database);
    let request = NodeRequest::MakeDump(Box::new(MakeDump {
        repository: doors.location(&node.host, repository),
        herd: herd.name.clone(),
        cluster: cluster.name.clone(),
        node: cluster.full_name(&node.name),
        name: wish.name.clone(),
        database: wish.database.clone(),
        schemas: wish.schemas.clone(),
        programs: programs.directory.clone(),
        socket: doors.node_places(cluster, node).socket,
        port: node.port,
        user: login.user,
        // A directory must have the room anyway, and the os-user may write there.
        scratch: repository.directory().map_or_else(|| doors.node_places(cluster, node).log, Path::to_owned),
        keep: wish.keep,
        timeout,
    }));
    let door = NodeDoor::open(&doors, &node.host).await?;
    tokio::select! {
        biased;
        () = interrupt.asked(1) => {
            Err(Error::new(ErrorKind::Interrupted, "interrupted").detail("Nothing was stored; the next run begins anew."))
        }
        made = door.call(&request, Priority::Normal, Arc::new(|_| ())) => made,
    }
}

fn repository_of(cluster: &Cluster) -> Result<&Repository> {
    let backups = cluster.backups.as_ref().ok_or_else(|| {
        Error::refused(format!("cluster {} has no repository", cluster.name))
            .hint("Declare one: backups: {repository: NAME}.")
    })?;
    Ok(&backups.repository)
}

/// Opens the way to a cluster's repository.
async fn way(context: &Context, cluster: &Cluster) -> Result<SharedRepo> {
    let repository = repository_of(cluster)?;
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let door = NodeDoor::open(&doors, &cluster.preferred().host).await?;
    node::repository(&door, repository).await
}

/// Lists the dumps of a cluster, name by name, oldest first.
///
/// # Errors
/// As the repository fails.
pub async fn list(context: &Context, cluster: &Cluster) -> Result<Vec<ListedDump>> {
    let repo = way(context, cluster).await?;
    let mut listed = Vec::new();
    for name in stored::names(&*repo, &cluster.name).await? {
        for found in stored::list(&*repo, &DumpKeys::new(&cluster.name, &name)).await? {
            let (manifest, trouble) = match found.manifest {
                Some(Ok(manifest)) => (Some(manifest), None),
                Some(Err(error)) => (None, Some(format!("its manifest cannot be read: {error}"))),
                None => (None, Some("it was never finished".to_owned())),
            };
            listed.push(ListedDump { name: name.clone(), label: found.label, manifest, trouble });
        }
    }
    Ok(listed)
}

/// Writes a dump into a new file, and proves that it is what was stored; without a label the newest one.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Refused`] if the file is there.
pub async fn fetch(
    context: &Context,
    cluster: &Cluster,
    name: &str,
    label: Option<&str>,
    to: &Path,
) -> Result<DumpManifest> {
    let repo = way(context, cluster).await?;
    let known = stored::names(&*repo, &cluster.name).await?;
    let none = || {
        let what = label.map_or_else(String::new, |label| format!(" {label}"));
        Error::new(ErrorKind::NotFound, format!("cluster {} has no dump {name}{what}", cluster.name))
            .hint("See which there are: pgherd dump list")
    };
    if !known.iter().any(|known| known == name) {
        return Err(none());
    }
    let keys = DumpKeys::new(&cluster.name, name);
    let wanted = |found: &FoundDump| label.is_none_or(|label| found.label == label);
    let found = stored::list(&*repo, &keys).await?.into_iter().filter(wanted);
    let manifest = found.rev().find_map(|found| found.manifest?.ok()).ok_or_else(none)?;
    let beside = beside(to);
    let fetched = download(&repo, &keys.data(&manifest.label), &manifest, &beside).await.and_then(|()| {
        // A hard link is not made over a file that is there.
        std::fs::hard_link(&beside, to).map_err(|error| could_not("write", to, error))
    });
    // What was begun beside it is of no use to anybody.
    std::fs::remove_file(&beside).ok();
    fetched.map(|()| manifest)
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    to.with_file_name(name)
}

fn could_not(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = if error.kind() == std::io::ErrorKind::AlreadyExists {
        ErrorKind::Refused
    } else {
        ErrorKind::Failed
    };
    Error::new(kind, format!("could not {doing} {}", path.display())).source(error)
}

async fn download(repo: &SharedRepo, key: &Key, manifest: &DumpManifest, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_file(to).map_err(|error| could_not("replace", to, error))?;
    }
    // It may hold what only some may read.
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let mut file = made.map_err(|error| could_not("make", to, error))?;
    each_chunk(repo, key, manifest, |chunk| {
        file.write_all(chunk).map_err(|error| could_not("write", to, error))
    })
    .await?;
    file.sync_all().map_err(|error| could_not("write", to, error))
}

/// Reads what was stored chunk by chunk, and proves that it is that.
async fn each_chunk(
    repo: &SharedRepo,
    key: &Key,
    manifest: &DumpManifest,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let damaged = |why: &str| {
        Error::failed(format!("dump {} {} is damaged", manifest.name, manifest.label))
            .detail(format!("{key}: {why}."))
            .hint("See which others there are: pgherd dump list")
    };
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    while at < manifest.size.0 {
        let chunk =
            repo.read_range(key, at, CHUNK as u64).await?.ok_or_else(|| damaged("it is not there"))?;
        if chunk.is_empty() {
            return Err(damaged(&format!("it ends after {at} of {} bytes", manifest.size.0)));
        }
        hash.update(&chunk);
        take(&chunk)?;
        at += chunk.len() as u64;
    }
    if at != manifest.size.0 || Blake3::from_bytes(*hash.finalize().as_bytes()) != manifest.data_blake3 {
        return Err(damaged("its checksum is not the one of what pg_dump wrote"));
    }
    Ok(())
}

/// Makes a dump, in the child.
///
/// # Errors
/// What pg_dump, pg_restore or the repository says; nothing of it is a dump then.
pub async fn run(request: &MakeDump, reporter: &Reporter) -> Result<Dumped> {
    let alone = async {
        while !reporter.is_alone() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        made = make_here(request, reporter) => made,
        () = alone => Err(Error::new(ErrorKind::Interrupted, "nobody waits for the dump any more")),
    }
}

async fn make_here(request: &MakeDump, reporter: &Reporter) -> Result<Dumped> {
    let repo = repo::open(&request.repository)?;
    let keys = DumpKeys::new(&request.cluster, &request.name);
    let host = LocalHost::own("this host");
    let scratch = Scratch::make(&request.scratch)?;
    let file = scratch.path.join("dump");
    let begun = Timestamp::now();
    let label = stored::label(begun);
    let program =
        |name: &str| Command::new(request.programs.join(name)).user(RunAs::Caller).timeout(request.timeout);
    let version = host.run(&program("pg_dump").arg("--version").reads()).await?.text().trim().to_owned();
    let dump = program("pg_dump")
        .args(["--format=custom", "--no-password", "--strict-names"])
        .arg(format!("--lock-wait-timeout={LOCK_WAIT}"))
        .arg(format!("--file={}", file.display()))
        .args(request.schemas.iter().map(|schema| format!("--schema={}", quote_identifier(schema))))
        .env("PGHOST", request.socket.display().to_string())
        .env("PGPORT", request.port.to_string())
        .env("PGUSER", &request.user)
        .env("PGDATABASE", &request.database)
        .env("PGAPPNAME", "pgherd dump");
    host.run(&dump)
        .await
        .map_err(|error| Error::from(error).context(format!("dump {}", request.database)))?;
    // Its table of contents, and then every byte of it: into nothing.
    let path = file.display().to_string();
    let listed = host.run(&program("pg_restore").args(["--list", &path])).await?.text();
    host.run(&program("pg_restore").args(["--file=/dev/null", &path])).await?;
    let entries = listed.lines().filter(|line| !line.is_empty() && !line.starts_with(';')).count() as u64;
    let (size, data_blake3) = upload(&repo, &keys.data(&label), &file, reporter).await?;
    let manifest = DumpManifest {
        format: seal::FORMAT,
        herd: request.herd.clone(),
        cluster: request.cluster.clone(),
        name: request.name.clone(),
        label: label.clone(),
        database: request.database.clone(),
        schemas: request.schemas.clone(),
        node: request.node.clone(),
        pg_dump: version,
        begun,
        ended: Timestamp::now(),
        size,
        data_blake3,
        entries,
    };
    each_chunk(&repo, &keys.data(&label), &manifest, |_| Ok(())).await?;
    if repo.create(&keys.manifest(&label), &seal::write_document(&manifest)).await? == Put::Refused {
        return Err(Error::new(
            ErrorKind::Locked,
            format!("another dump {} began in the same second", request.name),
        ));
    }
    let removed = expired(&stored::list(&*repo, &keys).await?, request.keep, Timestamp::now());
    for label in &removed {
        stored::remove(&*repo, &keys, label).await?;
    }
    Ok(Dumped { manifest, removed })
}

async fn upload(
    repo: &SharedRepo,
    key: &Key,
    from: &Path,
    reporter: &Reporter,
) -> Result<(ByteCount, Blake3)> {
    let could_not = |error| could_not("read", from, error);
    let mut file = File::open(from).map_err(could_not)?;
    let total = file.metadata().map_err(could_not)?.len();
    file.rewind().map_err(could_not)?;
    let mut upload = repo.upload(key).await?;
    let (mut hash, mut done, mut chunk) = (blake3::Hasher::new(), 0, vec![0; CHUNK]);
    loop {
        let read = file.read(&mut chunk).map_err(could_not)?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
        upload.write(&chunk[..read]).await?;
        done += read as u64;
        let done = ByteCount(done);
        reporter.progress(Progress { done, total: ByteCount(total), stored: done });
    }
    upload.finish().await?;
    Ok((ByteCount(done), Blake3::from_bytes(*hash.finalize().as_bytes())))
}

/// Chooses what goes: whole dumps older than they are kept, but never the newest; and what was left without a manifest a day ago.
fn expired(found: &[FoundDump], keep: Duration, now: Timestamp) -> Vec<String> {
    let span = |span: Duration| SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    let newest =
        found.iter().rev().find(|found| matches!(found.manifest, Some(Ok(_)))).map(|found| &found.label);
    let goes = |found: &&FoundDump| match &found.manifest {
        Some(Ok(manifest)) => now.duration_since(manifest.ended) > span(keep) && Some(&found.label) != newest,
        // One that cannot be read may be somebody's only one: it is shown, and stays.
        Some(Err(_)) => false,
        None => now.duration_since(found.modified) > span(ABANDONED),
    };
    found.iter().filter(goes).map(|found| found.label.clone()).collect()
}

/// A directory that is removed with what is in it, also those that killed ones have left.
struct Scratch {
    path: PathBuf,
    /// Locked as long as somebody works in it: a process may be dead for long before its number is free, or somebody else's.
    _lock: File,
}

impl Scratch {
    fn make(above: &Path) -> Result<Self> {
        let could_not = |error| could_not("make a scratch directory in", above, error);
        for entry in std::fs::read_dir(above).map_err(could_not)?.flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with(PREFIX) && locked(&path).is_ok() {
                std::fs::remove_dir_all(&path).map_err(could_not)?;
            }
        }
        let mut number = 0;
        loop {
            let path = above.join(format!("{PREFIX}{}-{number}", std::process::id()));
            let made = std::fs::DirBuilder::new().mode(0o700).create(&path).and_then(|()| locked(&path));
            match made {
                // Another dump may have taken it for an abandoned one before it was locked.
                Ok(lock) if path.is_dir() => return Ok(Self { path, _lock: lock }),
                Ok(_) | Err(_) if number < MOST_SCRATCH => number += 1,
                Ok(_) => return Err(could_not(std::io::ErrorKind::NotFound.into())),
                Err(error) => return Err(could_not(error)),
            }
        }
    }
}

/// Locks a directory, if nobody has.
fn locked(directory: &Path) -> std::io::Result<File> {
    let file = File::open(directory)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next dump.
        std::fs::remove_dir_all(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(days: i64) -> Timestamp {
        let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
        now - SignedDuration::from_hours(24 * days)
    }

    fn dump(days: i64, whole: bool) -> FoundDump {
        let golden = include_str!("../../tests/golden/dump-v1.json");
        let manifest: DumpManifest = seal::read_document(golden.as_bytes()).unwrap();
        let manifest = DumpManifest { ended: at(days), ..manifest };
        FoundDump {
            label: stored::label(at(days)),
            modified: at(days),
            manifest: whole.then_some(Ok(manifest)),
        }
    }

    #[test]
    fn only_what_nobody_works_in_is_taken_for_abandoned() {
        let above = tempfile::tempdir().unwrap();
        let living = Scratch::make(above.path()).unwrap();
        std::fs::write(living.path.join("dump"), "half").unwrap();
        let dead = above.path().join(".dump-1");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("dump"), "half").unwrap();
        let other = Scratch::make(above.path()).unwrap();
        assert!(living.path.join("dump").exists() && !dead.exists());
        assert_ne!(living.path, other.path);
        drop((living, other));
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0);
    }

    #[test]
    fn old_dumps_go_the_newest_whole_one_stays_and_so_does_what_is_being_made() {
        let keep = Duration::from_secs(30 * 86_400);
        let found = [dump(90, true), dump(60, false), dump(31, true), dump(29, true), dump(0, false)];
        assert_eq!(expired(&found, keep, at(0)), [at(90), at(60), at(31)].map(stored::label));
        // Of dumps that nobody has made for a year the last one stays.
        let found = [dump(400, true), dump(365, true), dump(2, false)];
        assert_eq!(expired(&found, keep, at(0)), [at(400), at(2)].map(stored::label));
        let mut unreadable = dump(90, true);
        unreadable.manifest = Some(Err(seal::SealError::new("a flipped bit")));
        assert!(expired(&[unreadable, dump(1, true)], keep, at(0)).is_empty());
    }
}
