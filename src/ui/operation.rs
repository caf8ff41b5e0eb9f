//! An operation while it runs, in the form that was asked for, and what is said when it has succeeded.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::{Format, Ui, Verbosity, events_json, lines, progress};
use crate::engine::event::EventStream;
use crate::topology::declared::LOOPBACK;
use crate::topology::model::{Cluster, Role};
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

/// Says that a cluster is up, where a write was seen, and how clients come in.
pub fn print_up(ui: &mut Ui, herd: &str, cluster: &Cluster, primary: &str, nodes: &[String], seen: Duration) {
    if ui.format == Format::Json {
        return;
    }
    let place = if nodes.is_empty() { String::new() } else { format!(" on {}", nodes.join(", ")) };
    ui.remark(format!("{herd}/{} is up   write seen{place} after {}", cluster.name, human_duration(seen)));
    for line in ways_in(cluster, primary) {
        ui.remark(line);
    }
}

/// Returns a line for each way in: `rw     psql "host=127.0.0.1 port=6441 user=app dbname=inventory"`.
fn ways_in(cluster: &Cluster, primary: &str) -> Vec<String> {
    let line = |way: &str, port: u16, user: Option<&str>, database: &str| {
        let user = user.map(|user| format!(" user={user}")).unwrap_or_default();
        format!("  {way:<6} psql \"host={LOOPBACK} port={port}{user} dbname={database}\"")
    };
    let with_login = |pool: Option<&str>| {
        let may = |role: &&Role| {
            role.password.is_some() && pool.is_none_or(|pool| role.pools.iter().any(|name| name == pool))
        };
        cluster.roles.iter().find(may).map(|role| role.name.as_str())
    };
    let mut lines = Vec::new();
    for database in &cluster.databases {
        match &cluster.poolers {
            Some(poolers) => lines.extend(poolers.pools.iter().map(|pool| {
                line(&pool.name, poolers.port, with_login(Some(&pool.name)), &pool.alias(database))
            })),
            None => lines
                .extend(cluster.node(primary).map(|node| line("rw", node.port, with_login(None), database))),
        }
    }
    lines
}
