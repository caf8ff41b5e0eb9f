//! What an object of a repository is, by its key alone: the way back from [`layout`].

use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::Key;
use crate::repo::export::{self, InExport};
use crate::repo::layout::{ClusterKeys, Label, SystemKeys};

/// What lies at a key below the folder of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Lock,
    Primary,
    System(SystemIdentifier, InSystem),
    /// Nothing that pgherd stores has such a key.
    Stray,
}

/// What lies at a key below the folder of a system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InSystem {
    Wal(WalFile),
    Lease(String),
    Backup(Label, InBackup),
    Export(Key, InExport),
    /// The data key of a timeline's WAL.
    WalKey(TimelineId),
    /// The data key of all that is neither WAL nor a backup.
    RestKey,
}

/// What lies at a key below the folder of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InBackup {
    Manifest,
    Files,
    Pin,
    /// The data key of the backup.
    Key,
    Data(u32),
    /// What was stored while the backup ran.
    Progress(u32),
}

impl Place {
    /// Tells what lies at `key`, which a listing of the cluster's folder has given.
    pub fn of(cluster: &ClusterKeys, key: &Key) -> Self {
        if *key == cluster.lock() {
            return Self::Lock;
        }
        if *key == cluster.primary() {
            return Self::Primary;
        }
        let below =
            key.as_str().strip_prefix(cluster.folder().as_str()).and_then(|rest| rest.strip_prefix('/'));
        let found = below.and_then(|below| {
            let (system, rest) = below.split_once('/')?;
            let system: SystemIdentifier = system.parse().ok()?;
            let keys = cluster.system(system);
            // The name must be the one that we would give, so that no object hides behind another spelling.
            in_system(&keys, rest).filter(|found| found.key(&keys) == *key).map(|found| (system, found))
        });
        found.map_or(Self::Stray, |(system, found)| Self::System(system, found))
    }
}

fn in_system(keys: &SystemKeys, rest: &str) -> Option<InSystem> {
    let (folder, rest) = rest.split_once('/')?;
    match folder {
        "wal" => {
            let name = rest.rsplit('/').next()?.strip_suffix(".zst")?;
            Some(InSystem::Wal(name.parse().ok()?))
        }
        export::FOLDER => {
            let part = export::part_of(rest)?;
            Some(InSystem::Export(export::exports(keys).join(rest).ok()?, part))
        }
        "lease" => Some(InSystem::Lease(rest.strip_suffix(".json")?.to_owned())),
        "key" => match rest.strip_prefix("wal-") {
            Some(rest) => Some(InSystem::WalKey(TimelineId::from_wal_file_name(rest)?)),
            None => Some(InSystem::RestKey),
        },
        "backup" => {
            let (label, rest) = rest.split_once('/')?;
            let label: Label = label.parse().ok()?;
            let backup = keys.backup(&label);
            let small = [InBackup::Manifest, InBackup::Files, InBackup::Pin, InBackup::Key]
                .into_iter()
                .find(|found| found.key(&backup).name() == rest);
            let key = || backup.folder().join(rest).ok();
            let data = || Some(InBackup::Data(backup.data_number(&key()?)?));
            let progress = || Some(InBackup::Progress(backup.progress_number(&key()?)?));
            small.or_else(data).or_else(progress).map(|found| InSystem::Backup(label, found))
        }
        _ => None,
    }
}

impl InSystem {
    fn key(&self, keys: &SystemKeys) -> Key {
        match self {
            Self::Wal(file) => keys.wal(*file),
            Self::Lease(id) => keys.lease(id),
            Self::Backup(label, found) => found.key(&keys.backup(label)),
            Self::Export(key, _) => key.clone(),
            Self::WalKey(timeline) => keys.wal_key(*timeline),
            Self::RestKey => keys.rest_key(),
        }
    }
}

