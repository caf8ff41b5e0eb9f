//! What is known before anything is copied: the primary, the repository, the choice, the room.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::survey::Survey;
use crate::db::queries::ServerRole;
use crate::db::recovery;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::ops::context::Context;
use crate::ops::node::restore::{PlanForRestore, Wish};
use crate::ops::node::{self, NodeDoor, NodeRequest, Priority};
use crate::ops::observe::{self, ClusterObserved, Depth, Directory, Doors};
use crate::ops::present;
use crate::ops::roles::{self, Lead};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::repo::{SharedRepo, primary};
use crate::topology::model::{Cluster, Node, Repository};
use crate::units::ByteCount;

/// WAL that a server in recovery keeps beside the data, at most about so much (`max_wal_size` is 1 GB by default).
const WAL_KEPT: u64 = 1 << 30;

/// The primary of the cluster, as it answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeenPrimary {
    /// `a`.
    pub node: String,
    pub timeline: TimelineId,
    pub written_lsn: Lsn,
    pub now: Timestamp,
    /// The number that its next transaction gets; `None` if it did not say.
    pub next_transaction: Option<u64>,
    /// What recovery needs at least.
    #[serde(skip)]
    pub at_least: Option<[u32; 5]>,
    #[serde(skip)]
    pub system_identifier: SystemIdentifier,
}

/// Everything that a restore begins with.
#[derive(Debug)]
pub struct Prepared {
    pub repository: Repository,
    pub repo: SharedRepo,
    pub door: NodeDoor,
    /// The doors to the cluster as it is declared.
    pub doors: Doors,
    pub observed: ClusterObserved,
    pub primary: Option<SeenPrimary>,
    pub survey: Survey,
    /// What the operator should know, as whole sentences.
    pub notes: Vec<String>,
}

/// Looks at the cluster and into its repository, and chooses. Changes nothing but the copy of pgherd that works on the node; where the
/// archive does not reach the target yet, it has the primary finish its WAL segment.
///
/// # Errors
/// `Refused` without declared backups, and where no backup reaches the target; `NotFound` without a repository or a backup.
pub async fn prepare(context: &Context, cluster: &Cluster, host: &str, wish: &Wish) -> Result<Prepared> {
    let backups = cluster.backups.as_ref().ok_or_else(|| {
        Error::refused(format!("cannot restore {}: it has no backups declared", cluster.name)).hint(
            "Declare \"repositories: {main: {url: file:///…}}\" and \"backups: {repository: main}\" for it.",
        )
    })?;
    let look = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&look, cluster, Depth::Servers).await;
    let primary = see_primary(&look, cluster, &observed).await?;
    let doors = Doors::open(cluster, context.places.clone(), &context.gate)?;
    let door = NodeDoor::open(&doors, host).await?;
    let repo = node::repository(&door, &backups.repository).await?;
    let mut notes = Vec::new();
    let (system, timeline) = match &primary {
        Some(seen) => (Some(seen.system_identifier), Some(seen.timeline)),
        None => match primary::read(&*repo, &cluster.name).await? {
            Some(record) => {
                notes.push(format!(
                    "No primary answers; the repository has {} on timeline {} on record since {}.",
                    cluster.full_name(&record.node),
                    record.timeline,
                    node::restore::clock(record.since)
                ));
                (Some(record.system_identifier), Some(record.timeline))
            }
            None => (system_of(&observed), None),
        },
    };
    let request = NodeRequest::PlanForRestore(Box::new(PlanForRestore {
        repository: door.location(&backups.repository),
        cluster: cluster.name.clone(),
        system_identifier: system,
        wish: wish.clone(),
        primary: timeline,
    }));
    let look = || door.call::<Survey>(&request, Priority::Normal, Arc::new(|_| ()));
    let survey = match (look().await, &primary) {
        // What happened a minute ago is in the segment that the primary still writes.
        (Err(error), Some(seen)) if error.kind() == ErrorKind::Refused => {
            let node = cluster.node(&seen.node).expect("see_primary names nodes of the cluster");
            let system = seen.system_identifier;
            match present::finish_segment(&doors, cluster, node, system, &backups.repository, &context.build)
                .await
            {
                Ok(()) => look().await?,
                Err(unfinished) => {
                    tracing::warn!(error = %unfinished, "could not have the primary finish its WAL segment");
                    return Err(error);
                }
            }
        }
        (looked, _) => looked?,
    };
    notes.extend(survey.notes.iter().cloned());
    for passed in &survey.passed_over {
        notes.push(format!(
            "The archive has timeline {passed}, which is newer and is not followed. If it is the one that you want: --target-timeline {passed}."
        ));
    }
    Ok(Prepared {
        repository: backups.repository.clone(),
        repo,
        door,
        doors,
        observed,
        primary,
        survey,
        notes,
    })
}

