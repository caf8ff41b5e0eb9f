//! Dumps in a repository: what pg_dump made of one database, for those who must hand it out; docs/formats/dump.md.
//!
//! `_dumps/CLUSTER/NAME/LABEL/`: beside the clusters, whose names begin with a letter, since a dump outlives the cluster that it is of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::seal::{Blake3, SealError};
use super::{Key, Repo, Result, document};
use crate::units::ByteCount;

const FOLDER: &str = "_dumps";

/// Where the dumps of one name are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpKeys {
    folder: String,
}

/// Which part of a dump a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InDump {
    Manifest,
    Data,
}

/// `dump.json`: a sealed document. It is the commit: without it there is no dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpManifest {
    pub format: u32,
    pub herd: String,
    pub cluster: String,
    pub name: String,
    /// When it began, to the second: `20261121T100203Z`.
    pub label: String,
    pub database: String,
    /// Empty: all of them.
    pub schemas: Vec<String>,
    /// Where it was read.
    pub node: String,
    /// What pg_dump says of itself.
    pub pg_dump: String,
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub size: ByteCount,
    pub data_blake3: Blake3,
    /// What `pg_restore --list` lists.
    pub entries: u64,
}

/// A dump as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDump {
    pub label: String,
    /// When its newest object was stored, by the store's clock.
    pub modified: Timestamp,
    pub manifest: Option<Result<DumpManifest, SealError>>,
}

impl DumpKeys {
    /// Takes names that the topology has checked.
    pub fn new(cluster: &str, name: &str) -> Self {
        Self { folder: format!("{FOLDER}/{cluster}/{name}") }
    }

    pub fn folder(&self) -> Key {
        key(self.folder.clone())
    }

    /// Returns the key of what pg_dump wrote.
    pub fn data(&self, label: &str) -> Key {
        key(format!("{}/{label}/data", self.folder))
    }

    pub fn manifest(&self, label: &str) -> Key {
        key(format!("{}/{label}/dump.json", self.folder))
    }
}

/// Returns the folder of all dumps of a cluster.
pub fn dumps(cluster: &str) -> Key {
    key(format!("{FOLDER}/{cluster}"))
}

/// Returns where the data key of all dumps of a cluster is.
pub fn key_document(cluster: &str) -> Key {
    key(format!("{FOLDER}/{cluster}/key.json"))
}

/// Returns the cluster whose dumps `key` would be one of.
pub fn cluster_of(key: &Key) -> Option<&str> {
    key.as_str().strip_prefix(FOLDER)?.strip_prefix('/')?.split('/').next()
}

/// Tells what a key below the folder of a cluster's dumps is: the name and the label of the dump, and which part of it.
pub fn part_of(cluster: &str, key: &Key) -> Option<(String, String, InDump)> {
    let below = key.as_str().strip_prefix(dumps(cluster).as_str())?.strip_prefix('/')?;
    let parts: Vec<&str> = below.split('/').collect();
    let [name, label, part] = parts.as_slice() else { return None };
    let keys = DumpKeys::new(cluster, name);
    let known = [(keys.manifest(label), InDump::Manifest), (keys.data(label), InDump::Data)];
    let (_, part) = known.into_iter().find(|(known, _)| known.name() == *part)?;
    Some(((*name).to_owned(), (*label).to_owned(), part))
}

fn key(text: String) -> Key {
    Key::new(text).expect("names of clusters and dumps, and labels, are made of what a key may hold")
}

/// Returns the label of a dump that begins at `at`.
pub fn label(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Returns the clusters of which there are dumps.
///
/// # Errors
/// As the repository fails.
pub async fn clusters(repo: &dyn Repo) -> Result<Vec<String>> {
    Ok(repo.list(Some(&key(FOLDER.to_owned()))).await?.folders)
}

/// Returns the names of which a cluster has dumps.
///
/// # Errors
/// As the repository fails.
pub async fn names(repo: &dyn Repo, cluster: &str) -> Result<Vec<String>> {
    Ok(repo.list(Some(&dumps(cluster))).await?.folders)
}

/// Lists the dumps of one name, oldest first.
///
/// # Errors
/// As the repository fails.
pub async fn list(repo: &dyn Repo, keys: &DumpKeys) -> Result<Vec<FoundDump>> {
    let mut found: Vec<FoundDump> = Vec::new();
    for label in repo.list(Some(&keys.folder())).await?.folders {
        let objects = repo.list(Some(&key(format!("{}/{label}", keys.folder)))).await?.objects;
        let Some(modified) = objects.iter().map(|object| object.modified).max() else { continue };
        let manifest = document::read(repo, &keys.manifest(&label)).await?;
        found.push(FoundDump { label, modified, manifest });
    }
    found.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(found)
}

/// Removes a dump: the manifest first, so that killed in between it is none.
///
/// # Errors
/// As the repository fails.
pub async fn remove(repo: &dyn Repo, keys: &DumpKeys, label: &str) -> Result<()> {
    repo.remove(&keys.manifest(label)).await?;
    repo.remove(&keys.data(label)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::seal;

    #[test]
    fn the_golden_manifest_reads_and_writes_byte_for_byte() {
        let golden = include_str!("../../tests/golden/dump-v1.json");
        let manifest: DumpManifest = seal::read_document(golden.as_bytes()).unwrap();
        assert_eq!(manifest.label, label(manifest.begun));
        assert_eq!(String::from_utf8(seal::write_document(&manifest)).unwrap(), golden);
        let keys = DumpKeys::new(&manifest.cluster, &manifest.name);
        assert_eq!(keys.data(&manifest.label).as_str(), "_dumps/orders/legal/20261121T100203Z/data");
        assert_eq!(cluster_of(&keys.data(&manifest.label)), Some("orders"));
        assert_eq!(cluster_of(&Key::new("orders/lock.json").unwrap()), None);
        let part = |key: &Key| part_of("orders", key).map(|(_, _, part)| part);
        assert_eq!(part(&keys.data(&manifest.label)), Some(InDump::Data));
        assert_eq!(part(&keys.manifest(&manifest.label)), Some(InDump::Manifest));
        assert_eq!(part(&Key::new("_dumps/orders/legal/20261121T100203Z/notes").unwrap()), None);
        assert_eq!(part(&Key::new("_dumps/orders2/legal/20261121T100203Z/data").unwrap()), None);
    }
}
