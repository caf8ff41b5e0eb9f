//! Which backups there are: read from their manifests, and from the lease of one that is being made.
//!
//! Reads only. A backup that cannot be read is listed with the reason, and never hides the others.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::pin::Pin;
use crate::engine::lease::{self, LeaseProgress, Purpose};
use crate::engine::record::Actor;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::node::{self, DamagedFile, NodeDoor};
use crate::ops::observe::Doors;
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::SegmentName;
use crate::repo::catalog::{self, Backup, State};
use crate::repo::layout::{BackupKeys, ClusterKeys, Label, SystemKeys};
use crate::repo::manifest::{Contents, Manifest, Source, Tablespace};
use crate::repo::seal::{Identity, Kind};
use crate::repo::{SharedRepo, document, seal};
use crate::topology::model::Cluster;
use crate::units::ByteCount;

/// The backups of one cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterBackups {
    pub cluster: String,
    pub repository: String,
    /// Oldest first.
    pub backups: Vec<BackupItem>,
}

/// One backup, or what should be one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupItem {
    pub label: Label,
    pub system_identifier: SystemIdentifier,
    pub state: BackupState,
    /// Why it cannot be restored, if it cannot.
    pub why: Option<String>,
    /// Who makes it, and how far that is, while it is being made.
    pub running: Option<RunningBackup>,
    /// What the manifest says, if there is one that can be read.
    pub facts: Option<BackupFacts>,
    pub pin: Option<Pin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// Committed.
    Whole,
    /// Committed, with pages whose checksum was wrong on the node.
    DamagedPages,
    Running,
    /// What an aborted one left; the next backup goes on with it, or removes it.
    Unfinished,
    /// Its manifest cannot be read.
    Unreadable,
}

/// A backup that is being made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunningBackup {
    pub by: Actor,
    pub since: Timestamp,
    pub progress: Option<LeaseProgress>,
}

/// What a manifest says, for those who choose.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupFacts {
    pub herd: String,
    /// `inventory-b`.
    pub node: String,
    pub from: Source,
    pub server_version: String,
    pub pgherd: String,
    pub begun: Timestamp,
    pub ended: Timestamp,
    pub seconds: f64,
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub first_segment: SegmentName,
    pub last_segment: SegmentName,
    pub size_bytes: ByteCount,
    pub stored_bytes: ByteCount,
    pub files: u64,
    pub data_checksums: bool,
    pub damaged_pages: u64,
    pub tablespaces: Vec<Tablespace>,
    /// The backups that hold a part of its data.
    pub needs: Vec<Label>,
}

/// One backup in full.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownBackup {
    pub cluster: String,
    pub repository: String,
    #[serde(rename = "backup")]
    pub item: BackupItem,
    /// Files with damaged pages.
    pub damaged: Vec<DamagedFile>,
    /// Bytes of everything in its folder, by a listing.
    pub occupied_bytes: ByteCount,
    pub objects: u64,
}

impl BackupFacts {
    fn of(manifest: &Manifest) -> Self {
        let (first_segment, last_segment) = manifest.wal();
        let version = crate::pg::version::PgVersion::from_number(manifest.server_version);
        let seconds = manifest.ended.duration_since(manifest.begun).max(SignedDuration::ZERO).as_secs_f64();
        Self {
            herd: manifest.herd.clone(),
            node: format!("{}-{}", manifest.cluster, manifest.node),
            from: manifest.from,
            server_version: version.to_string(),
            pgherd: manifest.pgherd.clone(),
            begun: manifest.begun,
            ended: manifest.ended,
            seconds,
            timeline: manifest.timeline,
            start_lsn: manifest.start_lsn,
            stop_lsn: manifest.stop_lsn,
            first_segment,
            last_segment,
            size_bytes: manifest.size,
            stored_bytes: manifest.stored,
            files: manifest.files,
            data_checksums: manifest.data_checksums,
            damaged_pages: manifest.damaged_pages,
            tablespaces: manifest.tablespaces.clone(),
            needs: manifest.needs.clone(),
        }
    }
}

/// Lists the backups of a cluster, whose servers need not run.
///
/// # Errors
/// When it declares no backups, or the repository cannot be read.
pub async fn list(context: &Context, cluster: &Cluster) -> Result<ClusterBackups> {
    let (name, repo) = open(context, cluster).await?;
    Ok(ClusterBackups {
        cluster: cluster.name.clone(),
        repository: name,
        backups: in_repository(&repo, &cluster.name).await?,
    })
}

/// Lists the backups of a cluster in a repository, oldest first.
///
/// # Errors
/// As the repository fails.
pub async fn in_repository(repo: &SharedRepo, cluster: &str) -> Result<Vec<BackupItem>> {
    let keys = ClusterKeys::new(cluster);
    let mut running = BTreeMap::new();
    for system in catalog::systems(&**repo, &keys).await? {
        running.extend(being_made(repo, &keys.system(system)).await?);
    }
    let mut items = Vec::new();
    for found in catalog::backups(&**repo, &keys).await? {
        let made = running.remove(&(found.system, found.label.clone()));
        // A pin that cannot be read keeps its backup all the same; "backup pin" says so.
        let pin = match found.manifest() {
            Some(_) => document::read(&**repo, &found.keys(&keys).pin()).await?,
            None => None,
        };
        items.push(item(found, made, pin.and_then(Result::ok)));
    }
    // What runs may have stored nothing yet.
    for ((system, label), made) in running {
        items.push(item(Backup { system, label, state: State::Unfinished }, Some(made), None));
    }
    items.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(items)
}

