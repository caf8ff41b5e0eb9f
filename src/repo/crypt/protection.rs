//! Which data key an object is encrypted with, told by its name alone.

use crate::repo::Key;
use crate::repo::dump;
use crate::repo::layout::{self, ClusterKeys};
use crate::repo::place::{InBackup, InSystem, Place};

/// How an object lies in an encrypted repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// In the clear: what holds a cluster together, and must be read by whoever has no key.
    Clear,
    /// It holds a data key, wrapped.
    KeyDocument,
    /// Encrypted with the data key that this key document holds.
    By(Key),
    /// Nothing that pgherd stores has such a name.
    Stray,
}

impl Protection {
    pub fn of(key: &Key) -> Self {
        if *key == layout::repository() || layout::is_job(key) {
            return Self::Clear;
        }
        if let Some(cluster) = dump::cluster_of(key) {
            let document = dump::key_document(cluster);
            return if *key == document {
                Self::KeyDocument
            } else if dump::part_of(cluster, key).is_some() {
                Self::By(document)
            } else {
                Self::Stray
            };
        }
        let Some((cluster, _)) = key.as_str().split_once('/') else { return Self::Stray };
        let cluster = ClusterKeys::new(cluster);
        match Place::of(&cluster, key) {
            Place::Lock | Place::Primary => Self::Clear,
            Place::Stray => Self::Stray,
            Place::System(id, found) => {
                let keys = cluster.system(id);
                match found {
                    InSystem::Lease(_) => Self::Clear,
                    InSystem::WalKey(_) | InSystem::RestKey | InSystem::Backup(_, InBackup::Key) => {
                        Self::KeyDocument
                    }
                    InSystem::Wal(file) => Self::By(keys.wal_key(file.timeline())),
                    InSystem::Export(..) => Self::By(keys.rest_key()),
                    InSystem::Backup(
                        label,
                        InBackup::Manifest
                        | InBackup::Files
                        | InBackup::Pin
                        | InBackup::Data(_)
                        | InBackup::Progress(_),
                    ) => Self::By(keys.backup(&label).key_document()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_tells_its_data_key() {
        let system = "inventory/7398812045532218841";
        let clear = [
            "repository.json",
            "_jobs/shop/inventory.full.json",
            "inventory/lock.json",
            "inventory/primary.json",
        ];
        for text in clear.map(str::to_owned).into_iter().chain([format!("{system}/lease/7f3a.json")]) {
            assert_eq!(Protection::of(&Key::new(text.as_str()).unwrap()), Protection::Clear, "{text}");
        }
        let backup = format!("{system}/backup/20261121T100203Z-full");
        for (text, document) in [
            (format!("{system}/wal/0000000300000001/0000000300000001000000A1.zst"), "key/wal-00000003.json"),
            (
                format!("{system}/wal/0000000300000001/0000000300000001000000A1.partial.zst"),
                "key/wal-00000003.json",
            ),
            (format!("{system}/wal/00000003.history.zst"), "key/wal-00000003.json"),
            (format!("{system}/wal/000000AF.history.zst"), "key/wal-000000AF.json"),
            (format!("{system}/partition/shop/shop/events/20261121T100203Z/manifest.json"), "key/rest.json"),
            (format!("{system}/partition/shop/shop/events/20261121T100203Z/rows.csv.zst"), "key/rest.json"),
            (format!("{backup}/manifest.json"), "backup/20261121T100203Z-full/key.json"),
            (format!("{backup}/files.zst"), "backup/20261121T100203Z-full/key.json"),
            (format!("{backup}/pin.json"), "backup/20261121T100203Z-full/key.json"),
            (format!("{backup}/data/000001"), "backup/20261121T100203Z-full/key.json"),
        ] {
            let document = Key::new(format!("{system}/{document}")).unwrap();
            assert_eq!(Protection::of(&document), Protection::KeyDocument);
            assert_eq!(Protection::of(&Key::new(text.as_str()).unwrap()), Protection::By(document), "{text}");
        }
        let dumps = dump::key_document("inventory");
        assert_eq!(Protection::of(&dumps), Protection::KeyDocument);
        for name in ["data", "dump.json"] {
            let key = Key::new(format!("_dumps/inventory/legal/20261121T100203Z/{name}")).unwrap();
            assert_eq!(Protection::of(&key), Protection::By(dumps.clone()));
        }
    }

    #[test]
    fn what_has_no_place_has_no_data_key_and_is_no_clear_text_either() {
        for text in [
            "notes.txt",
            "_jobs/notes.txt",
            "_dumps/key.json",
            "_dumps/inventory/notes.txt",
            "_dumps/inventory/legal/20261121T100203Z/key.json",
            "inventory/notes.txt",
            "inventory/7/key/wal-3.json",
            "inventory/7/backup/yesterday/key.json",
            "inventory/7/backup/20261121T100203Z-full/data/key.json",
        ] {
            assert_eq!(Protection::of(&Key::new(text).unwrap()), Protection::Stray, "{text}");
        }
    }
}
