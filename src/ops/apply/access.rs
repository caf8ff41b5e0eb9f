//! What it takes to open a repository, brought to a host: a file of secrets that only the os-user reads, tried before anything uses it.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::host::{Host, HostError};
use crate::ops::apply::evidence::Evidence;
use crate::ops::apply::repository::declared;
use crate::ops::apply::resolve;
use crate::ops::apply::world::World;
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::Doors;
use crate::ops::plan::AccessSeen;
use crate::repo::access::{Access, Credentials, FORMAT, S3Access};
use crate::repo::crypt::keyring::Keyring;
use crate::repo::{Location, RepoErrorKind};
use crate::secret::Secret;
use crate::topology::model::{Addressing, Repository, S3};

/// Looks whether a host has what it takes.
pub(crate) async fn look(doors: &Doors, name: &str, repository: &Repository) -> Result<AccessSeen> {
    let Some(file) = doors.places(name).access(repository) else { return Ok(AccessSeen::NotNeeded) };
    let found = doors.host(name).read(&file).await.map_err(Error::from)?;
    let Some(found) = found else { return Ok(AccessSeen::Missing) };
    let wanted = of(doors.own(), repository).await?;
    Ok(if found == wanted.reveal().as_bytes() { AccessSeen::Right } else { AccessSeen::Differs })
}

/// Tells whether the file is there as it should be.
pub(super) async fn is_there(world: &World, host: &str, name: &str) -> Result<bool> {
    let seen = look(&world.doors, host, declared(world, name)?).await?;
    Ok(matches!(seen, AccessSeen::Right | AccessSeen::NotNeeded))
}

/// Writes the file, once the repository, or the lack of one, can be seen with it.
pub(super) async fn bring(world: &World, host: &str, name: &str) -> Result<Evidence> {
    let repository = declared(world, name)?;
    let Some(file) = world.doors.places(host).access(repository) else { return Ok(Evidence::AccessThere {}) };
    let text = of(world.doors.own(), repository).await?;
    let door = NodeDoor::with(&world.doors, host, &world.build).await?;
    let trial = trial_of(world, &file);
    write(door.host(), &trial, &text).await?;
    let tried = try_out(&door, repository, &trial).await;
    door.host().remove_file(&trial).await.map_err(could_not)?;
    tried?;
    write(door.host(), &file, &text).await?;
    Ok(Evidence::AccessThere {})
}

/// Takes the file away where there was none before, and what was tried out in any case.
pub(super) async fn take_away(world: &World, host: &str, name: &str, existed: bool) -> Result<()> {
    let repository = declared(world, name)?;
    let Some(file) = world.doors.places(host).access(repository) else { return Ok(()) };
    let host = world.doors.host(host);
    // Whoever was killed while it was tried out has left it.
    host.remove_file(&trial_of(world, &file)).await.map_err(could_not)?;
    if existed {
        return Ok(());
    }
    host.remove_file(&file).await.map_err(could_not)
}

/// Returns the name that the file has while it is tried out.
fn trial_of(world: &World, file: &Path) -> PathBuf {
    file.with_extension(format!("{}.json", world.operation))
}

async fn write(host: &dyn Host, file: &Path, text: &Secret) -> Result<()> {
    let directory = file.parent().unwrap_or(file);
    host.make_directory(directory, 0o700).await.map_err(could_not)?;
    host.write_atomic(file, text.reveal().as_bytes(), 0o600).await.map_err(could_not)
}

fn could_not(error: HostError) -> Error {
    Error::failed("could not write what it takes to open the repository").source(error)
}

/// What the host cannot get in with is not written over what it gets in with.
async fn try_out(door: &NodeDoor, repository: &Repository, trial: &Path) -> Result<()> {
    let location = Location { url: repository.url.clone(), access: Some(trial.to_owned()) };
    let Err(error) = node::prove(door, location).await else { return Ok(()) };
    // An empty bucket; one that is not there is told when the repository is made.
    if error.kind == RepoErrorKind::Missing {
        return Ok(());
    }
    let what = format!("host {} cannot open the repository {}", door.host().name(), repository.name);
    let kind = if error.kind == RepoErrorKind::Passing { ErrorKind::NotFound } else { ErrorKind::Failed };
    let name = &repository.name;
    let hint = if error.kind == RepoErrorKind::WrongKey {
        format!(
            "Name the key that it was encrypted with in repositories.{name}: as encrypt, or as encrypt-before beside the one that takes its place."
        )
    } else {
        format!("Look at repositories.{name} in the topology, and at what its references lead to.")
    };
    Err(Error::new(kind, what)
        .detail(format!("Of {}: {}. What it had before was left as it was.", error.url, error.why))
        .hint(hint))
}

/// Makes the text of the file, with all its secrets.
async fn of(here: &dyn Host, repository: &Repository) -> Result<Secret> {
    let s3 = match &repository.s3 {
        Some(s3) => Some(s3_access(here, repository, s3).await?),
        None => None,
    };
    let mut keys = Vec::new();
    for reference in &repository.keys {
        let key = resolve(here, reference).await;
        keys.push(
            key.map_err(|error| error.context(format!("resolve the key of repository {}", repository.name)))?,
        );
    }
    if !keys.is_empty() {
        Keyring::parse(&keys).map_err(|error| {
            Error::usage(format!("what is declared as the key of repository {} is none", repository.name))
                .source(error)
                .hint("Make one, and keep it where nothing of the repository is: openssl rand -hex 32")
        })?;
    }
    Ok(Access { format: FORMAT, url: repository.url.clone(), s3, keys }.write())
}

async fn s3_access(here: &dyn Host, repository: &Repository, s3: &S3) -> Result<S3Access> {
    let credentials = match &s3.credentials {
        None => None,
        Some(declared) => {
            let doing = |error: Error| {
                error.context(format!("resolve the credentials of repository {}", repository.name))
            };
            Some(Credentials {
                access_key: resolve(here, &declared.access_key).await.map_err(doing)?,
                secret_key: resolve(here, &declared.secret_key).await.map_err(doing)?,
            })
        }
    };
    let authorities = match &s3.ca {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
            Error::failed(format!(
                "could not read the authorities of repository {} in {}",
                repository.name,
                path.display()
            ))
            .source(error)
        })?),
    };
    Ok(S3Access {
        region: s3.region.clone(),
        endpoint: s3.endpoint.clone(),
        path_style: s3.addressing == Addressing::Path,
        authorities,
        credentials,
        profile: s3.profile.clone(),
        storage_class: s3.storage_class.clone(),
        server_side_encryption: s3.sse.map(|sse| sse.word().to_owned()),
        kms_key: s3.kms_key.clone(),
        object_lock: s3.lock,
    })
}
