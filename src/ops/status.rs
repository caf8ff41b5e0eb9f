//! The herd as it is: one report a cluster, with what is wrong and the next command.
//!
//! Reads only. What is not known is unknown, with its reason.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::db::DbError;
use crate::db::queries::{self, ServerRole, Slot, WalSender};
use crate::engine::store::Listed;
use crate::error::{Error, Result};
use crate::ops::certificate::{self, Holder};
use crate::ops::context::Context;
use crate::ops::kept::{self, Kept};
use crate::ops::observe::{
    self, Claim, ClusterObserved, Depth, Directory, Doors, Fence, NodeObserved, Running, Server,
};
use crate::ops::pooler::{self, ConsoleSeen, PoolerObserved, PoolerProcess};
use crate::ops::roles::{self, Lead};
use crate::ops::service;
use crate::ops::split::{self, SplitBrain};
use crate::pg::lsn::Lsn;
use crate::pg::system::SystemIdentifier;
use crate::topology::claim::{self, Profile};
use crate::topology::model::{Cluster, Herd, Node, Repository};
use crate::units::{ByteCount, human_duration};

/// Everything that one screen shows of a cluster. `docs/formats/status.md` describes it as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    pub cluster: String,
    pub version: Option<String>,
    pub system_identifier: Option<String>,
    /// The node that accepts writes.
    pub primary: Option<String>,
    pub timeline: Option<u32>,
    pub synchronous: Option<String>,
    pub nodes: Vec<NodeStatus>,
    pub poolers: Vec<PoolerStatus>,
    /// `None` where none are declared.
    pub backups: Option<BackupsStatus>,
    /// `None` where no TLS is declared.
    pub tls: Option<TlsStatus>,
    /// Operations that run or were left unfinished.
    pub operations: Vec<OperationStatus>,
    /// More than one node accepts writes; `None` if that is not so.
    pub split_brain: Option<SplitBrain>,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    pub node: String,
    pub host: String,
    pub port: u16,
    /// Observed, never declared.
    pub role: NodeRole,
    pub preferred: bool,
    pub state: NodeState,
    /// Why the state is what it is, where that is not plain.
    pub why: Option<String>,
    pub timeline: Option<u32>,
    pub lsn: Option<String>,
    /// How far replay is behind the primary.
    pub lag_bytes: Option<u64>,
    /// How old what is not replayed yet is; none when nothing is missing and WAL streams.
    pub lag_seconds: Option<f64>,
    /// `async`, `potential`, `sync` or `quorum`, as the primary sees it.
    pub sync_state: Option<String>,
    pub slot: Option<SlotStatus>,
    pub version: Option<String>,
    pub up_seconds: Option<i64>,
    pub disk_total_bytes: Option<u64>,
    pub disk_free_bytes: Option<u64>,
    /// Who starts and stops it, as found on its host: `pg_ctl`, a unit, or `pg_ctlcluster VERSION NAME`.
    pub started_by: Option<String>,
    /// Whether it comes back by itself when its host boots.
    pub starts_with_host: Option<bool>,
    /// Who keeps it from being a primary, if anybody does.
    pub fenced: Option<FencedStatus>,
}

/// Who fenced a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FencedStatus {
    pub since: Timestamp,
    pub by: String,
    pub operation: String,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    Primary,
    Standby,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// A primary that answers.
    Up,
    Streaming,
    /// A standby that answers and receives nothing.
    NotStreaming,
    Starting,
    Stopped,
    /// Stopped, and kept from coming up as a primary.
    Fenced,
    /// No data directory.
    Missing,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    pub name: String,
    pub active: bool,
    pub wal_status: Option<String>,
    pub retained_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolerStatus {
    pub host: String,
    pub port: u16,
    pub state: PoolerState,
    pub why: Option<String>,
    pub routes: Vec<RouteStatus>,
    pub clients: u32,
    pub max_clients: u32,
    pub waiting: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolerState {
    Up,
    Stopped,
    Missing,
    Unknown,
}

/// What the servers and poolers of a cluster prove themselves by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsStatus {
    /// When the first of the authorities ends that are believed; `None` if they could not be read.
    pub authority_not_after: Option<Timestamp>,
    /// What ends first of all that is shown and believed.
    pub nearest: Option<Nearest>,
    /// Of each server and pooler that runs.
    pub certificates: Vec<CertificateStatus>,
    /// Why nothing is known of them, if nothing is.
    pub why: Option<String>,
}

