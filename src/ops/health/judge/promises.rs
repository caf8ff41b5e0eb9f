//! What was promised: how much may be lost, how far back one can go, that it was rehearsed; and what runs out.

use jiff::Timestamp;

use super::super::asked::{Asked, Why};
use super::super::report::{Finding, Measured, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits, to_f64};
use crate::db::queries::ServerRole;
use crate::ops::drill::Verdict;
use crate::ops::observe::NodeObserved;
use crate::ops::wal::Window;
use crate::pg::lsn::Lsn;
use crate::pg::wal_file::SegmentName;
use crate::topology::checks::{Check, Limits, Measure};
use crate::topology::model::{Backups, Node, Objective};
use crate::units::{ByteCount, human_duration};

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = seen
        .cluster
        .objectives
        .iter()
        .filter_map(|(scenario, objective)| rpo(seen, scenario, objective))
        .collect();
    found.extend(seen.cluster.backups.as_ref().and_then(|backups| window(seen, backups)));
    found.extend(drill(seen));
    found.extend(runway(seen));
    found.extend(expiry(seen));
    found.extend(operations(seen));
    found.extend(lock(seen));
    found
}

/// What would be lost if it happened now.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Loss {
    seconds: f64,
    bytes: u64,
}

const NOTHING: Loss = Loss { seconds: 0.0, bytes: 0 };

/// The declared loss of each scenario beside what would be lost now (facts/health.md T9).
fn rpo(seen: &Seen<'_>, scenario: &str, objective: &Objective) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Rpo);
    let subject = Subject::Part(scenario.to_owned());
    let Some(primary) = seen.primary() else {
        return Some(Finding {
            follows: Some(Check::Primary),
            ..of.says(subject, Status::Unknown, "the primary is not known")
        });
    };
    let loss = match scenario {
        "lose-primary" => survivors(seen, primary, |_| true),
        "lose-region" => survivors(seen, primary, |node| {
            let region = |host: &str| seen.herd.regions.get(host);
            region(&node.host) != seen.cluster.node(&primary.node).and_then(|own| region(&own.host))
        }),
        "undo-mistake" => archived(seen, primary),
        _ => return None,
    };
    Some(match loss {
        Ok((loss, who)) => {
            let declared = objective.rpo.as_secs_f64();
            let missed = loss.seconds > declared;
            let text = format!(
                "{} and {} would be lost ({who}); {} may be",
                Measure::Time.written(loss.seconds),
                ByteCount(loss.bytes),
                human_duration(objective.rpo)
            );
            let status = if missed { Status::Critical } else { Status::Ok };
            let text = if loss == NOTHING { format!("nothing would be lost ({who})") } else { text };
            of.says(subject, status, text)
                .with(Measured {
                    name: "rpo".to_owned(),
                    value: loss.seconds,
                    measure: Measure::Time,
                    limits: Some(Limits { warn: None, crit: Some(declared) }),
                    max: None,
                })
                .with(Measured {
                    name: "rpo_bytes".to_owned(),
                    value: to_f64(loss.bytes),
                    measure: Measure::Size,
                    limits: None,
                    max: None,
                })
                .next(command(seen.cluster, "status"))
        }
        Err(why) => of.unknown(subject, &why),
    })
}

