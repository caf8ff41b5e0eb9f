//! `guard`: what a node's unit asks before it starts the server, with the record, the other nodes, or neither.

use crate::herd::{Herd, WHOLE, newest_or_15, text, until};

/// Tells a node of the others, as `apply` does where a unit has a guard.
fn tell_of_the_others(herd: &Herd, node: &str, others: &[&str]) {
    let file = herd.facts(node).join("profile.json");
    let mut profile: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let passfile = profile["passfile"].as_str().unwrap().to_owned();
    let peers = others.iter().map(|other| {
        let port = herd.port(other);
        let conninfo = format!(
            "host=127.0.0.1 port={port} user=replicator passfile={passfile} dbname=replication replication=true \
             application_name=inventory-{node}-guard connect_timeout=3 tcp_user_timeout=3000"
        );
        serde_json::json!({"node": other, "conninfo": conninfo})
    });
    profile["peers"] = peers.collect();
    std::fs::write(&file, serde_json::to_vec(&profile).unwrap()).unwrap();
}

#[test]
fn a_primary_starts_if_somebody_can_be_asked_or_its_commits_wait_and_never_beside_another() {
    let mut herd = Herd::declare(&newest_or_15(0), &WHOLE);
    herd.keep_backups();
    herd.apply().ends_with(0);
    tell_of_the_others(&herd, "a", &["b", "c"]);
    let profile = herd.facts("a").join("profile.json");
    let asks = ["guard", "--profile", text(&profile), "--ask-record"];
    let hidden = herd.path("hidden");
    let hide = || std::fs::rename(herd.repository(), &hidden).unwrap();
    let show = || std::fs::rename(&hidden, herd.repository()).unwrap();

    herd.run(&["guard", "--profile", text(&herd.facts("b").join("profile.json")), "--ask-record"])
        .ends_with(0)
        .says(&["inventory-b starts as a standby"]);
    herd.stop("a", "fast");
    herd.run(&asks).ends_with(0).says(&["inventory-a starts as a primary on timeline 1"]);
    hide();
    // One of the others is enough.
    herd.stop("c", "fast");
    herd.run(&asks).ends_with(0).says(&["inventory-a starts as a primary on timeline 1"]);

    // The other one leads by now, and nobody has written it down.
    show();
    herd.program("pg_ctl", &["-D", text(&herd.data("b")), "-w", "promote"]);
    until("b is promoted", || (herd.sql("b", "SELECT pg_is_in_recovery()") == "f").then_some(()));
    let says = [
        "ERROR:  cannot start inventory-a as a primary: inventory-b is primary",
        "DETAIL: It answers, on timeline 2; inventory-a is on timeline 1",
        "HINT:   Bring it back as a standby: pgherd rejoin a",
    ];
    herd.run(&asks).ends_with(4).tells(&says);
    let word = [&asks[..], &["--start-anyway", "--reason", "I know better"]].concat();
    herd.run(&word).ends_with(4).tells(&says);

    // Nobody answers: its commits wait for a standby, so that alone it acknowledges none.
    herd.stop("b", "fast");
    hide();
    herd.run(&asks).ends_with(0).says(&["nobody could be asked, and its commits wait for a standby"]);
    let auto = herd.data("a").join("postgresql.auto.conf");
    let mut settings = std::fs::read_to_string(&auto).unwrap();
    settings.push_str("synchronous_commit = local\n");
    std::fs::write(&auto, settings).unwrap();
    herd.run(&asks).ends_with(10).tells(&[
        "ERROR:  cannot tell whether another node of inventory is primary",
        "the record in repository main cannot be read; inventory-b does not answer: connection to server",
        "Connection refused",
        "--start-anyway --reason TEXT",
    ]);
    herd.run(&[&asks[..], &["--start-anyway"]].concat()).ends_with(2);
    herd.run(&word).ends_with(0).says(&["the next start of inventory-a as a primary within 10 minutes"]);
    herd.run(&asks).ends_with(0).says(&["said: I know better"]);
    assert!(herd.facts("a").join("started-anyway.json").exists());
    herd.run(&asks).ends_with(10);
    show();
}
