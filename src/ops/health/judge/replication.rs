//! Who is primary, whether every declared standby streams, and how far behind it is.

use super::super::asked::Why;
use super::super::report::{Finding, Measured, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits_or, to_f64};
use crate::db::queries::ServerRole;
use crate::ops::observe::{NodeObserved, Running};
use crate::ops::roles::Lead;
use crate::topology::checks::{Check, Limits, Measure};
use crate::topology::model::{Node, PoolTarget};
use crate::units::ByteCount;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = vec![primary(seen)];
    for (node, observed, _) in seen.each() {
        // Who is primary has no upstream; who does not answer may be either.
        if seen.primary().is_some_and(|primary| primary.node == node.name) {
            continue;
        }
        found.push(streams(seen, node, observed));
        found.push(lag(seen, node, observed));
    }
    found
}

/// Exactly one node accepts writes. An unreachable one is no proof that there is none.
fn primary(seen: &Seen<'_>) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Primary };
    let says = |status, text: String| of.says(Subject::Cluster, status, text);
    match &seen.lead {
        Lead::Primary(name) => says(Status::Ok, format!("{name} is primary")),
        Lead::Split(names) => {
            says(Status::Critical, format!("{} are primaries at the same time", names.join(" and ")))
                .next("keep clients away, then stop the wrong one with pg_ctl stop -m fast")
        }
        Lead::StoppedPrimary(name) => says(Status::Critical, format!("the primary {name} is stopped"))
            .next(command(seen.cluster, "plan")),
        Lead::Unborn => says(Status::Critical, "the cluster is not there yet".to_owned())
            .next(command(seen.cluster, "plan")),
        Lead::Unknown { why } => says(Status::Unknown, why.clone()).next(command(seen.cluster, "status -v")),
    }
}

/// A declared standby streams. It is known by its name, not by its address.
fn streams(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Standbys };
    let subject = Subject::Node(node.name.clone());
    let Some(running) = observed.running() else { return of.unknown(subject, &Why::NotUp) };
    let says = |status, text: String| of.says(subject.clone(), status, text);
    match &running.facts.role {
        ServerRole::Primary { .. } => {
            says(Status::Critical, "it is a primary and receives nothing".to_owned())
        }
        ServerRole::Standby { receiver: Some(receiver), .. } if receiver.status == "streaming" => {
            let slot = receiver.slot.as_deref().map(|slot| format!(" from slot {slot}")).unwrap_or_default();
            says(Status::Ok, format!("streams{slot}"))
        }
        ServerRole::Standby { receiver: Some(receiver), .. } => {
            says(Status::Critical, format!("its WAL receiver is {}", receiver.status))
        }
        ServerRole::Standby { receiver: None, .. } => {
            says(Status::Critical, "it has no WAL receiver".to_owned())
        }
    }
    .next(command(seen.cluster, "plan"))
}

/// Bytes by LSN, seconds by the age of what is missing: none where nothing is, whatever the clock says; never "0" where the
/// primary cannot be asked (facts/health.md A2).
fn lag(seen: &Seen<'_>, node: &Node, observed: &NodeObserved) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Lag };
    let subject = Subject::Node(node.name.clone());
    let Some(running) = observed.running() else { return of.unknown(subject, &Why::NotUp) };
    let ServerRole::Standby { replayed_lsn, last_replayed, receiver, .. } = &running.facts.role else {
        return of.says(subject, Status::Unknown, "it is a primary: nothing says what it is behind");
    };
    let Some(primary) = seen.primary().and_then(NodeObserved::running) else {
        return of.says(subject, Status::Unknown, "the primary is not known");
    };
    let (Some(replayed), Some(end)) = (replayed_lsn, primary.facts.role.lsn()) else {
        return of.says(subject, Status::Unknown, "it has replayed nothing since it started");
    };
    let behind = replayed.lag_behind(end);
    let streaming = receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
    let since = |at: jiff::Timestamp| running.facts.now.duration_since(at).as_secs_f64().max(0.0);
    let (seconds, source) = match (behind.0, streaming) {
        (0, true) => (0.0, "everything is replayed"),
        (_, true) => match last_replayed {
            Some(at) => (since(*at), "age of the last transaction that was replayed"),
            None => {
                return of.says(
                    subject,
                    Status::Unknown,
                    format!("{behind} behind, for a time that is not known"),
                );
            }
        },
        (_, false) => {
            let sign = receiver.as_ref().and_then(|receiver| receiver.last_message_at).or(*last_replayed);
            match sign {
                Some(at) => (since(at), "time since its last sign of the primary"),
                None => return of.says(subject, Status::Unknown, "it receives nothing, and never did"),
            }
        }
    };
    let text = if behind.0 == 0 && streaming {
        "nothing is missing".to_owned()
    } else {
        format!("{} behind ({behind}; {source})", Measure::Time.written(seconds))
    };
    of.measures(
        subject,
        seconds,
        limits_or(seen.cluster, Some(node), Check::Lag, lag_limits(seen, node, primary)),
        text,
    )
    .with(Measured {
        name: "lag_bytes".to_owned(),
        value: to_f64(ByteCount(behind.0).0),
        measure: Measure::Size,
        limits: None,
        max: None,
    })
    .next(command(seen.cluster, "status"))
}

/// A standby that a commit waits for, or that clients read from, is behind much sooner than one that only waits.
fn lag_limits(seen: &Seen<'_>, node: &Node, primary: &Running) -> Limits {
    let name = seen.cluster.full_name(&node.name);
    let waited_for = primary.senders.iter().any(|sender| {
        sender.application_name == name && matches!(sender.sync_state.as_str(), "sync" | "quorum")
    });
    let declared = seen.cluster.synchronous.as_ref().is_some_and(|rule| rule.of.contains(&node.name));
    let read_from = seen
        .cluster
        .poolers
        .as_ref()
        .is_some_and(|poolers| poolers.pools.iter().any(|pool| pool.to == PoolTarget::Standbys));
    if waited_for || declared || read_from {
        Limits { warn: Some(1.0), crit: Some(5.0) }
    } else {
        Check::Lag.limits()
    }
}