/// What the best of the standbys that survive does not have: nothing where commits wait for one of them.
fn survivors(
    seen: &Seen<'_>,
    primary: &NodeObserved,
    survives: impl Fn(&Node) -> bool,
) -> Asked<(Loss, String)> {
    let Some(leading) = primary.running() else { return Err(Why::NotUp) };
    let Some(end) = leading.facts.role.lsn() else { return Err(Why::NotUp) };
    let mut best: Option<(Loss, String)> = None;
    let (mut survivors, mut silent) = (0_usize, 0_usize);
    for (node, observed, _) in seen.each().filter(|(node, _, _)| node.name != primary.node && survives(node))
    {
        survivors += 1;
        let Some(running) = observed.running() else {
            silent += 1;
            continue;
        };
        let ServerRole::Standby { last_replayed, receiver, .. } = &running.facts.role else { continue };
        let name = seen.cluster.full_name(&node.name);
        let sender = leading.senders.iter().find(|sender| sender.application_name == name);
        let waited_for = sender.is_some_and(|sender| {
            sender.state == "streaming" && matches!(sender.sync_state.as_str(), "sync" | "quorum")
        });
        let all_wait = seen.cluster.synchronous.as_ref().is_some_and(|rule| {
            // Who waits for any one of several does not know which one: all of them together have everything.
            rule.of
                .iter()
                .filter_map(|name| seen.cluster.node(name))
                .all(|node| node.name == primary.node || survives(node))
        });
        if waited_for && all_wait {
            return Ok((NOTHING, format!("commits wait for {}", node.name)));
        }
        let received = running.facts.role.lsn().unwrap_or(Lsn::new(0));
        let bytes = received.lag_behind(end).0;
        let seconds = if bytes == 0 {
            0.0
        } else {
            let sign = receiver.as_ref().and_then(|receiver| receiver.last_message_at).or(*last_replayed);
            let Some(sign) = sign else { continue };
            running.facts.now.duration_since(sign).as_secs_f64().max(0.0)
        };
        let loss = Loss { seconds, bytes };
        if best.as_ref().is_none_or(|(best, _)| bytes < best.bytes) {
            best = Some((loss, format!("{} would take over", node.name)));
        }
    }
    best.ok_or_else(|| {
        Why::Failed(match (survivors, silent) {
            (0, _) => "there is no standby that would survive".to_owned(),
            (_, 0) => "no standby that would survive tells how far it is".to_owned(),
            _ => "the standbys that would survive do not answer".to_owned(),
        })
    })
}

/// What could not be had back after a mistake on a primary that lives: nothing while its archiver keeps up, since what is still in its
/// pg_wal is archived as soon as a restore needs it; else what was written since the last segment that was archived.
fn archived(seen: &Seen<'_>, primary: &NodeObserved) -> Asked<(Loss, String)> {
    let Some(backups) = &seen.cluster.backups else {
        return Err(Why::Failed("nothing is archived".to_owned()));
    };
    let asked = seen.each().find(|(node, _, _)| node.name == primary.node).map(|(_, _, asked)| asked);
    let archiver = asked.expect("the primary is one of the nodes").archiver.as_ref().map_err(Why::clone)?;
    let newest = newest_window(seen)?.ok_or_else(|| Why::Failed("nothing can be restored".to_owned()))?;
    let who = format!("repository {}", backups.repository.name);
    if archiver.failing().is_none() && archiver.waiting == 0 && newest.ends_before.is_none() {
        return Ok((NOTHING, format!("{who} has what the primary has written but its present segment")));
    }
    let end = primary.running().and_then(|running| running.facts.role.lsn()).ok_or(Why::NotUp)?;
    let since = match (&newest.ends_before, &archiver.last_archived) {
        (None, Some((_, at))) => newest.last.max(*at),
        (Some(_), _) | (None, None) => newest.last,
    };
    let seconds = seen.at.duration_since(since).as_secs_f64().max(0.0);
    Ok((Loss { seconds, bytes: newest.last_lsn.lag_behind(end).0 }, format!("{who} has nothing newer")))
}

/// Finds the moments that can be restored to and that end last.
fn newest_window<'s>(seen: &'s Seen<'_>) -> Asked<Option<&'s Window>> {
    let kept = match seen.kept.as_ref() {
        Some(Ok(kept)) => kept,
        Some(Err(why)) => return Err(why.clone()),
        None => return Ok(None),
    };
    let system =
        seen.primary().and_then(NodeObserved::running).map(|running| running.facts.system_identifier);
    let windows = kept.windows.iter().filter(|(of, _)| system.is_none_or(|system| system == *of));
    Ok(windows.flat_map(|(_, windows)| windows).max_by_key(|window| window.last))
}

/// Tells whether a segment that is missing still waits: those behind it may be stored before it, and the archiver crosses off one after the other.
fn comes(seen: &Seen<'_>, segment: SegmentName) -> bool {
    let archiver = seen.primary_asked().and_then(|(_, asked)| asked.archiver.as_ref().ok());
    archiver.is_some_and(|archiver| {
        let last = archiver.last_archived.as_ref().map(|(file, _)| file.as_str());
        archiver.waiting > 0 && last < Some(segment.to_string().as_str())
    })
}

