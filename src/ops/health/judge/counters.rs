//! What servers count: hits, rollbacks, deadlocks, temporary files, conflicts and checksum failures.
//!
//! Since the last look where enough has happened since, else since the counters were reset, which the text says.

use super::super::before::Counted;
use super::super::report::{Finding, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, Status, limits, number, to_f64};
use crate::db::health::databases::Counters;
use crate::ops::observe::{NodeObserved, Running};
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Node;
use jiff::Timestamp;

/// Fewer blocks than this (800 MiB) tell nothing of a cache.
const BLOCKS: f64 = 100_000.0;
/// Fewer transactions than this tell nothing of how many are rolled back.
const TRANSACTIONS: f64 = 1000.0;
/// What happens seldom is not measured by a shorter time.
const SELDOM_SECONDS: f64 = 300.0;
const HOUR: f64 = 3600.0;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    seen.each()
        .flat_map(|(node, observed, asked)| {
            let old = before(seen, node);
            [
                Some(checksums(seen, node, observed, asked)),
                Some(share(seen, node, asked, old, Check::CacheHit)),
                Some(share(seen, node, asked, old, Check::Rollbacks)),
                Some(seldom(seen, node, asked, old, Check::Deadlocks)),
                Some(seldom(seen, node, asked, old, Check::TempFiles)),
                conflicts(seen, node, observed, asked, old),
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

/// What a node had counted at the look before this one.
#[derive(Debug, Clone, Copy)]
struct Old<'a> {
    counted: &'a Counted,
    /// How long ago that was.
    seconds: f64,
}

fn before<'s>(seen: &'s Seen<'_>, node: &Node) -> Option<Old<'s>> {
    let before = seen.before.as_ref().filter(|before| before.at < seen.at)?;
    let counted = before.nodes.get(&node.name)?.counted.as_ref()?;
    Some(Old { counted, seconds: seen.at.duration_since(before.at).as_secs_f64() })
}

/// Since when rows are counted.
fn since(rows: &[Counters]) -> Option<Timestamp> {
    rows.iter().filter(|row| row.database.is_some()).filter_map(|row| row.since).min()
}

fn since_text(rows: &[Counters]) -> String {
    since(rows).map_or_else(|| "since it was made".to_owned(), |at| format!("since {at:.0}"))
}

/// One of what is counted.
type Pick = fn(&Counted) -> u64;

/// Tells part of whole: blocks that were found in shared buffers, transactions that were rolled back.
fn share(seen: &Seen<'_>, node: &Node, asked: &NodeSeen, old: Option<Old<'_>>, check: Check) -> Finding {
    let of = Of::new(seen.cluster, check);
    let hit = check == Check::CacheHit;
    let (part, rest): (Pick, Pick) = if hit {
        (|counted| counted.blocks_hit, |counted| counted.blocks_read)
    } else {
        (|counted| counted.rollbacks, |counted| counted.commits)
    };
    let (enough, what) = if hit {
        (BLOCKS, "of the blocks in shared buffers")
    } else {
        (TRANSACTIONS, "of the transactions rolled back")
    };
    of.told(Subject::Node(node.name.clone()), &asked.counters, |subject, rows| {
        let counted = Counted::of(rows, 0);
        let now = (to_f64(part(&counted)), to_f64(rest(&counted)));
        let between = old.map(|old| (now.0 - to_f64(part(old.counted)), now.1 - to_f64(rest(old.counted))));
        // Counters that go back were reset in between.
        let between = between.filter(|(part, rest)| *part >= 0.0 && *rest >= 0.0 && part + rest >= enough);
        let (when, (part, rest)) = match between {
            Some(between) => (SINCE_LOOK.to_owned(), between),
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

const SINCE_LOOK: &str = "since the last look";

/// How much there was in an hour: since the last look if that was long enough ago, else on an average over no less than one.
fn hourly(total: u64, old: Option<(u64, f64)>, since: Option<Timestamp>, now: Timestamp) -> (f64, bool) {
    match old {
        Some((old, seconds)) if seconds >= SELDOM_SECONDS && total >= old => {
            (to_f64(total - old) * HOUR / seconds, true)
        }
        Some(_) | None => {
            let seconds = since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
            (to_f64(total) * HOUR / seconds.max(HOUR), false)
        }
    }
}

fn seldom(seen: &Seen<'_>, node: &Node, asked: &NodeSeen, old: Option<Old<'_>>, check: Check) -> Finding {
    let of = Of::new(seen.cluster, check);
    let (pick, what, next): (fn(&Counted) -> u64, &str, &str) = if check == Check::Deadlocks {
        (|counted| counted.deadlocks, "deadlocks", "see the server's log, which shows both sides of each")
    } else {
        (
            |counted| counted.temp_bytes,
            "temporary files",
            "set log_temp_files to see whose they are, or raise work_mem",
        )
    };
    of.told(Subject::Node(node.name.clone()), &asked.counters, |subject, rows| {
        let total = pick(&Counted::of(rows, 0));
        let old = old.map(|old| (pick(old.counted), old.seconds));
        let (rate, fresh) = hourly(total, old, since(rows), seen.at);
        let measure = check.measure().expect("it is a number");
        let when = if fresh { SINCE_LOOK.to_owned() } else { since_text(rows) };
        let text = format!("{} of {what} an hour {when}", measure.written(rate));
        of.measures(subject, rate, limits(seen.cluster, Some(node), check), text)
            .with(number(&format!("{}_total", check.name().replace('-', "_")), measure, to_f64(total)))
            .next(next)
    })
}

/// Queries that a standby has cancelled so that replay goes on.
fn conflicts(
    seen: &Seen<'_>,
    node: &Node,
    observed: &NodeObserved,
    asked: &NodeSeen,
    old: Option<Old<'_>>,
) -> Option<Finding> {
    if observed.running().is_some_and(Running::is_primary) {
        return None;
    }
    let of = Of::new(seen.cluster, Check::Conflicts);
    let subject = Subject::Node(node.name.clone());
    Some(of.told(subject, &asked.replay, |subject, replay| {
        let total = replay.as_ref().map_or(0, |replay| replay.conflicts);
        let old = old.map(|old| (old.counted.conflicts, old.seconds));
        let rows = asked.counters.as_deref().unwrap_or_default();
        let (rate, fresh) = hourly(total, old, since(rows), seen.at);
        let when = if fresh { SINCE_LOOK.to_owned() } else { since_text(rows) };
        let text = format!("{} queries cancelled an hour {when}", Measure::Count.written(rate));
        of.measures(subject, rate, limits(seen.cluster, Some(node), Check::Conflicts), text)
            .with(number("conflicts_total", Measure::Count, to_f64(total)))
            .next("raise max_standby_streaming_delay, set hot_standby_feedback, or query another node")
    }))
}
