//! `status` on real servers: what is not known is unknown and says why, within its time, and never hides the rest.

use std::time::Duration;

use crate::herd::{Frozen, Herd, PAIR, SINGLE, Shape, WHOLE, as_server, newest_or_15, text, text_of, until};

/// Has a server that starts wait before its first WAL, for as long as a file is there.
fn hold_recovery(herd: &Herd, node: &str, signal: &str) {
    std::fs::write(herd.path("hold"), "").expect("writable");
    let hold = herd.path("hold").display().to_string();
    herd.sql(
        node,
        &format!("ALTER SYSTEM SET restore_command = 'while [ -e {hold} ]; do sleep 0.05; done; false'"),
    );
    herd.stop(node, "fast");
    let data = herd.data(node);
    let mut touch = as_server(std::path::Path::new("/bin/touch"));
    touch.arg(data.join(signal));
    text_of(touch).expect("touch");
    let log = herd.path("state/log").join(format!("inventory-{node}")).join("startup.log");
    herd.program("pg_ctl", &["-D", text(&data), "-W", "-l", text(&log), "start"]);
    until("it starts up", || {
        let said = herd.try_sql(node, "postgres", "SELECT 1").expect_err("it is held");
        (said.contains("starting up") || said.contains("not yet accepting")).then_some(())
    });
}

#[test]
fn a_standby_that_is_starting_up_is_left_alone_and_not_taken_for_stopped() {
    let herd = Herd::up(&newest_or_15(0), &PAIR);
    hold_recovery(&herd, "b", "standby.signal");
    let pid = herd.postmaster("b");
    herd.status().ends_with(0).says(&["WARNING  b is starting up.   next: pgherd status --watch"]);
    assert_eq!(herd.node_status("b")["state"], "starting");
    assert_eq!(herd.node_status("a")["state"], "up");
    herd.plan().ends_with(0).says(&["inventory-b is left as it is: it is starting up"]);
    herd.apply().ends_with(0).says(&["inventory-b is left as it is: it is starting up"]);
    assert_eq!(herd.postmaster("b"), pid);
    std::fs::remove_file(herd.path("hold")).expect("it is there");
    until("it streams", || (herd.node_status("b")["state"] == "streaming").then_some(()));
    herd.run(&["apply", "--yes"]).ends_with(0);
    herd.is_as_declared();
}

#[test]
fn a_primary_that_is_starting_up_makes_apply_wait_for_a_better_moment() {
    let herd = Herd::up(&newest_or_15(1), &SINGLE);
    hold_recovery(&herd, "a", "recovery.signal");
    let pid = herd.postmaster("a");
    herd.status().ends_with(0).says(&["a is starting up"]).does_not_say("is stopped");
    let says = [
        "ERROR:  cannot tell which node of inventory is primary",
        "a is starting up. Nothing was changed.",
        "HINT:",
    ];
    herd.plan().ends_with(10).tells(&says);
    herd.apply().ends_with(10).tells(&says);
    assert_eq!(herd.postmaster("a"), pid);
}

#[test]
fn nodes_that_answer_nothing_are_unknown_within_three_seconds_and_hide_nobody() {
    let all =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    let nodes = if std::env::var_os("PGHERD_SOAK").is_some() { &all[..] } else { &all[..6] };
    let herd = Herd::up(&newest_or_15(1), &Shape { nodes, ..PAIR });
    let quick = herd.status().ends_with(0);
    assert!(quick.took < Duration::from_secs(3), "{:?}", quick.took);
    let frozen: Vec<Frozen> =
        ["b", "d", "e"].map(|node| Frozen::new(herd.postmaster(node).expect("it runs"))).into();
    let status = herd.status().ends_with(0);
    assert!(status.took < Duration::from_secs(3), "{:?}\n{}", status.took, status.stdout);
    for node in nodes {
        let line = status.stdout.lines().find(|line| line.trim_start().starts_with(&format!("{node} ")));
        let line = line.unwrap_or_else(|| panic!("no line for {node} in\n{}", status.stdout));
        let state = match *node {
            "a" => "up",
            "b" | "d" | "e" => "unknown",
            _ => "streaming",
        };
        assert!(line.contains(&format!(" {state} ")), "{node}: {line}");
    }
    status.says(&["WARNING  b is unknown: it did not answer within 2 s"]);
    assert_eq!(herd.node_status("b")["state"], "unknown");
    // Nothing is started or stopped for a node that does not answer.
    let pid = herd.postmaster("b");
    herd.plan().ends_with(0).says(&["inventory-b is left as it is: unknown, it did not answer within 2 s"]);
    herd.apply().ends_with(0);
    assert_eq!(herd.postmaster("b"), pid);
    drop(frozen);
    until("they answer again", || (herd.node_status("b")["state"] == "streaming").then_some(()));
}

