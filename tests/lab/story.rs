//! The whole story of a herd on hosts of its own: three in two regions, one that joins later, and an ordinary user's station.

use std::process::Child;
use std::time::{Duration, Instant};

use super::lab::{Lab, eventually, say, told};
use super::services::newest_server;
use super::station::{OPS, PORT, Station, Way, ended};

/// db1 and db2 are in the west, db3 is elsewhere and behind db1, db4 joins the west later.
const HOSTS: [(&str, u32); 5] = [("db1", 4096), ("db2", 3072), ("db3", 3072), ("db4", 3072), (OPS, 2048)];
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

/// Waits until a command that was begun has made a file on a host: however long it takes, unless it ends without it.
fn appears(lab: &Lab, host: &str, path: &str, mut begun: Child) -> Child {
    let there = || lab.console(host, &["test", "-e", path]).status.success();
    let begins = Instant::now();
    while !there() {
        let over = begins.elapsed() > Duration::from_secs(180);
        if over {
            begun.kill().expect("a child");
        }
        if over || begun.try_wait().expect("a child").is_some() {
            panic!("{host}: no {path}\n{}", told(&ended(begun)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    begun
}

/// What a cut leaves: the code that the command ended with, and that it said what is not known.
fn unknown(output: &std::process::Output, codes: &[i32]) {
    let said = told(output);
    super::station::tell("cut off", &said);
    assert!(
        output.status.code().is_some_and(|code| codes.contains(&code)) && said.contains("is unknown"),
        "{said}"
    );
}

fn now(station: &Station<'_>) -> String {
    let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'";
    station.sql("db1", "a", "postgres", sql).expect("the primary answers")
}

fn sales(station: &Station<'_>) -> Result<String, String> {
    station.client("db3", station.lab.address("db1"), "SELECT count(*) FROM inventory.sale")
}

#[test]
fn the_whole_story_happens_on_hosts_that_only_ssh_leads_to() {
    let Some(lab) = Lab::with_disks(&HOSTS) else { return };
    let (_, bin) = newest_server();
    let station = Station::furnish(&lab, &bin, &WAYS);
    declare(&station, "");
    let begun = std::time::Instant::now();
    let chapter = |what: &str| say(&format!("story {:.0} s: {what}", begun.elapsed().as_secs_f64()));
    a_herd_is_made_and_worked_for(&station);
    chapter("a herd was made");
    three_things_break_and_are_mended(&station);
    chapter("three things were mended");
    a_host_joins_and_is_cut_off_meanwhile(&station);
    chapter("a host has joined");
    hosts_reboot(&station);
    chapter("two hosts have been rebooted");
    let moment = a_mistake_is_made_after_a_backup(&station);
    chapter("a table was dropped");
    a_copy_has_what_was_lost(&station, &moment);
    chapter("a copy has it");
    the_cluster_is_brought_back(&station, &moment);
    chapter("the cluster is back");
    a_drill_passes(&station);
    chapter("a drill has passed");
    a_host_leaves_and_all_goes(&station);
    chapter("nothing is left");
}

fn a_herd_is_made_and_worked_for(station: &Station<'_>) {
    station.done(&["validate"]);
    station.done(&["plan", "--out", "/home/oncall/first.plan"]);
    let shown = station.done(&["apply", "/home/oncall/first.plan", "--yes"]);
    assert!(shown.contains("shop/inventory is up"), "{shown}");
    station.stream(&["b", "c"]);
    station.done(&["plan", "--detailed-exitcode"]);
    let schema = "SET ROLE inventory_owner; CREATE TABLE inventory.stock AS SELECT n AS item, 1000 AS pieces, repeat(md5(n::text), 8) AS note \
                  FROM generate_series(1, 20000) n; CREATE TABLE inventory.sale (id bigserial, item int)";
    station.sql("db1", "a", "inventory", schema).expect("it is made");
    for host in ["db1", "db2"] {
        let pooler = station.lab.address(host);
        station.client("db3", pooler, "INSERT INTO inventory.sale (item) VALUES (1)").unwrap();
    }
    assert_eq!(sales(station).unwrap(), "2");
}

fn three_things_break_and_are_mended(station: &Station<'_>) {
    station.lab.prints("db3", &["systemctl", "stop", "pgherd-inventory-c.service"]);
    station.sql("db1", "a", "postgres", "ALTER SYSTEM SET work_mem = '1GB'").unwrap();
    let revoke = "REVOKE INSERT ON ALL TABLES IN SCHEMA inventory FROM app";
    station.sql("db1", "a", "inventory", revoke).unwrap();
    assert_eq!(station.node("c").0, "stopped");
    let shown = station.done(&["plan", "--out", "/home/oncall/mend.plan"]);
    for word in ["work_mem", "start, wait until it streams", "app"] {
        assert!(shown.contains(word), "no {word}: {shown}");
    }
    station.done(&["apply", "/home/oncall/mend.plan", "--yes"]);
    station.done(&["plan", "--detailed-exitcode"]);
    let sell = "INSERT INTO inventory.sale (item) VALUES (2)";
    station.client("db3", station.lab.address("db1"), sell).unwrap();
}

/// The station loses it in the middle of the clone, while it and the primary go on: nobody waits for the copy any more, and it ends.
fn a_host_joins_and_is_cut_off_meanwhile(station: &Station<'_>) {
    let lab = station.lab;
    declare(station, "      d: {host: db4, data-directory: /srv/inventory-d}\n");
    let apply = station.begin(&["apply", "--yes"]);
    let apply = appears(lab, "db4", "/srv/inventory-d/base", apply);
    lab.slow("db4", 2_000);
    lab.cut_pair("db4", OPS);
    unknown(&ended(apply), &[6]);
    // status says what is not known, and hides nobody.
    let (state, why) = station.node("b");
    assert!(state == "streaming", "{state}: {why}");
    station.mend();
    let resumed = station.pgherd(&["operation", "resume", &station.unfinished()]);
    // It was being undone; what had to be done is done by applying once more, now through a link of 20 Mbit/s.
    assert!(matches!(resumed.status.code(), Some(0 | 1)), "{}", told(&resumed));
    let copies = lab.console("db4", &["pgrep", "-x", "pg_basebackup"]);
    assert_eq!(String::from_utf8_lossy(&copies.stdout), "");
    lab.slow("db4", 20_000);
    let shown = station.done(&["apply", "--yes", "--format", "json"]);
    let progress =
        |line: &&str| line.contains("\"message_type\":\"progress\"") && line.contains("clone d from a");
    assert!(shown.lines().filter(progress).count() > 3, "{shown}");
    station.mend();
    station.stream(&["b", "c", "d"]);
    // What came so slowly may have been too far behind for the readers at first.
    station.done(&["apply", "--yes"]);
    station.done(&["plan", "--detailed-exitcode"]);
    let report = station.json(&["status"]);
    let routes = report["clusters"][0]["poolers"][0]["routes"].as_array().unwrap();
    let to =
        |alias: &str| routes.iter().find(|route| route["alias"] == alias).map(|route| route["to"].clone());
    assert_eq!(to("inventory"), Some(serde_json::json!(["a"])), "{report:#}");
    assert_eq!(to("inventory_ro"), Some(serde_json::json!(["b", "c", "d"])), "{report:#}");
}

/// Their nodes come back by themselves.
fn hosts_reboot(station: &Station<'_>) {
    let lab = station.lab;
    for (host, node) in [("db2", "b"), ("db1", "a")] {
        lab.power_off(host);
        let (state, why) = station.node(node);
        assert!(state == "unknown" && !why.is_empty(), "{state}: {why}");
        // Only db1 leads to db3.
        assert_eq!(station.node("c").0, if node == "a" { "unknown" } else { "streaming" });
        station.ends(&["apply", "--yes"], 10);
        lab.power_on(host);
        let count = "SELECT count(*) FROM inventory.sale";
        let is_back = || station.sql(host, node, "inventory", count).as_deref() == Some("3");
        assert!(eventually(is_back), "{node}");
    }
    station.stream(&["b", "c", "d"]);
    station.done(&["plan", "--detailed-exitcode"]);
    assert_eq!(sales(station).unwrap(), "3");
}

/// The first backup is cut off from the station, and leaves nothing; the second one is whole.
fn a_mistake_is_made_after_a_backup(station: &Station<'_>) -> String {
    let lab = station.lab;
    let backup = station.begin(&["backup", "create", "--from", "primary", "--rate-limit", "1 MiB/s"]);
    let copies = ["sh", "-c", "find /srv/shared/repository -path '*/.tmp/*' -size +64k | grep -q ."];
    assert!(eventually(|| lab.console("db1", &copies).status.success()));
    lab.cut_pair("db1", OPS);
    unknown(&ended(backup), &[1]);
    station.mend();
    let shown = station.done(&["backup", "create"]);
    assert!(shown.contains("all in the repository"), "{shown}");
    let listed = station.json(&["backup", "list"]);
    assert_eq!(listed["clusters"][0]["backups"].as_array().unwrap().len(), 1, "{listed:#}");
    station.client("db3", lab.address("db1"), "INSERT INTO inventory.sale (item) VALUES (3)").unwrap();
    let moment = now(station);
    station.sql("db1", "a", "inventory", "DROP TABLE inventory.sale").unwrap();
    assert!(sales(station).unwrap_err().contains("does not exist"));
    station.sql("db1", "a", "postgres", "SELECT pg_switch_wal()").unwrap();
    moment
}

/// In `make soak` the restore is cut off from the station as soon as it has begun; the same command goes on.
fn a_copy_has_what_was_lost(station: &Station<'_>, moment: &str) {
    let lab = station.lab;
    let copy = ["restore", "inventory", "--to-dir", "/srv/rescue", "--target-time", moment];
    let shown = station.done(&[&copy[..], &["--preview"]].concat());
    assert!(shown.contains("/srv/rescue"), "{shown}");
    if std::env::var_os("PGHERD_SOAK").is_some() {
        let restore = appears(lab, "db1", "/srv/rescue/base", station.begin(&copy));
        lab.cut_pair("db1", OPS);
        unknown(&ended(restore), &[1]);
        station.mend();
    }
    station.done(&copy);
    let socket = "/srv/rescue-pgherd/run/inventory-restored";
    let count = "SELECT count(*) FROM inventory.sale";
    assert_eq!(station.superuser("db1", socket, 5432, "inventory", count).as_deref(), Some("4"));
    lab.prints("db1", &["sh", "-c", "kill -INT $(head -n 1 /srv/rescue/postmaster.pid)"]);
}

/// A standby is made anew from the backup, and then all of them go back to the moment.
fn the_cluster_is_brought_back(station: &Station<'_>, moment: &str) {
    let lab = station.lab;
    lab.prints("db4", &["systemctl", "stop", "pgherd-inventory-d.service"]);
    station.done(&["restore", "inventory", "--to-node", "d", "--yes"]);
    station.stream(&["d"]);
    station.done(&["restore", "inventory", "--in-place", "--target-time", moment, "--yes"]);
    assert_eq!(sales(station).unwrap(), "4");
    station.stream(&["b", "c", "d"]);
    station.done(&["plan", "--detailed-exitcode"]);
}

fn a_drill_passes(station: &Station<'_>) {
    station.done(&["backup", "create"]);
    station.done(&["backup", "verify"]);
    let shown = station.done(&["drill", "run", "restore"]);
    for word in ["PASSED", "assertion stock", "undo-mistake"] {
        assert!(shown.contains(word), "no {word}: {shown}");
    }
}

fn a_host_leaves_and_all_goes(station: &Station<'_>) {
    let lab = station.lab;
    declare(station, "");
    station.done(&["destroy", "inventory", "--node", "d", "--confirm", "inventory-d"]);
    assert!(!lab.console("db4", &["test", "-e", "/srv/inventory-d"]).status.success());
    station.done(&["apply", "--yes"]);
    station.stream(&["b", "c"]);
    station.done(&["destroy", "inventory", "--confirm", "inventory"]);
    for (host, directory) in
        [("db1", "/srv/inventory-a"), ("db2", "/srv/inventory-b"), ("db3", "/srv/inventory-c")]
    {
        assert!(!lab.console(host, &["test", "-e", directory]).status.success(), "{host}");
        assert_eq!(lab.prints(host, &["sh", "-c", "pgrep -u postgres -l || true"]), "", "{host}");
    }
}