/// What ends first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// A node, a pooler, or "the authority".
    pub of: String,
    pub not_after: Timestamp,
    pub left_seconds: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    pub of: String,
    /// As it shows it; `None` if it does not prove who it is.
    pub not_after: Option<Timestamp>,
    pub why: Option<String>,
}

/// What is kept of a cluster, and how its WAL gets there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupsStatus {
    /// Its name in the topology.
    pub repository: String,
    pub url: String,
    /// Why nothing is known of what the repository holds, if nothing is.
    pub why: Option<String>,
    /// The newest backup; `None` if there is none, or that is not known.
    pub last: Option<BackupStatus>,
    /// Those that are being made.
    pub running: Vec<RunningStatus>,
    /// The newest moments without a gap between them; `None` if there is none, or that is not known.
    pub restorable: Option<Restorable>,
    /// `None` while no primary tells.
    pub archive: Option<ArchiveStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupStatus {
    pub label: String,
    pub ended: Timestamp,
    pub age_seconds: i64,
    /// Of the cluster, and in the repository.
    pub size_bytes: u64,
    pub stored_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunningStatus {
    pub label: String,
    pub by: String,
    pub since: Timestamp,
    pub phase: Option<String>,
    pub done_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
}

/// Moments of which each one can be restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restorable {
    /// When a backup ended.
    pub from: Timestamp,
    /// When the last transaction committed whose WAL is archived.
    pub to: Timestamp,
    pub timeline: u32,
    /// The segment that is missing behind it, although WAL behind that is archived.
    pub ends_before: Option<String>,
}

/// How WAL archiving goes, as the primary sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArchiveStatus {
    /// Whether `archive_mode` is in effect.
    pub on: bool,
    /// Files that wait in `pg_wal`.
    pub waiting: u64,
    pub archived: i64,
    /// Failed attempts since the counters were reset.
    pub failed: i64,
    pub last_archived: Option<String>,
    pub last_archived_at: Option<Timestamp>,
    /// The file that failed last, if nothing was archived since.
    pub failing: Option<String>,
    pub failing_at: Option<Timestamp>,
    /// How long the first segment that waits has been waiting.
    pub oldest_seconds: Option<f64>,
    /// At what rate WAL is written, told by what piled up since then; `None` while no more than one segment waits.
    pub wal_bytes_per_second: Option<f64>,
    /// How long until the primary's disk is full at that rate if none of it is archived.
    pub disk_full_seconds: Option<f64>,
}

/// Where an alias leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    pub alias: String,
    /// Names of nodes; an address of something else is given as it is.
    pub to: Vec<String>,
    pub paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperationStatus {
    pub id: String,
    pub kind: String,
    pub by: String,
    pub begun: Timestamp,
    /// Whether a process drives it now.
    pub running: bool,
    pub next: String,
}

/// Something wrong, and the command that looks at it or mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub what: String,
    pub next: String,
}

/// Looks at the clusters side by side.
///
/// # Errors
/// When a door cannot be opened at all; what does not answer is in the report.
pub async fn status(context: &Context, herd: &Herd, clusters: &[&Cluster]) -> Result<Vec<ClusterStatus>> {
    let looks = clusters.iter().map(|cluster| one(context, herd, cluster));
    futures_util::future::join_all(looks).await.into_iter().collect()
}

