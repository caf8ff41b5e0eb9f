//! Whether WAL gets into the repository, and how old the newest backup is.

use super::super::report::{Finding, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits, number, to_f64};
use crate::db::queries::Archiver;
use crate::ops::observe::NodeObserved;
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Node;
use crate::units::human_duration;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let declared = seen.cluster.backups.is_some();
    let mut found = Vec::new();
    let archives = seen.primary_asked().and_then(|(_, asked)| asked.vitals.as_ref().ok());
    if declared || archives.is_some_and(|vitals| vitals.archive_mode != "off") {
        found.push(archive(seen));
    }
    if seen.cluster.backups.as_ref().is_some_and(|backups| !backups.copies.is_empty()) {
        found.push(copies(seen));
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
        let waits = format!("{} wait{}", archiver.waiting, piles_up(archiver, observed(seen, primary)));
        if let Some((file, at)) = archiver.failing() {
            return says(format!("{file} failed at {at:.0}, and nothing was archived since; {waits}"))
                .next(format!("see the log of {} on host {}", primary.name, primary.host));
        }
        let text = match &archiver.last_archived {
            Some((file, at)) => format!("{waits}; {file} archived at {at:.0}"),
            None => format!("{waits}; nothing was archived yet"),
        };
        let limits = limits(seen.cluster, None, Check::Archive);
        let oldest = archiver.backlog.map_or(0.0, |backlog| backlog.oldest.as_secs_f64());
        of.measures(Subject::Cluster, to_f64(archiver.waiting), limits, text)
            .with(number("archive_oldest_wait", Measure::Time, oldest))
            .next(command(seen.cluster, "status -v"))
    })
}

fn observed<'s>(seen: &'s Seen<'_>, primary: &Node) -> Option<&'s NodeObserved> {
    seen.each().find(|(node, _, _)| node.name == primary.name).map(|(_, observed, _)| observed)
}

/// Says of segments that wait how long the first one has, and how long the disk takes more of them.
fn piles_up(archiver: &Archiver, observed: Option<&NodeObserved>) -> String {
    let Some(backlog) = archiver.backlog else { return String::new() };
    let oldest = format!(", the first one for {}", human_duration(backlog.oldest));
    let Some(rate) = backlog.rate() else { return oldest };
    let full =
        observed.and_then(|node| node.disk).and_then(|disk| Some((disk.free, backlog.fills(disk.free)?)));
    let full = full.map_or_else(String::new, |(free, span)| {
        format!(", which would fill the {free} that are free in {}", human_duration(span))
    });
    format!("{oldest}; WAL comes at {} a second{full}", Measure::Size.written(rate))
}

/// WAL that a repository lacks is in another one; it is lost with that one.
fn copies(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Copies);
    let owed = match &seen.herd.owed {
        Ok(owed) => owed,
        Err(why) => return of.unknown(Subject::Cluster, why),
    };
    if owed.is_empty() {
        return of.says(Subject::Cluster, Status::Ok, "every repository was given all WAL");
    }
    let each = owed.iter().map(|owed| {
        let files =
            if owed.files == 1 { "1 WAL file".to_owned() } else { format!("{} WAL files", owed.files) };
        format!("{files} of {} owed to repository {}", owed.node, owed.repository)
    });
    of.says(Subject::Cluster, Status::Warning, each.collect::<Vec<_>>().join(", "))
        .next("They come there when it is back and WAL is archived; or: pgherd backup copy --to REPOSITORY")
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
