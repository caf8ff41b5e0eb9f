//! What is fine and what is not. Pure: it asks nobody, so that every rule can be tested without a server.
//!
//! One file for each kind of question; each returns its findings.

mod activity;
mod archive;
mod configuration;
mod counters;
mod custom;
mod databases;
mod herd;
mod jobs;
mod nodes;
mod partitions;
mod poolers;
mod promises;
mod replication;
#[cfg(test)]
mod tests;
mod wal;

use super::asked::{Asked, Why};
use super::report::{CheckName, Finding, Measured, Status, Subject};
use super::seen::{NodeSeen, Seen};
use crate::topology::checks::{Check, Limits, Measure, Report, Worse};
use crate::topology::custom::CustomCheck;
use crate::topology::model::{Cluster, Node};

/// Judges everything that was seen of a cluster.
pub fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(nodes::judge(seen));
    findings.extend(activity::judge(seen));
    findings.extend(replication::judge(seen));
    findings.extend(wal::judge(seen));
    findings.extend(archive::judge(seen));
    findings.extend(databases::judge(seen));
    findings.extend(partitions::judge(seen));
    findings.extend(counters::judge(seen));
    findings.extend(configuration::judge(seen));
    findings.extend(herd::judge(seen));
    findings.extend(promises::judge(seen));
    findings.extend(jobs::judge(seen));
    findings.extend(poolers::judge(seen));
    findings.extend(custom::judge(seen));
    findings.retain(|finding| called(seen.cluster, finding).is_none_or(|report| report != Report::Never));
    for finding in &mut findings {
        if called(seen.cluster, finding) == Some(Report::Warning) && finding.status > Status::Warning {
            finding.status = Status::Warning;
        }
    }
    findings.sort_by(|one, other| one.check.cmp(&other.check));
    findings
}

/// Returns the worst that the file lets a finding be called.
fn called(cluster: &Cluster, finding: &Finding) -> Option<Report> {
    let check = finding.check.own()?;
    let of_node = match &finding.subject {
        Subject::Node(name) => cluster.node(name).and_then(|node| node.health.get(&check)),
        Subject::Cluster | Subject::Pooler(_) | Subject::Part(_) => None,
    };
    let of_cluster = cluster.health.get(&check);
    of_node.and_then(|declared| declared.report).or(of_cluster.and_then(|declared| declared.report))
}

/// Returns the thresholds of a check: the node's own, else the cluster's, else `default`.
fn limits_or(cluster: &Cluster, node: Option<&Node>, check: Check, default: Limits) -> Limits {
    let of = |declared: Option<&crate::topology::checks::Declared>| {
        declared.map(|declared| declared.limits).unwrap_or_default()
    };
    of(node.and_then(|node| node.health.get(&check))).or(of(cluster.health.get(&check))).or(default)
}

/// Returns the thresholds of a check, whose defaults are those of [`Check::limits`].
fn limits(cluster: &Cluster, node: Option<&Node>, check: Check) -> Limits {
    limits_or(cluster, node, check, check.limits())
}

/// One of pgherd's own checks, or one that the file declares.
#[derive(Debug, Clone, Copy)]
enum Question<'c> {
    Own(Check),
    Custom(&'c CustomCheck),
}

impl Question<'_> {
    fn name(self) -> CheckName {
        match self {
            Self::Own(check) => check.into(),
            Self::Custom(check) => CheckName::Custom { name: check.name.clone(), worse: check.worse() },
        }
    }

    fn measure(self) -> Option<Measure> {
        match self {
            Self::Own(check) => check.measure(),
            Self::Custom(check) => Some(check.measure),
        }
    }

    fn worse(self) -> Worse {
        match self {
            Self::Own(check) => check.worse(),
            Self::Custom(check) => check.worse(),
        }
    }
}

/// Makes the findings of one cluster.
#[derive(Debug, Clone, Copy)]
struct Of<'c> {
    cluster: &'c Cluster,
    question: Question<'c>,
}

impl<'c> Of<'c> {
    fn new(cluster: &'c Cluster, check: Check) -> Self {
        Self { cluster, question: Question::Own(check) }
    }

    fn custom(cluster: &'c Cluster, check: &'c CustomCheck) -> Self {
        Self { cluster, question: Question::Custom(check) }
    }