async fn one(context: &Context, herd: &Herd, cluster: &Cluster) -> Result<ClusterStatus> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let (observed, poolers, kept, starters) = tokio::join!(
        observe::observe(&doors, cluster, Depth::Servers),
        poolers(&doors, cluster),
        kept(&doors, context, cluster),
        starters(&doors, cluster),
    );
    let operations = operations(context, cluster).unwrap_or_default();
    let lead = roles::lead(&observed);
    let primary = match &lead {
        Lead::Primary(name) => observed.node(name),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    let nodes: Vec<NodeStatus> = cluster
        .nodes
        .iter()
        .zip(&observed.nodes)
        .zip(starters)
        .map(|((node, seen), starter)| NodeStatus {
            starts_with_host: starter.as_ref().map(|(_, with_host)| *with_host),
            started_by: starter.map(|(by, _)| by),
            ..node_status(cluster, node, seen, primary)
        })
        .collect();
    let running = primary.and_then(NodeObserved::running);
    let any = running.or_else(|| observed.nodes.iter().find_map(NodeObserved::running));
    let free = primary.and_then(|seen| seen.disk).map(|disk| disk.free);
    let archive = match (&cluster.backups, primary.and_then(|seen| cluster.node(&seen.node)), running) {
        (Some(_), Some(node), Some(running)) => archive(&doors, cluster, node, running, free).await,
        (_, _, _) => None,
    };
    let runs = |holder: &Holder<'_>| match holder {
        Holder::Node(node) => observed.node(&node.name).is_some_and(|seen| seen.running().is_some()),
        Holder::Pooler(host) => {
            poolers.iter().any(|pooler| pooler.host == *host && pooler.state == PoolerState::Up)
        }
    };
    let tls = tls(&doors, cluster, runs).await;
    let mut report = ClusterStatus {
        cluster: cluster.name.clone(),
        version: any.map(|running| running.facts.version.to_string()),
        system_identifier: any.map(|running| running.facts.system_identifier.to_string()),
        primary: primary.map(|node| node.node.clone()),
        timeline: running.map(|running| running.facts.timeline.as_u32()),
        synchronous: cluster
            .synchronous
            .as_ref()
            .map(|synchronous| format!("any {} of ({})", synchronous.wait_for, synchronous.of.join(", "))),
        nodes,
        poolers,
        backups: kept.zip(cluster.backups.as_ref()).map(|(kept, backups)| {
            let system = any.map(|running| running.facts.system_identifier);
            backups_status(&backups.repository, kept, system, archive)
        }),
        tls,
        operations,
        split_brain: split::look(&doors, cluster, &observed).await,
        problems: Vec::new(),
    };
    report.problems = problems(herd, cluster, &lead, &observed, &report);
    Ok(report)
}

fn node_status(
    cluster: &Cluster,
    node: &Node,
    seen: &NodeObserved,
    primary: Option<&NodeObserved>,
) -> NodeStatus {
    let running = seen.running();
    let above = primary.and_then(NodeObserved::running);
    let slot = cluster.slot_name(&node.name);
    let name = cluster.full_name(&node.name);
    let (state, why) = state(seen);
    let is_primary = running.is_some_and(Running::is_primary);
    let sender = above.and_then(|above| above.senders.iter().find(|sender| sender.application_name == name));
    let (lag_bytes, lag_seconds) = lag(running, above, state);
    NodeStatus {
        node: node.name.clone(),
        host: node.host.clone(),
        port: node.port,
        role: match running {
            Some(_) if is_primary => NodeRole::Primary,
            Some(_) => NodeRole::Standby,
            None => match &seen.directory {
                Directory::Cluster { standby_signal: true, .. } => NodeRole::Standby,
                Directory::Cluster { .. }
                | Directory::Missing
                | Directory::Empty
                | Directory::Foreign { .. }
                | Directory::Unknown { .. } => NodeRole::Unknown,
            },
        },
        preferred: node.preferred,
        state,
        why,
        timeline: roles::timeline(seen).map(crate::pg::timeline::TimelineId::as_u32),
        lsn: running.and_then(|running| running.facts.role.lsn()).map(|lsn| lsn.to_string()),
        lag_bytes,
        lag_seconds,
        sync_state: sender.map(|sender: &WalSender| sender.sync_state.clone()),
        slot: above
            .filter(|_| !is_primary)
            .and_then(|above| above.slots.iter().find(|found| found.name == slot))
            .map(slot_status),
        version: running.map(|running| running.facts.version.to_string()),
        up_seconds: running.map(|running| running.facts.now.duration_since(running.facts.started).as_secs()),
        disk_total_bytes: seen.disk.map(|disk| disk.total.0),
        disk_free_bytes: seen.disk.map(|disk| disk.free.0),
        started_by: None,
        starts_with_host: None,
        fenced: match &seen.fence {
            Fence::Fenced(mark) => Some(FencedStatus {
                since: mark.since,
                by: mark.by.clone(),
                operation: mark.operation.clone(),
                why: mark.why.clone(),
            }),
            Fence::Open | Fence::Unknown { .. } => None,
        },
    }
}

fn slot_status(slot: &Slot) -> SlotStatus {
    SlotStatus {
        name: slot.name.clone(),
        active: slot.active,
        wal_status: slot.wal_status.clone(),
        retained_bytes: slot.retained.map(|bytes| bytes.0),
    }
}

