//! `pgherd validate`.

use serde::Serialize;

use super::{App, Outcome};
use crate::topology::lints::lints;
use crate::topology::model::Cluster;
use crate::ui::Format;
use crate::ui::exit::Exit;

/// Check the topology file without touching anything
///
/// Reads the file and checks every rule that can be checked without a network: keys, units, names, ports, data directories,
/// synchronous standbys, the connection budget of the pools. Prints every problem of the file with its line and column, and warns of what
/// is allowed and seldom meant.
///
/// Changes nothing, connects to nothing and reads no secret.
///
/// Exit codes: 0 the file is valid, 2 it is not.
///
/// Example: pgherd -f shop.yml validate
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {}

#[derive(Serialize)]
struct Report {
    valid: bool,
    herd: String,
    file: String,
    clusters: Vec<Summary>,
    /// What is allowed and seldom meant.
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Summary {
    name: String,
    version: u32,
    nodes: Vec<String>,
    preferred: String,
    databases: Vec<String>,
    poolers: usize,
}

pub fn run(_args: &ValidateArgs, app: &mut App) -> Outcome {
    let herd = app.herd()?;
    let clusters = app.clusters(&herd)?;
    let warnings: Vec<String> = clusters
        .iter()
        .flat_map(|cluster| lints(cluster).into_iter().map(|lint| format!("{}: {lint}", cluster.name)))
        .collect();
    match app.ui.format {
        Format::Json => app.ui.json(&Report {
            valid: true,
            herd: herd.name.clone(),
            file: herd.file.display().to_string(),
            clusters: clusters.iter().map(|cluster| summary(cluster)).collect(),
            warnings,
        }),
        Format::Human | Format::Markdown => {
            for cluster in clusters {
                app.ui.remark(format!("{}/{}", herd.name, sentence(cluster)));
            }
            for warning in warnings {
                app.ui.note(format!("WARNING: {warning}."));
            }
            app.ui.remark(format!("valid    {}", herd.file.display()));
        }
    }
    Ok(Exit::Done)
}

fn summary(cluster: &Cluster) -> Summary {
    Summary {
        name: cluster.name.clone(),
        version: cluster.postgres.version,
        nodes: cluster.nodes.iter().map(|node| node.name.clone()).collect(),
        preferred: cluster.preferred().name.clone(),
        databases: cluster.databases.clone(),
        poolers: cluster.poolers.as_ref().map_or(0, |poolers| poolers.hosts.len()),
    }
}

/// `inventory   PostgreSQL 15   3 nodes (a preferred)   synchronous any 1 of (b, c)   pooler local:6441`
fn sentence(cluster: &Cluster) -> String {
    let nodes = match cluster.nodes.len() {
        1 => "1 node".to_owned(),
        many => format!("{many} nodes"),
    };
    let synchronous = match &cluster.synchronous {
        Some(rule) => format!("synchronous any {} of ({})", rule.wait_for, rule.of.join(", ")),
        None => "asynchronous".to_owned(),
    };
    let poolers = match &cluster.poolers {
        Some(poolers) => format!("pooler {}:{}", poolers.hosts.join(", "), poolers.port),
        None => "no pooler".to_owned(),
    };
    format!(
        "{:<12} PostgreSQL {}   {nodes} (preferred {})   {synchronous}   {poolers}",
        cluster.name,
        cluster.postgres.version,
        cluster.preferred().name
    )
}
