//! What interrupted backups have left in a repository, which the next backup removes.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::aborted::remove_folder;
use super::holdings;
use crate::engine::lease::{Held, Purpose};
use crate::error::Result;
use crate::repo::SharedRepo;
use crate::repo::layout::{Label, SystemKeys};

/// Removes folders without a manifest that nobody uses, all but that of `ours`.
///
/// # Errors
/// As the repository fails.
pub(super) async fn remove(repo: &SharedRepo, system: &SystemKeys, ours: &Label) -> Result<()> {
    let found = find(repo, system, ours).await?;
    if found.is_empty() {
        return Ok(());
    }
    // Flag first, as an expiry: whoever uses one of them by now is seen, and whoever begins to, as a copy into this repository does, sees this.
    let held = Held::take(repo, system, Purpose::Expire, found.clone()).await?;
    let ended = remove_unused(repo, system, &held, found).await;
    held.release().await?;
    ended
}

async fn remove_unused(repo: &SharedRepo, system: &SystemKeys, held: &Held, found: Vec<Label>) -> Result<()> {
    let mut used = BTreeSet::new();
    for found in holdings::uses(repo, system, Timestamp::now()).await? {
        // Whatever one names that cannot be read, it is not for us to remove.
        let Some(labels) = found.labels else { return Ok(()) };
        used.extend(labels);
    }
    for label in found.into_iter().filter(|label| !used.contains(label)) {
        held.confirm().await?;
        if !is_backup(repo, system, &label).await? {
            remove_folder(repo, &system.backup(&label)).await?;
        }
    }
    Ok(())
}

async fn find(repo: &SharedRepo, system: &SystemKeys, ours: &Label) -> Result<Vec<Label>> {
    let mut found = Vec::new();
    for folder in repo.list(Some(&system.backups())).await?.folders {
        let Ok(label) = folder.parse::<Label>() else { continue };
        if label != *ours && !is_backup(repo, system, &label).await? {
            found.push(label);
        }
    }
    Ok(found)
}

/// Tells whether there is a manifest, by a listing: one that is damaged is there.
async fn is_backup(repo: &SharedRepo, system: &SystemKeys, label: &Label) -> Result<bool> {
    let keys = system.backup(label);
    let manifest = keys.manifest();
    Ok(repo.list(Some(keys.folder())).await?.objects.iter().any(|listed| listed.key == manifest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lease;
    use crate::ops::backup::trial::Trial;
    use crate::repo::wait;

    fn at(text: &str) -> jiff::Timestamp {
        text.parse().unwrap()
    }

    fn folder(trial: &Trial, label: &Label) -> usize {
        wait(trial.repo.list_all(Trial::system().backup(label).folder())).unwrap().len()
    }

    #[tokio::test]
    async fn what_nobody_uses_goes_and_a_backup_whose_manifest_is_damaged_stays() {
        for trial in [Trial::new(), Trial::encrypted()] {
            let keys = Trial::system();
            let labels: Vec<Label> =
                (1..=4).map(|day| trial.back_up(at(&format!("2026-06-0{day}T12:00:00Z")), day)).collect();
            for label in &labels[..3] {
                trial.repo.remove(&keys.backup(label).manifest()).await.unwrap();
            }
            trial.flip(&keys.backup(&labels[3]).manifest(), 900);
            let used = vec![labels[1].clone()];
            let held = Held::take_for_copy(&trial.repo, &keys, used).await.unwrap();
            remove(&trial.repo, &keys, &labels[2]).await.unwrap();
            let left: Vec<bool> = labels.iter().map(|label| folder(&trial, label) > 0).collect();
            assert_eq!(left, [false, true, true, true]);
            held.release().await.unwrap();
            assert_eq!(lease::read_all(&trial.repo, &keys).await.unwrap().len(), 0);
        }
    }
}
