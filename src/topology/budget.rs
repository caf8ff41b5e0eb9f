//! How many server connections the poolers may open to each node, today and after each failover, against what the node has.
//!
//! Pure. What PgBouncer may open through an alias is bounded by `max_db_connections`, which pgherd always writes as size + reserve: without
//! it several users multiply (pgbouncer issues 103 and 130). Sizes are totals over all pooler processes, so nothing is counted twice. That
//! few roles may use a pool now is no bound: the next role comes without a new plan of the pools.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::{Cluster, Node, Pool, PoolTarget, Postgres, Role};

/// What PostgreSQL has where nothing is set.
const DEFAULT_MAX_CONNECTIONS: u32 = 100;
const DEFAULT_SUPERUSER_RESERVED: u32 = 3;

/// The settings of a server that are counted.
pub const SETTINGS: [&str; 3] = ["max_connections", "superuser_reserved_connections", "reserved_connections"];

/// What a server has for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub max_connections: u32,
    pub superuser_reserved: u32,
    pub reserved: u32,
}

impl Limits {
    /// Returns what the topology declares.
    pub fn declared(postgres: &Postgres) -> Self {
        Self::read(|name| postgres.settings.get(name).map(String::as_str))
    }

    /// Reads settings by name; those that are not known have PostgreSQL's defaults.
    pub fn read<'v>(value: impl Fn(&str) -> Option<&'v str>) -> Self {
        let setting =
            |name: &str, default| value(name).and_then(|value| value.parse::<u32>().ok()).unwrap_or(default);
        Self {
            max_connections: setting(SETTINGS[0], DEFAULT_MAX_CONNECTIONS),
            superuser_reserved: setting(SETTINGS[1], DEFAULT_SUPERUSER_RESERVED),
            reserved: setting(SETTINGS[2], 0),
        }
    }

    /// Returns what is left for roles that are no superusers.
    pub fn free(self) -> u32 {
        self.max_connections.saturating_sub(self.superuser_reserved).saturating_sub(self.reserved)
    }
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { max_connections, superuser_reserved, reserved } = self;
        write!(
            f,
            "max_connections {max_connections} - superuser_reserved_connections {superuser_reserved} - reserved_connections {reserved}"
        )
    }
}

/// The connections of a cluster in each layout that it may come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Budget {
    pub cluster: String,
    /// Today's first, if it is known who is primary.
    pub layouts: Vec<Layout>,
}

impl Budget {
    /// Returns the nodes that may be asked for more than they have, with their layouts.
    pub fn over(&self) -> impl Iterator<Item = (&Layout, &NodeBudget)> {
        let nodes =
            self.layouts.iter().flat_map(|layout| layout.nodes.iter().map(move |node| (layout, node)));
        nodes.filter(|(_, node)| !node.fits)
    }
}

/// Returns each node in the layout in which the poolers may open most to it, in the order of `layouts`: the first of several.
pub fn at_most(layouts: &[Layout]) -> Vec<(&Layout, &NodeBudget)> {
    let mut most: Vec<(&Layout, &NodeBudget)> = Vec::new();
    for (layout, node) in
        layouts.iter().flat_map(|layout| layout.nodes.iter().map(move |node| (layout, node)))
    {
        match most.iter_mut().find(|(_, other)| other.node == node.node) {
            Some(known) if node.demand > known.1.demand => *known = (layout, node),
            Some(_) => {}
            None => most.push((layout, node)),
        }
    }
    most
}

/// Who leads, and what then falls to each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `today`, `b promoted`, `b alone`.
    pub name: String,
    pub primary: String,
    /// Whether it is how things are now.
    pub today: bool,
    pub nodes: Vec<NodeBudget>,
}

/// One node in one layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBudget {
    pub node: String,
    pub primary: bool,
    /// What the poolers may open, pool by pool.
    pub pools: Vec<PoolDemand>,
    /// The sum of the pools.
    pub demand: u32,
    pub limits: Limits,
    /// What roles that do not come through a pool may take, as far as they have a limit.
    pub direct: u32,
    /// What is left for the poolers.
    pub usable: u32,
    /// `pool-connections` of the node, if stated.
    pub stated: Option<u32>,
    pub fits: bool,
}

