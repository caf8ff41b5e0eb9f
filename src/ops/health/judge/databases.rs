//! What the primary tells of its databases: ages, the horizon, and what is in them.

use super::super::asked::{Asked, Why};
use super::super::before::SizeBefore;
use super::super::report::{Finding, Subject};
use super::super::seen::{Inside, NodeSeen, Seen};
use super::{Of, Status, few, limits, number, to_f64};
use crate::db::health::activity::{Holder, Vitals};
use crate::db::health::databases::Counters;
use crate::topology::checks::{Check, Limits, Measure};
use crate::units::ByteCount;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut found = vec![
        age(seen, Check::XidAge),
        age(seen, Check::MultixactAge),
        freeze(seen),
        horizon(seen),
        dead_rows(seen),
        invalid_indexes(seen),
        sequences(seen),
    ];
    found.extend(slow_queries(seen));
    found.push(growth(seen));
    found
}

/// Returns what was asked in two ways, or why one of them is not known.
fn both<'t, A, B>(a: &'t Asked<A>, b: &'t Asked<B>) -> Asked<(&'t A, &'t B)> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
    }
}

/// How far the oldest row of a database is from the newest transaction. Beyond the failsafe's age VACUUM leaves everything else.
fn age(seen: &Seen<'_>, check: Check) -> Finding {
    let of = Of::new(seen.cluster, check);
    let multi = check == Check::MultixactAge;
    let age_of = |row: &Counters| if multi { row.multixact_age } else { row.xid_age };
    let failsafe = |vitals: &Vitals| if multi { vitals.multixact_failsafe_age } else { vitals.failsafe_age };
    let what = if multi { "multixacts" } else { "transactions" };
    of.of_primary(seen, |_, asked| {
        of.told(Subject::Cluster, &both(&asked.counters, &asked.vitals), |subject, (rows, vitals)| {
            let oldest = rows.iter().filter(|row| row.database.is_some()).max_by_key(|row| age_of(row));
            let Some((row, name)) = oldest.and_then(|row| Some((row, row.database.as_deref()?))) else {
                return of.says(subject, Status::Unknown, "it lists no databases");
            };
            let age = to_f64(age_of(row));
            // Percent of what cannot be passed: half of 2^32, where the server refuses to write.
            let share = Measure::Share.written(100.0 * age / f64::from(1_u32 << 31));
            let text = format!("{name} is {} {what} old, {share} of 2^31", Measure::Count.written(age));
            let Limits { warn, crit } = limits(seen.cluster, None, check);
            let crit = crit.map(|crit| crit.min(to_f64(failsafe(vitals))));
            of.measures(
                subject,
                age,
                Limits { warn: warn.map(|warn| warn.min(crit.unwrap_or(warn))), crit },
                text,
            )
            .next(format!("in database {name}: VACUUM (FREEZE, VERBOSE) of its oldest tables"))
        })
    })
}

/// At 100 % autovacuum begins, which is routine; what goes on growing beyond it is overdue (facts/health.md A1 row 27).
fn freeze(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Freeze);
    of.of_primary(seen, |_, asked| {
        of.told(Subject::Cluster, &both(&asked.counters, &asked.vitals), |subject, (rows, vitals)| {
            let of_rows = rows.iter().filter_map(|row| {
                let name = row.database.as_deref()?;
                let xid = to_f64(row.xid_age) / to_f64(vitals.freeze_max_age.max(1));
                let multi = to_f64(row.multixact_age) / to_f64(vitals.multixact_freeze_max_age.max(1));
                Some((100.0 * xid.max(multi), format!("database {name}")))
            });
            let of_tables = asked.inside.iter().filter_map(|inside| {
                let table = inside.unfrozen.as_ref().ok()?.as_ref()?;
                Some((table.share, format!("{} in {}", table.table, inside.database)))
            });
            let oldest = of_rows.chain(of_tables).max_by(|a, b| a.0.total_cmp(&b.0));
            let Some((share, name)) = oldest else {
                return of.says(subject, Status::Unknown, "it lists no databases");
            };
            let text = format!("{name} is at {} of autovacuum_freeze_max_age", Measure::Share.written(share));
            of.measures(subject, share, limits(seen.cluster, None, Check::Freeze), text)
                .next("SELECT * FROM pg_stat_progress_vacuum, and see \"health explain xmin-horizon\"")
        })
    })
}

