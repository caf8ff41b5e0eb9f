//! Where what is in a repository; docs/formats/repository.md.
//!
//! Names only. Everything of a cluster lies below its name, everything of one system identifier below that: after `pg_upgrade`, or when
//! a cluster is made anew under the same name, nothing is mixed.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::{Key, Listed};

/// What a repository says of itself.
pub const REPOSITORY: &str = "repository.json";

/// Returns the key of [`REPOSITORY`].
pub fn repository() -> Key {
    key(REPOSITORY.to_owned())
}

const JOBS: &str = "_jobs";

/// Returns where the stations of a herd share what they know of a job.
pub fn job(herd: &str, name: &str) -> Key {
    key(format!("{JOBS}/{herd}/{name}.json"))
}

/// Tells whether [`job`] gives such a key.
pub fn is_job(key: &Key) -> bool {
    let below = key.as_str().strip_prefix(JOBS).and_then(|rest| rest.strip_prefix('/'));
    below.and_then(|below| below.split_once('/')).is_some_and(|(herd, file)| {
        file.strip_suffix(".json").is_some_and(|name| !name.contains('/') && job(herd, name) == *key)
    })
}

/// Tells whether an object is written anew or removed again and again, so that it is of no use to keep what it was.
pub fn is_passing(key: &Key) -> bool {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        // A dump may have any name.
        [above, ..] if above.starts_with('_') => *above == JOBS,
        [_, "lock.json" | "primary.json"] | [_, _, "lease", ..] => true,
        [_, _, "backup", _, below, ..] => matches!(*below, "pin.json" | "progress"),
        _ => false,
    }
}

/// What belongs to a cluster, whatever its system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys(String);

impl ClusterKeys {
    /// Takes a name that the topology has checked.
    pub fn new(cluster: &str) -> Self {
        Self(cluster.to_owned())
    }

    pub fn folder(&self) -> Key {
        key(self.0.clone())
    }

    /// Returns the key of the operation lock.
    pub fn lock(&self) -> Key {
        key(format!("{}/lock.json", self.0))
    }

    /// Returns the key of the primary record.
    pub fn primary(&self) -> Key {
        key(format!("{}/primary.json", self.0))
    }

    /// Returns what belongs to one system identifier.
    pub fn system(&self, system: SystemIdentifier) -> SystemKeys {
        SystemKeys { cluster: self.0.clone(), system }
    }
}

/// What belongs to one cluster with one system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemKeys {
    cluster: String,
    system: SystemIdentifier,
}

impl SystemKeys {
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub fn system(&self) -> SystemIdentifier {
        self.system
    }

    /// Returns the folder of all that belongs to it.
    pub fn folder(&self) -> Key {
        key(format!("{}/{}", self.cluster, self.system))
    }

    fn below(&self, rest: &str) -> Key {
        key(format!("{}/{}/{rest}", self.cluster, self.system))
    }

    /// Returns the folder of the WAL archive.
    pub fn wal_folder(&self) -> Key {
        self.below("wal")
    }

    /// Returns where a WAL file is stored.
    pub fn wal(&self, file: WalFile) -> Key {
        match file {
            WalFile::Segment(name) | WalFile::Partial(name) | WalFile::BackupHistory(name, _) => {
                self.below(&format!("wal/{}/{file}.zst", name.folder()))
            }
            WalFile::TimelineHistory(_) => self.below(&format!("wal/{file}.zst")),
        }
    }

    /// Returns the folder of all backups.
    pub fn backups(&self) -> Key {
        self.below("backup")
    }

    pub fn backup(&self, label: &Label) -> BackupKeys {
        BackupKeys(self.below(&format!("backup/{label}")))
    }

    /// Returns the folder of the leases.
    pub fn leases(&self) -> Key {
        self.below("lease")
    }

    pub fn lease(&self, id: &str) -> Key {
        self.below(&format!("lease/{id}.json"))
    }

    /// Returns the folder of the key documents that belong to no backup.
    pub fn key_documents(&self) -> Key {
        self.below("key")
    }

    /// Returns where the data key of a timeline's WAL is.
    pub fn wal_key(&self, timeline: TimelineId) -> Key {
        self.below(&format!("key/wal-{:08X}.json", timeline.as_u32()))
    }

    /// Returns where the data key of all that is neither WAL nor a backup is.
    pub fn rest_key(&self) -> Key {
        self.below("key/rest.json")
    }
}

/// What belongs to one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupKeys(Key);

impl BackupKeys {
    pub fn folder(&self) -> &Key {
        &self.0
    }

    /// Returns the key of the manifest, which is the commit: without it there is no backup.
    pub fn manifest(&self) -> Key {
        self.file("manifest.json")
    }

    /// Returns the key of the list of chunks and files.
    pub fn files(&self) -> Key {
        self.file("files.zst")
    }

    pub fn pin(&self) -> Key {
        self.file("pin.json")
    }

    /// Returns where the data key of the backup is.
    pub fn key_document(&self) -> Key {
        self.file("key.json")
    }

    /// Orders what a listing of the folder has given for its removal: the manifest first, without which nothing of it is a backup, and
    /// the data key last, without which nothing of it can be read.
    pub fn order_of_removal(&self, listed: &mut [Listed]) {
        let (manifest, key_document) = (self.manifest(), self.key_document());
        listed.sort_by_key(|listed| (listed.key == key_document, listed.key != manifest));
    }

    /// Returns the key of data object `number`, from 1.
    pub fn data(&self, number: u32) -> Key {
        self.file(&format!("data/{number:06}"))
    }

    /// Returns where it is noted what was stored, while the backup runs.
    pub fn progress(&self, number: u32) -> Key {
        self.file(&format!("progress/{number:06}.zst"))
    }

