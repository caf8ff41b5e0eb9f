//! The backups of a cluster, of all its system identifiers, in order of time: from listings and manifests alone.

use super::layout::{BackupKeys, ClusterKeys, Label};
use super::manifest::Manifest;
use super::seal::SealError;
use super::{Repo, Result, document};
use crate::pg::system::SystemIdentifier;

/// A folder of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub system: SystemIdentifier,
    pub label: Label,
    pub state: State,
}

/// What a folder of a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Whole(Box<Manifest>),
    /// There is no manifest: it is being made, or was never finished.
    Unfinished,
    /// There is a manifest that cannot be used.
    Damaged(SealError),
}

impl Backup {
    /// Returns its manifest, if it is whole.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.state {
            State::Whole(manifest) => Some(manifest),
            State::Unfinished | State::Damaged(_) => None,
        }
    }

    pub fn keys(&self, cluster: &ClusterKeys) -> BackupKeys {
        cluster.system(self.system).backup(&self.label)
    }
}

/// Returns the system identifiers that a cluster has anything of.
///
/// # Errors
/// As the repository fails.
pub async fn systems(repo: &dyn Repo, cluster: &ClusterKeys) -> Result<Vec<SystemIdentifier>> {
    let folders = repo.list(Some(&cluster.folder())).await?.folders;
    Ok(folders
        .iter()
        .filter_map(|name| name.parse().ok().filter(|s: &SystemIdentifier| s.to_string() == *name))
        .collect())
}

/// Returns the backups of a cluster, oldest first.
///
/// After `pg_upgrade` the order is still that of time: labels of one cluster differ, whatever the system identifier.
///
/// # Errors
/// As the repository fails; a damaged manifest is no error here.
pub async fn backups(repo: &dyn Repo, cluster: &ClusterKeys) -> Result<Vec<Backup>> {
    let mut found = Vec::new();
    for system in systems(repo, cluster).await? {
        let keys = cluster.system(system);
        for name in repo.list(Some(&keys.backups())).await?.folders {
            let Ok(label) = name.parse::<Label>() else { continue };
            let state = match document::read(repo, &keys.backup(&label).manifest()).await? {
                None => State::Unfinished,
                Some(Ok(manifest)) => State::Whole(Box::new(manifest)),
                Some(Err(error)) => State::Damaged(error),
            };
            found.push(Backup { system, label, state });
        }
    }
    found.sort_by(|a, b| (&a.label, a.system).cmp(&(&b.label, b.system)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::dir::DirRepo;
    use crate::repo::wait;

    const MANIFEST: &[u8] = include_bytes!("../../tests/golden/manifest-v1.json");

    #[test]
    fn backups_of_all_systems_come_in_order_of_time() {
        let directory = tempfile::tempdir().unwrap();
        let repo = DirRepo::create(&directory.path().join("repository")).unwrap();
        let cluster = ClusterKeys::new("inventory");
        let system = |id| cluster.system(SystemIdentifier::new(id).unwrap());
        let put = |id, label: &str, bytes: &[u8]| {
            let backup = system(id).backup(&label.parse().unwrap());
            wait(repo.store(&backup.manifest(), bytes)).unwrap();
        };
        // The newer cluster has the smaller identifier.
        put(9, "20261120T100000Z-full", MANIFEST);
        put(5, "20261121T100000Z-full", MANIFEST);
        put(9, "20261119T100000Z-full", b"{}");
        let unfinished = system(5).backup(&"20261122T100000Z-full".parse().unwrap());
        wait(repo.store(&unfinished.data(1), b"x")).unwrap();
        wait(repo.store(&cluster.lock(), b"x")).unwrap();
        wait(repo.store(&cluster.folder().join("stranger/x").unwrap(), b"x")).unwrap();

        let found = wait(Box::pin(backups(&repo, &cluster))).unwrap();
        let told: Vec<String> = found
            .iter()
            .map(|backup| {
                let state = match backup.state {
                    State::Whole(_) => "whole",
                    State::Unfinished => "unfinished",
                    State::Damaged(_) => "damaged",
                };
                format!("{} {} {state}", backup.system, &backup.label.as_str()[..8])
            })
            .collect();
        assert_eq!(
            told,
            ["9 20261119 damaged", "9 20261120 whole", "5 20261121 whole", "5 20261122 unfinished"]
        );
        assert_eq!(found.iter().filter(|backup| backup.manifest().is_some()).count(), 2);
    }
}
