//! The nodes of a cluster whose primary answers, and which of its standbys stream from it.

use crate::db::queries::ServerRole;
use crate::ops::observe::{ClusterObserved, NodeObserved, Running};
use crate::topology::model::{Cluster, Node};

/// A node that answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up<'a> {
    pub(super) node: &'a Node,
    pub(super) running: &'a Running,
}

/// The standbys that stream from the primary itself.
pub(super) fn standbys<'a>(
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    from: &'a Up<'a>,
) -> impl Iterator<Item = (&'a Node, &'a Running)> {
    cluster.nodes.iter().filter_map(move |node| {
        let running = observed.node(&node.name).and_then(NodeObserved::running)?;
        streams_from(cluster, node, running, from).then_some((node, running))
    })
}

/// Tells whether a node streams from the primary itself.
pub(super) fn streams_from(cluster: &Cluster, node: &Node, running: &Running, from: &Up<'_>) -> bool {
    let receives = matches!(
        &running.facts.role,
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming"
    );
    let name = cluster.full_name(&node.name);
    receives
        && from
            .running
            .senders
            .iter()
            .any(|sender| sender.application_name == name && sender.state == "streaming")
}
