//! PgBouncer: its pools, who may log in, and how many connections all of it may open.

use super::super::budget::{Limits, PoolDemand};
use super::super::decode::{NamedEntry, Spanned};
use super::super::model::{Node, Pool, PoolMode, PoolTarget, PoolUser, Poolers, Postgres, Role};
use super::super::problem::Position;
use super::super::{budget, raw};
use super::{Checker, Draft};
use std::collections::HashMap;

/// Client connections of one PgBouncer if the file states none.
pub(super) const DEFAULT_MAX_CLIENTS: u32 = 1000;
/// PgBouncer processes of one cluster on one host.
const MOST_PROCESSES: u32 = 64;

impl Checker<'_> {
    pub(super) fn poolers(
        &mut self,
        draft: &Draft<'_>,
        raw: &Spanned<raw::Poolers>,
        port: Option<(u16, Position)>,
    ) -> Option<Poolers> {
        let path = draft.path(".poolers");
        if !draft.has(&["poolers", "hosts"]) {
            self.missing(raw.at, &path, "hosts", "hosts: [HOST]");
        }
        if !draft.has(&["poolers", "pools"]) {
            self.missing(raw.at, &path, "pools", "pools: {rw: {to: primary, size: 20}}");
        }
        if !draft.has(&["ports", "pooler"]) {
            self.missing(draft.at, &draft.path(".ports"), "pooler", "ports: {pooler: 6432}");
        }
        let raw = &raw.value;
        let hosts = raw.hosts.as_ref().map(|hosts| hosts.value.as_slice()).unwrap_or_default();
        if let Some(list) = raw.hosts.as_ref().filter(|list| list.value.is_empty()) {
            self.report
                .add(list.at, format!("{path}.hosts names no host"))
                .hint("Write \"poolers: none\" if the cluster has no pooler.");
        }
        self.twice(hosts, &format!("host in {path}.hosts"));
        for host in hosts {
            if self.known_host(host)
                && let Some((port, at)) = port
            {
                let at = if hosts.len() > 1 { host.at } else { at };
                self.listen(at, &host.value, port, format!("the pooler of {}", draft.name));
            }
        }
        if let Some(limit) = raw.max_clients.as_ref().filter(|limit| limit.value == 0) {
            self.report
                .add(limit.at, format!("{path}.max-clients must be 1 or more"))
                .hint(format!("Remove the key for the default of {DEFAULT_MAX_CLIENTS}."));
        }
        let processes = raw.processes.as_ref().map_or(1, |count| count.value);
        if let Some(count) =
            raw.processes.as_ref().filter(|count| count.value == 0 || count.value > MOST_PROCESSES)
        {
            self.report
                .add(count.at, format!("{path}.processes must be 1 to {MOST_PROCESSES}"))
                .detail("A PgBouncer uses one core; more processes than cores gain nothing.")
                .hint("Remove the key for one.");
        }
        let mut pools = Vec::new();
        for entry in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            pools.extend(self.pool(draft, entry, hosts.len() * processes as usize));
        }
        let users = raw.users.as_ref().map(|users| users.value.0.as_slice()).unwrap_or_default();
        let user = |entry: &NamedEntry<raw::PoolUser>| PoolUser {
            name: entry.name.clone(),
            mode: entry.value.mode.as_ref().map(|mode| mode.value),
            connections: entry.value.connections.as_ref().map(|count| count.value),
            size: entry.value.size.as_ref().map(|count| count.value),
            clients: entry.value.clients.as_ref().map(|count| count.value),
        };
        Some(Poolers {
            processes,
            auth: raw.auth.as_ref().map(|auth| auth.value).unwrap_or_default(),
            users: users.iter().map(user).collect(),
            hosts: hosts.iter().map(|host| host.value.clone()).collect(),
            port: port?.0,
            mode: raw.mode.as_ref().map_or(PoolMode::Transaction, |mode| mode.value),
            max_clients: raw.max_clients.as_ref().map_or(DEFAULT_MAX_CLIENTS, |limit| limit.value),
            pools,
        })
    }

    fn pool(&mut self, draft: &Draft<'_>, entry: &NamedEntry<raw::Pool>, poolers: usize) -> Option<Pool> {
        let NamedEntry { name, at, value } = entry;
        let path = draft.path(&format!(".poolers.pools.{name}"));
        self.name(*at, "pool", name);
        for (key, example) in [("to", "to: primary"), ("size", "size: 20")] {
            if !draft.has(&["poolers", "pools", name, key]) {
                self.missing(*at, &path, key, example);
            }
        }
        let (to, size) = (value.to.as_ref()?, value.size.as_ref()?);
        if (size.value as usize) < poolers.max(1) {
            self.report
                .add(size.at, format!("{path}.size is {}, too small for {poolers} poolers", size.value))
                .detail("A size is the total for a node, divided among the poolers; each needs at least 1.")
                .hint("Raise the size, or name fewer hosts in \"poolers\".");
        }
        if to.value == PoolTarget::Primary {
            let stated = [
                ("max-lag", value.max_lag.as_ref().map(|lag| lag.at)),
                ("fallback", value.fallback.as_ref().map(|fallback| fallback.at)),
                ("of", value.of.as_ref().map(|of| of.at)),
            ];
            for (key, at) in stated.into_iter().filter_map(|(key, at)| Some((key, at?))) {
                self.report
                    .add(at, format!("{path}.{key} is only for pools that lead to standbys"))
                    .hint("Remove it, or write \"to: standbys\".");
            }
        }
        Some(Pool {
            name: name.clone(),
            to: to.value,
            size: size.value,
            reserve: value.reserve.as_ref().map_or(0, |reserve| reserve.value),
            max_lag: value.max_lag.as_ref().map(|lag| lag.value),
            fallback_to_primary: value.fallback.is_some(),
            mode: value.mode.as_ref().map(|mode| mode.value),
            of: value.of.iter().flat_map(|of| &of.value).map(|name| name.value.clone()).collect(),
        })
    }

    pub(super) fn pools_lead_somewhere(&mut self, draft: &Draft<'_>, raw: &raw::Poolers) {
        if draft.names("nodes").len() != 1 {
            return;
        }
        for pool in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            if let Some(to) = pool.value.to.as_ref().filter(|to| to.value == PoolTarget::Standbys)
                && !draft.has(&["poolers", "pools", &pool.name, "fallback"])
            {
                self.report
                    .add(
                        to.at,
                        format!("pool \"{}\" leads to standbys, and {} has none", pool.name, draft.name),
                    )
                    .hint("Add a node, or write \"fallback: primary\".");
            }
        }
    }

    /// What a pool may lead to are nodes of the cluster.
    pub(super) fn pool_nodes(&mut self, draft: &Draft<'_>, raw: &raw::Poolers, nodes: &[(Node, Position)]) {
        let names: Vec<&str> = nodes.iter().map(|(node, _)| node.name.as_str()).collect();
        for entry in raw.pools.as_ref().map(|pools| pools.value.0.as_slice()).unwrap_or_default() {
            let Some(of) = &entry.value.of else { continue };
            let path = draft.path(&format!(".poolers.pools.{}.of", entry.name));
            if of.value.is_empty() {
                self.report
                    .add(of.at, format!("{path} names no node"))
                    .hint("Remove the key: the pool then leads to any standby.");
            }
            for name in of.value.iter().filter(|name| !names.contains(&name.value.as_str())) {
                self.report
                    .add(name.at, format!("unknown node \"{}\" in {path}", name.value))
                    .suggest(&name.value, names.iter().copied());
            }
            self.twice(&of.value, &format!("node in {path}"));
        }
    }

    /// Limits are for roles that come through the poolers.
    pub(super) fn pool_users(&mut self, draft: &Draft<'_>, raw: &raw::Poolers, roles: &[Role]) {
        let known: Vec<&str> =
            roles.iter().filter(|role| !role.pools.is_empty()).map(|role| role.name.as_str()).collect();
        for entry in raw.users.as_ref().map(|users| users.value.0.as_slice()).unwrap_or_default() {
            let path = draft.path(&format!(".poolers.users.{}", entry.name));
            if !known.contains(&entry.name.as_str()) {
                self.report
                    .add(entry.at, format!("{path} limits a role that has no pools"))
                    .suggest(&entry.name, known.iter().copied());
            }
            let plain =
                entry.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
            if !plain {
                self.report
                    .add(entry.at, format!("PgBouncer cannot limit the role {:?}", entry.name))
                    .detail("Its configuration takes letters, digits, \"_\", \".\" and \"-\" in a name, quoted or not.")
                    .hint("Rename the role, or limit it with \"connections\" of the role itself.");
            }
            let value = &entry.value;
            // 0 means "no limit" to PgBouncer, and as a pool's size so only since 1.24.
            for (key, count) in
                [("connections", &value.connections), ("size", &value.size), ("clients", &value.clients)]
            {
                if let Some(count) = count.as_ref().filter(|count| count.value == 0) {
                    self.report
                        .add(count.at, format!("{path}.{key} must be 1 or more"))
                        .hint("Remove the key if the role is not to be limited.");
                }
            }
        }
    }

    /// The names under which clients reach the databases must differ.
    pub(super) fn aliases(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Poolers,
        poolers: &Poolers,
        databases: &[String],
    ) {
        let Some(raw) = &raw.pools else {
            return;
        };
        let mut seen: HashMap<String, (&str, &str)> = HashMap::new();
        for pool in &poolers.pools {
            let at =
                raw.value.0.iter().find(|entry| entry.name == pool.name).map_or(raw.at, |entry| entry.at);
            for database in databases {
                let alias = pool.alias(database);
                // PgBouncer's parser takes no quoted name, whatever its manual says (pgbouncer issue 971; seen with 1.18).
                let plain =
                    alias.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
                if !plain {
                    self.report
                        .add(at, format!("PgBouncer cannot have the alias {alias:?}"))
                        .detail("Its configuration takes letters, digits, \"_\", \".\" and \"-\" in a name, quoted or not.")
                        .hint("Rename the database, or write \"poolers: none\".");
                } else if alias.len() > 63 {
                    self.report
                        .add(
                            at,
                            format!(
                                "the alias \"{alias}\" of {} has {} bytes, PgBouncer takes 63",
                                draft.name,
                                alias.len()
                            ),
                        )
                        .hint("Shorten the name of the pool or of the database.");
                } else if alias == "pgbouncer" {
                    self.report
                        .add(at, "the alias \"pgbouncer\" is PgBouncer's admin console")
                        .hint("Rename the pool or the database.");
                }
                if let Some((other_database, other_pool)) = seen.insert(alias.clone(), (database, &pool.name))
                {
                    self.report
                        .add(at, format!("two pools of {} have the alias \"{alias}\"", draft.name))
                        .detail(format!(
                            "It is database {other_database} through pool {other_pool}, and database {database} through pool {}.",
                            pool.name
                        ))
                        .hint("Rename the pool or the database.");
                }
            }
        }
    }

    /// No node may be asked for more connections than it has, whichever role it has.
    pub(super) fn budget(
        &mut self,
        draft: &Draft<'_>,
        raw: &raw::Poolers,
        poolers: &Poolers,
        (nodes, roles): (&[(Node, Position)], &[Role]),
        postgres: Option<&Postgres>,
    ) {
        let (Some(postgres), Some(raw_pools)) = (postgres, &raw.pools) else {
            return;
        };
        let limits = Limits::declared(postgres);
        let direct = budget::direct(roles);
        let usable = limits.free().saturating_sub(direct);
        let mut has = format!("{limits}");
        if direct > 0 {
            has.push_str(&format!(" - {direct} of roles without a pool"));
        }
        has.push_str(&format!(" = {usable}"));
        // A node that is alone serves the pools that fall back, any other one its share of them.
        let worst = |node: &Node| -> (&str, Vec<PoolDemand>) {
            let of = |primary| budget::demand(&poolers.pools, &node.name, primary, true);
            let sum = |pools: &[PoolDemand]| -> u64 {
                pools.iter().map(|pool| u64::from(pool.size) + u64::from(pool.reserve)).sum()
            };
            let (primary, standby) = (of(true), of(false));
            if sum(&primary) >= sum(&standby) { ("primary", primary) } else { ("standby", standby) }
        };
        let told = |pools: &[PoolDemand]| -> (u64, String) {
            let needed = pools.iter().map(|pool| u64::from(pool.size) + u64::from(pool.reserve)).sum();
            let sum = pools.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            (needed, if sum.contains([',', '+']) { format!("{sum} = {needed}") } else { sum })
        };
        let most = nodes.iter().map(|(node, _)| worst(node)).max_by_key(|(_, pools)| told(pools).0);
        if let Some((role, pools)) = most
            && told(&pools).0 > u64::from(usable)
        {
            let (needed, sum) = told(&pools);
            let largest = pools.iter().rev().max_by_key(|pool| pool.size);
            let at = largest
                .and_then(|pool| raw_pools.value.0.iter().find(|entry| entry.name == pool.pool))
                .and_then(|entry| entry.value.size.as_ref())
                .map_or(raw_pools.at, |size| size.at);
            self.report
                .add(
                    at,
                    format!(
                        "the pools may open {needed} connections to a node of {}, it has {usable} for them",
                        draft.name
                    ),
                )
                .detail(format!("As {role}: {sum}. {has}."))
                .hint("Lower a size or a reserve, or raise max_connections under \"settings\".");
        }
        for (node, at) in nodes {
            let Some(stated) = node.pool_connections else {
                continue;
            };
            let (role, pools) = worst(node);
            let (needed, sum) = told(&pools);
            let full = format!("{}-{}", draft.name, node.name);
            if needed > u64::from(stated) {
                self.report
                    .add(*at, format!("the pools may open {needed} connections to {full}, its pool-connections are {stated}"))
                    .detail(format!("As {role}: {sum}."))
                    .hint("Lower a size or a reserve, or raise its pool-connections.");
            }
            if stated > usable {
                self.report
                    .add(*at, format!("{full} has pool-connections {stated}, more than the {usable} that its server has for them"))
                    .detail(format!("{has}."))
                    .hint("Lower pool-connections, or raise max_connections under \"settings\".");
            }
        }
    }
}
