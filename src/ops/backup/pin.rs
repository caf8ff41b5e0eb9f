//! `pin.json`: a backup that stays whatever the rules say.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::lease::{self, Purpose};
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::system::SystemIdentifier;
use crate::repo::layout::{ClusterKeys, Label};
use crate::repo::place::{InBackup, InSystem, Place};
use crate::repo::{Repo, SharedRepo, document, seal};

/// `pin.json`: a sealed document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub format: u32,
    /// `None`: until it is removed.
    pub until: Option<Timestamp>,
    /// In the operator's words; may be empty.
    pub reason: String,
    pub by: Actor,
    pub at: Timestamp,
}

impl Pin {
    /// Tells whether it keeps nothing any more.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// What a pin has replaced, or a removal has removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    NotPinned,
    Pinned(Pin),
    /// There was one that could not be read.
    Unreadable(String),
}

/// Pins a backup, in place of a pin that it has.
///
/// # Errors
/// [`ErrorKind::NotFound`] if the cluster has no backup of that label, [`ErrorKind::Locked`] while it is being removed, otherwise as
/// the repository fails.
pub async fn pin(
    repo: &SharedRepo,
    cluster: &str,
    label: &Label,
    until: Option<Timestamp>,
    reason: &str,
) -> Result<Before> {
    let now = Timestamp::now();
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(Error::usage(format!("cannot pin {label} until {until}: that is over")));
    }
    let keys = ClusterKeys::new(cluster).system(system_of(&**repo, cluster, label).await?);
    let backup = keys.backup(label);
    let before = read(&**repo, &backup).await?;
    let pin = Pin { format: seal::FORMAT, until, reason: reason.to_owned(), by: Actor::here(), at: now };
    repo.store(&backup.pin(), &seal::write_document(&pin)).await?;
    // As with a lease: whoever removes it has said so before, and looks for a pin after that.
    let removes = |found: lease::Found| {
        let lives = found.lives(now);
        found.lease.is_ok_and(|lease| lives && lease.kind == Purpose::Expire && lease.labels.contains(label))
    };
    let removed = lease::read_all(repo, &keys).await?.into_iter().any(removes);
    if removed {
        repo.remove(&backup.pin()).await?;
        return Err(Error::new(ErrorKind::Locked, format!("backup {label} is being removed"))
            .hint(format!("See what stays: pgherd backup list --cluster {cluster}")));
    }
    if repo.read(&backup.manifest()).await?.is_none() {
        repo.remove(&backup.pin()).await?;
        return Err(no_backup(cluster, label));
    }
    Ok(before)
}

/// Removes the pin of a backup.
///
/// # Errors
/// As [`pin`].
pub async fn unpin(repo: &dyn Repo, cluster: &str, label: &Label) -> Result<Before> {
    let system = system_of(repo, cluster, label).await?;
    let keys = ClusterKeys::new(cluster).system(system).backup(label);
    let before = read(repo, &keys).await?;
    repo.remove(&keys.pin()).await?;
    Ok(before)
}

async fn read(repo: &dyn Repo, keys: &crate::repo::layout::BackupKeys) -> Result<Before> {
    Ok(match document::read(repo, &keys.pin()).await? {
        None => Before::NotPinned,
        Some(Ok(pin)) => Before::Pinned(pin),
        Some(Err(error)) => Before::Unreadable(error.to_string()),
    })
}

async fn system_of(repo: &dyn Repo, cluster: &str, label: &Label) -> Result<SystemIdentifier> {
    find(repo, cluster, label).await?.ok_or_else(|| no_backup(cluster, label))
}

/// Finds the system identifier under which a cluster has a backup.
///
/// # Errors
/// As the repository fails.
pub async fn find(repo: &dyn Repo, cluster: &str, label: &Label) -> Result<Option<SystemIdentifier>> {
    let keys = ClusterKeys::new(cluster);
    for name in repo.list(Some(&keys.folder())).await?.folders {
        let Ok(system) = name.parse::<SystemIdentifier>() else { continue };
        let backup = keys.system(system).backup(label);
        let level = repo.list(Some(backup.folder())).await?;
        let is_manifest =
            |key| matches!(Place::of(&keys, key), Place::System(_, InSystem::Backup(_, InBackup::Manifest)));
        if level.objects.iter().any(|object| is_manifest(&object.key)) {
            return Ok(Some(system));
        }
    }
    Ok(None)
}

fn no_backup(cluster: &str, label: &Label) -> Error {
    Error::new(ErrorKind::NotFound, format!("cluster {cluster} has no backup {label}"))
        .hint(format!("See which there are: pgherd backup list --cluster {cluster}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::repo::dir::DirRepo;
    use crate::repo::wait;

    #[test]
    fn the_golden_pin_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../../tests/golden/pin-v1.json");
        let pin: Pin = seal::read_document(golden.as_bytes()).unwrap();
        assert_eq!(
            (pin.until, pin.reason.as_str()),
            (Some("2027-01-31T00:00:00Z".parse().unwrap()), "audit 2026")
        );
        assert_eq!(String::from_utf8(seal::write_document(&pin)).unwrap(), golden);
    }

    #[test]
    fn a_pin_is_set_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let repo: SharedRepo = Arc::new(DirRepo::create(&directory.path().join("repository")).unwrap());
        let label: Label = "20260601T120000Z-full".parse().unwrap();
        let keys = ClusterKeys::new("inventory").system(SystemIdentifier::new(7).unwrap()).backup(&label);
        let run = |future: crate::gate::BoxFuture<'_, Result<Before>>| wait(future);

        let missing = run(Box::pin(pin(&repo, "inventory", &label, None, ""))).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        wait(repo.create(&keys.manifest(), b"{}")).unwrap();
        let over =
            run(Box::pin(pin(&repo, "inventory", &label, Some(Timestamp::UNIX_EPOCH), ""))).unwrap_err();
        assert_eq!(over.kind(), ErrorKind::Usage);

        let first = run(Box::pin(pin(&repo, "inventory", &label, None, "audit"))).unwrap();
        assert_eq!(first, Before::NotPinned);
        let second = run(Box::pin(pin(&repo, "inventory", &label, Some(Timestamp::MAX), ""))).unwrap();
        assert!(matches!(second, Before::Pinned(pin) if pin.reason == "audit" && pin.until.is_none()));
        wait(repo.store(&keys.pin(), b"{}")).unwrap();
        assert!(matches!(run(Box::pin(unpin(&*repo, "inventory", &label))).unwrap(), Before::Unreadable(_)));
        assert_eq!(run(Box::pin(unpin(&*repo, "inventory", &label))).unwrap(), Before::NotPinned);
    }
}
