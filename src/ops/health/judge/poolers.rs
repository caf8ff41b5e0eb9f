//! PgBouncer: whether it answers, leads where it should, has clients that wait, and fits into the servers.

use super::super::asked::Why;
use super::super::report::{Finding, Measured, Status, Subject};
use super::super::seen::Seen;
use super::{Of, command, limits};
use crate::ops::pooler::status::budget_of;
use crate::ops::pooler::{self, Console, ConsoleSeen, PoolerProcess, PoolerSeen, RouteTruth, Truth};
use crate::topology::checks::{Check, Measure};
use crate::topology::model::Poolers;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let Some(declared) = &seen.cluster.poolers else { return Vec::new() };
    let truths = pooler::routes(seen.cluster, &seen.observed, &seen.poolers);
    let mut found = Vec::new();
    for one in &seen.poolers {
        let name = name(one, declared);
        found.push(answers(seen, one, &name));
        let of_it = truths.iter().filter(|truth| truth.host == one.host && truth.process == one.process);
        found.push(routes(seen, &of_it.collect::<Vec<_>>(), &name));
        match console(one) {
            Some(console) => {
                found.push(waits(seen, console, &name));
                found.push(clients(seen, console, declared, &name));
            }
            None => found.extend([Check::PoolWait, Check::PoolClients].map(|check| {
                let of = Of::new(seen.cluster, check);
                Finding {
                    follows: Some(Check::Poolers),
                    ..of.says(Subject::Pooler(name.clone()), Status::Unknown, "its console does not answer")
                }
            })),
        }
    }
    found.push(budget(seen));
    found
}

fn name(one: &PoolerSeen, declared: &Poolers) -> String {
    if declared.processes > 1 { format!("{}/{}", one.host, one.process) } else { one.host.clone() }
}

fn console(one: &PoolerSeen) -> Option<&Console> {
    match &one.observed.as_ref().ok()?.console {
        ConsoleSeen::Answered(console) => Some(console),
        ConsoleSeen::Unknown { .. } => None,
    }
}

fn answers(seen: &Seen<'_>, one: &PoolerSeen, name: &str) -> Finding {
    let of = Of::new(seen.cluster, Check::Poolers);
    let subject = Subject::Pooler(name.to_owned());
    let observed = match &one.observed {
        Ok(observed) => observed,
        Err(why) => return of.unknown(subject, &Why::Failed(why.clone())),
    };
    let (status, text) = match (&observed.process, &observed.console) {
        (PoolerProcess::Running { .. }, ConsoleSeen::Answered(console)) => {
            (Status::Ok, format!("PgBouncer {}", console.version))
        }
        (PoolerProcess::Running { .. }, ConsoleSeen::Unknown { why })
        | (PoolerProcess::Unknown { why }, _) => (Status::Unknown, why.clone()),
        (PoolerProcess::Stopped, _) if observed.ini.is_none() => {
            (Status::Critical, "it is not there yet".to_owned())
        }
        (PoolerProcess::Stopped, _) => (Status::Critical, "it is stopped".to_owned()),
    };
    of.says(subject, status, text).next(command(seen.cluster, "pooler apply"))
}