/// Asks the primary where it is, if there is one that answers.
async fn see_primary(
    doors: &Doors,
    cluster: &Cluster,
    observed: &ClusterObserved,
) -> Result<Option<SeenPrimary>> {
    let name = match roles::lead(observed) {
        Lead::Primary(name) => name,
        Lead::Split(names) => {
            return Err(Error::refused(format!("cannot tell which timeline of {} is its own", cluster.name))
                .detail(format!("{} all accept writes.", names.join(", ")))
                .hint("See what is wrong with \"pgherd status\"."));
        }
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Unknown { .. } => return Ok(None),
    };
    let node = cluster.node(&name).expect("roles::lead names nodes of the cluster");
    let facts = &observed
        .node(&name)
        .and_then(|seen| seen.running())
        .expect("the lead is a node that answered")
        .facts;
    let ServerRole::Primary { written_lsn } = facts.role else { return Ok(None) };
    // What it does not say now is unknown, and no reason not to restore.
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await.ok();
    let (next_transaction, at_least) = match &conn {
        Some(conn) => (recovery::next_transaction(conn).await.ok(), recovery::at_least(conn).await.ok()),
        None => (None, None),
    };
    Ok(Some(SeenPrimary {
        node: name,
        timeline: facts.timeline,
        written_lsn,
        now: facts.now,
        next_transaction,
        at_least,
        system_identifier: facts.system_identifier,
    }))
}

/// Returns the system identifier that the nodes' files name, if they agree.
fn system_of(observed: &ClusterObserved) -> Option<SystemIdentifier> {
    let mut found = observed.nodes.iter().filter_map(|node| match &node.directory {
        Directory::Cluster { control: Some(control), .. } => Some(control.system_identifier),
        Directory::Cluster { control: None, .. }
        | Directory::Missing
        | Directory::Empty
        | Directory::Foreign { .. }
        | Directory::Unknown { .. } => node.profile.as_ref().map(|profile| profile.system_identifier),
    });
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

/// Where a tablespace was and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub oid: u32,
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Where the operator wants tablespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remap {
    /// By OID.
    pub one: Vec<(u32, PathBuf)>,
    /// All others below this directory, by OID.
    pub all: Option<PathBuf>,
}

impl Remap {
    /// Decides where each tablespace of a backup goes: by default beside the data directory, never where the original is.
    ///
    /// # Errors
    /// `Usage` for an OID that the backup does not have.
    pub fn decide(&self, survey: &Survey, directory: &Path) -> Result<Vec<Moved>> {
        let declared = &survey.manifest.tablespaces;
        if let Some((oid, _)) =
            self.one.iter().find(|(oid, _)| !declared.iter().any(|found| found.oid == *oid))
        {
            let known: Vec<String> = declared.iter().map(|found| found.oid.to_string()).collect();
            let has = if known.is_empty() { "no tablespaces".to_owned() } else { known.join(", ") };
            return Err(Error::usage(format!("backup {} has no tablespace {oid}", survey.manifest.label))
                .detail(format!("It has {has}.")));
        }
        let beside = beside(directory, "-tablespaces");
        Ok(declared
            .iter()
            .map(|tablespace| {
                let named = self.one.iter().find(|(oid, _)| *oid == tablespace.oid).map(|(_, to)| to.clone());
                let below = self.all.as_ref().unwrap_or(&beside);
                Moved {
                    oid: tablespace.oid,
                    from: tablespace.location.clone(),
                    to: named.unwrap_or_else(|| below.join(tablespace.oid.to_string())),
                }
            })
            .collect())
    }
}

/// Returns the path beside `path` whose name has `more` at its end.
pub fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(more);
    path.with_file_name(name)
}

/// A file system that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Room {
    pub path: PathBuf,
    pub needed_bytes: ByteCount,
    pub free_bytes: ByteCount,
}

