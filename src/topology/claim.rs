//! What pgherd writes beside a node so that it knows its own again, the marker and the node profile, and so that it does not start what
//! must not run, the fence.
//!
//! Formats only; `ops` reads and writes them. Their pages are `docs/formats/marker.md`, `docs/formats/profile.md` and `docs/formats/fenced.md`.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::pg::system::SystemIdentifier;
use crate::topology::model::{Backups, Cluster, Repository};
use crate::topology::places::Places;
use crate::units::ByteCount;

/// The format that this pgherd reads and writes.
pub const FORMAT: u32 = 1;

/// By this pgherd claims a data directory: whatever a marker does not name is not ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    pub format: u32,
    /// The host's name in the topology.
    pub host: String,
    pub data_directory: PathBuf,
    /// `None` while the directory is being made.
    pub system_identifier: Option<SystemIdentifier>,
    /// The operation that made the directory.
    pub operation: String,
    /// Whether an empty directory was there before; undo leaves it as it was.
    pub directory_existed: bool,
    /// The claim of the node that this directory took the place of, when that one's data was gone; undo gives it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
    /// Who owned the cluster that was taken over as it ran; `None` if pgherd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// A cluster that pgherd did not make and took over as it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    pub owner: String,
}

/// What a marker said before the data directory was made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replaced {
    pub system_identifier: SystemIdentifier,
    pub operation: String,
    /// Whether the directory was still there, empty.
    pub directory_there: bool,
}

/// What a node knows of itself: enough to run, stop and remove it without the topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub format: u32,
    pub herd: String,
    pub cluster: String,
    pub node: String,
    pub host: String,
    pub os_user: String,
    /// Major version of PostgreSQL.
    pub version: u32,
    pub system_identifier: SystemIdentifier,
    pub data_directory: PathBuf,
    pub bin_directory: PathBuf,
    pub socket_directory: PathBuf,
    pub log_directory: PathBuf,
    pub passfile: PathBuf,
    pub port: u16,
    pub slot: String,
    /// What it was tuned for when it was made; stays, so that a node that comes to the host later restarts nobody.
    pub memory: ByteCount,
    /// Where its WAL goes; `None` if it goes nowhere.
    #[serde(default)]
    pub archive: Option<Archive>,
    /// What a node that was taken over as it ran has of its own; `None` if pgherd made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<AsFound>,
    /// Who may have become primary while it was down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
}

/// Another node of the cluster, as the start guard asks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name within the cluster: `a`.
    pub node: String,
    /// How libpq reaches it, for a walsender. Holds no secret: the password is in the passfile that it names.
    pub conninfo: String,
}

/// That an operator takes it upon himself to start a node as a primary: `start-anyway.json` beside its profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartAnyway {
    pub format: u32,
    /// Who, and where: `ada on db1`.
    pub by: String,
    pub since: Timestamp,
    pub why: String,
}

/// That a node must not come up as a primary: `fenced.json` beside its marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceMark {
    pub format: u32,
    /// The operation that fenced it.
    pub operation: String,
    /// Who ran that operation, and where: `ada on db1`.
    pub by: String,
    pub since: Timestamp,
    pub why: String,
}

impl fmt::Display for FenceMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fenced since {:.0} by {} (operation {}): {}",
            self.since, self.by, self.operation, self.why
        )
    }
}

/// What a node that was taken over has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsFound {
    /// Where its configuration files are, if not in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_directory: Option<PathBuf>,
    /// The unit of systemd that is not pgherd's and runs it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// The repository that a node's WAL goes to and comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Its name in the topology.
    pub repository: String,
    /// `file:///ABSOLUTE/PATH` or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// The file on this host that holds what else it takes to open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<PathBuf>,
    /// The directory that holds one directory a node, for what is on its way between node and repository. Without it nothing is stored ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool: Option<PathBuf>,
    /// Further repositories that its WAL goes to as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<ArchiveCopy>,
}

/// A further repository of a node's WAL; as [`Archive`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveCopy {
    pub repository: String,
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<PathBuf>,
}

impl Archive {
    /// Says where the WAL of a cluster's nodes goes, on a host with these places.
    pub fn of(cluster: &Cluster, places: &Places) -> Option<Self> {
        let Backups { repository, copies, .. } = cluster.backups.as_ref()?;
        let copy = |repository: &Repository| ArchiveCopy {
            repository: repository.name.clone(),
            url: repository.url.clone(),
            access: places.access(repository),
        };
        let ArchiveCopy { repository, url, access } = copy(repository);
        let copies = copies.iter().map(copy).collect();
        Some(Self { repository, url, access, copies, spool: Some(places.spools()) })
    }