impl NodeBudget {
    /// Returns what the poolers may open to it at most.
    pub fn cap(&self) -> u32 {
        self.stated.map_or(self.usable, |stated| stated.min(self.usable))
    }
}

/// What one pool may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDemand {
    pub pool: String,
    pub size: u32,
    pub reserve: u32,
}

impl std::fmt::Display for PoolDemand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reserve {
            0 => write!(f, "{} {}", self.pool, self.size),
            reserve => write!(f, "{} {} + {reserve}", self.pool, self.size),
        }
    }
}

/// What is known of the servers beside what is declared.
#[derive(Debug, Clone, Default)]
pub struct Known<'a> {
    /// Who is primary now.
    pub primary: Option<&'a str>,
    /// What is in effect, by node.
    pub limits: BTreeMap<String, Limits>,
}

/// Returns what roles may take that have no pool: migrations, monitoring, backups. One without a limit cannot be counted.
pub fn direct(roles: &[Role]) -> u32 {
    let apart = roles.iter().filter(|role| role.pools.is_empty() && role.password.is_some());
    apart.filter_map(|role| role.connections).sum()
}

/// Returns the roles without a pool and without a limit, whose connections nobody can count.
pub fn uncounted(roles: &[Role]) -> impl Iterator<Item = &str> {
    let apart = roles.iter().filter(|role| role.pools.is_empty() && role.password.is_some());
    apart.filter(|role| role.connections.is_none()).map(|role| role.name.as_str())
}

/// Tells whether a pool may lead to a node as a standby.
pub fn serves(pool: &Pool, node: &str) -> bool {
    pool.to == PoolTarget::Standbys && (pool.of.is_empty() || pool.of.iter().any(|name| name == node))
}

/// Returns what the pools may open to one node.
pub fn demand(pools: &[Pool], node: &str, primary: bool, fallen_back: bool) -> Vec<PoolDemand> {
    let falls = |pool: &&Pool| match (pool.to, primary) {
        (PoolTarget::Primary, primary) => primary,
        (PoolTarget::Standbys, true) => fallen_back && pool.fallback_to_primary,
        (PoolTarget::Standbys, false) => serves(pool, node),
    };
    let of = |pool: &Pool| PoolDemand { pool: pool.name.clone(), size: pool.size, reserve: pool.reserve };
    pools.iter().filter(falls).map(of).collect()
}

/// Adds up a cluster's connections: as it stands, with each other node as primary, and with each node alone where pools of standbys fall
/// back to the primary. Empty for a cluster without poolers.
pub fn budget(cluster: &Cluster, known: &Known<'_>) -> Budget {
    let mut layouts = Vec::new();
    let pools = cluster.poolers.as_ref().map(|poolers| poolers.pools.as_slice()).unwrap_or_default();
    let falls_back = pools.iter().any(|pool| pool.fallback_to_primary);
    let mut leaders: Vec<&Node> = cluster.nodes.iter().collect();
    leaders.sort_by_key(|node| Some(node.name.as_str()) != known.primary);
    for leader in leaders.iter().filter(|_| !pools.is_empty()) {
        let today = Some(leader.name.as_str()) == known.primary;
        let row = |node: &Node, fallen_back| {
            let primary = node.name == leader.name;
            node_budget(cluster, known, node, primary, demand(pools, &node.name, primary, fallen_back))
        };
        if cluster.nodes.len() > 1 || !falls_back {
            layouts.push(Layout {
                name: if today { "today".to_owned() } else { format!("{} primary", leader.name) },
                primary: leader.name.clone(),
                today,
                nodes: cluster.nodes.iter().map(|node| row(node, false)).collect(),
            });
        }
        if falls_back {
            layouts.push(Layout {
                name: format!("{} alone", leader.name),
                primary: leader.name.clone(),
                today: today && cluster.nodes.len() == 1,
                nodes: vec![row(leader, true)],
            });
        }
    }
    Budget { cluster: cluster.name.clone(), layouts }
}

