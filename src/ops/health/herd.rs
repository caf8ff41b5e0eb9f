//! The look at what only the topology makes sense of: the primary's history, drills, certificates, unfinished operations.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::asked::{Asked, Why};
use crate::db::Conn;
use crate::db::health::databases;
use crate::db::health::herd::{self as ask, Collation, WalGenerated};
use crate::db::queries::{ServerFacts, ServerRole};
use crate::engine::shared_lock::Held;
use crate::ops::certificate::Holder;
use crate::ops::context::Context;
use crate::ops::drill::{self, Verdict};
use crate::ops::observe::{ClusterObserved, Doors, NodeObserved};
use crate::ops::pooler::{PoolerProcess, PoolerSeen};
use crate::ops::schedule::{Jobs, Listed, Purpose};
use crate::ops::shelf::{Shelf, ShelfError};
use crate::ops::status::{self, OperationStatus, TlsStatus};
use crate::pg::history::TimelineHistory;
use crate::pg::ident::quote_identifier;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::repo::layout::ClusterKeys;
use crate::repo::seal;
use crate::topology::model::{Cluster, Herd, Repository};

/// What a node tells that is compared with the others.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// By name.
    pub five: Asked<BTreeMap<String, i64>>,
    pub wal: Asked<WalGenerated>,
    pub logins: Asked<Vec<(String, Timestamp)>>,
    /// Of all databases, in bytes; `None` for a standby, which has the primary's.
    pub size: Option<Asked<u64>>,
    /// `None` before PostgreSQL 15, which does not know.
    pub collations: Option<Asked<Vec<Collation>>>,
}

impl NodeFacts {
    /// Returns what is known of a node that nobody asked.
    pub fn without(why: &Why) -> Self {
        Self {
            five: Err(why.clone()),
            wal: Err(why.clone()),
            logins: Err(why.clone()),
            size: Some(Err(why.clone())),
            collations: Some(Err(why.clone())),
        }
    }

    /// Asks a server; every role may see it.
    pub async fn ask(conn: &Conn, facts: &ServerFacts) -> Self {
        let why = |error: crate::db::DbError| Why::Failed(error.to_string());
        Self {
            five: ask::five(conn).await.map(|rows| rows.into_iter().collect()).map_err(why),
            wal: ask::wal_generated(conn).await.map_err(why),
            logins: ask::ending_logins(conn).await.map_err(why),
            size: match facts.role {
                ServerRole::Standby { .. } => None,
                ServerRole::Primary { .. } => Some(size(conn).await),
            },
            collations: match facts.version.major {
                ..15 => None,
                _ => Some(ask::collations(conn).await.map_err(why)),
            },
        }
    }
}

async fn size(conn: &Conn) -> Asked<u64> {
    let size = databases::size(conn).await.map_err(|error| Why::Failed(error.to_string()))?;
    let grant = format!("GRANT pg_monitor TO {}", quote_identifier(&size.role));
    size.bytes.ok_or(Why::NotGranted { role: size.role, grant })
}

/// What was seen of the cluster as a whole.
#[derive(Debug)]
pub struct HerdSeen {
    /// Of the primary; `None` while there is none.
    pub history: Option<Asked<TimelineHistory>>,
    /// The last drill, and the last one that passed; `None` where none is declared.
    pub drills: Option<Asked<Drills>>,
    /// What runs by itself, on this station.
    pub jobs: Asked<Vec<Listed>>,
    /// `None` where no TLS is declared.
    pub tls: Option<TlsStatus>,
    pub operations: Asked<Vec<OperationStatus>>,
    /// The lock in the repository; `None` where the cluster has none, or nobody holds it.
    pub lock: Asked<Option<LockSeen>>,
    /// What repositories lack because they were away, as each node wrote it down.
    pub owed: Asked<Vec<Owed>>,
    /// By host.
    pub regions: BTreeMap<String, String>,
}

/// WAL of a node that one of its repositories lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// The node's name within the cluster.
    pub node: String,
    pub repository: String,
    pub files: u64,
}

/// Who holds the lock of a cluster in its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockSeen {
    pub by: String,
    pub since: Timestamp,
    pub operation: Option<String>,
    /// Whether the holder may still do something; else it left the operation behind.
    pub lives: bool,
}

/// What the reports of drills say.
#[derive(Debug, Clone, Default)]
pub struct Drills {
    pub last: Option<Drill>,
    pub passed: Option<Drill>,
}

/// One drill.
#[derive(Debug, Clone)]
pub struct Drill {
    pub id: String,
    pub ended: Timestamp,
    pub verdict: Verdict,
    /// How long the restore took, if it ended.
    pub rto_seconds: Option<f64>,
}

