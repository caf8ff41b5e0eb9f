//! Whether each alias leads where it says: the read-write one to the live primary, the others to standbys that stream and are near.
//!
//! Pure: compares what the poolers say with what the nodes say. What is not known is unknown, never false.

use serde::Serialize;

use super::files::{Layout, Target, targets};
use super::{Console, ConsoleSeen, PoolerObserved, PoolerProcess, place};
use crate::ops::observe::{ClusterObserved, NodeObserved, Running, Server};
use crate::ops::roles::{self, Lead};
use crate::topology::model::{Cluster, Pool, PoolTarget};

/// What was seen of one PgBouncer process.
#[derive(Debug, Clone)]
pub struct PoolerSeen {
    /// Its host.
    pub host: String,
    /// From 1.
    pub process: u32,
    /// `Err` says why nothing is known.
    pub observed: Result<PoolerObserved, String>,
}

/// One alias of one PgBouncer process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteTruth {
    pub host: String,
    pub process: u32,
    pub alias: String,
    /// The pool that it is declared by; `None` for an alias that nobody declares.
    pub pool: Option<String>,
    /// Where it leads: names of nodes, or the address of something else. Empty if it leads nowhere.
    pub to: Vec<String>,
    /// Where it should lead now, as far as that is known.
    pub should: Vec<String>,
    pub truth: Truth,
    /// Why it is not true, or not known.
    pub why: Option<String>,
    /// Clients wait before their next transaction.
    pub paused: bool,
    /// New clients are refused.
    pub disabled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Truth {
    True,
    False,
    Unknown,
}

/// Judges every declared alias of every process, and the aliases that are there beside them.
///
/// An alias of a process that does not run is false: nobody is led anywhere.
pub fn routes(cluster: &Cluster, observed: &ClusterObserved, poolers: &[PoolerSeen]) -> Vec<RouteTruth> {
    let Some(declared) = &cluster.poolers else { return Vec::new() };
    let lead = roles::lead(observed);
    let layout = match &lead {
        Lead::Primary(name) => cluster.node(name).map(|primary| place::layout(cluster, primary, observed)),
        Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => None,
    };
    let judge = Judge { cluster, observed, lead: &lead, layout: layout.as_ref() };
    let mut found = Vec::new();
    for seen in poolers {
        let mut known: Vec<String> = Vec::new();
        for database in &cluster.databases {
            for pool in &declared.pools {
                let alias = pool.alias(database);
                found.push(judge.route(seen, pool, &alias));
                known.push(alias);
            }
        }
        let Some(console) = console(seen) else { continue };
        for row in console.databases.iter().filter(|row| !known.contains(&row.alias)) {
            found.push(RouteTruth {
                host: seen.host.clone(),
                process: seen.process,
                alias: row.alias.clone(),
                pool: None,
                to: row.host.split(',').map(|host| judge.name(host.trim(), row.port)).collect(),
                should: Vec::new(),
                truth: Truth::False,
                why: Some("nobody declares it".to_owned()),
                paused: row.paused,
                disabled: row.disabled,
            });
        }
    }
    found
}

fn console(seen: &PoolerSeen) -> Option<&Console> {
    match &seen.observed.as_ref().ok()?.console {
        ConsoleSeen::Answered(console) => Some(console),
        ConsoleSeen::Unknown { .. } => None,
    }
}

struct Judge<'a> {
    cluster: &'a Cluster,
    observed: &'a ClusterObserved,
    lead: &'a Lead,
    /// `None` while nobody can be named primary.
    layout: Option<&'a Layout>,
}

