//! What one repository holds of a cluster, copied into another one: backups, the WAL that they need, and exports. No server is asked.
//!
//! Runs where both repositories can be reached. What is read is held against the hashes that were stored with it before anything of it counts in the
//! other repository, and a backup is there when its manifest is, which comes last. Whoever is killed leaves objects that the next run reads,
//! holds against the same hashes, and takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod commit;
mod objects;
mod pins;
mod wal;
mod wanted;

use self::objects::{Brought, Object, Trouble};
use self::wal::WalThere;
use self::wanted::whole;
use super::holdings::{Holdings, OfSystem};
use crate::engine::lease::{Held, Purpose};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::node::{CopyBackups, Reporter};
use crate::pg::system::SystemIdentifier;
use crate::pg::wal_file::WalFile;
use crate::repo::about::About;
use crate::repo::export::{ExportKeys, ExportManifest};
use crate::repo::layout::Label;
use crate::repo::manifest::{Contents, Manifest};
use crate::repo::seal::{self, Blake3, Identity, Kind};
use crate::repo::{self, Key, SharedRepo, wait};
use crate::units::ByteCount;

/// More workers wait for one another.
const WORKERS: usize = 8;

/// What a copy came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transferred {
    pub cluster: String,
    /// The repositories' URLs.
    pub from: String,
    pub to: String,
    /// The oldest first.
    pub backups: Vec<TransferredBackup>,
    /// Whole backups that were there already.
    pub there: u64,
    /// Backups that were not copied, since they, or WAL that they need, are not whole where they are.
    pub left: Vec<LeftBackup>,
    /// WAL files and exports that were not copied, since they are damaged where they are.
    pub left_objects: Vec<LeftObject>,
    /// WAL files that were copied.
    pub wal: u64,
    pub exports: u64,
    pub pins: u64,
    /// Bytes stored.
    pub stored: ByteCount,
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferredBackup {
    pub system_identifier: SystemIdentifier,
    pub label: Label,
    pub stored: ByteCount,
    /// Bytes of it that an interrupted copy had brought there, read and found to be whole.
    pub taken_over: ByteCount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftBackup {
    pub label: Label,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftObject {
    pub object: Key,
    pub why: String,
}

impl Transferred {
    /// Tells whether nothing was left out.
    pub fn is_whole(&self) -> bool {
        self.left.is_empty() && self.left_objects.is_empty()
    }
}

/// Copies.
///
/// # Errors
/// [`ErrorKind::Locked`] while another copy into the repository runs; [`ErrorKind::NotFound`] without a backup of a label; otherwise as the repositories fail.
/// What was copied by then stays and is taken over by the next run. What is damaged where it is, is no error: it is left out.
pub async fn run(request: &CopyBackups, reporter: &Reporter) -> Result<Transferred> {
    run_in((repo::open(&request.from)?, repo::open(&request.to)?), request, reporter).await
}

async fn run_in(
    (from, to): (SharedRepo, SharedRepo),
    request: &CopyBackups,
    reporter: &Reporter,
) -> Result<Transferred> {
    let begun = std::time::Instant::now();
    let about_to = refuse_the_same(&from, &to).await?;
    let first = Sides::look(&from, &to, &request.cluster).await?;
    refuse_unknown(request, &first.from)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let workers = match usize::try_from(request.workers).unwrap_or(usize::MAX) {
        0 => cores.min(WORKERS),
        asked => asked,
    };
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let to_is_encrypted = about_to.encryption.is_some();
    let work = Work { request, from: &from, to: &to, to_is_encrypted, reporter, workers, done, total };
    let mut transferred = Transferred {
        cluster: request.cluster.clone(),
        from: request.from.url.clone(),
        to: request.to.url.clone(),
        backups: Vec::new(),
        there: 0,
        left: Vec::new(),
        left_objects: Vec::new(),
        wal: 0,
        exports: 0,
        pins: 0,
        stored: ByteCount(0),
        seconds: 0.0,
    };
    let mut leases = BTreeMap::new();
    let ended = work.under_leases(first, &mut leases, &mut transferred).await;
    for held in leases.into_values().flat_map(|leases| leases.held) {
        if let Err(error) = held.release().await {
            tracing::warn!(%error, "could not give the lease back; it expires by itself");
        }
    }
    transferred.seconds = begun.elapsed().as_secs_f64();
    ended.map(|()| transferred)
}

/// Two names of one repository would have it copied into itself. Returns what the other one says of itself.
async fn refuse_the_same(from: &SharedRepo, to: &SharedRepo) -> Result<About> {
    let about_to = About::of(&**to).await?;
    if About::of(&**from).await?.id == about_to.id {
        return Err(Error::refused(format!("{} and {} are the same repository", from.url(), to.url()))
            .detail("What is lost with the one would be lost with the other. Nothing was copied."));
    }
    Ok(about_to)
}

/// What both repositories hold of the cluster.
struct Sides {
    from: Holdings,
    to: Holdings,
}

impl Sides {
    async fn look(from: &SharedRepo, to: &SharedRepo, cluster: &str) -> Result<Self> {
        let now = Timestamp::now();
        let from = Holdings::read_all(from, cluster, now).await?;
        Ok(Self { from, to: Holdings::read_all(to, cluster, now).await? })
    }

    /// Returns each system with what is there of it.
    fn systems(&self) -> impl Iterator<Item = (&OfSystem, Option<&OfSystem>)> {
        let there = |of: &OfSystem| self.to.systems.iter().find(|other| other.keys == of.keys);
        self.from.systems.iter().map(move |of| (of, there(of)))
    }
}

fn refuse_unknown(request: &CopyBackups, ours: &Holdings) -> Result<()> {
    let there: BTreeSet<&Label> =
        ours.systems.iter().flat_map(|of| &of.system.backups).map(|backup| &backup.label).collect();
    match request.labels.iter().find(|label| !there.contains(label)) {
        Some(label) => Err(Error::new(
            ErrorKind::NotFound,
            format!("cluster {} has no backup {label} in {}", request.cluster, request.from.url),
        )
        .hint(format!("See which there are: pgherd backup list --cluster {}", request.cluster))),
        None => Ok(()),
    }
}

/// What every part of a copy needs.
struct Work<'a> {
    request: &'a CopyBackups,
    from: &'a SharedRepo,
    to: &'a SharedRepo,
    to_is_encrypted: bool,
    reporter: &'a Reporter,
    workers: usize,
    /// Bytes brought there so far, and those that will be, as far as that is known.
    done: AtomicU64,
    total: AtomicU64,
}

/// What keeps both sides of a system as they are, and for which backups.
struct Leases {
    labels: BTreeSet<Label>,
    held: Vec<Held>,
}

impl Work<'_> {
    /// Says first what is to be copied, and looks after that what there is of it: what goes meanwhile, on either side, would be missed.
    async fn under_leases(
        &self,
        first: Sides,
        leases: &mut BTreeMap<SystemIdentifier, Leases>,
        transferred: &mut Transferred,
    ) -> Result<()> {
        for (of, there) in first.systems() {
            let wanted = self.wanted(of, &whole(there)).manifests;
            let labels: BTreeSet<Label> = wanted.into_iter().map(|manifest| manifest.label).collect();
            // Also those that are there and are to be pinned, so that nobody removes one before.
            let unpinned = self.unpinned(of, there).filter(|label| whole(there).contains(label));
            let labels: BTreeSet<Label> = labels.into_iter().chain(unpinned.cloned()).collect();
            let of_system =
                leases.entry(of.keys.system()).or_insert(Leases { labels: labels.clone(), held: Vec::new() });
            let named: Vec<Label> = labels.into_iter().collect();
            of_system.held.push(Held::take_for_copy(self.to, &of.keys, named.clone()).await?);
            of_system.held.push(Held::take_to_use(self.from, &of.keys, Purpose::Copy, named).await?);
        }
        let sides = match leases.values().all(|leases| leases.labels.is_empty()) {
            true => first,
            false => Sides::look(self.from, self.to, &self.request.cluster).await?,
        };
        for (of, there) in sides.systems() {
            if let Some(leases) = leases.get(&of.keys.system()) {
                self.system(of, there, leases, transferred).await?;
            }
        }
        Ok(())
    }

    async fn system(
        &self,
        of: &OfSystem,
        there: Option<&OfSystem>,
        leases: &Leases,
        transferred: &mut Transferred,
    ) -> Result<()> {
        let present = whole(there);
        let mut wanted = self.wanted(of, &present);
        // What came after that was not named, and the next run copies it.
        wanted.manifests.retain(|manifest| leases.labels.contains(&manifest.label));
        transferred.there += present.len() as u64;
        transferred.left.extend(wanted.left);
        let stored = wanted.manifests.iter().map(|manifest| manifest.stored.0 + manifest.files_stored.0);
        self.total.fetch_add(stored.sum(), Ordering::Relaxed);
        let wal = self.wal(of, there, &wanted.manifests, transferred)?;
        let mut usable = present;
        for manifest in &wanted.manifests {
            match self.one(of, there, manifest, (&wal, &usable), leases).await {
                Ok(brought) => {
                    usable.insert(brought.label.clone());
                    transferred.stored.0 += brought.stored.0 - brought.taken_over.0;
                    transferred.backups.push(brought);
                }
                Err(Trouble::Left(why)) => {
                    transferred.left.push(LeftBackup { label: manifest.label.clone(), why });
                }
                Err(Trouble::Ends(error)) => return Err(error),
            }
        }
        // Their leases keep them until then.
        let named = usable.iter().filter(|label| leases.labels.contains(label)).collect();
        self.pins(of, there, &named, transferred).await?;
        self.exports(of, there, transferred)
    }

    /// Copies one backup, if what it needs is there.
    async fn one(
        &self,
        of: &OfSystem,
        there: Option<&OfSystem>,
        manifest: &Manifest,
        (wal, usable): (&WalThere, &BTreeSet<Label>),
        leases: &Leases,
    ) -> Result<TransferredBackup, Trouble> {
        if let Some(needed) = manifest.needs.iter().find(|label| !usable.contains(label)) {
            return Err(Trouble::Left(format!("it needs {needed}, which is not there")));
        }
        for segment in commit::segments(manifest) {
            let file = WalFile::Segment(segment);
            if let Some(why) = wal.left.get(&file) {
                return Err(Trouble::Left(format!("it needs a WAL segment that is damaged: {why}")));
            }
            if !wal.there.contains(&file) {
                let why = format!("the WAL segment {segment} that it needs is in neither repository");
                return Err(Trouble::Left(why));
            }
        }
        let (brought, folder) = self.backup(of, there, manifest)?;
        self.commit(&of.keys, manifest, &folder, &leases.held).await?;
        Ok(brought)
    }

    /// Brings the objects of a backup, all but the manifest.
    fn backup(
        &self,
        of: &OfSystem,
        there: Option<&OfSystem>,
        manifest: &Manifest,
    ) -> Result<(TransferredBackup, commit::Folder), Trouble> {
        let (label, keys) = (&manifest.label, of.keys.backup(&manifest.label));
        let list = keys.files();
        let bytes = wait(self.from.read(&list))?.ok_or_else(|| self.damaged(&list, "it is not there"))?;
        if Blake3::of(&bytes) != manifest.files_blake3 {
            return Err(self.damaged(&list, "it does not have the hash that the manifest says"));
        }
        let identity =
            Identity { kind: Kind::Files, name: label.as_str(), system_identifier: of.keys.system() };
        let contents = seal::open(identity, &bytes)
            .map_err(|error| error.to_string())
            .and_then(|text| Contents::read(&text).map_err(|error| error.to_string()))
            .map_err(|why| self.damaged(&list, why))?;
        let folder = there.and_then(|there| there.folders.get(label)).cloned().unwrap_or_default();
        let objects: Vec<Object> = contents
            .numbered()
            .map(|(number, object)| Object {
                key: keys.data(number),
                size: object.size,
                blake3: object.blake3,
                there: folder.data.get(&number).copied(),
            })
            .collect();
        let taken_over = AtomicU64::new(0);
        self.side_by_side(&objects, |object| {
            if matches!(self.bring(object)?, Brought::TakenOver) {
                taken_over.fetch_add(object.size.0, Ordering::Relaxed);
            }
            Ok(())
        })?;
        wait(self.to.store(&list, &bytes))?;
        self.tell(bytes.len() as u64);
        let brought = TransferredBackup {
            system_identifier: of.keys.system(),
            label: label.clone(),
            stored: manifest.stored,
            taken_over: ByteCount(taken_over.into_inner()),
        };
        let data = contents.numbered().map(|(number, object)| (number, object.size)).collect();
        let files = Some(ByteCount(bytes.len() as u64));
        Ok((brought, commit::Folder { files, data, key: self.to_is_encrypted }))
    }

    fn exports(&self, of: &OfSystem, there: Option<&OfSystem>, transferred: &mut Transferred) -> Result<()> {
        for (folder, found) in of.exports.iter().filter(|(_, found)| found.manifest.is_some()) {
            let theirs = there.and_then(|there| there.exports.get(folder)).cloned().unwrap_or_default();
            if theirs.manifest.is_some() {
                continue;
            }
            let keys = ExportKeys::at(folder.clone());
            match self.export(&keys, found.rows, theirs.rows) {
                Ok(bytes) => {
                    transferred.exports += 1;
                    transferred.stored.0 += bytes;
                }
                // Expired meanwhile.
                Err(Trouble::Left(_))
                    if wait(self.from.read_range(&keys.manifest(), 0, 1)).ok() == Some(None) => {}
                Err(Trouble::Left(why)) => {
                    transferred.left_objects.push(LeftObject { object: folder.clone(), why });
                }
                Err(Trouble::Ends(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies an export; returns the bytes of its rows.
    fn export(
        &self,
        keys: &ExportKeys,
        rows: Option<ByteCount>,
        there: Option<ByteCount>,
    ) -> Result<u64, Trouble> {
        let key = keys.manifest();
        let bytes = wait(self.from.read(&key))?.ok_or_else(|| self.damaged(&key, "it is not there"))?;
        let manifest: ExportManifest =
            seal::read_document(&bytes).map_err(|error| self.damaged(&key, error))?;
        let size = rows.unwrap_or(ByteCount(0));
        self.total.fetch_add(size.0, Ordering::Relaxed);
        self.bring(&Object { key: keys.rows(), size, blake3: manifest.stored_blake3, there })?;
        wait(self.to.create(&key, &bytes))?;
        Ok(size.0)
    }
}

#[cfg(test)]
mod tests;