fn state(seen: &NodeObserved) -> (NodeState, Option<String>) {
    match &seen.server {
        Server::Up(running) => match &running.facts.role {
            ServerRole::Primary { .. } => (NodeState::Up, None),
            ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => {
                (NodeState::Streaming, None)
            }
            ServerRole::Standby { receiver: Some(receiver), .. } => {
                (NodeState::NotStreaming, Some(format!("its WAL receiver is {}", receiver.status)))
            }
            ServerRole::Standby { receiver: None, .. } => {
                (NodeState::NotStreaming, Some("it has no WAL receiver".to_owned()))
            }
        },
        Server::Starting => (NodeState::Starting, Some("it is starting up".to_owned())),
        Server::Foreign { what } => (NodeState::Unknown, Some(what.clone())),
        Server::Unknown { why } => (NodeState::Unknown, Some(why.clone())),
        Server::Stopped => match (&seen.directory, &seen.marker) {
            (_, Claim::Ours(marker)) if marker.system_identifier.is_none() => {
                (NodeState::Missing, Some("an operation was making it and has not ended".to_owned()))
            }
            (Directory::Missing | Directory::Empty, Claim::Ours(_)) => {
                (NodeState::Missing, Some("its data directory is gone".to_owned()))
            }
            (Directory::Missing | Directory::Empty, _) => (NodeState::Missing, None),
            (Directory::Unknown { why }, _) => (NodeState::Unknown, Some(why.clone())),
            (Directory::Cluster { .. } | Directory::Foreign { .. }, Claim::Ours(_)) => match &seen.fence {
                Fence::Fenced(mark) => (NodeState::Fenced, Some(mark.to_string())),
                Fence::Open | Fence::Unknown { .. } => (NodeState::Stopped, None),
            },
            (Directory::Cluster { .. } | Directory::Foreign { .. }, _) => {
                (NodeState::Unknown, Some("its data directory is not pgherd's".to_owned()))
            }
        },
    }
}

/// Bytes by LSN, seconds by the age of what is missing. An idle primary leaves nothing missing, so there are no seconds; a
/// standby that receives nothing cannot know what is missing, so its last sign of life counts.
fn lag(own: Option<&Running>, above: Option<&Running>, state: NodeState) -> (Option<u64>, Option<f64>) {
    let Some(own) = own else { return (None, None) };
    let ServerRole::Standby { replayed_lsn, last_replayed, receiver, .. } = &own.facts.role else {
        return (None, None);
    };
    let ahead: Option<Lsn> = above.and_then(|above| above.facts.role.lsn());
    let bytes = replayed_lsn.zip(ahead).map(|(replayed, ahead)| replayed.lag_behind(ahead).0);
    let since = |at: Timestamp| own.facts.now.duration_since(at).as_secs_f64().max(0.0);
    let seconds = match (state, bytes) {
        (NodeState::Streaming, Some(0)) => None,
        (NodeState::Streaming, _) => last_replayed.map(since),
        _ => receiver.as_ref().and_then(|receiver| receiver.last_message_at).or(*last_replayed).map(since),
    };
    (bytes, seconds)
}

/// Finds who starts each node of ours, and whether with its host; `None` where that is not known.
async fn starters(doors: &Doors, cluster: &Cluster) -> Vec<Option<(String, bool)>> {
    let looks = cluster.nodes.iter().map(async |node| {
        let host = doors.host(&node.host);
        let places = doors.node_places(cluster, node);
        let name = cluster.full_name(&node.name);
        let look = async {
            let bytes = host.read(&places.profile).await.ok().flatten()?;
            let profile: Profile = claim::read(&bytes).ok()?;
            let server = service::Server { host, node: &name, data_directory: &node.data_directory };
            let manager = service::manager_of(server, Some(&profile)).await.ok()?;
            let with_host = service::starts_with_host(host, &manager).await;
            Some((manager.to_string(), with_host))
        };
        tokio::time::timeout(observe::PATIENCE, look).await.ok().flatten()
    });
    futures_util::future::join_all(looks).await
}

/// Asks for what the repository keeps; `None` where no backups are declared.
async fn kept(
    doors: &Doors,
    context: &Context,
    cluster: &Cluster,
) -> Option<std::result::Result<Kept, String>> {
    let repository = &cluster.backups.as_ref()?.repository;
    let look = kept::look(doors, &context.build, cluster, repository);
    let told = match tokio::time::timeout(observe::PATIENCE, look).await {
        Ok(Ok(kept)) => Ok(kept),
        Ok(Err(error)) => Err(match error.detail_text() {
            Some(detail) => format!("{}: {}", error.what(), detail.trim_end_matches('.')),
            None => error.what().to_owned(),
        }),
        Err(_) => Err(format!("it did not answer within {} s", observe::PATIENCE.as_secs())),
    };
    Some(told)
}