/// Looks at it, after the nodes and poolers.
pub async fn look(
    context: &Context,
    doors: &Doors,
    herd: &Herd,
    cluster: &Cluster,
    observed: &ClusterObserved,
    primary: Option<&NodeObserved>,
    poolers: &[PoolerSeen],
) -> HerdSeen {
    let runs = |holder: &Holder<'_>| match holder {
        Holder::Node(node) => observed.node(&node.name).is_some_and(|seen| seen.running().is_some()),
        Holder::Pooler(host) => poolers.iter().any(|seen| {
            let observed = seen.observed.as_ref().ok();
            seen.host == *host
                && observed.is_some_and(|seen| matches!(seen.process, PoolerProcess::Running { .. }))
        }),
    };
    let history = async {
        let primary = primary?;
        let timeline = primary.running()?.facts.timeline;
        Some(history(doors, cluster, &primary.node, timeline).await)
    };
    let (history, tls, lock, owed) = tokio::join!(
        history,
        status::tls(doors, cluster, runs),
        lock(context, doors, cluster, primary),
        owed(doors, cluster)
    );
    HerdSeen {
        history,
        drills: cluster.drills.as_ref().map(|_| drills(context, cluster)),
        jobs: jobs(context, herd, cluster).await.map_err(|error| Why::Failed(error.what().to_owned())),
        tls,
        operations: status::operations(context, cluster)
            .map_err(|error| Why::Failed(error.what().to_owned())),
        lock,
        owed,
        regions: herd.hosts.iter().map(|host| (host.name.clone(), host.region.clone())).collect(),
    }
}

async fn jobs(context: &Context, herd: &Herd, cluster: &Cluster) -> crate::error::Result<Vec<Listed>> {
    Jobs::open(context, herd, Purpose::Look).await?.list_to_judge(&cluster.name).await
}

/// Counts what each node has written down as owed to a repository.
async fn owed(doors: &Doors, cluster: &Cluster) -> Asked<Vec<Owed>> {
    let mut found = Vec::new();
    let Some(backups) = cluster.backups.as_ref().filter(|backups| !backups.copies.is_empty()) else {
        return Ok(found);
    };
    for node in &cluster.nodes {
        let spool = doors.places(&node.host).node(&cluster.full_name(&node.name)).spool.join("owed");
        for Repository { name, .. } in backups.repositories() {
            let listed = doors.host(&node.host).list(&spool.join(name)).await;
            let names = listed.map_err(|error| Why::Failed(error.to_string()))?.unwrap_or_default();
            let files = names.iter().filter(|name| name.parse::<WalFile>().is_ok()).count() as u64;
            if files > 0 {
                found.push(Owed { node: node.name.clone(), repository: name.clone(), files });
            }
        }
    }
    Ok(found)
}

/// Reads who holds the lock in the repository, from the host of the primary, else of the preferred node.
async fn lock(
    context: &Context,
    doors: &Doors,
    cluster: &Cluster,
    primary: Option<&NodeObserved>,
) -> Asked<Option<LockSeen>> {
    let Some(backups) = &cluster.backups else { return Ok(None) };
    let leads =
        primary.and_then(|primary| cluster.node(&primary.node)).unwrap_or_else(|| cluster.preferred());
    let failed = |why: String| Why::Failed(why);
    let read = async {
        let shelf = Shelf::of(doors, &leads.host, &backups.repository, &context.build).await?;
        shelf.read(&ClusterKeys::new(&cluster.name).lock()).await
    };
    let bytes = read.await.map_err(|error: ShelfError| failed(error.to_string()))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let held: Held = seal::read_document(&bytes)
        .map_err(|error| failed(format!("the lock in repository {}: {error}", backups.repository.name)))?;
    let lives = held.lives();
    if !lives && held.operation.is_none() {
        return Ok(None);
    }
    Ok(Some(LockSeen {
        by: held.by.to_string(),
        since: held.since,
        operation: held.operation.map(|operation| operation.to_string()),
        lives,
    }))
}

/// Reads where the primary's timelines left each other, from its own pg_wal. Timeline 1 has no ancestors and no file.
async fn history(
    doors: &Doors,
    cluster: &Cluster,
    node: &str,
    timeline: TimelineId,
) -> Asked<TimelineHistory> {
    let node = cluster.node(node).expect("what is observed is declared");
    let name = WalFile::TimelineHistory(timeline).to_string();
    let path = node.data_directory.join("pg_wal").join(&name);
    let text = if timeline.as_u32() == 1 {
        String::new()
    } else {
        match doors.host(&node.host).read(&path).await {
            Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(None) => return Err(Why::Failed(format!("{} is not there", path.display()))),
            Err(error) => return Err(Why::Failed(error.to_string())),
        }
    };
    TimelineHistory::parse(timeline, &text).map_err(|error| Why::Failed(format!("{name}: {error}")))
}

fn drills(context: &Context, cluster: &Cluster) -> Asked<Drills> {
    let kept =
        drill::list(&context.places, &cluster.name).map_err(|error| Why::Failed(error.what().to_owned()))?;
    let mut drills = Drills::default();
    for report in kept.into_iter().filter_map(|kept| kept.report.ok()) {
        let drill = Drill {
            id: report.id,
            ended: report.ended,
            verdict: report.verdict,
            rto_seconds: report.rto_seconds,
        };
        if drill.verdict == Verdict::Passed {
            drills.passed = Some(drill.clone());
        }
        drills.last = Some(drill);
    }
    Ok(drills)
}
