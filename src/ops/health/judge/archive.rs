//! Whether WAL gets into the repository, and how old the newest backup is.

use super::super::report::{Finding, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits, to_f64};
use crate::topology::checks::{Check, Measure};

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let declared = seen.cluster.backups.is_some();
    let mut found = Vec::new();
    let archives = seen.primary_asked().and_then(|(_, asked)| asked.vitals.as_ref().ok());
    if declared || archives.is_some_and(|vitals| vitals.archive_mode != "off") {
        found.push(archive(seen));
    }
    if declared {
        found.push(backup_running(seen));
        found.push(backup_age(seen));
    }
    found
}

/// The archiver of the primary. Its counters outlive a demotion, so nobody else's are looked at; a failure that nothing was
/// archived after is one, also where nothing was ever archived (facts/health.md A1 row 19).
fn archive(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Archive);
    of.of_primary(seen, |primary, asked| {
        let (vitals, archiver) = match (&asked.vitals, &asked.archiver) {
            (Ok(vitals), Ok(archiver)) => (vitals, archiver),
            (Err(why), _) | (_, Err(why)) => return of.unknown(Subject::Cluster, why),
        };
        let says = |text: String| of.says(Subject::Cluster, Status::Critical, text);
        // Also `always`, which archives on standbys too.
        if vitals.archive_mode == "off" {
            return says("no WAL is archived: archive_mode is off".to_owned())
                .next(command(seen.cluster, "plan"));
        }
        // Then nothing fails and nothing is archived: the server only waits.
        if !vitals.archives {
            return says(format!(
                "no WAL is archived: neither archive_command nor archive_library is set; {} wait",
                archiver.waiting
            ))
            .next(command(seen.cluster, "plan"));
        }
        if let Some((file, at)) = archiver.failing() {
            return says(format!(
                "{file} failed at {at:.0}, and nothing was archived since; {} wait",
                archiver.waiting
            ))
            .next(format!("see the log of {} on host {}", primary.name, primary.host));
        }
        let text = match &archiver.last_archived {
            Some((file, at)) => format!("{} wait, {file} archived at {at:.0}", archiver.waiting),
            None => format!("{} wait, nothing was archived yet", archiver.waiting),
        };
        let limits = limits(seen.cluster, None, Check::Archive);
        of.measures(Subject::Cluster, to_f64(archiver.waiting), limits, text)
            .next(command(seen.cluster, "status -v"))
    })
}

/// One that takes twice as long as the last one does not get on: it waits for WAL, for a disk, or for somebody who is gone.
fn backup_running(seen: &Seen<'_>) -> Finding {
    /// One that took less says little of the next: 5 min.
    const USUAL: f64 = 300.0;
    let of = Of::new(seen.cluster, Check::BackupRunning);
    let kept = match seen.kept.as_ref().expect("backups are declared") {
        Ok(kept) => kept,
        Err(why) => return of.unknown(Subject::Cluster, why),
    };
    let Some(now) = kept.running.iter().min_by_key(|now| now.since) else {
        return of.says(Subject::Cluster, Status::Ok, "none is being made");
    };
    let seconds = seen.at.duration_since(now.since).as_secs_f64().max(0.0);
    let far = match (now.done, now.total) {
        (Some(done), Some(total)) => format!(", {done} of {total}"),
        (_, _) => String::new(),
    };
    let text =
        format!("{} is being made by {} since {}{far}", now.label, now.by, Measure::Time.written(seconds));
    let Some(last) = &kept.last else {
        return of.says(Subject::Cluster, Status::Ok, format!("{text}; it is the first one"));
    };
    let took = last.ended.duration_since(last.begun).as_secs_f64();
    let text = format!("{text}; the last one took {}", Measure::Time.written(took));
    let share = 100.0 * seconds / took.max(USUAL);
    of.measures(Subject::Cluster, share, limits(seen.cluster, None, Check::BackupRunning), text)
        .next(command(seen.cluster, "backup list"))
}

fn backup_age(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::BackupAge);
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
