//! The repository of a cluster, looked at and made: a directory through the host, a bucket through a child there that knows how to open it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::host::{Command, Host, HostError};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::world::World;
use crate::ops::binary::Build;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::ops::plan::{RepositorySeen, SHARE};
use crate::ops::provision;
use crate::pg::system::SystemIdentifier;
use crate::repo::about::About;
use crate::repo::layout::{self, ClusterKeys};
use crate::repo::{RepoErrorKind, SharedRepo, dir};
use crate::topology::model::{Backups, Cluster, Repository};

/// What a repository in a directory has for itself beside its objects.
const OWN: [&str; 2] = [dir::UNFINISHED, dir::LOCK];

/// Looks at a repository of a cluster from a host that is given access to it.
pub(super) async fn look(
    doors: &Doors,
    cluster: &Cluster,
    name: &str,
    repository: &Repository,
    build: &Build,
) -> RepositorySeen {
    let host = doors.host(name);
    let Some(directory) = repository.directory() else {
        return look_into_bucket(doors, cluster, name, repository, build).await;
    };
    match overlap(host, cluster, name, directory).await {
        Ok(Some(path)) => RepositorySeen::Overlaps { path },
        Ok(None) => look_into(host, &cluster.name, repository, directory).await,
        Err(error) => RepositorySeen::Unknown { why: error.to_string() },
    }
}

async fn look_into_bucket(
    doors: &Doors,
    cluster: &Cluster,
    name: &str,
    repository: &Repository,
    build: &Build,
) -> RepositorySeen {
    let unknown = |why: String| RepositorySeen::Unknown { why };
    let door = match NodeDoor::to_look(doors, name, build).await {
        Ok(Some(door)) => door,
        Ok(None) => return RepositorySeen::NoAccess,
        Err(error) => return unknown(error.to_string()),
    };
    // What is not there, and what nobody can tell, are different things to whoever plans.
    let repo = node::through(&door, repository);
    let read = repo.read(&layout::repository()).await;
    let about = match read {
        Ok(Some(bytes)) => match About::read(&bytes) {
            Ok(about) => about,
            Err(error) => return unknown(format!("its {}: {error}", layout::REPOSITORY)),
        },
        Ok(None) => return RepositorySeen::Missing { directory: false },
        Err(error) if error.kind == RepoErrorKind::Missing => {
            return RepositorySeen::Missing { directory: false };
        }
        Err(error) => return unknown(error.why),
    };
    match repo.list(Some(&ClusterKeys::new(&cluster.name).folder())).await {
        Ok(level) => RepositorySeen::Ready { id: about.id, systems: systems(level.folders) },
        Err(error) => unknown(error.why),
    }
}

fn systems(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| name.parse::<SystemIdentifier>().is_ok()).collect()
}

/// Finds a data directory or a tablespace of the cluster that the repository overlaps, with every link followed.
async fn overlap(
    host: &dyn Host,
    cluster: &Cluster,
    name: &str,
    directory: &Path,
) -> Result<Option<PathBuf>, HostError> {
    let mut paths = vec![directory.to_owned()];
    for node in cluster.nodes.iter().filter(|node| node.host == name) {
        let tablespaces = node.data_directory.join("pg_tblspc");
        let links = host.list(&tablespaces).await?.unwrap_or_default();
        paths.push(node.data_directory.clone());
        paths.extend(links.iter().map(|link| tablespaces.join(link)));
    }
    let words = paths.iter().map(|path| path.display().to_string());
    let output = host.run(&Command::new("readlink").args(["-z", "-m", "--"]).args(words).reads()).await?;
    let text = output.text();
    let mut resolved = text.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from);
    let Some(repository) = resolved.next() else { return Ok(None) };
    Ok(resolved.find(|path| path.starts_with(&repository) || repository.starts_with(path)))
}

