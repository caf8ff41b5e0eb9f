//! What the repository holds of a cluster: one listing, and every small document in it.
//!
//! Reads; decides nothing. What cannot be understood is kept as such, and never taken for absent.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::pin::Pin;
use super::retention::{Backup, Pinned, StoredWal, System, Unfinished, Use};
use crate::engine::lease::{self, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::history::TimelineHistory;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::dump::{self, InDump};
use crate::repo::export::{self, InExport};
use crate::repo::layout::{ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::Manifest;
use crate::repo::place::{InBackup, InSystem, Place};
use crate::repo::seal::{Identity, Kind, SealError};
use crate::repo::{Key, Listed, Repo, RepoError, RepoErrorKind, SharedRepo, layout, seal};
use crate::topology::model::ObjectLock;
use crate::units::ByteCount;

/// What the repository holds of a cluster.
#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) systems: Vec<OfSystem>,
    /// By name and label. No backup needs them, and no rule of backups removes them.
    pub(super) dumps: BTreeMap<(String, String), DumpFolder>,
    /// `lock.json`, `primary.json`, and the data key of the dumps.
    pub(super) documents: Vec<Key>,
    /// Objects that pgherd did not put there.
    pub(super) strays: Vec<Listed>,
    /// Folders that could not be listed. What is in them is not known to be absent.
    pub(super) unlisted: Vec<(Key, RepoError)>,
    /// Small objects that could not be read. One that is damaged could be, and is unusable.
    pub(super) unreadable: Vec<(Key, RepoError)>,
}

/// What it holds of one system identifier.
#[derive(Debug)]
pub(super) struct OfSystem {
    pub(super) keys: SystemKeys,
    pub(super) system: System,
    pub(super) folders: BTreeMap<Label, Folder>,
    /// Rows of partitions, by their folders. No backup needs them.
    pub(super) exports: BTreeMap<Key, ExportFolder>,
    pub(super) leases: Vec<Listed>,
    /// Data keys of what is encrypted.
    pub(super) key_documents: Vec<Key>,
    /// Documents and history files that are there and cannot be used, and why.
    pub(super) unusable: Vec<(Key, SealError)>,
}

/// The folder of a backup, from a listing.
#[derive(Debug, Default, Clone)]
pub(super) struct Folder {
    pub(super) manifest: Option<ByteCount>,
    pub(super) files: Option<ByteCount>,
    pub(super) pin: Option<ByteCount>,
    pub(super) data: BTreeMap<u32, ByteCount>,
    /// What was noted while it ran.
    pub(super) progress: BTreeMap<u32, ByteCount>,
    /// Until when the store lets nobody remove all of it.
    pub(super) locked: Option<Timestamp>,
}

/// The folder of an export, from a listing.
#[derive(Debug, Default, Clone)]
pub(super) struct ExportFolder {
    pub(super) manifest: Option<ByteCount>,
    pub(super) rows: Option<ByteCount>,
    pub(super) locked: Option<Timestamp>,
}

/// The folder of a dump, from a listing.
#[derive(Debug, Default, Clone)]
pub(super) struct DumpFolder {
    pub(super) manifest: Option<ByteCount>,
    pub(super) data: Option<ByteCount>,
}

impl Folder {
    /// Returns the bytes of everything in it.
    fn stored(&self) -> ByteCount {
        let small = [self.manifest, self.files, self.pin].into_iter().flatten();
        let many = self.data.values().chain(self.progress.values()).copied();
        ByteCount(small.chain(many).map(|size| size.0).sum())
    }
}

impl Holdings {
    /// Lists and reads. What cannot be read does not hide the rest.
    ///
    /// # Errors
    /// When a document was written by a newer pgherd, whose wishes nobody here knows.
    pub(super) async fn read(repo: &SharedRepo, cluster: &str, now: Timestamp) -> Result<Self> {
        let keys = ClusterKeys::new(cluster);
        let (mut unlisted, mut unreadable) = (Vec::new(), Vec::new());
        let mut sorted = Sorted { lock: repo.object_lock(), ..Sorted::default() };
        for listed in list_all(&**repo, &keys.folder(), &mut unlisted).await {
            sorted.take(Place::of(&keys, &listed.key), listed);
        }
        for listed in list_all(&**repo, &dump::dumps(cluster), &mut unlisted).await {
            sorted.take_dump(cluster, listed);
        }
        let Sorted { systems, dumps, documents, strays, lock: _ } = sorted;
        let mut of = Vec::new();
        for (id, listed) in systems {
            of.push(OfSystem::read(repo, keys.system(id), listed, now, &mut unreadable).await?);
        }
        Ok(Self { systems: of, dumps, documents, strays, unlisted, unreadable })
    }

    /// The same, where what is not known can be neither decided about nor copied.
    ///
    /// # Errors
    /// Also when anything could not be listed or read.
    pub(super) async fn read_all(repo: &SharedRepo, cluster: &str, now: Timestamp) -> Result<Self> {
        let mut holdings = Self::read(repo, cluster, now).await?;
        match holdings.unlisted.pop().or_else(|| holdings.unreadable.pop()) {
            Some((_, error)) => Err(error.into()),
            None => Ok(holdings),
        }
    }

    /// Tells whether there is an export or a dump.
    pub(super) fn has_more_than_backups(&self) -> bool {
        !self.dumps.is_empty() || self.systems.iter().any(|of| !of.exports.is_empty())
    }

    /// Returns what is decided about.
    pub(super) fn systems(&self) -> Vec<System> {
        self.systems.iter().map(|of| of.system.clone()).collect()
    }
}

/// Lists everything below `folder` that can be listed.
async fn list_all(repo: &dyn Repo, folder: &Key, unlisted: &mut Vec<(Key, RepoError)>) -> Vec<Listed> {
    if let Ok(listed) = repo.list_all(folder).await {
        return listed;
    }
    let (mut found, mut folders) = (Vec::new(), vec![folder.clone()]);
    while let Some(folder) = folders.pop() {
        match repo.list(Some(&folder)).await {
            Ok(level) => {
                folders.extend(level.folders.iter().filter_map(|name| folder.join(name).ok()));
                found.extend(level.objects);
            }
            Err(error) => unlisted.push((folder, error)),
        }
    }
    found
}

/// A listing, taken apart.
#[derive(Debug, Default)]
struct Sorted {
    systems: BTreeMap<SystemIdentifier, SortedSystem>,
    dumps: BTreeMap<(String, String), DumpFolder>,
    documents: Vec<Key>,
    strays: Vec<Listed>,
    lock: Option<ObjectLock>,
}

#[derive(Debug, Default)]
struct SortedSystem {
    wal: Vec<StoredWal>,
    folders: BTreeMap<Label, Folder>,
    exports: BTreeMap<Key, ExportFolder>,
    leases: Vec<Listed>,
    key_documents: Vec<Key>,
}

impl Sorted {
    fn take(&mut self, place: Place, listed: Listed) {
        match place {
            Place::Lock | Place::Primary => self.documents.push(listed.key),
            Place::Stray => self.strays.push(listed),
            Place::System(id, found) => {
                let locked = self.lock.filter(|_| !layout::is_passing(&listed.key));
                let locked = locked.map(|lock| lock.until(listed.modified));
                self.systems.entry(id).or_default().take(found, listed, locked);
            }
        }
    }

    fn take_dump(&mut self, cluster: &str, listed: Listed) {
        if listed.key == dump::key_document(cluster) {
            self.documents.push(listed.key);
            return;
        }
        let Some((name, label, part)) = dump::part_of(cluster, &listed.key) else {
            self.strays.push(listed);
            return;
        };
        let folder = self.dumps.entry((name, label)).or_default();
        match part {
            InDump::Manifest => folder.manifest = Some(listed.size),
            InDump::Data => folder.data = Some(listed.size),
        }
    }
}

impl SortedSystem {
    fn take(&mut self, found: InSystem, listed: Listed, locked: Option<Timestamp>) {
        match found {
            InSystem::Wal(file) => {
                self.wal.push(StoredWal { file, stored: listed.size, at: listed.modified, locked });
            }
            InSystem::Lease(_) => self.leases.push(listed),
            InSystem::WalKey(_) | InSystem::RestKey => self.key_documents.push(listed.key),
            InSystem::Export(key, part) => {
                let folder = self.exports.entry(export::folder_of(&key)).or_default();
                folder.locked = folder.locked.max(locked);
                match part {
                    InExport::Manifest => folder.manifest = Some(listed.size),
                    InExport::Rows => folder.rows = Some(listed.size),
                }
            }
            InSystem::Backup(label, found) => {
                let folder = self.folders.entry(label).or_default();
                folder.locked = folder.locked.max(locked);
                match found {
                    InBackup::Manifest => folder.manifest = Some(listed.size),
                    InBackup::Files => folder.files = Some(listed.size),
                    InBackup::Pin => folder.pin = Some(listed.size),
                    InBackup::Key => self.key_documents.push(listed.key),
                    InBackup::Progress(number) => {
                        folder.progress.insert(number, listed.size);
                    }
                    InBackup::Data(number) => {
                        folder.data.insert(number, listed.size);
                    }
                }
            }
        }
    }
}

impl OfSystem {
    pub(super) fn has(&self, file: WalFile) -> bool {
        self.system.wal.iter().any(|wal| wal.file == file)
    }

    async fn read(
        repo: &SharedRepo,
        keys: SystemKeys,
        listed: SortedSystem,
        now: Timestamp,
        unreadable: &mut Vec<(Key, RepoError)>,
    ) -> Result<Self> {
        let system = System {
            id: keys.system(),
            backups: Vec::new(),
            unfinished: Vec::new(),
            wal: listed.wal,
            histories: Vec::new(),
            uses: uses(repo, &keys, now).await.unwrap_or_else(|error| {
                let who = format!("leases that cannot be read: {error}");
                vec![Use { labels: None, who, copies: false }]
            }),
        };
        let SortedSystem { folders, exports, leases, key_documents, .. } = listed;
        let mut of = Self { keys, system, folders, exports, leases, key_documents, unusable: Vec::new() };
        let mut reader = Reader { repo: &**repo, unreadable };
        for (label, folder) in of.folders.clone() {
            of.read_backup(&mut reader, label, &folder).await?;
        }
        of.read_histories(&mut reader).await;
        Ok(of)
    }

    async fn read_backup(&mut self, reader: &mut Reader<'_>, label: Label, folder: &Folder) -> Result<()> {
        let keys = self.keys.backup(&label);
        let (stored, locked) = (folder.stored(), folder.locked);
        let read = match reader.read(&keys.manifest(), folder.manifest.is_some()).await {
            Read::None => {
                let noted = !folder.progress.is_empty();
                self.system.unfinished.push(Unfinished { label, stored, noted, locked });
                return Ok(());
            }
            Read::Failed(why) => Err(format!("manifest.json cannot be read: {why}")),
            Read::Damaged(error) => Err(self.unusable_manifest(&keys.manifest(), error)),
            Read::Bytes(bytes) => {
                of_this_format(reader.repo, &keys.manifest(), &bytes)?;
                read_manifest(&bytes, &self.keys, &label)
                    .map_err(|error| self.unusable_manifest(&keys.manifest(), error))
            }
        };
        let (manifest, broken) = match read {
            Ok(manifest) => {
                let broken = missing(&manifest, folder);
                (Some(manifest), broken)
            }
            Err(why) => (None, Some(why)),
        };
        let pin = match reader.read(&keys.pin(), folder.pin.is_some()).await {
            Read::None => Pinned::No,
            Read::Failed(why) => Pinned::Unknown(why),
            Read::Damaged(error) => self.unusable_pin(&keys.pin(), error),
            Read::Bytes(bytes) => match seal::read_document::<Pin>(&bytes) {
                Ok(pin) => Pinned::Until(pin.until, pin.reason),
                Err(error) => self.unusable_pin(&keys.pin(), error),
            },
        };
        self.system.backups.push(Backup { label, stored, manifest, broken, pin, locked });
        Ok(())
    }

    fn unusable_manifest(&mut self, key: &Key, error: SealError) -> String {
        let why = format!("manifest.json cannot be used: {error}");
        self.unusable.push((key.clone(), error));
        why
    }

    fn unusable_pin(&mut self, key: &Key, error: SealError) -> Pinned {
        let why = error.to_string();
        self.unusable.push((key.clone(), error));
        Pinned::Unknown(why)
    }

    async fn read_histories(&mut self, reader: &mut Reader<'_>) {
        for wal in &self.system.wal {
            let WalFile::TimelineHistory(timeline) = wal.file else { continue };
            let key = self.keys.wal(wal.file);
            let read = match reader.read(&key, true).await {
                Read::None | Read::Failed(_) => continue,
                Read::Damaged(error) => Err(error),
                Read::Bytes(object) => open_history(&self.keys, timeline, &object),
            };
            match read {
                Ok(history) => self.system.histories.push(history),
                Err(error) => self.unusable.push((key, error)),
            }
        }
    }
}

struct Reader<'a> {
    repo: &'a dyn Repo,
    unreadable: &'a mut Vec<(Key, RepoError)>,
}