fn horizon(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::XminHorizon);
    of.of_primary(seen, |_, asked| {
        of.told(Subject::Cluster, &asked.horizon, |subject, horizon| {
            let Some(held) = horizon else { return of.says(subject, Status::Ok, "nobody holds it") };
            let (kind, next) = match held.holder {
                Holder::Session => ("", "end the session: SELECT pg_terminate_backend(PID)"),
                Holder::Standby => {
                    ("standby ", "end the long query on the standby, or its hot_standby_feedback")
                }
                Holder::Slot => ("slot ", "see who should use the slot; drop it if nobody does"),
                Holder::Prepared => ("prepared transaction ", "COMMIT PREPARED or ROLLBACK PREPARED it"),
            };
            let age = to_f64(held.age);
            let text =
                format!("{kind}{} holds it for {} transactions", held.name, Measure::Count.written(age));
            of.measures(subject, age, limits(seen.cluster, None, Check::XminHorizon), text).next(next)
        })
    })
}

/// What was told inside of each database, and why not for those where it was not.
struct Within<'s, T> {
    told: Vec<(&'s str, &'s T)>,
    untold: Option<(&'s str, &'s Why)>,
}

impl<'s, T> Within<'s, T> {
    fn look(asked: &'s NodeSeen, pick: impl Fn(&'s Inside) -> &'s Asked<T>) -> Self {
        let mut within = Self { told: Vec::new(), untold: None };
        for inside in &asked.inside {
            match pick(inside) {
                Ok(told) => within.told.push((&inside.database, told)),
                Err(why) => within.untold = Some((&inside.database, why)),
            }
        }
        within
    }

    /// A finding of what was told holds; where nothing is wrong in that, what is not known counts.
    fn or_unknown(&self, of: Of<'_>, finding: Finding) -> Finding {
        match self.untold {
            Some((database, why)) if finding.status == Status::Ok => {
                let unknown = of.unknown(Subject::Cluster, why);
                Finding { text: format!("in {database}: {}", unknown.text), ..unknown }
            }
            Some(_) | None => finding,
        }
    }
}

fn dead_rows(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::DeadRows);
    of.of_primary(seen, |_, asked| {
        let within = Within::look(asked, |inside| &inside.dead_rows);
        let tables = within.told.iter().filter_map(|(database, table)| Some((*database, table.as_ref()?)));
        let finding = match tables.max_by(|a, b| a.1.share.total_cmp(&b.1.share)) {
            None => of.says(Subject::Cluster, Status::Ok, "no table has many"),
            Some((database, table)) => {
                let vacuumed = match table.vacuumed {
                    Some(at) => format!("last vacuumed at {at:.0}"),
                    None => "not vacuumed since the counters began".to_owned(),
                };
                let text = format!(
                    "{} in {database} has {} dead rows ({}), {vacuumed}",
                    table.table,
                    table.dead,
                    Measure::Share.written(table.share)
                );
                of.measures(Subject::Cluster, table.share, limits(seen.cluster, None, Check::DeadRows), text)
                    .next(format!("in database {database}: VACUUM (VERBOSE) {}", table.table))
            }
        };
        within.or_unknown(of, finding)
    })
}

fn invalid_indexes(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::InvalidIndexes);
    of.of_primary(seen, |_, asked| {
        let within = Within::look(asked, |inside| &inside.invalid_indexes);
        let names: Vec<String> = within
            .told
            .iter()
            .flat_map(|(database, found)| {
                found.iter().map(move |index| format!("{} of {} in {database}", index.name, index.table))
            })
            .collect();
        let finding = if names.is_empty() {
            of.says(Subject::Cluster, Status::Ok, "none")
        } else {
            let text = format!("{}: written and never read", few(&names));
            let many = to_f64(u64::try_from(names.len()).unwrap_or(u64::MAX));
            of.measures(Subject::Cluster, many, limits(seen.cluster, None, Check::InvalidIndexes), text)
                .next("DROP INDEX CONCURRENTLY, then build it again; or REINDEX INDEX CONCURRENTLY")
        };
        within.or_unknown(of, finding)
    })
}

