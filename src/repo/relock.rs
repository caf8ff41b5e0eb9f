//! What is needed for longer than it is locked is stored once more as it is: the object lock of what is stored lasts from then on.
//!
//! These are the data keys of WAL, of exports and of dumps, which belong to no backup and are needed for as long as anything that they encrypt, and what the
//! repository says of itself.

use super::layout::{self, ClusterKeys};
use super::{Key, Repo, Result, catalog, dump};

/// Stores them again; of data keys those of one cluster. `repo` is what lies below [`super::crypt::Encrypted`].
///
/// # Errors
/// As the repository fails; what was stored by then is locked anew.
pub(super) async fn lock_again(repo: &dyn Repo, cluster: &str) -> Result<()> {
    for key in needed_for_long(repo, cluster).await? {
        if let Some((bytes, version)) = repo.read_versioned(&key).await? {
            // Who has written another one meanwhile has locked it, too.
            repo.replace_if(&key, &bytes, &version).await?;
        }
    }
    Ok(())
}

async fn needed_for_long(repo: &dyn Repo, cluster: &str) -> Result<Vec<Key>> {
    let mut found = vec![layout::repository(), dump::key_document(cluster)];
    let keys = ClusterKeys::new(cluster);
    for system in catalog::systems(repo, &keys).await? {
        let level = repo.list(Some(&keys.system(system).key_documents())).await?;
        found.extend(level.objects.into_iter().map(|listed| listed.key));
    }
    Ok(found)
}
