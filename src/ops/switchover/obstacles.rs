//! Why a switchover cannot be done: what the nodes, the primary itself and the repository say against it.

use std::time::Duration;

use crate::db::promotion::{self, Hindrances, Room};
use crate::db::queries::{self, ServerRole};
use crate::error::{Error, Result};
use crate::ops::backup::care::Way;
use crate::ops::context::Context;
use crate::ops::observe::{Claim, ClusterObserved, Doors};
use crate::ops::switchover::standbys::{Up, streams_from};
use crate::ops::switchover::wish::Wish;
use crate::topology::declared;
use crate::topology::model::{Cluster, Node};
use crate::units::{ByteCount, human_duration};

/// A transaction of this age may go on for longer than clients can wait.
const LONG: Duration = Duration::from_secs(10);
/// What a candidate may be behind, in bytes.
const BEHIND: u64 = 16 << 20;
/// PostgreSQL does not end before everything is archived.
const BACKLOG: u64 = 8;

/// What both nodes say is in the way.
pub(super) fn of_nodes(
    cluster: &Cluster,
    observed: &ClusterObserved,
    from: &Up<'_>,
    to: &Up<'_>,
) -> Vec<Error> {
    let name = cluster.full_name(&to.node.name);
    let cannot = |why: &str| {
        Error::refused(format!("cannot switch over to {name}: {why}")).detail("Nothing was changed.")
    };
    let mut found = Vec::new();
    for node in [from.node, to.node] {
        let seen = observed.node(&node.name).expect("every node is observed");
        if !matches!(seen.marker, Claim::Ours(_)) {
            let full = cluster.full_name(&node.name);
            found.push(
                cannot(&format!("no marker of {full} claims {}", node.data_directory.display())).hint(
                    "pgherd changes only what it made itself or has taken over: pgherd apply --adopt NODE",
                ),
            );
        }
    }
    let (own, theirs) = (&to.running.facts, &from.running.facts);
    if own.system_identifier != theirs.system_identifier {
        found.push(cannot("it belongs to another system").hint("See both: pgherd status -v"));
        return found;
    }
    if !streams_from(cluster, to.node, to.running, from) {
        found.push(
            cannot(&format!("it does not stream from {} itself", cluster.full_name(&from.node.name)))
                .hint("See what its receiver says: pgherd health -v"),
        );
    }
    if own.timeline != theirs.timeline {
        found
            .push(cannot(&format!("it is on timeline {}, the primary on {}", own.timeline, theirs.timeline)));
    }
    if let ServerRole::Standby { replay_paused: true, .. } = own.role {
        found.push(cannot("replay is paused").hint("Go on there: SELECT pg_wal_replay_resume()"));
    }
    let behind = match (&theirs.role, &own.role) {
        (ServerRole::Primary { written_lsn }, ServerRole::Standby { replayed_lsn: Some(replayed), .. }) => {
            written_lsn.as_u64().saturating_sub(replayed.as_u64())
        }
        (_, _) => u64::MAX,
    };
    if behind > BEHIND {
        let told = if behind == u64::MAX {
            "it has replayed nothing".to_owned()
        } else {
            format!("it is {} behind", ByteCount(behind))
        };
        found.push(
            cannot(&told)
                .hint("Clients would wait until it has replayed that. Wait for it: pgherd status --watch"),
        );
    }
    let names = declared::synchronous_names(cluster, to.node);
    if own.synchronous_standby_names != names {
        found.push(
            cannot("its synchronous_standby_names are not as declared")
                .detail(format!(
                    "It has {:?}, declared is {names:?}: commits would wait for others than the file says. Nothing was changed.",
                    own.synchronous_standby_names
                ))
                .hint("Put it right before: pgherd apply; where standbys are missing since a failover: pgherd rejoin NODE"),
        );
    }
    found
}

