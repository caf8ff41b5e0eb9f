//! What servers count: hits, rollbacks, deadlocks, temporary files, conflicts and checksum failures.
//!
//! Between two looks where enough has happened between them, else since the counters were reset, which the text says.

use super::super::report::{Finding, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, Status, limits, number, to_f64};
use crate::db::health::databases::Counters;
use crate::ops::observe::NodeObserved;
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Node;
use jiff::Timestamp;

/// Fewer blocks than this (800 MiB) tell nothing of a cache.
const BLOCKS: f64 = 100_000.0;
/// Fewer transactions than this tell nothing of how many are rolled back.
const TRANSACTIONS: f64 = 1000.0;
/// What happens seldom is not measured by a shorter time.
const SELDOM_SECONDS: f64 = 3600.0;

pub(super) fn judge(seen: &Seen<'_>, before: Option<&Seen<'_>>) -> Vec<Finding> {
    seen.each()
        .flat_map(|(node, observed, asked)| {
            let old = before.and_then(|before| before.asked(&node.name));
            let span = before.map(|before| seen.at.duration_since(before.at).as_secs_f64());
            [
                Some(checksums(seen, node, observed, asked)),
                Some(share(seen, node, asked, old, Check::CacheHit)),
                Some(share(seen, node, asked, old, Check::Rollbacks)),
                Some(seldom(seen, node, asked, old.zip(span), Check::Deadlocks)),
                Some(seldom(seen, node, asked, old.zip(span), Check::TempFiles)),
                conflicts(seen, node, observed, asked, old.zip(span)),
            ]
        })
        .flatten()
        .collect()
}

/// A failure counts for ever. Where checksums are not enabled nothing is known, which is not fine.
fn checksums(seen: &Seen<'_>, node: &Node, observed: &NodeObserved, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::Checksums);
    of.told(Subject::Node(node.name.clone()), &asked.counters, |subject, rows| {
        if observed.running().is_some_and(|running| !running.facts.data_checksums) {
            return of
                .says(subject, Status::Warning, "data checksums are not enabled")
                .next("stop the server, then pg_checksums --enable");
        }
        let failed: Vec<&Counters> =
            rows.iter().filter(|row| row.checksum_failures.is_some_and(|failures| failures > 0)).collect();
        let all = failed.iter().filter_map(|row| row.checksum_failures).sum();
        let text = match failed.first() {
            None => "no page was read that did not match its checksum".to_owned(),
            Some(row) => format!(
                "{all} pages did not match their checksum, in {}",
                row.database.as_deref().unwrap_or("the shared catalogs")
            ),
        };
        of.measures(subject, to_f64(all), limits(seen.cluster, Some(node), Check::Checksums), text).next(
            "find the file in the log, and restore it from a standby or a backup before it is overwritten",
        )
    })
}

fn sum(rows: &[Counters], of: impl Fn(&Counters) -> u64) -> f64 {
    to_f64(rows.iter().map(of).sum())
}

/// Since when rows are counted.
fn since(rows: &[Counters]) -> Option<Timestamp> {
    rows.iter().filter(|row| row.database.is_some()).filter_map(|row| row.since).min()
}

fn since_text(rows: &[Counters]) -> String {
    since(rows).map_or_else(|| "since it was made".to_owned(), |at| format!("since {at:.0}"))
}

