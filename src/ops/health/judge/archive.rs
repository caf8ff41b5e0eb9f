//! Whether WAL gets into the repository, and how old the newest backup is.

use super::super::report::{Finding, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits, to_f64};
use crate::topology::checks::{Check, Measure};

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    if seen.cluster.backups.is_none() {
        return Vec::new();
    }
    vec![archive(seen), backup_age(seen)]
}

/// The archiver of the primary. Its counters outlive a demotion, so nobody else's are looked at; a failure that nothing was
/// archived after is one, also where nothing was ever archived (facts/health.md A1 row 19).
fn archive(seen: &Seen<'_>) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::Archive };
    let Some(primary) = seen.primary() else {
        return Finding {
            follows: Some(Check::Primary),
            ..of.says(Subject::Cluster, Status::Unknown, "the primary is not known")
        };
    };
    let asked = seen.each().find(|(node, _, _)| node.name == primary.node).map(|(_, _, asked)| asked);
    let archiver = match asked.expect("the primary is one of the nodes").archiver.as_ref() {
        Ok(archiver) => archiver,
        Err(why) => return of.unknown(Subject::Cluster, why),
    };
    let on = primary
        .running()
        .and_then(|running| running.settings.get("archive_mode"))
        .is_some_and(|row| row.setting != "off");
    if !on {
        return of
            .says(Subject::Cluster, Status::Critical, "no WAL is archived: archive_mode is off")
            .next(command(seen.cluster, "plan"));
    }
    if let Some((file, at)) = archiver.failing() {
        let text =
            format!("{file} failed at {at:.0}, and nothing was archived since; {} wait", archiver.waiting);
        return of.says(Subject::Cluster, Status::Critical, text).next(format!(
            "see the log of {} on host {}",
            primary.node,
            host(seen, &primary.node)
        ));
    }
    let text = match &archiver.last_archived {
        Some((file, at)) => format!("{} wait, {file} archived at {at:.0}", archiver.waiting),
        None => format!("{} wait, nothing was archived yet", archiver.waiting),
    };
    of.measures(Subject::Cluster, to_f64(archiver.waiting), limits(seen.cluster, None, Check::Archive), text)
        .next(command(seen.cluster, "status -v"))
}

fn host<'a>(seen: &Seen<'a>, node: &str) -> &'a str {
    seen.cluster.node(node).map_or("", |node| node.host.as_str())
}

fn backup_age(seen: &Seen<'_>) -> Finding {
    let of = Of { cluster: seen.cluster, check: Check::BackupAge };
    let kept = match seen.kept.as_ref().expect("backups are declared") {
        Ok(kept) => kept,
        Err(why) => return of.unknown(Subject::Cluster, why),
    };
    let next = command(seen.cluster, "backup create");
    let Some(last) = &kept.last else {
        return of.says(Subject::Cluster, Status::Critical, "there is no backup").next(next);
    };
    let age = seen.at.duration_since(last.ended).as_secs_f64().max(0.0);
    let text = format!("{} ended {} ago", last.label, Measure::Time.written(age));
    of.measures(Subject::Cluster, age, limits(seen.cluster, None, Check::BackupAge), text).next(next)
}
