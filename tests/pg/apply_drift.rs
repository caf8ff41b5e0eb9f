//! What was changed behind pgherd's back: shown with both values, mended by `apply`, and then nothing is left to do.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::herd::{APP_PASSWORD, BI_PASSWORD, Herd, PAIR, newest_or_15, text, until};

/// Holds `plan` to show each of `shown`, `apply` to mend it, and the herd to be as declared after that.
#[track_caller]
fn mended(herd: &Herd, shown: &[&str]) {
    let plan = herd.plan().ends_with(0).says(shown);
    assert!(!plan.stdout.contains("No changes."), "{}", plan.stdout);
    herd.run(&["plan", "--detailed-exitcode"]).ends_with(2);
    herd.apply().ends_with(0);
    herd.is_as_declared();
    herd.run(&["plan", "--detailed-exitcode"]).ends_with(0);
}

/// Replaces text in a file as its owner would, keeping mode and owner.
#[track_caller]
fn edit(path: &std::path::Path, from: &str, to: &str) {
    let before = fs::read_to_string(path).expect("readable");
    assert!(before.contains(from), "no {from:?} in\n{before}");
    fs::write(path, before.replace(from, to)).expect("writable");
}

#[track_caller]
fn append(path: &std::path::Path, line: &str) {
    let before = fs::read_to_string(path).expect("readable");
    fs::write(path, format!("{before}{line}\n")).expect("writable");
}

fn reload(herd: &Herd, node: &str) {
    assert_eq!(herd.sql(node, "SELECT pg_reload_conf()"), "t");
}

fn kill(pid: Option<Pid>, signal: Signal) {
    kill_process(pid.expect("it runs"), signal).expect("it runs");
}

#[track_caller]
fn streams(herd: &Herd) {
    let state = "SELECT application_name, state FROM pg_stat_replication";
    assert_eq!(herd.sql("a", state), "inventory-b|streaming");
}

#[test]
fn settings_and_files_that_were_changed_by_hand_are_put_right_and_the_users_lines_stay() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.sql("a", "ALTER SYSTEM SET work_mem = '9MB'");
    mended(&herd, &["inventory-a", "ALTER SYSTEM", "work_mem", "9MB", "4MB"]);
    assert_eq!(herd.sql("a", "SHOW work_mem"), "4MB");

    herd.sql("b", "ALTER SYSTEM SET primary_conninfo = ''");
    reload(&herd, "b");
    until("it follows nobody", || {
        (herd.sql("a", "SELECT count(*) FROM pg_stat_replication") == "0").then_some(())
    });
    herd.status()
        .ends_with(0)
        .says(&["WARNING  b does not stream: it has no WAL receiver.   next: pgherd plan"]);
    mended(&herd, &["inventory-b", "primary_conninfo", "''", "host=127.0.0.1"]);
    streams(&herd);

    edit(&herd.data("a").join("pgherd.conf"), "work_mem = '4MB'", "work_mem = '7MB'");
    mended(&herd, &["work_mem 7MB → 4MB"]);
    edit(&herd.data("b").join("pgherd.conf"), "work_mem = '4MB'", "work_mem = '8MB'");
    reload(&herd, "b");
    mended(&herd, &["inventory-b", "work_mem 8MB → 4MB"]);
    fs::remove_file(herd.data("b").join("pgherd.node.conf")).expect("it is there");
    mended(&herd, &["pgherd.node.conf is missing"]);

    let hba = herd.data("a").join("pg_hba.conf");
    append(&hba, "host all all 192.0.2.0/24 scram-sha-256 # of the user");
    herd.is_as_declared();
    edit(&hba, "host    replication  replicator", "# host    replication  replicator");
    reload(&herd, "a");
    mended(&herd, &["pg_hba.conf: pgherd's block is missing or was edited"]);
    assert!(
        fs::read_to_string(&hba).expect("readable").ends_with("192.0.2.0/24 scram-sha-256 # of the user\n")
    );

    let conf = herd.data("a").join("postgresql.conf");
    append(&conf, "work_mem = '11MB' # of the user\nlog_min_duration_statement = 777 # of the user");
    reload(&herd, "a");
    until("it is in effect", || (herd.sql("a", "SHOW work_mem") == "11MB").then_some(()));
    mended(
        &herd,
        &[
            "postgresql.conf: pgherd's include lines are missing or not last",
            "work_mem 11MB → 4MB",
            "postgresql.conf:",
        ],
    );
    let lines = fs::read_to_string(&conf).expect("readable");
    assert!(
        lines.contains("\nwork_mem = '11MB' # of the user\nlog_min_duration_statement = 777 # of the user\n")
    );
    assert_eq!(herd.sql("a", "SHOW work_mem"), "4MB");
    assert_eq!(herd.sql("a", "SHOW log_min_duration_statement"), "777ms");

    // What only a restart takes back is shown as one and needs its word.
    herd.sql("b", "ALTER SYSTEM SET shared_buffers = '40MB'");
    herd.stop("b", "fast");
    herd.program(
        "pg_ctl",
        &[
            "-D",
            text(&herd.data("b")),
            "-w",
            "-l",
            text(&herd.path("state/log/inventory-b/startup.log")),
            "start",
        ],
    );
    herd.plan().ends_with(0).says(&["! inventory-b", "shared_buffers", "40MB", "32MB"]);
    herd.apply().ends_with(4);
    assert_eq!(herd.sql("b", "SHOW shared_buffers"), "40MB");
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    assert_eq!(herd.sql("b", "SHOW shared_buffers"), "32MB");
    herd.is_as_declared();
}