fn backups_status(
    repository: &Repository,
    kept: std::result::Result<Kept, String>,
    system: Option<SystemIdentifier>,
    archive: Option<ArchiveStatus>,
) -> BackupsStatus {
    let (kept, why) = match kept {
        Ok(kept) => (Some(kept), None),
        Err(why) => (None, Some(why)),
    };
    // Of a cluster that does not run, the one that was backed up last counts.
    let system = system.or(kept.as_ref().and_then(|kept| Some(kept.last.as_ref()?.system_identifier)));
    let window = kept.as_ref().and_then(|kept| {
        let (_, windows) = kept.windows.iter().find(|(found, _)| Some(*found) == system)?;
        windows.iter().max_by_key(|window| window.last)
    });
    let now = Timestamp::now();
    BackupsStatus {
        repository: repository.name.clone(),
        url: repository.url.clone(),
        restorable: window.map(|window| Restorable {
            from: window.first,
            to: window.last,
            timeline: window.timeline.as_u32(),
            ends_before: window.ends_before.map(|segment| segment.to_string()),
        }),
        last: kept.as_ref().and_then(|kept| kept.last.as_ref()).map(|last| BackupStatus {
            label: last.label.to_string(),
            ended: last.ended,
            age_seconds: now.duration_since(last.ended).as_secs().max(0),
            size_bytes: last.size.0,
            stored_bytes: last.stored.0,
        }),
        running: kept
            .iter()
            .flat_map(|kept| &kept.running)
            .map(|made| RunningStatus {
                label: made.label.to_string(),
                by: made.by.clone(),
                since: made.since,
                phase: made.phase.clone(),
                done_bytes: made.done.map(|bytes| bytes.0),
                total_bytes: made.total.map(|bytes| bytes.0),
            })
            .collect(),
        why,
        archive,
    }
}

/// Has everybody who runs show the certificate that it proves itself by; `None` where no TLS is declared.
pub async fn tls(doors: &Doors, cluster: &Cluster, runs: impl Fn(&Holder<'_>) -> bool) -> Option<TlsStatus> {
    if !cluster.has_tls() {
        return None;
    }
    let mut status =
        TlsStatus { authority_not_after: None, nearest: None, certificates: Vec::new(), why: None };
    let looks = certificate::holders(cluster).filter(runs).map(|holder| async move {
        let identity = certificate::identity(doors, cluster, holder.host())?;
        let identity = identity.expect("the cluster declares TLS");
        let shown = certificate::shown_by(doors, cluster, holder, &identity).await;
        Ok((holder, identity, shown))
    });
    for look in futures_util::future::join_all(looks).await {
        let (holder, identity, shown) = match look {
            Ok(look) => look,
            Err(error) => {
                let error: Error = error;
                status.why = Some(error.what().to_owned());
                return Some(status);
            }
        };
        let ends = identity.trust.authorities.iter().map(|authority| authority.not_after).min();
        status.authority_not_after = status.authority_not_after.or(ends).min(ends);
        let (not_after, why) = match shown {
            Ok(certificate) => (Some(certificate.not_after), None),
            Err(DbError::NotProved { why, .. }) => (None, Some(why)),
            Err(error) => (None, Some(error.to_string())),
        };
        status.certificates.push(CertificateStatus { of: holder.name(cluster), not_after, why });
    }
    let now = Timestamp::now();
    let shown = status.certificates.iter().filter_map(|one| Some((one.of.clone(), one.not_after?)));
    let all = shown.chain(status.authority_not_after.map(|at| ("the authority".to_owned(), at)));
    status.nearest = all.min_by_key(|(_, at)| *at).map(|(of, not_after)| Nearest {
        of,
        not_after,
        left_seconds: not_after.duration_since(now).as_secs(),
    });
    Some(status)
}

/// What is wrong with the certificates of a cluster.
fn tls_problems(tls: &TlsStatus) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    found.extend(tls.why.as_ref().map(|why| format!("whether anybody proves who it is is unknown: {why}")));
    for one in &tls.certificates {
        found.extend(one.why.as_ref().map(|why| format!("{} does not prove who it is: {why}", one.of)));
    }
    let now = Timestamp::now();
    let warn = i64::try_from(crate::tls::WARN.as_secs()).unwrap_or(i64::MAX);
    let shown = tls.certificates.iter().filter_map(|one| Some((one.of.as_str(), one.not_after?)));
    for (of, at) in shown.chain(tls.authority_not_after.map(|at| ("the authority", at))) {
        let left = at.duration_since(now).as_secs();
        if left < warn {
            let days = left / (24 * 3600);
            found.push(format!("the certificate of {of} ends in {days} days, at {at:.0}"));
        }
    }
    found
}

