//! The whole life of a cluster, on every installed major version.

use crate::herd::{APP_PASSWORD, BI_PASSWORD, Herd, WHOLE, text};
use crate::server::installations;

#[test]
fn a_cluster_is_born_grown_changed_mended_and_destroyed_on_every_major() {
    for installation in installations() {
        let mut herd = Herd::declare(&installation, &WHOLE);
        herd.plan().ends_with(0).says(&["Plan: 13 to add, 0 to change, 0 to destroy. Nothing restarts"]);
        born(&herd);
        herd.is_as_declared();
        grown(&mut herd);
        reloaded(&mut herd);
        restarted(&mut herd);
        mended(&herd);
        destroyed(&herd);
    }
}

fn born(herd: &Herd) {
    let apply = herd
        .apply()
        .ends_with(0)
        .says(&["shop/inventory is up   write done, seen on inventory-b, inventory-c after"]);
    apply.says(&[
        &format!("psql \"host=127.0.0.1 port={} dbname=inventory user=app\"", herd.port("pooler")),
        &format!("psql \"host=127.0.0.1 port={} dbname=inventory_ro user=app\"", herd.port("pooler")),
    ]);
    let streaming = "SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY 1";
    assert_eq!(herd.sql("a", streaming), "inventory-b|streaming|quorum\ninventory-c|streaming|quorum");
    let facts = "SELECT timeline_id FROM pg_control_checkpoint() UNION ALL SELECT data_page_checksum_version FROM pg_control_init()";
    for (node, recovery) in [("a", "f"), ("b", "t"), ("c", "t")] {
        assert_eq!(herd.sql(node, facts), "1\n1", "timeline and checksums of {node}");
        assert_eq!(herd.sql(node, "SELECT pg_is_in_recovery()"), recovery);
        assert_eq!(herd.sql(node, "SHOW work_mem"), "4MB");
        assert_eq!(
            herd.sql(node, "SELECT sourcefile FROM pg_settings WHERE name = 'work_mem'"),
            text(&herd.data(node).join("pgherd.conf"))
        );
        let first = herd.sql(
            node,
            "SELECT type, user_name, auth_method FROM pg_hba_file_rules ORDER BY line_number LIMIT 1",
        );
        assert_eq!(first, "local|{postgres}|peer");
        assert_eq!(herd.sql(node, "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL"), "0");
    }
    the_users_lines_are_those_of_initdb(herd);
    clients(herd);
}

/// Compares postgresql.conf with what `initdb` writes: every line of it is there, in order, and only ours follow.
fn the_users_lines_are_those_of_initdb(herd: &Herd) {
    let fresh = herd.path("fresh");
    let made = crate::server::Server::make(herd.installation(), "");
    std::fs::copy(made.data().join("postgresql.conf"), &fresh).expect("a copy");
    let lines = |path: &std::path::Path| -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("readable");
        // What initdb writes for the locale of its own run.
        text.lines()
            .filter(|line| !line.starts_with("lc_") && !line.starts_with("default_text_search_config"))
            .map(str::to_owned)
            .collect()
    };
    let (ours, theirs) = (lines(&herd.data("a").join("postgresql.conf")), lines(&fresh));
    assert_eq!(ours[..theirs.len()], theirs);
    let added: Vec<&str> = ours[theirs.len()..].iter().map(String::as_str).collect();
    assert_eq!(added[1..], ["include 'pgherd.conf'", "include 'pgherd.node.conf'"]);
}