enum Read {
    /// It is not there, or not any more.
    None,
    Bytes(Vec<u8>),
    /// It is not what was stored, as the repository itself has found: one that decrypts.
    Damaged(SealError),
    Failed(String),
}

impl Reader<'_> {
    async fn read(&mut self, key: &Key, listed: bool) -> Read {
        if !listed {
            return Read::None;
        }
        match self.repo.read(key).await {
            Ok(None) => Read::None,
            Ok(Some(bytes)) => Read::Bytes(bytes),
            Err(error) if error.kind == RepoErrorKind::Damaged => Read::Damaged(SealError::new(error.why)),
            Err(error) => {
                let why = error.why.clone();
                self.unreadable.push((key.clone(), error));
                Read::Failed(why)
            }
        }
    }
}

/// Opens a history file.
fn open_history(
    keys: &SystemKeys,
    timeline: TimelineId,
    object: &[u8],
) -> Result<TimelineHistory, SealError> {
    let name = WalFile::TimelineHistory(timeline).to_string();
    let identity = Identity { kind: Kind::Wal, name: &name, system_identifier: keys.system() };
    let text = seal::open(identity, object)?;
    TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
        .map_err(|error| SealError::new(error.to_string()))
}

/// Refuses a document of a newer pgherd: what is unknown to us is not damaged.
fn of_this_format(repo: &dyn Repo, key: &Key, bytes: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        format: u32,
    }
    match serde_json::from_slice::<Numbered>(bytes) {
        Ok(Numbered { format }) if format > seal::FORMAT => {
            Err(Error::new(ErrorKind::Failed, format!("cannot read {key} in the repository {}", repo.url()))
                .detail(format!("It has format {format}, this pgherd reads format {}.", seal::FORMAT))
                .hint("Use the version of pgherd that wrote it, or a newer one."))
        }
        _ => Ok(()),
    }
}