#[test]
fn a_primary_that_answers_nothing_is_unknown_and_nobody_takes_its_place() {
    let herd = Herd::up(&newest_or_15(0), &WHOLE);
    let frozen = Frozen::new(herd.postmaster("a").expect("it runs"));
    let status = herd.status().ends_with(0);
    assert!(status.took < Duration::from_secs(3), "{:?}\n{}", status.took, status.stdout);
    status.says(&["nobody can be named primary: a may be the primary: it did not answer within 2 s"]);
    herd.apply()
        .ends_with(10)
        .tells(&["a may be the primary: it did not answer within 2 s. Nothing was changed."]);
    assert_eq!(herd.sql("b", "SELECT pg_is_in_recovery()"), "t");
    drop(frozen);
    until("it answers again", || (herd.node_status("a")["state"] == "up").then_some(()));
    herd.is_as_declared();
}

#[test]
fn an_idle_primary_shows_no_lag_and_a_cut_or_paused_standby_does() {
    let herd = Herd::up(&newest_or_15(1), &PAIR);
    until("all is replayed", || (herd.node_status("b")["lag_bytes"] == 0).then_some(()));
    let idle = herd.node_status("b");
    assert!(idle["lag_seconds"].is_null(), "{idle}");
    assert_eq!(
        (&idle["role"], &idle["state"], &idle["timeline"]),
        (&"standby".into(), &"streaming".into(), &1.into())
    );
    assert_eq!(idle["slot"]["active"], true);
    let primary = herd.node_status("a");
    assert!(
        primary["lag_bytes"].is_null() && primary["lag_seconds"].is_null() && primary["slot"].is_null(),
        "{primary}"
    );
    assert_eq!((&primary["role"], &primary["state"]), (&"primary".into(), &"up".into()));
    assert_eq!(primary["version"].as_str().expect("text").split('.').next(), Some("15"));

    herd.sql("b", "SELECT pg_wal_replay_pause()");
    herd.sql_in(
        "a",
        "inventory",
        "CREATE TABLE public.filler AS SELECT repeat('x', 1000) FROM generate_series(1, 2000)",
    );
    let paused = until("it is behind", || {
        let paused = herd.node_status("b");
        (paused["lag_bytes"].as_u64() > Some(1_000_000)).then_some(paused)
    });
    assert!(paused["lag_seconds"].as_f64() > Some(0.0), "{paused}");
    assert_eq!(paused["state"], "streaming");
    herd.sql("b", "SELECT pg_wal_replay_resume()");
    until("it has caught up", || (herd.node_status("b")["lag_bytes"] == 0).then_some(()));

    herd.sql("b", "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 user=replicator'");
    herd.sql("b", "SELECT pg_reload_conf()");
    let cut = until("it is cut", || {
        let cut = herd.node_status("b");
        (cut["state"] == "not_streaming").then_some(cut)
    });
    assert!(cut["lag_seconds"].as_f64() > Some(0.0), "{cut}");
    assert!(cut["why"].as_str().is_some_and(|why| why.contains("WAL receiver")), "{cut}");
    let later = until("its age grows", || {
        let later = herd.node_status("b");
        (later["lag_seconds"].as_f64() > cut["lag_seconds"].as_f64()).then_some(later)
    });
    assert_eq!(later["lag_bytes"], 0);
    herd.status().ends_with(0).says(&["WARNING  b does not stream: "]);
    herd.apply().ends_with(0);
    herd.is_as_declared();

    let report = herd.run(&["status", "--format", "json"]).ends_with(0).json();
    assert_eq!((&report["format_version"], &report["herd"]), (&"1.0".into(), &"shop".into()));
    let cluster = &report["clusters"][0];
    assert_eq!((&cluster["cluster"], &cluster["primary"]), (&"inventory".into(), &"a".into()));
    let pooler = &cluster["poolers"][0];
    assert_eq!((&pooler["state"], &pooler["port"]), (&"up".into(), &herd.port("pooler").into()));
    assert_eq!(pooler["routes"][0]["alias"], "inventory");
    assert_eq!(pooler["routes"][0]["to"][0], "a");
    assert_eq!(pooler["routes"][1]["to"][0], "b");
    assert!(cluster["problems"].as_array().is_some_and(Vec::is_empty), "{}", cluster["problems"]);
    herd.run(&["--cluster", "orders", "status"]).ends_with(10).tells(&["there is no cluster \"orders\""]);
}