#[test]
fn nodes_slots_and_poolers_that_stopped_or_went_are_brought_back() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    herd.stop("b", "fast");
    herd.sql("a", "SELECT pg_drop_replication_slot('inventory_b')");
    herd.status()
        .ends_with(0)
        .says(&["WARNING  b is stopped.   next: pgherd plan", "b has no slot on the primary"]);
    mended(
        &herd,
        &[
            "slot inventory_b",
            "it is not there; inventory-b could lose the WAL",
            "start, wait until it streams",
        ],
    );
    streams(&herd);

    herd.stop("a", "fast");
    herd.status().ends_with(0).says(&["WARNING  the primary a is stopped.   next: pgherd plan"]);
    mended(&herd, &["primary a is stopped", "it is stopped, and no other node is primary"]);
    until("b streams again", || {
        (herd.sql("a", "SELECT state FROM pg_stat_replication") == "streaming").then_some(())
    });

    // A postmaster that was killed leaves its file, its socket, and for an instant its children.
    kill(herd.postmaster("a"), Signal::KILL);
    until("the postmaster is gone", || herd.postmaster("a").is_none().then_some(()));
    assert!(herd.data("a").join("postmaster.pid").exists());
    mended(&herd, &["primary a is stopped"]);
    kill(herd.postmaster("b"), Signal::KILL);
    until("the postmaster is gone", || herd.postmaster("b").is_none().then_some(()));
    mended(&herd, &["inventory-b", "it is stopped"]);
    streams(&herd);

    kill(herd.pgbouncer(), Signal::KILL);
    until("PgBouncer is gone", || herd.pgbouncer().is_none().then_some(()));
    herd.status().ends_with(0).says(&["WARNING  the pooler on local is stopped.   next: pgherd plan"]);
    mended(&herd, &["pooler", "it is stopped"]);
    kill(herd.pgbouncer(), Signal::INT);
    until("PgBouncer is gone", || herd.pgbouncer().is_none().then_some(()));
    mended(&herd, &["pooler", "it is stopped"]);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1"), Ok("1".to_owned()));

    let ini = herd.pooler().join("pgbouncer.ini");
    edit(&ini, "pool_size=8 reserve_pool=2", "pool_size=3 reserve_pool=2");
    mended(&herd, &["pool_size=3", "pool_size=8"]);
    fs::remove_file(herd.pooler().join("userlist.txt")).expect("it is there");
    mended(&herd, &["userlist.txt"]);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1"), Ok("1".to_owned()));

    herd.stop("b", "fast");
    fs::remove_dir_all(herd.data("b")).expect("it is there");
    herd.status().ends_with(0).says(&["b is not there: its data directory is gone"]);
    mended(&herd, &["the data directory of inventory-b is gone", "clone from inventory-a"]);
    streams(&herd);
}

