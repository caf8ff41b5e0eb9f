//! Who keeps WAL: slots, those that are missing, and the directory that it is kept in.

use super::super::report::{Finding, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, Status, command, few, limits, number, to_f64};
use crate::db::health::wal::{Directory, SlotSeen};
use crate::ops::observe::NodeObserved;
use crate::topology::checks::{Check, Limits, Measure};
use crate::topology::model::Node;
use crate::units::ByteCount;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = seen
        .each()
        .flat_map(|(node, observed, asked)| [slots(seen, node, observed, asked), wal_size(seen, node, asked)])
        .collect();
    if seen.cluster.nodes.len() > 1 {
        found.push(missing_slots(seen));
    }
    found
}

/// A slot with what is wrong with it.
struct Wrong {
    status: Status,
    text: String,
    slot: String,
}

fn slots(seen: &Seen<'_>, node: &Node, observed: &NodeObserved, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Slots);
    let limits = limits(seen.cluster, Some(node), Check::Slots);
    let standby = observed.running().is_some_and(|running| !running.is_primary());
    of.told(Subject::Node(node.name.clone()), &asked.slots, |subject, slots| {
        let idle = |slot: &SlotSeen| match slot.inactive_since {
            Some(since) if !slot.active => Some(seen.at.duration_since(since).as_secs_f64().max(0.0)),
            Some(_) | None => None,
        };
        let mut wrong: Vec<Wrong> =
            slots.iter().filter_map(|slot| state(slot, idle(slot), standby, limits)).collect();
        wrong.sort_by_key(|wrong| std::cmp::Reverse(wrong.status));
        let kept = slots.iter().filter_map(|slot| slot.retained).max().unwrap_or(0);
        let told = [number("slot_retained", Measure::Size, to_f64(kept))];
        let Some(worst) = wrong.first() else {
            let text = match slots.len() {
                0 => "none".to_owned(),
                many => format!("{many}, which keep {} at most", ByteCount(kept)),
            };
            return told.into_iter().fold(of.says(subject, Status::Ok, text), Finding::with);
        };
        let texts: Vec<String> = wrong.iter().map(|wrong| wrong.text.clone()).collect();
        let ours = seen.cluster.nodes.iter().any(|node| seen.cluster.slot_name(&node.name) == worst.slot);
        let next = if ours {
            command(seen.cluster, "plan")
        } else {
            format!("if nobody needs it any more: SELECT pg_drop_replication_slot('{}')", worst.slot)
        };
        let finding = of.says(subject, worst.status, few(&texts)).next(next);
        told.into_iter().fold(finding, Finding::with)
    })
}

/// A lost slot has no `restart_lsn` and so retains nothing, which is not fine. On a standby a slot that nobody uses is for when it is primary,
/// and so is one that is kept in step with the primary's.
fn state(slot: &SlotSeen, idle_seconds: Option<f64>, standby: bool, limits: Limits) -> Option<Wrong> {
    let says = |status, text: String| {
        Some(Wrong { status, text: format!("{} {text}", slot.name), slot: slot.name.clone() })
    };
    if let Some(reason) = &slot.invalidation {
        return says(Status::Critical, format!("is invalid: {reason}"));
    }
    if slot.conflicting {
        return says(Status::Critical, "is invalid: it was in conflict with recovery".to_owned());
    }
    match slot.wal_status.as_deref() {
        Some("lost") => return says(Status::Critical, "is lost: the WAL that it needs is gone".to_owned()),
        Some("unreserved") => {
            return says(Status::Critical, "is about to be lost at the next checkpoint".to_owned());
        }
        Some(_) | None => {}
    }
    let kept = ByteCount(slot.retained.unwrap_or(0));
    if let Some(safe) = slot.safe_wal_size.filter(|safe| slot.keep_size > 0 && *safe < slot.keep_size / 4) {
        let left = ByteCount(u64::try_from(safe).unwrap_or(0));
        return says(Status::Warning, format!("keeps {kept} and is lost after {left} more"));
    }
    if slot.active || slot.synced || standby || slot.retained.is_none() {
        return None;
    }
    match (idle_seconds, limits.warn) {
        // Before 17 nothing tells since when.
        (None, Some(_)) => says(Status::Warning, format!("is used by nobody and keeps {kept}")),
        (Some(idle), warn) => {
            let beyond = |limit: Option<f64>| limit.is_some_and(|limit| idle >= limit);
            let text = format!("was used by nobody for {} and keeps {kept}", Measure::Time.written(idle));
            match (beyond(limits.crit), beyond(warn)) {
                (true, _) => says(Status::Critical, text),
                (false, true) => says(Status::Warning, text),
                (false, false) => None,
            }
        }
        (None, None) => None,
    }
}

/// Without its slot a standby streams until it is away for too long. One that was taken over may have another, or none.
fn missing_slots(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::MissingSlots);
    of.of_primary(seen, |primary, asked| {
        of.told(Subject::Cluster, &asked.slots, |subject, slots| {
            let wanted: Vec<String> = seen
                .each()
                .filter(|(node, _, _)| node.name != primary.name)
                .filter_map(|(node, observed, _)| {
                    let set =
                        observed.running().and_then(|running| running.settings.get("primary_slot_name"));
                    match set.map(|row| row.setting.as_str()).filter(|name| !name.is_empty()) {
                        Some(name) => Some(name.to_owned()),
                        None if observed.is_adopted() => None,
                        None => Some(seen.cluster.slot_name(&node.name)),
                    }
                })
                .collect();
            let (there, missing): (Vec<String>, Vec<String>) =
                wanted.into_iter().partition(|name| slots.iter().any(|slot| slot.name == *name));
            if missing.is_empty() {
                of.says(subject, Status::Ok, format!("{} of {}", there.len(), there.len()))
            } else {
                let text = format!("{} has no slot {}", primary.name, few(&missing));
                of.says(subject, Status::Critical, text).next(command(seen.cluster, "plan"))
            }
        })
    })
}

fn wal_size(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::WalSize);
    of.told(Subject::Node(node.name.clone()), &asked.wal, |subject, wal| {
        let wanted = wal.max_wal_size + wal.wal_keep_size;
        let share = 100.0 * to_f64(wal.size) / to_f64(wanted.max(1));
        let text = format!(
            "{} of WAL, {} of max_wal_size and wal_keep_size ({}); most of it is kept by {}",
            ByteCount(wal.size),
            Measure::Share.written(share),
            ByteCount(wanted),
            cause(*wal, asked)
        );
        of.measures(subject, share, limits(seen.cluster, Some(node), Check::WalSize), text)
            .with(number("wal_bytes", Measure::Size, to_f64(wal.size)))
            .next(command(seen.cluster, "health -v"))
    })
}

/// Names who keeps the WAL: the slot that is farthest behind, the archiver that does not get on, or nobody but the checkpointer.
fn cause(wal: Directory, asked: &NodeSeen) -> String {
    let slots = asked.slots.as_deref().unwrap_or_default();
    let farthest = slots.iter().max_by_key(|slot| slot.retained);
    if let Some((slot, kept)) = farthest.and_then(|slot| Some((slot, slot.retained?)))
        && kept > wal.size / 2
    {
        return format!("slot {} ({})", slot.name, ByteCount(kept));
    }
    match &asked.archiver {
        Ok(archiver) if archiver.waiting > 1 => format!("the archiver ({} files wait)", archiver.waiting),
        Ok(_) | Err(_) => "the next checkpoints".to_owned(),
    }
}
