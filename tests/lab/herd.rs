//! Three nodes on three hosts in two regions, two poolers (one of them on a host of its own), two operators' stations, and a host of clients.
//!
//! Made once, for whatever befalls it afterwards.

use super::lab::{Lab, eventually};
use super::ledger::{Clients, ROWS, TABLE};
use super::services::newest_server;
use super::station::{APP_PASSWORD, OPS, POOLER, PORT, Station, Way};

/// Where the clients are.
pub const APP: &str = "app";
/// A host with a pooler and no node.
pub const GATE: &str = "gate";
/// The station of another operator, who has the topology and nothing of the first one's.
pub const OTHER: &str = "ops2";
pub const HOSTS: [(&str, u32); 7] =
    [("db1", 3072), ("db2", 3072), ("db3", 3072), (GATE, 1024), (APP, 256), (OPS, 2048), (OTHER, 1536)];
const WAYS: [Way<'static>; 4] = [
    Way { host: "db1", user: "root", through: None },
    Way { host: "db2", user: "dba", through: None },
    Way { host: "db3", user: "root", through: None },
    Way { host: GATE, user: "root", through: None },
];
/// Which node is on which host.
pub const NODES: [Node; 3] =
    [Node { name: "a", host: "db1" }, Node { name: "b", host: "db2" }, Node { name: "c", host: "db3" }];
/// What the hook writes down, on the new primary's host.
pub const HOOKED: &str = "/srv/hooks/told";

/// A node, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub name: &'static str,
    pub host: &'static str,
}

impl Node {
    pub fn unit(self) -> String {
        format!("pgherd-inventory-{}", self.name)
    }
}

/// A herd that serves.
pub struct Herd<'a> {
    pub lab: &'a Lab,
    pub station: Station<'a>,
    pub other: Station<'a>,
}

/// Three nodes, of which one standby acknowledges, two poolers, and a hook on the host of the new primary.
fn topology(lab: &Lab) -> String {
    let (major, bin) = newest_server();
    let at = |host: &str| lab.address(host).to_string();
    let nodes: String = NODES
        .iter()
        .map(|Node { name, host }| {
            format!("      {name}: {{host: {host}, data-directory: /srv/inventory-{name}}}\n")
        })
        .collect();
    format!(
        "pgherd: 1\nherd: shop\nregions: {{west: {{hosts: {{db1: {}, db2: {}, {GATE}: {}}}}}, east: {{hosts: {{db3: {}}}}}}}\n\
         repositories: {{main: {{url: \"file:///srv/shared/repository\"}}}}\n\
         clusters:\n  inventory:\n    ports: {{postgres: {PORT}, pooler: {POOLER}}}\n    \
         postgres: {{version: {major}, bin-directory: {bin}, service: systemd, tune: {{memory: 256 MiB}}}}\n    \
         nodes:\n{nodes}    synchronous: {{wait-for: 1, of: [a, b, c]}}\n    \
         poolers: {{hosts: [db1, {GATE}], mode: transaction, max-clients: 50, pools: {{rw: {{to: primary, size: 8}}}}}}\n    \
         backups: {{repository: main}}\n    \
         hooks: {{after-promote: {{run: [/srv/hooks/tell, it is so], on: new-primary}}}}\n    \
         schemas: {{inventory: {{owner: inventory_owner, write: [app]}}}}\n    \
         roles: {{app: {{password: {{env: APP_PASSWORD}}, pools: [rw]}}}}\n",
        at("db1"),
        at("db2"),
        at(GATE),
        at("db3"),
    )
}

impl<'a> Herd<'a> {
    /// Makes it, with the ledger's table, into which clients are let directly as well.
    pub fn furnish(lab: &'a Lab) -> Self {
        let (_, bin) = newest_server();
        let station = Station::furnish(lab, &bin, &WAYS);
        let other = Station::another(lab, OTHER, &bin, &WAYS);
        for one in [&station, &other] {
            one.write("/home/oncall/pgherd.yml", &topology(lab));
        }
        // Who logs in there runs it: root, or a user of the host's.
        let hook = "mkdir -p /srv/hooks && printf '%s\\n' '#!/bin/sh' \
                    'echo \"$PGHERD_POINT of $PGHERD_KIND: $PGHERD_OLD_PRIMARY $PGHERD_NEW_PRIMARY on $PGHERD_TIMELINE, $1\" >>/srv/hooks/told' \
                    >/srv/hooks/tell && chmod 0755 /srv/hooks/tell && touch /srv/hooks/told && chmod 0666 /srv/hooks/told";
        for node in NODES {
            lab.prints(node.host, &["sh", "-c", hook]);
        }
        station.done(&["apply", "--yes"]);
        station.stream(&["b", "c"]);
        station.sql("db1", "a", "inventory", TABLE).expect("it is made");
        // Clients that come directly are let in by lines of the user's own.
        for Node { name, host } in NODES {
            let line = format!(
                "echo 'host inventory app {}/24 scram-sha-256' >>/srv/inventory-{name}/pg_hba.conf",
                lab.address(APP)
            );
            lab.prints(host, &["sh", "-c", &line]);
            station.sql(host, name, "postgres", "SELECT pg_reload_conf()").expect("it answers");
        }
        Self { lab, station, other }
    }

    /// Several writers on a host of their own, through both poolers and directly.
    pub fn clients(&self) -> Clients {
        Clients {
            network: Some(self.lab.network_of(APP)),
            password: APP_PASSWORD.to_owned(),
            pooled: 6,
            poolers: ["db1", GATE].map(|host| (self.lab.address(host), POOLER)).into(),
            direct: 2,
            nodes: NODES.map(|node| (node.name.to_owned(), self.lab.address(node.host), PORT)).into(),
        }
    }

    /// What the superuser gets on a node.
    pub fn sql(&self, node: Node, sql: &str) -> Option<String> {
        self.station.sql(node.host, node.name, "inventory", sql)
    }

    /// The rows of the ledger as a node has them.
    pub fn rows(&self, node: Node) -> String {
        self.sql(node, ROWS).expect("the primary answers")
    }

    /// The nodes that answer as primaries, asked on the consoles of their hosts.
    pub fn leaders(&self) -> Vec<Node> {
        let leads = |node: &Node| {
            self.lab.init(node.host).is_some()
                && self.sql(*node, "SELECT pg_is_in_recovery()").as_deref() == Some("f")
        };
        NODES.into_iter().filter(leads).collect()
    }

    /// Waits until rows are written on that node.
    #[track_caller]
    pub fn writes_go_on(&self, node: Node) {
        let count = || self.sql(node, "SELECT count(*) FROM inventory.ledger");
        let before = count();
        assert!(
            eventually(|| count().is_some_and(|now| Some(now) != before)),
            "nobody writes on {}",
            node.name
        );
    }

    /// Waits until a failover would be done: nobody has heard the primary for a while.
    pub fn may_fail_over(&self) {
        assert!(eventually(|| self.station.pgherd(&["failover", "--dry-run"]).status.success()));
    }

    /// Ends every fault of the network but the ones that make the stations.
    pub fn mend(&self) {
        self.lab.mend();
        self.station.only_ssh();
        self.other.only_ssh();
    }
}

/// The node of that name.
pub fn node(name: &str) -> Node {
    NODES.into_iter().find(|node| node.name == name).expect("a node of the herd")
}
