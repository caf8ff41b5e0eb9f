//! An operation while it runs, in the form that was asked for, and what is said when it has succeeded.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use serde::Serialize;

use super::{Format, Ui, Verbosity, events_json, lines, progress};
use crate::engine::event::EventStream;
use crate::topology::declared::LOOPBACK;
use crate::topology::model::Cluster;
use crate::units::human_duration;

/// Shows operations while they run, until every sink of the stream is gone: bars on a terminal, lines elsewhere, JSON lines on
/// stdout with `--format json`.
pub async fn draw(ui: &mut Ui, stream: EventStream) {
    match ui.format {
        Format::Json => events_json::draw(ui, stream).await,
        Format::Human | Format::Markdown if ui.verbosity == Verbosity::Quiet => drain(stream).await,
        Format::Human | Format::Markdown if io::stderr().is_terminal() => progress::draw(ui, stream).await,
        Format::Human | Format::Markdown => lines::draw(ui, stream).await,
    }
}

/// The driver waits for its reader, also for one who shows nothing.
async fn drain(mut stream: EventStream) {
    while stream.next().await.is_some() {}
}

/// One way for clients into a cluster.
#[derive(Debug, Serialize)]
struct WayIn<'a> {
    pool: &'a str,
    roles: Vec<&'a str>,
    host: &'a str,
    port: u16,
    database: String,
}

#[derive(Debug, Serialize)]
struct Up<'a> {
    herd: &'a str,
    cluster: &'a str,
    write_seen_on: &'a [String],
    seconds: f64,
    ways_in: Vec<WayIn<'a>>,
}

/// Says that a cluster is up, where a write was seen, and how clients come in.
pub fn print_up(ui: &mut Ui, herd: &str, cluster: &Cluster, nodes: &[String], seen: Duration) {
    let ways_in = ways_in(cluster);
    if ui.format == Format::Json {
        let name = cluster.name.as_str();
        let seconds = seen.as_secs_f64();
        ui.json_line("cluster_up", &Up { herd, cluster: name, write_seen_on: nodes, seconds, ways_in });
        return;
    }
    let on = if nodes.is_empty() {
        "there is no standby".to_owned()
    } else {
        format!("seen on {}", nodes.join(", "))
    };
    ui.remark(format!("{herd}/{} is up   write done, {on} after {}", cluster.name, human_duration(seen)));
    let width = ways_in.iter().map(|way| way.pool.len()).max().unwrap_or_default();
    for way in &ways_in {
        let user = way.roles.first().map(|role| format!(" user={role}")).unwrap_or_default();
        ui.remark(format!(
            "  {:<width$}   psql \"host={} port={} dbname={}{user}\"",
            way.pool, way.host, way.port, way.database
        ));
    }
}

/// Lists the aliases of the poolers; without poolers the databases on the nodes' own ports.
fn ways_in(cluster: &Cluster) -> Vec<WayIn<'_>> {
    let Some(poolers) = &cluster.poolers else {
        let roles = cluster.roles.iter().filter(|role| role.password.is_some());
        let roles: Vec<&str> = roles.map(|role| role.name.as_str()).collect();
        let all =
            cluster.nodes.iter().flat_map(|node| cluster.databases.iter().map(move |name| (node, name)));
        return all
            .map(|(node, database)| WayIn {
                pool: &node.name,
                roles: roles.clone(),
                host: cluster.address(&node.host),
                port: node.port,
                database: database.clone(),
            })
            .collect();
    };
    let mut ways = Vec::new();
    for database in &cluster.databases {
        for pool in &poolers.pools {
            let roles = cluster.roles.iter().filter(|role| role.pools.contains(&pool.name));
            ways.push(WayIn {
                pool: &pool.name,
                roles: roles.map(|role| role.name.as_str()).collect(),
                host: poolers.hosts.first().map_or(LOOPBACK, |host| cluster.address(host)),
                port: poolers.port,
                database: pool.alias(database),
            });
        }
    }
    ways
}