impl Judge<'_> {
    fn route(&self, seen: &PoolerSeen, pool: &Pool, alias: &str) -> RouteTruth {
        let should = self.layout.map(|layout| targets(pool, alias, layout)).unwrap_or_default();
        let mut route = RouteTruth {
            host: seen.host.clone(),
            process: seen.process,
            alias: alias.to_owned(),
            pool: Some(pool.name.clone()),
            to: Vec::new(),
            should: should.iter().map(|target| target.node.clone()).collect(),
            truth: Truth::True,
            why: None,
            paused: false,
            disabled: false,
        };
        let (truth, why) = self.judge(seen, pool, &mut route);
        (route.truth, route.why) = (truth, why);
        route
    }

    fn judge(&self, seen: &PoolerSeen, pool: &Pool, route: &mut RouteTruth) -> (Truth, Option<String>) {
        let unknown = |why: String| (Truth::Unknown, Some(why));
        let wrong = |why: String| (Truth::False, Some(why));
        let pooler = match &seen.observed {
            Ok(pooler) => pooler,
            Err(why) => return unknown(why.clone()),
        };
        let console = match (&pooler.process, &pooler.console) {
            (PoolerProcess::Stopped, _) => return wrong("PgBouncer does not run".to_owned()),
            (_, ConsoleSeen::Answered(console)) => console,
            (_, ConsoleSeen::Unknown { why }) => return unknown(why.clone()),
        };
        let Some(row) = console.databases.iter().find(|row| row.alias == route.alias) else {
            return wrong("the alias is not there".to_owned());
        };
        (route.paused, route.disabled) = (row.paused, row.disabled);
        // Where nobody may serve, an alias leads to a directory that nobody makes.
        if !row.host.starts_with('/') {
            route.to = row.host.split(',').map(|host| self.name(host.trim(), row.port)).collect();
        }
        if row.disabled && !route.should.is_empty() {
            return wrong(format!(
                "it refuses clients, although {} could serve them",
                route.should.join(", ")
            ));
        }
        if row.disabled {
            return wrong("it refuses clients: no node may serve it now".to_owned());
        }
        let old: Vec<&str> = console
            .servers
            .iter()
            .filter(|server| server.alias == route.alias && !server.closes)
            .filter(|server| !leads_to(&row.host, row.port, &server.address, server.port))
            .map(|server| server.address.as_str())
            .collect();
        if let Some(first) = old.first() {
            return wrong(format!("{} of its server connections still go to {first}", old.len()));
        }
        for node in &route.to {
            match self.target(pool, node) {
                (Truth::True, _) => {}
                other => return other,
            }
        }
        // A fallback is right only while nobody better is there.
        let primary = self.layout.map(|layout| layout.primary.node.as_str());
        let fell_back =
            pool.to == PoolTarget::Standbys && route.to.iter().any(|to| Some(to.as_str()) == primary);
        if fell_back && !route.should.iter().any(|to| Some(to.as_str()) == primary) {
            return wrong(format!(
                "it leads to the primary, although {} could serve it",
                route.should.join(", ")
            ));
        }
        (Truth::True, None)
    }

    /// Judges one node that an alias leads to.
    fn target(&self, pool: &Pool, node: &str) -> (Truth, Option<String>) {
        let wrong = |why: String| (Truth::False, Some(why));
        let Some(seen) = self.observed.node(node) else {
            return wrong(format!("it leads to {node}, which is no node of {}", self.cluster.name));
        };
        let Some(running) = seen.running() else {
            return match &seen.server {
                Server::Unknown { why } => {
                    (Truth::Unknown, Some(format!("it leads to {node}, which is unknown: {why}")))
                }
                Server::Starting => wrong(format!("it leads to {node}, which is starting up")),
                Server::Stopped | Server::Foreign { .. } | Server::Up(_) => {
                    wrong(format!("it leads to {node}, which does not run"))
                }
            };
        };
        match (pool.to, running.is_primary()) {
            (PoolTarget::Primary, true) => match self.lead {
                Lead::Split(names) => {
                    wrong(format!("{} are primaries at the same time", names.join(" and ")))
                }
                Lead::Primary(_) | Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Unknown { .. } => {
                    (Truth::True, None)
                }
            },
            (PoolTarget::Primary, false) => wrong(match self.lead {
                Lead::Primary(primary) => format!("it leads to {node}, a standby; the primary is {primary}"),
                Lead::Unborn | Lead::StoppedPrimary(_) | Lead::Split(_) | Lead::Unknown { .. } => {
                    format!("it leads to {node}, a standby")
                }
            }),
            (PoolTarget::Standbys, true) if pool.fallback_to_primary => (Truth::True, None),
            (PoolTarget::Standbys, true) => wrong(format!("it leads to {node}, which is a primary")),
            (PoolTarget::Standbys, false) => self.standby(pool, seen, running),
        }
    }

    fn standby(&self, pool: &Pool, seen: &NodeObserved, running: &Running) -> (Truth, Option<String>) {
        let node = &seen.node;
        if !place::streams(running) {
            return (Truth::False, Some(format!("it leads to {node}, which does not stream")));
        }
        let (Some(limit), Some(layout)) = (pool.max_lag, self.layout) else { return (Truth::True, None) };
        let found = layout.standbys.iter().find(|standby| standby.target.node == *node);
        match found.and_then(|standby| standby.behind) {
            Some(behind) if behind <= limit => (Truth::True, None),
            Some(behind) => {
                let (behind, limit) =
                    (crate::units::human_duration(behind), crate::units::human_duration(limit));
                (
                    Truth::False,
                    Some(format!("it leads to {node}, which is {behind} behind, max-lag is {limit}")),
                )
            }
            None => (Truth::Unknown, Some(format!("how far {node} is behind is not known"))),
        }
    }

    /// Names the node at an address, or the address.
    fn name(&self, host: &str, port: u16) -> String {
        let at = |target: &Target| target.port == port && target.host == host;
        let nodes = self.cluster.nodes.iter().map(|node| place::target(self.cluster, node));
        nodes.into_iter().find(at).map_or_else(|| format!("{host}:{port}"), |target| target.node)
    }
}

/// Tells whether a server connection goes where its alias leads. A name of a host stands for addresses that are not known here.
fn leads_to(hosts: &str, port: u16, address: &str, server_port: u16) -> bool {
    let named = |host: &str| host.parse::<std::net::IpAddr>().is_err();
    server_port == port && hosts.split(',').map(str::trim).any(|host| host == address || named(host))
}