#[test]
fn a_standby_whose_data_is_gone_is_made_anew_although_its_slot_was_lost() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.stop("b", "fast");
    fs::remove_dir_all(herd.data("b")).expect("it is there");
    herd.sql("a", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
    reload(&herd, "a");
    until("the slot is lost", || {
        herd.sql("a", "SELECT pg_switch_wal() FROM pg_create_restore_point('one more segment')");
        herd.sql("a", "CHECKPOINT");
        (herd.sql("a", "SELECT wal_status FROM pg_replication_slots") == "lost").then_some(())
    });
    herd.sql("a", "ALTER SYSTEM RESET max_slot_wal_keep_size");
    reload(&herd, "a");
    mended(&herd, &["slot inventory_b", "it is lost", "clone from inventory-a"]);
    streams(&herd);
    assert_eq!(herd.sql("a", "SELECT wal_status FROM pg_replication_slots"), "reserved");
}

#[test]
fn roles_grants_and_passwords_that_were_changed_by_hand_are_put_right() {
    let mut herd = Herd::up(&newest_or_15(0), &PAIR);
    herd.sql_in("a", "inventory", "REVOKE ALL ON SCHEMA inventory FROM bi");
    mended(&herd, &["USAGE", "schema inventory", "bi"]);
    herd.sql_in("a", "inventory", "SET ROLE inventory_owner; CREATE TABLE inventory.t (i int)");
    herd.is_as_declared();
    herd.sql_in("a", "inventory", "REVOKE SELECT ON inventory.t FROM bi");
    mended(&herd, &["SELECT", "bi"]);
    herd.sql_in(
        "a",
        "inventory",
        "GRANT INSERT ON inventory.t TO bi; GRANT CREATE ON SCHEMA inventory TO app",
    );
    mended(&herd, &["INSERT", "CREATE", "bi", "app"]);
    let denied = herd
        .client("a", "bi", BI_PASSWORD, "inventory", "INSERT INTO inventory.t VALUES (1)")
        .expect_err("it is refused");
    assert!(denied.contains("permission denied for table t"), "{denied}");

    herd.sql("a", "ALTER ROLE app SUPERUSER CREATEROLE; ALTER ROLE bi CONNECTION LIMIT 77");
    mended(&herd, &["app", "SUPERUSER", "77", "4"]);
    assert_eq!(herd.sql("a", "SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'app'"), "f|f");
    herd.sql_in("a", "inventory", "ALTER SCHEMA inventory OWNER TO postgres");
    mended(&herd, &["schema inventory", "postgres", "inventory_owner"]);

    herd.sql("a", "ALTER ROLE app PASSWORD 'by-hand'");
    mended(&herd, &["password of app"]);
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1"), Ok("1".to_owned()));
    herd.variable("APP_PASSWORD", Some("changed-at-the-source"));
    mended(&herd, &["password of app"]);
    assert_eq!(
        herd.client("pooler", "app", "changed-at-the-source", "inventory", "SELECT 1"),
        Ok("1".to_owned())
    );
    herd.client("pooler", "app", APP_PASSWORD, "inventory", "SELECT 1").expect_err("the old one");
    herd.sql("a", "ALTER ROLE bi NOLOGIN");
    mended(&herd, &["bi", "LOGIN"]);
    herd.sql_in("a", "inventory", "DROP OWNED BY bi");
    herd.sql_in("a", "postgres", "DROP OWNED BY bi; DROP ROLE bi");
    mended(&herd, &["create role bi"]);
    assert_eq!(herd.client("pooler", "bi", BI_PASSWORD, "inventory_ro", "SELECT 1"), Ok("1".to_owned()));

    herd.sql("a", "ALTER ROLE replicator PASSWORD 'by-hand'");
    mended(&herd, &["replicator has another password than the password file"]);
    fs::remove_file(herd.facts("b").join("passfile")).expect("it is there");
    mended(&herd, &["the password file of inventory-b is missing or different"]);
    fs::remove_file(herd.facts("a").join("passfile")).expect("it is there");
    mended(&herd, &["inventory-a has no password file"]);
    herd.stop("b", "fast");
    mended(&herd, &["it is stopped"]);
    streams(&herd);
}
