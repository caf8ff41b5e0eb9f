//! What the other nodes of a cluster say of themselves, to one of them that is about to start.
//!
//! Asked by `psql`, as its owner's standby would ask: the replication login and its password file are what a node has of the others, whether
//! a repository, a station or the topology is there or not.

use std::time::Duration;

use futures_util::future::join_all;

use crate::host::{Command, Host, HostError};
use crate::pg::system::SystemIdentifier;
use crate::pg::timeline::TimelineId;
use crate::topology::claim::{Peer, Profile};

/// How long one node may take: libpq gives the connection 3 s of it.
const ANSWER: Duration = Duration::from_secs(6);

/// What another node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub system_identifier: SystemIdentifier,
    /// That it writes on, or has replayed.
    pub timeline: TimelineId,
    pub primary: bool,
}

/// A node that was asked, and its answer or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub node: String,
    pub answer: Result<Said, String>,
}

/// Asks all of them side by side.
pub async fn ask(host: &dyn Host, profile: &Profile) -> Vec<Asked> {
    join_all(profile.peers.iter().map(|peer| ask_one(host, profile, peer))).await
}

async fn ask_one(host: &dyn Host, profile: &Profile, peer: &Peer) -> Asked {
    let psql = Command::new(profile.bin_directory.join("psql"))
        .args(["-X", "-A", "-t", "-q", "-w", "-d", peer.conninfo.as_str()])
        .args(["-c", "IDENTIFY_SYSTEM", "-c", "SHOW in_hot_standby"])
        .reads()
        .timeout(ANSWER);
    let answer = match host.run(&psql).await {
        Ok(output) => {
            let text = output.text();
            parse(&text).ok_or_else(|| format!("it said {:?}", text.trim()))
        }
        Err(HostError::Exited { stderr, .. }) => Err(reason(&stderr)),
        Err(error) => Err(error.to_string()),
    };
    Asked { node: peer.node.clone(), answer }
}

/// The first line says what failed, those behind it guess why.
fn reason(stderr: &str) -> String {
    let first = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("psql said nothing");
    first.strip_prefix("psql: error: ").unwrap_or(first).to_owned()
}

/// Reads `7398812045532218841|1|0/3000148|` and `on` or `off` (PostgreSQL docs, "Streaming Replication Protocol").
fn parse(text: &str) -> Option<Said> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut identity = lines.next()?.split('|');
    let system_identifier = identity.next()?.parse().ok()?;
    let timeline = identity.next()?.parse().ok().and_then(TimelineId::new)?;
    let primary = match lines.next()? {
        "on" => false,
        "off" => true,
        _ => return None,
    };
    Some(Said { system_identifier, timeline, primary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_walsender_says() {
        let said = parse("7398812045532218841|3|0/3000148|\noff\n").unwrap();
        assert_eq!((said.timeline.as_u32(), said.primary), (3, true));
        assert!(!parse("7398812045532218841|3|0/3000148|\non\n").unwrap().primary);
        assert_eq!(parse("7398812045532218841|3|0/3000148|\n"), None);
        assert_eq!(parse("7398812045532218841|0|0/3000148|\non\n"), None);
        let refused =
            "psql: error: connection to server failed: Connection refused\n\tIs the server running?\n";
        assert_eq!(reason(refused), "connection to server failed: Connection refused");
    }
}