/// Looks whether there is room for a copy: each tablespace by itself, the rest with some WAL in the data directory.
///
/// # Errors
/// When the host cannot tell.
pub async fn room(host: &dyn Host, survey: &Survey, directory: &Path, moved: &[Moved]) -> Result<Vec<Room>> {
    let manifest = &survey.manifest;
    let in_tablespaces: u64 = manifest.tablespaces.iter().map(|tablespace| tablespace.size.0).sum();
    let wal = survey.choice.segments().saturating_mul(manifest.wal_segment_size.as_u64()).min(WAL_KEPT);
    let mut wanted = vec![(directory.to_owned(), manifest.size.0.saturating_sub(in_tablespaces) + wal)];
    for (tablespace, moved) in manifest.tablespaces.iter().zip(moved) {
        wanted.push((moved.to.clone(), tablespace.size.0));
    }
    let mut rooms = Vec::new();
    for (path, needed) in wanted {
        let free = host.disk(&path).await?.free;
        rooms.push(Room { path, needed_bytes: ByteCount(needed), free_bytes: free });
    }
    Ok(rooms)
}

/// Refuses where the data alone does not fit.
///
/// # Errors
/// `Refused` names the file system.
pub fn refuse_without_room(rooms: &[Room]) -> Result<()> {
    // The same file system may serve several: what all of those need must fit.
    for room in rooms {
        let together: u64 = rooms
            .iter()
            .filter(|other| other.free_bytes == room.free_bytes)
            .map(|other| other.needed_bytes.0)
            .sum();
        if together > room.free_bytes.0 {
            return Err(Error::refused(format!("there is no room for the copy in {}", room.path.display()))
                .detail(format!(
                    "It needs about {}, and {} are free. Nothing was written.",
                    ByteCount(together),
                    room.free_bytes
                ))
                .hint("Choose a directory on another file system, or make room."));
        }
    }
    Ok(())
}

/// What a restore to the target leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GivenUp {
    /// Transactions that committed behind the target and are in the archive; `None` if they were not counted.
    pub archived_commits: Option<u64>,
    /// When the last of them did.
    pub archived_until: Option<Timestamp>,
    /// Transactions that the primary has begun since, also those that it rolled back; `None` if it did not answer, or follows another line.
    pub primary_transactions: Option<u64>,
    /// From the last transaction of the copy to the last that is known of: the primary's clock, else the archive's last.
    pub seconds: Option<f64>,
}

/// Works out what is given up. `reached` is the last transaction of the copy, `next` the number of its next one.
pub fn given_up(prepared: &Prepared, reached: Option<Timestamp>, next: Option<u64>) -> GivenUp {
    let survey = &prepared.survey;
    let same_line = prepared.primary.as_ref().filter(|primary| {
        primary.system_identifier == survey.system_identifier && primary.timeline == survey.choice.timeline
    });
    let primary_transactions =
        same_line.and_then(|primary| Some(primary.next_transaction?.saturating_sub(next?)));
    let archived_until = survey.beyond.last.as_ref().map(|mark| mark.at);
    let until = match (same_line, primary_transactions) {
        (Some(primary), Some(count)) if count > 0 => Some(primary.now),
        _ => archived_until,
    };
    let seconds = match (reached, until) {
        (Some(reached), Some(until)) => Some(until.duration_since(reached).as_secs_f64().max(0.0)),
        (_, None) if primary_transactions == Some(0) || survey.beyond.commits == Some(0) => Some(0.0),
        (None, _) | (_, None) => None,
    };
    GivenUp { archived_commits: survey.beyond.commits, archived_until, primary_transactions, seconds }
}

/// Refuses a target directory that a node of the herd has, or would have.
///
/// # Errors
/// `Refused` names the node.
pub fn refuse_nodes(directory: &Path, nodes: &[(String, &Node)]) -> Result<()> {
    for (name, node) in nodes {
        if directory.starts_with(&node.data_directory) || node.data_directory.starts_with(directory) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("cannot restore into {}: it is the place of {name}", directory.display()),
            )
            .detail(format!("The topology gives {} to that node.", node.data_directory.display()))
            .hint(format!(
                "Name another directory. To rebuild {name} as a standby: --to-node {}; to bring the whole cluster back: --in-place.",
                node.name
            )));
        }
    }
    Ok(())
}