/// What an alias should lead to is decided by who is primary now (facts/health.md T6).
fn routes(seen: &Seen<'_>, truths: &[&RouteTruth], name: &str) -> Finding {
    let of = Of::new(seen.cluster, Check::Routes);
    let subject = Subject::Pooler(name.to_owned());
    let told = |truth: &&&RouteTruth| {
        let why = truth.why.clone().unwrap_or_else(|| format!("leads to {}", truth.to.join(", ")));
        format!("{}: {why}", truth.alias)
    };
    let of_kind = |kind: Truth| -> Vec<String> {
        truths.iter().filter(|truth| truth.truth == kind).map(|truth| told(&truth)).collect()
    };
    let (wrong, unknown) = (of_kind(Truth::False), of_kind(Truth::Unknown));
    let held: Vec<String> = truths
        .iter()
        .filter(|truth| truth.truth == Truth::True && (truth.paused || truth.disabled))
        .map(|truth| format!("{} is {}", truth.alias, if truth.disabled { "disabled" } else { "paused" }))
        .collect();
    let next = command(seen.cluster, "pooler status");
    match (wrong.is_empty(), unknown.is_empty(), held.is_empty()) {
        (false, _, _) => of.says(subject, Status::Critical, wrong.join("; ")).next(next),
        (true, _, false) => {
            of.says(subject, Status::Critical, held.join("; ")).next(command(seen.cluster, "pooler resume"))
        }
        (true, false, true) => of.says(subject, Status::Unknown, unknown.join("; ")).next(next),
        (true, true, true) => {
            let all: Vec<String> =
                truths.iter().map(|truth| format!("{} to {}", truth.alias, truth.to.join(", "))).collect();
            of.says(subject, Status::Ok, all.join("; "))
        }
    }
}

/// While an alias is paused its clients wait on purpose: the wait grows, and the pause is told by the routes (facts/health.md A1 row 39).
fn waits(seen: &Seen<'_>, console: &Console, name: &str) -> Finding {
    let of = Of::new(seen.cluster, Check::PoolWait);
    let paused = |alias: &str| console.databases.iter().any(|row| row.alias == alias && row.paused);
    let waiting = console.pools.iter().filter(|pool| !paused(&pool.alias) && pool.clients_waiting > 0);
    let longest = waiting.max_by_key(|pool| pool.longest_wait);
    let (seconds, text) = match longest {
        Some(pool) => {
            let seconds = pool.longest_wait.as_secs_f64();
            let told = Measure::Time.written(seconds);
            let (waits, alias, user) = (pool.clients_waiting, &pool.alias, &pool.user);
            (seconds, format!("{waits} clients of {alias} ({user}) wait, the first for {told}"))
        }
        None => (0.0, "no client waits".to_owned()),
    };
    of.measures(Subject::Pooler(name.to_owned()), seconds, limits(seen.cluster, None, Check::PoolWait), text)
        .next(command(seen.cluster, "pooler status"))
}

fn clients(seen: &Seen<'_>, console: &Console, declared: &Poolers, name: &str) -> Finding {
    let of = Of::new(seen.cluster, Check::PoolClients);
    let connected: u32 = console.pools.iter().map(|pool| pool.clients_active + pool.clients_waiting).sum();
    let in_effect = console.settings.get("max_client_conn").and_then(|row| row.value.parse().ok());
    let most: u32 = in_effect.unwrap_or(declared.max_clients).max(1);
    let share = 100.0 * f64::from(connected) / f64::from(most);
    let text = format!("{connected} of {most} clients ({})", Measure::Share.written(share));
    of.measures(Subject::Pooler(name.to_owned()), share, limits(seen.cluster, None, Check::PoolClients), text)
        .with(Measured {
            name: "pool_clients".to_owned(),
            value: f64::from(connected),
            measure: Measure::Count,
            limits: None,
            max: Some(f64::from(most)),
        })
        .next(command(seen.cluster, "pooler status"))
}

/// The arithmetic for today and for each failover (facts/health.md T7, facts/pgbouncer.md C4).
fn budget(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Budget);
    let primary = seen.primary().map(|primary| primary.node.as_str());
    let budget = budget_of(seen.cluster, &seen.observed, primary);
    let over: Vec<String> = budget
        .over()
        .map(|(layout, node)| {
            format!("{} ({}): {} of {} connections", node.node, layout.name, node.demand, node.usable)
        })
        .collect();
    let today = budget.over().any(|(layout, _)| layout.today);
    match over.is_empty() {
        true => of.says(Subject::Cluster, Status::Ok, format!("fits in {} layouts", budget.layouts.len())),
        false => of
            .says(
                Subject::Cluster,
                if today { Status::Critical } else { Status::Warning },
                format!("the poolers may open more than there are: {}", over.join("; ")),
            )
            .next(command(seen.cluster, "pooler status")),
    }
}
