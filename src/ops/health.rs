//! Judges the herd: every check of every cluster, each with its value, its thresholds, and the next command.
//!
//! Looks first ([`seen`]), then judges what was seen without asking anybody ([`judge`]). Changes nothing. What is not known is unknown
//! and never fine, and a finding that only follows from another one says so.

mod asked;
mod explain;
mod herd;
mod judge;
mod report;
mod seen;

use futures_util::future::join_all;
use jiff::Timestamp;

pub use asked::{Asked, Why};
pub use explain::{Ask, Explained, Needs, explained};
pub use herd::{Drill, Drills, HerdSeen, NodeFacts};
pub use report::{Finding, Health, Measured, Status, Subject};
pub use seen::{NodeSeen, Seen};

use crate::error::Result;
use crate::ops::context::Context;
use crate::topology::model::{Cluster, Herd};

/// Looks at clusters side by side and judges each.
///
/// # Errors
/// When a door cannot be opened at all; what does not answer is a finding.
pub async fn examine(context: &Context, herd: &Herd, clusters: &[&Cluster]) -> Result<Health> {
    let begun = Timestamp::now();
    let looks = join_all(clusters.iter().map(|cluster| seen::look(context, herd, cluster))).await;
    let mut findings = Vec::new();
    for seen in looks {
        findings.extend(judge::judge(&seen?));
    }
    Ok(Health {
        herd: herd.name.clone(),
        status: findings.iter().map(|finding: &Finding| finding.status).max().unwrap_or(Status::Ok),
        clusters: clusters.iter().map(|cluster| cluster.name.clone()).collect(),
        at: begun,
        took_seconds: Timestamp::now().duration_since(begun).as_secs_f64(),
        findings,
    })
}