fn sequences(seen: &Seen<'_>) -> Finding {
    let of = Of::new(seen.cluster, Check::Sequences);
    of.of_primary(seen, |_, asked| {
        let within = Within::look(asked, |inside| &inside.sequences);
        let sequences =
            within.told.iter().filter_map(|(database, found)| Some((*database, found.nearest.as_ref()?)));
        let finding = match sequences.max_by(|a, b| a.1.share.total_cmp(&b.1.share)) {
            None => of.says(Subject::Cluster, Status::Ok, "none was used"),
            Some((database, sequence)) => {
                let what = match &sequence.column {
                    Some(kind) => format!("what its column of type {kind} can hold"),
                    None => "what it can give".to_owned(),
                };
                let share = Measure::Share.written(sequence.share);
                let text = format!("{} in {database} has used {share} of {what}", sequence.name);
                of.measures(
                    Subject::Cluster,
                    sequence.share,
                    limits(seen.cluster, None, Check::Sequences),
                    text,
                )
                .next("give the column the type bigint before it ends")
            }
        };
        within.or_unknown(of, finding)
    })
}

/// How long the smallest disk lasts if the databases grow on as they did: a standby has all of them, too.
fn growth(seen: &Seen<'_>) -> Finding {
    /// A shorter time tells nothing of a day.
    const ENOUGH: f64 = 3600.0;
    const DAY: f64 = 24.0 * 3600.0;
    let of = Of::new(seen.cluster, Check::Growth);
    of.of_primary(seen, |_, asked| {
        let size = asked.facts.size.as_ref().unwrap_or(&Err(Why::NotUp));
        of.told(Subject::Cluster, size, |subject, bytes| {
            let says = |text: String| {
                let told = number("database_bytes", Measure::Size, to_f64(*bytes));
                of.says(subject.clone(), Status::Ok, text).with(told)
            };
            let large = ByteCount(*bytes);
            let oldest = seen.before.as_ref().and_then(|before| before.sizes.first());
            let elapsed = |size: &SizeBefore| seen.at.duration_since(size.at).as_secs_f64();
            let Some(before) = oldest.filter(|size| elapsed(size) >= ENOUGH) else {
                return says(format!("{large}; nothing is known of an hour ago"));
            };
            let seconds = elapsed(before);
            let a_day = (to_f64(*bytes) - to_f64(before.bytes)) * DAY / seconds;
            let when = Measure::Time.written(seconds);
            if a_day <= 0.0 {
                return says(format!("{large}, which has not grown in {when}"));
            }
            let rate = format!("{large}, growing by {} a day over {when}", Measure::Size.written(a_day));
            let disks = seen.each().filter_map(|(node, observed, _)| Some((observed.disk?.free, &node.name)));
            let Some((free, node)) = disks.min() else {
                return says(format!("{rate}; how much is free is not known"));
            };
            let left = to_f64(free.0) / a_day * DAY;
            let text = format!("{rate}: the {free} that are free on {node} last {}", Measure::Time.written(left));
            of.measures(subject.clone(), left, limits(seen.cluster, None, Check::Growth), text)
                .with(number("database_bytes", Measure::Size, to_f64(*bytes)))
                .with(number("growth_per_day", Measure::Size, a_day))
                .next("SELECT oid::regclass, pg_total_relation_size(oid) FROM pg_class ORDER BY 2 DESC LIMIT 10, or grow the disk")
        })
    })
}

/// The view is one for the whole server, so that the first database that has it tells. Where it is installed nowhere there is no such check.
fn slow_queries(seen: &Seen<'_>) -> Option<Finding> {
    let of = Of::new(seen.cluster, Check::SlowQueries);
    let (_, asked) = seen.primary_asked()?;
    let within = Within::look(asked, |inside| &inside.statements);
    let Some(told) = within.told.iter().find_map(|(_, told)| told.as_ref()) else {
        return within.untold.map(|(_, why)| of.unknown(Subject::Cluster, why));
    };
    let mean = told.seconds / to_f64(told.calls.max(1));
    let most = told.slowest.as_ref().map(|slowest| {
        let mean = Measure::Time.written(slowest.mean_seconds);
        format!("; most of it in {} calls of {mean}: {}", slowest.calls, slowest.query)
    });
    let text = format!(
        "{} a query, since pg_stat_statements was reset{}",
        Measure::Time.written(mean),
        most.unwrap_or_default()
    );
    let limits = limits(seen.cluster, None, Check::SlowQueries);
    Some(
        of.measures(Subject::Cluster, mean, limits, text)
            .with(number("statement_calls", Measure::Count, to_f64(told.calls)))
            .next(
                "SELECT query, calls, mean_exec_time FROM pg_stat_statements ORDER BY total_exec_time DESC",
            ),
    )
}