/// Every second of the declared window can be restored. One that grows is a warning, one with a hole in it is critical (facts/health.md T12).
fn window(seen: &Seen<'_>, backups: &Backups) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Window);
    let declared = backups.window;
    let newest = match newest_window(seen) {
        Ok(newest) => newest,
        Err(why) => return Some(of.unknown(Subject::Cluster, &why)),
    };
    let create = command(seen.cluster, "backup create");
    let Some(newest) = newest else {
        return Some(of.says(Subject::Cluster, Status::Critical, "nothing can be restored").next(create));
    };
    if let Some(segment) = newest.ends_before.filter(|segment| !comes(seen, *segment)) {
        let text =
            format!("WAL is missing from {segment} on: nothing after {:.0} can be restored", newest.last);
        return Some(of.says(Subject::Cluster, Status::Critical, text).next(create));
    }
    let reach = seen.at.duration_since(newest.first).as_secs_f64().max(0.0);
    let measured = Measured {
        name: "window".to_owned(),
        value: reach,
        measure: Measure::Time,
        limits: None,
        max: declared.map(|declared| declared.as_secs_f64()),
    };
    let since = format!("every second since {:.0} ({})", newest.first, Measure::Time.written(reach));
    Some(
        match declared {
            Some(declared) if reach < declared.as_secs_f64() => of.says(
                Subject::Cluster,
                Status::Warning,
                format!("{since}, {} are declared: it grows", human_duration(declared)),
            ),
            Some(_) | None => of.says(Subject::Cluster, Status::Ok, since),
        }
        .with(measured)
        .next(command(seen.cluster, "backup list")),
    )
}

/// A backup is worth what the last rehearsal says (facts/health.md T10).
fn drill(seen: &Seen<'_>) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Drill);
    let drills = match seen.herd.drills.as_ref()? {
        Ok(drills) => drills,
        Err(why) => return Some(of.unknown(Subject::Cluster, why)),
    };
    let next = command(seen.cluster, "drill run restore");
    let Some(passed) = &drills.passed else {
        let text = "no drill has passed on this station yet";
        return Some(of.says(Subject::Cluster, Status::Warning, text).next(next));
    };
    if let Some(last) = drills.last.as_ref().filter(|last| last.verdict != Verdict::Passed) {
        let text = format!("drill {} of {:.0} did not pass", last.id, last.ended);
        return Some(
            of.says(Subject::Cluster, Status::Critical, text).next(command(seen.cluster, "drill list")),
        );
    }
    let age = seen.at.duration_since(passed.ended).as_secs_f64().max(0.0);
    let took = passed
        .rto_seconds
        .map_or_else(String::new, |rto| format!(", restored in {}", Measure::Time.written(rto)));
    let text = format!("drill {} passed {} ago{took}", passed.id, Measure::Time.written(age));
    Some(of.measures(Subject::Cluster, age, limits(seen.cluster, None, Check::Drill), text).next(next))
}

/// How long until WAL fills the disk of the primary if nothing takes it away: neither the archiver nor a standby (facts/health.md T13).
fn runway(seen: &Seen<'_>) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::Runway);
    let primary = seen.primary()?;
    let (node, observed, asked) = seen.each().find(|(node, _, _)| node.name == primary.node)?;
    let subject = Subject::Node(node.name.clone());
    let generated = match &asked.facts.wal {
        Ok(generated) => generated,
        Err(why) => return Some(of.unknown(subject, why)),
    };
    let Some(disk) = observed.disk else {
        return Some(of.says(subject, Status::Unknown, "the size of its file system is not known"));
    };
    let Some(rate) = generated.rate().filter(|rate| *rate > 0.0) else {
        return Some(of.says(subject, Status::Ok, "not enough WAL was written yet to tell a rate"));
    };
    let left = to_f64(disk.free.0) / rate;
    let text = format!(
        "{} of WAL an hour since {:.0} would fill the {} that are free in {}",
        Measure::Size.written(rate * 3600.0),
        generated.since,
        disk.free,
        Measure::Time.written(left)
    );
    Some(
        of.measures(subject, left, limits(seen.cluster, Some(node), Check::Runway), text)
            .next("free space, grow the disk, or bound what slots keep: max_slot_wal_keep_size"),
    )
}

