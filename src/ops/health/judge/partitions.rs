//! The partitions that are declared: how far ahead they reach, what is in a default one, what hangs half detached, what is not as declared.

use super::super::asked::Asked;
use super::super::report::{Finding, Subject};
use super::super::seen::{Partitions, Seen, SetAsked};
use super::{Of, Status, command, limits, limits_or, number, to_f64};
use crate::db::partition::DefaultRows;
use crate::ops::partition::{Standing, standing};
use crate::topology::checks::{Check, Limits, Measure};
use crate::topology::model::Cluster;
use crate::topology::partitions::PartitionSet;

/// Without declared sets there are no such checks.
pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    seen.cluster.partitions.iter().flat_map(|set| of_set(seen, set)).collect()
}

fn of_set(seen: &Seen<'_>, set: &PartitionSet) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Partitions);
    let Some((_, asked)) = seen.primary_asked() else {
        return vec![Finding { subject: part(set), ..of.nobody_leads() }];
    };
    let Some(inside) = asked.inside.iter().find(|inside| inside.database == set.database) else {
        return vec![of.says(part(set), Status::Unknown, format!("{} was not looked at", set.database))];
    };
    match &inside.partitions {
        Ok(partitions) => looked_at(seen, set, partitions),
        Err(why) => vec![of.unknown(part(set), why)],
    }
}

fn part(set: &PartitionSet) -> Subject {
    Subject::Part(set.table.to_string())
}

fn looked_at(seen: &Seen<'_>, set: &PartitionSet, partitions: &Partitions) -> Vec<Finding> {
    let of = Of::new(seen.cluster, Check::Partitions);
    let is_it =
        |asked: &&SetAsked| (&asked.seen.schema, &asked.seen.name) == (&set.table.schema, &set.table.name);
    let Some(asked) = partitions.sets.iter().find(is_it) else {
        return vec![of.says(part(set), Status::Unknown, "it was not looked at")];
    };
    let standing = match standing(set, &asked.seen, &partitions.marked, seen.at) {
        Ok(standing) => standing,
        Err(error) => {
            let next = command(seen.cluster, &format!("partition plan {}", set.table));
            return vec![of.says(part(set), Status::Critical, error.what()).next(next)];
        }
    };
    let mut found = vec![as_declared(seen.cluster, set, &standing), horizon(seen.cluster, set, &standing)];
    if let Some(rows) = &asked.default_rows {
        found.push(default_rows(seen.cluster, set, &standing, rows));
    }
    found.push(pending(seen.cluster, set, &standing, asked.seen.held_by));
    found
}

fn apply(cluster: &Cluster, set: &PartitionSet) -> String {
    command(cluster, &format!("partition apply {}", set.table))
}

fn as_declared(cluster: &Cluster, set: &PartitionSet, standing: &Standing) -> Finding {
    let of = Of::new(cluster, Check::Partitions);
    let refuses = standing.amiss.iter().any(|amiss| amiss.refuses_rows);
    let whats: Vec<&str> = standing.amiss.iter().map(|amiss| amiss.what.as_str()).collect();
    match (whats.is_empty(), refuses) {
        (true, _) => of.says(part(set), Status::Ok, "as declared"),
        (false, true) => of.says(part(set), Status::Critical, whats.join("; ")),
        (false, false) => of.says(part(set), Status::Warning, whats.join("; ")),
    }
    .next(apply(cluster, set))
}

/// Fewer than declared are a warning, none for the next period is critical; a new period has a day to get what it lacks.
fn horizon(cluster: &Cluster, set: &PartitionSet, standing: &Standing) -> Finding {
    let of = Of::new(cluster, Check::PartitionHorizon);
    let one_fewer = standing.due.checked_sub(1).map(f64::from);
    let default = Limits { warn: one_fewer, crit: one_fewer.map(|_| 0.0) };
    let limits = limits_or(cluster, None, Check::PartitionHorizon, default);
    let every = set.every.word();
    let until = standing.until.as_deref().unwrap_or("now");
    let (ahead, text) = match standing.ahead {
        None => (0, format!("no partition holds {}, the present {every}", standing.lacks)),
        Some(0) => (0, format!("no partition holds {}, the next {every}", standing.lacks)),
        Some(ahead) => (ahead, format!("{ahead} of {} {every}s ahead, up to {until}", set.ahead)),
    };
    let found = of.measures(part(set), f64::from(ahead), limits, text);
    let found = if standing.ahead.is_none() { found.at_least(Status::Critical) } else { found };
    found
        .with(number("partitions_declared_ahead", Measure::Count, f64::from(set.ahead)))
        .next(apply(cluster, set))
}

fn default_rows(
    cluster: &Cluster,
    set: &PartitionSet,
    standing: &Standing,
    rows: &Asked<DefaultRows>,
) -> Finding {
    let of = Of::new(cluster, Check::DefaultPartition);
    let default = standing.default.as_ref().map(ToString::to_string).unwrap_or_default();
    of.told(part(set), rows, |subject, rows| {
        let text = match (&rows.first, &rows.last) {
            (Some(_), Some(_)) => format!("{default} has {}", rows.told()),
            (_, _) if rows.rows > 0 => format!("{default} has {} rows whose {} is NULL", rows.rows, set.by),
            (_, _) => format!("{default} is empty"),
        };
        let many = to_f64(rows.rows.unsigned_abs());
        of.measures(subject, many, limits(cluster, None, Check::DefaultPartition), text)
            .next(command(cluster, &format!("partition drain {} --preview", set.table)))
    })
}