async fn look_into(
    host: &dyn Host,
    cluster: &str,
    repository: &Repository,
    directory: &Path,
) -> RepositorySeen {
    let seen = async {
        let Some(names) = host.list(directory).await? else {
            return Ok(RepositorySeen::Missing { directory: false });
        };
        match host.read(&directory.join(layout::REPOSITORY)).await? {
            Some(bytes) => match About::read(&bytes) {
                Ok(about) => {
                    let fits = match repository.is_encrypted() {
                        true => about.expect_encrypted(&repository.url),
                        false => about.expect_plain(&repository.url),
                    };
                    if let Err(error) = fits {
                        return Ok(RepositorySeen::Unknown { why: error.why });
                    }
                    let found = host.list(&directory.join(cluster)).await?.unwrap_or_default();
                    Ok(RepositorySeen::Ready { id: about.id, systems: systems(found) })
                }
                Err(error) => {
                    Ok(RepositorySeen::Unknown { why: format!("its {}: {error}", layout::REPOSITORY) })
                }
            },
            None if is_empty(&names) => Ok(RepositorySeen::Missing { directory: true }),
            None => Ok(RepositorySeen::Foreign { names }),
        }
    };
    seen.await.unwrap_or_else(|error: HostError| RepositorySeen::Unknown { why: error.to_string() })
}

/// A new file system has a `lost+found`; what begins with a dot is no object of a repository.
fn is_empty(names: &[String]) -> bool {
    names.iter().all(|name| name == "lost+found" || name.starts_with('.'))
}

/// Makes a repository, unless it is one, and sees that it keeps what is written to it.
pub(super) async fn make(world: &World, host: &str, name: &str) -> Result<Evidence> {
    let repository = declared(world, name)?;
    match repository.directory() {
        Some(directory) => make_directory(world, world.doors.host(host), repository, directory).await,
        None => {
            let door = NodeDoor::with(&world.doors, host, &world.build).await?;
            Ok(Evidence::RepositoryThere { id: node::make_repository(&door, repository).await?.id })
        }
    }
}

async fn make_directory(
    world: &World,
    host: &dyn Host,
    repository: &Repository,
    directory: &Path,
) -> Result<Evidence> {
    let name = &repository.name;
    let could_not = |error: HostError| could_not_make(host, repository, error);
    host.make_directory(directory, 0o750).await.map_err(could_not)?;
    let names = host.list(directory).await.map_err(could_not)?.unwrap_or_default();
    let document = directory.join(layout::REPOSITORY);
    let there = host.read(&document).await.map_err(could_not)?;
    if there.is_none() && !is_empty(&names) {
        return Err(Error::refused(format!(
            "cannot use {} as repository {name}: it is not empty",
            directory.display()
        ))
        .detail("Somebody put something into it after the plan was made. It was left as it is.")
        .hint("Give the repository a directory of its own."));
    }
    // What is stored must be what is read, by the user that the servers are; and a put on a condition must hold to it.
    let beside = beside(world, directory);
    let about = About::new(Timestamp::now())
        .map_err(|error| Error::failed("could not name the repository").source(error))?;
    let about = if repository.is_encrypted() { about.encrypted() } else { about }.write();
    host.write_atomic(&beside, &about, 0o640).await.map_err(could_not)?;
    let read = host.read(&beside).await.map_err(could_not)?;
    if read.as_deref() != Some(about.as_slice()) {
        return Err(Error::failed(format!("{} does not keep what is written to it", directory.display()))
            .hint("Use another file system for the repository."));
    }
    if there.is_none() {
        put_if_absent(host, &beside, &document).await.map_err(could_not)?;
    }
    host.remove_file(&beside).await.map_err(could_not)?;
    let bytes = host.read(&document).await.map_err(could_not)?.unwrap_or_default();
    let about = About::read(&bytes)
        .map_err(|error| Error::failed(format!("could not read {}", document.display())).source(error))?;
    refuse_two(world, host, &document, &about).await?;
    Ok(Evidence::RepositoryThere { id: about.id })
}

/// Two hosts with a repository of their own under one name would each hold a part of the WAL.
async fn refuse_two(world: &World, host: &dyn Host, document: &Path, about: &About) -> Result<()> {
    for other in world.input.cluster.nodes.iter().map(|node| &node.host).filter(|other| *other != host.name())
    {
        let read = world.doors.host(other).read(document).await.map_err(|error| {
            Error::failed(format!("could not see whether host {other} has the same repository")).source(error)
        })?;
        let Some(theirs) = read.and_then(|bytes| About::read(&bytes).ok()) else { continue };
        if theirs.id != about.id {
            return Err(Error::refused(format!(
                "{} is not the same directory on host {} as on host {other}",
                document.parent().unwrap_or(document).display(),
                host.name()
            ))
            .detail(format!("It is the repository {} here and {} there.", about.id, theirs.id))
            .hint(SHARE));
        }
    }
    Ok(())
}