fn node_budget(
    cluster: &Cluster,
    known: &Known<'_>,
    node: &Node,
    primary: bool,
    pools: Vec<PoolDemand>,
) -> NodeBudget {
    let limits = known.limits.get(&node.name).copied().unwrap_or_else(|| Limits::declared(&cluster.postgres));
    let direct = direct(&cluster.roles);
    let usable = limits.free().saturating_sub(direct);
    let demand = pools.iter().map(|pool| pool.size.saturating_add(pool.reserve)).fold(0, u32::saturating_add);
    let fits = demand <= usable && node.pool_connections.is_none_or(|stated| demand <= stated);
    NodeBudget {
        node: node.name.clone(),
        primary,
        pools,
        demand,
        limits,
        direct,
        usable,
        stated: node.pool_connections,
        fits,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::topology::load_text;

    /// Product searches on b, order queries on c, analytics on d; orders are written to the primary.
    const SHOP: &str = "
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  shop:
    postgres: {version: 15, settings: {max_connections: 90}}
    ports: {pooler: 6441}
    nodes:
      a: {host: local, port: 5441, data-directory: /d/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /d/b}
      c: {host: local, port: 5443, data-directory: /d/c, pool-connections: 60}
    poolers:
      hosts: [local]
      pools:
        rw: {to: primary, size: 30, reserve: 2}
        search: {to: standbys, of: [b, c], size: 25, fallback: primary}
        orders: {to: standbys, of: [c, b], size: 25}
    roles:
      app: {password: {env: PW}, pools: [rw, search, orders]}
      migrations: {password: {env: PW}, connections: 5}
      auditor: {password: {env: PW}}
";

    /// What no file may declare: a load would refuse it with the same numbers.
    fn cluster() -> Cluster {
        let mut cluster =
            load_text(Path::new("/pgherd.yml"), SHOP, Path::new("/")).unwrap().clusters.remove(0);
        cluster.postgres.settings.insert("max_connections".to_owned(), "60".to_owned());
        cluster.nodes[2].pool_connections = Some(50);
        cluster
    }

    fn told(budget: &Budget) -> Vec<String> {
        let rows =
            budget.layouts.iter().flat_map(|layout| layout.nodes.iter().map(move |node| (layout, node)));
        rows.map(|(layout, node)| {
            let fits = if node.fits { "" } else { " over" };
            format!("{}: {} {}/{}{fits}", layout.name, node.node, node.demand, node.usable)
        })
        .collect()
    }

    #[test]
    fn every_failover_is_added_up() {
        let found = budget(&cluster(), &Known { primary: Some("b"), ..Known::default() });
        assert_eq!(
            told(&found),
            [
                "today: a 0/52",
                "today: b 32/52",
                "today: c 50/52",
                "b alone: b 57/52 over",
                "a primary: a 32/52",
                "a primary: b 50/52",
                "a primary: c 50/52",
                "a alone: a 57/52 over",
                "c primary: a 0/52",
                "c primary: b 50/52",
                "c primary: c 32/52",
                "c alone: c 57/52 over",
            ]
        );
        assert_eq!(found.over().count(), 3);
    }

    #[test]
    fn what_a_server_really_has_counts_and_what_a_node_is_given_too() {
        let mut cluster = cluster();
        cluster.nodes[2].pool_connections = Some(49);
        let small = Limits { max_connections: 40, superuser_reserved: 3, reserved: 2 };
        let known = Known { primary: Some("a"), limits: BTreeMap::from([("a".to_owned(), small)]) };
        let over: Vec<String> = budget(&cluster, &known)
            .over()
            .filter(|(layout, _)| layout.today)
            .map(|(_, node)| format!("{} {}/{}", node.node, node.demand, node.usable))
            .collect();
        assert_eq!(over, ["a 32/30", "c 50/52"]);
    }

    #[test]
    fn roles_that_nobody_counts_are_named() {
        let cluster = cluster();
        assert_eq!(direct(&cluster.roles), 5);
        assert_eq!(uncounted(&cluster.roles).collect::<Vec<_>>(), ["auditor"]);
    }

    #[test]
    fn a_cluster_without_poolers_has_no_budget() {
        let mut cluster = cluster();
        cluster.poolers = None;
        assert!(budget(&cluster, &Known::default()).layouts.is_empty());
    }
}