type Running = ((SystemIdentifier, Label), RunningBackup);

/// Returns what living leases say of backups that are being made.
pub(super) async fn being_made(repo: &SharedRepo, keys: &SystemKeys) -> Result<Vec<Running>> {
    let now = Timestamp::now();
    let found = lease::read_all(repo, keys).await?.into_iter().filter(|found| found.lives(now));
    let leases = found.filter_map(|found| found.lease.ok()).filter(|lease| lease.kind == Purpose::Backup);
    Ok(leases
        .filter_map(|lease| {
            let label = lease.labels.into_iter().next()?;
            let made = RunningBackup { by: lease.by, since: lease.since, progress: lease.progress };
            Some(((keys.system(), label), made))
        })
        .collect())
}

fn item(found: Backup, running: Option<RunningBackup>, pin: Option<Pin>) -> BackupItem {
    let Backup { system, label, state } = found;
    let (state, why, facts) = match state {
        State::Whole(manifest) if manifest.label != label || manifest.system_identifier != system => {
            let why = format!(
                "its manifest is that of {} of system {}",
                manifest.label, manifest.system_identifier
            );
            (BackupState::Unreadable, Some(why), None)
        }
        State::Whole(manifest) if manifest.damaged_pages > 0 => {
            (BackupState::DamagedPages, None, Some(BackupFacts::of(&manifest)))
        }
        State::Whole(manifest) => (BackupState::Whole, None, Some(BackupFacts::of(&manifest))),
        State::Damaged(error) => (BackupState::Unreadable, Some(format!("its manifest: {error}")), None),
        State::Unfinished if running.is_some() => (BackupState::Running, None, None),
        State::Unfinished => {
            let why = "it was interrupted; the next backup goes on with it, or removes it".to_owned();
            (BackupState::Unfinished, Some(why), None)
        }
    };
    let running = running.filter(|_| state == BackupState::Running);
    BackupItem { label, system_identifier: system, state, why, running, facts, pin }
}

/// Shows one backup in full.
///
/// # Errors
/// [`ErrorKind::NotFound`] if the cluster has none of that label, otherwise as [`list`].
pub async fn show(context: &Context, cluster: &Cluster, label: &Label) -> Result<ShownBackup> {
    let (repository, repo) = open(context, cluster).await?;
    let items = in_repository(&repo, &cluster.name).await?;
    let Some(item) = items.into_iter().find(|item| item.label == *label) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("cluster {} has no backup {label}", cluster.name),
        )
        .hint("See which there are: pgherd backup list"));
    };
    let keys = ClusterKeys::new(&cluster.name).system(item.system_identifier).backup(label);
    let listed = repo.list_all(keys.folder()).await?;
    let damaged = match item.state {
        BackupState::DamagedPages => damaged(&repo, &item, &keys).await?,
        BackupState::Whole | BackupState::Running | BackupState::Unfinished | BackupState::Unreadable => {
            Vec::new()
        }
    };
    Ok(ShownBackup {
        cluster: cluster.name.clone(),
        repository,
        item,
        damaged,
        occupied_bytes: ByteCount(listed.iter().map(|listed| listed.size.0).sum()),
        objects: listed.len() as u64,
    })
}

async fn damaged(repo: &SharedRepo, item: &BackupItem, keys: &BackupKeys) -> Result<Vec<DamagedFile>> {
    let unusable = |why: String| {
        Error::failed(format!("cannot read the list of files of {}", item.label))
            .detail(format!("{why}."))
            .hint("See what is damaged: pgherd backup verify")
    };
    let Some(bytes) = repo.read(&keys.files()).await? else {
        return Err(unusable("It is not there".to_owned()));
    };
    let identity =
        Identity { kind: Kind::Files, name: item.label.as_str(), system_identifier: item.system_identifier };
    let text = seal::open(identity, &bytes).map_err(|error| unusable(error.to_string()))?;
    let contents = Contents::read(&text).map_err(|error| unusable(error.to_string()))?;
    let damaged = contents.files.into_iter().filter(|file| !file.damaged_blocks.is_empty());
    Ok(damaged.map(|file| DamagedFile { path: file.path, blocks: file.damaged_blocks }).collect())
}

/// Opens the repository of a cluster and returns its name.
async fn open(context: &Context, cluster: &Cluster) -> Result<(String, SharedRepo)> {
    let repository = match &cluster.backups {
        Some(backups) => &backups.repository,
        None => {
            return Err(Error::refused(format!("cluster {} has no backups declared", cluster.name))
                .hint("Declare them in the topology, then: pgherd apply"));
        }
    };
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let door = NodeDoor::open(&doors, &cluster.preferred().host).await?;
    Ok((repository.name.clone(), node::repository(&door, repository).await?))
}