/// While a run of pgherd works on the set, its detach is not left behind.
fn pending(cluster: &Cluster, set: &PartitionSet, standing: &Standing, held_by: Option<i32>) -> Finding {
    let of = Of::new(cluster, Check::PendingDetach);
    let names: Vec<String> = standing.pending.iter().map(ToString::to_string).collect();
    match held_by {
        _ if names.is_empty() => {
            of.measures(part(set), 0.0, limits(cluster, None, Check::PendingDetach), "none")
        }
        Some(pid) => {
            of.says(part(set), Status::Ok, format!("{} is being detached by pid {pid}", names.join(", ")))
        }
        None => {
            let text = format!("the detach of {} was begun and not ended", names.join(", "));
            let many = to_f64(names.len() as u64);
            of.measures(part(set), many, limits(cluster, None, Check::PendingDetach), text)
        }
    }
    .next(apply(cluster, set))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::asked::Why;
    use super::*;
    use crate::topology::load_text;

    const HERD: &str = "\
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  orders:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    nodes: {a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}}
    poolers: none
    partitions: {orders.events: {by: at, every: month, ahead: 3}}
    databases: {orders: {}}
";

    fn standing(ahead: Option<u32>, due: u32) -> Standing {
        Standing {
            ahead,
            due,
            until: ahead.map(|_| "2027-02-01".to_owned()),
            lacks: "2027-02".to_owned(),
            default: None,
            pending: Vec::new(),
            amiss: Vec::new(),
        }
    }

    fn cluster(herd: &str) -> Cluster {
        load_text(Path::new("/pgherd.yml"), herd, Path::new("/")).unwrap().cluster("orders").unwrap().clone()
    }

    fn horizon_of(cluster: &Cluster, standing: &Standing) -> (Status, String) {
        let found = horizon(cluster, &cluster.partitions[0], standing);
        assert!(found.status == Status::Ok || found.next.is_some(), "{found:#?}");
        (found.status, found.text)
    }

    #[test]
    fn fewer_periods_than_declared_warn_and_no_next_one_is_critical() {
        let orders = cluster(HERD);
        let told = |ahead, due| horizon_of(&orders, &standing(ahead, due));
        assert_eq!(told(Some(3), 3), (Status::Ok, "3 of 3 months ahead, up to 2027-02-01".to_owned()));
        let warns = "2 of 3 months ahead, up to 2027-02-01, warning up to 2";
        assert_eq!(told(Some(2), 3), (Status::Warning, warns.to_owned()));
        // The day in which a daily run makes it.
        assert_eq!(told(Some(2), 2).0, Status::Ok);
        assert_eq!(told(Some(0), 3).0, Status::Critical);
        assert_eq!(told(Some(0), 0).0, Status::Ok);
        let none = (Status::Critical, "no partition holds 2027-02, the present month".to_owned());
        assert_eq!(told(None, 0), none);
    }

    #[test]
    fn the_thresholds_of_the_file_win() {
        let own = "    databases: {orders: {}}\n    health: {partition-horizon: {warn: 1}}\n";
        let orders = cluster(&HERD.replace("    databases: {orders: {}}\n", own));
        assert_eq!(horizon_of(&orders, &standing(Some(2), 3)).0, Status::Ok);
        assert_eq!(horizon_of(&orders, &standing(Some(1), 3)).0, Status::Warning);
    }

    #[test]
    fn rows_of_a_default_partition_and_half_a_detach_are_warnings_unless_a_run_is_at_it() {
        let orders = cluster(HERD);
        let set = &orders.partitions[0];
        let table = || "orders.events_default".parse().unwrap();
        let half = Standing { default: Some(table()), pending: vec![table()], ..standing(Some(3), 3) };
        let rows = |rows: i64, extent: Option<&str>| {
            let end = extent.map(str::to_owned);
            let rows = DefaultRows { rows, more: false, first: end.clone(), last: end };
            let found = default_rows(&orders, set, &half, &Ok(rows));
            (found.status, found.text)
        };
        assert_eq!(rows(0, None), (Status::Ok, "orders.events_default is empty".to_owned()));
        assert_eq!(rows(2, None).1, "orders.events_default has 2 rows whose at is NULL, warning from 1 on");
        assert_eq!(rows(2, Some("2126-01-01")).0, Status::Warning);
        let unseen =
            default_rows(&orders, set, &half, &Err(Why::Failed("somebody keeps it locked".to_owned())));
        assert_eq!(unseen.status, Status::Unknown);
        assert_eq!(pending(&orders, set, &half, None).status, Status::Warning);
        let runs = pending(&orders, set, &half, Some(4711));
        assert_eq!(
            (runs.status, runs.text.as_str()),
            (Status::Ok, "orders.events_default is being detached by pid 4711")
        );
    }
}
