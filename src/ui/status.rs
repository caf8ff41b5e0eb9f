//! The herd on one screen a cluster.

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::ops::status::{ClusterStatus, NodeRole, NodeState, NodeStatus, PoolerState, PoolerStatus};
use crate::ui::{Format, Tone, Ui};
use crate::units::{ByteCount, human_duration};

#[derive(Serialize)]
struct Document<'a> {
    herd: &'a str,
    clusters: &'a [ClusterStatus],
}

/// Prints the status of clusters in the form that was asked for.
pub fn print(ui: &mut Ui, herd: &str, clusters: &[ClusterStatus]) {
    match ui.format {
        Format::Json => ui.json(&Document { herd, clusters }),
        Format::Human | Format::Markdown => {
            for (index, cluster) in clusters.iter().enumerate() {
                if index > 0 {
                    ui.line("");
                }
                human(ui, herd, cluster);
            }
        }
    }
}

fn human(ui: &mut Ui, herd: &str, cluster: &ClusterStatus) {
    let mut head = vec![format!("{herd}/{}", cluster.cluster)];
    head.extend(cluster.version.as_ref().map(|version| format!("PostgreSQL {version}")));
    head.extend(cluster.system_identifier.as_ref().map(|system| format!("system {system}")));
    head.extend(cluster.timeline.map(|timeline| format!("timeline {timeline}")));
    head.extend(cluster.synchronous.as_ref().map(|synchronous| format!("synchronous {synchronous}")));
    ui.line(head.join("   "));

    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "", "node", "role", "state", "LSN", "behind", "sync", "slot", "version", "disk", "up", "note",
    ]);
    for node in &cluster.nodes {
        table.add_row(row(ui, cluster, node));
    }
    for line in table.lines() {
        ui.line(line.trim_end());
    }
    for pooler in &cluster.poolers {
        let line = pooler_line(ui, pooler);
        ui.line(format!("  {line}"));
    }
    for operation in &cluster.operations {
        let how = if operation.running { "runs" } else { "is unfinished" };
        ui.line(format!(
            "  operation {} ({}) {how}, begun {:.0} by {}",
            operation.id, operation.kind, operation.begun, operation.by
        ));
    }
    for problem in &cluster.problems {
        let word = ui.paint(Tone::Warning, "WARNING");
        ui.line(format!("{word}  {}.   next: {}", problem.what, problem.next));
    }
}

fn row(ui: &Ui, cluster: &ClusterStatus, node: &NodeStatus) -> Vec<String> {
    let unknown = || "?".to_owned();
    let none = || "-".to_owned();
    let role = match node.role {
        NodeRole::Primary => "primary",
        NodeRole::Standby => "standby",
        NodeRole::Unknown => "unknown",
    };
    let (state, tone) = match node.state {
        NodeState::Up => ("up", Tone::Good),
        NodeState::Streaming => ("streaming", Tone::Good),
        NodeState::NotStreaming => ("not streaming", Tone::Bad),
        NodeState::Starting => ("starting", Tone::Warning),
        NodeState::Stopped => ("stopped", Tone::Bad),
        NodeState::Missing => ("missing", Tone::Bad),
        NodeState::Unknown => ("unknown", Tone::Warning),
    };
    let behind = match (node.role, node.lag_bytes, node.lag_seconds) {
        (NodeRole::Primary, _, _) => none(),
        (_, Some(bytes), Some(seconds)) => {
            format!("{} {}", ByteCount(bytes), human_duration(std::time::Duration::from_secs_f64(seconds)))
        }
        (_, Some(bytes), None) => ByteCount(bytes).to_string(),
        (_, None, Some(seconds)) => {
            format!("? {}", human_duration(std::time::Duration::from_secs_f64(seconds)))
        }
        (_, None, None) => unknown(),
    };
    let slot = match &node.slot {
        Some(slot) if slot.active => "active".to_owned(),
        Some(slot) => format!(
            "holds {}",
            slot.retained_bytes.map_or_else(unknown, |bytes| ByteCount(bytes).to_string())
        ),
        None if node.role == NodeRole::Primary => none(),
        None if cluster.primary.is_some() => "none".to_owned(),
        None => unknown(),
    };
    let disk = match (node.disk_total_bytes, node.disk_free_bytes) {
        (Some(total), Some(free)) if total > 0 => format!("{} %", 100 - free * 100 / total),
        _ => unknown(),
    };
    let up = node.up_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or_else(unknown, uptime);
    let mut notes: Vec<String> = Vec::new();
    if node.preferred && node.role != NodeRole::Primary {
        notes.push("preferred primary".to_owned());
    }
    if let (Some(own), Some(cluster)) = (node.timeline, cluster.timeline)
        && own != cluster
    {
        notes.push(format!("timeline {own}"));
    }
    notes.extend(node.why.clone());
    vec![
        String::new(),
        node.node.clone(),
        role.to_owned(),
        ui.paint(tone, state),
        node.lsn.clone().unwrap_or_else(unknown),
        behind,
        node.sync_state.clone().unwrap_or_else(none),
        slot,
        node.version.clone().unwrap_or_else(unknown),
        disk,
        up,
        notes.join("; "),
    ]
}

fn uptime(seconds: u64) -> String {
    // A server tells its start to the second, so there are no tenths to show.
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        human_duration(std::time::Duration::from_secs(seconds))
    }
}

fn pooler_line(ui: &Ui, pooler: &PoolerStatus) -> String {
    let (state, tone) = match pooler.state {
        PoolerState::Up => ("up", Tone::Good),
        PoolerState::Stopped => ("stopped", Tone::Bad),
        PoolerState::Missing => ("missing", Tone::Bad),
        PoolerState::Unknown => ("unknown", Tone::Warning),
    };
    let mut parts = vec![format!("pooler {}:{}", pooler.host, pooler.port), ui.paint(tone, state)];
    parts.extend(pooler.routes.iter().map(|route| {
        format!("{} → {}{}", route.alias, route.to.join(", "), if route.paused { " (paused)" } else { "" })
    }));
    if pooler.state == PoolerState::Up {
        parts.push(format!("clients {}/{}   waiting {}", pooler.clients, pooler.max_clients, pooler.waiting));
    }
    parts.extend(pooler.why.clone());
    parts.join("   ")
}
