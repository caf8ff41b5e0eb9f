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
                Some(uptime(seen, node, asked)),
                Some(crash(seen, node, asked)),
                Some(clock(seen, node, asked)),
                Some(connections(seen, node, asked)),
                Some(disk(seen, node, observed)),
            ]
        })
        .flatten()
        .collect()
}

fn connect(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of::new(seen.cluster, Check::Connect);
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
    let of = Of::new(seen.cluster, Check::SystemIdentifier);
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

/// A restart is nobody's alarm unless the file says so: it is what an operator does.
fn uptime(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Uptime);
    of.told(Subject::Node(node.name.clone()), &asked.vitals, |subject, vitals| {
        let up = vitals.now.duration_since(vitals.started).as_secs_f64().max(0.0);
        let text = format!("up {}", Measure::Time.written(up));
        of.measures(subject, up, limits(seen.cluster, Some(node), Check::Uptime), text)
            .next(see_log(&node.name, &node.host))
    })
}

/// A crash of one process restarts them all but the postmaster, whose age then tells nothing (facts/health.md A1 row 4).
fn crash(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    /// The checkpointer starts when the postmaster has read its files, and PostgreSQL 14 starts it after crash recovery: that is one, too.
    const WITH_IT: f64 = 10.0;
    let of = Of::new(seen.cluster, Check::Crash);
    of.told(Subject::Node(node.name.clone()), &asked.vitals, |subject, vitals| {
        let Some(children) = vitals.checkpointer_started else {
            return of.says(subject, Status::Unknown, "its checkpointer does not run");
        };
        if children.duration_since(vitals.started).as_secs_f64() < WITH_IT {
            return of.says(subject, Status::Ok, "no process has crashed since it started");
        }
        let ago = vitals.now.duration_since(children).as_secs_f64().max(0.0);
        let text = format!("a process crashed, and all were started anew {} ago", Measure::Time.written(ago));
        of.measures(subject, ago, limits(seen.cluster, Some(node), Check::Crash), text)
            .next(see_log(&node.name, &node.host))
    })
}

/// What a server's clock is wrong by makes every number of seconds wrong that two of them are asked for. The way costs time, of which nobody
/// knows how much each direction took: half of it may be no difference at all.
fn clock(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Clock);
    of.told(Subject::Node(node.name.clone()), &asked.clock, |subject, clock| {
        let off = (clock.ahead_seconds.abs() - clock.half_trip_seconds).max(0.0);
        let side = if clock.ahead_seconds < 0.0 { "behind" } else { "ahead of" };
        let text = format!("its clock is {} {side} ours", Measure::Time.written(off));
        of.measures(subject, off, limits(seen.cluster, Some(node), Check::Clock), text)
            .next(format!("see what keeps the time of host {}: timedatectl", node.host))
    })
}

fn see_log(node: &str, host: &str) -> String {
    format!("see the log of {node} on host {host}")
}

fn connections(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Connections);
    of.told(Subject::Node(node.name.clone()), &asked.vitals, |subject, vitals| {
        let (clients, usable) = (to_f64(vitals.clients), to_f64(vitals.usable.max(1)));
        let share = 100.0 * clients / usable;
        let text = format!(
            "{} of {} connections ({})",
            vitals.clients,
            vitals.usable,
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
    })
}

fn disk(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of::new(seen.cluster, Check::Disk);
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
