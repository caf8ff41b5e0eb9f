//! Nodes beside each other: timelines, settings, versions, collations, and whether somebody could take over.

use std::collections::BTreeMap;

use super::super::asked::Why;
use super::super::report::{Finding, Status, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::replication::hidden;
use super::{Of, command};
use crate::db::queries::ServerRole;
use crate::ops::observe::{Fence, NodeObserved, Running};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::version::PgVersion;
use crate::topology::checks::Check;
use crate::topology::model::{Node, Promote};

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (node, observed, asked) in seen.each() {
        if seen.primary().is_some_and(|primary| primary.node == node.name) {
            continue;
        }
        found.push(divergence(seen, node, observed));
        found.push(settings(seen, node, asked));
    }
    found.extend(version(seen));
    found.extend(seen.each().filter_map(|(node, _, asked)| collation(seen, node, asked)));
    found.extend(failover(seen));
    found.extend(fenced(seen));
    found
}

/// A node that is past the point where the primary left its timeline has WAL that the primary never had: it can follow only after
/// pg_rewind, and what it alone has is lost (facts/health.md T2).
fn divergence(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of::new(seen.cluster, Check::Divergence);
    let says = |status, text: String| of.says(Subject::Node(node.name.clone()), status, text);
    let history = match &seen.herd.history {
        Some(Ok(history)) => history,
        Some(Err(why)) => return of.unknown(Subject::Node(node.name.clone()), why),
        None => {
            return Finding {
                follows: Some(Check::Primary),
                ..says(Status::Unknown, "the primary is not known".to_owned())
            };
        }
    };
    let positions = positions(observed);
    let Some(newest) = positions.iter().max() else {
        return Finding {
            follows: Some(Check::Connect),
            ..says(Status::Unknown, "where its WAL ends is not known".to_owned())
        };
    };
    let mut forks = positions.iter().filter_map(|position| Some((fork(history, *position)?, *position)));
    let Some((fork, (timeline, reached))) = forks.next() else {
        return says(Status::Ok, format!("timeline {} is the primary's", newest.0));
    };
    match fork {
        Fork::Ahead => says(
            Status::Critical,
            format!("it is on timeline {timeline}, the primary on {}: who was promoted last?", history.timeline()),
        )
        .next("compare both before anything is stopped: pgherd status -v"),
        Fork::At(switchpoint) => says(
            Status::Critical,
            format!(
                "it has WAL to {reached} of timeline {timeline}, which the primary left at {switchpoint}: {} that only it has",
                switchpoint.lag_behind(reached)
            ),
        )
        .next(format!(
            "save what only it has; then pgherd destroy {} --node {} and pgherd apply",
            seen.cluster.name, node.name
        )),
        Fork::Stranger => says(
            Status::Critical,
            format!("timeline {timeline} is not in the history of the primary's timeline {}", history.timeline()),
        )
        .next(command(seen.cluster, "status -v")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fork {
    /// It is on a newer timeline than the primary.
    Ahead,
    /// It went on after the primary had left its timeline here.
    At(Lsn),
    /// Its timeline is none of the primary's.
    Stranger,
}

fn fork(history: &TimelineHistory, (timeline, reached): Position) -> Option<Fork> {
    if history.is_ancestor(timeline, reached) {
        return None;
    }
    if timeline > history.timeline() {
        return Some(Fork::Ahead);
    }
    let left = history.ancestors().iter().find(|ancestor| ancestor.timeline == timeline);
    Some(left.map_or(Fork::Stranger, |left| Fork::At(left.switchpoint)))
}

/// Up to where a node has WAL, and of which timeline.
type Position = (TimelineId, Lsn);

/// Finds positions of which timeline and LSN belong together. What a standby has replayed does not: its timeline is told by pg_control,
/// which is behind by a promotion until the next restartpoint.
fn positions(observed: &NodeObserved) -> Vec<Position> {
    let mut found: Vec<Position> = Vec::new();
    if let Some(running) = observed.running() {
        match &running.facts.role {
            ServerRole::Primary { written_lsn } => found.push((running.facts.timeline, *written_lsn)),
            ServerRole::Standby { received_lsn, receiver, .. } => {
                let timeline = receiver.as_ref().and_then(|receiver| receiver.received_timeline);
                found.extend(timeline.zip(*received_lsn));
            }
        }
    }
    if let Some(control) = observed.control() {
        found.push((control.checkpoint_timeline, control.checkpoint));
        found.extend(control.minimum_recovery.map(|(lsn, timeline)| (timeline, lsn)));
    }
    found
}

/// A standby whose value of one of five settings is below the primary's does not start again, or pauses replay while it runs
/// (PostgreSQL docs, "Hot Standby", "Administrator's Overview").
fn settings(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Settings);
    let subject = Subject::Node(node.name.clone());
    let own = match &asked.facts.five {
        Ok(own) => own,
        Err(why) => return of.unknown(subject, why),
    };
    let Some(Ok(wanted)) = primary_facts(seen).map(|facts| &facts.facts.five) else {
        return Finding {
            follows: Some(Check::Primary),
            ..of.says(subject, Status::Unknown, "the primary is not known")
        };
    };
    let low: Vec<String> = wanted
        .iter()
        .filter_map(|(name, value)| {
            let own = own.get(name).filter(|own| *own < value)?;
            Some(format!("{name} is {own}, on the primary {value}"))
        })
        .collect();
    if low.is_empty() {
        return of.says(subject, Status::Ok, "what must be as high as on the primary is");
    }
    of.says(subject, Status::Critical, format!("{}: it does not start again", low.join("; ")))
        .next(command(seen.cluster, "plan"))
}

fn primary_facts<'s>(seen: &'s Seen<'_>) -> Option<&'s NodeSeen> {
    let primary = seen.primary()?;
    seen.each().find(|(node, _, _)| node.name == primary.node).map(|(_, _, asked)| asked)
}

/// All nodes run the same version: a physical copy needs the same major one, and a minor one that is behind lacks repairs.
fn version(seen: &Seen<'_>) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Version);
    let mut versions: BTreeMap<PgVersion, Vec<&str>> = BTreeMap::new();
    for (node, observed, _) in seen.each() {
        if let Some(running) = observed.running() {
            versions.entry(running.facts.version).or_default().push(&node.name);
        }
    }
    let words: Vec<String> =
        versions.iter().rev().map(|(version, nodes)| format!("{version} on {}", nodes.join(", "))).collect();
    let declared = seen.cluster.postgres.version;
    let foreign = versions.keys().any(|version| version.major != declared);
    let status = match (foreign, versions.len()) {
        (_, 0) => return None,
        (true, _) => Status::Critical,
        (false, 1) => Status::Ok,
        (false, _) => Status::Warning,
    };
    let text =
        if foreign { format!("{}; {declared} is declared", words.join("; ")) } else { words.join("; ") };
    Some(
        of.says(Subject::Cluster, status, text)
            .next("install the same packages on every host, standbys first"),
    )
}

/// An index on text that was sorted by another version of the collation library finds rows no more.
fn collation(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Collation);
    let subject = Subject::Node(node.name.clone());
    let collations = match asked.facts.collations.as_ref()? {
        Ok(collations) => collations,
        Err(why) => return Some(of.unknown(subject, why)),
    };
    let moved: Vec<String> = collations
        .iter()
        .filter_map(|row| {
            let has = match &row.actual {
                Some(actual) if *actual == row.recorded => return None,
                Some(actual) => format!("the host has {actual}"),
                None => "the host tells none".to_owned(),
            };
            Some(format!("{} was built with {} and {has}", row.database, row.recorded))
        })
        .collect();
    Some(if moved.is_empty() {
        of.says(subject, Status::Ok, "the host's collations are those that the databases were built with")
    } else {
        of.says(subject, Status::Warning, moved.join("; "))
            .next("REINDEX what sorts text, then ALTER DATABASE … REFRESH COLLATION VERSION")
    })
}

/// Who is fenced stays out of its cluster until somebody brings it back, and nobody else does.
fn fenced(seen: &Seen<'_>) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Fenced);
    let mut found = Vec::new();
    let mut hidden = false;
    for (node, observed, _) in seen.each() {
        let subject = Subject::Node(node.name.clone());
        match (&observed.fence, observed.running()) {
            (Fence::Open, _) => {}
            (Fence::Unknown { .. }, _) => hidden = true,
            (Fence::Fenced(mark), Some(running)) if running.is_primary() => {
                let text = format!("it accepts writes although it is {mark}");
                found.push(
                    of.says(subject, Status::Critical, text)
                        .next(format!("pgherd fence {} --immediate", node.name)),
                );
            }
            (Fence::Fenced(mark), _) => {
                let verb = if observed.ended_as_standby() { "unfence" } else { "rejoin" };
                found.push(
                    of.says(subject, Status::Warning, mark.to_string())
                        .next(format!("pgherd {verb} {}", node.name)),
                );
            }
        }
    }
    if !found.is_empty() {
        return found;
    }
    vec![if hidden {
        Finding {
            follows: Some(Check::Connect),
            ..of.says(Subject::Cluster, Status::Unknown, "not every node can be looked at")
        }
    } else {
        of.says(Subject::Cluster, Status::Ok, "no node is fenced")
    }]
}

/// Whether somebody could take over now, as far as it can be seen without trying. A cluster of one node has nobody, by declaration.
fn failover(seen: &Seen<'_>) -> Option<Finding> {
    if seen.cluster.nodes.len() < 2 {
        return None;
    }
    let of = Of::new(seen.cluster, Check::Failover);
    let Some(primary) = seen.primary() else {
        return Some(Finding {
            follows: Some(Check::Primary),
            ..of.says(Subject::Cluster, Status::Unknown, "the primary is not known")
        });
    };
    let Some(leading) = primary.running() else {
        return Some(of.unknown(Subject::Cluster, &Why::NotUp));
    };
    for (_, observed, asked) in seen.each() {
        if let (true, Err(why)) = (observed.running().is_some_and(hidden), &asked.replay) {
            return Some(of.unknown(Subject::Cluster, why));
        }
    }
    let mut ready: Vec<&str> = Vec::new();
    let mut doubts: Vec<String> = Vec::new();
    for (node, observed, _) in seen.each().filter(|(node, _, _)| node.name != primary.node) {
        if node.promote == Promote::ByHand {
            continue;
        }
        match cannot_take_over(observed) {
            None => ready.push(&node.name),
            Some(why) => doubts.push(format!("{}: {why}", node.name)),
        }
    }
    let rewinds = leading.facts.data_checksums
        || leading.settings.get("wal_log_hints").is_some_and(|row| row.setting == "on");
    let whole_pages = leading.settings.get("full_page_writes").is_none_or(|row| row.setting == "on");
    if !whole_pages {
        doubts.push("pg_rewind needs full_page_writes, which is off".to_owned());
    }
    let followers = i64::try_from(seen.cluster.nodes.len().saturating_sub(1)).unwrap_or(i64::MAX);
    for (node, _, asked) in seen.each().filter(|(node, _, _)| ready.contains(&node.name.as_str())) {
        let senders = asked.facts.five.as_ref().ok().and_then(|five| five.get("max_wal_senders"));
        if let Some(senders) = senders.filter(|senders| **senders < followers) {
            doubts.push(format!("{}: max_wal_senders is {senders}, {followers} would follow it", node.name));
        }
    }
    if !rewinds {
        doubts.push("pg_rewind needs wal_log_hints or checksums, and neither is on".to_owned());
    }
    if let Some(rule) = &seen.cluster.synchronous {
        // Whoever takes over waits for the others of the rule.
        let streaming = seen
            .each()
            .filter(|(node, observed, _)| {
                rule.of.contains(&node.name) && node.name != primary.node && streams(observed.running())
            })
            .count();
        let needed = usize::try_from(rule.wait_for).unwrap_or(usize::MAX);
        // Of N standbys W have each acknowledged commit: one of R that answer surely has it if R + W > N (two sets that together are more than all share one).
        let members = rule.of.iter().filter(|name| **name != primary.node).count();
        let answer = seen
            .each()
            .filter(|(node, observed, _)| {
                rule.of.contains(&node.name) && node.name != primary.node && observed.running().is_some()
            })
            .count();
        if answer + needed <= members {
            doubts.push(format!(
                "nobody could tell who has every acknowledged commit: {answer} of {members} synchronous standbys answer, {} must",
                (members + 1).saturating_sub(needed)
            ));
        }
        if streaming <= needed {
            doubts.push(format!(
                "after a loss commits would hang: {streaming} synchronous standbys stream, one takes over, {needed} must be left"
            ));
        }
    }
    let next = command(seen.cluster, "status");
    Some(match (ready.is_empty(), doubts.is_empty()) {
        (true, _) => of
            .says(
                Subject::Cluster,
                Status::Critical,
                format!("nobody could take over: {}", doubts.join("; ")),
            )
            .next(next),
        (false, false) => of
            .says(
                Subject::Cluster,
                Status::Warning,
                format!("{} could take over; {}", ready.join(", "), doubts.join("; ")),
            )
            .next(next),
        (false, true) => {
            of.says(Subject::Cluster, Status::Ok, format!("{} could take over", ready.join(", ")))
        }
    })
}

fn streams(running: Option<&Running>) -> bool {
    let Some(ServerRole::Standby { receiver: Some(receiver), .. }) =
        running.map(|running| &running.facts.role)
    else {
        return false;
    };
    receiver.status == "streaming"
}

fn cannot_take_over(observed: &NodeObserved) -> Option<&'static str> {
    if matches!(observed.fence, Fence::Fenced(_)) {
        return Some("it is fenced");
    }
    let running = observed.running();
    match running.map(|running| &running.facts.role) {
        None => Some("it does not answer"),
        Some(ServerRole::Primary { .. }) => Some("it is a primary"),
        Some(ServerRole::Standby { replay_paused: true, .. }) => Some("its replay is paused"),
        Some(ServerRole::Standby { .. }) if !streams(running) => Some("it does not stream"),
        Some(ServerRole::Standby { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_went_on_after_the_primary_had_left_has_diverged_by_what_lies_between() {
        let timeline = |id| TimelineId::new(id).unwrap();
        let text = "1\t0/3000000\tno recovery target specified\n2\t0/5000000\tno recovery target specified\n";
        let history = TimelineHistory::parse(timeline(3), text).unwrap();
        let at = |id, lsn: &str| fork(&history, (timeline(id), lsn.parse().unwrap()));
        assert_eq!(at(3, "0/9000000"), None);
        assert_eq!(at(1, "0/3000000"), None);
        assert_eq!(at(1, "0/3000028"), Some(Fork::At("0/3000000".parse().unwrap())));
        assert_eq!(at(2, "0/5000001"), Some(Fork::At("0/5000000".parse().unwrap())));
        assert_eq!(at(4, "0/2000000"), Some(Fork::Ahead));
        let short = TimelineHistory::parse(timeline(3), "2\t0/5000000\tx\n").unwrap();
        assert_eq!(fork(&short, (timeline(1), "0/1000000".parse().unwrap())), Some(Fork::Stranger));
    }
}
