//! Why a failover cannot be done: what the witnesses, the nodes and the repository say against it.

use std::time::Duration;

use crate::error::Error;
use crate::ops::context::Context;
use crate::ops::failover::standbys::{Up, is_paused};
use crate::ops::failover::witness::{Sees, Witness};
use crate::ops::node::{self, NodeDoor};
use crate::ops::observe::{Claim, Doors, NodeObserved};
use crate::repo::primary;
use crate::topology::model::{Cluster, Node};

/// How long the repository may take to say who is primary: it never holds a failover up.
const RECORD: Duration = Duration::from_secs(2);

/// A primary that somebody sees is not gone, and one that recovers is coming back.
pub(super) fn of_witnesses(cluster: &Cluster, old: &Node, witnesses: &[Witness]) -> Vec<Error> {
    let name = cluster.full_name(&old.name);
    let what = format!("cannot fail {} over", cluster.name);
    let told = |sees: Sees| {
        let told = witnesses.iter().filter(|witness| witness.sees == sees);
        told.map(|witness| format!("{} {}", witness.who, witness.told)).collect::<Vec<_>>()
    };
    let (alive, starting) = (told(Sees::Alive), told(Sees::Starting));
    if !alive.is_empty() {
        return vec![
            Error::refused(format!("{what}: {name} does not answer here, and is seen alive from elsewhere"))
                .detail(format!("{}. Nothing was changed.", alive.join("; ")))
                .hint(format!(
                    "Mend the way to it, or shut it out and ask again: pgherd fence {} --cluster {}",
                    old.name, cluster.name
                )),
        ];
    }
    if !starting.is_empty() {
        return vec![
            Error::refused(format!("{what}: {name} is coming back"))
                .detail(format!("{}. Nothing was changed.", starting.join("; ")))
                .hint(format!(
                    "Wait for it: pgherd status --watch. If that takes too long, shut it out and ask again: pgherd fence {} --cluster {}",
                    old.name, cluster.name
                )),
        ];
    }
    Vec::new()
}

/// What the nodes themselves say is in the way.
pub(super) fn of_candidate(
    cluster: &Cluster,
    to: &Up<'_>,
    old: &NodeObserved,
    standbys: &[Up<'_>],
) -> Vec<Error> {
    let name = cluster.full_name(&to.node.name);
    let cannot = |why: &str| {
        Error::refused(format!("cannot fail over to {name}: {why}")).detail("Nothing was changed.")
    };
    let mut found = Vec::new();
    if !matches!(to.seen.marker, Claim::Ours(_)) {
        found
            .push(cannot(&format!("no marker of {name} claims {}", to.node.data_directory.display())).hint(
                "pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE",
            ));
    }
    if is_paused(to) {
        found.push(cannot("replay is paused").hint("Go on there: SELECT pg_wal_replay_resume()"));
    }
    for other in standbys {
        let full = cluster.full_name(&other.node.name);
        if other.running.facts.system_identifier != to.running.facts.system_identifier {
            found.push(
                cannot(&format!("{full} belongs to another system")).hint("See both: pgherd status -v"),
            );
        } else if other.timeline > to.timeline {
            found.push(
                cannot(&format!("it is on timeline {}, {full} on {}", to.timeline, other.timeline)).hint(
                    format!("The later one may have rows that {name} never had: name {}.", other.node.name),
                ),
            );
        }
    }
    if let Some(control) = old.control() {
        if control.system_identifier != to.running.facts.system_identifier {
            found.push(
                cannot("the old primary belonged to another system").hint("See both: pgherd status -v"),
            );
        } else if control.checkpoint_timeline > to.timeline {
            found.push(
                cannot(&format!(
                    "the old primary was on timeline {}, and it is on {}",
                    control.checkpoint_timeline, to.timeline
                ))
                .hint("It has nothing of what was written since. Start the old primary: pgherd apply"),
            );
        }
    }
    found
}

/// What the repository says of who is primary. One that does not answer holds nothing up.
pub(super) async fn of_record(
    context: &Context,
    doors: &Doors,
    cluster: &Cluster,
    old: &Node,
    to: &Up<'_>,
) -> Option<Error> {
    let backups = cluster.backups.as_ref()?;
    let read = async {
        let door = NodeDoor::if_installed(doors, &to.node.host, &context.build).await?;
        let repo = node::repository(&door, &backups.repository).await?;
        primary::read(&*repo, &cluster.name).await.map_err(Error::from)
    };
    let record = match tokio::time::timeout(RECORD, read).await {
        Ok(Ok(record)) => record?,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the record of who is primary was not read");
            return None;
        }
        Err(_) => {
            tracing::warn!("the record of who is primary was not read in time");
            return None;
        }
    };
    let ours = record.system_identifier == to.running.facts.system_identifier;
    let name = cluster.full_name(&to.node.name);
    if !ours || record.timeline <= to.timeline {
        return None;
    }
    Some(
        Error::refused(format!("cannot fail over to {name}: it missed the last change of the primary"))
            .detail(format!(
                "The record says that {} is primary on timeline {} since {:.0}; {name} is on timeline {}, behind {}. Nothing was changed.",
                record.node, record.timeline, record.since, to.timeline, old.name
            ))
            .hint("See what each node has: pgherd status -v"),
    )
}
