//! Checks that the topology declares: the first column of the answer held against thresholds, the others told.

use super::super::asked::Why;
use super::super::custom::CustomSeen;
use super::super::report::{Finding, Status, Subject};
use super::super::seen::Seen;
use super::{Of, number};
use crate::topology::checks::Measure;
use crate::topology::custom::{CustomCheck, On};
use crate::topology::model::Cluster;

/// Judges what the nodes answered.
pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    seen.custom
        .iter()
        .filter_map(|told| {
            let check = seen.cluster.checks.iter().find(|check| check.name == told.check)?;
            Some(finding(seen.cluster, check, told))
        })
        .collect()
}

fn finding(cluster: &Cluster, check: &CustomCheck, seen: &CustomSeen) -> Finding {
    // Whoever is primary now: the finding is the cluster's, so that it goes on across a switchover.
    let subject = match (&seen.node, check.on) {
        (Some(node), On::Standbys | On::All) => Subject::Node(node.clone()),
        (Some(_) | None, On::Primary) | (None, On::Standbys | On::All) => Subject::Cluster,
    };
    let of = Of::custom(cluster, check);
    let columns = match &seen.told {
        Ok(columns) => columns,
        Err(Why::Failed(_) | Why::NotGranted { .. }) if seen.node.is_none() => return of.nobody_leads(),
        Err(why @ Why::Failed(_)) => {
            let place = format!("see \"checks.{}\" of {} in the topology", check.name, cluster.name);
            return of.unknown(subject, why).next(place);
        }
        Err(why @ (Why::NotUp | Why::NotGranted { .. })) => return of.unknown(subject, why),
    };
    let Some(((name, Some(value)), others)) = columns.split_first() else {
        return of.says(subject, Status::Unknown, "its first column is no number");
    };
    let written = check.measure.written(*value);
    let text = if check.measure == Measure::Count { format!("{name} {written}") } else { written };
    let finding = of.measures_as(name.clone(), subject, *value, check.limits, text);
    // What the others are measured in nobody has said.
    others.iter().fold(finding, |finding, (name, value)| match value {
        Some(value) => finding.with(number(name, Measure::Count, *value)),
        None => finding,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::db::custom::Column;

    use crate::ops::health::Asked;
    use crate::topology::checks::Check;

    const HERD: &str = "
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  inventory:
    postgres: {version: 15, tune: {memory: 512 MiB}}
    checks:
      open-orders: {sql: select 1, warn: 10, crit: 20}
      money-left: {sql: select 1, warn: 100 MiB, crit: 10 MiB, measure: size, on: standbys}
    nodes:
      a: {host: local, port: 5441, data-directory: /srv/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /srv/b}
    poolers: none
";

    fn judge_one(check: &str, node: Option<&str>, told: Asked<Vec<Column>>) -> Finding {
        let herd = crate::topology::load_text(Path::new("pgherd.yml"), HERD, Path::new("/")).unwrap();
        let cluster = &herd.clusters[0];
        let declared = cluster.checks.iter().find(|declared| declared.name == check).unwrap();
        finding(
            cluster,
            declared,
            &CustomSeen { check: check.to_owned(), node: node.map(str::to_owned), told },
        )
    }

    fn column(name: &str, value: f64) -> Column {
        (name.to_owned(), Some(value))
    }

    #[test]
    fn the_first_column_is_judged_and_the_others_are_told() {
        let told = vec![column("open", 12.0), ("note".to_owned(), None), column("oldest", 3.5)];
        let found = judge_one("open-orders", Some("a"), Ok(told));
        assert_eq!((found.status, found.subject), (Status::Warning, Subject::Cluster));
        assert_eq!(found.text, "open 12, warning from 10 on");
        let measured: Vec<(&str, f64, bool)> =
            found.measured.iter().map(|one| (one.name.as_str(), one.value, one.limits.is_some())).collect();
        assert_eq!(measured, [("open", 12.0, true), ("oldest", 3.5, false)]);
    }

    #[test]
    fn a_value_that_should_be_large_is_worse_below() {
        let found = |value| judge_one("money-left", Some("b"), Ok(vec![column("left", value)]));
        assert_eq!(found(2e8).status, Status::Ok);
        assert_eq!(found(5e7).status, Status::Warning);
        let critical = found(1e6);
        assert_eq!((critical.status, critical.subject), (Status::Critical, Subject::Node("b".to_owned())));
    }

    #[test]
    fn what_cannot_be_asked_is_unknown_and_says_why() {
        let refused =
            judge_one("open-orders", Some("a"), Err(Why::Failed("cannot execute INSERT".to_owned())));
        assert_eq!((refused.status, refused.text.as_str()), (Status::Unknown, "cannot execute INSERT"));
        assert!(refused.is_trouble() && refused.next.is_some());
        let down = judge_one("money-left", Some("b"), Err(Why::NotUp));
        assert_eq!(down.follows, Some(Check::Connect));
        let nobody = judge_one("open-orders", None, Err(Why::Failed("x".to_owned())));
        assert_eq!((nobody.status, nobody.follows), (Status::Unknown, Some(Check::Primary)));
        let text = judge_one("open-orders", Some("a"), Ok(vec![("x".to_owned(), None)]));
        assert_eq!(text.status, Status::Unknown);
    }
}