impl InBackup {
    fn key(self, keys: &crate::repo::layout::BackupKeys) -> Key {
        match self {
            Self::Manifest => keys.manifest(),
            Self::Files => keys.files(),
            Self::Pin => keys.pin(),
            Self::Key => keys.key_document(),
            Self::Data(number) => keys.data(number),
            Self::Progress(number) => keys.progress(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::export::ExportKeys;

    fn place(key: &str) -> Place {
        Place::of(&ClusterKeys::new("inventory"), &Key::new(key).unwrap())
    }

    #[test]
    fn every_key_that_we_give_is_known_again() {
        let cluster = ClusterKeys::new("inventory");
        let id = SystemIdentifier::new(7_398_812_045_532_218_841).unwrap();
        let system = cluster.system(id);
        let label: Label = "20261121T100203Z-full".parse().unwrap();
        let backup = system.backup(&label);
        let mut known = vec![
            (cluster.lock(), Place::Lock),
            (cluster.primary(), Place::Primary),
            (system.lease("7f3a"), Place::System(id, InSystem::Lease("7f3a".to_owned()))),
        ];
        let timeline = TimelineId::new(0xA3).unwrap();
        assert_eq!(system.wal_key(timeline).name(), "wal-000000A3.json");
        known.push((system.wal_key(timeline), Place::System(id, InSystem::WalKey(timeline))));
        known.push((system.rest_key(), Place::System(id, InSystem::RestKey)));
        for name in [
            "0000000300000001000000A1",
            "0000000300000001000000A1.partial",
            "0000000300000001000000A1.00000028.backup",
            "00000003.history",
        ] {
            let file: WalFile = name.parse().unwrap();
            known.push((system.wal(file), Place::System(id, InSystem::Wal(file))));
        }
        let export = ExportKeys::new(&system, "shop", ("shop", "events_2019"), label.at()).unwrap();
        for (key, found) in [(export.manifest(), InExport::Manifest), (export.rows(), InExport::Rows)] {
            known.push((key.clone(), Place::System(id, InSystem::Export(key, found))));
        }
        for (key, found) in [
            (backup.manifest(), InBackup::Manifest),
            (backup.files(), InBackup::Files),
            (backup.pin(), InBackup::Pin),
            (backup.key_document(), InBackup::Key),
            (backup.progress(3), InBackup::Progress(3)),
            (backup.data(1), InBackup::Data(1)),
            (backup.data(1_000_000), InBackup::Data(1_000_000)),
        ] {
            known.push((key, Place::System(id, InSystem::Backup(label.clone(), found))));
        }
        for (key, found) in known {
            assert_eq!(Place::of(&cluster, &key), found, "{key}");
        }
    }

    #[test]
    fn what_is_none_of_ours_is_a_stray() {
        let system = "inventory/7398812045532218841";
        for key in [
            "inventory/notes.txt".to_owned(),
            "inventory/07/wal/00000002.history.zst".to_owned(),
            "orders/lock.json".to_owned(),
            format!("{system}/wal/0000000300000001000000A1.zst"),
            format!("{system}/wal/0000000300000002/0000000300000001000000A1.zst"),
            format!("{system}/wal/0000000300000001/0000000300000001000000A1"),
            format!("{system}/backup/20261121T100203Z-full/data/1"),
            format!("{system}/backup/20261121T100203Z-full/data/000000"),
            format!("{system}/backup/20261121T100203Z-full/notes.txt"),
            format!("{system}/backup/yesterday/manifest.json"),
            format!("{system}/lease/7f3a"),
            format!("{system}/key/wal-3.json"),
            format!("{system}/key/wal-000000a3.json"),
            format!("{system}/key/wal-00000000.json"),
            format!("{system}/key/other.json"),
            format!("{system}/key/rest.json/rest.json"),
            format!("{system}/partition/shop/shop/events/20261121T100203Z/notes.txt"),
            format!("{system}/notes.txt"),
        ] {
            assert_eq!(place(&key), Place::Stray, "{key}");
        }
    }
}