/// Gives a file its name unless another has it: link(2) replaces nothing.
async fn put_if_absent(host: &dyn Host, file: &Path, name: &Path) -> Result<(), HostError> {
    let words = [file, name].map(|path| path.display().to_string());
    let linked = host.run(&Command::new("ln").args(["-T", "--"]).args(words)).await;
    if linked.is_err() && host.stat(name).await?.is_none() {
        return linked.map(drop);
    }
    let directory = name.parent().unwrap_or(name).display().to_string();
    host.run(&Command::new("sync").args(["--", &directory])).await.map(drop)
}

/// Takes a repository back, unless somebody has put something into it meanwhile.
pub(super) async fn unmake(world: &World, host: &str, name: &str, directory_existed: bool) -> Result<()> {
    let repository = declared(world, name)?;
    let Some(directory) = repository.directory() else {
        let door = NodeDoor::with(&world.doors, host, &world.build).await?;
        return unmake_bucket(&node::through(&door, repository)).await;
    };
    let host = world.doors.host(host);
    let could_not =
        |error: HostError| Error::failed(format!("could not remove the repository {name}")).source(error);
    let Some(names) = host.list(directory).await.map_err(could_not)? else { return Ok(()) };
    let beside = beside(world, directory);
    let left = names.iter().filter(|name| {
        !OWN.contains(&name.as_str()) && *name != layout::REPOSITORY && directory.join(name) != beside
    });
    if left.count() > 0 {
        return Ok(());
    }
    for file in [directory.join(layout::REPOSITORY), beside] {
        host.remove_file(&file).await.map_err(could_not)?;
    }
    for name in OWN {
        host.remove_tree(&directory.join(name)).await.map_err(could_not)?;
    }
    if !directory_existed {
        provision::remove_empty(host, directory).await.map_err(could_not)?;
    }
    Ok(())
}

async fn unmake_bucket(repo: &SharedRepo) -> Result<()> {
    let level = match repo.list(None).await {
        Ok(level) => level,
        Err(error) if error.kind == RepoErrorKind::Missing => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let about = layout::repository();
    if level.folders.is_empty() && level.objects.iter().all(|object| object.key == about) {
        repo.remove(&about).await?;
    }
    Ok(())
}

/// Returns the name that `repository.json` has before it has its own.
fn beside(world: &World, directory: &Path) -> PathBuf {
    directory.join(format!(".{}.{}", layout::REPOSITORY, world.operation))
}

/// Finds the repository that a step names.
pub(super) fn declared<'a>(world: &'a World, name: &str) -> Result<&'a Repository> {
    let backups = world.input.cluster.backups.as_ref();
    backups
        .into_iter()
        .flat_map(Backups::repositories)
        .find(|repository| repository.name == name)
        .ok_or_else(|| Error::failed(format!("the operation knows no repository {name:?}")))
}

fn could_not_make(host: &dyn Host, repository: &Repository, error: HostError) -> Error {
    let name = &repository.name;
    let directory = repository.url.trim_start_matches("file://");
    let why = match &error {
        HostError::Exited { stderr, .. } => stderr.clone(),
        HostError::NotStarted { why, .. } | HostError::Lost { why, .. } => format!("{why}."),
        HostError::File { what, why, .. } => format!("Could not {what}: {why}."),
    };
    let hint = match &error {
        HostError::File {
            kind: std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded, ..
        } => {
            format!("Make room in {directory}, then try again.")
        }
        HostError::File { .. }
        | HostError::Exited { .. }
        | HostError::NotStarted { .. }
        | HostError::Lost { .. } => {
            format!(
                "Give {} the right to write to {directory}, or give the repository another directory.",
                host.os_user()
            )
        }
    };
    Error::failed(format!("could not make the repository {name}")).detail(why).hint(hint).source(error)
}