/// Certificates and passwords that end (facts/health.md T14).
fn expiry(seen: &Seen<'_>) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Expiry);
    let limits = limits(seen.cluster, None, Check::Expiry);
    let ends = |what: String, at: Timestamp, next: &str| {
        let left = at.duration_since(seen.at).as_secs_f64();
        let text = if left < 0.0 {
            format!("it ended at {at:.0}")
        } else {
            format!("it ends in {}, at {at:.0}", Measure::Time.written(left))
        };
        of.measures(Subject::Part(what), left, limits, text).next(next)
    };
    let mut found = Vec::new();
    let plan = command(seen.cluster, "plan");
    if let Some(tls) = &seen.herd.tls {
        if let Some(why) = &tls.why {
            let subject = Subject::Part("certificates".to_owned());
            found.push(of.unknown(subject, &Why::Failed(why.clone())));
        }
        found.extend(
            tls.authority_not_after.map(|at| ends("certificate of the authority".to_owned(), at, &plan)),
        );
        for one in &tls.certificates {
            let what = format!("certificate of {}", one.of);
            found.push(match (one.not_after, &one.why) {
                (Some(at), _) => ends(what, at, &plan),
                (None, why) => {
                    let why = why.clone().unwrap_or_else(|| "it was not shown".to_owned());
                    of.says(
                        Subject::Part(what),
                        Status::Critical,
                        format!("it does not prove who it is: {why}"),
                    )
                    .next(&*plan)
                }
            });
        }
    }
    // Roles are the same everywhere; the primary tells.
    let asked = seen.primary().and_then(|primary| seen.each().find(|(node, _, _)| node.name == primary.node));
    match asked.map(|(_, _, asked)| &asked.facts.logins) {
        Some(Ok(logins)) => found.extend(logins.iter().map(|(role, until)| {
            ends(format!("password of {role}"), *until, "ALTER ROLE … VALID UNTIL, or a new password")
        })),
        Some(Err(why)) => found.push(of.unknown(Subject::Part("passwords".to_owned()), why)),
        None => {}
    }
    found
}

/// Who holds the lock in the repository keeps every other station away, and one that is gone until somebody takes its operation over.
fn lock(seen: &Seen<'_>) -> Option<Finding> {
    seen.cluster.backups.as_ref()?;
    let of = Of::new(seen.cluster, Check::Lock);
    let held = match &seen.herd.lock {
        Ok(Some(held)) => held,
        Ok(None) => return Some(of.says(Subject::Cluster, Status::Ok, "nobody holds it")),
        Err(why) => return Some(of.unknown(Subject::Cluster, why)),
    };
    let doing = held.operation.as_ref().map_or("planning".to_owned(), |id| format!("operation {id}"));
    let age = seen.at.duration_since(held.since).as_secs_f64().max(0.0);
    let limits = limits(seen.cluster, None, Check::Lock);
    match (&held.operation, held.lives) {
        (Some(id), false) => {
            let text = format!("{} left {doing} in it, which it held since {:.0}", held.by, held.since);
            Some(
                of.says(Subject::Cluster, Status::Warning, text)
                    .next(format!("pgherd operation takeover {id}")),
            )
        }
        (_, _) => {
            let text = format!("{} holds it since {:.0}: {doing}", held.by, held.since);
            let found = of.measures(Subject::Cluster, age, limits, text);
            Some(found.next("pgherd operation list --hosts".to_owned()))
        }
    }
}

/// An operation that nobody drives keeps its cluster locked, and something may be half done.
fn operations(seen: &Seen<'_>) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Operations);
    let operations = match &seen.herd.operations {
        Ok(operations) => operations,
        Err(why) => return vec![of.unknown(Subject::Cluster, why)],
    };
    let unfinished = operations.iter().filter(|operation| !operation.running);
    let found: Vec<Finding> = unfinished
        .map(|operation| {
            let text = format!(
                "{} was begun {:.0} by {} and is unfinished",
                operation.kind, operation.begun, operation.by
            );
            let subject = Subject::Part(format!("operation {}", operation.id));
            of.says(subject, Status::Warning, text).next(operation.next.clone())
        })
        .collect();
    if found.is_empty() {
        let running = operations.first();
        let text = running.map_or("nothing is unfinished".to_owned(), |operation| {
            format!("{} runs since {:.0}", operation.kind, operation.begun)
        });
        return vec![of.says(Subject::Cluster, Status::Ok, text)];
    }
    found
}
