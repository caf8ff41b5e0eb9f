//! Backups that were aborted: which one the next backup goes on with, and what one leaves when it is aborted itself.

use jiff::{SignedDuration, Timestamp};

use super::retention;
use crate::engine::lease::{self, Purpose};
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
pub(super) async fn leave(repo: &SharedRepo, keys: &BackupKeys, error: Error) -> Error {
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

/// Tells whether there is a manifest; one that is damaged is one.
async fn has_manifest(repo: &SharedRepo, keys: &BackupKeys) -> Result<bool> {
    Ok(document::read::<serde_json::Value>(&**repo, &keys.manifest()).await?.is_some())
}

/// Lists the notes of what a backup has stored.
pub(super) async fn progress_of(repo: &SharedRepo, keys: &BackupKeys) -> Result<Vec<Key>> {
    let listed = repo.list_all(keys.folder()).await?.into_iter().map(|listed| listed.key);
    Ok(listed.filter(|key| keys.progress_number(key).is_some()).collect())
}

/// Removes a folder: the manifest first, which may have been stored although that was not answered, so that at no moment there is a
/// backup that lacks data.
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
