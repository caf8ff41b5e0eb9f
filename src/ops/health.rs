//! Judges the herd: every check of every cluster, each with its value, its thresholds, and the next command.
//!
//! Looks first ([`seen`]), then judges what was seen without asking anybody ([`judge`]). Changes nothing but its own memory ([`memory`]).
//! What is not known is unknown and never fine, and a finding that only follows from another one says so.

mod asked;
mod before;
mod custom;
mod explain;
mod herd;
mod judge;
mod memory;
mod report;
mod routes;
mod seen;
mod serve;

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;

pub use asked::{Asked, Why};
pub use before::{Before, Counted, NodeBefore};
pub use custom::CustomSeen;
pub use explain::{Ask, Explained, Needs, explained};
pub use herd::{Drill, Drills, HerdSeen, NodeFacts};
pub use memory::Memory;
pub use report::{CheckName, Damped, Finding, Health, Measured, Status, Subject};
pub use routes::{NodeRoute, Routes, Serves};
pub use seen::{NodeSeen, Seen};
pub use serve::{Board, answer};

use crate::error::{Error, Result};
use crate::ops::context::Context;
use crate::topology::checks::Check;
use crate::topology::model::{Cluster, Herd};
use memory::Keeper;

/// What a look came to.
#[derive(Debug, Clone)]
pub struct Looked {
    pub health: Health,
    /// Which node serves whom, in the order of the file.
    pub routes: Vec<Routes>,
}

/// Looks at clusters side by side and judges each; what is to be remembered is kept in the station's state directory.
///
/// With `sample` it looks twice, so far apart: what moves is told from what is stuck.
pub async fn examine(
    context: &Context,
    herd: &Herd,
    clusters: &[&Cluster],
    sample: Option<Duration>,
) -> Looked {
    let state = context.places.state();
    let remembered = memory::recall(state, &herd.name).memory;
    let begun = Timestamp::now();
    let seen = look(context, herd, clusters, sample, &remembered).await;
    let mut remarks = Vec::new();
    let mut memory = None;
    let keeper = match Keeper::hold(state, &herd.name).await {
        Ok(keeper) => {
            let read = keeper.read();
            remarks.extend(read.lost);
            // Whatever cannot be written now would not be counted to its end.
            match keeper.write(&read.memory) {
                Ok(()) => {
                    memory = Some(read.memory);
                    Some(keeper)
                }
                Err(error) => {
                    remarks.push(forgets(&error));
                    None
                }
            }
        }
        Err(error) => {
            remarks.push(forgets(&error));
            None
        }
    };
    let looked = judged(herd, begun, &seen, memory.as_mut(), remarks);
    if let (Some(keeper), Some(memory)) = (keeper, memory) {
        // It could be written a moment ago; the next run says if it cannot any more.
        keeper.write(&memory).ok();
    }
    looked
}

/// Looks at clusters again and again; what is to be remembered is in `memory`.
pub async fn examine_again(
    context: &Context,
    herd: &Herd,
    clusters: &[&Cluster],
    sample: Option<Duration>,
    memory: &mut Memory,
) -> Looked {
    let begun = Timestamp::now();
    let seen = look(context, herd, clusters, sample, memory).await;
    judged(herd, begun, &seen, Some(memory), Vec::new())
}

/// Returns when a herd was judged last, where that is remembered.
pub fn last_success(context: &Context, herd: &Herd) -> Option<Timestamp> {
    memory::recall(context.places.state(), &herd.name).memory.last_success
}

fn forgets(error: &std::io::Error) -> String {
    format!("What was seen cannot be remembered ({error}), so each breach counts from the first look on.")
}

/// What was seen of a cluster, or why its doors could not even be opened.
type Look<'a> = (&'a Cluster, Result<Seen<'a>>);

async fn look<'a>(
    context: &Context,
    herd: &Herd,
    clusters: &[&'a Cluster],
    sample: Option<Duration>,
    memory: &Memory,
) -> Vec<Look<'a>> {
    let all = || join_all(clusters.iter().map(|cluster| seen::look(context, herd, cluster)));
    let mut befores: Vec<Option<Before>> =
        clusters.iter().map(|cluster| memory.before(&cluster.name).cloned()).collect();
    let mut seen = all().await;
    if let Some(sample) = sample {
        for (seen, before) in seen.iter().zip(&mut befores) {
            // Sizes are of days, which two looks are not.
            let sizes = before.take().map(|before| before.sizes).unwrap_or_default();
            *before = seen.as_ref().ok().map(|seen| Before { sizes, ..Before::of(seen) });
        }
        tokio::time::sleep(sample).await;
        seen = all().await;
    }
    for (seen, before) in seen.iter_mut().zip(befores) {
        if let Ok(seen) = seen {
            seen.before = before;
        }
    }
    clusters.iter().copied().zip(seen).collect()
}

fn judged(
    herd: &Herd,
    begun: Timestamp,
    looks: &[Look<'_>],
    mut memory: Option<&mut Memory>,
    remarks: Vec<String>,
) -> Looked {
    let mut findings = Vec::new();
    let mut routes = Vec::new();
    for (cluster, seen) in looks {
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                findings.push(closed(cluster, error));
                routes.push(Routes::unknown(cluster, error.what()));
                continue;
            }
        };
        let mut of = judge::judge(seen);
        if let Some(memory) = memory.as_deref_mut() {
            memory.damp(cluster, &mut of);
            memory.keep(seen);
        }
        routes.push(Routes::of(seen, &of));
        findings.extend(of);
    }
    let at = Timestamp::now();
    if let Some(memory) = memory {
        memory.last_success = Some(at);
    }
    let health = Health {
        herd: herd.name.clone(),
        status: findings.iter().map(|finding: &Finding| finding.status).max().unwrap_or(Status::Ok),
        clusters: looks.iter().map(|(cluster, _)| cluster.name.clone()).collect(),
        at,
        took_seconds: at.duration_since(begun).as_secs_f64(),
        findings,
        remarks,
    };
    Looked { health, routes }
}

/// What is found of a cluster whose doors could not be opened; it does not hide the others.
fn closed(cluster: &Cluster, error: &Error) -> Finding {
    Finding {
        check: Check::Connect.into(),
        cluster: cluster.name.clone(),
        subject: Subject::Cluster,
        status: Status::Unknown,
        text: error
            .detail_text()
            .map_or_else(|| error.what().to_owned(), |detail| format!("{}: {detail}", error.what())),
        next: error.hint_text().map(str::to_owned),
        follows: None,
        damped: None,
        measured: Vec::new(),
    }
}