    /// Returns every repository, the first one first.
    pub fn repositories(&self) -> impl Iterator<Item = ArchiveCopy> {
        let Self { repository, url, access, copies, .. } = self;
        let first = ArchiveCopy { repository: repository.clone(), url: url.clone(), access: access.clone() };
        std::iter::once(first).chain(copies.iter().cloned())
    }
}

/// What is known of one PgBouncer: enough to stop and remove it without the topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolerProfile {
    pub format: u32,
    pub herd: String,
    pub cluster: String,
    pub host: String,
    pub os_user: String,
    pub port: u16,
}

/// Why a file of ours cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("it has format {0}, this pgherd reads format {FORMAT}")]
    Format(u64),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Reads a marker, a profile or a fence.
///
/// # Errors
/// [`ClaimError::Format`] if another version of pgherd wrote it, [`ClaimError::Damaged`] if it is not what we write.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClaimError> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| ClaimError::Damaged(error.to_string()))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(FORMAT) => {
            serde_json::from_value(value).map_err(|error| ClaimError::Damaged(error.to_string()))
        }
        Some(found) => Err(ClaimError::Format(found)),
        None => Err(ClaimError::Damaged("no format number".to_owned())),
    }
}

/// Writes a marker, a profile or a fence as indented JSON with a last newline.
pub fn write<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(value).expect("markers, profiles and fences hold only text and numbers");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("testdata/marker-1.json");

    #[test]
    fn the_golden_marker_reads_and_writes_byte_for_byte() {
        let marker: Marker = read(GOLDEN.as_bytes()).unwrap();
        assert_eq!(marker.data_directory, PathBuf::from("/var/lib/pgherd/inventory-a"));
        assert_eq!(String::from_utf8(write(&marker)).unwrap(), GOLDEN);

        let golden = include_str!("testdata/marker-1-adopted.json");
        let marker: Marker = read(golden.as_bytes()).unwrap();
        assert_eq!(marker.adopted.as_ref().unwrap().owner, "postgres");
        assert_eq!(String::from_utf8(write(&marker)).unwrap(), golden);

        let golden = include_str!("testdata/marker-1-replaced.json");
        let marker: Marker = read(golden.as_bytes()).unwrap();
        assert_eq!(marker.replaced.as_ref().unwrap().operation, "2b90");
        assert_eq!(String::from_utf8(write(&marker)).unwrap(), golden);
    }

    #[test]
    fn the_golden_profiles_read_and_write_byte_for_byte() {
        let golden = include_str!("testdata/profile-1.json");
        let profile: Profile = read(golden.as_bytes()).unwrap();
        assert_eq!(profile.slot, "inventory_b");
        assert_eq!(String::from_utf8(write(&profile)).unwrap(), golden);

        let golden = include_str!("testdata/profile-1-peers.json");
        let profile: Profile = read(golden.as_bytes()).unwrap();
        assert_eq!(profile.peers[0].node, "a");
        assert_eq!(String::from_utf8(write(&profile)).unwrap(), golden);

        let golden = include_str!("testdata/profile-1-adopted.json");
        let profile: Profile = read(golden.as_bytes()).unwrap();
        assert_eq!(profile.adopted.as_ref().unwrap().unit.as_deref(), Some("pg-billing.service"));
        assert_eq!(String::from_utf8(write(&profile)).unwrap(), golden);

        let golden = include_str!("testdata/pooler-profile-1.json");
        let pooler: PoolerProfile = read(golden.as_bytes()).unwrap();
        assert_eq!(pooler.port, 6441);
        assert_eq!(String::from_utf8(write(&pooler)).unwrap(), golden);
    }

    #[test]
    fn the_golden_fence_reads_and_writes_byte_for_byte() {
        let golden = include_str!("testdata/fenced-1.json");
        let mark: FenceMark = read(golden.as_bytes()).unwrap();
        assert_eq!(
            mark.to_string(),
            "fenced since 2026-11-22T03:12:07Z by ada on station (operation 7f3a): its host loses packets"
        );
        assert_eq!(String::from_utf8(write(&mark)).unwrap(), golden);
    }

    #[test]
    fn the_golden_word_reads_and_writes_byte_for_byte() {
        let golden = include_str!("testdata/start-anyway-1.json");
        let word: StartAnyway = read(golden.as_bytes()).unwrap();
        assert_eq!(word.by, "ada on db1");
        assert_eq!(String::from_utf8(write(&word)).unwrap(), golden);
    }

    #[test]
    fn refuses_another_format_and_an_unknown_field() {
        let newer = GOLDEN.replace("\"format\": 1", "\"format\": 2");
        assert!(matches!(read::<Marker>(newer.as_bytes()), Err(ClaimError::Format(2))));
        let unknown = GOLDEN.replace("\"host\"", "\"hast\"");
        assert!(matches!(read::<Marker>(unknown.as_bytes()), Err(ClaimError::Damaged(_))));
    }
}
