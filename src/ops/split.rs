//! Two primaries of one cluster: what each of them has that the other has not.
//!
//! Reads only, decides nothing: which of them has the rows that count is the operator's to say.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

use crate::db::queries::{self, LastCommit};
use crate::ops::observe::{ClusterObserved, Doors, PATIENCE, Running};
use crate::ops::pooler::{self, ConsoleSeen};
use crate::pg::history::{self, TimelineHistory};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::wal_file::WalFile;
use crate::topology::model::{Cluster, Node};
use crate::units::ByteCount;

/// More than one node that accepts writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SplitBrain {
    /// The last timeline that all of them share.
    pub fork_timeline: Option<TimelineId>,
    /// Where the first of them left it: what each has written from there on the others have not.
    pub fork_lsn: Option<Lsn>,
    /// Why that is not known.
    pub fork_unknown: Option<String>,
    pub sides: Vec<Side>,
}

/// One of the nodes that accept writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    pub node: String,
    pub timeline: TimelineId,
    pub lsn: Lsn,
    /// How much WAL it alone has; `None` where the fork is not known.
    pub past_fork_bytes: Option<u64>,
    pub last_commit: Option<Timestamp>,
    /// Why that is not known.
    pub last_commit_unknown: Option<String>,
    /// Who streams from it.
    pub standbys: Vec<String>,
    /// The aliases that lead to it, as `inventory on db1`.
    pub aliases: Vec<String>,
}

/// Looks at the primaries of a cluster; `None` if there are not several.
pub async fn look(doors: &Doors, cluster: &Cluster, observed: &ClusterObserved) -> Option<SplitBrain> {
    let primaries: Vec<(&Node, &Running, Lsn)> = cluster
        .nodes
        .iter()
        .filter_map(|node| {
            let running = observed.node(&node.name)?.running().filter(|running| running.is_primary())?;
            Some((node, running, running.facts.role.lsn()?))
        })
        .collect();
    if primaries.len() < 2 {
        return None;
    }
    let (histories, commits, aliases) = tokio::join!(
        join_all(primaries.iter().map(|(node, running, _)| history_of(doors, node, running.facts.timeline))),
        join_all(primaries.iter().map(|(node, _, _)| last_commit(doors, cluster, node))),
        aliases(doors, cluster),
    );
    let fork = parts(&histories);
    let (fork_timeline, fork_lsn, fork_unknown) = match fork {
        Ok((timeline, Some(lsn))) => (Some(timeline), Some(lsn), None),
        Ok((timeline, None)) => {
            let why =
                format!("they write on the same timeline {timeline}, and no history says where they parted");
            (Some(timeline), None, Some(why))
        }
        Err(why) => (None, None, Some(why)),
    };
    let sides = primaries.into_iter().zip(commits).map(|((node, running, lsn), commit)| {
        let (last_commit, last_commit_unknown) = match commit {
            Ok(at) => (Some(at), None),
            Err(why) => (None, Some(why)),
        };
        Side {
            node: node.name.clone(),
            timeline: running.facts.timeline,
            lsn,
            past_fork_bytes: fork_lsn.map(|fork| fork.lag_behind(lsn).0),
            last_commit,
            last_commit_unknown,
            standbys: standbys(cluster, running),
            aliases: aliases.get(&node.name).cloned().unwrap_or_default(),
        }
    });
    Some(SplitBrain { fork_timeline, fork_lsn, fork_unknown, sides: sides.collect() })
}

/// Finds where all of them part: the earliest point at which one left the first.
fn parts(histories: &[Result<TimelineHistory, String>]) -> Result<(TimelineId, Option<Lsn>), String> {
    let mut known = Vec::new();
    for history in histories {
        known.push(history.as_ref().map_err(Clone::clone)?);
    }
    let Some((first, others)) = known.split_first() else { return Err("nobody was asked".to_owned()) };
    let mut earliest: Option<(TimelineId, Option<Lsn>)> = None;
    for other in others {
        let (timeline, lsn) =
            history::fork(first, other).ok_or_else(|| "their histories share no timeline".to_owned())?;
        // A point that is not known is no later than any that is on a later timeline.
        if earliest.is_none_or(|(at, point)| (timeline, lsn.is_some(), lsn) < (at, point.is_some(), point)) {
            earliest = Some((timeline, lsn));
        }
    }
    earliest.ok_or_else(|| "there is only one".to_owned())
}

/// Reads where a primary's timelines left each other, from its own pg_wal. Timeline 1 has no ancestors and no file.
async fn history_of(doors: &Doors, node: &Node, timeline: TimelineId) -> Result<TimelineHistory, String> {
    let name = WalFile::TimelineHistory(timeline).to_string();
    let path = node.data_directory.join("pg_wal").join(&name);
    let text = if timeline.as_u32() == 1 {
        String::new()
    } else {
        match doors.host(&node.host).read(&path).await {
            Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(None) => return Err(format!("{} has no {name}", node.name)),
            Err(error) => return Err(error.to_string()),
        }
    };
    TimelineHistory::parse(timeline, &text).map_err(|error| format!("{name} of {}: {error}", node.name))
}

