//! The whole story of a herd on hosts of its own: three in two regions, one that joins later, and an ordinary user's station.

use super::lab::{Lab, eventually, say};
use super::services::newest_server;
use super::station::{OPS, PORT, Station, Way};

/// db1 and db2 are in the west, db3 is elsewhere and behind db1, db4 joins the west later.
const HOSTS: [(&str, u32); 5] = [("db1", 3072), ("db2", 2048), ("db3", 2048), ("db4", 2048), (OPS, 1024)];
const WAYS: [Way<'static>; 4] = [
    Way { host: "db1", user: "root", through: None },
    Way { host: "db2", user: "dba", through: None },
    Way { host: "db3", user: "root", through: Some("db1") },
    Way { host: "db4", user: "dba", through: None },
];
const DRILL: &str = "    objectives: {lose-primary: {rpo: 0 s, rto: 1 min}, undo-mistake: {rpo: 5 min, rto: 10 min}}\n    \
     drills: {restore: {to: newest, prove: [checksums, amcheck, assertions], assertions: {stock: {database: inventory, \
     sql: \"select count(*) = 20000 from inventory.stock\"}}}}\n";

/// Writes the topology, with what these lines add to its nodes.
fn declare(station: &Station<'_>, more: &str) {
    let (major, bin) = newest_server();
    let at = |host: &str| station.lab.address(host).to_string();
    let topology = format!(
        "pgherd: 1\nherd: shop\n\
         regions:\n  west: {{hosts: {{db1: {}, db2: {}, db4: {}}}}}\n  central: {{hosts: {{db3: {}}}}}\n\
         repositories: {{main: {{url: \"file:///srv/shared/repository\"}}}}\n\
         clusters:\n  inventory:\n    ports: {{postgres: {PORT}, pooler: 6441}}\n    \
         postgres: {{version: {major}, bin-directory: {bin}, service: systemd, tune: {{memory: 256 MiB}}}}\n    \
         nodes:\n      a: {{host: db1, data-directory: /srv/inventory-a, prefer: primary}}\n      \
         b: {{host: db2, data-directory: /srv/inventory-b}}\n      \
         c: {{host: db3, data-directory: /srv/inventory-c, promote: by-hand}}\n{more}    \
         synchronous: {{wait-for: 1, of: [a, b, c]}}\n    \
         poolers: {{hosts: [db1, db2], mode: transaction, max-clients: 50, pools: {{rw: {{to: primary, size: 8}}, \
         ro: {{to: standbys, size: 8, max-lag: 30 s, fallback: primary}}}}}}\n    \
         backups: {{repository: main, from: standby, window: 7 days}}\n    \
         schemas: {{inventory: {{owner: inventory_owner, write: [app]}}}}\n    \
         roles: {{app: {{password: {{env: APP_PASSWORD}}, pools: [rw, ro]}}}}\n{DRILL}",
        at("db1"),
        at("db2"),
        at("db4"),
        at("db3"),
    );
    station.write("/home/oncall/pgherd.yml", &topology);
}