/// Asks the primary how its archiver does; `None` if it does not say.
async fn archive(
    doors: &Doors,
    cluster: &Cluster,
    node: &Node,
    running: &Running,
    free: Option<ByteCount>,
) -> Option<ArchiveStatus> {
    let connector = doors.connector.clone().timeouts(observe::PATIENCE, observe::PATIENCE);
    let conn = connector.connect(&doors.superuser(cluster, node, "postgres")).await.ok()?;
    let seen = queries::archiver(&conn).await.ok()?;
    let failing = seen.failing().cloned();
    let fills = seen.backlog.zip(free).and_then(|(backlog, free)| backlog.fills(free));
    Some(ArchiveStatus {
        on: running.settings.get("archive_mode").is_some_and(|row| row.setting != "off"),
        waiting: seen.waiting,
        archived: seen.archived,
        failed: seen.failed,
        last_archived_at: seen.last_archived.as_ref().map(|(_, at)| *at),
        last_archived: seen.last_archived.map(|(name, _)| name),
        failing_at: failing.as_ref().map(|(_, at)| *at),
        failing: failing.map(|(name, _)| name),
        oldest_seconds: seen.backlog.map(|backlog| backlog.oldest.as_secs_f64()),
        wal_bytes_per_second: seen.backlog.and_then(|backlog| backlog.rate()),
        disk_full_seconds: fills.map(|span| span.as_secs_f64()),
    })
}

async fn poolers(doors: &Doors, cluster: &Cluster) -> Vec<PoolerStatus> {
    let Some(declared) = &cluster.poolers else { return Vec::new() };
    // On hosts of their own all nodes may have the same port.
    let node_at = |host: &str, port: u16| {
        let found =
            cluster.nodes.iter().find(|node| node.port == port && cluster.address(&node.host) == host);
        found.map_or_else(|| format!("{host}:{port}"), |node| node.name.clone())
    };
    let mut found = Vec::new();
    for host in &declared.hosts {
        let mut status = PoolerStatus {
            host: host.clone(),
            port: declared.port,
            state: PoolerState::Unknown,
            why: None,
            routes: Vec::new(),
            clients: 0,
            max_clients: declared.max_clients * declared.processes,
            waiting: 0,
        };
        match pooler::observe_poolers(doors, cluster, host).await {
            Err(error) => status.why = Some(error.to_string()),
            Ok(processes) => {
                let mut states = Vec::new();
                for observed in &processes {
                    let (state, why) = pooler_state(observed);
                    states.push(state);
                    status.why = status.why.or(why);
                    let ConsoleSeen::Answered(console) = &observed.console else { continue };
                    for row in console.databases.iter().filter(|row| row.alias != "pgbouncer") {
                        let to: Vec<String> =
                            row.host.split(',').map(|host| node_at(host.trim(), row.port)).collect();
                        match status.routes.iter_mut().find(|route| route.alias == row.alias) {
                            Some(route) => {
                                route.to.extend(
                                    to.into_iter().filter(|to| !route.to.contains(to)).collect::<Vec<_>>(),
                                );
                                route.paused |= row.paused;
                            }
                            None => status.routes.push(RouteStatus {
                                alias: row.alias.clone(),
                                to,
                                paused: row.paused,
                            }),
                        }
                    }
                    status.clients += console
                        .pools
                        .iter()
                        .map(|pool| pool.clients_active + pool.clients_waiting)
                        .sum::<u32>();
                    status.waiting += console.pools.iter().map(|pool| pool.clients_waiting).sum::<u32>();
                }
                // One of several that does not run is the pooler's state.
                let worst =
                    [PoolerState::Unknown, PoolerState::Stopped, PoolerState::Missing, PoolerState::Up];
                status.state =
                    worst.into_iter().find(|state| states.contains(state)).unwrap_or(PoolerState::Unknown);
            }
        }
        found.push(status);
    }
    found
}

