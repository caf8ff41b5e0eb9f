//! Which node was the primary, and whether anybody sees it.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::context::Context;
use crate::ops::failover::witness::{self, Sees, Witness};
use crate::ops::observe::{self, ClusterObserved, Depth, Doors};
use crate::ops::roles::{self, Lead};
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};

/// What one look at a cluster tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// This node answers, and takes writes.
    Leads(String),
    /// It does not answer here; somebody sees it, or it is coming back.
    Seen { why: String },
    /// Nobody sees it.
    Gone { node: String, why: String },
    /// There is no primary that could be gone.
    Unclear { why: String },
}

/// Looks from everywhere whether the primary is there.
///
/// # Errors
/// When the doors cannot be opened.
pub async fn look(context: &Context, cluster: &Cluster) -> Result<Sight> {
    let doors = Doors::look(cluster, context.places.clone(), &context.gate)?;
    let observed = observe::observe(&doors, cluster, Depth::Servers).await;
    if let Lead::Primary(name) = roles::lead(&observed) {
        return Ok(Sight::Leads(name));
    }
    let old = match old_primary(cluster, &observed) {
        Ok(old) => old,
        Err(error) => return Ok(Sight::Unclear { why: error.what().to_owned() }),
    };
    let witnesses = witness::ask(&doors, cluster, &observed, old).await;
    let told = |witness: &Witness| format!("{}: {}", witness.who, witness.told);
    let seen = witnesses.iter().find(|witness| matches!(witness.sees, Sees::Alive | Sees::Starting));
    Ok(match seen {
        Some(witness) => Sight::Seen { why: told(witness) },
        None => Sight::Gone {
            node: old.name.clone(),
            why: witnesses.iter().map(told).collect::<Vec<_>>().join("; "),
        },
    })
}

/// Finds the node that was primary: the one that the standbys were told to follow, else the only one that is no standby.
pub(super) fn old_primary<'a>(cluster: &'a Cluster, observed: &ClusterObserved) -> Result<&'a Node> {
    let what = format!("cannot fail {} over", cluster.name);
    match roles::lead(observed) {
        Lead::Primary(name) => {
            return Err(Error::refused(format!("{what}: {name} answers and takes writes"))
                .detail("A failover is for a primary that is gone. Nothing was changed.")
                .hint(format!(
                    "Hand over without an error: pgherd switchover --cluster {}; with --to NODE or --region REGION.",
                    cluster.name
                )));
        }
        Lead::Split(names) => {
            return Err(Error::refused(format!("{what}: {} accept writes", names.join(", ")))
                .detail(
                    "Which of them has the rows that count is not for pgherd to say. Nothing was changed.",
                )
                .hint("See what each of them has: pgherd status"));
        }
        Lead::Unborn => {
            return Err(Error::new(ErrorKind::NotFound, format!("{what}: it is not there yet"))
                .hint("Make it: pgherd apply"));
        }
        Lead::StoppedPrimary(_) | Lead::Unknown { .. } => {}
    }
    let stands_by = |node: &Node| {
        let seen = observed.node(&node.name).expect("every node is observed");
        seen.running().is_some() || seen.ended_as_standby()
    };
    let told: BTreeSet<&str> = cluster
        .nodes
        .iter()
        .filter_map(|node| observed.node(&node.name)?.running())
        .filter_map(|running| Some(running.settings.get("primary_conninfo")?.setting.as_str()))
        .filter_map(|conninfo| upstream(cluster, conninfo))
        .filter(|name| cluster.node(name).is_some_and(|node| !stands_by(node)))
        .collect();
    let others = cluster.nodes.iter().filter(|node| !stands_by(node)).map(|node| node.name.as_str());
    let suspects: BTreeSet<&str> = if told.is_empty() { others.collect() } else { told };
    let names = || suspects.iter().copied().collect::<Vec<_>>().join(", ");
    match suspects.iter().next() {
        Some(name) if suspects.len() == 1 => Ok(cluster.node(name).expect("its name was taken from there")),
        Some(_) => Err(Error::refused(format!("{what}: each of {} may be its primary", names()))
            .detail("None of them answers as a standby. Nothing was changed.")
            .hint("See what each node says: pgherd status -v")),
        None => {
            Err(Error::refused(format!("{what}: every node is a standby, and none follows another primary"))
                .detail("A role change may have ended in its middle. Nothing was changed.")
                .hint("See what is unfinished: pgherd operation list"))
        }
    }
}

/// Finds the node that a `primary_conninfo` leads to.
fn upstream<'a>(cluster: &'a Cluster, conninfo: &str) -> Option<&'a str> {
    let node = cluster.nodes.iter().find(|node| {
        conninfo.starts_with(&format!("{} port={} ", declared::server_of(cluster, node), node.port))
    })?;
    Some(&node.name)
}
