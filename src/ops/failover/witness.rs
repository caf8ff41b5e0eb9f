//! Who sees the old primary, and how: an unreachable server is not a dead one, and one that recovers from a crash is coming back.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;

use crate::db::queries::ServerRole;
use crate::host::{Command, HostError};
use crate::ops::observe::{ClusterObserved, Directory, Doors, NodeObserved, Server};
use crate::topology::model::{Cluster, Node};
use crate::units::human_duration;

/// How long a server may take to answer one who only asks whether it is there.
const ANSWER: Duration = Duration::from_secs(1);
/// A standby that has heard its primary within this time has seen it alive.
const HEARD: Duration = Duration::from_secs(5);

/// What one place tells of the old primary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Witness {
    /// A node or a host.
    pub who: String,
    pub sees: Sees,
    /// In words, without a full stop.
    pub told: String,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sees {
    /// It takes connections, or was heard just now.
    Alive,
    /// It starts, or recovers from a crash.
    Starting,
    /// Its host answers, and no process runs for its data directory.
    Down,
    /// No answer, from there.
    Silent,
    /// Nothing that can be told.
    Unknown,
}

/// Tells whether the host of a node answered.
pub fn host_answers(seen: &NodeObserved) -> bool {
    !matches!(seen.directory, Directory::Unknown { .. })
}

/// Asks everybody who could see `old`: its own host, the standbys, and the hosts of nodes and poolers.
pub async fn ask(doors: &Doors, cluster: &Cluster, observed: &ClusterObserved, old: &Node) -> Vec<Witness> {
    let seen = observed.node(&old.name).expect("every node is observed");
    let mut witnesses = vec![of_itself(cluster, seen, old)];
    let down = witnesses[0].sees == Sees::Down;
    for node in cluster.nodes.iter().filter(|node| node.name != old.name) {
        let told = observed.node(&node.name).and_then(|seen| of_receiver(cluster, seen));
        // Its own host knows better than who was sent something a moment ago. A child that outlives its postmaster is ended by the fence.
        let told = told.map(|witness| match witness.sees {
            Sees::Alive if down => Witness { sees: Sees::Silent, ..witness },
            Sees::Alive | Sees::Starting | Sees::Down | Sees::Silent | Sees::Unknown => witness,
        });
        witnesses.extend(told);
    }
    // Its own host knows by its processes; that its port answers there says no more.
    let hosts = cluster.used_hosts();
    let hosts = hosts.into_iter().filter(|host| **host != old.host || !host_answers(seen));
    let hosts = hosts.filter(|host| {
        let theirs = cluster.nodes.iter().filter(|node| node.host == **host);
        theirs.filter_map(|node| observed.node(&node.name)).all(host_answers)
    });
    witnesses.extend(join_all(hosts.map(|host| of_host(doors, cluster, host, old))).await);
    witnesses
}

fn of_itself(cluster: &Cluster, seen: &NodeObserved, old: &Node) -> Witness {
    let who = cluster.full_name(&old.name);
    let (sees, told) = match &seen.server {
        Server::Up(_) => (Sees::Alive, "it answers".to_owned()),
        Server::Starting => (Sees::Starting, "it is starting up, or recovers from a crash".to_owned()),
        Server::Stopped | Server::Foreign { .. } => {
            let state = seen.control().map(|control| format!("; pg_control: {}", control.state));
            (Sees::Down, format!("no process runs for its data directory{}", state.unwrap_or_default()))
        }
        Server::Unknown { why } => (Sees::Silent, why.trim_end_matches('.').to_owned()),
    };
    Witness { who, sees, told }
}

fn of_receiver(cluster: &Cluster, seen: &NodeObserved) -> Option<Witness> {
    let facts = &seen.running()?.facts;
    let ServerRole::Standby { receiver, .. } = &facts.role else { return None };
    let who = cluster.full_name(&seen.node);
    let Some(receiver) = receiver else {
        return Some(Witness { who, sees: Sees::Silent, told: "receives nothing".to_owned() });
    };
    let age = receiver.last_message_at.map(|at| facts.now.duration_since(at));
    let age = age.map(|age| Duration::try_from(age).unwrap_or_default());
    Some(match age {
        Some(age) if age < HEARD && receiver.status == "streaming" => {
            let told = format!("streams, and heard it {} ago", human_duration(age));
            Witness { who, sees: Sees::Alive, told }
        }
        Some(age) => {
            let told = format!("has heard nothing for {}", human_duration(age));
            Witness { who, sees: Sees::Silent, told }
        }
        None => {
            let told = format!("its receiver is {}", receiver.status);
            Witness { who, sees: Sees::Unknown, told }
        }
    })
}

/// Has `pg_isready` ask from a host, whose answers are its exit codes: 0 accepts, 1 rejects, 2 no response.
async fn of_host(doors: &Doors, cluster: &Cluster, host: &str, old: &Node) -> Witness {
    let who = format!("host {host}");
    let unknown = |why: String| Witness { who: who.clone(), sees: Sees::Unknown, told: why };
    let programs = match doors.programs(cluster, host).await {
        Ok(programs) => programs,
        Err(error) => return unknown(error.to_string()),
    };
    let address = cluster.address(&old.host);
    let command = Command::new(programs.path("pg_isready"))
        .args(["-h", address, "-p", &old.port.to_string(), "-t", &ANSWER.as_secs().to_string()])
        .reads();
    let port = format!("{address}:{}", old.port);
    let (sees, told) = match doors.host(host).run(&command).await {
        Ok(_) => (Sees::Alive, format!("{port} accepts connections")),
        Err(HostError::Exited { status: 1, .. }) => {
            (Sees::Starting, format!("{port} rejects connections: it starts, or shuts down"))
        }
        Err(HostError::Exited { status: 2, .. }) => (Sees::Silent, format!("no response from {port}")),
        Err(error) => return unknown(error.to_string()),
    };
    Witness { who, sees, told }
}