fn pooler_state(observed: &PoolerObserved) -> (PoolerState, Option<String>) {
    match (&observed.process, &observed.ini, &observed.console) {
        (PoolerProcess::Running { .. }, _, ConsoleSeen::Answered(_)) => (PoolerState::Up, None),
        (PoolerProcess::Running { .. }, _, ConsoleSeen::Unknown { why })
        | (PoolerProcess::Unknown { why }, _, _) => (PoolerState::Unknown, Some(why.clone())),
        (PoolerProcess::Stopped, None, _) => (PoolerState::Missing, None),
        (PoolerProcess::Stopped, Some(_), _) => (PoolerState::Stopped, None),
    }
}

/// Lists the operations of a cluster that run or were left unfinished, as this station knows them.
///
/// # Errors
/// When this user may not read the journals.
pub fn operations(context: &Context, cluster: &Cluster) -> Result<Vec<OperationStatus>> {
    let listed = context.store.list()?;
    let holder = crate::engine::lock::holder(&context.store, &cluster.name).ok().flatten();
    let unfinished = listed
        .into_iter()
        .filter_map(|listed| match listed {
            Listed::Readable(view) if view.cluster == cluster.name && !view.is_finished() => {
                let running =
                    holder.as_ref().is_some_and(|holder| holder.operation.as_ref() == Some(&view.id));
                Some(OperationStatus {
                    id: view.id.to_string(),
                    kind: view.kind.clone(),
                    by: view.by.to_string(),
                    begun: view.begun,
                    running,
                    next: if running {
                        format!("pgherd operation show {}", view.id)
                    } else {
                        view.id.resume_command()
                    },
                })
            }
            Listed::Readable(_) | Listed::Damaged { .. } => None,
        })
        .collect();
    Ok(unfinished)
}

fn problems(
    herd: &Herd,
    cluster: &Cluster,
    lead: &Lead,
    observed: &ClusterObserved,
    report: &ClusterStatus,
) -> Vec<Problem> {
    let of = |verb: &str| match herd.clusters.len() {
        0 | 1 => format!("pgherd {verb}"),
        _ => format!("pgherd --cluster {} {verb}", cluster.name),
    };
    let plan = of("plan");
    let mut found = Vec::new();
    let mut add = |what: String, next: &str| found.push(Problem { what, next: next.to_owned() });
    match lead {
        Lead::Primary(_) => {}
        Lead::Unborn => add("it is not there yet".to_owned(), &plan),
        Lead::StoppedPrimary(name) => add(format!("the primary {name} is stopped"), &plan),
        Lead::Split(names) => add(
            format!("{} are primaries at the same time: keep clients away", names.join(" and ")),
            "decide which one is right, then fence the other: pgherd fence NODE",
        ),
        Lead::Unknown { why } => add(format!("nobody can be named primary: {why}"), "pgherd status -v"),
    }
    if matches!(lead, Lead::Unborn) {
        return found;
    }
    for node in &report.nodes {
        let why = node.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        match node.state {
            NodeState::Up | NodeState::Streaming => {}
            NodeState::Stopped if matches!(lead, Lead::StoppedPrimary(name) if *name == node.node) => {}
            NodeState::NotStreaming => add(format!("{} does not stream{why}", node.node), &plan),
            NodeState::Starting => add(format!("{} is starting up", node.node), "pgherd status --watch"),
            NodeState::Stopped => add(format!("{} is stopped", node.node), &plan),
            NodeState::Fenced => {
                let standby = observed.node(&node.node).is_some_and(NodeObserved::ended_as_standby);
                let verb = match (&report.primary, standby) {
                    (_, true) => "unfence",
                    (Some(_), false) => "rejoin",
                    (None, false) => "failover, or pgherd unfence",
                };
                let why = node.why.as_deref().unwrap_or("fenced");
                add(format!("{} is {why}", node.node), &of(&format!("{verb} {}", node.node)));
            }
            NodeState::Missing => add(format!("{} is not there{why}", node.node), &plan),
            NodeState::Unknown => add(format!("{} is unknown{why}", node.node), "pgherd status -v"),
        }
        if let Some(slot) =
            node.slot.as_ref().filter(|slot| !slot.active && node.state != NodeState::Streaming)
        {
            let held = slot.retained_bytes.map(crate::units::ByteCount).unwrap_or_default();
            add(format!("slot {} is not in use and holds {held} of WAL", slot.name), &plan);
        }
        if node.role == NodeRole::Standby && node.slot.is_none() && report.primary.is_some() {
            add(format!("{} has no slot on the primary", node.node), &plan);
        }
        if let (Some(total), Some(free)) = (node.disk_total_bytes, node.disk_free_bytes)
            && total > 0
            && free * 10 < total
        {
            add(
                format!("the disk of {} is {} % full", node.node, 100 - free * 100 / total),
                "free space, or grow the disk",
            );
        }
    }
    for pooler in &report.poolers {
        let why = pooler.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        match pooler.state {
            PoolerState::Up => {}
            PoolerState::Stopped => add(format!("the pooler on {} is stopped", pooler.host), &plan),
            PoolerState::Missing => add(format!("the pooler on {} is not there", pooler.host), &plan),
            PoolerState::Unknown => {
                add(format!("the pooler on {} is unknown{why}", pooler.host), "pgherd status -v")
            }
        }
        for route in &pooler.routes {
            let writes = cluster.databases.contains(&route.alias);
            if writes && report.primary.as_ref().is_some_and(|primary| route.to != [primary.clone()]) {
                add(
                    format!(
                        "alias {} leads to {}, the primary is {}",
                        route.alias,
                        route.to.join(", "),
                        report.primary.as_deref().unwrap_or("?")
                    ),
                    &plan,
                );
            }
        }
    }
    for (what, next) in
        report.backups.iter().flat_map(|backups| backup_problems(backups, &plan, &of("backup create")))
    {
        add(what, &next);
    }
    for what in report.tls.iter().flat_map(tls_problems) {
        add(what, &plan);
    }
    for operation in report.operations.iter().filter(|operation| !operation.running) {
        add(format!("operation {} ({}) is unfinished", operation.id, operation.kind), &operation.next);
    }
    for profile in &observed.left {
        add(
            format!("{}-{} is no longer in the file and still there", cluster.name, profile.node),
            &format!("pgherd destroy {} --node {}", cluster.name, profile.node),
        );
    }
    found
}

