//! The settings that a hot standby must not have lower than its primary had: the order of restarts.

use crate::herd::{Herd, PAIR, Ran, newest_or_15};

/// Returns the nodes that the plan restarts, in its order.
fn restarts(ran: &Ran) -> Vec<String> {
    let lines = ran.stdout.lines().filter(|line| line.contains("! inventory-"));
    lines.map(|line| line.split_whitespace().nth(2).expect("a subject").to_owned()).collect()
}

fn started(herd: &Herd, node: &str) -> String {
    herd.sql(node, "SELECT extract(epoch FROM pg_postmaster_start_time())::numeric(20, 6)")
}

#[test]
fn a_raised_one_begins_with_the_standbys_and_a_lowered_one_with_the_primary_and_both_at_once_are_refused() {
    let mut herd = Herd::up(&newest_or_15(1), &PAIR);
    herd.edit("max_connections: 40", "max_connections: 50");
    let plan = herd.plan().ends_with(0);
    assert_eq!(restarts(&plan), ["inventory-b", "inventory-a"]);
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    assert!(started(&herd, "b") < started(&herd, "a"), "the standby first");
    holds(&herd, "max_connections", "50");

    herd.edit("max_connections: 50", "max_connections: 30");
    let plan = herd.plan().ends_with(0);
    assert_eq!(restarts(&plan), ["inventory-a", "inventory-b"]);
    herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(0);
    assert!(started(&herd, "a") < started(&herd, "b"), "the primary first");
    holds(&herd, "max_connections", "30");

    let before = [started(&herd, "a"), started(&herd, "b")];
    herd.edit("max_connections: 30", "max_connections: 40\n        max_worker_processes: 6");
    let refused = herd.run(&["apply", "--yes", "--allow-restart"]).ends_with(4);
    refused.tells(&[
        "ERROR:  cannot raise and lower settings that a standby must match in one go in inventory",
        "Raised: max_connections. Lowered: max_worker_processes.",
        "HINT:   Declare the raised ones first and apply, then the lowered ones.",
    ]);
    assert_eq!([started(&herd, "a"), started(&herd, "b")], before);
    holds(&herd, "max_connections", "30");
}

#[track_caller]
fn holds(herd: &Herd, name: &str, value: &str) {
    for node in ["a", "b"] {
        assert_eq!(herd.sql(node, &format!("SHOW {name}")), value, "{node}");
    }
    assert_eq!(herd.sql("b", "SELECT pg_is_in_recovery(), pg_is_wal_replay_paused()"), "t|f");
    assert_eq!(herd.sql("a", "SELECT state FROM pg_stat_replication"), "streaming");
}