/// Reads a manifest and holds it to be the one of this backup.
pub(super) fn read_manifest(bytes: &[u8], keys: &SystemKeys, label: &Label) -> Result<Manifest, SealError> {
    let manifest: Manifest = seal::read_document(bytes)?;
    let ours = manifest.label == *label
        && manifest.cluster == keys.cluster()
        && manifest.system_identifier == keys.system();
    if ours {
        return Ok(manifest);
    }
    Err(SealError::new(format!(
        "it says that it is {} of cluster {}, system {}",
        manifest.label, manifest.cluster, manifest.system_identifier
    )))
}

/// Says what a listing shows to be missing.
fn missing(manifest: &Manifest, folder: &Folder) -> Option<String> {
    let data: u64 = folder.data.values().map(|size| size.0).sum();
    match folder.files {
        None => Some("files.zst is missing".to_owned()),
        Some(size) if size != manifest.files_stored => {
            Some(format!("files.zst has {} bytes, expected {}", size.0, manifest.files_stored.0))
        }
        Some(_) if data != manifest.stored.0 => {
            Some(format!("its data objects have {data} bytes, expected {}", manifest.stored.0))
        }
        Some(_) => None,
    }
}

/// Returns what living leases keep. What is about to be removed is kept by nobody.
pub(super) async fn uses(repo: &SharedRepo, keys: &SystemKeys, now: Timestamp) -> Result<Vec<Use>> {
    let living = lease::read_all(repo, keys).await?.into_iter().filter(|found| found.lives(now));
    let keeps = living.filter_map(|found| match found.lease {
        Ok(lease) => {
            let what = match lease.kind {
                Purpose::Backup => "a backup",
                Purpose::Restore => "a restore",
                Purpose::Verify => "a verification",
                Purpose::Copy => "a copy",
                Purpose::Expire => return None,
            };
            let (who, copies) = (format!("{what} by {}", lease.by), lease.kind == Purpose::Copy);
            Some(Use { labels: Some(lease.labels), who, copies })
        }
        Err(error) => {
            let who = format!("{}, which cannot be read: {error}", found.key);
            Some(Use { labels: None, who, copies: false })
        }
    });
    Ok(keeps.collect())
}
