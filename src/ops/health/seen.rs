//! The look: everything that the checks of a cluster need, each fact known or with the reason why not.
//!
//! Nodes, poolers and the repository side by side, each within its own time.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::asked::{Asked, Why};
use super::herd::{self, HerdSeen, NodeFacts};
use crate::db::health::{self as ask, Asker, Connections};
use crate::db::queries::{self, Archiver, ServerFacts};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::ops::kept::{self, Kept};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors, NodeObserved, PATIENCE};
use crate::ops::pooler::{self, PoolerSeen};
use crate::ops::roles::{self, Lead};
use crate::topology::model::{Cluster, Herd, Node};

/// Everything that was seen of one cluster.
#[derive(Debug)]
pub struct Seen<'a> {
    pub cluster: &'a Cluster,
    pub at: Timestamp,
    pub observed: ClusterObserved,
    pub lead: Lead,
    /// In the order of the file.
    pub nodes: Vec<NodeSeen>,
    /// One of each process, in the order of the file.
    pub poolers: Vec<PoolerSeen>,
    /// `None` where no backups are declared.
    pub kept: Option<Asked<Kept>>,
    pub herd: HerdSeen,
}

/// What a node's server told beyond what `status` shows.
#[derive(Debug, Clone)]
pub struct NodeSeen {
    pub connections: Asked<Connections>,
    pub archiver: Asked<Archiver>,
    pub facts: NodeFacts,
}

impl NodeSeen {
    /// Returns what is known of a node that nobody asked: nothing, for this reason.
    fn without(why: &Why) -> Self {
        Self { connections: Err(why.clone()), archiver: Err(why.clone()), facts: NodeFacts::without(why) }
    }
}

impl<'a> Seen<'a> {
    /// Returns the nodes with what was seen of each, in the order of the file.
    pub fn each(&self) -> impl Iterator<Item = (&'a Node, &NodeObserved, &NodeSeen)> {
        let seen = self.observed.nodes.iter().zip(&self.nodes);
        self.cluster.nodes.iter().zip(seen).map(|(node, (observed, seen))| (node, observed, seen))
    }

    /// Returns the node that accepts writes, if exactly one does.
    pub fn primary(&self) -> Option<&NodeObserved> {
        match &self.lead {
            Lead::Primary(name) => self.observed.node(name),
            Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
        }
    }
}

/// Looks at one cluster.
///
/// # Errors
/// When a door cannot be opened at all.
pub async fn look<'a>(context: &Context, herd: &Herd, cluster: &'a Cluster) -> Result<Seen<'a>> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let (observed, poolers, kept) = tokio::join!(
        observe::observe(&doors, cluster, Depth::Servers),
        pooler::status::look(&doors, cluster),
        repository(&doors, context, cluster),
    );
    let nodes =
        cluster.nodes.iter().zip(&observed.nodes).map(|(node, seen)| ask(&doors, cluster, node, seen));
    let nodes = join_all(nodes).await;
    let lead = roles::lead(&observed);
    let primary = match &lead {
        Lead::Primary(name) => observed.node(name),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    let herd = herd::look(context, &doors, herd, cluster, &observed, primary, &poolers).await;
    Ok(Seen { cluster, at: Timestamp::now(), observed, lead, nodes, poolers, kept, herd })
}

async fn ask(doors: &Doors, cluster: &Cluster, node: &Node, observed: &NodeObserved) -> NodeSeen {
    let Some(running) = observed.running() else { return NodeSeen::without(&Why::NotUp) };
    let connector = doors.connector.clone().timeouts(PATIENCE, PATIENCE);
    let asked = async {
        let conn = connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
        let asker = ask::asker(&conn).await?;
        Ok((conn, asker))
    };
    match asked.await {
        Ok((conn, asker)) => questions(&conn, &asker, &running.facts).await,
        Err(error) => NodeSeen::without(&why(error)),
    }
}

async fn questions(conn: &Conn, asker: &Asker, facts: &ServerFacts) -> NodeSeen {
    let needs = NeedsMonitor(asker);
    NodeSeen {
        connections: needs.ask(ask::connections(conn)).await,
        archiver: needs.ask(queries::archiver(conn)).await,
        facts: NodeFacts::ask(conn, facts).await,
    }
}

/// Asks what only a member of pg_monitor sees. Without it some views answer with NULL instead of an error.
struct NeedsMonitor<'a>(&'a Asker);

impl NeedsMonitor<'_> {
    async fn ask<T>(&self, question: impl Future<Output = std::result::Result<T, DbError>>) -> Asked<T> {
        if !self.0.monitor {
            let role = self.0.role.clone();
            let grant = format!("GRANT pg_monitor TO {}", crate::pg::ident::quote_identifier(&role));
            return Err(Why::NotGranted { role, grant });
        }
        question.await.map_err(why)
    }
}

fn why(error: DbError) -> Why {
    Why::Failed(error.to_string())
}

async fn repository(doors: &Doors, context: &Context, cluster: &Cluster) -> Option<Asked<Kept>> {
    let repository = &cluster.backups.as_ref()?.repository;
    let look = kept::look(doors, &context.build, cluster, repository);
    Some(told(tokio::time::timeout(WHOLE, look).await))
}

/// How long a look that is made of several calls may take.
const WHOLE: Duration = PATIENCE.saturating_mul(2);

fn told<T>(look: std::result::Result<Result<T>, tokio::time::error::Elapsed>) -> Asked<T> {
    let one_line = |error: &Error| match error.detail_text() {
        Some(detail) => format!("{}: {}", error.what(), detail.trim_end_matches('.')),
        None => error.what().to_owned(),
    };
    match look {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(error)) => Err(Why::Failed(one_line(&error))),
        Err(_) => Err(Why::Failed(format!("it did not answer within {} s", WHOLE.as_secs()))),
    }
}