/// Tells part of whole: blocks that were found in shared buffers, transactions that were rolled back.
fn share(seen: &Seen<'_>, node: &Node, asked: &NodeSeen, old: Option<&NodeSeen>, check: Check) -> Finding {
    let of = Of::new(seen.cluster, check);
    let hit = check == Check::CacheHit;
    let (part, rest): (fn(&Counters) -> u64, fn(&Counters) -> u64) = if hit {
        (|row| row.blocks_hit, |row| row.blocks_read)
    } else {
        (|row| row.rollbacks, |row| row.commits)
    };
    let (enough, what) = if hit {
        (BLOCKS, "of the blocks in shared buffers")
    } else {
        (TRANSACTIONS, "of the transactions rolled back")
    };
    of.told(Subject::Node(node.name.clone()), &asked.counters, |subject, rows| {
        let old = old.and_then(|old| old.counters.as_deref().ok());
        let now = (sum(rows, part), sum(rows, rest));
        let between = old.map(|old| (now.0 - sum(old, part), now.1 - sum(old, rest)));
        // Counters that go back were reset in between.
        let between = between.filter(|(part, rest)| *part >= 0.0 && *rest >= 0.0 && part + rest >= enough);
        let (when, (part, rest)) = match between {
            Some(between) => ("between two looks".to_owned(), between),
            None => (since_text(rows), now),
        };
        if part + rest < enough {
            return of.says(subject, Status::Ok, format!("too little has happened {when}"));
        }
        let share = 100.0 * part / (part + rest);
        let text = format!("{} {what} {when}", Measure::Share.written(share));
        of.measures(subject, share, limits(seen.cluster, Some(node), check), text).next(if hit {
            "see which queries read most (pg_stat_statements), or give shared_buffers more"
        } else {
            "see the server's log for what fails"
        })
    })
}

/// How much there was in an hour, on an average over no less than one.
fn hourly(total: f64, before: Option<(f64, f64)>, since: Option<Timestamp>, now: Timestamp) -> (f64, bool) {
    match before {
        Some((old, span)) if span >= SELDOM_SECONDS && total >= old => {
            ((total - old) * SELDOM_SECONDS / span, true)
        }
        Some(_) | None => {
            let span = since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
            (total * SELDOM_SECONDS / span.max(SELDOM_SECONDS), false)
        }
    }
}

fn seldom(
    seen: &Seen<'_>,
    node: &Node,
    asked: &NodeSeen,
    old: Option<(&NodeSeen, f64)>,
    check: Check,
) -> Finding {
    let of = Of::new(seen.cluster, check);
    let (pick, what, next): (fn(&Counters) -> u64, &str, &str) = if check == Check::Deadlocks {
        (|row| row.deadlocks, "deadlocks", "see the server's log, which shows both sides of each")
    } else {
        (
            |row| row.temp_bytes,
            "temporary files",
            "set log_temp_files to see whose they are, or raise work_mem",
        )
    };
    of.told(Subject::Node(node.name.clone()), &asked.counters, |subject, rows| {
        let total = sum(rows, pick);
        let old = old.and_then(|(old, span)| Some((sum(old.counters.as_deref().ok()?, pick), span)));
        let (rate, between) = hourly(total, old, since(rows), seen.at);
        let measure = check.measure().expect("it is a number");
        let when = if between { "between two looks".to_owned() } else { since_text(rows) };
        let text = format!("{} of {what} an hour {when}", measure.written(rate));
        of.measures(subject, rate, limits(seen.cluster, Some(node), check), text)
            .with(number(&format!("{}_total", check.name().replace('-', "_")), measure, total))
            .next(next)
    })
}

/// Queries that a standby has cancelled so that replay goes on.
fn conflicts(
    seen: &Seen<'_>,
    node: &Node,
    observed: &NodeObserved,
    asked: &NodeSeen,
    old: Option<(&NodeSeen, f64)>,
) -> Option<Finding> {
    if observed.running().is_some_and(crate::ops::observe::Running::is_primary) {
        return None;
    }
    let of = Of::new(seen.cluster, Check::Conflicts);
    let subject = Subject::Node(node.name.clone());
    Some(of.told(subject, &asked.replay, |subject, replay| {
        let total = replay.as_ref().map_or(0.0, |replay| to_f64(replay.conflicts));
        let of_old = |old: &NodeSeen| Some(to_f64(old.replay.as_ref().ok()?.as_ref()?.conflicts));
        let old = old.and_then(|(old, span)| Some((of_old(old)?, span)));
        let rows = asked.counters.as_deref().unwrap_or_default();
        let (rate, between) = hourly(total, old, since(rows), seen.at);
        let when = if between { "between two looks".to_owned() } else { since_text(rows) };
        let text = format!("{} queries cancelled an hour {when}", Measure::Count.written(rate));
        of.measures(subject, rate, limits(seen.cluster, Some(node), Check::Conflicts), text)
            .with(number("conflicts_total", Measure::Count, total))
            .next("raise max_standby_streaming_delay, set hot_standby_feedback, or query another node")
    }))
}
