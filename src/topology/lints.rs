//! What is allowed and seldom meant: pools that never fill, sessions that wait for one another, limits that are smaller than they look.
//!
//! Pure. Nothing here refuses a file.

use super::budget::uncounted;
use super::model::{Cluster, Pool, PoolMode};

/// Returns what a cluster's poolers are warned of, a sentence each without a full stop.
pub fn lints(cluster: &Cluster) -> Vec<String> {
    let Some(poolers) = &cluster.poolers else { return Vec::new() };
    let mut found = Vec::new();
    let processes = u32::try_from(poolers.hosts.len()).unwrap_or(u32::MAX).saturating_mul(poolers.processes);
    let clients = poolers.max_clients.saturating_mul(processes);
    for pool in &poolers.pools {
        let name = &pool.name;
        match poolers.mode_of(pool) {
            PoolMode::Session if full(pool) < clients => found.push(format!(
                "pool {name} lends {} connections for whole sessions, and {clients} clients may come: from the {}th on they wait until one leaves",
                full(pool),
                u64::from(full(pool)) + 1
            )),
            PoolMode::Statement => {
                found.push(format!("pool {name} is of mode statement: a transaction of several statements is refused"));
            }
            PoolMode::Session | PoolMode::Transaction => {}
        }
        let used = cluster.roles.iter().any(|role| role.pools.contains(name));
        if !used {
            found.push(format!("no role may use pool {name}"));
        }
        if full(pool) > clients {
            found.push(format!(
                "pool {name} never fills: it has {} connections for at most {clients} clients",
                full(pool)
            ));
        }
    }
    for role in cluster.roles.iter().filter(|role| !role.pools.is_empty()) {
        let own = poolers.users.iter().find(|user| user.name == role.name).and_then(|user| user.connections);
        // Each process lets at least one through.
        if let Some(limit) = own.or(role.connections).filter(|limit| *limit < processes) {
            found.push(format!(
                "role {} may have {limit} connections, and {processes} PgBouncers may open one each: some are refused by the server",
                role.name
            ));
        }
    }
    for role in cluster.roles.iter().filter(|role| !role.pools.is_empty() && role.password.is_some()) {
        let may = cluster.schemas.iter().any(|schema| {
            schema.owner == role.name || schema.write.contains(&role.name) || schema.read.contains(&role.name)
        });
        if !may {
            found.push(format!(
                "role {} may use pools and no schema lets it in: unless a GRANT of yours does, each database refuses it; name it under \"schemas\"",
                role.name
            ));
        }
    }
    for role in uncounted(&cluster.roles) {
        found.push(format!(
            "role {role} connects past the poolers and has no limit: its connections are in no budget; give it \"connections\""
        ));
    }
    found
}

fn full(pool: &Pool) -> u32 {
    pool.size.saturating_add(pool.reserve)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::topology::load_text;

    #[test]
    fn what_is_seldom_meant_is_told() {
        let text = "
pgherd: 1
herd: shop
regions: {here: {hosts: {local: local}}}
clusters:
  shop:
    postgres: {version: 15}
    ports: {pooler: 6441}
    nodes:
      a: {host: local, port: 5441, data-directory: /d/a, prefer: primary}
      b: {host: local, port: 5442, data-directory: /d/b}
    poolers:
      hosts: [local]
      processes: 4
      max-clients: 5
      pools:
        rw: {to: primary, size: 30, mode: session}
        ro: {to: standbys, size: 4, mode: session}
        odd: {to: standbys, size: 4, mode: statement}
    roles:
      app: {password: {env: PW}, pools: [rw, ro], connections: 3}
      auditor: {password: {env: PW}}
";
        let cluster = load_text(Path::new("/pgherd.yml"), text, Path::new("/")).unwrap().clusters.remove(0);
        assert_eq!(
            lints(&cluster),
            [
                "pool rw never fills: it has 30 connections for at most 20 clients",
                "pool ro lends 4 connections for whole sessions, and 20 clients may come: from the 5th on they wait until one leaves",
                "pool odd is of mode statement: a transaction of several statements is refused",
                "no role may use pool odd",
                "role app may have 3 connections, and 4 PgBouncers may open one each: some are refused by the server",
                "role app may use pools and no schema lets it in: unless a GRANT of yours does, each database refuses it; name it under \"schemas\"",
                "role auditor connects past the poolers and has no limit: its connections are in no budget; give it \"connections\"",
            ]
        );
    }
}
