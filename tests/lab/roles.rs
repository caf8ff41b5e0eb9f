//! Roles that change under load, on hosts of their own: what clients see, through two poolers and directly.

use std::time::{Duration, Instant};

use super::lab::{Lab, eventually, say};
use super::ledger::{Clients, Ledger, ROWS, TABLE};
use super::services::newest_server;
use super::station::{APP_PASSWORD, OPS, POOLER, PORT, Station, Way, ended};

/// Where the clients are.
const APP: &str = "app";
const HOSTS: [(&str, u32); 5] = [("db1", 1536), ("db2", 1536), ("db3", 1536), (APP, 256), (OPS, 1024)];
const WAYS: [Way<'static>; 3] = [
    Way { host: "db1", user: "root", through: None },
    Way { host: "db2", user: "dba", through: None },
    Way { host: "db3", user: "root", through: None },
];
/// Which node is on which host.
const NODES: [(&str, &str); 3] = [("a", "db1"), ("b", "db2"), ("c", "db3")];

/// Declares three nodes, of which one standby acknowledges, and two poolers.
fn declare(station: &Station<'_>) {
    let (major, bin) = newest_server();
    let at = |host: &str| station.lab.address(host).to_string();
    let nodes: String = NODES
        .iter()
        .map(|(node, host)| {
            format!("      {node}: {{host: {host}, data-directory: /srv/inventory-{node}}}\n")
        })
        .collect();
    let topology = format!(
        "pgherd: 1\nherd: shop\nregions: {{west: {{hosts: {{db1: {}, db2: {}}}}}, east: {{hosts: {{db3: {}}}}}}}\n\
         repositories: {{main: {{url: \"file:///srv/shared/repository\"}}}}\n\
         clusters:\n  inventory:\n    ports: {{postgres: {PORT}, pooler: {POOLER}}}\n    \
         postgres: {{version: {major}, bin-directory: {bin}, service: systemd, tune: {{memory: 256 MiB}}}}\n    \
         nodes:\n{nodes}    synchronous: {{wait-for: 1, of: [a, b, c]}}\n    \
         poolers: {{hosts: [db1, db2], mode: transaction, max-clients: 50, pools: {{rw: {{to: primary, size: 8}}}}}}\n    \
         backups: {{repository: main}}\n    \
         schemas: {{inventory: {{owner: inventory_owner, write: [app]}}}}\n    \
         roles: {{app: {{password: {{env: APP_PASSWORD}}, pools: [rw]}}}}\n",
        at("db1"),
        at("db2"),
        at("db3"),
    );
    station.write("/home/oncall/pgherd.yml", &topology);
}

/// Several writers on a host of their own, through both poolers and directly.
fn clients(lab: &Lab) -> Clients {
    Clients {
        network: Some(lab.network_of(APP)),
        password: APP_PASSWORD.to_owned(),
        pooled: 6,
        poolers: ["db1", "db2"].map(|host| (lab.address(host), POOLER)).into(),
        direct: 2,
        nodes: NODES.map(|(node, host)| (node.to_owned(), lab.address(host), PORT)).into(),
    }
}

/// The rows of the ledger as the node of that name has them.
fn rows(station: &Station<'_>, node: &str) -> String {
    let (_, host) = NODES.iter().find(|(name, _)| *name == node).expect("a node");
    station.sql(host, node, "inventory", ROWS).expect("the primary answers")
}

/// How many switchovers there are in a row.
fn turns() -> usize {
    if std::env::var_os("PGHERD_SOAK").is_some() { 50 } else { 3 }
}

/// A herd that serves, with the ledger's table, into which clients are let directly as well.
fn furnished(lab: &Lab) -> Station<'_> {
    let (_, bin) = newest_server();
    let station = Station::furnish(lab, &bin, &WAYS);
    declare(&station);
    station.done(&["apply", "--yes"]);
    station.stream(&["b", "c"]);
    station.sql("db1", "a", "inventory", TABLE).expect("it is made");
    // Clients that come directly are let in by lines of the user's own.
    for (node, host) in NODES {
        let line = format!(
            "echo 'host inventory app {}/24 scram-sha-256' >>/srv/inventory-{node}/pg_hba.conf",
            lab.address(APP)
        );
        lab.prints(host, &["sh", "-c", &line]);
        station.sql(host, node, "postgres", "SELECT pg_reload_conf()").expect("it answers");
    }
    station
}

#[test]
fn roles_change_under_load_planned_and_forced_and_what_was_lost_comes_back() {
    let Some(lab) = Lab::with_disks(&HOSTS) else { return };
    let station = furnished(&lab);
    again_and_again_clients_of_the_poolers_see_no_error(&station);
    a_host_that_is_lost_is_failed_over_from_and_comes_back_as_no_primary(&station);
}

