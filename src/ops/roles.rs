//! Who is primary: decided from what was observed, never from the file.
//!
//! Pure. What is not known is never taken for "down".

use crate::ops::observe::{Claim, ClusterObserved, Directory, NodeObserved, Running, Server};
use crate::pg::timeline::TimelineId;

/// Who leads the cluster, as far as the observation tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// No node has a data directory of ours: the cluster is not there yet.
    Unborn,
    /// Exactly one node accepts writes.
    Primary(String),
    /// The node that was primary is stopped, and nobody has taken over.
    StoppedPrimary(String),
    /// More than one node is out of recovery.
    Split(Vec<String>),
    /// Nobody can be named.
    Unknown { why: String },
}

/// Decides who leads.
pub fn lead(observed: &ClusterObserved) -> Lead {
    let writable: Vec<&NodeObserved> =
        observed.nodes.iter().filter(|node| node.running().is_some_and(Running::is_primary)).collect();
    match writable.as_slice() {
        [one] => return Lead::Primary(one.node.clone()),
        [] => {}
        several => return Lead::Split(several.iter().map(|node| node.node.clone()).collect()),
    }
    if observed.nodes.iter().all(unborn) {
        return Lead::Unborn;
    }
    for node in &observed.nodes {
        match &node.server {
            Server::Unknown { why } => {
                return Lead::Unknown { why: format!("{} may be the primary: {why}", node.node) };
            }
            Server::Starting => return Lead::Unknown { why: format!("{} is starting up", node.node) },
            Server::Up(_) | Server::Stopped | Server::Foreign { .. } => {}
        }
    }
    stopped_primary(observed)
}

fn unborn(node: &NodeObserved) -> bool {
    // A marker without a system identifier is a directory that is still being made.
    let made = matches!(&node.marker, Claim::Ours(marker) if marker.system_identifier.is_some());
    !made
        && !matches!(node.server, Server::Up(_))
        && !matches!(node.marker, Claim::Other(_) | Claim::Unknown { .. })
}

fn stopped_primary(observed: &ClusterObserved) -> Lead {
    let stopped: Vec<&NodeObserved> = observed
        .nodes
        .iter()
        .filter(|node| {
            matches!(node.server, Server::Stopped)
                && matches!(node.marker, Claim::Ours(_))
                && matches!(node.directory, Directory::Cluster { standby_signal: false, .. })
        })
        .collect();
    match stopped.as_slice() {
        [one] => match overtaken_by(one, observed) {
            None => Lead::StoppedPrimary(one.node.clone()),
            Some((who, timeline)) => Lead::Unknown {
                why: format!(
                    "{} is stopped and would start as a primary, but {who} is already on timeline {timeline}",
                    one.node
                ),
            },
        },
        [] => Lead::Unknown { why: "no node is primary, and every data directory is a standby's".to_owned() },
        several => Lead::Unknown {
            why: format!(
                "{} are stopped and each would start as a primary",
                several.iter().map(|node| node.node.as_str()).collect::<Vec<_>>().join(", ")
            ),
        },
    }
}

/// Returns a node whose timeline is ahead of `node`'s, or whose timeline cannot be read.
fn overtaken_by(node: &NodeObserved, observed: &ClusterObserved) -> Option<(String, String)> {
    let own = timeline(node)?;
    observed.nodes.iter().filter(|other| other.node != node.node).find_map(|other| {
        timeline(other).filter(|theirs| *theirs > own).map(|theirs| (other.node.clone(), theirs.to_string()))
    })
}

/// Returns the timeline that a node is on: the running server's word, else the control file's.
pub fn timeline(node: &NodeObserved) -> Option<TimelineId> {
    node.running()
        .map(|running| running.facts.timeline)
        .or_else(|| node.control().map(|control| control.checkpoint_timeline))
}
