//! Two primaries, and a primary that was overtaken: shown, and never made worse.

use crate::herd::{Herd, WHOLE, hash_of, newest_or_15, text, until};

/// What `apply` could have changed on a node.
fn files(herd: &Herd, node: &str) -> Vec<String> {
    ["postgresql.conf", "pgherd.conf", "pgherd.node.conf", "pg_hba.conf", "postgresql.auto.conf"]
        .iter()
        .map(|name| hash_of(&herd.data(node).join(name)))
        .collect()
}

fn promote(herd: &Herd, node: &str) {
    herd.program("pg_ctl", &["-D", text(&herd.data(node)), "-w", "promote"]);
    until("it is promoted", || (herd.sql(node, "SELECT pg_is_in_recovery()") == "f").then_some(()));
}

#[test]
fn two_primaries_are_shown_and_nothing_is_changed_and_the_overtaken_one_is_never_started() {
    let mut herd = Herd::up(&newest_or_15(0), &WHOLE);
    // One standby that can follow either of them: it has nothing that c has not.
    herd.stop("b", "fast");
    let written = herd.sql("a", "SELECT pg_current_wal_lsn()");
    until("c has replayed all", || {
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        (herd.sql("c", &replayed) == "t").then_some(())
    });
    promote(&herd, "c");
    let history = std::fs::read_to_string(herd.data("c").join("pg_wal/00000002.history")).unwrap();
    let fork = history.split('\t').nth(1).unwrap().to_owned();
    for node in ["a", "c"] {
        // No commit: on a it would wait for a standby.
        herd.sql(
            node,
            "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'test', 'what it alone has')",
        );
    }
    herd.edit("work_mem: 4 MiB", "work_mem: 5 MiB");
    let parts = format!("SPLIT BRAIN  a and c accept writes; they part at {fork} on timeline 1");
    herd.status().ends_with(0).says(&[
        "WARNING  a and c are primaries at the same time: keep clients away.",
        "fence the other: pgherd fence NODE",
        &parts,
        "  a  timeline 1, LSN ",
        "  c  timeline 2, LSN ",
        " past the fork, last commit unknown (track_commit_timestamp is off), nobody streams from it, inventory",
    ]);
    let seen = herd.run(&["status", "--format", "json"]).json();
    let split = &seen["clusters"][0]["split_brain"];
    assert_eq!((split["fork_timeline"].as_u64(), split["fork_lsn"].as_str()), (Some(1), Some(fork.as_str())));
    for (side, node) in [(0, "a"), (1, "c")] {
        let side = &split["sides"][side];
        assert_eq!(side["node"], node);
        assert!(side["past_fork_bytes"].as_u64() > Some(0), "{side}");
    }
    assert_eq!(split["sides"][0]["aliases"][0], "inventory on local");
    let health = herd.run(&["health"]).ends_with(2);
    health.says(&[&format!(
        "a and c are primaries at the same time; they part at {fork} on timeline 1; a: timeline 1"
    )]);
    let before: Vec<_> = ["a", "b", "c"].map(|node| files(&herd, node)).into();
    let says = [
        "ERROR:  inventory has more than one primary: a, c",
        "They part at ",
        "a: timeline 1, LSN",
        "c: timeline 2, LSN",
        "Nothing was changed.",
        "HINT:   Keep clients away, decide which one is right",
    ];
    herd.plan().ends_with(4).tells(&says);
    herd.apply().ends_with(4).tells(&says);
    herd.run(&["plan", "--detailed-exitcode"]).ends_with(1).tells(&says);
    let after: Vec<_> = ["a", "b", "c"].map(|node| files(&herd, node)).into();
    assert_eq!(after, before);
    assert_eq!(herd.primaries(), ["a", "c"]);

    // The operator decides: c is right.
    herd.run(&["fence", "a", "--yes", "--reason", "c has the newer rows"]).ends_with(0);
    herd.status().ends_with(0).says(&["a is fenced since"]).does_not_say("SPLIT BRAIN");
    let health = herd.run(&["health"]);
    health.says(&["c has the newer rows"]);
    let note = "inventory-a is left stopped: it is fenced since";
    herd.plan().ends_with(0).says(&[note]).does_not_say("inventory-a   start");
    herd.apply().ends_with(0).says(&[note]);
    assert_eq!(herd.primaries(), ["c"]);
    assert_eq!(herd.postmaster("a"), None);
    assert_eq!(herd.sql("c", "SHOW work_mem"), "5MB");
    assert_eq!(
        herd.sql("c", "SELECT application_name, state FROM pg_stat_replication"),
        "inventory-b|streaming"
    );
    assert_eq!(
        herd.client("pooler", "app", crate::herd::APP_PASSWORD, "inventory", "SHOW port"),
        Ok(herd.port("c").to_string())
    );
    herd.apply().ends_with(0).says(&["No changes.", note]);

    // With the new primary down as well, it is the one that is started.
    herd.stop("c", "fast");
    herd.apply().ends_with(0).says(&[note]);
    assert_eq!(herd.primaries(), ["c"]);
    assert_eq!(herd.postmaster("a"), None);

    // And it comes back when it is made anew.
    herd.run(&["destroy", "inventory", "--node", "a", "--confirm", "inventory-a"]).ends_with(0);
    herd.apply().ends_with(0);
    assert_eq!(herd.primaries(), ["c"]);
    assert_eq!(herd.sql("a", "SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    herd.is_as_declared();
}
