//! Each node by itself: whether its server answers, is of this cluster, and has room.

use super::super::report::{Finding, Measured, Status, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, command, limits, to_f64};
use crate::ops::observe::{Claim, NodeObserved, Server};
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Node;
use crate::units::ByteCount;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    seen.each()
        .flat_map(|(node, observed, asked)| {
            [
                Some(connect(seen, node, observed)),
                system(seen, node, observed),
                Some(connections(seen, node, asked)),
                Some(disk(seen, node, observed)),
            ]
        })
        .flatten()
        .collect()
}

fn connect(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Connect };
    let (status, text) = match &observed.server {
        Server::Up(running) => {
            let up = running.facts.now.duration_since(running.facts.started).as_secs_f64();
            (Status::Ok, format!("PostgreSQL {}, up {}", running.facts.version, Measure::Time.written(up)))
        }
        Server::Starting => (Status::Warning, "it is starting up or shutting down".to_owned()),
        Server::Stopped => (Status::Critical, "it is stopped".to_owned()),
        Server::Foreign { what } => (Status::Critical, what.clone()),
        Server::Unknown { why } => (Status::Unknown, why.clone()),
    };
    of.says(Subject::Node(node.name.clone()), status, text).next(command(seen.cluster, "status -v"))
}

/// The system identifier that the node was made with, and the one that its server has (facts/health.md T3).
fn system(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Option<Finding> {
    let of = Of { cluster: seen.cluster, check: Check::SystemIdentifier };
    let subject = Subject::Node(node.name.clone());
    let Claim::Ours(marker) = &observed.marker else { return None };
    let made = marker.system_identifier?;
    let found = observed.running().map(|running| running.facts.system_identifier);
    let found = found.or_else(|| observed.control().map(|control| control.system_identifier))?;
    Some(if found == made {
        of.says(subject, Status::Ok, format!("{found}"))
    } else {
        of.says(subject, Status::Critical, format!("{found}; the node was made with {made}"))
            .next(command(seen.cluster, "plan"))
    })
}

fn connections(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Connections };
    let subject = Subject::Node(node.name.clone());
    let connections = match &asked.connections {
        Ok(connections) => connections,
        Err(why) => return of.unknown(subject, why),
    };
    let (clients, usable) = (f64::from(connections.clients), f64::from(connections.usable.max(1)));
    let share = 100.0 * clients / usable;
    let text = format!(
        "{} of {} connections ({})",
        connections.clients,
        connections.usable,
        Measure::Share.written(share)
    );
    of.measures(subject, share, limits(seen.cluster, Some(node), Check::Connections), text)
        .with(Measured {
            name: "clients".to_owned(),
            value: clients,
            measure: Measure::Count,
            limits: None,
            max: Some(usable),
        })
        .next("SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 DESC")
}

fn disk(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Disk };
    let subject = Subject::Node(node.name.clone());
    let Some(disk) = observed.disk.filter(|disk| disk.total.0 > 0) else {
        return of.says(subject, Status::Unknown, "the size of its file system is not known");
    };
    let (total, free) = (to_f64(disk.total.0), to_f64(disk.free.0));
    let share = 100.0 * (total - free) / total;
    let text = format!("{} full, {} free", Measure::Share.written(share), ByteCount(disk.free.0));
    of.measures(subject, share, limits(seen.cluster, Some(node), Check::Disk), text)
        .with(Measured {
            name: "disk_free".to_owned(),
            value: free,
            measure: Measure::Size,
            limits: None,
            max: Some(total),
        })
        .next("free space, or grow the disk")
}
