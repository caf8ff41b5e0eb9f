//! The standbys that answer, and where the WAL of each ends.

use futures_util::future::join_all;

use crate::db::queries::ServerRole;
use crate::ops::observe::{ClusterObserved, Doors, NodeObserved, Running};
use crate::ops::succession;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::topology::model::{Cluster, Node};

/// A standby that answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up<'a> {
    pub(super) node: &'a Node,
    pub(super) seen: &'a NodeObserved,
    pub(super) running: &'a Running,
    pub(super) timeline: TimelineId,
    pub(super) has: Lsn,
}

/// The standbys that answer, each with where its WAL ends.
pub(super) async fn standbys<'a>(
    doors: &Doors,
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    old: &Node,
) -> Vec<Up<'a>> {
    let asked = cluster.nodes.iter().filter(|node| node.name != old.name).map(async |node| {
        let seen = observed.node(&node.name)?;
        let running = seen.running()?;
        let ServerRole::Standby { .. } = running.facts.role else { return None };
        // One that does not say is left out, as if it did not answer.
        let (timeline, reached) = succession::identify(doors, cluster, node).await.ok()?;
        let has = running.facts.role.lsn().map_or(reached, |lsn| lsn.max(reached));
        Some(Up { node, seen, running, timeline, has })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Tells whether somebody has paused its replay.
pub(super) fn is_paused(up: &Up<'_>) -> bool {
    matches!(up.running.facts.role, ServerRole::Standby { replay_paused: true, .. })
}
