//! The herd on one screen a cluster.

use std::time::Duration;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::ops::status::{
    ArchiveStatus, BackupsStatus, ClusterStatus, NodeRole, NodeState, NodeStatus, PoolerState, PoolerStatus,
};
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
    for line in service_lines(cluster) {
        ui.line(format!("  {line}"));
    }
    for pooler in &cluster.poolers {
        let line = pooler_line(ui, pooler);
        ui.line(format!("  {line}"));
    }
    if let Some(backups) = &cluster.backups {
        let line = backups_line(ui, backups);
        ui.line(format!("  {line}"));
    }
    if let Some(nearest) = cluster.tls.as_ref().and_then(|tls| tls.nearest.as_ref()) {
        let days = nearest.left_seconds / (24 * 3600);
        ui.line(format!("  TLS   {} ends first: {:.0}, in {days} days", nearest.of, nearest.not_after));
    }
    if let Some(split) = &cluster.split_brain {
        let names: Vec<&str> = split.sides.iter().map(|side| side.node.as_str()).collect();
        let word = ui.paint(Tone::Bad, "SPLIT BRAIN");
        ui.line(format!("{word}  {} accept writes; {}", names.join(" and "), split.fork()));
        for side in &split.sides {
            ui.line(format!("  {}  {}", side.node, side.tell()));
        }
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
        NodeState::Fenced => ("fenced", Tone::Bad),
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

/// Says who starts the nodes, those together that nothing starts when their host boots.
fn service_lines(cluster: &ClusterStatus) -> Vec<String> {
    let known = |with_host: bool| {
        let nodes = cluster.nodes.iter().filter(move |node| node.starts_with_host == Some(with_host));
        nodes.filter_map(|node| Some((node.node.as_str(), node.started_by.as_deref()?)))
    };
    let list = |with_host: bool| -> String {
        let mut by: Vec<(&str, Vec<&str>)> = Vec::new();
        for (node, starter) in known(with_host) {
            match by.iter_mut().find(|(found, _)| *found == starter) {
                Some((_, nodes)) => nodes.push(node),
                None => by.push((starter, vec![node])),
            }
        }
        let told: Vec<String> =
            by.iter().map(|(starter, nodes)| format!("{} by {starter}", nodes.join(", "))).collect();
        told.join("; ")
    };
    let (with_host, without) = (list(true), list(false));
    let mut lines = Vec::new();
    lines.extend((!with_host.is_empty()).then(|| format!("service {with_host}, started with their hosts")));
    lines.extend(
        (!without.is_empty()).then(|| format!("service {without}: after a reboot nothing starts them")),
    );
    lines
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

fn backups_line(ui: &Ui, backups: &BackupsStatus) -> String {
    let mut parts = vec![format!("backup  {}", last_backup(ui, backups))];
    parts.extend(backups.running.iter().map(|made| {
        let share = match (made.done_bytes, made.total_bytes) {
            (Some(done), Some(total)) if total > 0 => {
                format!(
                    ", {} of {} ({} %)",
                    ByteCount(done),
                    ByteCount(total),
                    u128::from(done) * 100 / u128::from(total)
                )
            }
            _ => String::new(),
        };
        format!("{} is being made{share}", made.label)
    }));
    parts.push(format!(
        "archive {}",
        match &backups.archive {
            None => ui.paint(Tone::Warning, "unknown"),
            Some(archive) if !archive.on => ui.paint(Tone::Bad, "off"),
            Some(archive) if archive.failing.is_some() => {
                format!("{}, {} waiting{}", ui.paint(Tone::Bad, "failing"), archive.waiting, backlog(archive))
            }
            Some(archive) => format!("{} waiting{}", archive.waiting, backlog(archive)),
        }
    ));
    parts.extend(
        backups
            .restorable
            .as_ref()
            .map(|span| format!("restorable {} → {} UTC", second(next_second(span.from)), second(span.to))),
    );
    parts.join("   ")
}

/// Says of WAL that piles up since when it does and until when it may.
fn backlog(archive: &ArchiveStatus) -> String {
    let Some((oldest, full)) = archive.oldest_seconds.zip(archive.disk_full_seconds) else {
        return String::new();
    };
    let [oldest, full] = [oldest, full].map(|seconds| human_duration(Duration::from_secs_f64(seconds)));
    format!(" for {oldest} (disk full in {full})")
}

fn last_backup(ui: &Ui, backups: &BackupsStatus) -> String {
    match (&backups.last, &backups.why) {
        (_, Some(_)) => ui.paint(Tone::Warning, "unknown"),
        (None, None) => ui.paint(Tone::Bad, "none"),
        (Some(last), None) => {
            let age = std::time::Duration::from_secs(u64::try_from(last.age_seconds).unwrap_or_default());
            format!(
                "full {} ({} ago, {})",
                last.ended.strftime("%Y-%m-%d %H:%M"),
                human_duration(age),
                ByteCount(last.size_bytes)
            )
        }
    }
}

/// Whatever is shown as restorable is: the begin is rounded up, the end down.
fn next_second(at: Timestamp) -> Timestamp {
    match at.subsec_nanosecond() {
        0 => at,
        _ => Timestamp::from_second(at.as_second() + 1).unwrap_or(at),
    }
}

fn second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::split::{Side, SplitBrain};
    use crate::ops::status::{
        ArchiveStatus, BackupStatus, CertificateStatus, Nearest, OperationStatus, Problem, Restorable,
        RouteStatus, RunningStatus, SlotStatus, TlsStatus,
    };
    use crate::pg::timeline::TimelineId;
    use crate::ui::versioned;

    fn node(name: &str, port: u16, role: NodeRole, state: NodeState) -> NodeStatus {
        NodeStatus {
            node: name.to_owned(),
            host: "local".to_owned(),
            port,
            role,
            preferred: role == NodeRole::Primary,
            state,
            why: None,
            timeline: Some(3),
            lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            sync_state: None,
            slot: None,
            version: None,
            up_seconds: None,
            disk_total_bytes: None,
            disk_free_bytes: None,
            started_by: None,
            starts_with_host: None,
            fenced: None,
        }
    }

    fn cluster() -> ClusterStatus {
        let primary = NodeStatus {
            lsn: Some("0/7A41F028".to_owned()),
            version: Some("15.18".to_owned()),
            up_seconds: Some(1_036_800),
            disk_total_bytes: Some(270_553_174_016),
            disk_free_bytes: Some(56_711_753_728),
            started_by: Some("pgherd-inventory-a.service".to_owned()),
            starts_with_host: Some(true),
            ..node("a", 5441, NodeRole::Primary, NodeState::Up)
        };
        let standby = NodeStatus {
            lsn: Some("0/7A41E000".to_owned()),
            lag_bytes: Some(4_136),
            lag_seconds: Some(0.25),
            sync_state: Some("quorum".to_owned()),
            slot: Some(SlotStatus {
                name: "inventory_b".to_owned(),
                active: true,
                wal_status: Some("reserved".to_owned()),
                retained_bytes: Some(4_136),
            }),
            version: Some("15.18".to_owned()),
            up_seconds: Some(59),
            ..node("b", 5442, NodeRole::Standby, NodeState::Streaming)
        };
        let silent = NodeStatus {
            timeline: None,
            why: Some("it did not answer within 2.0 s".to_owned()),
            ..node("c", 5443, NodeRole::Unknown, NodeState::Unknown)
        };
        ClusterStatus {
            cluster: "inventory".to_owned(),
            version: Some("15.18".to_owned()),
            system_identifier: Some("7398812045532218841".to_owned()),
            primary: Some("a".to_owned()),
            timeline: Some(3),
            synchronous: Some("any 1 of (a, b, c)".to_owned()),
            nodes: vec![primary, standby, silent],
            poolers: vec![PoolerStatus {
                host: "local".to_owned(),
                port: 6441,
                state: PoolerState::Up,
                why: None,
                routes: vec![RouteStatus {
                    alias: "inventory".to_owned(),
                    to: vec!["a".to_owned()],
                    paused: false,
                }],
                clients: 212,
                max_clients: 1000,
                waiting: 0,
            }],
            backups: Some(BackupsStatus {
                repository: "main".to_owned(),
                url: "file:///var/lib/pgherd/repository".to_owned(),
                why: None,
                last: Some(BackupStatus {
                    label: "20261121T020000Z-full".to_owned(),
                    ended: "2026-11-21T02:04:11.25Z".parse().unwrap(),
                    age_seconds: 27_456,
                    size_bytes: 19_541_821_235,
                    stored_bytes: 4_815_162_342,
                }),
                running: vec![RunningStatus {
                    label: "20261121T094000Z-full".to_owned(),
                    by: "ada on db1 (pid 4712)".to_owned(),
                    since: "2026-11-21T09:40:00Z".parse().unwrap(),
                    phase: Some("copies".to_owned()),
                    done_bytes: Some(1_000_000_000),
                    total_bytes: Some(19_541_821_235),
                }],
                restorable: Some(Restorable {
                    from: "2026-10-22T02:01:10.5Z".parse().unwrap(),
                    to: "2026-11-21T09:39:58.75Z".parse().unwrap(),
                    timeline: 3,
                    ends_before: None,
                }),
                archive: Some(ArchiveStatus {
                    on: true,
                    waiting: 2,
                    archived: 4711,
                    failed: 3,
                    last_archived: Some("0000000300000000000000A1".to_owned()),
                    last_archived_at: Some("2026-11-21T09:39:58Z".parse().unwrap()),
                    failing: Some("0000000300000000000000A2".to_owned()),
                    failing_at: Some("2026-11-21T09:41:02Z".parse().unwrap()),
                    oldest_seconds: Some(84.5),
                    wal_bytes_per_second: Some(198_546.5),
                    disk_full_seconds: Some(285_634.5),
                }),
            }),
            tls: Some(TlsStatus {
                authority_not_after: Some("2036-11-19T09:00:00Z".parse().unwrap()),
                nearest: Some(Nearest {
                    of: "inventory-a".to_owned(),
                    not_after: "2027-11-21T09:00:00Z".parse().unwrap(),
                    left_seconds: 31_533_533,
                }),
                certificates: vec![
                    CertificateStatus {
                        of: "inventory-a".to_owned(),
                        not_after: Some("2027-11-21T09:00:00Z".parse().unwrap()),
                        why: None,
                    },
                    CertificateStatus {
                        of: "the pooler on local".to_owned(),
                        not_after: None,
                        why: Some("no authority of ours signed it".to_owned()),
                    },
                ],
                why: None,
            }),
            operations: vec![OperationStatus {
                id: "7f3a".to_owned(),
                kind: "apply".to_owned(),
                by: "ada on db1 (pid 4711)".to_owned(),
                begun: "2026-11-21T09:41:07.123Z".parse().unwrap(),
                running: false,
                next: "pgherd operation resume 7f3a".to_owned(),
            }],
            split_brain: Some(SplitBrain {
                fork_timeline: TimelineId::new(2),
                fork_lsn: Some("0/7A000000".parse().unwrap()),
                fork_unknown: None,
                sides: vec![Side {
                    node: "a".to_owned(),
                    timeline: TimelineId::new(3).unwrap(),
                    lsn: "0/7A41F028".parse().unwrap(),
                    past_fork_bytes: Some(4_321_320),
                    last_commit: Some("2026-11-21T09:41:06.718Z".parse().unwrap()),
                    last_commit_unknown: None,
                    standbys: vec!["b".to_owned()],
                    aliases: vec!["inventory on local".to_owned()],
                }],
            }),
            problems: vec![Problem {
                what: "c is unknown: it did not answer within 2.0 s".to_owned(),
                next: "pgherd status -v".to_owned(),
            }],
        }
    }

    #[test]
    fn a_backup_and_the_window_fit_one_line() {
        let ui = Ui::new(Format::Human, crate::ui::Verbosity::Normal, crate::ui::ColorChoice::Never);
        let mut backups = cluster().backups.unwrap();
        assert_eq!(
            backups_line(&ui, &backups),
            "backup  full 2026-11-21 02:04 (7h37m ago, 18.2 GiB)   20261121T094000Z-full is being made, 953.7 MiB of 18.2 GiB (5 %)   \
             archive failing, 2 waiting for 1m24s (disk full in 3 d)   restorable 2026-10-22 02:01:11 → 2026-11-21 09:39:58 UTC"
        );
        backups.running.clear();
        backups.restorable = None;
        backups.last = None;
        backups.archive = None;
        assert_eq!(backups_line(&ui, &backups), "backup  none   archive unknown");
        backups.why = Some("it did not answer within 2 s".to_owned());
        assert_eq!(backups_line(&ui, &backups), "backup  unknown   archive unknown");
    }

    #[test]
    fn the_json_of_a_status_is_what_it_was() {
        let clusters = [cluster()];
        let document = versioned(&Document { herd: "shop", clusters: &clusters });
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        assert_eq!(text, include_str!("../../tests/golden/status-v1.json"));
    }
}