pub(super) async fn room_on(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<Room> {
    let conn = doors.connector.connect(&doors.superuser(cluster, node, "postgres")).await?;
    Ok(promotion::room(&conn).await?)
}

/// Holds what a candidate has room for against what it needs: so many senders, one a follower, and so many slots that are not there yet.
pub(super) fn no_room(
    cluster: &Cluster,
    node: &str,
    room: Room,
    (senders, slots): (usize, usize),
) -> Vec<Error> {
    let name = cluster.full_name(node);
    let mut found = Vec::new();
    for (share, wanted, what, setting) in [
        (room.senders, senders, "WAL senders", "max_wal_senders"),
        (room.slots, slots, "replication slots", "max_replication_slots"),
    ] {
        if share.free() < wanted {
            found.push(
                Error::refused(format!(
                    "cannot switch over to {name}: it has no room for {wanted} more {what}"
                ))
                .detail(format!(
                    "{} of {} are used there ({setting}). Nothing was changed.",
                    share.used, share.all
                ))
                .hint(format!("Declare a larger {setting} and restart: pgherd apply --allow-restart")),
            );
        }
    }
    found
}

/// What is not in the way today, and will be when this node has to come back one day.
pub(super) fn not_rewound(name: &str, room: Room) -> Option<String> {
    let why = match (room.can_be_rewound, room.full_page_writes) {
        (true, true) => return None,
        (false, _) => "has neither data checksums nor wal_log_hints",
        (true, false) => "has full_page_writes off",
    };
    Some(format!("{name} {why}: if it ever has rows of its own, it is cloned anew, not rewound"))
}

/// A backup that is read on a standby ends when that is promoted, and one of the primary when that stops.
pub(super) async fn of_backups(
    context: &Context,
    cluster: &Cluster,
    from: &Up<'_>,
    notes: &mut Vec<String>,
) -> Vec<Error> {
    let made = async {
        let way = Way::open(&context.places, &context.gate, cluster).await?;
        way.being_made(from.running.facts.system_identifier).await
    };
    match made.await {
        Ok(made) => made
            .into_iter()
            .map(|(label, by)| {
                Error::refused(format!("cannot switch {} over: backup {label} is being made", cluster.name))
                    .detail(format!("By {} on {}; it would be lost. Nothing was changed.", by.user, by.host))
                    .hint("Wait for it: pgherd backup list")
            })
            .collect(),
        Err(error) => {
            notes.push(format!("whether a backup is being made is not known: {error}"));
            Vec::new()
        }
    }
}

/// What the primary tells about itself.
pub(super) struct OfPrimary {
    hindrances: Hindrances,
    archiver: Option<queries::Archiver>,
}

pub(super) async fn of_primary(doors: &Doors, cluster: &Cluster, from: &Up<'_>) -> Result<OfPrimary> {
    let conn = doors.connector.connect(&doors.superuser(cluster, from.node, "postgres")).await?;
    let hindrances = promotion::hindrances(&conn, LONG).await?;
    let archiver = if cluster.backups.is_some() { Some(queries::archiver(&conn).await?) } else { None };
    Ok(OfPrimary { hindrances, archiver })
}

impl OfPrimary {
    pub(super) fn obstacles(
        &self,
        cluster: &Cluster,
        name: &str,
        wish: &Wish,
        notes: &mut Vec<String>,
    ) -> Vec<Error> {
        let cannot = |why: String| {
            Error::refused(format!("cannot switch over from {name}: {why}")).detail("Nothing was changed.")
        };
        let mut found = Vec::new();
        for (pid, user, database, application, seconds) in &self.hindrances.long {
            let age = human_duration(Duration::from_secs_f64(seconds.max(0.0)));
            found.push(
                cannot(format!("process {pid} has been in a transaction for {age}"))
                    .detail(format!(
                        "User {user} in {database}, application {application:?}. Clients would wait for it, or it would be ended. \
                         Nothing was changed."
                    ))
                    .hint(format!("Let it end, or end it: SELECT pg_terminate_backend({pid})")),
            );
        }
        if !self.hindrances.prepared.is_empty() {
            notes.push(format!(
                "prepared transactions go along and stay prepared: {}",
                self.hindrances.prepared.join(", ")
            ));
        }
        if !self.hindrances.logical.is_empty() {
            let slots = self.hindrances.logical.join(", ");
            if wish.leave_logical_slots {
                notes.push(format!("logical slots stay behind on the old primary: {slots}"));
            } else {
                found.push(
                    cannot(format!("its logical slots would stay behind: {slots}"))
                        .detail(
                            "Whoever reads them would miss what is written afterwards. Nothing was changed.",
                        )
                        .hint("Stop their readers, and say so: --leave-logical-slots"),
                );
            }
        }
        for backup in &self.hindrances.backups {
            found.push(
                cannot(format!("a base backup runs ({backup})"))
                    .hint("Wait for it, or end it: it would be lost."),
            );
        }
        if let Some(archiver) = &self.archiver {
            let repository = cluster.backups.as_ref().map_or("", |backups| backups.repository.name.as_str());
            if let Some((file, at)) = archiver.failing() {
                found.push(
                    cannot(format!("its archiver fails on {file} since {at:.0}"))
                        .detail("PostgreSQL does not end before its WAL is archived. Nothing was changed.")
                        .hint(format!("See why repository {repository} does not take it: pgherd health -v")),
                );
            } else if archiver.waiting > BACKLOG {
                found.push(
                    cannot(format!("{} WAL files wait to be archived", archiver.waiting))
                        .detail("PostgreSQL does not end before they are. Nothing was changed.")
                        .hint("Wait until they are: pgherd health --watch"),
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::db::promotion::Share;
    use crate::topology::load_text;

    fn room(senders: (i32, i32), slots: (i32, i32)) -> Room {
        let share = |(used, all)| Share { used, all };
        Room { senders: share(senders), slots: share(slots), can_be_rewound: true, full_page_writes: true }
    }

    #[test]
    fn a_candidate_has_room_for_those_who_will_follow_it() {
        let text = "pgherd: 1\nherd: shop\nregions: {here: {hosts: {local: local}}}\nclusters:\n  inventory:\n    postgres: {version: 15}\n    \
                    nodes: {a: {host: local, port: 5441}}\n";
        let herd =
            load_text(Path::new("pgherd.yml"), text, Path::new("/d")).unwrap_or_else(|why| panic!("{why}"));
        let told = |room| -> Vec<String> {
            let found = no_room(&herd.clusters[0], "b", room, (2, 1));
            found.iter().map(|error| error.what().to_owned()).collect()
        };
        assert!(told(room((0, 2), (1, 2))).is_empty());
        assert_eq!(
            told(room((1, 2), (2, 2))),
            [
                "cannot switch over to inventory-b: it has no room for 2 more WAL senders",
                "cannot switch over to inventory-b: it has no room for 1 more replication slots",
            ]
        );
    }

    #[test]
    fn a_node_that_could_not_be_rewound_one_day_is_noted() {
        let well = room((0, 1), (0, 1));
        assert_eq!(not_rewound("inventory-a", well), None);
        let told = not_rewound("inventory-a", Room { can_be_rewound: false, ..well }).unwrap();
        assert!(told.starts_with("inventory-a has neither data checksums nor wal_log_hints: "), "{told}");
        let told = not_rewound("inventory-a", Room { full_page_writes: false, ..well }).unwrap();
        assert!(told.starts_with("inventory-a has full_page_writes off: "), "{told}");
    }
}
