//! What sessions do: idle in a transaction, running for long, waiting for a lock; and what was prepared and left.

use super::super::report::{Finding, Subject};
use super::super::seen::{NodeSeen, Seen};
use super::{Of, Status, limits, number, to_f64};
use crate::db::health::activity::{Blocker, Longest, Session};
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Node;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> = seen
        .each()
        .flat_map(|(node, _, asked)| {
            [
                longest(seen, node, asked, Check::IdleInTransaction),
                longest(seen, node, asked, Check::LongQuery),
                longest(seen, node, asked, Check::LongTransaction),
                lock_wait(seen, node, asked),
                lock_table(seen, node, asked),
            ]
        })
        .collect();
    found.push(prepared(seen));
    found
}

fn longest(seen: &Seen<'_>, node: &Node, asked: &NodeSeen, check: Check) -> Finding {
    let of = Of::new(seen.cluster, check);
    let (pick, does): (fn(&Longest) -> Option<&Session>, &str) = if check == Check::IdleInTransaction {
        (|longest| longest.idle.as_ref(), "is idle in a transaction")
    } else if check == Check::LongQuery {
        (|longest| longest.query.as_ref(), "runs")
    } else {
        (|longest| longest.transaction.as_ref(), "has been in a transaction")
    };
    of.told(Subject::Node(node.name.clone()), &asked.longest, |subject, longest| {
        let Some(session) = pick(longest) else { return of.says(subject, Status::Ok, "nobody") };
        let seconds = session.seconds.max(0.0);
        let text =
            format!("{} {does} for {}: {}", who(session), Measure::Time.written(seconds), session.query);
        let end = if check == Check::LongQuery { "pg_cancel_backend" } else { "pg_terminate_backend" };
        of.measures(subject, seconds, limits(seen.cluster, Some(node), check), text)
            .next(format!("SELECT {end}({})", session.pid))
    })
}

fn who(session: &Session) -> String {
    let through = match session.application.as_str() {
        "" => String::new(),
        application => format!(" through {application}"),
    };
    format!("pid {} ({}{through} in {})", session.pid, session.user, session.database)
}

fn lock_wait(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::LockWait);
    of.told(Subject::Node(node.name.clone()), &asked.lock_wait, |subject, wait| {
        let Some(wait) = wait else { return of.says(subject, Status::Ok, "nobody waits for a lock") };
        let seconds = wait.seconds.max(0.0);
        let (root, next) = match &wait.root {
            None => ("for somebody who is gone".to_owned(), "look again".to_owned()),
            Some(Blocker { pid: 0, .. }) => (
                "for a prepared transaction".to_owned(),
                "SELECT gid, prepared, owner FROM pg_prepared_xacts ORDER BY prepared".to_owned(),
            ),
            Some(root) => (
                format!("for pid {} ({}, {}: {})", root.pid, root.user, root.state, root.query),
                format!("SELECT pg_terminate_backend({})", root.pid),
            ),
        };
        let text = format!(
            "{} wait, pid {} ({}: {}) for {}, at the root {root}",
            wait.waiting,
            wait.pid,
            wait.user,
            wait.query,
            Measure::Time.written(seconds)
        );
        of.measures(subject, seconds, limits(seen.cluster, Some(node), Check::LockWait), text)
            .with(number("lock_waiters", Measure::Count, to_f64(wait.waiting)))
            .next(next)
    })
}

fn lock_table(seen: &Seen<'_>, node: &Node, asked: &NodeSeen) -> Finding {
    let of = Of::new(seen.cluster, Check::LockTable);
    of.told(Subject::Node(node.name.clone()), &asked.vitals, |subject, vitals| {
        let share = 100.0 * to_f64(vitals.locks) / to_f64(vitals.lock_slots.max(1));
        let text =
            format!("{} of {} locks ({})", vitals.locks, vitals.lock_slots, Measure::Share.written(share));
        of.measures(subject, share, limits(seen.cluster, Some(node), Check::LockTable), text)
            .next("raise max_locks_per_transaction, or touch fewer tables in a transaction")
    })
}

/// A standby never shows one, whatever the primary has.
fn prepared(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::PreparedTransactions);
    of.of_primary(seen, |_, asked| {
        of.told(Subject::Cluster, &asked.prepared, |subject, prepared| {
            let Some(oldest) = prepared else { return of.says(subject, Status::Ok, "none is left") };
            let seconds = oldest.seconds.max(0.0);
            let text = format!(
                "{} prepared transactions, the oldest {} of {} in {} for {}",
                oldest.count,
                oldest.name,
                oldest.owner,
                oldest.database,
                Measure::Time.written(seconds)
            );
            let check = Check::PreparedTransactions;
            of.measures(subject, seconds, limits(seen.cluster, None, check), text).next(format!(
                "ask its coordinator, then in {}: COMMIT PREPARED or ROLLBACK PREPARED '{}'",
                oldest.database, oldest.name
            ))
        })
    })
}