fn clients(herd: &Herd) {
    let write = "CREATE TABLE IF NOT EXISTS inventory.stock (item int); INSERT INTO inventory.stock VALUES (1) RETURNING item";
    let denied = herd.client("pooler", "app", APP_PASSWORD, "inventory", write).expect_err("it is refused");
    assert!(denied.contains("permission denied for schema inventory"), "{denied}");
    herd.sql_in(
        "a",
        "inventory",
        "SET ROLE inventory_owner; CREATE TABLE IF NOT EXISTS inventory.stock (item int)",
    );
    let insert = "INSERT INTO inventory.stock VALUES (1) RETURNING item";
    assert_eq!(herd.client("pooler", "app", APP_PASSWORD, "inventory", insert), Ok("1".to_owned()));
    let read = "SELECT pg_is_in_recovery(), count(*) > 0 FROM inventory.stock";
    crate::herd::until("a read-only client sees the row on a standby", || {
        (herd.client("pooler", "bi", BI_PASSWORD, "inventory_ro", read) == Ok("t|t".to_owned())).then_some(())
    });
    let denied = herd.client("a", "bi", BI_PASSWORD, "inventory", insert).expect_err("it is refused");
    assert!(denied.contains("permission denied for table stock"), "{denied}");
    herd.client("pooler", "app", "wrong", "inventory", "SELECT 1").expect_err("it is refused");
}

fn grown(herd: &mut Herd) {
    herd.add_node("d");
    let plan = herd.plan().ends_with(0);
    insta::assert_snapshot!("a_standby_is_added", herd.settled(&plan.stdout));
    herd.apply().ends_with(0).says(&["write done, seen on inventory-b, inventory-c, inventory-d after"]);
    assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "3");
    herd.is_as_declared();
}

fn reloaded(herd: &mut Herd) {
    let started = herd.sql("a", "SELECT pg_postmaster_start_time()");
    herd.edit("work_mem: 4 MiB", "work_mem: 6 MiB");
    herd.plan().ends_with(0).says(&["work_mem 4MB → 6MB", "0 to add, 4 to change", "Nothing restarts"]);
    herd.apply().ends_with(0);
    for node in ["a", "b", "c", "d"] {
        assert_eq!(herd.sql(node, "SHOW work_mem"), "6MB");
    }
    assert_eq!(herd.sql("a", "SELECT pg_postmaster_start_time()"), started);
    herd.is_as_declared();
}

fn restarted(herd: &mut Herd) {
    herd.edit("work_mem: 6 MiB", "work_mem: 6 MiB\n        wal_buffers: 2 MiB");
    herd.plan()
        .ends_with(0)
        .says(&["! inventory-a", "4 steps interrupt clients: they need --allow-restart."]);
    let refused = herd.apply().ends_with(4);
    refused.tells(&["ERROR:  the plan restarts inventory-", "pgherd apply --allow-restart"]);
    assert_eq!(herd.sql("a", "SHOW wal_buffers"), "1MB");
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    for node in ["a", "b", "c", "d"] {
        assert_eq!(herd.sql(node, "SHOW wal_buffers"), "2MB");
    }
    assert_eq!(herd.sql("a", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"), "3");
    herd.is_as_declared();
}

fn mended(herd: &Herd) {
    herd.sql("a", "ALTER SYSTEM SET work_mem = '9MB'");
    herd.sql("a", "SELECT pg_reload_conf()");
    herd.stop("c", "fast");
    herd.status().ends_with(0).says(&["c is stopped"]);
    herd.plan()
        .ends_with(0)
        .says(&["ALTER SYSTEM set work_mem = 9MB, declared is 6MB", "start, wait until it streams"]);
    herd.apply().ends_with(0);
    assert_eq!(herd.sql("a", "SHOW work_mem"), "6MB");
    herd.is_as_declared();
}

fn destroyed(herd: &Herd) {
    herd.run(&["destroy", "inventory", "--yes"]).ends_with(2).tells(&["destroy needs the name once more"]);
    herd.run(&["destroy", "inventory", "--confirm", "orders"]).ends_with(4).tells(&["ERROR:  not removed"]);
    assert_eq!(herd.primaries(), ["a"]);
    herd.run(&["destroy", "inventory", "--confirm", "inventory"])
        .ends_with(0)
        .says(&["inventory is removed"]);
    herd.nothing_is_left();
    herd.plan().ends_with(0).says(&["not there yet"]);
}
