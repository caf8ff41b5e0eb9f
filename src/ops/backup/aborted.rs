//! Backups that were aborted: which one the next backup goes on with, and what one leaves when it is aborted itself.

use jiff::{SignedDuration, Timestamp};

use super::retention;
use crate::engine::lease::{self, Held, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::repo::layout::{BackupKeys, ClusterKeys, Label, SystemKeys};
use crate::repo::{Key, SharedRepo, document};

/// The name of a backup that is made, and whether one of that name was aborted, with which it goes on.
pub(super) struct Next {
    pub(super) label: Label,
    pub(super) goes_on: bool,
}

/// Goes on with the cluster's newest backup, if that was aborted lately and it is noted what it has stored; else names a new one by this
/// second, or later than every one that the cluster has, whatever its system identifier.
pub(super) async fn next(repo: &SharedRepo, system: &SystemKeys) -> Result<Next> {
    let cluster = ClusterKeys::new(system.cluster()).folder();
    let mut newest: Option<(Label, String)> = None;
    for id in repo.list(Some(&cluster)).await?.folders {
        let Ok(backups) = cluster.join(&format!("{id}/backup")) else { continue };
        let labels = repo.list(Some(&backups)).await?.folders;
        let labels = labels.iter().filter_map(|name| name.parse::<Label>().ok());
        newest = newest.max(labels.max().map(|label| (label, id)));
    }
    let now = Timestamp::now();
    let Some((newest, id)) = newest else { return Ok(Next { label: Label::full(now), goes_on: false }) };
    let keys = system.backup(&newest);
    if id == system.system().to_string()
        && retention::goes_on(&newest, Some(&newest), now)
        && !progress_of(repo, &keys).await?.is_empty()
        && !has_manifest(repo, &keys).await?
    {
        return Ok(Next { label: newest, goes_on: true });
    }
    let second = SignedDuration::from_secs(1);
    Ok(Next { label: Label::full(now.max(newest.at() + second)), goes_on: false })
}

/// Makes sure, under the lease, that the aborted backup has not been ended since it was looked at, and that nobody is removing it.
pub(super) async fn may_go_on(repo: &SharedRepo, system: &SystemKeys, label: &Label) -> Result<()> {
    let now = Timestamp::now();
    let removing = lease::read_all(repo, system).await?.into_iter().any(|found| {
        let names_it = |lease: &lease::Lease| lease.kind == Purpose::Expire && lease.labels.contains(label);
        found.lives(now) && found.lease.as_ref().is_ok_and(names_it)
    });
    if !removing && !has_manifest(repo, &system.backup(label)).await? {
        return Ok(());
    }
    let what = if removing { "is being removed" } else { "was ended by somebody else" };
    Err(Error::new(ErrorKind::Locked, format!("backup {label}, with which this one was to go on, {what}"))
        .detail("Nothing was changed.")
        .hint("Run it again: pgherd backup create"))
}

/// Leaves an unfinished backup: with what it has stored, if that is noted, so that the next one goes on with it; else without a trace, as
/// far as that goes. Returns the error that says so.
///
/// Only whoever holds the lease touches it: once that is lost another one may have gone on with the backup, and may have ended it.
pub(super) async fn leave(repo: &SharedRepo, keys: &BackupKeys, held: &Held, error: Error) -> Error {
    match may_remove(repo, keys, held).await {
        Ok(true) => {}
        Ok(false) => return error,
        Err(trouble) => {
            tracing::warn!(error = %trouble, "could not see whose the unfinished backup is; it stays");
            return error;
        }
    }
    let left = match progress_of(repo, keys).await {
        Ok(noted) if noted.is_empty() => match remove_folder(repo, keys).await {
            Ok(()) => "Nothing of it stays in the repository.",
            Err(trouble) => {
                tracing::warn!(error = %trouble, "could not remove what the backup had stored");
                return error;
            }
        },
        Ok(_) => "What it has stored stays in the repository, and the next backup goes on with it.",
        Err(trouble) => {
            tracing::warn!(error = %trouble, "could not see what the backup has stored");
            return error;
        }
    };
    let detail = error.detail_text().map_or_else(String::new, |detail| format!("{detail} "));
    error.detail(format!("{detail}{left}"))
}

/// Tells whether the folder is ours, and nothing that is whole.
async fn may_remove(repo: &SharedRepo, keys: &BackupKeys, held: &Held) -> Result<bool> {
    held.confirm().await?;
    Ok(!has_manifest(repo, keys).await?)
}

/// Tells whether there is a manifest; one that is damaged is one.
async fn has_manifest(repo: &SharedRepo, keys: &BackupKeys) -> Result<bool> {
    Ok(document::read::<serde_json::Value>(&**repo, &keys.manifest()).await?.is_some())
}

/// Lists the notes of what a backup has stored.
pub(super) async fn progress_of(repo: &SharedRepo, keys: &BackupKeys) -> Result<Vec<Key>> {
    let listed = repo.list_all(keys.folder()).await?.into_iter().map(|listed| listed.key);
    Ok(listed.filter(|key| keys.progress_number(key).is_some()).collect())
}

/// Removes a folder: the manifest first, so that at no moment there is a backup that lacks data.
pub(super) async fn remove_folder(repo: &SharedRepo, keys: &BackupKeys) -> Result<()> {
    repo.remove(&keys.manifest()).await?;
    let mut listed = repo.list_all(keys.folder()).await?;
    keys.order_of_removal(&mut listed);
    for listed in listed {
        repo.remove(&listed.key).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::backup::trial::Trial;
    use crate::pg::system::SystemIdentifier;
    use crate::repo::{Location, create};

    struct Place {
        _directory: tempfile::TempDir,
        repo: SharedRepo,
        system: SystemKeys,
        label: Label,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("file://{}", directory.path().join("repository").display());
            let repo = create(&Location::plain(url)).unwrap();
            let system = ClusterKeys::new("inventory").system(SystemIdentifier::new(11).unwrap());
            Self { _directory: directory, repo, system, label: "20261122T020000Z-full".parse().unwrap() }
        }

        fn keys(&self) -> BackupKeys {
            self.system.backup(&self.label)
        }

        async fn held(&self) -> Held {
            Held::take_for_backup(&self.repo, &self.system, self.label.clone()).await.unwrap()
        }

        async fn left(&self) -> usize {
            self.repo.list_all(self.keys().folder()).await.unwrap().len()
        }
    }

    #[tokio::test]
    async fn an_aborted_backup_leaves_no_trace_or_what_the_next_one_goes_on_with() {
        let place = Place::new();
        let (keys, held) = (place.keys(), place.held().await);
        place.repo.store(&keys.data(1), b"x").await.unwrap();
        place.repo.store(&keys.progress(1), b"x").await.unwrap();
        leave(&place.repo, &keys, &held, Error::failed("the server is gone")).await;
        assert_eq!(place.left().await, 2);
        place.repo.remove(&keys.progress(1)).await.unwrap();
        leave(&place.repo, &keys, &held, Error::failed("the server is gone")).await;
        assert_eq!(place.left().await, 0);
    }

    #[tokio::test]
    async fn whoever_has_lost_the_lease_touches_nothing_of_what_another_one_has_made_of_the_backup() {
        let place = Place::new();
        let (keys, stalled) = (place.keys(), place.held().await);
        place.repo.store(&keys.data(1), b"x").await.unwrap();
        // Another one takes the lease of a dead one over, and ends the backup.
        let lease = place.system.lease("backup");
        place.repo.remove(&lease).await.unwrap();
        let other = place.held().await;
        leave(&place.repo, &keys, &stalled, Error::failed("its lease is lost")).await;
        assert_eq!(place.left().await, 1);
        place.repo.store(&keys.manifest(), b"{}").await.unwrap();
        other.release().await.unwrap();
        leave(&place.repo, &keys, &stalled, Error::failed("its lease is lost")).await;
        assert_eq!(place.left().await, 2);
        // And what is whole is no unfinished backup, whoever looks.
        let held = place.held().await;
        leave(&place.repo, &keys, &held, Error::failed("it was stored, and that was not answered")).await;
        assert_eq!(place.left().await, 2);
    }

    #[tokio::test]
    async fn the_next_backup_begins_anew_after_one_whose_manifest_is_damaged() {
        for trial in [Trial::new(), Trial::encrypted()] {
            let keys = Trial::system();
            let label = trial.back_up(Timestamp::now() - SignedDuration::from_hours(1), 2);
            trial.flip(&keys.backup(&label).manifest(), 900);
            let begun = next(&trial.repo, &keys).await.unwrap();
            assert!(!begun.goes_on && begun.label > label);
            // Nor does it go on with it where notes of what it stored are left.
            trial.repo.store(&keys.backup(&label).progress(1), b"noted").await.unwrap();
            assert!(!next(&trial.repo, &keys).await.unwrap().goes_on);
            assert_eq!(may_go_on(&trial.repo, &keys, &label).await.unwrap_err().kind(), ErrorKind::Locked);
            trial.repo.remove(&keys.backup(&label).manifest()).await.unwrap();
            assert!(next(&trial.repo, &keys).await.unwrap().goes_on);
        }
    }
}