/// What is wrong with the backups and the archive, each with the next command.
fn backup_problems(backups: &BackupsStatus, plan: &str, create: &str) -> Vec<(String, String)> {
    let name = &backups.repository;
    let mut found = Vec::new();
    let mut add = |what: String, next: &str| found.push((what, next.to_owned()));
    match &backups.archive {
        Some(archive) if !archive.on => add("no WAL is archived: archive_mode is off".to_owned(), plan),
        Some(archive @ ArchiveStatus { failing: Some(file), failing_at: Some(at), waiting, .. }) => {
            let files =
                if *waiting == 1 { "1 file waits".to_owned() } else { format!("{waiting} files wait") };
            let full = archive.disk_full_seconds.map_or_else(String::new, |seconds| {
                format!(
                    "; the disk is full in {} at the rate of its WAL",
                    human_duration(Duration::from_secs_f64(seconds))
                )
            });
            let what =
                format!("WAL does not get into repository {name}: {file} failed at {at:.0}, {files}{full}");
            add(what, "see the server's log; then pgherd plan");
        }
        Some(_) => {}
        None => add(format!("whether WAL gets into repository {name} is unknown"), "pgherd status -v"),
    }
    match (&backups.why, &backups.last, &backups.restorable) {
        (Some(why), _, _) => add(format!("what repository {name} holds is unknown: {why}"), plan),
        (None, None, _) if backups.running.is_empty() => {
            add(format!("there is no backup in repository {name}: nothing can be restored"), create);
        }
        (None, None, _) => {}
        (None, Some(_), None) => {
            add(
                format!("no backup in repository {name} has the WAL that it needs: nothing can be restored"),
                create,
            );
        }
        // One that still waits is not missing: those behind it may be stored before it.
        (None, Some(_), Some(Restorable { ends_before: Some(segment), .. }))
            if backups.archive.as_ref().is_some_and(|archive| {
                archive.waiting > 0 && archive.last_archived.as_ref() < Some(segment)
            }) => {}
        (None, Some(_), Some(Restorable { ends_before: Some(segment), to, .. })) => {
            add(format!("WAL is missing from {segment} on: nothing after {to:.0} can be restored"), create);
        }
        (None, Some(_), Some(_)) => {}
    }
    found
}

/// How long `--watch` waits between two looks.
pub const WATCH: Duration = Duration::from_secs(2);
