//! Makes what was brought a backup of the other repository: everything that it needs is there, and nobody has removed it meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::Work;
use super::objects::Trouble;
use crate::engine::lease::Held;
use crate::error::Result;
use crate::pg::wal_file::{SegmentName, WalFile};
use crate::repo::layout::{Label, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::{Key, Put, document, seal};
use crate::units::ByteCount;

/// What the folder of a backup must have before its manifest comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folder {
    pub(super) files: Option<ByteCount>,
    pub(super) data: BTreeMap<u32, ByteCount>,
    /// Whether its data key is there.
    pub(super) key: bool,
}

impl Work<'_> {
    /// Stores the manifest.
    pub(super) async fn commit(
        &self,
        system: &SystemKeys,
        manifest: &Manifest,
        expected: &Folder,
        leases: &[Held],
    ) -> Result<(), Trouble> {
        for held in leases {
            held.confirm().await?;
        }
        let keys = system.backup(&manifest.label);
        self.is_there(system, &manifest.label, expected).await?;
        self.has_wal(system, manifest).await?;
        self.store_manifest(&keys.manifest(), manifest).await?;
        // Had this process been stopped for long in between, somebody could have removed the data of what had no manifest.
        for held in leases {
            if held.confirm().await.is_err() {
                self.is_there(system, &manifest.label, expected).await?;
            }
        }
        Ok(())
    }

    /// Stores the manifest. Where one is already the backup had lost something else: the same one counts, and one that cannot be used is replaced.
    async fn store_manifest(&self, key: &Key, manifest: &Manifest) -> Result<(), Trouble> {
        let bytes = seal::write_document(manifest);
        if self.to.create(key, &bytes).await? == Put::Stored {
            return Ok(());
        }
        match document::read::<Manifest>(&**self.to, key).await? {
            Some(Ok(found)) if found == *manifest => Ok(()),
            Some(Err(_)) => Ok(self.to.store(key, &bytes).await?),
            Some(Ok(_)) => {
                Err(Trouble::Left(format!("{key} in {} is that of another backup", self.to.url())))
            }
            None => Err(Trouble::Left(format!("{key} comes and goes in {}", self.to.url()))),
        }
    }

    /// Makes sure that every object of the backup is there in its size.
    async fn is_there(&self, system: &SystemKeys, label: &Label, expected: &Folder) -> Result<(), Trouble> {
        let keys = system.backup(label);
        let mut found = Folder { files: None, data: BTreeMap::new(), key: false };
        for listed in self.to.list_all(keys.folder()).await? {
            if listed.key == keys.files() {
                found.files = Some(listed.size);
            } else if listed.key == keys.key_document() {
                found.key = true;
            } else if let Some(number) = keys.data_number(&listed.key) {
                found.data.insert(number, listed.size);
            }
        }
        if found == *expected {
            return Ok(());
        }
        let same = |(number, size): &(&u32, &ByteCount)| found.data.get(*number) == Some(*size);
        let whole = expected.data.iter().filter(same).count();
        Err(Trouble::Left(format!(
            "what was copied of it is not there any more: in {} are {whole} of its {} data objects",
            self.to.url(),
            expected.data.len()
        )))
    }

    /// Makes sure that all WAL that the backup needs is there.
    async fn has_wal(&self, system: &SystemKeys, manifest: &Manifest) -> Result<(), Trouble> {
        let needed = segments(manifest);
        let folders: BTreeSet<String> = needed.iter().map(|name| name.folder()).collect();
        let mut there = BTreeSet::new();
        for folder in folders {
            let key = system.wal_folder().join(&folder).expect("16 hexadecimal digits");
            there.extend(self.to.list(Some(&key)).await?.objects.into_iter().map(|listed| listed.key));
        }
        match needed.into_iter().find(|name| !there.contains(&system.wal(WalFile::Segment(*name)))) {
            None => Ok(()),
            Some(segment) => Err(Trouble::Left(format!(
                "the WAL segment {segment} that it needs is not in {} any more",
                self.to.url()
            ))),
        }
    }
}

/// Returns the segments that a restore of the backup needs.
pub(super) fn segments(manifest: &Manifest) -> Vec<SegmentName> {
    let (first, last) = manifest.wal();
    let size = manifest.wal_segment_size;
    std::iter::successors(Some(first), |name| (*name < last).then(|| name.next(size))).collect()
}