async fn last_commit(doors: &Doors, cluster: &Cluster, node: &Node) -> Result<Timestamp, String> {
    let connector = doors.connector.clone().timeouts(PATIENCE, PATIENCE);
    let conn = connector.connect(&doors.superuser(cluster, node, "postgres")).await;
    let conn = conn.map_err(|error| error.to_string())?;
    match queries::last_commit(&conn).await {
        Ok(LastCommit::At(at)) => Ok(at),
        Ok(LastCommit::None) => Err("it knows of none".to_owned()),
        Ok(LastCommit::NotKept) => Err("track_commit_timestamp is off".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn standbys(cluster: &Cluster, running: &Running) -> Vec<String> {
    let own = cluster.full_name("");
    let streaming = running.senders.iter().filter(|sender| sender.state == "streaming");
    let name = |name: &String| name.strip_prefix(&own).unwrap_or(name).to_owned();
    streaming.map(|sender| name(&sender.application_name)).collect()
}

/// Finds which aliases of which pooler lead to which node, by the node's name.
async fn aliases(doors: &Doors, cluster: &Cluster) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for host in cluster.pooler_hosts() {
        for seen in pooler::observe_poolers(doors, cluster, host).await.unwrap_or_default() {
            let ConsoleSeen::Answered(console) = &seen.console else { continue };
            for row in console.databases.iter().filter(|row| row.alias != "pgbouncer") {
                let leads = |node: &&Node| {
                    let address = cluster.address(&node.host);
                    node.port == row.port && row.host.split(',').any(|host| host.trim() == address)
                };
                for node in cluster.nodes.iter().filter(leads) {
                    let names = found.entry(node.name.clone()).or_default();
                    let name = format!("{} on {host}", row.alias);
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
            }
        }
    }
    found
}

impl SplitBrain {
    /// Says where they part: `they part at 0/3018170 on timeline 1`.
    pub fn fork(&self) -> String {
        match (self.fork_timeline, self.fork_lsn, &self.fork_unknown) {
            (Some(timeline), Some(lsn), _) => format!("they part at {lsn} on timeline {timeline}"),
            (_, _, Some(why)) => format!("where they part is not known: {why}"),
            (_, _, None) => "where they part is not known".to_owned(),
        }
    }
}

impl Side {
    /// Says what it has: `timeline 2, LSN 0/3018250, 224 B past the fork, ...`.
    pub fn tell(&self) -> String {
        let past = self.past_fork_bytes.map_or_else(
            || "how much it alone has is unknown".to_owned(),
            |bytes| format!("{} past the fork", ByteCount(bytes)),
        );
        let commit = match (&self.last_commit, &self.last_commit_unknown) {
            (Some(at), _) => format!("last commit {at:.0}"),
            (None, why) => format!("last commit unknown ({})", why.as_deref().unwrap_or("nobody asked")),
        };
        let standbys = match self.standbys.as_slice() {
            [] => "nobody streams from it".to_owned(),
            names => format!("{} from it", joined(names, "streams", "stream")),
        };
        let aliases = match self.aliases.as_slice() {
            [] => "no pooler leads to it".to_owned(),
            names => format!("{} to it", joined(names, "leads", "lead")),
        };
        format!("timeline {}, LSN {}, {past}, {commit}, {standbys}, {aliases}", self.timeline, self.lsn)
    }
}

fn joined(names: &[String], one: &str, several: &str) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(id: u32, text: &str) -> Result<TimelineHistory, String> {
        Ok(TimelineHistory::parse(TimelineId::new(id).unwrap(), text).unwrap())
    }

    #[test]
    fn several_part_where_the_first_of_them_went() {
        let timeline = |id| TimelineId::new(id).unwrap();
        let lsn = |text: &str| Some(text.parse().unwrap());
        let old = history(1, "");
        let (two, three) = (history(2, "1\t0/3000000\tx\n"), history(3, "1\t0/2000000\tx\n"));
        assert_eq!(parts(&[old.clone(), two.clone()]), Ok((timeline(1), lsn("0/3000000"))));
        assert_eq!(parts(&[old.clone(), two, three]), Ok((timeline(1), lsn("0/2000000"))));
        assert_eq!(parts(&[old.clone(), old.clone()]), Ok((timeline(1), None)));
        assert_eq!(
            parts(&[old, Err("b has no 00000002.history".to_owned())]),
            Err("b has no 00000002.history".to_owned())
        );
    }

    #[test]
    fn a_side_is_told_in_one_line_and_what_is_not_known_is_unknown() {
        let side = Side {
            node: "a".to_owned(),
            timeline: TimelineId::new(1).unwrap(),
            lsn: "0/3018250".parse().unwrap(),
            past_fork_bytes: Some(224),
            last_commit: None,
            last_commit_unknown: Some("track_commit_timestamp is off".to_owned()),
            standbys: vec!["b".to_owned()],
            aliases: vec!["inventory on db1".to_owned(), "inventory_ro on db1".to_owned()],
        };
        assert_eq!(
            side.tell(),
            "timeline 1, LSN 0/3018250, 224 B past the fork, last commit unknown (track_commit_timestamp is off), \
             b streams from it, inventory on db1, inventory_ro on db1 lead to it"
        );
    }
}