#[test]
fn the_whole_story_happens_on_hosts_that_only_ssh_leads_to() {
    let Some(lab) = Lab::with_disks(&HOSTS) else { return };
    let (_, bin) = newest_server();
    let station = Station::furnish(&lab, &bin, &WAYS);
    declare(&station, "");
    let begun = std::time::Instant::now();
    let told = |what: &str| say(&format!("story {:.0} s: {what}", begun.elapsed().as_secs_f64()));

    // ---- a herd is made from one file
    station.done(&["validate"]);
    station.done(&["plan", "--out", "/home/oncall/first.plan"]);
    let shown = station.done(&["apply", "/home/oncall/first.plan", "--yes"]);
    assert!(shown.contains("shop/inventory is up"), "{shown}");
    station.stream(&["b", "c"]);
    station.done(&["plan", "--detailed-exitcode"]);
    told("the herd is up");

    // ---- it is worked for, through the pooler of either host
    let db1 = lab.address("db1");
    station
        .sql("db1", "a", "inventory", "SET ROLE inventory_owner; CREATE TABLE inventory.stock AS SELECT n AS item, 1000 AS pieces, \
             repeat(md5(n::text), 8) AS note FROM generate_series(1, 20000) n; CREATE TABLE inventory.sale (id bigserial, item int)")
        .expect("it is made");
    for host in ["db1", "db2"] {
        station.client("db3", lab.address(host), "INSERT INTO inventory.sale (item) VALUES (1)").unwrap();
    }
    let sales = |pooler| station.client("db3", pooler, "SELECT count(*) FROM inventory.sale");
    assert_eq!(sales(db1).unwrap(), "2");

    // ---- three things break behind its back
    lab.prints("db3", &["systemctl", "stop", "pgherd-inventory-c.service"]);
    station.sql("db1", "a", "postgres", "ALTER SYSTEM SET work_mem = '1GB'").unwrap();
    station.sql("db1", "a", "inventory", "REVOKE INSERT ON ALL TABLES IN SCHEMA inventory FROM app").unwrap();
    assert_eq!(station.node("c").0, "stopped");
    let shown = station.done(&["plan", "--out", "/home/oncall/mend.plan"]);
    for word in ["work_mem", "start, wait until it streams", "app"] {
        assert!(shown.contains(word), "no {word}: {shown}");
    }
    station.done(&["apply", "/home/oncall/mend.plan", "--yes"]);
    station.done(&["plan", "--detailed-exitcode"]);
    station.client("db3", db1, "INSERT INTO inventory.sale (item) VALUES (2)").unwrap();
    told("three things were mended");

    // ---- a host joins
    declare(&station, "      d: {host: db4, data-directory: /srv/inventory-d}\n");
    let shown = station.done(&["apply", "--yes"]);
    assert!(shown.contains("is up"), "{shown}");
    station.stream(&["b", "c", "d"]);
    told("a host has joined");

    // ---- hosts reboot: their nodes come back by themselves
    for (host, node) in [("db2", "b"), ("db1", "a")] {
        lab.power_off(host);
        assert_eq!(station.node(node).0, "unknown");
        lab.power_on(host);
        let is_back = || station.sql(host, node, "inventory", "SELECT count(*) FROM inventory.sale").as_deref() == Some("3");
        assert!(eventually(is_back), "{node}");
    }
    station.stream(&["b", "c", "d"]);
    // The poolers have no unit.
    station.done(&["apply", "--yes"]);
    assert_eq!(sales(db1).unwrap(), "3");
    told("two hosts have been rebooted");

    // ---- a backup, and a mistake
    let shown = station.done(&["backup", "create"]);
    assert!(shown.contains("all in the repository"), "{shown}");
    station.client("db3", db1, "INSERT INTO inventory.sale (item) VALUES (3)").unwrap();
    let moment = station
        .sql("db1", "a", "postgres", "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'")
        .unwrap();
    station.sql("db1", "a", "inventory", "DROP TABLE inventory.sale").unwrap();
    assert!(sales(db1).unwrap_err().contains("does not exist"));
    station.sql("db1", "a", "postgres", "SELECT pg_switch_wal()").unwrap();
    told("a table was dropped");
    let copy = ["restore", "inventory", "--to-dir", "/srv/rescue", "--target-time", &moment];
    let shown = station.done(&[&copy[..], &["--preview"]].concat());
    assert!(shown.contains("/srv/rescue"), "{shown}");
    station.done(&copy);
    let rescued = station.superuser("db1", "/srv/rescue-pgherd/run/inventory-restored", 5432, "inventory", "SELECT count(*) FROM inventory.sale");
    assert_eq!(rescued.as_deref(), Some("4"));
    lab.prints("db1", &["sh", "-c", "kill -INT $(head -n 1 /srv/rescue/postmaster.pid)"]);
    told("a copy has the table");

    // ---- a standby made anew from the backup, the whole cluster at that moment, and the drill
    station.done(&["restore", "inventory", "--to-node", "d", "--yes"]);
    station.stream(&["d"]);
    told("a standby was made from the backup");
    station.done(&["restore", "inventory", "--in-place", "--target-time", &moment, "--yes"]);
    assert_eq!(sales(db1).unwrap(), "4");
    station.stream(&["b", "c", "d"]);
    station.done(&["plan", "--detailed-exitcode"]);
    told("the cluster is back in its place");
    station.done(&["backup", "create"]);
    station.done(&["backup", "verify"]);
    let shown = station.done(&["drill", "run", "restore"]);
    for word in ["PASSED", "assertion stock", "undo-mistake"] {
        assert!(shown.contains(word), "no {word}: {shown}");
    }
    told("a drill has passed");

    // ---- a host leaves, and then everything
    declare(&station, "");
    station.done(&["destroy", "inventory", "--node", "d", "--confirm", "inventory"]);
    assert!(!lab.console("db4", &["test", "-e", "/srv/inventory-d"]).status.success());
    station.done(&["apply", "--yes"]);
    station.stream(&["b", "c"]);
    station.done(&["destroy", "inventory", "--confirm", "inventory"]);
    for (host, directory) in [("db1", "/srv/inventory-a"), ("db2", "/srv/inventory-b"), ("db3", "/srv/inventory-c")] {
        assert!(!lab.console(host, &["test", "-e", directory]).status.success(), "{host}");
        let left = lab.prints(host, &["sh", "-c", "pgrep -u postgres -l || true"]);
        assert_eq!(left, "", "{host}");
    }
    told("it is gone");
}