fn again_and_again_clients_of_the_poolers_see_no_error(station: &Station<'_>) {
    let clients = clients(station.lab);
    let ledger = Ledger::start(&clients, 0);
    let mut leads = "a";
    for turn in 0..turns() {
        // Both others in turns, so that each node is led from and to.
        leads = NODES[(turn + 1) % 3].0;
        // One of them is alone in its region.
        let to = if leads == "c" { ["--region", "east"] } else { ["--to", leads] };
        let shown = station.done(&["switchover", to[0], to[1], "--yes"]);
        assert!(shown.contains(&format!("inventory-{leads} is primary")), "{shown}");
        assert!(shown.contains("goes on without a gap"), "{shown}");
    }
    let outcome = ledger.stop(&clients, 0, || rows(station, leads));
    say(&format!(
        "{} switchovers: {} rows; poolers: longest {:.2?}, {} errors; directly: longest {:.2?}, {} errors",
        turns(),
        outcome.acknowledged,
        outcome.pooled.longest_gap,
        outcome.pooled.errors,
        outcome.direct.longest_gap,
        outcome.direct.errors,
    ));
    outcome.is_sound();
    assert_eq!((outcome.pooled.errors, outcome.pooled.failed_connects), (0, 0), "{:?}", outcome.pooled.told);
    // They are held back for no longer than that, whatever befalls.
    assert!(outcome.pooled.longest_gap < Duration::from_secs(90), "{:?}", outcome.pooled.longest_gap);
    // A connection to the primary itself ends with it, and its statement may be on its way: one error a switchover and writer.
    assert!((1..=2 * turns()).contains(&outcome.direct.errors), "{:?}", outcome.direct);
    station.done(&["plan", "--detailed-exitcode"]);
}

/// Waits until rows are written on that node.
fn writes_go_on(station: &Station<'_>, node: &str) {
    let (_, host) = NODES.iter().find(|(name, _)| *name == node).expect("a node");
    let count = || station.sql(host, node, "inventory", "SELECT count(*) FROM inventory.ledger");
    let before = count();
    assert!(eventually(|| count().is_some_and(|now| Some(now) != before)), "nobody writes on {node}");
}

/// Waits until a failover would be done: nobody has heard the primary for a while.
fn may_fail_over(station: &Station<'_>) {
    assert!(eventually(|| station.pgherd(&["failover", "--dry-run"]).status.success()));
}

fn a_host_that_is_lost_is_failed_over_from_and_comes_back_as_no_primary(station: &Station<'_>) {
    let lab = station.lab;
    station.done(&["switchover", "--to", "a", "--yes"]);
    // The pooler that stays.
    let clients =
        Clients { poolers: vec![(lab.address("db2"), POOLER)], pooled: 4, direct: 1, ..clients(lab) };
    let ledger = Ledger::start(&clients, 1000);
    writes_go_on(station, "a");

    // Only the station is cut off from it: it is alive, and stays primary.
    lab.cut_pair(OPS, "db1");
    let refused = station.ends(&["failover", "--yes"], 4);
    assert!(refused.contains("seen alive from elsewhere"), "{refused}");
    station.mend();
    writes_go_on(station, "a");

    // Everybody is: its commits are confirmed by nobody any more.
    lab.cut("db1");
    may_fail_over(station);
    let begun = Instant::now();
    let shown = station.done(&["failover", "--region", "east", "--yes"]);
    say(&format!("a host that is cut off: failover in {:.1?}", begun.elapsed()));
    assert!(shown.contains("inventory-c is primary"), "{shown}");
    assert!(shown.contains("no commit of it ends"), "{shown}");
    writes_go_on(station, "c");

    // Whoever boots it: its unit's guard finds another one ahead.
    lab.power_off("db1");
    station.mend();
    lab.power_on("db1");
    assert!(eventually(|| station.node("a").0 == "stopped"), "{:?}", station.node("a"));
    let log = lab.prints("db1", &["journalctl", "--no-pager", "-u", "pgherd-inventory-a"]);
    assert!(log.contains("cannot start inventory-a as a primary"), "{log}");
    let outcome = ledger.stop(&clients, 1000, || rows(station, "c"));
    say(&format!(
        "{} rows; through the pooler: longest {:.2?}, {} errors",
        outcome.acknowledged, outcome.pooled.longest_gap, outcome.pooled.errors
    ));
    outcome.is_sound();
    station.done(&["rejoin", "a", "--yes"]);
    station.stream(&["a", "b"]);
    station.done(&["plan", "--detailed-exitcode"]);

    // The next one dies, and pgherd in the middle of it.
    let ledger = Ledger::start(&clients, 2000);
    writes_go_on(station, "c");
    lab.power_off("db3");
    may_fail_over(station);
    let killed = station.begin(&["failover", "--to", "b", "--yes"]);
    assert!(eventually(|| {
        let listed = station.json(&["operation", "list"]);
        listed["operations"].as_array().is_some_and(|all| all.iter().any(|one| one["state"] == "running"))
    }));
    lab.console(OPS, &["pkill", "--signal", "KILL", "-x", "pgherd"]);
    ended(killed);
    station.done(&["operation", "resume", &station.unfinished(), "--yes"]);
    writes_go_on(station, "b");
    let outcome = ledger.stop(&clients, 2000, || rows(station, "b"));
    outcome.is_sound();
    lab.power_on("db3");
    assert!(eventually(|| station.node("c").0 == "stopped"), "{:?}", station.node("c"));
    station.done(&["failback", "--yes"]);
    station.done(&["rejoin", "c", "--yes"]);
    station.stream(&["b", "c"]);
    station.done(&["plan", "--detailed-exitcode"]);
}