    /// Returns the number of a data object of this backup; `None` for every other key.
    pub fn data_number(&self, key: &Key) -> Option<u32> {
        let number = self.below(key)?.strip_prefix("data/")?.parse().ok().filter(|number| *number > 0)?;
        (self.data(number) == *key).then_some(number)
    }

    /// The same for [`Self::progress`].
    pub fn progress_number(&self, key: &Key) -> Option<u32> {
        let name = self.below(key)?.strip_prefix("progress/")?.strip_suffix(".zst")?;
        let number = name.parse().ok().filter(|number| *number > 0)?;
        (self.progress(number) == *key).then_some(number)
    }

    fn below<'k>(&self, key: &'k Key) -> Option<&'k str> {
        key.as_str().strip_prefix(self.0.as_str())?.strip_prefix('/')
    }

    fn file(&self, name: &str) -> Key {
        key(format!("{}/{name}", self.0))
    }
}

fn key(text: String) -> Key {
    Key::new(text).expect("names of clusters, labels and WAL files are made of what a key may hold")
}

/// The name of a backup: its begin, to the second, and its kind. `20261121T100203Z-full`. Labels of one cluster differ, and sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// The text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the label of a backup, such as 20261121T100203Z-full")]
pub struct LabelError(String);

impl Label {
    /// Makes the label of a full backup that begins at `at`.
    pub fn full(at: Timestamp) -> Self {
        Self(format!("{}-full", at.strftime("%Y%m%dT%H%M%SZ")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the second that it names.
    pub fn at(&self) -> Timestamp {
        parse_second(&self.0[..16]).expect("a label was checked when it was made")
    }
}

fn parse_second(text: &str) -> Option<Timestamp> {
    let strict = text.len() == 16 && text.is_ascii() && text.as_bytes()[8] == b'T' && text.ends_with('Z');
    let digits =
        |range: std::ops::Range<usize>| text.get(range).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
    if !strict {
        return None;
    }
    let (date, time) = (digits(0..8)?, digits(9..15)?);
    format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..])
        .parse()
        .ok()
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let wrong = || LabelError(text.to_owned());
        let (second, kind) = text.split_once('-').ok_or_else(wrong)?;
        if kind != "full" || parse_second(second).is_none() {
            return Err(wrong());
        }
        Ok(Self(text.to_owned()))
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteCount;

    #[test]
    fn every_object_has_its_place() {
        let system = SystemIdentifier::new(7_398_812_045_532_218_841).unwrap();
        let keys = ClusterKeys::new("inventory").system(system);
        let wal = |name: &str| keys.wal(name.parse().unwrap()).as_str().to_owned();
        let below = "inventory/7398812045532218841";
        assert_eq!(
            wal("0000000300000001000000A1"),
            format!("{below}/wal/0000000300000001/0000000300000001000000A1.zst")
        );
        assert_eq!(wal("00000003.history"), format!("{below}/wal/00000003.history.zst"));
        assert_eq!(
            wal("0000000300000001000000A1.00000028.backup"),
            format!("{below}/wal/0000000300000001/0000000300000001000000A1.00000028.backup.zst")
        );
        let label: Label = "20261121T100203Z-full".parse().unwrap();
        assert_eq!(
            keys.backup(&label).data(1).as_str(),
            format!("{below}/backup/20261121T100203Z-full/data/000001")
        );
        assert_eq!(Label::full(label.at()), label);
    }

    #[test]
    fn a_job_is_known_by_its_name() {
        assert!(is_job(&job("shop", "inventory.full")));
        for text in
            ["_jobs", "_jobs/shop", "_jobs/shop/full", "_jobs/shop/deeper/full.json", "_jobsx/shop/full.json"]
        {
            assert!(!is_job(&Key::new(text).unwrap()), "{text}");
        }
    }

    #[test]
    fn of_a_backup_the_manifest_goes_first_and_its_data_key_last() {
        let keys = BackupKeys(Key::new("inventory/7/backup/20261121T100203Z-full").unwrap());
        let listed = |key: Key| Listed { key, size: ByteCount(1), modified: Timestamp::UNIX_EPOCH };
        let objects = [keys.data(1), keys.files(), keys.key_document(), keys.manifest(), keys.pin()];
        let mut objects = objects.map(listed);
        keys.order_of_removal(&mut objects);
        let names: Vec<&str> = objects.iter().map(|listed| listed.key.name()).collect();
        assert_eq!(names, ["manifest.json", "000001", "files.zst", "pin.json", "key.json"]);
    }

    #[test]
    fn what_is_no_label_is_refused() {
        for text in [
            "",
            "20261121T100203Z",
            "20261121T100203Z-",
            "20261321T100203Z-full",
            "2026112XT100203Z-full",
            "20261121-100203-full",
        ] {
            assert!(text.parse::<Label>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_again_and_again_is_told_from_what_is_to_be_kept() {
        let is = |text: &str| is_passing(&Key::new(text).unwrap());
        for passing in [
            "inventory/lock.json",
            "inventory/primary.json",
            "inventory/11/lease/backup.json",
            "inventory/11/backup/20261122T020000Z-full/pin.json",
            "inventory/11/backup/20261122T020000Z-full/progress/000001.zst",
            "_jobs/shop/inventory/full.json",
        ] {
            assert!(is(passing), "{passing}");
        }
        for kept in [
            "repository.json",
            "inventory/11/key/wal-00000001.json",
            "inventory/11/wal/00000002.history.zst",
            "inventory/11/backup/20261122T020000Z-full/key.json",
            "inventory/11/backup/20261122T020000Z-full/data/000001",
            "_dumps/inventory/lease/20261122T020000Z/manifest.json",
            "_dumps/inventory/key.json",
        ] {
            assert!(!is(kept), "{kept}");
        }
    }
}
