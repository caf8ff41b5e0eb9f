//! Who is primary: decided from what was observed, never from the file.
//!
//! Pure. What is not known is never taken for "down".

use crate::ops::observe::{Claim, ClusterObserved, Directory, Fence, NodeObserved, Running, Server};
use crate::pg::timeline::TimelineId;
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

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

/// Returns whom a standby that is made beside a living primary has its commits wait for once it leads: as declared, or nobody while its
/// primary waits for others. What a standby says is never more than what its primary waits for: when that one is gone, it is who tells.
pub fn synchronous_beside(cluster: &Cluster, node: &Node, primary: (&Node, Option<&Running>)) -> String {
    let (leads, running) = primary;
    let waits = running.map(|running| running.facts.synchronous_standby_names.as_str());
    if waits == Some(&declared::synchronous_names(cluster, leads)) {
        declared::synchronous_names(cluster, node)
    } else {
        String::new()
    }
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
                && !matches!(node.fence, Fence::Fenced(_))
                && matches!(node.directory, Directory::Cluster { standby_signal: false, .. })
        })
        .collect();
    let fenced: Vec<String> = observed.nodes.iter().filter_map(fenced).collect();
    match stopped.as_slice() {
        [] if !fenced.is_empty() => {
            Lead::Unknown { why: format!("no node is primary, and {}", fenced.join("; ")) }
        }
        [one] => match doubt(one, observed) {
            None => Lead::StoppedPrimary(one.node.clone()),
            Some(doubt) => Lead::Unknown {
                why: format!("{} is stopped and would start as a primary, but {doubt}", one.node),
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

/// Says of a fenced node that it is: what does not run and must not be started as a primary is nobody's primary, and another one may lead.
fn fenced(node: &NodeObserved) -> Option<String> {
    match (&node.fence, &node.server) {
        (_, Server::Up(running)) if !running.is_primary() => None,
        (Fence::Fenced(mark), _) => Some(format!("{} is {mark}", node.node)),
        (Fence::Open | Fence::Unknown { .. }, _) => None,
    }
}

/// Says why a stopped node may not be taken for the primary: another one is ahead of it, or a timeline cannot be read.
fn doubt(node: &NodeObserved, observed: &ClusterObserved) -> Option<String> {
    let Some(own) = timeline(node) else { return Some("its pg_control could not be read".to_owned()) };
    observed.nodes.iter().filter(|other| other.node != node.node).find_map(|other| {
        match (timeline(other), &other.directory) {
            (Some(theirs), _) if theirs > own => {
                Some(format!("{} is already on timeline {theirs}", other.node))
            }
            (Some(_), _) | (None, Directory::Missing | Directory::Empty | Directory::Foreign { .. }) => None,
            (None, Directory::Cluster { .. }) => {
                Some(format!("the pg_control of {} could not be read", other.node))
            }
            (None, Directory::Unknown { why }) => {
                Some(format!("the data directory of {} could not be read: {why}", other.node))
            }
        }
    })
}

/// Returns the timeline that a node is on: the running server's word, else the control file's.
pub fn timeline(node: &NodeObserved) -> Option<TimelineId> {
    node.running().map(|running| running.facts.timeline).or_else(|| {
        // A standby follows its primary to a new timeline long before its next restartpoint.
        node.control().map(|control| {
            let replayed = control.minimum_recovery.map(|(_, timeline)| timeline);
            replayed.map_or(control.checkpoint_timeline, |replayed| replayed.max(control.checkpoint_timeline))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::control_file::ControlFile;
    use crate::topology::claim::{self, Marker};

    const STANDBY: &str = include_str!("../../tests/data/pg_controldata/15-in-archive-recovery.txt");

    /// A stopped node of ours; `timelines` are those of its last checkpoint and of what it has replayed.
    fn stopped(name: &str, standby_signal: bool, timelines: Option<(u32, u32)>) -> NodeObserved {
        let control = timelines.map(|(checkpoint, replayed)| {
            let mut control = ControlFile::parse(STANDBY).unwrap();
            control.checkpoint_timeline = TimelineId::new(checkpoint).unwrap();
            let (lsn, _) = control.minimum_recovery.unwrap();
            control.minimum_recovery = standby_signal.then(|| (lsn, TimelineId::new(replayed).unwrap()));
            Box::new(control)
        });
        NodeObserved {
            node: name.to_owned(),
            profile: None,
            fence: Fence::Open,
            marker: Claim::Ours(Marker {
                format: claim::FORMAT,
                host: "local".to_owned(),
                data_directory: format!("/srv/{name}").into(),
                system_identifier: ControlFile::parse(STANDBY).ok().map(|control| control.system_identifier),
                operation: "7f3a".to_owned(),
                directory_existed: false,
                replaced: None,
                adopted: None,
            }),
            directory: Directory::Cluster {
                version: "15".to_owned(),
                owner: "postgres".to_owned(),
                control,
                standby_signal,
            },
            server: Server::Stopped,
            files: None,
            disk: None,
        }
    }

    fn lead_of(nodes: Vec<NodeObserved>) -> Lead {
        lead(&ClusterObserved { cluster: "inventory".to_owned(), nodes, left: Vec::new() })
    }

    fn why(lead: &Lead) -> &str {
        match lead {
            Lead::Unknown { why } => why,
            Lead::Unborn | Lead::Primary(_) | Lead::StoppedPrimary(_) | Lead::Split(_) => panic!("{lead:?}"),
        }
    }

    #[test]
    fn a_stopped_primary_whose_standbys_are_not_ahead_is_the_primary() {
        let nodes = vec![stopped("a", false, Some((1, 1))), stopped("b", true, Some((1, 1)))];
        assert_eq!(lead_of(nodes), Lead::StoppedPrimary("a".to_owned()));
    }

    #[test]
    fn a_standby_that_has_replayed_a_newer_timeline_forbids_the_old_primary() {
        let lead = lead_of(vec![stopped("a", false, Some((1, 1))), stopped("b", true, Some((1, 2)))]);
        assert!(why(&lead).ends_with("but b is already on timeline 2"), "{lead:?}");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_fine() {
        let lead = lead_of(vec![stopped("a", false, None), stopped("b", true, Some((1, 1)))]);
        assert!(why(&lead).ends_with("but its pg_control could not be read"), "{lead:?}");
        let lead = lead_of(vec![stopped("a", false, Some((1, 1))), stopped("b", true, None)]);
        assert!(why(&lead).ends_with("but the pg_control of b could not be read"), "{lead:?}");
    }
}