    /// What holds or does not, without a number.
    fn says(self, subject: Subject, status: Status, text: impl Into<String>) -> Finding {
        Finding {
            check: self.question.name(),
            cluster: self.cluster.name.clone(),
            subject,
            status,
            text: text.into(),
            next: None,
            follows: None,
            damped: None,
            measured: Vec::new(),
        }
    }

    /// What is judged by its number.
    fn measures(self, subject: Subject, value: f64, limits: Limits, text: impl Into<String>) -> Finding {
        let name = self.question.name().name().replace('-', "_");
        self.measures_as(name, subject, value, limits, text.into())
    }

    /// What is judged by its number, which has a name of its own.
    fn measures_as(
        self,
        name: String,
        subject: Subject,
        value: f64,
        limits: Limits,
        mut text: String,
    ) -> Finding {
        let measure = self.question.measure().expect("a check that is judged by a number has a measure");
        let worse = self.question.worse();
        let beyond = |limit: Option<f64>| {
            limit.filter(|limit| match worse {
                Worse::Above => value >= *limit,
                Worse::Below => value <= *limit,
            })
        };
        let (status, reached) = match (beyond(limits.crit), beyond(limits.warn)) {
            (Some(at), _) => (Status::Critical, Some(("critical", at))),
            (None, Some(at)) => (Status::Warning, Some(("warning", at))),
            (None, None) => (Status::Ok, None),
        };
        if let Some((word, at)) = reached {
            let at = measure.written(at);
            text = match worse {
                Worse::Above => format!("{text}, {word} from {at} on"),
                Worse::Below => format!("{text}, {word} up to {at}"),
            };
        }
        let measured = vec![Measured { name, value, measure, limits: Some(limits), max: None }];
        Finding { measured, ..self.says(subject, status, text) }
    }

    /// What is judged by what was asked for it, if that is known.
    fn told<T>(
        self,
        subject: Subject,
        asked: &Asked<T>,
        judge: impl FnOnce(Subject, &T) -> Finding,
    ) -> Finding {
        match asked {
            Ok(told) => judge(subject, told),
            Err(why) => self.unknown(subject, why),
        }
    }

    /// What the primary alone can tell of the cluster.
    fn of_primary<'s, 'a>(
        self,
        seen: &'s Seen<'a>,
        judge: impl FnOnce(&'a Node, &'s NodeSeen) -> Finding,
    ) -> Finding {
        match seen.primary_asked() {
            Some((node, asked)) => judge(node, asked),
            None => self.nobody_leads(),
        }
    }

    /// What nobody can tell while the primary is not known.
    fn nobody_leads(self) -> Finding {
        Finding {
            follows: Some(Check::Primary),
            ..self.says(Subject::Cluster, Status::Unknown, "the primary is not known")
        }
    }

    /// What is not known.
    fn unknown(self, subject: Subject, why: &Why) -> Finding {
        match why {
            Why::NotUp => Finding {
                follows: Some(Check::Connect),
                ..self.says(subject, Status::Unknown, "not known: the server does not answer")
            },
            Why::NotGranted { role, grant } => Finding {
                next: Some(grant.clone()),
                ..self.says(subject, Status::Unknown, format!("role {role} may not see it"))
            },
            Why::Failed(why) => self.says(subject, Status::Unknown, why.clone()),
        }
    }
}

impl Finding {
    /// Adds the next command, where something is wrong.
    fn next(mut self, next: impl Into<String>) -> Self {
        if self.status != Status::Ok && self.next.is_none() {
            self.next = Some(next.into());
        }
        self
    }

    /// Makes it no better than this.
    fn at_least(mut self, status: Status) -> Self {
        self.status = self.status.max(status);
        self
    }

    /// Adds a number that is only told.
    fn with(mut self, measured: Measured) -> Self {
        self.measured.push(measured);
        self
    }
}

/// Returns a command for this cluster.
fn command(cluster: &Cluster, verb: &str) -> String {
    format!("pgherd --cluster {} {verb}", cluster.name)
}

/// Returns a number that is only told.
fn number(name: &str, measure: Measure, value: f64) -> Measured {
    Measured { name: name.to_owned(), value, measure, limits: None, max: None }
}

/// Returns things as a list that stays short: the first three, and how many more.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody reads the digits that are lost beyond 2^53")]
fn to_f64(number: u64) -> f64 {
    number as f64
}
